"""Many monitored versions at once, for the operating characteristics of the tests in ``rollback.statistics``.

One version against its baseline is computed for all runs together with numpy, by the same arithmetic as the shipped
classes; :func:`verify` runs some of them through the shipped classes and demands the same alarms. Two arms run through
the shipped class itself.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from dspy_observe.rollback.statistics import TIE, Levels, OneArm, TwoArms
from dspy_observe.rollback.statistics.sequential import LATE_SHARE, LEAST_ROOM, STAKES

NEVER: Final = 10**9
Chances = Callable[[int], float]


@dataclass(frozen=True)
class Alarms:
    """The score at which each run raised its alarm, from 1; ``NEVER`` where it did not."""

    hybrid: Any
    e_process: Any
    late: Any
    """Of the Shiryaev-Roberts sum alone, at its part of the level."""


def scores(chance: Chances, runs: int, steps: int, seed: int) -> Any:
    """Scores of 0 and 1 for every run: an array of runs by steps."""
    levels = np.array([chance(step) for step in range(steps)])
    return (np.random.default_rng(seed).random((runs, steps)) < levels).astype(np.float64)


def one_arm(values: Any, floors: Any, levels: Levels) -> Alarms:
    """All runs of a version against the floors of its baselines.

    Args:
        values: Runs by steps.
        floors: One for each run.
        levels: For one metric.
    """
    runs, steps = values.shape
    floors = np.broadcast_to(np.asarray(floors, dtype=np.float64), (runs,))
    rates = np.array(STAKES) / np.maximum(1 - floors, LEAST_ROOM)[:, None]
    wealth, sums = np.zeros(rates.shape), np.zeros(rates.shape)
    alarms = {"e": np.full(runs, NEVER), "late": np.full(runs, NEVER)}
    wanted = {
        "e": -math.log(levels.alpha * (1 - LATE_SHARE)) - TIE,
        "late": -math.log(levels.alpha * LATE_SHARE) + math.log(levels.horizon) - TIE,
    }
    share = math.log(len(STAKES))
    for step in range(steps):
        growth = np.log1p(rates * (floors - values[:, step])[:, None])
        wealth += growth
        sums = np.logaddexp(0.0, sums + growth)
        for name, logs in (("e", wealth), ("late", sums)):
            most = logs.max(axis=1)
            # The mean of the stakes is below the largest and above its share: look closer only where it matters.
            near = np.flatnonzero((most >= wanted[name]) & (alarms[name] == NEVER))
            if near.size:
                exact = most[near] + np.log(np.exp(logs[near] - most[near, None]).sum(axis=1)) - share
                alarms[name][near[exact >= wanted[name]]] = step + 1
    return Alarms(np.minimum(alarms["e"], alarms["late"]), alarms["e"], alarms["late"])


def verify(values: Any, floors: Any, levels: Levels, alarms: Alarms, count: int) -> None:
    """Run the first runs through the shipped class.

    Raises:
        AssertionError: An alarm is raised at another score.
    """
    floors = np.broadcast_to(np.asarray(floors, dtype=np.float64), (values.shape[0],))
    for run in range(min(count, len(values))):
        arm, found = OneArm(float(floors[run])), NEVER
        for step, value in enumerate(values[run].tolist(), 1):
            arm.add(value)
            if arm.beyond(levels) >= -TIE:
                found = step
                break
        assert found == alarms.hybrid[run], f"run {run}: {found} by the shipped class, {alarms.hybrid[run]} here"


def two_arms(seed: int, share: float, control: Chances, suspect: Chances, steps: int, levels: Levels) -> int:
    """One run of two arms: the score, of both arms together, at which the alarm is raised.

    Args:
        seed: Of this run.
        share: The suspect's part of the traffic.
        control: Chance of a good answer at each step.
        suspect: The same of the suspect.
        steps: Scores of both arms.
        levels: For one metric.
    """
    draw, arms, known = random.Random(seed).random, TwoArms(), 0.0
    for step in range(steps):
        bad = draw() < share
        arms.add(float(draw() < (suspect if bad else control)(step)), suspect=bad)
        if arms.bets.wealth[0] != known:  # without a new pair there is no new evidence
            known = arms.bets.wealth[0]
            if arms.beyond(levels) >= -TIE:
                return step + 1
    return NEVER


def plain_rule(values: Any, baseline: float, batch: int, drop: float) -> Any:
    """The first alarm of a plain threshold on each batch's mean, for all runs."""
    runs, steps = values.shape
    means = values[:, : steps // batch * batch].reshape(runs, -1, batch).mean(axis=2)
    below = baseline - means > drop * baseline + TIE
    return np.where(below.any(axis=1), (below.argmax(axis=1) + 1) * batch, NEVER)
