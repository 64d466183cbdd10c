"""Dashboards: well-formed, consistent with the metrics' catalogue, and legible to everybody."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import promql_parser
import pytest

from dspy_observe.conventions import METRICS
from dspy_observe.mixin.alerts import alert_groups, rule_groups
from dspy_observe.mixin.boards import boards
from dspy_observe.mixin.boards.common import series
from dspy_observe.mixin.checking import filled, selectors
from dspy_observe.mixin.grafana import dashboard_json, steps
from dspy_observe.mixin.options import DashboardOptions
from dspy_observe.mixin.promql import Recording
from dspy_observe.mixin.uids import TITLES, uid
from tests.servers import needs

OPTIONS = DashboardOptions()
DASHBOARDS: dict[str, dict[str, Any]] = {board.uid: json.loads(dashboard_json(board)) for board in boards(OPTIONS)}
RECORDED = {
    r.name for g in [*rule_groups(OPTIONS), *alert_groups(OPTIONS)] for r in g.rules if isinstance(r, Recording)
}
FOREIGN = {
    "up": (), "scrape_samples_scraped": (), "scrape_duration_seconds": (),
    "alertmanager_notifications_failed_total": ("integration", "reason"),
    "prometheus_rule_evaluation_failures_total": ("rule_group",),
}  # fmt: skip
PALETTE = {"#0072B2", "#E69F00", "#D55E00", "#CC79A7", "#999999"}
UNITS = {"reqps", "percentunit", "s", "currencyUSD", "short", "none", "bytes", "ops", "dateTimeAsIso"}


def panels() -> list[tuple[str, dict[str, Any]]]:
    """Every panel that is no row, with its dashboard."""
    return [(key, panel) for key, made in DASHBOARDS.items() for panel in made["panels"] if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    """Where and expression, of every target, annotation and variable."""
    for key, panel in panels():
        for target in panel["targets"]:
            yield f"{key}: {panel['title']} {target['refId']}", target["expr"]
    for key, made in DASHBOARDS.items():
        for note in made["annotations"]["list"]:
            yield f"{key}: annotation {note['name']}", note["expr"]
        for variable in made["templating"]["list"]:
            if variable["type"] == "query":
                found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
                assert found is not None
                yield f"{key}: ${variable['name']}", found[1]


QUERIES = list(queries())
PANELS = [pytest.param(panel, id=f"{key.removeprefix('dspy-observe-')}-{panel['title']}") for key, panel in panels()]


def test_there_is_a_dashboard_for_each_link() -> None:
    """Uids and titles as promised, none twice, and enough to see a program by."""
    assert list(DASHBOARDS) == [uid(key) for key in TITLES]
    assert [made["title"] for made in DASHBOARDS.values()] == list(TITLES.values())
    assert len(panels()) >= 80


@pytest.mark.parametrize("made", DASHBOARDS.values(), ids=DASHBOARDS)
def test_a_dashboard_is_whole(made: dict[str, Any]) -> None:
    """Unique ids, nothing outside the grid, nothing on top of another, links to the others with time and variables."""
    ids = [panel["id"] for panel in made["panels"]]
    assert len(set(ids)) == len(ids)
    boxes = [panel["gridPos"] for panel in made["panels"]]
    for box in boxes:
        assert 0 <= box["x"] < box["x"] + box["w"] <= 24
    for one, other in combinations(boxes, 2):
        apart = (
            one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        )  # fmt: skip
        assert apart, f"{one} and {other} overlap"
    assert made["editable"] is False
    assert made["description"].endswith("?")
    titles = [panel["title"] for panel in made["panels"]]
    assert len(set(titles)) == len(titles)
    to = {link["url"] for link in made["links"] if link["includeVars"] and link["keepTime"]}
    assert to == {f"/d/{key}" for key in DASHBOARDS if key != made["uid"]}
    assert [link["url"] for link in made["links"] if link["title"] == "Runbook"] == [OPTIONS.runbook_url]


@pytest.mark.parametrize("made", DASHBOARDS.values(), ids=DASHBOARDS)
def test_variables_choose_what_is_seen(made: dict[str, Any]) -> None:
    """The seven of them, in order, several values at a time, asked again when the time changes."""
    variables = made["templating"]["list"]
    assert [v["name"] for v in variables] == ["datasource", "job", "instance", "program", "version", "module", "model"]
    assert variables[0] | {"label": "Data source", "query": "prometheus"} == variables[0]
    for variable in variables[1:]:
        assert variable["label"] == variable["name"]
        assert variable["datasource"]["uid"] == "${datasource}"
        assert (variable["multi"], variable["includeAll"], variable["allValue"], variable["refresh"]) == (
            True,
            True,
            ".+",
            2,
        )


@pytest.mark.parametrize("made", DASHBOARDS.values(), ids=DASHBOARDS)
def test_deployments_and_rollbacks_are_marked(made: dict[str, Any]) -> None:
    """The deployment at its own time, whenever it was scraped."""
    notes = {note["name"]: note for note in made["annotations"]["list"]}
    assert {"Deployments", "Rollbacks", "Alerts"} <= set(notes)
    assert notes["Deployments"]["useValueForTime"] is True
    assert notes["Deployments"]["expr"].endswith("* 1000")


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_asks_a_question_and_answers_it(panel: dict[str, Any]) -> None:
    """Title, description, unit, chosen data source, at least one query, colours that everybody can tell apart."""
    assert panel["title"]
    assert len(panel["description"]) >= 15
    assert re.search(r"[?.]$|trace\.$", panel["description"])
    assert panel["targets"]
    for holder in (panel, *panel["targets"]):
        assert holder["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    defaults = panel["fieldConfig"]["defaults"]
    assert defaults["unit"] in UNITS
    assert defaults["color"]["mode"] in ("palette-classic-by-name", "thresholds", "fixed")
    rising = [step["value"] for step in defaults.get("thresholds", {}).get("steps", [])]
    assert rising[:1] in ([], [None])
    assert rising[1:] == sorted(rising[1:])
    assert set(re.findall(r"#[0-9A-Fa-f]{6}", json.dumps(panel))) <= PALETTE
    letters = [target["refId"] for target in panel["targets"]]
    assert letters == sorted(set(letters))
    if panel["type"] == "heatmap":
        assert all(target["format"] == "heatmap" for target in panel["targets"])
        assert panel["options"]["color"]["scheme"] == "Viridis"
    if panel["type"] == "table":
        assert all(target["format"] == "table" and target["instant"] for target in panel["targets"])


def test_latency_leads_to_traces() -> None:
    """Every quantile over time and every heatmap of a duration asks for exemplars."""
    seen = 0
    for key, panel in panels():
        for target in panel["targets"]:
            timed = panel["type"] in ("timeseries", "heatmap") and "duration_seconds_bucket" in target["expr"]
            if timed and "dspy_rollback" not in target["expr"]:
                assert target.get("exemplar") is True, f"{key}: {panel['title']}"
                seen += 1
    assert seen >= 14


@pytest.mark.parametrize(("where", "expr"), QUERIES, ids=[where for where, _ in QUERIES])
def test_a_query_reads_what_exists_and_obeys_the_variables(where: str, expr: str) -> None:
    """By the grammar of Prometheus 3, with metrics and labels of the catalogue, narrowed by job and instance."""
    for metric, matchers in selectors(filled(expr)):
        if metric == "ALERTS" or metric in RECORDED:
            continue  # aggregated over processes: they have no job and no instance
        if where.endswith("$job"):
            assert metric in METRICS
            continue
        assert "job" in matchers, f"{where}: {metric}"
        assert "instance" in matchers or where.endswith("$instance"), f"{where}: {metric}"
        if metric == "":
            continue
        spec = METRICS.get(metric) or METRICS.get(re.sub("_(bucket|sum|count)$", "", metric))
        assert spec is not None or metric in FOREIGN, f"{where}: {metric} is in no catalogue"
        labels = FOREIGN[metric] if spec is None else spec.labels
        assert set(matchers) <= {"job", "instance", "le", *labels}, f"{where}: {metric}"
        if not where.partition(": ")[2].startswith("$"):
            wanted = {label for label in ("program", "version", "model", "module") if label in labels}
            assert wanted <= set(matchers), f"{where}: {metric} forgets {wanted - set(matchers)}"


@pytest.mark.parametrize(("where", "expr"), QUERIES, ids=[where for where, _ in QUERIES])
def test_rates_fit_the_scrape_interval_and_counters_are_never_shown_raw(where: str, expr: str) -> None:
    """$__rate_interval in every rate; increases over it or over the time shown; a counter only inside one of them."""
    for function, window in re.findall(r"\b(i?rate|increase)\([^\[\]]*\[([^\]]+)\]", expr):
        allowed = {"$__rate_interval"} if function != "increase" else {"$__rate_interval", "$__range"}
        assert window in allowed, where
    # A series that has just been born counts whole, as increase() does not see its first value.
    born = (
        r"\((\S+\{[^}]*\}) unless \1 offset \$__(range|rate_interval)"
        r" unless on \(job, instance\) up\{[^}]*\} offset \$__\2 == 0\) or"
    )
    expr = re.sub(born, "", expr)
    for found in re.finditer(r"\b(dspy_\w+(?:_total|_bucket|_sum|_count))\b", expr):
        if where.partition(": ")[2].startswith("$"):
            continue  # a variable reads labels, not values
        assert re.search(r"(rate|increase)\($", expr[: found.start()]), f"{where}: {found[1]} as it is"


def test_every_metric_is_on_a_panel() -> None:
    """Nothing is exported that nobody sees."""
    shown = {metric for where, expr in QUERIES for metric, _ in selectors(filled(expr))}
    shown |= {re.sub("_(bucket|sum|count)$", "", metric) for metric in shown}
    assert set(METRICS) - shown == set()


def test_a_selector_has_every_variable_that_fits() -> None:
    """And no other."""
    assert series("dspy_cache_dir_bytes") == 'dspy_cache_dir_bytes{job=~"$job",instance=~"$instance"}'
    assert series("dspy_lm_duration_seconds_bucket", 'status="ok"') == (
        'dspy_lm_duration_seconds_bucket{job=~"$job",instance=~"$instance",'
        'program=~"$program",version=~"$version",model=~"$model",status="ok"}'
    )


def test_thresholds_rise_from_good_to_bad_or_fall() -> None:
    """Grafana wants them in rising order either way."""
    assert [value for value, _ in steps(1, 2)] == [None, 1, 2]
    assert [value for value, _ in steps(None, 2)] == [None, 2]
    falling = steps(0.5, 0.1, falling=True)
    assert [value for value, _ in falling] == [None, 0.1, 0.5]
    assert falling[0][1] == steps(1, 2)[-1][1]
    assert falling[-1][1] == steps(1, 2)[0][1]


def test_comparing_versions_shows_the_seven_figures_side_by_side() -> None:
    """Runs, failures, p95, cost a run, score, evaluation and evidence, one row for each version."""
    (table,) = [panel for _, panel in panels() if panel["title"] == "Comparison"]
    assert len(table["targets"]) == 7
    titles = table["transformations"][-1]["options"]["renameByName"]
    assert list(titles.values()) == [
        "program",
        "version",
        "runs",
        "failed",
        "p95",
        "cost a run",
        "score",
        "evaluation",
        "evidence",
    ]
    assert all(
        "by (program, version)" in t["expr"] or "by (le, program, version)" in t["expr"] for t in table["targets"]
    )


def test_the_parser_used_here_refuses_what_prometheus_refuses() -> None:
    """Else the tests above would prove nothing."""
    with pytest.raises(ValueError, match=r".+"):
        promql_parser.parse("sum by (le (rate(x[5m]))")


WHERE = 'job="dspy",instance="a:9464"'
RARE = {
    "Retries": f'dspy_retries_total{{{WHERE},program="qa",version="v1",model="m1"}}',
    "Errors kept from the program": f'dspy_observe_internal_errors_total{{{WHERE},site="logs"}}',
    "Runs that cannot be told apart": (
        f'dspy_program_duration_seconds_count{{{WHERE},program="qa",version="other",role="stable",status="ok"}}'
    ),
}
"""Panels that are empty while all is well, and the series that they are for."""


@pytest.mark.parametrize(("title", "rare"), RARE.items(), ids=RARE)
def test_a_panel_that_is_empty_in_good_times_shows_the_bad_ones(title: str, rare: str, tmp_path: Path) -> None:
    """By promtool, on a series of its own making: 30 a minute are 0.5 a second."""
    needs("promtool")
    (panel,) = [panel for _, panel in panels() if panel["title"] == title]
    expr = f"sum({filled(panel['targets'][0]['expr'])})"
    wanted = 150 if "increase" in expr else 0.5
    test = {
        "interval": "1m",
        "input_series": [{"series": rare, "values": "0+30x20"}],
        "promql_expr_test": [{"expr": expr, "eval_time": "20m", "exp_samples": [{"labels": "{}", "value": wanted}]}],
    }
    (tmp_path / "test.yml").write_text(json.dumps({"evaluation_interval": "1m", "tests": [test]}), encoding="utf-8")
    done = subprocess.run(["promtool", "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
