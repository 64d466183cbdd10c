"""What the stores keep: one frozen record for each row, and its exact form as a plain mapping.

A record is written once and never changed; what changes (pointers, marks) is replaced by a new record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, ClassVar, Final, Self

from dspy_observe.registry.values import copied

__all__ = [
    "Decision",
    "Deployment",
    "FieldFault",
    "Mark",
    "Pointer",
    "Record",
    "Score",
    "StoredVersion",
    "moment",
]


class FieldFault(ValueError):  # noqa: N818 - a finding that becomes an error where the line is known
    """A mapping is no such record: which field, and why."""

    def __init__(self, field_name: str | None, problem: str) -> None:
        super().__init__(problem if field_name is None else f"{field_name} {problem}")
        self.field_name = field_name


def moment(seconds: float) -> datetime:
    """Unix time in seconds as a UTC time with whole microseconds."""
    return datetime.fromtimestamp(seconds, UTC)


def _of(kind: type, word: str) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if type(value) is not kind:
            raise FieldFault(None, f"has to be {word}, not {value!r:.60}" + _QUOTE.get(kind, ""))
        return value

    return read


def _float(value: Any) -> float:
    if type(value) not in (int, float):
        raise FieldFault(None, f"has to be a number, not {value!r:.60}")
    return float(value)


def _time(value: Any) -> datetime:
    try:
        made = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise FieldFault(None, f"has to be a quoted ISO 8601 time with its offset, not {value!r:.60}") from None
    if made.tzinfo is None:
        raise FieldFault(None, f"needs an offset from UTC, such as +00:00: {value!r:.60}")
    return made.astimezone(UTC)


def _texts(value: Any) -> tuple[str, ...]:
    if type(value) is not list or any(type(item) is not str for item in value):
        raise FieldFault(None, f"has to be a list of texts, not {value!r:.60}")
    return tuple(value)


def _numbers(value: Any) -> tuple[int, ...]:
    if type(value) is not list or any(type(item) is not int for item in value):
        raise FieldFault(None, f"has to be a list of whole numbers, not {value!r:.60}")
    return tuple(value)


def _optional(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else read(value)


_QUOTE: Final[dict[type, str]] = {str: "; quote it"}
_READERS: Final[dict[str, Callable[[Any], Any]]] = {
    "str": _of(str, "a text"),
    "int": _of(int, "a whole number"),
    "bool": _of(bool, "true or false"),
    "float": _float,
    "datetime": _time,
    "dict[str, Any]": _of(dict, "a mapping"),
    "tuple[str, ...]": _texts,
    "tuple[int, ...]": _numbers,
}
_READERS.update({f"{name} | None": _optional(read) for name, read in list(_READERS.items())})


def plain_form(value: Any) -> Any:
    """A field as it is stored: times as ISO 8601 text, tuples as lists, records as mappings."""
    if isinstance(value, datetime):
        return value.isoformat(timespec="microseconds")
    if isinstance(value, tuple | list):
        return [plain_form(item) for item in value]
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, dict):
        return {key: plain_form(item) for key, item in value.items()}
    return copied(value)


@dataclass(frozen=True, slots=True)
class Record:
    """Base of everything the registry stores or answers with."""

    def to_dict(self) -> dict[str, Any]:
        """The record as texts, numbers, lists and dicts, ready for JSON; a deep copy."""
        return {f.name: plain_form(getattr(self, f.name)) for f in fields(self)}

    _plans: ClassVar[dict[type, list[tuple[str, Callable[[Any], Any], bool]]]] = {}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Self:
        """The record that :meth:`to_dict` wrote.

        Raises:
            FieldFault: A field is missing, unknown, or of another type.
        """
        plan = Record._plans.get(cls)
        if plan is None:
            plan = [
                (f.name, _READERS[str(f.type)], f.default is MISSING and f.default_factory is MISSING)
                for f in fields(cls)
            ]
            Record._plans[cls] = plan
        if not isinstance(row, Mapping):
            raise FieldFault(None, f"a mapping is needed, not {row!r:.60}")
        values = {}
        for name, read, needed in plan:
            if name in row:
                try:
                    values[name] = read(row[name])
                except FieldFault as fault:
                    raise FieldFault(name, str(fault)) from None
            elif needed:
                raise FieldFault(None, f"{name} is missing")
        if len(values) != len(row):
            strange = next(key for key in row if key not in values)
            raise FieldFault(strange, "is no field here")
        return cls(**values)


@dataclass(frozen=True, slots=True)
class StoredVersion(Record):
    """What was registered. Never changed afterwards: its place, score and state stand elsewhere."""

    version: str
    """The display name."""
    sequence: int
    """1 for the signature's first version; never used twice."""
    version_hash: str
    """SHA-256 of the content, 64 hexadecimal digits."""
    created_at: datetime
    configuration: dict[str, Any]
    """What ``register_version`` was given; a summary for a program."""
    metadata: dict[str, Any]
    author: str | None = None
    program_id: str | None = None
    program_hash: str | None = None
    """SHA-256 of the stored program; ``None`` when only a configuration was registered."""


@dataclass(frozen=True, slots=True)
class Pointer(Record):
    """Which version an environment runs. Moved only by compare-and-swap on ``generation``."""

    environment: str
    version: str
    version_hash: str
    generation: int
    """1 for the first deployment; one more with each move."""
    at: datetime


@dataclass(frozen=True, slots=True)
class Deployment(Record):
    """One entry of the deployment log: one move of a pointer."""

    deployment_id: str
    environment: str
    action: str
    """``deploy``, ``promote`` or ``rollback``."""
    version: str
    version_hash: str
    previous: str | None
    """The version that the environment ran before; ``None`` at the first deployment."""
    previous_hash: str | None
    generation: int
    at: datetime
    actor: str | None = None
    reason: str | None = None
    trigger: str = "manual"
    """``manual``, ``auto``, ``alert`` or ``monitor``."""
    forced: bool = False
    source: str | None = None
    """The environment that a promotion came from."""
    approver: str | None = None
    evidence: tuple[str, ...] = ()
    """Ids of the scores that speak for it."""
    decision_id: str | None = None


@dataclass(frozen=True, slots=True)
class Score(Record):
    """One observation of how good a version is. Observations are only ever added."""

    score_id: str
    """The caller's key, or a made one: the same id counts once."""
    version: str
    version_hash: str
    value: float
    at: datetime
    dataset: str | None = None
    """What it was measured on; ``None`` when nobody said. Scores of different data sets are not comparable."""
    n: int | None = None
    """Examples that the score is the mean of."""
    stdev: float | None = None
    """Standard deviation of one example's score."""
    source: str = "manual"
    """Who measured: ``manual``, ``evaluate``, ``optimizer``, ..."""


@dataclass(frozen=True, slots=True)
class Decision(Record):
    """What was decided about rolling back, with its inputs; true when the pointer moved because of it."""

    decision_id: str
    environment: str
    outcome: str
    """``rollback`` when the pointer moved; else ``held``, ``stale``, ``duplicate``, ``rejected``, ``ignored``."""
    reason: str
    at: datetime
    trigger: str
    """``alert``, ``monitor`` or ``manual``."""
    fingerprint: str | None = None
    """Which alert it answers; together with ``starts_at`` it is applied at most once."""
    starts_at: str | None = None
    version: str | None = None
    """The version that was found bad."""
    target: str | None = None
    """The version that was put in its place; ``None`` unless the pointer moved."""
    generation: int | None = None
    """The pointer's generation afterwards; ``None`` when nothing is deployed."""
    inputs: dict[str, Any] = field(default_factory=dict)

    @property
    def applied(self) -> bool:
        """Whether the pointer moved because of it."""
        return self.outcome == "rollback"

    def __bool__(self) -> bool:
        return self.applied


@dataclass(frozen=True, slots=True)
class Mark(Record):
    """Something said about a version afterwards: an alias, a quarantine, an approval, a note."""

    kind: str
    """``alias``, ``quarantine``, ``approval`` or ``note``; ``control`` is about an environment and no version."""
    key: str
    """Unique within the kind: the alias, the quarantined hash, the environment, ..."""
    version: str
    version_hash: str
    at: datetime
    actor: str | None = None
    reason: str | None = None
    data: dict[str, Any] = field(default_factory=dict)
