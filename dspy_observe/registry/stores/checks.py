"""What a record has to say before it is believed, where it comes from a file that people edit or send.

Types are checked by ``Record.from_dict``; here is what no method of the registry would ever have written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dspy_observe.registry import names
from dspy_observe.registry.errors import InvalidScore
from dspy_observe.registry.models import MODES, Control
from dspy_observe.registry.records import Decision, Deployment, FieldFault, Mark, Pointer, Record, Score
from dspy_observe.registry.values import LARGEST_COUNT, check_sample, finite

__all__ = ["check_record", "check_said", "check_whole"]


def check_record(record: Record) -> None:
    """Refuse a record that the registry could not have written, and that would fail or lead astray later on.

    Raises:
        FieldFault: Which field, and why.
    """
    match record:
        case Pointer() | Deployment():
            _check_name("environment", record.environment)
            _check_name("version", record.version)
            _check_hash(record.version_hash)
            check_whole("generation", record.generation, 1)
        case Decision():
            _check_name("environment", record.environment)
            if record.generation is not None:
                check_whole("generation", record.generation, 0)
        case Score():
            _check_hash(record.version_hash)
            try:
                finite(record.value)
                check_sample(record.n, record.stdev)
            except InvalidScore as error:
                raise FieldFault(None, str(error)) from None
        case Mark():
            _check_mark(record)


def check_said(mark: Mark) -> None:
    """Refuse a mark that says what nobody can go by.

    For imports. Where a person mistyped it in a file, only who asks for it is told, and the versions beside it go on.

    Raises:
        FieldFault: Which field, and why.
    """
    if mark.kind == "control":
        _check_control(mark.data)
    elif mark.kind == "approval":
        _check_approval(mark)


def check_whole(field_name: str, number: int, least: int) -> None:
    """Refuse a whole number that leaves no room to count on.

    Raises:
        FieldFault: It is below ``least`` or above ``LARGEST_COUNT``.
    """
    if not least <= number <= LARGEST_COUNT:
        raise FieldFault(field_name, f"has to be from {least} to {LARGEST_COUNT:,}, not {number}")


def _check_name(field_name: str, name: str) -> None:
    if not names.is_name(name):
        raise FieldFault(field_name, f"has to be a name, not {name!r:.60}")


def _check_hash(digits: str) -> None:
    if not names.is_hash(digits):
        raise FieldFault("version_hash", f"has to be a hash, {names.HASH_DIGITS} hexadecimal digits")


def _check_mark(mark: Mark) -> None:
    if mark.kind == "control":
        _check_name("key", mark.key)
        return
    _check_name("version", mark.version)
    _check_hash(mark.version_hash)
    if mark.kind == "quarantine":
        if mark.key != mark.version_hash:
            raise FieldFault("key", "has to be the hash that is quarantined")
    elif mark.kind == "approval":
        environment, _, digits = mark.key.partition("/")
        _check_name("key", environment)
        if digits != mark.version_hash:
            raise FieldFault("key", "has to be the environment, a slash, and the hash that is approved")
    elif mark.kind != "note":  # an alias, or a rollout's environment
        _check_name("key", mark.key)


def _check_control(data: Mapping[str, Any]) -> None:
    try:
        made = Control.from_dict(data)
    except FieldFault as fault:
        raise FieldFault("data", f"says no control: {fault}") from None
    if made.mode not in MODES:
        raise FieldFault("data", f"has no such mode as {made.mode!r:.60}; use one of {', '.join(MODES)}")


def _check_approval(mark: Mark) -> None:
    evidence = mark.data.get("evidence")
    if (
        mark.actor is None
        or type(evidence) is not list
        or not evidence
        or any(type(one) is not str for one in evidence)
    ):
        raise FieldFault(
            "data", "of an approval has to name its evidence, a list of score ids, and its actor who gave it"
        )
