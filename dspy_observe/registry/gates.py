"""Whether a candidate may take the place of what is deployed. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from dspy_observe.registry.history import common_scores
from dspy_observe.registry.models import GateVerdict
from dspy_observe.registry.records import Score

__all__ = ["best", "gain_of", "judge", "proven"]

Z_95: Final = 1.645
"""One-sided 95 % point of the normal distribution."""
_TIE: Final = 1e-9
"""Gains closer than this to a threshold reach it: 0.99 is 10 % more than 0.9, whatever binary fractions say."""


def gain_of(candidate: float, deployed: float) -> float:
    """How much better, relative to the size of the deployed score; the plain difference where that is 0."""
    return (candidate - deployed) / abs(deployed) if deployed else candidate - deployed


def proven(candidate: Score, deployed: Score) -> bool | None:
    """Whether the difference is more than chance, with 95 % confidence.

    Two means are compared by their standard errors. Where no standard deviation is given and the scores lie in
    [0, 1], the largest that such a mean can have is taken: ``sqrt(m * (1 - m))``, widened as for one more success and
    one more failure, so that a perfect score on few examples proves little.

    Returns:
        ``None`` when it cannot be told: a number of examples is unknown, or a spread is.
    """
    errors = [_squared_error(one) for one in (candidate, deployed)]
    if errors[0] is None or errors[1] is None:
        return None
    return candidate.value - deployed.value > Z_95 * math.sqrt(errors[0] + errors[1])


def _squared_error(score: Score) -> float | None:
    if score.n is None:
        return None
    if score.stdev is not None:
        return score.stdev**2 / score.n
    if not 0 <= score.value <= 1:
        return None
    mean = (score.value * score.n + 1) / (score.n + 2)
    return mean * (1 - mean) / (score.n + 2)


def judge(
    candidate: str,
    deployed: str | None,
    candidate_scores: Sequence[Score],
    deployed_scores: Sequence[Score],
    *,
    threshold: float,
    require_evidence: bool,
) -> GateVerdict:
    """Compare a candidate with what is deployed.

    Args:
        candidate: The candidate's name.
        deployed: The deployed version's name; ``None`` when nothing is deployed: any scored candidate may go.
        candidate_scores: Its observations, oldest first.
        deployed_scores: The same of the deployed version.
        threshold: The least gain, relative to the deployed score.
        require_evidence: Also ask that the difference be more than chance.
    """
    if not candidate_scores:
        return GateVerdict("unscored", f"{candidate} has no score", candidate, deployed)
    if deployed is None:
        return GateVerdict("deploy", "nothing is deployed", candidate, None, None, candidate_scores[-1].dataset)
    if not deployed_scores:
        why = f"{deployed}, which is deployed, has no score to compare with; deploy by name to take that on yourself"
        return GateVerdict("insufficient_evidence", why, candidate, deployed)
    pair = common_scores(candidate_scores, deployed_scores)
    if pair is None:
        why = f"{candidate} and {deployed} were not scored on the same data set"
        return GateVerdict("insufficient_evidence", why, candidate, deployed)
    mine, theirs = pair
    gain = gain_of(mine.value, theirs.value)
    words = f"{candidate} has {mine.value:g}, {deployed} {theirs.value:g}: a gain of {gain:.1%}"
    if gain < threshold - _TIE or gain <= 0:
        return GateVerdict(
            "no_improvement", f"{words}, {threshold:.1%} are needed", candidate, deployed, gain, mine.dataset
        )
    sure = proven(mine, theirs) if require_evidence else True
    if not sure:
        what = "nobody said on how many examples" if sure is None else "with so few examples it may be chance"
        return GateVerdict("insufficient_evidence", f"{words}, but {what}", candidate, deployed, gain, mine.dataset)
    return GateVerdict("deploy", words, candidate, deployed, gain, mine.dataset)


def best(scores: Sequence[Score], allowed: Sequence[str], dataset: str | None) -> str | None:
    """The hash with the highest latest score on one data set; the newest of several; ``None`` without any.

    Args:
        scores: All observations, oldest first.
        allowed: Hashes that may be chosen, oldest first.
        dataset: The data set; scores of others are not comparable.
    """
    latest = {one.version_hash: one.value for one in scores if one.dataset == dataset}
    places = {digits: place for place, digits in enumerate(allowed)}
    known = [digits for digits in latest if digits in places]
    return max(known, key=lambda digits: (latest[digits], places[digits]), default=None)
