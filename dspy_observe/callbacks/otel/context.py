"""Which span is a call's parent, and which span is current while the call runs.

DSPy's own call ids cross its thread pools, OpenTelemetry's context variables do not; a user's manual spans are known to
OpenTelemetry only. So each call attaches a layer to the ambient context: its span, together with its call id and the
context that was there before. The ambient context is used when its layer is the call's parent, which keeps manual spans
in between; otherwise the parent's layer is found by call id. At the end of a call the context is restored only where
our layer is still in it, and never by token: end handlers may run in another context, and in the order of the start
handlers.

A span that another library keeps current, and that is exported elsewhere or belongs to another trace than the call,
stays current: that library's next spans belong below its own, not below ours. The call then has a layer only.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Final

from opentelemetry import context as context_api
from opentelemetry.context import Context
from opentelemetry.trace import (
    INVALID_SPAN,
    NonRecordingSpan,
    Span,
    SpanContext,
    TraceFlags,
    TracerProvider,
    set_span_in_context,
)

from dspy_observe.callbacks.otel.inference import announce
from dspy_observe.callbacks.otel.spans import is_light
from dspy_observe.conventions import MAX_ENDED_CALLS
from dspy_observe.facts.recent import Recent
from dspy_observe.records import CallStart

__all__ = ["Layers"]

_LAYER: Final = context_api.create_key("dspy_observe.layer")
_EMPTY: Final = Context()
_SPAN_KEY: Final = next(iter(set_span_in_context(INVALID_SPAN, Context())))
_NOTHING: Final[Mapping[str, object]] = {}
_outermost: ContextVar[str | None] = ContextVar("dspy_observe_outermost", default=None)
"""The call without a parent that was begun in this very context; who attaches a context of ours elsewhere does not
bring it along."""
_put: Final = dict.__setitem__  # a Context refuses; nobody has seen the new one yet


class Layer:
    """A call's span and the two contexts around it."""

    __slots__ = ("announced", "call_id", "context", "given_up", "open", "owner", "previous", "span")

    def __init__(
        self,
        owner: Layers,
        call_id: str,
        span: Span,
        base: Context,
        previous: Context,
        told: Mapping[str, object] = _NOTHING,
        announced: object = None,
    ) -> None:
        self.owner = owner
        self.announced = announced
        self.call_id = call_id
        self.span = span
        self.open = True
        self.given_up = False
        self.previous = previous
        # One copy of the dictionary instead of one for each value that is set.
        self.context = context = Context(base)
        _put(context, _SPAN_KEY, span)
        _put(context, _LAYER, self)
        for key, value in told.items():
            _put(context, key, value)


class Layers:
    """The layers of one callback's open calls, and where the ended ones stood in their traces.

    Args:
        provider: Where the callback's spans are made.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._processor = getattr(provider, "_active_span_processor", None)
        self._open: dict[str, Layer] = {}
        # Only the ids of ended spans, as plain numbers: a span holds its content, a late child needs no more than its
        # parent's place, and the garbage collector leaves tuples of numbers alone.
        self._ended: Recent[tuple[int, int, int]] = Recent(MAX_ENDED_CALLS)

    def directly_above(self, parent_id: str | None) -> Layer | None:
        """The parent's layer, where it is the newest in the ambient context and nobody made another span current.

        So it is nearly always; :meth:`enter_below` then spares all further looks.
        """
        ambient = context_api.get_current()
        layer = ambient.get(_LAYER)
        if type(layer) is Layer and layer.owner is self and layer.call_id == parent_id and layer.context is ambient:
            return layer
        return None

    def enter_below(self, above: Layer, start: CallStart, span: Span, *, inference: bool) -> None:
        """Make a call's span current, directly below its parent's layer; the arguments are those of :meth:`enter`."""
        ambient = above.context
        told, announced = announce(span, start.operation) if inference else (_NOTHING, None)
        layer = Layer(self, start.call_id, span, ambient, ambient, told, announced)
        self._open[start.call_id] = layer
        context_api.attach(layer.context)

    def parent_context(self, start: CallStart) -> Context:
        """The context whose span is the parent of a call that begins now."""
        ambient = context_api.get_current()
        beside = ambient.get(_LAYER)
        while isinstance(beside, Layer) and beside.call_id == start.call_id:
            ambient = beside.previous  # what was there before another callback of ours made its span of this call
            beside = ambient.get(_LAYER)
        layer = self._own(ambient)
        if layer is not None and layer.call_id == start.parent_id:
            current = ambient.get(_SPAN_KEY)
            if current is layer.span or self._is_of(layer.span, current):
                return ambient
            return set_span_in_context(layer.span, ambient)
        if start.parent_id is not None:
            parent = self._open.get(start.parent_id)
            if parent is not None:
                return parent.context
        # Left behind: by a callback that restored our ended layer, or by a call of which no end was told.
        while layer is not None and (not layer.open or self._is_abandoned(layer, start)):
            ambient = layer.previous
            layer = self._own(ambient)
        ended = self.place_of(start.parent_id)
        if ended is not None:
            return set_span_in_context(NonRecordingSpan(ended), ambient)
        return self._past_others(ambient)

    def enter(self, start: CallStart, span: Span, base: Context, *, inference: bool) -> None:
        """Make a call's span current.

        Args:
            start: The call.
            span: Its span.
            base: What :meth:`parent_context` returned.
            inference: Whether the span stands for a model inference, which other instrumentations then leave to us.
        """
        previous = context_api.get_current()
        newest = previous.get(_LAYER)
        while isinstance(newest, Layer) and newest.given_up and newest.context is previous:
            previous = newest.previous  # nobody else will take it out
            newest = previous.get(_LAYER)
        below_own = isinstance(newest, Layer) and newest.owner is self and newest.call_id == start.parent_id
        # Directly below a layer of ours, parent_context() has seen to what is current.
        behind = not (below_own and base is previous) and self._stays_current(previous, span)
        told, announced = announce(span, start.operation) if inference and not behind else (_NOTHING, None)
        if isinstance(newest, Layer) and not newest.open:
            _forget_dead_layers(newest)
        layer = Layer(self, start.call_id, span, base, previous, told, announced)
        self._open[start.call_id] = layer
        if start.parent_id is None:
            _outermost.set(start.call_id)
        context_api.attach(Context({**previous, _LAYER: layer}) if behind else layer.context)

    def span_of(self, call_id: str | None) -> Span | None:
        """The span of an open call."""
        layer = self._open.get(call_id) if call_id is not None else None
        return layer.span if layer is not None else None

    def place_of(self, call_id: str | None) -> SpanContext | None:
        """Trace and span id of a call that is open or ended not long ago."""
        if call_id is None:
            return None
        layer = self._open.get(call_id)
        if layer is not None:
            return layer.span.get_span_context()
        ended = self._ended.get(call_id)
        if ended is None:
            return None
        trace_id, span_id, flags = ended
        return SpanContext(trace_id, span_id, is_remote=False, trace_flags=TraceFlags(flags))

    def leave(self, call_id: str, *, given_up: bool = False) -> Span | None:
        """Take a call's span out and restore the context that was there before it.

        The context is left as it is where the call's layer is not in it, or another callback's layer of the same call
        lies above.

        Args:
            call_id: The call.
            given_up: Whether its end will never be told; the calls below it then take its layer out with theirs.

        Returns:
            The span, for the caller to end; ``None`` when the call has none.
        """
        layer = self._open.pop(call_id, None)
        if layer is None:
            return None
        layer.open = False
        layer.given_up = given_up
        layer.context = _EMPTY  # a context holds its layer: without this the two would wait for the garbage collector
        span: Any = layer.span
        if is_light(span):
            self._ended.remember(call_id, (span.trace_id, span.span_id, span.flags))
        else:
            place = span.get_span_context()
            self._ended.remember(call_id, (place.trace_id, place.span_id, int(place.trace_flags)))
        if _outermost.get() == call_id:
            _outermost.set(None)
        newest = context_api.get_current().get(_LAYER)
        if newest is layer or _covers_abandoned(newest, layer):
            previous = layer.previous
            below = previous.get(_LAYER)
            # Another callback of ours, listed before this one, left first and could not take its layer from below ours.
            while isinstance(below, Layer) and not below.open and (below.call_id == call_id or below.given_up):
                previous = below.previous
                below = previous.get(_LAYER)
            context_api.attach(previous)
        return layer.span

    @staticmethod
    def span_in(context: Context) -> Span | None:
        """The span of a context, as it is: the parent of what begins there."""
        span: Any = context.get(_SPAN_KEY)
        return span if span is not None and (is_light(span) or isinstance(span, Span)) else None

    def owns(self, told: object) -> bool:
        """Whether a span, or what was announced of it, is of a call around us, by this or another callback of ours."""
        layer = context_api.get_current().get(_LAYER)
        while isinstance(layer, Layer):
            if layer.span is told or layer.announced is told:
                return True
            layer = layer.previous.get(_LAYER)
        return False

    def _is_of(self, span: Span, current: object) -> bool:
        """Whether the current span stands in the trace of one of ours, and is exported with it."""
        return isinstance(current, Span) and _trace_of(current) == _trace_of(span) and self.goes_our_way(current)

    def _stays_current(self, ambient: Context, span: Span) -> bool:
        """Whether the current span is an open one of others that ours has no place below."""
        current = ambient.get(_SPAN_KEY)
        if current is None:
            return False
        return isinstance(current, Span) and current.is_recording() and not self._is_of(span, current)

    def _past_others(self, ambient: Context) -> Context:
        """Pass over a current span that is exported elsewhere, to its parent (the request's, say), where it has one."""
        current = ambient.get(_SPAN_KEY)
        above = getattr(current, "parent", None)
        if above is None or self.goes_our_way(current):
            return ambient
        return set_span_in_context(NonRecordingSpan(above), ambient)

    def goes_our_way(self, span: object) -> bool:
        """Whether a span is exported where ours are; a parent that is not would leave a hole in our traces.

        OpenTelemetry says so of the SDK's own spans only, and only in private; where it does not, the answer is yes.
        """
        processor = getattr(span, "_span_processor", None)
        return processor is None or self._processor is None or processor is self._processor

    @staticmethod
    def _is_abandoned(layer: Layer, start: CallStart) -> bool:
        """Whether a layer is of a call that never ran: it began in this context, and still no call is around us.

        It is taken as given up then: should it end after all, its children find it by its call id.
        """
        if start.parent_id is not None or layer.call_id != _outermost.get():
            return False
        layer.open = False
        layer.given_up = True
        return True

    def _own(self, context: Context) -> Layer | None:
        layer = context.get(_LAYER)
        return layer if isinstance(layer, Layer) and layer.owner is self else None


def _covers_abandoned(newest: object, layer: Layer) -> bool:
    """Whether all layers above one are of calls made from within it: they would have ended before it."""
    while isinstance(newest, Layer) and newest is not layer:
        if newest.call_id == layer.call_id:
            return False
        newest = newest.previous.get(_LAYER)
    return newest is layer


def _trace_of(span: Any) -> int:
    found: int = span.trace_id if is_light(span) else span.get_span_context().trace_id
    return found


def _forget_dead_layers(newest: Layer) -> None:
    """Let a dead layer point past the dead ones below it.

    A callback of others that restores our ended layers after every call would otherwise chain all of them together.
    """
    below = newest.previous.get(_LAYER)
    while isinstance(below, Layer) and not below.open:
        newest.previous = below.previous
        below = newest.previous.get(_LAYER)
