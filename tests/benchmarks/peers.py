"""What OpenInference's DSPy instrumentor and MLflow's autolog cost, each against its own baseline in its own process.

Both patch the process, so each has one to itself, and is switched on and off around every block. They record traces
only (with content, which they do not redact), handed to a batch processor whose exporter discards them.

Run by the runner as ``python -m tests.benchmarks.peers PEER ROUNDS``; prints JSON lines.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import dspy
from dspy.utils.callback import BaseCallback
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from tests.benchmarks.overhead import listed
from tests.benchmarks.program import LONG_QUESTION, SHORT_QUESTION, Discard, prepare, report
from tests.benchmarks.rounds import NO_OP, NO_OP_LONG, Settle, Variant, measure
from tests.peers import openinference

__all__ = ["PEERS"]

Install = Callable[[], AbstractContextManager[Settle]]


def _openinference() -> Install:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(Discard()))

    # Not its own uninstrument(): the no-op callback of the next block would never be called again.
    @contextmanager
    def install() -> Iterator[Settle]:
        with openinference(provider):
            yield provider.force_flush

    return install


def _mlflow() -> Install:
    # Its OTLP mode is the lighter one: spans leave through a batch processor and no trace is written to a store.
    os.environ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] = "http://127.0.0.1:9/v1/traces"
    import mlflow
    import mlflow.dspy
    from mlflow.tracing import provider

    provider.get_otlp_exporter = Discard  # called when the first span is made

    @contextmanager
    def install() -> Iterator[Settle]:
        mlflow.dspy.autolog(silent=True)
        try:
            yield lambda: provider.provider.get().force_flush()
        finally:
            mlflow.dspy.autolog(disable=True, silent=True)
            dspy.configure(track_usage=False)  # autolog leaves it on

    return install


PEERS: dict[str, tuple[str, Callable[[], Install]]] = {
    "openinference": ("OpenInference", _openinference),
    "mlflow": ("MLflow autolog", _mlflow),
}


def _main(peer: str, rounds: int) -> None:
    program = prepare()
    name, make = PEERS[peer]
    install = make()
    report(
        measure(
            program,
            [
                Variant(NO_OP, listed(BaseCallback()), SHORT_QUESTION, NO_OP),
                Variant(f"{name}, traces only", install, SHORT_QUESTION, NO_OP),
                Variant(NO_OP_LONG, listed(BaseCallback()), LONG_QUESTION, NO_OP_LONG),
                Variant(f"{name}, traces only, 4 KB prompt", install, LONG_QUESTION, NO_OP_LONG),
            ],
            rounds=rounds,
        )
    )


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
