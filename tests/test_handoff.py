"""A sink's work is done in order on a thread, nobody waits for a slow sink; drops are counted."""

from __future__ import annotations

import contextvars
import gc
import logging
import os
import subprocess
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from dspy_observe import handoff, safety
from dspy_observe.handoff import Handoff

CALLERS = 8
WHO: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")


@pytest.fixture
def site() -> str:
    """A site that no other test has used."""
    return f"test.{uuid.uuid4().hex}"


class Sink:
    """A sink that notes who wrote and can be held."""

    def __init__(self) -> None:
        self.lines: list[Any] = []
        self.threads: list[threading.Thread] = []
        self.free = threading.Event()
        self.free.set()
        self.taken = threading.Event()

    def write(self, line: Any) -> None:
        """Note a line and wait until the sink is let go."""
        self.threads.append(threading.current_thread())
        self.taken.set()
        assert self.free.wait(20)
        self.lines.append(line)


def at_once(call: Callable[[int], None]) -> list[threading.Thread]:
    """Let several callers do the same, each knowing its number, and wait for them."""
    callers = [threading.Thread(target=call, args=(who,)) for who in range(CALLERS)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    return callers


def test_work_is_done_on_one_thread_in_order_and_in_the_callers_context(site: str) -> None:
    """The caller goes on while the sink is held, from the first piece of work on."""
    sink, target = Sink(), Handoff(site)
    sink.free.clear()
    for number in range(3):
        token = WHO.set(f"caller {number}")
        target.run(lambda number=number: sink.write((number, WHO.get())))
        WHO.reset(token)
    assert sink.taken.wait(20), "the thread took nothing"
    assert sink.lines == []
    assert target.flush(0.0) is False
    sink.free.set()
    assert target.flush(20.0) is True
    assert sink.lines == [(number, f"caller {number}") for number in range(3)]
    assert threading.current_thread() not in sink.threads
    assert len(set(sink.threads)) == 1


def test_work_of_many_threads_is_done_once_each(site: str) -> None:
    """In each caller's own order."""
    sink, target = Sink(), Handoff(site)

    def call(who: int) -> None:
        for number in range(100):
            target.run(sink.write, (who, number))

    at_once(call)
    assert target.flush(20.0)
    for who in range(CALLERS):
        assert [number for one, number in sink.lines if one == who] == list(range(100))


def test_prepared_work_of_many_threads_is_done_once_each(site: str) -> None:
    """In each caller's own order and context variables; what asks for nothing gets nothing."""
    sink, target = Sink(), Handoff(site)

    def ready(number: int) -> tuple[Any, ...] | None:
        return (sink.write, (WHO.get(), number)) if number % 3 else None

    def call(who: int) -> None:
        WHO.set(f"caller {who}")
        for number in range(300):
            target.run_prepared(ready, number)

    callers = at_once(call)
    assert target.flush(20.0)
    for who in range(CALLERS):
        found = [number for one, number in sink.lines if one == f"caller {who}"]
        assert found == [number for number in range(300) if number % 3]
    assert set(sink.threads).isdisjoint(callers)


def test_flush_waits_for_what_a_caller_prepares(site: str) -> None:
    """It has left one queue and is not in the other yet."""
    sink, target = Sink(), Handoff(site)
    free, held = threading.Event(), threading.Event()

    def slowly(number: int) -> tuple[Any, ...] | None:
        if number < handoff._PREPARED - 1:
            return None
        held.set()
        assert free.wait(20)
        return (sink.write, number)

    def call() -> None:
        for number in range(handoff._PREPARED):
            target.run_prepared(slowly, number)

    caller = threading.Thread(target=call)
    caller.start()
    assert held.wait(20)
    deadline = time.monotonic() + 20
    while not target._idle:
        assert time.monotonic() < deadline, "the thread never rested"
        time.sleep(0.001)
    assert target.flush(0.0) is False
    free.set()
    assert target.flush(20.0)
    assert sink.lines == [handoff._PREPARED - 1]
    caller.join()


def test_prepared_work_of_an_idle_program_is_done(site: str) -> None:
    """One piece alone, with nobody coming by."""
    sink, target = Sink(), Handoff(site)
    target.run_prepared(lambda: (sink.write, "alone"))
    assert sink.taken.wait(20)
    assert target.flush(20.0)
    assert sink.lines == ["alone"]


def test_a_caller_that_wants_the_outcome_has_it_when_the_call_returns(site: str) -> None:
    """As long as the sink is quick."""
    sink, target = Sink(), Handoff(site, wait=True)
    for number in range(100):
        target.run(sink.write, number)
        assert sink.lines[-1] == number
    assert threading.current_thread() not in sink.threads


def test_a_caller_does_not_wait_for_a_slow_sink_until_it_is_quick_again(
    site: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The call returns while its own piece of work is under way; one warning tells of it."""
    monkeypatch.setattr(handoff, "_BLOCKED_S", 0.2)
    sink, target = Sink(), Handoff(site, wait=True)
    sink.free.clear()
    with caplog.at_level(logging.WARNING, "dspy_observe"):
        target.run(sink.write, "held")
        assert sink.lines == []
        target.run(sink.write, "behind")
        time.sleep(1.2 * handoff._BLOCKED_S)
        sink.free.set()
        assert target.flush(20.0)
    assert sink.lines == ["held", "behind"]
    assert len([line for line in caplog.messages if site in line]) == 1
    deadline = time.monotonic() + 20
    while target._slow:
        assert time.monotonic() < deadline, "callers never waited again"
        target.run(sink.write, "line")
        target.flush(1.0)
    target.run(sink.write, "again")
    assert sink.lines[-1] == "again"


def test_nobody_gives_way_to_a_sink_that_is_held(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it was found slow; and to one that is quick again, callers do."""
    given = 0
    give_way = Handoff._give_way

    def counting(self: Handoff) -> None:
        nonlocal given
        given += 1
        give_way(self)

    monkeypatch.setattr(Handoff, "_give_way", counting)
    sink, target = Sink(), Handoff(site)
    sink.free.clear()
    target.run(sink.write, 0)
    assert sink.taken.wait(20)
    for number in range(1, 1000):
        target.run(sink.write, number)
    assert 1 <= given <= 2, "one finds it slow, another at most goes before it is held"
    sink.free.set()
    assert target.flush(20.0)
    assert sink.lines == list(range(1000))
    before = given
    for number in range(1000):
        target.run(sink.write, number)
    assert given >= before + 1000 // handoff._MOST
    assert target.flush(20.0)


def test_a_caller_gives_way_for_a_turn_and_not_for_all_that_waits(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sink that takes its time with each line ends its turn in time, and does the rest in the next ones."""
    monkeypatch.setattr(handoff, "_LINGER_S", 20.0)  # so that only callers and flushes begin a turn
    monkeypatch.setattr(handoff, "_TURN_S", 0.0)
    monkeypatch.setattr(handoff, "_SLOW_S", 20.0)
    sink, target = Sink(), Handoff(site)
    for number in range(1 + 4 * handoff._MOST):
        target.run(sink.write, number)
    assert sink.lines == [], "a turn of no time does nothing"
    assert target.flush(20.0)
    assert sink.lines == list(range(1 + 4 * handoff._MOST))


def test_a_busy_program_loses_no_work(site: str) -> None:
    """All that it hands over is done while it keeps Python busy, more than may wait at once."""
    sink, target = Sink(), Handoff(site)
    for number in range(3 * handoff._MAX_WAITING):
        target.run(sink.write, number)
        os.urandom(16)
    assert target.flush(20.0)
    assert sink.lines == list(range(3 * handoff._MAX_WAITING))


def test_a_full_queue_drops_and_counts(
    site: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What does not fit is lost, the caller is not held up, and one warning is logged."""
    monkeypatch.setattr(handoff, "_MAX_WAITING", 5)
    sink, target = Sink(), Handoff(site)
    sink.free.clear()
    target.run(sink.write, 0)
    assert sink.taken.wait(20)  # the thread holds this one, so that the queue is empty
    with caplog.at_level(logging.WARNING, "dspy_observe"):
        for number in range(1, 13):
            target.run(sink.write, number)
        target.run_prepared(lambda: (sink.write, "prepared"))
    sink.free.set()
    assert target.flush(20.0)
    assert sink.lines == [0, 1, 2, 3, 4, 5]
    assert safety.counts()[f"{site}.dropped"] == 8
    assert len([line for line in caplog.messages if ".dropped" in line]) == 1


@pytest.mark.parametrize("wait", [False, True])
def test_a_raising_sink_is_counted_and_the_next_line_arrives(
    site: str, monkeypatch: pytest.MonkeyPatch, wait: bool
) -> None:
    """Whether its caller waits or not."""
    monkeypatch.delenv("DSPY_OBSERVE_STRICT", raising=False)
    sink, target = Sink(), Handoff(site, wait=wait)

    def fail() -> None:
        raise OSError("disk full")

    target.run(fail)
    target.run(sink.write, "next")
    assert target.flush(20.0)
    assert sink.lines == ["next"]
    assert safety.counts()[site] == 1


def test_the_strict_switch_shows_what_a_sink_raised(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an error of the thread; the work behind it is done all the same."""
    monkeypatch.setenv("DSPY_OBSERVE_STRICT", "1")
    shown: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", shown.append)
    sink, target = Sink(), Handoff(site)

    def fail() -> None:
        raise OSError("disk full")

    target.run(fail)
    target.run(sink.write, "next")
    assert target.flush(20.0)
    assert [one.exc_type for one in shown] == [OSError]
    assert sink.lines == ["next"]


def test_flush_of_a_handoff_that_never_worked_returns_at_once(site: str) -> None:
    """There is nothing to wait for."""
    assert Handoff(site).flush(0.0) is True


def test_an_idle_thread_ends_and_work_starts_another(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Callbacks that come and go leave no threads behind."""
    monkeypatch.setattr(handoff, "_REST_S", 0.02)
    sink, target = Sink(), Handoff(site)
    for number in range(2):
        target.run(sink.write, number)
        assert target.flush(20.0)
        sink.threads[-1].join(20)
        assert not sink.threads[-1].is_alive()
    assert len(set(sink.threads)) == 2
    gone = weakref.ref(target)
    del target
    gc.collect()
    assert gone() is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_does_its_own_work_and_not_its_parents() -> None:
    """A worker that is forked while lines wait writes none of them again, and writes its own."""
    script = """
import os, threading
from dspy_observe.handoff import Handoff
free, held = threading.Event(), threading.Event()
target = Handoff("fork")
def write(line):
    held.set()
    if line == "first":
        assert free.wait(20)
    print(os.getpid() == parent and "parent" or "child", line, flush=True)
parent = os.getpid()
target.run(write, "first")
target.run(write, "second")
assert held.wait(20)
child = os.fork()
target.run(write, "own")
free.set()
assert target.flush(20)
if child:
    os.waitpid(child, 0)
else:
    os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert sorted(done.stdout.split("\n")) == ["", "child own", "parent first", "parent own", "parent second"]


def test_the_end_of_the_process_waits_for_lines() -> None:
    """A script's last call is logged, too."""
    script = 'from dspy_observe.handoff import Handoff; target = Handoff("end"); target.run(print, "last words")'
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "last words\n"
