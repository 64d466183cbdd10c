"""One entry per call: the same record for every reader, whoever they are and however calls end.

Long: one file holds all tests of one module.
"""

from __future__ import annotations

import contextvars
import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import dspy
import pytest
from dspy.dsp.utils.settings import thread_local_overrides
from dspy.utils.callback import ACTIVE_CALL_ID
from dspy.utils.exceptions import LMRateLimitError, LMServerError, LMTimeoutError
from prometheus_client import CollectorRegistry

from dspy_observe import ledger as ledger_module
from dspy_observe import safety
from dspy_observe.callbacks.base import CallbackGroup, RecordCallback
from dspy_observe.callbacks.redaction import RedactionCallback
from dspy_observe.ledger import LEDGER, Clock, Ledger
from dspy_observe.metrics import Metrics
from dspy_observe.records import CallRecord, CallStart
from dspy_observe.redaction import Redaction, Redactor
from dspy_observe.testing import Capture, FrozenClock, frozen_clock, offline_lm


class Answer(dspy.Module):
    """A program."""

    def forward(self, **_: Any) -> Any:
        """Not called here."""


class Wants(Capture):
    """A reader that wants content."""

    def __init__(self, content: Any = "redacted", price: Any = None) -> None:
        super().__init__()
        self.content = content
        self.price = price


class Broken(RecordCallback):
    """A reader that raises whatever it is told."""

    def started(self, start: CallStart) -> None:
        """Raise."""
        raise RuntimeError("started")

    def finished(self, record: CallRecord) -> None:
        """Raise."""
        raise RuntimeError("finished")

    def dropped(self, start: CallStart) -> None:
        """Raise."""
        raise RuntimeError("dropped")


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Swallow as in production."""
    monkeypatch.delenv("DSPY_OBSERVE_STRICT", raising=False)


@pytest.fixture
def clock() -> FrozenClock:
    """A clock of the test's own."""
    return FrozenClock()


@pytest.fixture
def ledger(clock: FrozenClock) -> Iterator[Ledger]:
    """A ledger of the test's own, which has to end empty."""
    made = Ledger(clock=Clock(clock.time, clock.time))
    yield made
    assert made.open_calls == 0


@contextmanager
def active(call_id: str) -> Iterator[None]:
    """Be inside a call, as DSPy is between start and end handlers."""
    token = ACTIVE_CALL_ID.set(call_id)
    try:
        yield
    finally:
        ACTIVE_CALL_ID.reset(token)


def content_plan(*callbacks: Any) -> Any:
    """Have DSPy list these callbacks: what is gathered of a call is decided by that list."""
    return dspy.context(callbacks=list(callbacks))


def test_all_readers_get_the_very_same_object(ledger: Ledger) -> None:
    """Three callbacks of which one is a group of two."""
    one, two, three, four = Capture(), Capture(), Capture(), Capture()
    callbacks = [one, CallbackGroup(two, three), four]
    for callback in callbacks:
        ledger.open(callback, "module", "c1", Answer(), {})
    for callback in callbacks:
        ledger.close(callback, "c1", "out", None)
    records = [capture.records for capture in (one, two, three, four)]
    assert all(len(found) == 1 for found in records)
    assert all(found[0] is records[0][0] for found in records)
    assert len({id(capture.starts[0]) for capture in (one, two, three, four)}) == 1


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_callbacks_may_leave_in_any_order(ledger: Ledger, order: tuple[int, ...]) -> None:
    """DSPy ends them in the order of their starts, others may not."""
    callbacks = [Capture(), Capture(), Capture()]
    for callback in callbacks:
        ledger.open(callback, "tool", "c1", dspy.Tool(lambda x: x, name="t"), {})
    for number in order:
        ledger.close(callbacks[number], "c1", "out", None)
    assert len({id(callback.records[0]) for callback in callbacks}) == 1


def test_a_callback_that_is_listed_twice_counts_once(ledger: Ledger) -> None:
    """Once for the process and once on the LM: DSPy calls it twice with the same call id."""
    capture = Capture()
    for _ in range(2):
        ledger.open(capture, "lm", "c1", offline_lm("x"), {})
    for _ in range(2):
        ledger.close(capture, "c1", [], None)
    assert (len(capture.starts), len(capture.records)) == (1, 1)


def test_a_reader_that_sits_in_two_groups_reads_once(ledger: Ledger) -> None:
    """And so do two readers that say that they do the same work."""
    shared, mine = Capture(), Capture()
    groups = [CallbackGroup(shared, mine), CallbackGroup(shared), shared]
    for group in groups:
        ledger.open(group, "module", "c1", Answer(), {})
    for group in groups:
        ledger.close(group, "c1", None, None)
    assert (len(shared.starts), len(shared.records), len(mine.records)) == (1, 1, 1)


def test_an_end_without_a_start_is_ignored(ledger: Ledger) -> None:
    """A callback may be installed in the middle of a call, by itself or beside one that saw the start."""
    early, late = Capture(), Capture()
    ledger.close(late, "never seen", None, None)
    ledger.open(early, "module", "c1", Answer(), {})
    ledger.close(late, "c1", None, None)
    ledger.close(early, "c1", None, None)
    ledger.close(early, "c1", None, None)
    assert late.records == []
    assert len(early.records) == 1


def test_duration_runs_from_the_last_start_handler_to_the_first_end_handler(ledger: Ledger, clock: FrozenClock) -> None:
    """Time that callbacks take is not the program's."""
    one, two = Capture(), Capture()
    started_at = clock.time()
    ledger.open(one, "module", "c1", Answer(), {})
    clock.advance(5)
    ledger.open(two, "module", "c1", Answer(), {})
    clock.advance(1.5)
    ledger.close(one, "c1", None, None)
    clock.advance(7)
    ledger.close(two, "c1", None, None)
    (record,) = two.records
    assert record.duration_s == 1.5
    assert record.started_at == started_at


def test_a_clock_that_runs_backwards_gives_no_negative_duration(clock: FrozenClock) -> None:
    """Whatever the clock does."""
    times = iter([10.0, 9.0])
    ledger, capture = Ledger(clock=Clock(clock.time, lambda: next(times))), Capture()
    ledger.open(capture, "module", "c1", Answer(), {})
    ledger.close(capture, "c1", None, None)
    assert capture.records[0].duration_s == 0.0


def test_parents_are_the_surrounding_calls_also_when_nobody_reads_those(ledger: Ledger) -> None:
    """A reader of LM calls alone gets the same ids as one of everything."""

    class LMs(Capture):
        kinds = frozenset({"lm"})

    capture = LMs()
    ledger.open(capture, "module", "m", Answer(), {})
    with active("m"):
        ledger.open(capture, "adapter_parse", "p", dspy.ChatAdapter(), {})
        with active("p"):
            ledger.open(capture, "lm", "l", offline_lm("x"), {})
            ledger.close(capture, "l", [], None)
        ledger.close(capture, "p", {}, None)
    ledger.close(capture, "m", None, None)
    (record,) = capture.records
    assert (record.call_id, record.parent_id, record.root_id, record.program) == ("l", "p", "m", "Answer")


def test_a_child_that_starts_after_its_parents_end_keeps_its_place(ledger: Ledger) -> None:
    """Fire and forget: DSPy's id of the ended call is still active in the task."""
    capture = Capture()
    ledger.open(capture, "module", "m", Answer(), {})
    ledger.close(capture, "m", None, None)
    with active("m"):
        ledger.open(capture, "lm", "l", offline_lm("x"), {})
        ledger.close(capture, "l", [], None)
    late = capture.records[-1]
    assert (late.parent_id, late.root_id, late.program) == ("m", "m", "Answer")


def test_an_unknown_surrounding_call_makes_a_root(ledger: Ledger) -> None:
    """Only callbacks of others saw it."""
    capture = Capture()
    with active("foreign"):
        ledger.open(capture, "lm", "l", offline_lm("x"), {})
        ledger.close(capture, "l", [], None)
    assert (capture.records[0].parent_id, capture.records[0].root_id) == (None, "l")


def test_the_memory_of_ended_calls_is_bounded(clock: FrozenClock) -> None:
    """Ten thousand programs leave a bounded number of starts behind."""
    ledger, capture = Ledger(max_ended=10, clock=Clock(clock.time, clock.time)), Capture()
    for number in range(1_000):
        ledger.open(capture, "module", f"m{number}", Answer(), {})
        ledger.close(capture, f"m{number}", None, None)
    assert len(ledger._ended) <= 21


@pytest.mark.parametrize("kind", ["adapter_format", "adapter_parse"])
def test_hooks_inside_hooks_of_one_adapter_are_one_record(ledger: Ledger, kind: Any) -> None:
    """Three wrapped classes, one prompt; the model inside is a child of the logical call."""
    adapter, capture = dspy.ChatAdapter(), Capture()
    ledger.open(capture, kind, "a1", adapter, {})
    with active("a1"):
        ledger.open(capture, kind, "a2", adapter, {})
        with active("a2"):
            ledger.open(capture, kind, "a3", adapter, {})
            assert ledger.open_calls_of(kind) == 1
            with active("a3"):
                ledger.open(capture, "lm", "l", offline_lm("x"), {})
                ledger.close(capture, "l", [], None)
            ledger.close(capture, "a3", None, None)
        ledger.close(capture, "a2", None, None)
    ledger.close(capture, "a1", None, None)
    assert [(r.call_id, r.parent_id) for r in capture.records] == [("l", "a1"), ("a1", None)]


def test_a_recursive_module_is_a_call_at_every_level(ledger: Ledger) -> None:
    """Only adapters fire several hooks for one call."""
    program, capture = Answer(), Capture()
    ledger.open(capture, "module", "m1", program, {})
    with active("m1"):
        ledger.open(capture, "module", "m2", program, {})
        ledger.close(capture, "m2", None, None)
    ledger.close(capture, "m1", None, None)
    assert [r.call_id for r in capture.records] == ["m2", "m1"]


def test_a_sibling_adapter_of_the_same_kind_is_a_call_of_its_own(ledger: Ledger) -> None:
    """The fallback to JSON happens inside the other adapter's call."""
    capture = Capture()
    ledger.open(capture, "adapter_format", "a1", dspy.ChatAdapter(), {})
    with active("a1"):
        ledger.open(capture, "adapter_format", "a2", dspy.JSONAdapter(), {})
        ledger.close(capture, "a2", None, None)
    ledger.close(capture, "a1", None, None)
    assert [r.name for r in capture.records] == ["JSONAdapter", "ChatAdapter"]


def test_failures_only_readers_hear_of_failed_ends_only(ledger: Ledger) -> None:
    """And of no start."""

    class Failures(Capture):
        failures_only = frozenset({"adapter_parse"})

    picky, all_of_it = Failures(), Capture()
    for number, error in enumerate((None, ValueError("x"))):
        for callback in (picky, all_of_it):
            ledger.open(callback, "adapter_parse", f"a{number}", dspy.ChatAdapter(), {})
        for callback in (picky, all_of_it):
            ledger.close(callback, f"a{number}", None, error)
    assert picky.starts == []
    assert [(r.call_id, r.outcome, r.error_type) for r in picky.records] == [("a1", "error", "ValueError")]
    assert picky.records[0] is all_of_it.records[1]


def test_a_root_that_is_described_late_is_the_program_all_the_same(ledger: Ledger) -> None:
    """A reader of failures only has it described when something is called from it, amid the modules that call."""

    class Failures(Capture):
        kinds = frozenset({"module"})
        failures_only = frozenset({"module"})

    picky = Failures()
    outer, inner = Answer(), Answer()
    ledger.open(picky, "module", "outer", outer, {})
    with active("outer"), dspy.context(caller_modules=[outer]):
        ledger.open(picky, "module", "inner", inner, {})
        with active("inner"), dspy.context(caller_modules=[outer, inner]):
            lm = offline_lm("hi")
            ledger.open(picky, "lm", "lm", lm, {})
            ledger.close(picky, "lm", ["hi"], None)
        ledger.close(picky, "inner", None, ValueError())
    ledger.close(picky, "outer", None, ValueError())
    assert [(r.call_id, r.is_program, r.operation) for r in picky.records] == [
        ("inner", False, None), ("outer", True, "invoke_workflow"),
    ]  # fmt: skip


def test_a_passive_reader_reads_what_others_read_and_nothing_else(ledger: Ledger) -> None:
    """Alone, in a group, and on either side of the callback that asks."""

    class Passive(Capture):
        passive = True

    class Modules(Capture):
        kinds = frozenset({"module"})

    def run(*callbacks: Any) -> None:
        for kind, call_id, instance in (("module", "m", Answer()), ("adapter_format", "a", dspy.ChatAdapter())):
            for callback in callbacks:
                ledger.open(callback, kind, call_id, instance, {})  # type: ignore[arg-type]
            for callback in callbacks:
                ledger.close(callback, call_id, None, None)

    for arrange in (
        lambda passive, asks: (CallbackGroup(passive, asks),),
        lambda passive, asks: (passive, asks),
        lambda passive, asks: (asks, passive),
    ):
        passive, asks = Passive(), Modules()
        run(*arrange(passive, asks))
        assert [r.kind for r in passive.records] == ["module"]
        assert passive.records[0] is asks.records[0]
    alone = Passive()
    run(alone)
    assert alone.records == []


# --- too many, too late ----------------------------------------------------------------------------------------------


def test_beyond_the_limit_the_oldest_call_is_dropped_and_told(clock: FrozenClock) -> None:
    """Its late end does no harm, and the others are complete."""
    ledger = Ledger(max_open=2, clock=Clock(clock.time, clock.time))
    dropped: list[str] = []

    class Watch(Capture):
        def dropped(self, start: CallStart) -> None:
            dropped.append(start.call_id)

    watch = Watch()
    for number in range(4):
        ledger.open(watch, "module", f"m{number}", Answer(), {})
    assert (ledger.open_calls, ledger.dropped_calls) == (2, 2)
    assert dropped == ["m0", "m1"]
    for number in range(4):
        ledger.close(watch, f"m{number}", None, None)
    assert [r.call_id for r in watch.records] == ["m2", "m3"]
    assert ledger.open_calls == 0


def test_taps_of_a_dropped_lm_call_catch_nothing_more() -> None:
    """Its usage is not booked on anybody."""
    ledger, capture = Ledger(max_open=1), Capture()

    def run() -> None:
        ledger.open(capture, "lm", "l1", offline_lm("x"), {})
        tracker = dspy.settings.usage_tracker
        ledger.open(capture, "lm", "l2", offline_lm("x"), {})
        with active("l1"):
            tracker.add_usage("m", {"prompt_tokens": 1})
        assert tracker._capture.usages == []
        ledger.close(capture, "l2", [], None)

    contextvars.copy_context().run(run)
    assert ledger.open_calls == 0


def test_settings_are_as_before_after_every_kind_of_end(ledger: Ledger) -> None:
    """Success, failure, interruption; with readers and without."""

    class Modules(Capture):
        kinds = frozenset({"module"})

    before = thread_local_overrides.get()
    for callback in (Capture(), Modules()):
        for error in (None, ValueError("x"), KeyboardInterrupt()):
            ledger.open(callback, "lm", "l", offline_lm("x"), {})
            assert thread_local_overrides.get() is not before
            ledger.close(callback, "l", [] if error is None else None, error)
            assert thread_local_overrides.get() is before


# --- raising readers -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("grouped", [True, False])
def test_a_raising_reader_leaves_its_siblings_and_the_entry_intact(ledger: Ledger, grouped: bool) -> None:
    """Each of its failures is counted under its own name."""
    first, broken, last = Capture(), Broken(), Capture()
    callbacks: list[Any] = [CallbackGroup(first, broken, last)] if grouped else [first, broken, last]
    before = safety.counts()
    for callback in callbacks:
        ledger.open(callback, "module", "c1", Answer(), {})
    for callback in callbacks:
        ledger.close(callback, "c1", "out", None)
    assert first.records[0] is last.records[0]
    assert len(last.starts) == 1
    for verb in ("started", "finished"):
        site = f"Broken.{verb}"
        assert safety.counts()[site] == before.get(site, 0) + 1


@pytest.mark.usefixtures("lenient")
def test_a_reader_that_raises_on_a_drop_is_counted(clock: FrozenClock) -> None:
    """The call that pushed the other one out goes on."""
    ledger, broken = Ledger(max_open=1, clock=Clock(clock.time, clock.time)), Broken()
    before = safety.counts().get("Broken.dropped", 0)
    ledger.open(broken, "module", "c1", Answer(), {})
    ledger.open(broken, "module", "c2", Answer(), {})
    assert safety.counts()["Broken.dropped"] == before + 1
    ledger.close(broken, "c2", None, None)
    assert ledger.open_calls == 0


@pytest.mark.usefixtures("lenient")
def test_an_instance_that_raises_on_every_attribute_stops_no_call(ledger: Ledger) -> None:
    """A hostile object costs its own record and nothing else: its readers hear of a drop, the entry goes."""

    class Hostile:
        def __getattribute__(self, name: str) -> Any:
            raise RuntimeError(name)

    capture = Capture()
    ledger.open(capture, "lm", "l", Hostile(), {})
    ledger.close(capture, "l", [], None)
    ledger.open(capture, "module", "m", Answer(), {})
    ledger.close(capture, "m", None, None)
    assert [r.call_id for r in capture.records if r.kind == "module"] == ["m"]


def test_strict_mode_raises_from_the_handler(ledger: Ledger) -> None:
    """The suite's own mode."""

    class BrokenEnd(RecordCallback):
        def finished(self, record: CallRecord) -> None:
            raise RuntimeError("finished")

    class BrokenStart(Capture):
        def started(self, start: CallStart) -> None:
            raise RuntimeError("started")

    at_start, at_end = BrokenStart(), BrokenEnd()
    with pytest.raises(RuntimeError, match="started"):
        ledger.open(at_start, "module", "c1", Answer(), {})
    ledger.open(at_end, "module", "c2", Answer(), {})
    with pytest.raises(RuntimeError, match="finished"):
        ledger.close(at_end, "c2", None, None)
    ledger.close(at_start, "c1", None, None)
    assert len(at_start.records) == 1


# --- content and price -----------------------------------------------------------------------------------------------


def test_content_is_left_out_and_warned_of_once_when_no_redactor_is_in_force(
    ledger: Ledger, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redaction fails closed when it is missing altogether."""
    monkeypatch.setattr(Ledger, "_warned_unredacted", False)
    wants = Wants()
    with content_plan(wants), caplog.at_level(logging.WARNING, "dspy_observe"):
        for number in range(3):
            ledger.open(wants, "module", f"c{number}", Answer(), {"args": (), "kwargs": {"q": "alice@example.com"}})
            ledger.close(wants, f"c{number}", "alice@example.com", ValueError("alice@example.com"))
    for record in wants.records:
        assert (record.inputs, record.outputs, record.error_message) == (None, None, None)
    assert len([line for line in caplog.messages if "no redaction is in force" in line]) == 1


@pytest.mark.parametrize("redactor_first", [True, False])
def test_content_passes_the_redactor_on_whichever_side_it_stands(ledger: Ledger, redactor_first: bool) -> None:
    """Inputs at the start, outputs and error text at the end."""
    wants = Wants()
    redaction = RedactionCallback(metrics=Metrics(collector_registry=CollectorRegistry()))
    callbacks: list[Any] = [redaction, wants] if redactor_first else [wants, redaction]
    with content_plan(*callbacks):
        for callback in callbacks:
            ledger.open(callback, "module", "c1", Answer(), {"args": (), "kwargs": {"q": "mail alice@example.com"}})
        for callback in callbacks:
            ledger.close(callback, "c1", {"a": "bob@example.com"}, ValueError("of carol@example.com"))
    (start,), (record,) = wants.starts, wants.records
    assert start.inputs == record.inputs == {"q": "mail <EMAIL>"}
    assert record.outputs == {"a": "<EMAIL>"}
    assert record.error_message == "of <EMAIL>"
    assert [finding.entity for finding in record.findings] == ["EMAIL"] * 3


def test_a_raising_detector_drops_the_content_and_keeps_the_numbers(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redaction fails closed."""
    monkeypatch.delenv("DSPY_OBSERVE_STRICT", raising=False)

    def bad(text: str) -> list[tuple[int, int]]:
        if "alice" in text:
            raise RuntimeError(text)
        return []

    wants = Wants()
    redaction = RedactionCallback(Redaction(detectors=(bad,)), Metrics(collector_registry=CollectorRegistry()))
    with content_plan(wants, redaction):
        for callback in (wants, redaction):
            ledger.open(callback, "module", "c1", Answer(), {"args": (), "kwargs": {"q": "alice@example.com"}})
        for callback in (wants, redaction):
            ledger.close(callback, "c1", "fine words", None)
    (record,) = wants.records
    assert "alice" not in repr(record)
    assert "REDACTION_ERROR" in repr(record.inputs)
    assert record.outputs == "fine words"
    assert record.outcome == "ok"


def test_raw_content_is_free_of_credentials_all_the_same(ledger: Ledger) -> None:
    """Personal data stays, keys go, also those that the LM was given."""
    wants = Wants("raw")
    lm = dspy.LM("openai/gpt-4o-mini", api_key="correct-horse-battery")
    with content_plan(wants):
        ledger.open(wants, "lm", "l", lm, {"prompt": "alice@example.com says correct-horse-battery", "kwargs": {}})
        ledger.close(wants, "l", ["ok"], None)
    (record,) = wants.records
    assert "alice@example.com" in repr(record.inputs)
    assert "correct-horse" not in repr(record)


def test_raw_content_obeys_the_names_of_the_redactors_in_force(ledger: Ledger) -> None:
    """What a user denies by name is no content, and what a user allows stays, in raw mode, too."""
    wants = Wants("raw")
    names = Redaction(deny_keys=frozenset({"vault_id"}), allow=frozenset({"my_vault_id"}))
    redaction = RedactionCallback(names, Metrics(collector_registry=CollectorRegistry()))
    kwargs = {"vault_id": "EXAMPLE-vault-1", "my_vault_id": "EXAMPLE-vault-2", "mail": "alice@example.com"}
    with content_plan(wants, redaction):
        ledger.open(wants, "tool", "t", Answer(), {"kwargs": kwargs})
        ledger.close(wants, "t", None, PermissionError("EXAMPLE-vault-1 is not EXAMPLE-vault-2"))
    (record,) = wants.records
    assert "EXAMPLE-vault-1" not in repr(record)
    assert record.inputs["my_vault_id"] == "EXAMPLE-vault-2"
    assert record.inputs["mail"] == "alice@example.com"
    assert record.error_message.endswith(" is not EXAMPLE-vault-2")


def test_redactors_for_raw_content_are_made_once_and_not_without_end() -> None:
    """The secrets that they know belong to the redactors in force, of which the latest few sets count."""
    sets = [(Redactor(),) for _ in range(20)]
    made = [ledger_module._credentials(redactors) for redactors in sets]
    assert ledger_module._credentials(sets[-1]) is made[-1]
    assert len(ledger_module._RAW) <= 16


@pytest.mark.parametrize("mode", ["raw", "redacted"])
@pytest.mark.parametrize("kind", ["tool", "module"])
def test_a_credential_that_is_an_argument_is_removed_from_error_and_result(
    ledger: Ledger, mode: str, kind: Any
) -> None:
    """A tool that quotes the key it was given tells nobody else."""
    wants = Wants(mode)
    redaction = RedactionCallback(metrics=Metrics(collector_registry=CollectorRegistry()))
    with content_plan(wants, redaction):
        for call_id, error in (("1", PermissionError("refused plain-looking-key-1")), ("2", None)):
            ledger.open(wants, kind, call_id, Answer(), {"args": (), "kwargs": {"api_key": "plain-looking-key-1"}})
            ledger.close(wants, call_id, "GET /?t=plain-looking-key-1", error)
    assert "plain-looking" not in repr(wants.records)
    assert wants.records[0].error_message.startswith("refused ")
    assert wants.records[1].outputs.startswith("GET /")


def test_no_content_is_copied_unless_somebody_wants_it(ledger: Ledger) -> None:
    """Also with a redactor in force."""
    capture = Capture()
    redaction = RedactionCallback(metrics=Metrics(collector_registry=CollectorRegistry()))
    with content_plan(capture, redaction):
        ledger.open(capture, "module", "c1", Answer(), {"args": (), "kwargs": {"q": "secret"}})
        ledger.close(capture, "c1", "secret", ValueError("secret"))
    assert "secret" not in repr(capture.records)


def test_a_price_function_replaces_the_estimate_for_every_reader(ledger: Ledger) -> None:
    """The first one that knows a price decides; money may be a Decimal."""
    first, second = Wants("none", price=lambda _: None), Wants("none", price=lambda _: Decimal("0.5"))
    with content_plan(first, second):
        for callback in (first, second):
            ledger.open(callback, "lm", "l", offline_lm("x"), {})
        with active("l"):
            dspy.settings.usage_tracker.add_usage("m", {"prompt_tokens": 1, "completion_tokens": 1})
        for callback in (first, second):
            ledger.close(callback, "l", ["x"], None)
    assert first.records[0] is second.records[0]
    assert first.records[0].cost_usd == 0.5
    assert type(first.records[0].cost_usd) is float


def test_a_price_function_is_not_asked_about_cache_hits(ledger: Ledger) -> None:
    """Nothing was billed."""
    wants = Wants("none", price=lambda _: 7.0)
    with content_plan(wants):
        ledger.open(wants, "lm", "l", offline_lm("x"), {})
        ledger.close(wants, "l", ["x"], None)
    assert (wants.records[0].cache_hit, wants.records[0].cost_usd) == (True, 0.0)


def test_a_price_function_is_not_asked_about_refused_calls(ledger: Ledger) -> None:
    """A provider that refuses bills nothing, and the counters book nothing: the record says the same."""
    wants = Wants("none", price=lambda _: 7.0)
    with content_plan(wants):
        for call_id, error in (("l1", LMRateLimitError("slow down")), ("l2", LMServerError("broken"))):
            ledger.open(wants, "lm", call_id, offline_lm("x"), {})
            ledger.close(wants, call_id, None, error)
        ledger.open(wants, "lm", "l3", offline_lm("x"), {})
        ledger.close(wants, "l3", None, LMTimeoutError("late"))
    assert [record.cost_usd for record in wants.records] == [None, None, 7.0]


@pytest.mark.usefixtures("lenient")
def test_objects_of_the_application_that_raise_leave_the_record(ledger: Ledger) -> None:
    """A data set without a text and an exception with a broken property are counted, and the record goes out."""

    class Textless:
        def __str__(self) -> str:
            raise RuntimeError

    class HostileError(Exception):
        @property
        def status_code(self) -> int:
            raise RuntimeError

    before = safety.counts()
    capture = Capture()
    metadata = {"callback_metadata": {"dataset": Textless()}}
    ledger.open(capture, "evaluate", "e", dspy.Evaluate(devset=[]), metadata)
    ledger.close(capture, "e", type("Result", (), {"score": 50.0})(), None)
    ledger.open(capture, "tool", "t", dspy.Tool(lambda: None, name="t"), {})
    ledger.close(capture, "t", None, HostileError())
    evaluated, failed = capture.records
    assert (evaluated.score, evaluated.dataset) == (0.5, None)
    assert (failed.outcome, failed.error_type) == ("error", "HostileError")
    for site in ("calls.evaluation", "ledger.outcome"):
        assert safety.counts()[site] == before.get(site, 0) + 1


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf"), "many", RuntimeError])
def test_a_price_function_that_cannot_be_right_leaves_the_estimate(ledger: Ledger, bad: Any) -> None:
    """Negative, infinite, no number, or raising: counted, and the record goes out."""

    def price(_: CallRecord) -> Any:
        if isinstance(bad, type):
            raise bad
        return bad

    before = safety.counts().get("ledger.price", 0)
    wants = Wants("none", price=price)
    with content_plan(wants):
        ledger.open(wants, "lm", "l", offline_lm("x"), {})
        with active("l"):
            dspy.settings.usage_tracker.add_usage("m", {"prompt_tokens": 1, "completion_tokens": 1})
        ledger.close(wants, "l", ["x"], None)
    assert wants.records[0].cost_usd is None
    assert wants.records[0].usage.prompt == 1  # type: ignore[union-attr]
    assert safety.counts()["ledger.price"] == before + 1


def test_what_is_gathered_follows_a_list_of_callbacks_that_changes_in_place(ledger: Ledger) -> None:
    """One callback in DSPy's list is replaced by another one: the next call is gathered for the new one."""
    plain, wants = Capture(), Wants("raw")
    listed: list[Any] = [plain]
    with dspy.context(callbacks=listed):
        inside = dspy.settings.callbacks
        ledger.open(plain, "module", "c1", Answer(), {"args": (), "kwargs": {"q": "hi"}})
        ledger.close(plain, "c1", None, None)
        inside[0] = wants
        ledger.open(wants, "module", "c2", Answer(), {"args": (), "kwargs": {"q": "hi"}})
        ledger.close(wants, "c2", None, None)
    assert plain.records[0].inputs is None
    assert wants.records[0].inputs == {"q": "hi"}


# --- answers, links, clock -------------------------------------------------------------------------------------------


def test_answers_are_remembered_for_programs_only_and_as_long_as_they_live() -> None:
    """A prediction knows which call gave it; the one of an inner module does not count as the program's."""
    ledger, capture = Ledger(), Capture()
    outer, inner = dspy.Prediction(a=1), dspy.Prediction(a=1)
    ledger.open(capture, "module", "m", Answer(), {})
    with active("m"):
        ledger.open(capture, "module", "i", Answer(), {})
        ledger.close(capture, "i", inner, None)
    ledger.close(capture, "m", outer, None)
    found = ledger.answer_of(outer)
    assert found is not None
    assert (found.call_id, found.program, found.version, found.role) == ("m", "Answer", None, "stable")
    assert ledger.answer_of(inner) is None
    del outer
    gc.collect()
    assert len(ledger._answers) == 0


def test_a_linked_span_appears_in_the_record_in_hexadecimal(ledger: Ledger) -> None:
    """A link to a call that is not open is ignored."""
    capture = Capture()
    ledger.link("nobody", 1, 2)
    ledger.open(capture, "module", "m", Answer(), {})
    ledger.link("m", 0xABC, 0x1)
    ledger.close(capture, "m", None, None)
    assert capture.records[0].trace_id == "0" * 29 + "abc"
    assert capture.records[0].span_id == "0" * 15 + "1"


def test_a_frozen_clock_times_the_process_ledger_and_goes_away_again() -> None:
    """Nested ones restore each other."""
    before = LEDGER.clock
    with frozen_clock(5.0) as outer:
        with frozen_clock(9.0):
            assert LEDGER.clock.time() == 9.0
        outer.advance(1.0)
        assert (LEDGER.clock.time(), LEDGER.clock.monotonic()) == (6.0, 6.0)
    assert LEDGER.clock is before
