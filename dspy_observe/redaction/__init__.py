"""Nothing private leaves the process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dspy_observe.records import Finding
from dspy_observe.redaction.detectors import CREDENTIAL_DETECTORS, DEFAULT_DETECTORS, Detector
from dspy_observe.redaction.errors import RedactionConfigError
from dspy_observe.redaction.explain import explain
from dspy_observe.redaction.keynames import DEFAULT_ALLOW, DEFAULT_DENY_KEYS
from dspy_observe.redaction.logs import RedactingFilter, StructlogRedactor
from dspy_observe.redaction.operators import Drop, Fixed, KeyedHash, Label, Mask, Operator
from dspy_observe.redaction.options import Redaction
from dspy_observe.redaction.redactor import Redactor, credentials_only, redact

if TYPE_CHECKING:
    from dspy_observe.redaction.exporters import RedactingLogExporter as RedactingLogExporter
    from dspy_observe.redaction.exporters import RedactingSpanExporter as RedactingSpanExporter

__all__ = [
    "CREDENTIAL_DETECTORS",
    "DEFAULT_ALLOW",
    "DEFAULT_DENY_KEYS",
    "DEFAULT_DETECTORS",
    "Detector",
    "Drop",
    "Finding",
    "Fixed",
    "KeyedHash",
    "Label",
    "Mask",
    "Operator",
    "RedactingFilter",
    "RedactingLogExporter",
    "RedactingSpanExporter",
    "Redaction",
    "RedactionConfigError",
    "Redactor",
    "StructlogRedactor",
    "credentials_only",
    "explain",
    "redact",
]


def __getattr__(name: str) -> Any:
    if name in ("RedactingLogExporter", "RedactingSpanExporter"):
        from dspy_observe.redaction import exporters  # noqa: PLC0415 - OpenTelemetry is loaded only when asked for

        return getattr(exporters, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
