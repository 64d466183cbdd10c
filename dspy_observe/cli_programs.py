"""What commands need that run a user's program: its code, its metric, its examples.

DSPy is imported when the program has to be built, after the arguments were checked.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from dspy_observe.errors import ObserveError
from dspy_observe.gate_verdict import examples_from

__all__ = ["ProgramError", "built", "examples_of", "importable", "input_fields", "named", "rows_of"]


class ProgramError(ObserveError):
    """The program, or its metric, could not be imported or built."""


def rows_of(devset: Path) -> list[dict[str, Any]]:
    """The examples of a JSON Lines file."""
    try:
        return examples_from(devset.read_text(encoding="utf-8").split("\n"))
    except OSError as error:
        raise typer.BadParameter(f"cannot read {devset}: {error.strerror}") from None
    except ValueError as error:
        raise typer.BadParameter(f"{devset}: {error}") from None


@contextmanager
def importable() -> Iterator[None]:
    """Modules of the working directory can be named, as with ``python -m``."""
    here = os.getcwd()  # noqa: PTH109 - sys.path holds texts
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        yield
    finally:
        if added:
            sys.path.remove(here)


def named(target: str, option: str) -> Any:
    """What ``module:attribute`` names."""
    module, sign, path = target.partition(":")
    if not (module and sign and path):
        raise typer.BadParameter(f"{option} {target}: write module:name, such as app:Classifier")
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise ProgramError(f"{module} cannot be imported: {error}") from error
        raise typer.BadParameter(f"{option} {target}: there is no module {error.name}") from None
    except Exception as error:  # whatever the user's module raises is the reason
        raise ProgramError(f"{module} cannot be imported: {type(error).__name__}: {error}") from error
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise typer.BadParameter(f"{option} {target}: {module} has no {path}") from None
    return found


def built(factory: Callable[[], Any]) -> Any:
    """The program that a factory makes."""
    import dspy

    try:
        made = factory()
    except ObserveError:
        raise
    except Exception as error:  # whatever the user's code raises is the reason
        raise ProgramError(f"the program cannot be built: {type(error).__name__}: {error}") from error
    if not isinstance(made, dspy.Module):
        raise ProgramError(f"--program makes {type(made).__name__}, which is no dspy.Module")
    return made


def input_fields(program: Any, given: str | None) -> list[str]:
    """The fields that the program is called with, out of each example."""
    import dspy

    if given is not None:
        return [field.strip() for field in given.split(",") if field.strip()]
    signature = getattr(program, "signature", None)
    # Of the class, as DSPy warns when forward is taken from an instance; the first argument is self.
    method = getattr(type(program), "forward", None)
    forward = [] if method is None else list(inspect.signature(method).parameters.values())[1:]
    if forward and not any(one.kind is one.VAR_KEYWORD for one in forward):
        return [one.name for one in forward if one.kind is not one.VAR_POSITIONAL]
    if signature is None and isinstance(getattr(program, "predict", None), dspy.Predict):  # dspy.ChainOfThought
        signature = program.predict.signature
    if signature is None:
        raise typer.BadParameter("the program takes any field: name its input fields with --inputs")
    return list(signature.input_fields)


def examples_of(rows: Sequence[dict[str, Any]], fields: Sequence[str]) -> list[Any]:
    """DSPy examples that know their inputs."""
    import dspy

    known = {key for row in rows for key in row}
    if not known.intersection(fields):
        raise typer.BadParameter(f"no example has an input field ({', '.join(fields)}); they have {', '.join(known)}")
    return [dspy.Example(row).with_inputs(*(field for field in fields if field in row)) for row in rows]
