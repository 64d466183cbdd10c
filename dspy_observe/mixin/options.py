"""``DashboardOptions``: every threshold, window, selector and address of dashboards, rules and alerts, with its reason.

The fields carry their unit and reason as metadata, so that the option file that is written beside the dashboards, and
the table of the runbook, say the same as the code. The file is long because it is that table.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from dspy_observe.conventions import LATENCY_BUCKETS_S
from dspy_observe.errors import ConfigurationError

__all__ = ["BurnWindow", "DashboardOptions", "duration"]

_MATCHER = r'[a-zA-Z_][a-zA-Z0-9_]*\s*(=~|!~|!=|=)\s*"(?:[^"\\]|\\.)*"'
_SELECTOR: Final = re.compile(rf"\s*{_MATCHER}(\s*,\s*{_MATCHER})*\s*")
_SEVERITIES: Final = ("critical", "warning", "info")
_SIGNALS: Final = ("errors", "parse", "score", "evidence", "evaluation", "latency", "cost")


def duration(seconds: float) -> str:
    """Seconds as Prometheus writes them in its largest whole unit: 300 is ``5m``, 0 is ``0s``."""
    milliseconds = round(seconds * 1000)
    for unit, size in (("w", 604_800_000), ("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds % size == 0 and milliseconds >= size:
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms" if milliseconds else "0s"


@dataclass(frozen=True, slots=True)
class BurnWindow:
    """One pair of windows in which the error budget may burn too fast.

    https://sre.google/workbook/alerting-on-slos/ chapter 5 gives pairs, factors and the share of a 30-day budget.
    """

    long_s: float
    """Seconds; the window that has to show the burn."""
    short_s: float
    """Seconds; the window that has to show that it still burns."""
    factor: float
    """How many times faster than sustainable the budget burns."""
    for_s: float
    """Seconds that both must hold."""


def _option(default: Any, unit: str, reason: str, low: float | None = None, high: float | None = None) -> Any:
    return field(default=default, metadata={"unit": unit, "reason": reason, "low": low, "high": high})


def _seconds(default: float, reason: str, low: float = 0.1) -> Any:
    return _option(default, "seconds", reason, low, 366 * 86_400)


def _part(default: float, reason: str) -> Any:
    return _option(default, "part of 1", reason, 0.0, 1.0)


def _times(default: float, reason: str) -> Any:
    return _option(default, "times", reason, 1.0, None)


def _count(default: int, unit: str, reason: str) -> Any:
    return _option(default, unit, reason, 1, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class DashboardOptions:
    """What a team may want to change; the rest follows from the package's names.

    Raises:
        ConfigurationError: A field has a value that cannot work; it names the field and the fix.
    """

    # --- places ---
    job: str = _option("dspy", "name", "The scrape job in prometheus.yml; the rules work with any job")
    targets: tuple[str, ...] = _option(("service:9464",), "host:port", "Serving processes that are scraped")
    receiver_target: str = _option("receiver:9095", "host:port", "dspy-observe serve, scraped and sent alerts")
    selector: str = _option("", "PromQL matchers", 'Added to every selector of the rules, such as cluster="eu"')
    default_environment: str = _option("production", "name", "Of targets that have no label environment of their own")
    grafana_url: str = _option("http://127.0.0.1:3000", "URL", "Where alerts link to a dashboard")
    runbook_url: str = _option(
        "runbook.md", "URL", "Where alerts link to a section; put the page where people can open it"
    )
    trace_datasource_uid: str = _option("tempo", "name", "Grafana's data source that exemplars open a trace in")
    alertmanager_target: str = _option("alertmanager:9093", "host:port", "Where Prometheus sends alerts")
    receiver_token_file: str = _option(
        "/etc/alertmanager/secrets/receiver-token",
        "path",
        "Bearer token of the receiver, as Alertmanager sees the file",
    )
    people_webhook_url: str = _option(
        "", "URL", "Where people hear of alerts; empty makes a receiver to fill in by hand"
    )

    # --- clockwork ---
    scrape_interval_s: float = _seconds(15, "Usual; a rollback cannot come sooner than one scrape and one evaluation")
    evaluation_interval_s: float = _seconds(15, "As often as data arrives")
    resend_delay_s: float = _seconds(
        60, "Prometheus' own default; a dead Prometheus resolves alerts after four of these"
    )
    group_interval_s: float = _seconds(15, "Also how long Alertmanager tries again after a receiver's 5xx", 0.1)
    repeat_interval_s: float = _seconds(300, "A rollback alert is delivered again; the receiver decides the same once")
    people_group_wait_s: float = _seconds(30, "People get one message for what belongs together", 0.0)
    people_group_interval_s: float = _seconds(300, "Alertmanager's default")
    people_repeat_interval_s: float = _seconds(14_400, "Alertmanager's default")

    # --- objectives ---
    success_objective: float = _part(0.99, "Program runs that end well; what is left is the error budget of 30 days")
    latency_objective_s: float = _seconds(10.0, "A run is slow beyond this; has to be a bucket of the histogram")
    latency_objective: float = _part(0.95, "Program runs that are not slow")
    latency_buckets_s: tuple[float, ...] = _option(
        LATENCY_BUCKETS_S, "seconds", "Buckets of the duration histograms; change it with Metrics(latency_buckets_s)"
    )
    burn_windows: tuple[BurnWindow, ...] = _option(
        (
            BurnWindow(3600, 300, 14.4, 120),
            BurnWindow(6 * 3600, 1800, 6.0, 900),
            BurnWindow(86_400, 7200, 3.0, 3600),
            BurnWindow(3 * 86_400, 6 * 3600, 1.0, 10_800),
        ),
        "long, short, factor, for",
        "2 % of the budget in an hour and 5 % in six page; 10 % in one day or three is a ticket",
    )
    burn_minimum_calls: int = _count(100, "calls in the long window", "One failure of ten calls is no burning budget")

    # --- regressions of a version ---
    rollback_signals: tuple[str, ...] = _option(
        ("errors", "parse", "score", "evidence", "evaluation", "latency", "cost"),
        "signals",
        "Which regressions carry dspy_action=rollback; latency and cost only against a canary's stable side",
    )
    regression_window_s: float = _seconds(300, "Long enough for 50 calls of a quiet program, short enough to act")
    regression_for_s: float = _seconds(60, "A burst of failures that is over within a minute is no regression", 0.0)
    baseline_window_s: float = _seconds(
        86_400, "How the other versions did lately: a day holds both busy and quiet hours"
    )
    minimum_calls: int = _count(
        50, "calls in the window", "With 50 calls at a true 2 % more than 5 % is seen in about 2 % of windows"
    )
    baseline_minimum_calls: int = _count(
        100, "calls", "Below it nothing is known of the others; the limit decides alone"
    )
    error_limit: float = _part(0.05, "Five times the error budget: no version may fail more often, whatever others do")
    error_increase: float = _part(0.02, "What a version must fail more often than the others to be blamed")
    parse_limit: float = _part(0.05, "Replies that cannot be parsed; each costs a second call or an error")
    parse_increase: float = _part(0.02, "What a version must fail more often than the others to be blamed")
    score_window_s: float = _seconds(3600, "Scores are rarer than calls")
    score_for_s: float = _seconds(300, "Scores come in batches", 0.0)
    score_drop: float = _part(0.05, "Relative to the baseline: the usual bound for a canary's score")
    minimum_scores: int = _count(50, "scores on each side", "Below it the mean of 0 and 1 swings by more than the drop")
    z_limit: float = _option(2.58, "standard errors", "Chance alone exceeds it in 0.5 % of windows", 0.1, None)
    latency_factor: float = _times(1.5, "Half again as slow is felt; less is often the provider's day")
    cost_factor: float = _times(
        1.5, "Half again as dear is a longer prompt or more calls, not another mix of questions"
    )
    canary_window_s: float = _seconds(600, "A canary gets a part of the traffic, so it takes longer to see enough")
    canary_minimum_calls: int = _count(50, "calls on each side", "As minimum_calls")
    canary_error_difference: float = _part(0.02, "A significant difference may still be too small to matter")
    settle_s: float = _seconds(600, "After a rollback errors must be gone by then, or someone has to look")

    # --- providers ---
    provider_failure_ratio: float = _part(0.2, "A provider that fails every fifth call is down for its users")
    provider_memory_s: float = _seconds(3600, "A model that never answered a version is that version's mistake")
    provider_minimum_calls: int = _count(20, "LM calls in the window", "A single failure of a quiet model is no outage")
    provider_for_s: float = _seconds(60, "Retries bridge less", 0.0)
    rate_limited_ratio: float = _part(0.01, "More than 1 % of refusals (429) grows by itself, as each is tried again")
    rate_limited_for_s: float = _seconds(120, "A burst is what retries are for", 0.0)
    fallback_ratio: float = _part(0.05, "The first choice fails so often that the second carries load")
    retry_ratio: float = _option(
        1.0, "retries per call", "Every call is tried twice: twice the load on what is down", 0
    )
    tool_error_ratio: float = _part(0.2, "Agents recover from some tool errors, not from every fifth")
    slow_for_s: float = _seconds(600, "Nothing to wake someone for before", 0.0)

    # --- money and tokens ---
    cost_spike_factor: float = _times(
        2.0, "Against the same hour a week ago, or the last day's mean where there is none"
    )
    cost_spike_minimum_usd: float = _option(1.0, "US dollars an hour", "Twice nearly nothing is nearly nothing", 0)
    daily_budget_usd: float = _option(
        100.0, "US dollars a day", "A program that has no budget of its own; set yours", 0
    )
    daily_budgets_usd: Mapping[str, float] = field(
        default_factory=dict, metadata={"unit": "US dollars a day", "reason": "By program"}
    )
    token_spike_factor: float = _times(3.0, "Against the same hour a week ago, or the last day's mean")
    token_spike_minimum: int = _count(100_000, "tokens an hour", "Below it the money is not worth a message")
    user_tokens_limit: int = _count(1_000_000, "tokens in the budget's window", "No person reads or writes that much")
    user_spike_factor: float = _times(5.0, "The heaviest user against the mean of the heaviest over the last day")
    user_spike_minimum: int = _count(50_000, "tokens in the budget's window", "Below it a spike is harmless")

    # --- things that fill up or fall silent ---
    cache_dir_limit_bytes: float = _option(10e9, "bytes", "DSPy's disk cache beyond 10 GB fills small volumes", 1)
    cache_hit_drop: float = _part(0.5, "Half the hits of last week, or of the last day: a key or a prompt has changed")
    cache_minimum_calls: int = _count(100, "LM calls an hour", "Below it the ratio means nothing")
    lm_calls_per_run_limit: float = _option(
        20.0, "LM calls a run", "An agent that asks more often goes round in circles", 1
    )
    samples_per_target_limit: int = _count(
        10_000, "samples a scrape", "About 0.1 s of the program's time for each scrape"
    )
    open_calls_limit: int = _count(8_000, "calls", "80 % of the ledger's ceiling, where the oldest are given up")
    no_traffic_s: float = _seconds(900, "Programs with steady traffic do not fall silent for a quarter of an hour")
    target_down_for_s: float = _seconds(300, "A restart takes less", 0.0)
    registry_stale_s: float = _seconds(120, "A rollback does not reach a process that has not read the registry")
    version_skew_s: float = _seconds(300, "All processes have swapped long before")
    watchdog_s: float = _seconds(600, "Two deliveries of the watchdog were lost")
    watchdog_repeat_s: float = _seconds(120, "A watchdog that is late by two deliveries is missed in ten minutes")

    def __post_init__(self) -> None:
        for each in fields(self):
            self._check(each.name, getattr(self, each.name), each.metadata)
        self._check_places()
        bounds = self.latency_buckets_s
        if self.latency_objective_s not in bounds:
            _refuse("latency_objective_s", f"{self.latency_objective_s} is no bucket", f"Use one of {bounds}")
        for window in self.burn_windows:
            if not 0 < window.short_s < window.long_s or window.factor <= 0 or window.for_s < 0:
                _refuse("burn_windows", f"{window} cannot work", "Give 0 < short_s < long_s, factor > 0 and for_s >= 0")
        if not self.burn_windows:
            _refuse("burn_windows", "there is none", "Give at least one window")
        if self.error_limit <= 0 or self.success_objective >= 1:
            _refuse("success_objective", "an objective of 100 % leaves no budget", "Use less than 1")
        longest = max(self.regression_window_s, self.score_window_s, self.canary_window_s)
        if self.baseline_window_s <= longest:
            _refuse("baseline_window_s", "it is no longer than what is compared with it", f"Use more than {longest:g}")
        if self.scrape_interval_s * 2 > min(self.regression_window_s, self.canary_window_s):
            _refuse(
                "regression_window_s", "it holds fewer than two scrapes", "Make it 4 or more times scrape_interval_s"
            )

    def _check(self, name: str, value: Any, metadata: Mapping[str, Any]) -> None:
        low, high = metadata.get("low"), metadata.get("high")
        if low is None and high is None:
            return
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            _refuse(name, f"{value!r} is no number", f"Give a number in {metadata['unit']}")
        if (low is not None and value < low) or (high is not None and value > high):
            top = "" if high is None else f" and at most {high:g}"
            _refuse(name, f"{value!r} is out of bounds", f"Use at least {low:g}{top} ({metadata['unit']})")

    def _check_places(self) -> None:
        if self.selector and not _SELECTOR.fullmatch(self.selector):
            _refuse("selector", f"{self.selector!r} is no list of matchers", 'Write it as cluster="eu",team=~"a|b"')
        for name in ("job", "default_environment", "receiver_target", "alertmanager_target", "receiver_token_file"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip() or any(char in value for char in '"\\\n'):
                _refuse(name, f"{value!r} cannot be used", "Give a text without quotes, backslashes or line breaks")
        unknown = set(self.rollback_signals) - set(_SIGNALS)
        if unknown:
            _refuse(
                "rollback_signals", f"{', '.join(sorted(unknown))} is no signal", f"Use some of {', '.join(_SIGNALS)}"
            )
        for program, budget in self.daily_budgets_usd.items():
            if isinstance(budget, bool) or not isinstance(budget, int | float) or budget <= 0 or '"' in program:
                _refuse(
                    "daily_budgets_usd", f"{program!r} = {budget!r} cannot work", "Give each program a number above 0"
                )

    @classmethod
    def fast(cls, **changes: Any) -> DashboardOptions:
        """Options with which a version that fails is noticed within seconds, for demonstrations and tests.

        One scrape and one evaluation a second, windows of 15 seconds, no waiting, five calls as minimum traffic.
        A steady program needs nothing of the kind: short windows see too few calls to be sure.

        Args:
            **changes: Fields to set besides.
        """
        preset: dict[str, Any] = {
            "scrape_interval_s": 1.0, "evaluation_interval_s": 1.0, "resend_delay_s": 1.0,
            "group_interval_s": 1.0, "repeat_interval_s": 10.0,
            "people_group_wait_s": 0.0, "people_group_interval_s": 1.0,
            "regression_window_s": 15.0, "regression_for_s": 0.0, "baseline_window_s": 600.0,
            "minimum_calls": 5, "baseline_minimum_calls": 10,
            "canary_window_s": 20.0, "canary_minimum_calls": 5,
            "score_window_s": 20.0, "score_for_s": 0.0, "minimum_scores": 10,
            "provider_memory_s": 600.0, "provider_minimum_calls": 5, "provider_for_s": 0.0,
            "rate_limited_for_s": 0.0, "slow_for_s": 5.0, "settle_s": 30.0,
            "target_down_for_s": 5.0, "watchdog_repeat_s": 5.0, "watchdog_s": 30.0,
            "registry_stale_s": 10.0, "version_skew_s": 10.0,
        }  # fmt: skip
        return cls(**(preset | changes))

    @classmethod
    def from_toml(cls, text: str) -> DashboardOptions:
        """Read options from the text of a TOML file: one key for each field, ``preset = "fast"`` to start from there.

        Raises:
            ConfigurationError: The text is no TOML, or names a field that does not exist or cannot work.
        """
        try:
            given = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigurationError("options", f"the file is no TOML ({error})", "Correct it") from None
        preset = given.pop("preset", "default")
        if preset not in ("default", "fast"):
            _refuse("preset", f"{preset!r} does not exist", 'Use "default" or "fast"')
        known = {each.name: each for each in fields(cls)}
        for name in given:
            if name not in known:
                _refuse(name, "there is no such option", "See options.toml beside the dashboards for all of them")
        values = {name: _typed(name, value, known[name].type) for name, value in given.items()}
        return cls.fast(**values) if preset == "fast" else cls(**values)

    def to_toml(self) -> str:
        """All options as a TOML file that :meth:`from_toml` reads, each with its unit and reason above it."""
        lines = ["# Options of `dspy-observe dashboards generate --options FILE`, with the values in use."]
        tables: list[str] = []
        for each in fields(self):
            value = getattr(self, each.name)
            comment = f"# {each.metadata['reason']} ({each.metadata['unit']})."
            if each.name == "burn_windows":
                for window in value:
                    rows = [
                        f"{name} = {_toml(getattr(window, name))}" for name in ("long_s", "short_s", "factor", "for_s")
                    ]
                    tables += ["", comment, "[[burn_windows]]", *rows]
                    comment = ""
            elif isinstance(value, Mapping):
                rows = [f"{_toml(name)} = {_toml(amount)}" for name, amount in value.items()]
                tables += ["", comment, f"[{each.name}]", *rows]
            else:
                lines += ["", comment, f"{each.name} = {_toml(value)}"]
        return "\n".join(lines + [line for line in tables if line or not tables]) + "\n"


def _refuse(name: str, problem: str, fix: str) -> None:
    raise ConfigurationError(f"DashboardOptions.{name}", problem, fix)


def _toml(value: Any) -> str:
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return repr(value)


def _typed(name: str, value: Any, annotation: Any) -> Any:
    """Bring a TOML value to the field's type, or refuse it by name."""
    wanted = str(annotation)
    if name == "burn_windows":
        try:
            return tuple(BurnWindow(**one) for one in value)
        except TypeError as error:
            _refuse(
                name, f"cannot be read ({error})", "Give long_s, short_s, factor and for_s in each [[burn_windows]]"
            )
    if wanted.startswith("tuple"):
        kind = str if "str" in wanted else (int, float)
        if not isinstance(value, list) or not all(isinstance(one, kind) for one in value):
            _refuse(name, f"{value!r} is no list of the right kind", "Write it as [a, b]")
        return tuple(value)
    if wanted == "str" and not isinstance(value, str):
        _refuse(name, f"{value!r} is no text", 'Write it in "quotes"')
    if wanted == "int" and (isinstance(value, bool) or not isinstance(value, int)):
        _refuse(name, f"{value!r} is no whole number", "Write it without a point")
    if wanted.startswith("Mapping") and not isinstance(value, dict):
        _refuse(name, f"{value!r} is no table", f"Write it as [{name}]")
    return value
