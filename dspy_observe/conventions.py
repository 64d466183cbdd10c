"""Every public name and number: metrics, labels, buckets, span attributes, log events, registry events.

Nobody types one of these names elsewhere. Renaming one is a breaking change for dashboards and alert rules.
Sources of names from outside stand beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["METRICS", "MetricSpec"]

# --- numbers ---------------------------------------------------------------------------------------------------------

LATENCY_BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0)
"""Seconds. Below 5 ms only cache hits answer; the doubling tail covers slow models and agents up to their time-outs."""

TTFT_BUCKETS_S: Final = (0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8)
"""Seconds to the first chunk."""

SCORE_BUCKETS: Final = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Scores lie in [0, 1]; most are exactly 0 or 1, which have a bucket each."""

ROLLBACK_BUCKETS_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)
"""Seconds from an alert's beginning to the moved pointer: a second with tight intervals, minutes with usual ones."""

TOKEN_BUCKETS: Final = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)
"""Tokens a call. https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/ (gen_ai.client.token.usage)"""

OPERATION_BUCKETS_S: Final = (
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
)  # fmt: skip
"""Seconds. Same page (gen_ai.client.operation.duration)."""

MAX_LABEL_VALUES: Final = 100
"""Distinct values of one label before the rest is booked as ``other``: enough for every program and version of one
process, few enough that one histogram stays under 2,000 series."""

WATCHDOG_ALERT: Final = "DSPyWatchdog"
"""The alert that always fires, so that its absence shows a broken alert path."""

OVERFLOW_LABEL: Final = "other"
UNKNOWN_LABEL: Final = "unknown"
"""Label value for what a record holds as ``None``: an unset label would vanish from ``=~".+"`` selectors."""

MAX_OPEN_CALLS: Final = 10_000
"""Calls that may be under way at once before the oldest is given up: ten times the largest thread pools seen."""

MAX_ENDED_CALLS: Final = 10_000
"""Ended calls that are remembered so that a late child still finds its trace and program."""

# --- Prometheus metrics ----------------------------------------------------------------------------------------------

MetricType = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One Prometheus metric, named by https://prometheus.io/docs/practices/naming/."""

    name: str
    type: MetricType
    help: str
    labels: tuple[str, ...] = ()
    buckets: Literal["latency", "ttft", "score", "rollback"] | None = None
    """Which bucket set a histogram uses."""
    multiprocess: Literal["livesum", "mostrecent", "livemax"] = "livesum"
    """How a gauge is merged across worker processes."""


_PROGRAM = ("program", "version")
_LM = ("program", "version", "model")

METRICS: Final[dict[str, MetricSpec]] = {
    spec.name: spec
    for spec in (
        MetricSpec("dspy_requests_total", "counter", "LM calls by outcome.", (*_LM, "status")),
        MetricSpec(
            "dspy_tokens_total",
            "counter",
            "Billed tokens. cache_read and cache_write are within prompt, reasoning is within completion.",
            (*_LM, "kind"),
        ),
        MetricSpec("dspy_cost_usd_total", "counter", "US dollars billed for LM calls with a known price.", _LM),
        MetricSpec("dspy_cost_saved_usd_total", "counter", "US dollars that cache hits saved.", _LM),
        MetricSpec(
            "dspy_unmetered_requests_total", "counter", "LM calls whose provider reported no usage.", ("model",)
        ),
        MetricSpec("dspy_unpriced_requests_total", "counter", "LM calls whose price is not known.", ("model",)),
        MetricSpec("dspy_cache_requests_total", "counter", "LM calls by cache result.", (*_LM, "result")),
        MetricSpec("dspy_retries_total", "counter", "LM attempts after the first, where they are known.", _LM),
        MetricSpec(
            "dspy_fallbacks_total",
            "counter",
            "LM calls made because the model asked before failed.",
            ("from_model", "to_model", "reason"),
        ),
        MetricSpec(
            "dspy_program_duration_seconds",
            "histogram",
            "Duration of program runs (the outermost module).",
            (*_PROGRAM, "role", "status"),
            "latency",
        ),
        MetricSpec(
            "dspy_module_duration_seconds",
            "histogram",
            "Duration of module calls.",
            (*_PROGRAM, "module", "status"),
            "latency",
        ),
        MetricSpec("dspy_lm_duration_seconds", "histogram", "Duration of LM calls.", (*_LM, "status"), "latency"),
        MetricSpec(
            "dspy_tool_duration_seconds",
            "histogram",
            "Duration of tool calls.",
            (*_PROGRAM, "tool", "status"),
            "latency",
        ),
        MetricSpec(
            "dspy_lm_time_to_first_token_seconds",
            "histogram",
            "Time to the first streamed chunk.",
            _LM,
            "ttft",
        ),
        MetricSpec(
            "dspy_adapter_failures_total",
            "counter",
            "Prompts that could not be formatted and replies that could not be parsed.",
            (*_PROGRAM, "adapter", "stage"),
        ),
        MetricSpec("dspy_in_flight_calls", "gauge", "Calls under way.", ("kind",)),
        MetricSpec(
            "dspy_score",
            "histogram",
            "Scores of answers, from 0 to 1.",
            (*_PROGRAM, "role", "source"),
            "score",
        ),
        MetricSpec(
            "dspy_evaluation_score",
            "gauge",
            "Mean score of the last evaluation, from 0 to 1.",
            (*_PROGRAM, "dataset"),
            multiprocess="mostrecent",
        ),
        MetricSpec(
            "dspy_quality_evidence",
            "gauge",
            "log10 of the sequential test's evidence that the version regressed.",
            (*_PROGRAM, "rule"),
            multiprocess="mostrecent",
        ),
        MetricSpec("dspy_redactions_total", "counter", "Private values removed from content.", ("entity",)),
        MetricSpec("dspy_redaction_failures_total", "counter", "Values dropped because a detector failed."),
        MetricSpec("dspy_registry_events_total", "counter", "Registry events.", ("program", "event")),
        MetricSpec(
            "dspy_deployed_version_info",
            "gauge",
            "1 for the version that is deployed.",
            ("program", "environment", "version"),
            multiprocess="mostrecent",
        ),
        MetricSpec(
            "dspy_deployment_timestamp_seconds",
            "gauge",
            "Unix time of the last change of the deployed version.",
            ("program", "environment"),
            multiprocess="mostrecent",
        ),
        MetricSpec(
            "dspy_rollbacks_total",
            "counter",
            "Rollbacks by what asked for them (alert, monitor, manual) and how they ended.",
            ("program", "environment", "trigger", "outcome"),
        ),
        MetricSpec(
            "dspy_rollback_duration_seconds",
            "histogram",
            "Time from the beginning of an alert to the moved pointer.",
            ("program", "environment"),
            "rollback",
        ),
        MetricSpec(
            "dspy_decisions_total",
            "counter",
            "Decisions about rolling back, by what asked for them and how they ended.",
            ("program", "environment", "trigger", "outcome"),
        ),
        MetricSpec(
            "dspy_rollback_frozen",
            "gauge",
            "1 while nothing may be rolled back by itself.",
            ("program", "environment"),
            multiprocess="mostrecent",
        ),
        MetricSpec(
            "dspy_rollback_budget_remaining",
            "gauge",
            "Rollbacks that may still happen by themselves within this hour.",
            ("program", "environment"),
            multiprocess="mostrecent",
        ),
        MetricSpec("dspy_alert_requests_total", "counter", "Requests to the alert receiver by HTTP status.", ("code",)),
        MetricSpec(
            "dspy_watchdog_timestamp_seconds",
            "gauge",
            "Unix time of the last watchdog alert that came through the whole alert path.",
            multiprocess="mostrecent",
        ),
        MetricSpec(
            "dspy_quality_verdict_info",
            "gauge",
            "1 for the monitor's verdict on a version: ok, suspect, regressed, insufficient_data, global_cause.",
            (*_PROGRAM, "verdict"),
            multiprocess="mostrecent",
        ),
        MetricSpec(
            "dspy_invalid_scores_total",
            "counter",
            "Scores that were refused: no number, or out of bounds.",
            ("program",),
        ),
        MetricSpec(
            "dspy_serving_version_info",
            "gauge",
            "1 for each version that a serving process answers with.",
            ("program", "environment", "version", "role"),
            multiprocess="livemax",
        ),
        MetricSpec(
            "dspy_traffic_share",
            "gauge",
            "Part of the traffic that a version is meant to get, from 0 to 1.",
            ("program", "environment", "version", "role"),
            multiprocess="mostrecent",
        ),
        MetricSpec(
            "dspy_registry_stale_seconds",
            "gauge",
            "Time since a serving process last read the registry.",
            ("program", "environment"),
            multiprocess="livemax",
        ),
        MetricSpec(
            "dspy_shadow_dropped_total",
            "counter",
            "Shadow calls that were left out because too many waited, or took too long.",
            ("program", "reason"),
        ),
        MetricSpec(
            "dspy_user_tokens_max",
            "gauge",
            "Tokens of the heaviest user within the budget's window.",
            ("program",),
            multiprocess="livemax",
        ),
        MetricSpec("dspy_user_budget_exceeded_total", "counter", "Users that went over their budget.", ("program",)),
        MetricSpec(
            "dspy_cache_dir_bytes",
            "gauge",
            "Size of DSPy's disk cache.",
            multiprocess="mostrecent",
        ),
        MetricSpec(
            "dspy_observe_internal_errors_total",
            "counter",
            "Errors of the observer itself that were kept from the program.",
            ("site",),
        ),
        MetricSpec("dspy_observe_open_calls", "gauge", "Calls that the ledger holds open."),
        MetricSpec("dspy_observe_dropped_calls_total", "counter", "Calls given up because too many were open."),
    )
}


# --- OpenTelemetry ---------------------------------------------------------------------------------------------------
# Attribute names of the GenAI conventions come from opentelemetry-semantic-conventions in callbacks/otel.py; the names
# below are those that the package does not define.

INSTRUMENTATION_NAME: Final = "dspy_observe"

INFERENCE_SPAN_KEY: Final = "opentelemetry.genai.inference_span"
"""Context key under which an instrumentation leaves its inference span, so that a second one makes no duplicate:
https://github.com/open-telemetry/semantic-conventions-genai/pull/475"""

INFERENCE_DATA_KEY: Final = "opentelemetry.genai.client.inference.context"
EMBEDDING_DATA_KEY: Final = "opentelemetry.genai.client.embedding.context"
"""The same of OpenTelemetry's own instrumentations, which leave an object that those below add their facts to:
https://github.com/open-telemetry/opentelemetry-python-genai/pull/765"""

OPENINFERENCE_SPAN_KIND: Final = "openinference.span.kind"
"""https://github.com/Arize-ai/openinference/blob/main/spec/semantic_conventions.md"""

ATTR_PROGRAM: Final = "dspy.program"
ATTR_VERSION: Final = "dspy.version"
ATTR_ROLE: Final = "dspy.role"
ATTR_CALL_ID: Final = "dspy.call_id"
ATTR_CACHE_HIT: Final = "dspy.cache_hit"
ATTR_COST_USD: Final = "dspy.cost_usd"
ATTR_COST_SAVED_USD: Final = "dspy.cost_saved_usd"
ATTR_BILLED_BUT_FAILED: Final = "dspy.billed_but_failed"
ATTR_OUTCOME: Final = "dspy.outcome"
ATTR_FALLBACK_FROM: Final = "dspy.fallback_from"
ATTR_FALLBACK_REASON: Final = "dspy.fallback_reason"
ATTR_SCORE: Final = "dspy.score"
ATTR_DATASET: Final = "dspy.dataset"
ATTR_INPUTS: Final = "input.value"
ATTR_OUTPUTS: Final = "output.value"
"""OpenInference's names for the content of a span that is no LM call (same page)."""
ATTR_INPUTS_TYPE: Final = "input.mime_type"
ATTR_OUTPUTS_TYPE: Final = "output.mime_type"
ATTR_PROMPT_VERSION: Final = "gen_ai.prompt.version"
"""Beside ``gen_ai.prompt.name`` of the conventions; they have no version yet."""

EVENT_ADAPTER_FAILURE: Final = "dspy.adapter_failure"
EVENT_EVALUATION_RESULT: Final = "gen_ai.evaluation.result"
"""https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-events/"""

# --- alerts ----------------------------------------------------------------------------------------------------------
# What the rules in dashboards/prometheus write on alerts, and what the receiver reads there.

ALERT_ACTION: Final = "dspy_action"
"""Label that says what an alert may do by itself; without it the receiver does nothing."""
ALERT_ACTION_ROLLBACK: Final = "rollback"
ALERT_DRY_RUN: Final = "dspy_dry_run"
"""Label with which an alert, such as that of ``dspy-observe doctor``, is judged and moves nothing."""
ALERT_SIGNAL: Final = "dspy_signal"
"""Label that says what an alert is about: ``errors``, ``score``, ``latency``, ``cost``. Only an alert about ``errors``
is held because fresh errors are few."""
ALERT_SIGNAL_ERRORS: Final = "errors"
DOCTOR_ALERT: Final = "DSPyDoctor"
"""Name of the alert that ``dspy-observe doctor`` sends."""
DOCTOR_RUN: Final = "doctor_run"
"""Its label that tells one run from another."""

# --- log lines -------------------------------------------------------------------------------------------------------

LOG_LM_CALL: Final = "dspy.lm_call"
LOG_ROOT_CALL: Final = "dspy.call"
LOG_SCORE: Final = "dspy.score"
LOG_TOP_USERS: Final = "dspy.top_users"
LOG_USER_OVER_BUDGET: Final = "dspy.user_over_budget"

# --- registry events -------------------------------------------------------------------------------------------------

REGISTRY_PREFIX: Final = "dspy.registry."
REGISTRY_EVENTS: Final = tuple(
    REGISTRY_PREFIX + name
    for name in (
        "register_start",
        "register_complete",
        "register_error",
        "deploy_start",
        "deploy_complete",
        "deploy_error",
        "rollback_start",
        "rollback_complete",
        "rollback_error",
        "performance_update",
        "auto_deployment",
        "automatic_rollback",
        "export",
        "import",
        "reload_complete",
        "reload_error",
        "quarantine",
        "decision",
        "drift",
        "rollout",
        "freeze",
        "unfreeze",
        "mode_change",
    )
)
