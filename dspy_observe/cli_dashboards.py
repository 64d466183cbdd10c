"""``dspy-observe dashboards``: make dashboards, rules and alerts with one's own numbers, and check a folder of them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from dspy_observe.cli_options import Json
from dspy_observe.cli_tables import answer_json, refusing, say, table
from dspy_observe.errors import ConfigurationError, ObserveError

__all__ = ["app"]

app = typer.Typer(help="Grafana dashboards, Prometheus rules and alerts.", no_args_is_help=True)

_RULE_FILES: Final = ("rules.yml", "alerts.yml")

_TOOL_TIMEOUT_S: Final = 600
"""The unit tests of all alerts take about a minute on a busy machine."""


@dataclass(frozen=True, slots=True)
class Checked:
    """One thing that was checked, or could not be."""

    what: str
    result: Literal["ok", "failed", "not checked"]
    detail: str = ""


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
        raise ConfigurationError(
            "--options", f"cannot read {file} ({getattr(error, 'strerror', error)})", "Name a TOML file"
        ) from None


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


@app.command()
@refusing
def check(
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="As generate wrote it; ./dashboards or the package's own.")
    ] = None,
    tests: Annotated[bool, typer.Option("--tests/--no-tests", help="Run the alerts' unit tests with promtool.")] = True,
    as_json: Json = False,
) -> None:
    """Check dashboards, rules, alerts, routes and runbook, and say what could not be checked.

    Exit code 1 when something is wrong; what needs a tool that is missing is reported, not failed.

    Example: dspy-observe dashboards check monitoring
    """
    place = folder or _usual_folder()
    if not place.is_dir():
        raise ObserveError(f"there is no folder {place}")
    results = [*_contents(place), *_tools(place, tests=tests)]
    failed = [one for one in results if one.result == "failed"]
    if as_json:
        answer_json({"folder": str(place), "ok": not failed, "checks": [asdict(one) for one in results]})
    else:
        table(("check", "result", "detail"), [(one.what, one.result, one.detail) for one in results])
        missing = sum(one.result == "not checked" for one in results)
        say(f"{len(results)} checks: {len(failed)} failed, {missing} could not be made")
    if failed:
        raise typer.Exit(1)


def _usual_folder() -> Path:
    here = Path("dashboards")
    return here if here.is_dir() else Path(__file__).parent / "dashboards"


def _contents(folder: Path) -> Iterator[Checked]:
    """What can be seen in the files themselves."""
    from dspy_observe.mixin.checking import can_parse, dashboard_faults, recorded, rule_faults

    if not can_parse():
        yield Checked("PromQL by Prometheus 3's grammar", "not checked", "pip install promql-parser")
    rules = {folder / "prometheus" / name: _text_of(folder / "prometheus" / name) for name in _RULE_FILES}
    try:
        recordings = recorded(*rules.values())
    except ValueError:
        recordings = set()
    runbook = folder / "runbook.md"
    page = _text_of(runbook) if runbook.is_file() else None
    for path, text in rules.items():
        yield _verdict(folder, path, rule_faults(text, recordings, page)) if path.is_file() else _missing(folder, path)
    boards = sorted(folder.glob("grafana/*.json"))
    if not boards:
        yield Checked("grafana/", "failed", "there is no dashboard")
    for path in boards:
        yield _verdict(folder, path, dashboard_faults(_text_of(path), recordings))


def _missing(folder: Path, path: Path) -> Checked:
    name = path.relative_to(folder).as_posix()
    return Checked(name, "failed", f"{name} is missing: dspy-observe dashboards generate --out {folder} writes it")


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ObserveError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from None


def _verdict(folder: Path, path: Path, faults: Sequence[str]) -> Checked:
    name = path.relative_to(folder).as_posix()
    return Checked(name, "failed", "\n".join(faults)) if faults else Checked(name, "ok")


def _tools(folder: Path, *, tests: bool) -> Iterator[Checked]:
    """What Prometheus' and Alertmanager's own tools say."""
    prometheus, routes = folder / "prometheus", folder / "alertmanager"
    there = [name for name in _RULE_FILES if (prometheus / name).is_file()]
    if there:
        yield _told("promtool", "check", "rules", *there, at=prometheus)
    if (prometheus / "prometheus.yml").is_file():
        yield _told("promtool", "check", "config", "prometheus.yml", at=prometheus)
    if (routes / "alertmanager.yml").is_file():
        yield _told("amtool", "check-config", "alertmanager.yml", at=routes)
    cases = sorted(path.name for path in prometheus.glob("tests/*.yml"))
    if cases and tests:
        yield _told("promtool", "test", "rules", *cases, at=prometheus / "tests")
    elif cases:
        yield Checked("promtool test rules", "not checked", "--no-tests")


def _told(program: str, *arguments: str, at: Path) -> Checked:
    what = " ".join([program, *arguments[:3]]) + (" ..." if len(arguments) > 3 else "")  # noqa: PLR2004 - for a table
    path = shutil.which(program)
    if path is None:
        return Checked(what, "not checked", f"{program} is not installed")
    try:
        done = subprocess.run(  # noqa: S603 - a fixed program, and file names of the folder
            [path, *arguments], cwd=at, capture_output=True, text=True, timeout=_TOOL_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Checked(what, "not checked", f"not done within {_TOOL_TIMEOUT_S} s")
    except OSError as error:
        return Checked(what, "failed", f"{error.strerror}: {at}")
    return (
        Checked(what, "ok") if done.returncode == 0 else Checked(what, "failed", (done.stderr or done.stdout).strip())
    )
