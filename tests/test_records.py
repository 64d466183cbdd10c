"""Records are frozen, compare by value, and tell an unknown figure from a zero."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest

from dspy_observe import records
from dspy_observe.records import CallRecord, CallStart, Finding, RegistryEvent, Score, Usage

START: dict[str, Any] = {
    "call_id": "c1", "parent_id": "p1", "root_id": "r1", "kind": "lm", "name": "openai/gpt-4o-mini",
    "program": "Answer", "version": "v1", "role": "canary", "is_program": False, "operation": "chat",
    "model_requested": "openai/gpt-4o-mini", "provider": "openai", "streaming": False, "started_at": 1_700_000_000.0,
}  # fmt: skip
SAMPLES: tuple[Any, ...] = (
    CallStart(**START, inputs={"messages": []}),
    CallRecord(**START, duration_s=1.5, usage=Usage(1, 2), findings=(Finding("EMAIL", "a"),)),
    Usage(1, 2, 3, 4, 5),
    Finding("EMAIL", "messages[1].content"),
    Score("c1", 0.5, "user", "Answer", "v1", "stable", None, 1.0),
    RegistryEvent("dspy.registry.export", "Answer", 1.0),
)


@pytest.mark.parametrize("record", SAMPLES, ids=lambda record: type(record).__name__)
def test_no_field_of_a_record_can_be_changed_or_added(record: Any) -> None:
    """Readers share one object, so nobody may write to it."""
    for field in dataclasses.fields(record):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(record, field.name, None)
    with pytest.raises((AttributeError, TypeError)):
        record.extra = 1
    assert not hasattr(record, "__dict__")


@pytest.mark.parametrize("record", SAMPLES, ids=lambda record: type(record).__name__)
def test_records_survive_copying_and_pickling(record: Any) -> None:
    """A queue or a process pool may carry them."""
    assert pickle.loads(pickle.dumps(record)) == record
    assert copy.deepcopy(record) == record


@pytest.mark.parametrize(
    ("make", "cls"), [(records.make_call_start, CallStart), (records.make_call_record, CallRecord)]
)
def test_the_quick_constructor_makes_the_very_same_object_as_the_class(make: Any, cls: Any) -> None:
    """Speed must not change type, equality, hash, repr, freezing or dataclasses.replace."""
    values = [f"value of {field.name}" for field in dataclasses.fields(cls)]
    quick, plain = make(*values), cls(*values)
    assert type(quick) is cls
    assert isinstance(quick, cls)
    assert quick == plain
    assert hash(quick) == hash(plain)
    assert repr(quick) == repr(plain)
    assert dataclasses.replace(quick, name="other") == dataclasses.replace(plain, name="other")
    assert pickle.loads(pickle.dumps(quick)) == plain
    with pytest.raises(dataclasses.FrozenInstanceError):
        quick.name = "other"


def test_a_call_record_opens_with_the_fields_of_its_start() -> None:
    """The ledger fills records by position, so the two orders must agree."""
    start = [field.name for field in dataclasses.fields(CallStart)]
    record = [field.name for field in dataclasses.fields(CallRecord)]
    upto = start.index("started_at") + 1
    assert record[:upto] == start[:upto]
    assert set(start) <= set(record)


def test_what_is_not_known_is_none_by_default() -> None:
    """No default may pass for a measured zero; only the duration, which is always measured, starts at 0."""
    record = CallRecord(**START)
    unset = {f.name: getattr(record, f.name) for f in dataclasses.fields(record) if f.name not in START}
    given = {name: value for name, value in unset.items() if value is not None}
    assert given == {"duration_s": 0.0, "outcome": "ok", "billed_but_failed": False, "findings": ()}


@pytest.mark.parametrize(
    ("usage", "known", "total"),
    [
        (Usage(), False, None),
        (Usage(cache_read=5, cache_write=1, reasoning=2), False, None),
        (Usage(prompt=7), True, None),
        (Usage(completion=0), True, None),
        (Usage(0, 0), True, 0),
        (Usage(7, 5, 3, 1, 2), True, 12),
    ],
)
def test_usage_tells_unknown_from_zero(usage: Usage, known: bool, total: int | None) -> None:
    """A zero is a fact; a total needs both halves and does not count the parts within them again."""
    assert usage.known is known
    assert usage.total == total


def test_two_registry_events_do_not_share_their_data() -> None:
    """The default of a mutable field is made for each event."""
    one, two = RegistryEvent("a", "p", 1.0), RegistryEvent("a", "p", 1.0)
    assert one.data == {}
    assert one.data is not two.data
