"""What a delivery of Alertmanager leads to, alert by alert. Runs in worker threads; knows nothing of HTTP."""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final

from dspy_observe import safety
from dspy_observe.conventions import ALERT_ACTION_ROLLBACK
from dspy_observe.errors import ObserveError
from dspy_observe.metrics import Instruments
from dspy_observe.registry.signatures import SignatureRegistry
from dspy_observe.rollback.alerts import Alert, AlertError, Delivery
from dspy_observe.rollback.deciding import Answer, preview, settle
from dspy_observe.rollback.freshness import Fresh
from dspy_observe.rollback.policy import Limits, Request
from dspy_observe.rollback.prometheus import Prometheus

__all__ = ["Handled", "Handler"]

_ACTOR: Final = "alertmanager"
_REASON_CHARS: Final = 300
_REMEMBERED: Final = 50
"""Answers about programs that the registry does not have, which it cannot keep."""

_SITE: Final = "receiver.judge"
_BOOKING: Final = safety.guard("receiver.book")
"""A number that cannot be counted is no reason to call what was decided undecided."""

_logger = logging.getLogger("dspy_observe")


@dataclass(slots=True)
class Handled:
    """What became of a delivery."""

    answers: list[dict[str, Any]] = field(default_factory=list)
    ignored: int = 0
    """Alerts that ask for nothing here."""
    committed: int = 0
    unusable: int = 0
    """Alerts that ask for a rollback and do not say of what."""
    failed: int = 0
    """Alerts whose decision could not be stored."""
    away: Fresh | None = None
    """What an alert learned of a Prometheus that did not answer; the alerts after it do not wait for it again."""

    @property
    def status(self) -> int:
        """The HTTP status: 503 only where nothing was stored and a second delivery may be; 400 for nothing usable.

        Alertmanager sends again after 5xx, and not after 4xx.
        """
        if self.failed and not self.committed:
            return 503
        if self.unusable and not (self.committed or self.ignored or len(self.answers) > self.unusable):
            return 400
        return 200


class Handler:
    """Judges alerts.

    Args:
        registry: Where decisions are stored and carried out.
        limits: How far rolling back by itself may go.
        numbers: Where they are counted.
        prometheus: Who is asked for fresh data; ``None`` asks nobody.
        mode: Caps every program's own mode: of the two, the one that allows less counts.
    """

    def __init__(
        self,
        registry: SignatureRegistry,
        limits: Limits,
        numbers: Instruments,
        *,
        prometheus: Prometheus | None = None,
        mode: str = "auto",
    ) -> None:
        self.registry = registry
        self.limits = limits
        self.mode = mode
        self.prometheus = prometheus
        self.watchdog_at: float | None = None
        """Unix time of the last watchdog alert; ``None`` before the first."""
        self.unstored: deque[dict[str, Any]] = deque(maxlen=_REMEMBERED)
        self._numbers = numbers
        self._lock = threading.Lock()

    def handle(self, delivery: Delivery) -> Handled:
        """Judge every alert; what is wrong with one does not keep back the others."""
        made = Handled()
        for alert in delivery.alerts:
            if alert.is_watchdog:
                with _BOOKING:
                    self._watchdog(alert)
            if alert.action != ALERT_ACTION_ROLLBACK:
                made.ignored += 1
                continue
            told = {"fingerprint": alert.fingerprint, "alertname": alert.name, "status": alert.status}
            try:
                answer = self._answer(alert, delivery, made)
            except AlertError as error:
                made.unusable += 1
                made.answers.append({**told, "outcome": "rejected", "reason": str(error), "decision_id": None})
                continue
            except Exception as error:  # noqa: BLE001 - it is told, logged and counted, and the next alert is judged
                made.failed += 1
                reason = self._failed(alert, error)
                made.answers.append({**told, "error": type(error).__name__, "reason": reason, "decision_id": None})
                continue
            made.committed += answer.decision is not None
            with _BOOKING:
                self._book(answer, alert)
            made.answers.append({**told, **answer.to_dict()})
        return made

    def _failed(self, alert: Alert, error: Exception) -> str:
        """Count and log why an alert was not decided; gives what the sender may know of it."""
        with _BOOKING:
            self._numbers["dspy_rollbacks_total"].child(alert.program, alert.environment, "alert", "error").inc()
        if isinstance(error, ObserveError):
            _logger.error("dspy_observe: an alert about %s was not decided: %s", alert.program, error)
            return str(error)
        safety.swallowed(_SITE, error)
        _logger.error("dspy_observe: an alert about %s could not be judged", alert.program, exc_info=error)
        return "it could not be judged; see the receiver's log"

    def _watchdog(self, alert: Alert) -> None:
        if not alert.firing:
            return
        now = self.registry.now().timestamp()
        with self._lock:
            self.watchdog_at = now
        self._numbers["dspy_watchdog_timestamp_seconds"].child().set(now)

    def _answer(self, alert: Alert, delivery: Delivery, made: Handled) -> Answer:
        program, version = alert.program, alert.version
        if program is None or version is None:
            missing = "program" if program is None else "version"
            raise AlertError(f"the alert asks for a rollback and has no label {missing}")
        fingerprint, starts_at = alert.key
        request = Request(
            trigger="alert", program=program, environment=alert.environment, version=version, firing=alert.firing,
            started_at=alert.starts_at, fingerprint=fingerprint, dry_run=alert.is_dry_run, mode=self.mode,
            signal=alert.signal, reason=_reason(alert), inputs=_inputs(alert, delivery, starts_at),
        )  # fmt: skip
        prometheus = self.prometheus
        if prometheus is not None and not alert.is_dry_run:
            looked = preview(self.registry, request, self.limits, starts_at=starts_at)
            # It would roll back, or wait for a person, who is then to see the figures.
            if looked.outcome == "rollback" or (looked.outcome == "held" and looked.inputs["mode"] != "off"):
                running = looked.inputs["deployed"]
                fresh = made.away or prometheus.fresh(alert, program, running or version)
                made.away = fresh if fresh.away else None
                request = replace(request, fresh=fresh)
        return settle(self.registry, request, self.limits, starts_at=starts_at, actor=_ACTOR)

    def _book(self, answer: Answer, alert: Alert) -> None:
        place = (answer.program, answer.environment)
        self._numbers["dspy_decisions_total"].child(*place, "alert", answer.outcome).inc()
        if answer.decision is None:
            at = datetime.now(UTC).isoformat()
            with self._lock:
                self.unstored.append({**answer.to_dict(), "at": at})
        elif answer.decision.applied:
            self._numbers["dspy_rollbacks_total"].child(*place, "alert", "complete").inc()
            took = (answer.decision.at - alert.starts_at).total_seconds()
            self._numbers["dspy_rollback_duration_seconds"].child(*place).observe(max(0.0, took))
        level = logging.WARNING if answer.outcome in ("rollback", "held", "rejected") else logging.INFO
        said = f"{answer.program} in {answer.environment}: {answer.outcome}: {answer.reason}"
        _logger.log(level, "dspy_observe: %s", said if answer.decision is None else f"{said} (alert {alert.name})")


def _reason(alert: Alert) -> str:
    words = alert.annotations.get("summary") or alert.annotations.get("description") or "an alert is firing"
    return f"{alert.name or 'alert'}: {words}"[:_REASON_CHARS]


def _inputs(alert: Alert, delivery: Delivery, starts_at: str) -> dict[str, Any]:
    labels = alert.kept_labels
    left_out = len(alert.labels) - len(labels)
    return {
        "labels": labels, **({"labels_left_out": left_out} if left_out else {}),
        "status": alert.status, "starts_at": starts_at,
        "ends_at": None if alert.ends_at is None else alert.ends_at.isoformat(), "fingerprint": alert.fingerprint,
        "generator_url": alert.generator_url, "group_key": delivery.group_key, "receiver": delivery.receiver,
        "external_url": delivery.external_url, "truncated_alerts": delivery.truncated_alerts,
    }  # fmt: skip
