"""The scores of one version by one metric: what they were, what they were lately, and what they are evidence of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, Self

from dspy_observe.rollback.statistics.baselines import Baseline, Summary
from dspy_observe.rollback.statistics.sequential import LEAST_ROOM, TIE, OneArm

__all__ = ["BLOCK", "Stream"]

BLOCK: Final = 50
"""Scores of a block; the last one or two blocks are what a stream was lately."""
_LEAST_RECENT: Final = 20
_FALL_STAKES: Final = (0.05, 0.3)
"""For slow and for sudden falls."""
_DROPPING: Final = math.log(100.0)
"""The best bet that began at any time is seldom as large by chance, and soon when scores fall."""
_Z_99: Final = 2.326
"""One-sided 99 % point of the normal distribution."""


class Stream:
    """Scores from 0 to 1 of one version by one metric; its state is plain and of constant size."""

    __slots__ = ("_blocks", "_falls", "_older", "arm", "baseline", "fell", "last_at")

    def __init__(self) -> None:
        self.baseline: Baseline | None = None
        self.arm: OneArm | None = None
        """The test against the baseline; ``None`` without one."""
        self.fell = False
        """Whether a whole block was lower than the plain rule allows."""
        self.last_at = 0.0
        self._falls = [0.0] * len(_FALL_STAKES)
        """Logarithm of the best bet that began at any time, for each stake."""
        self._older = Summary()
        self._blocks = (Summary(), Summary())

    def compare_with(self, baseline: Baseline, margin: float) -> None:
        """Test from now on against a baseline, which stays."""
        self.baseline = baseline
        self.arm = OneArm(baseline.floor, margin)

    def add(self, score: float, at: float, plain_drop: float | None = None) -> None:
        """Take in one score.

        Args:
            score: From 0 to 1.
            at: Unix time in seconds.
            plain_drop: Drop relative to the baseline's mean that a block must not exceed; ``None`` asks for none.
        """
        self._keep(score, at)
        if self.arm is not None:
            self.arm.add(score)
            payoff, room = self.arm.floor - score, max(1 - self.arm.floor, LEAST_ROOM)
            for place, stake in enumerate(_FALL_STAKES):
                self._falls[place] = max(0.0, self._falls[place] + math.log1p(stake / room * payoff))
        block = self._blocks[1]
        if plain_drop is not None and self.baseline is not None and block.n == BLOCK:
            drop = self.baseline.mean - block.mean
            self.fell = self.fell or drop > plain_drop * (self.baseline.mean or 1.0) + TIE

    def add_total(self, n: int, mean: float, at: float) -> None:
        """Take in an evaluation, of which only the mean of ``n`` scores is known."""
        self.last_at = max(self.last_at, at)
        self._older.merge(Summary(n, mean, n * mean * (1 - mean)))
        if self.arm is not None:
            self.arm.add_total(n, n * mean)

    def _keep(self, score: float, at: float) -> None:
        self.last_at = max(self.last_at, at)
        if self._blocks[1].n == BLOCK:
            self._older.merge(self._blocks[0])
            self._blocks = (self._blocks[1], Summary())
        self._blocks[1].add(score)

    def summary(self) -> Summary:
        """All its scores, but for those of outages."""
        whole = Summary()
        for part in (self._older, *self._blocks):
            whole.merge(part)
        return whole

    @property
    def reference(self) -> float | None:
        """What its scores should be at least: the baseline, else its own past; ``None`` when neither is known."""
        if self.arm is not None:
            return self.arm.floor
        return self._older.mean if self._older.n >= BLOCK else None

    def is_dropping(self) -> bool | None:
        """Whether its latest scores are too low to be chance, looked at once; ``None`` when they are too few."""
        if max(self._falls) >= _DROPPING:
            return True
        recent = Summary()
        for block in self._blocks:
            recent.merge(block)
        reference = self.reference
        if reference is None or recent.n < _LEAST_RECENT:
            return None
        if self.arm is not None:
            return False
        return reference - recent.mean > _Z_99 * math.sqrt(max(reference * (1 - reference), 1e-4) / recent.n)

    def forget_recent(self) -> None:
        """The latest scores were an outage's: they are no evidence, and no baseline for a later version."""
        self._blocks = (Summary(), Summary())
        self._falls = [0.0] * len(_FALL_STAKES)

    def restart(self) -> None:
        """Begin the tests anew, against the same baseline."""
        self.forget_recent()
        self.fell = False
        if self.arm is not None:
            self.arm = OneArm(self.arm.floor, self.arm.margin)

    def to_dict(self) -> dict[str, Any]:
        """The state, for JSON."""
        return {
            "baseline": None if self.baseline is None else self.baseline.to_dict(),
            "arm": None if self.arm is None else self.arm.to_dict(),
            "fell": self.fell,
            "last_at": self.last_at,
            "older": self._older.to_dict(),
            "blocks": [block.to_dict() for block in self._blocks],
            "falls": self._falls.copy(),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """The stream that :meth:`to_dict` wrote.

        Raises:
            ValueError, KeyError: It is no such state.
        """
        made = cls()
        made.baseline = None if state["baseline"] is None else Baseline.from_dict(state["baseline"])
        made.arm = None if state["arm"] is None else OneArm.from_dict(state["arm"])
        made.fell, made.last_at = bool(state["fell"]), float(state["last_at"])
        made._older = Summary.from_dict(state["older"])
        first, second = state["blocks"]
        made._blocks = (Summary.from_dict(first), Summary.from_dict(second))
        made._falls = [float(one) for one in state["falls"]]
        return made
