"""The alerts' unit tests follow the options: whatever a team sets, the set that is made for it passes its own tests."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

from dspy_observe.mixin import scenes as notation
from dspy_observe.mixin.alerts import alert_groups, alerts, rule_groups
from dspy_observe.mixin.cases import scenes
from dspy_observe.mixin.checking import selectors
from dspy_observe.mixin.options import BurnWindow, DashboardOptions
from dspy_observe.mixin.promql import rule_of
from dspy_observe.mixin.scenes import beyond, within
from dspy_observe.mixin.uids import links
from tests.servers import needs

VALUES: Final[Mapping[str, tuple[Any, ...]]] = {
    "scrape_interval_s": (5.0, 60.0),
    "evaluation_interval_s": (5.0, 60.0),
    "success_objective": (0.9, 0.9999),
    "latency_objective_s": (1.0, 40.0),
    "latency_objective": (0.8, 0.999),
    "burn_windows": ((BurnWindow(1800, 300, 10, 60), BurnWindow(86_400, 3600, 2, 600)),),
    "burn_minimum_calls": (1000,),
    "rollback_signals": (("errors",),),
    "regression_window_s": (120.0, 1800.0),
    "regression_for_s": (300.0,),
    "baseline_window_s": (7200.0,),
    "minimum_calls": (500,),
    "baseline_minimum_calls": (1000,),
    "error_limit": (0.01, 0.1, 0.2, 0.5),
    "error_increase": (0.0, 0.5),
    "parse_limit": (0.01, 0.5),
    "parse_increase": (0.0, 0.5),
    "score_window_s": (600.0, 21_600.0),
    "score_for_s": (60.0, 900.0),
    "score_drop": (0.01, 0.2, 0.5),
    "minimum_scores": (5, 500),
    "z_limit": (1.64, 5.0),
    "latency_factor": (1.1, 10.0),
    "cost_factor": (3.0, 10.0),
    "canary_window_s": (120.0, 3600.0),
    "canary_minimum_calls": (5, 500),
    "canary_error_difference": (0.0, 0.3),
    "settle_s": (120.0, 1800.0),
    "provider_failure_ratio": (0.05, 0.8),
    "provider_memory_s": (600.0,),
    "provider_minimum_calls": (5, 500),
    "provider_for_s": (600.0,),
    "rate_limited_ratio": (0.001, 0.3),
    "rate_limited_for_s": (600.0,),
    "fallback_ratio": (0.005, 0.5),
    "retry_ratio": (0.0, 5.0),
    "tool_error_ratio": (0.02, 0.8),
    "slow_for_s": (0.0, 1800.0),
    "cost_spike_factor": (1.2, 10.0),
    "cost_spike_minimum_usd": (0.0, 100.0),
    "daily_budget_usd": (1000.0,),
    "daily_budgets_usd": ({"qa": 5.0, "chat": 7.5},),
    "token_spike_factor": (1.2, 10.0),
    "token_spike_minimum": (1000, 5_000_000),
    "user_tokens_limit": (20_000, 10_000_000),
    "user_spike_factor": (1.5, 20.0),
    "user_spike_minimum": (1000, 2_000_000),
    "cache_dir_limit_bytes": (100e9,),
    "cache_hit_drop": (0.1, 0.9),
    "cache_minimum_calls": (1000,),
    "lm_calls_per_run_limit": (2.0, 100.0),
    "samples_per_target_limit": (50_000,),
    "open_calls_limit": (100_000,),
    "no_traffic_s": (300.0, 3600.0),
    "target_down_for_s": (0.0, 900.0),
    "registry_stale_s": (10.0, 600.0),
    "version_skew_s": (30.0, 900.0),
    "watchdog_s": (120.0, 1800.0),
}
"""Sensible values on both sides of each option's own."""
PLACES: Final[Mapping[str, Any]] = {
    "selector": 'cluster="eu"', "default_environment": "live", "grafana_url": "https://grafana.example",
    "runbook_url": "https://wiki.example/dspy",
}  # fmt: skip
"""Options that are in every alert, and so are tried together."""
ELSEWHERE: Final = {
    "job", "targets", "receiver_target", "trace_datasource_uid", "alertmanager_target", "receiver_token_file",
    "people_webhook_url", "resend_delay_s", "group_interval_s", "repeat_interval_s", "people_group_wait_s",
    "people_group_interval_s", "people_repeat_interval_s", "watchdog_repeat_s", "latency_buckets_s",
}  # fmt: skip
"""Options of configurations and dashboards, which no rule and no scene reads."""


@cache
def recorded_by(expr: str) -> frozenset[str]:
    """Recorded series that an expression reads."""
    return frozenset(metric for metric, _ in selectors(expr) if ":" in metric)


class Rules:
    """All rules of some options, by name, and what each hangs on."""

    def __init__(self, o: DashboardOptions) -> None:
        self.groups = [
            (group.name, [rule_of(rule, o, links(o)) for rule in group.rules])
            for group in [*rule_groups(o), *alert_groups(o)]
        ]
        self.by_name = {rule.get("alert") or rule["record"]: rule for _, rules in self.groups for rule in rules}

    def behind(self, names: set[str]) -> set[str]:
        """These rules and all that they read."""
        found, todo = set(names), list(names)
        while todo:
            new = recorded_by(self.by_name[todo.pop()]["expr"]) - found
            found |= new
            todo += new
        return found

    def only(self, names: set[str]) -> list[dict[str, Any]]:
        """Groups with these rules alone, as promtool reads them."""
        kept = [
            (group, [rule for rule in rules if (rule.get("alert") or rule["record"]) in names])
            for group, rules in self.groups
        ]
        return [{"name": group, "rules": rules} for group, rules in kept if rules]


def played_by(o: DashboardOptions, rules: Rules) -> dict[tuple[str, str], tuple[dict[str, Any], set[str], str]]:
    """By file and scene: a test, the rules that it hangs on, and all of it as a text to compare."""
    known = {alert.name: alert for alert in alerts(o)}
    made = {}
    for file, (played, every_s) in scenes(o).items():
        whole = notation.test_file(o, [], known, played, every_s)
        for test in whole.pop("tests"):
            behind = rules.behind({check["alertname"] for check in test["alert_rule_test"]})
            text = json.dumps([whole, test, [rules.by_name[name] for name in sorted(behind)]])
            made[file, test["name"]] = ({**whole, "tests": [test]}, behind, text)
    return made


@cache
def usual() -> dict[tuple[str, str], str]:
    """The tests of the default options, which the committed files prove."""
    o = DashboardOptions()
    return {place: text for place, (_, _, text) in played_by(o, Rules(o)).items()}


def prove(folder: Path, o: DashboardOptions) -> int:
    """Run what these options change, with promtool; how many tests that are."""
    rules = Rules(o)
    files: dict[str, tuple[dict[str, Any], set[str]]] = {}
    count = 0
    for (file, name), (test, behind, text) in played_by(o, rules).items():
        if usual().get((file, name)) == text:
            continue
        count += 1
        whole, names = files.setdefault(file, ({**test, "tests": []}, set()))
        whole["tests"] += test["tests"]
        names |= behind
    for file, (whole, names) in files.items():
        groups = rules.only(names)
        made = {**whole, "rule_files": [f"{file}-rules.yml"], "group_eval_order": [one["name"] for one in groups]}
        (folder / f"{file}-rules.yml").write_text(json.dumps({"groups": groups}), encoding="utf-8")
        (folder / f"{file}.yml").write_text(json.dumps(made), encoding="utf-8")
    if files:
        command = ["promtool", "test", "rules", *(f"{file}.yml" for file in files)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return count


@pytest.mark.parametrize(
    ("name", "value"), [pytest.param(name, value, id=f"{name}={value}") for name in VALUES for value in VALUES[name]]
)
def test_a_set_with_other_numbers_passes_its_own_tests(tmp_path: Path, name: str, value: Any) -> None:
    """One option at a time, by the real promtool; scenes that it leaves as they are were proved before."""
    needs("promtool")
    changes: dict[str, Any] = {name: value}
    assert prove(tmp_path, DashboardOptions(**changes)) > 0


def test_a_set_for_other_places_passes_its_own_tests(tmp_path: Path) -> None:
    """All of its tests, as every alert has another link."""
    needs("promtool")
    assert prove(tmp_path, DashboardOptions(**PLACES)) == len(usual())


def test_every_option_that_rules_read_is_swept() -> None:
    """A new option needs values here, or a reason why no rule can differ."""
    names = {each.name for each in fields(DashboardOptions)}
    assert sorted([*VALUES, *PLACES, *ELSEWHERE]) == sorted(names)
    for name in ELSEWHERE - {"targets", "latency_buckets_s"}:
        value = getattr(DashboardOptions(), name)
        changes: dict[str, Any] = {name: f"{value}x" if isinstance(value, str) else value * 2}
        o = DashboardOptions(**changes)
        assert {place: text for place, (_, _, text) in played_by(o, Rules(o)).items()} == usual(), name


@pytest.mark.parametrize("limit", [0.0, 0.02, 0.1, 0.4, 0.5, 0.9, 0.999])
def test_a_scene_lies_well_on_its_side_of_a_limit(limit: float) -> None:
    """And is the usual one where the limit permits."""
    assert limit < beyond(0.5, limit) <= 1
    assert beyond(0.5, 0.05) == 0.5
    assert within(0.02, limit) < limit or limit == 0.0
    assert within(0.02, 0.05) == 0.02
