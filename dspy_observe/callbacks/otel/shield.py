"""``Redaction(foreign_signals=True)``: redact the spans and log records that other libraries produce.

They leave through the exporters of the application's providers, so each exporter is put behind one that redacts, and
taken out again on close. The SDK has no public way to reach a processor's exporter; where a provider keeps none that
can be reached, that is an error, because the user has asked for a promise and not for an attempt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from dspy_observe.errors import ConfigurationError
from dspy_observe.redaction import RedactingLogExporter, RedactingSpanExporter, Redactor

__all__ = ["shield_logs", "shield_spans"]

_FIX = "Wrap its exporter in dspy_observe.redaction.RedactingSpanExporter yourself and leave foreign_signals off"


def shield_spans(provider: Any, redactor: Redactor) -> Callable[[], None]:
    """Redact every span that leaves through a tracer provider of the SDK.

    Args:
        provider: The tracer provider in force.
        redactor: What redacts.

    Returns:
        A function that puts the exporters back.

    Raises:
        ConfigurationError: The provider's exporters cannot be reached.
    """
    return _shield(provider, "_active_span_processor", lambda exporter: RedactingSpanExporter(exporter, redactor))


def shield_logs(provider: Any, redactor: Redactor) -> Callable[[], None]:
    """Redact every log record that leaves through a logger provider of the SDK.

    Args:
        provider: The logger provider in force; nothing is done where the application has set none.
        redactor: What redacts.

    Returns:
        A function that puts the exporters back.

    Raises:
        ConfigurationError: The provider's exporters cannot be reached.
    """
    if not hasattr(provider, "_multi_log_record_processor"):  # none was set
        return lambda: None
    return _shield(provider, "_multi_log_record_processor", lambda exporter: RedactingLogExporter(exporter, redactor))


def _shield(provider: Any, attribute: str, wrap: Callable[[Any], Any]) -> Callable[[], None]:
    places = list(_exporters(getattr(provider, attribute, None)))
    if not places:
        kind = type(provider).__name__
        raise ConfigurationError("Redaction.foreign_signals", f"{kind} shows no exporter to redact for", _FIX)
    wrapped = [(holder, name, getattr(holder, name)) for holder, name in places]
    for holder, name, exporter in wrapped:
        setattr(holder, name, wrap(exporter))

    def restore() -> None:
        for holder, name, exporter in wrapped:
            setattr(holder, name, exporter)

    return restore


def _exporters(processor: Any) -> Iterator[tuple[Any, str]]:
    """Where the exporters of a processor, and of those below it, are kept."""
    for name in ("_span_processors", "_log_record_processors"):
        for child in getattr(processor, name, ()):
            yield from _exporters(child)
    batch = getattr(processor, "_batch_processor", None)
    if batch is not None and hasattr(batch, "_exporter"):
        yield batch, "_exporter"
        return
    for name in ("span_exporter", "_exporter"):
        if hasattr(processor, name):
            yield processor, name
            return
