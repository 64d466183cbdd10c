"""What a provider's span processors do with a span, and how a finished one gets to them.

The SDK's parts that have no public name are looked for; where they are not, the public way is taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sized
from typing import Any, Final

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

__all__ = ["ignores_starts", "only_queues", "taker"]

_PAUSE_S: Final = 0.0005
"""How long a caller stands aside for the exporting thread."""
_GIVE_WAY_EVERY: Final = 64
"""Spans after which it does so again where the exporter does not keep up: some 20 microseconds a program call."""
_NO_START: Final = tuple(kind.on_start for kind in (SpanProcessor, BatchSpanProcessor, SimpleSpanProcessor))
_NO_ENDING: Final = tuple(
    getattr(kind, "_on_ending", None) for kind in (SpanProcessor, BatchSpanProcessor, SimpleSpanProcessor)
)


def ignores_starts(processor: SpanProcessor) -> bool:
    """Whether a processor does nothing until a span has ended."""
    kind = type(processor)
    bare = not {"on_start", "_on_ending"} & set(vars(processor))  # nobody put a function of their own in its place
    return bare and kind.on_start in _NO_START and getattr(kind, "_on_ending", None) in _NO_ENDING


def only_queues(processor: SpanProcessor) -> bool:
    """Whether the end of a span never waits for an exporter."""
    return type(processor) is BatchSpanProcessor or getattr(type(processor), "only_queues", False) is True


def taker(processor: SpanProcessor) -> Callable[[ReadableSpan], Any]:
    """What takes a finished span that is sampled."""
    batch = getattr(processor, "_batch_processor", None) if isinstance(processor, BatchSpanProcessor) else None
    take = processor.on_end
    if type(processor) is BatchSpanProcessor and "on_end" not in vars(processor):
        # Its on_end asks whether the span is sampled, which makes the span's context only to find that it is.
        take = getattr(batch, "emit", None) or take
    queue, size = getattr(batch, "_queue", None), getattr(batch, "_max_export_batch_size", None)
    return take if queue is None or size is None else _giving_way(take, queue, size)


def _giving_way(take: Callable[[ReadableSpan], Any], queue: Sized, batch_size: int) -> Callable[[ReadableSpan], Any]:
    """Stand aside for a moment when a batch is full.

    A program that keeps Python busy does not let the SDK's exporting thread run: each ``os.urandom`` of the program,
    and DSPy makes several a call, wakes the thread in vain, until the queue is full and spans are lost.
    """
    behind = 0

    def taking(span: ReadableSpan) -> None:
        nonlocal behind
        take(span)
        if len(queue) < batch_size:
            behind = 0
            return
        if not behind % _GIVE_WAY_EVERY:
            time.sleep(_PAUSE_S)
        behind += 1

    return taking
