"""Nothing private in what is exported.

What you get
    The content of every record (inputs, outputs, error texts) passes the redactor before any other callback sees it.
    The program's own data is never touched: redaction works on copies.
Metrics
    ``dspy_redactions_total{entity}``, ``dspy_redaction_failures_total``.
Options
    :class:`~dspy_observe.redaction.Redaction` and :class:`~dspy_observe.metrics.Metrics`.
Order and composition
    Any: ``[OTelCallback(...), RedactionCallback()]`` is as safe as the reverse. Without a redactor in force, content is
    left out. It does not shield callbacks of other packages, which read DSPy's own objects.
"""

from __future__ import annotations

from dspy_observe.callbacks.base import RecordCallback
from dspy_observe.metrics import Metrics, instruments
from dspy_observe.records import CallRecord
from dspy_observe.redaction import Redaction, Redactor

__all__ = ["RedactionCallback"]


class RedactionCallback(RecordCallback):
    """Redact the content of records, for all callbacks, and count what was found.

    Args:
        redaction: Detectors and how they replace; ``None`` takes the defaults.
        metrics: Registry and label ceiling; ``None`` takes the defaults and the environment.
    """

    redactor: Redactor
    passive = True

    def __init__(self, redaction: Redaction | None = None, metrics: Metrics | None = None) -> None:
        own = instruments(metrics)
        self._instruments = own
        self._redactions = own["dspy_redactions_total"]
        failures = own["dspy_redaction_failures_total"]
        self.redactor = Redactor(redaction, on_failure=lambda *_: failures.child().inc())

    @property
    def identity(self) -> object:
        return ("redaction", id(self.redactor))

    def finished(self, record: CallRecord) -> None:
        for finding in record.findings:
            self._redactions.child(finding.entity).inc()
