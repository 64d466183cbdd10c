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
from urllib.parse import urlsplit

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
_CLOSE_S: Final = 2.0
"""How long closing may take. The SDK alone would wait 30 s for a request that a collector does not answer."""


class SpansNotTakenError(Exception):
    """The collector refused spans or could not be reached; OpenTelemetry's own log says more."""


class SpanQueueFullError(Exception):
    """Spans end faster than the collector takes them."""


class _CountingExporter(SpanExporter):
    """Pass spans on and count those that the collector did not take."""

    def __init__(self, inner: SpanExporter) -> None:
        self._inner = inner
        self._closed = False
        self.lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self._closed:  # what closing found in the queue; the inner exporter would log every batch
            return self._lose(spans, SpansNotTakenError())
        try:
            result = self._inner.export(spans)
        except Exception as error:
            return self._lose(spans, error)
        return result if result is SpanExportResult.SUCCESS else self._lose(spans, SpansNotTakenError())

    def shutdown(self) -> None:
        if not self._closed:  # asked by the pipeline, then by the SDK; the inner exporter would log the second time
            self._closed = True
            self._inner.shutdown()

    def _lose(self, spans: Sequence[ReadableSpan], error: Exception) -> SpanExportResult:
        self.lost += len(spans)
        safety.swallowed("otel.export", error, count=len(spans))
        return SpanExportResult.FAILURE

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._inner.force_flush(timeout_millis)


class _CountingProcessor(BatchSpanProcessor):
    """Count the spans that a full queue pushes out; the SDK only logs them."""

    only_queues = True

    def on_end(self, span: ReadableSpan) -> None:
        waiting = self._batch_processor._queue
        if len(waiting) == waiting.maxlen and span.context is not None and span.context.trace_flags.sampled:
            safety.swallowed("otel.queue", SpanQueueFullError())
        super().on_end(span)


class Pipeline:
    """The providers in force, and what of them is ours to flush and close.

    Args:
        tracer_provider: The application's; ``None`` looks further.
        meter_provider: The application's; ``None`` looks further.
        service: ``service.name`` of a pipeline of ours; ``None`` leaves it to ``OTEL_SERVICE_NAME``.

    Raises:
        ConfigurationError: An ``OTEL_*`` variable asks for a protocol that OTLP exporters do not speak, or for what is
            no address.
    """

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None,
        meter_provider: metrics.MeterProvider | None,
        service: str | None,
    ) -> None:
        self._own_tracing: SDKTracerProvider | None = None
        self._own_exporter: _CountingExporter | None = None
        self._own_metering: SDKMeterProvider | None = None
        self._own_metric_exporter: MetricExporter | None = None
        resource = Resource.create({SERVICE_NAME: service} if service else None)
        if tracer_provider is None and not _global_tracing() and _wanted("TRACES", _TRACES, _GENERAL):
            self._own_exporter = _CountingExporter(_span_exporter())
            self._own_tracing = SDKTracerProvider(resource=resource, shutdown_on_exit=False)
            self._own_tracing.add_span_processor(_CountingProcessor(self._own_exporter))
        # A collector for traces alone would refuse metrics: only its own variable asks for them.
        if meter_provider is None and not _global_metering() and _wanted("METRICS", _METRICS):
            self._own_metric_exporter = _metric_exporter()
            reader = PeriodicExportingMetricReader(self._own_metric_exporter)
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
        exporter = self._own_exporter

        def run() -> None:
            with safety.guard("otel.flush"):
                lost_before = exporter.lost if exporter is not None else 0
                flushed = [flush() for flush in flushes]
                # The SDK calls a flush done when every batch was tried, whatever the collector said.
                if all(flushed) and (exporter is None or exporter.lost == lost_before):
                    done.set()

        thread = threading.Thread(target=run, name="dspy_observe flush", daemon=True)
        thread.start()
        thread.join(timeout_s)  # the SDK's own time-out does not bound a slow exporter
        return done.is_set()

    def close(self) -> None:
        """Shut down what is ours; the application's providers go on.

        Spans that still wait are given up and counted: flush first. It takes two seconds at most; what is stuck in a
        request that the collector does not answer is left to a daemon thread.
        """
        thread = threading.Thread(target=self._shut_down, name="dspy_observe close", daemon=True)
        thread.start()
        thread.join(_CLOSE_S)
        if thread.is_alive() and self._own_metric_exporter is not None:
            with safety.guard("otel.close"):
                self._own_metric_exporter.shutdown()  # ends its waiting between two tries

    def _shut_down(self) -> None:
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


def _check_endpoint(*variables: str) -> None:
    """Refuse what no request can be sent to; the exporter would say so only when the first batch is lost."""
    variable = next((name for name in variables if os.environ.get(name)), None)
    if variable is None:
        return
    try:
        url = urlsplit(os.environ[variable])
        usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # of the port, or of an IPv6 address
        usable = False
    if not usable:
        raise ConfigurationError(variable, "it is no address", "Use one such as http://collector:4318")


def _span_exporter() -> SpanExporter:
    # gRPC takes 100 ms to import and is seldom asked for.
    if _protocol("TRACES") == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpanExporter

        return GrpcSpanExporter()
    _check_endpoint(_TRACES, _GENERAL)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


def _metric_exporter() -> MetricExporter:
    if _protocol("METRICS") == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetricExporter

        return GrpcMetricExporter()
    _check_endpoint(_METRICS)
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

    return OTLPMetricExporter()
