"""The command line: ``dspy-observe``. Nothing here imports DSPy before a verb needs it.

Exit codes: 0 done, 1 refused with the reason, 2 wrong usage.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from dspy_observe import (
    cli_cache,
    cli_canary,
    cli_dashboards,
    cli_decisions,
    cli_doctor,
    cli_gate,
    cli_registry,
    cli_rollout,
    cli_serve,
)
from dspy_observe.cli_tables import AnsweringGroup
from dspy_observe.errors import ObserveError

if TYPE_CHECKING:
    from dspy_observe.redaction import Operator

app = typer.Typer(
    name="dspy-observe",
    cls=AnsweringGroup,
    help="Observe DSPy programs in production.",
    no_args_is_help=True,
    add_completion=False,
)
app.add_typer(cli_registry.app, name="registry")
app.add_typer(cli_rollout.app, name="rollout")
app.add_typer(cli_dashboards.app, name="dashboards")
app.add_typer(cli_cache.app, name="cache")
app.add_typer(cli_decisions.app, name="decisions")
app.command()(cli_gate.gate)
app.command()(cli_serve.serve)
app.command()(cli_doctor.doctor)
app.command()(cli_canary.canary)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        from importlib.metadata import version as installed_version

        typer.echo(installed_version("dspy-observe"))
        raise typer.Exit


@app.command()
def redact(
    file: Annotated[str, typer.Argument(help="A text file, or - for standard input.")] = "-",
    replacement: Annotated[str, typer.Option(help="What stands in for a value.")] = "<{entity}>",
    mask: Annotated[list[str] | None, typer.Option(metavar="ENTITY=N", help="Keep the last N characters.")] = None,
    fixed: Annotated[list[str] | None, typer.Option(metavar="ENTITY=TEXT", help="Use this text.")] = None,
    drop: Annotated[list[str] | None, typer.Option(metavar="ENTITY", help="Take the value out.")] = None,
    explained: Annotated[bool, typer.Option("--explain", help="List what is found, and where.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print text and findings as JSON.")] = False,
) -> None:
    """Try redaction on a text: print it without what is private.

    Examples: dspy-observe redact prompt.txt --explain · echo "mail a@b.example" | dspy-observe redact --drop EMAIL
    """
    from dspy_observe.redaction import Redaction, Redactor, explain

    text = _read(file)
    try:
        options = Redaction(
            replacement=replacement,
            operators=_operators(mask or [], fixed or [], drop or []),
            scan_limit_chars=max(len(text), 256),  # a file is looked at to its end
        )
        clean = Redactor(options).redact_text(text)
        places = explain(text, options)
    except ObserveError as error:
        raise typer.BadParameter(str(error)) from None
    if as_json:
        found = [dict(zip(("entity", "start", "end", "operator"), place, strict=True)) for place in places]
        typer.echo(json.dumps({"text": clean, "findings": found}, ensure_ascii=False))
    elif explained:
        _show_places(text, places)
    else:
        typer.echo(clean, nl=False)


def _read(file: str) -> str:
    """The text, whatever the locale says; what is no UTF-8 would pass unrecognised, and is refused."""
    try:
        read = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        text = TextIOWrapper(BytesIO(read), encoding="utf-8-sig").read()
    except OSError as error:
        raise typer.BadParameter(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # UTF-16 without a mark at its begin decodes, too
        name = "standard input" if file == "-" else file
        raise typer.BadParameter(f"{name} is no UTF-8 text; convert it, such as with iconv -f UTF-16 -t UTF-8")
    return text


def _operators(mask: list[str], fixed: list[str], drop: list[str]) -> dict[str, Operator]:
    from dspy_observe.redaction import Drop, Fixed, Mask

    operators: dict[str, Operator] = {entity: Drop() for entity in drop}
    for item in mask:
        entity, _, kept = item.partition("=")
        if not kept.isdecimal() or len(kept) > 1:  # six characters at most
            raise typer.BadParameter(f"--mask {item}: write ENTITY=N, such as CARD=4")
        operators[entity] = Mask(keep_last=int(kept))
    for item in fixed:
        entity, sign, words = item.partition("=")
        if not sign or not words:
            raise typer.BadParameter(f"--fixed {item}: write ENTITY=TEXT, such as EMAIL=[mail], or --drop ENTITY")
        operators[entity] = Fixed(words)
    return operators


def _show_places(text: str, places: list[tuple[str, int, int, str]]) -> None:
    console = Console()
    if not places:
        console.print("Nothing private was found.")
        return
    table = Table("entity", "line", "column", "characters", "operator")
    for entity, start, end, operator in places:
        line = text.count("\n", 0, start) + 1
        column = start - (text.rfind("\n", 0, start) + 1) + 1
        table.add_row(entity, str(line), str(column), str(end - start), operator)
    console.print(table)
    totals = Counter(entity for entity, *_ in places)
    console.print(", ".join(f"{count} {entity}" for entity, count in totals.most_common()))


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="dspy-observe")


if __name__ == "__main__":
    main()
