"""How every program of a registry stands, as gauges: read when they are scraped, at most once a second."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from typing import Final

from dspy_observe import safety
from dspy_observe.errors import ObserveError
from dspy_observe.metrics import Instruments
from dspy_observe.registry.errors import CorruptRegistry
from dspy_observe.registry.signatures import SignatureRegistry
from dspy_observe.rollback.policy import OUTCOMES, Limits

__all__ = ["Gauges"]

_EVERY_S: Final = 1.0
_HOUR: Final = timedelta(hours=1)


class Gauges:
    """Keeps deployed versions, freezes and budgets up to date.

    Args:
        registry: Where they stand.
        limits: The budget.
        numbers: Where they are shown.
    """

    def __init__(self, registry: SignatureRegistry, limits: Limits, numbers: Instruments) -> None:
        self._registry = registry
        self._limits = limits
        self._numbers = numbers
        self._shown: dict[tuple[str, str], str] = {}
        self._lock = threading.Lock()
        self._next = 0.0

    def refresh(self) -> None:
        """Look again; where the registry does not answer, what was shown stays, and the failure is counted.

        A program that cannot be read does not hide the others.
        """
        with self._lock:
            if time.monotonic() < self._next:
                return
            try:
                for program in self._registry.list_signatures():
                    self._guarded(program)
            except ObserveError as error:
                safety.swallowed("receiver.refresh", error)
            self._next = time.monotonic() + _EVERY_S

    def _guarded(self, program: str) -> None:
        try:
            self._program(program)
        except CorruptRegistry as error:
            safety.swallowed("receiver.refresh", error)

    def _program(self, program: str) -> None:
        numbers = self._numbers
        for pointer in self._registry.pointers(program):
            place = (program, pointer.environment)
            before = self._shown.get(place)
            deployed = numbers["dspy_deployed_version_info"]
            if before is not None and before != pointer.version:
                deployed.child(*place, before).set(0)
                deployed.remove(*place, before)
            if before is None:  # a counter that is born with its first event hides it from increase()
                for outcome in OUTCOMES:
                    numbers["dspy_decisions_total"].child(*place, "alert", outcome).inc(0)
                for outcome in ("complete", "error"):
                    numbers["dspy_rollbacks_total"].child(*place, "alert", outcome).inc(0)
            self._shown[place] = pointer.version
            deployed.child(*place, pointer.version).set(1)
            numbers["dspy_deployment_timestamp_seconds"].child(*place).set(pointer.at.timestamp())
            standing = self._registry.standing(program, environment=pointer.environment)
            control = standing.control
            recent = sum(
                standing.now - one.at < _HOUR and (control.unfrozen_at is None or one.at > control.unfrozen_at)
                for one in standing.rollbacks
            )
            left = max(0, self._limits.max_rollbacks_per_hour - recent)
            numbers["dspy_rollback_frozen"].child(*place).set(control.frozen)
            numbers["dspy_rollback_budget_remaining"].child(*place).set(left)
