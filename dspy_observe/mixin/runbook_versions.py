"""Runbook sections of alerts about versions, objectives and quality."""

from __future__ import annotations

from typing import Final

from dspy_observe.mixin.runbook_section import BACK, DECISIONS, DIFF, LOG, STATUS, Section

__all__ = ["SECTIONS"]

_HISTORY = "dspy-observe registry history $PROGRAM -e $ENVIRONMENT"
_ROLLOUT = "dspy-observe rollout status $PROGRAM -e $ENVIRONMENT"
_STOP = "dspy-observe rollout stop $PROGRAM -e $ENVIRONMENT"
_CANARY_DIFF = "dspy-observe registry diff $PROGRAM $VERSION -e $ENVIRONMENT"
"""From what runs to the canary."""
_STATUSES = 'sum by (version, status) (rate(dspy_program_duration_seconds_count{program="$PROGRAM"}[5m]))'
_MODULES = (
    "topk(5, sum by (version, module, status) (rate(dspy_module_duration_seconds_count"
    '{program="$PROGRAM",status!="ok"}[5m])))'
)
_PARSE = 'sum by (version, adapter, stage) (rate(dspy_adapter_failures_total{program="$PROGRAM"}[5m]))'
_SCORES = (
    'sum by (version, source) (rate(dspy_score_sum{program="$PROGRAM"}[1h])) / '
    'sum by (version, source) (rate(dspy_score_count{program="$PROGRAM"}[1h]))'
)
_P95 = (
    "histogram_quantile(0.95, sum by (le, version, module) "
    '(rate(dspy_module_duration_seconds_bucket{program="$PROGRAM"}[5m])))'
)
_COST = (
    'sum by (version, model) (rate(dspy_cost_usd_total{program="$PROGRAM"}[1h])) / on (version) group_left () '
    'sum by (version) (rate(dspy_program_duration_seconds_count{program="$PROGRAM"}[1h]))'
)
_TOKENS = 'sum by (version, kind) (rate(dspy_tokens_total{program="$PROGRAM"}[1h]))'
_AUTOMATIC = (
    "The receiver gets this alert at once and puts the previous version back, unless a decision says why not. If "
    f"it was held or rejected and you are sure, roll back by hand: `{BACK}`. Then keep the bad version in "
    "quarantine, compile it again, and let `dspy-observe gate` pass it before it is deployed."
)

SECTIONS: Final = {
    "DSPyVersionErrorRegression": Section(
        "One version's runs end in an error too often: beyond the fixed limit, and more than the program's other "
        "versions did within the baseline window. Refusals (429), time-outs and cancelled calls do not count.",
        "Callers get exceptions instead of answers.",
        (DECISIONS, STATUS, LOG, DIFF, _STATUSES, _MODULES),
        _AUTOMATIC + " If both versions fail, the cause is outside: a tool, the data, the calling code.",
    ),
    "DSPyVersionParseRegression": Section(
        "Replies to one version's prompts cannot be parsed into its output fields much more often than with the "
        "others.",
        "Each such reply costs a second call (DSPy asks again with another adapter) or an error.",
        (DECISIONS, LOG, DIFF, _PARSE, _STATUSES),
        _AUTOMATIC + " Usual causes: an instruction that asks for another format, a demo with broken fields, a model "
        "that was changed without recompiling.",
    ),
    "DSPyVersionScoreRegression": Section(
        "The mean of online scores of one version is more than 5 % below that of the other versions, and chance is no "
        "explanation.",
        "Answers are worse; callers see no error.",
        (DECISIONS, STATUS, _SCORES, _HISTORY),
        _AUTOMATIC + " Look first whether the source of the scores changed: another judge, another group of users.",
    ),
    "DSPyVersionLatencyRegression": Section(
        "p95 of a version's good runs is well above that of the versions before it. Compared with the past, so it may "
        "be the provider's day as well; it does not roll back.",
        "Users wait; callers with time-outs may give up.",
        (STATUS, LOG, DIFF, _P95, "program_model:dspy_lm_seconds:p95_increase1h"),
        "Compare the LM's own latency: if that rose for all programs, wait or change the model. Else look for "
        "more calls "
        "or longer prompts in the diff, and roll back by hand: `" + BACK + "`.",
    ),
    "DSPyVersionCostRegression": Section(
        "A run of this version costs well more than a run of the versions before it.",
        "The bill grows with the same traffic.",
        (LOG, DIFF, _COST, _TOKENS),
        "More demos, longer instructions, another model or more retries show in the diff and in the tokens by kind. If "
        "the quality is not worth it, roll back by hand: `" + BACK + "`.",
    ),
    "DSPyCanaryErrorRegression": Section(
        "The canary fails significantly more often than the stable side at the same moment.",
        "The part of the traffic that the canary gets sees errors; the rest is well.",
        (_ROLLOUT, DECISIONS, _CANARY_DIFF, _MODULES),
        "On the verdict regressed the router takes the canary's traffic away by itself. The receiver decides about the "
        "version if it is the deployed one, else it says stale. If the share is not 0 yet: `" + _STOP + "`; what is "
        "deployed then answers everybody.",
    ),
    "DSPyCanaryScoreRegression": Section(
        "The canary's answers score more than 5 % less than those of the stable side, and chance is no explanation.",
        "The part of the traffic that the canary gets sees worse answers.",
        (_ROLLOUT, DECISIONS, _SCORES),
        "As for DSPyCanaryErrorRegression. Both sides are scored by the same source at the same time, so a changed "
        "judge is no explanation.",
    ),
    "DSPyCanaryLatencyRegression": Section(
        "p95 of the canary's good runs is well above that of the stable side at the same moment.",
        "The part of the traffic that the canary gets waits longer.",
        (_ROLLOUT, _CANARY_DIFF, _P95),
        "The provider treats both sides alike, so the version is the cause: more calls, longer prompts, a slower "
        "model. Take latency out of the option rollback_signals if that is a price you pay.",
    ),
    "DSPyCanaryCostRegression": Section(
        "A run of the canary costs well more than one of the versions beside it.",
        "The bill grows once it is promoted.",
        (_ROLLOUT, _CANARY_DIFF, _COST, _TOKENS),
        "Take cost out of the option rollback_signals if the better answers are worth it; else leave the version.",
    ),
    "DSPyEvaluationBelowBaseline": Section(
        "The deployed version's last evaluation on a held-out set is more than 5 % below the best mean that a "
        "deployed version, itself included, had on the same set.",
        "Answers are worse than what was released. On a set of fewer than about a hundred examples chance alone moves "
        "the mean by so much; take evaluation out of the option rollback_signals then.",
        (
            DECISIONS,
            _HISTORY,
            'dspy_evaluation_score{program="$PROGRAM"}',
        ),
        _AUTOMATIC + " If the version's own score fell without a deployment, the model behind its name has changed: "
        "pin it, or compile again.",
    ),
    "DSPyQualityRegressed": Section(
        "The monitor's sequential test has enough evidence that the version's scores are below its baseline.",
        "Answers are worse; callers see no error.",
        (DECISIONS, 'dspy_quality_evidence{program="$PROGRAM"}', _SCORES),
        _AUTOMATIC,
    ),
    "DSPyErrorBudgetBurnFast": Section(
        "Runs fail so often that 2 % of the month's error budget went within the last hour.",
        "Many callers get no answer right now.",
        (_STATUSES, _MODULES, "program_model:dspy_provider_failures:ratio", STATUS),
        "Find the status that grows. error: see DSPyVersionErrorRegression and the modules. timeout and rate_limited: "
        "see DSPyProviderOutage and DSPyRateLimited.",
    ),
    "DSPyErrorBudgetBurnSlow": Section(
        "Runs fail often enough that 5 % of the month's error budget went within six hours.",
        "Some callers get no answer, for hours already.",
        (_STATUSES, _MODULES, LOG),
        "As for DSPyErrorBudgetBurnFast; look for what changed six hours ago.",
    ),
    "DSPyErrorBudgetBurnDay": Section(
        "10 % of the month's error budget went within a day.",
        "A steady trickle of failures.",
        (_STATUSES, _MODULES, LOG),
        "Work on it this week: the module that fails most is the place to begin.",
    ),
    "DSPyErrorBudgetBurnDays": Section(
        "The error budget is used up as fast as it grows, for three days.",
        "Nothing is left for the next incident.",
        (_STATUSES, "program:dspy_error_budget:left30d"),
        "Put reliability before features, or agree on another objective (option success_objective).",
    ),
    "DSPyLatencyBudgetBurn": Section(
        "Far too many runs take longer than the latency objective.",
        "Users wait; callers with time-outs give up and try again, which makes it worse.",
        (_P95, "program_model:dspy_lm_seconds:p95_increase1h", "dspy_in_flight_calls"),
        "If the LM is slow, change the model or its provider; if calls queue, lower num_threads; if one version is "
        "slow, see DSPyVersionLatencyRegression.",
    ),
    "DSPyNoTraffic": Section(
        "A program that had steady traffic has had none for a while.",
        "Either nobody can reach it, or its metrics are lost.",
        (
            'sum by (instance) (rate(dspy_program_duration_seconds_count{program="$PROGRAM"}[5m]))',
            'up{job="dspy"}',
        ),
        "Call the service once. If it answers and nothing is counted, look for DSPyTargetDown and DSPyTelemetryErrors.",
    ),
    "DSPyInvalidScores": Section(
        "Scores were given that are no number from 0 to 1.",
        "They count for nothing, so the monitor learns less than you think.",
        ('increase(dspy_invalid_scores_total{program="$PROGRAM"}[1h])',),
        "Find the caller of Observer.score; scale what it gives to 0..1, and give no score where there is none.",
    ),
}
