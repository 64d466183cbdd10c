"""What a program would send, counted before it is called: for budgets, for context windows, for a warning in time.

    estimate = estimate_tokens(program, {"question": "Why is the sky blue?"})
    if estimate.prompt_tokens is not None and estimate.prompt_tokens > 8_000: ...

Each predictor's prompt is made by DSPy itself, with its adapter, instructions and demos, up to the very call of the
language model, and thrown away. No model, no tool, no retriever and no ``forward`` of the program runs, nothing is
sent, and no callback is told.

A predictor's inputs are matched with the program's by name. What a later step gets from an earlier one is not known
before it ran: its ``prompt_tokens`` are ``None`` and ``missing`` names the fields, while ``known_tokens`` counts what
is certain. How often a program calls a predictor is not known either; every figure is for one call.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import dspy
import pydantic

from dspy_observe.errors import ConfigurationError
from dspy_observe.facts.offline import bundled_metadata, can_tell_offline
from dspy_observe.serving.standin import StandInLM
from dspy_observe.serving.tokenizers import counter_for

__all__ = ["PredictorEstimate", "TokenEstimate", "estimate_tokens"]

_BESIDES: Final = ("tools", "response_format")
"""What is sent beside the messages and takes tokens of the prompt."""

_UNTOLD: Final = 0.25
"""Error where it is not known what the model supports, and so whether a schema is sent."""


@dataclass(frozen=True, slots=True)
class PredictorEstimate:
    """What one call of one predictor would send."""

    name: str
    """Its path in the program."""
    model: str
    prompt_tokens: int | None
    """Of one request; ``None`` when a part is not known before the program runs."""
    known_tokens: int
    """Of the part that is known: instructions, demos, and the inputs that were given."""
    missing: tuple[str, ...]
    """Input fields that an earlier step fills."""
    uncounted: tuple[str, ...]
    """Parts that are no text and whose tokens only the provider knows, such as ``image_url``."""
    max_completion_tokens: int | None
    """The most that the answers may have, by ``max_tokens``; ``None`` when the model's own limit holds."""
    requests: int
    """Requests that one call makes: DSPy asks natively once for each of ``n`` answers."""
    exact: bool
    """Whether the provider counts the known part just so."""
    error: float
    """By what part of the tokens the truth may differ; 0 when exact."""
    method: str
    """How was counted: an encoding's name, or ``characters``."""


@dataclass(frozen=True, slots=True)
class TokenEstimate:
    """What one call of each predictor of a program would send."""

    predictors: tuple[PredictorEstimate, ...]

    @property
    def prompt_tokens(self) -> int | None:
        """Of all predictors, each called once; ``None`` when one of them is not known."""
        return _sum(one.prompt_tokens and one.prompt_tokens * one.requests for one in self.predictors)

    @property
    def known_tokens(self) -> int:
        """Of all that is known: the prompts have at least that many, but for the error."""
        return sum(one.known_tokens * one.requests for one in self.predictors)

    @property
    def max_completion_tokens(self) -> int | None:
        """The most that all answers may have; ``None`` when one of them has no limit of ours."""
        return _sum(one.max_completion_tokens for one in self.predictors)

    @property
    def exact(self) -> bool:
        """Whether the providers count what is known just so."""
        return all(one.exact for one in self.predictors)


def estimate_tokens(
    module: dspy.Module, inputs: Mapping[str, Any] | dspy.Example, model: str | None = None
) -> TokenEstimate:
    """Count what a program would send for these inputs. Nothing is executed and nothing is sent.

    Args:
        module: The program, or one predictor.
        inputs: Its inputs by name.
        model: Count for this model, as DSPy names it; ``None`` takes each predictor's own LM.

    Raises:
        ConfigurationError: ``module`` is no program, ``inputs`` are no inputs by name, or a predictor has no LM.
    """
    if not isinstance(module, dspy.Module):
        raise ConfigurationError("module", f"{type(module).__name__} is no dspy.Module", "Pass the program")
    if isinstance(inputs, dspy.Example):
        inputs = inputs.toDict()
    if not isinstance(inputs, Mapping):
        raise ConfigurationError("inputs", f"{type(inputs).__name__} has no names", 'Pass {"question": "..."}')
    named = dspy.LM(model) if model is not None else None
    found = [_estimate(name, one, inputs, named) for name, one in module.named_predictors()]
    if not found:
        raise ConfigurationError("module", "it has no predictor", "Pass a program that calls a language model")
    return TokenEstimate(tuple(found))


def _estimate(
    name: str, predictor: dspy.Predict, inputs: Mapping[str, Any], named: dspy.BaseLM | None
) -> PredictorEstimate:
    lm = named or predictor.lm or dspy.settings.lm
    if not isinstance(lm, dspy.BaseLM):
        raise ConfigurationError("model", f"{name} has no language model", "Pass model=, or configure an LM")
    fields = predictor.signature.input_fields
    given = {field: inputs[field] for field in fields if field in inputs}
    missing = tuple(field for field, info in fields.items() if field not in given and info.is_required())
    messages, options = _prompt_of(predictor, given, lm)
    counter = counter_for(str(lm.model))
    texts, uncounted = _texts(messages)
    count = counter.messages(texts, _besides(options))
    told = can_tell_offline(lm)
    merged = {**lm.kwargs, **options}
    answers = merged.get("n") or 1
    limit = merged.get("max_tokens") or merged.get("max_completion_tokens")
    return PredictorEstimate(
        name=name,
        model=str(lm.model),
        prompt_tokens=None if missing or uncounted else count.tokens,
        known_tokens=count.tokens,
        missing=missing,
        uncounted=uncounted,
        max_completion_tokens=limit * answers if limit is not None else None,
        requests=1 if getattr(lm, "engine", None) == "litellm" else answers,
        exact=count.exact and told,
        error=count.error if told else max(count.error, _UNTOLD),
        method=counter.method,
    )


class _Prompt(BaseException):
    """Carries what would be sent out of DSPy, past whoever catches exceptions on the way."""

    def __init__(self, messages: list[dict[str, Any]], options: dict[str, Any]) -> None:
        super().__init__()
        self.messages = messages
        self.options = options


class _Unsent(StandInLM):
    """Stands in for the LM that would be asked, and asks nobody."""

    def __init__(self, lm: dspy.BaseLM) -> None:
        self.lms = (lm,)
        self.callbacks: list[Any] = []
        self.history: list[Any] = []

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> NoReturn:
        raise _Prompt(messages or [{"role": "user", "content": prompt}], kwargs)

    @property
    def supports_function_calling(self) -> bool:
        """What the LM says, where that needs no network; else no."""
        return can_tell_offline(self.lms[0]) and super().supports_function_calling

    @property
    def supports_reasoning(self) -> bool:
        """See above."""
        return can_tell_offline(self.lms[0]) and super().supports_reasoning

    @property
    def supports_response_schema(self) -> bool:
        """See above."""
        return can_tell_offline(self.lms[0]) and super().supports_response_schema

    @property
    def supported_params(self) -> set[str]:
        """See above."""
        return super().supported_params if can_tell_offline(self.lms[0]) else set()


def _prompt_of(
    predictor: dspy.Predict, given: dict[str, Any], lm: dspy.BaseLM
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Let DSPy make the prompt, up to the call of the LM."""
    adapter = dspy.settings.adapter
    if adapter is not None:
        adapter = _without_callbacks(adapter)
    with dspy.context(callbacks=[], adapter=adapter, trace=None, send_stream=None), bundled_metadata(), _quiet():
        try:
            # The method of Predict itself: a subclass' own may do more than make a prompt.
            dspy.Predict.forward(predictor, **given, lm=_Unsent(lm))
        except _Prompt as prompt:
            return prompt.messages, prompt.options
    raise AssertionError("DSPy made an answer without asking the language model")


def _without_callbacks(adapter: Any) -> Any:
    from copy import copy

    silent = copy(adapter)
    silent.callbacks = []
    return silent


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep DSPy from warning, in this thread, of inputs that are missing because an earlier step will fill them."""
    here = threading.get_ident()

    def passes(record: logging.LogRecord) -> bool:
        return threading.get_ident() != here or record.levelno > logging.WARNING

    logger = logging.getLogger("dspy.predict.predict")
    logger.addFilter(passes)
    try:
        yield
    finally:
        logger.removeFilter(passes)


def _texts(messages: list[dict[str, Any]]) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """Role and text of each message, and the kinds of parts that are no text."""
    texts: list[tuple[str, str]] = []
    other: dict[str, None] = {}
    for message in messages:
        content = message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
        text = "".join(part["text"] for part in parts if part.get("type") == "text")
        other.update(dict.fromkeys(str(part.get("type")) for part in parts if part.get("type") != "text"))
        texts.append((str(message.get("role")), text))
    return texts, tuple(other)


def _besides(options: Mapping[str, Any]) -> str:
    sent = [options[name] for name in _BESIDES if options.get(name) is not None]
    return "".join(json.dumps(_schema(value), ensure_ascii=False, default=str) for value in sent)


def _schema(value: Any) -> Any:
    is_model = isinstance(value, type) and issubclass(value, pydantic.BaseModel)
    return value.model_json_schema() if is_model else value


def _sum(counts: Iterator[int | None]) -> int | None:
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total
