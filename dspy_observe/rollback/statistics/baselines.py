"""What a version is compared with: metrics with bounds, what was seen of them, and how little it may mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Self

from dspy_observe.errors import ConfigurationError

__all__ = ["Baseline", "MetricBounds", "Summary", "lower_bound"]

CONFIDENCE: Final = 0.025
"""Chance that the true mean of a baseline is below its lower bound."""
_BINARY: Final = 0.01
"""Relative slack in which a variance is that of zeros and ones: people round what they write down."""
_WHOLE: Final = 1e-6
_BERNSTEIN_SHARE: Final = 0.2
_HALVINGS: Final = 60
_TINY: Final = 1e-17


@dataclass(frozen=True, slots=True)
class MetricBounds:
    """What values a metric can have, and which are good.

    Raises:
        ConfigurationError: The bounds are no finite numbers, or do not rise.
    """

    low: float = 0.0
    high: float = 1.0
    higher_is_better: bool = True
    clip: bool = False
    """Whether values beyond the bounds count as the bound. A latency over its bound is a bad answer; a score over its
    bound is a fault of whoever scored."""

    def __post_init__(self) -> None:
        if not all(isinstance(one, int | float) and math.isfinite(one) for one in (self.low, self.high)):
            raise ConfigurationError("MetricBounds", f"{self.low!r} and {self.high!r}", "Give two finite numbers")
        if not self.low < self.high:
            raise ConfigurationError("MetricBounds", f"{self.low!r} is not below {self.high!r}", "Give low, then high")

    def unit(self, value: object) -> float | None:
        """The value on a scale from 0, the worst, to 1, the best; ``None`` when it is no value of this metric."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return None
        if not self.low <= value <= self.high:
            if not self.clip:
                return None
            value = min(max(value, self.low), self.high)
        part = (value - self.low) / (self.high - self.low)
        return part if self.higher_is_better else 1.0 - part

    def value(self, unit: float) -> float:
        """The metric's value at a point of the scale."""
        return self.low + (unit if self.higher_is_better else 1.0 - unit) * (self.high - self.low)


class Summary:
    """Number, mean and spread of scores, without keeping them; summaries can be merged in any order."""

    __slots__ = ("mean", "n", "squares")

    def __init__(self, n: int = 0, mean: float = 0.0, squares: float = 0.0) -> None:
        self.n = n
        self.mean = mean
        self.squares = squares
        """Sum of the squared distances from the mean."""

    def add(self, score: float) -> None:
        """Take in one score."""
        self.n += 1
        distance = score - self.mean
        self.mean += distance / self.n
        self.squares += distance * (score - self.mean)

    def merge(self, other: Summary) -> None:
        """Take in what another summary saw."""
        n = self.n + other.n
        if other.n:
            distance = other.mean - self.mean
            self.squares += other.squares + distance * distance * self.n * other.n / n
            self.mean += distance * other.n / n
            self.n = n

    @property
    def stdev(self) -> float | None:
        """Standard deviation of one score; ``None`` below two scores."""
        return math.sqrt(max(self.squares, 0.0) / (self.n - 1)) if self.n > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"n": self.n, "mean": self.mean, "squares": self.squares}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """The summary that :meth:`to_dict` wrote."""
        return cls(int(state["n"]), float(state["mean"]), float(state["squares"]))


@dataclass(frozen=True, slots=True)
class Baseline:
    """How good a version has to be, on the scale from 0 to 1.

    Raises:
        ConfigurationError: The numbers are no mean of scores from 0 to 1.
    """

    mean: float
    n: int | None = None
    """Scores that the mean is of; ``None`` when the mean is known exactly."""
    stdev: float | None = None
    """Standard deviation of one score; ``None`` when unknown."""
    origin: str = "given"
    """Where it comes from, in words."""

    def __post_init__(self) -> None:
        if not 0 <= self.mean <= 1:
            raise ConfigurationError("Baseline.mean", f"{self.mean!r} is not from 0 to 1", "Scale the score to 0..1")
        if self.n is not None and self.n < 1:
            raise ConfigurationError("Baseline.n", f"{self.n!r} is no number of scores", "Give 1 or more, or None")
        if self.stdev is not None and not (math.isfinite(self.stdev) and self.stdev >= 0):
            raise ConfigurationError("Baseline.stdev", f"{self.stdev!r} is no spread", "Give 0 or more, or None")

    @property
    def floor(self) -> float:
        """The least true mean that agrees with it, with 97.5 % confidence."""
        return self.mean if self.n is None else lower_bound(self.mean, self.n, self.stdev)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"mean": self.mean, "n": self.n, "stdev": self.stdev, "origin": self.origin}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """The baseline that :meth:`to_dict` wrote."""
        return cls(state["mean"], state["n"], state["stdev"], state["origin"])


@lru_cache(maxsize=1024)  # verdicts ask again and again for the same few
def lower_bound(mean: float, n: int, stdev: float | None = None, confidence: float = CONFIDENCE) -> float:
    """A bound below which the true mean of scores from 0 to 1 lies with a chance of at most ``confidence``.

    Where the spread shows that all scores are 0 or 1, it is the exact bound of Clopper and Pearson. For other scores
    it is Chernoff's, which needs no spread, or where the spread is small, that of Maurer and Pontil
    (https://arxiv.org/abs/0907.3740, theorem 4). All hold for every ``n``, however small.

    Args:
        mean: Of the scores.
        n: How many.
        stdev: Standard deviation of one score; ``None`` when unknown.
        confidence: The chance.
    """
    if mean <= 0 or n < 1:
        return 0.0
    if stdev is None or n == 1:
        return _chernoff(mean, n, confidence)
    most = mean * (1 - mean) * n / (n - 1)
    if stdev * stdev >= most * (1 - _BINARY) - _TINY:
        hits = math.floor(mean * n + _WHOLE)
        return _halve(0.0, mean, lambda p: _binomial_tail(hits, n, p) < confidence)
    spent = math.log(2 / (confidence * _BERNSTEIN_SHARE))
    bernstein = mean - stdev * math.sqrt(2 * spent / n) - 7 * spent / (3 * (n - 1))
    return max(_chernoff(mean, n, confidence * (1 - _BERNSTEIN_SHARE)), bernstein, 0.0)


def _chernoff(mean: float, n: int, confidence: float) -> float:
    return _halve(0.0, mean, lambda p: n * divergence(mean, p) >= -math.log(confidence))


def divergence(mean: float, other: float) -> float:
    """Kullback-Leibler divergence of two chances, in natural logarithms."""
    if other <= 0 or other >= 1:
        return 0.0 if mean == other else math.inf
    parts = (
        (mean * math.log(mean / other) if mean > 0 else 0.0),
        ((1 - mean) * math.log((1 - mean) / (1 - other)) if mean < 1 else 0.0),
    )
    return sum(parts)


def _binomial_tail(hits: int, n: int, p: float) -> float:
    """Chance of at least ``hits`` of ``n``."""
    if p <= 0:
        return 0.0
    ways = math.lgamma(n + 1) - math.lgamma(hits + 1) - math.lgamma(n - hits + 1)
    chance = total = math.exp(ways + hits * math.log(p) + (n - hits) * math.log1p(-p))
    odds = p / (1 - p)
    for k in range(hits, n):
        chance *= (n - k) / (k + 1) * odds
        total += chance
        if chance < total * _TINY and k > n * p:
            break
    return total


def _halve(low: float, high: float, too_low: Any) -> float:
    """The least value that is not too low, approached from below."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if too_low(middle):
            low = middle
        else:
            high = middle
    return low
