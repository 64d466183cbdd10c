"""Every way out of the process, collected: what an OTLP collector receives, log lines, metrics pages, records."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import logging
import re
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from email.message import Message
from typing import Any

import structlog
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from dspy_observe.metrics import render
from dspy_observe.testing import Capture
from tests.collectors import PostServer
from tests.e2e.leaks.secrets import Secret, forms

__all__ = ["Collector", "Lines", "Providers", "leaks", "listed", "pages", "reference", "told"]


_BREAKS = re.compile(rb"\n|\\+n")


class Collector(PostServer):
    """An OTLP collector over HTTP that keeps the bytes of every body it is sent."""

    def __init__(self) -> None:
        self.bodies: list[tuple[str, bytes]] = []

    def answer(self, path: str, headers: Message, body: bytes) -> tuple[int, bytes]:
        """Keep the body."""
        assert "Content-Encoding" not in headers, "a compressed body cannot be searched"
        self.bodies.append((path, body))
        return 200, b""

    def bytes_at(self, path: str) -> bytes:
        """Everything sent to one path."""
        return b"\n".join(body for at, body in self.bodies if at == path)


class Providers:
    """An application's own tracer and meter providers."""

    def __init__(self) -> None:
        self._spans = InMemorySpanExporter()
        self.tracer_provider = TracerProvider(shutdown_on_exit=False)
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self._spans))
        self._metrics = InMemoryMetricReader()
        self.meter_provider = MeterProvider([self._metrics], shutdown_on_exit=False)

    def exported(self) -> dict[str, bytes]:
        """The spans as an OTLP body, and the metrics."""
        data = self._metrics.get_metrics_data()
        self.meter_provider.shutdown()
        spans = encode_spans(self._spans.get_finished_spans()).SerializeToString()
        return {"spans": spans, "otel metrics": data.to_json().encode() if data is not None else b""}


class Lines(logging.Handler):
    """Log lines: a structlog logger that renders JSON, and a handler for loggers of the standard library."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
        self.stream = io.StringIO()
        self.standard: list[str] = []
        self.structlog: Any = structlog.wrap_logger(
            structlog.PrintLogger(self.stream), processors=[structlog.processors.JSONRenderer(ensure_ascii=False)]
        )

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line, as a file would."""
        self.standard.append(self.format(record))

    def written(self) -> dict[str, bytes]:
        """Both kinds."""
        return {"structlog": self.stream.getvalue().encode(), "logging": "\n".join(self.standard).encode()}


def pages(registry: CollectorRegistry, url: str | None = None) -> dict[str, bytes]:
    """The metrics page in both formats, and as the endpoint serves it."""
    found = {
        "metrics, text": render(registry)[0],
        "metrics, OpenMetrics": render(registry, "application/openmetrics-text")[0],
    }
    if url is not None:
        with urllib.request.urlopen(url, timeout=10) as response:
            found["metrics, served"] = response.read()
    return found


def told(capture: Capture) -> dict[str, bytes]:
    """Every text in what a reader of records was told, and the records as they print."""
    found = {}
    for name in ("starts", "records", "events", "scores"):
        items = getattr(capture, name)
        texts = [text for item in items for text in _texts(dataclasses.asdict(item))]
        found[f"reader, {name}"] = "\n".join([*texts, *map(repr, items)]).encode()
    return found


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, Iterable):
        for item in value:
            yield from _texts(item)


def reference(ref: str) -> bytes:
    """What a call reference says."""
    text = ref.partition(".")[2]
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def leaks(outlets: Mapping[str, bytes], secrets: Iterable[Secret]) -> list[str]:
    """Each planted value that is found in an outlet, in any of its spellings; the texts around it tell where."""
    found = []
    # The same texts go everywhere: each line is searched once. No planted value has a line break, real or escaped.
    bodies = {name: b"\n".join(dict.fromkeys(_BREAKS.split(body))) for name, body in outlets.items()}
    for secret in secrets:
        for form in {form for value in secret.values for form in forms(value)}:
            wanted = form.encode()
            for name, body in bodies.items():
                at = body.find(wanted)
                if at >= 0:
                    around = body[max(0, at - 60) : at + len(wanted) + 20].decode(errors="replace")
                    found.append(f"{secret.kind} in {name}: {json.dumps(around, ensure_ascii=False)}")
    return found


def listed(found: list[str]) -> str:
    """The first leaks, for the message of an assertion."""
    return "\n".join([f"{len(found)} leaks", *found[:20]])
