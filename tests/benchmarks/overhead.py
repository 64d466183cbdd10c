"""What our callbacks cost a program call: each alone, all through ``configure()``, all with redacted content.

Run by the runner as ``python -m tests.benchmarks.overhead ROUNDS``; prints JSON lines.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

import dspy
import structlog
from dspy.utils.callback import BaseCallback
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from prometheus_client import CollectorRegistry

import dspy_observe
from tests.benchmarks.program import LONG_QUESTION, SHORT_QUESTION, Discard, prepare, report
from tests.benchmarks.rounds import NO_OP, NO_OP_LONG, Settle, Variant, measure

__all__ = ["ALL", "ALL_LONG", "everything", "listed", "sink_logger", "variants"]

ALL: Final = "all, configure()"
ALL_LONG: Final = "all, redacted content, 4 KB prompt"


class _Sink:
    """A file that forgets what is written."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        """Nothing waits."""


def sink_logger() -> Any:
    """A structlog logger that renders JSON, as in production, into a discarding sink."""
    return structlog.wrap_logger(
        structlog.WriteLogger(_Sink()),  # type: ignore[arg-type]  # all that it needs of a file
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.JSONRenderer(),
        ],
    )


def _provider() -> TracerProvider:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(Discard()))
    return provider


def listed(*callbacks: Any) -> Callable[[], AbstractContextManager[Settle]]:
    """Put these callbacks into DSPy's list."""

    def settle() -> None:
        for callback in callbacks:
            if isinstance(callback, dspy_observe.OTelCallback | dspy_observe.LogCallback):
                assert callback.flush(60)

    @contextmanager
    def install() -> Iterator[Settle]:
        dspy.configure(callbacks=list(callbacks))
        try:
            yield settle
        finally:
            dspy.configure(callbacks=[])

    return install


def everything(capture_content: str) -> Callable[[], AbstractContextManager[Settle]]:
    """Put all callbacks in through ``configure()``, spans to a batch processor and lines to a JSON logger."""
    registry, provider, logger = CollectorRegistry(), _provider(), sink_logger()

    @contextmanager
    def install() -> Iterator[Settle]:
        with dspy_observe.configure(
            metrics=dspy_observe.Metrics(collector_registry=registry),
            tracing=dspy_observe.Tracing(tracer_provider=provider, capture_content=capture_content),  # type: ignore[arg-type]
            logs=dspy_observe.Logs(logger=logger),
        ) as observer:
            yield lambda: observer.flush(60)

    return install


def variants() -> list[Variant]:
    """What is timed, each with its own registry, provider and logger."""
    metrics = dspy_observe.Metrics(collector_registry=CollectorRegistry())
    alone = {
        "LatencyCallback": dspy_observe.LatencyCallback(metrics),
        "CostCallback": dspy_observe.CostCallback(metrics=metrics),
        "OTelCallback": dspy_observe.OTelCallback(dspy_observe.Tracing(tracer_provider=_provider())),
        "LogCallback": dspy_observe.LogCallback(dspy_observe.Logs(logger=sink_logger())),
        "RedactionCallback": dspy_observe.RedactionCallback(metrics=metrics),
        "RegistryEventCallback": dspy_observe.RegistryEventCallback(metrics),
    }
    short = {"question": SHORT_QUESTION, "baseline": NO_OP}
    long = {"question": LONG_QUESTION, "baseline": NO_OP_LONG}
    return [
        Variant("no callback", listed(), **short),
        Variant(NO_OP, listed(BaseCallback()), **short),
        *(Variant(name, listed(callback), **short) for name, callback in alone.items()),
        Variant(ALL, everything("none"), **short),
        Variant(NO_OP_LONG, listed(BaseCallback()), **long),
        Variant(ALL_LONG, everything("redacted"), **long),
    ]


if __name__ == "__main__":
    report(measure(prepare(), variants(), rounds=int(sys.argv[1])))
