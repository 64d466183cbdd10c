"""Whether a monitor's finding moves the pointer: how far rolling back by itself may go."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from dspy_observe.errors import ConfigurationError
from dspy_observe.registry.models import Ruling, Standing

__all__ = ["Limits", "judge_for"]

_HOUR: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How far rolling back by itself may go.

    Raises:
        ConfigurationError: A value cannot work.
    """

    cooldown_s: float = 600.0
    """Seconds after a rollback in which no second one happens by itself; 0 for none."""
    max_rollbacks_per_hour: int = 3
    """Rollbacks by itself within an hour, at least 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.cooldown_s < math.inf:
            raise ConfigurationError("Limits.cooldown_s", f"{self.cooldown_s!r} cannot work", "Use seconds from 0")
        if type(self.max_rollbacks_per_hour) is not int or self.max_rollbacks_per_hour < 1:
            what = f"{self.max_rollbacks_per_hour!r} cannot work"
            raise ConfigurationError("Limits.max_rollbacks_per_hour", what, "Use 1 or more")


def judge_for(
    version_hash: str, version: str, reason: str, inputs: Mapping[str, Any], limits: Limits
) -> Callable[[Standing], Ruling]:
    """A judge for :meth:`SignatureRegistry.decide`.

    Args:
        version_hash: The version that regressed.
        version: Its display name.
        reason: Why it is to go, in words.
        inputs: What is kept with the decision.
        limits: How far it may go.
    """

    def judge(standing: Standing) -> Ruling:
        outcome, words = _ruled(standing, version_hash, version, limits)
        return Ruling(outcome, f"{reason}; {words}", dict(inputs))

    return judge


def _ruled(standing: Standing, version_hash: str, version: str, limits: Limits) -> tuple[str, str]:
    pointer, applied = standing.pointer, standing.rollbacks
    if pointer is None or pointer.version_hash != version_hash:
        runs = "nothing" if pointer is None else pointer.version
        return "stale", f"it is about {version}, but {standing.environment} runs {runs}"
    if applied:
        since = (standing.now - applied[-1].at).total_seconds()
        if since < limits.cooldown_s:
            return "held", f"within the cool-down: rolled back {since:.0f} s ago, {limits.cooldown_s:g} s have to pass"
    recent = sum(standing.now - one.at < _HOUR for one in applied)
    if recent >= limits.max_rollbacks_per_hour:
        return "held", f"{recent} rollbacks within the last hour are enough"
    if standing.rollback_target is None:
        return "rejected", "there is nothing to roll back to"
    return "rollback", f"rolled back from {version} to {standing.rollback_target}"
