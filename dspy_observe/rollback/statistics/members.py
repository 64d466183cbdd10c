"""What a document of evidence is made of: versions, and pairs of versions that answer at the same time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Self

from dspy_observe.rollback.statistics.ratio import sample_ratio_mismatch
from dspy_observe.rollback.statistics.sequential import TwoArms
from dspy_observe.rollback.statistics.streams import Stream

__all__ = ["ACTIVE_S", "Pair", "Scored"]

ACTIVE_S: Final = 3600.0
"""An arm that was not scored for this long is no comparison any more."""


class Scored:
    """One version in the document."""

    __slots__ = ("asked", "asked_at", "name", "regressed_at", "rejected", "streams", "why")

    def __init__(self, name: str) -> None:
        self.name = name
        self.streams: dict[str, Stream] = {}
        self.rejected = 0
        self.regressed_at: float | None = None
        self.why = ""
        self.asked_at: float | None = None
        self.asked = 0
        """How often it was asked whether to roll it back."""

    @property
    def last_at(self) -> float:
        """Unix time of its latest score; 0 before the first."""
        return max((stream.last_at for stream in self.streams.values()), default=0.0)

    def restart(self) -> None:
        """Begin its tests anew."""
        self.regressed_at = self.asked_at = None
        self.asked = 0
        self.why = ""
        for stream in self.streams.values():
            stream.restart()

    def to_dict(self) -> dict[str, Any]:
        """The state, for JSON."""
        streams = {metric: stream.to_dict() for metric, stream in self.streams.items()}
        return {
            "version": self.name, "streams": streams, "rejected": self.rejected, "regressed_at": self.regressed_at,
            "why": self.why, "asked_at": self.asked_at, "asked": self.asked,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """What :meth:`to_dict` wrote."""
        made = cls(str(state["version"]))
        made.streams = {metric: Stream.from_dict(one) for metric, one in state["streams"].items()}
        made.rejected, made.why = int(state["rejected"]), str(state["why"])
        made.regressed_at, made.asked_at = state["regressed_at"], state["asked_at"]
        made.asked = int(state["asked"])
        return made


class Pair:
    """A suspect and the version that answers beside it, by one metric."""

    __slots__ = ("arms", "control", "counts", "last_at", "metric", "shares", "suspect", "suspect_role")

    def __init__(self, suspect: str, control: str, metric: str, suspect_role: str) -> None:
        self.suspect, self.control, self.metric, self.suspect_role = suspect, control, metric, suspect_role
        self.arms = TwoArms()
        self.counts = [0, 0]
        self.shares: list[float] | None = None
        """Of control and suspect; the counts are those since the shares are so."""
        self.last_at = [0.0, 0.0]

    def add(self, score: float, at: float, *, suspect: bool, shares: list[float] | None) -> None:
        """Take in one score of one arm; ``shares`` are those meant for control and suspect."""
        if shares != self.shares:
            self.shares, self.counts = shares, [0, 0]
        self.counts[suspect] += 1
        self.last_at[suspect] = max(self.last_at[suspect], at)
        self.arms.add(score, suspect=suspect)

    def active(self, now: float) -> bool:
        """Whether both arms were scored lately."""
        return now - min(self.last_at) < ACTIVE_S

    @property
    def mismatch(self) -> bool:
        """Whether the traffic was split otherwise than intended."""
        return self.shares is not None and sample_ratio_mismatch(self.counts, self.shares)

    def to_dict(self) -> dict[str, Any]:
        """The state, for JSON."""
        return {
            "suspect": self.suspect, "control": self.control, "metric": self.metric,
            "suspect_role": self.suspect_role, "arms": self.arms.to_dict(), "counts": self.counts.copy(),
            "shares": self.shares, "last_at": self.last_at.copy(),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """What :meth:`to_dict` wrote."""
        made = cls(*(str(state[key]) for key in ("suspect", "control", "metric", "suspect_role")))
        made.arms = TwoArms.from_dict(state["arms"])
        made.counts = [int(count) for count in state["counts"]]
        made.shares, made.last_at = state["shares"], [float(at) for at in state["last_at"]]
        return made
