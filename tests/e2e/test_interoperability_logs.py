"""Log lines and exported spans join by trace and span id, however the program runs, as JSON lines and over OTLP."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Callable, Iterator
from email.message import Message
from typing import Any

import dspy
import pytest
import structlog
from dspy.utils.exceptions import AdapterParseError
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

import dspy_observe
from dspy_observe.conventions import LOG_LM_CALL, LOG_ROOT_CALL
from dspy_observe.openai_server import OpenAIServer
from dspy_observe.openai_server.answers import answer_prompt
from tests.collectors import PostServer

pytestmark = pytest.mark.e2e
UNREADABLE = "Which question has no readable answer?"


class Answerer(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.think = dspy.ChainOfThought("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        return self.think(question=question)

    async def aforward(self, question: str) -> dspy.Prediction:
        return await self.think.acall(question=question)


def called() -> None:
    """A call."""
    Answerer()(question="Why?")


def awaited() -> None:
    """Concurrent tasks."""

    async def run() -> None:
        program = Answerer()
        await asyncio.gather(*(program.acall(question=f"{number}?") for number in range(5)))

    asyncio.run(run())


def on_threads() -> None:
    """Work on DSPy's threads."""
    parallel = dspy.Parallel(num_threads=3, disable_progress_bar=True)
    program = Answerer()
    parallel([(program, {"question": f"{number}?"}) for number in range(5)])


def streamed() -> None:
    """A stream."""

    async def run() -> None:
        listener = dspy.streaming.StreamListener(signature_field_name="answer")
        stream = dspy.streamify(dspy.Predict("question -> answer"), stream_listeners=[listener])
        assert [item async for item in stream(question="Which river?")]

    asyncio.run(run())


def failing() -> None:
    """A reply that cannot be parsed."""
    with pytest.raises(AdapterParseError):
        dspy.Predict("question -> answer")(question=UNREADABLE)


WAYS = pytest.mark.parametrize("run", [called, awaited, on_threads, streamed, failing], ids=lambda way: way.__name__)


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    """What is exported."""
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> TracerProvider:
    """The application's provider."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


@pytest.fixture(autouse=True)
def server() -> Iterator[OpenAIServer]:
    """The LM's provider."""
    with OpenAIServer(lambda request: "?" if UNREADABLE in request.prompt else answer_prompt(request)) as running:
        dspy.configure(lm=dspy.LM("openai/gpt-4o-mini", api_base=running.base_url, api_key="k", cache=False))
        yield running


def observe(provider: TracerProvider, logger: Any) -> dspy_observe.Observer:
    """Spans to the provider, lines to the logger."""
    return dspy_observe.configure(
        metrics=dspy_observe.Metrics(collector_registry=CollectorRegistry()),
        tracing=dspy_observe.Tracing(tracer_provider=provider),
        logs=dspy_observe.Logs(logger=logger),
    )


def places(spans: tuple[ReadableSpan, ...], *, lm: bool) -> list[tuple[str, str]]:
    """Trace and span ids, sorted, of the LM spans or of the roots."""
    found = [span for span in spans if (span.name.startswith("chat") if lm else span.parent is None)]
    return sorted((f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}") for span in found)


@WAYS
def test_json_lines_join_the_exported_spans(
    run: Callable[[], None], provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    """Each LM call's and each run's line names the very span that was exported for it, and no other."""
    text = io.StringIO()
    logger = structlog.wrap_logger(structlog.PrintLogger(text), processors=[structlog.processors.JSONRenderer()])
    with observe(provider, logger) as observer:
        run()
        assert observer.flush()
    lines = [json.loads(line) for line in text.getvalue().splitlines()]
    spans = exporter.get_finished_spans()
    for event, lm in ((LOG_LM_CALL, True), (LOG_ROOT_CALL, False)):
        named = sorted((line["trace_id"], line["span_id"]) for line in lines if line["event"] == event)
        assert named
        assert named == places(spans, lm=lm)
    ids = {line["call_id"]: line["trace_id"] for line in lines}
    assert all(ids[line["root_id"]] == line["trace_id"] for line in lines if line["event"] == LOG_LM_CALL)


class LogCollector(PostServer):
    """An OTLP collector of log records, in small."""

    def __init__(self) -> None:
        self.requests: list[ExportLogsServiceRequest] = []

    def answer(self, path: str, headers: Message, body: bytes) -> tuple[int, bytes]:
        """Take the log records."""
        self.requests.append(ExportLogsServiceRequest.FromString(body))
        return 200, ExportLogsServiceResponse().SerializeToString()

    def records(self) -> list[Any]:
        """Every log record so far."""
        return [
            record
            for request in self.requests
            for resource in request.resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]


class ToOpenTelemetry(logging.Handler):
    """What an application's log handler for OpenTelemetry does: the trace comes from the context, not from the text."""

    def __init__(self, provider: LoggerProvider) -> None:
        super().__init__()
        self._logger = provider.get_logger("application")

    def emit(self, record: logging.LogRecord) -> None:
        """Export a record."""
        self._logger.emit(body=record.getMessage(), severity_text=record.levelname)


@pytest.fixture
def collector() -> Iterator[LogCollector]:
    """A collector that runs."""
    with LogCollector() as running:
        yield running


@WAYS
def test_log_records_over_otlp_join_the_exported_spans(
    run: Callable[[], None], provider: TracerProvider, exporter: InMemorySpanExporter, collector: LogCollector
) -> None:
    """The log records that the application exports carry the ids of the call's own span as OTLP fields."""
    logs = LoggerProvider(shutdown_on_exit=False)
    logs.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter(f"{collector.url}/v1/logs")))
    logger = logging.getLogger("test.interoperability")
    logger.setLevel(logging.INFO)
    handler = ToOpenTelemetry(logs)
    logger.addHandler(handler)
    try:
        with observe(provider, logger) as observer:
            run()
            assert observer.flush()
        assert logs.force_flush()
    finally:
        logger.removeHandler(handler)
        logs.shutdown()
    spans = exporter.get_finished_spans()
    records = [(json.loads(record.body.string_value), record) for record in collector.records()]
    for event, lm in ((LOG_LM_CALL, True), (LOG_ROOT_CALL, False)):
        found = [(record.trace_id.hex(), record.span_id.hex()) for line, record in records if line["event"] == event]
        assert found
        assert sorted(found) == places(spans, lm=lm)
    for line, record in records:
        assert (record.trace_id.hex(), record.span_id.hex()) == (line["trace_id"], line["span_id"])
        assert record.flags & 1
