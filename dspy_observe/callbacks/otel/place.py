"""Work done in the name of a call that has ended, such as writing its log line, in the place where its span stood."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opentelemetry import context as context_api
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

__all__ = ["in_span"]


def in_span(trace_id: str, span_id: str, work: Callable[..., Any], *args: Any) -> None:
    """Do ``work(*args)`` with a sampled span current, so that what reads the current span finds it.

    Args:
        trace_id: The span's trace, in hexadecimal.
        span_id: The span, in hexadecimal.
        work: What is done.
        *args: Its arguments.
    """
    place = SpanContext(
        int(trace_id, 16), int(span_id, 16), is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED)
    )
    token = context_api.attach(set_span_in_context(NonRecordingSpan(place)))
    try:
        work(*args)
    finally:
        context_api.detach(token)
