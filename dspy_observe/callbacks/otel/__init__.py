"""One span for every call, one trace for every program run, by the GenAI semantic conventions.

What you get
    LM calls as client spans ``chat {model}`` with tokens, served model, finish reason, cost and cache hit; modules,
    tools, evaluations and compilations as internal spans around them, across threads and tasks, with your own manual
    spans in their places; a failed format or parse as an event on its module's span; and, where there is a
    ``MeterProvider``, the histograms ``gen_ai.client.token.usage`` and ``gen_ai.client.operation.duration``.
Where spans go
    See ``pipeline``: providers that you pass, else the global ones, else an OTLP exporter when
    ``OTEL_EXPORTER_OTLP_ENDPOINT`` or ``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`` is set (HTTP and gRPC), else nowhere.
Content
    Off. ``Tracing(capture_content="redacted")`` adds messages, arguments and results after redaction; ``"raw"`` leaves
    out credentials only.
Options
    :class:`Tracing`.
Order and composition
    Any. Two of them on one provider make one span. Where another instrumentation has already opened an inference span
    and says so in the context, the LM call gets no second one: ours puts cost, cache hit and program on theirs. That
    needs one provider for both, as nesting does; spans on two providers share their trace id only.

The file is long because its page, its options and every hook of one callback stand in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, get_args

from opentelemetry.metrics import Histogram, MeterProvider
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics
from opentelemetry.semconv.attributes import error_attributes, exception_attributes
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanKind,
    StatusCode,
    TracerProvider,
    set_span_in_context,
)

from dspy_observe import conventions as names
from dspy_observe import safety
from dspy_observe.callbacks.base import RecordCallback
from dspy_observe.callbacks.otel.attributes import (
    Attribute,
    add_content_attributes,
    add_end_attributes,
    beginning,
    model_name,
)
from dspy_observe.callbacks.otel.context import Layers
from dspy_observe.callbacks.otel.inference import Inference, open_inference
from dspy_observe.callbacks.otel.pipeline import Pipeline
from dspy_observe.callbacks.otel.shield import shield_spans
from dspy_observe.callbacks.otel.spans import CallSpan, SpanMaker, is_light
from dspy_observe.environment import at_least, check_at_least, check_bool, env_default, one_of, parse_bool
from dspy_observe.errors import ConfigurationError
from dspy_observe.handoff import Handoff
from dspy_observe.ledger import LEDGER
from dspy_observe.records import ADAPTER_KINDS, CallRecord, CallStart, ContentMode, RegistryEvent, Score
from dspy_observe.redaction import Redactor, redact_event, redact_score
from dspy_observe.redaction.names import encodable

__all__ = ["OTelCallback", "Tracing"]

_NANOSECONDS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracing:
    """What spans hold and where they go.

    Raises:
        ConfigurationError: A field has a value that cannot work.
    """

    tracer_provider: TracerProvider | None = None
    """Where spans go; ``None`` chooses as the module's page says."""
    meter_provider: MeterProvider | None = None
    """Where the GenAI histograms go; ``None`` is the global one, if the application has set one."""
    capture_content: ContentMode = field(
        default_factory=env_default("DSPY_OBSERVE_TRACING_CAPTURE_CONTENT", "none", one_of(*get_args(ContentMode)))
    )
    """``none``, ``redacted``, or ``raw`` (credentials are left out even then)."""
    max_content_chars: int = field(
        default_factory=env_default("DSPY_OBSERVE_TRACING_MAX_CONTENT_CHARS", 8192, at_least(1))
    )
    """Characters of one content attribute, at least 1; cut after redaction."""
    adapter_spans: bool = field(default_factory=env_default("DSPY_OBSERVE_TRACING_ADAPTER_SPANS", False, parse_bool))
    """Whether formatting and parsing get spans of their own."""

    def __post_init__(self) -> None:
        check_bool("Tracing.adapter_spans", self.adapter_spans)
        if self.capture_content not in get_args(ContentMode):
            modes = ", ".join(get_args(ContentMode))
            raise ConfigurationError(
                "Tracing.capture_content", f"{self.capture_content!r} is no mode", f"Use one of {modes}"
            )
        check_at_least("Tracing.max_content_chars", self.max_content_chars, 1, "Use 1 or more characters")
        for name, method in (("tracer_provider", "get_tracer"), ("meter_provider", "get_meter")):
            value = getattr(self, name)
            if value is not None and not callable(getattr(value, method, None)):
                raise ConfigurationError(
                    f"Tracing.{name}", f"{type(value).__name__} has no {method}()", "Pass an OpenTelemetry provider"
                )


class OTelCallback(RecordCallback):
    """Record spans and the GenAI histograms.

    Args:
        tracing: Providers and content; ``None`` takes the defaults and the environment.
        service: ``service.name`` where an exporter of ours is made; ``None`` leaves it to ``OTEL_SERVICE_NAME``.

    Raises:
        ConfigurationError: An ``OTEL_*`` variable has a value that cannot work.
    """

    def __init__(self, tracing: Tracing | None = None, *, service: str | None = None) -> None:
        options = tracing or Tracing()
        self.content = options.capture_content
        self._max_chars = options.max_content_chars
        if not options.adapter_spans:
            self.failures_only = ADAPTER_KINDS
        self._pipeline = Pipeline(options.tracer_provider, options.meter_provider, service)
        self._maker = SpanMaker(self._pipeline.tracer_provider, names.INSTRUMENTATION_NAME)
        self._tracer = self._maker.tracer
        self._layers = Layers(self._pipeline.tracer_provider)
        self._others: dict[str, Inference] = {}
        self._handoff = Handoff("otel.span_end", wait=True)
        self._tokens, self._durations = _histograms(self._pipeline.meter_provider)

    @property
    def identity(self) -> object:
        return ("otel", id(self._pipeline.tracer_provider))

    def started(self, start: CallStart) -> None:
        inference = start.kind == "lm"
        if inference and self._left_to_others(start):
            return
        kind = SpanKind.CLIENT if inference else SpanKind.INTERNAL
        at = int(start.started_at * _NANOSECONDS)
        name, attributes = beginning(start)
        above = self._layers.directly_above(start.parent_id)
        if above is not None:
            span = self._maker.start(name, kind, above.context, above.span, attributes, at)
            if type(span) is self._maker.kind:
                self._layers.enter_below(above, start, span, inference=inference)
                LEDGER.link(start.call_id, span.trace_id, span.span_id)
                return
            base = above.context
        else:
            base = self._layers.parent_context(start)
            span = self._maker.start(name, kind, base, self._layers.span_in(base), attributes, at)
        context = span.get_span_context()
        if not context.is_valid:
            return  # no provider: nothing to be a parent of
        self._layers.enter(start, span, base, inference=inference)
        if context.trace_flags.sampled:
            LEDGER.link(start.call_id, context.trace_id, context.span_id)

    def finished(self, record: CallRecord) -> None:
        if record.kind == "lm":
            other = self._others.pop(record.call_id, None)
            if other is not None:
                attributes = {**beginning(record)[1]}
                add_end_attributes(record, attributes)
                other.add(attributes)
                return
            if self._durations is not None and not record.cache_hit:
                self._measure(record)
        span = self._layers.leave(record.call_id)
        if span is None:
            if record.kind in self.failures_only:
                self._note_adapter_failure(record)
            return
        # Each by itself: a sum in Unix seconds is only good to a quarter of a microsecond.
        end_time = int(record.started_at * _NANOSECONDS) + int(record.duration_s * _NANOSECONDS)
        if is_light(span) and not span.touched and record.error_type is None:
            span.finish(self._whole(span, record), end_time)
            self._deliver(self._maker.deliver, span)
            return
        if span.is_recording():
            self._describe(span, record)
        self._deliver(span.end, end_time)

    def dropped(self, start: CallStart) -> None:
        self._others.pop(start.call_id, None)
        span = self._layers.leave(start.call_id, given_up=True)
        if span is not None:
            span.set_status(StatusCode.ERROR, "call given up by the observer")
            self._deliver(span.end)

    def happened(self, event: RegistryEvent) -> None:
        """Record a registry event as a span of its own."""
        event = redact_event(event)
        attributes: dict[str, Any] = {
            name: value
            for name, value in (
                (names.ATTR_PROGRAM, event.program),
                (names.ATTR_VERSION, event.version),
                ("deployment.environment.name", event.environment),
            )
            if value is not None
        }
        attributes.update({f"dspy.registry.{key}": str(value) for key, value in event.data.items()})
        at = int(event.at * _NANOSECONDS)
        span = self._tracer.start_span(event.name, attributes=attributes, start_time=at)
        if event.name.endswith("_error"):
            span.set_status(StatusCode.ERROR)
        self._deliver(span.end, at)

    def scored(self, score: Score) -> None:
        """Record a score as an evaluation result on the span of its call, or on a span of its own."""
        score = redact_score(score)
        attributes: dict[str, Any] = {
            gen_ai.GEN_AI_EVALUATION_NAME: score.source,
            gen_ai.GEN_AI_EVALUATION_SCORE_VALUE: score.value,
            names.ATTR_CALL_ID: score.call_id,
            names.ATTR_ROLE: score.role,
        }
        if score.program is not None:
            attributes[names.ATTR_PROGRAM] = score.program
        if score.version is not None:
            attributes[names.ATTR_VERSION] = score.version
        place = self._layers.place_of(score.call_id)
        at = int(score.at * _NANOSECONDS)
        base = set_span_in_context(NonRecordingSpan(place)) if place is not None else None
        span = self._tracer.start_span(names.EVENT_EVALUATION_RESULT, base, attributes=attributes, start_time=at)
        self._deliver(span.end, at)

    def flush(self, timeout_s: float) -> bool:
        """Send waiting spans and metrics; returns whether all went out in time."""
        return self._handoff.flush(timeout_s) and self._pipeline.flush(timeout_s)

    def shield(self, redactor: Redactor) -> Callable[[], None]:
        """Redact all spans that leave through the provider in force, those of other libraries included.

        Args:
            redactor: What redacts.

        Returns:
            A function that ends it.

        Raises:
            ConfigurationError: The provider's exporters cannot be reached.
        """
        return shield_spans(self._pipeline.tracer_provider, redactor)

    def close(self) -> None:
        """Shut down the exporters that are ours, within seconds; spans that still wait are given up: flush first."""
        self._pipeline.close()

    def _left_to_others(self, start: CallStart) -> bool:
        """Whether another instrumentation has made this inference's span, in the place where ours would stand."""
        other = open_inference(start)
        if other is None or self._layers.owns(other.token) or not self._layers.goes_our_way(other.span):
            return False
        self._others[start.call_id] = other
        place = other.span.get_span_context()
        LEDGER.link(start.call_id, place.trace_id, place.span_id)
        return True

    def _whole(self, span: CallSpan, record: CallRecord) -> Mapping[str, Attribute]:
        """All attributes of a span that nobody touched; of most modules, those that it began with."""
        if record.kind == "module" and self.content == "none":
            return span.begun
        attributes = {**span.begun}
        add_end_attributes(record, attributes)
        if self.content != "none":
            add_content_attributes(record, self._max_chars, attributes)
        return attributes

    def _deliver(self, end: Callable[..., object], *arguments: Any) -> None:
        """End a span where its processors only queue it; where they may wait for an exporter, wait little for them."""
        if not self._maker.quick:
            self._handoff.run(end, *arguments)
            return
        try:  # what safety.guard() does, without two calls for every span
            end(*arguments)
        except Exception as error:
            safety.swallowed("otel.span_end", error)
            if safety.strict():
                raise

    def _describe(self, span: Span, record: CallRecord) -> None:
        attributes: dict[str, Attribute] = {}
        add_end_attributes(record, attributes)
        if self.content != "none":
            add_content_attributes(record, self._max_chars, attributes)
        if attributes:
            span.set_attributes(attributes)
        if record.error_type is None:
            return
        event: dict[str, Any] = {exception_attributes.EXCEPTION_TYPE: record.error_type}
        if self.content != "none" and record.error_message is not None:
            event[exception_attributes.EXCEPTION_MESSAGE] = encodable(record.error_message[: self._max_chars])
        span.add_event("exception", event)
        # The text of an error quotes prompts and replies; its type is enough for a status.
        span.set_status(StatusCode.ERROR, record.error_type)

    def _note_adapter_failure(self, record: CallRecord) -> None:
        span = self._layers.span_of(record.parent_id)
        if span is not None:
            span.add_event(
                names.EVENT_ADAPTER_FAILURE,
                {
                    "dspy.adapter": record.name,
                    "dspy.adapter.stage": record.kind.removeprefix("adapter_"),
                    error_attributes.ERROR_TYPE: record.error_type or record.outcome,
                },
            )

    def _measure(self, record: CallRecord) -> None:
        if self._durations is None or self._tokens is None:
            return
        known = {
            gen_ai.GEN_AI_OPERATION_NAME: record.operation,
            gen_ai.GEN_AI_PROVIDER_NAME: record.provider,
            gen_ai.GEN_AI_REQUEST_MODEL: model_name(record.model_requested),
            gen_ai.GEN_AI_RESPONSE_MODEL: record.model_served,
        }
        attributes = {name: value for name, value in known.items() if value is not None}
        usage = record.usage
        if usage is not None:
            for kind, count in (("input", usage.prompt), ("output", usage.completion)):
                if count is not None:
                    self._tokens.record(count, {**attributes, gen_ai.GEN_AI_TOKEN_TYPE: kind})
        if record.error_type is not None:
            attributes[error_attributes.ERROR_TYPE] = record.error_type
        self._durations.record(record.duration_s, attributes)


def _histograms(provider: MeterProvider | None) -> tuple[Histogram | None, Histogram | None]:
    if provider is None:
        return None, None
    meter = provider.get_meter(names.INSTRUMENTATION_NAME)
    tokens = meter.create_histogram(
        gen_ai_metrics.GEN_AI_CLIENT_TOKEN_USAGE,
        "{token}",
        "Number of input and output tokens used.",
        explicit_bucket_boundaries_advisory=names.TOKEN_BUCKETS,
    )
    durations = meter.create_histogram(
        gen_ai_metrics.GEN_AI_CLIENT_OPERATION_DURATION,
        "s",
        "GenAI operation duration.",
        explicit_bucket_boundaries_advisory=names.OPERATION_BUCKETS_S,
    )
    return tokens, durations
