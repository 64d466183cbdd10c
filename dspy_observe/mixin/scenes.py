"""The notation of the alerts' unit tests: a scene of series over time, and which alerts it sets off.

A scene becomes one test of ``promtool test rules``. Expected annotations are rendered here from the alert's templates,
so promtool also proves that the templates say what they should.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from dspy_observe.mixin.options import DashboardOptions, duration
from dspy_observe.mixin.promql import Alert, number, rule_of
from dspy_observe.mixin.uids import links

__all__ = ["Scene", "beyond", "chosen_labels", "test_file", "within"]

Expected = tuple[str, Mapping[str, str], float | None]


def beyond(usual: float, limit: float) -> float:
    """A part of 1 that is well beyond a limit: the usual one, or midway to 1 where the options' limit is too high."""
    return usual if usual >= 1.25 * limit else round((limit + 1) / 2, 6)


def within(usual: float, limit: float) -> float:
    """A part of 1 that is well within a limit: the usual one, or half the limit where the options' limit is too low."""
    return usual if usual <= limit / 1.25 else round(limit / 2, 6)


class Scene:
    """Series from 0 to ``total_s``, sampled every ``step_s``; alerts are looked at in the end.

    Args:
        name: What happens, in a few words.
        total_s: Seconds that the scene lasts.
        step_s: Seconds between samples.
    """

    def __init__(self, name: str, total_s: float, step_s: float) -> None:
        self.name = name
        self.step_s = step_s
        self.steps = max(4, round(total_s / step_s))
        self.series: dict[str, str] = {}
        self.fire: list[Expected] = []
        self.quiet: list[str] = []

    def counter(self, series: str, *phases: tuple[float, float] | float) -> Scene:
        """A counter that grows by so much a second: one rate for the whole scene, or (rate, seconds) phases."""
        parts: list[str] = []
        value, left = 0.0, self.steps
        for rate, steps in self._phases(phases):
            grown = float(round(rate * self.step_s, 6))
            steps_here = min(steps, left)
            if not parts:
                parts.append(f"0+{number(grown)}x{steps_here}")
            elif steps_here:
                parts.append(f"{number(round(value + grown, 6))}+{number(grown)}x{steps_here - 1}")
            # promtool adds up floats: a hair too much before a new phase would look like a restart of the counter.
            value = round(value + grown * steps_here + (0 if grown.is_integer() else 1e-6), 6)
            left -= steps_here
        self.series[series] = " ".join(parts)
        return self

    def gauge(self, series: str, *phases: tuple[float, float] | float) -> Scene:
        """A gauge that holds one value for the whole scene, or (value, seconds) phases."""
        parts: list[str] = []
        left = self.steps
        for value, steps in self._phases(phases):
            steps_here = min(steps, left)
            count = steps_here if not parts else steps_here - 1
            if count >= 0:
                parts.append(f"{number(value)}+0x{count}")
            left -= steps_here
        self.series[series] = " ".join(parts)
        return self

    def absent_then(self, series: str, absent_s: float, value: float) -> Scene:
        """A series that begins late, with a value that it keeps."""
        missing = round(absent_s / self.step_s)
        self.series[series] = f"_x{missing} {number(value)}+0x{self.steps - missing}"
        return self

    def interrupted(self, series: str, value: float, up: str, start_s: float, end_s: float) -> Scene:
        """A series that keeps a value, and its process, whose scrapes fail from one time to another."""
        lasts, fails = round(start_s / self.step_s), round((end_s - start_s) / self.step_s)
        left = self.steps - lasts - fails
        self.series[series] = f"{number(value)}+0x{lasts - 1} stale _x{fails - 1} {number(value)}+0x{left}"
        self.series[up] = f"1+0x{lasts - 1} 0+0x{fails - 1} 1+0x{left}"
        return self

    def _phases(self, phases: tuple[tuple[float, float] | float, ...]) -> list[tuple[float, int]]:
        made = []
        for phase in phases:
            level, seconds = phase if isinstance(phase, tuple) else (phase, self.steps * self.step_s)
            made.append((level, max(1, round(seconds / self.step_s))))
        level, _ = made[-1]
        made[-1] = (level, self.steps)  # the last phase lasts to the end
        return made

    def fires(self, alert: str, value: float | None = None, /, **labels: str) -> Scene:
        """Expect the alert with these labels besides its own, and its value, where its texts show one."""
        self.fire.append((alert, labels, value))
        return self

    def silent(self, *alerts: str) -> Scene:
        """Expect that these alerts do not fire."""
        self.quiet += alerts
        return self

    def test(self, o: DashboardOptions, alerts: Mapping[str, Alert]) -> dict[str, Any]:
        """The test as promtool reads it."""
        at = duration(self.steps * self.step_s)
        by_name: dict[str, list[Expected]] = {}
        for expected in self.fire:
            by_name.setdefault(expected[0], []).append(expected)
        checks: list[dict[str, Any]] = []
        for name, several in by_name.items():
            wanted = [_expected(alerts[name], o, labels, value) for _, labels, value in several]
            checks.append({"eval_time": at, "alertname": name, "exp_alerts": wanted})
        checks += [{"eval_time": at, "alertname": name, "exp_alerts": []} for name in self.quiet]
        chosen = chosen_labels(o) or {}
        more = "".join(f',{name}="{value}"' for name, value in chosen.items())
        return {
            "name": self.name,
            "interval": duration(self.step_s),
            "input_series": [
                {"series": name.replace("}", more + "}") if name.startswith("dspy_") else name, "values": values}
                for name, values in self.series.items()
            ],
            "alert_rule_test": checks,
        }


def test_file(
    o: DashboardOptions, groups: list[str], alerts: Mapping[str, Alert], scenes: list[Scene], every_s: float
) -> dict[str, Any]:
    """A file for ``promtool test rules``.

    Args:
        o: For links and labels.
        groups: Names of the rule groups in the order of their evaluation.
        alerts: All alerts by name.
        scenes: What is tested.
        every_s: Seconds between evaluations.
    """
    return {
        "rule_files": ["../rules.yml", "../alerts.yml"],
        "evaluation_interval": duration(every_s),
        "group_eval_order": groups,
        "tests": [scene.test(o, alerts) for scene in scenes],
    }


_MATCHER: Final = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"')


def chosen_labels(o: DashboardOptions) -> dict[str, str] | None:
    """Labels that series need to be seen by the options' own matchers; ``None`` where a pattern is too clever."""
    made: dict[str, str] = {}
    for name, sign, value in _MATCHER.findall(o.selector):
        if sign in ("!=", "!~"):
            continue
        if sign == "=~" and not re.fullmatch(r"[\w.-]+(\|[\w.-]+)*", value):
            return None
        made[name] = value.partition("|")[0] if sign == "=~" else value
    return made


def _expected(alert: Alert, o: DashboardOptions, labels: Mapping[str, str], value: float | None) -> dict[str, Any]:
    rule = rule_of(alert, o, links(o))
    return {
        "exp_labels": dict(sorted({**labels, **rule["labels"]}.items())),
        "exp_annotations": {
            name: _rendered(template, {**labels, **rule["labels"]}, value)
            for name, template in rule["annotations"].items()
        },
    }


_WITH: Final = re.compile(r"\{\{ with \$labels\.(\w+) \}\}(.*?)\{\{ end \}\}")
_LABEL: Final = re.compile(r"\{\{ \$labels\.(\w+) \}\}")
_VALUE: Final = re.compile(r'\{\{ \$value(?: \| (\w+)(?: "(%[.]\df)")?)? \}\}')


def _rendered(template: str, labels: Mapping[str, str], value: float | None) -> str:
    """A template of ours as Prometheus renders it; only the forms that the alerts use."""

    def inside(found: re.Match[str]) -> str:
        text = labels.get(found[1], "")
        return found[2].replace("{{ . | urlquery }}", text.replace("/", "%2F").replace(" ", "+")) if text else ""

    def shown(found: re.Match[str]) -> str:
        if value is None:
            raise ValueError(f"the scene expects {template!r}, which shows a value, and gives none")
        return found[2] % value if found[2] else _FORMATS[found[1] or ""](value)

    text = _WITH.sub(inside, template)
    text = _LABEL.sub(lambda found: labels.get(found[1], ""), text)
    return _VALUE.sub(shown, text)


def _scaled(value: float, base: float, units: tuple[str, ...]) -> str:
    prefix = ""
    for unit in units:
        if abs(value) < base:
            break
        value, prefix = value / base, unit
    return f"{value:.4g}{prefix}"


def _humanize(value: float) -> str:
    if value and abs(value) < 1:
        raise ValueError(f"{value} would be shown in thousandths; use printf in the template")
    return _scaled(value, 1000.0, ("k", "M", "G", "T", "P"))


def _seconds(value: float) -> str:
    if value == 0:
        return "0s"
    if abs(value) < 1:
        return f"{value * 1000:.4g}ms"
    if abs(value) < 60:  # noqa: PLR2004 - a minute
        return f"{value:.4g}s"
    whole = int(value)
    days, hours, minutes, seconds = whole // 86_400, whole // 3600 % 24, whole // 60 % 60, whole % 60
    if days:
        return f"{days}d {hours}h {minutes}m {seconds}s"
    return f"{hours}h {minutes}m {seconds}s" if hours else f"{minutes}m {seconds}s"


_FORMATS: Final[dict[str, Callable[[float], str]]] = {
    "": lambda value: f"{value:.16g}",
    "humanize": _humanize,
    "humanize1024": lambda value: _scaled(value, 1024.0, ("ki", "Mi", "Gi", "Ti", "Pi")),
    "humanizePercentage": lambda value: f"{value * 100:.4g}%",
    "humanizeDuration": _seconds,
}
