"""Spans reach a collector over OTLP by the standard variables; a collector in trouble changes nothing for a program."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import dspy
import pytest
from prometheus_client import CollectorRegistry

import dspy_observe
from dspy_observe import safety
from dspy_observe.testing import offline_lm
from tests.collectors import WAIT_S, Collector, GRPCCollector, HTTPCollector

pytestmark = pytest.mark.e2e

SPANS_A_CALL = 4  # the program, its chain of thought, the predictor within, the LM call


@pytest.fixture(params=[HTTPCollector, GRPCCollector], ids=["http", "grpc"])
def collector(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector to which the standard variables point."""
    with request.param() as collector:
        point_at(collector.url, collector.protocol, monkeypatch)
        yield collector


def point_at(url: str, protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the standard variables, as a deployment does."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-team=blue")


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what earlier tests logged: a warning of theirs would silence those of the next minute."""
    monkeypatch.setattr(safety, "_logged_at", {})


class Answerer(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.think = dspy.ChainOfThought("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        return self.think(question=question)


class Watched:
    """The program under an observer with every callback on, and what the observer counted of its own losses."""

    def __init__(self) -> None:
        dspy.configure(lm=offline_lm({"reasoning": "It is so.", "answer": "The Danube."}))
        self.registry = CollectorRegistry()
        self.observer = dspy_observe.configure(
            service="collector-test", metrics=dspy_observe.Metrics(collector_registry=self.registry)
        )
        self._program = Answerer()
        self._before = {site: self._count(site) for site in ("otel.export", "otel.queue")}

    def call(self, times: int = 1) -> None:
        """Run the program, whose answer must come through."""
        for _ in range(times):
            assert self._program(question="Which river?").answer == "The Danube."

    def lost(self, site: str) -> float:
        """Spans lost at a site, as the metrics tell it."""
        return self._count(site) - self._before[site]

    def _count(self, site: str) -> float:
        return self.registry.get_sample_value("dspy_observe_internal_errors_total", {"site": site}) or 0.0


@pytest.fixture
def watched(collector: Collector) -> Iterator[Watched]:
    """The program observed, its spans going to the collector."""
    watched = Watched()
    yield watched
    collector.gate.set()
    watched.observer.close()


def attributes(span: Any) -> dict[str, Any]:
    """A decoded span's attributes as plain values."""
    return {pair.key: plain(pair.value) for pair in span.attributes}


def plain(value: Any) -> Any:
    """A decoded attribute value."""
    kind = value.WhichOneof("value")
    return [plain(each) for each in value.array_value.values] if kind == "array_value" else getattr(value, kind)


def ours(caplog: pytest.LogCaptureFixture, site: str) -> list[str]:
    """Our warnings about a site."""
    found = [record.getMessage() for record in caplog.records if record.name == "dspy_observe"]
    return [text for text in found if site in text]


def foreign(caplog: pytest.LogCaptureFixture) -> Sequence[str]:
    """What OpenTelemetry's own loggers had to complain about."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("opentelemetry") and record.levelno >= logging.WARNING
    ]


def test_spans_arrive_with_the_conventions_names(
    collector: Collector, watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    """One program run arrives as one trace, with GenAI names, the service's name and the headers of the variables."""
    watched.call()
    assert watched.observer.flush(WAIT_S)
    spans = {span.name: span for span in collector.spans()}
    assert set(spans) == {"invoke_workflow Answerer", "ChainOfThought", "Predict", "chat model"}
    root, lm = spans["invoke_workflow Answerer"], spans["chat model"]
    assert {span.trace_id for span in spans.values()} == {root.trace_id}
    parents = {root.span_id: "root"} | {span.span_id: span.name for span in spans.values() if span is not root}
    assert root.parent_span_id == b""
    assert parents[spans["ChainOfThought"].parent_span_id] == "root"
    assert parents[spans["Predict"].parent_span_id] == "ChainOfThought"
    assert parents[lm.parent_span_id] == "Predict"
    assert lm.kind == lm.SPAN_KIND_CLIENT
    assert root.kind == root.SPAN_KIND_INTERNAL
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "offline",
        "gen_ai.request.model": "model",
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.response.finish_reasons": ["stop"],
    }
    found = attributes(lm)
    assert {name: found.get(name) for name in expected} == expected
    assert attributes(root)["gen_ai.operation.name"] == "invoke_workflow"
    resource = {pair.key: plain(pair.value) for pair in collector.requests[0].resource_spans[0].resource.attributes}
    assert resource["service.name"] == "collector-test"
    assert collector.metadata[0]["x-team"] == "blue"
    if collector.protocol != "grpc":
        assert collector.metadata[0]["path"] == "/v1/traces"
    watched.observer.close()
    assert foreign(caplog) == []


def test_a_refusing_collector_is_counted_span_by_span_and_warned_of_once(
    collector: Collector, watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    """Every span of three refused batches is counted, flush says that they did not go out, one warning is logged."""
    collector.failing = True
    for _ in range(3):
        watched.call()
        assert not watched.observer.flush(WAIT_S)
    assert watched.lost("otel.export") == 3 * SPANS_A_CALL
    assert len(collector.spans()) == 3 * SPANS_A_CALL
    assert len(ours(caplog, "otel.export")) == 1
    collector.failing = False
    watched.call()
    assert watched.observer.flush(WAIT_S)
    assert watched.lost("otel.export") == 3 * SPANS_A_CALL


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_collector_that_is_down_changes_nothing_for_the_program(
    protocol: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With nobody listening, programs answer, closing gives up what waits, and each span of it is counted."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        point_at(f"http://127.0.0.1:{free.getsockname()[1]}", protocol, monkeypatch)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    watched = Watched()
    watched.call(5)
    watched.observer.close()
    assert watched.lost("otel.export") == 5 * SPANS_A_CALL
    assert len(ours(caplog, "otel.export")) == 1


def test_programs_run_while_a_collector_holds_a_request(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Calls complete while the collector holds their spans; what the queue cannot hold is counted, the rest arrives."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "16")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "16")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
    collector.gate.clear()
    watched = Watched()
    watched.call()
    collector.wait_for_a_request()
    held = len(collector.spans())
    watched.call(10)  # in this thread: it gets here only when the calls are done
    assert not collector.gate.is_set()
    assert len(collector.spans()) == held
    dropped = 11 * SPANS_A_CALL - held - 16
    assert watched.lost("otel.queue") == dropped
    assert len(ours(caplog, "otel.queue")) == 1
    collector.gate.set()
    assert watched.observer.flush(WAIT_S)
    assert len(collector.spans()) == held + 16
    watched.observer.close()
    assert watched.lost("otel.export") == 0


@pytest.mark.slow
def test_closing_does_not_wait_for_a_collector_that_never_answers(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing comes back although a request may stay unanswered for minutes; what waited is counted, and not sent."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "300")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    collector.gate.clear()
    watched = Watched()
    watched.call()
    collector.wait_for_a_request()
    held = len(collector.spans())
    watched.call(3)
    closing = threading.Thread(target=watched.observer.close, daemon=True)
    closing.start()
    closing.join(20)  # the SDK alone waits for 30 s
    assert not closing.is_alive()
    assert not collector.gate.is_set()
    counted = threading.Condition()

    def notice(site: str, count: int) -> None:
        with counted:
            counted.notify_all()

    stop = safety.on_error(notice)
    try:
        with counted:
            collector.gate.set()
            # gRPC cancels the request under way, HTTP still hears that it was taken.
            taken = 0 if collector.protocol == "grpc" else held
            given_up = 4 * SPANS_A_CALL - taken
            assert counted.wait_for(lambda: watched.lost("otel.export") == given_up, WAIT_S)
    finally:
        stop()
    assert len(collector.spans()) == held
