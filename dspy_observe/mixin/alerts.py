"""All alerts: what people should know, and, from :mod:`regressions`, what may put the previous version back.

Every ratio has a minimum of traffic. Every threshold comes from the options. Each alert has a section of the same name
in the runbook, which :mod:`runbook` holds. The file and its functions are long because they
are tables.
"""

from __future__ import annotations

from collections.abc import Iterator

from dspy_observe.conventions import OVERFLOW_LABEL, WATCHDOG_ALERT
from dspy_observe.mixin import regressions, rules
from dspy_observe.mixin.options import BurnWindow, DashboardOptions, duration
from dspy_observe.mixin.promql import (
    LIVE,
    PROGRAM,
    VERSION,
    Alert,
    Group,
    environment,
    grown,
    increase,
    percent,
    selected,
)
from dspy_observe.mixin.promql import number as n

__all__ = ["alert_groups", "alerts", "burn_limit", "rule_groups", "settled", "slow_limit"]

_HOUR_S = 3600.0
_RUNS = "dspy_program_duration_seconds_count"
_WHO = "{{ $labels.program }} ({{ $labels.environment }})"


def rule_groups(o: DashboardOptions) -> list[Group]:
    """All groups of ``rules.yml``."""
    return rules.recordings(o)


def alert_groups(o: DashboardOptions) -> list[Group]:
    """All groups of ``alerts.yml``, with the recordings that have to be as fresh as the alerts that read them."""
    return [
        regressions.versions(o),
        regressions.canaries(o),
        regressions.quality(o),
        Group("dspy-objectives", _objectives(o)),
        Group("dspy-providers", _providers(o)),
        Group("dspy-money", _money(o)),
        Group("dspy-agents", _agents(o)),
        Group("dspy-serving", _serving(o)),
        Group("dspy-rollbacks", _rollbacks(o)),
        Group("dspy-observer", _observer(o)),
        Group("dspy-alert-path", _alert_path(o)),
    ]


def alerts(o: DashboardOptions) -> Iterator[Alert]:
    """Every alert, in the order of the file."""
    for group in alert_groups(o):
        yield from (rule for rule in group.rules if isinstance(rule, Alert))


_NEARLY_ALL = 0.99
"""A budget so large that its multiple passes 1 would else make an alert that can never fire."""


def burn_limit(o: DashboardOptions, window: BurnWindow) -> float:
    """The part of failed runs beyond which the error budget burns too fast."""
    return round(min(window.factor * (1 - o.success_objective), _NEARLY_ALL), 9)


def slow_limit(o: DashboardOptions) -> float:
    """The part of slow runs beyond which the latency budget burns too fast."""
    return round(min(o.burn_windows[0].factor * (1 - o.latency_objective), _NEARLY_ALL), 9)


def settled(o: DashboardOptions) -> float:
    """Seconds for which a rollback is in sight: longer than its errors, which fill a window and a half, may last."""
    return max(o.settle_s, 2 * o.regression_window_s)


def _objectives(o: DashboardOptions) -> list[Alert]:
    made = []
    names = ("DSPyErrorBudgetBurnFast", "DSPyErrorBudgetBurnSlow", "DSPyErrorBudgetBurnDay", "DSPyErrorBudgetBurnDays")
    for place, window in enumerate(o.burn_windows):
        name = names[place] if place < len(names) else f"DSPyErrorBudgetBurn{place + 1}"
        limit = n(burn_limit(o, window))
        long, short = rules.burn(window.long_s), rules.burn(window.short_s)
        made.append(
            Alert(
                name,
                f"""
                {long} > {limit} and on ({PROGRAM}) {short} > {limit}
                and on ({PROGRAM}) {rules.burn_calls(window.long_s)} >= {o.burn_minimum_calls}""",
                "critical" if place < 2 else "warning",  # noqa: PLR2004 - the first two pairs page
                f"{_WHO} burns its error budget {n(window.factor)} times too fast",
                f"""{{{{ $value | humanizePercentage }}}} of runs failed within {duration(window.long_s)}, and still
                within {duration(window.short_s)}; {percent(1 - o.success_objective)} is the budget.""",
                "overview",
                window.for_s,
            )
        )
    first = o.burn_windows[0]
    limit = n(slow_limit(o))
    made.append(
        Alert(
            "DSPyLatencyBudgetBurn",
            f"""
            {rules.slow(first.long_s)} > {limit} and on ({PROGRAM}) {rules.slow(first.short_s)} > {limit}
            and on ({PROGRAM}) {rules.burn_calls(first.long_s)} >= {o.burn_minimum_calls}""",
            "critical",
            f"{_WHO} is too slow",
            f"""{{{{ $value | humanizePercentage }}}} of runs took longer than {n(o.latency_objective_s)} s within
            {duration(first.long_s)}, and still within {duration(first.short_s)}.""",
            "overview",
            first.for_s,
        )
    )
    made.append(
        Alert(
            "DSPyNoTraffic",
            f"""
            {increase(o, _RUNS, o.no_traffic_s, PROGRAM, LIVE)} == 0
            and on ({PROGRAM}) {increase(o, _RUNS, _HOUR_S, PROGRAM, LIVE, offset_s=o.no_traffic_s)}
            >= {o.burn_minimum_calls}""",
            "warning",
            f"{_WHO} has no more traffic",
            f"No run within {duration(o.no_traffic_s)}, {o.burn_minimum_calls} or more in the hour before.",
            "overview",
        )
    )
    return made


def _providers(o: DashboardOptions) -> list[Alert]:
    w = o.regression_window_s
    by = "environment, model"
    limited = increase(o, "dspy_requests_total", w, f"program, {by}", 'status="rate_limited"')
    asked = increase(o, "dspy_requests_total", w, f"program, {by}")
    others = increase(o, "dspy_fallbacks_total", w, "environment, from_model, to_model")
    every = increase(o, "dspy_requests_total", w, "environment")
    again = increase(o, "dspy_retries_total", w, f"program, {by}")
    return [
        Alert(
            "DSPyProviderOutage",
            f"{regressions.OUTAGE} > 0",
            "critical",
            "{{ $labels.model }} is down for {{ $labels.program }} ({{ $labels.environment }})",
            f"""{{{{ $value | humanizePercentage }}}} of all calls to {{{{ $labels.model }}}} failed within
            {duration(w)},
            although it answered before. Rollbacks of {{{{ $labels.program }}}} wait.""",
            "lm",
            o.provider_for_s,
        ),
        Alert(
            "DSPyRateLimited",
            f"{limited} / ({asked} >= {o.provider_minimum_calls}) > {n(o.rate_limited_ratio)}",
            "warning",
            "{{ $labels.model }} refuses {{ $value | humanizePercentage }} of the calls of {{ $labels.program }} (429)",
            f"""More than {percent(o.rate_limited_ratio)} of LM calls were rate-limited within {duration(w)}. Waiting
            and falling back change latency, cost and scores, so rollbacks for these wait.""",
            "lm",
            o.rate_limited_for_s,
        ),
        Alert(
            "DSPyFallbackRateHigh",
            f"""{others} / on (environment) group_left () ({every} >= {o.provider_minimum_calls})
            > {n(o.fallback_ratio)}""",
            "critical",
            "{{ $labels.to_model }} stands in for {{ $labels.from_model }} in {{ $value | humanizePercentage }} "
            "of calls",
            f"More than {percent(o.fallback_ratio)} of LM calls were answered by a second choice within {duration(w)}.",
            "lm",
            o.provider_for_s,
        ),
        Alert(
            "DSPyRetryStorm",
            f"{again} / ({asked} >= {o.provider_minimum_calls}) > {n(o.retry_ratio)}",
            "warning",
            "{{ $labels.program }} asks {{ $labels.model }} again and again",
            f"{{{{ $value | humanize }}}} retries a call within {duration(w)}, more than {n(o.retry_ratio)}.",
            "lm",
            o.slow_for_s,
        ),
        Alert(
            "DSPyUnmeteredModel",
            f"""{increase(o, "dspy_unmetered_requests_total", _HOUR_S, "environment, model")}
            >= {o.provider_minimum_calls}""",
            "info",
            "{{ $labels.model }} reports no usage",
            "{{ $value | humanize }} calls of the last hour came without token counts; tokens and cost are too low.",
            "lm",
            o.slow_for_s,
        ),
        Alert(
            "DSPyUnpricedModel",
            f"""{increase(o, "dspy_unpriced_requests_total", _HOUR_S, "environment, model")}
            >= {o.provider_minimum_calls}""",
            "info",
            "{{ $labels.model }} has no known price",
            "{{ $value | humanize }} calls of the last hour could not be priced; cost is too low.",
            "lm",
            o.slow_for_s,
        ),
    ]


def _usual(series: str) -> str:
    """A series at the same hour a week ago, or its mean over the last day where there is no such week."""
    return f"({series} offset 1w or avg_over_time({series}[1d]))"


def _money(o: DashboardOptions) -> list[Alert]:
    users = f"max by ({PROGRAM}) ({selected(o, 'dspy_user_tokens_max')})"
    usual_users = f"avg_over_time({selected(o, 'dspy_user_tokens_max')}[1d])"
    return [
        Alert(
            "DSPyCostSpike",
            f"""{rules.COST} > on ({PROGRAM}) {n(o.cost_spike_factor)} * {_usual(rules.COST)}
            and {rules.COST} > {n(o.cost_spike_minimum_usd)}""",
            "warning",
            f'{_WHO} costs ${{{{ $value | printf "%.2f" }}}} an hour',
            f"More than {n(o.cost_spike_factor)} times the same hour a week ago (the last day's mean, if there is "
            f"none).",
            "lm",
            o.slow_for_s,
        ),
        Alert(
            "DSPyDailyBudgetForecast",
            f"24 * avg_over_time({rules.COST}[1h]) > on ({PROGRAM}) {rules.BUDGET}",
            "warning",
            f'{_WHO} is on the way to ${{{{ $value | printf "%.2f" }}}} a day',
            "At the last hour's rate the day costs more than the program's daily budget.",
            "lm",
            o.slow_for_s,
        ),
        Alert(
            "DSPyProgramTokensExploding",
            f"""{rules.TOKENS} > on ({PROGRAM}) {n(o.token_spike_factor)} * {_usual(rules.TOKENS)}
            and {rules.TOKENS} >= {o.token_spike_minimum}""",
            "warning",
            f"{_WHO} uses {{{{ $value | humanize }}}} tokens an hour",
            f"More than {n(o.token_spike_factor)} times the same hour a week ago (the last day's mean, if there "
            f"is none).",
            "lm",
            o.slow_for_s,
        ),
        Alert(
            "DSPyUserTokensExploding",
            f"""
            {environment(o, f"{users} > {o.user_tokens_limit}")}
            or {
                environment(
                    o,
                    f'''{users} > {n(o.user_spike_factor)} * max by ({PROGRAM}) ({usual_users})
            and {users} >= {o.user_spike_minimum}''',
                )
            }""",
            "warning",
            f"One user of {_WHO} has used {{{{ $value | humanize }}}} tokens",
            f"""The heaviest user's tokens within the budget's window exceed {o.user_tokens_limit}, or
            {n(o.user_spike_factor)} times what the heaviest user has had over the last day.""",
            "lm",
        ),
        Alert(
            "DSPyUserOverBudget",
            f"{increase(o, 'dspy_user_budget_exceeded_total', _HOUR_S, PROGRAM)} > 0",
            "info",
            f"Users of {_WHO} went over their token budget",
            "{{ $value | humanize }} times within the last hour.",
            "lm",
        ),
        Alert(
            "DSPyCacheHitDrop",
            f"""{rules.CACHE_HITS} < on ({PROGRAM}) {n(1 - o.cache_hit_drop)} * {_usual(rules.CACHE_HITS)}
            and {rules.CACHE_CALLS} >= {o.cache_minimum_calls}""",
            "info",
            f"DSPy's cache answers only {{{{ $value | humanizePercentage }}}} of the calls of {_WHO}",
            f"Down by more than {percent(o.cache_hit_drop)} of what it was a week ago (the last day, if there is no "
            f"such week).",
            "lm",
            o.slow_for_s,
        ),
        Alert(
            "DSPyDiskCacheLarge",
            f"max by (environment, job, instance) ({selected(o, 'dspy_cache_dir_bytes')}) > "
            f"{n(o.cache_dir_limit_bytes)}",
            "warning",
            "DSPy's disk cache on {{ $labels.instance }} holds {{ $value | humanize1024 }}B",
            f"More than {n(o.cache_dir_limit_bytes / 1e9)} GB.",
            "lm",
            o.target_down_for_s,
        ),
    ]


def _agents(o: DashboardOptions) -> list[Alert]:
    w = max(o.regression_window_s, o.canary_window_s)
    by = "program, environment, tool"
    failed = increase(o, "dspy_tool_duration_seconds_count", w, by, 'status=~"error|timeout|rate_limited"')
    used = increase(o, "dspy_tool_duration_seconds_count", w, by)
    asked = increase(o, "dspy_lm_duration_seconds_count", w, VERSION)
    runs = increase(o, _RUNS, w, VERSION)
    invalid = increase(o, "dspy_invalid_scores_total", _HOUR_S, PROGRAM)
    return [
        Alert(
            "DSPyToolErrors",
            f"{failed} / ({used} >= {o.provider_minimum_calls}) > {n(o.tool_error_ratio)}",
            "warning",
            "Tool {{ $labels.tool }} of {{ $labels.program }} fails in {{ $value | humanizePercentage }} of calls",
            f"More than {percent(o.tool_error_ratio)} of its calls failed within {duration(w)}.",
            "modules",
            o.slow_for_s,
        ),
        Alert(
            "DSPyAgentLoop",
            f"{asked} / ({runs} >= {o.provider_minimum_calls}) > {n(o.lm_calls_per_run_limit)}",
            "warning",
            "{{ $labels.program }} {{ $labels.version }} asks its model {{ $value | humanize }} times a run",
            f"More than {n(o.lm_calls_per_run_limit)} LM calls a run within {duration(w)}.",
            "modules",
            o.slow_for_s,
        ),
        Alert(
            "DSPyInvalidScores",
            f"{invalid} > 0",
            "info",
            f"Scores of {_WHO} are refused",
            "{{ $value | humanize }} scores of the last hour were no number from 0 to 1; they count for nothing.",
            "quality",
        ),
    ]


def _serving(o: DashboardOptions) -> list[Alert]:
    stale = f"max by (job, instance, {PROGRAM}) ({selected(o, 'dspy_registry_stale_seconds')})"
    reloads = increase(o, "dspy_registry_events_total", o.canary_window_s, PROGRAM, 'event="reload_error"')
    ours = f"max by (job, instance) (max_over_time({selected(o, 'dspy_observe_open_calls')}[1h]))"
    return [
        Alert(
            "DSPyTargetDown",
            f"up == 0 and on (job, instance) {ours}",
            "critical",
            "{{ $labels.instance }} ({{ $labels.job }}) is not scraped",
            "It exported DSPy metrics within the last hour. While it is down, its alerts are silent or resolved.",
            "self",
            o.target_down_for_s,
        ),
        Alert(
            "DSPyRegistryStale",
            f"{environment(o, stale)} > {n(o.registry_stale_s)}",
            "critical",
            "{{ $labels.instance }} has not read the registry of {{ $labels.program }} for "
            "{{ $value | humanizeDuration }}",
            f"More than {duration(o.registry_stale_s)}; a deployment or rollback does not reach this process.",
            "registry",
        ),
        Alert(
            "DSPyVersionSkew",
            "program:dspy_served_versions:count > 1",
            "warning",
            f"{_WHO} is served in {{{{ $value }}}} versions",
            f"Processes disagree about the stable version for longer than {duration(o.version_skew_s)}.",
            "registry",
            o.version_skew_s,
        ),
        Alert(
            "DSPyReloadFailing",
            f"{reloads} > 0",
            "critical",
            f"A process cannot load the deployed version of {_WHO}",
            f"""{{{{ $value | humanize }}}} failed loads within {duration(o.canary_window_s)}; the process answers with
            its old version.""",
            "registry",
        ),
    ]


def _rollbacks(o: DashboardOptions) -> list[Alert]:
    by = "program, environment, trigger"
    w = o.settle_s
    done = increase(o, "dspy_rollbacks_total", settled(o), PROGRAM, 'outcome="complete"')
    failed = increase(o, "dspy_rollbacks_total", w, by, 'outcome="error"')
    refused = increase(o, "dspy_decisions_total", w, f"{by}, outcome", 'outcome=~"held|rejected"', 'trigger!="manual"')
    complete = increase(o, "dspy_rollbacks_total", w, by, 'outcome="complete"')
    still = increase(o, _RUNS, o.regression_window_s, PROGRAM, LIVE, 'status="error"')
    runs = increase(o, _RUNS, o.regression_window_s, PROGRAM, LIVE)
    budget = f"min by ({PROGRAM}) ({selected(o, 'dspy_rollback_budget_remaining')})"
    frozen = f"max by ({PROGRAM}) ({selected(o, 'dspy_rollback_frozen')})"
    return [
        Alert(
            "DSPyRollbackFailed",
            f"{failed} > 0",
            "critical",
            f"A rollback of {_WHO} failed",
            "Asked for by {{ $labels.trigger }}. The bad version is still deployed.",
            "registry",
        ),
        Alert(
            "DSPyRollbackRefused",
            f"{refused} > 0",
            "warning",
            f"A rollback of {_WHO} was {{{{ $labels.outcome }}}}",
            "Asked for by {{ $labels.trigger }}. The decision says why; the version is still deployed.",
            "registry",
        ),
        Alert(
            "DSPyRollbackDone",
            f"{complete} > 0",
            "info",
            f"{_WHO} was rolled back",
            "Asked for by {{ $labels.trigger }}. The version that was left is quarantined.",
            "registry",
        ),
        Alert(
            "DSPyRollbackDidNotHelp",
            f"""
            {still} / ({runs} >= {o.minimum_calls}) > {n(o.error_limit)}
            and on ({PROGRAM}) {done} > 0
            and on ({PROGRAM}) (time() - {
                environment(
                    o,
                    f'''max by ({PROGRAM}) (
            {selected(o, "dspy_deployment_timestamp_seconds")})''',
                )
            } > {n(o.regression_window_s * 1.5)})""",
            "critical",
            f"{_WHO} still fails after a rollback",
            """{{ $value | humanizePercentage }} of runs end in an error, though the version has been changed: the
            version was not the cause.""",
            "registry",
        ),
        Alert(
            "DSPyRollbackBudgetSpent",
            environment(o, f"{budget} <= 0"),
            "critical",
            f"{_WHO} may not be rolled back any more this hour",
            "The limit of automatic rollbacks an hour is used up. The next regression needs a person.",
            "registry",
        ),
        Alert(
            "DSPyRollbackFrozen",
            environment(o, f"{frozen} == 1"),
            "warning",
            f"Rollbacks of {_WHO} are frozen",
            "Nobody but a person can roll back until it is lifted.",
            "registry",
            o.slow_for_s,
        ),
    ]


_CAPPED = (
    ("dspy_requests_total", "model"),
    ("dspy_program_duration_seconds_count", "program"),
    ("dspy_program_duration_seconds_count", "version"),
    ("dspy_module_duration_seconds_count", "module"),
    ("dspy_tool_duration_seconds_count", "tool"),
)


def _overflown(o: DashboardOptions, metric: str, label: str) -> str:
    series = grown(o, metric, o.regression_window_s, f'{label}="{OVERFLOW_LABEL}"')
    return f'label_replace(sum by (job, instance) ({series}) > 0, "label", "{label}", "", "")'


def _observer(o: DashboardOptions) -> list[Alert]:
    where = "job, instance"
    w = o.regression_window_s
    dropped = f"sum by ({where}) ({grown(o, 'dspy_observe_dropped_calls_total', w)})"
    errors = f"sum by ({where}, site) ({grown(o, 'dspy_observe_internal_errors_total', w)})"
    failures = f"sum by ({where}) ({grown(o, 'dspy_redaction_failures_total', w)})"
    ours = f"max by ({where}) ({selected(o, 'dspy_observe_open_calls')})"
    overflow = " or ".join(_overflown(o, *which) for which in _CAPPED)
    return [
        Alert(
            "DSPyRedactionFailure",
            f"{failures} > 0",
            "critical",
            "Redaction fails on {{ $labels.instance }}",
            "{{ $value | humanize }} values were dropped because a detector raised. Nothing left the process "
            "unredacted.",
            "self",
        ),
        Alert(
            "DSPyTelemetryDropped",
            f"{dropped} > 0",
            "warning",
            "{{ $labels.instance }} gives up calls that it observes",
            "{{ $value | humanize }} open calls were dropped from the ledger; their figures are missing.",
            "self",
        ),
        Alert(
            "DSPyTelemetryErrors",
            f"{errors} > 0",
            "warning",
            "The observer on {{ $labels.instance }} fails in {{ $labels.site }}",
            "{{ $value | humanize }} errors were kept from the program; figures may be missing.",
            "self",
        ),
        Alert(
            "DSPyOpenCallsHigh",
            f"{ours} > {o.open_calls_limit}",
            "warning",
            "{{ $labels.instance }} holds {{ $value }} calls open",
            "Calls begin and do not end; the ledger's ceiling is near.",
            "self",
            o.slow_for_s,
        ),
        Alert(
            "DSPyCardinalityHigh",
            f"scrape_samples_scraped > {o.samples_per_target_limit} and on ({where}) {ours}",
            "warning",
            "{{ $labels.instance }} exports {{ $value }} samples",
            "Each scrape stalls the program for about 10 µs a sample.",
            "self",
            o.slow_for_s,
        ),
        Alert(
            "DSPyLabelOverflow",
            overflow,
            "info",
            "{{ $labels.instance }} books values of the label {{ $labels.label }} as other",
            "There are more distinct values than max_label_values; the rest cannot be told apart.",
            "self",
        ),
    ]


def _alert_path(o: DashboardOptions) -> list[Alert]:
    w = o.regression_window_s
    refusals = grown(o, "dspy_alert_requests_total", w, 'code=~"[45].."')
    refused = f"sum by (job, instance, code) ({refusals})"
    seen = f"max(max_over_time({selected(o, 'dspy_watchdog_timestamp_seconds')}[1d]))"
    budgets = f"count({selected(o, 'dspy_rollback_budget_remaining')})"
    return [
        Alert(
            WATCHDOG_ALERT,
            "vector(1)",
            "none",
            "The alert path works",
            "Always fires. The receiver notes when it last heard it.",
            "registry",
        ),
        Alert(
            "DSPyWatchdogMissing",
            f"time() - ({seen} > 0 or {seen} and on () {budgets}) > {n(o.watchdog_s)}",
            "critical",
            "Alerts do not reach the receiver",
            f"The watchdog was last heard {{{{ $value | humanizeDuration }}}} ago; the limit is "
            f"{duration(o.watchdog_s)}. "
            "No alert can roll back.",
            "registry",
            o.watchdog_s / 2,
        ),
        Alert(
            "DSPyReceiverRefusing",
            f"{refused} > 0",
            "critical",
            "The receiver answers {{ $labels.code }} to alerts",
            f"{{{{ $value | humanize }}}} requests within {duration(w)}. 4xx is not tried again, 5xx is.",
            "registry",
        ),
        Alert(
            "DSPyAlertDeliveryFailing",
            f"""sum by (job, instance, integration) (
            increase(alertmanager_notifications_failed_total{{integration="webhook"}}[{duration(w)}])) > 0""",
            "critical",
            "Alertmanager cannot deliver to a webhook",
            f"{{{{ $value | humanize }}}} notifications failed within {duration(w)}.",
            "registry",
        ),
        Alert(
            "DSPyAlertmanagerMissing",
            "min by (job, instance) (prometheus_notifications_alertmanagers_discovered) < 1",
            "critical",
            "Prometheus knows no Alertmanager",
            "Alerts fire and nobody is told.",
            "registry",
            o.target_down_for_s,
        ),
        Alert(
            "DSPyRuleEvaluationFailing",
            f"""sum by (job, instance, rule_group) (
            increase(prometheus_rule_evaluation_failures_total{{rule_group=~".*dspy-.*"}}[{duration(w)}])) > 0""",
            "critical",
            "Rules of {{ $labels.rule_group }} cannot be evaluated",
            "A rule that fails never fires.",
            "registry",
        ),
    ]
