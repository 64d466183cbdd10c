"""The taps of one LM call catch what is theirs, pass everything on, and leave the settings as they were.

Long: one file holds all tests of one module.
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dspy
import pytest
from dspy.dsp.utils.settings import thread_local_overrides
from dspy.utils.callback import ACTIVE_CALL_ID
from dspy.utils.usage_tracker import UsageTracker

from dspy_observe.facts.lm import HistoryTap, LMCapture, StreamTap, UsageTap, Veil, report

REPORT = {"prompt_tokens": 10, "completion_tokens": 5}


class Clock:
    """A clock that the test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Stream:
    """What DSPy sends chunks to."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    async def send(self, item: Any) -> None:
        """Keep a chunk."""
        self.sent.append(item)


@contextmanager
def active(call_id: str | None) -> Iterator[None]:
    """Be inside a call."""
    token = ACTIVE_CALL_ID.set(call_id)
    try:
        yield
    finally:
        ACTIVE_CALL_ID.reset(token)


def capture(call_id: str = "c1", clock: Clock | None = None, *, meter_streams: bool = False) -> LMCapture:
    """Taps that are not installed."""
    return LMCapture(call_id, clock or Clock(), meter_streams=meter_streams)


@pytest.mark.parametrize(
    "layer", [{}, {"usage_tracker": None}, {"caller_modules": ["m"], "usage_tracker": UsageTracker(), "x": 1}]
)
def test_removing_brings_the_very_same_layer_back(layer: dict[str, Any]) -> None:
    """Nothing of ours stays in a context when calls follow each other."""
    token = thread_local_overrides.set(layer)
    try:
        taps = capture()
        taps.install()
        assert thread_local_overrides.get() is not layer
        taps.remove()
        assert thread_local_overrides.get() is layer
    finally:
        thread_local_overrides.reset(token)


def test_usage_is_kept_for_its_own_call_and_passed_on_always() -> None:
    """A user's ``track_usage`` sees what it would have seen without us."""
    tracker = UsageTracker()
    with dspy.context(usage_tracker=tracker):
        taps = capture("c1")
        taps.install()
        with active("c1"):
            dspy.settings.usage_tracker.add_usage("m", dict(REPORT))
        with active("another"):
            dspy.settings.usage_tracker.add_usage("m", {"prompt_tokens": 99})
        taps.remove()
        assert dspy.settings.usage_tracker is tracker
    assert taps.usages == [REPORT]
    assert tracker.get_total_tokens()["m"]["prompt_tokens"] == 109


def test_usage_without_a_tracker_of_the_user_is_kept_too() -> None:
    """And DSPy sees a tracker, so that it reports at all."""
    taps = capture()
    taps.install()
    assert dspy.settings.usage_tracker
    with active("c1"):
        dspy.settings.usage_tracker.add_usage("m", REPORT)
    taps.remove()
    assert dspy.settings.usage_tracker is None
    assert taps.usages == [REPORT]


def test_what_is_kept_is_a_copy() -> None:
    """DSPy adds up in the object that it reported."""
    entry = dict(REPORT)
    taps = capture()
    taps.install()
    with active("c1"):
        dspy.settings.usage_tracker.add_usage("m", entry)
    entry["prompt_tokens"] = 0
    taps.remove()
    assert taps.usages == [REPORT]


def test_a_late_report_after_the_end_is_not_booked_on_the_ended_call() -> None:
    """A task that was started inside the call keeps a copy of the taps."""
    taps = capture()
    taps.install()
    left_behind = dspy.settings.usage_tracker
    taps.remove()
    with active("c1"):
        left_behind.add_usage("m", REPORT)
    assert taps.usages == []


def test_the_tap_answers_like_the_tracker_behind_it() -> None:
    """Attributes and copies: DSPy deep-copies the tracker for each worker thread."""
    tracker = UsageTracker()
    taps = capture()
    tap = UsageTap(taps, tracker)
    assert tap.usage_data is tracker.usage_data
    copied = copy.deepcopy(tap)
    with active("c1"):
        copied.add_usage("m", REPORT)
    assert taps.usages == [REPORT]
    assert tracker.get_total_tokens() == {}
    assert copied.get_total_tokens()["m"]["prompt_tokens"] == 10


def test_usage_counted_within_a_call_has_somewhere_to_go() -> None:
    """``dspy.track_usage()`` inside an LM call adds its counts to the tracker around it, and there is only our tap."""
    taps = capture()
    taps.install()
    with active("c1"), dspy.track_usage() as tracker:
        tracker.add_usage("inner", REPORT)
    taps.remove()
    assert tracker.get_total_tokens()["inner"]["prompt_tokens"] == 10
    assert taps.usages == []


def test_taps_of_a_call_that_never_ended_are_passed_over() -> None:
    """Its usage tracker is nobody's; what stood there before it is used and brought back to."""
    tracker = UsageTracker()
    with dspy.context(usage_tracker=tracker):
        for number in range(3):
            capture(f"abandoned {number}").install()
        taps = capture("c1")
        taps.install()
        assert dspy.settings.usage_tracker._inner is tracker
        with active("c1"):
            dspy.settings.usage_tracker.add_usage("m", dict(REPORT))
        taps.remove()
    assert taps.usages == [REPORT]
    assert tracker.get_total_tokens()["m"]["prompt_tokens"] == 10


def test_a_capture_that_is_given_up_holds_nothing() -> None:
    """Else those of calls that never end would hold each other."""
    first, second = capture("one"), capture("two")
    first.install()
    second.install()
    first.give_up()
    second.give_up()
    assert (second._before, second._layer, second._taps) == (None, None, {})


@pytest.mark.parametrize("tracker", [None, UsageTracker()])
def test_a_veil_shows_the_settings_without_taps(tracker: UsageTracker | None) -> None:
    """A module inside an LM call finds the tracker and the callers that it would find without us."""
    module = dspy.Module()
    with dspy.context(caller_modules=[module], usage_tracker=tracker, send_stream=None):
        taps = capture()
        taps.install()
        tapped = thread_local_overrides.get()
        veil = Veil.over_taps()
        assert veil is not None
        assert dspy.settings.usage_tracker is tracker
        assert dspy.settings.caller_modules == [module]
        assert Veil.over_taps() is None
        veil.lift()
        assert thread_local_overrides.get() is tapped
        taps.remove()


def test_the_history_tap_stands_in_front_and_keeps_one_entry_only() -> None:
    """The innermost caller, the last of the list, stays the last; the user's modules are the same objects."""
    module = dspy.Module()
    with dspy.context(caller_modules=[module]):
        taps = capture()
        taps.install()
        owner, *rest = dspy.settings.caller_modules
        assert type(owner) is HistoryTap
        assert rest == [module]
        assert len(owner.history) == 0
        with active("another"):
            owner.history.append({"n": 1})
        assert taps.entry is None
        with active("c1"):
            owner.history.append({"n": 2})
        taps.remove()
        with active("c1"):
            owner.history.append({"n": 3})
        assert dspy.settings.caller_modules == [module]
    assert taps.entry == {"n": 2}


def test_a_nested_call_gets_a_history_tap_of_its_own_and_no_second_one() -> None:
    """An engine that calls an LM itself: each keeps its own entry and usage."""
    outer, inner = capture("outer"), capture("inner")
    outer.install()
    inner.install()
    owners = [owner for owner in dspy.settings.caller_modules if type(owner) is HistoryTap]
    assert len(owners) == 1
    with active("inner"):
        dspy.settings.usage_tracker.add_usage("m", {"prompt_tokens": 1})
        owners[0].append({"n": "inner"})
    inner.remove()
    with active("outer"):
        dspy.settings.usage_tracker.add_usage("m", {"prompt_tokens": 2})
        dspy.settings.caller_modules[0].history.append({"n": "outer"})
    outer.remove()
    assert (inner.usages, outer.usages) == ([{"prompt_tokens": 1}], [{"prompt_tokens": 2}])
    assert (inner.entry, outer.entry) == ({"n": "inner"}, {"n": "outer"})


async def test_the_stream_tap_times_the_first_chunk_of_its_call_and_changes_none() -> None:
    """Chunks of other calls do not count, later ones do not either."""
    clock, stream = Clock(), Stream()
    with dspy.context(send_stream=stream):
        taps = capture("c1", clock)
        taps.install()
        tap = dspy.settings.send_stream
        assert type(tap) is StreamTap
        chunks = [object(), object(), object()]
        for at, call_id, chunk in zip((1.0, 2.0, 3.0), ("another", "c1", "c1"), chunks, strict=True):
            clock.now = at
            with active(call_id):
                await tap.send(chunk)
        taps.remove()
        assert dspy.settings.send_stream is stream
    assert taps.first_chunk_at == 2.0
    assert all(sent is chunk for sent, chunk in zip(stream.sent, chunks, strict=True))
    assert tap.sent is stream.sent


def test_no_stream_is_invented_and_metering_is_asked_for_only_on_streams() -> None:
    """A call that does not stream stays one, and the user's ``track_usage`` is touched only where it is asked for."""
    for meter in (False, True):
        taps = capture(meter_streams=meter)
        taps.install()
        assert dspy.settings.send_stream is None
        assert not dspy.settings.track_usage
        taps.remove()
    for meter in (False, True):
        with dspy.context(send_stream=Stream()):
            taps = capture(meter_streams=meter)
            taps.install()
            assert bool(dspy.settings.track_usage) is meter
            taps.remove()
            assert not dspy.settings.track_usage


def test_removing_by_ownership_spares_what_others_put_on_top() -> None:
    """A layer that somebody else laid during the call stays, without our taps in it."""
    with dspy.context(send_stream=Stream()):
        stream = dspy.settings.send_stream
        taps = capture(meter_streams=True)
        taps.install()
        mine = UsageTracker()
        layer = {**thread_local_overrides.get(), "temperature": 0.3, "usage_tracker": mine}
        thread_local_overrides.set(layer)
        taps.remove()
        left = thread_local_overrides.get()
        assert left["temperature"] == 0.3
        assert left["usage_tracker"] is mine
        assert left["send_stream"] is stream
        assert not left.get("track_usage")
        assert not any(type(m) is HistoryTap for m in left.get("caller_modules") or ())


def test_removing_in_another_context_leaves_that_context_alone() -> None:
    """End handlers may run where a coroutine was closed."""
    taps = capture()
    inside = contextvars.copy_context()
    inside.run(taps.install)
    before = thread_local_overrides.get()
    taps.remove()
    assert thread_local_overrides.get() is before
    # In the context left behind, the next call finds the user's settings behind the dead taps.
    following = capture("c2")
    inside.run(following.install)
    tracker = inside.run(lambda: dspy.settings.usage_tracker)
    assert tracker._inner is None
    following.remove()


def test_two_captures_removed_in_the_order_of_their_installation_leave_nothing() -> None:
    """Two callbacks of different ledgers end first in, first out."""
    before = thread_local_overrides.get()
    one, two = capture("c1"), capture("c1")
    one.install()
    two.install()
    one.remove()
    two.remove()
    left = thread_local_overrides.get()
    for key in ("usage_tracker", "send_stream"):
        value = left.get(key)
        assert not isinstance(value, UsageTap | StreamTap) or value._capture.closed
    three = capture("c3")
    three.install()
    assert dspy.settings.usage_tracker._inner is None
    three.remove()
    thread_local_overrides.set(before)


def test_concurrent_tasks_keep_their_own_taps() -> None:
    """Each of fifty gathered calls catches exactly its own report."""
    caught: dict[int, list[dict[str, Any]]] = {}

    async def one(number: int) -> None:
        taps = capture(f"c{number}")
        taps.install()
        with active(f"c{number}"):
            await asyncio.sleep(0)
            dspy.settings.usage_tracker.add_usage("m", {"prompt_tokens": number})
            await asyncio.sleep(0)
        taps.remove()
        caught[number] = taps.usages

    async def run() -> None:
        await asyncio.gather(*(one(number) for number in range(50)))

    asyncio.run(run())
    assert caught == {number: [{"prompt_tokens": number}] for number in range(50)}


def test_a_report_reaches_the_active_call_only() -> None:
    """For models whose calls DSPy writes into no history."""
    report({"n": 0})  # nobody listens
    taps = capture()
    taps.install()
    with active("c1"):
        report({"n": 1})
    taps.remove()
    with active("c1"):
        report({"n": 2})
    assert taps.entry == {"n": 1}
