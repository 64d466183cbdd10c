"""The time series of a serving process: what it answers with, how old its knowledge is, and zeros where alerts look."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

import dspy

from dspy_observe.metrics import Metrics, instruments
from dspy_observe.registry.programs.walking import parameters

__all__ = ["Seen", "Series"]

_CALL_ENDS: Final = ("ok", "error")
_REQUEST_ENDS: Final = ("ok", "error", "rate_limited", "timeout")


class Seen:
    """When the registry was last read."""

    def __init__(self) -> None:
        self.at = time.monotonic()
        """Monotonic seconds."""

    def age_s(self) -> float:
        """Seconds since then."""
        return max(0.0, time.monotonic() - self.at)


class Series:
    """Metrics of one program in one environment.

    Args:
        metrics: Registry and label ceiling; ``None`` takes the defaults and the environment.
        program: Its name.
        environment: Where it runs.
    """

    def __init__(self, metrics: Metrics | None, program: str, environment: str) -> None:
        own = instruments(metrics)
        self._own = own
        self._place = (program, environment)
        self._info = own["dspy_serving_version_info"]
        self._share = own["dspy_traffic_share"]
        self._stale = own["dspy_registry_stale_seconds"]
        self._served: frozenset[tuple[str | None, str]] = frozenset()
        self._shared: frozenset[tuple[str | None, str]] = frozenset()
        self._ages = False

    def prepare(self, program: Any, version: str | None, role: str) -> None:
        """Make the series of a version that alerts compare with others, at 0: a rate needs a first value."""
        name = self._place[0]
        for status in _CALL_ENDS:
            self._own["dspy_program_duration_seconds"].child(name, version, role, status)
        for model in _models(program):
            for status in _REQUEST_ENDS:
                self._own["dspy_requests_total"].child(name, version, model, status)
        # ChatAdapter, the default, tries JSONAdapter when a reply cannot be parsed.
        for adapter in {type(dspy.settings.adapter or dspy.ChatAdapter()).__name__, "JSONAdapter"}:
            self._own["dspy_adapter_failures_total"].child(name, version, adapter, "parse")

    def serves(self, arms: Iterable[tuple[str | None, str]]) -> None:
        """Say which versions answer, each with its role; those before that are not among them go."""
        now = frozenset(arms)
        for version, role in self._served - now:
            self._info.child(*self._place, version, role).set(0)
            self._info.remove(*self._place, version, role)
        for version, role in now:
            self._info.child(*self._place, version, role).set(1)
        self._served = now

    def shares(self, shares: Mapping[tuple[str | None, str], float]) -> None:
        """Say what part of the traffic each version gets, by version and role."""
        now = frozenset(shares)
        for version, role in self._shared - now:
            self._share.child(*self._place, version, role).set(0)
            self._share.remove(*self._place, version, role)
        for (version, role), share in shares.items():
            self._share.child(*self._place, version, role).set(share)
        self._shared = now

    def ages(self, seen: Seen) -> None:
        """Show how old what is known of the registry is; to be called at every look.

        Args:
            seen: When it was last read.
        """
        if (
            self._own.multiprocess
        ):  # the shared files of several processes hold plain numbers, and go with their process
            self._stale.child(*self._place).set(seen.age_s())
        elif not self._ages:
            self._stale.child(*self._place).set_function(seen.age_s)
            self._ages = True

    def dropped(self, reason: str) -> None:
        """Count a shadow call that was left out."""
        self._own["dspy_shadow_dropped_total"].child(self._place[0], reason).inc()

    def close(self) -> None:
        """Take away what says that this process serves."""
        self.serves(())
        self.shares({})
        if self._ages:
            self._stale.remove(*self._place)
            self._ages = False


def _models(program: Any) -> set[str]:
    """The names of the LMs that the program's predictors will ask, where they are known."""
    lms = [getattr(one, "lm", None) or dspy.settings.lm for one in parameters(program).values()]
    return {lm.model for lm in lms if isinstance(getattr(lm, "model", None), str)}
