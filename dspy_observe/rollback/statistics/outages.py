"""A time in which everybody's scores fall, so that no version is to blame: when it ends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, Self

__all__ = ["Outage"]

RECOVERY: Final = 100
"""Scores of one version that are looked at together."""
_Z_84: Final = 1.0
"""A version has recovered when its mean is within this many standard errors of what it should be."""


class Outage:
    """A common cause that is under way. Its scores are neither evidence nor anybody's baseline.

    Args:
        since: Unix time in seconds.
        reason: In words.
    """

    __slots__ = ("_blocks", "reason", "since", "told")

    def __init__(self, since: float, reason: str) -> None:
        self.since = since
        self.reason = reason
        self.told = False
        """Whether somebody has taken it on to tell."""
        self._blocks: dict[str, list[float]] = {}

    def add(self, version: str, score: float, reference: float | None) -> bool | None:
        """Take in one score.

        Args:
            version: Whose.
            score: From 0 to 1.
            reference: What it should be on average; ``None`` when unknown.

        Returns:
            At the end of a block, whether the version is back where it should be; else ``None``.
        """
        if reference is None:
            return None
        block = self._blocks.setdefault(version, [0.0, 0.0, 0.0])
        block[0] += 1
        block[1] += reference - score
        block[2] += max(reference * (1 - reference), 1e-4)
        if block[0] < RECOVERY:
            return None
        del self._blocks[version]
        return block[1] <= _Z_84 * math.sqrt(block[2])

    def to_dict(self) -> dict[str, Any]:
        """The state, for JSON."""
        blocks = {version: block.copy() for version, block in self._blocks.items()}
        return {"since": self.since, "reason": self.reason, "told": self.told, "blocks": blocks}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """The outage that :meth:`to_dict` wrote."""
        made = cls(float(state["since"]), str(state["reason"]))
        made.told = bool(state["told"])
        made._blocks = {version: [float(one) for one in block] for version, block in state["blocks"].items()}
        return made
