"""One entry per call: facts gathered once, redacted, frozen, and read by every callback.

DSPy runs the end handlers of a call in the order of its start handlers, in the caller's thread. The first of our
callbacks to reach the ledger opens the entry; the first to leave closes it and freezes the record; the others get the
same object; the last one out removes the entry. So callbacks compose in any order, alone or in groups, globally, on one
LM, or under ``dspy.context``, and a redactor protects readers on both sides of it.

The lock covers dictionary operations only. Start and end of one call never run at the same time, so an entry needs no
lock of its own.

The file is long because opening and closing share every field of an entry; it runs twelve times a program call and is
written for speed where it looks plain.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import is_
from time import perf_counter
from time import time as unix_time
from typing import Any, ClassVar, Final, NamedTuple

from dspy_observe import safety
from dspy_observe.conventions import MAX_ENDED_CALLS, MAX_OPEN_CALLS
from dspy_observe.facts import attempts, billing, calls, content
from dspy_observe.facts.identity import WeakIdentityMap
from dspy_observe.facts.lm import LMCapture, Veil
from dspy_observe.facts.recent import Recent
from dspy_observe.readers import Plan, Reader, Recorder, Route, without
from dspy_observe.records import (
    CallKind,
    CallRecord,
    CallStart,
    Finding,
    Outcome,
    Price,
    make_call_record,
    make_call_start,
    with_inputs,
)
from dspy_observe.redaction import Redactor, credentials_only, redact_name

__all__ = ["LEDGER", "Answer", "Clock", "Ledger"]

_logger = logging.getLogger("dspy_observe")


@dataclass(frozen=True, slots=True)
class Clock:
    """Where the ledger reads the time; tests put a frozen one in its place."""

    time: Callable[[], float] = unix_time
    """Unix time in seconds."""
    monotonic: Callable[[], float] = perf_counter
    """Seconds from any origin, never running backwards."""


class Answer(NamedTuple):
    """Which call, and so which program version, returned an object."""

    call_id: str
    program: str | None
    version: str | None
    role: str
    trace_id: str | None


_UNPLACED: Final = Plan()
"""The plan of a call whose place was not looked up yet."""


class _Entry:
    """One open call. ``start`` is made when somebody needs it: of most adapter calls nobody does."""

    __slots__ = ("active", "admitted", "begun", "capture", "findings", "inputs", "instance", "kind", "parent", "plan",
                 "raw", "record", "shadow", "start", "started_at", "started_mono", "switch", "trace",
                 "veil")  # fmt: skip

    def __init__(
        self, kind: CallKind, instance: Any, raw: dict[str, Any], active: str | None, started_at: float
    ) -> None:
        self.kind = kind
        self.instance = instance
        self.raw = raw
        self.active = active
        """DSPy's id of the call around this one."""
        self.started_at = started_at
        self.started_mono = 0.0
        self.plan = _UNPLACED
        self.begun: Any = None  # the start as readers see it, with content where it is captured
        self.admitted: dict[int, Route] = {}
        self.parent: CallStart | None = None
        self.start: CallStart | None = None
        self.shadow: _Entry | None = None
        self.capture: LMCapture | None = None
        self.record: CallRecord | None = None
        self.trace: tuple[str, str] | None = None
        self.switch: attempts.Switch | None = None
        self.veil: Veil | None = None
        self.inputs: Any = None
        self.findings: tuple[Finding, ...] = ()


class Ledger:
    """All calls under way in this process.

    Args:
        max_open: Calls held open at once; beyond it the oldest is dropped and counted.
        max_ended: Ended calls remembered, at least, for children that start late.
        clock: Where the time comes from.
    """

    _warned_unredacted: ClassVar[bool] = False

    def __init__(
        self, *, max_open: int = MAX_OPEN_CALLS, max_ended: int = MAX_ENDED_CALLS, clock: Clock | None = None
    ) -> None:
        self.clock = clock or Clock()
        # One for every answer that is alive, as plain tuples, which the garbage collector leaves alone.
        self._answers: WeakIdentityMap[tuple[Any, ...]] = WeakIdentityMap()
        self._max_open = max_open
        self._open: dict[str, _Entry] = {}
        # As plain tuples, which the garbage collector leaves alone.
        self._ended: Recent[tuple[Any, ...]] = Recent(max_ended)
        self._planned: tuple[tuple[Any, ...], Plan] = ((), Plan())
        self._lock = threading.Lock()
        self._dropped = 0

    @property
    def open_calls(self) -> int:
        """How many calls are open now."""
        return len(self._open)

    @property
    def dropped_calls(self) -> int:
        """How many calls were given up so far."""
        return self._dropped

    def open_calls_of(self, kind: CallKind) -> int:
        """How many logical calls of one kind are open now."""
        return sum(entry.kind == kind and self._shadow_of(entry) is None for entry in list(self._open.values()))

    def answer_of(self, returned: object) -> Answer | None:
        """The program run that returned this very object; ``None`` when none did that is known."""
        found = self._answers.get(returned)
        return Answer(*found) if found is not None else None

    def open(self, callback: Recorder, kind: CallKind, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """A callback reports the start of a call, in the call's own thread and context. Never raises."""
        try:
            route = callback.routes[kind]
            entry = self._open.get(call_id)
            if entry is None:
                entry = _Entry(kind, instance, inputs, calls.active_call_id(), self.clock.time())
                self._open[call_id] = entry
                if len(self._open) > self._max_open:
                    self._drop_oldest()
            elif id(callback) in entry.admitted:
                return  # listed both globally and on the instance
            else:
                route = without(route, entry.admitted.values())
            entry.admitted[id(callback)] = route
            if route.only_failures:
                entry.started_mono = self.clock.monotonic()
                return
            if entry.plan is _UNPLACED:
                self._place(call_id, entry)
                entry.veil = Veil.over_taps() if kind == "module" else None
            if entry.shadow is not None:
                return
            if route.readers and entry.start is None:
                self._begin(call_id, entry)
            for reader in route.starters:
                try:
                    reader.started(entry.begun)
                except Exception as error:
                    self._reader_failed(reader, "started", error)
            entry.started_mono = self.clock.monotonic()
        except Exception as error:
            safety.swallowed("ledger.open", error)
            if safety.strict():
                raise

    def close(  # noqa: C901, PLR0912 - in one piece: a further function costs every call
        self, callback: Recorder, call_id: str, outputs: Any, exception: BaseException | None
    ) -> None:
        """A callback reports the end of a call, maybe in another context than its start. Never raises."""
        now = self.clock.monotonic()
        entry = self._open.get(call_id)
        if entry is None:
            return  # joined late, or dropped
        route = entry.admitted.pop(id(callback), None)
        if route is None:
            return
        if route.only_failures and exception is None and not (route.passive and (entry.admitted or entry.record)):
            if not entry.admitted:
                self._forget(call_id, entry)
            return
        try:
            if entry.plan is _UNPLACED:
                self._place(call_id, entry)
            if entry.shadow is None:
                readers = route.readers if exception is None else route.readers + route.on_failure
                if route.passive and exception is None and (entry.record or self._is_read(entry)):
                    readers = route.passive
                if readers:
                    if entry.record is None:
                        entry.record = self._freeze(call_id, entry, outputs, exception, now)
                    self._finish(readers, entry, entry.record, outputs)
                elif entry.capture is not None and not entry.admitted:
                    entry.capture.remove()
        except Exception as error:
            # Without a record nobody can finish: readers undo what they began.
            entry.admitted[id(callback)] = route
            self._drop(entry)
            entry.admitted.clear()
            safety.swallowed("ledger.close", error)
            if safety.strict():
                raise
        finally:
            if not entry.admitted:
                self._forget(call_id, entry)

    def _forget(self, call_id: str, entry: _Entry) -> None:
        """Take an entry out, and remember as much of it as children ask for that start late."""
        self._open.pop(call_id, None)
        if entry.veil is not None:
            entry.veil.lift()
        start = entry.start
        if start is not None and entry.kind in _PARENT_KINDS:
            self._ended.remember(
                call_id, (start.root_id, start.kind, start.name, start.program, start.version, start.role)
            )

    @staticmethod
    def _is_read(entry: _Entry) -> bool:
        """Whether a callback that is still to end asks for this call's record."""
        return any(route.readers for route in entry.admitted.values())

    def _finish(self, readers: tuple[Reader, ...], entry: _Entry, record: CallRecord, outputs: Any) -> None:
        for reader in readers:
            try:
                reader.finished(record)
            except Exception as error:
                self._reader_failed(reader, "finished", error)
        if entry.kind in _HANDED_OVER and record.outcome == "ok":
            self._hand_over(readers, entry, record, outputs)

    def _hand_over(self, readers: tuple[Reader, ...], entry: _Entry, record: CallRecord, outputs: Any) -> None:
        """Show readers the objects of a compile or an evaluation, which a record never holds."""
        for reader in readers:
            try:
                if record.kind == "compile":
                    reader.compiled(record, entry.instance, entry.raw, outputs)
                else:
                    reader.evaluated(record, entry.raw.get("program"), calls.examples_scored(outputs))
            except Exception as error:
                self._reader_failed(reader, "compiled" if record.kind == "compile" else "evaluated", error)

    def link(self, call_id: str, trace_id: int, span_id: int) -> None:
        """Tell the ledger which sampled span stands for an open call, for log lines and exemplars.

        Args:
            call_id: The call.
            trace_id: OpenTelemetry's 128-bit number.
            span_id: OpenTelemetry's 64-bit number.
        """
        entry = self._open.get(call_id)
        if entry is not None:
            entry.trace = (_hex_trace(trace_id), f"{span_id:016x}")

    def _place(self, call_id: str, entry: _Entry) -> None:
        """Find out where a call stands and what is gathered of it.

        Put off for calls of which only a failure matters until they fail, or until something is called from them.
        """
        listed, own = calls.surroundings(entry.instance)
        entry.plan = self._plan(listed, own)
        active = entry.active
        if active is not None:
            above = self._open.get(active)
            if above is None:
                ended = self._ended.get(active)
                if ended is not None:
                    entry.parent = _ended_start(active, *ended)
            else:
                if above.plan is _UNPLACED:
                    self._place(active, above)
                if above.shadow is not None:
                    above = above.shadow
                if _is_same_call(entry, above):
                    entry.shadow = above
                if above.capture is not None:
                    above.capture.delegates = True
                entry.parent = above.start or self._begin(active, above)
        if entry.kind == "lm":
            entry.capture = LMCapture(call_id, self.clock.monotonic, meter_streams=entry.plan.meter_streams)
            entry.capture.install()
            entry.switch = attempts.switch_of_this_call()

    def _shadow_of(self, entry: _Entry) -> _Entry | None:
        """The entry that stands for the same logical call as this one; asked from any thread, so nothing is noted."""
        if entry.plan is not _UNPLACED or entry.active is None:
            return entry.shadow
        above = self._open.get(entry.active)
        return above if above is not None and _is_same_call(entry, above) else None

    def _begin(self, call_id: str, entry: _Entry) -> CallStart:
        """Describe an open call, which is put off until somebody asks."""
        start = calls.begin(call_id, entry.kind, entry.instance, entry.raw, entry.parent, entry.started_at)
        entry.start = entry.begun = start
        if entry.plan.content != "none":
            with _GUARD_CONTENT:
                self._take_inputs(entry, start)
        return start

    def _plan(self, listed: list[Any], own: list[Any]) -> Plan:
        """What the readers of a call need. Worked out anew when DSPy's callbacks change."""
        known, plan = self._planned
        # The very callbacks, not the list: a list that is changed in place must not keep the plan of those it held.
        if len(listed) == len(known) and not own and all(map(is_, listed, known)):
            return plan
        recorders = [callback for callback in (*listed, *own) if isinstance(callback, Recorder)]
        if len(recorders) == 1:
            plan = recorders[0].plan
        else:
            plan = Plan.of(reader for recorder in recorders for reader in recorder.readers)
        if not own:
            self._planned = (tuple(listed), plan)
        return plan

    def _drop_oldest(self) -> None:
        with self._lock:
            try:
                oldest = self._open.pop(next(iter(self._open)), None)
            except (RuntimeError, StopIteration):  # another call opened or closed just now; the next one tries again
                return
            self._dropped += oldest is not None
        if oldest is not None:
            self._drop(oldest)

    def _drop(self, entry: _Entry) -> None:
        if entry.capture is not None:
            entry.capture.give_up()
        if entry.shadow is not None or entry.start is None:
            return
        for route in entry.admitted.values():
            for reader in route.readers:
                try:
                    reader.dropped(entry.start)
                except Exception as error:
                    self._reader_failed(reader, "dropped", error)

    def _freeze(
        self, call_id: str, entry: _Entry, outputs: Any, exception: BaseException | None, now: float
    ) -> CallRecord:
        start, capture = entry.start or self._begin(call_id, entry), entry.capture
        bill, ttft = _NO_BILL, None
        if capture is not None:
            capture.remove()
            if capture.first_chunk_at is not None:
                ttft = max(0.0, capture.first_chunk_at - entry.started_mono)
            with _GUARD_BILLING:
                bill = billing.gather(capture, entry.instance, entry.raw, outputs, exception)
        score = dataset = None
        if start.kind == "evaluate":
            score, dataset = calls.evaluation(entry.raw, outputs)
        outcome: Outcome = "ok"
        if exception is not None:
            outcome = "error"  # also where an exception of the application's raises when it is looked at
            with _GUARD_OUTCOME:
                outcome = calls.outcome_of(exception)
        taken_outputs = message = None
        if entry.plan.content != "none":
            with _GUARD_CONTENT:
                taken_outputs, message = self._take_outputs(entry, outputs, exception)
        record = make_call_record(
            start.call_id, start.parent_id, start.root_id, start.kind, start.name, start.program, start.version,
            start.role, start.is_program, start.operation, start.model_requested, start.provider, start.streaming,
            start.started_at,
            max(0.0, now - entry.started_mono),
            outcome,
            redact_name(type(exception).__name__) if exception is not None else None,
            bill.model_served,
            bill.response_id,
            ttft,
            bill.usage,
            bill.cost_usd,
            bill.cost_saved_usd,
            bill.cache_hit,
            None,
            bill.finish_reason,
            bill.billed_but_failed,
            score,
            dataset,
            entry.trace[0] if entry.trace is not None else None,
            entry.trace[1] if entry.trace is not None else None,
            entry.inputs,
            taken_outputs,
            message,
            entry.findings,
            bill.cut_off,
            entry.switch.from_model if entry.switch is not None else None,
            entry.switch.reason if entry.switch is not None else None,
            start.user,
        )  # fmt: skip
        if entry.plan.prices and bill is not _NO_BILL and record.may_be_billed:
            with _GUARD_PRICE:
                record = _priced(record, entry.plan.prices)
        if start.is_program and outputs is not None:
            answer = (start.call_id, start.program, start.version, start.role, record.trace_id)
            self._answers.set(outputs, answer)
        return record

    def _take_inputs(self, entry: _Entry, start: CallStart) -> None:
        kind, secrets = start.kind, None
        if kind == "lm":
            secrets = content.credentials_of(entry.instance, entry.raw)
        elif kind == "module":  # a key in a question must be known before the first LM is called
            secrets = content.credentials_ahead(entry.instance, entry.raw)
        named = kind in _NAMED_BY_PROGRAM
        if secrets or named:
            for redactor in self._redactors(entry.plan):
                if secrets:
                    redactor.add_secrets(secrets)
                if named:
                    options = redactor.options
                    own = content.credentials_in(entry.raw, options.deny_keys, options.allow)
                    if own:
                        redactor.add_passing_secrets(own)
        entry.inputs, found = self._clean(entry.plan, content.inputs_of(start.kind, entry.instance, entry.raw))
        entry.findings = found
        entry.begun = with_inputs(start, entry.inputs)

    def _take_outputs(self, entry: _Entry, outputs: Any, exception: BaseException | None) -> tuple[Any, str | None]:
        taken, found = self._clean(entry.plan, content.outputs_of(entry.kind, outputs))
        entry.findings += found
        if exception is None:
            return taken, None
        message, found = self._clean(entry.plan, str(exception))
        entry.findings += found
        return taken, message

    def _clean(self, plan: Plan, value: Any) -> tuple[Any, tuple[Finding, ...]]:
        if value is None:
            return None, ()
        redactors = self._redactors(plan)
        if not redactors:
            if not Ledger._warned_unredacted:
                Ledger._warned_unredacted = True
                _logger.warning(
                    "dspy_observe: content capture is on but no redaction is in force; content is left out. "
                    "Add RedactionCallback() to the callbacks, or leave Redaction on in configure()."
                )
            return None, ()
        findings: tuple[Finding, ...] = ()
        for redactor in redactors:
            value, found = redactor.redact(value)
            findings += tuple(found)
        return value, findings

    @staticmethod
    def _redactors(plan: Plan) -> tuple[Redactor, ...]:
        return _credentials(plan.redactors) if plan.content == "raw" else plan.redactors

    @staticmethod
    def _reader_failed(reader: Reader, verb: str, error: Exception) -> None:
        safety.swallowed(f"{type(reader).__name__}.{verb}", error)
        if safety.strict():
            raise error


_PARENT_KINDS: Final = frozenset({"module", "tool", "evaluate", "compile", "interpreter", "adapter_parse"})
"""Calls from which others are started; an LM's or a formatter's late child would be an oddity."""

_HANDED_OVER: Final = frozenset({"compile", "evaluate"})
"""Calls whose readers may need the program itself: rare ones, far from the hot path."""

_NAMED_BY_PROGRAM: Final = frozenset({"module", "tool"})
"""Calls whose arguments may be credentials that no LM is given."""

_NO_BILL: Final = billing.LMFacts(None, None, None, None, False, None, None, None, None)
"""What is known of the bill of a call that is no LM call, or whose bill could not be read."""


def _is_same_call(entry: _Entry, above: _Entry) -> bool:
    return entry.kind == above.kind and calls.is_same_logical_call(entry.kind, entry.instance, above.instance)


_GUARD_CONTENT = safety.guard("ledger.content")
_GUARD_BILLING = safety.guard("ledger.billing")
_GUARD_PRICE = safety.guard("ledger.price")
_GUARD_OUTCOME = safety.guard("ledger.outcome")


def _ended_start(
    call_id: str, root_id: str, kind: CallKind, name: str, program: str | None, version: str | None, role: str
) -> CallStart:
    """As much of an ended call as its late children ask for."""
    return make_call_start(
        call_id, None, root_id, kind, name, program, version, role, False, None, None, None, None, 0.0, None, None
    )


@lru_cache(maxsize=256)  # the calls of one program run share a trace
def _hex_trace(trace_id: int) -> str:
    return f"{trace_id:032x}"


def _credentials(redactors: tuple[Redactor, ...]) -> tuple[Redactor, ...]:
    """What raw content passes: names and credential detectors of the redactors in force, nothing else of them."""
    made = _RAW.get(redactors)
    if made is None:
        with _RAW_LOCK:  # two of them would know different secrets
            made = _RAW.get(redactors)
            if made is None:
                while len(_RAW) >= _MAX_RAW:
                    del _RAW[next(iter(_RAW))]
                made = tuple(credentials_only(redactor.options) for redactor in redactors) or (credentials_only(),)
                _RAW[redactors] = made
    return made


_RAW: Final[dict[tuple[Redactor, ...], tuple[Redactor, ...]]] = {}
_RAW_LOCK: Final = threading.Lock()
_MAX_RAW: Final = 16  # a process has one or two sets of redactors; tests make many


def _priced(record: CallRecord, prices: tuple[Price, ...]) -> CallRecord:
    for price in prices:
        value = price(record)
        if value is not None:
            cost = float(value)
            if not math.isfinite(cost) or cost < 0:
                raise ValueError("a price function returned a negative or infinite cost")
            return replace(record, cost_usd=cost)
    return record


LEDGER = Ledger()
"""The ledger of this process: callbacks find each other through it, however they were installed."""
