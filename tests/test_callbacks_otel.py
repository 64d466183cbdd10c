"""Whole spans under a clock that stands still; the rest of tracing stands in the hard cases."""

from __future__ import annotations

import json
from typing import Any

import dspy
import pytest
from dspy.utils.exceptions import AdapterParseError, LMUnexpectedError
from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from dspy_observe import ConfigurationError, Metrics, OTelCallback, RedactionCallback, Tracing
from dspy_observe.callbacks.otel import attributes
from dspy_observe.facts import calls
from dspy_observe.records import RegistryEvent, Score
from dspy_observe.testing import Capture, frozen_clock, offline_lm

AT = 1_700_000_000_000_000_000


class Spans:
    """A provider that keeps its spans."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    @property
    def finished(self) -> dict[str, ReadableSpan]:
        """By name."""
        return {span.name: span for span in self.exporter.get_finished_spans()}


@pytest.fixture
def spans() -> Spans:
    """A provider of the test's own."""
    return Spans()


def whole(span: ReadableSpan) -> dict[str, Any]:
    """Everything of a span but its ids."""
    return {
        "name": span.name,
        "kind": span.kind.name,
        "start": (span.start_time or 0) - AT,
        "end": (span.end_time or 0) - AT,
        "status": (span.status.status_code.name, span.status.description),
        "attributes": dict(span.attributes or {}),
        "events": [(event.name, dict(event.attributes or {})) for event in span.events],
    }


def run(callbacks: list[Any], answer: Any = None, program: Any = None) -> Capture:
    """One run in which the model takes a quarter of a second."""
    capture = Capture()
    with frozen_clock() as clock:

        def reply(_: Any) -> Any:
            clock.advance(0.25)
            if isinstance(answer, Exception):
                raise answer
            return {"answer": "42"} if answer is None else answer

        tagged = program or dspy.Predict("question -> answer")
        calls.tag(tagged, "qa", "v1", "canary")
        with dspy.context(lm=offline_lm(reply, num_retries=0, temperature=0.5), callbacks=[*callbacks, capture]):
            tagged(question="mail alice@example.com")
    return capture


def test_whole_spans_of_a_run(spans: Spans) -> None:
    """The program and its LM call, one trace, nothing of the content."""
    capture = run([OTelCallback(Tracing(tracer_provider=spans.provider))])
    lm = next(r for r in capture.records if r.kind == "lm")
    root = capture.records[-1]
    assert list(spans.finished) == ["chat model", "invoke_workflow qa"]
    assert whole(spans.finished["chat model"]) == {
        "name": "chat model",
        "kind": "CLIENT",
        "start": 0,
        "end": 250_000_000,
        "status": ("UNSET", None),
        "attributes": {
            "openinference.span.kind": "LLM",
            "dspy.program": "qa",
            "dspy.version": "v1",
            "dspy.role": "canary",
            "dspy.cache_hit": False,
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "offline",
            "gen_ai.request.model": "model",
            "gen_ai.response.model": "offline/model",
            "gen_ai.response.id": "offline-0",
            "gen_ai.response.finish_reasons": ("stop",),
            "gen_ai.usage.input_tokens": 10,
            "gen_ai.usage.output_tokens": 5,
        },
        "events": [],
    }
    assert whole(spans.finished["invoke_workflow qa"]) == {
        "name": "invoke_workflow qa",
        "kind": "INTERNAL",
        "start": 0,
        "end": 250_000_000,
        "status": ("UNSET", None),
        "attributes": {
            "openinference.span.kind": "CHAIN",
            "dspy.program": "qa",
            "dspy.version": "v1",
            "dspy.role": "canary",
            "dspy.call_id": root.call_id,
            "gen_ai.operation.name": "invoke_workflow",
            "gen_ai.workflow.name": "qa",
            "gen_ai.prompt.name": "qa",
            "gen_ai.prompt.version": "v1",
        },
        "events": [],
    }
    child, parent = spans.finished["chat model"], spans.finished["invoke_workflow qa"]
    assert child.parent is not None
    assert child.parent.span_id == parent.context.span_id
    assert parent.parent is None
    for record, span in ((lm, child), (root, parent)):
        assert (record.trace_id, record.span_id) == (f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}")


def test_whole_span_of_a_failed_call(spans: Spans) -> None:
    """Its type, never its text, unless content is captured."""
    with pytest.raises(LMUnexpectedError, match="alice"):
        run([OTelCallback(Tracing(tracer_provider=spans.provider))], ValueError("of alice@example.com"))
    found = whole(spans.finished["chat model"])
    assert found["status"] == ("ERROR", "LMUnexpectedError")
    assert found["events"] == [("exception", {"exception.type": "LMUnexpectedError"})]
    assert found["attributes"]["error.type"] == "LMUnexpectedError"
    assert found["attributes"]["dspy.outcome"] == "error"
    assert "alice" not in repr([whole(span) for span in spans.finished.values()])


@pytest.mark.parametrize("redactor_first", [True, False])
def test_captured_content_is_redacted_and_cut(spans: Spans, redactor_first: bool) -> None:
    """Messages of the model, arguments and results of the program."""
    otel = OTelCallback(Tracing(tracer_provider=spans.provider, capture_content="redacted", max_content_chars=60))
    redaction = RedactionCallback(metrics=Metrics(collector_registry=CollectorRegistry()))
    run([redaction, otel] if redactor_first else [otel, redaction])
    root = whole(spans.finished["invoke_workflow qa"])["attributes"]
    assert root["input.value"] == '{"question": "mail <EMAIL>"}'
    assert root["output.value"] == '{"answer": "42"}'
    assert root["input.mime_type"] == root["output.mime_type"] == "application/json"
    lm = whole(spans.finished["chat model"])["attributes"]
    assert lm["gen_ai.input.messages"].startswith('[{"role": "system", "parts": [{"type": "text"')
    assert lm["gen_ai.input.messages"].endswith("more characters]")
    assert "alice" not in repr([whole(span) for span in spans.finished.values()])


def test_content_that_cannot_be_encoded_is_exported_with_a_question_mark(spans: Spans) -> None:
    """A reply or an error text with a lone surrogate costs no attribute on its way through OTLP."""
    otel = OTelCallback(Tracing(tracer_provider=spans.provider, capture_content="redacted"))
    redaction = RedactionCallback(metrics=Metrics(collector_registry=CollectorRegistry()))
    run([otel, redaction], answer={"answer": "cut \ud83d"})
    with pytest.raises(LMUnexpectedError):
        run([otel, redaction], answer=LMUnexpectedError("broken \ud83d"))
    sent = encode_spans(spans.exporter.get_finished_spans()).SerializeToString()
    for text in (b"gen_ai.output.messages", b'"cut ?"', b"exception.message", b"broken ?"):
        assert text in sent, text


def test_a_failed_parse_is_an_event_on_its_modules_span(spans: Spans) -> None:
    """And a span of its own only where adapter spans are asked for."""
    with pytest.raises(AdapterParseError):
        run([OTelCallback(Tracing(tracer_provider=spans.provider))], "nothing of use")
    found = whole(spans.finished["invoke_workflow qa"])
    failures = [attributes for name, attributes in found["events"] if name == "dspy.adapter_failure"]
    assert {a["dspy.adapter"] for a in failures} == {"ChatAdapter", "JSONAdapter"}
    assert {a["dspy.adapter.stage"] for a in failures} == {"parse"}
    assert {a["error.type"] for a in failures} == {"AdapterParseError"}
    assert not any("Adapter" in name for name in spans.finished)


def test_adapter_spans_where_they_are_asked_for(spans: Spans) -> None:
    """One for formatting, one for parsing."""
    run([OTelCallback(Tracing(tracer_provider=spans.provider, adapter_spans=True))])
    assert list(spans.finished) == ["format ChatAdapter", "chat model", "parse ChatAdapter", "invoke_workflow qa"]


def test_the_context_is_as_before_and_the_users_span_is_the_parent(spans: Spans) -> None:
    """A request span around the run, and nothing left behind it."""
    before = context_api.get_current()
    with spans.provider.get_tracer("app").start_as_current_span("request") as request:
        run([OTelCallback(Tracing(tracer_provider=spans.provider))])
        assert trace.get_current_span() is request
    assert context_api.get_current() == before
    root = spans.finished["invoke_workflow qa"]
    assert root.parent is not None
    assert root.parent.span_id == request.get_span_context().span_id


def test_two_on_one_provider_make_one_span(spans: Spans) -> None:
    """And the record has the ids of that span."""
    run([OTelCallback(Tracing(tracer_provider=spans.provider)) for _ in range(2)])
    assert len(spans.exporter.get_finished_spans()) == 2


def test_without_a_provider_nothing_is_recorded_and_nothing_fails() -> None:
    """No global provider, no endpoint in the environment."""
    capture = run([OTelCallback()])
    assert all(record.trace_id is None and record.span_id is None for record in capture.records)


def test_an_otlp_protocol_that_nobody_speaks_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the variable."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "smoke signals")
    with pytest.raises(ConfigurationError, match="grpc or http/protobuf") as caught:
        OTelCallback()
    assert caught.value.field == "OTEL_EXPORTER_OTLP_PROTOCOL"


def test_genai_histograms_go_to_the_meter_provider(spans: Spans) -> None:
    """Tokens by type and the duration, once for each live call."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    run([OTelCallback(Tracing(tracer_provider=spans.provider, meter_provider=provider))])
    data = reader.get_metrics_data()
    assert data is not None
    found = {
        metric.name: {
            point.attributes.get("gen_ai.token.type"): (point.count, point.sum) for point in metric.data.data_points
        }
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
    }
    assert found == {
        "gen_ai.client.token.usage": {"input": (1, 10), "output": (1, 5)},
        "gen_ai.client.operation.duration": {None: (1, 0.25)},
    }
    provider.shutdown()


def test_whole_spans_of_events_and_scores(spans: Spans) -> None:
    """A score joins the trace of its answer, also when that ended."""
    callback = OTelCallback(Tracing(tracer_provider=spans.provider))
    capture = run([callback])
    root = capture.records[-1]
    callback.scored(Score(root.call_id, 0.5, "user", "qa", "v1", "canary", None, 1_700_000_060.0, root.trace_id))
    callback.happened(
        RegistryEvent("dspy.registry.deploy_error", "qa", 1_700_000_061.0, "prod", "v2", {"reason": "late"})
    )
    score = spans.finished["gen_ai.evaluation.result"]
    assert whole(score) == {
        "name": "gen_ai.evaluation.result",
        "kind": "INTERNAL",
        "start": 60_000_000_000,
        "end": 60_000_000_000,
        "status": ("UNSET", None),
        "attributes": {
            "gen_ai.evaluation.name": "user",
            "gen_ai.evaluation.score.value": 0.5,
            "dspy.call_id": root.call_id,
            "dspy.program": "qa",
            "dspy.version": "v1",
            "dspy.role": "canary",
        },
        "events": [],
    }
    assert f"{score.context.trace_id:032x}" == root.trace_id
    assert whole(spans.finished["dspy.registry.deploy_error"]) == {
        "name": "dspy.registry.deploy_error",
        "kind": "INTERNAL",
        "start": 61_000_000_000,
        "end": 61_000_000_000,
        "status": ("ERROR", None),
        "attributes": {
            "dspy.program": "qa",
            "dspy.version": "v2",
            "deployment.environment.name": "prod",
            "dspy.registry.reason": "late",
        },
        "events": [],
    }


@pytest.mark.parametrize(
    "text",
    ["plain", 'quo"te\\ \n\t\r\x00\x1f\x7f', "密钥\u2028\u2029\ud800", ""],
    ids=["plain", "escapes", "wide", "empty"],
)
def test_content_is_rendered_as_json_writes_it(text: str) -> None:
    """The quick ways for texts give what the encoder gives, to the character."""
    values: list[Any] = [{}, {text: text, "b": text}, {"a": text, "n": 1}, [text], text, None, {"a": {"b": [text]}}]
    for value in values:
        assert attributes._json(value) == json.dumps(value, ensure_ascii=False)
    messages = [{"role": "user", "content": text}, {"content": text}, {"role": text, "content": [{"type": text}]}, text]
    expected = [
        {"role": "user", "parts": [{"type": "text", "content": text}]},
        {"role": "user", "parts": [{"type": "text", "content": text}]},
        {"role": text, "parts": [{"type": text}]},
        {"role": "user", "parts": [{"type": "text", "content": text}]},
    ]
    assert attributes._messages(messages) == json.dumps(expected, ensure_ascii=False)
