"""What every query of every dashboard returns, asked from a Prometheus that really scraped the demo traffic."""

from __future__ import annotations

import json
import time
import urllib.parse
from pathlib import Path
from typing import Any

from dspy_observe.mixin.boards import boards
from dspy_observe.mixin.checking import filled
from dspy_observe.mixin.files import generate
from dspy_observe.mixin.grafana import dashboard_json
from dspy_observe.mixin.options import DashboardOptions
from tests.mixin_traffic import Traffic
from tests.servers import Alertmanager, Prometheus, fetch

__all__ = ["QUIET", "capture"]

QUIET = {"Retries", "Errors kept from the program", "Runs that cannot be told apart"}
"""Panels that are empty while all is well, as in tests/e2e/test_dashboards_with_data.py."""

_RATE_INTERVAL_S = 10
_ANNOTATION_STEP_S = 60
"""Grafana's own for annotations, which look back by a scrape more."""
_REDEPLOY_EVERY = 400
"""Turns, about a minute: deployments stand apart in the pictures."""
_STEP_S = 2
_HEATMAP_STEP_S = 10
"""Grafana widens a heatmap's step, too: one column for each interval that its increases cover."""


def capture(folder: Path, seconds: int) -> list[dict[str, Any]]:
    """Run the traffic for a while, then ask every query as Grafana would, over exactly that while.

    Args:
        folder: For the servers' files.
        seconds: How long the traffic runs: the time range of the pictures.

    Returns:
        For each dashboard its ``uid``, ``dashboard`` (the generated JSON), ``from``, ``to`` and ``steps`` (ms),
        ``results`` (Prometheus' answers by panel id and refId), and those of ``annotations`` by name.
    """
    options = DashboardOptions.fast()
    made = generate(options)
    rules = [folder / "rules.yml", folder / "alerts.yml"]
    for path in rules:
        path.write_text(made[f"prometheus/{path.name}"], encoding="utf-8")
    config = {"route": {"receiver": "people"}, "receivers": [{"name": "people"}]}
    with (
        Traffic(folder, pause_s=0.1, redeploy_every=_REDEPLOY_EVERY) as traffic,
        Alertmanager(folder / "am", config) as alertmanager,
    ):
        server = Prometheus(
            folder / "prometheus", rules=rules, targets=[traffic.host_port, alertmanager.host_port],
            alertmanagers=[alertmanager.host_port], also_itself=True,
        )  # fmt: skip
        with server:
            server.wait_for("count(up == 1) == 3")
            start = time.time()
            time.sleep(seconds)  # the pictures show this long a history; there is no condition to wait for
            end = time.time()
            return [_asked(server, json.loads(dashboard_json(board)), start, end) for board in boards(options)]


def _asked(server: Prometheus, dashboard: dict[str, Any], start: float, end: float) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            step = _HEATMAP_STEP_S if panel["type"] == "heatmap" else _STEP_S
            found = (
                _instant(server, target["expr"], start, end)
                if target["instant"]
                else _range(server, target["expr"], start, end, step)
            )
            results[f"{panel['id']}/{target['refId']}"] = found
    return {
        "uid": dashboard["uid"],
        "dashboard": dashboard,
        "from": start * 1000,
        "to": end * 1000,
        "steps": {"heatmap": _HEATMAP_STEP_S * 1000, "annotation": _ANNOTATION_STEP_S * 1000, "other": _STEP_S * 1000},
        "results": results,
        "annotations": {
            note["name"]: _range(server, note["expr"], start, end, _ANNOTATION_STEP_S, _ANNOTATION_STEP_S + 1)
            for note in dashboard["annotations"]["list"]
            if note["enable"]
        },
    }


def _query(expr: str, start: float, end: float, rate_s: int = _RATE_INTERVAL_S) -> str:
    return filled(" ".join(expr.split()), f"{rate_s}s", f"{int(end - start)}s")


def _instant(server: Prometheus, expr: str, start: float, end: float) -> list[dict[str, Any]]:
    asked = urllib.parse.urlencode({"query": _query(expr, start, end), "time": end})
    return list(fetch(f"{server.url}/api/v1/query?{asked}", timeout_s=20)["data"]["result"])


def _range(
    server: Prometheus, expr: str, start: float, end: float, step: int, rate_s: int = _RATE_INTERVAL_S
) -> list[dict[str, Any]]:
    query = _query(expr, start, end, rate_s)
    asked = urllib.parse.urlencode({"query": query, "start": start, "end": end, "step": step})
    return list(fetch(f"{server.url}/api/v1/query_range?{asked}", timeout_s=20)["data"]["result"])
