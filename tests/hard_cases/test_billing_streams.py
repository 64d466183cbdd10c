"""Streams, and calls whose end the client never sees: cases 8 and 15."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import dspy
import pytest
from dspy.utils.exceptions import LMError

from dspy_observe import Usage
from dspy_observe.openai_server import OpenAIServer, Reply

if TYPE_CHECKING:
    from tests.hard_cases.conftest import MakeLM, Watch

ANSWER = "[[ ## answer ## ]]\na b c d e f g h\n\n[[ ## completed ## ]]"


async def stream(lm: dspy.LM) -> dspy.Prediction:
    """Run a program as a stream to its end."""
    program = dspy.streamify(dspy.Predict("question -> answer"))
    with dspy.context(lm=lm):
        async for item in program(question="Why?"):
            last = item
    assert isinstance(last, dspy.Prediction)
    return last


async def test_a_native_stream_tells_its_usage(watch: Watch, server: OpenAIServer, lm: MakeLM) -> None:
    """Case 8: the native engine always asks for usage, so that a stream is billed as exactly as a plain call."""
    server.script([Reply(text=ANSWER)])
    assert (await stream(lm())).answer == "a b c d e f g h"
    assert watch.lms[0].streaming
    assert watch.total("dspy_unmetered_requests_total") == 0
    assert watch.agrees_with(server.bills)


async def test_a_litellm_stream_without_usage_is_unreported(watch: Watch, server: OpenAIServer, lm: MakeLM) -> None:
    """Case 8: LiteLLM's 0/0/0 and cost 0.0 beside a text are unknown, and the request is left as it is."""
    server.script([Reply(text=ANSWER)])
    assert (await stream(lm(engine="litellm"))).answer == "a b c d e f g h"
    (record,) = watch.lms
    assert (record.usage, record.cost_usd, record.cache_hit) == (Usage(), None, False)
    assert "stream_options" not in server.requests[0].json
    assert [(bill.streamed, bill.usage_sent) for bill in server.bills] == [(True, False)]
    assert watch.total("dspy_unmetered_requests_total") == watch.total("dspy_unpriced_requests_total") == 1
    assert watch.agrees_with([], cost=None)


@pytest.mark.filterwarnings("ignore:Accessing the '.*' attribute:DeprecationWarning")  # LiteLLM's own
async def test_a_litellm_stream_that_is_metered_is_exact(
    metering_watch: Watch, server: OpenAIServer, lm: MakeLM
) -> None:
    """Case 8: meter_litellm_streams adds include_usage to the stream, and only there, and makes it exact."""
    server.script([Reply(text=ANSWER)])
    asked = lm(engine="litellm")
    await stream(asked)
    await asked.acall("plain")
    streamed, plain = (request.json for request in server.requests)
    assert streamed["stream_options"] == {"include_usage": True}
    assert "stream_options" not in plain
    assert metering_watch.total("dspy_unmetered_requests_total") == 0
    assert metering_watch.agrees_with(server.bills)


def check_unknown(watch: Watch, server: OpenAIServer, outcome: str) -> None:
    """One reply was billed that the client knows nothing of, and the books say so."""
    (record,) = watch.lms
    assert record.outcome == outcome
    assert (record.usage, record.cost_usd, record.cache_hit) == (Usage(), None, None)
    assert watch.total("dspy_requests_total", status=outcome) == 1
    assert watch.total("dspy_unmetered_requests_total", model="openai/gpt-4o-mini") == 1
    assert watch.total("dspy_unpriced_requests_total", model="openai/gpt-4o-mini") == 1
    assert len(server.bills) == 1
    assert watch.agrees_with([], cost=None)


@pytest.mark.parametrize("engine", ["auto", "litellm"])
async def test_a_cancelled_call_is_of_unknown_cost(engine: str, watch: Watch, server: OpenAIServer, lm: MakeLM) -> None:
    """Case 15: a call cancelled while the server computes is cancelled, its usage unknown, and counted as such."""
    hold = threading.Event()
    server.script([Reply(text="late", hold=hold)])
    task = asyncio.create_task(lm(engine=engine, num_retries=0).acall("Why?"))
    await asyncio.to_thread(server.wait_for, lambda: len(server.requests) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    hold.set()
    await asyncio.to_thread(server.wait_for, lambda: len(server.bills) == 1)
    check_unknown(watch, server, "cancelled")


@pytest.mark.parametrize("awaited", [True, False])
@pytest.mark.parametrize("engine", ["auto", "litellm"])
async def test_a_call_that_times_out_is_of_unknown_cost(
    engine: str, awaited: bool, watch: Watch, server: OpenAIServer, lm: MakeLM
) -> None:
    """Case 15: a call that the client gives up waiting for has outcome timeout and unknown usage."""
    hold = threading.Event()
    server.script([Reply(text="late", hold=hold)])
    asked = lm(engine=engine, num_retries=0, timeout=0.2)
    with pytest.raises(LMError):
        await (asked.acall("Why?") if awaited else asyncio.to_thread(asked, "Why?"))
    hold.set()
    await asyncio.to_thread(server.wait_for, lambda: len(server.bills) == 1)
    check_unknown(watch, server, "timeout")


@pytest.mark.parametrize("engine", ["auto", "litellm"])
async def test_a_stream_that_is_cut_is_of_unknown_cost(
    engine: str, watch: Watch, server: OpenAIServer, lm: MakeLM
) -> None:
    """Case 15: a connection that breaks in the middle of a stream is an error of unknown usage."""
    server.script([Reply(text=ANSWER, cut_after_chunks=4)])
    with pytest.raises(Exception, match=r".") as raised:
        await stream(lm(engine=engine, num_retries=0))
    assert any(isinstance(error, LMError) for error in getattr(raised.value, "exceptions", [raised.value]))
    check_unknown(watch, server, "error")


@pytest.mark.parametrize("engine", ["auto", "litellm"])
def test_a_plain_reply_that_is_cut_is_of_unknown_cost(
    engine: str, watch: Watch, server: OpenAIServer, lm: MakeLM
) -> None:
    """Case 15: a body that ends in the middle was computed and billed, and its usage is unknown."""
    server.script([Reply(text=ANSWER, cut_after_chunks=0)])
    with pytest.raises(LMError):
        lm(engine=engine, num_retries=0)("Why?")
    check_unknown(watch, server, "error")


@pytest.mark.parametrize("engine", ["auto", "litellm"])
def test_a_call_that_never_arrives_is_not_billed(engine: str, watch: Watch, lm: MakeLM) -> None:
    """Case 15: a refused connection is an error without usage, and no gap in the books."""
    with OpenAIServer() as gone:
        address = gone.base_url
    with pytest.raises(LMError):
        lm(engine=engine, num_retries=0, api_base=address)("Why?")
    (record,) = watch.lms
    assert (record.outcome, record.usage, record.cost_usd, record.cut_off) == ("error", Usage(), None, False)
    assert watch.total("dspy_unmetered_requests_total") == watch.total("dspy_unpriced_requests_total") == 0


@pytest.mark.parametrize("engine", ["auto", "litellm"])
async def test_a_stream_that_its_reader_leaves_is_of_unknown_cost(
    engine: str, watch: Watch, server: OpenAIServer, lm: MakeLM
) -> None:
    """Case 15: a reader that is cancelled after the first chunk cancels the call, whose usage nobody is told."""
    hold, begun = threading.Event(), asyncio.Event()
    server.script([Reply(text=ANSWER, hold=hold, hold_after_chunks=5)])
    program = dspy.streamify(dspy.Predict("question -> answer"))

    async def read() -> None:
        with dspy.context(lm=lm(engine=engine, num_retries=0)):
            async for _ in program(question="Why?"):
                begun.set()

    reader = asyncio.create_task(read())
    await begun.wait()
    reader.cancel()
    await asyncio.wait([reader])
    hold.set()
    await asyncio.to_thread(watch.wait_for_lms, 1)
    check_unknown(watch, server, "cancelled")
