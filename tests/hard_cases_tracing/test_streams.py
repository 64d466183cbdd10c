"""Case 32: streams through both of DSPy's engines: first chunk, untouched chunks, and consumers that leave."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import dspy
import pytest
from opentelemetry.trace import StatusCode
from prometheus_client import CollectorRegistry

from dspy_observe import LatencyCallback, Metrics
from dspy_observe.openai_server import OpenAIServer, Reply
from dspy_observe.testing import frozen_clock

ANSWER = "[[ ## answer ## ]]\nforty two and not one more than that\n\n[[ ## completed ## ]]"
ENGINES = pytest.mark.parametrize("engine", ["lm15", "litellm"])
PROGRAMS = pytest.mark.parametrize("is_async_program", [False, True])


def streaming(lm: dspy.LM, **options: Any) -> Any:
    """A program that streams its answer field."""
    predict = dspy.Predict("question -> answer")
    predict.lm = lm
    listeners = [dspy.streaming.StreamListener(signature_field_name="answer")]
    return dspy.streamify(predict, stream_listeners=listeners, **options)


def shape(item: Any) -> Any:
    """What the consumer gets, without ids."""
    if isinstance(item, dspy.Prediction):
        return dict(item.items())
    return item.chunk, item.signature_field_name, item.is_last_chunk


async def release(server: OpenAIServer, clock: Any, hold: threading.Event, seconds: float) -> None:
    """Let time pass while the provider thinks, then let it answer."""
    await asyncio.to_thread(server.wait_for, lambda: server.in_flight == 1)
    clock.advance(seconds)
    hold.set()


@ENGINES
@PROGRAMS
async def test_time_to_first_chunk(
    observed: Any, served: Any, server: OpenAIServer, engine: str, is_async_program: bool
) -> None:
    """Case 32: exactly the time that the provider took before its first chunk, in record, span and histogram."""
    hold = threading.Event()
    server.script([Reply(text=ANSWER, hold=hold)])
    registry = CollectorRegistry()
    latency = LatencyCallback(Metrics(collector_registry=registry))
    with frozen_clock() as clock, dspy.context(callbacks=[*observed.callbacks, latency]):
        stream = streaming(served(engine=engine), is_async_program=is_async_program)(question="why?")
        waiter = asyncio.create_task(release(server, clock, hold, 5.0))
        async for _ in stream:
            clock.advance(100.0)
        await waiter
    (call,) = (record for record in observed.records if record.kind == "lm")
    assert call.ttft_s == 5.0
    assert call.outcome == "ok"
    (span,) = observed.named("chat gpt-4o-mini")
    assert span.attributes["gen_ai.response.time_to_first_chunk"] == 5.0
    assert span.attributes["gen_ai.request.stream"] is True
    labels = {"program": "Predict", "version": "unknown", "model": "openai/gpt-4o-mini"}
    assert registry.get_sample_value("dspy_lm_time_to_first_token_seconds_sum", labels) == 5.0
    observed.check_tree()


@ENGINES
def test_time_to_first_chunk_of_a_sync_stream(observed: Any, served: Any, server: OpenAIServer, engine: str) -> None:
    """Case 32: the same for a consumer without an event loop."""
    hold = threading.Event()
    server.script([Reply(text=ANSWER, hold=hold)])
    with frozen_clock() as clock, dspy.context(callbacks=observed.callbacks):
        stream = streaming(served(engine=engine), async_streaming=False)(question="why?")
        waiter = threading.Thread(target=lambda: asyncio.run(release(server, clock, hold, 3.0)))
        waiter.start()
        for _ in stream:
            clock.advance(100.0)
        waiter.join()
        observed.idle.wait()
    (call,) = (record for record in observed.records if record.kind == "lm")
    assert call.ttft_s == 3.0
    observed.check_tree()


@ENGINES
@PROGRAMS
async def test_chunks_and_requests_are_unaltered(
    observed: Any, served: Any, server: OpenAIServer, engine: str, is_async_program: bool
) -> None:
    """Case 32: the consumer gets the same chunks, and the provider the same request, with and without us."""
    server.script([Reply(text=ANSWER)] * 2)
    results = []
    for callbacks in ([], observed.callbacks):
        with dspy.context(callbacks=callbacks):
            stream = streaming(served(engine=engine), is_async_program=is_async_program)
            results.append([shape(item) async for item in stream(question="why?")])
    plain, watched = results
    assert len(plain) > 3
    assert watched == plain
    assert watched[-1] == {"answer": "forty two and not one more than that"}
    without, with_us = server.requests
    assert with_us.json == without.json


async def test_a_cached_stream_has_no_first_chunk(observed: Any, served: Any, server: OpenAIServer) -> None:
    """Case 32: an answer out of the cache is no stream of the provider."""
    lm = served(cache=True)
    question = f"a question that only this test asks of {server.base_url}"
    with dspy.context(callbacks=observed.callbacks):
        for _ in range(2):
            assert [item async for item in streaming(lm)(question=question)]
    first, second = (record for record in observed.records if record.kind == "lm")
    assert len(server.bills) == 1
    assert (first.cache_hit, second.cache_hit) == (False, True)
    assert first.ttft_s is not None
    assert second.ttft_s is None
    assert "gen_ai.response.time_to_first_chunk" not in observed.named("chat gpt-4o-mini")[1].attributes


async def test_a_call_that_does_not_stream_has_no_first_chunk(observed: Any, served: Any) -> None:
    """Case 32: without a stream nobody knows when the first token came."""
    with dspy.context(lm=served(), callbacks=observed.callbacks):
        await dspy.Predict("question -> answer").acall(question="why?")
    (call,) = (record for record in observed.records if record.kind == "lm")
    assert (call.ttft_s, call.streaming) == (None, False)


async def leave_by_break(stream: AsyncIterator[Any]) -> None:
    """Stop reading after the first chunk."""
    async with aclosing(stream) as items:
        async for _ in items:
            break


async def leave_by_aclose(stream: Any) -> None:
    """Close the stream after the first chunk."""
    await anext(stream)
    await stream.aclose()


async def leave_by_cancel(stream: AsyncIterator[Any]) -> None:
    """Be cancelled after the first chunk."""
    entered = asyncio.Event()

    async def consume() -> None:
        async for _ in stream:
            entered.set()

    task = asyncio.create_task(consume())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@ENGINES
@PROGRAMS
@pytest.mark.parametrize("leave", [leave_by_break, leave_by_aclose, leave_by_cancel])
async def test_a_consumer_that_leaves(
    observed: Any, served: Any, server: OpenAIServer, engine: str, is_async_program: bool, leave: Any
) -> None:
    """Case 32: break, aclose() and cancellation leave no open span, and say `cancelled` where they stopped a call."""
    hold = threading.Event()
    server.script([Reply(text=ANSWER, hold=hold, hold_after_chunks=6)])
    with dspy.context(callbacks=observed.callbacks):
        stream = streaming(served(engine=engine), is_async_program=is_async_program)
        # In a task of its own: closing an abandoned stream, anyio cancels the task that read it, observed or not.
        await asyncio.gather(asyncio.create_task(leave(stream(question="why?"))), return_exceptions=True)
        hold.set()  # a sync program goes on in its worker thread until its stream fails or ends
        await asyncio.to_thread(observed.idle.wait)
    observed.check_tree()
    (call,) = (record for record in observed.records if record.kind == "lm")
    assert call.outcome == "cancelled"
    assert call.ttft_s is not None
    assert not call.usage.known
    assert call.cost_usd is None
    assert all(span.status.status_code is StatusCode.ERROR for span in observed.spans)
    assert {span.attributes["dspy.outcome"] for span in observed.spans} == {"cancelled"}


@ENGINES
async def test_a_stream_that_is_cut(observed: Any, served: Any, server: OpenAIServer, engine: str) -> None:
    """Case 32: a connection that breaks in the middle leaves nothing open; nobody knows what was billed."""
    server.script([Reply(text=ANSWER, cut_after_chunks=3)] * 10)
    with dspy.context(callbacks=observed.callbacks):
        stream = streaming(served(engine=engine, num_retries=0), is_async_program=True)
        try:
            async for _ in stream(question="why?"):
                pass
        except dspy.utils.exceptions.DSPyError:
            pass
    observed.check_tree()
    calls = [record for record in observed.records if record.kind == "lm"]
    assert calls
    assert len(calls) == len(server.bills)
    assert not any(call.usage.known or call.cost_usd is not None for call in calls)


async def test_a_never_consumed_stream(observed: Any, served: Any, server: OpenAIServer) -> None:
    """Case 32: a stream that nobody iterates calls nothing and records nothing."""
    with dspy.context(callbacks=observed.callbacks):
        stream = streaming(served())(question="why?")
        await stream.aclose()
    assert observed.records == []
    assert server.requests == []
