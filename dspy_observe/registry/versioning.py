"""Registering, finding and loading versions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dspy_observe.registry import versions
from dspy_observe.registry.core import PRODUCTION, RegistryCore, mapping
from dspy_observe.registry.engine import Batch
from dspy_observe.registry.errors import UnknownVersion
from dspy_observe.registry.models import Version
from dspy_observe.registry.names import checked_text
from dspy_observe.registry.people import actor_or_user
from dspy_observe.registry.records import Mark
from dspy_observe.registry.stores.base import Transaction
from dspy_observe.registry.values import digest, scrubbed

__all__ = ["VersionMethods"]


class VersionMethods(RegistryCore):
    """The part of a registry that is about versions."""


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
            content = scrubbed(mapping(configuration, "configuration"))
            return versions.Draft(
                versions.configuration_hash(content), content, scrubbed(mapping(metadata or {}, "metadata")),
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
        factory: Callable[[], Any] | None = None,
        redactor: Redactor | None = None,
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
            factory: Makes the untuned program, as for :meth:`load_program`; with it, a later change of the code's
                instructions is noticed. ``None`` leaves that out.
            redactor: Takes credentials out of texts; ``None`` takes the default one.

        Raises:
            UnserialisableProgramError: Something in the program has no exact form as data.
            InvalidName, NotSerialisable, VersionExists, StoreUnavailable: As for :meth:`register_version`.
        """
        self._check(name, version=version)

        def draft() -> versions.Draft:
            from dspy_observe.registry.programs import content_hash, snapshot

            taken = snapshot(
                module, lm=lm, optimizer=optimizer, optimizer_params=optimizer_params, trainset=trainset, devset=devset,
                factory=factory, redactor=redactor,
            )  # fmt: skip
            text = taken.to_json()
            summary = {
                "module": taken.module,
                "predictors": {
                    one.path: {"instructions": one.instructions, "demos": len(one.demos)} for one in taken.predictors
                },
            }
            about = {key: value for key, value in taken.provenance().items() if value not in (None, {})}
            return versions.Draft(
                content_hash(taken), scrubbed(mapping(summary, "program")),
                scrubbed(mapping({**about, **(metadata or {})}, "metadata")), actor_or_user(author),
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

    def publish_to_mlflow(
        self,
        name: str,
        version: str | None = None,
        *,
        factory: Callable[[], Any],
        environment: str = PRODUCTION,
        model_name: str | None = None,
        alias: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        tracking_uri: str | None = None,
        **options: Any,
    ) -> Publication:
        """Log and register a version's program in MLflow, with its metadata and score as tags, and move an alias to it.

        Args:
            name: The signature.
            version: Display name, alias or hash; ``None`` takes what the environment runs.
            factory: Makes a new program with the code of today, as for :meth:`load_program`.
            environment: Used when no version is given.
            model_name: The registered model in MLflow, which refuses ``/`` and ``:``; ``None`` takes ``name``.
            alias: Moved to the new model version; ``None`` moves none.
            metadata: Further tags, which win over the version's own metadata; ``None`` adds none.
            tracking_uri: The server; ``None`` takes MLflow's own setting.
            **options: Passed on to :func:`dspy_observe.registry.programs.restore`: ``lm_for``, ``trust_source``.

        Raises:
            MlflowMissingError: MLflow is not installed.
            PublishError: MLflow refused or failed.
            UnknownSignature, UnknownVersion, CorruptVersion, IncompatibleProgramError: As for :meth:`load_program`.
        """
        from dspy_observe.registry.programs import ProgramSnapshot, publish_to_mlflow, restore

        if version is None:
            running = self.get_deployed_version(name, environment=environment)
            if running is None:
                raise UnknownVersion(name, f"(deployed in {environment})")
            version = running.version_hash
        stored = ProgramSnapshot.from_json(self.program_text(name, version))
        seen = self.get_version(name, version, environment=environment)
        own = {
            "registry.signature": name, "registry.version": seen.version, "registry.version_hash": seen.version_hash,
            "registry.performance_score": seen.performance_score, "registry.author": seen.author,
        }  # fmt: skip
        known = {key: value for key, value in {**seen.metadata, **own}.items() if value is not None}
        return publish_to_mlflow(
            stored, restore(factory, stored, **options), name=model_name or name, alias=alias,
            metadata={**known, **(metadata or {})}, tracking_uri=tracking_uri,
        )  # fmt: skip

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
