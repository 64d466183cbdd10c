"""Decisions about rolling back: judged and carried out in one transaction, and kept with their inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from dspy_observe.errors import ConfigurationError
from dspy_observe.registry import deployments, versions
from dspy_observe.registry.core import PRODUCTION, at_now, mapping
from dspy_observe.registry.deploying import DeploymentMethods
from dspy_observe.registry.engine import Batch
from dspy_observe.registry.errors import NothingToRollBackTo
from dspy_observe.registry.models import Ruling, Standing
from dspy_observe.registry.names import checked_text
from dspy_observe.registry.records import Decision
from dspy_observe.registry.stores.base import Transaction, View
from dspy_observe.registry.values import scrubbed, scrubbed_text

__all__ = ["DecisionMethods"]

_OUTCOMES: Final = ("rollback", "held", "stale", "duplicate", "rejected", "ignored")


class DecisionMethods(DeploymentMethods):
    """The part of a registry that decides."""

    def decide(
        self,
        name: str,
        judge: Callable[[Standing], Ruling],
        *,
        environment: str = PRODUCTION,
        trigger: str,
        fingerprint: str | None = None,
        starts_at: str | None = None,
        version: str | None = None,
        actor: str | None = None,
    ) -> Decision:
        """Judge whether to roll back, and do it, in one transaction; the decision is stored with its inputs.

        Nothing can change between what the judge sees and what is done. An alert, known by ``fingerprint`` and
        ``starts_at``, moves the pointer at most once, however often and from how many processes it comes.

        Args:
            name: The signature.
            judge: Sees how things stand and rules; it should do nothing else, as it holds up other writers.
            environment: Which environment.
            trigger: ``alert``, ``monitor`` or ``manual``.
            fingerprint: The alert; ``None`` for decisions that answer no alert.
            starts_at: When the alert began, as it says itself.
            version: The version that is suspected; ``None`` when the alert does not say.
            actor: Who asks; ``None`` takes ``DSPY_OBSERVE_ACTOR`` or the user of this process.

        Returns:
            The stored decision; its outcome is ``duplicate`` or ``rejected`` where the ruling could not be carried out.

        Raises:
            UnknownSignature: There is no such signature.
            StoreUnavailable: Nothing was stored.
        """
        self._check(name, environment=environment)
        move = self._move(environment, actor, None, trigger)
        keys = (checked_text("fingerprint", fingerprint, 500), checked_text("starts_at", starts_at, 100))

        def body(txn: Transaction, batch: Batch) -> Decision:
            standing = self._standing(versions.existing(txn), batch, environment, keys)
            ruling = _carried_out(judge(standing), standing)
            made = _decision(ruling, standing, trigger, keys, checked_text("version", version, 200))
            if made.applied:
                start = len(batch.events)
                why = at_now(move, batch, reason=ruling.reason, decision_id=made.decision_id)
                batch.tell("rollback_start", environment, made.version)
                try:
                    self._roll_back(txn, txn, batch, why)
                except NothingToRollBackTo as error:
                    del batch.events[start:]
                    made = _decision(Ruling("rejected", str(error), ruling.inputs), standing, trigger, keys, version)
                else:
                    inputs = made.inputs
                    batch.tell("automatic_rollback", environment, made.target, previous=made.version, **{
                        key: inputs.get(key) for key in ("current_score", "previous_score", "performance_drop")
                    })  # fmt: skip
            txn.add_decision(made)
            batch.tell(
                "decision", environment, made.version, outcome=made.outcome, reason=made.reason, trigger=trigger,
                target=made.target, decision_id=made.decision_id,
            )  # fmt: skip
            return made

        return self._engine.run(name, body)

    def _standing(self, view: View, batch: Batch, environment: str, keys: tuple[str | None, str | None]) -> Standing:
        pointer, target = view.pointer(environment), versions.target_of(view, environment)
        score = None if pointer is None else view.last_score(pointer.version_hash)
        seen = None if keys[0] is None or keys[1] is None else view.applied(environment, keys[0], keys[1])
        return Standing(
            view.name, environment, batch.time, pointer, None if score is None else score.value,
            None if target is None else target.version, seen,
            tuple(one for one in view.decisions(environment) if one.applied),
        )  # fmt: skip

    def decisions(self, name: str, *, environment: str | None = None, limit: int | None = None) -> tuple[Decision, ...]:
        """What was decided about rolling back, oldest first; at most the last ``limit``."""
        self._check(name)
        with self._read(name) as view:
            return tuple(view.decisions(environment, limit))


def _carried_out(ruling: object, standing: Standing) -> Ruling:
    """The ruling, or why it cannot be carried out."""
    if not isinstance(ruling, Ruling) or ruling.outcome not in _OUTCOMES:
        raise ConfigurationError("judge", f"{ruling!r:.80} is no ruling", f"Return a Ruling: {', '.join(_OUTCOMES)}")
    if ruling.outcome == "rollback" and standing.seen is not None:
        return replace(ruling, outcome="duplicate", reason=f"answered by decision {standing.seen.decision_id}")
    return ruling


def _decision(
    ruling: Ruling, standing: Standing, trigger: str, keys: tuple[str | None, str | None], version: str | None
) -> Decision:
    pointer, moves = standing.pointer, ruling.outcome == "rollback"
    running = None if pointer is None else pointer.version
    generation = None if pointer is None else pointer.generation + moves
    return Decision(
        deployments.new_id(), standing.environment, ruling.outcome, scrubbed_text(ruling.reason) or "", standing.now,
        trigger, *keys, running if moves else version or running, standing.rollback_target if moves else None,
        generation, scrubbed(mapping(ruling.inputs, "inputs")),
    )  # fmt: skip
