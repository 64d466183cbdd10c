"""Many calls at once, beside a callback that loses the thread in every end handler: cases 1 and 2."""

from __future__ import annotations

import asyncio
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import dspy
import pytest
from prometheus_client import CollectorRegistry

from dspy_observe import CallbackGroup, CostCallback, LatencyCallback, Metrics
from dspy_observe.openai_server import OpenAIServer

if TYPE_CHECKING:
    from tests.hard_cases.conftest import MakeLM, SlowSibling, Watch


def check_each_has_its_own(watch: Watch, sibling: SlowSibling, calls: int) -> None:
    """Every record carries the figures of the very reply that its call returned."""
    assert len(watch.lms) == calls == len({record.call_id for record in watch.lms})
    for record in watch.lms:
        number = int(sibling.texts[record.call_id].rpartition("\n")[2])
        assert record.usage is not None
        assert (record.usage.prompt, record.usage.completion) == (1000 + number, 2 * number)
        assert record.cost_usd == pytest.approx((1000 + number) * 0.15e-6 + 2 * number * 0.60e-6)


@pytest.mark.parametrize("engine", ["auto", "litellm"])
def test_32_threads_on_one_lm_with_one_prompt_each_get_their_own_figures(
    engine: str, sibling: SlowSibling, watch: Watch, numbered_server: OpenAIServer, lm: MakeLM
) -> None:
    """Case 1: 32 threads share one LM, prompt and slow neighbour, and no LM record has another call's tokens."""
    program, shared = dspy.Predict("question -> answer"), lm(engine=engine)

    def ask(_: int) -> None:
        with dspy.context(lm=shared):
            program(question="The same for all?")

    ask(0)  # LiteLLM's client is made here: 32 threads at once would each make one and leave its socket open
    with ThreadPoolExecutor(32) as threads:
        list(threads.map(ask, range(1, 192)))
    check_each_has_its_own(watch, sibling, 192)
    assert watch.agrees_with(numbered_server.bills)


@pytest.mark.parametrize("engine", ["auto", "litellm"])
async def test_200_gathered_calls_each_get_their_own_figures(
    engine: str, sibling: SlowSibling, watch: Watch, numbered_server: OpenAIServer, lm: MakeLM
) -> None:
    """Case 2: 200 gathered acalls on one event loop, and no LM record has another call's tokens."""
    program, shared = dspy.Predict("question -> answer"), lm(engine=engine)
    with dspy.context(lm=shared):
        await asyncio.gather(*(program.acall(question="The same for all?") for _ in range(200)))
    check_each_has_its_own(watch, sibling, 200)
    assert watch.agrees_with(numbered_server.bills)


class TimedGroup(CallbackGroup):
    """Adds up the processor time of its own LM hooks; waiting for the processor does not count."""

    def __init__(self, *callbacks: Any) -> None:
        super().__init__(*callbacks)
        self.hooks_s: list[float] = []

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        began = time.thread_time()
        super().on_lm_start(call_id, instance, inputs)
        self.hooks_s.append(time.thread_time() - began)

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        began = time.thread_time()
        self._on_end(call_id, outputs, exception)
        self.hooks_s.append(time.thread_time() - began)


async def test_a_hook_takes_less_than_a_millisecond_of_the_event_loop(
    numbered_server: OpenAIServer, lm: MakeLM
) -> None:
    """Case 2: among 200 gathered calls the typical hook uses less than 1 ms of the loop's processor time."""
    metrics = Metrics(collector_registry=CollectorRegistry())
    group = TimedGroup(LatencyCallback(metrics), CostCallback(metrics=metrics))
    with dspy.context(lm=lm(), callbacks=[group]):
        await asyncio.gather(*(dspy.Predict("question -> answer").acall(question="Why?") for _ in range(200)))
    assert len(group.hooks_s) == 400
    assert statistics.median(group.hooks_s) < 0.001
