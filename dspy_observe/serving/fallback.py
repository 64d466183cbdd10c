"""A language model with stand-ins: when one fails in a way that another may not, the next one is asked.

    lm = FallbackLM(
        dspy.LM("openai/gpt-4o-mini", num_retries=1),
        dspy.LM("anthropic/claude-haiku-4-5"),
        attempt_timeout_s=20,
        breaker=Breaker(failures=5, open_s=30),
    )
    dspy.configure(lm=lm)

What you get
    A ``dspy.BaseLM`` for sync, async and streamed calls. Each model that is asked is an LM call of its own, with its
    own record, span, tokens and cost, so that totals are the providers' bills; the wrapper itself makes none. The
    record of a call that another model's failure led to says so (``fallback_from``, ``fallback_reason``).
When the next model is asked
    After the failures named in ``on``, and after ``attempt_timeout_s``. Never after output has reached a stream's
    consumer, never when the call was cancelled or interrupted, and by default neither for requests that the provider
    refuses nor for keys that it does not accept: the next one would do the same, or hide that something is wrong.
Retries
    Each model makes its own first (``num_retries`` of ``dspy.LM``, 3 by default, with waits of 1, 2 and 4 seconds, or
    as long as the provider asks). Give the models before the last one ``num_retries=0`` or 1.
Caching
    Each model has its own entries in DSPy's cache, so an answer of a stand-in is not taken for one of the first model.
Output formats
    Models differ in how well they keep to a format. Evaluate the program with each of them before you rely on it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib import import_module
from typing import Any, Final

import dspy
from dspy.utils.exceptions import (
    LMRateLimitError,
    LMServerError,
    LMStreamAssemblyError,
    LMTimeoutError,
    LMTransportError,
)

from dspy_observe.errors import ConfigurationError
from dspy_observe.redaction import redact
from dspy_observe.serving.breaker import Breaker, Circuit
from dspy_observe.serving.deadlines import AttemptTimeoutError, run_async, run_sync
from dspy_observe.serving.standin import StandInLM
from dspy_observe.serving.turns import Run, refuse_one_models_own

__all__ = ["TRANSIENT", "AttemptTimeoutError", "FallbackLM"]

TRANSIENT: Final[tuple[type[Exception], ...]] = (
    LMRateLimitError,
    LMTimeoutError,
    LMServerError,
    LMTransportError,
    LMStreamAssemblyError,
)
"""Failures of a provider that another one may not have: rate limits, time-outs, status 5xx, broken connections."""


class FallbackLM(StandInLM):
    """Ask a model, and when it fails in one of the ways named, the next one.

    Args:
        primary: Asked first. Its ``model``, ``kwargs`` and ``model_type`` are those of the whole.
        *secondaries: Asked in turn, at least one.
        attempt_timeout_s: Seconds that each model has, its retries included; for a stream, until its first chunk.
            ``None`` leaves it to the models. A blocking call that is given up goes on in its thread until the model's
            own ``timeout`` ends it, and what it uses is booked.
        on: The failures after which the next model is asked; :data:`TRANSIENT` by default. Add
            ``dspy.ContextWindowExceededError``, say, where the next model has a larger window.
        breaker: When a failing model is left alone for a while; ``None`` asks it each time. The last one is never
            left alone.

    Raises:
        ConfigurationError: An argument cannot work.
    """

    def __init__(
        self,
        primary: dspy.BaseLM,
        *secondaries: dspy.BaseLM,
        attempt_timeout_s: float | None = None,
        on: tuple[type[Exception], ...] = TRANSIENT,
        breaker: Breaker | None = None,
    ) -> None:
        self.lms: tuple[dspy.BaseLM, ...] = (primary, *secondaries)
        self.attempt_timeout_s = attempt_timeout_s
        self.on = on
        self.breaker = breaker
        self._check()
        self.guards = self._new_circuits()
        self.callbacks: list[Any] = []
        self.history: list[Any] = []

    def _new_circuits(self) -> tuple[Circuit | None, ...]:
        return tuple(Circuit(self.breaker) if self.breaker is not None else None for _ in self.lms)

    def _check(self) -> None:
        for position, lm in enumerate(self.lms):
            if not isinstance(lm, dspy.BaseLM):
                where = f"secondaries[{position - 1}]" if position else "primary"
                raise ConfigurationError(where, f"{type(lm).__name__} is no dspy.BaseLM", 'Pass dspy.LM("...")')
        if len(self.lms) == 1:
            raise ConfigurationError("secondaries", "there is none to fall back to", "Pass a second LM")
        seconds = self.attempt_timeout_s
        number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if seconds is not None and not (number and math.isfinite(seconds) and seconds > 0):
            raise ConfigurationError(
                "attempt_timeout_s", f"{seconds!r} is no duration", "Give seconds above 0, or None"
            )
        if not isinstance(self.on, tuple) or not self.on:
            raise ConfigurationError("on", f"{self.on!r} names no failures", "Give a tuple of exception classes")
        for kind in self.on:
            # A cancellation or an interrupt is the caller's wish, which no other model may answer.
            if not isinstance(kind, type) or not issubclass(kind, Exception):
                raise ConfigurationError("on", f"{kind!r} is no Exception class", "Name failures such as LMServerError")
        if self.breaker is not None and not isinstance(self.breaker, Breaker):
            raise ConfigurationError("breaker", f"{type(self.breaker).__name__} is no Breaker", "Pass Breaker(...)")

    # --- calls -------------------------------------------------------------------------------------------------------

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """Ask the models in turn; see ``dspy.BaseLM.__call__``.

        Raises:
            dspy.LMError: The last model's failure, or one that is not in ``on``. Its notes name the models before.
        """
        return self._ask(prompt, messages, kwargs, lambda lm: lm)

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """Ask the models in turn without blocking; see :meth:`__call__`."""
        return await self._aask(prompt, messages, kwargs, lambda lm: lm.acall)

    def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        """Ask the models in turn for the provider's response; no callback is told of it, as with every ``forward``."""
        return self._ask(prompt, messages, kwargs, lambda lm: lm.forward)

    async def aforward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        """Ask the models in turn for the provider's response without blocking; see :meth:`forward`."""
        return await self._aask(prompt, messages, kwargs, lambda lm: lm.aforward)

    def _ask(self, prompt: Any, messages: Any, kwargs: dict[str, Any], way: Callable[[Any], Any]) -> Any:
        run = Run(self, prompt, messages, kwargs)
        for attempt in run:
            with attempt as lm:
                given, options = run.arguments(lm)

                def work(lm: Any = lm, given: Any = given, options: dict[str, Any] = options) -> Any:
                    return way(lm)(given, messages=messages, **options)

                attempt.outputs = run_sync(work, self.attempt_timeout_s, attempt.outlet, lm.model)
        return run.outputs

    async def _aask(self, prompt: Any, messages: Any, kwargs: dict[str, Any], way: Callable[[Any], Any]) -> Any:
        run = Run(self, prompt, messages, kwargs)
        for attempt in run:
            with attempt as lm:
                given, options = run.arguments(lm)
                work = way(lm)(given, messages=messages, **options)
                attempt.outputs = await run_async(work, self.attempt_timeout_s, attempt.outlet, lm.model)
        return run.outputs

    # --- as an LM among others ---------------------------------------------------------------------------------------

    @property
    def circuits(self) -> dict[str, str]:
        """The state of each model's circuit by model: closed, open or half_open; empty without a breaker."""
        return {lm.model: circuit.state for lm, circuit in zip(self.lms, self.guards, strict=True) if circuit}

    def copy(self, **kwargs: Any) -> FallbackLM:
        """A copy whose models are copies with these parameters, and with a history of its own.

        Args:
            **kwargs: Parameters of ours by name, all others for each model, such as ``rollout_id`` and ``temperature``.

        Raises:
            ConfigurationError: A parameter belongs to one model, such as ``model`` or ``api_key``.
        """
        refuse_one_models_own(kwargs)
        ours = {"attempt_timeout_s", "on", "breaker"} & kwargs.keys()
        own: dict[str, Any] = {name: kwargs.pop(name) for name in ours}
        copied = copy.copy(self)
        copied.lms = tuple(lm.copy(**kwargs) for lm in self.lms)
        copied.history = []
        copied.callbacks = list(self.callbacks)
        for name, value in own.items():
            setattr(copied, name, value)
        copied._check()
        if "breaker" in own:
            copied.guards = copied._new_circuits()
        return copied

    def dump_state(self) -> dict[str, Any]:
        """What :meth:`load_state` makes the LM from: the models' own states, without API keys."""
        from dspy.clients.base_lm import LM_CLASS_STATE_KEY

        return {
            LM_CLASS_STATE_KEY: f"{type(self).__module__}.{type(self).__qualname__}",
            "model": self.model,
            "lms": [lm.dump_state() for lm in self.lms],
            "attempt_timeout_s": self.attempt_timeout_s,
            "on": [f"{kind.__module__}:{kind.__qualname__}" for kind in self.on],
            "breaker": asdict(self.breaker) if self.breaker is not None else None,
        }

    @classmethod
    def load_state(cls, state: Mapping[str, Any], *, allow_custom_lm_class: bool = False) -> FallbackLM:
        """Make an LM from :meth:`dump_state`.

        Args:
            state: What was dumped; trusted, since classes are imported that it names.
            allow_custom_lm_class: Whether models of other classes than ``dspy.LM`` may be imported.

        Raises:
            ConfigurationError: The state names something that is no exception class.
            ImportError: A class cannot be imported.
        """
        lms = [dspy.BaseLM.load_state(one, allow_custom_lm_class=allow_custom_lm_class) for one in state["lms"]]
        breaker = Breaker(**state["breaker"]) if state["breaker"] is not None else None
        timeout_s, on = state["attempt_timeout_s"], tuple(map(_import_class, state["on"]))
        return cls(*lms, attempt_timeout_s=timeout_s, on=on, breaker=breaker)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(str(lm.model) for lm in self.lms)})"


def _import_class(path: str) -> type[Exception]:
    module, _, name = path.partition(":")
    found: Any = import_module(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, type) or not issubclass(found, Exception):
        raise ConfigurationError("on", f"{redact(path)} is no Exception class", "Save the program again")
    return found
