"""Whether to roll back: one pure function over what is asked, how things stand, and the limits.

The first rule that matches answers, in the order of :func:`decide`. An alert is a hint: it says which version somebody
should look at, never that a version has to go. ``resolved`` is no good news either, as it is also sent when Prometheus
dies. Nothing here ever rolls forward.

Reasons are for the person on call: whole words, with the figures that decided.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final

from dspy_observe.errors import ConfigurationError
from dspy_observe.rollback.freshness import Fresh, Thresholds, doubt

__all__ = ["MODES", "OUTCOMES", "OWN_INPUTS", "Decision", "Fresh", "Limits", "Request", "Status", "decide"]

OUTCOMES: Final = ("rollback", "held", "stale", "duplicate", "rejected", "ignored")
MODES: Final = ("auto", "approve", "dry-run", "off")
"""``auto`` acts, ``approve`` waits for a person, ``dry-run`` only says what it would do, ``off`` does nothing."""
SHORTEST_HASH: Final = 12
"""Digits of a content hash that are enough to name a version."""
MOST_ROLLBACKS_PER_HOUR: Final = 60
_HOUR: Final = timedelta(hours=1)
OWN_INPUTS: Final = frozenset(
    {"reason", "version", "firing", "started_at", "dry_run", "approved_by", "signal", "mode", "frozen", "deployed",
     "deployed_at", "rollback_target", "fresh", "limits"}
)  # fmt: skip
"""What :func:`decide` adds to a request's own inputs, whose keys should be others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How far rolling back by itself may go.

    Raises:
        ConfigurationError: A value cannot work.
    """

    cooldown_s: float = 600.0
    """Seconds after a rollback in which no second one happens by itself; 0 for none."""
    max_rollbacks_per_hour: int = 3
    """Rollbacks by itself within an hour, 1 to 60; the next one is held and freezes the program."""
    max_alert_age_s: float = 21_600.0
    """An alert that began longer ago does nothing: 6 hours outlast a night's delivery trouble."""
    unconfirmed: str = "hold"
    """What to do when Prometheus is asked and cannot tell: ``hold`` or ``proceed``."""
    thresholds: Thresholds = field(default_factory=Thresholds)
    """What counts as an outage that is not the version's fault."""

    def __post_init__(self) -> None:
        for name in ("cooldown_s", "max_alert_age_s"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ConfigurationError(f"Limits.{name}", f"{value!r} cannot work", "Use a number of seconds from 0")
        if type(self.max_rollbacks_per_hour) is not int or not 1 <= self.max_rollbacks_per_hour <= (
            MOST_ROLLBACKS_PER_HOUR
        ):
            raise ConfigurationError(
                "Limits.max_rollbacks_per_hour", f"{self.max_rollbacks_per_hour!r} cannot work",
                f"Use 1 to {MOST_ROLLBACKS_PER_HOUR}; the mode off allows none",
            )  # fmt: skip
        if self.unconfirmed not in ("hold", "proceed"):
            raise ConfigurationError("Limits.unconfirmed", f"{self.unconfirmed!r} is not known", "Use hold or proceed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked: by an alert, by the monitor's statistics, or by a person who approves either."""

    trigger: str
    """``alert``, ``monitor`` or ``manual``."""
    program: str
    environment: str = "production"
    version: str | None = None
    """The version that is suspected, by name or hash; ``None`` means whatever is deployed."""
    firing: bool = True
    started_at: datetime | None = None
    """When the trouble began, UTC; ``None`` where it is not said."""
    fingerprint: str | None = None
    dry_run: bool = False
    """Judge and move nothing."""
    approved_by: str | None = None
    """Who takes it on themselves: their word counts for more than every rule that holds, and for no other rule."""
    fresh: Fresh | None = None
    """What Prometheus said just now; ``None`` where it is not asked."""
    signal: str | None = None
    """What got worse; see :data:`~dspy_observe.conventions.ALERT_SIGNAL`."""
    reason: str | None = None
    """Why it is asked, in words."""
    mode: str = "auto"
    """The asker's own mode; of it and the program's, the one that allows less counts."""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """What else to keep with the decision: plain JSON values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How the program stands in its environment, in one transaction with what is decided."""

    known: bool = True
    """Whether the registry has such a program."""
    version: str | None = None
    """What is deployed; ``None`` when nothing is."""
    version_hash: str | None = None
    deployed_at: datetime | None = None
    target: str | None = None
    """What a rollback would put in place; ``None`` when there is nothing."""
    seen: str | None = None
    """Id of the decision that moved the pointer for the same alert."""
    rollbacks: Sequence[datetime] = ()
    """When the latest rollbacks by decision were, oldest first."""
    budget_since: datetime | None = None
    """Rollbacks before do not count towards the budget: the program was unfrozen then."""
    mode: str = "auto"
    frozen: str | None = None
    """Why nothing is rolled back by itself; ``None`` when it may be."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, and why."""

    outcome: str
    """One of :data:`OUTCOMES`; only ``rollback`` moves anything."""
    reason: str
    inputs: dict[str, Any] = field(default_factory=dict)
    """Everything that was known, as plain JSON values."""
    freeze: str | None = None
    """Why the program is to be frozen from now on; ``None`` leaves it as it is."""


def decide(request: Request, status: Status, limits: Limits, now: datetime) -> Decision:
    """Decide; the first rule that matches answers.

    1. Resolved: ``ignored``.
    2. Frozen, mode ``off``, mode ``dry-run`` or a dry run: ``held``.
    3. A program that is not known, or has nothing deployed: ``rejected``.
    4. An alert that moved the pointer before: ``duplicate``.
    5. Another version is deployed, the trouble began before this one was, or too long ago: ``stale``.
    6. Within the cool-down: ``held``. 7. Over the budget: ``held``, and the program is frozen.
    8. Fresh data do not confirm it, or others fail, too: ``held``.
    9. Nothing to roll back to: ``rejected``.
    10. Mode ``approve``: ``held``, waiting for approval.
    11. Else: ``rollback``.

    An approval passes 2 (but no dry run), 6, 7, 8 and 10, and does not grow old.

    Args:
        request: What is asked.
        status: How things stand.
        limits: How far it may go.
        now: UTC.
    """
    status = replace(status, mode=max(request.mode, status.mode, key=MODES.index))
    made = _decide(request, status, limits, now)
    return replace(made, inputs=_inputs(request, status, limits))


def _decide(request: Request, status: Status, limits: Limits, now: datetime) -> Decision:
    if not request.firing:
        return Decision("ignored", "the alert is resolved; that moves nothing, and never forward again")
    by_itself = request.approved_by is None
    paused = _paused(request, status, by_itself)
    if paused is not None:
        return paused if not _only_dry(request, status) else _dry(paused, request, status, limits, now)
    unusable = _unusable(request, status, limits, now, by_itself)
    if unusable is not None:
        return unusable
    if by_itself:
        held = _held(request, status, limits, now)
        if held is not None:
            return held
    if status.target is None:
        return Decision(
            "rejected",
            f"there is nothing to roll back to: no earlier version of {request.program} in {request.environment} is "
            "left that is not quarantined",
        )
    if by_itself and status.mode == "approve":
        return Decision(
            "held", f"waiting for approval: {request.program} rolls back from {status.version} to {status.target} only "
            "when a person approves it (dspy-observe decisions approve)",
        )  # fmt: skip
    return Decision("rollback", _rolled_back(request, status))


def _paused(request: Request, status: Status, by_itself: bool) -> Decision | None:
    """Rule 2."""
    if request.dry_run:
        return Decision("held", "dry run, asked for by the alert itself")
    if not by_itself:
        return None
    if status.frozen is not None:
        return Decision("held", f"{request.program} is frozen in {request.environment}: {status.frozen}")
    if status.mode == "off":
        return Decision("held", f"automatic rollback is off for {request.program} in {request.environment}")
    if status.mode == "dry-run":
        return Decision("held", f"dry run, as set for {request.program} in {request.environment}")
    return None


def _only_dry(request: Request, status: Status) -> bool:
    """Whether a dry run is all that holds it."""
    return request.dry_run or (status.frozen is None and status.mode == "dry-run")


def _dry(paused: Decision, request: Request, status: Status, limits: Limits, now: datetime) -> Decision:
    """A dry run says what would have been decided without it."""
    mode = "auto" if status.mode == "dry-run" else status.mode
    real = _decide(replace(request, dry_run=False), replace(status, mode=mode), limits, now)
    would = f"would roll back from {status.version} to {status.target}" if real.outcome == "rollback" else (
        f"would be {real.outcome}: {real.reason}"
    )  # fmt: skip
    return replace(paused, reason=f"{paused.reason}; without it, this {would}")


def _unusable(request: Request, status: Status, limits: Limits, now: datetime, by_itself: bool) -> Decision | None:
    """Rules 3 to 5."""
    program, environment = request.program, request.environment
    if not status.known:
        return Decision("rejected", f"the registry has no program {program!r}")
    if status.version is None:
        return Decision("rejected", f"nothing is deployed for {program} in {environment}")
    if status.seen is not None:
        return Decision("duplicate", f"this alert was answered by the rollback of decision {status.seen}")
    if not _is_deployed(request.version, status):
        return Decision("stale", f"it is about {request.version}, but {environment} runs {status.version}")
    began = request.started_at
    if began is not None and status.deployed_at is not None and began < status.deployed_at:
        return Decision(
            "stale", f"it began at {_clock(began)}, before {status.version} was deployed at "
            f"{_clock(status.deployed_at)}",
        )  # fmt: skip
    if by_itself and began is not None and (now - began).total_seconds() > limits.max_alert_age_s:
        return Decision(
            "stale", f"it began {_span((now - began).total_seconds())} ago, longer than the "
            f"{_span(limits.max_alert_age_s)} that an alert may be old",
        )  # fmt: skip
    return None


def _held(request: Request, status: Status, limits: Limits, now: datetime) -> Decision | None:
    """Rules 6 to 8."""
    program = request.program
    if status.rollbacks:
        since = (now - status.rollbacks[-1]).total_seconds()
        if since < limits.cooldown_s:
            return Decision(
                "held", f"within the cool-down: {program} was rolled back {_span(since)} ago, and "
                f"{_span(limits.cooldown_s)} have to pass",
            )  # fmt: skip
    since_when = status.budget_since
    recent = sum(now - at < _HOUR and (since_when is None or at > since_when) for at in status.rollbacks)
    if recent >= limits.max_rollbacks_per_hour:
        times = f"{recent} rollback{'s' if recent > 1 else ''} within the last hour"
        return Decision(
            "held", f"the rollback budget is spent ({times}); {program} is now frozen until a person unfreezes it "
            "(dspy-observe decisions unfreeze)",
            freeze=f"the rollback budget was spent: {times}",
        )  # fmt: skip
    if request.fresh is None:
        return None
    found = doubt(request.fresh, request.signal, limits.thresholds)
    if found is None or (found.unknown and limits.unconfirmed == "proceed"):
        return None
    return Decision("held", found.reason)


def _is_deployed(version: str | None, status: Status) -> bool:
    if version is None or version == status.version:
        return True
    digits = status.version_hash or ""
    return len(version) >= SHORTEST_HASH and digits.startswith(version)


def _rolled_back(request: Request, status: Status) -> str:
    why = request.reason or ("an alert is firing" if request.trigger == "alert" else f"asked by the {request.trigger}")
    said = f"{why}; rolled back from {status.version} to {status.target}"
    if request.approved_by is not None:
        said += f", approved by {request.approved_by}"
    if request.fresh is not None:
        said += f" ({request.fresh.words()})"
    return said


def _inputs(request: Request, status: Status, limits: Limits) -> dict[str, Any]:
    return {
        **request.inputs,
        "reason": request.reason,
        "version": request.version,
        "firing": request.firing,
        "started_at": None if request.started_at is None else request.started_at.isoformat(),
        "dry_run": request.dry_run,
        "approved_by": request.approved_by,
        "signal": request.signal,
        "mode": status.mode,
        "frozen": status.frozen,
        "deployed": status.version,
        "deployed_at": None if status.deployed_at is None else status.deployed_at.isoformat(),
        "rollback_target": status.target,
        "fresh": None if request.fresh is None else request.fresh.to_dict(),
        "limits": {
            "cooldown_s": limits.cooldown_s, "max_rollbacks_per_hour": limits.max_rollbacks_per_hour,
            "max_alert_age_s": limits.max_alert_age_s, "unconfirmed": limits.unconfirmed,
        },
    }  # fmt: skip


def _clock(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _span(seconds: float) -> str:
    """A time span as people say it."""
    if seconds < 120:  # noqa: PLR2004 - below two minutes seconds read best
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"  # noqa: PLR2004 - likewise
