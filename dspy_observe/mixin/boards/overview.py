"""Is every program answering, well enough, fast enough, and at what price?"""

from __future__ import annotations

from dspy_observe.mixin.boards.common import (
    LIVE,
    RUNS,
    heatmap,
    link_to,
    quantile,
    rate,
    ratio,
    series,
    stat,
    table,
    ts,
)
from dspy_observe.mixin.grafana import BAD, GOOD, Panel, Row, Target, steps
from dspy_observe.mixin.options import DashboardOptions
from dspy_observe.mixin.promql import FAILED
from dspy_observe.mixin.rules import budget_left

__all__ = ["rows"]

_FIRING = 'alertname=~"DSPy.+",alertname!="DSPyWatchdog",alertstate="firing",program=~"$program|"'
_SECONDS = "dspy_program_duration_seconds"


def rows(o: DashboardOptions) -> list[Row]:
    """From the numbers of this moment to what is deployed."""
    slow = (o.latency_objective_s / 2, o.latency_objective_s)
    left = f'{budget_left()}{{program=~"$program"}}'
    return [
        Row("Now", [
            stat("Runs", "How many program runs a second answer somebody?", "reqps", rate(RUNS, LIVE)),
            stat(
                "Failed runs", "What part of the runs fails for its caller (error, refusal, time-out)?", "percentunit",
                ratio((RUNS, LIVE, FAILED), (RUNS, LIVE)),
                thresholds=steps(1 - o.success_objective, o.error_limit), maximum=1,
            ),
            stat(
                "p95 of runs", "How long do the slowest 5 % take at least?", "s", quantile(0.95, _SECONDS, LIVE),
                thresholds=steps(*slow),
            ),
            stat(
                "Cost an hour", "What would an hour at this rate cost?", "currencyUSD",
                f"{rate('dspy_cost_usd_total')} * 3600",
            ),
            stat(
                "Error budget left", "How much of the 30 days' error budget has the worst program left?", "percentunit",
                f"min({left})", thresholds=steps(0.5, 0.1, falling=True), maximum=1,
            ),
            stat(
                "Firing alerts", "How many alerts fire now?", "short", f"count(ALERTS{{{_FIRING}}}) or vector(0)",
                thresholds=steps(1, 3),
            ),
        ]),
        Row("How runs go", [
            ts(
                "Runs by outcome", "How many runs end in which way?", "reqps",
                Target(rate(RUNS, LIVE, by="status"), "{{status}}"), stacked=True, by_status=True,
            ),
            ts(
                "Failed runs by program", "Which program fails, and beyond the limit for a version?", "percentunit",
                Target(ratio((RUNS, LIVE, FAILED), (RUNS, LIVE), by="program"), "{{program}}"),
                thresholds=steps(1 - o.success_objective, o.error_limit), minimum=0, links=[link_to("quality")],
            ),
            ts(
                "Latency of runs", "How long do runs take; a point is a trace.", "s",
                *(Target(quantile(q, _SECONDS, LIVE), f"p{q * 100:g}", exemplar=True) for q in (0.5, 0.95, 0.99)),
            ),
            heatmap(
                "Spread of latency", "Are there several kinds of runs, fast and slow ones?", "s", _SECONDS, LIVE,
                width=12,
            ),
            ts(
                "p95 by program", "Which program is slow?", "s",
                Target(quantile(0.95, _SECONDS, LIVE, by="program"), "{{program}}", exemplar=True),
                width=12, links=[link_to("modules")],
            ),
        ]),
        Row("Versions", [
            Panel(
                "state-timeline", "Served versions over time", "Which version answered when?", "short",
                [Target(
                    f"max by (program, version) ({series('dspy_serving_version_info')}) > 0", "{{program}} {{version}}"
                )],
                width=12, mappings={"1": ("serving", GOOD)},
            ),
            table(
                "Served versions", "Which versions answer now, in which role?",
                f"max by (program, environment, version, role) ({series('dspy_serving_version_info')}) == 1",
                width=12, columns={"program": ("program", ""), "environment": ("environment", ""),
                                   "version": ("version", ""), "role": ("role", "")},
            ),
            ts(
                "Runs by version", "Who gets the traffic?", "reqps",
                Target(rate(RUNS, LIVE, by="program, version"), "{{program}} {{version}}"), stacked=True, width=12,
                links=[link_to("quality", "version")],
            ),
            ts(
                "Runs by role", "How much of the traffic is stable, canary, shadow or evaluation?", "reqps",
                Target(rate(RUNS, by="role"), "{{role}}"), stacked=True, width=12,
            ),
        ]),
        Row("Budgets and alerts", [
            Panel(
                "bargauge", "Error budget left by program", "Which program has used up its 30 days' budget?",
                "percentunit", [Target(left, "{{program}}", instant=True)],
                thresholds=steps(0.5, 0.1, falling=True), minimum=0, maximum=1, width=6,
            ),
            ts(
                "Calls under way", "Does anything queue up, or never end?", "short",
                Target(f"sum by (kind) ({series('dspy_in_flight_calls')})", "{{kind}}"), width=6,
            ),
            Panel(
                "table", "Alerts that fire", "What is wrong now, and how badly?", "short",
                [Target(f"ALERTS{{{_FIRING}}}", instant=True)],
                columns={"alertname": ("alert", ""), "severity": ("severity", ""), "program": ("program", ""),
                         "version": ("version", "")},
                hidden=("__name__", "alertstate", "job", "instance"), no_value="none", width=12, widths={"alert": 300},
                thresholds=((None, BAD),),
            ),
        ]),
    ]  # fmt: skip
