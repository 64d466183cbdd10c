"""Light spans tell what the SDK's own would, and stand back wherever somebody could see a difference."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import dspy
import pytest
from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider, sampling
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import NonRecordingSpan, SpanContext, StatusCode, TraceFlags, TraceState, set_span_in_context

from dspy_observe import OTelCallback, Tracing
from dspy_observe.callbacks.otel import spans as light
from dspy_observe.callbacks.otel.spans import CallSpan
from dspy_observe.testing import frozen_clock, offline_lm


class Collected:
    """A provider and what it exported."""

    def __init__(self, **options: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False, **options)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.otel = OTelCallback(Tracing(tracer_provider=self.provider))

    def run(self, inside: Callable[[], Any] = lambda: None) -> list[ReadableSpan]:
        """Run a program once, doing something inside its LM call, and return the spans of that run."""
        self.exporter.clear()

        def answer(_: Any) -> Any:
            inside()
            return {"answer": "42"}

        with frozen_clock(), dspy.context(lm=offline_lm(answer, num_retries=0), callbacks=[self.otel]):
            dspy.Predict("question -> answer")(question="why?")
        return list(self.exporter.get_finished_spans())


def told(span: ReadableSpan) -> tuple[Any, ...]:
    """Everything that is not an id, a time of its own, or a count."""
    attributes = {k: v for k, v in (span.attributes or {}).items() if k not in ("dspy.call_id", "gen_ai.response.id")}
    events = [(event.name, dict(event.attributes or {})) for event in span.events]
    links = [(link.context, dict(link.attributes or {})) for link in span.links]
    return (
        span.name, span.kind, span.start_time, span.end_time, span.status.status_code, span.status.description,
        attributes, events, links, span.resource, span.instrumentation_scope, span.context.trace_flags,
        span.context.trace_state, span.parent is None, span.dropped_attributes,
    )  # fmt: skip


def make_light(monkeypatch: pytest.MonkeyPatch, wanted: bool) -> None:
    """Let spans be light, or have all made by the SDK."""
    monkeypatch.setattr(light, "_can_be_light", lambda: wanted)


def touch() -> None:
    """What an application may do with the span that is current in its call."""
    span: Any = trace.get_current_span()
    assert span.is_recording()
    span.set_attribute("app.user", "anna")
    span.set_attributes({"app.list": ["a", "b"], "gen_ai.response.model": "overwritten at the end"})
    span.add_event("app.event", {"n": 1}, timestamp=5)
    span.add_link(SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(1)), {"why": "because"})
    span.update_name("renamed")
    span.set_status(StatusCode.ERROR, "app's own")
    assert span.attributes["app.user"] == "anna"


def look() -> None:
    """What an application may ask of that span without changing it."""
    span: Any = trace.get_current_span()
    assert isinstance(span, ReadableSpan)
    assert span.name == "chat model"
    assert span.attributes["gen_ai.operation.name"] == "chat"
    assert span.get_span_context().is_valid
    assert span.parent.span_id != span.context.span_id
    assert not list(span.events)
    assert not list(span.links)
    assert span.end_time is None
    assert span.status.status_code is StatusCode.UNSET
    assert "chat model" in span.to_json()


@pytest.mark.parametrize("inside", [lambda: None, touch, look])
def test_a_light_span_tells_what_the_sdks_own_tells(inside: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Untouched, changed, and looked at by the application while it is open."""
    made: list[list[ReadableSpan]] = []
    for wanted in (True, False):
        make_light(monkeypatch, wanted)
        collected = Collected()
        made.append(collected.run(inside))
        assert all(isinstance(span, CallSpan) for span in made[-1]) is (wanted and inside not in (touch, look))
    ours, theirs = made
    assert [told(span)[:-1] for span in ours] == [told(span)[:-1] for span in theirs]
    assert [told(span)[-1] for span in ours] == [told(span)[-1] for span in theirs]
    lm, root = ours
    assert lm.parent is not None
    assert lm.parent == root.context
    assert lm.to_json()


def test_this_release_of_the_sdk_is_known() -> None:
    """The pinned SDK has the parts that light spans stand on; where it has not, the SDK makes all spans."""
    light._can_be_light.cache_clear()
    assert light._can_be_light()


class OnStart(SpanProcessor):
    """A processor of the application's that marks every span as it starts."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        span.set_attribute("app.tenant", "acme")


def test_a_processor_that_wants_to_know_of_starts_is_told() -> None:
    """Also one that the application adds later."""
    collected = Collected()
    assert all(isinstance(span, CallSpan) for span in collected.run())
    collected.provider.add_span_processor(OnStart())
    found = collected.run()
    assert not any(isinstance(span, CallSpan) for span in found)
    assert [(span.attributes or {}).get("app.tenant") for span in found] == ["acme", "acme"]


def test_a_processor_that_raises_keeps_no_span_from_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processors are told one after the other."""
    monkeypatch.delenv("DSPY_OBSERVE_STRICT", raising=False)

    class Raises(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            raise OSError

    collected = Collected()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(Raises())
    provider.add_span_processor(SimpleSpanProcessor(collected.exporter))
    collected.otel = OTelCallback(Tracing(tracer_provider=provider))
    assert len(collected.run()) == 2


class Never(sampling.Sampler):
    """A sampler of the application's, which wants to be asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []

    def should_sample(self, parent_context: Any, trace_id: int, name: str, kind: Any = None,
                      attributes: Any = None, *_: Any, **__: Any) -> sampling.SamplingResult:  # fmt: skip
        self.asked.append((name, attributes["openinference.span.kind"]))
        return sampling.SamplingResult(sampling.Decision.DROP)

    def get_description(self) -> str:
        return "Never"


def test_a_sampler_is_asked_about_every_root() -> None:
    """And about children too where it does not leave them to their parents."""
    never = Never()
    assert Collected(sampler=never).run() == []
    assert never.asked == [("invoke_workflow Predict", "CHAIN"), ("chat model", "LLM")]
    below = Never()
    assert Collected(sampler=sampling.ParentBased(below)).run() == []
    assert [name for name, _ in below.asked] == ["invoke_workflow Predict"]
    half = Collected(sampler=sampling.ParentBased(sampling.TraceIdRatioBased(0.5)))
    runs = [len(half.run()) for _ in range(40)]
    assert set(runs) == {0, 2}, "a trace is whole or not there"


def test_an_unsampled_parent_stays_unsampled() -> None:
    """A request that is not traced has no traced call inside."""
    collected = Collected()
    token = context_api.attach(set_span_in_context(NonRecordingSpan(SpanContext(1, 2, is_remote=True))))
    try:
        assert collected.run() == []
    finally:
        context_api.detach(token)


def test_a_remote_parent_hands_down_trace_id_flags_and_state() -> None:
    """As the W3C headers of a request bring them."""
    state = TraceState([("vendor", "opaque")])
    remote = SpanContext(7, 8, is_remote=True, trace_flags=TraceFlags(3), trace_state=state)
    token = context_api.attach(set_span_in_context(NonRecordingSpan(remote)))
    try:
        lm, root = Collected().run()
    finally:
        context_api.detach(token)
    assert root.parent == remote
    assert lm.parent == root.context
    for span in (lm, root):
        assert span.context.trace_id == 7
        assert span.context.trace_state == state
        assert span.context.trace_flags == 3
    assert lm.context.span_id != root.context.span_id


def test_ids_come_from_the_applications_generator() -> None:
    """Such as one that X-Ray can read."""

    class Counting(IdGenerator):
        def __init__(self) -> None:
            self.last = 0

        def generate_span_id(self) -> int:
            self.last += 1
            return self.last

        def generate_trace_id(self) -> int:
            return 77

    lm, root = Collected(id_generator=Counting()).run()
    assert (root.context.trace_id, root.context.span_id, lm.context.span_id) == (77, 1, 2)
    assert not root.context.trace_flags & 2


def test_span_limits_are_kept() -> None:
    """Of attributes a span may have, and of characters a value may have."""
    for limits in (SpanLimits(max_span_attributes=3), SpanLimits(max_span_attribute_length=4)):
        for span in Collected(span_limits=limits).run():
            attributes = span.attributes or {}
            assert len(attributes) <= 3 or max(len(v) for v in attributes.values() if isinstance(v, str)) <= 4


def test_many_threads_may_touch_one_span() -> None:
    """No attribute of any of them is lost."""

    def crowd() -> None:
        span = trace.get_current_span()
        gate = threading.Barrier(8)

        def add(number: int) -> None:
            gate.wait(20)
            span.set_attribute(f"app.{number}", number)

        threads = [threading.Thread(target=add, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    for _ in range(10):
        lm, _root = Collected().run(crowd)
        assert {(lm.attributes or {}).get(f"app.{number}") for number in range(8)} == set(range(8))


def test_a_batch_processor_has_the_span_when_the_call_returns() -> None:
    """The application's own force_flush sends it, as a function that is frozen after each request must do."""
    collected = Collected()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(collected.exporter, schedule_delay_millis=60_000))
    collected.otel = OTelCallback(Tracing(tracer_provider=provider))
    assert collected.run() == []
    assert provider.force_flush()
    assert len(collected.exporter.get_finished_spans()) == 2
    provider.shutdown()


def test_a_busy_program_loses_no_spans() -> None:
    """A program that never waits still lets OpenTelemetry's exporting thread empty its queue."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=512, max_export_batch_size=64))
    maker = light.SpanMaker(provider, "test")
    many = 5_000

    def work() -> None:
        """Quicker than any program, with the same calls into the system."""
        for _ in range(many):
            span = maker.start("busy", trace.SpanKind.INTERNAL, context_api.Context(), None, {}, 1)
            assert isinstance(span, CallSpan)
            span.finish({}, 2)
            maker.deliver(span)
            for _ in range(3):
                sum(range(2000))
                os.urandom(16)

    work()
    assert provider.force_flush()
    assert len(exporter.get_finished_spans()) == many
    provider.shutdown()
