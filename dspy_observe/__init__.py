"""See what DSPy programs cost, how long they take and how they fail, and put the previous version back.

    import dspy, dspy_observe
    dspy.configure(lm=dspy.LM("openai/gpt-4o-mini"))
    observer = dspy_observe.configure(service="support-bot", metrics=dspy_observe.Metrics(port=9464))

Names are loaded when they are first used: the command line and the redactor start without importing DSPy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dspy_observe.callbacks.base import CallbackGroup as CallbackGroup
    from dspy_observe.callbacks.base import RecordCallback as RecordCallback
    from dspy_observe.callbacks.cost import Cost as Cost
    from dspy_observe.callbacks.cost import CostCallback as CostCallback
    from dspy_observe.callbacks.latency import LatencyCallback as LatencyCallback
    from dspy_observe.callbacks.logs import LogCallback as LogCallback
    from dspy_observe.callbacks.logs import Logs as Logs
    from dspy_observe.callbacks.otel import OTelCallback as OTelCallback
    from dspy_observe.callbacks.otel import Tracing as Tracing
    from dspy_observe.callbacks.redaction import RedactionCallback as RedactionCallback
    from dspy_observe.callbacks.registry import RegistryEventCallback as RegistryEventCallback
    from dspy_observe.config import Observer as Observer
    from dspy_observe.config import configure as configure
    from dspy_observe.embedding import ObservedEmbedder as ObservedEmbedder
    from dspy_observe.errors import ConfigurationError as ConfigurationError
    from dspy_observe.errors import ObserveError as ObserveError
    from dspy_observe.errors import UnknownCallError as UnknownCallError
    from dspy_observe.metrics import Metrics as Metrics
    from dspy_observe.records import CallRecord as CallRecord
    from dspy_observe.records import CallStart as CallStart
    from dspy_observe.records import RegistryEvent as RegistryEvent
    from dspy_observe.records import Score as Score
    from dspy_observe.records import Usage as Usage
    from dspy_observe.redaction import Redaction as Redaction
    from dspy_observe.serving.errors import NotDeployedError as NotDeployedError
    from dspy_observe.serving.live import LiveProgram as LiveProgram
    from dspy_observe.serving.routing import Router as Router
    from dspy_observe.serving.shadowing import Shadow as Shadow

_HOMES = {
    "CallbackGroup": "callbacks.base",
    "RecordCallback": "callbacks.base",
    "Cost": "callbacks.cost",
    "CostCallback": "callbacks.cost",
    "LatencyCallback": "callbacks.latency",
    "LogCallback": "callbacks.logs",
    "Logs": "callbacks.logs",
    "OTelCallback": "callbacks.otel",
    "Tracing": "callbacks.otel",
    "RedactionCallback": "callbacks.redaction",
    "RegistryEventCallback": "callbacks.registry",
    "Observer": "config",
    "configure": "config",
    "ObservedEmbedder": "embedding",
    "ConfigurationError": "errors",
    "ObserveError": "errors",
    "UnknownCallError": "errors",
    "Metrics": "metrics",
    "CallRecord": "records",
    "CallStart": "records",
    "RegistryEvent": "records",
    "Score": "records",
    "Usage": "records",
    "Redaction": "redaction",
    "LiveProgram": "serving.live",
    "NotDeployedError": "serving.errors",
    "Router": "serving.routing",
    "Shadow": "serving.shadowing",
}

__all__ = ["__version__", *_HOMES]  # noqa: PLE0604 - built from the table that serves the names


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
