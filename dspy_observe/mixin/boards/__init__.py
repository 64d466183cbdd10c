"""The six dashboards. Each panel asks one question, in its description, and its queries answer it."""

from __future__ import annotations

from collections.abc import Sequence

from dspy_observe.mixin.boards import lm, modules, observer, overview, quality, registry
from dspy_observe.mixin.boards.common import links, marks, variables
from dspy_observe.mixin.grafana import Board, Row
from dspy_observe.mixin.options import DashboardOptions
from dspy_observe.mixin.uids import TITLES, uid

__all__ = ["boards"]

_DESCRIPTIONS = {
    "overview": "Is every program answering, well enough, fast enough, and at what price?",
    "lm": "What do the models do, how many tokens do they take, and what does it cost?",
    "modules": "Where inside a program do time, errors and calls come from?",
    "quality": "Is one version better than another, and may the canary go on?",
    "registry": "What is deployed, what was decided, and does the way from an alert to a rollback work?",
    "self": "Is content redacted, and is the observer itself well?",
}


def boards(o: DashboardOptions) -> list[Board]:
    """Every dashboard, in the order of their links."""
    rows: dict[str, Sequence[Row]] = {
        "overview": overview.rows(o),
        "lm": lm.rows(o),
        "modules": modules.rows(o),
        "quality": quality.rows(o),
        "registry": registry.rows(o),
        "self": observer.rows(o),
    }
    return [
        Board(uid(key), title, _DESCRIPTIONS[key], rows[key], variables(), marks(), links(o, key))
        for key, title in TITLES.items()
    ]
