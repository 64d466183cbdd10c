"""Moving pointers on a transaction: deploy, roll back, quarantine, approve. Each move is one log entry."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from datetime import datetime

from dspy_observe.registry.errors import (
    ApprovalMissing,
    Conflict,
    NothingToRollBackTo,
    Quarantined,
    UnknownVersion,
)
from dspy_observe.registry.records import Deployment, Mark, Pointer, StoredVersion
from dspy_observe.registry.stores.base import Transaction, View
from dspy_observe.registry.versions import resolve, target_of

__all__ = ["Move", "approve", "approved", "deploy", "new_id", "quarantine", "roll_back"]


def new_id() -> str:
    """A random id, 24 hexadecimal digits."""
    return secrets.token_hex(12)


@dataclass(frozen=True, slots=True)
class Move:
    """Who moves a pointer, why, and what they take to be there."""

    environment: str
    at: datetime
    actor: str | None = None
    reason: str | None = None
    trigger: str = "manual"
    expected_generation: int | None = None
    """``None`` expects nothing; 0 expects that nothing is deployed."""
    expected_version: str | None = None
    force: bool = False
    protected: bool = False
    source: str | None = None
    decision_id: str | None = None


def deploy(txn: Transaction, record: StoredVersion, move: Move) -> Deployment | None:
    """Point an environment at a version.

    Returns:
        The log entry; ``None`` when the environment runs the version already.

    Raises:
        Conflict: What is deployed is not what the caller expected.
        Quarantined: The version was found bad, and ``force`` and a reason are not given.
        ApprovalMissing: The environment is protected and nobody has approved the version.
    """
    check_expectations(txn, move)
    pointer = txn.pointer(move.environment)
    if pointer is not None and pointer.version_hash == record.version_hash:
        return None
    bad = txn.mark("quarantine", record.version_hash)
    forced = move.force and bool(move.reason)
    if bad is not None and not forced:
        raise Quarantined(
            f"{txn.name} {record.version} is quarantined ({bad.reason or 'no reason given'}); "
            "to deploy it all the same, pass force and a reason"
        )
    approval = approved(txn, record, move.environment) if move.protected else None
    if move.protected and approval is None and not forced:
        raise ApprovalMissing(
            f"{move.environment} is protected: {record.version} ({record.version_hash[:12]}) needs an approval by "
            "somebody else than its author, resting on scores of this version"
        )
    if bad is not None:
        txn.drop_mark("quarantine", record.version_hash)
    entry = _entry(txn, record, move, "promote" if move.source else "deploy")
    entry = replace(entry, forced=forced and (bad is not None or (move.protected and approval is None)))
    if approval is not None:
        entry = replace(entry, approver=approval.actor, evidence=tuple(approval.data["evidence"]))
    _move(txn, entry)
    return entry


def roll_back(txn: Transaction, move: Move) -> tuple[Deployment, StoredVersion]:
    """Point an environment at its last good version, and quarantine the one it leaves.

    Returns:
        The log entry and the version that runs now.

    Raises:
        Conflict: What is deployed is not what the caller expected.
        NothingToRollBackTo: No earlier version is left, or nothing is deployed.
    """
    check_expectations(txn, move)
    pointer, target = txn.pointer(move.environment), target_of(txn, move.environment)
    if pointer is None:
        raise NothingToRollBackTo(f"{txn.name} is not deployed in {move.environment}")
    if target is None:
        raise NothingToRollBackTo(
            f"{txn.name} in {move.environment}: the log holds no other version that exists and is not quarantined"
        )
    entry = _entry(txn, target, move, "rollback")
    _move(txn, entry)
    txn.set_mark(
        Mark(
            "quarantine", pointer.version_hash, pointer.version, pointer.version_hash, move.at, move.actor,
            move.reason or f"rolled back in {move.environment}",
        )
    )  # fmt: skip
    return entry, target


def quarantine(txn: Transaction, record: StoredVersion, move: Move) -> None:
    """Mark a version as bad: nothing deploys it, and no rollback takes it. What runs it goes on."""
    txn.set_mark(
        Mark("quarantine", record.version_hash, record.version, record.version_hash, move.at, move.actor, move.reason)
    )


def approve(txn: Transaction, record: StoredVersion, move: Move, evidence: tuple[str, ...], reviewed: str) -> Mark:
    """Approve a version for an environment.

    Args:
        txn: The signature.
        record: The version.
        move: Who approves, when and where.
        evidence: Ids of scores of this version, at least one.
        reviewed: The hash that was looked at.

    Raises:
        ApprovalMissing: Own version, no evidence, or evidence that is about something else or older.
        Conflict: The hash is not this version's.
    """
    if reviewed != record.version_hash:
        raise Conflict(
            f"the approval is for {reviewed[:12]}, but {record.version} is {record.version_hash[:12]}",
            expected=reviewed, current=record.version_hash,
        )  # fmt: skip
    if move.actor is None or move.actor == record.author:
        raise ApprovalMissing(f"{move.actor or 'nobody'} cannot approve {record.version}: somebody else has to")
    known = {score.score_id: score for score in txn.scores(record.version_hash)}
    if not evidence or set(evidence) - set(known):
        raise ApprovalMissing(f"an approval of {record.version} rests on ids of its own scores, at least one")
    if any(known[score_id].at < record.created_at for score_id in evidence):
        raise ApprovalMissing(f"the evidence is older than {record.version}")
    mark = Mark(
        "approval", f"{move.environment}/{record.version_hash}", record.version, record.version_hash, move.at,
        move.actor, move.reason, {"evidence": list(evidence)},
    )  # fmt: skip
    txn.set_mark(mark)
    return mark


def approved(view: View, record: StoredVersion, environment: str) -> Mark | None:
    """The approval of exactly this content for an environment; one that names no evidence does not count."""
    mark = view.mark("approval", f"{environment}/{record.version_hash}")
    return mark if mark is not None and mark.data.get("evidence") else None


def check_expectations(view: View, move: Move) -> None:
    """Compare what the caller expects with what is there.

    Raises:
        Conflict: They differ.
    """
    pointer = view.pointer(move.environment)
    generation = 0 if pointer is None else pointer.generation
    if move.expected_generation is not None and move.expected_generation != generation:
        raise Conflict(
            f"{view.name} in {move.environment} is at generation {generation}, not {move.expected_generation}",
            expected=move.expected_generation, current=generation,
        )  # fmt: skip
    if move.expected_version is None:
        return
    running = None if pointer is None else pointer.version
    try:
        expected = resolve(view, move.expected_version).version
    except UnknownVersion:
        expected = move.expected_version
    if expected != running:
        raise Conflict(
            f"{view.name} in {move.environment} runs {running}, not {move.expected_version}",
            expected=move.expected_version, current=running,
        )  # fmt: skip


def _entry(view: View, record: StoredVersion, move: Move, action: str) -> Deployment:
    pointer = view.pointer(move.environment)
    return Deployment(
        new_id(), move.environment, action, record.version, record.version_hash,
        None if pointer is None else pointer.version, None if pointer is None else pointer.version_hash,
        1 if pointer is None else pointer.generation + 1, move.at, move.actor, move.reason, move.trigger,
        source=move.source, decision_id=move.decision_id,
    )  # fmt: skip


def _move(txn: Transaction, entry: Deployment) -> None:
    pointer = Pointer(entry.environment, entry.version, entry.version_hash, entry.generation, entry.at)
    txn.move_pointer(pointer, entry)
