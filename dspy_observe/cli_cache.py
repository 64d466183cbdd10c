"""``dspy-observe cache``: look at DSPy's disk cache and prune it beside running programs, without importing DSPy."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from dspy_observe.cli_options import DryRun, Json
from dspy_observe.cli_tables import answer_json, details, refusing, say
from dspy_observe.disk_cache import DiskCache, Pruned

__all__ = ["app", "parse_age", "parse_size"]

app = typer.Typer(help="DSPy's disk cache.", no_args_is_help=True)

# Decimal and binary units: https://physics.nist.gov/cuu/Units/binary.html
_SIZES: Final = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_AGES: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_QUANTITY: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*\Z")

Directory = Annotated[
    Path | None, typer.Option("--dir", help="The cache's folder; DSPY_CACHEDIR or ~/.dspy_cache unless given.")
]


def parse_size(text: str) -> int:
    """Read bytes: ``10GB``, ``512MiB``, ``1000``.

    Raises:
        typer.BadParameter: The text is no size.
    """
    return int(_quantity(text, _SIZES, "a size such as 10GB or 512MiB"))


def parse_age(text: str) -> float:
    """Read seconds: ``7d``, ``12h``, ``30m``, ``2w``.

    Raises:
        typer.BadParameter: The text is no duration.
    """
    return _quantity(text, _AGES, "a duration such as 7d or 12h")


def _quantity(text: str, units: dict[str, int], what: str) -> float:
    found = _QUANTITY.match(text)
    unit = units.get(found[2].lower()) if found else None
    if found is None or unit is None:
        raise typer.BadParameter(f"{text!r} is not {what}")
    return float(found[1]) * unit


@app.command()
@refusing
def status(directory: Directory = None, as_json: Json = False) -> None:
    """Show how large the cache is and how old its entries are. Changes nothing.

    Example: dspy-observe cache status
    """
    found = DiskCache(directory).status()
    if as_json:
        answer_json(asdict(found))
        return
    details(
        [
            ("directory", found.directory),
            ("entries", found.entries),
            ("size", _size(found.size_bytes)),
            ("DSPy's limit", _size(found.limit_bytes) if found.limit_bytes is not None else None),
            ("oldest use", _when(found.oldest_at)),
            ("newest use", _when(found.newest_at)),
            ("reads count as use", found.reads_recorded),
        ]
    )


@app.command()
@refusing
def prune(
    directory: Directory = None,
    max_size: Annotated[int | None, typer.Option(parser=parse_size, metavar="SIZE", help="Such as 10GB.")] = None,
    older_than: Annotated[float | None, typer.Option(parser=parse_age, metavar="AGE", help="Such as 7d.")] = None,
    keep_recent: Annotated[
        float, typer.Option(parser=parse_age, metavar="AGE", help="Never delete what was used within it.")
    ] = "10m",  # type: ignore[assignment]  # typer parses defaults too
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Delete entries, those used longest ago first; programs may go on using the cache meanwhile.

    Examples: dspy-observe cache prune --max-size 10GB --older-than 7d · dspy-observe cache prune --max-size 1GB --json
    """
    cache = DiskCache(directory)
    with _progress(quiet=as_json or dry_run) as progress:
        done = cache.prune(
            max_bytes=max_size,
            older_than_s=older_than,
            keep_recent_s=keep_recent,
            dry_run=dry_run,
            progress=progress,
        )
    if as_json:
        answer_json(asdict(done))
    else:
        _tell(done, max_size)


def _tell(done: Pruned, max_size: int | None) -> None:
    verb = "would delete" if done.dry_run else "deleted"
    say(f"{verb} {done.deleted_entries} entries, {_size(done.freed_bytes)}")
    say(f"{done.entries} entries, {_size(done.size_bytes)} {'would be' if done.dry_run else 'are'} left")
    if max_size is not None and done.size_bytes > max_size:
        why = "the others were used too recently (--keep-recent)" if done.held_back else "the empty cache is larger"
        say(f"still above {_size(max_size)}: {why}")


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    if quiet or not sys.stderr.isatty():
        yield None
        return
    columns: list[Any] = [TextColumn("pruning"), BarColumn(), TextColumn("{task.fields[entries]} entries")]
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("pruning", total=None, entries=0)
        yield lambda entries, freed: shown.update(task, entries=entries, freed=freed)


def _size(count: int) -> str:
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:  # noqa: PLR2004 - the step between decimal units
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def _when(at: float | None) -> datetime | None:
    return datetime.fromtimestamp(at, UTC) if at is not None else None
