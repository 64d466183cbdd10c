"""Ending one attempt of an LM call at its deadline, whichever way it runs.

A coroutine is cancelled. A thread cannot be: the attempt goes on in it, unobserved by its caller, and its tokens are
booked when it ends, because the provider bills them. An attempt that streams has its deadline until its first chunk;
what has begun to reach the consumer is not taken away.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
from dspy.streaming.messages import StatusMessage
from dspy.utils.exceptions import LMTimeoutError

from dspy_observe.facts.calls import DEADLINE

__all__ = ["AttemptTimeoutError", "Outlet", "run_async", "run_sync"]


class AttemptTimeoutError(LMTimeoutError):  # type: ignore[misc]  # DSPy carries no types
    """A model did not answer within the attempt's deadline."""

    default_code = "deadline"


class Outlet:
    """Stands in for the consumer's stream during one attempt, and knows whether any output has passed.

    Status messages are DSPy's own and can be sent again; chunks of an answer cannot be taken back.

    Args:
        stream: The stream behind it.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.emitted = False
        self.closed = False
        self.on_output: Callable[[], None] | None = None

    async def send(self, item: Any) -> None:
        """Pass one item on.

        Raises:
            anyio.ClosedResourceError: The attempt was given up; another model may be answering by now.
        """
        if self.closed:
            raise anyio.ClosedResourceError
        if not isinstance(item, StatusMessage):
            self.emitted = True
            if self.on_output is not None:
                self.on_output()
        await self._stream.send(item)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def run_sync(work: Callable[[], Any], timeout_s: float | None, outlet: Outlet | None, model: str) -> Any:
    """Run an attempt that blocks.

    Args:
        work: The attempt.
        timeout_s: Seconds until it is given up; ``None`` waits for ever.
        outlet: Where it streams to; ``None`` for an attempt that does not stream.
        model: Whose attempt it is.

    Raises:
        AttemptTimeoutError: The deadline has passed. Whatever ``work`` raises is raised too.
    """
    if timeout_s is None:
        return work()
    context = contextvars.copy_context()
    if outlet is not None:
        # DSPy sends chunks through the event loop that this thread was started by, and so must the attempt's thread.
        return anyio.from_thread.run(_in_worker, lambda: context.run(work), timeout_s, outlet, model)
    answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def attempt() -> None:
        try:
            answers.put((context.run(work), None))
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that asked
            answers.put((None, error))

    # Not a pool's: the interpreter would wait at its exit for attempts that hang.
    threading.Thread(target=attempt, name=f"attempt {model}", daemon=True).start()
    try:
        answer, error = answers.get(timeout=timeout_s)
    except queue.Empty:
        raise _too_late(timeout_s, model) from None
    if error is not None:
        raise error
    return answer


async def _in_worker(work: Callable[[], Any], timeout_s: float, outlet: Outlet, model: str) -> Any:
    with anyio.CancelScope(deadline=anyio.current_time() + timeout_s) as scope:

        def lift() -> None:
            scope.deadline = float("inf")

        outlet.on_output = lift
        # A limiter of its own: attempts that hang must not use up the threads that all programs share.
        limiter = anyio.CapacityLimiter(1)
        return await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=limiter)
    outlet.closed = True
    raise _too_late(timeout_s, model)


async def run_async(work: Awaitable[Any], timeout_s: float | None, outlet: Outlet | None, model: str) -> Any:
    """Run an attempt that awaits; see :func:`run_sync`."""
    if timeout_s is None:
        return await work
    deadline = _Deadline(timeout_s, model)
    if outlet is not None:
        outlet.on_output = deadline.lift
    async with deadline:
        return await work


class _Deadline:
    """``asyncio.timeout`` with a reason: the cancelled call is then recorded as a timeout, not as cancelled."""

    def __init__(self, timeout_s: float, model: str) -> None:
        self._timeout_s = timeout_s
        self._model = model
        self._expired = False

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._timer = asyncio.get_running_loop().call_later(self._timeout_s, self._expire)

    def _expire(self) -> None:
        self._expired = True
        self._task.cancel(DEADLINE)

    def lift(self) -> None:
        """Let the attempt take as long as it takes."""
        self._timer.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._expired and self._task.uncancel() <= self._cancelling and error is not None:
            raise _too_late(self._timeout_s, self._model) from error


def _too_late(timeout_s: float, model: str) -> AttemptTimeoutError:
    return AttemptTimeoutError(f"No answer within {timeout_s:g} s.", model=model)
