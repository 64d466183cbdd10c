"""Run work on somebody else's sink without letting a slow sink slow the program.

A log handler or span processor belongs to the application and may block: a full pipe, a synchronous exporter. While it
is quick, work runs at once in the caller's thread, so that a line is written when the call returns. As soon as it
proves slow, work is queued for a background thread instead; the queue is bounded and what does not fit is counted.
When the sink is quick again, work runs in the caller's thread again.
"""

from __future__ import annotations

import contextvars
import logging
import queue
import threading
import time
from collections.abc import Callable
from time import perf_counter
from typing import Any, Final

from dspy_observe import safety

__all__ = ["Handoff"]

_logger = logging.getLogger("dspy_observe")

_SLOW_S: Final = 0.001
"""One piece of work may take this long; it is what a program call may lose to a sink."""
_BLOCKED_S: Final = 0.2
"""A single piece that takes this long is blocked: a busy machine explains some tens of milliseconds, not this."""
_IN_A_ROW: Final = 10
"""Slow (or quick) pieces in succession before the mode changes."""
_MAX_WAITING: Final = 2_000
"""Pieces of work that may wait: some megabytes of log fields."""


class Handoff:
    """One sink's work.

    Args:
        site: The site under which failures and drops are counted, such as ``logs.emit``.
    """

    def __init__(self, site: str) -> None:
        self._guard = safety.guard(site)
        self._site = site
        self._slow = False
        self._streak = 0
        self._waiting: queue.Queue[tuple[contextvars.Context, Callable[..., Any], tuple[Any, ...]]] = queue.Queue(
            _MAX_WAITING
        )
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def run(self, work: Callable[..., Any], *args: Any) -> None:
        """Do ``work(*args)`` now or soon, in the caller's context variables. Never raises, never blocks for long."""
        if self._slow:
            self._enqueue(work, args)
            return
        began = perf_counter()
        try:  # a guard in full: this runs for every span
            work(*args)
        except Exception as error:
            safety.swallowed(self._site, error)
            if safety.strict():
                raise
        took = perf_counter() - began
        if took < _SLOW_S:
            self._streak = 0
            return
        self._streak += 1
        if took >= _BLOCKED_S or self._streak >= _IN_A_ROW:
            self._become_slow(took)

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything queued is done.

        Args:
            timeout_s: Seconds to wait at most.

        Returns:
            Whether the queue is empty.
        """
        deadline = time.monotonic() + timeout_s
        with self._waiting.all_tasks_done:
            while self._waiting.unfinished_tasks:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return False
                self._waiting.all_tasks_done.wait(remaining)
        return True

    def _become_slow(self, took_s: float) -> None:
        self._slow = True
        self._streak = 0
        # A row of slow pieces may also be many threads at once, and is nothing to worry about.
        _logger.log(
            logging.WARNING if took_s >= _BLOCKED_S else logging.INFO,
            "dspy_observe: the sink of %s took %.0f ms; its work now runs on a background thread", self._site,
            took_s * 1000,
        )  # fmt: skip

    def _enqueue(self, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
        try:
            self._waiting.put_nowait((contextvars.copy_context(), work, args))
        except queue.Full as full:
            safety.swallowed(f"{self._site}.dropped", full)
            return
        thread = self._thread
        if thread is None or not thread.is_alive():  # not started yet, or lost in a fork
            with self._lock:
                if self._thread is thread:
                    self._thread = threading.Thread(target=self._work, name=f"dspy_observe {self._site}", daemon=True)
                    self._thread.start()

    def _work(self) -> None:
        quick = 0
        while True:
            context, work, args = self._waiting.get()
            began = perf_counter()
            try:
                with self._guard:
                    context.run(work, *args)
            finally:  # also where the strict switch lets the error end this thread; the next piece starts another
                self._waiting.task_done()
            quick = quick + 1 if perf_counter() - began < _SLOW_S else 0
            if quick >= _IN_A_ROW and self._waiting.empty():
                self._slow = False
