"""The ``traceparent`` of an HTTP request becomes the parent of the DSPy trace, in a Starlette application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import dspy
import httpx
import pytest
from opentelemetry import context as context_api
from opentelemetry import propagate
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

import dspy_observe
from dspy_observe.openai_server import OpenAIServer

pytestmark = pytest.mark.e2e
CALLER = "00f067aa0ba902b7"


class TraceContext:
    """Take the caller's trace over for one request; all that an application needs where it makes no spans itself."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        token = context_api.attach(propagate.extract(headers))
        try:
            await self.app(scope, receive, send)
        finally:
            context_api.detach(token)


program = dspy.ChainOfThought("question -> answer")


async def ask(request: Request) -> JSONResponse:
    """Awaited in the request's task."""
    prediction = await program.acall(question=request.query_params["q"])
    return JSONResponse({"answer": prediction.answer})


def ask_in_a_thread(request: Request) -> JSONResponse:
    """A plain function, which Starlette runs on its thread pool."""
    return JSONResponse({"answer": program(question=request.query_params["q"]).answer})


async def stream(request: Request) -> StreamingResponse:
    """Streamed while the model answers."""
    listener = dspy.streaming.StreamListener(signature_field_name="answer")
    run = dspy.streamify(dspy.Predict("question -> answer"), stream_listeners=[listener])

    async def chunks() -> AsyncIterator[str]:
        async for item in run(question=request.query_params["q"]):
            if isinstance(item, dspy.streaming.StreamResponse):
                yield item.chunk

    return StreamingResponse(chunks(), media_type="text/plain")


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    """What is exported."""
    return InMemorySpanExporter()


@pytest.fixture
def client(exporter: InMemorySpanExporter) -> Iterator[httpx.AsyncClient]:
    """A client of the observed application."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    routes = [Route("/ask", ask), Route("/thread", ask_in_a_thread), Route("/stream", stream)]
    app = Starlette(routes=routes, middleware=[Middleware(TraceContext)])
    with OpenAIServer() as server:
        dspy.configure(lm=dspy.LM("openai/gpt-4o-mini", api_base=server.base_url, api_key="k", cache=False))
        with dspy_observe.configure(
            tracing=dspy_observe.Tracing(tracer_provider=provider),
            metrics=dspy_observe.Metrics(collector_registry=CollectorRegistry()),
            logs=False,
        ):
            yield httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app")


def trace_id(number: int) -> str:
    """A caller's trace id."""
    return f"4bf92f3577b34da6a3ce929d{number:08x}"


@contextmanager
def nothing_stays() -> Iterator[None]:
    """No request leaves its trace behind."""
    before = context_api.get_current()
    yield
    assert context_api.get_current() == before


def by_trace(exporter: InMemorySpanExporter) -> dict[str, list[ReadableSpan]]:
    """The exported spans of each trace."""
    found: dict[str, list[ReadableSpan]] = {}
    for span in exporter.get_finished_spans():
        found.setdefault(f"{span.context.trace_id:032x}", []).append(span)
    return found


@pytest.mark.parametrize(("path", "spans"), [("/ask", 3), ("/thread", 3), ("/stream", 2)])
async def test_every_request_continues_its_callers_trace(
    client: httpx.AsyncClient, exporter: InMemorySpanExporter, path: str, spans: int
) -> None:
    """Concurrent requests: the program's root hangs below its own caller's span, all its spans in that trace."""

    async def request(number: int) -> None:
        headers = {"traceparent": f"00-{trace_id(number)}-{CALLER}-01"}
        reply = await client.get(path, params={"q": f"{number}?"}, headers=headers)
        assert f"{number}?" in reply.text

    with nothing_stays():
        await asyncio.gather(*(request(number) for number in range(1, 9)))
    traces = by_trace(exporter)
    assert set(traces) == {trace_id(number) for number in range(1, 9)}
    for found in traces.values():
        assert len(found) == spans
        ids = {span.context.span_id for span in found}
        (root,) = (span for span in found if span.parent is not None and span.parent.span_id not in ids)
        assert root.parent is not None
        assert (root.parent.is_remote, f"{root.parent.span_id:016x}") == (True, CALLER)
        assert root.name.startswith("invoke_workflow")


async def test_a_request_without_a_caller_begins_a_trace(
    client: httpx.AsyncClient, exporter: InMemorySpanExporter
) -> None:
    """Without the header, or with one that cannot be read, each request has a trace of its own."""
    for headers in ({}, {"traceparent": "nonsense"}):
        await client.get("/ask", params={"q": "?"}, headers=headers)
    traces = by_trace(exporter)
    assert len(traces) == 2
    assert all(sum(span.parent is None for span in found) == 1 for found in traces.values())


async def test_a_caller_that_does_not_sample_is_heeded(
    client: httpx.AsyncClient, exporter: InMemorySpanExporter
) -> None:
    """Nothing is exported for a request whose caller decided against it, as the SDK's default sampler has it."""
    await client.get("/ask", params={"q": "?"}, headers={"traceparent": f"00-{trace_id(1)}-{CALLER}-00"})
    assert exporter.get_finished_spans() == ()
