"""One signature's file: what it holds in memory, how it is read from YAML and written back.

Cross-checked on the way in, because people edit it: a pointer to nowhere or a name used twice is an error with its
line, not a surprise at the next deployment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from dspy_observe.registry import names, yamltext
from dspy_observe.registry.errors import Conflict, CorruptRegistry, InvalidName
from dspy_observe.registry.records import Decision, Deployment, FieldFault, Mark, Pointer, Record, StoredVersion
from dspy_observe.registry.stores.base import FORMAT, Head
from dspy_observe.registry.stores.checks import check_record, check_whole

__all__ = ["Document", "Fault", "document_from", "read_document"]

_SECTIONS: Final[tuple[tuple[str, type[Record]], ...]] = (
    ("pointers", Pointer),
    ("marks", Mark),
    ("deployments", Deployment),
    ("decisions", Decision),
    ("versions", StoredVersion),
)
_HEADER: Final = (
    "# Written by dspy-observe, one replace for each change. To edit by hand: stop the writers, keep texts quoted.\n"
)


class Document:
    """A signature's file, parsed. Treated as immutable: a transaction works on :meth:`branch`."""

    __slots__ = (
        "_texts", "by_hash", "by_name", "commit", "decisions", "deployments", "head", "marks", "name", "pointers",
        "versions",
    )  # fmt: skip

    def __init__(self, name: str) -> None:
        self.name = name
        self.commit = ""
        """Random name of the last commit; ``""`` before the first."""
        self.head = Head()
        self.versions: list[StoredVersion] = []
        self.by_name: dict[str, StoredVersion] = {}
        self.by_hash: dict[str, StoredVersion] = {}
        self.pointers: dict[str, Pointer] = {}
        self.deployments: list[Deployment] = []
        self.marks: dict[tuple[str, str], Mark] = {}
        self.decisions: list[Decision] = []
        self._texts: dict[int, tuple[Record, str]] = {}

    def branch(self) -> Document:
        """A copy that may be changed; the records themselves are shared."""
        other = Document(self.name)
        other.commit, other.head, other._texts = self.commit, self.head, self._texts
        other.versions, other.deployments = self.versions.copy(), self.deployments.copy()
        other.by_name, other.by_hash = self.by_name.copy(), self.by_hash.copy()
        other.pointers, other.marks, other.decisions = self.pointers.copy(), self.marks.copy(), self.decisions.copy()
        return other

    def add_version(self, version: StoredVersion) -> None:
        """Add a version and its indexes.

        Raises:
            Conflict: Its name or its hash is there; the file could not be read any more.
        """
        if version.version in self.by_name or version.version_hash in self.by_hash:
            what = f"{self.name!r} has a version {version.version!r}, or its content, already"
            raise Conflict(what, expected=None, current=version.version)
        self.versions.append(version)
        self.by_name[version.version] = version
        self.by_hash[version.version_hash] = version

    def remove_version(self, version_hash: str) -> None:
        """Take a version and its indexes out."""
        version = self.by_hash.pop(version_hash)
        del self.by_name[version.version]
        self.versions.remove(version)

    def text(self) -> str:
        """The file's content. Records never change, so each is written out once and remembered."""
        parts = [
            _HEADER,
            yamltext.dump({
                "format": FORMAT, "signature": self.name, "commit": self.commit,
                "next_sequence": self.head.next_sequence, "last_name": self.head.last_name,
            }),
        ]  # fmt: skip
        kept: dict[int, tuple[Record, str]] = {}
        sections: Sequence[tuple[str, Sequence[Record]]] = (
            ("pointers", [self.pointers[environment] for environment in sorted(self.pointers)]),
            ("marks", list(self.marks.values())),
            ("deployments", self.deployments),
            ("decisions", self.decisions),
            ("versions", self.versions),
        )
        for title, records in sections:
            parts.append(f"{title}:\n" if records else f"{title}: []\n")
            for record in records:
                known = self._texts.get(id(record))
                if known is None or known[0] is not record:
                    known = (record, yamltext.dump([record.to_dict()]))
                kept[id(record)] = known
                parts.append(known[1])
        self._texts = kept
        return "".join(parts)


def read_document(name: str, text: bytes, file: str) -> Document:
    """Read a signature's file.

    Args:
        name: The signature that the file is named after.
        text: The file's bytes.
        file: Its path, for messages.

    Raises:
        CorruptRegistry: Anything in it is not as the registry writes it; with the line.
    """
    data = yamltext.load(text, file)
    try:
        return document_from(name, data)
    except Fault as fault:
        raise CorruptRegistry(file, yamltext.line_of(text, file, fault.path), fault.problem) from None


class Fault(Exception):  # noqa: N818 - a finding that becomes an error where the line is known
    """Something in a document is not as it should be: where, and what."""

    def __init__(self, path: tuple[str | int, ...], problem: str) -> None:
        super().__init__(problem)
        self.path = path
        self.problem = problem


def document_from(name: str, data: Any) -> Document:
    """The document that parsed YAML describes.

    Raises:
        Fault: It describes none.
    """
    if not isinstance(data, dict):
        raise Fault((), "the file is empty or holds no mapping; restore it from a backup or an export")
    if data.get("format") != FORMAT:
        raise Fault(("format",), f"format {data.get('format')!r} is not known here; this release reads {FORMAT}")
    if data.get("signature") != name:
        raise Fault(("signature",), f"the file is named after {name!r} but describes {data.get('signature')!r:.80}")
    document = Document(name)
    document.commit = _typed(data, "commit", str)
    document.head = Head(_typed(data, "next_sequence", int), _typed(data, "last_name", str))
    try:
        check_whole("next_sequence", document.head.next_sequence, 1)
    except FieldFault as fault:
        raise Fault(("next_sequence",), str(fault)) from None
    strange = set(data) - {"format", "signature", "commit", "next_sequence", "last_name", *dict(_SECTIONS)}
    if strange:
        raise Fault((min(strange),), f"{min(strange)!r:.60} is not known here")
    for title, kind in _SECTIONS:
        rows = _typed(data, title, list)
        for place, row in enumerate(rows):
            _enter(document, _record(kind, row, (title, place)), (title, place))
    _check_pointers(document)
    return document


def _typed(data: dict[str, Any], key: str, kind: type) -> Any:
    if key not in data:
        raise Fault((), f"{key} is missing")
    if type(data[key]) is not kind:
        raise Fault((key,), f"{key} has to be {kind.__name__}, not {data[key]!r:.60}")
    return data[key]


def _record(kind: type[Record], row: Any, path: tuple[str | int, ...]) -> Record:
    try:
        record = kind.from_dict(row)
        check_record(record)
    except FieldFault as fault:
        raise Fault((*path, fault.field_name) if fault.field_name else path, str(fault)) from None
    return record


def _enter(document: Document, record: Record, path: tuple[str | int, ...]) -> None:
    match record:
        case StoredVersion():
            _check_version(document, record, path)
            document.add_version(record)
        case Pointer():
            if record.environment in document.pointers:
                raise Fault(path, f"a second pointer for {record.environment!r}")
            document.pointers[record.environment] = record
        case Mark():
            if (record.kind, record.key) in document.marks:
                raise Fault(path, f"the {record.kind} {record.key!r:.80} stands here twice")
            document.marks[record.kind, record.key] = record
        case Deployment():
            document.deployments.append(record)
        case Decision():
            document.decisions.append(record)


def _check_version(document: Document, record: StoredVersion, path: tuple[str | int, ...]) -> None:
    try:
        names.checked("version", record.version)
    except InvalidName as error:
        raise Fault((*path, "version"), str(error)) from None
    if record.version in document.by_name:
        raise Fault((*path, "version"), f"the version {record.version!r} stands here twice")
    for digits in (record.version_hash, record.program_hash):
        if digits is not None and not names.is_hash(digits):
            raise Fault((*path, "version_hash"), "a hash has 64 hexadecimal digits")
    if record.version_hash in document.by_hash:
        raise Fault((*path, "version_hash"), f"the content of {record.version!r} stands here twice")
    before = document.versions[-1].sequence if document.versions else 0
    if not before < record.sequence < document.head.next_sequence:
        raise Fault((*path, "sequence"), f"sequence {record.sequence} does not rise below next_sequence")


def _check_pointers(document: Document) -> None:
    for place, pointer in enumerate(document.pointers.values()):
        version = document.by_hash.get(pointer.version_hash)
        if version is None or version.version != pointer.version:
            problem = f"{pointer.environment!r} points to {pointer.version!r}, which is not here"
            raise Fault(("pointers", place), problem)
