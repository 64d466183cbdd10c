"""Unit tests of the alerts that may roll back: each fires where it should, and is silent where it should not."""

from __future__ import annotations

from math import ceil, sqrt

from dspy_observe.mixin.options import DashboardOptions
from dspy_observe.mixin.promql import percent
from dspy_observe.mixin.scenes import Scene, beyond, within

__all__ = ["canary_scenes", "canary_score_scenes", "quality_scenes", "version_scenes"]

_WHERE = 'job="dspy",instance="a:9464"'


def runs(version: str, status: str = "ok", role: str = "stable", where: str = _WHERE, program: str = "qa") -> str:
    """The call counter of a version."""
    labels = f'{where},program="{program}",version="{version}",role="{role}",status="{status}"'
    return f"dspy_program_duration_seconds_count{{{labels}}}"


def asked(version: str, status: str = "ok", model: str = "m1", where: str = _WHERE, program: str = "qa") -> str:
    """The LM call counter of a version."""
    labels = f'{where},program="{program}",version="{version}",model="{model}",status="{status}"'
    return f"dspy_requests_total{{{labels}}}"


def _qa(o: DashboardOptions, version: str = "v2") -> dict[str, str]:
    return {"program": "qa", "version": version, "environment": o.default_environment}


def version_scenes(o: DashboardOptions) -> list[Scene]:
    """Errors and unreadable replies of versions."""
    w, step = o.regression_window_s, o.regression_window_s / 20
    busy = 4 * max(o.minimum_calls, o.baseline_minimum_calls, o.provider_minimum_calls) / w
    before, after = 2 * w + 120, w * 1.2 + o.regression_for_s + o.provider_for_s
    total = before + after
    error, parse = "DSPyVersionErrorRegression", "DSPyVersionParseRegression"
    errors, unreads = max(o.error_limit, o.error_increase), max(o.parse_limit, o.parse_increase)
    half, most, unreadable = beyond(0.5, errors), beyond(0.6, errors), beyond(0.5, unreads)
    often, as_often, seldom = beyond(0.1, o.error_limit), beyond(0.3, o.error_limit), beyond(0.2, o.parse_limit)

    def scene(name: str, rate: float = busy) -> Scene:
        return (
            Scene(name, total, step)
            .counter(asked("v1"), (rate, before), (0, after))
            .counter(asked("v2"), (0, before), (rate, after))
        )

    def moved(made: Scene, bad: float, bad_before: float = 0.0, rate: float = busy, where: str = _WHERE) -> Scene:
        made.counter(runs("v1", where=where), (rate * (1 - bad_before), before), (0, after))
        made.counter(runs("v1", "error", where=where), (rate * bad_before, before), (0, after))
        made.counter(runs("v2", where=where), (0, before), (rate * (1 - bad), after))
        return made.counter(runs("v2", "error", where=where), (0, before), (rate * bad, after))

    replicas = scene("two replicas serve the same bad version: one alert, and no rule breaks")
    for instance in ("a", "b"):
        where = f'job="dspy",instance="{instance}:9464"'
        moved(replicas, half, where=where)
        replicas.gauge(
            f'dspy_serving_version_info{{{where},program="qa",version="v2",environment="production",role="stable"}}', 1
        )
        replicas.gauge(f'dspy_deployed_version_info{{{where},program="qa",version="v2",environment="production"}}', 1)
    alone = Scene("the only version there ever was fails too often", total, step)
    alone.counter(runs("v1"), busy * (1 - often)).counter(runs("v1", "error"), busy * often)
    alone.counter(asked("v1"), busy)
    staging = 'job="dspy",instance="s:9464",environment="staging"'
    elsewhere = moved(moved(scene("a version fails in staging and does well in production"), 0.0), most, where=staging)
    unread = moved(scene("replies of the new version cannot be parsed"), 0.0)
    unread.counter(_failures("v2", "parse"), (0, before), (busy * unreadable, after)).counter(
        _failures("v1", "parse"), 0
    )
    unformatted = moved(scene("prompts cannot be formatted, which is no parse failure"), 0.0)
    unformatted.counter(_failures("v2", "format"), (0, before), (busy * unreadable, after))
    always = moved(scene("replies of all versions are as hard to parse"), 0.0)
    always.counter(_failures("v1", "parse"), (busy * seldom, before), (0, after))
    always.counter(_failures("v2", "parse"), (0, before), (busy * seldom, after))
    few = 0.5 * min(o.minimum_calls, o.provider_minimum_calls) / w
    return [
        moved(scene(f"the new version has all traffic and fails in {percent(half)} of runs"), half)
        .fires(error, half, **_qa(o))
        .silent(parse, "DSPyProviderOutage", "DSPyCanaryErrorRegression"),
        alone.fires(error, often, **_qa(o, "v1")),
        replicas.fires(error, half, **_qa(o)).silent("DSPyVersionSkew"),
        elsewhere.fires(error, most, **(_qa(o) | {"environment": "staging"})),
        moved(scene("the version before failed as often"), as_often, as_often).silent(error),
        moved(scene("a few failures are within the limit"), within(0.02, errors)).silent(error, parse),
        moved(scene("too little traffic to judge", few), 1.0, rate=few).silent(error, parse, "DSPyProviderOutage"),
        unread.fires(parse, unreadable, **_qa(o)).silent(error),
        unformatted.silent(parse),
        always.silent(parse),
        *_outages(o, before, after, busy, step),
    ]


def _failures(version: str, stage: str) -> str:
    labels = f'{_WHERE},program="qa",version="{version}",adapter="ChatAdapter",stage="{stage}"'
    return f"dspy_adapter_failures_total{{{labels}}}"


def _outages(o: DashboardOptions, before: float, after: float, busy: float, step: float) -> list[Scene]:
    """Whose fault is a failing model?"""
    error, outage = "DSPyVersionErrorRegression", "DSPyProviderOutage"
    total = before + after
    down = Scene("the provider goes down under the deployed version", total, step)
    down.counter(asked("v1"), (busy, before), (0, after)).counter(asked("v1", "error"), (0, before), (busy, after))
    down.counter(runs("v1"), (busy, before), (0, after)).counter(runs("v1", "error"), (0, before), (busy, after))
    typo = Scene("the new version asks a model that does not exist", total, step)
    typo.counter(asked("v1"), (busy, before), (0, after)).counter(runs("v1"), (busy, before), (0, after))
    typo.counter(asked("v2", "error", "m2"), (0, before), (busy, after))
    typo.counter(runs("v2", "error"), (0, before), (busy, after))
    refused = Scene("the new version's prompts are refused by the model that the old one still uses", total, step)
    refused.counter(asked("v1"), busy).counter(runs("v1"), busy)
    refused.counter(asked("v2", "error"), (0, before), (busy / 8, after))
    refused.counter(runs("v2", "error"), (0, before), (busy / 2, after))
    both = Scene("the provider goes down under two programs, one of which has just got a new version", total, step)
    both.counter(asked("v1"), (busy, before), (0, after)).counter(runs("v1"), (busy, before), (0, after))
    both.counter(asked("v2", "error"), (0, before), (busy, after))
    both.counter(runs("v2", "error"), (0, before), (busy, after))
    both.counter(asked("v7", program="chat"), (busy, before), (0, after))
    both.counter(asked("v7", "error", program="chat"), (0, before), (busy, after))
    part = within(0.1, o.provider_failure_ratio)
    some = Scene(f"the provider fails {percent(part)} of calls, whoever asks", total, step)
    for of in (asked, runs):
        some.counter(of("v1"), busy * (1 - part)).counter(of("v1", "error"), (0, before), (busy * part, after))
    who = {"environment": o.default_environment, "model": "m1"}
    return [
        some.silent(error, outage),
        down.fires(outage, 1.0, program="qa", **who).silent(error),
        typo.fires(error, 1.0, **_qa(o)).silent(outage),
        refused.fires(error, 1.0, **_qa(o)).silent(outage),
        both.fires(outage, 1.0, program="qa", **who).fires(outage, 1.0, program="chat", **who).silent(error),
    ]


def canary_scenes(o: DashboardOptions) -> list[Scene]:
    """A canary beside a stable version."""
    c, step = o.canary_window_s, o.canary_window_s / 20
    good, bad = 0.02, beyond(0.3, o.canary_error_difference + 0.02)
    pooled = (bad + good) / 2
    n = _enough(o, 8 * o.canary_minimum_calls, bad - good, 2 * pooled * (1 - pooled))
    z = (bad - good) / sqrt(2 * pooled * (1 - pooled) / n)
    rate = n / c
    total = c * 1.2 + max(o.regression_for_s, o.slow_for_s) + 2 * o.evaluation_interval_s
    who = _qa(o)

    def both(name: str, canary: float, stable: float, rate: float = rate) -> Scene:
        made = Scene(name, total, step)
        for version, role, bad in (("v2", "canary", canary), ("v1", "stable", stable)):
            made.counter(runs(version, role=role), rate * (1 - bad)).counter(runs(version, "error", role), rate * bad)
            made.counter(asked(version), rate)
        return made

    times, dollars_a_run = _slowness(o), _price(o)
    slow = both(f"the canary is {times:g} times as slow", 0, 0)
    even = both("both are as slow, and as dear", 0, 0)
    slower = (str(times / 2), str(times))
    for made, seconds, dollars in ((slow, slower, dollars_a_run), (even, ("0.5", "1.0"), 0.01)):
        for version, role, (low, high) in (("v2", "canary", seconds), ("v1", "stable", ("0.5", "1.0"))):
            for le, part in ((low, 0.0), (high, rate), ("+Inf", rate)):
                labels = f'{_WHERE},program="qa",version="{version}",role="{role}",status="ok",le="{le}"'
                made.counter(f"dspy_program_duration_seconds_bucket{{{labels}}}", part)
            cost = dollars if role == "canary" else 0.01
            made.counter(f'dspy_cost_usd_total{{{_WHERE},program="qa",version="{version}",model="m1"}}', rate * cost)
    few = 0.5 * o.canary_minimum_calls / c
    alerts = ["DSPyCanaryErrorRegression", "DSPyCanaryLatencyRegression", "DSPyCanaryCostRegression"]
    return [
        both(f"the canary fails {bad / good:g} times as often", bad, good).fires(alerts[0], z, **who),
        both("both fail as often: that is not the canary", 0.3, 0.3).silent(*alerts),
        both("the canary has too little traffic", 0.9, 0.0, few).silent(*alerts),
        slow.fires(alerts[1], _p95(times), **who).fires(alerts[2], dollars_a_run, **who).silent(alerts[0]),
        even.silent(*alerts),
    ]


def _enough(o: DashboardOptions, usual: float, difference: float, variance: float) -> float:
    """How many observations a side needs, so that a difference lies well beyond the options' standard errors."""
    return max(usual, ceil(variance * (1.5 * o.z_limit / difference) ** 2))


def _slowness(o: DashboardOptions) -> float:
    """How many times as slow a slow version is."""
    return 5.0 if o.latency_factor <= 4 else 10.0 * ceil(o.latency_factor / 8)  # noqa: PLR2004 - well within 5


def _p95(times: float) -> float:
    """What Prometheus makes of runs that all lie in the bucket up to so many seconds, whose lower bound is half."""
    return times * 0.975


def _price(o: DashboardOptions) -> float:
    """US dollars that a run of a dear version costs; the others' cost 0.01."""
    return 0.03 if o.cost_factor <= 2.4 else ceil(1.25 * o.cost_factor) / 100  # noqa: PLR2004 - well within 3 times


_USUAL_SCORE = 0.9


def _worse(o: DashboardOptions, usual: float) -> float:
    """A mean score that is worse than the options allow."""
    limit = _USUAL_SCORE * (1 - o.score_drop)
    return usual if usual <= 0.95 * limit else round(limit / 2, 4)


def _close(o: DashboardOptions, usual: float) -> float:
    """A mean score that is lower, and no more so than the options allow."""
    return max(usual, round(_USUAL_SCORE * (1 - o.score_drop / 2), 4))


def _scores_needed(o: DashboardOptions, mean: float) -> float:
    """How many scores a side needs, so that this mean is significantly lower than the usual one."""
    variance = mean * (1 - mean) + _USUAL_SCORE * (1 - _USUAL_SCORE)
    return _enough(o, 8 * o.minimum_scores, _USUAL_SCORE - mean, variance)


def scores(version: str, role: str = "stable") -> tuple[str, str]:
    """Sum and count of a version's scores."""
    labels = f'{_WHERE},program="qa",version="{version}",role="{role}",source="user"'
    return f"dspy_score_sum{{{labels}}}", f"dspy_score_count{{{labels}}}"


def _scored(made: Scene, version: str, mean: float, rate: float, role: str = "stable") -> Scene:
    total, count = scores(version, role)
    return made.counter(total, rate * mean).counter(count, rate)


def canary_score_scenes(o: DashboardOptions) -> list[Scene]:
    """Scores of a canary beside those of a stable version."""
    s = o.score_window_s
    total, step = s * 1.2 + o.score_for_s + 2 * o.evaluation_interval_s, s / 60
    alert, bad = "DSPyCanaryScoreRegression", _worse(o, 0.6)
    rate = _scores_needed(o, bad) / s

    def both(name: str, canary: float, stable: float, rate: float) -> Scene:
        return _scored(_scored(Scene(name, total, step), "v2", canary, rate, "canary"), "v1", stable, rate)

    return [
        both("the canary's answers score less", bad, 0.9, rate).fires(alert, bad, **_qa(o)),
        both("the canary's answers score nearly the same", _close(o, 0.88), 0.9, rate).silent(alert),
        both("too few scores", 0.2, 0.9, 0.5 * o.minimum_scores / s).silent(alert),
    ]


def quality_scenes(o: DashboardOptions, every_s: float) -> list[Scene]:
    """Scores, evaluations, the monitor's verdict, latency and cost of versions; looked at every so many seconds."""
    s = o.score_window_s
    step, bad = s / 60, _worse(o, 0.6)
    rate = max(_scores_needed(o, bad), 8 * max(o.minimum_calls, o.baseline_minimum_calls)) / s
    total = s * 1.2 + max(o.score_for_s, o.slow_for_s) + 2 * o.evaluation_interval_s + 120
    alert, who = "DSPyVersionScoreRegression", _qa(o)

    def both(name: str, new: float, old: float, rate: float = rate) -> Scene:
        return _scored(_scored(Scene(name, total, step), "v2", new, rate), "v1", old, rate)

    return [
        both("answers of the new version score less", bad, 0.9).fires(alert, bad, **who),
        both("answers of the new version score as well", _close(o, 0.89), 0.9).silent(alert),
        both("too few scores to tell", 0.2, 0.9, 0.5 * o.minimum_scores / s).silent(alert),
        *_verdicts(o),
        *_evaluations(o, every_s),
        *_slow_and_dear(o),
    ]


def _verdicts(o: DashboardOptions) -> list[Scene]:
    alert, step = "DSPyQualityRegressed", o.evaluation_interval_s

    def verdict(name: str, words: str) -> Scene:
        made = Scene(name, 10 * step, step)
        for each in ("ok", "suspect", "regressed", "insufficient_data", "global_cause"):
            labels = f'{_WHERE},program="qa",version="v2",verdict="{each}"'
            made.gauge(f"dspy_quality_verdict_info{{{labels}}}", 1 if each == words else 0)
        return made

    return [
        verdict("the sequential test has made up its mind", "regressed").fires(alert, **_qa(o)),
        verdict("the sequential test is suspicious", "suspect").silent(alert),
    ]


def _evaluations(o: DashboardOptions, every_s: float) -> list[Scene]:
    alert, bad = "DSPyEvaluationBelowBaseline", _worse(o, 0.8)
    step = max(o.scrape_interval_s, o.score_for_s / 10)
    half = 10 * step + o.score_for_s + 2 * every_s  # it is pending from one evaluation on, and seen at a later one

    def evaluated(name: str, **means: float) -> Scene:
        made = Scene(name, 2 * half, step)
        for version, mean in means.items():
            labels = f'{_WHERE},program="qa",version="{version}",dataset="canary"'
            made.gauge(f"dspy_evaluation_score{{{labels}}}", mean)
        for version, phases in (("v1", ((1, half), (0, half))), ("v2", ((0, half), (1, half)))):
            labels = f'{_WHERE},program="qa",version="{version}",environment="{o.default_environment}",role="stable"'
            made.gauge(f"dspy_serving_version_info{{{labels}}}", *phases)
        return made

    return [
        evaluated("the deployed version does worse on the canary set than the one before", v1=0.9, v2=bad).fires(
            alert, bad, dataset="canary", **_qa(o)
        ),
        evaluated(f"within {percent(o.score_drop)} of the one before", v1=0.9, v2=_close(o, 0.87)).silent(alert),
        evaluated("only a candidate that was never deployed is better", v1=0.8, v2=0.8, v3=0.99).silent(alert),
    ]


def _slow_and_dear(o: DashboardOptions) -> list[Scene]:
    s, w = o.score_window_s, o.regression_window_s
    before, after = s, s * 1.1 + o.slow_for_s
    rate = 8 * max(o.minimum_calls * s / w, o.baseline_minimum_calls) / s
    times, price = _slowness(o), _price(o)

    def compared(name: str, bound: float, dollars: float) -> Scene:
        made = Scene(name, before + after, w / 10)
        for version, first, second in (("v1", rate, 0.0), ("v2", 0.0, rate)):
            made.counter(runs(version), (first, before), (second, after))
            top = bound if version == "v2" else 1.0
            for le in ("0.5", "1.0", str(times / 2), str(times), "+Inf"):
                part = 1.0 if float(le) >= top else 0.0
                labels = f'{_WHERE},program="qa",version="{version}",role="stable",status="ok",le="{le}"'
                made.counter(
                    f"dspy_program_duration_seconds_bucket{{{labels}}}", (first * part, before), (second * part, after)
                )
            cost = dollars if version == "v2" else 0.01
            made.counter(
                f'dspy_cost_usd_total{{{_WHERE},program="qa",version="{version}",model="m1"}}',
                (first * cost, before), (second * cost, after),
            )  # fmt: skip
        return made

    slow, dear = "DSPyVersionLatencyRegression", "DSPyVersionCostRegression"
    return [
        compared("slower and dearer than before", times, price)
        .fires(slow, _p95(times), **_qa(o))
        .fires(dear, price, **_qa(o)),
        compared("as fast and as cheap as before", 1.0, 0.01).silent(slow, dear),
    ]
