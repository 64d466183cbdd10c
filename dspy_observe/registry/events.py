"""What happens in a registry, told to whoever subscribed: after the commit, in its order, and once more after a crash.

Every start is followed by exactly one terminal event. A listener that raises is counted and logged and changes
nothing: the operation it is told about has been committed.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from dspy_observe import safety
from dspy_observe.conventions import REGISTRY_EVENTS, REGISTRY_PREFIX
from dspy_observe.errors import ConfigurationError
from dspy_observe.records import RegistryEvent

__all__ = ["DELIVERY_ID", "EventBus", "event_from", "event_row", "make_event"]

DELIVERY_ID: Final = "delivery_id"
"""Key in ``RegistryEvent.data``: the same when an event is delivered a second time."""
REDELIVERED: Final = "redelivered"
"""Key in ``RegistryEvent.data``, true when an earlier delivery may have happened."""

Listener = Callable[[RegistryEvent], None]
_KNOWN: Final = frozenset(REGISTRY_EVENTS)


def make_event(
    short: str, program: str, at: float, environment: str | None = None, version: str | None = None, **data: Any
) -> RegistryEvent:
    """An event by its short name, such as ``deploy_complete``; it has to stand in ``conventions.py``."""
    name = REGISTRY_PREFIX + short
    if name not in _KNOWN:
        raise AssertionError(f"{name} is not in conventions.REGISTRY_EVENTS")
    return RegistryEvent(name, program, at, environment, version, data)


def event_row(event: RegistryEvent) -> dict[str, Any]:
    """An event as plain data, for the outbox."""
    return {
        "name": event.name, "program": event.program, "at": event.at, "environment": event.environment,
        "version": event.version, "data": dict(event.data),
    }  # fmt: skip


def event_from(row: Mapping[str, Any], *, redelivered: bool = False) -> RegistryEvent:
    """The event that :func:`event_row` wrote."""
    data = {**row["data"], REDELIVERED: True} if redelivered else row["data"]
    return RegistryEvent(row["name"], row["program"], row["at"], row["environment"], row["version"], data)


@dataclass(frozen=True, slots=True)
class _Subscription:
    pattern: str
    listener: Listener

    def wants(self, name: str) -> bool:
        return fnmatchcase(name, self.pattern) or fnmatchcase(name.removeprefix(REGISTRY_PREFIX), self.pattern)


class EventBus:
    """Delivers events in the order in which they were put in, to all threads' listeners, one at a time."""

    def __init__(self) -> None:
        self._subscriptions: tuple[_Subscription, ...] = ()
        self._waiting: deque[RegistryEvent] = deque()
        self._lock = threading.Lock()
        self._delivering = threading.Lock()
        self._deliverer: int | None = None

    def subscribe(self, pattern: str, listener: Listener) -> Callable[[], None]:
        """Call ``listener(event)`` for each event whose name matches.

        Args:
            pattern: ``*`` and ``?`` as in file names, against the full or the short name: ``*``,
                ``dspy.registry.deploy_*``, ``rollback_complete``.
            listener: Called in the thread that did the operation, before the operation returns.

        Returns:
            A function that stops the calls.

        Raises:
            ConfigurationError: The pattern matches no event that there is, or the listener is not callable.
        """
        if not callable(listener):
            raise ConfigurationError("subscribe", f"{listener!r} is not callable", "Pass a function of one event")
        made = _Subscription(pattern, listener)
        if not any(made.wants(name) for name in REGISTRY_EVENTS):
            raise ConfigurationError(
                "subscribe", f"no registry event matches {pattern!r}", f"Use * or one of {', '.join(REGISTRY_EVENTS)}"
            )
        with self._lock:
            self._subscriptions = (*self._subscriptions, made)

        def stop() -> None:
            with self._lock:
                self._subscriptions = tuple(one for one in self._subscriptions if one is not made)

        return stop

    def put(self, events: Sequence[RegistryEvent]) -> None:
        """Queue events; the order of these calls is the order of delivery."""
        with self._lock:
            self._waiting.extend(events)

    @property
    def delivering_here(self) -> bool:
        """Whether this thread is delivering an event now, so that who asks is a listener or called by one."""
        return self._deliverer == threading.get_ident()

    def deliver(self) -> None:
        """Deliver what is queued and return when it is delivered.

        Called by a listener it returns at once: the delivery that called the listener goes on with what was added.
        """
        if self.delivering_here:
            return
        with self._delivering:
            self._deliverer = threading.get_ident()
            try:
                while True:
                    with self._lock:
                        if not self._waiting:
                            return
                        event, subscriptions = self._waiting.popleft(), self._subscriptions
                    for subscription in subscriptions:
                        if subscription.wants(event.name):
                            _tell(subscription.listener, event)
            finally:
                self._deliverer = None


def _tell(listener: Listener, event: RegistryEvent) -> None:
    try:
        listener(event)
    except Exception as error:  # noqa: BLE001 - the change is committed, whatever a listener thinks of it
        safety.swallowed("registry.listener", error)
