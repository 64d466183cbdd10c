"""Signals that others produce, redacted on their way out of real OpenTelemetry pipelines."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from dspy_observe.redaction import RedactingLogExporter, RedactingSpanExporter, Redaction, Redactor

MAIL, PHONE = "a.b@example.com", "13812345678"


def redactor() -> Redactor:
    """Independent of this process's environment."""
    return Redactor(Redaction(known_secrets=False))


def finished_span() -> tuple[ReadableSpan, ReadableSpan]:
    """A failed span with something private in every part: as recorded, and as exported."""
    raw, clean = InMemorySpanExporter(), InMemorySpanExporter()
    provider = TracerProvider(resource=Resource({"service.owner": MAIL}), span_limits=SpanLimits(max_span_attributes=6))
    provider.add_span_processor(SimpleSpanProcessor(RedactingSpanExporter(clean, redactor())))
    provider.add_span_processor(SimpleSpanProcessor(raw))
    link = Link(SpanContext(1, 2, is_remote=False), {"peer": MAIL})
    attributes: dict[str, Any] = {
        "gone": 1, "input": f"打{PHONE}", "n": 13812345678, "to": [MAIL, "x"], "gen_ai.usage.input_tokens": 12,
        "api_key": "abc", MAIL: True,
    }  # fmt: skip
    try:
        with provider.get_tracer("lib", "1").start_as_current_span(
            f"call {PHONE}", kind=SpanKind.CLIENT, attributes=attributes, links=[link]
        ) as span:
            span.add_event(f"asked {MAIL}", {"q": f"phone {PHONE}"}, timestamp=7)
            raise ValueError(f"bad {MAIL}")  # noqa: TRY301 - the span is to end in an error
    except ValueError:
        pass
    return raw.get_finished_spans()[0], clean.get_finished_spans()[0]


def test_nothing_private_is_left_in_the_bytes_of_a_span() -> None:
    """Name, attributes and their keys, events, links, status, exception and resource, in OTLP's own encoding."""
    raw, clean = finished_span()
    sent = encode_spans([clean]).SerializeToString()
    for private in (MAIL, PHONE, "abc"):
        assert private.encode() in encode_spans([raw]).SerializeToString()
        assert private.encode() not in sent
    assert clean.name == "call <PHONE>"
    assert clean.status.description == "ValueError: bad <EMAIL>"
    assert clean.resource.attributes["service.owner"] == "<EMAIL>"


def test_what_is_not_private_is_carried_over() -> None:
    """Identity, times, kind, scope, counts and numbers are those of the original, which keeps its own content."""
    raw, clean = finished_span()
    for name in ("context", "parent", "kind", "start_time", "end_time", "instrumentation_scope", "dropped_attributes"):
        assert getattr(clean, name) == getattr(raw, name), name
    assert raw.dropped_attributes == 1
    assert clean.status.status_code is raw.status.status_code
    assert clean.attributes is not None
    assert clean.attributes["gen_ai.usage.input_tokens"] == 12
    assert clean.attributes["to"] == ("<EMAIL>", "x")
    assert [event.timestamp for event in clean.events] == [event.timestamp for event in raw.events]
    assert raw.name == f"call {PHONE}"


def test_scope_and_trace_states_of_a_span_are_redacted() -> None:
    """Name and attributes of the scope, and what vendors wrote into the trace state of span, parent and link."""
    token = "ghp_EXAMPLE7NotARealTokenAtAll0123456789"
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(RedactingSpanExporter(exporter, redactor())))
    state = TraceState([("vendor", token), ("other", "rojo:00f0")])
    remote = SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(1), trace_state=state)
    tracer = provider.get_tracer(f"lib {MAIL}", "1.0.0.7", attributes={"api_key": "EXAMPLEscopekey1", "kind": "db"})
    around = set_span_in_context(NonRecordingSpan(remote))
    for name in ("one", "two"):
        tracer.start_span(name, context=around, links=[Link(remote, {"peer": "x"})]).end()
    spans = exporter.get_finished_spans()
    for span in spans:
        scope, link = span.instrumentation_scope, span.links[0].context
        assert scope is not None
        assert (scope.name, scope.version) == ("lib <EMAIL>", "1.0.0.7")
        assert dict(scope.attributes or {}) == {"api_key": "<SECRET>", "kind": "db"}
        for context in (span.context, span.parent, link):
            assert context is not None
            assert dict(context.trace_state) == {"vendor": "<API_KEY>", "other": "rojo:00f0"}
        assert (link.trace_id, link.span_id, link.is_remote, link.trace_flags) == (1, 2, True, 1)
    assert token.encode() not in encode_spans(spans).SerializeToString()
    assert spans[0].instrumentation_scope is spans[1].instrumentation_scope


def test_a_span_that_cannot_be_redacted_is_left_out_and_counted() -> None:
    """No span rather than one with its content; its neighbours pass."""
    _, good = finished_span()

    class Broken(ReadableSpan):
        @property
        def events(self) -> Any:
            raise RuntimeError(MAIL)

    out, own = InMemorySpanExporter(), redactor()
    assert RedactingSpanExporter(out, own).export([Broken("x"), good]) is SpanExportResult.SUCCESS
    assert [span.name for span in out.get_finished_spans()] == ["call <PHONE>"]
    assert own.failures == 1


def test_log_records_are_redacted() -> None:
    """Body, attributes, scope and resource; the record of the next processor keeps its own."""
    clean, raw = InMemoryLogRecordExporter(), InMemoryLogRecordExporter()
    provider = LoggerProvider(resource=Resource({"owner": MAIL}))
    provider.add_log_record_processor(SimpleLogRecordProcessor(RedactingLogExporter(clean, redactor())))
    provider.add_log_record_processor(SimpleLogRecordProcessor(raw))
    body = {"text": f"to {MAIL}", "password": "x", "n": [1, 2]}
    provider.get_logger(f"lib {MAIL}").emit(
        LogRecord(body=body, attributes={"to": MAIL, "size": 3}, severity_number=SeverityNumber.INFO, timestamp=5)
    )
    (record,) = clean.get_finished_logs()
    assert record.log_record.body == {"text": "to <EMAIL>", "password": "<SECRET>", "n": [1, 2]}
    assert dict(record.log_record.attributes or {}) == {"to": "<EMAIL>", "size": 3}
    assert record.resource.attributes["owner"] == "<EMAIL>"
    assert record.instrumentation_scope is not None
    assert record.instrumentation_scope.name == "lib <EMAIL>"
    assert record.log_record.timestamp == 5
    assert raw.get_finished_logs()[0].log_record.body == body


def test_flush_and_shutdown_reach_the_wrapped_exporter() -> None:
    """After a shutdown nothing more is taken."""
    out = InMemorySpanExporter()
    exporter = RedactingSpanExporter(out, redactor())
    assert exporter.force_flush()
    exporter.shutdown()
    _, span = finished_span()
    assert exporter.export([span]) is SpanExportResult.FAILURE


def test_the_room_loads_neither_opentelemetry_nor_structlog_nor_dspy() -> None:
    """Pure until an exporter is asked for."""
    code = (
        "import sys, dspy_observe.redaction as r; r.redact('x'); "
        "print([m for m in ('dspy', 'opentelemetry', 'structlog', 'pydantic') if m in sys.modules]); "
        "r.RedactingSpanExporter; print('opentelemetry' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split("\n")[:2] == ["[]", "True"]
