"""How the command line answers: tables for people, JSON for programs, refusals with their reason and exit code."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, Final, NoReturn, ParamSpec

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from typer.core import TyperGroup

from dspy_observe.errors import ConfigurationError, ObserveError

__all__ = ["AnsweringGroup", "answer_json", "counted", "details", "refuse", "refusing", "say", "table"]

P = ParamSpec("P")
_AS_JSON: Final = "dspy_observe.as_json"


# Newer releases of Typer have a copy of Click, so that Click's own class is another one there.
_UsageError: type[Any] = typer.BadParameter.__mro__[1]


class AnsweringGroup(TyperGroup):
    """Verbs that tell wrong usage, too, as an object where ``--json`` is given."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Remember whether the caller reads JSON."""
        ctx.meta[_AS_JSON] = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except _UsageError as error:
            if ctx.meta[_AS_JSON]:
                answer_json({"error": type(error).__name__, "message": error.format_message()})
            raise


def answer_json(value: Any) -> None:
    """Print a value as JSON on standard output."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))


def say(*lines: str) -> None:
    """Print plain lines on standard output, without control characters that others may have stored."""
    for line in lines:
        typer.echo(_clean(line))


def counted(count: int, noun: str) -> str:
    """A number of things, in words: ``1 version``, ``2 versions``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def table(titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table; ``None`` is shown as a dash, times in UTC, long cells on several lines."""
    made = Table(*(Column(title, overflow="fold") for title in titles))
    for row in rows:
        made.add_row(*(Text(_cell(value)) for value in row))
    _console().print(made)


def details(pairs: Iterable[tuple[str, Any]]) -> None:
    """Print one value on each line, behind its name."""
    grid = Table(Column(style="bold", no_wrap=True), Column(overflow="fold"), show_header=False, box=None)
    for title, value in pairs:
        grid.add_row(title, Text(_cell(value)))
    _console().print(grid)


def refuse(reason: str, *, as_json: bool, kind: str = "Refused") -> NoReturn:
    """Say why something was not done, and end with exit code 1.

    Args:
        reason: In words, for standard error; with ``as_json`` also as an object on standard output.
        as_json: Whether the caller reads JSON.
        kind: The error's type, for the object.

    Raises:
        typer.Exit: Always.
    """
    if as_json:
        answer_json({"error": kind, "message": reason})
    typer.echo(f"refused: {_clean(reason)}", err=True)
    raise typer.Exit(1)


def refusing(command: Callable[P, None]) -> Callable[P, None]:
    """Turn the package's errors into exit codes: 2 for an option that cannot work, 1 for whatever else is refused."""

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except ConfigurationError as error:
            raise typer.BadParameter(str(error)) from None
        except ObserveError as error:
            refuse(str(error), as_json=bool(kwargs.get("as_json")), kind=type(error).__name__)

    return guarded


def _console() -> Console:
    # Without a terminal there is no width to respect, and whoever reads a log wants a row on one line.
    return Console() if sys.stdout.isatty() else Console(width=160)


def _cell(value: Any) -> str:
    match value:
        case None | "" | () | []:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}"
        case datetime():
            return f"{value:%Y-%m-%d %H:%M:%S}Z"
        case tuple() | list():
            return _clean(", ".join(map(str, value)))
        case dict():
            return _clean(json.dumps(value, ensure_ascii=False, indent=2))
    return _clean(str(value))


def _clean(text: str) -> str:
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)
