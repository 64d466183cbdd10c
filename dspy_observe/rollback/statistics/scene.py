"""What goes into the evidence, what it is weighed against, and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from dspy_observe.rollback.statistics.baselines import Baseline
from dspy_observe.rollback.statistics.sequential import Levels

__all__ = ["LIVE_ROLES", "Folded", "Observation", "Rule", "Scene", "Verdict", "VerdictName"]

VerdictName = Literal["ok", "suspect", "regressed", "insufficient_data", "global_cause"]
Rule = Literal["hybrid", "threshold"]
LIVE_ROLES: Final = frozenset({"stable", "canary", "control"})
"""Roles whose scores come from users; the others are counted nowhere."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One score of one answer."""

    version_hash: str
    version: str
    role: str
    metric: str
    score: float
    """From 0 to 1, higher is better."""
    at: float
    """Unix time in seconds."""
    score_id: str | None = None
    n: int | None = None
    """Scores of an evaluation, whose mean ``score`` then is; ``None`` for an answer to a user."""


def _no_witness() -> Sequence[bool]:
    return ()


@dataclass(frozen=True, slots=True)
class Scene:
    """What the evidence is weighed against; everything but the scores."""

    now: float
    """Unix time in seconds."""
    deployed: str | None = None
    """Hash of the version that the environment runs."""
    deployed_at: float = 0.0
    levels: Levels = field(default_factory=Levels)
    """Of one version; split among the metrics."""
    metrics: int = 1
    """How many metrics share them."""
    rule: Rule = "hybrid"
    threshold: float = 0.05
    """Relative drop that the plain rule allows."""
    margin: float = 0.0
    """See :class:`OneArm`."""
    least: int = 50
    """Scores below which a version is not called ``ok``."""
    baseline: Callable[[str, str], Baseline | None] = lambda _version, _metric: None
    """Finds the baseline of a version's metric, by hash; asked until there is one."""
    shares: Mapping[str, float] | None = None
    """Part of the traffic that each role is meant to get; ``None`` when unknown."""
    witnesses: Callable[[], Sequence[bool]] = _no_witness
    """Whether the scores of each other program fall, too; asked when a version without a control arm regressed."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the evidence says of a version."""

    verdict: VerdictName
    reason: str
    n: int = 0
    """Scores of the version."""
    mean: float | None = None
    baseline: Baseline | None = None
    log10_evidence: Mapping[str, float] = field(default_factory=dict)
    """By rule: ``e_process``, ``shiryaev_roberts``, ``two_arm``; about 2.3 is enough at the usual level."""
    since: float | None = None
    """Unix time at which the version was found regressed."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        baseline = None if self.baseline is None else self.baseline.to_dict()
        return {
            "verdict": self.verdict, "reason": self.reason, "n": self.n, "mean": self.mean, "baseline": baseline,
            "log10_evidence": dict(self.log10_evidence), "since": self.since,
        }  # fmt: skip


@dataclass(slots=True)
class Folded:
    """What became of the observations of one batch."""

    counted: int = 0
    duplicates: int = 0
    ignored: int = 0
    """Of roles that are not live."""
