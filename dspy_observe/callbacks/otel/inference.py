"""One span for one model inference, also where other instrumentations see the same call.

The first to open an inference span says so in the context; those below it make none, and may add what they know. Two
forms of saying so are about. The draft of the conventions keeps the span under one key. OpenTelemetry's own
instrumentations (opentelemetry-util-genai) keep an object under another, heed it only when it is of their own class,
and take over the attributes that others put on it. That class is there whenever somebody could be looking for it.
"""

from __future__ import annotations

import sys
from typing import Any, Final

from opentelemetry import context as context_api
from opentelemetry.trace import Span, get_current_span

from dspy_observe.conventions import EMBEDDING_DATA_KEY, INFERENCE_DATA_KEY, INFERENCE_SPAN_KEY
from dspy_observe.records import CallRecord, CallStart

__all__ = ["Inference", "announce", "open_inference"]

_UTIL_GENAI: Final = "opentelemetry.util.genai.invocation"
_DATA: Final = {"embeddings": (EMBEDDING_DATA_KEY, "EmbeddingData")}
_CHAT_DATA: Final = (INFERENCE_DATA_KEY, "InferenceData")
_OWN_NAMES: Final = "dspy."


def announce(span: Span, operation: str | None) -> tuple[dict[str, object], object]:
    """Tell the instrumentations below that an inference has its span.

    Args:
        span: Our span.
        operation: The GenAI operation.

    Returns:
        What the context of the call says of it, and the object left in it for OpenTelemetry's own instrumentations, if
        any.
    """
    told: dict[str, object] = {INFERENCE_SPAN_KEY: span}
    key, class_name = _DATA.get(operation or "", _CHAT_DATA)
    kind = getattr(sys.modules.get(_UTIL_GENAI), class_name, None)
    data = kind() if kind is not None else None
    if data is not None:
        told[key] = data
    return told, data


class Inference:
    """An inference span of others, open around a call of ours.

    Args:
        span: Their span, or the current one below it.
        data: What they left for those below to add to; ``None`` where they left the span itself.
    """

    __slots__ = ("_data", "span")

    def __init__(self, span: Span, data: Any = None) -> None:
        self.span = span
        self._data = data

    @property
    def token(self) -> object:
        """What tells this inference from others."""
        return self.span if self._data is None else self._data

    def add(self, attributes: dict[str, Any]) -> None:
        """Put on their span what only we know: the attributes under names of ours."""
        own = {name: value for name, value in attributes.items() if name.startswith(_OWN_NAMES)}
        if self._data is None:
            self.span.set_attributes(own)
        else:
            self._data.attributes.update(own)


def open_inference(start: CallStart | CallRecord) -> Inference | None:
    """The inference span that is open in the current context, whosever it is.

    Args:
        start: The call that looks for it.
    """
    context = context_api.get_current()
    span = context.get(INFERENCE_SPAN_KEY)
    if span is not None and isinstance(span, Span):  # the class answers isinstance() slowly, and mostly there is none
        return Inference(span) if span.is_recording() else None
    key, _ = _DATA.get(start.operation or "", _CHAT_DATA)
    data = context.get(key)
    if not isinstance(getattr(data, "attributes", None), dict):
        return None
    current = get_current_span(context)
    return Inference(current, data) if current.is_recording() else None
