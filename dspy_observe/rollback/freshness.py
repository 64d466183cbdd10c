"""What Prometheus says at the moment of a decision, and when that speaks against a rollback. Pure.

What confirms an alert depends on what it is about. A version that answers badly makes no errors, so few errors are no
reason to keep it: whether an alert is confirmed is told by whether its rule still fires, whatever the rule measures.
Only an alert that says that it is about errors (label ``dspy_signal="errors"``) also needs errors now, because rules
with long windows fire on for minutes after the trouble is over.

What speaks against the version being the cause is the same for all alerts: that others fail at the same time.
Others are the other versions of the program that get traffic (a stable or control arm), and other programs that ask
the same models. Where half of them or more fail, the cause is a provider or a network, which no rollback mends, and a
rollback would quarantine an innocent version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from dspy_observe.conventions import ALERT_SIGNAL_ERRORS
from dspy_observe.errors import ConfigurationError

__all__ = ["Counts", "Doubt", "Fresh", "Thresholds", "doubt"]

_PERCENT: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """When others count as failing, and when errors count as over.

    Raises:
        ConfigurationError: A value cannot work.
    """

    min_calls: int = 10
    """Calls within the window below which a ratio says nothing."""
    outage_error_ratio: float = 0.2
    """Part of others' calls that has to fail, above 0 to 1."""
    errors_over_ratio: float = 0.01
    """At or below this part of failed calls, an alert about errors is over."""

    def __post_init__(self) -> None:
        if type(self.min_calls) is not int or self.min_calls < 1:
            raise ConfigurationError("Thresholds.min_calls", f"{self.min_calls!r} cannot work", "Use 1 or more")
        for name in ("outage_error_ratio", "errors_over_ratio"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ConfigurationError(f"Thresholds.{name}", f"{value!r} cannot work", "Use a number from 0 to 1")


@dataclass(frozen=True, slots=True)
class Counts:
    """Calls and failed calls of one program, version or group within the window."""

    name: str
    calls: float
    """As ``increase()`` extrapolates them; no whole number."""
    errors: float

    @property
    def ratio(self) -> float | None:
        """Part that failed; ``None`` without calls."""
        return self.errors / self.calls if self.calls > 0 else None

    def __str__(self) -> str:
        ratio = self.ratio
        share = "" if ratio is None else f" ({ratio * _PERCENT:.0f} %)"
        return f"{self.name}: {self.errors:.0f} of {self.calls:.0f} failed{share}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fresh:
    """What was asked and answered just before a decision."""

    firing: bool | None = None
    """Whether the alert's rule fires in Prometheus; ``None`` where that was not asked or not answered."""
    suspect: Counts | None = None
    """Runs of the version in question; ``None`` without data."""
    versions: Sequence[Counts] = ()
    """Runs of the program's other versions."""
    programs: Sequence[Counts] = ()
    """LM calls of other programs to the same models."""
    window_s: float = 120.0
    """Seconds that the counts cover."""
    problem: str | None = None
    """Why Prometheus could not tell; ``None`` when it could."""
    away: bool = False
    """Whether it did not answer at all: asked again at once, it would only be waited for again."""

    def words(self) -> str:
        """The figures in one line."""
        if self.problem is not None:
            return f"Prometheus could not be asked: {self.problem}"
        parts = [] if self.firing is None else ["it fires in Prometheus" if self.firing else "it does not fire there"]
        parts.append(f"within {self.window_s:g} s, {self.suspect}" if self.suspect is not None else "no runs seen")
        parts += [str(one) for one in (*self.versions, *self.programs)][:5]
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain = asdict(self)
        return {**plain, "versions": list(plain["versions"]), "programs": list(plain["programs"])}


@dataclass(frozen=True, slots=True)
class Doubt:
    """Why fresh data speak against a rollback."""

    reason: str
    global_cause: bool = False
    """Whether others fail, too."""
    unknown: bool = False
    """Whether nothing could be learned."""


def doubt(fresh: Fresh, signal: str | None, thresholds: Thresholds) -> Doubt | None:
    """Whether fresh data leave the version as the cause.

    Args:
        fresh: What Prometheus said.
        signal: What the alert is about; see :data:`~dspy_observe.conventions.ALERT_SIGNAL`.
        thresholds: When others count as failing.

    Returns:
        The doubt; ``None`` when the data confirm the version as the cause.
    """
    if fresh.problem is not None:
        return Doubt(f"cannot confirm it: Prometheus could not be asked ({fresh.problem})", unknown=True)
    if fresh.firing is None and fresh.suspect is None:
        return Doubt("cannot confirm it: Prometheus has no data on this version", unknown=True)
    if fresh.firing is False:
        return Doubt(f"Prometheus does not confirm it: the alert does not fire there now ({fresh.words()})")
    failing = _failing(fresh, thresholds)
    if failing:
        return Doubt(
            "others fail at the same time, so the cause is not this version, but a provider or the network: "
            + "; ".join(str(one) for one in failing),
            global_cause=True,
        )
    suspect = fresh.suspect
    if (
        signal == ALERT_SIGNAL_ERRORS
        and suspect is not None
        and suspect.calls >= thresholds.min_calls
        and (suspect.ratio or 0.0) <= thresholds.errors_over_ratio
    ):
        return Doubt(f"Prometheus does not confirm it: the errors are over ({fresh.words()})")
    return None


def _failing(fresh: Fresh, thresholds: Thresholds) -> list[Counts]:
    """The others that fail, when they are most of those with enough calls; else none."""
    # A version that always failed a little says nothing about one that fails three times as often. Runs of this
    # program compare with each other; with LM calls of others, of which a run has several, they do not.
    suspect = 0.0 if fresh.suspect is None else (fresh.suspect.ratio or 0.0)
    for others, least in ((fresh.versions, suspect / 2), (fresh.programs, 0.0)):
        judged = [one for one in others if one.calls >= thresholds.min_calls]
        failing = [one for one in judged if (one.ratio or 0.0) >= max(thresholds.outage_error_ratio, least)]
        if failing and 2 * len(failing) >= len(judged):
            return failing
    return []
