"""Type annotations as text that is the same in every process and says what matters about a type.

A model is spelled out field by field and an enumeration member by member, so that a change inside shows. DSPy's own
types stand by name: what is in them is DSPy's.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

__all__ = ["enums_in", "type_text"]


def type_text(annotation: Any) -> str:
    """An annotation as text, such as ``list[Invoice{total: float, paid: bool = ...}]``.

    Args:
        annotation: Any annotation.
    """
    return _text(annotation, ())


def enums_in(annotation: Any) -> dict[str, type[Enum]]:
    """The enumerations that an annotation mentions, by qualified name.

    Args:
        annotation: Any annotation; models in it are searched, too.
    """
    return {one.__qualname__: one for one in _parts(annotation, set()) if issubclass(one, Enum)}


def _text(annotation: Any, inside: tuple[Any, ...]) -> str:
    if annotation is None or annotation is type(None):
        return "None"
    if isinstance(annotation, str):
        return annotation
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _text(args[0], inside)
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, args))}]"
    if origin is Union or origin is types.UnionType:
        return " | ".join(_text(arg, inside) for arg in args)
    if origin is not None:
        return f"{_name(origin)}[{', '.join(_argument(arg, inside) for arg in args)}]" if args else _name(origin)
    if isinstance(annotation, type) and annotation not in inside:
        if issubclass(annotation, Enum):
            return f"{annotation.__name__}[{', '.join(f'{one.name}={one.value!r}' for one in annotation)}]"
        fields = list(_fields(annotation))
        if fields:
            within = (*inside, annotation)
            shown = [f"{name}: {_text(kind, within)}{'' if needed else ' = ...'}" for name, kind, needed in fields]
            return f"{annotation.__name__}{{{', '.join(shown)}}}"
    return _name(annotation)


def _argument(arg: Any, inside: tuple[Any, ...]) -> str:
    if arg is Ellipsis:
        return "..."
    return f"[{', '.join(_text(one, inside) for one in arg)}]" if isinstance(arg, list) else _text(arg, inside)


def _name(annotation: Any) -> str:
    name = getattr(annotation, "__name__", None) or getattr(annotation, "_name", None)
    # Never repr(): that of an ordinary object holds its address, which is another one in the next process.
    return name if isinstance(name, str) else type(annotation).__name__


def _fields(kind: type) -> Iterator[tuple[str, Any, bool]]:
    """Name, annotation and whether it is required, of each field of a model, dataclass or typed dictionary."""
    models = getattr(kind, "model_fields", None)
    if isinstance(models, dict):
        if not kind.__module__.startswith("dspy."):
            for name, info in models.items():
                yield name, info.annotation, info.is_required()
    elif dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            bare = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            yield field.name, hints[field.name], bare
    elif typing.is_typeddict(kind):
        for name, hint in typing.get_type_hints(kind).items():
            yield name, hint, name in kind.__required_keys__  # type: ignore[attr-defined]


def _parts(annotation: Any, seen: set[Any]) -> Iterator[type]:
    for arg in get_args(annotation):
        if not isinstance(arg, str | int | bytes | list):
            yield from _parts(arg, seen)
    if isinstance(annotation, type) and annotation not in seen:
        seen.add(annotation)
        yield annotation
        for _, kind, _ in _fields(annotation):
            yield from _parts(kind, seen)
