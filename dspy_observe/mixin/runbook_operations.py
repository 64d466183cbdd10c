"""Runbook sections of alerts about providers, money, tools, serving, rollbacks, the observer and the alert path."""

from __future__ import annotations

from typing import Final

from dspy_observe.mixin.runbook_section import BACK, DECISIONS, LOG, STATUS, UNFREEZE, Section

__all__ = ["SECTIONS"]

_DOCTOR = "dspy-observe doctor"
_MODEL = "sum by (model, status) (rate(dspy_requests_total[5m]))"
_COST_BY = "topk(10, sum by (program, version, model) (increase(dspy_cost_usd_total[1h])))"
_TOKENS_BY = "topk(10, sum by (program, model, kind) (increase(dspy_tokens_total[1h])))"
_SITES = "topk(10, sum by (instance, site) (increase(dspy_observe_internal_errors_total[1h])))"
_SERIES = 'topk(10, count by (__name__) ({__name__=~"dspy_.*"}))'
_VERSIONS = 'max by (instance, version, role) (dspy_serving_version_info{program="$PROGRAM"}) == 1'

SECTIONS: Final = {
    "DSPyProviderOutage": Section(
        "A model that has answered before fails in a large part of all calls.",
        "Programs without a second model fail; those with one cost and wait more. Rollbacks wait, as no version is to "
        "blame.",
        (
            _MODEL,
            "program_model:dspy_provider_failures:ratio",
            "sum by (from_model, to_model) (rate(dspy_fallbacks_total[5m]))",
        ),
        "Look at the provider's status page. Give the program a second model (dspy_observe.serving.FallbackLM), or "
        "change it there. Do not roll back: the previous version asks the same model.",
    ),
    "DSPyRateLimited": Section(
        "The provider refuses more than 1 % of calls (429).",
        "Calls are tried again after a wait, which costs latency and adds load; some fail.",
        (_MODEL, "sum by (program) (rate(dspy_requests_total[5m]))", 'dspy_in_flight_calls{kind="lm"}'),
        "Lower num_threads of batch jobs first, put a limiter in front (aiolimiter, as in examples/service), then ask "
        "the provider for a higher quota. Rollbacks for latency, cost and scores wait meanwhile.",
    ),
    "DSPyFallbackRateHigh": Section(
        "A second model answers in place of the first in a noticeable part of calls: the sign that the first is down.",
        "Answers come from a model that the program was not compiled for; cost and quality differ.",
        (
            "sum by (from_model, to_model, reason) (rate(dspy_fallbacks_total[5m]))",
            _MODEL,
        ),
        "FallbackLM has switched by itself; watch quality and cost. If the first model stays down, make the second "
        "the first and compile for it. If the reason is a time-out, raise attempt_timeout_s.",
    ),
    "DSPyRetryStorm": Section(
        "Calls are tried again more often than they are made.",
        "The load on a provider that is in trouble is doubled, and so is the waiting.",
        ("sum by (program, model) (rate(dspy_retries_total[5m]))", _MODEL),
        "Lower num_retries and num_threads; give the program a FallbackLM.",
    ),
    "DSPyUnmeteredModel": Section(
        "A model's replies come without token counts.",
        "Tokens, cost, budgets and user limits are too low.",
        ("sum by (model) (increase(dspy_unmetered_requests_total[1h]))",),
        "For streams through LiteLLM set Cost(meter_litellm_streams=True). Else ask the provider for usage in replies.",
    ),
    "DSPyUnpricedModel": Section(
        "A model's price is not known.",
        "Cost and budget forecasts are too low.",
        ("sum by (model) (increase(dspy_unpriced_requests_total[1h]))",),
        "Give a price: Cost(price=lambda record: dollars).",
    ),
    "DSPyCostSpike": Section(
        "A program costs a multiple of what it costs at this hour.",
        "Money.",
        (_COST_BY, _TOKENS_BY, 'sum by (version) (rate(dspy_program_duration_seconds_count{program="$PROGRAM"}[5m]))'),
        "More traffic: is it wanted? The same traffic: which version, model or kind of token grew? See "
        "DSPyVersionCostRegression, DSPyAgentLoop, DSPyCacheHitDrop, DSPyUserTokensExploding.",
    ),
    "DSPyDailyBudgetForecast": Section(
        "If the day goes on like the last hour, the program goes over its daily budget.",
        "Money.",
        (_COST_BY, "program:dspy_cost_budget:usd_per_day"),
        "As for DSPyCostSpike; if the budget is wrong, set daily_budgets_usd in the options and generate again.",
    ),
    "DSPyProgramTokensExploding": Section(
        "A program uses a multiple of the tokens that it uses at this hour.",
        "Money, and rate limits for everybody else.",
        (
            _TOKENS_BY,
            (
                "histogram_quantile(0.95, sum by (le, module) "
                '(rate(dspy_module_duration_seconds_bucket{program="$PROGRAM"}[5m])))'
            ),
        ),
        "Limit max_tokens in the signature's LM, cut inputs off before the program, and look for an agent that loops.",
    ),
    "DSPyUserTokensExploding": Section(
        "One user's tokens exceed what a person uses, or what the heaviest user usually has.",
        "Money; the others' rate limits; perhaps a leaked key or an attack that fills prompts.",
        (
            'dspy_user_tokens_max{program="$PROGRAM"}',
            'increase(dspy_user_budget_exceeded_total{program="$PROGRAM"}[1h])',
        ),
        "The user's pseudonym is on spans and log lines: find him there. Cut requests off in the application, limit "
        "max_tokens in the signature's LM, and set a budget that refuses (dspy_observe.serving, user budgets).",
    ),
    "DSPyUserOverBudget": Section(
        "Users have used up their token budget.",
        "They are refused or warned, as the budget says.",
        ('increase(dspy_user_budget_exceeded_total{program="$PROGRAM"}[1h])',),
        "Nothing, if the budget is right. Many users at once: it is too small, or prompts have grown.",
    ),
    "DSPyCacheHitDrop": Section(
        "DSPy's cache answers far fewer calls than it used to.",
        "Cost and latency rise.",
        (
            'sum by (version, result) (rate(dspy_cache_requests_total{program="$PROGRAM"}[1h]))',
            "sum by (program) (rate(dspy_cost_saved_usd_total[1h]))",
            "dspy-observe cache status",
        ),
        "A new version asks new prompts: that passes. Else look for something that changes in every prompt (a time, "
        "an id), a lost cache folder (DSPY_CACHEDIR), or cache=False.",
    ),
    "DSPyDiskCacheLarge": Section(
        "DSPy's disk cache exceeds 10 GB.",
        "The volume fills up; then caching, the registry's file store and logs fail together.",
        ("dspy-observe cache status", "max by (instance) (dspy_cache_dir_bytes)"),
        "Prune what nobody asked for in a week: `dspy-observe cache prune --max-size 10GB --older-than 7d`. Put it in "
        "a timer.",
    ),
    "DSPyToolErrors": Section(
        "A tool fails in a large part of its calls.",
        "Agents go on without it, ask more often, and answer worse.",
        (
            'sum by (tool, status) (rate(dspy_tool_duration_seconds_count{program="$PROGRAM"}[10m]))',
            (
                "histogram_quantile(0.95, sum by (le, tool) "
                '(rate(dspy_tool_duration_seconds_bucket{program="$PROGRAM"}[10m])))'
            ),
        ),
        "Mend what the tool stands for. If it began with a deployment, its arguments may have changed: see the diff.",
    ),
    "DSPyAgentLoop": Section(
        "A run asks its model far more often than an agent should.",
        "Money and latency; answers are rarely better.",
        (
            'sum by (version, module) (rate(dspy_module_duration_seconds_count{program="$PROGRAM"}[10m]))',
            'sum by (tool, status) (rate(dspy_tool_duration_seconds_count{program="$PROGRAM"}[10m]))',
        ),
        "Lower max_iters; mend the tool that fails; roll back if it began with a version: `" + BACK + "`.",
    ),
    "DSPyTargetDown": Section(
        "A process that exported DSPy metrics is not scraped any more.",
        "Its part of the traffic may be lost, and its alerts are silent or resolved: resolved is not healthy.",
        ('up{instance="$INSTANCE"}',),
        "Restart it, or take it out of the targets.",
    ),
    "DSPyRegistryStale": Section(
        "A serving process has not been able to read the registry.",
        "It answers with the version it has; a rollback does not reach it.",
        (STATUS, _VERSIONS),
        "Make the registry reachable (folder mounted, database up). After a rollback, restart processes that stay "
        "behind.",
    ),
    "DSPyVersionSkew": Section(
        "Serving processes disagree about the stable version for longer than a swap takes.",
        "Answers depend on which process is asked.",
        (_VERSIONS, STATUS),
        "The process with the old version: see DSPyReloadFailing and DSPyRegistryStale on it; restart it.",
    ),
    "DSPyReloadFailing": Section(
        "A process could not load the deployed version and goes on with the one it has.",
        "The deployment, or the rollback, has not happened there.",
        (STATUS, _VERSIONS, "dspy-observe registry show $PROGRAM -e $ENVIRONMENT"),
        "The log line dspy.registry.reload_error names each difference between the stored program and the code. Deploy "
        "the code that belongs to the version, or roll back to a version that fits: `" + BACK + "`.",
    ),
    "DSPyRollbackFailed": Section(
        "A rollback was decided and could not be carried out.",
        "The bad version is still deployed.",
        (DECISIONS, STATUS, LOG),
        "Read the reason in the decision. Roll back by hand: `" + BACK + "`.",
    ),
    "DSPyRollbackRefused": Section(
        "A rollback was asked for and held or rejected: frozen, cool-down, budget, approval pending, nothing to go "
        "back to, or fresh data did not confirm it.",
        "The version that was complained about is still deployed.",
        (DECISIONS, STATUS),
        "Read the reason. Approve it (`dspy-observe decisions approve ID`), "
        f"roll back by hand (`{BACK}`), or leave it.",
    ),
    "DSPyRollbackDone": Section(
        "The previous version was put back.",
        "Users get the previous version's answers; the bad one is quarantined.",
        (DECISIONS, STATUS, _VERSIONS),
        "Check that the errors end. Find out what was wrong with the version before you deploy a new one.",
    ),
    "DSPyRollbackDidNotHelp": Section(
        "Runs still end in errors although the version was changed.",
        "Users get errors, and the cause is not the version.",
        (
            DECISIONS,
            LOG,
            _MODEL,
            (
                "topk(5, sum by (module, status) "
                '(rate(dspy_module_duration_seconds_count{program="$PROGRAM",status!="ok"}[5m])))'
            ),
        ),
        "Freeze further rollbacks "
        "(`dspy-observe decisions freeze $PROGRAM -e $ENVIRONMENT --reason 'looking outside'`) and look there: "
        f"provider, tools, data, calling code. When it is mended, lift it (`{UNFREEZE}`) and deploy the version again "
        "that was left wrongly, out of its quarantine: "
        "`dspy-observe registry deploy $PROGRAM $PREVIOUS -e $ENVIRONMENT --force --reason 'why'`.",
    ),
    "DSPyRollbackBudgetSpent": Section(
        "The program was rolled back as often as the limits allow within an hour.",
        "The next regression stays until a person acts.",
        (DECISIONS, LOG),
        "Several rollbacks in an hour mean that versions are not the cause, or that each is bad. Stop deploying; the "
        "budget fills up again by itself, unless one more was asked for meanwhile: that one froze the program, until "
        "`" + UNFREEZE + "`.",
    ),
    "DSPyRollbackFrozen": Section(
        "Rollbacks of the program are frozen, by a person or because limits were exceeded.",
        "Regressions are only reported, and a rollout that runs takes no step by itself.",
        (STATUS, DECISIONS, "dspy-observe rollout status $PROGRAM -e $ENVIRONMENT"),
        "Lift it when its reason is gone: `" + UNFREEZE + "`.",
    ),
    "DSPyRedactionFailure": Section(
        "A detector raised while content was redacted.",
        "The content was dropped, so nothing private left; spans and log lines lack it.",
        ("increase(dspy_redaction_failures_total[1h])", "dspy-observe redact FILE --explain"),
        "The log line names the detector. Mend or remove it; detectors of your own are the usual cause.",
    ),
    "DSPyTelemetryDropped": Section(
        "More calls were open than the ledger holds, and the oldest were given up.",
        "Their figures are missing: calls, tokens and cost are too low.",
        ("dspy_observe_open_calls", "increase(dspy_observe_dropped_calls_total[1h])"),
        "Calls that never end (streams nobody reads, threads that were killed) are the usual cause.",
    ),
    "DSPyTelemetryErrors": Section(
        "The observer itself had errors, which were kept from the program.",
        "Figures, spans or log lines may be missing; the program is well.",
        (_SITES,),
        "The log has one line a minute for each site, with the traceback. DSPY_OBSERVE_STRICT=1 raises it in a test.",
    ),
    "DSPyOpenCallsHigh": Section(
        "Nearly as many calls are open as the ledger holds.",
        "Soon the oldest are given up.",
        ("dspy_observe_open_calls", "dspy_in_flight_calls"),
        "As for DSPyTelemetryDropped.",
    ),
    "DSPyCardinalityHigh": Section(
        "A target exports very many samples.",
        "Each scrape stalls the program, and Prometheus needs more memory.",
        (_SERIES, "topk(5, scrape_samples_scraped)"),
        "Old versions keep their series until a restart: restart. Lower Metrics(max_label_values) and the number of "
        "buckets; do not put ids into program, module or tool names.",
    ),
    "DSPyLabelOverflow": Section(
        "A label has more values than max_label_values; further ones are booked as other.",
        "Those cannot be told apart, and no alert names them.",
        (_SERIES,),
        "Names with ids in them are the usual cause. Else raise Metrics(max_label_values).",
    ),
    "DSPyWatchdog": Section(
        "Always fires, so that its absence shows a broken alert path.",
        "None.",
        (_DOCTOR, "dspy_watchdog_timestamp_seconds"),
        "Nothing to do. DSPyWatchdogMissing says when it no longer arrives.",
    ),
    "DSPyWatchdogMissing": Section(
        "The receiver has not heard the watchdog for too long.",
        "No alert can roll back.",
        (_DOCTOR, "time() - max(dspy_watchdog_timestamp_seconds)", "amtool alert query alertname=DSPyWatchdog"),
        "Follow the path: rules loaded in Prometheus, Alertmanager known to it, route to the receiver, receiver up, "
        "token the same on both sides.",
    ),
    "DSPyReceiverRefusing": Section(
        "The receiver answers alerts with 4xx or 5xx.",
        "4xx is never tried again before the next group interval: rollbacks are lost. 5xx is tried again.",
        ("sum by (code) (increase(dspy_alert_requests_total[5m]))", _DOCTOR),
        "401: the token differs from Alertmanager's credentials_file. 400: the body is no alert. 503: the registry "
        "could not be written.",
    ),
    "DSPyAlertDeliveryFailing": Section(
        "Alertmanager cannot deliver to a webhook.",
        "Rollbacks wait for as long.",
        ("sum by (integration) (rate(alertmanager_notifications_failed_total[5m]))", _DOCTOR),
        "Is the receiver up and reachable from Alertmanager? Its log names the answer.",
    ),
    "DSPyAlertmanagerMissing": Section(
        "Prometheus knows no Alertmanager.",
        "Alerts fire and nobody is told.",
        ("prometheus_notifications_alertmanagers_discovered", "promtool check config prometheus.yml"),
        "Set alerting.alertmanagers in prometheus.yml, and reload.",
    ),
    "DSPyRuleEvaluationFailing": Section(
        "A rule group cannot be evaluated.",
        "Its alerts never fire.",
        ("increase(prometheus_rule_evaluation_failures_total[5m]) > 0", "promtool check rules rules.yml alerts.yml"),
        "Prometheus' log has the reason, mostly a join that is many-to-many: two scrapes of one process, or a label "
        "that was added to one side.",
    ),
}
