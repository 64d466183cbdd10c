"""A bounded memory of what ended not long ago."""

from __future__ import annotations

from typing import Generic, TypeVar

__all__ = ["Recent"]

V = TypeVar("V")


class Recent(Generic[V]):
    """Remembers at least the last ``size`` values and at most twice as many, by key. Thread-safe.

    Values live in two generations; when the younger one is full it becomes the older one, which is forgotten. That
    needs neither a lock nor an eviction on each call, as dropping the single oldest entry would.

    Args:
        size: How many values are remembered at least.
    """

    __slots__ = ("_old", "_size", "_young")

    def __init__(self, size: int) -> None:
        self._size = size
        self._young: dict[str, V] = {}
        self._old: dict[str, V] = {}

    def remember(self, key: str, value: V) -> None:
        """Keep a value."""
        young = self._young
        young[key] = value
        if len(young) > self._size and young is self._young:
            self._old = young
            self._young = {}

    def get(self, key: str) -> V | None:
        """The value, or ``None`` when it was never kept or is forgotten."""
        found = self._young.get(key)
        return found if found is not None else self._old.get(key)

    def __len__(self) -> int:
        return len(self._young) + len(self._old)
