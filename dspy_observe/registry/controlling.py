"""How far automatic rollback may go for one program: its mode, and whether it is frozen.

Kept in the store as one mark for each environment, so that all receivers and monitors obey the same word at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from dspy_observe.errors import ConfigurationError
from dspy_observe.registry import versions
from dspy_observe.registry.core import PRODUCTION
from dspy_observe.registry.deploying import DeploymentMethods
from dspy_observe.registry.engine import Batch
from dspy_observe.registry.errors import CorruptRegistry
from dspy_observe.registry.models import MODES, Control
from dspy_observe.registry.names import checked_text
from dspy_observe.registry.people import actor_or_user
from dspy_observe.registry.records import FieldFault, Mark
from dspy_observe.registry.stores.base import Transaction, View
from dspy_observe.registry.values import scrubbed_text

__all__ = ["CONTROL", "MODES", "ControlMethods", "control_of", "froze", "written_control"]

CONTROL: Final = "control"
"""Kind of the mark; its key is the environment."""


def control_of(view: View, environment: str) -> Control:
    """What holds in an environment; nobody having said anything, automatic rollback is on.

    Raises:
        CorruptRegistry: What stands in the store is no control state, or a mode that does not exist.
    """
    made = written_control(view, environment)
    if made.mode not in MODES:
        mend = f"dspy-observe decisions mode {view.name} -e {environment} MODE"
        problem = f"{made.mode!r:.60} is no mode, only {', '.join(MODES)} are; say it anew with {mend}"
        raise CorruptRegistry(f"{view.name}, control of {environment}", None, problem)
    return made


def written_control(view: View, environment: str) -> Control:
    """What was written, with whatever mode: for those who look only at the freeze, or say the mode anew.

    Raises:
        CorruptRegistry: What stands in the store is no control state.
    """
    mark = view.mark(CONTROL, environment)
    if mark is None:
        return Control()
    try:
        return Control.from_dict(mark.data)
    except FieldFault as fault:
        raise CorruptRegistry(f"{view.name}, control of {environment}", None, str(fault)) from None


def froze(txn: Transaction, batch: Batch, environment: str, reason: str, actor: str | None) -> Control:
    """Freeze an environment on a transaction; one that is frozen keeps its first reason."""
    before = written_control(txn, environment)
    if before.frozen:
        return before
    made = replace(before, frozen=True, frozen_reason=reason, frozen_at=batch.time, frozen_by=actor)
    return _kept(txn, batch, environment, made, "freeze", actor, reason)


def _kept(
    txn: Transaction, batch: Batch, environment: str, made: Control, event: str, actor: str | None,
    reason: str | None, **told: Any,
) -> Control:  # fmt: skip
    """Write what holds from now on, and tell it."""
    txn.set_mark(Mark(CONTROL, environment, "", "", batch.time, actor, reason, made.to_dict()))
    batch.tell(event, environment, None, **told, reason=reason, actor=actor)
    return made


class ControlMethods(DeploymentMethods):
    """The part of a registry that says how far automatic rollback may go."""

    def control(self, name: str, *, environment: str = PRODUCTION) -> Control:
        """The mode, and whether the program is frozen.

        Raises:
            UnknownSignature: There is no such signature.
            CorruptRegistry: A mode is written there that does not exist.
        """
        self._check(name, environment=environment)
        with self._read(name) as view:
            return control_of(view, environment)

    def set_mode(
        self,
        name: str,
        mode: str,
        *,
        environment: str = PRODUCTION,
        actor: str | None = None,
        reason: str | None = None,
    ) -> Control:
        """Say what automatic rollback may do; it holds for every receiver and monitor of this registry at once.

        Args:
            name: The signature.
            mode: ``auto`` rolls back, ``approve`` waits for a person, ``dry-run`` only says what it would do, ``off``
                does nothing. Rolling back by hand is always possible.
            environment: Where.
            actor: Who says so; ``None`` takes ``DSPY_OBSERVE_ACTOR`` or the user of this process.
            reason: Why.

        Raises:
            ConfigurationError: There is no such mode.
            UnknownSignature: There is no such signature.
        """
        if mode not in MODES:
            raise ConfigurationError("mode", f"{mode!r} is not known", f"Use one of {', '.join(MODES)}")

        def body(txn: Transaction, batch: Batch, who: str | None, why: str | None) -> Control:
            before = written_control(versions.existing(txn), environment)
            made = replace(before, mode=mode, mode_reason=why, mode_at=batch.time, mode_by=who)
            return _kept(txn, batch, environment, made, "mode_change", who, why, mode=mode, previous=before.mode)

        return self._say(name, environment, actor, reason, body)

    def freeze(
        self, name: str, *, environment: str = PRODUCTION, actor: str | None = None, reason: str | None = None
    ) -> Control:
        """Let nothing be rolled back by itself until :meth:`unfreeze`; one that is frozen keeps its first reason.

        Args:
            name: The signature.
            environment: Where.
            actor: Who does it; ``None`` takes ``DSPY_OBSERVE_ACTOR`` or the user of this process.
            reason: Why.

        Raises:
            UnknownSignature: There is no such signature.
        """

        def body(txn: Transaction, batch: Batch, who: str | None, why: str | None) -> Control:
            versions.existing(txn)
            return froze(txn, batch, environment, why or "frozen by hand", who)

        return self._say(name, environment, actor, reason, body)

    def unfreeze(
        self, name: str, *, environment: str = PRODUCTION, actor: str | None = None, reason: str | None = None
    ) -> Control:
        """Let automatic rollback work again, with a new budget: earlier rollbacks of the hour no longer count.

        Args:
            name: The signature.
            environment: Where.
            actor: Who does it; ``None`` takes ``DSPY_OBSERVE_ACTOR`` or the user of this process.
            reason: Why.

        Raises:
            UnknownSignature: There is no such signature.
        """

        def body(txn: Transaction, batch: Batch, who: str | None, why: str | None) -> Control:
            before = written_control(versions.existing(txn), environment)
            if not before.frozen:
                return before
            made = replace(
                before, frozen=False, frozen_reason=None, frozen_at=None, frozen_by=None, unfrozen_at=batch.time
            )
            return _kept(txn, batch, environment, made, "unfreeze", who, why)

        return self._say(name, environment, actor, reason, body)

    def _say(
        self,
        name: str,
        environment: str,
        actor: str | None,
        reason: str | None,
        body: Callable[[Transaction, Batch, str | None, str | None], Any],
    ) -> Control:
        self._check(name, environment=environment)
        who, why = actor_or_user(actor), scrubbed_text(checked_text("reason", reason))
        made: Control = self._engine.run(name, lambda txn, batch: body(txn, batch, who, why))
        return made
