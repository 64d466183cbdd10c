"""Cases 27 and 34: the application's own spans keep their places; calls unknown to us are no riddle."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dspy
import pytest
from dspy.utils.callback import BaseCallback
from opentelemetry import context as context_api

from dspy_observe.testing import offline_lm


class Steps(dspy.Module):
    """A program whose author traces a step of it by hand."""

    def __init__(self, tracer: Any) -> None:
        super().__init__()
        self.predict = dspy.Predict("question -> answer")
        self.tracer = tracer

    def forward(self, question: str) -> Any:
        with self.tracer.start_as_current_span("step"):
            return self.predict(question=question)

    async def aforward(self, question: str) -> Any:
        with self.tracer.start_as_current_span("step"):
            await asyncio.sleep(0)
            return await self.predict.acall(question=question)


BELOW_A_REQUEST = {
    "request": 1,
    "request > invoke_workflow Steps": 1,
    "request > invoke_workflow Steps > step": 1,
    "request > invoke_workflow Steps > step > Predict": 1,
    "request > invoke_workflow Steps > step > Predict > chat model": 1,
}


def test_a_manual_span_between_two_calls(observed: Any, answering: Any) -> None:
    """Case 27: request span over the program, the author's span between module and predictor."""
    with dspy.context(lm=answering(), callbacks=observed.callbacks), observed.tracer.start_as_current_span("request"):
        Steps(observed.tracer)(question="why?")
    assert observed.outline() == BELOW_A_REQUEST


async def test_manual_spans_of_concurrent_tasks(observed: Any, answering: Any) -> None:
    """Case 27: each task's request span is the parent of its own program run."""
    program = Steps(observed.tracer)

    async def handle(number: int) -> None:
        with observed.tracer.start_as_current_span("request"):
            await program.acall(question=str(number))

    with dspy.context(lm=answering(), callbacks=observed.callbacks):
        await asyncio.gather(*(handle(number) for number in range(8)))
    assert observed.outline() == dict.fromkeys(BELOW_A_REQUEST, 8)
    assert len({span.context.trace_id for span in observed.spans}) == 8


def test_a_manual_span_around_an_lm_called_by_hand(observed: Any, answering: Any) -> None:
    """Case 27: an LM that a program calls itself, inside a manual span, inside a module."""
    lm = answering()

    class Direct(dspy.Module):
        def forward(self) -> Any:
            with observed.tracer.start_as_current_span("step"):
                return lm("question")

    with dspy.context(callbacks=observed.callbacks):
        Direct()()
    assert observed.outline()["invoke_workflow Direct > step > chat model"] == 1


def test_manual_spans_in_worker_threads(observed: Any, answering: Any) -> None:
    """Case 27: in Parallel's threads, where OpenTelemetry knows nothing, the call id finds the parent."""
    program = Steps(observed.tracer)

    class Fan(dspy.Module):
        def forward(self) -> Any:
            pairs = [(program, {"question": str(number)}) for number in range(6)]
            return dspy.Parallel(num_threads=3, disable_progress_bar=True)(pairs)

    with dspy.context(lm=answering(), callbacks=observed.callbacks), observed.tracer.start_as_current_span("request"):
        Fan()()
    assert len({span.context.trace_id for span in observed.spans}) == 1
    assert observed.outline()["request > invoke_workflow Fan > Steps > step > Predict > chat model"] == 6


def test_a_manual_span_after_a_call_is_not_below_it(observed: Any, answering: Any) -> None:
    """Case 27: what the application does after a call stands beside it."""
    with dspy.context(lm=answering(), callbacks=observed.callbacks), observed.tracer.start_as_current_span("request"):
        dspy.Predict("question -> answer")(question="why?")
        with observed.tracer.start_as_current_span("after"):
            pass
    assert observed.outline()["request > after"] == 1


class Other(BaseCallback):
    """Makes DSPy hand out call ids that we never see."""


def test_a_call_id_that_is_not_ours(observed: Any) -> None:
    """Case 34: below a call that only somebody else's callback saw, ours on the LM alone make a root."""
    lm = offline_lm({"answer": "42"}, callbacks=observed.callbacks)
    with dspy.context(lm=lm, callbacks=[Other()]):
        dspy.Predict("question -> answer")(question="why?")
    (record,) = observed.records
    (span,) = observed.spans
    assert (record.kind, record.parent_id, record.root_id) == ("lm", None, record.call_id)
    assert span.parent is None
    assert record.program == "Predict"


def test_a_call_id_that_is_not_ours_below_a_request(observed: Any) -> None:
    """Case 34: the same inside a request span, which is then the parent."""
    lm = offline_lm({"answer": "42"}, callbacks=observed.callbacks)
    with dspy.context(lm=lm, callbacks=[Other()]), observed.tracer.start_as_current_span("request"):
        dspy.Predict("question -> answer")(question="why?")
    assert observed.outline() == {"request": 1, "request > chat model": 1}


@pytest.mark.parametrize("with_context", [False, True])
def test_the_users_own_thread_pool(observed: Any, answering: Any, with_context: bool) -> None:
    """Case 34: a plain thread pool carries no call id: roots there, or the ambient span if its context was carried."""
    predict = dspy.Predict("question -> answer")
    dspy.configure(lm=answering(), callbacks=observed.callbacks)

    class Pooled(dspy.Module):
        def forward(self) -> Any:
            ambient = context_api.get_current()

            def work(number: int) -> Any:
                if with_context:
                    context_api.attach(ambient)
                return predict(question=str(number))

            with ThreadPoolExecutor(2) as pool:
                return list(pool.map(work, range(4)))

    Pooled()()
    # DSPy's own id is unset there, so the calls are runs of their own in the records either way.
    runs = [record for record in observed.records if record.name == "Predict"]
    assert [record.parent_id for record in runs] == [None] * 4
    traces = {span.context.trace_id for span in observed.spans}
    path = "invoke_workflow Predict > chat model"
    if with_context:
        assert len(traces) == 1
        assert observed.outline()[f"invoke_workflow Pooled > {path}"] == 4
    else:
        assert len(traces) == 5
        assert observed.outline()[path] == 4
