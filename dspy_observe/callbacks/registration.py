"""What DSPy's own compile and evaluate ends become in the registry: versions and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from dspy_observe import safety
from dspy_observe.callbacks.base import RecordCallback
from dspy_observe.facts import calls
from dspy_observe.records import CallRecord

__all__ = ["Manager", "Registrar", "ScoreBook"]

_GUARD: Final = safety.guard("registry.auto")


class ScoreBook(Protocol):
    """A registry, as far as the end of an evaluation needs it."""

    def update_performance_score(
        self,
        name: str,
        version: str,
        score: float,
        *,
        dataset: str | None = None,
        n: int | None = None,
        source: str = ...,
        score_id: str | None = None,
    ) -> Any:
        """Add an observation of how good a version is; the same ``score_id`` counts once."""


class Manager(Protocol):
    """A registry manager, as far as a callback needs it; :class:`dspy_observe.registry.RegistryManager` is one."""

    @property
    def integration_config(self) -> Any:
        """Holds ``auto_register_optimizations``; read at every call."""

    @property
    def registry(self) -> ScoreBook:
        """Where scores are booked."""

    def register_optimization_result(
        self,
        result: Any,
        signature_name: str | None = None,
        *,
        optimizer: Any | None = None,
        trainset: Sequence[Any] | None = None,
        valset: Sequence[Any] | None = None,
    ) -> Any:
        """Register what an optimizer returned; the version has ``signature_name`` and ``version``, or is ``None``."""


class Registrar(RecordCallback):
    """Register what optimizers return, and book evaluations on the versions that were evaluated.

    Both happen before ``compile`` or the evaluation returns: the next line may change the compiled program, deploy the
    version or read the score. They take one commit of the store, nothing where another call surrounds the compile or
    the evaluation, and the hooks of programs, LMs and tools are never involved. What fails is counted under
    ``registry.auto``, and the compiled program is returned all the same.

    Args:
        manager: Where to.
    """

    kinds = frozenset({"compile", "evaluate"})

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    @property
    def identity(self) -> object:
        return ("registry.auto", id(self._manager))

    def compiled(self, record: CallRecord, optimizer: Any, inputs: Mapping[str, Any], program: Any) -> None:
        """Register the result under its student's name, and track it as the version that it is now."""
        # Optimizers use others: what those return are candidates, and the outer one chooses.
        if record.parent_id is not None:
            return
        with _GUARD:
            if not self._manager.integration_config.auto_register_optimizations:
                return
            version = self._manager.register_optimization_result(
                program,
                record.program,
                optimizer=optimizer,
                trainset=_examples(inputs.get("trainset")),
                valset=_examples(inputs.get("valset")),
            )
            if version is not None:
                before = calls.tag_of(program)  # some optimizers return the student itself
                role = before.role if before is not None else "stable"
                calls.tag(program, version.signature_name, version.version, role)

    def evaluated(self, record: CallRecord, program: Any, n: int | None) -> None:
        """Book the score if this very instance is tracked with a version; its copies may be something else."""
        # Within an optimizer the student may be half changed.
        if record.parent_id is not None or calls.tag_of(program) is None:
            return
        if record.program is None or record.version is None or record.score is None:
            return
        with _GUARD:
            self._manager.registry.update_performance_score(
                record.program,
                record.version,
                record.score,
                dataset=record.dataset,
                n=n,
                source="evaluate",
                score_id=record.call_id,
            )


def _examples(value: Any) -> Sequence[Any] | None:
    return value if isinstance(value, Sequence) and not isinstance(value, str) else None
