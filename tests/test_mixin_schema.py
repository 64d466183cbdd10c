"""Dashboards against Grafana's published TypeScript schema, where Node and its registry can be reached."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from dspy_observe.mixin.boards import boards
from dspy_observe.mixin.grafana import dashboard_json
from dspy_observe.mixin.options import DashboardOptions
from tests.grafana_schema import faults, installed


@pytest.mark.slow
def test_dashboards_have_the_types_that_grafana_publishes(tmp_path: Path) -> None:
    """None has a fault; and a wrong enum, a wrong type and an unknown property are found, so the check sees."""
    missing = installed(tmp_path)
    if missing:
        pytest.skip(missing)
    made = [json.loads(dashboard_json(board)) for board in boards(DashboardOptions())]
    assert faults(tmp_path, made) == []
    broken = copy.deepcopy(made[:1])
    course = next(panel for panel in broken[0]["panels"] if panel["type"] == "timeseries")
    course["options"]["legend"]["displayMode"] = "lst"
    course["fieldConfig"]["defaults"]["custom"]["lineWidth"] = "thick"
    course["targets"][0]["exemplars"] = True
    broken[0]["templating"]["list"][1]["refresh"] = "often"
    found = faults(tmp_path, broken)
    assert len(found) == 4, found
    places = sorted(fault.partition(": error")[0].partition(": ")[2] for fault in found)
    title = course["title"]
    assert places == ["$job", f"{title}, fields", f"{title}, options", f"{title}, queries"]
