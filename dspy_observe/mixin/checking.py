"""What has to hold for a folder of dashboards and rules, whoever wrote them: contents in, faults in words out.

PromQL is read by ``promql-parser`` (Prometheus 3's grammar) where that is installed; :func:`can_parse` says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from itertools import combinations
from typing import Any, Final

import yaml

from dspy_observe.conventions import METRICS

__all__ = ["can_parse", "dashboard_faults", "filled", "recorded", "rule_faults", "selectors"]

_COLUMNS: Final = 24
_VARIABLES: Final = ("job", "instance", "program", "version", "module", "model")
_SEVERITIES: Final = ("critical", "warning", "info", "none")
_AGGREGATED: Final = "ALERTS"


def can_parse() -> bool:
    """Whether PromQL can be read here."""
    return find_spec("promql_parser") is not None


def selectors(expr: str) -> list[tuple[str, dict[str, str]]]:
    """Metric and matchers of every selector in an expression; a selector by pattern has no metric.

    Raises:
        ValueError: It is no PromQL.
    """
    import promql_parser

    found: list[tuple[str, dict[str, str]]] = []

    def walk(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            matchers = {matcher.name: matcher.value for matcher in node.matchers.matchers}
            matchers.pop("__name__", None)
            found.append((node.name or "", matchers))
        for name in ("expr", "lhs", "rhs", "args", "param", "vector_selector"):
            child = getattr(node, name, None)
            for each in child if isinstance(child, list) else [child]:
                if each is not None and not isinstance(each, str | float | int):
                    walk(each)

    walk(promql_parser.parse(expr))
    return found


def filled(expr: str, rate_interval: str = "5m", shown: str = "1h") -> str:
    """A panel's query with Grafana's variables filled in, everything chosen.

    Args:
        expr: The query.
        rate_interval: For ``$__rate_interval``.
        shown: For ``$__range``.
    """
    text = expr.replace("$__rate_interval", rate_interval).replace("$__range", shown)
    for name in _VARIABLES:
        text = text.replace(f"${name}", ".+")
    return text


def recorded(*files: str) -> set[str]:
    """Names of the series that rule files record.

    Raises:
        ValueError: A file is no rule file.
    """
    return {rule["record"] for text in files for _, rule in _rules(text) if "record" in rule}


def dashboard_faults(text: str, recordings: set[str]) -> list[str]:
    """What is wrong with a dashboard, one line each.

    Args:
        text: The file.
        recordings: Names of recorded series that it may read.
    """
    try:
        board = json.loads(text)
        panels = [panel for panel in board["panels"] if panel["type"] != "row"]
        return [*_layout_faults(board), *(fault for panel in panels for fault in _panel_faults(panel, recordings))]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"is no dashboard of Grafana's ({type(error).__name__}: {error})"]


def _layout_faults(board: Mapping[str, Any]) -> Iterator[str]:
    if not board.get("uid"):
        yield "has no uid, so that links to it break when it is imported again"
    ids = [panel["id"] for panel in board["panels"]]
    for twice in sorted({one for one in ids if ids.count(one) > 1}):
        yield f"has two panels with the id {twice}"
    for panel in board["panels"]:
        box = panel["gridPos"]
        if box["x"] < 0 or box["x"] + box["w"] > _COLUMNS:
            yield f"panel {panel.get('title')!r} is wider than the page"
    for one, other in combinations(board["panels"], 2):
        if _overlap(one["gridPos"], other["gridPos"]):
            yield f"panels {one.get('title')!r} and {other.get('title')!r} lie on top of each other"
    names = {variable["name"] for variable in board["templating"]["list"]}
    for missing in [name for name in ("datasource", *_VARIABLES) if name not in names]:
        yield f"has no variable ${missing}"


def _overlap(one: Mapping[str, int], other: Mapping[str, int]) -> bool:
    apart = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
    return not (apart or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"])


def _panel_faults(panel: Mapping[str, Any], recordings: set[str]) -> Iterator[str]:
    who = f"panel {panel.get('title')!r}"
    for wanted in ("title", "description", "targets"):
        if not panel.get(wanted):
            yield f"{who} has no {wanted}"
    if not panel["fieldConfig"]["defaults"].get("unit"):
        yield f"{who} has no unit"
    for target in panel.get("targets", ()):
        expr = target["expr"]
        for window in re.findall(r"\bi?rate\([^\[\]]*\[([^\]]+)\]", expr):
            if window != "$__rate_interval":
                yield f"{who} has a rate over {window}; use $__rate_interval"
        if can_parse():
            yield from (f"{who} {fault}" for fault in _query_faults(expr, recordings))


def _query_faults(expr: str, recordings: set[str]) -> Iterator[str]:
    try:
        read = selectors(filled(expr))
    except ValueError as error:
        yield f"cannot be read ({error}): {expr}"
        return
    for metric, matchers in read:
        if metric == _AGGREGATED or metric in recordings:
            continue
        if metric.startswith("dspy_") and not _known(metric):
            yield f"reads {metric}, which does not exist"
        elif ":" in metric:
            yield f"reads {metric}, which no rule records"
        elif not {"job", "instance"} <= set(matchers):
            yield f"reads {metric or 'series'} of every job and instance"


def _known(metric: str) -> bool:
    if metric in METRICS:
        return METRICS[metric].type != "histogram"
    spec = METRICS.get(re.sub(r"_(bucket|sum|count)$", "", metric))
    return spec is not None and spec.type == "histogram"


def rule_faults(text: str, recordings: set[str], runbook: str | None) -> list[str]:
    """What is wrong with a rule file beyond what promtool sees, one line each.

    Args:
        text: The file.
        recordings: Names of recorded series that rules may read.
        runbook: The page that relative links of alerts lead to; ``None`` leaves links alone.
    """
    try:
        rules = _rules(text)
    except ValueError as error:
        return [str(error)]
    faults: list[str] = []
    for _, rule in rules:
        if can_parse():
            faults += _metric_faults(rule, recordings)
        if "alert" in rule:
            faults += _alert_faults(rule, runbook)
    return faults


def _rules(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Group and rule, of every rule of a file."""
    try:
        content = yaml.safe_load(text)
        groups = content.get("groups") if isinstance(content, dict) else None
        if groups is None:
            raise ValueError("is no rule file: it has no groups")
        return [(group["name"], rule) for group in groups for rule in group["rules"]]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise ValueError(f"is no rule file ({type(error).__name__}: {error})") from None


def _metric_faults(rule: Mapping[str, Any], recordings: set[str]) -> Iterator[str]:
    who = rule.get("alert") or rule.get("record")
    try:
        read = selectors(str(rule.get("expr", "")))
    except ValueError as error:
        yield f"{who} cannot be read by Prometheus 3 ({error})"
        return
    for metric, _ in read:
        if metric.startswith("dspy_") and not _known(metric):
            yield f"{who} reads {metric}, which does not exist"
        elif ":" in metric and metric not in recordings:
            yield f"{who} reads {metric}, which no rule records"


def _alert_faults(rule: Mapping[str, Any], runbook: str | None) -> Iterator[str]:
    name, labels, notes = rule["alert"], rule.get("labels") or {}, rule.get("annotations") or {}
    if labels.get("severity") not in _SEVERITIES:
        yield f"{name} has no severity of {', '.join(_SEVERITIES)}"
    for wanted in ("summary", "description", "runbook_url", "dashboard_url"):
        if not notes.get(wanted):
            yield f"{name} has no {wanted}"
    if labels.get("dspy_action") == "rollback" and not re.search(r"\bprogram, version\b", str(rule["expr"])):
        yield f"{name} asks for a rollback and does not aggregate by (program, version, ...)"
    page, _, anchor = str(notes.get("runbook_url", "")).partition("#")
    if runbook is not None and "://" not in page:
        titles = {title.strip().lower() for title in re.findall(r"^#+ (.+)$", runbook, re.MULTILINE)}
        if anchor not in titles:
            yield f"{name} links to the section {anchor!r}, which the runbook does not have"
