"""Prometheus' own files: rules, alerts, and a configuration to start from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml

from dspy_observe.mixin.alerts import alert_groups, rule_groups
from dspy_observe.mixin.options import DashboardOptions, duration
from dspy_observe.mixin.promql import Group, rule_of
from dspy_observe.mixin.uids import links

__all__ = ["alerts_yml", "configuration", "dump", "rules_yml"]

_LONG = 100


class _Dumper(yaml.SafeDumper):
    """Writes long texts folded, so that a person can read an expression."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=">" if len(value) > _LONG else None)


_Dumper.add_representer(str, _text)


def dump(value: Any, *comments: str) -> str:
    """A YAML file with a comment at its head."""
    head = "".join(f"# {line}\n" if line else "#\n" for line in comments)
    body: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=116, allow_unicode=True)
    return head + body


def _groups(o: DashboardOptions, groups: Iterable[Group]) -> dict[str, Any]:
    where = links(o)
    return {
        "groups": [
            {
                "name": group.name,
                "interval": duration(group.interval_s or o.evaluation_interval_s),
                "rules": [rule_of(rule, o, where) for rule in group.rules],
            }
            for group in groups
        ]
    }


def rules_yml(o: DashboardOptions) -> str:
    """``prometheus/rules.yml``."""
    return dump(_groups(o, rule_groups(o)), "Recording rules. Made by `dspy-observe dashboards generate`.")


def alerts_yml(o: DashboardOptions) -> str:
    """``prometheus/alerts.yml``."""
    return dump(
        _groups(o, alert_groups(o)),
        "Alerts, each with the recordings that have to be as fresh as itself. rules.yml belongs with it.",
        "Made by `dspy-observe dashboards generate`.",
    )


def configuration(o: DashboardOptions) -> str:
    """``prometheus/prometheus.yml``: everything of the compose file scraped, alerts sent to Alertmanager."""
    interval = duration(o.scrape_interval_s)
    targets = [
        (o.job, [{"targets": list(o.targets), "labels": {"environment": o.default_environment}}]),
        ("dspy-receiver", [{"targets": [o.receiver_target], "labels": {"environment": o.default_environment}}]),
        ("prometheus", [{"targets": ["localhost:9090"]}]),
        ("alertmanager", [{"targets": [o.alertmanager_target]}]),
    ]
    jobs = []
    for job, static in targets:
        entry: dict[str, Any] = {"job_name": job}
        if job.startswith(o.job):
            entry["honor_labels"] = True
        jobs.append(entry | {"static_configs": static})
    made = {
        "global": {"scrape_interval": interval, "evaluation_interval": duration(o.evaluation_interval_s)},
        "rule_files": ["rules.yml", "alerts.yml"],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [o.alertmanager_target]}]}]},
        "scrape_configs": jobs,
    }
    return dump(
        made,
        "A configuration to start from. Start Prometheus with --enable-feature=exemplar-storage, so that latency leads",
        f"to traces, and --rules.alert.resend-delay={duration(o.resend_delay_s)}.",
        "",
        "Each environment's targets carry a label environment. honor_labels lets the registry's gauges, which tell of",
        "several environments, keep theirs.",
    )
