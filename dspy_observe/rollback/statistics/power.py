"""How small a drop can be found at all: to be said when a version is deployed, not when it fails."""

from __future__ import annotations

import math
from typing import Final

from dspy_observe.rollback.statistics.baselines import Baseline, divergence
from dspy_observe.rollback.statistics.sequential import LATE_SHARE, LEAST_ROOM, STAKES, Levels

__all__ = ["minimum_detectable_drop", "scores_needed"]

POWER_Z: Final = 0.8416
"""80 % point of the normal distribution: a drop counts as detectable when 8 of 10 such drops are found."""
_HALVINGS: Final = 40
_MOST: Final = 10**9


def scores_needed(baseline: Baseline, drop: float, levels: Levels | None = None) -> int | None:
    """How many scores find a drop in 8 of 10 cases; ``None`` when the baseline is too uncertain for it to be found.

    An approximation that is checked against simulation: the evidence of a score has a mean and a spread, and its sum
    has to reach the threshold.

    Args:
        baseline: What the version is compared with; the drop is counted from its mean.
        drop: On the scale from 0 to 1.
        levels: How often a false verdict may happen.
    """
    levels = levels or Levels()
    floor, now = baseline.floor, baseline.mean - drop
    if not 0 <= now < floor or floor <= 0:
        return None
    wanted = -math.log(levels.alpha * (1 - LATE_SHARE)) + math.log(len(STAKES)) / 2
    if now == 0:
        return max(1, math.ceil(wanted / max(-math.log1p(-floor), 1e-9) if floor < 1 else 1))
    at = min(floor, 1 - 1e-9)
    growth = divergence(now, at)
    ratio = math.log(now * (1 - at) / (at * (1 - now)))
    spread = math.sqrt(now * (1 - now)) * abs(ratio)
    if baseline.stdev is not None:  # narrower scores tell more
        narrow = min(1.0, max(baseline.stdev**2, 1e-6) / max(baseline.mean * (1 - baseline.mean), 1e-6))
        growth = min(growth / narrow, math.log1p(STAKES[-1] * (floor - now) / max(1 - floor, LEAST_ROOM)))
        spread = math.sqrt(2 * growth)
    root = (POWER_Z * spread + math.sqrt(POWER_Z**2 * spread**2 + 4 * growth * wanted)) / (2 * growth)
    return min(max(1, math.ceil(root * root)), _MOST)


def minimum_detectable_drop(baseline: Baseline, levels: Levels | None = None) -> float | None:
    """The least drop that is found in 8 of 10 cases within the horizon; ``None`` when no drop is.

    Args:
        baseline: What the version is compared with.
        levels: How often a false verdict may happen, and the horizon.
    """
    levels = levels or Levels()

    def found(drop: float) -> bool:
        needed = scores_needed(baseline, drop, levels)
        return needed is not None and needed <= levels.horizon

    high = baseline.mean
    if not found(high):
        return None
    low = 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if found(middle) else (middle, high)
    return high
