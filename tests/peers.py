"""The instrumentations that others make for DSPy, switched on and off again in one process.

Each is a context manager that takes the tracer provider its spans go to. MLflow keeps a provider of its own; there the
given one's processors are added to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import dspy
import dspy.utils
from opentelemetry.sdk.trace import TracerProvider

__all__ = ["PEERS", "mlflow", "openinference", "opentelemetry_genai"]

Peer = Callable[[TracerProvider], AbstractContextManager[None]]


@contextmanager
def openinference(provider: TracerProvider) -> Iterator[None]:
    """OpenInference's ``DSPyInstrumentor``, which wraps DSPy's classes.

    Its ``uninstrument()`` (0.1.48) unwraps too far and takes DSPy's own callback dispatch away with its wrappers, so
    that no callback is ever called again. What it found is put back here.
    """
    from openinference.instrumentation.dspy import DSPyInstrumentor

    before = [(kind, dict(vars(kind))) for kind in _wrapped_classes()]
    instrumentor = DSPyInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    try:
        yield
    finally:
        instrumentor.uninstrument()
        for kind, attributes in before:
            for name in set(vars(kind)) - set(attributes):
                delattr(kind, name)
            for name, value in attributes.items():
                if vars(kind)[name] is not value:
                    setattr(kind, name, value)


@contextmanager
def opentelemetry_genai(provider: TracerProvider) -> Iterator[None]:
    """OpenTelemetry's own ``DSPyInstrumentor``."""
    from opentelemetry.instrumentation.genai.dspy import DSPyInstrumentor

    instrumentor = DSPyInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    try:
        yield
    finally:
        instrumentor.uninstrument()


@contextmanager
def mlflow(provider: TracerProvider) -> Iterator[None]:
    """``mlflow.dspy.autolog()``, which is a DSPy callback."""
    import mlflow
    import mlflow.dspy
    from mlflow.tracing.provider import provider as own

    mlflow.tracing.reset()
    mlflow.dspy.autolog(silent=True)
    try:
        own.get_or_init_tracer(__name__)
        own.get().add_span_processor(provider._active_span_processor)
        yield
    finally:
        mlflow.dspy.autolog(disable=True, silent=True)
        dspy.configure(track_usage=False)  # autolog leaves it on


def _wrapped_classes() -> set[type[Any]]:
    kinds = {dspy.Module, dspy.LM, dspy.Adapter, dspy.Tool, dspy.Retrieve, dspy.ColBERTv2, dspy.utils.DummyLM}
    predictors = {dspy.Predict, *dspy.Predict.__subclasses__()}
    return {base for kind in kinds | predictors for base in kind.__mro__ if base.__module__.startswith("dspy")}


PEERS: dict[str, Peer] = {"mlflow": mlflow, "openinference": openinference, "opentelemetry": opentelemetry_genai}
