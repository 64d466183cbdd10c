"""What all parts of the registry's public face stand on: options, store, names, events."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Any, Final, Self

from dspy_observe.errors import ConfigurationError
from dspy_observe.records import RegistryEvent
from dspy_observe.registry import deployments, versions
from dspy_observe.registry.engine import Batch, Engine
from dspy_observe.registry.errors import NotSerialisable
from dspy_observe.registry.events import make_event
from dspy_observe.registry.names import checked, checked_text
from dspy_observe.registry.options import RegistryConfig
from dspy_observe.registry.people import actor_or_user
from dspy_observe.registry.records import moment
from dspy_observe.registry.stores import open_store
from dspy_observe.registry.stores.base import View
from dspy_observe.registry.values import plain, scrubbed_text

__all__ = ["PRODUCTION", "RegistryCore", "at_now", "mapping"]

PRODUCTION: Final = "production"
"""The environment that is meant when none is named."""
_TRIGGERS: Final = ("manual", "auto", "alert", "monitor")
_EPOCH: Final = datetime.fromtimestamp(0, UTC)
"""Stands in a move until its operation begins."""


class RegistryCore:
    """An opened registry."""

    def __init__(
        self, config: RegistryConfig | str | Path | None = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        if isinstance(config, str | os.PathLike):
            config = RegistryConfig(registry_path=config)
        given = config if config is not None else RegistryConfig()
        if not isinstance(given, RegistryConfig):
            raise ConfigurationError("registry", f"{given!r:.80} is no config", "Pass a RegistryConfig or a path")
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

    def now(self) -> datetime:
        """The registry's clock, UTC."""
        return moment(self._engine.clock())

    def tell(
        self, event: str, name: str, *, environment: str | None = None, version: str | None = None, **data: Any
    ) -> None:
        """Tell subscribers what happened outside the store, such as a version that could not be loaded.

        Args:
            event: The short name, such as ``reload_error``.
            name: The signature.
            environment: Where it happened; ``None`` when that means nothing.
            version: The version that it is about.
            **data: What else is to be known; no content, no credentials.
        """
        self._engine.announce(make_event(event, name, self._engine.clock(), environment, version, **data))

    @property
    def telling(self) -> bool:
        """Whether a listener of this registry object runs in this thread now.

        It must not wait for other threads that use the registry, as they may wait for it.
        """
        return self._engine.telling

    def changes(self, name: str, stop: Event) -> Iterator[None] | None:
        """Hints that a signature may have changed, for a thread that waits for them; polling stays necessary.

        Args:
            name: The signature.
            stop: Ends the waiting when it is set, within about a second.

        Returns:
            Blocks, and yields once soon after it began to watch and then at changes, some of which it may miss;
            ``None`` where there is nothing to wait for.

        Raises:
            StoreUnavailable: The source was lost; also while iterating. Ask again later.
        """
        self._check(name)
        return self._store.changes(name, stop)

    def close(self) -> None:
        """Give up connections. Also done at the end of a ``with`` block."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def view(self, name: str) -> AbstractContextManager[View]:
        """One consistent view of a signature, for reading several things at once. What it returns is shared: only read.

        Raises:
            UnknownSignature: There is no such signature.
        """
        self._check(name)
        return self._read(name)

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


def at_now(move: deployments.Move, batch: Batch, **others: Any) -> deployments.Move:
    """The move as it begins now."""
    return replace(move, at=batch.time, **others)


def mapping(value: object, path: str) -> dict[str, Any]:
    """A plain copy of a mapping.

    Raises:
        NotSerialisable: It is no mapping, or something in it would not come back as it is.
    """
    made = plain(value, path)
    if not isinstance(made, dict):
        raise NotSerialisable(path, f"a mapping is needed, not {type(value).__name__}")
    return made
