"""What a store has to do: one protocol, so that files, SQLite and PostgreSQL behave alike.

A store knows nothing of rules. It keeps immutable records, moves pointers by compare-and-swap, and makes everything
that one ``write`` block does visible at once or not at all. Which version may be deployed is the registry's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from threading import Event
from typing import Any, Final, Protocol

from dspy_observe.registry.records import Decision, Deployment, Mark, Pointer, Score, StoredVersion

__all__ = [
    "FORMAT", "LEASE_S", "LOCK_TIMEOUT_S", "Head", "Notice", "Store", "Transaction", "View", "backup_age",
    "backup_label",
]  # fmt: skip

FORMAT: Final = 1
"""Version of what the stores write; a higher one is refused."""
LOCK_TIMEOUT_S: Final = 60.0
"""How long a writer waits for the others before it gives up with ``StoreUnavailable``."""
LEASE_S: Final = 300.0
"""How long an event of another host, or of a process that still runs, is left to it for delivery."""


_STAMP: Final = "%Y%m%d_%H%M%S_%f"
_STAMP_CHARS: Final = 22


def backup_label(version: str, at: datetime) -> str:
    """The label of a version's backup: its name and the time in UTC to the microsecond."""
    return f"{version}_{at.strftime(_STAMP)}"


def backup_age(label: str) -> str:
    """What sorts labels by time."""
    return label[-_STAMP_CHARS:]


@dataclass(frozen=True, slots=True)
class Head:
    """Where a signature's numbering stands."""

    next_sequence: int = 1
    last_name: str = ""
    """The last name that was made from the clock; ``""`` before the first."""


@dataclass(frozen=True, slots=True)
class Notice:
    """An event that was committed and not yet delivered."""

    delivery_id: str
    program: str
    owner: str
    """The process that has to deliver it: host, process id and start."""
    at: float
    """Unix time in seconds when it was committed or last taken."""
    event: Mapping[str, Any]


class View(Protocol):
    """One signature as it was at one moment. Everything returned is shared: copy before giving it away."""

    @property
    def name(self) -> str:
        """The signature."""

    @property
    def exists(self) -> bool:
        """Whether anything was ever written under the name."""

    def head(self) -> Head:
        """Where the numbering stands."""

    def count(self) -> int:
        """How many versions there are."""

    def versions(self) -> Sequence[StoredVersion]:
        """All versions, oldest first."""

    def version(self, version: str) -> StoredVersion | None:
        """The version with this display name."""

    def by_hash(self, prefix: str) -> StoredVersion | None:
        """The one version whose hash begins so; ``None`` when there is none or more than one."""

    def pointer(self, environment: str) -> Pointer | None:
        """What the environment runs."""

    def pointers(self) -> Sequence[Pointer]:
        """What each environment runs, by environment name."""

    def deployments(self, environment: str | None = None) -> Sequence[Deployment]:
        """The deployment log, oldest first; of one environment or of all."""

    def scores(self, version_hash: str | None = None) -> Sequence[Score]:
        """Observations, oldest first; of one version or of all."""

    def last_score(self, version_hash: str) -> Score | None:
        """The latest observation of a version."""

    def last_scores(self) -> Mapping[str, Score]:
        """The latest observation of each version, by hash."""

    def marks(self, kind: str) -> Sequence[Mark]:
        """All marks of one kind, in the order in which they were first set."""

    def mark(self, kind: str, key: str) -> Mark | None:
        """One mark."""

    def decisions(self, environment: str | None = None, limit: int | None = None) -> Sequence[Decision]:
        """Decisions, oldest first; at most the last ``limit``."""

    def rollbacks(self, environment: str, limit: int) -> Sequence[Decision]:
        """The last ``limit`` decisions that moved the pointer, oldest first; reads no others."""

    def applied(self, environment: str, fingerprint: str, starts_at: str) -> Decision | None:
        """The decision that moved the pointer for this alert."""

    def evidence(self, environment: str) -> dict[str, Any] | None:
        """What was last set for the environment; a copy."""


class Transaction(View, Protocol):
    """A view that also writes. Reads see what the same transaction wrote."""

    def set_head(self, head: Head) -> None:
        """Move the numbering; the first time makes the signature.

        Raises:
            InvalidName: A new signature's name differs only in case from another one's.
        """

    def put_program(self, program_hash: str, text: str) -> None:
        """Keep a program's text under its SHA-256; a second time does nothing."""

    def add_version(self, version: StoredVersion) -> None:
        """Add a version; its name, hash and sequence are new.

        Raises:
            Conflict: The name or the hash is there; at the latest at the end of the transaction.
        """

    def remove_version(self, version_hash: str) -> None:
        """Forget a version; logs and scores keep naming it."""

    def move_pointer(self, pointer: Pointer, deployment: Deployment) -> None:
        """Move a pointer and write the log entry.

        Raises:
            Conflict: The generation there is not ``pointer.generation - 1``.
        """

    def place_pointer(self, pointer: Pointer) -> None:
        """Set a pointer of an environment that has none, without a log entry."""

    def add_deployments(self, deployments: Sequence[Deployment]) -> None:
        """Append log entries that were made elsewhere, without moving anything."""

    def add_score(self, score: Score) -> bool:
        """Add an observation; ``False`` and nothing when its id is there."""

    def add_decision(self, decision: Decision) -> None:
        """Append a decision.

        Raises:
            Conflict: It was applied, and so was another one for the same alert.
        """

    def set_mark(self, mark: Mark) -> None:
        """Set a mark, in place of the one with the same kind and key."""

    def drop_mark(self, kind: str, key: str) -> None:
        """Take a mark away, if it is there."""

    def set_evidence(self, environment: str, state: Mapping[str, Any]) -> None:
        """Replace the evidence on the versions of an environment. It is committed in a block of its own."""

    def add_notice(self, notice: Notice) -> None:
        """Keep an event until :meth:`Store.forget`, from this commit on."""

    def add_backup(self, label: str, text: str, keep: int) -> None:
        """Keep a backup under a label (see :func:`backup_label`); the ``keep`` newest stay, 0 keeps all."""


class Store(Protocol):
    """Where a registry lives."""

    @property
    def location(self) -> str:
        """Folder or URL, without password."""

    def names(self) -> list[str]:
        """All signatures, sorted."""

    def read(self, name: str) -> AbstractContextManager[View]:
        """One consistent view of a signature."""

    def write(self, name: str) -> AbstractContextManager[Transaction]:
        """One transaction on a signature: committed at the end of the block, undone when it raises.

        One writer at a time; others wait up to ``LOCK_TIMEOUT_S``.
        """

    def program(self, program_hash: str) -> str | None:
        """A program's text, unchecked; ``None`` when it is missing."""

    def place_of(self, program_hash: str) -> str:
        """Where the program's text stands, for messages."""

    def backups(self, name: str) -> list[str]:
        """Labels of a signature's backups, oldest first."""

    def backup(self, name: str, label: str) -> str | None:
        """The text of a backup."""

    def collect(self) -> int:
        """Delete the programs that no version refers to; returns how many.

        Raises:
            CorruptRegistry: It cannot be told for all programs; nothing was deleted.
        """

    def settings(self) -> dict[str, Any]:
        """The configuration kept in the store; empty when there is none."""

    def keep_settings(self, settings: Mapping[str, Any]) -> None:
        """Keep a configuration unless there is one."""

    def take_notices(self, owner: str, now: float) -> list[Notice]:
        """Make undelivered events of dead processes, and those beyond ``LEASE_S``, the owner's, and return them."""

    def forget(self, delivery_ids: Sequence[str]) -> None:
        """The events were delivered."""

    def changes(self, name: str, stop: Event) -> Iterator[None] | None:
        """Blocks and yields when a signature may have changed, until ``stop`` is set; ``None`` where nothing tells."""

    def close(self) -> None:
        """Give up connections; the store can be used again."""
