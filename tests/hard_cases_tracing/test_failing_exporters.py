"""Case 37: an exporter that is down, raises or hangs costs the program nothing; what is lost is counted, once told."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Sequence
from typing import Any

import dspy
import pytest
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from prometheus_client import CollectorRegistry

import dspy_observe
from dspy_observe import handoff, safety
from dspy_observe.callbacks.base import RecordCallback

pytestmark = pytest.mark.usefixtures("lenient")


class HeldExporter(SpanExporter):
    """An exporter that hangs until it is let go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.go = threading.Event()
        self.exported = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.entered.set()
        self.go.wait(30)
        self.exported += len(spans)
        return SpanExportResult.SUCCESS


def counted(site: str, before: dict[str, int]) -> int:
    """What was swallowed at a site since then."""
    return safety.counts().get(site, 0) - before.get(site, 0)


def warnings_of(caplog: pytest.LogCaptureFixture, site: str) -> list[str]:
    """Our own warnings about a site."""
    messages = [record.getMessage() for record in caplog.records if record.name == "dspy_observe"]
    return [message for message in messages if site in message]


def run(answering: Any, times: int, callbacks: Sequence[Any]) -> None:
    """Run a program some times and check its answers."""
    lm = answering()
    with dspy.context(lm=lm, callbacks=[*dspy.settings.callbacks, *callbacks]):
        for _ in range(times):
            assert dspy.Predict("question -> answer")(question="why?").answer == "42"


def test_a_hanging_exporter(answering: Any) -> None:
    """Case 37: calls finish while a batch exporter of the application hangs."""
    exporter = HeldExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=64, max_export_batch_size=1))
    otel = dspy_observe.OTelCallback(dspy_observe.Tracing(tracer_provider=provider))
    run(answering, 1, [otel])
    assert exporter.entered.wait(10)
    run(answering, 20, [otel])
    assert exporter.exported == 0
    exporter.go.set()
    assert otel.flush(10)
    assert exporter.exported == 42
    provider.shutdown()


def test_our_own_pipeline_drops_and_counts(
    answering: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, expected_sites: set[str]
) -> None:
    """Case 37: with the queue of our own pipeline full, spans are dropped, counted, and told once."""
    exporter = HeldExporter()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:9/v1/traces")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")
    monkeypatch.setattr("dspy_observe.callbacks.otel.pipeline._span_exporter", lambda: exporter)
    before = safety.counts()
    otel = dspy_observe.OTelCallback()
    run(answering, 1, [otel])
    assert exporter.entered.wait(10)
    run(answering, 20, [otel])
    dropped = counted("otel.queue", before)
    expected_sites.add("otel.queue")
    exporter.go.set()
    assert otel.flush(10)
    assert dropped + exporter.exported == 42
    assert dropped >= 30
    assert len(warnings_of(caplog, "otel.queue")) == 1
    otel.close()


def test_a_collector_that_is_down(
    answering: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, expected_sites: set[str]
) -> None:
    """Case 37: nobody listens at the OTLP endpoint: calls go on, every lost span is counted, one warning of ours."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"http://127.0.0.1:{port}/v1/traces")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    before = safety.counts()
    registry = CollectorRegistry()
    with dspy_observe.configure(metrics=dspy_observe.Metrics(collector_registry=registry), logs=False) as observer:
        run(answering, 5, [])
        observer.flush(10)
    expected_sites.add("otel.export")
    assert counted("otel.export", before) == 10
    assert len(warnings_of(caplog, "otel.export")) == 1
    labels = {"site": "otel.export"}
    # The counter starts with what the process lost before it was made.
    assert registry.get_sample_value("dspy_observe_internal_errors_total", labels) == safety.counts()["otel.export"]


class Raising:
    """A logger whose handler is broken."""

    def info(self, event: str, **fields: Any) -> None:
        raise OSError("disk full")

    warning = info


class RaisingProcessor(SpanProcessor):
    def on_end(self, span: ReadableSpan) -> None:
        raise OSError("broken pipe")


class RaisingReader(RecordCallback):
    def started(self, start: Any) -> None:
        raise ZeroDivisionError

    def finished(self, record: Any) -> None:
        raise ZeroDivisionError


def test_sinks_that_raise(
    observed: Any, answering: Any, caplog: pytest.LogCaptureFixture, expected_sites: set[str]
) -> None:
    """Case 37: broken loggers, processors and readers are counted and told once each; siblings lose nothing."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(RaisingProcessor())
    before = safety.counts()
    broken = [
        RaisingReader(),
        dspy_observe.LogCallback(dspy_observe.Logs(logger=Raising())),
        dspy_observe.OTelCallback(dspy_observe.Tracing(tracer_provider=provider)),
    ]
    run(answering, 10, [*broken, *observed.callbacks])
    assert all(each.flush(20) for each in list(handoff._all))
    observed.check_tree()
    # Two calls and two adapter calls each; the logger writes one line for the root and one for the LM.
    for site, count in {
        "RaisingReader.started": 40, "RaisingReader.finished": 40, "logs.emit": 20, "otel.span_end": 20,
    }.items():  # fmt: skip
        expected_sites.add(site)
        assert counted(site, before) == count, site
        assert len(warnings_of(caplog, site)) == 1
    assert len(observed.calls) == 20


def test_a_price_and_a_detector_that_raise(
    answering: Any, observing: Any, expected_sites: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Case 37: a broken price function leaves DSPy's estimate (here: none) in place."""
    observed = observing()

    def price(_: Any) -> float:
        raise KeyError("price list")

    before = safety.counts()
    cost = dspy_observe.CostCallback(
        dspy_observe.Cost(price=price), dspy_observe.Metrics(collector_registry=CollectorRegistry())
    )
    run(answering, 3, [cost, *observed.callbacks])
    expected_sites.add("ledger.price")
    assert counted("ledger.price", before) == 3
    assert len(warnings_of(caplog, "ledger.price")) == 1
    assert [record.cost_usd for record in observed.records if record.kind == "lm"] == [None] * 3


class HeldLogger:
    """A logger that hangs from its first line on."""

    def __init__(self) -> None:
        self.lines = 0
        self.held = threading.Event()
        self.go = threading.Event()

    def info(self, event: str, **fields: Any) -> None:
        self.held.set()
        self.go.wait(30)
        self.lines += 1

    warning = info


def test_a_logger_that_hangs(answering: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
                             expected_sites: set[str]) -> None:  # fmt: skip
    """Case 37: calls finish while the logger hangs, the first one too; what does not fit is counted and told once."""
    monkeypatch.setattr(handoff, "_MAX_WAITING", 5)
    before = safety.counts()
    logger = HeldLogger()
    callback = dspy_observe.LogCallback(dspy_observe.Logs(logger=logger))
    run(answering, 1, [callback])
    assert logger.held.wait(10)
    run(answering, 20, [callback])
    assert logger.lines == 0
    dropped = counted("logs.emit.dropped", before)
    expected_sites.add("logs.emit.dropped")
    logger.go.set()
    assert callback.flush(10)
    assert dropped + logger.lines == 42
    assert dropped > 30
    assert len(warnings_of(caplog, "logs.emit.dropped")) == 1


class HeldProcessor(SpanProcessor):
    """A processor of the application's that exports at once, and hangs from its first span on."""

    def __init__(self) -> None:
        self.held = threading.Event()
        self.go = threading.Event()
        self.ended = 0

    def on_end(self, span: ReadableSpan) -> None:
        self.held.set()
        self.go.wait(30)
        self.ended += 1


@pytest.mark.parametrize("synchronous", ["processor", "exporter"])
def test_an_exporter_that_hangs_in_the_callers_way(answering: Any, synchronous: str) -> None:
    """Case 37: the end of a span is not waited for, and no span is lost."""
    held: Any = HeldProcessor() if synchronous == "processor" else HeldExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(held if synchronous == "processor" else SimpleSpanProcessor(held))
    otel = dspy_observe.OTelCallback(dspy_observe.Tracing(tracer_provider=provider))
    run(answering, 3, [otel])
    assert (held.held if synchronous == "processor" else held.entered).is_set()
    assert not otel.flush(0.0)
    held.go.set()
    assert otel.flush(20)
    assert (held.ended if synchronous == "processor" else held.exported) == 6


def test_strict_mode_shows_what_is_swallowed(
    answering: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, expected_sites: set[str]
) -> None:
    """Case 37: DSPY_OBSERVE_STRICT=1 raises our faults again; DSPy then reports each of them."""
    monkeypatch.setenv("DSPY_OBSERVE_STRICT", "1")
    caplog.set_level(logging.WARNING)
    run(answering, 1, [RaisingReader()])
    expected_sites.update({"RaisingReader.started", "RaisingReader.finished", "ledger.open", "ledger.close"})
    assert safety.counts()["RaisingReader.started"] > 0
