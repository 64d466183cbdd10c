"""Has a version made things worse? Recordings and alerts that may put the previous version back.

Each alert names ``program``, ``version`` and ``environment``, and stands in one group with the recordings it reads:
rules of a group see the same moment, while those of another group are up to one evaluation older.

A version that has all the traffic has nothing beside it to compare with. So it is judged by two things: a fixed limit,
and how all other versions of the program did within the baseline window (total minus own), where they had enough
calls. A canary is compared with the stable side at the same moment, which also excuses what befalls both.

What the provider does is nobody's regression. Errors of runs are a version's own as far as they are more than the
failures of models that had answered this version before; and while such a model is down for everybody, nobody is
blamed. A model that has *never* answered a version (misspelt, not permitted, a prompt it refuses) is that version's
mistake. This stands in the expressions because Alertmanager's inhibition comes too late for two alerts that begin
together, and because a provider that fails every tenth call is no outage and no regression either.

Long, as are some of its functions, because they are tables of rules, each with its words.
"""

from __future__ import annotations

from dspy_observe.mixin.options import DashboardOptions, duration
from dspy_observe.mixin.promql import (
    FAILED,
    LIVE,
    MODEL,
    PROGRAM,
    VERSION,
    Alert,
    Group,
    Recording,
    environment,
    increase,
    percent,
    selected,
)
from dspy_observe.mixin.promql import number as n

__all__ = ["OUTAGE", "Names", "baselines", "canaries", "providers", "quality", "versions"]

OUTAGE = "program_model:dspy_provider_failures:ratio"
"""Part of a model's calls that fail, for each program that uses it, while the model is down."""

_RUNS = "dspy_program_duration_seconds_count"
_CANARY, _STABLE = 'role="canary"', 'role=~"stable|control"'


class Names:
    """Names of the recorded series, which hold their windows."""

    def __init__(self, o: DashboardOptions) -> None:
        w, b, s, c = (
            duration(window)
            for window in (o.regression_window_s, o.baseline_window_s, o.score_window_s, o.canary_window_s)
        )
        self.calls = f"program_version:dspy_calls:increase{w}"
        self.own_errors = f"program_version:dspy_own_errors:ratio_increase{w}"
        self.provider_errors = f"program_version:dspy_provider_errors:increase{w}"
        self.base_calls = f"program_version:dspy_calls:increase{b}"
        self.base_errors = f"program_version:dspy_errors:increase{b}"
        self.base_asked = f"program_version:dspy_requests:increase{b}"
        self.base_parse = f"program_version:dspy_parse_failures:increase{b}"
        self.base_score_sum = f"program_version:dspy_score_sum:increase{b}"
        self.base_scores = f"program_version:dspy_score:count{b}"
        self.base_cost = f"program_version:dspy_cost_usd:increase{b}"
        self.base_buckets = f"program_version_le:dspy_run_seconds_bucket:increase{b}"
        self.others_errors = f"program_version:dspy_others_errors:ratio_increase{b}"
        self.asked = f"program_version:dspy_requests:increase{w}"
        self.parse = f"program_version:dspy_parse_failures:ratio_increase{w}"
        self.others_parse = f"program_version:dspy_others_parse_failures:ratio_increase{b}"
        self.p95 = f"program_version:dspy_run_seconds:p95_increase{w}"
        self.others_p95 = f"program_version:dspy_others_run_seconds:p95_increase{b}"
        self.runs = f"program_version:dspy_scored_span_calls:increase{s}"
        self.cost = f"program_version:dspy_cost_per_call_usd:ratio_increase{s}"
        self.others_cost = f"program_version:dspy_others_cost_per_call_usd:ratio_increase{b}"
        self.score = f"program_version:dspy_score:mean{s}"
        self.scores = f"program_version:dspy_score:count{s}"
        self.others_score = f"program_version:dspy_others_score:mean{b}"
        self.others_scores = f"program_version:dspy_others_score:count{b}"
        self.canary_calls = f"program_version:dspy_canary_calls:increase{c}"
        self.stable_calls = f"program:dspy_stable_calls:increase{c}"
        self.canary_errors = f"program_version:dspy_canary_errors:ratio_increase{c}"
        self.stable_errors = f"program:dspy_stable_errors:ratio_increase{c}"
        self.canary_z = f"program_version:dspy_canary_errors:zscore{c}"
        self.canary_p95 = f"program_version:dspy_canary_run_seconds:p95_increase{c}"
        self.stable_p95 = f"program:dspy_stable_run_seconds:p95_increase{c}"
        self.canary_score = f"program_version:dspy_canary_score:mean{s}"
        self.canary_scores = f"program_version:dspy_canary_score:count{s}"
        self.stable_score = f"program:dspy_stable_score:mean{s}"
        self.stable_scores = f"program:dspy_stable_score:count{s}"
        self.outage = OUTAGE


def _others(total: str) -> str:
    """What all other versions of the same program have, from a vector by program, version and environment."""
    return f"(sum by ({PROGRAM}) ({total}) - on ({PROGRAM}) group_right () ({total}))"


def _or_zero(expr: str, like: str) -> str:
    """0 where a counter has no series yet but its calls have."""
    return f"({expr} or 0 * ({like}))"


def baselines(o: DashboardOptions) -> Group:
    """What the versions did within the baseline window, and for each version what all others did.

    It reads a day of samples and moves slowly, so it is evaluated once a minute, apart from the alerts.
    """
    names = Names(o)
    b, least = o.baseline_window_s, o.baseline_minimum_calls
    runs = increase(o, _RUNS, b, VERSION, LIVE)
    failed = increase(o, _RUNS, b, VERSION, LIVE, 'status="error"')
    unread = increase(o, "dspy_adapter_failures_total", b, VERSION, 'stage="parse"')
    buckets = increase(o, "dspy_program_duration_seconds_bucket", b, f"{VERSION}, le", LIVE, 'status="ok"')
    total = f"sum by ({PROGRAM}, le) ({names.base_buckets})"
    others_calls = f"({_others(names.base_calls)} >= {least})"
    return Group(
        "dspy-baselines",
        [
            Recording(names.base_calls, runs),
            Recording(names.base_errors, _or_zero(failed, names.base_calls)),
            Recording(names.base_asked, increase(o, "dspy_requests_total", b, VERSION)),
            Recording(names.base_parse, _or_zero(unread, names.base_asked)),
            Recording(names.base_scores, increase(o, "dspy_score_count", b, VERSION, LIVE)),
            Recording(names.base_score_sum, increase(o, "dspy_score_sum", b, VERSION, LIVE)),
            Recording(names.base_cost, increase(o, "dspy_cost_usd_total", b, VERSION)),
            Recording(names.base_buckets, buckets),
            Recording(names.others_errors, f"clamp_min({_others(names.base_errors)}, 0) / {others_calls}"),
            Recording(
                names.others_parse,
                f"clamp_min({_others(names.base_parse)}, 0) / ({_others(names.base_asked)} >= {least})",
            ),
            Recording(names.others_scores, _others(names.base_scores)),
            Recording(names.others_score, f"{_others(names.base_score_sum)} / ({names.others_scores} > 0)"),
            Recording(names.others_cost, f"{_others(names.base_cost)} / {others_calls}"),
            Recording(
                names.others_p95,
                f"""histogram_quantile(0.95, {total} - on ({PROGRAM}, le) group_right () {names.base_buckets})
                and on ({VERSION}) {others_calls}""",
            ),
        ],
        interval_s=max(o.evaluation_interval_s, min(60.0, b / 600)),
    )


def providers(o: DashboardOptions) -> list[Recording]:
    """Which models are down, for whom."""
    by = "program, version, environment, model"
    every = increase(o, "dspy_requests_total", o.regression_window_s, by)
    failed = increase(o, "dspy_requests_total", o.regression_window_s, by, FAILED)
    answered = increase(
        o, "dspy_requests_total", o.provider_memory_s, by, 'status="ok"', offset_s=o.regression_window_s
    )
    broken = increase(o, "dspy_requests_total", o.regression_window_s, by, 'status=~"error|timeout"')
    limit = n(o.provider_failure_ratio)
    least = o.provider_minimum_calls
    model = "environment, model"
    return [
        Recording("program_version_model:dspy_requests:increase", every),
        Recording(
            "program_version_model:dspy_requests_failed:increase",
            _or_zero(failed, "program_version_model:dspy_requests:increase"),
        ),
        Recording(Names(o).provider_errors, f"sum by ({VERSION}) ({broken} and on ({by}) ({answered} > 0))"),
        Recording(
            OUTAGE,
            f"""
            sum by ({MODEL}) (program_version_model:dspy_requests:increase > 0) * 0
            + on ({model}) group_left () (
              (sum by ({model}) (program_version_model:dspy_requests_failed:increase)
               / (sum by ({model}) (program_version_model:dspy_requests:increase) >= {least})) > {limit}
              and on ({model}) (
                (program_version_model:dspy_requests_failed:increase
                 / (program_version_model:dspy_requests:increase > 0)) > {limit}
                and on ({by}) ({answered} > 0)
              )
            )""",
        ),
    ]


def versions(o: DashboardOptions) -> Group:
    """Every version against a fixed limit and against the others."""
    names = Names(o)
    w = o.regression_window_s
    errors = increase(o, _RUNS, w, VERSION, LIVE, 'status="error"')
    unread = increase(o, "dspy_adapter_failures_total", w, VERSION, 'stage="parse"')
    rules: list[Recording | Alert] = [
        *providers(o),
        Recording(names.calls, increase(o, _RUNS, w, VERSION, LIVE)),
        Recording(
            names.own_errors,
            f"""clamp_min({_or_zero(errors, names.calls)} - on ({VERSION})
            {_or_zero(names.provider_errors, names.calls)}, 0) / ({names.calls} > 0)""",
        ),
        Recording(names.asked, increase(o, "dspy_requests_total", w, VERSION)),
        Recording(names.parse, f"{_or_zero(unread, names.asked)} / ({names.asked} > 0)"),
        _worse(
            o, names, "DSPyVersionErrorRegression", "errors", (names.own_errors, names.others_errors),
            (o.error_limit, o.error_increase), "runs end in an error",
        ),
        _worse(
            o, names, "DSPyVersionParseRegression", "parse", (names.parse, names.others_parse),
            (o.parse_limit, o.parse_increase), "replies cannot be parsed",
        ),
    ]  # fmt: skip
    return Group("dspy-version-regressions", rules)


def _worse(
    o: DashboardOptions,
    names: Names,
    alert: str,
    signal: str,
    series: tuple[str, str],
    bounds: tuple[float, float],
    words: str,
) -> Alert:
    own, others = series
    limit, rise = bounds
    return Alert(
        alert,
        f"""
        {own} > {n(limit)}
        and on ({VERSION}) {names.calls} >= {o.minimum_calls}
        unless on ({VERSION}) ({own} <= {others} + {n(rise)})
        unless on ({PROGRAM}) {names.outage}""",
        "critical",
        f"{{{{ $labels.program }}}} {{{{ $labels.version }}}}: {{{{ $value | humanizePercentage }}}} of {words}",
        f"""Within {duration(o.regression_window_s)} more than {percent(limit)} of {words}, over at least
        {o.minimum_calls} runs, and more than {percent(rise)} above what the other versions of {{{{ $labels.program }}}}
        ({{{{ $labels.environment }}}}) had within {duration(o.baseline_window_s)}. The provider is up.""",
        "quality",
        o.regression_for_s,
        signal,
    )


def quality(o: DashboardOptions) -> Group:
    """Scores, evaluations, latency and cost of every version against the others."""
    names = Names(o)
    s = o.score_window_s
    buckets = increase(
        o, "dspy_program_duration_seconds_bucket", o.regression_window_s, f"{VERSION}, le", LIVE, 'status="ok"'
    )
    return Group(
        "dspy-version-quality",
        [
            Recording(names.scores, increase(o, "dspy_score_count", s, VERSION, LIVE)),
            Recording(names.score, f"{increase(o, 'dspy_score_sum', s, VERSION, LIVE)} / ({names.scores} > 0)"),
            Recording(names.p95, f"histogram_quantile(0.95, {buckets})"),
            Recording(names.runs, increase(o, _RUNS, s, VERSION, LIVE)),
            Recording(names.cost, f"{increase(o, 'dspy_cost_usd_total', s, VERSION)} / ({names.runs} > 0)"),
            _score_alert(o, names),
            _evaluation_alert(o),
            _evidence_alert(o),
            *_slower_or_dearer(o, names),
        ],
    )


def _z_of_means(low: tuple[str, str], high: tuple[str, str], join: str) -> str:
    """How many standard errors lie between two means of scores in [0, 1].

    The variance of such scores is at most m (1 - m); https://en.wikipedia.org/wiki/Bhatia%E2%80%93Davis_inequality.
    So the figure errs on the careful side, and is exact for scores of 0 and 1.
    """
    (mean, count), (mean_other, count_other) = low, high
    return f"""
    ({mean_other} - {join} {mean}) / sqrt(
      clamp_min({mean_other} * (1 - {mean_other}), 0.0001) / {count_other}
      + {join} clamp_min({mean} * (1 - {mean}), 0.0001) / {count})"""


def _score_alert(o: DashboardOptions, names: Names) -> Alert:
    z = _z_of_means((names.score, names.scores), (names.others_score, names.others_scores), f"on ({VERSION})")
    return Alert(
        "DSPyVersionScoreRegression",
        f"""
        {names.score} < on ({VERSION}) (1 - {n(o.score_drop)}) * {names.others_score}
        and on ({VERSION}) {names.scores} >= {o.minimum_scores}
        and on ({VERSION}) {names.others_scores} >= {o.minimum_scores}
        and on ({VERSION}) {z} > {n(o.z_limit)}
        unless on ({PROGRAM}) {names.outage}""",
        "critical",
        'Answers of {{ $labels.program }} {{ $labels.version }} score {{ $value | printf "%.3f" }}, less than before',
        f"""The mean score within {duration(o.score_window_s)} is more than {percent(o.score_drop)} below that of the
        other versions within {duration(o.baseline_window_s)}, by more than {n(o.z_limit)} standard errors, with at
        least {o.minimum_scores} scores on each side.""",
        "quality",
        o.score_for_s,
        "score",
    )


def _evaluation_alert(o: DashboardOptions) -> Alert:
    """The canary set: the deployed version against the best of those that were ever deployed, itself included."""
    last = environment(o, f"max by ({VERSION}, dataset) ({selected(o, 'dspy_evaluation_score')})")
    lately = environment(
        o,
        f"max by ({VERSION}, dataset) "
        f"(avg_over_time({selected(o, 'dspy_evaluation_score')}[{duration(o.baseline_window_s)}]))",
    )
    known = environment(
        o,
        f"max by ({VERSION}) (max_over_time({selected(o, 'dspy_deployed_version_info')}"
        f"[{duration(o.baseline_window_s)}]))",
    )
    served = environment(
        o,
        f"max by ({VERSION}) (max_over_time({selected(o, 'dspy_serving_version_info', _STABLE)}"
        f"[{duration(o.baseline_window_s)}]))",
    )
    now = environment(o, f"max by ({VERSION}) ({selected(o, 'dspy_deployed_version_info')} == 1)")
    serving = environment(o, f"max by ({VERSION}) ({selected(o, 'dspy_serving_version_info', _STABLE)} == 1)")
    return Alert(
        "DSPyEvaluationBelowBaseline",
        f"""
        ({last} and on ({VERSION}) ({now} or {serving}))
        < on ({PROGRAM}, dataset) group_left ()
          (1 - {n(o.score_drop)}) * max by ({PROGRAM}, dataset) ({lately} and on ({VERSION}) ({known} or {served}))""",
        "critical",
        '{{ $labels.program }} {{ $labels.version }} scores {{ $value | printf "%.3f" }} on {{ $labels.dataset }}',
        f"""The last evaluation of the deployed version on {{{{ $labels.dataset }}}} is more than
        {percent(o.score_drop)}
        below the best mean that a deployed version had on it within {duration(o.baseline_window_s)}.""",
        "quality",
        o.score_for_s,
        "evaluation",
    )


def _evidence_alert(o: DashboardOptions) -> Alert:
    return Alert(
        "DSPyQualityRegressed",
        environment(
            o,
            f"max by ({VERSION}) (" + selected(o, "dspy_quality_verdict_info", 'verdict="regressed"') + " == 1)",
        )
        + f" unless on ({PROGRAM}) {OUTAGE}",
        "critical",
        "The sequential test says that {{ $labels.program }} {{ $labels.version }} has regressed",
        """The monitor's evidence from scores, which may be looked at any time without crying wolf more often, has
        crossed its limit. dspy_quality_evidence shows how it grew.""",
        "quality",
        0.0,
        "evidence",
    )


def _slower_or_dearer(o: DashboardOptions, names: Names) -> list[Alert]:
    """For people: against the past, latency and cost are as often the provider's doing or another mix of questions."""
    enough = f"and on ({VERSION}) {names.calls} >= {o.minimum_calls} unless on ({PROGRAM}) {names.outage}"
    return [
        Alert(
            "DSPyVersionLatencyRegression",
            f"{names.p95} > on ({VERSION}) {n(o.latency_factor)} * {names.others_p95} {enough}",
            "warning",
            "{{ $labels.program }} {{ $labels.version }} is slow: p95 {{ $value | humanizeDuration }}",
            f"""p95 of good runs within {duration(o.regression_window_s)} is more than {n(o.latency_factor)} times that
            of the other versions within {duration(o.baseline_window_s)}.""",
            "quality",
            o.slow_for_s,
        ),
        Alert(
            "DSPyVersionCostRegression",
            f"{names.cost} > on ({VERSION}) {n(o.cost_factor)} * {names.others_cost} {enough}",
            "warning",
            '{{ $labels.program }} {{ $labels.version }} is dear: ${{ $value | printf "%.4f" }} a run',
            f"""Cost per run within {duration(o.score_window_s)} is more than {n(o.cost_factor)} times that of the other
            versions within {duration(o.baseline_window_s)}.""",
            "quality",
            o.slow_for_s,
        ),
    ]


def canaries(o: DashboardOptions) -> Group:
    """A canary against the stable side at the same moment."""
    names = Names(o)
    c, s = o.canary_window_s, o.score_window_s

    def sides(metric: str, window: float, *matchers: str, le: str = "") -> tuple[str, str]:
        return (
            increase(o, metric, window, VERSION + le, _CANARY, *matchers),
            increase(o, metric, window, PROGRAM + le, _STABLE, *matchers),
        )

    errors = sides(_RUNS, c, 'status="error"')
    buckets = sides("dspy_program_duration_seconds_bucket", c, 'status="ok"', le=", le")
    counts, sums = sides("dspy_score_count", s), sides("dspy_score_sum", s)
    calls = sides(_RUNS, c)
    rules: list[Recording | Alert] = [
        Recording(names.canary_calls, calls[0]),
        Recording(names.stable_calls, calls[1]),
        Recording(names.canary_errors, f"{_or_zero(errors[0], names.canary_calls)} / ({names.canary_calls} > 0)"),
        Recording(names.stable_errors, f"{_or_zero(errors[1], names.stable_calls)} / ({names.stable_calls} > 0)"),
        Recording(names.canary_z, _z_of_ratios(names)),
        Recording(names.canary_p95, f"histogram_quantile(0.95, {buckets[0]})"),
        Recording(names.stable_p95, f"histogram_quantile(0.95, {buckets[1]})"),
        Recording(names.canary_scores, counts[0]),
        Recording(names.stable_scores, counts[1]),
        Recording(names.canary_score, f"{sums[0]} / ({names.canary_scores} > 0)"),
        Recording(names.stable_score, f"{sums[1]} / ({names.stable_scores} > 0)"),
    ]
    return Group("dspy-canary-regressions", [*rules, *_canary_alerts(o, names)])


def _z_of_ratios(names: Names) -> str:
    """The two-proportion test: difference over its pooled standard error."""
    left = f"on ({PROGRAM}) group_left ()"
    p, q, a, b = names.canary_errors, names.stable_errors, names.canary_calls, names.stable_calls
    pooled = f"(({p} * {a} + {left} ({q} * {b})) / ({a} + {left} {b}))"
    return f"""
    ({p} - {left} {q}) / sqrt({pooled} * (1 - {pooled}) * (1 / ({a} > 0) + {left} (1 / ({b} > 0))))"""


def _canary_alerts(o: DashboardOptions, names: Names) -> list[Alert]:
    left = f"on ({PROGRAM}) group_left ()"
    enough = f"""
    and on ({VERSION}) {names.canary_calls} >= {o.canary_minimum_calls}
    and on ({PROGRAM}) {names.stable_calls} >= {o.canary_minimum_calls}
    unless on ({PROGRAM}) {names.outage}"""
    window, least = duration(o.canary_window_s), o.canary_minimum_calls
    z = _z_of_means((names.stable_score, names.stable_scores), (names.canary_score, names.canary_scores), left)
    who = "Canary {{ $labels.version }} of {{ $labels.program }}"
    return [
        Alert(
            "DSPyCanaryErrorRegression",
            f"""
            {names.canary_z} > {n(o.z_limit)}
            and on ({VERSION}) ({names.canary_errors} - {left} {names.stable_errors}) > {n(o.canary_error_difference)}
            {enough}""",
            "critical",
            f"{who} fails more often than stable",
            f"""Within {window} the error ratio is {{{{ $value | humanize }}}} standard errors above that of the stable
            side (limit {n(o.z_limit)}) and more than {percent(o.canary_error_difference)} higher, with {least} runs on
            each side.""",
            "quality",
            o.regression_for_s,
            "errors",
        ),
        Alert(
            "DSPyCanaryScoreRegression",
            f"""
            {names.canary_score} < {left} (1 - {n(o.score_drop)}) * {names.stable_score}
            and on ({VERSION}) {names.canary_scores} >= {o.minimum_scores}
            and on ({PROGRAM}) {names.stable_scores} >= {o.minimum_scores}
            and on ({VERSION}) {z} < -{n(o.z_limit)}
            unless on ({PROGRAM}) {names.outage}""",
            "critical",
            f'{who} scores {{{{ $value | printf "%.3f" }}}}, less than stable',
            f"""The mean score within {duration(o.score_window_s)} is more than {percent(o.score_drop)} below that of
            the stable side, by more than {n(o.z_limit)} standard errors, with at least {o.minimum_scores} scores on
            each side.""",
            "quality",
            o.score_for_s,
            "score",
        ),
        Alert(
            "DSPyCanaryLatencyRegression",
            f"{names.canary_p95} > {left} {n(o.latency_factor)} * {names.stable_p95} {enough}",
            "critical",
            f"{who} is slow: p95 {{{{ $value | humanizeDuration }}}}",
            f"p95 of good runs within {window} is more than {n(o.latency_factor)} times that of the stable side.",
            "quality",
            o.slow_for_s,
            "latency",
        ),
        Alert(
            "DSPyCanaryCostRegression",
            f"{_canary_cost(o, names)} {enough}",
            "critical",
            f'{who} is dear: ${{{{ $value | printf "%.4f" }}}} a run',
            f"Cost per run within {window} is more than {n(o.cost_factor)} times that of the versions beside it.",
            "quality",
            o.slow_for_s,
            "cost",
        ),
    ]


def _canary_cost(o: DashboardOptions, names: Names) -> str:
    """Cost has no role, so the canary's version is told from the others by its runs; a version is one or the other."""
    dollars = increase(o, "dspy_cost_usd_total", o.canary_window_s, VERSION)
    own = f"{dollars} / on ({VERSION}) ({names.canary_calls} > 0)"
    rest = f"sum by ({PROGRAM}) ({dollars} unless on ({VERSION}) ({names.canary_calls} > 0))"
    return f"""
    {own} > on ({PROGRAM}) group_left () {n(o.cost_factor)} * ({rest} / on ({PROGRAM}) ({names.stable_calls} > 0))"""
