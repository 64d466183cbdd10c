"""The long texts that this task saw last: a message holds the question it asks, and a longer one the shorter before it.

What was nowhere in the known part needs to be looked for in the rest only.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

from dspy_observe.redaction.shape import Edit, Lowered

__all__ = ["shape_of"]

_SHORTEST: Final = 1_000
"""Characters; looking anew at a shorter text costs less."""
_LONGEST: Final = 40_000
_MOST: Final = 4
_PROBE: Final = 24
_TRIES: Final = 3
"""Places where a known text may begin that are looked at."""

_seen: ContextVar[tuple[tuple[str, Lowered], ...]] = ContextVar("dspy_observe_seen", default=())


def shape_of(text: str) -> Lowered:
    """The text in lower case, with what is known of the part of it that was seen before."""
    size = len(text)
    if size < _SHORTEST:
        return Lowered(text)
    seen = _seen.get()
    for known, lowered in seen:
        edits = _rest(text, known)
        if edits is not None:
            shape = Lowered(text, lowered, edits)
            break
    else:
        shape = Lowered(text)
    if size <= _LONGEST:
        _seen.set(((text, shape), *seen[: _MOST - 1]))
    return shape


def _rest(text: str, known: str) -> list[Edit] | None:
    """What a text has before and after a known one; ``None`` when it does not hold it."""
    size, room = len(known), len(text)
    if size > room:
        return None
    probe, until = known[:_PROBE], room - size + _PROBE
    at = text.find(probe, 0, until)
    for _ in range(_TRIES):
        if at < 0:
            break
        if text.startswith(known, at):
            return [Edit(0, 0, 0, at), Edit(size, size, at + size, room)]
        at = text.find(probe, at + 1, until)
    return None
