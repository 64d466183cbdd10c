"""Decisions about rolling back: judged and carried out in one transaction, and kept with their inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Final

from dspy_observe.errors import ConfigurationError
from dspy_observe.registry import deployments, versions
from dspy_observe.registry.controlling import ControlMethods, control_of, froze
from dspy_observe.registry.core import PRODUCTION, at_now, mapping
from dspy_observe.registry.engine import Batch
from dspy_observe.registry.errors import CorruptVersion, NothingToRollBackTo
from dspy_observe.registry.models import Ruling, Standing
from dspy_observe.registry.names import checked_text
from dspy_observe.registry.records import Decision
from dspy_observe.registry.stores.base import Transaction, View
from dspy_observe.registry.values import scrubbed, scrubbed_text

__all__ = ["DecisionMethods"]

_SEEN_ROLLBACKS: Final = 100
"""More than any budget counts."""
_OUTCOMES: Final = ("rollback", "held", "stale", "duplicate", "rejected", "ignored")


class DecisionMethods(ControlMethods):
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
            CorruptRegistry: What is written there cannot be judged, such as a mode that does not exist.
            StoreUnavailable: Nothing was stored.
        """
        self._check(name, environment=environment)
        move = self._move(environment, actor, None, trigger)
        keys = (checked_text("fingerprint", fingerprint, 500), checked_text("starts_at", starts_at, 100))

        def body(txn: Transaction, batch: Batch) -> Decision:
            standing = self._standing(versions.existing(txn), batch.time, environment, keys)
            ruling = self._carried_out(txn, judge(standing), standing, trigger)
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
            if ruling.freeze is not None:
                froze(txn, batch, environment, ruling.freeze, move.actor)
            batch.tell(
                "decision", environment, made.version, outcome=made.outcome, reason=made.reason, trigger=trigger,
                target=made.target, decision_id=made.decision_id,
            )  # fmt: skip
            return made

        return self._engine.run(name, body)

    def _standing(self, view: View, at: datetime, environment: str, keys: tuple[str | None, str | None]) -> Standing:
        pointer, target = view.pointer(environment), versions.target_of(view, environment)
        score = None if pointer is None else view.last_score(pointer.version_hash)
        seen = None if keys[0] is None or keys[1] is None else view.applied(environment, keys[0], keys[1])
        return Standing(
            view.name, environment, at, pointer, None if score is None else score.value,
            None if target is None else target.version, seen, tuple(view.rollbacks(environment, _SEEN_ROLLBACKS)),
            control_of(view, environment),
        )  # fmt: skip

    def _carried_out(self, txn: Transaction, ruling: object, standing: Standing, trigger: str) -> Ruling:
        """The ruling, or why it cannot be carried out."""
        if not isinstance(ruling, Ruling) or ruling.outcome not in _OUTCOMES:
            fix = f"Return a Ruling: {', '.join(_OUTCOMES)}"
            raise ConfigurationError("judge", f"{ruling!r:.80} is no ruling", fix)
        if ruling.outcome != "rollback":
            return ruling
        control = standing.control
        if trigger != "manual" and (control.frozen or control.mode != "auto"):
            why = f"frozen: {control.frozen_reason}" if control.frozen else f"the mode is {control.mode}"
            return replace(ruling, outcome="held", reason=f"{ruling.reason}; held, as {standing.program} is {why}")
        if standing.seen is not None:
            return replace(ruling, outcome="duplicate", reason=f"answered by decision {standing.seen.decision_id}")
        target = versions.target_of(txn, standing.environment)
        if target is not None:  # else rolling back says so
            try:
                versions.check_content(self._store, target)
            except CorruptVersion as error:
                return replace(ruling, outcome="rejected", reason=f"{target.version} cannot be put in place: {error}")
        return ruling

    def standing(
        self,
        name: str,
        *,
        environment: str = PRODUCTION,
        fingerprint: str | None = None,
        starts_at: str | None = None,
    ) -> Standing:
        """What a judge would see now; :meth:`decide` looks again.

        Args:
            name: The signature.
            environment: Which environment.
            fingerprint: The alert, together with ``starts_at``; ``None`` for no alert.
            starts_at: When the alert began, as it says itself.

        Raises:
            UnknownSignature: There is no such signature.
        """
        self._check(name, environment=environment)
        with self._read(name) as view:
            return self._standing(view, self.now(), environment, (fingerprint, starts_at))

    def decisions(self, name: str, *, environment: str | None = None, limit: int | None = None) -> tuple[Decision, ...]:
        """What was decided about rolling back, oldest first; at most the last ``limit``."""
        self._check(name)
        with self._read(name) as view:
            return tuple(view.decisions(environment, limit))


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
