"""What every operation of a registry has in common: one transaction, its events around it, one order for both."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

from dspy_observe import safety
from dspy_observe.records import RegistryEvent
from dspy_observe.registry.deployments import new_id
from dspy_observe.registry.errors import StoreUnavailable
from dspy_observe.registry.events import DELIVERY_ID, EventBus, Listener, event_from, event_row, make_event
from dspy_observe.registry.records import moment
from dspy_observe.registry.stores.base import Notice, Store, Transaction
from dspy_observe.registry.stores.owner import this_process
from dspy_observe.registry.values import scrubbed_text

__all__ = ["Batch", "Engine"]

T = TypeVar("T")


class Batch:
    """The events of one commit, in order.

    Args:
        program: The signature.
        at: Unix time in seconds.
    """

    def __init__(self, program: str, at: float) -> None:
        self._program = program
        self.at = at
        self.events: list[RegistryEvent] = []

    @property
    def time(self) -> datetime:
        """When the operation happens, UTC."""
        return moment(self.at)

    def tell(self, short: str, environment: str | None = None, version: str | None = None, **data: Any) -> None:
        """Add an event that is told if the commit succeeds."""
        self.events.append(make_event(short, self._program, self.at, environment, version, **data))


class Engine:
    """Runs operations on a store.

    Args:
        store: Where the registry lives.
        clock: Gives Unix time in seconds.
    """

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self.store = store
        self.clock = clock
        self._bus = EventBus()
        self._order = threading.Lock()
        self._listeners = 0

    def run(
        self,
        name: str,
        body: Callable[[Transaction, Batch], T],
        *,
        operation: str | None = None,
        environment: str | None = None,
        version: str | None = None,
    ) -> T:
        """Run one operation: start event, transaction, and after the commit its events; or an error event.

        Args:
            name: The signature.
            body: Does the work on the transaction and adds events to the batch, the terminal one included.
            operation: ``register``, ``deploy`` or ``rollback``; ``None`` for operations without a start event.
            environment: For start and error events.
            version: For start and error events.
        """
        batch = Batch(name, self.clock())
        if operation is not None:
            self.announce(make_event(f"{operation}_start", name, batch.at, environment, version))
        try:
            with self._order:
                with self.store.write(name) as txn:
                    result = body(txn, batch)
                    notices = self._notices(batch)
                    for notice in notices:
                        txn.add_notice(notice)
                self._bus.put([event_from(notice.event) for notice in notices] or batch.events)
        except BaseException as error:
            if operation is not None:
                what = scrubbed_text(str(error)[:500])
                data = {"error": what, "error_type": type(error).__name__}
                self.announce(make_event(f"{operation}_error", name, self.clock(), environment, version, **data))
            raise
        self._bus.deliver()
        self._forget([notice.delivery_id for notice in notices])
        return result

    @property
    def telling(self) -> bool:
        """Whether this thread is telling an event now."""
        return self._bus.delivering_here

    def announce(self, *events: RegistryEvent) -> None:
        """Tell events that belong to no commit."""
        self._bus.put(events)
        self._bus.deliver()

    def subscribe(self, pattern: str, listener: Listener) -> Callable[[], None]:
        """See :meth:`EventBus.subscribe`; also delivers what a process that died has left."""
        stop = self._bus.subscribe(pattern, listener)
        self._listeners += 1
        try:
            self.redeliver()
        except StoreUnavailable as error:  # a registry that is mounted read-only can be listened to
            safety.swallowed("registry.redeliver", error)

        def stop_once() -> None:
            nonlocal stop
            stop()
            self._listeners -= 1
            stop = _nothing

        return lambda: stop_once() if stop is not _nothing else None

    def redeliver(self) -> int:
        """Deliver events that were committed by a process that died before it could; returns how many."""
        notices = self.store.take_notices(this_process(), self.clock())
        self.announce(*(event_from(notice.event, redelivered=True) for notice in notices))
        self._forget([notice.delivery_id for notice in notices])
        return len(notices)

    def _notices(self, batch: Batch) -> list[Notice]:
        """The batch for the outbox; without anybody to tell there is nothing to keep."""
        if not self._listeners:
            return []
        made = []
        for event in batch.events:
            delivery_id = new_id()
            row = event_row(event)
            row["data"][DELIVERY_ID] = delivery_id
            made.append(Notice(delivery_id, event.program, this_process(), batch.at, row))
        return made

    def _forget(self, delivery_ids: list[str]) -> None:
        if not delivery_ids:
            return
        try:
            self.store.forget(delivery_ids)
        except StoreUnavailable as error:  # they are delivered a second time, with the same id
            safety.swallowed("registry.forget", error)


def _nothing() -> None:
    """What a stopped subscription stops."""
