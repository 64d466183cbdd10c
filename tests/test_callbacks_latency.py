"""Durations, first chunks, calls in flight and adapter failures, timed by a clock that stands still."""

from __future__ import annotations

from typing import Any

import dspy
import pytest
from dspy.utils.exceptions import AdapterParseError
from prometheus_client import CollectorRegistry

from dspy_observe import LatencyCallback, Metrics, RecordCallback
from dspy_observe.facts import calls
from dspy_observe.records import CallRecord, CallStart
from dspy_observe.testing import FrozenClock, frozen_clock, offline_lm


class Program(dspy.Module):
    """A program that takes its time."""

    def __init__(self, clock: FrozenClock) -> None:
        super().__init__()
        self.clock = clock
        self.predict = dspy.Predict("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        """Two seconds in a tool, then the model."""

        def look(query: str) -> str:
            self.clock.advance(2)
            return query

        dspy.Tool(look, name="look")(query=question)
        return self.predict(question=question)


@pytest.fixture
def registry() -> CollectorRegistry:
    """A registry of the test's own."""
    return CollectorRegistry()


def run(clock: FrozenClock, callbacks: list[Any], answer: Any = None) -> None:
    """One program run of seven seconds, five of them in the model."""

    def reply(_: Any) -> Any:
        clock.advance(5)
        return {"answer": "42"} if answer is None else answer

    program = Program(clock)
    calls.tag(program, "qa", "v1", "canary")
    with dspy.context(lm=offline_lm(reply), callbacks=callbacks):
        program(question="?")


def test_durations_by_program_module_model_and_tool(registry: CollectorRegistry) -> None:
    """Each histogram with its labels, count and exact sum."""
    with frozen_clock() as clock:
        run(clock, [LatencyCallback(Metrics(collector_registry=registry))])
    who = {"program": "qa", "version": "v1"}
    for name, labels, seconds in (
        ("program", {"role": "canary", "status": "ok"}, 7),
        ("module", {"module": "Program", "status": "ok"}, 7),
        ("module", {"module": "Predict", "status": "ok"}, 5),
        ("lm", {"model": "offline/model", "status": "ok"}, 5),
        ("tool", {"tool": "look", "status": "ok"}, 2),
    ):
        full = {**who, **labels}
        assert registry.get_sample_value(f"dspy_{name}_duration_seconds_count", full) == 1, name
        assert registry.get_sample_value(f"dspy_{name}_duration_seconds_sum", full) == seconds, name
        below = {**full, "le": str(float(seconds - 1)) if seconds == 2 else "2.5" if seconds == 5 else "5.0"}
        assert registry.get_sample_value(f"dspy_{name}_duration_seconds_bucket", below) == 0, name
    first_chunk = "dspy_lm_time_to_first_token_seconds_count"
    samples = [sample for metric in registry.collect() for sample in metric.samples if sample.name == first_chunk]
    assert samples == []


def test_two_on_one_registry_count_once_and_on_two_registries_each(registry: CollectorRegistry) -> None:
    """Grouped or listed."""
    other = CollectorRegistry()
    callbacks = [LatencyCallback(Metrics(collector_registry=r)) for r in (registry, registry, other)]
    with frozen_clock() as clock:
        run(clock, callbacks)
    labels = {"program": "qa", "version": "v1", "role": "canary", "status": "ok"}
    for one in (registry, other):
        assert one.get_sample_value("dspy_program_duration_seconds_count", labels) == 1


def test_calls_in_flight_are_seen_while_they_run_and_not_afterwards(registry: CollectorRegistry) -> None:
    """Read from inside the model."""
    seen: dict[str, Any] = {}

    def reply(_: Any) -> Any:
        for kind in ("module", "lm", "tool"):
            seen[kind] = registry.get_sample_value("dspy_in_flight_calls", {"kind": kind})
        seen["open"] = registry.get_sample_value("dspy_observe_open_calls")
        return {"answer": "42"}

    callback = LatencyCallback(Metrics(collector_registry=registry))
    with dspy.context(lm=offline_lm(reply), callbacks=[callback]):
        dspy.ChainOfThought("question -> answer")  # made, not called
        dspy.Predict("question -> answer")(question="?")
    assert seen == {"module": 1, "lm": 1, "tool": 0, "open": 2}
    assert registry.get_sample_value("dspy_in_flight_calls", {"kind": "module"}) == 0
    assert registry.get_sample_value("dspy_observe_open_calls") == 0


def test_a_reply_that_cannot_be_parsed_is_counted_by_adapter(registry: CollectorRegistry) -> None:
    """Chat first, then JSON; the model answered well both times."""
    callback = LatencyCallback(Metrics(collector_registry=registry))
    with frozen_clock() as clock, pytest.raises(AdapterParseError):
        run(clock, [callback], answer="nothing of use")
    who = {"program": "qa", "version": "v1", "stage": "parse"}
    for adapter in ("ChatAdapter", "JSONAdapter"):
        assert registry.get_sample_value("dspy_adapter_failures_total", {**who, "adapter": adapter}) == 1
    lm = {"program": "qa", "version": "v1", "model": "offline/model", "status": "ok"}
    assert registry.get_sample_value("dspy_lm_duration_seconds_count", lm) == 2
    failed = {"program": "qa", "version": "v1", "role": "canary", "status": "error"}
    assert registry.get_sample_value("dspy_program_duration_seconds_count", failed) == 1


def record(**fields: Any) -> CallRecord:
    """An LM record."""
    given: dict[str, Any] = {
        "call_id": "c", "parent_id": None, "root_id": "c", "kind": "lm", "name": "m", "program": "qa", "version": "v1",
        "role": "stable", "is_program": False, "operation": "chat", "model_requested": "m", "provider": None,
        "streaming": True, "started_at": 1.0,
    }  # fmt: skip
    return CallRecord(**{**given, **fields})


def test_the_first_chunk_is_timed_where_there_is_one(registry: CollectorRegistry) -> None:
    """None is not 0."""
    callback = LatencyCallback(Metrics(collector_registry=registry))
    for ttft in (None, 0.3, None):
        callback.finished(record(ttft_s=ttft))
    labels = {"program": "qa", "version": "v1", "model": "m"}
    assert registry.get_sample_value("dspy_lm_time_to_first_token_seconds_count", labels) == 1
    assert registry.get_sample_value("dspy_lm_time_to_first_token_seconds_sum", labels) == 0.3


@pytest.mark.parametrize("status", ["ok", "error", "rate_limited", "timeout", "cancelled"])
def test_the_status_is_the_outcome(registry: CollectorRegistry, status: Any) -> None:
    """All five."""
    LatencyCallback(Metrics(collector_registry=registry)).finished(record(outcome=status))
    labels = {"program": "qa", "version": "v1", "model": "m", "status": status}
    assert registry.get_sample_value("dspy_lm_duration_seconds_count", labels) == 1


def test_dropped_calls_are_counted(registry: CollectorRegistry) -> None:
    """Those whose end was never told."""
    start = CallStart("c", None, "c", "module", "P", "P", None, "stable", True, None, None, None, None, 1.0)
    callback = LatencyCallback(Metrics(collector_registry=registry))
    assert isinstance(callback, RecordCallback)
    callback.dropped(start)
    assert registry.get_sample_value("dspy_observe_dropped_calls_total") == 1
