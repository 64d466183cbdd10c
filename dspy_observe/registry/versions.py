"""Registering on a transaction: names, sequence, content address, retention; and versions as users see them."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dspy_observe.registry import names
from dspy_observe.registry.errors import (
    Conflict,
    CorruptVersion,
    InvalidName,
    UnknownSignature,
    UnknownVersion,
    VersionExists,
)
from dspy_observe.registry.models import Version
from dspy_observe.registry.records import Mark, Score, StoredVersion
from dspy_observe.registry.stores.base import Head, Store, Transaction, View
from dspy_observe.registry.values import canonical, copied, digest

__all__ = [
    "Draft", "Viewer", "add", "check_content", "configuration_hash", "existing", "prune", "resolve", "target_of",
    "with_hash",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Draft:
    """A version that is to be registered: checked, copied, without credentials."""

    version_hash: str
    configuration: dict[str, Any]
    metadata: dict[str, Any]
    author: str | None
    program_id: str | None
    program_hash: str | None = None
    program: str | None = None
    """The program's text, whose SHA-256 is ``program_hash``."""


def configuration_hash(configuration: Mapping[str, Any]) -> str:
    """The content address of a version that is a configuration only."""
    return digest(canonical({"configuration": configuration}))


def existing(view: View) -> View:
    """The view, if the signature is there.

    Raises:
        UnknownSignature: It is not.
    """
    if not view.exists:
        raise UnknownSignature(view.name)
    return view


def resolve(view: View, version: str) -> StoredVersion:
    """The version that a caller means. What the registry itself refers to is found by :func:`with_hash`.

    Args:
        view: Its signature.
        version: A display name, an alias, or a hash of which at least 12 digits are given; 64 are always a hash.

    Raises:
        UnknownSignature: The signature is not there.
        UnknownVersion: Nothing, or more than one version, is meant.
    """
    if names.is_hash(version):
        return with_hash(view, version)
    existing(view)
    found = view.version(version)
    if found is None:
        alias = view.mark("alias", version)
        found = view.by_hash(alias.version_hash) if alias is not None else None
    meant = view.by_hash(version) if names.like_hash(version) else None
    if found is None:
        found = meant
    elif meant is not None and meant.version_hash != found.version_hash:
        found = None  # a name that looks like a hash must not hide whose hash it is
    if found is None:
        raise UnknownVersion(view.name, version, known=(one.version for one in view.versions()))
    return found


def with_hash(view: View, version_hash: str) -> StoredVersion:
    """The version with exactly this hash, whatever other versions are called.

    Raises:
        UnknownSignature: The signature is not there.
        UnknownVersion: There is no such version.
    """
    found = existing(view).by_hash(version_hash)
    if found is None or found.version_hash != version_hash:
        raise UnknownVersion(view.name, version_hash)
    return found


def check_content(store: Store, record: StoredVersion) -> str | None:
    """Read a version's program and check that content and hash agree.

    Returns:
        The program's text; ``None`` for a version that is a configuration only.

    Raises:
        CorruptVersion: They do not.
    """
    if record.program_hash is None:
        if configuration_hash(record.configuration) != record.version_hash:
            raise CorruptVersion(record.version_hash, record.version, "the configuration is not what its hash says")
        return None
    text = store.program(record.program_hash)
    place = store.place_of(record.program_hash)
    if text is None:
        raise CorruptVersion(record.version_hash, place, "the program is missing")
    if digest(text) != record.program_hash:
        raise CorruptVersion(record.version_hash, place, "the program is not what its hash says")
    return text


def add(
    txn: Transaction, draft: Draft, version: str | None, at: datetime, auto: str | None
) -> tuple[StoredVersion, bool]:
    """Register a draft; the same content a second time is the version that is there.

    Args:
        txn: The signature.
        draft: What to register.
        version: The caller's name; for content that is there it becomes an alias.
        at: Now.
        auto: ``strftime`` format for a name from the clock; ``None`` when there are none.

    Returns:
        The version, and whether it is new.

    Raises:
        VersionExists: The name belongs to other content, or is the alias of another version.
        InvalidName: There is no name, or it is what another version may be asked for by.
    """
    there = txn.by_hash(draft.version_hash) if txn.exists else None
    if there is not None:
        if version is not None and version != there.version:
            _second_name(txn, version, there, at, draft.author)
        if draft.metadata and draft.metadata != there.metadata:
            data = {"metadata": draft.metadata}
            key = secrets.token_hex(8)
            txn.set_mark(Mark("note", key, there.version, there.version_hash, at, draft.author, None, data))
        return there, False
    head = txn.head()
    name = _free_name(txn, draft, version, head, at, auto)
    record = StoredVersion(
        name, head.next_sequence, draft.version_hash, at, draft.configuration, draft.metadata, draft.author,
        draft.program_id, draft.program_hash,
    )  # fmt: skip
    txn.set_head(Head(head.next_sequence + 1, head.last_name if version is not None else name))
    if draft.program_hash is not None and draft.program is not None:
        txn.put_program(draft.program_hash, draft.program)
    txn.add_version(record)
    return record, True


def _second_name(txn: Transaction, name: str, record: StoredVersion, at: datetime, actor: str | None) -> None:
    """Make a name under which known content was registered again its alias; that never moves an alias."""
    there = txn.mark("alias", name)
    if there is None:
        alias(txn, name, record, at, actor)
    elif there.version_hash != record.version_hash:
        raise VersionExists(
            f"{name!r} is an alias of {there.version} in {txn.name!r}, and this is the content of {record.version}; "
            "give another name, or move the alias with set_alias",
            expected=record.version, current=there.version,
        )  # fmt: skip


def alias(txn: Transaction, name: str, record: StoredVersion, at: datetime, actor: str | None) -> None:
    """Let a name stand for a version.

    Raises:
        VersionExists: A version has this name.
        InvalidName: It is what another version may be asked for by.
    """
    _refuse_hash(txn, "alias", name, record.version_hash)
    if txn.version(name) is not None:
        raise VersionExists(f"{txn.name!r} has a version named {name!r}", expected=record.version, current=name)
    txn.set_mark(Mark("alias", name, record.version, record.version_hash, at, actor))


def _refuse_hash(txn: Transaction, kind: str, name: str, version_hash: str) -> None:
    """A new name must not be what somebody may ask for another version by: a commit's id is a good name, a hash none.

    Args:
        txn: The signature.
        kind: What is named.
        name: The name.
        version_hash: The hash of the version that gets it.
    """
    other = txn.by_hash(name) if names.like_hash(name) else None
    if names.is_hash(name) or (other is not None and other.version_hash != version_hash):
        problem = "it is a hash, by which versions are asked for, too; put a letter in front, such as v"
        raise InvalidName(kind, name, problem)


def _free_name(txn: Transaction, draft: Draft, version: str | None, head: Head, at: datetime, auto: str | None) -> str:
    if version is not None:
        other = txn.version(version)
        if other is not None:
            raise VersionExists(
                f"version {version!r} already exists for signature {txn.name!r} with other content",
                expected=None, current=other.version_hash,
            )  # fmt: skip
        if txn.mark("alias", version) is not None:
            raise Conflict(f"{version!r} is an alias in {txn.name!r}", expected=None, current=version)
        _refuse_hash(txn, "version", version, draft.version_hash)
        return version
    if auto is None:
        raise InvalidName("version", None, "auto_version is off, so the caller has to give one")
    name = at.strftime(auto)
    # Rising, so that a name of a version that was cleaned up is not given to other content in the same second.
    taken = txn.version(name) is not None or txn.mark("alias", name) is not None
    if taken or name <= head.last_name or (names.like_hash(name) and txn.by_hash(name) is not None):
        name = f"{name}_{head.next_sequence}"
    while txn.version(name) is not None or txn.mark("alias", name) is not None:
        name += "_"
    return names.checked("version", name)


def target_of(view: View, environment: str) -> StoredVersion | None:
    """What a rollback would put in place: the last other version in the log that is there and not quarantined."""
    pointer = view.pointer(environment)
    if pointer is None:
        return None
    seen = {pointer.version_hash}
    for entry in reversed(view.deployments(environment)):
        if entry.version_hash in seen:
            continue
        seen.add(entry.version_hash)
        record = view.by_hash(entry.version_hash)
        if record is not None and view.mark("quarantine", record.version_hash) is None:
            return record
    return None


def prune(view: View, keep: int, spare: Sequence[str] = ()) -> list[StoredVersion]:
    """The versions to remove, oldest first, so that at most ``keep`` stay; 0 keeps all.

    Never what an environment runs, what its rollback would take, what a rollout is about, what has an alias, or a hash
    in ``spare``.
    """
    surplus = view.count() - keep
    if keep == 0 or surplus <= 0:
        return []
    kept = set(spare) | {mark.version_hash for kind in ("alias", "rollout") for mark in view.marks(kind)}
    for pointer in view.pointers():
        kept.add(pointer.version_hash)
        target = target_of(view, pointer.environment)
        if target is not None:
            kept.add(target.version_hash)
    return [one for one in view.versions() if one.version_hash not in kept][:surplus]


class Viewer:
    """Makes versions as users see them from one view of a signature.

    Args:
        view: The signature.
        environment: The environment that ``is_deployed`` is about.
        scores: The latest score by hash; ``None`` looks each one up.
    """

    def __init__(self, view: View, environment: str, scores: Mapping[str, Score] | None = None) -> None:
        self._view = view
        self._environment = environment
        self._scores = scores
        self._running: dict[str, list[str]] = {}
        for pointer in view.pointers():
            self._running.setdefault(pointer.version_hash, []).append(pointer.environment)
        self._aliases: dict[str, list[str]] = {}
        for mark in view.marks("alias"):
            self._aliases.setdefault(mark.version_hash, []).append(mark.key)
        self._bad = {mark.key: mark.reason or "" for mark in view.marks("quarantine")}

    def see(self, record: StoredVersion, *, created: bool = True) -> Version:
        """One version."""
        digits = record.version_hash
        score = self._view.last_score(digits) if self._scores is None else self._scores.get(digits)
        running = tuple(self._running.get(digits, ()))
        return Version(
            self._view.name, record.version, digits, record.sequence, record.created_at, copied(record.configuration),
            copied(record.metadata), record.author, record.program_id, record.program_hash,
            self._environment in running, running, None if score is None else score.value, self._bad.get(digits),
            tuple(self._aliases.get(digits, ())), created,
        )  # fmt: skip
