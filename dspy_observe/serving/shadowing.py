"""Calls that users never see: the candidate answers the same questions, off the request path.

What a user's call loses by it is putting a question into a bounded queue, some microseconds. What does not fit, waits
too long or would cost too much is left out and counted. Threads cannot be ended from outside: a shadow call that hangs
holds up its worker, the queue fills, and the rest is left out.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import queue
import random
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from dspy_observe.errors import ConfigurationError
from dspy_observe.facts.background import bill_of, carried_settings, run_apart
from dspy_observe.registry.programs.walking import modules, tools
from dspy_observe.serving.loading import Serving
from dspy_observe.serving.series import Series

__all__ = ["Shadow", "Shadower", "side_effects"]

_logger = logging.getLogger("dspy_observe")
_HOUR_S: Final = 3600.0
_HARMLESS: Final = frozenset({"finish"})
"""ReAct's own way to end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shadow:
    """Which calls a candidate answers in the shadow, and within what limits.

    Raises:
        ConfigurationError: A field has a value that cannot work.
    """

    version: str | None = None
    """What answers in the shadow: display name, alias or hash; ``None`` takes the rollout's candidate."""
    share: float = 0.1
    """Part of the calls that stable answers, from 0 to 1."""
    max_waiting: int = 100
    """Questions that may wait; further ones are dropped (``full``)."""
    max_wait_s: float = 30.0
    """A question that waited longer is dropped (``late``)."""
    workers: int = 1
    """Shadow calls at once."""
    max_cost_usd_per_hour: float | None = None
    """When this much was spent within an hour, questions are dropped (``cost``); so are all (``unpriced``) once a call
    had no known price. ``None`` sets no limit."""
    read_only_tools: tuple[str, ...] = ()
    """Tools that may be called twice. A program with other tools, or one that runs code, gets no shadow (``tools``)."""
    side_effects: bool = False
    """Whether it may have any tools whatever."""

    def __post_init__(self) -> None:
        numbers = ((self.share, 0, 1), (self.max_waiting, 1, math.inf), (self.max_wait_s, 0, math.inf),
                   (self.workers, 1, math.inf), (self.max_cost_usd_per_hour or 0, 0, math.inf))  # fmt: skip
        names = ("share", "max_waiting", "max_wait_s", "workers", "max_cost_usd_per_hour")
        for name, (value, low, high) in zip(names, numbers, strict=True):
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise ConfigurationError(
                    f"Shadow.{name}", f"{value!r} cannot work", f"Use a number from {low} to {high}"
                )


@dataclass(frozen=True, slots=True)
class _Question:
    serving: Serving
    args: tuple[Any, ...]
    inputs: dict[str, Any]
    asynchronous: bool
    settings: dict[str, Any]
    asked_at: float


class Shadower:
    """Answers questions in the shadow.

    Args:
        options: Which, and within what limits.
        series: Where is counted what was left out.
    """

    def __init__(self, options: Shadow, series: Series) -> None:
        self.options = options
        self._series = series
        self._spent: deque[tuple[float, float]] = deque()
        self._unpriced = False
        self._judged: tuple[Serving, list[str]] | None = None
        self._lock = threading.Lock()
        self._start_anew()

    def _start_anew(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._waiting: queue.Queue[_Question | None] = queue.Queue(self.options.max_waiting)
        self._threads: list[threading.Thread] = []
        self._closed = False

    def offer(
        self, serving: Serving | None, args: tuple[Any, ...], inputs: dict[str, Any], *, asynchronous: bool
    ) -> None:
        """Let a question be answered in the shadow, perhaps. Returns at once and never raises.

        Args:
            serving: Who would answer; ``None`` leaves it out without a word.
            args: Of the user's call.
            inputs: Of the user's call; shared with it, as a copy could cost anything.
            asynchronous: Whether the user's call is by ``acall``.
        """
        options = self.options
        if serving is None or random.random() >= options.share:  # noqa: S311 - a sample, no secret
            return
        if self._pid != os.getpid():  # threads and what they waited for were left behind in a fork
            self._start_anew()
        if self._over_budget():
            return
        if self.refused(serving):
            self._series.dropped("tools")
            return
        try:
            question = _Question(serving, args, inputs, asynchronous, carried_settings(), time.monotonic())
            self._waiting.put_nowait(question)
        except queue.Full:
            self._series.dropped("full")
            return
        if len(self._threads) < options.workers:
            self._hire()

    def refused(self, serving: Serving) -> list[str]:
        """What of a program keeps it from being called in the shadow; empty when nothing does."""
        judged = self._judged
        if judged is None or judged[0] is not serving:
            options = self.options
            found = [] if options.side_effects else side_effects(serving.program, options.read_only_tools)
            self._judged = judged = (serving, found)
        return judged[1]

    def close(self) -> None:
        """Take no more questions; those that wait are forgotten."""
        self._closed = True
        for _ in self._threads:
            try:
                self._waiting.put_nowait(None)
            except queue.Full:  # whoever takes the next one sees that it is closed
                return

    def _over_budget(self) -> bool:
        limit = self.options.max_cost_usd_per_hour
        if limit is None:
            return False
        if self._unpriced:
            self._series.dropped("unpriced")
            return True
        with self._lock:
            while self._spent and self._spent[0][0] < time.monotonic() - _HOUR_S:
                self._spent.popleft()
            over = math.fsum(cost for _, cost in self._spent) >= limit
        if over:
            self._series.dropped("cost")
        return over

    def _hire(self) -> None:
        with self._lock:
            if len(self._threads) < self.options.workers and not self._closed:
                thread = threading.Thread(
                    target=self._work, args=(self._waiting,), name="dspy_observe shadow", daemon=True
                )
                self._threads.append(thread)
                thread.start()

    def _work(self, waiting: queue.Queue[_Question | None]) -> None:
        while True:
            question = waiting.get()
            if question is None or self._closed:
                return
            if time.monotonic() - question.asked_at > self.options.max_wait_s:
                self._series.dropped("late")
            elif not self._over_budget():
                self._answer(question)

    def _answer(self, question: _Question) -> None:
        program = question.serving.program
        try:
            if question.asynchronous:
                run_apart(question.settings, lambda: asyncio.run(program.acall(*question.args, **question.inputs)))
            else:
                run_apart(question.settings, lambda: program(*question.args, **question.inputs))
        except Exception as error:  # noqa: BLE001 - the record of the call has it; no user does
            _logger.debug("dspy_observe: a shadow call failed: %s", type(error).__name__)
        cost = bill_of(program)
        if cost is None:
            if self.options.max_cost_usd_per_hour is not None and not self._unpriced:
                _logger.warning("dspy_observe: a shadow call had no known price, so its limit cannot be kept; no more")
            self._unpriced = True
        elif cost:
            with self._lock:
                self._spent.append((time.monotonic(), cost))


def side_effects(program: Any, read_only: tuple[str, ...] = ()) -> list[str]:
    """What of a program may act upon the world: tools that are not known to only read, and modules that run code.

    Args:
        program: A ``dspy.Module``.
        read_only: Names of tools that may be called any number of times.
    """
    names = {str(tool.name) for _, tool in tools(program)} - _HARMLESS - set(read_only)
    runs_code = {path for path, one in modules(program).items() if hasattr(one, "_interpreter_factory")}
    return sorted(names | runs_code)
