"""Exporters that redact what others produce: wrap any OpenTelemetry exporter and nothing private passes it.

The original spans and records are read-only and shared with other processors; new ones are built. What cannot be
redacted is left out and counted, never exported as it is.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util import BoundedList
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, Status, TraceState

from dspy_observe.redaction.options import Redaction
from dspy_observe.redaction.redactor import Redactor

__all__ = ["RedactingLogExporter", "RedactingSpanExporter"]

_MAX_RESOURCES: Final = 16  # a process has one or two; more means somebody makes them anew
_MAX_SCOPES: Final = 256  # one for each library that traces


_Context = TypeVar("_Context", SpanContext, SpanContext | None)
_Scope = TypeVar("_Scope", InstrumentationScope, InstrumentationScope | None)


class RedactingSpanExporter(SpanExporter):
    """Redacts all texts of spans, their scopes and resources included, then hands on to another exporter.

    Args:
        exporter: Where the redacted spans go.
        redactor: What redacts; options make one; ``None`` takes the defaults.
    """

    def __init__(self, exporter: SpanExporter, redactor: Redactor | Redaction | None = None) -> None:
        self._exporter = exporter
        self._cleaner = _Cleaner(redactor)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export redacted copies; a span that cannot be redacted is left out and counted."""
        clean = [copied for span in spans if (copied := self._cleaner.span(span)) is not None]
        return self._exporter.export(clean) if clean else SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Shut the wrapped exporter down."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Flush the wrapped exporter, within milliseconds."""
        return self._exporter.force_flush(timeout_millis)


class RedactingLogExporter(LogRecordExporter):
    """Redacts all texts of log records, their scopes and resources included, then hands on to another exporter.

    Args:
        exporter: Where the redacted records go.
        redactor: What redacts; options make one; ``None`` takes the defaults.
    """

    def __init__(self, exporter: LogRecordExporter, redactor: Redactor | Redaction | None = None) -> None:
        self._exporter = exporter
        self._cleaner = _Cleaner(redactor)

    def export(self, batch: Sequence[Any]) -> LogRecordExportResult:
        """Export redacted copies; a record that cannot be redacted is left out and counted."""
        clean = [copied for record in batch if (copied := self._cleaner.record(record)) is not None]
        return self._exporter.export(clean) if clean else LogRecordExportResult.SUCCESS

    def shutdown(self) -> None:
        """Shut the wrapped exporter down."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]  # not annotated in the SDK

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Flush the wrapped exporter, within milliseconds."""
        flush = getattr(self._exporter, "force_flush", None)  # OpenTelemetry before 1.35 had none for logs
        return True if flush is None else bool(flush(timeout_millis))


class _Cleaner:
    def __init__(self, redactor: Redactor | Redaction | None) -> None:
        self.redactor = redactor if isinstance(redactor, Redactor) else Redactor(redactor)
        self._resources: dict[int, tuple[Resource, Resource]] = {}
        self._scopes: dict[int, tuple[InstrumentationScope, InstrumentationScope]] = {}

    def span(self, span: ReadableSpan) -> ReadableSpan | None:
        try:
            return self._span(span)
        except Exception as error:  # noqa: BLE001 - fail closed: no span rather than one with its content
            self.redactor.failed(error, None)
            return None

    def record(self, record: Any) -> Any:
        try:
            return self._record(record)
        except Exception as error:  # noqa: BLE001 - as above
            self.redactor.failed(error, None)
            return None

    def _span(self, span: ReadableSpan) -> ReadableSpan:
        status = span.status
        return ReadableSpan(
            name=self.redactor.redact_text(span.name),
            context=self._context(span.context),
            parent=self._context(span.parent),
            resource=self._resource(span.resource),
            attributes=self._attributes(span.attributes, span.dropped_attributes),
            events=_bounded([self._event(event) for event in span.events], span.dropped_events),
            links=_bounded([self._link(link) for link in span.links], span.dropped_links),
            kind=span.kind,
            status=Status(status.status_code, self._optional(status.description)),
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=self._scope(span.instrumentation_scope),
        )

    def _event(self, event: Event) -> Event:
        attributes = self._attributes(event.attributes, event.dropped_attributes)
        return Event(self.redactor.redact_text(event.name), attributes, event.timestamp)

    def _link(self, link: Link) -> Link:
        return Link(self._context(link.context), self._attributes(link.attributes, link.dropped_attributes))

    def _record(self, record: Any) -> Any:
        inner = copy.copy(record.log_record)
        inner.body = self.redactor.redact(inner.body)[0]
        inner.attributes = self._attributes(inner.attributes, record.dropped_attributes)
        for name in ("event_name", "severity_text"):
            if isinstance(getattr(inner, name, None), str):
                setattr(inner, name, self.redactor.redact_text(getattr(inner, name)))
        if getattr(inner, "exception", None) is not None:
            inner.exception = None  # its text is in the attributes already
        changes: dict[str, Any] = {"log_record": inner}
        if record.resource is not None:
            changes["resource"] = self._resource(record.resource)
        if getattr(record, "instrumentation_scope", None) is not None:
            changes["instrumentation_scope"] = self._scope(record.instrumentation_scope)
        return dataclasses.replace(record, **changes)

    def _optional(self, text: str | None) -> str | None:
        return None if text is None else self.redactor.redact_text(text)

    def _attributes(self, attributes: Mapping[str, Any] | None, dropped: int = 0) -> Any:
        if not attributes and not dropped:
            return attributes
        clean, _ = self.redactor.redact(dict(attributes or {}))
        if not isinstance(clean, dict):
            raise TypeError("attributes could not be redacted")
        bounded = BoundedAttributes(attributes=clean, immutable=False, extended_attributes=True)
        bounded.dropped = dropped
        return bounded

    def _context(self, context: _Context) -> _Context:
        """The same identity; other vendors' values in its trace state redacted."""
        if context is None or not context.trace_state:
            return context
        # A redacted value that W3C's grammar does not allow, TraceState leaves out.
        state = TraceState([(key, self.redactor.redact_text(value)) for key, value in context.trace_state.items()])
        return SpanContext(context.trace_id, context.span_id, context.is_remote, context.trace_flags, state)

    def _scope(self, scope: _Scope) -> _Scope:
        if scope is None:
            return None
        known = self._scopes.get(id(scope))
        if known is not None and known[0] is scope:
            return known[1]
        clean = InstrumentationScope(
            self.redactor.redact_text(scope.name), scope.version, self._optional(scope.schema_url),
            self._attributes(scope.attributes),
        )  # fmt: skip
        if len(self._scopes) >= _MAX_SCOPES:
            self._scopes.clear()
        self._scopes[id(scope)] = (scope, clean)
        return clean

    def _resource(self, resource: Resource) -> Resource:
        known = self._resources.get(id(resource))
        if known is not None and known[0] is resource:
            return known[1]
        clean = Resource(self._attributes(resource.attributes), self._optional(resource.schema_url))
        if len(self._resources) >= _MAX_RESOURCES:
            self._resources.clear()
        self._resources[id(resource)] = (resource, clean)
        return clean


def _bounded(items: list[Any], dropped: int) -> Any:
    """A list that carries on how many items the SDK dropped before."""
    bounded = BoundedList.from_seq(len(items), items)
    bounded.dropped = dropped
    return bounded
