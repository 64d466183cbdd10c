"""The modules and predictors of a program by path, those of separately compiled sub-modules included."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dspy
from dspy.predict.parameter import Parameter

__all__ = ["ROOT", "modules", "parameters", "tools"]

ROOT = "self"
"""Path of the program itself."""


def parameters(program: Any) -> dict[str, Any]:
    """Every parameter by path, with the names and in the order of ``Module.named_parameters``.

    DSPy passes over sub-modules that are marked as compiled, so its own saved state lacks them; this does not.

    Args:
        program: A ``dspy.Module``.
    """
    return {path: one for path, one in _walk(program) if isinstance(one, Parameter)}


def modules(program: Any) -> dict[str, Any]:
    """Every module by path, the program itself first.

    Args:
        program: A ``dspy.Module``.
    """
    return {path: one for path, one in _walk(program) if isinstance(one, dspy.Module)}


def tools(program: Any) -> Iterator[tuple[str, Any]]:
    """Every ``dspy.Tool`` that a module holds in an attribute, a list or a dict, with the path of that module.

    Args:
        program: A ``dspy.Module``.
    """
    for path, module in modules(program).items():
        seen: set[str] = set()
        for value in vars(module).values():
            for _, item in _items("", value):
                if isinstance(item, dspy.Tool) and str(item.name) not in seen:
                    seen.add(str(item.name))
                    yield path, item


def _walk(program: Any) -> Iterator[tuple[str, Any]]:
    seen: set[int] = {id(program)}
    yield ROOT, program
    yield from _below("", program, seen)


def _below(prefix: str, module: Any, seen: set[int]) -> Iterator[tuple[str, Any]]:
    for name, value in list(vars(module).items()):
        for path, item in _items(f"{prefix}{name}", value):
            if isinstance(item, Parameter | dspy.Module) and id(item) not in seen:
                seen.add(id(item))
                yield path, item
                if not isinstance(item, Parameter):
                    yield from _below(f"{path}.", item, seen)


def _items(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A value, or what lies directly in a list or dict: no deeper, because optimizers leave whole programs there."""
    if isinstance(value, list | tuple):
        yield from ((f"{path}[{at}]", item) for at, item in enumerate(value))
    elif isinstance(value, dict):
        yield from ((f"{path}['{key}']", item) for key, item in value.items())
    else:
        yield path, value
