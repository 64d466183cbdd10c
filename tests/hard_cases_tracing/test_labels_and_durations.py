"""Case 40: durations leave out other callbacks; labels are bounded; totals are the provider's bill."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import dspy
import pytest
from dspy.utils.callback import BaseCallback
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry

import dspy_observe
from dspy_observe import LatencyCallback, Metrics
from dspy_observe.metrics import render
from dspy_observe.openai_server import Failure, OpenAIServer
from dspy_observe.testing import Capture, FrozenClock, frozen_clock, offline_lm


class Slow(BaseCallback):
    """A neighbour that takes ten seconds in every handler."""

    def __init__(self, clock: FrozenClock) -> None:
        self.clock = clock

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("on_"):
            return lambda **_: self.clock.advance(10.0)
        return super().__getattribute__(name)


@pytest.mark.parametrize("slow_first", [True, False])
def test_slow_neighbours_are_left_out(observed: Any, slow_first: bool) -> None:
    """Case 40: what a neighbour takes in front of us is no part of a duration; behind us, only its start is."""
    with frozen_clock() as clock:

        def answer(_: Any) -> Any:
            clock.advance(2.0)
            return {"answer": "42"}

        slow = Slow(clock)
        listed = [slow, observed.otel, observed.capture] if slow_first else [observed.otel, observed.capture, slow]
        with dspy.context(callbacks=listed):
            offline_lm(answer)("why?")
    (call,) = observed.records
    # DSPy runs starts and ends in list order: our last start and first end enclose one handler either way.
    assert call.duration_s == 12.0
    (span,) = observed.spans
    assert (span.end_time - span.start_time) / 1e9 == pytest.approx(12.0)


def test_our_own_callbacks_are_left_out() -> None:
    """Case 40: among ours, grouped or not, a slow reader is no part of the duration."""

    class SlowReader(Capture):
        def started(self, start: Any) -> None:
            clock.advance(10.0)

        def finished(self, record: Any) -> None:
            super().finished(record)
            clock.advance(10.0)

    for wrap in (lambda *callbacks: [dspy_observe.CallbackGroup(*callbacks)], lambda *callbacks: list(callbacks)):
        with frozen_clock() as clock:
            first, second = SlowReader(), SlowReader()
            with dspy.context(callbacks=wrap(first, second)):
                offline_lm(lambda _: clock.advance(2.0) or "42")("why?")
        assert [first.records[0].duration_s, second.records[0].duration_s] == [2.0, 2.0]


def samples(registry: CollectorRegistry, name: str) -> Iterable[Any]:
    """All time series of one name."""
    return [sample for metric in registry.collect() for sample in metric.samples if sample.name == name]


def test_label_values_are_bounded() -> None:
    """Case 40: names that come from data are admitted up to the ceiling, the rest is `other`, and nothing is lost."""
    registry = CollectorRegistry()
    latency = LatencyCallback(Metrics(collector_registry=registry, max_label_values=3))
    with dspy.context(callbacks=[latency]):
        for number in range(20):
            dspy.Tool(lambda: "done", name=f"tool_{number}")()
            offline_lm("42", model=f"offline/model-{number}")("why?")
            type(f"Program{number}", (dspy.Module,), {"forward": lambda self: 1})()()
    for name, label in (
        ("dspy_tool_duration_seconds_count", "tool"),
        ("dspy_lm_duration_seconds_count", "model"),
        ("dspy_module_duration_seconds_count", "module"),
        ("dspy_program_duration_seconds_count", "program"),
    ):
        found = list(samples(registry, name))
        assert len({sample.labels[label] for sample in found}) == 4
        assert sum(sample.value for sample in found if sample.labels[label] == "other") == 17
        assert sum(sample.value for sample in found) == 20


def test_no_label_holds_an_id(observed: Any, answering: Any) -> None:
    """Case 40: nothing in the labels differs from call to call."""
    registry = CollectorRegistry()
    metrics = Metrics(collector_registry=registry)
    callbacks = [*observed.callbacks, LatencyCallback(metrics), dspy_observe.CostCallback(metrics=metrics)]
    with dspy.context(lm=answering(), callbacks=callbacks):
        dspy.ChainOfThought("question -> answer")(question="why?")
        once = {
            (sample.name, *sorted(sample.labels.items())) for metric in registry.collect() for sample in metric.samples
        }
        dspy.ChainOfThought("question -> answer")(question="why not?")
    twice = {
        (sample.name, *sorted(sample.labels.items())) for metric in registry.collect() for sample in metric.samples
    }
    assert twice == once
    page = render(registry, "application/openmetrics-text")[0].decode()
    without_exemplars = re.sub(r" # \{.*", "", page)
    for record in observed.records:
        assert record.call_id not in page
        assert record.trace_id is None or record.trace_id not in without_exemplars


def test_totals_are_the_bill(server: OpenAIServer, served: Any) -> None:
    """Case 40: Prometheus and OpenTelemetry agree with the provider over threads, failures, caches and agents."""
    registry, reader = CollectorRegistry(), InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    predict = dspy.Predict("question -> answer")
    lm = served(cache=True, num_retries=3)
    server.script([Failure.rate_limited(), Failure.server_error()])
    with (
        dspy_observe.configure(
            metrics=Metrics(collector_registry=registry), tracing=dspy_observe.Tracing(meter_provider=meters)
        ),
        dspy.context(lm=lm),
    ):
        questions = [{"question": f"{server.base_url} {number % 12}"} for number in range(12)]
        dspy.Parallel(num_threads=4, disable_progress_bar=True)([(predict, question) for question in questions])
        dspy.Parallel(num_threads=4, disable_progress_bar=True)([(predict, question) for question in questions])
        dspy.ReAct("question -> answer", tools=[], max_iters=2)(**questions[0])
    prompt = sum(bill.prompt_tokens for bill in server.bills)
    completion = sum(bill.completion_tokens for bill in server.bills)

    def total(name: str, **labels: str) -> float:
        return sum(s.value for s in samples(registry, name) if labels.items() <= s.labels.items())

    assert total("dspy_tokens_total", kind="prompt") == prompt
    assert total("dspy_tokens_total", kind="completion") == completion
    assert total("dspy_cache_requests_total", result="hit") == 12
    assert total("dspy_cache_requests_total", result="miss") == len(server.bills)
    assert total("dspy_requests_total") == len(server.bills) + 12
    points = {
        (metric.name, point.attributes.get("gen_ai.token.type")): point
        for resource in reader.get_metrics_data().resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    }
    assert points["gen_ai.client.token.usage", "input"].sum == prompt
    assert points["gen_ai.client.token.usage", "output"].sum == completion
    assert points["gen_ai.client.operation.duration", None].count == len(server.bills)
    meters.shutdown()
