"""A thread that looks at the registry: at intervals, and at once where the store gives a hint.

Polling is the base. Hints (a watched folder, PostgreSQL's notifications) only make it quicker, and may be lost: over
NFS, behind a pooler, with a dropped connection. The source of hints is opened again as long as the follower lives.

A follower survives ``fork()`` (gunicorn's preload): no look is under way while the process forks, so that the child
finds every lock free, and the child starts threads of its own.
"""

from __future__ import annotations

import atexit
import contextvars
import logging
import os
import random
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Final

from dspy_observe import safety
from dspy_observe.errors import ConfigurationError

__all__ = ["Follower"]

_logger = logging.getLogger("dspy_observe")

Changes = Callable[[threading.Event], Iterator[None] | None]

_GAP_S: Final = 0.05
"""Between two looks, however many hints come: a look costs about a millisecond."""
_REOPEN_S: Final = 0.25
"""Before a lost source of hints is opened again; doubled at each failure, up to the interval of polling."""
_JOIN_S: Final = 2.0
_FORK_S: Final = 10.0
"""How long a fork waits for a look to end; one that takes longer hangs in a network, and holds no lock of ours then."""


class _Life:
    """The threads of a follower in one process, and what they wait for."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.wake = threading.Event()
        self.hinted = False
        """Whether hints come in now."""
        self.threads: list[threading.Thread] = []


class Follower:
    """Calls ``look`` again and again on a thread of its own.

    Args:
        look: Does the work and returns after how many seconds it wants to be called again at the latest; ``None``
            means after the interval. It has to be a bound method: when its object is gone, so is the thread.
        changes: Opens the source of hints; ``None`` never has any.
        refresh_s: The interval of polling in seconds.
        what: Name for threads and log lines.

    Raises:
        ConfigurationError: The interval is no positive number.
    """

    def __init__(self, look: Callable[[], float | None], changes: Changes | None, refresh_s: float, what: str) -> None:
        if isinstance(refresh_s, bool) or not isinstance(refresh_s, int | float) or not 0 < refresh_s < float("inf"):
            raise ConfigurationError("refresh_s", f"{refresh_s!r} is no interval", "Use seconds, such as 5.0")
        self.refresh_s = float(refresh_s)
        self.turn = threading.RLock()
        """For whoever changes what the look changes; never held while listeners are told, who may want it."""
        self.busy = threading.RLock()
        """Held by the thread as long as it looks, so that no fork leaves a lock behind that it holds."""
        self._look = weakref.WeakMethod(look)
        self._changes = changes
        self._what = what
        # Loading asks for the LM and adapter of the settings in force where the program was made.
        self._context = contextvars.copy_context()
        self._life: _Life | None = None
        _survive_forks(self)

    @property
    def hinted(self) -> bool:
        """Whether hints come in now."""
        life = self._life
        return life is not None and life.hinted

    @property
    def running(self) -> bool:
        """Whether somebody looks."""
        life = self._life
        return life is not None and any(thread.is_alive() for thread in life.threads)

    def start(self) -> None:
        """Start looking; a second start does nothing."""
        if self._life is not None:
            return
        self._life = life = _Life()
        work = [("follow", self._follow)] + ([("hints", self._listen)] if self._changes is not None else [])
        for name, run in work:
            thread = threading.Thread(
                target=self._context.copy().run, args=(run, life), name=f"dspy_observe {name} {self._what}", daemon=True
            )
            life.threads.append(thread)
        _alive.add(self)
        for thread in life.threads:
            thread.start()

    def poke(self) -> None:
        """Look as soon as possible."""
        if self._life is not None:
            self._life.wake.set()

    def stop(self) -> None:
        """Stop looking and wait, for some seconds at most, until nobody looks."""
        life, self._life = self._life, None
        _alive.discard(self)
        if life is None:
            return
        life.stop.set()
        life.wake.set()
        for thread in life.threads:
            if thread is not threading.current_thread():
                thread.join(_JOIN_S)

    def restart(self) -> None:
        """After a fork, in the child: the threads were left behind, with whatever locks they held."""
        self.turn, self.busy = threading.RLock(), threading.RLock()
        if self._life is not None:
            self._life = None
            self.start()

    def _follow(self, life: _Life) -> None:
        while not life.stop.is_set():
            life.wake.clear()
            look = self._look()
            if look is None:
                life.stop.set()
                return
            delay = None
            try:
                with self.busy:
                    delay = look()
            except Exception as error:  # noqa: BLE001 - whatever it is, the next look may go well
                safety.swallowed("serving.follow", error)
            del look
            life.stop.wait(_GAP_S)
            # Earlier by chance, so that the processes of a fleet do not ask all at once; never later.
            pause = min(self.refresh_s if delay is None else delay, self.refresh_s) * random.uniform(0.9, 1.0)  # noqa: S311
            life.wake.wait(max(0.0, pause - _GAP_S))

    def _listen(self, life: _Life) -> None:
        pause, quiet = _REOPEN_S, False
        assert self._changes is not None
        while not life.stop.is_set():
            try:
                source = self._changes(life.stop)
                if source is None:
                    return
                for _ in source:
                    if not life.hinted:
                        _logger.debug("dspy_observe: %s is watched", self._what)
                    life.hinted, pause, quiet = True, _REOPEN_S, False
                    life.wake.set()
            except Exception as error:  # noqa: BLE001 - hints may fail in any way; polling goes on
                if not quiet:
                    _logger.info("dspy_observe: no hints of changes of %s for now (%r); polling", self._what, error)
                quiet = True
            life.hinted = False
            life.stop.wait(pause)
            pause = min(pause * 2, max(self.refresh_s, _REOPEN_S))


_alive: weakref.WeakSet[Follower] = weakref.WeakSet()


def _survive_forks(follower: Follower) -> None:
    """Let the follower go on in children.

    Registered for each one, after its registry was opened: what is registered first is called first in the child, and
    a store has to drop its parent's connections before a new thread asks for one.
    """
    known = weakref.ref(follower)
    held = []

    def before() -> None:
        there = known()
        if there is not None and there.busy.acquire(timeout=_FORK_S):
            held.append(there.busy)

    def in_parent() -> None:
        while held:
            held.pop().release()

    def in_child() -> None:
        held.clear()
        there = known()
        if there is not None:
            there.restart()

    os.register_at_fork(before=before, after_in_parent=in_parent, after_in_child=in_child)


def _at_exit() -> None:
    for follower in list(_alive):
        follower.stop()


atexit.register(_at_exit)
