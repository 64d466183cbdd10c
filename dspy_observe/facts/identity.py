"""A weak map keyed by identity.

``weakref.WeakKeyDictionary`` compares keys with ``==`` and hashes them; a DSPy ``Prediction`` compares by value and a
user's module may not hash at all. Two equal answers of two calls must not be taken for one.
"""

from __future__ import annotations

import weakref
from typing import Any, Generic, TypeVar

__all__ = ["WeakIdentityMap"]

V = TypeVar("V")


class _Reference(weakref.ref[Any]):
    """A weak reference that knows the identity its object had and the value attached to it."""

    __slots__ = ("identity", "value")
    identity: int
    value: Any


class WeakIdentityMap(Generic[V]):
    """Values attached to objects for as long as the objects live.

    Thread-safe without a lock: every operation is one dictionary operation, and a reference removes only itself.
    """

    def __init__(self) -> None:
        references: dict[int, _Reference] = {}

        def forget(dead: Any) -> None:
            # The identity may belong to a new object by now, whose own reference must stay.
            identity = dead.identity
            if references.get(identity) is dead:
                references.pop(identity, None)

        self._references = references
        self._forget = forget

    def set(self, key: object, value: V) -> bool:
        """Attach a value; returns whether that was possible (strings, numbers and tuples cannot be held weakly)."""
        try:
            reference = _Reference(key, self._forget)
        except TypeError:
            return False
        reference.identity = id(key)
        reference.value = value
        self._references[id(key)] = reference
        return True

    def get(self, key: object) -> V | None:
        """The value attached to this very object, or ``None``."""
        reference = self._references.get(id(key))
        if reference is None or reference() is not key:
            return None
        value: V = reference.value
        return value

    def __len__(self) -> int:
        return len(self._references)
