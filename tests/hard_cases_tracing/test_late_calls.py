"""Cases 25 and 26: calls that end somewhere else, and calls that outlive the one that made them."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
import threading
from typing import Any

import dspy
import pytest

from dspy_observe.testing import OfflineEngine, offline_lm


class Never:
    """Suspends whoever awaits it, and needs no event loop for that."""

    def __await__(self) -> Any:
        yield


class Waiting:
    """An async engine that never answers."""

    async def complete(self, request: Any) -> Any:
        await Never()
        raise AssertionError("nobody resumes it")


def waiting_lm() -> dspy.LM:
    """An LM whose async calls stay in flight."""
    return dspy.LM("offline/model", engine=OfflineEngine("sync"), async_engine=Waiting(), cache=False)


def suspend(coroutine: Any) -> contextvars.Context:
    """Run a coroutine, in a context of its own, until it waits for something."""
    context = contextvars.copy_context()
    context.run(coroutine.send, None)
    return context


def check_broken_off(observed: Any, answering: Any) -> None:
    """The cancelled calls are complete, and the next ones are right."""
    assert [(record.kind, record.outcome) for record in observed.calls] == [
        ("lm", "cancelled"),
        ("module", "cancelled"),
    ]
    for span in observed.spans:
        assert not span.status.is_ok
        assert span.attributes["dspy.outcome"] == "cancelled"
    observed.check_tree()
    with dspy.context(lm=answering(), callbacks=observed.callbacks):
        dspy.Predict("question -> answer")(question="next")
    observed.check_tree()
    assert observed.records[-1].parent_id is None
    assert observed.records[-1].outcome == "ok"


async def test_closed_from_another_context(observed: Any, answering: Any) -> None:
    """Case 25: a coroutine closed from a foreign context ends its spans, logs no detach error and confuses nobody."""
    lm = waiting_lm()
    with dspy.context(lm=lm, callbacks=observed.callbacks):
        coroutine = dspy.Predict("question -> answer").acall(question="why?")
        suspend(coroutine)
    foreign = contextvars.copy_context()
    with pytest.raises(ValueError, match="different Context"):  # DSPy's own reset of its settings
        foreign.run(coroutine.close)
    check_broken_off(observed, answering)


async def test_collected_as_garbage(observed: Any, answering: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 25: a coroutine that nobody finishes ends its spans when the garbage collector finds it."""
    lm = waiting_lm()
    # Python reports that DSPy's own reset of its settings fails there.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    with dspy.context(lm=lm, callbacks=observed.callbacks):
        coroutine = dspy.Predict("question -> answer").acall(question="why?")
        suspend(coroutine)
    del coroutine
    gc.collect()
    check_broken_off(observed, answering)


async def test_closed_while_another_call_runs(observed: Any, answering: Any) -> None:
    """Case 25: closing a stale coroutine inside a running program leaves that program's tree right."""
    lm = waiting_lm()
    with dspy.context(lm=lm, callbacks=observed.callbacks):
        stale = dspy.Predict("question -> answer").acall(question="stale")
        suspend(stale)
    predict = dspy.Predict("question -> answer")

    class Program(dspy.Module):
        def forward(self) -> Any:
            contextvars.Context().run(_close, stale)
            return predict(question="live")

    with dspy.context(lm=answering(), callbacks=observed.callbacks):
        Program()()
    observed.check_tree()
    assert observed.outline()["invoke_workflow Program > Predict > chat model"] == 1


def _close(coroutine: Any) -> None:
    with pytest.raises(ValueError, match="different Context"):
        coroutine.close()


async def test_a_task_that_outlives_its_program(observed: Any, answering: Any) -> None:
    """Case 26: a fire-and-forget task starts its calls after the program has ended, and stays in its trace."""
    go = asyncio.Event()
    tasks: list[asyncio.Task[Any]] = []
    predict = dspy.Predict("question -> answer")

    async def later() -> None:
        await go.wait()
        await predict.acall(question="late")
        await predict.acall(question="later")

    class Program(dspy.Module):
        async def aforward(self) -> Any:
            tasks.append(asyncio.create_task(later()))
            return dspy.Prediction(answer="early")

    with dspy.context(lm=answering(), callbacks=observed.callbacks):
        await Program().acall()
        assert len(observed.spans) == 1
        go.set()
        await tasks[0]
    observed.check_tree()
    assert observed.outline()["invoke_workflow Program > Predict > chat model"] == 2
    assert {record.program for record in observed.records} == {"Program"}


def test_parallel_that_gives_up(observed: Any) -> None:
    """Case 26: with max_errors reached, items still running end after their parent, in its trace."""
    running, go = threading.Event(), threading.Event()

    def answer(request: Any) -> Any:
        if "slow" in str(request.messages):
            running.set()
            go.wait(10)
            return {"answer": "late"}
        running.wait(10)
        raise ZeroDivisionError

    predict = dspy.Predict("question -> answer")

    class Fan(dspy.Module):
        def forward(self) -> Any:
            pairs = [(predict, {"question": "slow"}), (predict, {"question": "broken"})]
            return dspy.Parallel(num_threads=2, max_errors=1, disable_progress_bar=True)(pairs)

    ended = _Ended(observed, "slow")
    with dspy.context(lm=offline_lm(answer), callbacks=[*observed.callbacks, ended]):
        with pytest.raises(Exception, match="Execution cancelled"):
            Fan()()
        assert not ended.predict.is_set()
        assert len(observed.named("invoke_workflow Fan")) == 1
        go.set()
        assert ended.predict.wait(10)
    observed.check_tree()
    assert len({span.context.trace_id for span in observed.spans}) == 1
    assert observed.outline()["invoke_workflow Fan > Predict > chat model"] == 2


def test_a_straggler_that_is_started_again(observed: Any) -> None:
    """Case 26: an item that DSPy submits twice is two calls under one parent, the first ending after it."""
    go = threading.Event()
    lock, asked = threading.Lock(), []

    def answer(request: Any) -> Any:
        with lock:
            asked.append(1)
            first = len(asked) == 1
        if first:
            go.wait(10)
        return {"answer": "42"}

    predict = dspy.Predict("question -> answer")

    class Fan(dspy.Module):
        def forward(self) -> Any:
            pairs = [(predict, {"question": "a"}), (predict, {"question": "b"})]
            parallel = dspy.Parallel(num_threads=3, timeout=0.01, straggler_limit=3, disable_progress_bar=True)
            return parallel(pairs)

    ended = _Ended(observed, "")
    with dspy.context(lm=offline_lm(answer), callbacks=[*observed.callbacks, ended]):
        answers = Fan()()
        assert [answer.answer for answer in answers] == ["42", "42"]
        before = ended.count
        go.set()
        assert ended.wait_for(before + 1)
    observed.check_tree()
    assert observed.outline()["invoke_workflow Fan > Predict > chat model"] == len(asked) >= 3
    assert len({span.context.trace_id for span in observed.spans}) == 1


async def test_an_asyncified_call_that_is_abandoned(observed: Any) -> None:
    """Case 26: the awaiting task is cancelled, the worker thread finishes, its calls are complete and one trace."""
    running, go = threading.Event(), threading.Event()

    def answer(_: Any) -> Any:
        running.set()
        go.wait(10)
        return {"answer": "late"}

    ended = _Ended(observed, "")
    with dspy.context(lm=offline_lm(answer), callbacks=[*observed.callbacks, ended]):
        task = asyncio.create_task(dspy.asyncify(dspy.Predict("question -> answer"))(question="why?"))
        await asyncio.to_thread(running.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert observed.calls == []
        go.set()
        assert await asyncio.to_thread(ended.wait_for, 1)
    observed.check_tree()
    assert [(record.kind, record.outcome) for record in observed.calls] == [("lm", "ok"), ("module", "ok")]


class _Ended(dspy.utils.callback.BaseCallback):
    """Last in the list: tells when a predictor's end has been handled by all others."""

    def __init__(self, observed: Any, question: str) -> None:
        self.question = question
        self.ids: set[str] = set()
        self.predict = threading.Event()
        self.count = 0
        self.changed = threading.Condition()

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        if isinstance(instance, dspy.Predict) and self.question in inputs["kwargs"]["question"]:
            self.ids.add(call_id)

    def on_module_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        if call_id in self.ids:
            with self.changed:
                self.count += 1
                self.changed.notify_all()
            self.predict.set()

    def wait_for(self, count: int) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: self.count >= count, 10)
