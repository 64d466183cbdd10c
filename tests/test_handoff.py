"""A quick sink works in the caller's thread, a slow one in the background; a full queue is counted."""

from __future__ import annotations

import contextvars
import logging
import threading
import time
import uuid
from typing import Any

import pytest

from dspy_observe import handoff, safety
from dspy_observe.handoff import Handoff

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


def make_slow(target: Handoff, seconds: float = 0.25) -> None:
    """One piece of work that blocks longer than any thread switch."""
    target.run(time.sleep, seconds)


def test_a_quick_sink_has_the_line_when_the_call_returns(site: str) -> None:
    """Nothing is queued as long as the sink keeps up."""
    sink = Sink()
    Handoff(site).run(sink.write, "line")
    assert sink.lines == ["line"]
    assert sink.threads == [threading.current_thread()]


def test_a_blocked_sink_moves_to_a_thread_and_keeps_order_and_context(
    site: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller goes on while the sink is held, and the lines arrive as they were written."""
    sink, target = Sink(), Handoff(site)
    with caplog.at_level(logging.WARNING, "dspy_observe"):
        make_slow(target)
    assert "background thread" in caplog.text
    sink.free.clear()
    for number in range(3):
        token = WHO.set(f"caller {number}")
        target.run(lambda number=number: sink.write((number, WHO.get())))
        WHO.reset(token)
    assert sink.taken.wait(20), "the background thread took nothing"
    assert sink.lines == []
    assert target.flush(0.0) is False
    sink.free.set()
    assert target.flush(20.0) is True
    assert sink.lines == [(number, f"caller {number}") for number in range(3)]
    assert threading.current_thread() not in sink.threads
    assert len(set(sink.threads)) == 1


def test_work_comes_back_to_the_callers_thread_when_the_sink_is_quick_again(site: str) -> None:
    """A moment's trouble must not cost the order of lines for good."""
    sink, target = Sink(), Handoff(site)
    make_slow(target)
    deadline = time.monotonic() + 20
    while threading.current_thread() not in sink.threads:
        assert time.monotonic() < deadline, "the sink stayed on its thread"
        target.run(sink.write, "line")
        target.flush(1.0)


def test_a_full_queue_drops_and_counts(
    site: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What does not fit is lost, the caller is not held up, and one warning is logged."""
    monkeypatch.setattr(handoff, "_MAX_WAITING", 5)
    sink, target = Sink(), Handoff(site)
    make_slow(target)
    sink.free.clear()
    target.run(sink.write, 0)
    assert sink.taken.wait(20)  # the thread holds this one, so that the queue is empty
    with caplog.at_level(logging.WARNING, "dspy_observe"):
        for number in range(1, 13):
            target.run(sink.write, number)
    sink.free.set()
    assert target.flush(20.0)
    assert sink.lines == [0, 1, 2, 3, 4, 5]
    assert safety.counts()[f"{site}.dropped"] == 7
    assert len([line for line in caplog.messages if ".dropped" in line]) == 1


@pytest.mark.parametrize("slow", [False, True])
def test_a_raising_sink_is_counted_and_the_next_line_arrives(
    site: str, monkeypatch: pytest.MonkeyPatch, slow: bool
) -> None:
    """In the caller's thread and in the background."""
    monkeypatch.delenv("DSPY_OBSERVE_STRICT", raising=False)
    sink, target = Sink(), Handoff(site)
    if slow:
        make_slow(target)

    def fail() -> None:
        raise OSError("disk full")

    target.run(fail)
    target.run(sink.write, "next")
    assert target.flush(20.0)
    assert sink.lines == ["next"]
    assert safety.counts()[site] == 1


def test_flush_of_a_handoff_that_never_queued_returns_at_once(site: str) -> None:
    """There is nothing to wait for."""
    assert Handoff(site).flush(0.0) is True
