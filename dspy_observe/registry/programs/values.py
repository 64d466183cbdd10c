"""Python values as JSON and back, exactly. Pure: nothing is imported and no class is looked up on the word of a file.

JSON has no tuples, dates or bytes. Such a value becomes a mapping with the key ``$type``; everything else stays as it
reads. A mapping whose keys are not all texts, or that has a key ``$type`` of its own, becomes its pairs.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from enum import Enum
from typing import Any, Final
from uuid import UUID

from dspy_observe.registry.programs.errors import ProgramStateError, UnserialisableProgramError

__all__ = ["Builders", "canonical", "decode", "encode", "sha256_of"]

TAG: Final = "$type"
_MAX_DEPTH: Final = 20  # each level is up to three in JSON, and the redactor names what lies deeper than 64
_MAX_NODES: Final = 30_000  # likewise: it stops at 100,000 containers and keys

_TEXT_FORMS: Final[dict[type, tuple[str, Callable[[Any], str]]]] = {
    datetime: ("datetime", datetime.isoformat),
    date: ("date", date.isoformat),
    time: ("time", time.isoformat),
    Decimal: ("decimal", str),
    UUID: ("uuid", str),
    bytes: ("bytes", lambda value: base64.b64encode(value).decode("ascii")),
}
_FROM_TEXT: Final[dict[str, Callable[[str], Any]]] = {
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "decimal": Decimal,
    "uuid": UUID,
    "bytes": lambda text: base64.b64decode(text, validate=True),
    "float": float,
}
_SEQUENCES: Final[dict[str, Callable[[list[Any]], Any]]] = {"tuple": tuple, "set": set, "frozenset": frozenset}


@dataclasses.dataclass(frozen=True, slots=True)
class Builders:
    """What :func:`decode` may build besides plain values; all of it comes from the running code.

    Attributes:
        enums: Enumerations by name; a member of any other becomes its bare value.
        example: Makes a ``dspy.Example`` of its fields; ``None`` leaves a dict.
    """

    enums: Mapping[str, type[Enum]] = dataclasses.field(default_factory=dict)
    example: Callable[[dict[str, Any]], Any] | None = None


def encode(value: Any, where: str) -> Any:
    """A value as plain JSON data that shares nothing with it.

    Pydantic models become the dictionary that DSPy itself stores for them; dataclasses become dictionaries.

    Args:
        value: The value; only read.
        where: Its place, for errors.

    Raises:
        UnserialisableProgramError: The value, or something in it, has no exact form, or is nested deeper than 20
            levels (a cycle is, too), or has more than 30,000 parts.
    """
    return _Encoder().encode(value, where, 0)


class _Encoder:
    def __init__(self) -> None:
        self._nodes = 0
        self._typed = 0  # how many models and dataclasses we are inside

    def encode(self, value: Any, where: str, depth: int) -> Any:
        if value is None or type(value) in {bool, str, int}:
            return value
        self._nodes += 1
        if depth > _MAX_DEPTH or self._nodes > _MAX_NODES:
            raise UnserialisableProgramError(where, "is nested too deeply, contains itself, or has too many parts")
        if isinstance(value, Enum):
            return {TAG: "enum", "class": type(value).__qualname__, "value": self.encode(value.value, where, depth + 1)}
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, float):
            return self._float(float(value), where)
        if isinstance(value, int):
            return int(value)
        form = _TEXT_FORMS.get(type(value))
        if form is not None:
            return {TAG: form[0], "value": form[1](value)}
        if isinstance(value, timedelta):
            return {TAG: "timedelta", "value": [value.days, value.seconds, value.microseconds]}
        return self._compound(value, where, depth)

    def _float(self, value: float, where: str) -> Any:
        if math.isfinite(value):
            return value
        if self._typed:
            # It comes back in a plain dictionary, where pydantic writes null into the prompt instead of Infinity.
            raise UnserialisableProgramError(where, f"{value} inside a model has no exact form as JSON")
        return {TAG: "float", "value": repr(value)}

    def _inside(self, value: Any, where: str, depth: int) -> Any:
        self._typed += 1
        try:
            return self.encode(value, where, depth)
        finally:
            self._typed -= 1

    def _compound(self, value: Any, where: str, depth: int) -> Any:
        if isinstance(value, list):
            return [self.encode(item, f"{where}[{at}]", depth + 1) for at, item in enumerate(value)]
        if isinstance(value, tuple):
            items = [self.encode(item, f"{where}[{at}]", depth + 1) for at, item in enumerate(value)]
            return {TAG: "tuple", "value": items}
        if isinstance(value, set | frozenset):
            # In an order of its own: that of a set changes with the hash seed of the process.
            items = sorted((self.encode(item, f"{where}[]", depth + 1) for item in value), key=canonical)
            return {TAG: type(value).__name__ if type(value) in {set, frozenset} else "set", "value": items}
        if isinstance(value, Mapping):
            return self._mapping(value, where, depth)
        if isinstance(value, type):
            raise UnserialisableProgramError(where, "is a class, not a value")
        if callable(getattr(value, "model_dump", None)):
            try:
                dumped = value.model_dump(mode="json")
            except Exception as error:
                raise UnserialisableProgramError(where, f"{type(value).__name__} cannot be dumped as JSON") from error
            return self._inside(dumped, where, depth + 1)
        if callable(getattr(value, "toDict", None)):
            fields = {key: value[key] for key in value.keys()}  # noqa: SIM118 - an Example iterates otherwise
            return {TAG: "example", "value": self._mapping(fields, where, depth)}
        if dataclasses.is_dataclass(value):
            own = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return self._inside(own, where, depth + 1)
        if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
            return self.encode(value.item(), where, depth + 1)
        raise UnserialisableProgramError(where, f"a {type(value).__name__} has no exact form as JSON")

    def _mapping(self, value: Mapping[Any, Any], where: str, depth: int) -> Any:
        self._nodes += len(value)
        if TAG not in value and all(type(key) is str for key in value):
            return {key: self.encode(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
        pairs = [
            [self.encode(key, f"{where}<key>", depth + 1), self.encode(item, f"{where}[{key!r}]", depth + 1)]
            for key, item in value.items()
        ]
        return {TAG: "dict", "value": pairs}


def decode(value: Any, where: str, builders: Builders | None = None) -> Any:
    """What :func:`encode` stored, as new objects.

    Args:
        value: JSON data.
        where: Its place, for errors.
        builders: Enumerations and the like that may be built; ``None`` builds plain values only.

    Raises:
        ProgramStateError: An unknown or malformed ``$type``, or something that is not JSON.
    """
    builders = builders or Builders()
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list):
        return [decode(item, f"{where}[{at}]", builders) for at, item in enumerate(value)]
    if not isinstance(value, dict):
        raise ProgramStateError(where, f"a {type(value).__name__} is not JSON data")
    if TAG not in value:
        return {key: decode(item, f"{where}.{key}", builders) for key, item in value.items()}
    return _tagged(value, where, builders)


def _tagged(value: dict[str, Any], where: str, builders: Builders) -> Any:
    kind, inner = value[TAG], value.get("value")
    allowed = {TAG, "value", "class"} if kind == "enum" else {TAG, "value"}
    if set(value) != allowed or not isinstance(kind, str):
        raise ProgramStateError(where, f"a value with {TAG} has other keys than it should")
    try:
        if kind in _FROM_TEXT and isinstance(inner, str):
            return _FROM_TEXT[kind](inner)
        if kind == "timedelta" and isinstance(inner, list):
            return timedelta(*inner)
        if kind in _SEQUENCES and isinstance(inner, list):
            return _SEQUENCES[kind](decode(inner, where, builders))
        if kind == "dict" and isinstance(inner, list):
            return {decode(key, where, builders): decode(item, where, builders) for key, item in inner}
        if kind == "enum":
            plain = decode(inner, where, builders)
            known = builders.enums.get(value["class"])
            return plain if known is None else known(plain)
        if kind == "example" and isinstance(inner, dict):
            fields = decode(inner, where, builders)
            return fields if builders.example is None else builders.example(fields)
    except (TypeError, ValueError, OverflowError, InvalidOperation, binascii.Error) as error:
        if isinstance(error, ProgramStateError):
            raise
        raise ProgramStateError(where, f"is no {kind}") from error
    raise ProgramStateError(where, f"unknown or malformed {TAG}")


def canonical(value: Any, *, ordered: bool = False) -> str:
    """JSON in one spelling: ASCII, no spaces, keys sorted.

    Args:
        value: JSON data.
        ordered: Whether the order of keys has a meaning, as it has inside a demo, where it shows in the prompt.
    """
    return json.dumps(
        _pairs(value) if ordered else value, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False
    )


def sha256_of(value: Any, *, ordered: bool = False) -> str:
    """Hexadecimal sha256 over the canonical JSON of a value.

    Args:
        value: JSON data.
        ordered: See :func:`canonical`.
    """
    return hashlib.sha256(canonical(value, ordered=ordered).encode("ascii")).hexdigest()


def _pairs(value: Any) -> Any:
    if isinstance(value, dict):
        return {"$pairs": [[key, _pairs(item)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_pairs(item) for item in value]
    return value
