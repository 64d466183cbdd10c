"""Grafana's dashboard JSON, built by plain functions.

Not by Grafana's foundation SDK, after a trial of both: `dspy-observe dashboards generate` runs where the package runs,
so the SDK would become a dependency of everybody; its newest Python release stands at Grafana 11.6 and hides behind an
epoch in its version (a plain install brings 10.1); and what it writes has panels without ids, queries without letters,
and settings of interval variables in all others, which would have to be mended afterwards.
What is left for it to do are these two hundred lines. The output is type-checked against Grafana's own published
TypeScript schema by ``make schema``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["BAD", "GOOD", "NEUTRAL", "WARN", "Board", "Panel", "Row", "Target", "dashboard_json", "steps"]

GOOD: Final = "#0072B2"
WARN: Final = "#E69F00"
BAD: Final = "#D55E00"
NEUTRAL: Final = "#999999"
PURPLE: Final = "#CC79A7"
"""Okabe and Ito's palette, which people with any kind of colour blindness can tell apart: https://jfly.uni-koeln.de/color/"""

STATUS_COLOURS: Final = {"ok": GOOD, "error": BAD, "rate_limited": WARN, "timeout": PURPLE, "cancelled": NEUTRAL}

_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
_WIDTH: Final = 24
_SCHEMA_VERSION: Final = 39
"""Of Grafana 11; later ones migrate it when they load it."""


@dataclass(frozen=True, slots=True)
class Target:
    """One query of a panel."""

    expr: str
    legend: str = ""
    instant: bool = False
    exemplar: bool = False
    heatmap: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel: the question that its description asks, and the queries that answer it."""

    kind: str
    title: str
    description: str
    unit: str
    targets: Sequence[Target]
    width: int = 8
    height: int = 8
    thresholds: Sequence[tuple[float | None, str]] = ()
    """(from, colour) in rising order; the first from is ``None``."""
    minimum: float | None = None
    maximum: float | None = None
    stacked: bool = False
    by_status: bool = False
    """Series are named by a call's outcome, which have fixed colours."""
    mappings: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Shown text and colour for a value."""
    columns: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Of a table: title and unit for each query's letter or label; a label without a unit is a text."""
    widths: Mapping[str, int] = field(default_factory=dict)
    """Of a table: pixels by a column's title; the others share what is left."""
    hidden: Sequence[str] = ()
    """Of a table: labels that are left out."""
    no_value: str | None = None
    """Shown where there is no series, and that is well."""
    links: Sequence[tuple[str, str]] = ()
    """Title and address, opened from a series."""


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under one title."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard."""

    uid: str
    title: str
    description: str
    rows: Sequence[Row]
    variables: Sequence[dict[str, Any]]
    annotations: Sequence[dict[str, Any]]
    links: Sequence[dict[str, Any]]
    tags: Sequence[str] = ("dspy",)


def steps(warn: float | None, bad: float, *, falling: bool = False) -> tuple[tuple[float | None, str], ...]:
    """Thresholds from good to bad; ``falling`` where less is worse.

    Args:
        warn: Where it becomes doubtful; ``None`` for nowhere.
        bad: Where it becomes bad.
        falling: Whether values below are the bad ones.
    """
    if falling:
        middle = ((bad, WARN), (warn, GOOD)) if warn is not None else ((bad, GOOD),)
        return ((None, BAD), *middle)
    doubtful = () if warn is None else ((warn, WARN),)
    return ((None, GOOD), *doubtful, (bad, BAD))


def dashboard_json(board: Board) -> str:
    """The dashboard as a file that Grafana imports or provisions."""
    made = {
        "uid": board.uid,
        "title": board.title,
        "description": board.description,
        "tags": list(board.tags),
        "schemaVersion": _SCHEMA_VERSION,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "",
        "weekStart": "",
        "fiscalYearStartMonth": 0,
        "liveNow": False,
        "links": list(board.links),
        "templating": {"list": list(board.variables)},
        "annotations": {"list": list(board.annotations)},
        "panels": _laid_out(board.rows),
    }
    return json.dumps(made, indent=2, ensure_ascii=False) + "\n"


def _laid_out(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows from top to bottom, their panels from left to right; ids in that order."""
    made: list[dict[str, Any]] = []
    y = 0
    for row in rows:
        place = {"x": 0, "y": y, "w": _WIDTH, "h": 1}
        made.append(
            {"id": len(made) + 1, "type": "row", "title": row.title, "collapsed": False, "gridPos": place, "panels": []}
        )
        y += 1
        x = tallest = 0
        for panel in row.panels:
            if x + panel.width > _WIDTH:
                x, y, tallest = 0, y + tallest, 0
            place = {"x": x, "y": y, "w": panel.width, "h": panel.height}
            made.append({"id": len(made) + 1, **_panel(panel), "gridPos": place})
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest
    return made


def _panel(panel: Panel) -> dict[str, Any]:
    made: dict[str, Any] = {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "targets": [_target(panel, place, target) for place, target in enumerate(panel.targets)],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": _overrides(panel)},
        "options": _options(panel),
    }
    if panel.kind == "table":
        made["transformations"] = _one_table(panel)
    return made


def _target(panel: Panel, place: int, target: Target) -> dict[str, Any]:
    made: dict[str, Any] = {
        "refId": chr(ord("A") + place),
        "datasource": _SOURCE,
        "editorMode": "code",
        "expr": " ".join(target.expr.split()),
        "legendFormat": target.legend or "__auto",
        "instant": target.instant,
        "range": not target.instant,
    }
    if target.exemplar:
        made["exemplar"] = True
    if target.heatmap:
        made["format"] = "heatmap"
        made["legendFormat"] = "{{le}}"
    elif panel.kind == "table":
        made["format"] = "table"
    return made


def _defaults(panel: Panel) -> dict[str, Any]:
    made: dict[str, Any] = {
        "unit": panel.unit,
        "color": {"mode": "palette-classic-by-name"},
        "custom": _custom(panel),
        "mappings": _mappings(panel),
        "links": [{"title": title, "url": url, "targetBlank": False} for title, url in panel.links],
    }
    if panel.thresholds:
        made["thresholds"] = {
            "mode": "absolute",
            "steps": [{"value": value, "color": colour} for value, colour in panel.thresholds],
        }
        if panel.kind in ("stat", "gauge", "bargauge", "table", "state-timeline"):
            made["color"] = {"mode": "thresholds"}
    elif panel.kind in ("stat", "gauge", "bargauge"):
        made["color"] = {"mode": "fixed", "fixedColor": GOOD}
    wanted = {"min": panel.minimum, "max": panel.maximum, "noValue": panel.no_value}
    return made | {name: value for name, value in wanted.items() if value is not None}


def _custom(panel: Panel) -> dict[str, Any]:
    if panel.kind == "timeseries":
        made: dict[str, Any] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 25 if panel.stacked else 8,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        }
        if panel.thresholds:
            made["thresholdsStyle"] = {"mode": "dashed"}
        return made
    if panel.kind == "table":
        return {"align": "auto", "cellOptions": {"type": "auto"}, "filterable": True}
    if panel.kind == "state-timeline":
        return {"fillOpacity": 80, "lineWidth": 0}
    return {}


def _mappings(panel: Panel) -> list[dict[str, Any]]:
    if not panel.mappings:
        return []
    shown = {
        value: {"text": text, "color": colour, "index": place}
        for place, (value, (text, colour)) in enumerate(panel.mappings.items())
    }
    return [{"type": "value", "options": shown}]


def _override(matcher: str, name: str, **properties: Any) -> dict[str, Any]:
    return {
        "matcher": {"id": matcher, "options": name},
        "properties": [{"id": key.replace("_", "."), "value": value} for key, value in properties.items()],
    }


def _overrides(panel: Panel) -> list[dict[str, Any]]:
    if panel.by_status:
        return [
            _override("byName", status, color={"mode": "fixed", "fixedColor": colour})
            for status, colour in STATUS_COLOURS.items()
        ]
    units = [_override("byName", title, unit=unit) for title, unit in panel.columns.values() if unit]
    return [*units, *(_override("byName", title, custom_width=width) for title, width in panel.widths.items())]


def _one_table(panel: Panel) -> list[dict[str, Any]]:
    """All queries side by side, joined on their labels, columns named and ordered as listed."""
    titles = {
        f"Value #{key}" if len(key) == 1 and len(panel.targets) > 1 else key: title
        for key, (title, _) in panel.columns.items()
    }
    order = {name: place for place, name in enumerate(titles)}
    hidden = dict.fromkeys(["Time", *panel.hidden, *([] if len(panel.targets) > 1 else ["Value"])], True)
    for name in titles:
        hidden.pop(name, None)
    return [
        {"id": "merge", "options": {}},
        {"id": "organize", "options": {"excludeByName": hidden, "indexByName": order, "renameByName": titles}},
    ]


def _options(panel: Panel) -> dict[str, Any]:
    reduce = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    if panel.kind == "timeseries":
        legend = {"displayMode": "table", "placement": "bottom", "showLegend": True, "calcs": ["mean", "lastNotNull"]}
        return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
    if panel.kind == "stat":
        return {
            "reduceOptions": reduce, "colorMode": "value", "graphMode": "area", "justifyMode": "auto",
            "textMode": "auto", "orientation": "auto", "wideLayout": True,
        }  # fmt: skip
    if panel.kind == "bargauge":
        return {
            "reduceOptions": reduce, "displayMode": "basic", "orientation": "horizontal", "showUnfilled": True,
            "valueMode": "color", "minVizHeight": 16, "minVizWidth": 8,
        }  # fmt: skip
    if panel.kind == "table":
        return {"showHeader": True, "cellHeight": "sm"}
    if panel.kind == "state-timeline":
        return {
            "showValue": "auto", "rowHeight": 0.8, "mergeValues": True, "alignValue": "left",
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False, "calcs": []},
            "tooltip": {"mode": "single", "sort": "none"},
        }  # fmt: skip
    return _heatmap_options(panel)


def _heatmap_options(panel: Panel) -> dict[str, Any]:
    return {
        "calculate": False,
        "cellGap": 1,
        "color": {"mode": "scheme", "scheme": "Viridis", "exponent": 0.5, "steps": 64, "reverse": False, "fill": GOOD},
        "exemplars": {"color": BAD},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "showValue": "never",
        "tooltip": {"mode": "single", "showColorScale": True, "yHistogram": False},
        "yAxis": {"axisPlacement": "left", "reverse": False, "unit": panel.unit},
    }
