"""The metrics that dashboards and alert rules rely on: names, types, labels and both exposition formats."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as OPENMETRICS
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

import dspy_observe
from dspy_observe.conventions import METRICS
from dspy_observe.metrics import Metrics, instruments, render
from dspy_observe.testing import frozen_clock, offline_lm

LM = ("program", "version", "model")
TABLE: dict[str, tuple[str, tuple[str, ...]]] = {
    "dspy_requests_total": ("counter", (*LM, "status")),
    "dspy_tokens_total": ("counter", (*LM, "kind")),
    "dspy_cost_usd_total": ("counter", LM),
    "dspy_cost_saved_usd_total": ("counter", LM),
    "dspy_unmetered_requests_total": ("counter", ("model",)),
    "dspy_unpriced_requests_total": ("counter", ("model",)),
    "dspy_cache_requests_total": ("counter", (*LM, "result")),
    "dspy_retries_total": ("counter", LM),
    "dspy_fallbacks_total": ("counter", ("from_model", "to_model", "reason")),
    "dspy_program_duration_seconds": ("histogram", ("program", "version", "role", "status")),
    "dspy_module_duration_seconds": ("histogram", ("program", "version", "module", "status")),
    "dspy_lm_duration_seconds": ("histogram", (*LM, "status")),
    "dspy_tool_duration_seconds": ("histogram", ("program", "version", "tool", "status")),
    "dspy_lm_time_to_first_token_seconds": ("histogram", LM),
    "dspy_adapter_failures_total": ("counter", ("program", "version", "adapter", "stage")),
    "dspy_in_flight_calls": ("gauge", ("kind",)),
    "dspy_score": ("histogram", ("program", "version", "role", "source")),
    "dspy_evaluation_score": ("gauge", ("program", "version", "dataset")),
    "dspy_quality_evidence": ("gauge", ("program", "version", "rule")),
    "dspy_redactions_total": ("counter", ("entity",)),
    "dspy_redaction_failures_total": ("counter", ()),
    "dspy_registry_events_total": ("counter", ("program", "event")),
    "dspy_deployed_version_info": ("gauge", ("program", "environment", "version")),
    "dspy_deployment_timestamp_seconds": ("gauge", ("program", "environment")),
    "dspy_rollbacks_total": ("counter", ("program", "environment", "trigger", "outcome")),
    "dspy_rollback_duration_seconds": ("histogram", ("program", "environment")),
    "dspy_decisions_total": ("counter", ("program", "environment", "trigger", "outcome")),
    "dspy_rollback_frozen": ("gauge", ("program", "environment")),
    "dspy_rollback_budget_remaining": ("gauge", ("program", "environment")),
    "dspy_alert_requests_total": ("counter", ("code",)),
    "dspy_watchdog_timestamp_seconds": ("gauge", ()),
    "dspy_quality_verdict_info": ("gauge", ("program", "version", "verdict")),
    "dspy_invalid_scores_total": ("counter", ("program",)),
    "dspy_serving_version_info": ("gauge", ("program", "environment", "version", "role")),
    "dspy_traffic_share": ("gauge", ("program", "environment", "version", "role")),
    "dspy_registry_stale_seconds": ("gauge", ("program", "environment")),
    "dspy_shadow_dropped_total": ("counter", ("program", "reason")),
    "dspy_user_tokens_max": ("gauge", ("program",)),
    "dspy_user_budget_exceeded_total": ("counter", ("program",)),
    "dspy_cache_dir_bytes": ("gauge", ()),
    "dspy_observe_internal_errors_total": ("counter", ("site",)),
    "dspy_observe_open_calls": ("gauge", ()),
    "dspy_observe_dropped_calls_total": ("counter", ()),
}
"""Dashboards, rules and users depend on every line: renaming one is a breaking change."""


@pytest.fixture
def registry() -> CollectorRegistry:
    """A registry that holds one series of every metric."""
    made = CollectorRegistry()
    own = instruments(Metrics(collector_registry=made))
    for name, (kind, labels) in TABLE.items():
        child = own[name].child(*(f"a_{label}" for label in labels))
        if kind == "counter":
            child.inc()
        elif kind == "gauge":
            child.set(1)
        else:
            child.observe(0.5)
    return made


def test_the_table_is_complete() -> None:
    """Nothing is missing and nothing was added without a line here; each has a help text."""
    assert {name: (spec.type, spec.labels) for name, spec in METRICS.items()} == TABLE
    assert all(spec.help.strip().endswith(".") for spec in METRICS.values())


@pytest.mark.parametrize("name", sorted(TABLE))
def test_a_metric_is_exposed_with_exactly_its_labels(registry: CollectorRegistry, name: str) -> None:
    """Read back from the page that a scraper gets."""
    kind, labels = TABLE[name]
    page = render(registry)[0].decode()
    families = {family.name: family for family in parse_text(page)}
    family = families[name.removesuffix("_total") if kind == "counter" else name]
    assert family.type == kind
    assert family.documentation == METRICS[name].help
    wanted = name + {"counter": "", "gauge": "", "histogram": "_count"}[kind]
    own = [s for s in family.samples if s.name == wanted and set(s.labels.values()) == {f"a_{la}" for la in labels}]
    (sample,) = own
    assert tuple(sample.labels) == labels or set(sample.labels) == set(labels)
    assert sample.value == 1


def test_a_fresh_registry_is_valid_in_both_formats(registry: CollectorRegistry) -> None:
    """By the client library's own parsers; the content type says which it is."""
    text, text_type = render(registry)
    assert text_type.startswith("text/plain")
    openmetrics, openmetrics_type = render(registry, accept="application/openmetrics-text; version=1.0.0")
    assert openmetrics_type.startswith(OPENMETRICS.split(";", maxsplit=1)[0])
    assert openmetrics.endswith(b"# EOF\n")
    expected = {name.removesuffix("_total") if kind == "counter" else name for name, (kind, _) in TABLE.items()}
    assert expected <= {family.name for family in parse_text(text.decode())}
    assert expected <= {family.name for family in parse_openmetrics(openmetrics.decode())}


def test_an_untouched_registry_is_valid_too() -> None:
    """The first scrape may come before the first call."""
    registry = CollectorRegistry()
    instruments(Metrics(collector_registry=registry))
    assert len(list(parse_text(render(registry)[0].decode()))) >= len(TABLE)
    list(parse_openmetrics(render(registry, accept="application/openmetrics-text")[0].decode()))


def test_duration_histograms_carry_the_trace_id_as_an_exemplar() -> None:
    """The trace of a real run, read back from the OpenMetrics page."""
    import dspy

    registry = CollectorRegistry()
    records: list[dspy_observe.CallRecord] = []

    class Keep(dspy_observe.RecordCallback):
        def finished(self, record: dspy_observe.CallRecord) -> None:
            records.append(record)

    def search(query: str) -> str:
        return query

    class Program(dspy.Module):
        def forward(self, question: str) -> dspy.Prediction:
            dspy.Tool(search)(query=question)
            return dspy.Predict("question -> answer")(question=question)

    observer = dspy_observe.configure(
        metrics=Metrics(collector_registry=registry),
        tracing=dspy_observe.Tracing(tracer_provider=TracerProvider()),
        extra=[Keep()],
    )
    with observer, dspy.context(lm=offline_lm({"answer": "42"})), frozen_clock():
        prediction = Program()(question="?")
        assert observer.score(prediction, 1.0, source="user")
    (trace_id,) = {record.trace_id for record in records if record.kind in ("module", "lm", "tool")}
    assert trace_id is not None
    assert len(trace_id) == 32
    page = render(registry, accept="application/openmetrics-text")[0].decode()
    found: dict[str, set[str]] = {}
    for family in parse_openmetrics(page):
        for sample in family.samples:
            if sample.exemplar:
                found.setdefault(family.name, set()).add(sample.exemplar.labels["trace_id"])
    histograms = ("program_duration_seconds", "module_duration_seconds", "lm_duration_seconds", "tool_duration_seconds")
    assert found == {f"dspy_{name}": {trace_id} for name in (*histograms, "score")}
