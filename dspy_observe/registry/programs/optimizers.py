"""What the end of an optimizer's ``compile`` tells: which optimizer, its parameters, and how good the result is."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from dspy_observe.redaction import Redactor, credentials_only
from dspy_observe.registry.programs.errors import UnserialisableProgramError
from dspy_observe.registry.programs.provenance import dataset_sha256
from dspy_observe.registry.programs.states import plain
from dspy_observe.registry.programs.values import encode

__all__ = ["OptimizationMetadata", "optimization_metadata", "optimizer_parameters"]

# Optimizers whose scores come from dspy.Evaluate, which counts in percent (DSPy 3.4: teleprompt/mipro_optimizer_v2.py,
# random_search.py, copro_optimizer.py, bettertogether.py). SIMBA and GEPA give the mean of the metric itself.
_PERCENT: Final = frozenset(
    {"MIPROv2", "BootstrapFewShotWithRandomSearch", "BootstrapRS", "COPRO", "BetterTogether", "InferRules"}
)


@dataclass(frozen=True, slots=True)
class OptimizationMetadata:
    """What an optimizer's result says about itself.

    Attributes:
        optimizer: The optimizer's class name.
        optimizer_params: Arguments it was made with, as JSON; functions, LMs and programs by name.
        score: Mean of the metric on the optimizer's validation data, percentages divided by 100; ``None`` when the
            program carries none.
        score_reported: The same as the optimizer wrote it.
        candidates: How many candidate programs it kept; ``None`` when it does not say.
        trainset_sha256, valset_sha256: Addresses of the data; ``None`` when not given or not hashable.
        trainset_size, valset_size: Numbers of examples; ``None`` when not given.
    """

    optimizer: str
    optimizer_params: dict[str, Any] = field(default_factory=dict)
    score: float | None = None
    score_reported: float | None = None
    candidates: int | None = None
    trainset_sha256: str | None = None
    valset_sha256: str | None = None
    trainset_size: int | None = None
    valset_size: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The metadata as plain data."""
        return dict(plain(self))


def optimization_metadata(
    teleprompter: Any,
    result: Any,
    *,
    trainset: Sequence[Any] | None = None,
    valset: Sequence[Any] | None = None,
    redactor: Redactor | None = None,
) -> OptimizationMetadata:
    """What ``on_compile_end`` can tell about an optimization.

    Args:
        teleprompter: The optimizer.
        result: The program that its ``compile`` returned.
        trainset: Data it was given; ``None`` when unknown.
        valset: Validation data it was given; ``None`` when unknown.
        redactor: Takes credentials out of the parameters; ``None`` takes the default one.
    """
    reported = _score(result)
    name = type(teleprompter).__name__
    return OptimizationMetadata(
        optimizer=name,
        optimizer_params=optimizer_parameters(teleprompter, redactor),
        score=reported / 100 if reported is not None and name in _PERCENT else reported,
        score_reported=reported,
        candidates=_candidates(result),
        trainset_sha256=dataset_sha256(trainset),
        valset_sha256=dataset_sha256(valset),
        trainset_size=None if trainset is None else len(trainset),
        valset_size=None if valset is None else len(valset),
    )


def optimizer_parameters(teleprompter: Any, redactor: Redactor | None = None) -> dict[str, Any]:
    """The arguments that an optimizer was made with, as far as it keeps them, as JSON without credentials.

    Args:
        teleprompter: The optimizer.
        redactor: Takes credentials out; ``None`` takes the default one.
    """
    try:
        names: Iterable[str] = inspect.signature(type(teleprompter).__init__).parameters
    except (TypeError, ValueError):
        names = ()
    held = vars(teleprompter) if hasattr(teleprompter, "__dict__") else {}
    found = {name: _named(held[name]) for name in names if held.get(name) is not None}
    return dict((redactor or credentials_only()).redact(found)[0])


def _named(value: Any) -> Any:
    """A parameter as JSON: plain values as they are, everything else by name."""
    if isinstance(value, Mapping):
        return {str(key): _named(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_named(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        try:
            return encode(value, "optimizer")
        except UnserialisableProgramError:
            return type(value).__name__
    if hasattr(value, "model") and hasattr(value, "kwargs"):  # an LM
        return f"{type(value).__name__}({value.model})"
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def _score(result: Any) -> float | None:
    own = _number(getattr(result, "score", None))
    if own is not None:
        return own
    details = getattr(result, "detailed_results", None)
    scores = getattr(details, "val_aggregate_scores", None)
    best = getattr(details, "best_idx", None)
    if isinstance(scores, Sequence) and isinstance(best, int) and 0 <= best < len(scores):
        return _number(scores[best])
    candidates = getattr(result, "candidate_programs", None)
    if isinstance(candidates, Sequence):
        numbers = [_number(one.get("score")) for one in candidates if isinstance(one, Mapping)]
        return max((number for number in numbers if number is not None), default=None)
    return None


def _candidates(result: Any) -> int | None:
    kept = getattr(result, "candidate_programs", None)
    if kept is None:
        kept = getattr(getattr(result, "detailed_results", None), "candidates", None)
    return len(kept) if isinstance(kept, Sequence) else None


def _number(value: Any) -> float | None:
    # A score may come as the EvaluationResult that holds it.
    value = getattr(value, "score", value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
