"""What DSPy's cache answers bills nothing: cases 5, 6 and 7."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dspy
import pytest
from dspy import lm15

from dspy_observe import Usage
from dspy_observe.openai_server import OpenAIServer, Reply

if TYPE_CHECKING:
    from tests.hard_cases.conftest import MakeLM, Watch

NOTHING = Usage(0, 0, 0, 0, 0)


@pytest.mark.parametrize("engine", ["auto", "litellm"])
@pytest.mark.parametrize("history", [True, False])
def test_the_same_prompt_from_memory_and_from_disk_is_billed_once(
    engine: str, history: bool, watch: Watch, server: OpenAIServer, lm: MakeLM, question: str
) -> None:
    """Case 5: three calls, one bill, two hits (memory, then disk), whose historical cost counts as saved only."""
    program = dspy.Predict("question -> answer")
    with dspy.context(lm=lm(engine=engine, cache=True), disable_history=not history):
        answers = {program(question=question).answer, program(question=question).answer}
        dspy.cache.reset_memory_cache()
        answers.add(program(question=question).answer)
    assert len(answers) == len(server.bills) == 1
    first, memory, disk = watch.lms
    assert [first.cache_hit, memory.cache_hit, disk.cache_hit] == [False, True, True]
    assert (memory.usage, memory.cost_usd) == (disk.usage, disk.cost_usd) == (NOTHING, 0)
    assert watch.agrees_with(server.bills)
    assert watch.total("dspy_cache_requests_total", result="miss") == 1
    assert watch.total("dspy_cache_requests_total", result="hit") == 2
    assert watch.total("dspy_unmetered_requests_total") == watch.total("dspy_unpriced_requests_total") == 0
    saved = [record.cost_saved_usd for record in watch.lms]
    assert saved == ([None, first.cost_usd, first.cost_usd] if history else [None] * 3), "the history repeats the price"
    assert watch.total("dspy_cost_saved_usd_total") == pytest.approx(sum(each or 0 for each in saved))


async def test_hits_are_told_in_asynchronous_calls_too(
    watch: Watch, server: OpenAIServer, lm: MakeLM, question: str
) -> None:
    """Case 5: an awaited call that the cache answers bills nothing either."""
    asked = lm(cache=True)
    for _ in range(3):
        await asked.acall(question)
    assert [record.cache_hit for record in watch.lms] == [False, True, True]
    assert watch.agrees_with(server.bills)


def test_a_cached_typed_response_keeps_its_usage_and_bills_nothing(
    watch: Watch, server: OpenAIServer, lm: MakeLM, question: str
) -> None:
    """Case 6: the second response of a typed request carries the first one's usage, and its record 0 tokens."""
    asked = lm(cache=True)
    request = lm15.Request(model="openai/gpt-4o-mini", messages=(lm15.Message.user(question),))
    responses = [asked(request), asked(request)]
    assert [response.usage.input_tokens for response in responses] == [1001, 1001]
    live, cached = watch.lms
    assert (live.cache_hit, cached.cache_hit, cached.usage, cached.cost_usd) == (False, True, NOTHING, 0)
    assert cached.cost_saved_usd == live.cost_usd
    assert len(server.bills) == 1
    assert watch.agrees_with(server.bills)


@pytest.mark.parametrize("engine", ["auto", "litellm"])
def test_a_live_reply_without_usage_is_unreported_and_its_repeat_a_hit(
    engine: str, watch: Watch, server: OpenAIServer, lm: MakeLM, question: str
) -> None:
    """Case 7: no usage means unknown, neither a cache hit nor 0 tokens; the cached repeat is a hit."""
    server.script([Reply(text="yes", report_usage=False)])
    asked = lm(engine=engine, cache=True)
    assert [asked(question), asked(question)] == [["yes"], ["yes"]]
    live, cached = watch.lms
    assert (live.cache_hit, live.usage, live.cost_usd) == (False, Usage(), None)
    assert (cached.cache_hit, cached.usage, cached.cost_usd) == (True, NOTHING, 0)
    assert [bill.usage_sent for bill in server.bills] == [False]
    assert watch.total("dspy_unmetered_requests_total") == watch.total("dspy_unpriced_requests_total") == 1
    assert watch.total("dspy_cache_requests_total", result="hit") == 1
    assert watch.agrees_with([], cost=None)
