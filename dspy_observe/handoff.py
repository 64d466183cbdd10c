"""Run work on somebody else's sink without letting the sink slow the program.

A log handler or span processor belongs to the application and may block: a full pipe, a synchronous exporter. Its work
is therefore done on a thread, in the order in which it came and in the context variables of its caller. The queue is
bounded and what does not fit is counted.

A thread of Python that wants to run beside a busy one is dear: every ``os.urandom`` of the other, and DSPy makes
several a call, wakes it in vain, which costs a tenth of a program call and gets nothing done. So the thread never asks
for its turn while the program is busy: it lets work gather, and a caller gives way once for many pieces, for a
millisecond at most, in which the thread does them in a row. Only where no caller comes by does it begin by itself.

What is our own in such work, such as rendering a line, blocks nobody. Callers do it themselves, for many pieces in a
row too: code that has just run is several times as quick as code between two program calls.

Where somebody may look for the outcome as soon as the call returns, as with a span processor that exports at once, the
caller waits for its piece of work, but never longer than a millisecond once it was begun.
"""

from __future__ import annotations

import atexit
import contextvars
import logging
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Any, Final

from dspy_observe import safety

__all__ = ["Handoff"]

_logger = logging.getLogger("dspy_observe")

_SLOW_S: Final = 0.001
"""One piece of work may take this long; it is what a program call may lose to a sink."""
_BLOCKED_S: Final = 1.0
"""A single piece that takes this long is worth a warning: a busy machine explains some hundred milliseconds, not
this."""
_STUCK_S: Final = 0.1
"""While one piece has taken this long, it does not help the sink that callers give way."""
_IN_A_ROW: Final = 10
"""Quick pieces in succession before callers wait for a sink again."""
_MAX_WAITING: Final = 2_000
"""Pieces of work that may wait: some megabytes of records."""
_PAUSE_S: Final = 0.0005
"""What a caller gives way when half of that waits although the sink works: all threads together are too quick for it,
mostly because they keep Python from running its thread."""
_TURN_S: Final = 0.0008
"""How long the thread works while a caller gives way; what is left waits for the next turn."""
_FEWEST: Final = 16
_MOST: Final = 64
"""Pieces of work for which a busy program gives way once: half a turn of them, between these bounds."""
_TICK_S: Final = 1e-7
_PREPARED: Final = 32
"""Pieces of work that are prepared in a row."""
_LINGER_S: Final = 0.05
"""How long the thread lets work gather before it begins by itself."""
_STARVED_S: Final = 1.0
"""How long a caller waits at most for its work to be begun, where the machine does not run the thread."""
_STEP_S: Final = 0.00025
_REST_S: Final = 5.0
"""A thread that has had no work for this long ends; the next piece of work starts another."""
_EXIT_S: Final = 2.0
"""How long the end of the process waits for all sinks."""

_Piece = tuple[Any, ...]
"""The caller's context variables or ``None``, what to do, and its arguments, in one tuple: one object fewer that the
garbage collector meets."""


class Handoff:
    """One sink's work.

    Args:
        site: The site under which failures and drops are counted, such as ``logs.emit``.
        wait: Whether callers wait for their work as long as the sink is quick.
    """

    def __init__(self, site: str, *, wait: bool = False) -> None:
        self._site = site
        self._wait = wait
        self._lock = threading.Lock()
        self._as_new()
        _all.add(self)

    def _as_new(self) -> None:
        self._unready: deque[_Piece] = deque()
        self._preparing = threading.Lock()
        self._waiting: deque[_Piece] = deque()
        self._since = 0
        """Pieces that came since a caller gave way."""
        self._worth = _FEWEST
        """For how many pieces one does."""
        self._usual_s = _TURN_S
        self._bell = threading.Event()
        self._giving_way = threading.Lock()
        self._answered = threading.Event()
        self._turn = False
        """Whether a caller gives way: the thread ends its turn in time and lets work gather again."""
        self._idle = True
        self._began: float | None = None
        """When the thread began the piece it works on; ``None`` between two."""
        self._quick = 0
        self._slow = False
        self._told = False
        self._thread: threading.Thread | None = None

    def run(self, work: Callable[..., Any], *args: Any) -> None:
        """Do ``work(*args)`` soon, in the caller's context variables. Never raises, never blocks for long."""
        waiting = self._waiting
        if len(waiting) >= _MAX_WAITING:
            safety.swallowed(f"{self._site}.dropped", _QueueFullError())
            return
        context = contextvars.copy_context()
        if self._wait and not self._slow:
            done = threading.Event()
            waiting.append((context, _then(work, done), *args))
            self._wake()
            self._wait_for(done)
            return
        waiting.append((context, work, *args))
        self._came(1)

    def run_prepared(self, prepare: Callable[..., _Piece | None], *args: Any) -> None:
        """Do soon what ``prepare(*args)`` asks for. Never raises, never blocks for long.

        Both run in the caller's context variables.

        Args:
            prepare: Returns a function and its arguments, or ``None`` when nothing is to be done. It is quick, blocks
                nobody, and is called soon, by any thread.
            *args: Its arguments.
        """
        unready = self._unready
        if len(unready) + len(self._waiting) >= _MAX_WAITING:
            safety.swallowed(f"{self._site}.dropped", _QueueFullError())
            return
        unready.append((contextvars.copy_context(), prepare, *args))
        if len(unready) >= _PREPARED:
            if self._preparing.acquire(blocking=False):
                try:
                    self._came(self._prepare())
                finally:
                    self._preparing.release()
        elif self._idle:
            self._give_way()

    def _prepare(self) -> int:
        """Prepare what came, in its order, by the holder of the lock; returns how many pieces."""
        unready, prepared = self._unready, 0
        while unready:
            context, prepare, *args = unready.popleft()
            try:
                piece = context.run(prepare, *args) if context is not None else prepare(*args)
            except Exception as error:  # noqa: BLE001 - a renderer is the application's; what it raises is counted
                self._failed(error)
                continue
            if piece is not None:
                self._waiting.append((context, *piece))
                prepared += 1
        return prepared

    def _came(self, pieces: int) -> None:
        """Give way where that is worth it."""
        self._since += pieces  # two callers that count at once may lose one
        if self._idle or (self._since >= self._worth and not self._slow):
            self._since = 0
            self._give_way()
        elif len(self._waiting) > _MAX_WAITING // 2 and not self._is_blocked():
            time.sleep(_PAUSE_S)

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything handed over before is done.

        Args:
            timeout_s: Seconds to wait at most.

        Returns:
            Whether it is.
        """
        if not self._has_work() and self._idle and not self._preparing.locked():
            return True
        done = threading.Event()
        self._unready.append((None, lambda: (done.set,)))  # behind all that waits, prepared or not
        self._wake()
        return done.wait(timeout_s)

    def _is_blocked(self) -> bool:
        began = self._began
        return began is not None and perf_counter() - began > _STUCK_S

    def _wait_for(self, done: threading.Event) -> None:
        """Wait while the sink is quick. Until it works on the piece, only the machine can be slow."""
        deadline = perf_counter() + _STARVED_S
        while not done.wait(_STEP_S):
            now, began = perf_counter(), self._began
            if now > deadline or (began is not None and now - began > _SLOW_S - _STEP_S):
                self._slow = True
                return

    def _give_way(self) -> None:
        """Stand aside while the thread takes note, or has its turn."""
        if not self._giving_way.acquire(blocking=False):
            return
        try:
            self._answered.clear()
            self._turn = True
            self._wake()
            if not self._answered.wait(_SLOW_S):
                began = self._began
                if began is not None and perf_counter() - began > _TURN_S / 2:
                    self._slow = True
        finally:
            self._giving_way.release()

    def _wake(self) -> None:
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    thread = threading.Thread(target=self._serve, name=f"dspy_observe {self._site}", daemon=True)
                    try:
                        thread.start()
                    except RuntimeError as error:  # the interpreter is ending, or the system has no thread left
                        safety.swallowed(f"{self._site}.thread", error)
                        return
                    self._thread = thread
        self._bell.set()

    def _serve(self) -> None:
        """The thread: let work gather, do it, and end after a rest."""
        waiting, bell, answered = self._waiting, self._bell, self._answered
        gathering = False
        while True:
            if not gathering:
                self._idle = True
                answered.set()
                if not self._has_work() and not bell.wait(_REST_S):
                    with self._lock:
                        if not self._has_work():
                            self._thread = None
                            return
                bell.clear()
                self._idle = self._turn = False
                answered.set()
            if not self._wait:
                bell.wait(_LINGER_S)
                bell.clear()
            gathering, self._turn = self._turn, False
            until = perf_counter() + _TURN_S if gathering else math.inf
            while self._has_work() and perf_counter() < until:
                if self._unready:
                    with self._preparing:
                        self._prepare()
                while waiting and perf_counter() < until:
                    self._judge(self._do(*waiting.popleft()))
            answered.set()

    def _has_work(self) -> bool:
        return bool(self._waiting or self._unready)

    def _judge(self, took: float) -> None:
        """Learn from one piece of work how quick the sink is."""
        self._quick = self._quick + 1 if took < _SLOW_S else 0
        self._usual_s += (min(took, _TURN_S) - self._usual_s) / _FEWEST
        self._worth = min(max(_FEWEST, int(_TURN_S / 2 / max(self._usual_s, _TICK_S))), _MOST)
        if self._quick >= _IN_A_ROW:
            self._slow = self._told = False
        elif took >= _BLOCKED_S and not self._told:
            self._told = True
            _logger.warning(
                "dspy_observe: the sink of %s took %.0f ms; calls do not wait for it", self._site, took * 1000
            )

    def _do(self, context: contextvars.Context | None, work: Callable[..., Any], *args: Any) -> float:
        """Do one piece of work; returns the seconds it took."""
        self._began = began = perf_counter()
        try:
            if context is None:
                work(*args)
            else:
                context.run(work, *args)
        except Exception as error:  # noqa: BLE001 - the sink is the application's; what it raises is counted
            self._failed(error)
        finally:
            self._began = None
        return perf_counter() - began

    def _failed(self, error: Exception) -> None:
        safety.swallowed(self._site, error)
        if safety.strict():  # shown as any error of a thread is; the thread goes on
            threading.excepthook(threading.ExceptHookArgs((type(error), error, error.__traceback__, self._thread)))


class _QueueFullError(Exception):
    """Work comes faster than the sink takes it."""


def _then(work: Callable[..., Any], done: threading.Event) -> Callable[..., Any]:
    def both(*args: Any) -> None:
        try:
            work(*args)
        finally:
            done.set()

    return both


_all: weakref.WeakSet[Handoff] = weakref.WeakSet()


def _after_fork() -> None:
    """What waits in the parent process is the parent's to do, and its threads are not in the child."""
    for handoff in list(_all):
        handoff._lock = threading.Lock()
        handoff._as_new()


def _at_exit() -> None:
    deadline = time.monotonic() + _EXIT_S
    for handoff in list(_all):
        handoff.flush(max(0.0, deadline - time.monotonic()))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
