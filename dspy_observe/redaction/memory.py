"""What was redacted not long ago.

One program call carries the same values through every module it passes, and a system prompt comes back with every call:
most of what is redacted has been redacted before.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

__all__ = ["Memory"]

_LARGEST: Final = 65_536  # characters of one entry; larger ones come once
_HELD: Final = 1_000_000  # characters of one generation; there are two: some megabytes at most

K = TypeVar("K")
V = TypeVar("V")


class Memory(Generic[K, V]):
    """Earlier results, in two generations of bounded size. Thread-safe: a lost result is only slow.

    It keeps what may be private in this process's memory a little longer; DSPy's history holds it far longer.
    """

    __slots__ = ("_held", "_old", "_young")

    def __init__(self) -> None:
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}
        self._held = 0

    def get(self, key: K) -> V | None:
        """The result, or ``None`` when it is not known."""
        found = self._young.get(key)
        return found if found is not None else self._old.get(key)

    def keep(self, key: K, result: V, size: int) -> None:
        """Remember a result.

        Args:
            key: What was redacted.
            result: What came of it.
            size: Characters of both together.
        """
        if size > _LARGEST:
            return
        self._young[key] = result
        self._held += size
        if self._held > _HELD:
            self._old, self._young, self._held = self._young, {}, 0
