"""Texts that were scanned not long ago.

One program call carries the same text through every module it passes, and a system prompt comes back with every call:
most of what is redacted has been redacted before.
"""

from __future__ import annotations

from typing import Final

__all__ = ["ScanMemory"]

_LONGEST: Final = 32_768  # characters of one text; longer ones come once
_HELD: Final = 1_000_000  # characters of one generation; there are two: some megabytes at most


class ScanMemory:
    """Results of earlier scans, by text, in two generations of bounded size. Thread-safe: a lost result is only slow.

    It keeps texts that may be private in this process's memory a little longer; DSPy's history holds them far longer.
    """

    __slots__ = ("_held", "_old", "_young")

    def __init__(self) -> None:
        self._young: dict[str, tuple[str, tuple[str, ...]]] = {}
        self._old: dict[str, tuple[str, tuple[str, ...]]] = {}
        self._held = 0

    def get(self, text: str) -> tuple[str, tuple[str, ...]] | None:
        """The redacted text and its entities; ``None`` when they are not known."""
        found = self._young.get(text)
        return found if found is not None else self._old.get(text)

    def keep(self, text: str, out: str, entities: tuple[str, ...]) -> None:
        """Remember a result."""
        if len(text) > _LONGEST:
            return
        self._young[text] = (out, entities)
        self._held += len(text) + len(out)
        if self._held > _HELD:
            self._old, self._young, self._held = self._young, {}, 0
