"""The registry: versions of signatures and programs, their scores, their deployments, and the way back.

Long, because it is one public class of some thirty methods that each check names, run one transaction and tell one
event; the work is done in ``versions``, ``deployments``, ``history`` and ``transfer``.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from dspy_observe.errors import ConfigurationError
from dspy_observe.records import RegistryEvent
from dspy_observe.registry import deployments, history, transfer, versions, yamltext
from dspy_observe.registry.engine import Batch, Engine
from dspy_observe.registry.errors import InvalidScore, NothingToRollBackTo, NotSerialisable, UnknownVersion
from dspy_observe.registry.models import Comparison, History, ImportReport, Ruling, Standing, Version
from dspy_observe.registry.names import checked, checked_text
from dspy_observe.registry.options import RegistryConfig
from dspy_observe.registry.people import actor_or_user
from dspy_observe.registry.records import Decision, Deployment, Mark, Pointer, Score
from dspy_observe.registry.stores import open_store
from dspy_observe.registry.stores.base import Transaction, View
from dspy_observe.registry.values import digest, finite, plain, scrubbed, scrubbed_text

__all__ = ["SignatureRegistry"]

PRODUCTION: Final = "production"
_TRIGGERS: Final = ("manual", "auto", "alert", "monitor")
_OUTCOMES: Final = ("rollback", "held", "stale", "duplicate", "rejected", "ignored")


class SignatureRegistry:
    """Versions, scores and deployments of any number of signatures, in one store.

    Safe to share between threads; any number of processes may open the same store.

    Args:
        config: Options; or a folder or URL alone; ``None`` takes the environment and the defaults.
        clock: Gives Unix time in seconds; for tests.

    Raises:
        ConfigurationError: The path or an option cannot work.
        StoreUnavailable: The store cannot be reached.
        CorruptRegistry: The store's own configuration cannot be read.
    """

    def __init__(
        self, config: RegistryConfig | str | Path | None = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        if isinstance(config, str | os.PathLike):
            config = RegistryConfig(registry_path=config)
        given = config if config is not None else RegistryConfig()
        if not isinstance(given, RegistryConfig):
            raise ConfigurationError("SignatureRegistry", f"{given!r:.80} is no config", "Pass a RegistryConfig or path")
        self._store = open_store(given.registry_path)
        self._config = given.over(self._store.settings())
        self._engine = Engine(self._store, clock)
        self._settled = False

    @property
    def config(self) -> RegistryConfig:
        """The options in force; a copy."""
        return RegistryConfig(**{**self._config.to_dict(), "protected_environments": self._protected})

    @property
    def location(self) -> str:
        """Folder or URL, without password."""
        return self._store.location

    # --- versions ----------------------------------------------------------------------------------------------------

    def register_version(
        self,
        name: str,
        configuration: Mapping[str, Any],
        *,
        metadata: Mapping[str, Any] | None = None,
        program_id: str | None = None,
        version: str | None = None,
        author: str | None = None,
    ) -> Version:
        """Register a configuration as a version.

        The same content a second time gives the version that is there, with ``created=False``; metadata that is new
        is kept as a note, and another ``version`` becomes its alias. Credentials are taken out before anything is
        hashed or stored.

        Args:
            name: The signature.
            configuration: What makes the version: texts, numbers, lists and dicts. It identifies the version.
            metadata: What is worth knowing about it, of the same types; not part of its identity.
            program_id: Its id elsewhere; ``None`` when there is none.
            version: Its display name; ``None`` makes one from the clock.
            author: Who made it; ``None`` takes ``DSPY_OBSERVE_ACTOR`` or the user of this process.

        Raises:
            InvalidName: A name cannot be used.
            NotSerialisable: A value would not come back as it is.
            VersionExists: The display name belongs to other content.
            StoreUnavailable: The store cannot be written.
        """
        self._check(name, version=version)

        def draft() -> versions.Draft:
            content = scrubbed(_mapping(configuration, "configuration"))
            return versions.Draft(
                versions.configuration_hash(content), content, scrubbed(_mapping(metadata or {}, "metadata")),
                actor_or_user(author), checked_text("program_id", program_id, 500),
            )  # fmt: skip

        return self._register(name, draft, version)

    def register_program(
        self,
        name: str,
        module: Any,
        *,
        metadata: Mapping[str, Any] | None = None,
        program_id: str | None = None,
        version: str | None = None,
        author: str | None = None,
        lm: Any | None = None,
        optimizer: Any | None = None,
        optimizer_params: Mapping[str, Any] | None = None,
        trainset: Iterable[Any] | None = None,
        devset: Iterable[Any] | None = None,
    ) -> Version:
        """Register a DSPy program: its state, schema, config, adapter, tools and LM, and where it comes from.

        Args:
            name: The signature.
            module: The program, compiled or not; it is not changed.
            metadata: As for :meth:`register_version`, besides git SHA, data set hashes, optimizer and DSPy version.
            program_id: Its id elsewhere; ``None`` when there is none.
            version: Its display name; ``None`` makes one from the clock.
            author: Who made it; ``None`` takes ``DSPY_OBSERVE_ACTOR`` or the user of this process.
            lm: The LM it runs with; ``None`` takes the one of DSPy's settings.
            optimizer: The optimizer, or its name; ``None`` when there was none.
            optimizer_params: Its parameters; ``None`` takes what the optimizer keeps.
            trainset: Examples it was trained on, for their hash; ``None`` when unknown.
            devset: Examples it was chosen on, for their hash; ``None`` when unknown.

        Raises:
            UnserialisableProgramError: Something in the program has no exact form as data.
            InvalidName, NotSerialisable, VersionExists, StoreUnavailable: As for :meth:`register_version`.
        """
        self._check(name, version=version)

        def draft() -> versions.Draft:
            from dspy_observe.registry.programs import content_hash, snapshot

            taken = snapshot(
                module, lm=lm, optimizer=optimizer, optimizer_params=optimizer_params, trainset=trainset, devset=devset
            )
            text = taken.to_json()
            summary = {
                "module": taken.module,
                "predictors": {
                    one.path: {"instructions": one.instructions, "demos": len(one.demos)} for one in taken.predictors
                },
            }
            about = {key: value for key, value in taken.provenance().items() if value not in (None, {})}
            return versions.Draft(
                content_hash(taken), scrubbed(_mapping(summary, "program")),
                scrubbed(_mapping({**about, **(metadata or {})}, "metadata")), actor_or_user(author),
                checked_text("program_id", program_id, 500), digest(text), text,
            )  # fmt: skip

        return self._register(name, draft, version)

    def _register(self, name: str, draft: Callable[[], versions.Draft], version: str | None) -> Version:
        def body(txn: Transaction, batch: Batch) -> Version:
            made = draft()
            auto = self._config.version_format if self._config.auto_version else None
            record, created = versions.add(txn, made, version, batch.time, auto)
            pruned = versions.prune(txn, self._config.max_versions_per_signature, (record.version_hash,))
            for old in pruned if created else ():
                txn.remove_version(old.version_hash)
            batch.tell(
                "register_complete", None, record.version, version_hash=record.version_hash, created=created,
                removed=[old.version for old in pruned] if created else [],
            )  # fmt: skip
            return versions.Viewer(txn, PRODUCTION).see(record, created=created)

        self._keep_settings()
        return self._engine.run(name, body, operation="register", version=version)

    def load_program(
        self,
        name: str,
        factory: Callable[[], Any],
        version: str | None = None,
        *,
        environment: str = PRODUCTION,
        migrate: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> Any:
        """Build a program from a version.

        Args:
            name: The signature.
            factory: Makes a new program with the code of today, such as the program's class.
            version: Display name, alias or hash; ``None`` takes what the environment runs.
            environment: Used when no version is given.
            migrate: Changes stored data of an older schema before it is compared.
            **options: Passed on to :func:`dspy_observe.registry.programs.restore`: ``lm_for``, ``trust_source``.

        Returns:
            A new ``dspy.Module``.

        Raises:
            UnknownSignature, UnknownVersion: There is no such version, nothing is deployed, or it holds no program.
            CorruptVersion: The stored program is missing or damaged.
            IncompatibleProgramError: It does not fit the code; names each difference.
        """
        from dspy_observe.registry.programs import ProgramSnapshot, restore

        text = self.program_text(name, version, environment=environment)
        return restore(factory, ProgramSnapshot.from_json(text), migrate=migrate, **options)

    def program_text(self, name: str, version: str | None = None, *, environment: str = PRODUCTION) -> str:
        """A version's stored program as JSON, checked against its hash; arguments and errors as `load_program`."""
        self._check(name, environment=environment)
        with self._read(name) as view:
            if version is None:
                pointer = view.pointer(environment)
                if pointer is None:
                    raise UnknownVersion(name, f"(deployed in {environment})")
                version = pointer.version
            record = versions.resolve(view, version)
        text = versions.check_content(self._store, record)
        if text is None:
            raise UnknownVersion(name, f"{record.version} as a program: only a configuration was registered")
        return text

    def list_signatures(self) -> list[str]:
        """The names of all signatures, sorted."""
        return self._store.names()

    def list_versions(self, name: str, *, environment: str = PRODUCTION) -> list[Version]:
        """All versions of a signature, oldest first.

        Args:
            name: The signature.
            environment: The environment that ``is_deployed`` is about.

        Raises:
            UnknownSignature: There is no such signature.
        """
        self._check(name, environment=environment)
        with self._read(name) as view:
            viewer = versions.Viewer(view, environment, view.last_scores())
            return [viewer.see(record) for record in view.versions()]

    def get_version(self, name: str, version: str, *, environment: str = PRODUCTION) -> Version:
        """One version.

        Args:
            name: The signature.
            version: Display name, alias, or at least 12 digits of the hash.
            environment: The environment that ``is_deployed`` is about.

        Raises:
            UnknownSignature, UnknownVersion: There is no such version.
            CorruptVersion: Its content is not what its hash says.
        """
        self._check(name, environment=environment)
        with self._read(name) as view:
            record = versions.resolve(view, version)
            seen = versions.Viewer(view, environment).see(record)
        versions.check_content(self._store, record)
        return seen

    def notes(self, name: str, version: str) -> tuple[Mark, ...]:
        """What was said when a version's content was registered again; arguments and errors as `get_version`."""
        self._check(name)
        with self._read(name) as view:
            digits = versions.resolve(view, version).version_hash
            return tuple(mark for mark in view.marks("note") if mark.version_hash == digits)

    def set_alias(self, name: str, alias: str, version: str, *, actor: str | None = None) -> Version:
        """Let a second name stand for a version, moving it if it stands for another one.

        No clean-up removes a version with an alias: hold the arms of a running experiment that way.

        Raises:
            UnknownSignature, UnknownVersion: There is no such version.
            VersionExists: A version has this name.
        """
        self._check(name, alias=alias)

        def body(txn: Transaction, batch: Batch) -> Version:
            record = versions.resolve(txn, version)
            versions.alias(txn, alias, record, batch.time, actor_or_user(actor))
            return versions.Viewer(txn, PRODUCTION).see(record)

        return self._engine.run(name, body)

    def remove_alias(self, name: str, alias: str) -> None:
        """Take an alias away; one that is not there is fine."""
        self._check(name, alias=alias)
        self._engine.run(name, lambda txn, _: txn.drop_mark("alias", alias))

    # --- scores ------------------------------------------------------------------------------------------------------

    def update_performance_score(
        self,
        name: str,
        version: str,
        score: float,
        *,
        dataset: str | None = None,
        n: int | None = None,
        stdev: float | None = None,
        source: str = "manual",
        score_id: str | None = None,
        bounds: tuple[float, float] | None = None,
    ) -> Version:
        """Add an observation of how good a version is. Earlier ones stay.

        Args:
            name: The signature.
            version: Display name, alias or hash.
            score: Any finite number; higher is better.
            dataset: What it was measured on; ``None`` when nobody says.
            n: Examples it is the mean of, at least 1; ``None`` when unknown. Automatic deployment asks for it.
            stdev: Standard deviation of one example's score, at least 0; ``None`` when unknown.
            source: Who measured.
            score_id: The caller's key; the same one counts once. ``None`` makes one.
            bounds: Lowest and highest possible value of the metric; ``None`` when it has none.

        Raises:
            InvalidScore: No finite number, out of bounds, or ``n`` or ``stdev`` make no sense.
            UnknownSignature, UnknownVersion: There is no such version.
        """
        self._check(name)
        value = finite(score, bounds)
        if n is not None and (type(n) is not int or n < 1):
            raise InvalidScore(f"n={n!r} is no number of examples")
        if stdev is not None and not (math.isfinite(stdev) and stdev >= 0):
            raise InvalidScore(f"stdev={stdev!r} is no standard deviation")
        key = checked_text("score_id", score_id, 200) or deployments.new_id()
        where = checked_text("dataset", dataset, 200)
        who = checked_text("source", source, 100) or "manual"

        def body(txn: Transaction, batch: Batch) -> Version:
            record = versions.resolve(txn, version)
            made = Score(key, record.version, record.version_hash, value, batch.time, where, n, stdev, who)
            if txn.add_score(made):
                batch.tell(
                    "performance_update", None, record.version, performance_score=value, dataset=where, n=n, source=who
                )
            return versions.Viewer(txn, PRODUCTION).see(record)

        return self._engine.run(name, body)

    def get_performance_history(
        self, name: str, *, dataset: str | None = None, environment: str = PRODUCTION
    ) -> History:
        """Every observation of the signature's versions, oldest first, and their trend.

        Args:
            name: The signature.
            dataset: Only this data set; ``None`` lists all, with the trend over that of the latest observation.
            environment: The environment that ``is_deployed`` is about.

        Raises:
            UnknownSignature: There is no such signature.
        """
        self._check(name, environment=environment)
        with self._read(name) as view:
            return history.history(view, dataset, environment)

    def scores(self, name: str, version: str | None = None) -> tuple[Score, ...]:
        """The observations themselves, oldest first, with their ids; of one version or of all."""
        self._check(name)
        with self._read(name) as view:
            return tuple(view.scores(None if version is None else versions.resolve(view, version).version_hash))

    def compare_versions(
        self, name: str, version_1: str, version_2: str, *, environment: str = PRODUCTION
    ) -> Comparison:
        """Two versions side by side: the first minus the second.

        Args:
            name: The signature.
            version_1: Usually the newer; display name, alias or hash.
            version_2: Usually the older.
            environment: The environment that ``is_deployed`` is about.

        Raises:
            UnknownSignature, UnknownVersion: There is no such version.
            CorruptVersion: A stored program is missing or damaged.
        """
        self._check(name, environment=environment)
        with self._read(name) as view:
            first, second = versions.resolve(view, version_1), versions.resolve(view, version_2)
            mine, theirs = view.scores(first.version_hash), view.scores(second.version_hash)
            shared = history.common_scores(mine, theirs)
            sides = (
                history.side(view, first, shared[0] if shared else mine[-1] if mine else None, environment),
                history.side(view, second, shared[1] if shared else theirs[-1] if theirs else None, environment),
            )
        warnings = []
        if mine and theirs and shared is None:
            warnings.append("the two versions were scored on different data sets, so their scores are not compared")
        if shared is not None and shared[0].dataset is None:
            warnings.append("nobody said on which data set the scores were measured")
        return Comparison(
            *sides,
            (first.created_at - second.created_at).total_seconds() / 3600,
            None if shared is None else shared[0].value - shared[1].value,
            None if shared is None else shared[0].dataset,
            tuple(history.changes(second.configuration, first.configuration)),
            tuple(self._program_changes(first, second)),
            tuple(warnings),
        )

    def _program_changes(self, first: Any, second: Any) -> list[dict[str, Any]]:
        new, old = versions.check_content(self._store, first), versions.check_content(self._store, second)
        if new is None or old is None or new == old:
            return []
        from dspy_observe.registry.programs import ProgramSnapshot, diff

        found = diff(ProgramSnapshot.from_json(old), ProgramSnapshot.from_json(new))
        return [dict(scrubbed(one.to_dict())) for one in found]

    # --- deployments -------------------------------------------------------------------------------------------------

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
        return self._deploy(name, lambda _: version, move, version)

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

        def which(txn: Transaction) -> str:
            pointer = versions.existing(txn).pointer(source)
            if pointer is None:
                raise UnknownVersion(name, f"(deployed in {source})")
            return pointer.version_hash

        return self._deploy(name, which, move, None)

    def _deploy(
        self, name: str, which: Callable[[Transaction], str], move: deployments.Move, version: str | None
    ) -> Version:
        self._check(name, environment=move.environment)

        def body(txn: Transaction, batch: Batch) -> Version:
            record = versions.resolve(txn, which(txn))
            versions.check_content(self._store, record)
            before = txn.pointer(move.environment)
            entry = deployments.deploy(txn, record, _at(move, batch))
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
            return versions.Viewer(txn, move.environment).see(record)

        return self._engine.run(name, body, operation="deploy", environment=move.environment, version=version)

    def _back_up(self, txn: Transaction, pointer: Pointer, batch: Batch) -> None:
        record = txn.by_hash(pointer.version_hash)
        if record is not None:
            text = yamltext.dump(transfer.backup_of(txn, record, self._store))
            label = f"{record.version}_{batch.time:%Y%m%d_%H%M%S_%f}"
            txn.add_backup(label, text, self._config.max_versions_per_signature)

    def get_deployed_version(self, name: str, *, environment: str = PRODUCTION) -> Version | None:
        """What an environment runs; ``None`` when nothing was deployed there.

        Raises:
            UnknownSignature: There is no such signature.
        """
        self._check(name, environment=environment)
        with self._read(name) as view:
            pointer = view.pointer(environment)
            record = None if pointer is None else view.by_hash(pointer.version_hash)
            return None if record is None else versions.Viewer(view, environment).see(record)

    def pointer(self, name: str, *, environment: str = PRODUCTION) -> Pointer | None:
        """Which version an environment runs, at which generation: the cheapest question, for polling.

        Raises:
            UnknownSignature: There is no such signature.
        """
        self._check(name, environment=environment)
        with self._read(name) as view:
            return view.pointer(environment)

    def pointers(self, name: str) -> tuple[Pointer, ...]:
        """The pointers of all environments of a signature."""
        self._check(name)
        with self._read(name) as view:
            return tuple(view.pointers())

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
            return self._roll_back(versions.existing(txn), txn, batch, _at(move, batch))

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

    def quarantine(
        self, name: str, version: str, *, reason: str, actor: str | None = None
    ) -> Version:
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
            deployments.quarantine(txn, record, _at(move, batch))
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
            return deployments.approve(txn, record, _at(move, batch), tuple(evidence), version_hash)

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

    # --- decisions ---------------------------------------------------------------------------------------------------

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
                why = _at(move, batch, reason=ruling.reason, decision_id=made.decision_id)
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

    def _standing(
        self, view: View, batch: Batch, environment: str, keys: tuple[str | None, str | None]
    ) -> Standing:
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

    # --- the whole registry ------------------------------------------------------------------------------------------

    def export_registry(self, path: str | Path) -> None:
        """Write everything into one YAML file: versions, programs, scores, logs, marks.

        Raises:
            StoreUnavailable: The file cannot be written.
            CorruptVersion: A version's content is damaged.
        """
        names = transfer.export(self._store, Path(path), self._engine.clock())
        self._engine.announce(*transfer.told("export", names, Path(path), self._engine.clock()))

    def import_registry(self, path: str | Path, *, dry_run: bool = False) -> ImportReport:
        """Add what an export or a backup holds. Nothing that is here is changed or lost.

        A signature that is not here comes with its pointers and log. For one that is here versions are united by
        hash, scores by id and quarantines by version; pointers stay, and what differs is listed. A second import of
        the same file does nothing.

        Args:
            path: The file.
            dry_run: Only tell what would happen.

        Raises:
            CorruptRegistry: The file is no export, or holds names that cannot be used; nothing was imported.
            StoreUnavailable: A file cannot be read or the store cannot be written.
        """
        bundle = transfer.read_export(Path(path))
        if not dry_run:
            self._keep_settings()
        report = transfer.import_bundle(self._engine, bundle, dry_run=dry_run)
        if not dry_run:
            self._engine.announce(*transfer.told("import", list(bundle.signatures), Path(path), self._engine.clock()))
        return report

    def backups(self, name: str) -> list[str]:
        """Labels of a signature's backups, oldest first; see ``backup_on_deploy``."""
        self._check(name)
        return self._store.backups(name)

    def restore_backup(self, name: str, label: str) -> ImportReport:
        """Bring a version back from a backup, as :meth:`import_registry` would; pointers stay.

        Raises:
            UnknownVersion: There is no such backup.
        """
        self._check(name)
        text = self._store.backup(name, label)
        if text is None:
            raise UnknownVersion(name, f"(backup {label})")
        return transfer.import_bundle(self._engine, transfer.parse_export(text.encode(), f"backup {label}"))

    def remove_versions(self, name: str, *, keep: int, dry_run: bool = False) -> tuple[str, ...]:
        """Remove the oldest versions that nothing holds, so that ``keep`` stay.

        Held is what an environment runs, what its rollback would take, and what has an alias.

        Args:
            name: The signature.
            keep: How many to keep, at least 1.
            dry_run: Only tell which.

        Returns:
            Their names, oldest first.

        Raises:
            UnknownSignature: There is no such signature.
        """
        self._check(name)

        def body(txn: Transaction, _: Batch) -> tuple[str, ...]:
            found = versions.prune(versions.existing(txn), max(keep, 1))
            for record in found:
                txn.remove_version(record.version_hash)
            return tuple(record.version for record in found)

        if dry_run:
            with self._read(name) as view:
                return tuple(record.version for record in versions.prune(view, max(keep, 1)))
        return self._engine.run(name, body)

    def collect_programs(self) -> int:
        """Delete stored programs that no version refers to; returns how many."""
        return self._store.collect()

    def subscribe(self, pattern: str, listener: Callable[[RegistryEvent], None]) -> Callable[[], None]:
        """Call ``listener(event)`` after each change of this registry object whose event matches.

        What a process committed and could not deliver before it died is delivered now; such events have
        ``data["redelivered"]``, and every event has a ``data["delivery_id"]`` that stays the same.

        Args:
            pattern: ``*`` and ``?`` as in file names, against the full or the short event name.
            listener: Called in the thread of the operation; what it raises is counted and changes nothing.

        Returns:
            A function that stops the calls.

        Raises:
            ConfigurationError: No event matches, or the listener is not callable.
        """
        return self._engine.subscribe(pattern, listener)

    def redeliver(self) -> int:
        """Deliver the events of processes that died; returns how many. Subscribing does it, too."""
        return self._engine.redeliver()

    def close(self) -> None:
        """Give up connections. Also done at the end of a ``with`` block."""
        self._store.close()

    def __enter__(self) -> SignatureRegistry:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # --- inside ------------------------------------------------------------------------------------------------------

    @property
    def _protected(self) -> tuple[str, ...]:
        return tuple(self._config.protected_environments)

    def _read(self, name: str) -> AbstractContextManager[View]:
        return _Existing(self._store.read(name))

    def _keep_settings(self) -> None:
        """Write the configuration into a new registry, at its first registration."""
        if not self._settled:
            kept = self._config.to_dict()
            del kept["registry_path"]
            self._store.keep_settings(kept)
            self._settled = True

    def _check(self, name: str, **others: str | None) -> None:
        """Refuse names before anything else happens; a version need not be given."""
        checked("signature", name)
        for kind, other in others.items():
            if other is not None or kind != "version":
                checked(kind, other)

    def _move(
        self, environment: str, actor: str | None, reason: str | None, trigger: str, **others: Any
    ) -> deployments.Move:
        if trigger not in _TRIGGERS:
            raise ConfigurationError("trigger", f"{trigger!r} is not known", f"Use one of {', '.join(_TRIGGERS)}")
        why = scrubbed_text(checked_text("reason", reason))
        return deployments.Move(
            environment, _EPOCH, actor_or_user(actor), why, trigger, protected=environment in self._protected, **others
        )


class _Existing(AbstractContextManager[View]):
    """A view that has to hold a signature."""

    def __init__(self, inner: AbstractContextManager[View]) -> None:
        self._inner = inner

    def __enter__(self) -> View:
        view = self._inner.__enter__()
        try:
            return versions.existing(view)
        except BaseException as error:
            self._inner.__exit__(type(error), error, error.__traceback__)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return self._inner.__exit__(kind, error, traceback)

_EPOCH: Final = datetime.fromtimestamp(0, UTC)
"""Stands in a move until its operation begins."""


def _at(move: deployments.Move, batch: Batch, **others: Any) -> deployments.Move:
    return replace(move, at=batch.time, **others)


def _mapping(value: object, path: str) -> dict[str, Any]:
    made = plain(value, path)
    if not isinstance(made, dict):
        raise NotSerialisable(path, f"a mapping is needed, not {type(value).__name__}")
    return made


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
        generation, scrubbed(_mapping(ruling.inputs, "inputs")),
    )  # fmt: skip
