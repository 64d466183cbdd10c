"""Any interleaving of calls, callbacks and endings gives one record for each logical call, and nothing stays open.

Long: the simulation of DSPy's dispatch serves all properties.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import dspy
import pytest
from dspy.dsp.utils.settings import thread_local_overrides
from dspy.utils.callback import ACTIVE_CALL_ID
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from dspy_observe.callbacks.base import CallbackGroup, RecordCallback
from dspy_observe.callbacks.cost import CostCallback
from dspy_observe.callbacks.latency import LatencyCallback
from dspy_observe.ledger import LEDGER, Ledger
from dspy_observe.metrics import Metrics
from dspy_observe.records import CALL_KINDS, CallRecord, CallStart
from dspy_observe.testing import Capture, offline_lm

KINDS = ("module", "lm", "tool", "adapter_format", "adapter_parse", "evaluate", "compile", "interpreter")
ENDINGS = {
    "ok": None,
    "error": ValueError("x"),
    "cancelled": asyncio.CancelledError(),
    "timeout": TimeoutError(),
}
ADAPTER = dspy.ChatAdapter()
INSTANCES = {
    "module": dspy.Module(),
    "lm": offline_lm("x"),
    "tool": dspy.Tool(lambda x: x, name="t"),
    "adapter_format": ADAPTER,
    "adapter_parse": ADAPTER,
    "evaluate": object(),
    "compile": object(),
    "interpreter": object(),
}


class Reader(Capture):
    """A reader that also keeps what was dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.lost: list[CallStart] = []

    def dropped(self, start: CallStart) -> None:
        """Keep it."""
        self.lost.append(start)


class Raising(Reader):
    """A reader that keeps what it is told and then raises."""

    def started(self, start: CallStart) -> None:
        """Keep and raise."""
        super().started(start)
        raise RuntimeError

    def finished(self, record: CallRecord) -> None:
        """Keep and raise."""
        super().finished(record)
        raise RuntimeError


@dataclass
class Call:
    """One hook that DSPy fires, its callbacks in DSPy's order, and how far it is."""

    call_id: str
    kind: Any
    callbacks: list[Any]
    ending: str
    parent: Call | None
    shadow_of: Call | None
    opened: int = 0
    closed: int = 0

    @property
    def under_way(self) -> bool:
        """Whether a callback was told of the start and one, listed once or twice, not yet of the end."""
        ended = {id(callback) for callback in self.callbacks[: self.closed]}
        return self.opened > 0 and any(id(callback) not in ended for callback in self.callbacks)

    @property
    def logical(self) -> Call:
        """The call that this hook belongs to."""
        return self.shadow_of.logical if self.shadow_of is not None else self


@dataclass
class Lane:
    """A thread or task: a context of its own and a stack of calls."""

    context: contextvars.Context
    before: Any
    stack: list[Call] = field(default_factory=list)


class Simulation:
    """DSPy's dispatch, one handler at a time, in an order that hypothesis chooses.

    Args:
        data: Where the choices come from.
        ledger: What is tried.
        callbacks: What the calls may be watched by.
        lanes: How many threads or tasks.
        most: How many hooks fire at most.
    """

    def __init__(self, data: st.DataObject, ledger: Ledger, callbacks: list[Any], lanes: int, most: int) -> None:
        self.draw = data.draw
        self.ledger = ledger
        self.callbacks = callbacks
        self.calls: list[Call] = []
        self.most = most
        self.lanes = [Lane(contextvars.copy_context(), thread_local_overrides.get()) for _ in range(lanes)]
        self._ids = (f"c{number}" for number in itertools.count())

    def run(self) -> None:
        """Fire handlers until all calls have ended."""
        while True:
            lanes = [lane for lane in self.lanes if lane.stack or len(self.calls) < self.most]
            if not lanes:
                return
            self.step(self.draw(st.sampled_from(lanes)))

    def step(self, lane: Lane) -> None:
        """One handler in one lane."""
        top = lane.stack[-1] if lane.stack else None
        if top is not None and top.opened < len(top.callbacks):
            lane.context.run(self.open_next, top)
            return
        begins = top is None or (top.closed == 0 and len(lane.stack) < 4 and self.draw(st.booleans()))
        if begins and len(self.calls) < self.most:
            lane.stack.append(self.new_call(top))
            return
        if top is None:
            return
        # DSPy's end handlers may run in a context where nothing is known of the call.
        elsewhere = self.draw(st.integers(0, 9)) == 0
        (contextvars.copy_context() if elsewhere else lane.context).run(self.close_next, top)
        if top.closed == len(top.callbacks):
            lane.stack.pop()

    def new_call(self, parent: Call | None) -> Call:
        """A call watched by any callbacks, some of them perhaps twice."""
        kind = self.draw(st.sampled_from(KINDS))
        watchers = self.draw(st.lists(st.sampled_from(self.callbacks), min_size=1, max_size=5))
        shadow = parent if parent is not None and parent.kind == kind and kind.startswith("adapter") else None
        call = Call(next(self._ids), kind, watchers, self.draw(st.sampled_from(sorted(ENDINGS))), parent, shadow)
        self.calls.append(call)
        return call

    def open_next(self, call: Call) -> None:
        """A start handler, and DSPy's active call after the last one."""
        callback = call.callbacks[call.opened]
        ACTIVE_CALL_ID.set(call.parent.call_id if call.parent is not None else None)
        self.ledger.open(callback, call.kind, call.call_id, INSTANCES[call.kind], {})
        ACTIVE_CALL_ID.set(call.call_id)
        call.opened += 1

    def close_next(self, call: Call) -> None:
        """An end handler."""
        self.ledger.close(call.callbacks[call.closed], call.call_id, None, ENDINGS[call.ending])
        ACTIVE_CALL_ID.set(call.parent.call_id if call.parent is not None else None)
        call.closed += 1


def readers_of(callbacks: list[Any]) -> list[Any]:
    """The distinct readers behind callbacks."""
    found: dict[int, Any] = {}
    for callback in callbacks:
        for reader in callback.readers:
            found[id(reader)] = reader
    return list(found.values())


def make_callbacks() -> tuple[list[Any], list[Any]]:
    """Callbacks alone, in groups, shared between groups, and raising; and their readers."""
    one, two, three, raising = Reader(), Reader(), Reader(), Raising()
    callbacks: list[RecordCallback | CallbackGroup] = [
        one,
        two,
        raising,
        CallbackGroup(one, three),
        CallbackGroup(two, raising),
    ]
    return callbacks, [one, two, three, raising]


@given(st.data(), st.integers(1, 3))
def test_one_record_for_each_logical_call_the_same_for_all_its_readers(data: st.DataObject, lanes: int) -> None:
    """Whatever the order; and the ledger ends empty, as do the contexts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DSPY_OBSERVE_STRICT", "0")
        callbacks, readers = make_callbacks()
        ledger = Ledger()
        simulation = Simulation(data, ledger, callbacks, lanes, most=8)
        simulation.run()

    assert ledger.open_calls == 0
    assert ledger.dropped_calls == 0
    objects: dict[str, set[int]] = defaultdict(set)
    keep: list[CallRecord] = []
    for reader in readers:
        told = Counter(record.call_id for record in reader.records)
        began = Counter(start.call_id for start in reader.starts)
        expected = {c.call_id for c in simulation.calls if c.shadow_of is None and reader in readers_of(c.callbacks)}
        assert told == dict.fromkeys(expected, 1)
        assert began == dict.fromkeys(expected, 1)
        assert reader.lost == []
        keep += reader.records
        for record in reader.records:
            objects[record.call_id].add(id(record))
    assert all(len(found) == 1 for found in objects.values())

    by_id = {record.call_id: record for record in keep}
    for call in simulation.calls:
        record = by_id.get(call.call_id)
        if record is None:
            continue
        assert (record.kind, record.outcome) == (call.kind, call.ending)
        parent = call.parent.logical if call.parent is not None else None
        assert record.parent_id == (parent.call_id if parent is not None else None)
        root = call
        while root.parent is not None:
            root = root.parent
        assert record.root_id == root.logical.call_id
        assert (record.usage is not None) == (call.kind == "lm")


@given(st.data(), st.integers(1, 3))
def test_settings_are_restored_wherever_ends_run_in_their_own_context(data: st.DataObject, lanes: int) -> None:
    """Taps that are left behind in a context whose calls ended elsewhere belong to ended calls."""
    callbacks = [Reader(), Reader()]
    ledger = Ledger()
    simulation = Simulation(data, ledger, callbacks, lanes, most=6)
    simulation.run()
    for lane in simulation.lanes:
        left = lane.context.run(thread_local_overrides.get)
        for key in ("usage_tracker", "send_stream"):
            tap = left.get(key)
            assert tap is None or tap._capture.closed
        for module in left.get("caller_modules") or ():
            assert module._capture.closed


@given(st.data(), st.integers(1, 3), st.integers(1, 3))
def test_every_start_that_is_told_has_exactly_one_end_or_drop(data: st.DataObject, lanes: int, limit: int) -> None:
    """Also when calls are pushed out while their callbacks are still starting."""
    callbacks = [Reader(), Reader(), CallbackGroup(Reader(), Reader())]
    ledger = Ledger(max_open=limit)
    simulation = Simulation(data, ledger, callbacks, lanes, most=8)
    simulation.run()
    assert ledger.open_calls == 0
    for reader in readers_of(callbacks):
        began = Counter(start.call_id for start in reader.starts)
        ended = Counter(record.call_id for record in reader.records)
        lost = Counter(start.call_id for start in reader.lost)
        assert all(count == 1 for count in ended.values())
        assert began == ended + lost
    objects: dict[str, set[int]] = defaultdict(set)
    for reader in readers_of(callbacks):
        for record in reader.records:
            objects[record.call_id].add(id(record))
    assert all(len(found) == 1 for found in objects.values())
    assert bool(ledger.dropped_calls) == any(reader.lost for reader in readers_of(callbacks))


@settings(max_examples=30)  # each makes all instruments anew
@given(st.data(), st.integers(1, 3))
def test_the_gauges_follow_and_return_to_zero(data: st.DataObject, lanes: int) -> None:
    """At every step the gauge of open calls is the number of calls that the ledger holds; at the end all are 0."""
    registry = CollectorRegistry()
    metrics = Metrics(collector_registry=registry)
    callbacks: list[Any] = [LatencyCallback(metrics), CostCallback(metrics=metrics), Reader()]
    callbacks.append(CallbackGroup(*callbacks))
    assert LEDGER.open_calls == 0
    simulation = Simulation(data, LEDGER, callbacks, lanes, most=6)
    step = simulation.step

    def checked(lane: Lane) -> None:
        step(lane)
        under_way = [call for call in simulation.calls if call.under_way]
        assert registry.get_sample_value("dspy_observe_open_calls") == len(under_way)
        for kind in KINDS:
            expected = sum(c.kind == kind and c.shadow_of is None for c in under_way)
            assert registry.get_sample_value("dspy_in_flight_calls", {"kind": kind}) == expected

    simulation.step = checked  # type: ignore[method-assign]
    try:
        simulation.run()
        assert LEDGER.open_calls == 0
    finally:  # hypothesis may break an example off in the middle
        LEDGER._open.clear()
    assert registry.get_sample_value("dspy_observe_open_calls") == 0
    for kind in CALL_KINDS:
        assert registry.get_sample_value("dspy_in_flight_calls", {"kind": kind}) == 0
    counted = [c for c in simulation.calls if c.kind == "lm" and callbacks[1] in readers_of(c.callbacks)]
    booked = sum(s.value for m in registry.collect() for s in m.samples if s.name == "dspy_requests_total")
    assert booked == len(counted)
