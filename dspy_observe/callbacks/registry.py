"""Versions and quality: registry events, evaluations and scores as metrics; compiled programs as versions.

What you get
    Which version is deployed since when, what happened in the registry, how rollbacks ended, how good answers and
    evaluations are. With a manager, the other way as well: what optimizers return is registered, and evaluations are
    booked on the versions that were evaluated.
Metrics
    ``dspy_registry_events_total``, ``dspy_deployed_version_info``, ``dspy_deployment_timestamp_seconds``,
    ``dspy_rollbacks_total``, ``dspy_score``, ``dspy_evaluation_score``.
Options
    :class:`~dspy_observe.metrics.Metrics`.
Order and composition
    Any. Hand registry events to :meth:`RegistryEventCallback.happened`, as in
    ``registry.subscribe("*", callback.happened)``; ``configure(registry=...)`` subscribes for you, tells every
    callback, and passes the manager on.
"""

from __future__ import annotations

from functools import cached_property
from typing import Final

from dspy_observe.callbacks.base import RecordCallback
from dspy_observe.callbacks.registration import Manager, Registrar
from dspy_observe.conventions import REGISTRY_PREFIX
from dspy_observe.metrics import Metrics, instruments
from dspy_observe.readers import Reader
from dspy_observe.records import CallRecord, RegistryEvent, Score

__all__ = ["RegistryEventCallback"]

_MOVES: Final = frozenset({"deploy_complete", "rollback_complete"})
_ROLLBACK_ENDS: Final = {"rollback_complete": "complete", "rollback_error": "error"}


class RegistryEventCallback(RecordCallback):
    """Receive registry events, evaluations and scores, and export them as Prometheus metrics.

    Args:
        metrics: Registry and label ceiling; ``None`` takes the defaults and the environment.
        manager: Registers what an optimizer's outermost ``compile`` returns, under the student's tracked name, else its
            class name, where its ``integration_config.auto_register_optimizations`` says so; the result is tracked as
            that version. It also books each evaluation of an instance that is tracked with a version, with the data
            set's name and the number of examples. ``None`` does neither.
    """

    kinds = frozenset({"evaluate"})

    def __init__(self, metrics: Metrics | None = None, *, manager: Manager | None = None) -> None:
        self._registrars = () if manager is None else (Registrar(manager),)
        own = instruments(metrics)
        self._instruments = own
        self._events = own["dspy_registry_events_total"]
        self._deployed = own["dspy_deployed_version_info"]
        self._deployed_at = own["dspy_deployment_timestamp_seconds"]
        self._rollbacks = own["dspy_rollbacks_total"]
        self._score = own["dspy_score"]
        self._evaluation = own["dspy_evaluation_score"]
        self._current: dict[tuple[str, str | None], str] = {}

    @cached_property
    def readers(self) -> tuple[Reader, ...]:
        """The callback itself, and who registers for its manager.

        Two readers, as callbacks on the same metrics count once while each manager is told.
        """
        return (self, *self._registrars)

    @property
    def identity(self) -> object:
        return ("registry", id(self._instruments))

    def finished(self, record: CallRecord) -> None:
        if record.score is not None:
            self._evaluation.child(record.program, record.version, record.dataset).set(record.score)

    def happened(self, event: RegistryEvent) -> None:
        """Book one registry event.

        Args:
            event: What changed; events of one program arrive in the order of their commits.
        """
        short = event.name.removeprefix(REGISTRY_PREFIX)
        self._events.child(event.program, short).inc()
        if short in _MOVES and event.version is not None:
            self._show((event.program, event.environment), event.version, event.at)
        if short in _ROLLBACK_ENDS:
            trigger = event.data.get("trigger")
            trigger = trigger if trigger in ("alert", "monitor", "manual") else None
            self._rollbacks.child(event.program, event.environment, trigger, _ROLLBACK_ENDS[short]).inc()

    def stands(self, program: str, environment: str, version: str, at: float) -> None:
        """Show a version that was deployed before anybody listened; what was heard since counts more.

        Args:
            program: The signature.
            environment: Where it is deployed.
            version: The version's name.
            at: Unix time of the deployment in seconds.
        """
        key = (program, environment)
        if key not in self._current:
            self._show(key, version, at)

    def _show(self, key: tuple[str, str | None], version: str, at: float) -> None:
        before = self._current.get(key)
        if before is not None and before != version:
            self._deployed.child(*key, before).set(0)
            self._deployed.remove(*key, before)
        self._current[key] = version
        self._deployed.child(*key, version).set(1)
        self._deployed_at.child(*key).set(at)

    def scored(self, score: Score) -> None:
        """Book one score on the version that gave the answer."""
        series = self._score.child(score.program, score.version, score.role, score.source)
        series.observe(score.value, score.trace_id, score.at)
