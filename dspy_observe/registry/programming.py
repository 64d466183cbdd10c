"""Whole DSPy programs as versions: taken apart, built again, published. DSPy is loaded when one is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from dspy_observe.registry import versions
from dspy_observe.registry.core import PRODUCTION, mapping
from dspy_observe.registry.errors import UnknownVersion
from dspy_observe.registry.models import Version
from dspy_observe.registry.names import checked_text
from dspy_observe.registry.people import actor_or_user
from dspy_observe.registry.values import digest, scrubbed, scrubbed_text
from dspy_observe.registry.versioning import VersionMethods

if TYPE_CHECKING:
    from dspy_observe.redaction import Redactor
    from dspy_observe.registry.programs import Publication

__all__ = ["ProgramMethods"]


class ProgramMethods(VersionMethods):
    """The part of a registry that is about programs."""

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
                scrubbed_text(checked_text("program_id", program_id, 500)), digest(text), text,
            )  # fmt: skip

        return self._register(name, draft, version)

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
                    raise UnknownVersion.nothing_deployed(name, environment)
                record = versions.with_hash(view, pointer.version_hash)
            else:
                record = versions.resolve(view, version)
        text = versions.check_content(self._store, record)
        if text is None:
            problem = f"{name} {record.version} holds no program: only a configuration was registered"
            raise UnknownVersion(name, record.version, problem=problem)
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
                raise UnknownVersion.nothing_deployed(name, environment)
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
