"""Real traffic in a real Prometheus: every query of every panel, annotation, variable and rule shows something."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import pytest

from dspy_observe.mixin.alerts import alert_groups, rule_groups
from dspy_observe.mixin.boards import boards
from dspy_observe.mixin.checking import filled, selectors
from dspy_observe.mixin.files import generate
from dspy_observe.mixin.grafana import Board
from dspy_observe.mixin.options import DashboardOptions
from dspy_observe.mixin.promql import Recording
from dspy_observe.mixin.regressions import OUTAGE
from tests.mixin_traffic import Traffic
from tests.servers import Alertmanager, Prometheus, needs

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

OPTIONS = DashboardOptions.fast()
PATIENCE_S = 90.0

QUIET = {
    "Retries": "DSPy does not tell of retries within a model's client",
    "Errors kept from the program": "the observer is well",
    "Runs that cannot be told apart": "there are few versions",
}
"""Panels that show nothing while all is well; test_mixin_dashboards proves that they show the rest."""
QUIET_SERIES = {"dspy_retries_total", "dspy_observe_internal_errors_total", OUTAGE}
"""Without a series until something of the kind happens; their alerts have tests with such data."""


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that scrapes the traffic, an Alertmanager and itself, with our rules."""
    needs("prometheus", "prometheus-alertmanager")
    folder = tmp_path_factory.mktemp("dashboards")
    made = generate(OPTIONS)
    rules = [folder / "rules.yml", folder / "alerts.yml"]
    for path in rules:
        path.write_text(made[f"prometheus/{path.name}"], encoding="utf-8")
    config = {"route": {"receiver": "people"}, "receivers": [{"name": "people"}]}
    with Traffic(folder) as traffic, Alertmanager(folder / "am", config) as alertmanager:
        server = Prometheus(
            folder / "prometheus", rules=rules,
            # Two names of one process: two replicas that export the same versions.
            targets=[traffic.host_port, traffic.host_port.replace("127.0.0.1", "localhost"), alertmanager.host_port],
            alertmanagers=[alertmanager.host_port], also_itself=True,
        )  # fmt: skip
        with server:
            server.wait_for("count(up == 1) == 4")
            yield server


def shown(server: Prometheus, expr: str) -> bool:
    """Whether a query has a number to show now."""
    return any(not math.isnan(float(series["value"][1])) for series in server.query(expr))


def source_of(query: str) -> str:
    """The series that a variable's query takes its values from: of ``label_values(series, label)`` the first."""
    return query.removeprefix("label_values(").rpartition(", ")[0]


def queries(board: Board) -> dict[str, str]:
    """Every query of a dashboard, filled in."""
    found = {}
    for row in board.rows:
        for panel in row.panels:
            for place, target in enumerate(panel.targets):
                found[f"{panel.title} [{place}]"] = target.expr
    found |= {f"annotation {note['name']}": note["expr"] for note in board.annotations}
    for variable in board.variables:
        if variable["type"] == "query":
            found[f"${variable['name']}"] = source_of(variable["query"]["query"])
    return {where: filled(" ".join(expr.split()), "10s", "2m") for where, expr in found.items()}


@pytest.mark.parametrize("board", boards(OPTIONS), ids=lambda board: board.uid)
def test_every_query_of_a_dashboard_shows_something(prometheus: Prometheus, board: Board) -> None:
    """At least one sample that is a number, but for what is empty while all is well."""
    waiting = {
        where: expr for where, expr in queries(board).items() if not any(where.startswith(title) for title in QUIET)
    }
    until = time.monotonic() + PATIENCE_S
    while waiting and time.monotonic() < until:
        waiting = {where: expr for where, expr in waiting.items() if not shown(prometheus, expr)}
        time.sleep(0.5 if waiting else 0)
    assert waiting == {}


def test_every_recording_rule_records_numbers(prometheus: Prometheus) -> None:
    """And none of them fails to be evaluated, beside two processes that export the same."""
    waiting = {
        r.name for g in [*rule_groups(OPTIONS), *alert_groups(OPTIONS)] for r in g.rules if isinstance(r, Recording)
    }
    waiting -= QUIET_SERIES
    until = time.monotonic() + PATIENCE_S
    while waiting and time.monotonic() < until:
        waiting = {name for name in waiting if not shown(prometheus, name)}
        time.sleep(0.5 if waiting else 0)
    assert waiting == set()
    assert prometheus.query("sum(prometheus_rule_evaluation_failures_total) > 0") == []


def test_every_series_that_an_alert_reads_is_there(prometheus: Prometheus) -> None:
    """An alert on a metric that nobody exports would be silent for ever."""
    expressions = [" ".join(rule.expr.split()) for group in alert_groups(OPTIONS) for rule in group.rules]
    waiting = {metric for expr in expressions for metric, _ in selectors(expr)} - QUIET_SERIES
    until = time.monotonic() + PATIENCE_S
    while waiting and time.monotonic() < until:
        waiting = {metric for metric in waiting if not prometheus.query(f"count({metric})")}
        time.sleep(0.5 if waiting else 0)
    assert waiting == set()


def test_exemplars_reach_prometheus(prometheus: Prometheus) -> None:
    """A point on a latency panel leads to a trace."""
    found: list[dict[str, Any]] = prometheus.exemplars("dspy_program_duration_seconds_bucket")
    assert {len(each["labels"]["trace_id"]) for series in found for each in series["exemplars"]} == {32}


def test_the_list_of_quiet_panels_is_short_and_true(prometheus: Prometheus) -> None:
    """Each stands on a dashboard, and is indeed empty here."""
    every = {where: expr for board in boards(OPTIONS) for where, expr in queries(board).items()}
    assert len(QUIET) <= 5
    for title in QUIET:
        (expr,) = [expr for where, expr in every.items() if where.startswith(title)]
        assert not shown(prometheus, expr), f"{title} shows something: take it off the list"
