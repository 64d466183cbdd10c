"""What the registry answers with: frozen records with ``to_dict()``; and its errors.

Times are UTC, scores are as given, ``None`` is unknown. Mappings inside are copies that belong to the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from dspy_observe.registry.errors import (
    ApprovalMissing,
    Conflict,
    CorruptRegistry,
    CorruptVersion,
    InvalidName,
    InvalidScore,
    NothingToRollBackTo,
    NotSerialisable,
    Quarantined,
    RegistryError,
    StoreUnavailable,
    UnknownSignature,
    UnknownVersion,
    VersionExists,
)
from dspy_observe.registry.records import Decision, Deployment, Mark, Pointer, Record, Score

__all__ = [
    "MODES",
    "ApprovalMissing",
    "BulkStatus",
    "Cleanup",
    "Comparison",
    "Conflict",
    "Control",
    "CorruptRegistry",
    "CorruptVersion",
    "Decision",
    "Deployment",
    "DeploymentPlan",
    "DeploymentStatus",
    "GateVerdict",
    "History",
    "HistoryPoint",
    "ImportReport",
    "InvalidName",
    "InvalidScore",
    "Mark",
    "NotSerialisable",
    "NothingToRollBackTo",
    "Pointer",
    "Quarantined",
    "RegistryError",
    "Ruling",
    "Score",
    "Side",
    "Standing",
    "StoreUnavailable",
    "Trends",
    "UnknownSignature",
    "UnknownVersion",
    "Version",
    "VersionExists",
]


@dataclass(frozen=True, slots=True)
class Version(Record):
    """One registered version, and how it stands now."""

    signature_name: str
    version: str
    """Display name."""
    version_hash: str
    """SHA-256 of the content, 64 hexadecimal digits."""
    sequence: int
    """1 for the signature's first version."""
    created_at: datetime
    configuration: dict[str, Any]
    metadata: dict[str, Any]
    author: str | None
    program_id: str | None
    program_hash: str | None
    """SHA-256 of the stored program; ``None`` when only a configuration was registered."""
    is_deployed: bool
    """Whether the environment that was asked about runs it."""
    deployed_in: tuple[str, ...]
    """All environments that run it."""
    performance_score: float | None
    """The latest observation; ``None`` when it was never scored."""
    quarantined: str | None
    """Why it must not run; ``None`` when it may."""
    aliases: tuple[str, ...]
    created: bool = True
    """``False`` when registering found the same content under this version."""


@dataclass(frozen=True, slots=True)
class HistoryPoint(Record):
    """One observation of a version that still exists."""

    version: str
    score: float
    dataset: str | None
    n: int | None
    source: str
    scored_at: datetime
    created_at: datetime
    is_deployed: bool


@dataclass(frozen=True, slots=True)
class Trends(Record):
    """What the observations on one data set say together; ``None`` where they are too few."""

    dataset: str | None
    latest_score: float | None
    best_score: float | None
    worst_score: float | None
    improvement_trend: float | None
    """Change in percent from the mean of the earlier half to that of the later half."""


@dataclass(frozen=True, slots=True)
class History(Record):
    """Scores of a signature's versions, oldest first."""

    versions: tuple[HistoryPoint, ...]
    trends: Trends


@dataclass(frozen=True, slots=True)
class Side(Record):
    """One of two compared versions."""

    version: str
    version_hash: str
    created_at: datetime
    performance_score: float | None
    dataset: str | None
    n: int | None
    is_deployed: bool
    configuration: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Comparison(Record):
    """What is different between two versions."""

    version_1: Side
    version_2: Side
    age_difference_hours: float
    """Hours by which the first is younger."""
    performance_difference: float | None
    """First minus second, on the same data set; ``None`` where there is no such pair."""
    dataset: str | None
    """The data set of the difference."""
    configuration_changes: tuple[str, ...]
    """From the second to the first is ``Added``, ``Removed``, ``Changed``, with the path."""
    program_changes: tuple[dict[str, Any], ...]
    """By predictor: instructions, demos, fields, config, LM, tools, source; empty for equal content."""
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GateVerdict(Record):
    """Whether a candidate may take the place of what is deployed; true when it may."""

    outcome: str
    """``deploy``, ``no_improvement``, ``insufficient_evidence``, ``unscored``, ``refused`` or ``nothing_to_do``."""
    reason: str
    candidate: str | None
    deployed: str | None
    gain: float | None = None
    """Relative to the deployed score; 0.1 is 10 %."""
    dataset: str | None = None

    def __bool__(self) -> bool:
        return self.outcome == "deploy"


@dataclass(frozen=True, slots=True)
class DeploymentPlan(Record):
    """What deploying a version would mean. Nothing has been changed."""

    signature_name: str
    environment: str
    current_version: str | None
    target_version: str
    deployment_safe: bool
    checks: tuple[str, ...]
    recommendations: tuple[str, ...]
    performance_change: float | None
    """Target minus current on the same data set; ``None`` when unknown."""
    configuration_changes: tuple[str, ...]
    generation: int
    """Pass it as ``expected_generation``, so that the plan is carried out on what it saw."""


@dataclass(frozen=True, slots=True)
class DeploymentStatus(Record):
    """How a signature stands in one environment."""

    signature_name: str
    environment: str
    deployed_version: Version | None
    deployed_at: datetime | None
    generation: int
    rollback_target: str | None
    total_versions: int
    quarantined: tuple[str, ...]
    performance_history: History
    recommendations: tuple[str, ...]
    last_updated: datetime


@dataclass(frozen=True, slots=True)
class BulkStatus(Record):
    """Several statuses; what could not be told stands beside."""

    statuses: tuple[DeploymentStatus, ...]
    errors: dict[str, str]

    def __getitem__(self, name: str) -> DeploymentStatus:
        for status in self.statuses:
            if status.signature_name == name:
                return status
        raise KeyError(name)


@dataclass(frozen=True, slots=True)
class Cleanup(Record):
    """What a clean-up removed, or would remove."""

    dry_run: bool
    cleaned_signatures: int
    cleaned_versions: int
    removed: dict[str, Any]
    """Version names by signature."""
    collected_programs: int
    """Programs that no version referred to any more; 0 in a dry run."""


@dataclass(frozen=True, slots=True)
class ImportReport(Record):
    """What an import did, or would do."""

    dry_run: bool
    signatures: int
    added: tuple[str, ...]
    """``signature/version`` for each new version."""
    present: int
    """Versions that were there with the same content."""
    scores: int
    """New observations."""
    conflicts: tuple[str, ...]
    """What differs and was left as it was, in words."""


MODES: Final = ("auto", "approve", "dry-run", "off")
"""What automatic rollback may do: roll back, wait for a person, only say what it would do, nothing."""


@dataclass(frozen=True, slots=True)
class Control(Record):
    """How far automatic rollback may go in one environment."""

    mode: str = "auto"
    """``auto``, ``approve``, ``dry-run`` or ``off``."""
    mode_reason: str | None = None
    mode_at: datetime | None = None
    mode_by: str | None = None
    frozen: bool = False
    """Whether nothing may be rolled back by itself until a person unfreezes it."""
    frozen_reason: str | None = None
    frozen_at: datetime | None = None
    frozen_by: str | None = None
    unfrozen_at: datetime | None = None
    """When it was last unfrozen: rollbacks before do not count towards the budget."""


@dataclass(frozen=True, slots=True)
class Standing(Record):
    """What a judge of a rollback sees; taken and acted on in one transaction."""

    program: str
    environment: str
    now: datetime
    pointer: Pointer | None
    """What is deployed; ``None`` when nothing is."""
    deployed_score: float | None
    rollback_target: str | None
    """The version that a rollback would put in place; ``None`` when there is none."""
    seen: Decision | None
    """The decision that moved the pointer for the same alert."""
    rollbacks: Sequence[Decision] = field(default_factory=tuple)
    """The latest hundred applied decisions in this environment, oldest first."""
    control: Control = field(default_factory=Control)


@dataclass(frozen=True, slots=True)
class Ruling(Record):
    """What a judge decided."""

    outcome: str
    """``rollback`` moves the pointer; ``held``, ``stale``, ``duplicate``, ``rejected`` and ``ignored`` do not."""
    reason: str
    inputs: dict[str, Any] = field(default_factory=dict)
    freeze: str | None = None
    """Why the program is to be frozen in the same transaction; ``None`` leaves it as it is."""
