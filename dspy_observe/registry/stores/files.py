"""The file store: YAML that people read, review and edit; nothing to install or to run.

::

    registry.yml                 configuration
    signatures/<name>.yml        versions, pointers, deployment log, applied decisions, marks
    programs/<sha256>.json       compiled programs
    scores/<name>.jsonl          observations, appended
    decisions/<name>.jsonl       decisions that moved nothing, appended
    backups/<name>/<label>.yml   what was deployed before each deployment
    evidence/<name>.json         what monitors found out, by environment; replaced with every batch of scores
    outbox/<name>/<id>.json      events that were committed and not delivered

One commit is one atomic replace of ``signatures/<name>.yml`` (or one appended block of a journal), under one lock for
the whole registry; what it refers to is written before. Readers take no lock. On one host any number of processes may
share a registry; on a network file system the lock is as good as the server's ``flock``.

Long, because the protocol has some forty short methods; formats are in ``document``, ``journal`` and ``outbox``.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from dspy_observe.registry import names, yamltext
from dspy_observe.registry.errors import Conflict, CorruptRegistry, InvalidName, StoreUnavailable
from dspy_observe.registry.records import Decision, Deployment, Mark, Pointer, Score, StoredVersion
from dspy_observe.registry.stores import disk, watching
from dspy_observe.registry.stores.base import FORMAT, LOCK_TIMEOUT_S, Head, Notice, backup_age
from dspy_observe.registry.stores.document import Document, read_document
from dspy_observe.registry.stores.journal import Journal
from dspy_observe.registry.stores.outbox import Outbox
from dspy_observe.registry.values import canonical

__all__ = ["FileStore"]

_POLL_S: Final = 0.005
"""How often a waiting writer tries the lock; a commit takes about as long."""
_Stamp = tuple[int, int, int]


class FileStore:
    """A registry in a folder.

    Args:
        root: The folder; made at the first write. Relative paths are resolved once, here.

    Raises:
        StoreUnavailable: The path is there and is no folder.
    """

    def __init__(self, root: str | Path) -> None:
        self._root = Path(root).expanduser().absolute()
        if self._root.exists() and not self._root.is_dir():
            raise StoreUnavailable(f"{self._root} is no folder")
        self._cache: dict[str, tuple[_Stamp, Document]] = {}
        self._scores: dict[str, Journal[Score]] = {}
        self._decisions: dict[str, Journal[Decision]] = {}
        self._outbox = Outbox(self._root / "outbox")
        self._lock = threading.RLock()
        self._swept = False
        self._was_there = self._root.is_dir()
        """A folder that was there and is not has not been emptied: its volume is away."""

    @property
    def location(self) -> str:
        """The folder."""
        return str(self._root)

    def names(self) -> list[str]:
        """All signatures, sorted; files that are not named like one are not ours."""
        return sorted(path.stem for path in self._signature_files() if names.is_name(path.stem))

    def _signature_files(self) -> list[Path]:
        """All YAML files where the signatures are, whatever their names."""
        with disk.translated("list the signatures"):
            self._check_still_there()
            folder = self._root / "signatures"
            found = list(folder.glob("*.yml")) if folder.is_dir() else []
            self._was_there = self._was_there or self._root.is_dir()
            return found

    @contextmanager
    def read(self, name: str) -> Iterator[FileView]:
        """See :class:`~dspy_observe.registry.stores.base.Store`."""
        yield FileView(self, self._load(name))

    @contextmanager
    def write(self, name: str) -> Iterator[FileTransaction]:
        """See :class:`~dspy_observe.registry.stores.base.Store`."""
        with self._locked():
            document = self._load(name)
            self._settle(name, document)
            transaction = FileTransaction(self, document.branch())
            yield transaction
            with disk.translated(f"write to {self._root}; nothing was changed"):
                self._commit(transaction)

    def program(self, program_hash: str) -> str | None:
        """See :class:`~dspy_observe.registry.stores.base.Store`."""
        with disk.translated("read a program"):
            try:
                return self._program(program_hash).read_bytes().decode("utf-8", "replace")
            except FileNotFoundError:
                return None

    def place_of(self, program_hash: str) -> str:
        """The program's file."""
        return str(self._program(program_hash))

    def backups(self, name: str) -> list[str]:
        """See :class:`~dspy_observe.registry.stores.base.Store`."""
        return sorted((path.stem for path in (self._root / "backups" / name).glob("*.yml")), key=backup_age)

    def backup(self, name: str, label: str) -> str | None:
        """See :class:`~dspy_observe.registry.stores.base.Store`."""
        if label not in self.backups(name):
            return None
        with disk.translated("read a backup"):
            return (self._root / "backups" / name / f"{label}.yml").read_text(encoding="utf-8")

    def collect(self) -> int:
        """See :class:`~dspy_observe.registry.stores.base.Store`."""
        with self._locked(), disk.translated("collect unused programs"):
            programs = list((self._root / "programs").glob("*.json"))
            if programs:
                self._check_all_known()
            used = {one.program_hash for name in self.names() for one in self._load(name).versions}
            return sum(disk.remove(path) for path in programs if path.stem not in used)

    def _check_all_known(self) -> None:
        """Refuse to call programs unused while versions that use them may stand where nobody looks.

        Raises:
            CorruptRegistry: The signatures' folder is missing, or holds a file that is not named after one.
        """
        folder = self._root / "signatures"
        if not folder.is_dir():
            raise CorruptRegistry(
                str(folder), None, "it is missing, so nobody can tell which programs are used; bring it back, or "
                "delete programs/ if no signature was ever registered here",
            )  # fmt: skip
        for path in sorted(self._signature_files()):
            if not names.is_name(path.stem):
                raise CorruptRegistry(
                    str(path), None, "the file is not named after a signature, so its versions would lose their "
                    "programs; rename it, or move it out of the folder",
                )  # fmt: skip

    def settings(self) -> dict[str, Any]:
        """What ``registry.yml`` says."""
        path = self._root / "registry.yml"
        with disk.translated("read registry.yml"):
            try:
                data = yamltext.load(path.read_bytes(), str(path))
            except FileNotFoundError:
                return {}
        if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get("config"), dict):
            raise CorruptRegistry(str(path), 1, f"format: {FORMAT} and config: {{...}} are needed")
        return dict(data["config"])

    def keep_settings(self, settings: Mapping[str, Any]) -> None:
        """See :class:`~dspy_observe.registry.stores.base.Store`."""
        path = self._root / "registry.yml"
        if path.exists():
            return
        with self._locked(), disk.translated("write registry.yml"):
            if not path.exists():
                disk.replace(path, yamltext.dump({"format": FORMAT, "config": dict(settings)}).encode())

    def take_notices(self, owner: str, now: float) -> list[Notice]:
        """See :class:`~dspy_observe.registry.stores.base.Store`."""
        with disk.translated("read the outbox"):
            waiting = self._outbox.names()
        if not waiting:
            return []
        with self._locked():
            for name in waiting:
                self._settle(name, self._load(name))
            with disk.translated("take undelivered events"):
                return self._outbox.take(owner, now)

    def forget(self, delivery_ids: Sequence[str]) -> None:
        """See :class:`~dspy_observe.registry.stores.base.Store`."""
        self._outbox.forget(delivery_ids)

    def changes(self, name: str, stop: threading.Event) -> Iterator[None] | None:
        """See :class:`~dspy_observe.registry.stores.base.Store`."""
        file = self._file(name)
        return watching.changes_of(file.parent, frozenset({file.name}), stop)

    def close(self) -> None:
        """Nothing is held open."""

    def _check_still_there(self) -> None:
        if self._was_there and not self._root.is_dir():
            raise StoreUnavailable(
                f"{self._root} was there and is gone. Is its volume mounted? Make the folder again to start anew"
            )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the registry's lock; the first holder of a process tidies up after writers that died."""
        with self._lock:
            with disk.translated(f"lock {self._root}"):
                self._check_still_there()
                disk.make_folder(self._root)
                self._was_there = True
                lock = FileLock(self._root / ".lock", timeout=LOCK_TIMEOUT_S, poll_interval=_POLL_S)
                try:
                    lock.acquire()
                except Timeout:
                    raise StoreUnavailable(
                        f"{self._root}: another writer holds the lock for more than {LOCK_TIMEOUT_S:.0f} s"
                    ) from None
            try:
                if not self._swept:
                    for spare in self._root.rglob(f".*{disk.SPARE}"):
                        disk.remove(spare)
                    self._swept = True
                yield
            finally:
                lock.release()

    def _settle(self, name: str, document: Document) -> None:
        """Tell the events of finished commits from those of commits that never happened."""
        if self._outbox.has(name):
            scores, decisions = self.scores_of(name), self.decisions_of(name)
            scores.records()
            decisions.records()
            self._outbox.settle(name, {document.commit, scores.last_commit, decisions.last_commit} - {""})

    def _load(self, name: str) -> Document:
        path = self._file(name)
        with self._lock, disk.translated(f"read {path}"):
            try:
                found = path.stat()
                stamp = (found.st_ino, found.st_size, found.st_mtime_ns)
                known = self._cache.get(name)
                if known is not None and known[0] == stamp:
                    return known[1]
                content = path.read_bytes()
            except FileNotFoundError:
                self._check_still_there()
                self._cache.pop(name, None)
                return Document(name)
            document = read_document(name, content, str(path))
            self._was_there = True
            # A file that was replaced while it was read gets the older stamp, and so is read again the next time.
            self._cache[name] = (stamp, document)
            return document

    def _commit(self, made: FileTransaction) -> None:
        """Write what the commit refers to, then the commit itself; on a failure take everything back."""
        document, commit = made.document, secrets.token_hex(12)
        name = document.name
        undo: list[tuple[Journal[Any], int]] = []
        try:
            for program_hash, text in made.programs.items():
                if not self._program(program_hash).exists():
                    disk.replace(self._program(program_hash), text.encode("utf-8"))
            for label, text, keep in made.backups:
                self._keep_backup(name, label, text, keep)
            for notice in made.notices:
                self._outbox.prepare(notice, commit)
            journals: list[tuple[Journal[Any], Sequence[Any]]] = [
                (self.scores_of(name), made.new_scores), (self.decisions_of(name), made.remarks)
            ]  # fmt: skip
            for journal, records in journals:
                if records:
                    undo.append((journal, journal.append(records, commit)))
            if made.new_evidence:
                whole = self.evidence_of(name) | made.new_evidence
                disk.replace(self._evidence(name), canonical(whole).encode("ascii"))
            if made.changed:
                document.commit = commit
                status = disk.replace(self._file(name), document.text().encode("utf-8"))
                self._cache[name] = ((status.st_ino, status.st_size, status.st_mtime_ns), document)
        except BaseException:
            for journal, size in undo:
                journal.undo(size)
            self._outbox.forget([notice.delivery_id for notice in made.notices])
            raise

    def _keep_backup(self, name: str, label: str, text: str, keep: int) -> None:
        folder = self._root / "backups" / name
        disk.replace(folder / f"{label}.yml", text.encode("utf-8"))
        if keep:
            for old in self.backups(name)[:-keep]:
                disk.remove(folder / f"{old}.yml")

    def _file(self, name: str) -> Path:
        return self._root / "signatures" / f"{name}.yml"

    def _program(self, program_hash: str) -> Path:
        return self._root / "programs" / f"{program_hash}.json"

    def _evidence(self, name: str) -> Path:
        return self._root / "evidence" / f"{name}.json"

    def evidence_of(self, name: str) -> dict[str, dict[str, Any]]:
        """What monitors found out about a signature, by environment."""
        path = self._evidence(name)
        with disk.translated("read the evidence"):
            try:
                found = json.loads(path.read_bytes())
            except FileNotFoundError:
                return {}
            except ValueError as error:
                raise CorruptRegistry(str(path), None, f"{error}; delete it to begin anew") from None
        if not isinstance(found, dict) or not all(isinstance(one, dict) for one in found.values()):
            raise CorruptRegistry(str(path), None, "it holds no evidence; delete it to begin anew")
        return found

    def scores_of(self, name: str) -> Journal[Score]:
        """The journal of a signature's observations."""
        with self._lock:
            return self._scores.setdefault(name, Journal(self._root / "scores" / f"{name}.jsonl", Score))

    def decisions_of(self, name: str) -> Journal[Decision]:
        """The journal of a signature's decisions that moved nothing."""
        with self._lock:
            return self._decisions.setdefault(name, Journal(self._root / "decisions" / f"{name}.jsonl", Decision))

    def observed(self, name: str) -> list[Score]:
        """A signature's observations on disk."""
        with self._lock, disk.translated("read the scores"):
            return self.scores_of(name).records()

    def remarked(self, name: str) -> list[Decision]:
        """A signature's decisions on disk that moved nothing."""
        with self._lock, disk.translated("read the decisions"):
            return self.decisions_of(name).records()


class FileView:
    """A signature's file as it was read, with its journals."""

    def __init__(self, store: FileStore, document: Document) -> None:
        self.document = document
        self._store = store
        self._scores: list[Score] | None = None

    @property
    def name(self) -> str:
        """The signature."""
        return self.document.name

    @property
    def exists(self) -> bool:
        """Whether its file is there."""
        return self.document.commit != ""

    def head(self) -> Head:
        """See :class:`~dspy_observe.registry.stores.base.View`, here and below."""
        return self.document.head

    def count(self) -> int:
        """Number of versions."""
        return len(self.document.versions)

    def versions(self) -> Sequence[StoredVersion]:
        """Oldest first."""
        return self.document.versions

    def version(self, version: str) -> StoredVersion | None:
        """By display name."""
        return self.document.by_name.get(version)

    def by_hash(self, prefix: str) -> StoredVersion | None:
        """By hash or its beginning."""
        found = self.document.by_hash.get(prefix)
        if found is not None:
            return found
        matching = [one for digits, one in self.document.by_hash.items() if digits.startswith(prefix)]
        return matching[0] if len(matching) == 1 else None

    def pointer(self, environment: str) -> Pointer | None:
        """Of one environment."""
        return self.document.pointers.get(environment)

    def pointers(self) -> Sequence[Pointer]:
        """Of all environments."""
        return [self.document.pointers[environment] for environment in sorted(self.document.pointers)]

    def deployments(self, environment: str | None = None) -> Sequence[Deployment]:
        """Oldest first."""
        return [one for one in self.document.deployments if environment in (None, one.environment)]

    def scores(self, version_hash: str | None = None) -> Sequence[Score]:
        """Oldest first."""
        return [one for one in self._all_scores() if version_hash in (None, one.version_hash)]

    def last_score(self, version_hash: str) -> Score | None:
        """Latest of one version."""
        return next((one for one in reversed(self._all_scores()) if one.version_hash == version_hash), None)

    def last_scores(self) -> Mapping[str, Score]:
        """Latest of each version."""
        return {one.version_hash: one for one in self._all_scores()}

    def marks(self, kind: str) -> Sequence[Mark]:
        """Of one kind."""
        return [one for one in self.document.marks.values() if one.kind == kind]

    def mark(self, kind: str, key: str) -> Mark | None:
        """One."""
        return self.document.marks.get((kind, key))

    def decisions(self, environment: str | None = None, limit: int | None = None) -> Sequence[Decision]:
        """Oldest first."""
        both = sorted([*self.document.decisions, *self._store.remarked(self.name)], key=lambda one: one.at)
        found = [one for one in both if environment in (None, one.environment)]
        return found if limit is None else found[max(0, len(found) - limit) :]

    def rollbacks(self, environment: str, limit: int) -> Sequence[Decision]:
        """Only they stand in the signature's file."""
        return [one for one in self.document.decisions if one.environment == environment][-limit:]

    def applied(self, environment: str, fingerprint: str, starts_at: str) -> Decision | None:
        """By alert."""
        wanted = (environment, fingerprint, starts_at)
        return next(
            (one for one in self.document.decisions if (one.environment, one.fingerprint, one.starts_at) == wanted),
            None,
        )

    def evidence(self, environment: str) -> dict[str, Any] | None:
        """From its own file, as it changes far more often than the rest."""
        return self._store.evidence_of(self.name).get(environment)

    def _all_scores(self) -> list[Score]:
        if self._scores is None:
            self._scores = self._store.observed(self.name)
        return self._scores


class FileTransaction(FileView):
    """A branch of a signature's file, and what the commit will write besides."""

    def __init__(self, store: FileStore, document: Document) -> None:
        super().__init__(store, document)
        self.changed = False
        self.programs: dict[str, str] = {}
        self.backups: list[tuple[str, str, int]] = []
        self.notices: list[Notice] = []
        self.new_scores: list[Score] = []
        self.remarks: list[Decision] = []
        self.new_evidence: dict[str, dict[str, Any]] = {}

    def set_head(self, head: Head) -> None:
        """See :class:`~dspy_observe.registry.stores.base.Transaction`, here and below."""
        if not self.exists:
            twin = next((n for n in self._store.names() if names.folded(n) == names.folded(self.name)), None)
            if twin is not None:
                raise InvalidName("signature", self.name, f"it differs only in case from {twin!r}")
        self.document.head = head
        self.changed = True

    def put_program(self, program_hash: str, text: str) -> None:
        """Written before the commit."""
        self.programs[program_hash] = text

    def add_version(self, version: StoredVersion) -> None:
        """Part of the commit."""
        self.document.add_version(version)
        self.changed = True

    def remove_version(self, version_hash: str) -> None:
        """Part of the commit."""
        self.document.remove_version(version_hash)
        self.changed = True

    def move_pointer(self, pointer: Pointer, deployment: Deployment) -> None:
        """Part of the commit."""
        current = self.pointer(pointer.environment)
        generation = 0 if current is None else current.generation
        if pointer.generation != generation + 1:
            raise Conflict(
                f"{self.name} in {pointer.environment} is at generation {generation}, not {pointer.generation - 1}",
                expected=pointer.generation - 1, current=generation,
            )  # fmt: skip
        self.document.pointers[pointer.environment] = pointer
        self.add_deployments([deployment])

    def place_pointer(self, pointer: Pointer) -> None:
        """Part of the commit."""
        self.document.pointers.setdefault(pointer.environment, pointer)
        self.changed = True

    def add_deployments(self, deployments: Sequence[Deployment]) -> None:
        """Part of the commit."""
        self.document.deployments.extend(deployments)
        self.changed = True

    def add_score(self, score: Score) -> bool:
        """Appended to the journal."""
        scores = self._all_scores()
        if any(one.score_id == score.score_id for one in scores):
            return False
        scores.append(score)
        self.new_scores.append(score)
        return True

    def add_decision(self, decision: Decision) -> None:
        """Part of the commit when it was applied, else appended to the journal."""
        if not decision.applied:
            self.remarks.append(decision)
            return
        if decision.fingerprint is not None and decision.starts_at is not None:
            before = self.applied(decision.environment, decision.fingerprint, decision.starts_at)
            if before is not None:
                raise Conflict("this alert was answered", expected=None, current=before.decision_id)
        self.document.decisions.append(decision)
        self.changed = True

    def set_mark(self, mark: Mark) -> None:
        """Part of the commit."""
        self.document.marks[mark.kind, mark.key] = mark
        self.changed = True

    def drop_mark(self, kind: str, key: str) -> None:
        """Part of the commit."""
        if self.document.marks.pop((kind, key), None) is not None:
            self.changed = True

    def evidence(self, environment: str) -> dict[str, Any] | None:
        """What this transaction set, else what stands on disk."""
        made = self.new_evidence.get(environment)
        return super().evidence(environment) if made is None else made

    def set_evidence(self, environment: str, state: Mapping[str, Any]) -> None:
        """Replaced at the end."""
        self.new_evidence[environment] = dict(state)

    def add_notice(self, notice: Notice) -> None:
        """Written before the commit, and worth nothing without it."""
        self.notices.append(notice)

    def add_backup(self, label: str, text: str, keep: int) -> None:
        """Written before the commit."""
        self.backups.append((label, text, keep))
