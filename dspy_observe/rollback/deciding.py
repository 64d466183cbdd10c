"""The policy at work on a registry: asked by alerts, by the monitor and by people, all in the same way.

:func:`judge_for` is what the registry calls inside its transaction; :func:`settle` runs it for one request.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dspy_observe.errors import ObserveError
from dspy_observe.registry.errors import InvalidName, UnknownSignature
from dspy_observe.registry.models import Decision, Ruling, Standing
from dspy_observe.registry.people import actor_or_user
from dspy_observe.registry.signatures import SignatureRegistry
from dspy_observe.rollback import policy
from dspy_observe.rollback.policy import Limits, Request, Status

__all__ = ["Answer", "DecisionError", "approve", "find", "judge_for", "preview", "recent", "settle", "status_of"]


class DecisionError(ObserveError):
    """A decision that cannot be found or cannot be approved."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request."""

    program: str
    environment: str
    outcome: str
    reason: str
    decision: Decision | None
    """As it is stored; ``None`` where the registry has no such program to keep it under."""

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: the stored decision, or what there is of it."""
        if self.decision is not None:
            return {"program": self.program, **self.decision.to_dict()}
        return {
            "program": self.program, "environment": self.environment, "decision_id": None, "outcome": self.outcome,
            "reason": self.reason,
        }  # fmt: skip


def status_of(standing: Standing) -> Status:
    """What the policy needs to know of how things stand."""
    pointer, control = standing.pointer, standing.control
    return Status(
        version=None if pointer is None else pointer.version,
        version_hash=None if pointer is None else pointer.version_hash,
        deployed_at=None if pointer is None else pointer.at,
        target=standing.rollback_target,
        seen=None if standing.seen is None else standing.seen.decision_id,
        rollbacks=tuple(one.at for one in standing.rollbacks),
        budget_since=control.unfrozen_at,
        mode=control.mode,
        frozen=(control.frozen_reason or "no reason given") if control.frozen else None,
    )


def judge_for(request: Request, limits: Limits) -> Callable[[Standing], Ruling]:
    """The policy as a judge for :meth:`SignatureRegistry.decide`.

    Args:
        request: What is asked. Fresh data are already in it: a judge holds up other writers and asks nobody.
        limits: How far it may go.
    """

    def judge(standing: Standing) -> Ruling:
        made = policy.decide(request, status_of(standing), limits, standing.now)
        return Ruling(made.outcome, made.reason, made.inputs, made.freeze)

    return judge


def preview(
    registry: SignatureRegistry, request: Request, limits: Limits, *, starts_at: str | None = None
) -> policy.Decision:
    """What would be decided now; nothing is stored. Tells whether it is worth asking Prometheus.

    Args:
        registry: Where the program lives.
        request: What is asked.
        limits: How far it may go.
        starts_at: When the alert began, as in :meth:`SignatureRegistry.decide`.

    Raises:
        StoreUnavailable: The registry cannot be read.
    """
    try:
        standing = registry.standing(
            request.program, environment=request.environment, fingerprint=request.fingerprint, starts_at=starts_at
        )
    except (UnknownSignature, InvalidName):
        return policy.decide(request, Status(known=False), limits, registry.now())
    return policy.decide(request, status_of(standing), limits, standing.now)


def settle(
    registry: SignatureRegistry,
    request: Request,
    limits: Limits,
    *,
    starts_at: str | None = None,
    actor: str | None = None,
) -> Answer:
    """Decide, carry it out and store it, in one transaction.

    Args:
        registry: Where the program lives.
        request: What is asked.
        limits: How far it may go.
        starts_at: When the alert began; with the request's fingerprint the key under which it is answered once.
        actor: Who asks; ``None`` takes ``DSPY_OBSERVE_ACTOR`` or the user of this process.

    Returns:
        The answer. A program that the registry does not have is rejected, and nothing is stored.

    Raises:
        StoreUnavailable: Nothing was stored.
    """
    try:
        made = registry.decide(
            request.program, judge_for(request, limits), environment=request.environment, trigger=request.trigger,
            fingerprint=request.fingerprint, starts_at=starts_at, version=request.version, actor=actor,
        )  # fmt: skip
    except UnknownSignature:
        ruled = policy.decide(request, Status(known=False), limits, registry.now())
        return Answer(request.program, request.environment, ruled.outcome, ruled.reason, None)
    except InvalidName as error:
        return Answer(request.program, request.environment, "rejected", str(error), None)
    return Answer(request.program, made.environment, made.outcome, made.reason, made)


def recent(
    registry: SignatureRegistry,
    *,
    program: str | None = None,
    environment: str | None = None,
    outcome: str | None = None,
    limit: int | None = 50,
) -> list[tuple[str, Decision]]:
    """What was decided, with the program's name, oldest first.

    Args:
        registry: Where to look.
        program: Only this one.
        environment: Only this one.
        outcome: Only these, such as ``rollback`` or ``held``.
        limit: At most the last so many; ``None`` for all.

    Raises:
        UnknownSignature: There is no such program.
        StoreUnavailable: The registry cannot be read.
    """
    found = [
        (name, one)
        for name in ([program] if program is not None else registry.list_signatures())
        for one in registry.decisions(name, environment=environment, limit=limit if outcome is None else None)
        if outcome in (None, one.outcome)
    ]
    found.sort(key=lambda pair: pair[1].at)
    return found if limit is None else found[max(0, len(found) - limit) :]


def find(registry: SignatureRegistry, decision_id: str) -> tuple[str, Decision]:
    """A stored decision and its program.

    Args:
        registry: Where to look.
        decision_id: The id, or its first digits, at least 6.

    Raises:
        DecisionError: There is none, or more than one.
        StoreUnavailable: The registry cannot be read.
    """
    if len(decision_id) < 6:  # noqa: PLR2004 - as many as `decisions list` shows suffices for millions
        raise DecisionError(f"{decision_id!r} is too short: give at least 6 digits of the decision's id")
    found = [pair for pair in recent(registry, limit=None) if pair[1].decision_id.startswith(decision_id)]
    if len(found) != 1:
        word = "no decision" if not found else f"{len(found)} decisions"
        raise DecisionError(f"{word} with an id that begins with {decision_id!r}")
    return found[0]


def approve(
    registry: SignatureRegistry,
    decision_id: str,
    limits: Limits,
    *,
    actor: str | None = None,
    reason: str | None = None,
) -> Answer:
    """Carry out a decision that was held, if the version that it is about is still deployed.

    A person's word passes the mode, a freeze, the cool-down, the budget and fresh data; nothing else.

    Args:
        registry: Where the decision is stored.
        decision_id: Its id, or the first digits.
        limits: As for any decision.
        actor: Who approves; ``None`` takes ``DSPY_OBSERVE_ACTOR`` or the user of this process.
        reason: Why.

    Returns:
        A new decision, which names the approved one in its inputs; its outcome says whether the pointer moved.

    Raises:
        DecisionError: There is no such decision, or it was not held.
        StoreUnavailable: Nothing was stored.
    """
    program, held = find(registry, decision_id)
    if held.outcome != "held":
        raise DecisionError(
            f"decision {held.decision_id} was {held.outcome} ({held.reason}); only what was held can be approved"
        )
    kept = held.inputs
    raw = {key: value for key, value in kept.items() if key not in policy.OWN_INPUTS}
    began = kept.get("started_at")
    request = Request(
        trigger="manual",
        program=program,
        environment=held.environment,
        # What ran when it was held is what was looked at: without a version in the alert, that is what may go.
        version=held.version,
        started_at=None if began is None else datetime.fromisoformat(began),
        fingerprint=held.fingerprint,
        dry_run=bool(kept.get("dry_run")),
        approved_by=actor_or_user(actor) or "somebody",
        signal=kept.get("signal"),
        reason=reason or kept.get("reason"),
        inputs={**raw, "approves": held.decision_id, "held_because": held.reason},
    )
    return settle(registry, request, limits, starts_at=held.starts_at, actor=request.approved_by)
