"""Deploying, promoting, rolling back, approving. Half of the file is what its public methods promise."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dspy_observe.registry import deployments, transfer, versions, yamltext
from dspy_observe.registry.core import PRODUCTION, RegistryCore, at_now
from dspy_observe.registry.engine import Batch
from dspy_observe.registry.errors import UnknownVersion
from dspy_observe.registry.models import Version
from dspy_observe.registry.records import Deployment, Mark, Pointer, StoredVersion
from dspy_observe.registry.stores.base import Transaction, View, backup_label

__all__ = ["DeploymentMethods"]


class DeploymentMethods(RegistryCore):
    """The part of a registry that moves pointers."""

    def deploy_version(
        self,
        name: str,
        version: str,
        *,
        environment: str = PRODUCTION,
        expected_generation: int | None = None,
        expected_version: str | None = None,
        actor: str | None = None,
        reason: str | None = None,
        force: bool = False,
        trigger: str = "manual",
    ) -> Version:
        """Make an environment run a version. A version that it runs already changes nothing.

        Args:
            name: The signature.
            version: Display name, alias or hash.
            environment: Which environment.
            expected_generation: The generation that the caller saw, 0 for nothing deployed; ``None`` takes any.
            expected_version: The version that the caller saw; ``None`` takes any.
            actor: Who does it; ``None`` takes ``DSPY_OBSERVE_ACTOR`` or the user of this process.
            reason: Why; needed with ``force``.
            force: Also deploy what is quarantined or, in a protected environment, not approved.
            trigger: ``manual``, ``auto``, ``alert`` or ``monitor``.

        Raises:
            UnknownSignature, UnknownVersion: There is no such version.
            Conflict: Something else is deployed than the caller saw.
            Quarantined: The version was found bad.
            ApprovalMissing: The environment is protected.
            CorruptVersion: The version's content is damaged.
            StoreUnavailable: The store cannot be written.
        """
        move = self._move(
            environment, actor, reason, trigger, expected_generation=expected_generation,
            expected_version=expected_version, force=force,
        )  # fmt: skip
        return self._deploy(name, lambda txn: versions.resolve(txn, version), move, version)

    def promote(
        self,
        name: str,
        *,
        source: str,
        environment: str = PRODUCTION,
        expected_generation: int | None = None,
        actor: str | None = None,
        reason: str | None = None,
    ) -> Version:
        """Make an environment run exactly what another one runs; the log keeps where it came from.

        Args:
            name: The signature.
            source: The environment to take it from.
            environment: The environment to bring it to.
            expected_generation: As for :meth:`deploy_version`, about ``environment``.
            actor: Who does it.
            reason: Why.

        Raises:
            UnknownVersion: The source runs nothing; besides the errors of :meth:`deploy_version`.
        """
        self._check(name, environment=source)
        move = self._move(environment, actor, reason, "manual", expected_generation=expected_generation, source=source)

        def which(txn: Transaction) -> StoredVersion:
            pointer = versions.existing(txn).pointer(source)
            if pointer is None:
                raise UnknownVersion.nothing_deployed(name, source)
            return versions.with_hash(txn, pointer.version_hash)

        return self._deploy(name, which, move, None)

    def _deploy(
        self, name: str, which: Callable[[Transaction], StoredVersion], move: deployments.Move, version: str | None
    ) -> Version:
        self._check(name, environment=move.environment)

        def body(txn: Transaction, batch: Batch) -> Version:
            record = which(txn)
            self._deploy_in(txn, batch, record, at_now(move, batch))
            return versions.Viewer(txn, move.environment).see(record)

        return self._engine.run(name, body, operation="deploy", environment=move.environment, version=version)

    def _deploy_in(self, txn: Transaction, batch: Batch, record: StoredVersion, move: deployments.Move) -> None:
        """Deploy on a transaction, and tell it."""
        versions.check_content(self._store, record)
        before = txn.pointer(move.environment)
        entry = deployments.deploy(txn, record, move)
        if entry is not None and before is not None and self._config.backup_on_deploy:
            self._back_up(txn, before, batch)
        score = txn.last_score(record.version_hash)
        batch.tell(
            "deploy_complete", move.environment, record.version, version_hash=record.version_hash,
            previous=None if before is None else before.version, changed=entry is not None,
            generation=getattr(txn.pointer(move.environment), "generation", 0), trigger=move.trigger,
            forced=entry is not None and entry.forced, reason=move.reason, actor=move.actor,
            performance_score=None if score is None else score.value,
        )  # fmt: skip
        if entry is not None and move.trigger == "auto":
            batch.tell("auto_deployment", move.environment, record.version)

    def _back_up(self, txn: Transaction, pointer: Pointer, batch: Batch) -> None:
        record = txn.by_hash(pointer.version_hash)
        if record is not None:
            text = yamltext.dump(transfer.backup_of(txn, record, self._store))
            label = backup_label(record.version, batch.time)
            txn.add_backup(label, text, self._config.max_versions_per_signature)

    def rollback(
        self,
        name: str,
        *,
        environment: str = PRODUCTION,
        expected_generation: int | None = None,
        expected_version: str | None = None,
        actor: str | None = None,
        reason: str | None = None,
        trigger: str = "manual",
    ) -> Version:
        """Go back to the last other version that the environment ran and that is not quarantined.

        The version that is left is quarantined, so a second rollback goes further back and never to it.

        Args:
            name: The signature.
            environment: Which environment.
            expected_generation: The generation that the caller saw; ``None`` takes any.
            expected_version: The version that was found bad; ``None`` takes any.
            actor: Who does it; ``None`` takes ``DSPY_OBSERVE_ACTOR`` or the user of this process.
            reason: What was wrong.
            trigger: ``manual``, ``auto``, ``alert`` or ``monitor``.

        Returns:
            What the environment runs now.

        Raises:
            UnknownSignature: There is no such signature.
            NothingToRollBackTo: No earlier version is left.
            Conflict: Something else is deployed than the caller saw.
            CorruptVersion: The earlier version's content is damaged.
            StoreUnavailable: The store cannot be written.
        """
        move = self._move(
            environment, actor, reason, trigger, expected_generation=expected_generation,
            expected_version=expected_version,
        )  # fmt: skip
        self._check(name, environment=environment)

        def body(txn: Transaction, batch: Batch) -> Version:
            return self._roll_back(versions.existing(txn), txn, batch, at_now(move, batch))

        return self._engine.run(name, body, operation="rollback", environment=environment)

    def _roll_back(self, view: View, txn: Transaction, batch: Batch, move: deployments.Move) -> Version:
        entry, target = deployments.roll_back(txn, move)
        versions.check_content(self._store, target)
        batch.tell(
            "rollback_complete", move.environment, target.version, version_hash=target.version_hash,
            previous=entry.previous, generation=entry.generation, trigger=move.trigger, reason=move.reason,
            actor=move.actor,
        )  # fmt: skip
        batch.tell("quarantine", move.environment, entry.previous, reason=move.reason, trigger=move.trigger)
        return versions.Viewer(view, move.environment).see(target)

    def quarantine(self, name: str, version: str, *, reason: str, actor: str | None = None) -> Version:
        """Mark a version as bad: nothing deploys it and no rollback takes it. An environment that runs it goes on.

        Args:
            name: The signature.
            version: Display name, alias or hash.
            reason: What is wrong with it.
            actor: Who says so.

        Raises:
            UnknownSignature, UnknownVersion: There is no such version.
        """
        self._check(name)
        move = self._move(PRODUCTION, actor, reason, "manual")

        def body(txn: Transaction, batch: Batch) -> Version:
            record = versions.resolve(txn, version)
            deployments.quarantine(txn, record, at_now(move, batch))
            batch.tell("quarantine", None, record.version, reason=move.reason, trigger="manual", actor=move.actor)
            return versions.Viewer(txn, PRODUCTION).see(record)

        return self._engine.run(name, body)

    def approve(
        self,
        name: str,
        version: str,
        *,
        environment: str,
        version_hash: str,
        evidence: Iterable[str],
        by: str | None = None,
        reason: str | None = None,
    ) -> Mark:
        """Approve a version for a protected environment.

        Args:
            name: The signature.
            version: Display name, alias or hash.
            environment: Where it may go.
            version_hash: The full hash of what was reviewed.
            evidence: Ids of scores of this version (see :meth:`scores`), at least one.
            by: Who approves, not the version's author; ``None`` takes ``DSPY_OBSERVE_ACTOR`` or the user.
            reason: Why.

        Raises:
            ApprovalMissing: The approval does not count.
            Conflict: The reviewed hash is not this version's.
            UnknownSignature, UnknownVersion: There is no such version.
        """
        self._check(name, environment=environment)
        move = self._move(environment, by, reason, "manual")

        def body(txn: Transaction, batch: Batch) -> Mark:
            record = versions.resolve(txn, version)
            return deployments.approve(txn, record, at_now(move, batch), tuple(evidence), version_hash)

        return self._engine.run(name, body)

    def rollback_target(self, name: str, *, environment: str = PRODUCTION) -> str | None:
        """What :meth:`rollback` would put in place; ``None`` when there is nothing."""
        self._check(name, environment=environment)
        with self._read(name) as view:
            target = versions.target_of(view, environment)
            return None if target is None else target.version

    def deployment_log(self, name: str, *, environment: str | None = None) -> tuple[Deployment, ...]:
        """Every move of the signature's pointers, oldest first; of one environment or of all."""
        self._check(name)
        with self._read(name) as view:
            return tuple(view.deployments(environment))
