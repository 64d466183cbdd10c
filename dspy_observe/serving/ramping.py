"""What a rollout does next, and why. Pure: what is known goes in, a word comes out.

The first rule that applies answers: the candidate was found bad, by whomever -> fall; it is deployed, or something
else is than the step began beside -> rebase; the verdict is ``regressed`` -> fall; the split is not the intended one ->
wait; the program is frozen -> wait; the step is too young or the candidate answered too few calls -> wait; the verdict
is ``ok`` -> advance; any other verdict -> wait.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

__all__ = ["Known", "Move", "next_move"]

Act = Literal["wait", "advance", "fall", "rebase"]


@dataclass(frozen=True, slots=True)
class Known:
    """What a step is judged by."""

    deployed_hash: str
    """What the environment runs."""
    base_hash: str
    """What it ran when the step began."""
    candidate_hash: str
    quarantined: str | None
    """Why the candidate must not run; ``None`` when it may."""
    age_s: float
    """Of the step."""
    min_age_s: float
    calls: int
    """That the candidate answered in this step."""
    min_calls: int
    mismatch: str | None
    """How the traffic was split otherwise than intended; ``None`` when it was not."""
    frozen: str | None
    """Why nothing is to move by itself; ``None`` when it may. A bad candidate still falls: it is not deployed."""


@dataclass(frozen=True, slots=True)
class Move:
    """What to do, and why."""

    act: Act
    reason: str


def next_move(known: Known, verdict: Callable[[], str] | None) -> Move:
    """What to do now.

    Args:
        known: How the step stands.
        verdict: Asks what the evidence says of the candidate: ``ok``, ``suspect``, ``regressed``,
            ``insufficient_data`` or ``global_cause``; ``None`` when nobody judges, so that people take the steps.
    """
    if known.quarantined is not None:
        return Move("fall", f"quarantined: {known.quarantined or 'no reason given'}")
    if known.deployed_hash != known.base_hash:
        return Move("rebase", "another version is deployed than the step began beside")
    if verdict is None:
        return Move("wait", "nobody judges; take the steps by hand")
    word = verdict()
    if word == "regressed":
        return Move("fall", "the verdict is regressed")
    if known.mismatch is not None:
        return Move("wait", f"sample_ratio_mismatch: {known.mismatch}")
    if known.frozen is not None:
        return Move("wait", f"frozen: {known.frozen}")
    if known.age_s < known.min_age_s:
        return Move("wait", f"the step is {known.age_s:.0f} s old, {known.min_age_s:g} s are needed")
    if known.calls < known.min_calls:
        return Move("wait", f"the candidate answered {known.calls} calls in this step, {known.min_calls} are needed")
    if word == "ok":
        return Move("advance", f"the verdict is ok after {known.calls} calls")
    return Move("wait", f"the verdict is {word}")
