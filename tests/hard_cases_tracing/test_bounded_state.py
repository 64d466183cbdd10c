"""Case 38: what is open ends or is given up; nothing grows with the number of calls."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from typing import Any

import dspy
import pytest
from dspy.dsp.utils.settings import thread_local_overrides
from dspy.utils.callback import BaseCallback
from opentelemetry import context as context_api
from opentelemetry.trace import StatusCode
from prometheus_client import CollectorRegistry

from dspy_observe import LatencyCallback, Metrics
from dspy_observe.callbacks.otel.context import Layer
from dspy_observe.facts.lm import LMCapture
from dspy_observe.facts.recent import Recent
from dspy_observe.ledger import LEDGER, Ledger, _Entry
from dspy_observe.testing import offline_lm


class Interrupting(BaseCallback):
    """Behind ours: a Ctrl-C that arrives in its start handler, which DSPy answers with no end at all."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def on_module_start(self, call_id: str, instance: Any, inputs: Any) -> None:
        if self.kind == "module":
            raise KeyboardInterrupt

    def on_lm_start(self, call_id: str, instance: Any, inputs: Any) -> None:
        if self.kind == "lm":
            raise KeyboardInterrupt


@pytest.fixture
def small_ledger(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    """The ledger of the process with room for ten open calls and fifty ended ones."""
    monkeypatch.setattr(LEDGER, "_max_open", 10)
    monkeypatch.setattr(LEDGER, "_ended", Recent(50))
    yield LEDGER
    while LEDGER.open_calls:  # give up the calls whose end never comes, and what they left in this context
        LEDGER._drop_oldest()
    thread_local_overrides.set({})
    context_api.attach(context_api.Context())


@pytest.mark.parametrize("kind", ["module", "lm"])
def test_starts_without_ends(observed: Any, answering: Any, small_ledger: Ledger, kind: str) -> None:
    """Case 38: calls whose end never comes are given up, oldest first, and counted; later calls are right."""
    registry = CollectorRegistry()
    latency = LatencyCallback(Metrics(collector_registry=registry))
    before = small_ledger.dropped_calls
    callbacks = [observed.otel, observed.capture, latency]
    predict = dspy.Predict("question -> answer")
    for _ in range(50):
        with dspy.context(lm=answering(), callbacks=[*callbacks, Interrupting(kind)]), pytest.raises(KeyboardInterrupt):
            predict(question="why?")
    # An interrupted module never ends; one whose LM was interrupted does, so each run leaves one call.
    still_open = small_ledger.open_calls
    assert 0 < still_open <= 10
    assert small_ledger.dropped_calls - before == 50 - still_open
    assert registry.get_sample_value("dspy_observe_dropped_calls_total") == 50 - still_open
    assert registry.get_sample_value("dspy_observe_open_calls") == still_open
    given_up = [span for span in observed.spans if span.status.description == "call given up by the observer"]
    assert len(given_up) == 50 - still_open
    assert all(span.status.status_code is StatusCode.ERROR for span in given_up)
    assert len(observed.otel._layers._open) == still_open

    observed.records.clear()
    with dspy.context(lm=answering(), callbacks=callbacks):
        predict(question="next")
    lm, module = observed.calls
    assert (lm.parent_id, module.parent_id) == (module.call_id, None)
    assert (lm.usage.prompt, lm.usage.completion) == (10, 5)


@pytest.mark.parametrize("kind", ["module", "lm"])
@pytest.mark.parametrize("direct", [True, False])
def test_nothing_is_left_of_a_start_without_an_end(
    observed: Any, answering: Any, small_ledger: Ledger, kind: str, direct: bool
) -> None:
    """Case 38: later runs are traces of their own, the application's spans stay where they are, settings are clean."""
    callbacks = [observed.otel, observed.capture]
    predict, lm = dspy.Predict("question -> answer"), answering()

    def call() -> object:
        return lm("hi") if direct and kind == "lm" else predict(question="why?")

    alive = []
    for _ in range(3):
        for _ in range(12):
            with dspy.context(lm=lm, callbacks=[*callbacks, Interrupting(kind)]), pytest.raises(KeyboardInterrupt):
                call()
        gc.collect()
        alive.append(sum(isinstance(thing, Layer | LMCapture) for thing in gc.get_objects()))
    assert alive[1] == alive[2]
    observed.records.clear()
    observed.exporter.clear()
    with dspy.context(lm=lm, callbacks=callbacks):
        predict(question="one")
        with observed.tracer.start_as_current_span("request") as request, dspy.track_usage() as usage:
            predict(question="two")
    assert usage.get_total_tokens()
    ended = [span for span in observed.spans if span.status.status_code is not StatusCode.ERROR]  # not given up
    one, two = (span for span in ended if span.name.startswith("invoke_workflow"))
    assert one.parent is None
    assert two.parent.span_id == request.get_span_context().span_id
    assert request.parent is None
    assert len({span.context.trace_id for span in ended}) == 2
    assert [record.usage.prompt for record in observed.records if record.kind == "lm"] == [10, 10]


async def test_many_cancelled_calls(observed: Any, small_ledger: Ledger) -> None:
    """Case 38: after 300 cancelled calls nothing is open and nothing was given up."""
    waiting = asyncio.Event()

    class Engine:
        async def complete(self, request: Any) -> Any:
            await waiting.wait()

    sync = offline_lm("x")
    lm = dspy.LM("offline/model", engine=sync._engine_spec, async_engine=Engine(), cache=False)
    predict = dspy.Predict("question -> answer")
    before = small_ledger.dropped_calls
    with dspy.context(lm=lm, callbacks=observed.callbacks):
        for _ in range(100):
            tasks = [asyncio.create_task(predict.acall(question="why?")) for _ in range(3)]
            while observed.idle.open < 6:  # noqa: ASYNC110  # the calls run in this loop; three modules and three LM calls
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(result, asyncio.CancelledError) for result in results)
    assert small_ledger.open_calls == 0
    assert small_ledger.dropped_calls == before
    assert observed.otel._layers._open == {}
    assert [record.outcome for record in observed.calls] == ["cancelled"] * 600


def objects_of(*kinds: type) -> int:
    """How many objects of these types are alive."""
    gc.collect()
    return sum(type(value) in kinds for value in gc.get_objects())


def test_nothing_grows(observed: Any, answering: Any, small_ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 38: what ended calls leave is bounded: entries, captures, ended calls, ended spans, answers."""
    monkeypatch.setattr(observed.otel._layers, "_ended", Recent(50))
    before = objects_of(_Entry, LMCapture)
    answers = len(small_ledger._answers)
    predict = dspy.Predict("question -> answer")
    with dspy.context(lm=answering(), callbacks=[observed.otel], trace=None):
        for number in range(1_000):
            predict(question=str(number))
    assert small_ledger.open_calls == 0
    assert objects_of(_Entry, LMCapture) <= before
    assert len(small_ledger._ended) <= 100
    assert len(observed.otel._layers._ended) <= 100
    assert len(small_ledger._answers) <= answers


def test_a_full_ledger_drops_the_oldest(observed: Any) -> None:
    """Case 38: the bound holds for deep nesting too: the outermost call is given up, the program answers."""

    class Deep(dspy.Module):
        def forward(self, depth: int) -> int:
            return 0 if depth == 0 else 1 + Deep()(depth=depth - 1)

    LEDGER._max_open, before = 10, LEDGER._max_open
    try:
        with dspy.context(callbacks=[observed.otel, observed.capture]):
            assert Deep()(depth=20) == 20
            assert LEDGER.open_calls == 0
    finally:
        LEDGER._max_open = before
    assert len(observed.records) == 10
    assert len(observed.spans) == 21
    assert len({span.context.trace_id for span in observed.spans}) == 1
