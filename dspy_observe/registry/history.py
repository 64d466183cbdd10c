"""Scores over time, and two versions side by side. Pure: works on what a view says."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, Final

from dspy_observe.registry.models import History, HistoryPoint, Side, Trends
from dspy_observe.registry.records import Score, StoredVersion
from dspy_observe.registry.stores.base import View
from dspy_observe.registry.values import copied

__all__ = ["changes", "common_scores", "history", "side"]

_MISSING: Final = object()
_SHOWN: Final = 120


def history(view: View, dataset: str | None, environment: str) -> History:
    """Observations of the versions that exist, and what they say together.

    Args:
        view: The signature.
        dataset: Only this data set; ``None`` lists all, with trends over the data set of the latest observation.
        environment: The environment that ``is_deployed`` is about.
    """
    versions = {one.version_hash: one for one in view.versions()}
    scores = [one for one in view.scores() if one.version_hash in versions and dataset in (None, one.dataset)]
    pointer = view.pointer(environment)
    running = None if pointer is None else pointer.version_hash
    points = tuple(
        HistoryPoint(
            versions[one.version_hash].version, one.value, one.dataset, one.n, one.source, one.at,
            versions[one.version_hash].created_at, one.version_hash == running,
        )
        for one in scores
    )  # fmt: skip
    if not scores:
        return History((), Trends(dataset, None, None, None, None))
    chosen = scores[-1].dataset
    return History(points, _trends(chosen, [one.value for one in scores if one.dataset == chosen]))


def _trends(dataset: str | None, values: Sequence[float]) -> Trends:
    trend = None
    if len(values) > 1:
        half = len(values) // 2
        before, after = fmean(values[:half]), fmean(values[-half:])
        trend = (after - before) / abs(before) * 100 if before else None
    return Trends(dataset, values[-1], max(values), min(values), trend)


def common_scores(first: Sequence[Score], second: Sequence[Score]) -> tuple[Score, Score] | None:
    """The latest scores of two versions on one data set, the one that was measured last; ``None`` without any.

    Scores without a data set are comparable with each other: nobody said that they were measured on different ones.
    """
    mine = {one.dataset: one for one in first}
    theirs = {one.dataset: one for one in second}
    shared = [(mine[name], theirs[name]) for name in mine if name in theirs]
    return max(shared, key=lambda pair: max(pair[0].at, pair[1].at), default=None)


def side(view: View, record: StoredVersion, score: Score | None, environment: str) -> Side:
    """One half of a comparison."""
    pointer = view.pointer(environment)
    return Side(
        record.version, record.version_hash, record.created_at, None if score is None else score.value,
        None if score is None else score.dataset, None if score is None else score.n,
        pointer is not None and pointer.version_hash == record.version_hash, copied(record.configuration),
    )  # fmt: skip


def changes(before: Mapping[str, Any], after: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """What changed between two configurations, in words, by path."""
    for key in sorted({*before, *after}):
        was, now, place = before.get(key, _MISSING), after.get(key, _MISSING), f"{path}{key}"
        if was is _MISSING:
            yield f"Added {place}: {_shown(now)}"
        elif now is _MISSING:
            yield f"Removed {place}: {_shown(was)}"
        elif isinstance(was, dict) and isinstance(now, dict):
            yield from changes(was, now, f"{place}.")
        elif was != now or type(was) is not type(now):
            yield f"Changed {place}: {_shown(was)} \N{RIGHTWARDS ARROW} {_shown(now)}"


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
