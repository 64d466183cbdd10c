"""One LM that calls another in its own place, and why it does: because another model failed just before.

``FallbackLM`` leaves a note for the call that it makes next; the ledger reads the note when that call begins, so that
records, metrics, spans and log lines all tell it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

from dspy.clients import _deprecation

from dspy_observe.facts.calls import active_call_id
from dspy_observe.redaction import redact_name

__all__ = ["Switch", "handed_on", "switch_of_this_call", "switched"]


class Switch(NamedTuple):
    """A change of model within one logical LM call."""

    from_model: str
    """The model that failed, or was not asked because it failed too often."""
    reason: str
    """What went wrong there, in one word such as ``rate_limit``."""
    caller_id: str | None
    """The call that wanted an answer: models asked on the way to it were not switched to."""


_SWITCH: Final[ContextVar[Switch | None]] = ContextVar("dspy_observe_switch", default=None)


@contextmanager
def switched(from_model: str, reason: str) -> Iterator[None]:
    """Say that the LM call inside the block is made because another model failed.

    Args:
        from_model: The model that failed, as DSPy names it.
        reason: One word of a small set; a metric label.
    """
    token = _SWITCH.set(Switch(redact_name(from_model), redact_name(reason), active_call_id()))
    try:
        yield
    finally:
        with suppress(ValueError):  # a coroutine that is closed from another context takes its own context with it
            _SWITCH.reset(token)


def switch_of_this_call() -> Switch | None:
    """What led to the LM call that begins now; ``None`` when no model failed before. For start handlers."""
    found = _SWITCH.get()
    return found if found is not None and found.caller_id == active_call_id() else None


def handed_on(asked: object, instead: object, messages: object) -> AbstractContextManager[Any]:
    """Let a model be called in another one's place with the messages of an adapter.

    DSPy 3.4 warns of message dictionaries unless an adapter of its own passes these very ones to this very model.

    Args:
        asked: The model that the adapter called.
        instead: The model that is called in its place, inside the block.
        messages: The adapter's messages, the very object.
    """
    origin = _deprecation._adapter_call.get()
    if origin is None or origin[0] is not asked or origin[1] is not messages:
        return nullcontext()
    marked: AbstractContextManager[Any] = _deprecation.adapter_message_call(instead, messages)
    return marked
