"""An LM that asks for permission before each call."""

from __future__ import annotations

from typing import Any, Protocol

import dspy

from dspy_observe.errors import ConfigurationError
from dspy_observe.facts.attempts import handed_on
from dspy_observe.serving.standin import StandInLM

__all__ = ["GuardedLM"]


class Permits(Protocol):
    """Who gives permission."""

    def check(self) -> None:
        """Raise what the caller shall get instead of an answer."""


class GuardedLM(StandInLM):
    """Hand calls on to an LM unless they are refused; refused ones send nothing and leave no LM record.

    History and callbacks are those of the LM itself. A saved program holds the LM, not its guard.

    Args:
        lm: Who answers.
        permits: Asked before each call, in the call's own context.

    Raises:
        ConfigurationError: ``lm`` is no LM.
    """

    def __init__(self, lm: dspy.BaseLM, permits: Permits) -> None:
        if not isinstance(lm, dspy.BaseLM):
            raise ConfigurationError("lm", f"{type(lm).__name__} is no dspy.BaseLM", 'Pass dspy.LM("...")')
        self.lms = (lm,)
        self._permits = permits

    @property
    def lm(self) -> dspy.BaseLM:
        """Who answers."""
        return self.lms[0]

    @property
    def history(self) -> list[Any]:
        """The LM's history."""
        found: list[Any] = self.lm.history
        return found

    @property
    def callbacks(self) -> list[Any]:
        """The LM's callbacks."""
        found: list[Any] = self.lm.callbacks
        return found

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """Ask the LM; see ``dspy.BaseLM.__call__``."""
        self._permits.check()
        with handed_on(self, self.lm, messages):
            return self.lm(prompt, messages=messages, **kwargs)

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """Ask the LM without blocking."""
        self._permits.check()
        with handed_on(self, self.lm, messages):
            return await self.lm.acall(prompt, messages=messages, **kwargs)

    def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        """Ask the LM for the provider's response."""
        self._permits.check()
        return self.lm.forward(prompt, messages=messages, **kwargs)

    async def aforward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        """Ask the LM for the provider's response without blocking."""
        self._permits.check()
        return await self.lm.aforward(prompt, messages=messages, **kwargs)

    def copy(self, **kwargs: Any) -> GuardedLM:
        """A guarded copy of the LM."""
        return GuardedLM(self.lm.copy(**kwargs), self._permits)

    def dump_state(self) -> dict[str, Any]:
        """The LM's own state."""
        state: dict[str, Any] = self.lm.dump_state()
        return state

    def __repr__(self) -> str:
        return f"GuardedLM({self.lm!r})"
