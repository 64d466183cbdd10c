"""The turns of one call to a ``FallbackLM``: who is asked, who failed, who answered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Protocol

import dspy
from dspy import lm15
from dspy.utils.exceptions import LMError

from dspy_observe.errors import ConfigurationError
from dspy_observe.facts.attempts import handed_on, switched
from dspy_observe.facts.billing import entry_of
from dspy_observe.facts.calls import outcome_of
from dspy_observe.serving.breaker import Circuit
from dspy_observe.serving.deadlines import Outlet

__all__ = ["Attempt", "Run", "refuse_one_models_own"]

_ONE_MODELS_OWN: Final = frozenset({"model", "api_key", "api_base", "base_url", "engine", "async_engine"})


class Owner(Protocol):
    """What the turns of a call need of the LM that was called."""

    lms: tuple[dspy.BaseLM, ...]
    on: tuple[type[Exception], ...]
    guards: tuple[Circuit | None, ...]
    callbacks: list[Any]
    history: list[Any]


class Attempt:
    """One model's turn. As a context manager it swallows the failures after which the next model is asked."""

    def __init__(self, run: Run, position: int, lm: dspy.BaseLM) -> None:
        self._run = run
        self._position = position
        self._lm = lm
        self._settings = ExitStack()
        self.outputs: Any = None
        self.outlet: Outlet | None = None

    def __enter__(self) -> dspy.BaseLM:
        owner, before = self._run.owner, self._run.failed
        changes: dict[str, Any] = {}
        stream = dspy.settings.send_stream
        if stream is not None:
            self.outlet = changes["send_stream"] = Outlet(stream)
        if owner.callbacks:
            changes["callbacks"] = [*(dspy.settings.callbacks or ()), *owner.callbacks]
        if changes:
            self._settings.enter_context(dspy.settings.context(**changes))
        if before:
            self._settings.enter_context(switched(*before[-1]))
        self._settings.enter_context(handed_on(owner, self._lm, self._run.messages))
        return self._lm

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._settings.close()
        run = self._run
        if error is None:
            run.answered(self._position, self.outputs)
            return False
        failure = isinstance(error, run.owner.on) and outcome_of(error) != "cancelled"
        run.judge(self._position, failed=failure, error=error)
        if failure and not (self.outlet is not None and self.outlet.emitted) and not run.is_last(self._position):
            run.failed.append((str(self._lm.model), _reason(error)))
            return True
        run.explain(error)
        return False


class Run:
    """One logical call: whose turn it is, who failed before, and who answered."""

    def __init__(self, owner: Owner, prompt: Any, messages: Any, kwargs: dict[str, Any]) -> None:
        refuse_one_models_own(kwargs)
        self.owner = owner
        self.failed: list[tuple[str, str]] = []
        self.outputs: Any = None
        self._done = False
        self._prompt = prompt
        self.messages = messages
        self._kwargs = kwargs
        request = kwargs.get("request", prompt)
        if isinstance(request, lm15.Request) and request.model != owner.lms[0].model:
            raise ValueError("Request.model must match FallbackLM.model, its first model's name")

    def __iter__(self) -> Iterator[Attempt]:
        for position, (lm, circuit) in enumerate(zip(self.owner.lms, self.owner.guards, strict=True)):
            if circuit is not None and not self.is_last(position) and not circuit.admits():
                self.failed.append((str(lm.model), "circuit_open"))
                continue
            yield Attempt(self, position, lm)
            if self._done:
                return

    def is_last(self, position: int) -> bool:
        """Whether nobody comes after this model."""
        return position == len(self.owner.lms) - 1

    def arguments(self, lm: dspy.BaseLM) -> tuple[Any, dict[str, Any]]:
        """Prompt and options as this model takes them: a typed request names the model that it is for."""
        prompt, options = self._prompt, self._kwargs
        if isinstance(prompt, lm15.Request):
            prompt = replace(prompt, model=lm.model)
        if isinstance(options.get("request"), lm15.Request):
            options = {**options, "request": replace(options["request"], model=lm.model)}
        return prompt, options

    def judge(self, position: int, *, failed: bool, error: BaseException | None) -> None:
        """Tell the model's circuit. A refusal shows that the provider is there; an interrupt shows nothing."""
        circuit = self.owner.guards[position]
        if circuit is None:
            return
        if failed:
            circuit.failed()
        elif error is None or (isinstance(error, LMError) and outcome_of(error) != "cancelled"):
            circuit.succeeded()

    def answered(self, position: int, outputs: Any) -> None:
        """A model has answered: keep what DSPy wrote into its history."""
        self.judge(position, failed=False, error=None)
        self.outputs, self._done = outputs, True
        entry = entry_of(outputs)
        if not isinstance(entry, dict):
            return
        if self.failed:
            entry["fallbacks"] = [{"model": model, "reason": reason} for model, reason in self.failed]
        most, history = dspy.settings.max_history_size, self.owner.history
        if most:
            history.append(entry)
            del history[:-most]

    def explain(self, error: BaseException) -> None:
        """Note on the error that reaches the caller which models were asked before."""
        if self.failed:
            error.add_note("FallbackLM asked before: " + ", ".join(f"{model} ({why})" for model, why in self.failed))


def _reason(error: BaseException) -> str:
    """One word for a metric's label: DSPy's code for the class, whatever a provider put into the instance."""
    code = type(error).default_code if isinstance(error, LMError) else None
    return str(code) if code else type(error).__name__


def refuse_one_models_own(kwargs: Mapping[str, Any]) -> None:
    """Keep what belongs to one model from reaching all of them, a key above all.

    Raises:
        ConfigurationError: There is such a parameter among them.
    """
    given = sorted(_ONE_MODELS_OWN & kwargs.keys())
    if given:
        raise ConfigurationError(
            f"FallbackLM.{given[0]}", "it belongs to one model, not to all of them", "Give it to that dspy.LM"
        )
