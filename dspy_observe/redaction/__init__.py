"""Nothing private leaves the process, and no answer changes: redaction works on copies.

::

    from dspy_observe.redaction import Redaction, Redactor, redact

    redact("mail a.b@example.com or call 13812345678")   # 'mail <EMAIL> or call <PHONE>'
    copy, findings = Redactor().redact({"messages": [{"content": "IBAN DE82 3704 0044 0532 0139 99"}]})
    findings[0]                                          # Finding(entity='IBAN', path='messages[0].content')

What is detected
    Personal: e-mail addresses (also beside Chinese, percent-encoded, internationalised), telephone numbers (Chinese
    mobiles and landlines, ``+`` with 8 to 15 digits, punctuated North American ones, others near a word such as
    ``phone`` or ``\u7535\u8bdd``), payment cards (Luhn and issuer), Chinese resident identity numbers (check digit),
    IBANs, US social security numbers, IPv4 and IPv6 addresses (not loopback).
    Credentials: PEM private keys with their body, JSON web tokens, passwords and tokens in URLs, ``Authorization`` and
    cookie headers, the key forms of some hundred providers, ``key=value`` secrets in plain text, JSON, escaped JSON,
    ``repr``, flags and Chinese, and literally whatever this process knows as a secret: environment variables named
    like one, and an LM's ``api_key``. Credentials are removed in every mode: :func:`credentials_only` is what raw
    content passes. Whole values under names such as ``password`` or ``X-Api-Key`` are dropped, whatever they hold.

What is not detected
    Names of people and companies, postal addresses, dates of birth, plates, health data, national identity numbers
    other than Chinese and US ones; seven-digit telephone numbers without a word that says so; passwords of letters
    only in running text; anything in pictures, audio or other bytes (these leave as their length); text somebody
    encoded again (base64, hex, spelled-out digits).

How to add it
    A pattern, with a check and words that must be near it::

        badge = Detector("BADGE", pattern=r"[A-Z]{2}-[0-9]{6}", validator=checksum, context=("badge", "\u5de5\u53f7"))
        Redactor(Redaction(detectors=(*DEFAULT_DETECTORS, badge)))

    Or any function from a text to (start, end) pairs. A model for names takes milliseconds to seconds per text: run it
    off the program's path, in the process that exports (:class:`RedactingSpanExporter` behind a batch processor)::

        from presidio_analyzer import AnalyzerEngine

        analyzer = AnalyzerEngine()

        def person(text):
            return [(hit.start, hit.end) for hit in analyzer.analyze(text, language="en", entities=["PERSON"])]

        exporter = RedactingSpanExporter(otlp, Redaction(detectors=(*DEFAULT_DETECTORS, person)))

What replaces it
    ``<EMAIL>`` by default; by entity a :class:`Label`, a :class:`Fixed` text, a :class:`Mask` that keeps the last
    characters, :class:`Drop`, or a :class:`KeyedHash` to tell equal values apart. Redacting twice gives the same as
    once. A text beyond ``scan_limit_chars`` is cut, never passed on unseen, and ends in ``<TRUNCATED n CHARS>``.

When it fails
    It fails closed: the value becomes ``[REDACTION_ERROR:TypeName len=n]``, ``Redactor.failures`` counts it, and the
    program is not affected.

Signals of others
    :class:`RedactingSpanExporter` and :class:`RedactingLogExporter` wrap any OpenTelemetry exporter,
    :class:`StructlogRedactor` is a structlog processor, :class:`RedactingFilter` a filter for :mod:`logging`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dspy_observe.records import Finding
from dspy_observe.redaction.detectors import CREDENTIAL_DETECTORS, DEFAULT_DETECTORS, Detector
from dspy_observe.redaction.errors import RedactionConfigError
from dspy_observe.redaction.explain import explain
from dspy_observe.redaction.keynames import DEFAULT_ALLOW, DEFAULT_DENY_KEYS
from dspy_observe.redaction.logs import RedactingFilter, StructlogRedactor
from dspy_observe.redaction.names import redact_event, redact_given_name, redact_name, redact_score
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
    "redact_event",
    "redact_given_name",
    "redact_name",
    "redact_score",
]


def __getattr__(name: str) -> Any:
    if name in ("RedactingLogExporter", "RedactingSpanExporter"):
        from dspy_observe.redaction import exporters

        return getattr(exporters, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
