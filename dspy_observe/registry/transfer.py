"""A whole registry in one YAML file, and back: united by content, nothing overwritten."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from dspy_observe.records import RegistryEvent
from dspy_observe.registry import names, yamltext
from dspy_observe.registry.engine import Batch, Engine
from dspy_observe.registry.errors import CorruptRegistry, CorruptVersion, InvalidName, VersionExists
from dspy_observe.registry.events import make_event
from dspy_observe.registry.models import ImportReport
from dspy_observe.registry.records import Decision, FieldFault, Mark, Score, StoredVersion, moment
from dspy_observe.registry.stores import disk
from dspy_observe.registry.stores.base import FORMAT, Head, Store, Transaction, View
from dspy_observe.registry.stores.checks import check_record, check_said
from dspy_observe.registry.stores.document import Document, Fault, document_from
from dspy_observe.registry.values import digest
from dspy_observe.registry.versions import check_content, configuration_hash

__all__ = ["Bundle", "backup_of", "export", "import_bundle", "parse_export", "read_export", "told"]

EVERY: Final = "*"
"""Program of events about the whole registry."""
_MARKS: Final = ("alias", "quarantine", "approval", "note", "control")
"""Kinds of marks that go with an export; a rollout belongs to the traffic of where it runs."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A checked export."""

    signatures: Mapping[str, Document]
    scores: Mapping[str, Sequence[Score]]
    remarks: Mapping[str, Sequence[Decision]]
    """Decisions that moved nothing."""
    programs: Mapping[str, str]


def told(kind: str, exported: Iterable[str], path: Path, at: float) -> list[RegistryEvent]:
    """The event of an export or import."""
    count = len(list(exported))
    return [make_event(kind, EVERY, at, path=path.name, signature_count=count)]


def export(store: Store, path: Path, at: float) -> list[str]:
    """Write all signatures into a file; returns their names."""
    signatures: dict[str, Any] = {}
    programs: dict[str, str] = {}
    for name in store.names():
        with store.read(name) as view:
            signatures[name] = _rows(view, view.versions())
            for record in view.versions():
                text = check_content(store, record)
                if text is not None and record.program_hash is not None:
                    programs[record.program_hash] = text
    whole = {
        "format": FORMAT, "exported_at": moment(at).isoformat(), "signatures": signatures, "programs": programs,
    }  # fmt: skip
    with disk.translated(f"write {path}"):
        disk.replace(path.absolute(), yamltext.dump(whole).encode("utf-8"))
    return list(signatures)


def backup_of(view: View, record: StoredVersion, store: Store) -> dict[str, Any]:
    """One version in the form of an export; a program that is missing is left out."""
    rows = _rows(view, [record])
    rows.update(pointers=[], deployments=[], decisions=[], remarks=[])
    rows["marks"] = []
    rows["scores"] = [score.to_dict() for score in view.scores(record.version_hash)]
    text = None if record.program_hash is None else store.program(record.program_hash)
    programs = {} if text is None or record.program_hash is None else {record.program_hash: text}
    return {"format": FORMAT, "signatures": {view.name: rows}, "programs": programs}


def _rows(view: View, records: Sequence[StoredVersion]) -> dict[str, Any]:
    head = view.head()
    marks = [mark for kind in _MARKS for mark in view.marks(kind)]
    decisions = view.decisions()
    return {
        "format": FORMAT, "signature": view.name, "commit": "export", "next_sequence": head.next_sequence,
        "last_name": head.last_name,
        "pointers": [one.to_dict() for one in view.pointers()],
        "marks": [one.to_dict() for one in marks],
        "deployments": [one.to_dict() for one in view.deployments()],
        "decisions": [one.to_dict() for one in decisions if one.applied],
        "versions": [one.to_dict() for one in records],
        "scores": [one.to_dict() for one in view.scores()],
        "remarks": [one.to_dict() for one in decisions if not one.applied],
    }  # fmt: skip


def read_export(path: Path) -> Bundle:
    """Read and check an export; see :func:`parse_export`."""
    with disk.translated(f"read {path}"):
        content = path.read_bytes()
    return parse_export(content, str(path))


def parse_export(content: bytes, file: str) -> Bundle:
    """Check everything in an export before anything of it is stored.

    Raises:
        CorruptRegistry: It is no export; with the line.
    """
    data = yamltext.load(content, file)
    try:
        return _bundle(data, file)
    except Fault as fault:
        raise CorruptRegistry(file, yamltext.line_of(content, file, fault.path), fault.problem) from None


def _bundle(data: Any, file: str) -> Bundle:
    if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get("signatures"), dict):
        raise Fault((), f"this is no export: format: {FORMAT} and signatures: are needed")
    programs = data.get("programs", {})
    if not isinstance(programs, dict) or any(
        not isinstance(text, str) or digest(text) != key for key, text in programs.items()
    ):
        raise Fault(("programs",), "a program is not what its hash says")
    twins: dict[str, str] = {}
    documents: dict[str, Document] = {}
    scores: dict[str, list[Score]] = {}
    remarks: dict[str, list[Decision]] = {}
    for name, rows in data["signatures"].items():
        path = ("signatures", name)
        try:
            names.checked("signature", name)
            _check_twin(name, twins)
            own = dict(rows) if isinstance(rows, dict) else {}
            scores[name] = _records(Score, own.pop("scores", []), "scores")
            remarks[name] = _records(Decision, own.pop("remarks", []), "remarks")
            documents[name] = document_from(name, own)
            _check_hashes(documents[name], programs, file)
            _check_marks(documents[name])
        except InvalidName as error:
            raise Fault(path, str(error)) from None
        except Fault as fault:
            raise Fault((*path, *fault.path), fault.problem) from None
    return Bundle(documents, scores, remarks, programs)


def _check_marks(document: Document) -> None:
    for place, mark in enumerate(document.marks.values()):
        try:
            check_said(mark)
        except FieldFault as fault:
            raise Fault(("marks", place), str(fault)) from None


def _check_twin(name: str, known: dict[str, str]) -> None:
    """Refuse two names that are one file where case does not count."""
    other = known.setdefault(names.folded(name), name)
    if other != name:
        raise InvalidName("signature", name, f"it differs only in case from {other!r}, which is in the file, too")


def _records(kind: Any, rows: Any, title: str) -> list[Any]:
    made = []
    for place, row in enumerate(rows if isinstance(rows, list) else [rows]):
        try:
            record = kind.from_dict(row)
            check_record(record)
            made.append(record)
        except FieldFault as fault:
            raise Fault((title, place), str(fault)) from None
    return made


def _check_hashes(document: Document, programs: Mapping[str, str], file: str) -> None:
    """Content and identity agree, so that nobody slips other content under a known hash."""
    for place, record in enumerate(document.versions):
        if record.program_hash is None:
            right = configuration_hash(record.configuration) == record.version_hash
        elif record.program_hash not in programs:
            raise CorruptVersion(record.version_hash, file, f"the program of {record.version} is not in the file")
        else:
            from dspy_observe.registry.programs import ProgramSnapshot, content_hash

            text = programs[record.program_hash]
            right = content_hash(ProgramSnapshot.from_json(text)) == record.version_hash
        if not right:
            raise Fault(("versions", place, "version_hash"), f"{record.version} is not what its hash says")


def _name_beside(txn: Transaction, record: StoredVersion) -> str:
    """A free name for an imported version whose own is taken: with as much of its hash as that needs."""
    for digits in range(8, names.HASH_DIGITS + 1):
        name = f"{record.version[: names.LONGEST - 1 - digits]}_{record.version_hash[:digits]}"
        if txn.version(name) is None and txn.mark("alias", name) is None:
            return name
    raise VersionExists(
        f"{record.version} is other content in {txn.name!r}, and every name made of it and its hash is taken",
        expected=None, current=record.version,
    )  # fmt: skip


class _Undo(Exception):  # noqa: N818 - not an error: it takes back what a dry run did
    pass


def import_bundle(engine: Engine, bundle: Bundle, *, dry_run: bool = False) -> ImportReport:
    """Add a checked export to a store, one transaction for each signature.

    What the store would refuse in one of several is found in a dry run before the first of them is committed.
    """
    if len(bundle.signatures) > 1 and not dry_run:
        import_bundle(engine, bundle, dry_run=True)
    added: list[str] = []
    conflicts: list[str] = []
    present = scores = 0
    for name, document in bundle.signatures.items():
        task = _Import(bundle, document)

        def body(txn: Transaction, _: Batch, task: _Import = task) -> None:
            task.run(txn)
            if dry_run:
                raise _Undo

        with suppress(_Undo):
            engine.run(name, body)
        added += [f"{name}/{version}" for version in task.added]
        conflicts += [f"{name}: {problem}" for problem in task.conflicts]
        present += task.present
        scores += task.scores
    return ImportReport(dry_run, len(bundle.signatures), tuple(added), present, scores, tuple(conflicts))


class _Import:
    """The import of one signature, and what it did."""

    def __init__(self, bundle: Bundle, document: Document) -> None:
        self._bundle = bundle
        self._document = document
        self.added: list[str] = []
        self.conflicts: list[str] = []
        self.present = 0
        self.scores = 0

    def run(self, txn: Transaction) -> None:
        """Work on a transaction of the signature."""
        fresh = not txn.exists
        if fresh:
            txn.set_head(self._document.head)
        for record in self._document.versions:
            self._version(txn, record, fresh)
        if fresh:
            self._whole(txn)
        else:
            self._compare_pointers(txn)
        for mark in self._document.marks.values():
            self._mark(txn, mark, fresh)
        for score in self._bundle.scores[txn.name]:
            if txn.by_hash(score.version_hash) is not None and txn.add_score(score):
                self.scores += 1

    def _version(self, txn: Transaction, record: StoredVersion, fresh: bool) -> None:
        if txn.by_hash(record.version_hash) is not None:
            self.present += 1
            return
        head = txn.head()
        made = record
        if not fresh:
            name = record.version
            if txn.version(name) is not None or txn.mark("alias", name) is not None:
                name = _name_beside(txn, record)
                self.conflicts.append(f"{record.version} is other content here; imported as {name}")
            made = replace(record, version=name, sequence=head.next_sequence)
            txn.set_head(Head(head.next_sequence + 1, head.last_name))
        if record.program_hash is not None:
            txn.put_program(record.program_hash, self._bundle.programs[record.program_hash])
        txn.add_version(made)
        self.added.append(made.version)

    def _whole(self, txn: Transaction) -> None:
        """A signature that was not here: with its pointers, its log and its decisions."""
        txn.add_deployments(self._document.deployments)
        for pointer in self._document.pointers.values():
            txn.place_pointer(pointer)
        for decision in [*self._document.decisions, *self._bundle.remarks[txn.name]]:
            txn.add_decision(decision)

    def _compare_pointers(self, txn: Transaction) -> None:
        for pointer in self._document.pointers.values():
            here = txn.pointer(pointer.environment)
            if here is None or here.version_hash != pointer.version_hash:
                running = "nothing" if here is None else here.version
                self.conflicts.append(
                    f"{pointer.environment} runs {running} here and {pointer.version} in the file; left as it is"
                )

    def _mark(self, txn: Transaction, mark: Mark, fresh: bool) -> None:
        if mark.kind not in _MARKS:
            self.conflicts.append(f"the {mark.kind:.60} of {mark.key:.60} was not taken over")
            return
        there = txn.mark(mark.kind, mark.key)
        if there is not None:
            if mark.kind == "alias" and there.version_hash != mark.version_hash:
                self.conflicts.append(f"the alias {mark.key} stands for {there.version} here; left as it is")
            return
        if mark.kind == "control" and not fresh:
            return  # how far automatic rollback may go here is not the file's business
        if mark.kind == "approval" and not fresh:
            self.conflicts.append(f"the approval of {mark.version} was not taken over")
            return
        if mark.kind == "alias" and (txn.version(mark.key) is not None or txn.by_hash(mark.version_hash) is None):
            self.conflicts.append(f"the alias {mark.key} was not taken over")
            return
        txn.set_mark(mark)
