"""The command line: ``dspy-observe``. Nothing here imports DSPy before a verb needs it."""

from __future__ import annotations

from importlib.metadata import version as installed_version

import typer

app = typer.Typer(
    name="dspy-observe",
    help="Observe DSPy programs in production.",
    no_args_is_help=True,
    add_completion=False,
)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        typer.echo(installed_version("dspy-observe"))
        raise typer.Exit


def main() -> None:
    """Entry point of the console script."""
    app()
