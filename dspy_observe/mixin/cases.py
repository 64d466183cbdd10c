"""Unit tests of all other alerts, and the files that ``promtool test rules`` runs. Long because it is a table."""

from __future__ import annotations

from math import ceil

from dspy_observe.conventions import WATCHDOG_ALERT
from dspy_observe.mixin.alerts import alert_groups, alerts, burn_limit, rule_groups, settled, slow_limit
from dspy_observe.mixin.cases_versions import (
    asked,
    canary_scenes,
    canary_score_scenes,
    quality_scenes,
    runs,
    version_scenes,
)
from dspy_observe.mixin.options import DashboardOptions
from dspy_observe.mixin.prometheus import dump
from dspy_observe.mixin.promql import percent
from dspy_observe.mixin.scenes import Scene, beyond, chosen_labels, test_file, within

__all__ = ["ALWAYS_FIRING", "scenes", "test_files"]

ALWAYS_FIRING = frozenset({WATCHDOG_ALERT})
"""Alerts that have no silent case."""

_WHERE = 'job="dspy",instance="a:9464"'
_QA = f'{_WHERE},program="qa"'


def scenes(o: DashboardOptions) -> dict[str, tuple[list[Scene], float]]:
    """For each test file its scenes, and the seconds between evaluations."""
    often = max(o.evaluation_interval_s, o.regression_window_s / 5)
    hourly = 1200.0
    scored = max(often, o.score_window_s / 20)
    return {
        "versions": (version_scenes(o), often),
        "canaries": (canary_scenes(o), often),
        "quality": ([*quality_scenes(o, scored), *canary_score_scenes(o)], scored),
        "objectives": (_objectives(o), 240.0),
        "providers": (_providers(o), often),
        "money": (_money(o), hourly),
        "hours": (_hours(o), hourly),
        "weeks": (_weeks(o), 3600.0),
        "agents": (_agents(o), often),
        "serving": (_serving(o), often),
        "rollbacks": (_rollbacks(o), often),
        "observer": (_observer(o), often),
        "alert_path": (_alert_path(o, often), often),
    }


def test_files(o: DashboardOptions) -> dict[str, str]:
    """Contents by file name, for ``prometheus/tests``; none where the options' own matchers cannot be satisfied."""
    if chosen_labels(o) is None:
        return {}
    order = [group.name for group in [*rule_groups(o), *alert_groups(o)]]
    known = {alert.name: alert for alert in alerts(o)}
    return {
        f"{name}.yml": dump(test_file(o, order, known, made, every), f"promtool test rules {name}.yml")
        for name, (made, every) in scenes(o).items()
    }


def _where(o: DashboardOptions, **labels: str) -> dict[str, str]:
    return {"program": "qa", "environment": o.default_environment, **labels}


def _objectives(o: DashboardOptions) -> list[Scene]:
    names = [alert.name for alert in alerts(o) if alert.name.startswith("DSPyErrorBudgetBurn")]
    budget = 1 - o.success_objective
    limits = [burn_limit(o, window) for window in o.burn_windows]
    made = []
    for place, (name, window) in enumerate(zip(names, o.burn_windows, strict=True)):
        rate = 4 * o.burn_minimum_calls / min(window.long_s, window.for_s + window.short_s / 4 + 600)
        total = window.for_s + window.short_s / 4 + 600
        bad = limits[place] * 1.25 if limits[place] <= 0.8 else beyond(0.9, limits[place])  # noqa: PLR2004 - below 1
        burning = Scene(f"the budget burns {bad / budget:g} times too fast", total, total / 100)
        burning.counter(runs("v1"), rate * (1 - bad)).counter(runs("v1", "timeout"), rate * bad)
        burning.fires(name, round(bad, 9), **_where(o))
        burning.silent(*(other for other, limit in zip(names[:place], limits, strict=False) if limit >= 1.25 * bad))
        made.append(burning)
    longest = max(window.for_s + 1200 for window in o.burn_windows)
    rate = 4 * o.burn_minimum_calls / 3600
    fine = Scene("half the budget is used", longest, longest / 100)
    fine.counter(runs("v1"), rate * (1 - budget / 2)).counter(runs("v1", "error"), rate * budget / 2)
    cancelled = Scene("callers leave, which is no failure", longest, longest / 100)
    cancelled.counter(runs("v1"), rate * 0.5).counter(runs("v1", "cancelled"), rate * 0.5)
    few = Scene("every run of very few fails", longest, longest / 100)
    few.counter(runs("v1", "error"), 0.5 * o.burn_minimum_calls / max(w.long_s for w in o.burn_windows))
    made += [fine.silent(*names), cancelled.silent(*names), few.silent(*names)]
    return [*made, *_slow_runs(o), *_silence(o)]


def _slow_runs(o: DashboardOptions) -> list[Scene]:
    first = o.burn_windows[0]
    total = first.for_s + first.short_s * 2
    rate = 4 * o.burn_minimum_calls / total
    limit = slow_limit(o)
    many, few = beyond(0.9, limit), within(0.05, limit)
    made = []
    for inside in (1 - many, 1 - few):
        name = f"{percent(1 - inside)} of runs are slow"
        scene = Scene(name, total, total / 60).counter(runs("v1"), rate)
        labels = f'{_QA},version="v1",role="stable",status="ok",le="{float(o.latency_objective_s)}"'
        scene.counter(f"dspy_program_duration_seconds_bucket{{{labels}}}", rate * inside)
        made.append(scene)
    return [made[0].fires("DSPyLatencyBudgetBurn", many, **_where(o)), made[1].silent("DSPyLatencyBudgetBurn")]


def _silence(o: DashboardOptions) -> list[Scene]:
    quiet, rate = max(o.no_traffic_s * 1.2, o.no_traffic_s + 300), 4 * o.burn_minimum_calls / 3600
    stopped = Scene("a program falls silent", 3600 + quiet, o.no_traffic_s / 15)
    stopped.counter(runs("v1"), (rate, 3600), (0, quiet))
    steady = Scene("a program has traffic as ever", 3600 + quiet, o.no_traffic_s / 15).counter(runs("v1"), rate)
    rare = Scene("a program that is seldom used", 3600 + quiet, o.no_traffic_s / 15)
    rare.counter(runs("v1"), (0.2 * o.burn_minimum_calls / 3600, 3600), (0, quiet))
    name = "DSPyNoTraffic"
    return [stopped.fires(name, **_where(o)), steady.silent(name), rare.silent(name)]


def _providers(o: DashboardOptions) -> list[Scene]:
    w = o.regression_window_s
    step, rate = w / 20, 8 * o.provider_minimum_calls / w
    total = w * 1.2 + max(o.slow_for_s, o.rate_limited_for_s, o.provider_for_s) + 2 * o.evaluation_interval_s
    who = _where(o, model="m1")
    fallback = f'dspy_fallbacks_total{{{_WHERE},from_model="m1",to_model="m2",reason="LMServerError"}}'
    again = f'dspy_retries_total{{{_QA},version="v1",model="m1"}}'

    def scene(name: str, limited: float = 0.0, rate: float = rate) -> Scene:
        made = Scene(name, total, step).counter(asked("v1"), rate * (1 - limited))
        return made.counter(asked("v1", "rate_limited"), rate * limited)

    limited, spared = beyond(0.05, o.rate_limited_ratio), within(0.005, o.rate_limited_ratio)
    other, seldom = beyond(0.2, o.fallback_ratio), within(0.01, o.fallback_ratio)
    twice, rarely = (2.0 if o.retry_ratio <= 1.5 else 2 * o.retry_ratio), within(0.1, o.retry_ratio)  # noqa: PLR2004
    down = ["DSPyProviderOutage"] if limited < o.provider_failure_ratio / 1.25 else []  # refusals are failures, too
    answered = {"environment": o.default_environment, "from_model": "m1", "to_model": "m2"}
    few = scene(
        "one of very few calls is refused, tried again and answered by another", 0.5, 0.4 * o.provider_minimum_calls / w
    )
    few.counter(fallback, 0.1 * o.provider_minimum_calls / w).counter(again, 2 * o.provider_minimum_calls / w)
    return [
        scene(f"{percent(limited)} of calls are rate-limited", limited)
        .fires("DSPyRateLimited", limited, **who)
        .silent(*down),
        scene(f"{percent(spared)} of calls are rate-limited", spared).silent("DSPyRateLimited", "DSPyProviderOutage"),
        scene(f"{percent(other)} of calls fall back")
        .counter(fallback, rate * other)
        .fires("DSPyFallbackRateHigh", other, **answered),
        scene(f"{percent(seldom)} of calls fall back").counter(fallback, rate * seldom).silent("DSPyFallbackRateHigh"),
        scene(f"each call is tried {twice:g} times again")
        .counter(again, rate * twice)
        .fires("DSPyRetryStorm", twice, **who),
        scene(f"{percent(rarely)} of calls are tried again").counter(again, rate * rarely).silent("DSPyRetryStorm"),
        few.silent("DSPyRateLimited", "DSPyFallbackRateHigh", "DSPyRetryStorm"),
    ]


def _hours(o: DashboardOptions) -> list[Scene]:
    """What is counted by the hour."""
    total = 2 * 3600 + 3 * o.slow_for_s
    blind_calls = max(180, 2 * o.provider_minimum_calls)
    silent_model = Scene("a model reports no usage and has no price", total, 60)
    known_model = Scene("a model is metered and priced", total, 60)
    for metric in ("dspy_unmetered_requests_total", "dspy_unpriced_requests_total"):
        silent_model.counter(f'{metric}{{{_WHERE},model="m1"}}', blind_calls / 3600)
        known_model.counter(f'{metric}{{{_WHERE},model="m1"}}', 0)
    blind = {"environment": o.default_environment, "model": "m1"}
    invalid = f"dspy_invalid_scores_total{{{_QA}}}"
    return [
        silent_model.fires("DSPyUnmeteredModel", blind_calls, **blind).fires("DSPyUnpricedModel", blind_calls, **blind),
        known_model.silent("DSPyUnmeteredModel", "DSPyUnpricedModel"),
        Scene("scores are refused", total, 60)
        .counter(invalid, 120 / 3600)
        .fires("DSPyInvalidScores", 120, **_where(o)),
        Scene("scores are taken", total, 60).counter(invalid, 0).silent("DSPyInvalidScores"),
    ]


def _cost(dollars_an_hour: float) -> float:
    return dollars_an_hour / 3600


_COST = f'dspy_cost_usd_total{{{_QA},version="v1",model="m1"}}'
_TOKENS = f'dspy_tokens_total{{{_QA},version="v1",model="m1",kind="prompt"}}'


def _hits(result: str) -> str:
    return f'dspy_cache_requests_total{{{_QA},version="v1",model="m1",result="{result}"}}'


def _spike_minimum(o: DashboardOptions) -> float:
    """US dollars an hour; where the options know no minimum, a dollar."""
    return o.cost_spike_minimum_usd or 1.0


def _money(o: DashboardOptions) -> list[Scene]:
    h = 3600.0
    who = _where(o)
    dollars = _spike_minimum(o)
    much, many = 3 * o.cost_spike_factor * dollars, 3 * o.token_spike_factor * o.token_spike_minimum
    calls = 4 * o.cache_minimum_calls / h
    # The spike counts in the day's mean, so that a large factor needs a long day to stand out from.
    calm = (8 if max(o.cost_spike_factor, o.token_spike_factor) <= 3 else 22) * h  # noqa: PLR2004 - times
    jump = Scene("cost and tokens jump, and the cache forgets", calm + 2 * h, 300)
    jump.counter(_COST, (_cost(dollars / 2), calm), (_cost(much), 2 * h))
    jump.counter(_TOKENS, (o.token_spike_minimum / 2 / h, calm), (many / h, 2 * h))
    jump.counter(_hits("hit"), (calls * 0.8, calm), (calls * 0.05, 2 * h))
    jump.counter(_hits("miss"), (calls * 0.2, calm), (calls * 0.95, 2 * h))
    spikes = ("DSPyCostSpike", "DSPyProgramTokensExploding", "DSPyCacheHitDrop")
    jump.fires(spikes[0], much, **who).fires(spikes[1], many, **who).fires(spikes[2], 0.05, **who)
    steady = Scene("cost, tokens and cache are as ever", 10 * h, 300)
    steady.counter(_COST, _cost(much)).counter(_TOKENS, many / h)
    steady.counter(_hits("hit"), calls * 0.8).counter(_hits("miss"), calls * 0.2)
    cents = Scene("three times nearly nothing", 10 * h, 300)
    cents.counter(_COST, (_cost(o.cost_spike_minimum_usd / 90), 8 * h), (_cost(o.cost_spike_minimum_usd / 2), 2 * h))
    cents.counter(_TOKENS, (o.token_spike_minimum / 90 / h, 8 * h), (o.token_spike_minimum / 2 / h, 2 * h))
    cents.counter(_hits("hit"), (0.1 * o.cache_minimum_calls / h, 8 * h), (0, 2 * h))
    cents.counter(_hits("miss"), (0, 8 * h), (0.1 * o.cache_minimum_calls / h, 2 * h))
    budget = o.daily_budgets_usd.get("qa", o.daily_budget_usd)
    over = Scene("at this rate the day costs twice its budget", 4 * h, 300).counter(_COST, _cost(budget / 12))
    under = Scene("at this rate half the budget is left", 4 * h, 300).counter(_COST, _cost(budget / 48))
    forecast = "DSPyDailyBudgetForecast"
    return [
        jump,
        steady.silent(*spikes),
        cents.silent(*spikes),
        over.fires(forecast, budget * 2, **who),
        under.silent(forecast),
        *_users(o),
        *_disk(o),
    ]


def _users(o: DashboardOptions) -> list[Scene]:
    h, alert = 3600.0, "DSPyUserTokensExploding"
    tokens = f"dspy_user_tokens_max{{{_QA}}}"
    usual = o.user_spike_minimum / 5
    spike = max(usual * o.user_spike_factor * 3, o.user_spike_minimum * 2)
    beyond, busy = o.user_tokens_limit * 2, o.user_tokens_limit / 2
    over = f"dspy_user_budget_exceeded_total{{{_QA}}}"
    return [
        Scene("a user is beyond what a person uses", h, 300).gauge(tokens, beyond).fires(alert, beyond, **_where(o)),
        Scene("a user uses far more than the heaviest had", 8 * h, 300)
        .gauge(tokens, (usual, 8 * h - 600), (spike, 600))
        .fires(alert, spike, **_where(o)),
        Scene("a busy user is as busy as ever", 8 * h, 300).gauge(tokens, busy).silent(alert),
        Scene("users go over their budget", 2 * h, 300)
        .counter(over, 6 / h)
        .fires("DSPyUserOverBudget", 6, **_where(o)),
        Scene("nobody goes over his budget", 2 * h, 300).counter(over, 0).silent("DSPyUserOverBudget"),
    ]


def _disk(o: DashboardOptions) -> list[Scene]:
    size, alert = f"dspy_cache_dir_bytes{{{_WHERE}}}", "DSPyDiskCacheLarge"
    where = {"job": "dspy", "instance": "a:9464"}
    full = o.cache_dir_limit_bytes * 1.2
    return [
        Scene("the disk cache grows too large", 3600, 60).gauge(size, full).fires(alert, full, **where),
        Scene("the disk cache is small", 3600, 60).gauge(size, o.cache_dir_limit_bytes / 2).silent(alert),
    ]


def _weeks(o: DashboardOptions) -> list[Scene]:
    """The same hour a week ago explains what the last day does not."""
    h, week = 3600.0, 7 * 86_400.0
    much, many = 3 * o.cost_spike_factor * _spike_minimum(o), 3 * o.token_spike_factor * o.token_spike_minimum
    calls = 4 * o.cache_minimum_calls / h
    quiet = week - 4 * h
    monday = Scene("every Monday is busy, and asks what was never asked", week + 4 * h, 1200)
    monday.counter(_COST, (_cost(much), 4 * h), (_cost(0.1), quiet), (_cost(much), 4 * h))
    monday.counter(_TOKENS, (many / h, 4 * h), (1.0, quiet), (many / h, 4 * h))
    monday.counter(_hits("hit"), (calls * 0.1, 4 * h), (calls * 0.9, quiet), (calls * 0.1, 4 * h))
    monday.counter(_hits("miss"), (calls * 0.9, 4 * h), (calls * 0.1, quiet), (calls * 0.9, 4 * h))
    return [monday.silent("DSPyCostSpike", "DSPyProgramTokensExploding", "DSPyCacheHitDrop")]


def _agents(o: DashboardOptions) -> list[Scene]:
    w = max(o.regression_window_s, o.canary_window_s)
    rate, total = 8 * o.provider_minimum_calls / w, w * 1.2 + o.slow_for_s + 2 * o.evaluation_interval_s
    tool = f'{_QA},version="v1",tool="search"'
    lm = f'dspy_lm_duration_seconds_count{{{_QA},version="v1",model="m1",status="ok"}}'

    def scene(name: str, bad: float, asks: float, rate: float = rate) -> Scene:
        made = Scene(name, total, w / 20).counter(runs("v1"), rate).counter(lm, rate * asks)
        made.counter(f'dspy_tool_duration_seconds_count{{{tool},status="ok"}}', rate * (1 - bad))
        return made.counter(f'dspy_tool_duration_seconds_count{{{tool},status="error"}}', rate * bad)

    many, asks = o.lm_calls_per_run_limit * 2, min(3.0, o.lm_calls_per_run_limit / 2)
    bad, few = beyond(0.5, o.tool_error_ratio), within(0.05, o.tool_error_ratio)
    return [
        scene(f"{percent(bad)} of the tool calls fail, and the agent goes round in circles", bad, many)
        .fires("DSPyToolErrors", bad, **_where(o, tool="search"))
        .fires("DSPyAgentLoop", many, **_where(o, version="v1")),
        scene(f"{percent(few)} of the tool calls fail, {asks:g} LM calls a run", few, asks).silent(
            "DSPyToolErrors", "DSPyAgentLoop"
        ),
        scene("too few runs to tell", 1.0, many, 0.4 * o.provider_minimum_calls / w).silent(
            "DSPyToolErrors", "DSPyAgentLoop"
        ),
    ]


def _serving(o: DashboardOptions) -> list[Scene]:
    step = o.scrape_interval_s
    down = o.target_down_for_s + 20 * step
    where = {"job": "dspy", "instance": "a:9464"}
    stale = f'dspy_registry_stale_seconds{{{_QA},environment="production"}}'
    reload = 'dspy_registry_events_total{{{where},program="qa",event="{event}"}}'
    loads = o.canary_window_s * 1.2
    late = o.registry_stale_s * 3

    def served(name: str, first: str, second: str) -> Scene:
        made = Scene(name, o.version_skew_s + 20 * step, step)
        for instance, version in (("a", first), ("b", second)):
            labels = f'job="dspy",instance="{instance}:9464",program="qa",version="{version}"'
            made.gauge(f'dspy_serving_version_info{{{labels},environment="production",role="stable"}}', 1)
        return made

    production = _where(o) | {"environment": "production"}
    return [
        Scene("a process is gone", down + 20 * step, step)
        .gauge(f"up{{{_WHERE}}}", (1, 20 * step), (0, down))
        .gauge(f"dspy_observe_open_calls{{{_WHERE}}}", 0)
        .fires("DSPyTargetDown", **where),
        Scene("a process of somebody else's is gone", down, step)
        .gauge('up{job="other",instance="x:1"}', 0)
        .gauge(f"up{{{_WHERE}}}", 1)
        .gauge(f"dspy_observe_open_calls{{{_WHERE}}}", 0)
        .silent("DSPyTargetDown"),
        Scene("a process cannot read the registry", 20 * step, step)
        .gauge(stale, late)
        .fires("DSPyRegistryStale", late, **(where | production)),
        Scene("a process has just read the registry", 20 * step, step).gauge(stale, 1).silent("DSPyRegistryStale"),
        served("two processes serve two versions", "v1", "v2").fires("DSPyVersionSkew", 2, **production),
        served("two processes serve one version", "v2", "v2").silent("DSPyVersionSkew"),
        Scene("loading fails again and again", loads, loads / 40)
        .counter(reload.format(where=_WHERE, event="reload_error"), 4 / o.canary_window_s)
        .fires("DSPyReloadFailing", 4, **_where(o)),
        Scene("loading works", loads, loads / 40)
        .counter(reload.format(where=_WHERE, event="reload_complete"), 4 / o.canary_window_s)
        .counter(reload.format(where=_WHERE, event="reload_error"), 0)
        .silent("DSPyReloadFailing"),
    ]


_RECEIVER = 'job="dspy-receiver",instance="receiver:9095",program="qa",environment="production"'


def _rollbacks(o: DashboardOptions) -> list[Scene]:
    step = o.settle_s / 40
    total = o.settle_s * 0.8
    who = {"program": "qa", "environment": "production", "trigger": "alert"}
    outcomes: tuple[tuple[str, str, str, dict[str, str]], ...] = (
        ("DSPyRollbackDone", "dspy_rollbacks_total", "complete", {}),
        ("DSPyRollbackFailed", "dspy_rollbacks_total", "error", {}),
        ("DSPyRollbackRefused", "dspy_decisions_total", "held", {"outcome": "held"}),
        ("DSPyRollbackRefused", "dspy_decisions_total", "rejected", {"outcome": "rejected"}),
    )
    made = []
    for alert, metric, outcome, more in outcomes:
        series = f'{metric}{{{_RECEIVER},trigger="alert",outcome="{outcome}"}}'
        once = Scene(f"a rollback ends: {outcome}", total, step).gauge(series, (0, total / 2), (1, total / 2))
        made.append(once.fires(alert, **who, **more))
        made.append(Scene(f"no rollback ends: {outcome}", total, step).counter(series, 0).silent(alert))
    calm = Scene("a decision that is a duplicate, or a person's, is no refusal", total, step)
    calm.counter(f'dspy_decisions_total{{{_RECEIVER},trigger="alert",outcome="duplicate"}}', 0.1)
    calm.counter(f'dspy_decisions_total{{{_RECEIVER},trigger="manual",outcome="held"}}', 0.1)
    states = (
        ("DSPyRollbackBudgetSpent", "dspy_rollback_budget_remaining", 0, 3),
        ("DSPyRollbackFrozen", "dspy_rollback_frozen", 1, 0),
    )
    for alert, metric, bad, good in states:
        series, long = f"{metric}{{{_RECEIVER}}}", o.slow_for_s + 20 * o.scrape_interval_s
        firing = Scene(f"{metric} is {bad}", long, o.scrape_interval_s).gauge(series, bad)
        made.append(firing.fires(alert, program="qa", environment="production"))
        made.append(Scene(f"{metric} is {good}", long, o.scrape_interval_s).gauge(series, good).silent(alert))
    return [*made, calm.silent("DSPyRollbackRefused"), *_born(o), *_no_help(o)]


def _born(o: DashboardOptions) -> list[Scene]:
    """A counter's series begins with the first event, at 1, which increase() does not see."""
    step = o.settle_s / 40
    before, after = o.settle_s * 1.2, o.settle_s * 0.4
    series = f'dspy_rollbacks_total{{{_RECEIVER},trigger="alert",outcome="error"}}'
    up = 'up{job="dspy-receiver",instance="receiver:9095"}'
    who = {"program": "qa", "environment": "production", "trigger": "alert"}
    first = Scene("the first rollback ever fails", before + after, step).gauge(up, 1).absent_then(series, before, 1)
    gap = Scene("the receiver is scraped for the first time, and rollbacks failed long ago", before + after, step)
    gap.absent_then(up, before, 1).absent_then(series, before, 5)
    failing = Scene("the receiver's scrapes failed for a while, and rollbacks failed long ago", before + after, step)
    failing.interrupted(series, 5, up, o.settle_s * 0.4, before)
    return [scene.silent("DSPyRollbackFailed") for scene in (gap, failing)] + [first.fires("DSPyRollbackFailed", **who)]


def _no_help(o: DashboardOptions) -> list[Scene]:
    w, alert = o.regression_window_s, "DSPyRollbackDidNotHelp"
    rate, step = 4 * o.minimum_calls / w, w / 20
    since = (1.5 * w + settled(o)) / 2  # long enough ago to show, not so long that the rollback is out of sight
    before = 2 * w
    here = _RECEIVER.replace("production", o.default_environment)
    still = beyond(0.4, o.error_limit)
    made = []
    for name, bad in (("a rollback does not end the errors", still), ("a rollback ends the errors", 0.0)):
        scene = Scene(name, before + since, step)
        scene.gauge(f'dspy_rollbacks_total{{{here},trigger="alert",outcome="complete"}}', (0, before), (1, since))
        scene.gauge(f"dspy_deployment_timestamp_seconds{{{here}}}", (1, before), (before, since))
        scene.counter(runs("v1"), rate * (1 - bad)).counter(runs("v1", "error"), rate * bad)
        made.append(scene)
    return [made[0].fires(alert, still, **_where(o)), made[1].silent(alert)]


def _observer(o: DashboardOptions) -> list[Scene]:
    w, step = o.regression_window_s, o.regression_window_s / 20
    long = max(w * 1.2, o.slow_for_s + 20 * o.scrape_interval_s)
    where = {"job": "dspy", "instance": "a:9464"}
    counters: tuple[tuple[str, str, dict[str, str]], ...] = (
        ("DSPyRedactionFailure", f"dspy_redaction_failures_total{{{_WHERE}}}", {}),
        ("DSPyTelemetryDropped", f"dspy_observe_dropped_calls_total{{{_WHERE}}}", {}),
        ("DSPyTelemetryErrors", f'dspy_observe_internal_errors_total{{{_WHERE},site="logs"}}', {"site": "logs"}),
    )
    made = []
    for alert, series, more in counters:
        made.append(
            Scene(f"{alert}: it counts", w * 1.2, step).counter(series, 10 / w).fires(alert, 10, **where, **more)
        )
        made.append(Scene(f"{alert}: it stands still", w * 1.2, step).counter(series, 0).silent(alert))
    for alert, series, limit in (
        ("DSPyOpenCallsHigh", f"dspy_observe_open_calls{{{_WHERE}}}", o.open_calls_limit),
        ("DSPyCardinalityHigh", f"scrape_samples_scraped{{{_WHERE}}}", o.samples_per_target_limit),
    ):
        for name, value in (("too many", limit * 2), ("few", limit // 2)):
            scene = Scene(f"{alert}: {name}", long, o.scrape_interval_s)
            scene.gauge(f"dspy_observe_open_calls{{{_WHERE}}}", 0).gauge(series, value)
            made.append(scene.fires(alert, value, **where) if name == "too many" else scene.silent(alert))
    other = asked("v1", model="other")
    made.append(
        Scene("models beyond the ceiling", w * 1.2, step)
        .counter(other, 1)
        .fires("DSPyLabelOverflow", **where, label="model")
    )
    made.append(Scene("models within the ceiling", w * 1.2, step).counter(asked("v1"), 1).silent("DSPyLabelOverflow"))
    return made


def _alert_path(o: DashboardOptions, every_s: float) -> list[Scene]:
    w, step = o.regression_window_s, o.regression_window_s / 20
    missing = "DSPyWatchdogMissing"
    heard = 'dspy_watchdog_timestamp_seconds{job="dspy-receiver",instance="receiver:9095"}'
    total = ceil((o.watchdog_s * 2 + 60) / every_s) * every_s  # what is shown is how long ago, at an evaluation
    quiet = Scene("the watchdog was heard once and never again", total, total / 60).gauge(heard, 30)
    quiet.fires(missing, quiet.steps * quiet.step_s - 30).fires(WATCHDOG_ALERT)
    never = Scene("a receiver runs and has never heard the watchdog", total, total / 60).gauge(heard, 0)
    never.gauge(f"dspy_rollback_budget_remaining{{{_RECEIVER}}}", 3).fires(missing, never.steps * never.step_s)
    none = Scene("nobody runs a receiver", total, total / 60)
    none.gauge(f"dspy_watchdog_timestamp_seconds{{{_WHERE}}}", 0)
    steady = Scene("the watchdog is heard", total, total / 60).counter(heard, 1)
    am = 'job="alertmanager",instance="alertmanager:9093"'
    pm = 'job="prometheus",instance="localhost:9090"'
    group = "/etc/prometheus/alerts.yml;dspy-money"
    counters: tuple[tuple[str, str, str, dict[str, str]], ...] = (
        (
            "DSPyReceiverRefusing",
            'dspy_alert_requests_total{job="dspy-receiver",instance="receiver:9095",code="%s"}',
            "401", {"job": "dspy-receiver", "instance": "receiver:9095", "code": "401"},
        ),
        (
            "DSPyAlertDeliveryFailing",
            f'alertmanager_notifications_failed_total{{{am},integration="%s"}}',
            "webhook", {"job": "alertmanager", "instance": "alertmanager:9093", "integration": "webhook"},
        ),
        (
            "DSPyRuleEvaluationFailing",
            f'prometheus_rule_evaluation_failures_total{{{pm},rule_group="%s"}}',
            group, {"job": "prometheus", "instance": "localhost:9090", "rule_group": group},
        ),
    )  # fmt: skip
    harmless = {"DSPyReceiverRefusing": "200", "DSPyAlertDeliveryFailing": "email"}
    made = [quiet, never, none.silent(missing), steady.silent(missing)]
    for alert, series, bad, labels in counters:
        made.append(
            Scene(f"{alert}: it counts", w * 1.2, step).counter(series % bad, 10 / w).fires(alert, 10, **labels)
        )
        calm = Scene(f"{alert}: nothing of the kind", w * 1.2, step).counter(series % bad, 0)
        made.append(calm.counter(series % harmless.get(alert, "other;group"), 10 / w).silent(alert))
    known = f"prometheus_notifications_alertmanagers_discovered{{{pm}}}"
    alert, long = "DSPyAlertmanagerMissing", o.target_down_for_s + 20 * o.scrape_interval_s
    made.append(
        Scene("no Alertmanager is known", long, o.scrape_interval_s)
        .gauge(known, 0)
        .fires(alert, job="prometheus", instance="localhost:9090")
    )
    made.append(Scene("an Alertmanager is known", long, o.scrape_interval_s).gauge(known, 1).silent(alert))
    return made
