"""Where spans and OpenTelemetry metrics go when the application has not said so itself.

The application's own providers always win: those passed in, then the global ones. Without either, an OTLP endpoint in
the standard environment variables makes a pipeline of ours. It is private to us: the global providers stay unset.
https://opentelemetry.io/docs/specs/otel/protocol/exporter/
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Final

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider as SDKMeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace import TracerProvider as SDKTracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from dspy_observe import safety
from dspy_observe.errors import ConfigurationError

__all__ = ["Pipeline"]

_GENERAL: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
_TRACES: Final = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
_METRICS: Final = "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"
_PROTOCOLS: Final = ("grpc", "http/protobuf")


class _ExportError(Exception):
    """An exporter reported a failure, or spans did not fit into its queue."""


class _CountingExporter(SpanExporter):
    """Pass spans on and count those that the collector did not take."""

    def __init__(self, inner: SpanExporter) -> None:
        self._inner = inner

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result = self._inner.export(spans)
        except Exception as error:
            safety.swallowed("otel.export", error, count=len(spans))
            return SpanExportResult.FAILURE
        if result is not SpanExportResult.SUCCESS:
            safety.swallowed("otel.export", _ExportError(), count=len(spans))
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._inner.force_flush(timeout_millis)


class _CountingProcessor(BatchSpanProcessor):
    """Count the spans that a full queue pushes out; the SDK only logs them."""

    def on_end(self, span: ReadableSpan) -> None:
        waiting = self._batch_processor._queue
        if len(waiting) == waiting.maxlen:
            safety.swallowed("otel.queue", _ExportError())
        super().on_end(span)


class Pipeline:
    """The providers in force, and what of them is ours to flush and close.

    Args:
        tracer_provider: The application's; ``None`` looks further.
        meter_provider: The application's; ``None`` looks further.
        service: ``service.name`` of a pipeline of ours; ``None`` leaves it to ``OTEL_SERVICE_NAME``.

    Raises:
        ConfigurationError: An ``OTEL_*`` variable asks for a protocol that OTLP exporters do not speak.
    """

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None,
        meter_provider: metrics.MeterProvider | None,
        service: str | None,
    ) -> None:
        self._own_tracing: SDKTracerProvider | None = None
        self._own_exporter: SpanExporter | None = None
        self._own_metering: SDKMeterProvider | None = None
        resource = Resource.create({SERVICE_NAME: service} if service else None)
        if tracer_provider is None and not _global_tracing() and _wanted("TRACES", _TRACES, _GENERAL):
            self._own_exporter = _CountingExporter(_span_exporter())
            self._own_tracing = SDKTracerProvider(resource=resource, shutdown_on_exit=False)
            self._own_tracing.add_span_processor(_CountingProcessor(self._own_exporter))
        # A collector for traces alone would refuse metrics: only its own variable asks for them.
        if meter_provider is None and not _global_metering() and _wanted("METRICS", _METRICS):
            reader = PeriodicExportingMetricReader(_metric_exporter())
            self._own_metering = SDKMeterProvider([reader], resource, shutdown_on_exit=False)
        self.tracer_provider: trace.TracerProvider = tracer_provider or self._own_tracing or trace.get_tracer_provider()
        self.meter_provider: metrics.MeterProvider | None = (
            meter_provider or self._own_metering or (metrics.get_meter_provider() if _global_metering() else None)
        )

    def flush(self, timeout_s: float) -> bool:
        """Send what waits, in the application's providers too; returns whether all went out in time."""
        providers = [self.tracer_provider, self.meter_provider]
        flushes = [flush for provider in providers if callable(flush := getattr(provider, "force_flush", None))]
        done = threading.Event()

        def run() -> None:
            with safety.guard("otel.flush"):
                if all(flush() for flush in flushes):
                    done.set()

        thread = threading.Thread(target=run, name="dspy_observe flush", daemon=True)
        thread.start()
        thread.join(timeout_s)  # the SDK's own time-out does not bound a slow exporter
        return done.is_set()

    def close(self) -> None:
        """Shut down what is ours; the application's providers go on."""
        if self._own_exporter is not None and self._own_tracing is not None:
            with safety.guard("otel.close"):
                self._own_exporter.shutdown()  # first: it ends an exporter's waiting between two tries
                self._own_tracing.shutdown()
        if self._own_metering is not None:
            with safety.guard("otel.close"):
                self._own_metering.shutdown()


def _global_tracing() -> bool:
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def _global_metering() -> bool:
    return not type(metrics.get_meter_provider()).__name__.startswith("_Proxy")


def _wanted(signal: str, *variables: str) -> bool:
    chosen = os.environ.get(f"OTEL_{signal}_EXPORTER", "otlp").strip().lower()
    return chosen == "otlp" and any(os.environ.get(name) for name in variables)


def _protocol(signal: str) -> str:
    for variable in (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        value = os.environ.get(variable, "").strip().lower()
        if value:
            if value not in _PROTOCOLS:
                raise ConfigurationError(variable, f"{value!r} is not supported", f"Use {' or '.join(_PROTOCOLS)}")
            return value
    return "http/protobuf"


def _span_exporter() -> SpanExporter:
    # gRPC takes 100 ms to import and is seldom asked for.
    if _protocol("TRACES") == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpanExporter

        return GrpcSpanExporter()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


def _metric_exporter() -> MetricExporter:
    if _protocol("METRICS") == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetricExporter

        return GrpcMetricExporter()
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

    return OTLPMetricExporter()
