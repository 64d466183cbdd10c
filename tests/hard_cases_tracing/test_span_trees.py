"""Case 23: the span tree is DSPy's own tree of call ids, however a program runs."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import dspy
import pytest

from dspy_observe import CallbackGroup
from dspy_observe.testing import offline_lm

PREDICT = "invoke_workflow QA > ChainOfThought > Predict"


class QA(dspy.Module):
    """Two layers of modules over one LM call."""

    def __init__(self) -> None:
        super().__init__()
        self.think = dspy.ChainOfThought("question -> answer")

    def forward(self, question: str) -> Any:
        return self.think(question=question)

    async def aforward(self, question: str) -> Any:
        return await self.think.acall(question=question)


class Fan(dspy.Module):
    """One module that asks in four threads."""

    def __init__(self, threads: int) -> None:
        super().__init__()
        self.qa = QA()
        self.threads = threads

    def forward(self, questions: list[str]) -> Any:
        pairs = [(self.qa, {"question": question}) for question in questions]
        return dspy.Parallel(num_threads=self.threads, disable_progress_bar=True)(pairs)


def times(count: int, model: str = "model") -> Counter[str]:
    """The outline of so many runs of QA."""
    paths = ("invoke_workflow QA", "invoke_workflow QA > ChainOfThought", PREDICT, f"{PREDICT} > chat {model}")
    return Counter(dict.fromkeys(paths, count))


@pytest.mark.parametrize("grouped", [False, True])
def test_sync(observed: Any, answering: Any, grouped: bool) -> None:
    """Case 23: a sync call, with callbacks listed by hand and in one group."""
    callbacks = [observed.witness, CallbackGroup(observed.otel, observed.capture)] if grouped else observed.callbacks
    with dspy.context(lm=answering(), callbacks=callbacks):
        QA()(question="why?")
        QA()(question="why not?")
    observed.check_tree()
    assert observed.outline() == times(2)


async def test_acall_and_gather(observed: Any, answering: Any) -> None:
    """Case 23: an awaited call and thirty gathered ones."""
    program = QA()
    with dspy.context(lm=answering(), callbacks=observed.callbacks):
        await program.acall(question="first")
        await asyncio.gather(*(program.acall(question=str(number)) for number in range(30)))
    observed.check_tree()
    assert observed.outline() == times(31)
    assert len({span.context.trace_id for span in observed.spans}) == 31


async def test_asyncify(observed: Any, answering: Any) -> None:
    """Case 23: a program on anyio's worker threads."""
    program = dspy.asyncify(QA())
    with dspy.context(lm=answering(), callbacks=observed.callbacks):
        await asyncio.gather(*(program(question=str(number)) for number in range(5)))
    observed.check_tree()
    assert observed.outline() == times(5)


@pytest.mark.parametrize("threads", [1, 4])
def test_parallel_inside_a_module(observed: Any, answering: Any, threads: int) -> None:
    """Case 23: dspy.Parallel in a module is one trace with one root, also across its threads."""
    with dspy.context(lm=answering(), callbacks=observed.callbacks):
        Fan(threads)(questions=[str(number) for number in range(8)])
    observed.check_tree()
    assert len({span.context.trace_id for span in observed.spans}) == 1
    below = "invoke_workflow Fan > QA > ChainOfThought > Predict > chat model"
    assert observed.outline()[below] == 8


def test_parallel_and_batch_on_their_own(observed: Any, answering: Any) -> None:
    """Case 23: Parallel and batch without a module around them are one trace for each item."""
    program = QA()
    with dspy.context(lm=answering(), callbacks=observed.callbacks):
        dspy.Parallel(num_threads=4, disable_progress_bar=True)(
            [(program, {"question": "a"}), (program, {"question": "b"})]
        )
        program.batch(
            [dspy.Example(question="c").with_inputs("question")] * 2, num_threads=2, disable_progress_bar=True
        )
    observed.check_tree()
    assert observed.outline() == times(4)


def test_evaluate(observed: Any, answering: Any) -> None:
    """Case 23: Evaluate is the one root of its programs' runs in three threads."""
    devset = [dspy.Example(question=str(number), answer="42").with_inputs("question") for number in range(6)]
    evaluate = dspy.Evaluate(devset=devset, metric=lambda example, answer: True, num_threads=3, display_progress=False)
    with dspy.context(lm=answering(), callbacks=observed.callbacks):
        assert evaluate(QA()).score == 100.0
    observed.check_tree()
    assert len({span.context.trace_id for span in observed.spans}) == 1
    root = "evaluate QA > invoke_workflow QA"
    assert observed.outline()["evaluate QA"] == 1
    assert observed.outline()[root] == 6
    assert observed.outline()[f"{root} > ChainOfThought > Predict > chat model"] == 6


@pytest.mark.parametrize("is_async_program", [False, True])
async def test_streamify(observed: Any, served: Any, is_async_program: bool) -> None:
    """Case 23: three streams at once, of a sync and of an async program, on the event loop."""
    with dspy.context(lm=served(), callbacks=observed.callbacks):
        stream = dspy.streamify(QA(), is_async_program=is_async_program)

        async def consume(question: str) -> list[Any]:
            return [item async for item in stream(question=question)]

        streams = await asyncio.gather(*(consume(str(number)) for number in range(3)))
    assert all(isinstance(items[-1], dspy.Prediction) for items in streams)
    observed.check_tree()
    assert observed.outline() == times(3, "gpt-4o-mini")


def test_streamify_in_threads(observed: Any, served: Any) -> None:
    """Case 23: three interleaved sync streams, each with an event loop on a thread of its own."""
    with dspy.context(lm=served(), callbacks=observed.callbacks):
        stream = dspy.streamify(QA(), async_streaming=False)
        streams = [stream(question=str(number)) for number in range(3)]
        last = [list(items)[-1] for items in streams]
    assert all(isinstance(item, dspy.Prediction) for item in last)
    observed.check_tree()
    assert observed.outline() == times(3, "gpt-4o-mini")


def test_react(observed: Any) -> None:
    """Case 23: an agent's thoughts and tools stand under it, a program called by a tool under the tool."""
    inner = QA()

    def look_up(term: str) -> str:
        return str(inner(question=term).answer)

    lm = offline_lm(
        [
            {"next_thought": "t", "next_tool_name": "look_up", "next_tool_args": {"term": "x"}},
            {"reasoning": "because", "answer": "found"},
            {"next_thought": "t", "next_tool_name": "finish", "next_tool_args": {}},
            {"reasoning": "because", "answer": "42"},
        ]
    )
    with dspy.context(lm=lm, callbacks=observed.callbacks):
        assert dspy.ReAct("question -> answer", tools=[look_up])(question="why?").answer == "42"
    observed.check_tree()
    agent = "invoke_agent ReAct"
    assert observed.outline() == Counter(
        {
            agent: 1,
            f"{agent} > Predict": 2,
            f"{agent} > Predict > chat model": 2,
            f"{agent} > execute_tool look_up": 1,
            f"{agent} > execute_tool look_up > QA": 1,
            f"{agent} > execute_tool look_up > QA > ChainOfThought": 1,
            f"{agent} > execute_tool look_up > QA > ChainOfThought > Predict": 1,
            f"{agent} > execute_tool look_up > QA > ChainOfThought > Predict > chat model": 1,
            f"{agent} > execute_tool finish": 1,
            f"{agent} > ChainOfThought": 1,
            f"{agent} > ChainOfThought > Predict": 1,
            f"{agent} > ChainOfThought > Predict > chat model": 1,
        }
    )
