"""Spans that cost little until somebody looks inside.

Making a span through the SDK takes longer than everything else a record goes through, and most of it serves what
almost no span of ours needs: a sampler that is asked, a lock, bounded containers that check and copy each value, a
processor that wants to know of starts, a copy at the end. :class:`CallSpan` is a span of the SDK, by class too, that
makes each of these parts when somebody asks for it: ``trace.get_current_span().set_attribute(...)`` inside a call works
as ever. A span that nobody touched is ended with one dictionary of attributes that are known to be sound.

Only where nobody can tell the difference: the SDK's own provider with span limits that ours cannot reach, a sampler
whose answer is known, and processors that do nothing when a span starts. Everywhere else the SDK makes the span. The
parts of the SDK that have no public name are looked for once, and tried on a span that goes nowhere; a release that
moves them costs time and nothing else.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, ClassVar, Final, TypeGuard

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import (
    ReadableSpan,
    Span,
    SpanProcessor,
    SynchronousMultiSpanProcessor,
    Tracer,
    TracerProvider,
    sampling,
)
from opentelemetry.trace import Span as AnySpan
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace import TracerProvider as AnyProvider

from dspy_observe.callbacks.otel.processors import ignores_starts, only_queues, taker

__all__ = ["CallSpan", "SpanMaker"]

_logger = logging.getLogger("dspy_observe")

_SAMPLED: Final = int(TraceFlags.SAMPLED)
_RANDOM: Final = 2
"""The flag that says that a trace id is random: https://www.w3.org/TR/trace-context-2/#random-trace-id-flag"""
_FEW_ATTRIBUTES: Final = 64
"""More than any span of ours has before others add to it."""
_SDK_METRICS: Final = "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED"
_UNSET: Final = Status(StatusCode.UNSET)
_making = threading.RLock()
"""Two threads may be the first to touch a span; each of its parts is made once."""


class CallSpan(Span):
    """A span of the SDK whose parts are made when they are asked for.

    Attributes:
        trace_id, span_id, flags: Its place, as plain numbers.
        begun: Its attributes at the start; shared, only read.
        touched: Whether somebody added to it, so that it has to be ended the SDK's way.
    """

    light: ClassVar[bool] = True
    touched = False
    _tracer: ClassVar[Any]
    trace_id: int
    span_id: int
    flags: int
    begun: Mapping[str, Any]
    _above: CallSpan | SpanContext | None

    # What the SDK sets on each span and ours have in common.
    _end_time: int | None = None
    _status: Status = _UNSET
    _trace_config = None
    _instrumentation_info = None
    _record_exception = False
    _set_status_on_exception = False
    _record_end_metrics = None
    _place: SpanContext | None = None

    @property
    def _context(self) -> SpanContext:  # type: ignore[override]
        """Made at the first look, mostly an exporter's; two that look at once make the same."""
        place = self._place
        if place is None:
            above = self._parent
            state = above.trace_state if above is not None else None
            place = self._place = SpanContext(self.trace_id, self.span_id, False, TraceFlags(self.flags), state)
        return place

    @property
    def _parent(self) -> SpanContext | None:  # type: ignore[override]
        above = self._above
        return above if above is None or isinstance(above, SpanContext) else above._context

    @property
    def _resource(self) -> Resource:  # type: ignore[override]
        found: Resource = self._tracer.resource  # the SDK gives a forked process another one
        return found

    def __getattr__(self, name: str) -> Any:
        """Make a part of the SDK's span that is not there yet."""
        make = _PARTS.get(name)
        if make is None:
            raise AttributeError(name)
        with _making:
            try:
                return object.__getattribute__(self, name)
            except AttributeError:
                made = make(self)
                setattr(self, name, made)
                return made

    def finish(self, attributes: Mapping[str, Any], end_time: int) -> None:
        """End a span that nobody touched.

        Args:
            attributes: All of them, each of a type that OpenTelemetry takes.
            end_time: Unix time in nanoseconds.
        """
        self._events = ()
        self._links = ()
        self._attributes = attributes
        self._end_time = end_time


def is_light(span: object) -> TypeGuard[CallSpan]:
    """Whether a span is a light one.

    Asked several times for every span, and the metaclass of OpenTelemetry's spans makes ``isinstance`` slow.
    """
    return getattr(type(span), "light", False)


def _attributes(span: CallSpan) -> Any:
    span.touched = True
    limits = span._limits
    return BoundedAttributes(
        limits.max_span_attributes, span.begun, immutable=False, max_value_len=limits.max_span_attribute_length
    )


def _events(span: CallSpan) -> Any:
    span.touched = True
    return span._new_events()  # type: ignore[no-untyped-call]


def _links(span: CallSpan) -> Any:
    span.touched = True
    return span._new_links(())


_PARTS: Final[dict[str, Callable[[CallSpan], Any]]] = {
    "_attributes": _attributes,
    "_events": _events,
    "_links": _links,
    "_lock": lambda _: threading.Lock(),
}


def _kind_for(tracer: Any) -> type[CallSpan]:
    """The class of one tracer's spans, which has what they have in common."""
    shared = {
        "_tracer": tracer,
        "_limits": getattr(tracer, "_span_limits", None),
        "_sampler": getattr(tracer, "sampler", None),
        "_span_processor": getattr(tracer, "span_processor", None),
        "_instrumentation_scope": getattr(tracer, "_instrumentation_scope", None),
    }
    return type("CallSpan", (CallSpan,), shared)


class SpanMaker:
    """Makes the spans of one callback, the light ones where it may and the SDK's elsewhere.

    Args:
        provider: Where spans are made.
        name: The instrumentation scope.
    """

    def __init__(self, provider: AnyProvider, name: str) -> None:
        self.tracer: Any = provider.get_tracer(name)
        self.quick = False
        """Whether ending a span blocks nobody: it is only put into a queue of OpenTelemetry's."""
        self.kind = _kind_for(self.tracer)
        self._processors: tuple[SpanProcessor, ...] | None = None
        self.takers: tuple[Callable[[ReadableSpan], Any], ...] = ()
        self._light = False
        self._roots = self._children = False
        self._own = (
            type(provider) is TracerProvider
            and type(self.tracer) is Tracer
            and type(self.tracer.span_processor) is SynchronousMultiSpanProcessor
            and os.environ.get(_SDK_METRICS, "").strip().lower() in ("", "false")
            and _can_be_light()
        )

    def start(
        self, name: str, kind: SpanKind, context: Context, parent: object, attributes: Mapping[str, Any], at: int
    ) -> AnySpan:
        """Begin a span.

        Args:
            name: Its name.
            kind: Client or internal.
            context: The context whose span is its parent.
            parent: The span in that context, or ``None``.
            attributes: What a sampler may want to see; not kept by a light span that is finished.
            at: Unix time in nanoseconds.
        """
        if self._own:
            if self.tracer.span_processor._span_processors is not self._processors:
                self._learn()
            if self._light and self.tracer._tracer_config.is_enabled:
                span = self._lightly(name, kind, parent, attributes, at)
                if span is not None:
                    return span
        made: AnySpan = self.tracer.start_span(
            name, context, kind, attributes, start_time=at, record_exception=False, set_status_on_exception=False
        )
        return made

    def deliver(self, span: CallSpan) -> None:
        """Hand a finished light span to the processors.

        Raises:
            Exception: What a processor raised; the ones behind it have the span all the same.
        """
        failed: Exception | None = None
        for take in self.takers:
            try:
                take(span)
            except Exception as error:
                failed = error
        if failed is not None:
            raise failed

    def _lightly(
        self, name: str, kind: SpanKind, parent: Any, attributes: Mapping[str, Any], at: int
    ) -> CallSpan | None:
        """A light span, or ``None`` where the sampler has to be asked."""
        generator = self.tracer.id_generator
        if is_light(parent):
            if not self._children:
                return None
            above: CallSpan | SpanContext | None = parent
            trace_id, flags = parent.trace_id, parent.flags
        else:
            above = parent.get_span_context() if parent is not None else None
            if above is not None and above.is_valid:
                if not (self._children and above.trace_flags & _SAMPLED):
                    return None
                trace_id, flags = above.trace_id, _SAMPLED | (above.trace_flags & _RANDOM)
            else:
                if not self._roots:
                    return None
                above = None
                trace_id, flags = generator.generate_trace_id(), self._root_flags
        span: CallSpan = object.__new__(self.kind)
        span._name = name
        span._kind = kind
        span._start_time = at
        span.trace_id = trace_id
        span.span_id = generator.generate_span_id()
        span.flags = flags
        span.begun = attributes
        span._above = above
        return span

    def _learn(self) -> None:
        """Look at sampler, limits and processors; done anew when the application adds a processor."""
        tracer = self.tracer
        processors = tracer.span_processor._span_processors
        limits = tracer._span_limits
        most = limits.max_span_attributes
        self._roots, self._children = _always_samples(tracer.sampler)
        self._root_flags = _SAMPLED | (_RANDOM if _is_random(tracer.id_generator) else 0)
        self._light = (
            all(ignores_starts(processor) for processor in processors)
            and limits.max_span_attribute_length is None
            and (most is None or most >= _FEW_ATTRIBUTES)
        )
        self.quick = all(only_queues(processor) for processor in processors)
        self.takers = tuple(map(taker, processors))
        self._processors = processors


def _always_samples(sampler: Any) -> tuple[bool, bool]:
    """Whether a sampler takes every root, and every span below a sampled one."""
    if sampler is sampling.ALWAYS_ON:
        return True, True
    if type(sampler).should_sample is not sampling.ParentBased.should_sample:
        return False, False
    always = sampling.ALWAYS_ON
    return sampler._root is always, sampler._local_parent_sampled is sampler._remote_parent_sampled is always


def _is_random(generator: Any) -> bool:
    asked = getattr(generator, "is_trace_id_random", None)  # newer than the oldest SDK that we work with
    return bool(asked()) if asked is not None else False


@cache
def _can_be_light() -> bool:
    """Whether a light span does in this release of the SDK what the SDK's own span does."""
    provider = TracerProvider(sampler=sampling.ALWAYS_ON, shutdown_on_exit=False)
    try:
        tracer: Any = provider.get_tracer("dspy_observe")
        maker = object.__new__(SpanMaker)
        maker.tracer = tracer
        maker.kind = _kind_for(tracer)
        maker._learn()
        told = []
        for touched in (False, True):
            light: Any = maker._lightly("probe", SpanKind.CLIENT, None, {"a": 1}, 1)
            own: Any = tracer.start_span("probe", Context(), SpanKind.CLIENT, {"a": 1}, start_time=1)
            for span in (light, own):
                span.set_status(StatusCode.ERROR, "why")
                if touched:
                    span.add_event("event", {"b": 2}, 2)
                if touched or span is own:
                    span.set_attributes({"c": (3,)})
                    span.end(4)
                else:
                    span.finish({"a": 1, "c": (3,)}, 4)
            told.append((_told(light), _told(own)))
        return all(ours == theirs for ours, theirs in told)
    except Exception as error:
        _logger.info("dspy_observe: this OpenTelemetry SDK makes all spans itself (%s)", type(error).__name__)
        return False


def _told(span: Any) -> tuple[Any, ...]:
    """What an exporter reads of a span, but its ids."""
    return (
        span.name, span.kind, span.parent, span.start_time, span.end_time, span.status.status_code,
        span.status.description, dict(span.attributes), [(event.name, dict(event.attributes)) for event in span.events],
        list(span.links), span.resource, span.instrumentation_scope, span.context.trace_flags,
        span.context.trace_state, span.dropped_attributes, span.dropped_events, span.dropped_links, len(span.to_json()),
    )  # fmt: skip
