"""One inference span for one model call, where the model's own SDK is instrumented too: by OpenTelemetry's package."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dspy
import pytest
from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.util.genai.handler import TelemetryHandler
from opentelemetry.util.genai.invocation import CLIENT_INFERENCE_CONTEXT_KEY

from dspy_observe import OTelCallback, Tracing
from dspy_observe.conventions import EMBEDDING_DATA_KEY, INFERENCE_DATA_KEY
from dspy_observe.embedding import ObservedEmbedder
from dspy_observe.openai_server import OpenAIServer
from dspy_observe.testing import Capture, offline_lm

pytestmark = pytest.mark.e2e
CHAT = "chat gpt-4o-mini"


class Spans:
    """A provider, and what went through it."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def inferences(self) -> list[ReadableSpan]:
        """The spans of model calls."""
        kinds = {"chat", "embeddings"}
        found = self.exporter.get_finished_spans()
        return [span for span in found if (span.attributes or {}).get("gen_ai.operation.name") in kinds]


@pytest.fixture
def spans() -> Spans:
    """One provider for all."""
    return Spans()


@pytest.fixture
def sdk_instrumented(spans: Spans) -> Iterator[None]:
    """OpenAI's SDK, which LiteLLM calls, makes spans of its own."""
    instrumentor = OpenAIInstrumentor()
    instrumentor.instrument(tracer_provider=spans.provider)
    yield
    instrumentor.uninstrument()


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    """The provider of the models."""
    with OpenAIServer() as running:
        yield running


def through_the_sdk(server: OpenAIServer, **options: Any) -> dspy.LM:
    """An LM whose requests OpenAI's SDK sends."""
    return dspy.LM(
        "openai/gpt-4o-mini", api_base=server.base_url, api_key="k", cache=False, engine="litellm", **options
    )


def in_a_thread(function: Callable[[], object]) -> None:
    """Call something in a thread: on the main one, LiteLLM would leave an event loop that nobody closes."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(function).result()


def test_the_keys_are_those_of_the_released_package() -> None:
    """What we write down as their context keys is what their package reads."""
    from opentelemetry.util.genai.invocation import CLIENT_EMBEDDING_CONTEXT_KEY

    assert (INFERENCE_DATA_KEY, EMBEDDING_DATA_KEY) == (CLIENT_INFERENCE_CONTEXT_KEY, CLIENT_EMBEDDING_CONTEXT_KEY)


def test_the_sdk_makes_a_span_when_nobody_is_above_it(
    spans: Spans, sdk_instrumented: None, server: OpenAIServer
) -> None:
    """Without us there is their span: what the next test misses is not missing for another reason."""

    def call() -> None:
        with dspy.context(lm=through_the_sdk(server)):
            dspy.Predict("question -> answer")(question="Why?")

    in_a_thread(call)
    (span,) = spans.inferences()
    assert span.instrumentation_scope.name == "opentelemetry.instrumentation.genai.openai"


def test_the_sdk_leaves_the_span_to_us(spans: Spans, sdk_instrumented: None, server: OpenAIServer) -> None:
    """With us above it there is one inference span for each LM call, ours, with the bill on it."""
    program = dspy.ChainOfThought("question -> answer")
    otel = OTelCallback(Tracing(tracer_provider=spans.provider))

    def call() -> None:
        with dspy.context(lm=through_the_sdk(server), callbacks=[otel]):
            program(question="1?")
            program(question="2?")

    in_a_thread(call)
    assert_ours(spans, server)


async def test_the_sdk_leaves_the_span_to_us_when_awaited(
    spans: Spans, sdk_instrumented: None, server: OpenAIServer
) -> None:
    """The same in a task."""
    program = dspy.ChainOfThought("question -> answer")
    with dspy.context(lm=through_the_sdk(server), callbacks=[OTelCallback(Tracing(tracer_provider=spans.provider))]):
        await program.acall(question="1?")
        await program.acall(question="2?")
    assert_ours(spans, server)


def assert_ours(spans: Spans, server: OpenAIServer) -> None:
    """One span for each bill, all ours, and nothing left in the context."""
    found = spans.inferences()
    assert [(span.name, span.instrumentation_scope.name) for span in found] == [(CHAT, "dspy_observe")] * 2
    tokens = Counter(span.attributes["gen_ai.usage.input_tokens"] for span in found if span.attributes)
    assert tokens == Counter(bill.prompt_tokens for bill in server.bills)
    assert context_api.get_value(INFERENCE_DATA_KEY) is None


def test_the_sdk_leaves_an_embedding_to_us(spans: Spans, sdk_instrumented: None, server: OpenAIServer) -> None:
    """The same for embeddings, which have a key of their own."""
    embedder = ObservedEmbedder(
        "openai/text-embedding-3-small", api_base=server.base_url, api_key="k", caching=False, encoding_format="float"
    )
    otel = OTelCallback(Tracing(tracer_provider=spans.provider))

    def call() -> None:
        with dspy.context(callbacks=[otel]):
            embedder(["a text"])

    in_a_thread(call)
    (span,) = spans.inferences()
    assert (span.name, span.instrumentation_scope.name) == ("embeddings text-embedding-3-small", "dspy_observe")


def test_an_inference_that_others_opened_gets_our_facts(spans: Spans) -> None:
    """Inside an inference of their package ours makes no span, puts cost and program on theirs, and joins its logs."""
    capture = Capture()
    otel = OTelCallback(Tracing(tracer_provider=spans.provider))
    handler = TelemetryHandler(tracer_provider=spans.provider)
    lm = offline_lm("hello", model="gpt-4o-mini")
    with dspy.context(callbacks=[otel, capture]):
        with handler.inference("openai", request_model="gpt-4o-mini"):
            lm("question")
        lm("after it")
    theirs, ours = spans.inferences()
    assert theirs.attributes is not None
    assert theirs.attributes["dspy.cache_hit"] is False
    assert theirs.attributes["dspy.role"] == "stable"
    assert ours.instrumentation_scope.name == "dspy_observe"
    inside, after = capture.records
    assert inside.span_id == f"{theirs.context.span_id:016x}"
    assert inside.trace_id == f"{theirs.context.trace_id:032x}"
    assert after.span_id == f"{ours.context.span_id:016x}"
    assert otel._others == {}


def test_an_inference_exported_elsewhere_hides_nothing(spans: Spans) -> None:
    """Their inference span on another provider leaves ours where it is."""
    handler = TelemetryHandler(tracer_provider=Spans().provider)
    otel = OTelCallback(Tracing(tracer_provider=spans.provider))
    with dspy.context(callbacks=[otel]), handler.inference("openai", request_model="gpt-4o-mini"):
        offline_lm("hello")("question")
    assert [span.instrumentation_scope.name for span in spans.inferences()] == ["dspy_observe"]


def test_an_inference_that_was_given_up_is_forgotten(spans: Spans) -> None:
    """What is kept of others' inferences goes when the ledger gives up a call."""
    otel, capture = OTelCallback(Tracing(tracer_provider=spans.provider)), Capture()
    kept: list[int] = []

    def answer(_: Any) -> str:
        kept.append(len(otel._others))
        otel.dropped(capture.starts[-1])
        kept.append(len(otel._others))
        return "hello"

    handler = TelemetryHandler(tracer_provider=spans.provider)
    with dspy.context(callbacks=[otel, capture]), handler.inference("openai"):
        offline_lm(answer)("question")
    assert kept == [1, 0]


def test_a_nested_lm_call_of_ours_keeps_its_span(spans: Spans) -> None:
    """What we left for others is not taken for an inference of others when an engine calls another LM."""
    inner = offline_lm("inner", model="offline/inner")
    outer = offline_lm(lambda _: inner("nested")[0], model="offline/outer")
    with dspy.context(callbacks=[OTelCallback(Tracing(tracer_provider=spans.provider))]):
        outer("question")
    found = {span.name: span for span in spans.inferences()}
    assert set(found) == {"chat inner", "chat outer"}
    assert found["chat inner"].parent is not None
    assert found["chat inner"].parent.span_id == found["chat outer"].context.span_id
    assert not trace.get_current_span().get_span_context().is_valid
