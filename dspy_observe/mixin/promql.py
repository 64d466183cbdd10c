"""PromQL pieces, in the common subset of Prometheus 2.42 and 3, and the two kinds of rules they make.

Three habits keep the rules right. Everything is aggregated before it is joined, because two replicas that export the
same version make a join "many-to-many" and a rule that fails never fires. Every series of a program gets an
``environment``: that of its target, else the default one, so that joins with the registry's gauges find each other.
And no result hangs on a window being a whole number of scrapes, because ranges are open on the left since Prometheus 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from dspy_observe.mixin.options import DashboardOptions, duration

__all__ = [
    "FAILED",
    "LIVE",
    "MODEL",
    "PROGRAM",
    "VERSION",
    "Alert",
    "Group",
    "Recording",
    "environment",
    "grown",
    "increase",
    "number",
    "one_line",
    "percent",
    "selected",
]

PROGRAM: Final = "program, environment"
VERSION: Final = "program, version, environment"
MODEL: Final = "program, environment, model"

LIVE: Final = 'role!~"shadow|warmup|eval"'
"""Runs that answer somebody."""
FAILED: Final = 'status=~"error|rate_limited|timeout"'
"""What a caller sees as a failure; what he cancelled himself is none."""

_HOUR_S: Final = 3600.0

Severity = Literal["critical", "warning", "info", "none"]


@dataclass(frozen=True, slots=True)
class Recording:
    """One recording rule, named level:metric:operations."""

    name: str
    expr: str


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert rule. Its runbook section is found by its name."""

    name: str
    expr: str
    severity: Severity
    summary: str
    """One line with templates; what is wrong, and where."""
    description: str
    """What was measured, against which limit."""
    board: str
    """Key of the dashboard that shows it."""
    for_s: float = 0.0
    signal: str | None = None
    """What has regressed; where the options list it, the alert asks for a rollback."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels besides severity."""


@dataclass(frozen=True, slots=True)
class Group:
    """Rules that are evaluated in turn, at one moment."""

    name: str
    rules: Sequence[Recording | Alert]
    interval_s: float | None = None
    """Seconds between evaluations; ``None`` is the usual interval."""


def one_line(expr: str) -> str:
    """An expression without the line breaks and indents it was written with."""
    return " ".join(expr.split())


def number(value: float) -> str:
    """A number as PromQL and people read it: 50, 0.05, 10000000000."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))  # noqa: PLR2004


def percent(part: float) -> str:
    """A part of 1 as people read it: 0.05 is ``5 %``."""
    return f"{round(part * 100, 6):g} %"


def selected(o: DashboardOptions, metric: str, *matchers: str) -> str:
    """A selector with the team's own matchers behind the given ones."""
    inside = ",".join([*(one for one in matchers if one), *([o.selector.strip()] if o.selector.strip() else [])])
    return f"{metric}{{{inside}}}" if inside else metric


def environment(o: DashboardOptions, expr: str) -> str:
    """Give series without an environment the default one."""
    return f'label_replace({expr}, "environment", "{o.default_environment}", "environment", "")'


def grown(o: DashboardOptions, metric: str, window_s: float, *matchers: str) -> str:
    """How much each series of a counter grew within a window, its first value included.

    ``increase`` needs two samples and sees nothing of a series that is born at 1, which is how most counters of rare
    events begin. So a series that did not exist when the window began counts with its whole value, if its process was
    scraped then: after a gap in the scrapes, or one that failed, nothing is known, and a lifetime's total must not look
    like news.
    """
    series, window = selected(o, metric, *matchers), duration(window_s)
    born = f"({series} unless {series} offset {window} and on (job, instance) up offset {window} == 1)"
    return f"({born} or increase({series}[{window}]))"


def increase(o: DashboardOptions, metric: str, window_s: float, by: str, *matchers: str, offset_s: float = 0.0) -> str:
    """How much a counter grew within a window, added up over replicas, with an environment.

    Windows up to an hour count what :func:`grown` counts; in longer ones a first value is nothing.
    """
    if offset_s or window_s > _HOUR_S:
        back = f" offset {duration(offset_s)}" if offset_s else ""
        series = f"increase({selected(o, metric, *matchers)}[{duration(window_s)}]{back})"
    else:
        series = grown(o, metric, window_s, *matchers)
    return environment(o, f"sum by ({by}) ({series})")


def rule_of(rule: Recording | Alert, o: DashboardOptions, links: Mapping[str, str]) -> dict[str, Any]:
    """The rule as Prometheus' rule files hold it.

    Args:
        rule: A recording or an alert.
        o: For the addresses.
        links: Address of each dashboard by its key.
    """
    if isinstance(rule, Recording):
        return {"record": rule.name, "expr": one_line(rule.expr)}
    acts = rule.signal is not None and rule.signal in o.rollback_signals
    labels = {"severity": "critical" if acts else rule.severity, **rule.labels}
    if rule.signal is not None:
        labels["dspy_signal"] = rule.signal
    if acts:
        labels["dspy_action"] = "rollback"
    made: dict[str, Any] = {"alert": rule.name, "expr": one_line(rule.expr)}
    if rule.for_s:
        made["for"] = duration(rule.for_s)
    made["labels"] = dict(sorted(labels.items()))
    made["annotations"] = {
        "summary": rule.summary,
        "description": one_line(rule.description),
        "runbook_url": f"{o.runbook_url}#{rule.name.lower()}",
        "dashboard_url": links[rule.board],
    }
    return made
