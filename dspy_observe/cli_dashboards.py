"""``dspy-observe dashboards``: make dashboards, rules and alerts with one's own numbers, and check a folder of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dspy_observe.cli_options import Json
from dspy_observe.cli_tables import answer_json, refusing, say
from dspy_observe.errors import ConfigurationError, ObserveError

__all__ = ["app"]

app = typer.Typer(help="Grafana dashboards, Prometheus rules and alerts.", no_args_is_help=True)

Preset = Annotated[str, typer.Option(metavar="default|fast", help="Numbers to start from, without a file.")]


@app.command()
@refusing
def generate(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write; made where it is missing.")],
    options: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TOML with options; options.toml in DIR shows all of them.")
    ] = None,
    preset: Preset = "default",
    as_json: Json = False,
) -> None:
    """Write dashboards, rules, alerts, their tests, the runbook and configurations into a folder.

    Files of ours that are no longer made are taken away; other files are left alone.
    The preset fast notices a failing version within seconds, for demonstrations.

    Example: dspy-observe dashboards generate --out monitoring --options my.toml
    """
    from dspy_observe.mixin.files import generate as contents_of
    from dspy_observe.mixin.options import DashboardOptions

    if options is not None and preset != "default":
        raise typer.BadParameter('write preset = "fast" into the file instead of --preset')
    text = f'preset = "{preset}"' if options is None else _text(options)
    made = contents_of(DashboardOptions.from_toml(text))
    written, removed = _write(out, made)
    if as_json:
        answer_json({"folder": str(out), "files": sorted(made), "written": written, "removed": removed})
        return
    say(f"{len(made)} files in {out}: {len(written)} written, {len(removed)} removed, the others as they were")


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError("--options", f"cannot read {file} ({error})", "Name a TOML file") from None


def _write(folder: Path, contents: dict[str, str]) -> tuple[list[str], list[str]]:
    """Write what differs; take away what we made earlier and make no more."""
    written = []
    try:
        for name, text in contents.items():
            path = folder / name
            if path.is_file() and path.read_text(encoding="utf-8", errors="replace") == text:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            written.append(name)
        ours = [*folder.glob("grafana/dspy-*.json"), *folder.glob("prometheus/tests/*.yml")]
        removed = [path for path in ours if path.relative_to(folder).as_posix() not in contents]
        for path in removed:
            path.unlink()
    except OSError as error:
        raise ObserveError(f"cannot write {error.filename or folder}: {error.strerror}") from None
    return sorted(written), sorted(path.relative_to(folder).as_posix() for path in removed)
