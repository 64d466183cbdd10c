"""What is deployed, what was decided, and does the way from an alert to a rollback work?"""

from __future__ import annotations

from dspy_observe.mixin.boards.common import R, events, heatmap, rate, series, stat, table, ts
from dspy_observe.mixin.grafana import BAD, GOOD, NEUTRAL, WARN, Panel, Row, Target, steps
from dspy_observe.mixin.options import DashboardOptions

__all__ = ["rows"]

_WHO = "{{program}} {{environment}}"
_ROLLBACKS, _DECISIONS = "dspy_rollbacks_total", "dspy_decisions_total"


def rows(o: DashboardOptions) -> list[Row]:
    """Deployed versions, decisions, serving processes, the alert path."""
    return [_now(o), _deployed(), _decided(), _served(o), _path()]


def _grown(metric: str, by: str, *matchers: str) -> str:
    return events(metric, *matchers, by=by)


def _now(o: DashboardOptions) -> Row:
    beat = series("dspy_watchdog_timestamp_seconds")
    duration_s = series("dspy_rollback_duration_seconds_bucket")
    refused = 'outcome=~"held|rejected"'
    return Row("Now", [
        stat(
            "Rollbacks", "How often was a version put back in the time shown?", "short",
            events(_ROLLBACKS, window="$__range"), thresholds=steps(1, 3),
        ),
        stat(
            "Held or rejected", "How often was a rollback asked for and not carried out?", "short",
            events(_DECISIONS, refused, window="$__range"), thresholds=steps(1, 3), no_value="none",
        ),
        stat(
            "Alert to rollback", "How long did it take from an alert's beginning to the moved pointer (p95)?", "s",
            f"histogram_quantile(0.95, sum by (le) (increase({duration_s}[$__range])))", no_value="none",
        ),
        stat(
            "Rollbacks left", "How many rollbacks may still happen by themselves within this hour?", "short",
            f"min({series('dspy_rollback_budget_remaining')})", thresholds=((None, BAD), (1, WARN), (2, GOOD)),
        ),
        stat(
            "Frozen", "For how many programs may nothing be rolled back by itself?", "short",
            f"sum({series('dspy_rollback_frozen')})", thresholds=steps(None, 1),
        ),
        stat(
            "Watchdog heard", "How long ago did an alert last come through the whole path?", "s",
            f"time() - max({beat} > 0)", thresholds=steps(o.watchdog_s / 2, o.watchdog_s), no_value="never",
        ),
    ])  # fmt: skip


def _deployed() -> Row:
    info, when = series("dspy_deployed_version_info"), series("dspy_deployment_timestamp_seconds")
    return Row("Deployed", [
        table(
            "Deployed versions", "Which version is deployed where, since when?",
            f"""max by (program, environment, version) ({info} == 1)
            * on (program, environment) group_left () max by (program, environment) ({when}) * 1000""",
            width=12,
            columns={"program": ("program", ""), "environment": ("environment", ""), "version": ("version", ""),
                     "Value": ("since", "dateTimeAsIso")},
        ),
        Panel(
            "state-timeline", "Deployed versions over time", "Which version was deployed when?", "short",
            [Target(f"max by (program, environment, version) ({info}) > 0", f"{_WHO} {{{{version}}}}")],
            width=12, mappings={"1": ("deployed", GOOD)},
        ),
        ts(
            "Registry events", "What happens in the registry?", "short",
            Target(_grown("dspy_registry_events_total", "event"), "{{event}}"), stacked=True, width=12,
        ),
        ts(
            "Registry events by program", "Whose versions are being changed?", "short",
            Target(_grown("dspy_registry_events_total", "program"), "{{program}}"), stacked=True, width=12,
        ),
    ])  # fmt: skip


def _decided() -> Row:
    return Row("What was decided", [
        ts(
            "Decisions", "What was decided about rolling back, and who asked?", "short",
            Target(_grown(_DECISIONS, "program, trigger, outcome"), "{{program}} {{trigger}}: {{outcome}}"),
            stacked=True,
        ),
        ts(
            "Rollbacks over time", "How did rollbacks end?", "short",
            Target(_grown(_ROLLBACKS, "program, trigger, outcome"), "{{program}} {{trigger}}: {{outcome}}"),
            stacked=True,
        ),
        heatmap(
            "From alert to rollback", "How long does a rollback take from the alert's beginning?", "s",
            "dspy_rollback_duration_seconds",
        ),
        ts(
            "Rollbacks left within the hour", "Will the next regression be rolled back by itself?", "short",
            Target(f"min by (program, environment) ({series('dspy_rollback_budget_remaining')})", _WHO), minimum=0,
            width=12,
        ),
        Panel(
            "state-timeline", "Frozen over time", "When was nothing rolled back by itself?", "short",
            [Target(f"max by (program, environment) ({series('dspy_rollback_frozen')})", _WHO)],
            width=12, mappings={"0": ("automatic", NEUTRAL), "1": ("frozen", WARN)},
        ),
    ])  # fmt: skip


def _served(o: DashboardOptions) -> Row:
    serving = series("dspy_serving_version_info")
    return Row("Serving processes", [
        table(
            "Versions by process", "Does every process answer with the deployed version?",
            f"max by (instance, program, environment, version, role) ({serving}) == 1", width=12,
            columns={"instance": ("process", ""), "program": ("program", ""), "environment": ("environment", ""),
                     "version": ("version", ""), "role": ("role", "")},
        ),
        ts(
            "Since the registry was read", "Would a rollback reach every process?", "s",
            Target(f"max by (instance, program) ({series('dspy_registry_stale_seconds')})", "{{instance}} {{program}}"),
            thresholds=steps(o.registry_stale_s / 2, o.registry_stale_s), minimum=0,
        ),
        ts(
            "Loads of new versions", "Do processes take over what is deployed?", "short",
            Target(
                _grown("dspy_registry_events_total", "program, event", 'event=~"reload_.+"'), "{{program}} {{event}}"
            ),
            width=4,
        ),
    ])  # fmt: skip


def _path() -> Row:
    where = 'job=~".+",instance=~".+"'
    failed = f'alertmanager_notifications_failed_total{{{where},integration="webhook"}}'
    rules = f'prometheus_rule_evaluation_failures_total{{{where},rule_group=~".*dspy-.*"}}'
    return Row("The alert path", [
        ts(
            "Alerts received", "What does the receiver answer to Alertmanager?", "reqps",
            Target(rate("dspy_alert_requests_total", by="code"), "{{code}}"),
        ),
        ts(
            "Deliveries that failed", "Does Alertmanager reach its webhooks?", "short",
            Target(f"sum by (instance, reason) (increase({failed}[{R}]))", "{{instance}} {{reason}}"),
        ),
        ts(
            "Rule evaluations that failed", "Is there a rule that can never fire?", "short",
            Target(f"sum by (rule_group) (increase({rules}[{R}]))", "{{rule_group}}"),
        ),
    ])  # fmt: skip
