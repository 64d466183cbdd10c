"""Registering, finding and loading versions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dspy_observe.registry import versions
from dspy_observe.registry.core import PRODUCTION, RegistryCore, mapping
from dspy_observe.registry.engine import Batch
from dspy_observe.registry.models import Version
from dspy_observe.registry.names import checked_text
from dspy_observe.registry.people import actor_or_user
from dspy_observe.registry.records import Mark, Pointer
from dspy_observe.registry.stores.base import Transaction
from dspy_observe.registry.values import scrubbed, scrubbed_text

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
            InvalidName: A name cannot be used, or the display name looks like a hash.
            NotSerialisable: A value would not come back as it is.
            VersionExists: The display name belongs to other content, or is the alias of another version.
            StoreUnavailable: The store cannot be written.
        """
        self._check(name, version=version)

        def draft() -> versions.Draft:
            content = scrubbed(mapping(configuration, "configuration"))
            return versions.Draft(
                versions.configuration_hash(content), content, scrubbed(mapping(metadata or {}, "metadata")),
                actor_or_user(author), scrubbed_text(checked_text("program_id", program_id, 500)),
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
            InvalidName: The alias cannot be used, or is what another version may be asked for by.
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
