"""What other libraries export is redacted while the promise is on, and only then."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry._logs import LogRecord, NoOpLoggerProvider
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

import dspy_observe
from dspy_observe.callbacks.otel.shield import shield_logs, shield_spans
from dspy_observe.redaction import Redaction, Redactor

MAIL = "anna@example.com"


def foreign_span(provider: TracerProvider) -> None:
    """A span as another instrumentation makes it, with content in name, attributes, events and status."""
    attributes = {"prompt": f"I am {MAIL}"}
    with provider.get_tracer("other").start_as_current_span(f"ask {MAIL}", attributes=attributes) as span:
        span.add_event("said", {"text": MAIL})


@pytest.fixture
def exporters() -> Iterator[tuple[TracerProvider, InMemorySpanExporter, InMemorySpanExporter]]:
    """A provider with a simple and a batching processor."""
    provider, simple, batched = TracerProvider(), InMemorySpanExporter(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(simple))
    provider.add_span_processor(BatchSpanProcessor(batched))
    yield provider, simple, batched
    provider.shutdown()


def test_foreign_spans_are_redacted_until_the_observer_closes(
    exporters: tuple[TracerProvider, InMemorySpanExporter, InMemorySpanExporter],
) -> None:
    """Both processors export redacted spans; afterwards the application has its exporters back."""
    provider, simple, batched = exporters
    observer = dspy_observe.configure(
        metrics=dspy_observe.Metrics(collector_registry=CollectorRegistry()),
        tracing=dspy_observe.Tracing(tracer_provider=provider),
        redaction=Redaction(foreign_signals=True),
    )
    foreign_span(provider)
    provider.force_flush()
    for exporter in (simple, batched):
        (span,) = exporter.get_finished_spans()
        assert MAIL not in span.to_json()
        assert span.name == "ask <EMAIL>"
    observer.close()
    foreign_span(provider)
    assert MAIL in simple.get_finished_spans()[1].to_json()


def test_a_provider_without_exporters_is_refused(
    exporters: tuple[TracerProvider, InMemorySpanExporter, InMemorySpanExporter],
) -> None:
    """The user asked for a promise; where it cannot be kept the error names the way out."""
    with pytest.raises(dspy_observe.ConfigurationError, match="RedactingSpanExporter"):
        shield_spans(TracerProvider(), Redactor())


def test_foreign_log_records_are_redacted() -> None:
    """A record that another library emits leaves without the address."""
    provider, kept = LoggerProvider(), InMemoryLogRecordExporter()
    provider.add_log_record_processor(SimpleLogRecordProcessor(kept))
    restore = shield_logs(provider, Redactor())
    provider.get_logger("other").emit(LogRecord(body=f"I am {MAIL}", attributes={"user": MAIL}))
    restore()
    provider.get_logger("other").emit(LogRecord(body=f"I am {MAIL}"))
    redacted, plain = kept.get_finished_logs()
    assert MAIL not in redacted.log_record.body + str(redacted.log_record.attributes)
    assert MAIL in plain.log_record.body
    provider.shutdown()


def test_no_logger_provider_means_nothing_to_shield() -> None:
    """Most applications export no log records through OpenTelemetry."""
    shield_logs(NoOpLoggerProvider(), Redactor())()
