"""Options of a :class:`~dspy_observe.rollback.monitor.Monitor`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from dspy_observe.errors import ConfigurationError
from dspy_observe.registry.baselines import EVALUATION, LEAST_ONLINE, SCORE
from dspy_observe.rollback.policy import Limits
from dspy_observe.rollback.statistics import Levels, MetricBounds, Rule

__all__ = ["MonitorOptions"]

_ANY = (SCORE, MetricBounds())


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorOptions:
    """What a monitor looks at, how sure it has to be, and what it may do.

    Raises:
        ConfigurationError: A value cannot work.
    """

    levels: Levels = field(default_factory=Levels)
    """How often a verdict may be false, for each deployment; several metrics share it."""
    rule: Rule = "hybrid"
    """``hybrid`` weighs evidence; ``threshold`` is the plain rule on the mean of each 50 scores."""
    threshold: float = 0.05
    """Relative drop that the plain rule allows; 0.05 is 5 %."""
    min_effect: float = 0.0
    """Points, on the scale from 0 to 1, that a late drop has to exceed; as large as a daily rhythm, if there is one."""
    min_scores: int = 50
    """Scores below which a version is not called ``ok``."""
    min_baseline: int = LEAST_ONLINE
    """Online scores of the predecessor below which they are no baseline."""
    metrics: Mapping[str, MetricBounds] = field(default_factory=dict)
    """By source of the score. Sources that are not named here are left out; with none named, all sources count as one
    metric from 0 to 1."""
    dataset: str | None = None
    """Held-out set whose evaluations count, too; ``None`` counts none."""
    evaluation: MetricBounds = field(default_factory=MetricBounds)
    """What values those evaluations can have."""
    shares: Callable[[str], Mapping[str, float] | None] | None = None
    """Gives, for a program, the part of the traffic that each role is meant to get; ``None`` leaves it unchecked."""
    act: bool = True
    """Whether to ask for a rollback; else only verdicts are given."""
    limits: Limits = field(default_factory=Limits)
    """How far rolling back by itself may go."""
    flush_s: float = 1.0
    """Seconds that scores wait until they are folded into the registry, over 0."""
    retry_s: float = 60.0
    """Seconds after which a rollback that was held is asked for again; each time twice as long, up to an hour."""
    max_waiting: int = 10_000
    """Scores that may wait; the oldest are given up and counted."""

    def __post_init__(self) -> None:
        for name in ("flush_s", "retry_s", "min_effect", "threshold"):
            value = getattr(self, name)
            least_allowed = 0 <= value < math.inf if name in ("min_effect", "threshold") else 0 < value < math.inf
            if isinstance(value, bool) or not least_allowed:
                raise ConfigurationError(f"MonitorOptions.{name}", f"{value!r} cannot work", "Use a positive number")
        for name in ("min_scores", "min_baseline", "max_waiting"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ConfigurationError(f"MonitorOptions.{name}", f"{value!r} cannot work", "Use 1 or more")
        if self.rule not in ("hybrid", "threshold"):
            raise ConfigurationError("MonitorOptions.rule", f"{self.rule!r} is not known", "Use hybrid or threshold")
        if EVALUATION in self.metrics:
            raise ConfigurationError("MonitorOptions.metrics", f"{EVALUATION!r} is taken", "Rename the source")

    def metric_of(self, source: str) -> tuple[str, MetricBounds] | None:
        """The metric that scores of a source belong to, and its bounds; ``None`` for sources that are left out."""
        if not self.metrics:
            return _ANY
        bounds = self.metrics.get(source)
        return None if bounds is None else (source, bounds)

    def bounds_of(self, metric: str) -> MetricBounds:
        """The bounds of a metric."""
        return self.evaluation if metric == EVALUATION else self.metrics.get(metric, MetricBounds())

    @property
    def parts(self) -> int:
        """How many metrics share the level."""
        return max(len(self.metrics), 1) + (self.dataset is not None)
