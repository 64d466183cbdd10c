"""Case 31: how a call ended; whatever stops a program from outside is no error of the program."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from typing import Any

import dspy
import pytest
from opentelemetry.trace import StatusCode
from prometheus_client import CollectorRegistry

from dspy_observe import LatencyCallback, Metrics
from dspy_observe.openai_server import Failure, OpenAIServer, Reply
from dspy_observe.testing import offline_lm

STOPS = [KeyboardInterrupt, SystemExit, asyncio.CancelledError, GeneratorExit, concurrent.futures.CancelledError]


def raising(error: type[BaseException]) -> dspy.LM:
    """An LM whose engine is stopped."""

    def answer(_: Any) -> Any:
        raise error("stop")

    return offline_lm(answer)


def check(observed: Any, outcome: str, error_type: str) -> None:
    """All calls ended like this, in records and spans."""
    observed.check_tree()
    assert {(record.outcome, record.error_type) for record in observed.calls} == {(outcome, error_type)}
    for span in observed.spans:
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes["error.type"] == error_type
        assert span.attributes["dspy.outcome"] == outcome


@pytest.mark.parametrize("stop", STOPS)
def test_stopped_from_outside(observed: Any, stop: type[BaseException]) -> None:
    """Case 31: an interrupt, an exit or a cancellation is the outcome `cancelled` on every call it passes."""
    registry = CollectorRegistry()
    callbacks = [*observed.callbacks, LatencyCallback(Metrics(collector_registry=registry))]
    module = dspy.Module()

    def forward() -> Any:
        raise stop("stop")

    module.forward = forward
    with dspy.context(callbacks=callbacks), pytest.raises(stop):
        module()
    check(observed, "cancelled", stop.__name__)
    labels = {"program": "Module", "version": "unknown", "role": "stable", "status": "cancelled"}
    assert registry.get_sample_value("dspy_program_duration_seconds_count", labels) == 1.0
    assert registry.get_sample_value("dspy_program_duration_seconds_count", {**labels, "status": "error"}) is None


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_stopped_inside_an_lm_call(observed: Any, stop: type[BaseException]) -> None:
    """Case 31: the same out of an LM's engine, through LM and predictor."""
    with dspy.context(lm=raising(stop), callbacks=observed.callbacks), pytest.raises(stop):
        dspy.Predict("question -> answer")(question="why?")
    check(observed, "cancelled", stop.__name__)


async def test_a_cancelled_task(observed: Any, served: Any, server: OpenAIServer) -> None:
    """Case 31: a task cancelled while the provider works on the request."""
    server.script([Reply(text="late", hold=threading.Event())])
    with dspy.context(lm=served(), callbacks=observed.callbacks):
        task = asyncio.create_task(dspy.Predict("question -> answer").acall(question="why?"))
        await asyncio.to_thread(server.wait_for, lambda: server.in_flight == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    check(observed, "cancelled", "CancelledError")
    (call,) = (record for record in observed.records if record.kind == "lm")
    assert not call.usage.known
    assert call.cost_usd is None


async def test_a_task_that_times_out(observed: Any, served: Any, server: OpenAIServer) -> None:
    """Case 31: asyncio's time-out cancels the calls below it; they say so."""
    server.script([Reply(text="late", hold=threading.Event())])

    async def expire(limit: asyncio.Timeout) -> None:
        await asyncio.to_thread(server.wait_for, lambda: server.in_flight == 1)
        limit.reschedule(asyncio.get_running_loop().time())

    async def impatient() -> None:
        async with asyncio.timeout(None) as limit:
            waiter = asyncio.create_task(expire(limit))
            await dspy.Predict("question -> answer").acall(question="why?")
        await waiter

    with dspy.context(lm=served(), callbacks=observed.callbacks), pytest.raises(TimeoutError):
        await impatient()
    check(observed, "cancelled", "CancelledError")


@pytest.mark.parametrize("engine", ["lm15", "litellm"])
@pytest.mark.parametrize(
    ("failure", "outcome"),
    [(Failure.rate_limited(), "rate_limited"), (Failure.server_error(), "error"), (Failure(401), "error")],
)
def test_refused_by_the_provider(
    observed: Any, served: Any, server: OpenAIServer, engine: str, failure: Failure, outcome: str
) -> None:
    """Case 31: errors of the program stay errors; a rate limit is told apart."""
    server.script([failure] * 3)
    lm = served(engine=engine, num_retries=0)
    with dspy.context(lm=lm, callbacks=observed.callbacks), pytest.raises(dspy.utils.exceptions.LMError):
        dspy.Predict("question -> answer")(question="why?")
    observed.check_tree()
    assert {record.outcome for record in observed.calls} == {outcome}
    assert all(span.status.status_code is StatusCode.ERROR for span in observed.spans)
    assert server.bills == []


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("engine", ["lm15", "litellm"])
async def test_an_lm_that_times_out(
    observed: Any, served: Any, server: OpenAIServer, engine: str, is_async: bool
) -> None:
    """Case 31: the provider's silence is the outcome `timeout`, on both engines, sync and async."""
    server.script([Reply(text="late", hold=threading.Event())] * 3)
    lm = served(engine=engine, num_retries=0, timeout=0.05)
    with dspy.context(lm=lm, callbacks=observed.callbacks), pytest.raises(dspy.utils.exceptions.LMError):
        await lm.acall("why?") if is_async else lm("why?")
    (call,) = observed.records
    assert call.outcome == "timeout"
    assert not call.usage.known


def test_a_failure_after_a_time_out(observed: Any) -> None:
    """Case 31: what goes wrong while a program handles a time-out is an error of the program."""

    class Program(dspy.Module):
        def forward(self) -> Any:
            try:
                raise TimeoutError from asyncio.CancelledError()  # noqa: TRY301  # as asyncio.timeout() does
            except TimeoutError:
                return {}["fallback"]

    with dspy.context(callbacks=observed.callbacks), pytest.raises(KeyError):
        Program()()
    check(observed, "error", "KeyError")


@pytest.mark.parametrize(("error", "outcome"), [(ValueError, "error"), (TimeoutError, "timeout")])
def test_errors_of_a_tool(observed: Any, error: type[Exception], outcome: str) -> None:
    """Case 31: an ordinary exception of a tool is an error, a time-out a time-out."""

    def work() -> None:
        raise error("broken")

    with dspy.context(callbacks=observed.callbacks), pytest.raises(error):
        dspy.Tool(work)()
    check(observed, outcome, error.__name__)
