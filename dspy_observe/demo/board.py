"""The live figures: a reader of records like any other, and the tables that show what it has read."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from dspy_observe.callbacks.base import RecordCallback
from dspy_observe.records import ADAPTER_KINDS, CallRecord, CallStart, Score

__all__ = ["Board", "count", "dollars", "milliseconds", "percentile"]

_MISSING: Final = "-"
"""Shown where there is nothing to show a figure of."""


@dataclass(slots=True)
class _Calls:
    """LM calls of one program, version and model."""

    calls: int = 0
    hits: int = 0
    errors: int = 0
    durations_s: list[float] = field(default_factory=list)
    """Of the calls that went to the provider."""
    prompt: int = 0
    completion: int = 0
    cost_usd: float = 0.0
    saved_usd: float = 0.0
    unmetered: int = 0
    """Answers whose tokens are not known."""
    unpriced: int = 0
    """Answers whose cost is not known."""


@dataclass(slots=True)
class _Runs:
    """Runs of one program and version."""

    started: int = 0
    durations_s: list[float] = field(default_factory=list)
    errors: int = 0
    scores: list[float] = field(default_factory=list)
    unreadable: int = 0
    """Replies that an adapter could not parse."""


class Board(RecordCallback):
    """Adds up records while the program runs. Any number of threads."""

    failures_only = ADAPTER_KINDS

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._calls: dict[tuple[str, str, str], _Calls] = {}
        self._runs: dict[tuple[str, str], _Runs] = {}
        self._removed: Counter[str] = Counter()

    def started(self, start: CallStart) -> None:
        """Count a run that begins."""
        if start.is_program:
            with self._lock:
                self._runs_of(start.program, start.version).started += 1

    def finished(self, record: CallRecord) -> None:
        """Add a call that ended."""
        with self._lock:
            self._removed.update(finding.entity for finding in record.findings)
            if record.kind == "lm":
                self._add_call(record)
            elif record.is_program:
                runs = self._runs_of(record.program, record.version)
                runs.durations_s.append(record.duration_s)
                runs.errors += record.outcome != "ok"
            elif record.kind == "adapter_parse":
                self._runs_of(record.program, record.version).unreadable += 1

    def scored(self, score: Score) -> None:
        """Add a score."""
        with self._lock:
            self._runs_of(score.program, score.version).scores.append(score.value)

    @property
    def went_out(self) -> int:
        """LM calls that no cache answered."""
        with self._lock:
            return sum(calls.calls - calls.hits for calls in self._calls.values())

    @property
    def failed(self) -> int:
        """LM calls that raised."""
        with self._lock:
            return sum(calls.errors for calls in self._calls.values())

    def render(self) -> Group:
        """Both tables and the line below them, as they stand now."""
        with self._lock:
            return Group(self._run_table(), self._call_table(), self._foot())

    def _runs_of(self, program: str | None, version: str | None) -> _Runs:
        return self._runs.setdefault((program or _MISSING, version or _MISSING), _Runs())

    def _add_call(self, record: CallRecord) -> None:
        key = (record.program or _MISSING, record.version or _MISSING, record.model_requested or _MISSING)
        calls = self._calls.setdefault(key, _Calls())
        calls.calls += 1
        calls.errors += record.outcome != "ok"
        calls.saved_usd += record.cost_saved_usd or 0.0
        if record.cache_hit:
            calls.hits += 1
            return
        calls.durations_s.append(record.duration_s)
        if record.usage is not None:
            calls.prompt += record.usage.prompt or 0
            calls.completion += record.usage.completion or 0
        calls.cost_usd += record.cost_usd or 0.0
        if record.outcome == "ok":
            calls.unmetered += record.usage is None or record.usage.total is None
            calls.unpriced += record.cost_usd is None

    def _run_table(self) -> Table:
        table = _table("program", "version", "runs", "now", "p50 s", "p95 s", "fail", "unreadable", "score")
        table.title = "Program runs"
        for (program, version), runs in sorted(self._runs.items()):
            ended = len(runs.durations_s)
            table.add_row(
                program, version, str(ended), str(runs.started - ended), _seconds(runs.durations_s, 50),
                _seconds(runs.durations_s, 95), _alarm(runs.errors), _alarm(runs.unreadable, "yellow"),
                f"{sum(runs.scores) / len(runs.scores):.2f}" if runs.scores else _MISSING,
            )  # fmt: skip
        return table

    def _call_table(self) -> Table:
        table = _table("model", "version", "calls", "hits", "p50 s", "p95 s", "in", "out", "cost", "fail")
        table.title = "LM calls (tokens in and out; p50 and p95 without cache hits)"
        rows = sorted(self._calls.items())
        for (_, version, model), calls in rows:
            table.add_row(model.partition("/")[2] or model, version, *_figures(calls, calls.durations_s))
        if len(rows) > 1:
            table.add_section()
            every = [calls for _, calls in rows]
            table.add_row("all", "", *_figures(_sum(every), [each for calls in every for each in calls.durations_s]))
        return table

    def _foot(self) -> Text:
        removed = ", ".join(f"{number} {entity}" for entity, number in sorted(self._removed.items())) or "nothing yet"
        saved = sum(calls.saved_usd for calls in self._calls.values())
        foot = Text(f" {time.monotonic() - self._began:.0f} s", style="dim")
        return foot.append(f"   saved by the cache: {dollars(saved)}   redacted: {removed}")


def percentile(values: Iterable[float], percent: int) -> float | None:
    """The smallest value that ``percent`` percent of the values do not exceed; None of no values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] if ordered else None


def count(number: float) -> str:
    """A whole number with separators."""
    return f"{number:,.0f}"


def dollars(amount_usd: float) -> str:
    """US dollars, as small as these are."""
    return f"${amount_usd:.4f}"


def milliseconds(duration_s: float) -> str:
    """A duration in milliseconds; those below one with decimals."""
    return f"{duration_s * 1000:,.0f} ms" if duration_s >= 0.001 else f"{duration_s * 1000:.2f} ms"  # noqa: PLR2004


def _figures(calls: _Calls, durations_s: Sequence[float]) -> tuple[str | Text, ...]:
    return (
        count(calls.calls), count(calls.hits), _seconds(durations_s, 50), _seconds(durations_s, 95),
        _known(count(calls.prompt), calls.unmetered), _known(count(calls.completion), calls.unmetered),
        _known(dollars(calls.cost_usd), calls.unpriced), _alarm(calls.errors),
    )  # fmt: skip


def _known(total: str, unknown: int) -> str:
    """A total, with a ``+`` where calls of unknown size come on top."""
    return f"{total}+" if unknown else total


def _sum(rows: Iterable[_Calls]) -> _Calls:
    total = _Calls()
    for row in rows:
        for name in ("calls", "hits", "errors", "prompt", "completion", "cost_usd", "unmetered", "unpriced"):
            setattr(total, name, getattr(total, name) + getattr(row, name))
    return total


def _table(*columns: str) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        title_justify="left",
        title_style="bold",
        header_style="dim",
        collapse_padding=True,
        pad_edge=False,
    )
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < 2 else "right", no_wrap=True)  # noqa: PLR2004
    return table


def _seconds(durations_s: Iterable[float], percent: int) -> str:
    value = percentile(durations_s, percent)
    return _MISSING if value is None else f"{value:.2f}"


def _alarm(number: int, style: str = "red") -> Text:
    return Text(str(number), style=style if number else "")
