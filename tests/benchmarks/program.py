"""The one program that every benchmark times, and how its process is prepared.

A module that holds a ``ChainOfThought``: three module calls, one adapter format, one LM call and one adapter parse a
program call. The LM answers from memory, so that what is timed is DSPy and what watches it.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from typing import Any, Final

import dspy
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from dspy_observe import safety
from dspy_observe.testing import offline_lm

__all__ = ["LONG_QUESTION", "SHORT_QUESTION", "Discard", "Program", "prepare", "report", "say"]

SHORT_QUESTION: Final = "Which river flows through Vienna?"

_TICKET: Final = (
    "Ticket 7: the customer wrote from anna.bauer@example.com that order 4411 arrived with a broken lid, and asked for "
    "a call back on +43 1 58801 4401.\n"
)
_NOTE: Final = (
    "Note {n}: the agent answered that photographs of the parcel are needed, that the warranty of two years covers "
    "transport damage on page {n} of the terms, and that a replacement of part {n} takes five working days.\n"
)
LONG_QUESTION: Final = (_TICKET + "".join(_NOTE.format(n=n) for n in range(30)))[:4096]
"""4 KB of a support ticket, with one email address and one phone number."""


class Program(dspy.Module):
    """A module that holds a chain of thought."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = dspy.ChainOfThought("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        """Answer a question."""
        return self.answer(question=question)


class Discard(SpanExporter):
    """An exporter that reads all of a span, as one that sends it must, and sends nothing."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Read the spans and forget them."""
        for span in spans:
            assert span.context is not None
            read = (
                span.name, span.kind, span.context.trace_id, span.context.span_id, span.context.trace_state,
                span.parent.span_id if span.parent is not None else None, span.start_time, span.end_time,
                span.status.status_code, dict(span.attributes or {}), list(span.events), list(span.links),
                span.resource, span.instrumentation_scope, span.dropped_attributes, span.dropped_events,
            )  # fmt: skip
            assert read[0]
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing to end."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing waits."""
        return True


def prepare() -> Program:
    """Configure DSPy with its defaults and an LM in memory, and make the program."""
    logging.disable(logging.INFO)
    lm = offline_lm({"reasoning": "The Danube is the river on which Vienna lies.", "answer": "The Danube."})
    dspy.configure(lm=lm, adapter=dspy.ChatAdapter(), callbacks=[])
    return Program()


def say(text: str) -> None:
    """Tell the runner how far this process is."""
    _line({"progress": text})


def report(result: object) -> None:
    """Hand the runner this process' result, and what telemetry was lost on the way; any loss makes it worthless."""
    _line({"result": result, "swallowed": safety.counts()})


def _line(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()
