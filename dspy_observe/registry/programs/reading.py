"""Reading plain data with exactly the expected keys and types."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from dspy_observe.registry.programs.errors import ProgramStateError

__all__ = ["Reader"]

T = TypeVar("T")


class Reader:
    """Takes the keys of one mapping; on leaving the block, keys that nobody took are an error.

    Args:
        data: What should be a mapping with texts as keys.
        where: Its place, for errors.

    Raises:
        ProgramStateError: ``data`` is no such mapping; every method raises it when a key is missing or its value has
            another type.
    """

    def __init__(self, data: Any, where: str) -> None:
        if not isinstance(data, Mapping) or not all(isinstance(key, str) for key in data):
            raise ProgramStateError(where, f"should be a mapping, not {type(data).__name__}")
        self._data = data
        self._where = where
        self._taken: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        unknown = sorted(set(self._data) - self._taken)
        if error is None and unknown:
            raise ProgramStateError(self._where, f"unknown key {unknown[0]!r}")

    def take(self, key: str) -> Any:
        """The value under a key, of any type."""
        self._taken.add(key)
        if key not in self._data:
            raise ProgramStateError(self._where, f"{key!r} is missing")
        return self._data[key]

    def text(self, key: str) -> str:
        """A text."""
        return self._typed(key, str)

    def flag(self, key: str) -> bool:
        """True or false."""
        return self._typed(key, bool)

    def one_of(self, key: str, allowed: Sequence[str]) -> str:
        """One of these texts."""
        value = self.text(key)
        if value not in allowed:
            raise ProgramStateError(f"{self._where}.{key}", f"should be one of {', '.join(allowed)}")
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        """A mapping of JSON data, copied."""
        with Reader(self.take(key), f"{self._where}.{key}") as inner:
            return {name: copied(inner.take(name), f"{self._where}.{key}.{name}") for name in inner._data}

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts."""
        items = self._typed(key, list)
        if not all(isinstance(item, str) for item in items):
            raise ProgramStateError(f"{self._where}.{key}", "should hold texts only")
        return tuple(items)

    def each(self, key: str, read: Callable[[Any, str], T]) -> tuple[T, ...]:
        """A list, each item read by a function of the item and its place."""
        items = self._typed(key, list)
        return tuple(read(item, f"{self._where}.{key}[{at}]") for at, item in enumerate(items))

    def part(self, key: str, read: Callable[[Any, str], T]) -> T | None:
        """What a function of the value and its place reads, or ``None`` where null stands."""
        value = self.take(key)
        return None if value is None else read(value, f"{self._where}.{key}")

    def maybe(self, key: str, read: Callable[[str], T]) -> T | None:
        """What another method of this reader reads, or ``None`` where null stands."""
        return None if self.take(key) is None else read(key)

    def _typed(self, key: str, kind: type[T]) -> T:
        value = self.take(key)
        if not isinstance(value, kind):
            raise ProgramStateError(f"{self._where}.{key}", f"should be {kind.__name__}, not {type(value).__name__}")
        return value


def copied(value: Any, where: str) -> Any:
    """JSON data as new objects; anything else is a :class:`ProgramStateError`."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ProgramStateError(where, f"{value} is not JSON data")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list):
        return [copied(item, f"{where}[{at}]") for at, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: copied(item, f"{where}.{key}") for key, item in value.items()}
    raise ProgramStateError(where, f"a {type(value).__name__} is not JSON data")
