"""Running a program beside a user's call and apart from it: same LM and adapter, nothing else in common."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import dspy
from dspy.dsp.utils.settings import thread_local_overrides

__all__ = ["bill_of", "carried_settings", "run_apart"]

T = TypeVar("T")

_OF_ONE_CALL: Final = frozenset(
    {"trace", "branch_idx", "send_stream", "stream_listeners", "usage_tracker", "caller_predict", "caller_modules"}
)
"""Settings that DSPy keeps about the call that is under way: its stream, its usage, its callers."""


def carried_settings() -> dict[str, Any]:
    """The settings that are in force here beside those of the process, without those of the call under way."""
    return {name: value for name, value in thread_local_overrides.get().items() if name not in _OF_ONE_CALL}


def run_apart(settings: Mapping[str, Any], work: Callable[[], T]) -> T:
    """Run something in a context of its own: no parent call, no trace, no usage tracker, no stream.

    Args:
        settings: From :func:`carried_settings`.
        work: What to run.
    """

    def within() -> T:
        with dspy.context(**settings):
            return work()

    return contextvars.Context().run(within)


def bill_of(program: Any) -> float | None:
    """US dollars that a program's LM calls cost since its history was last emptied, which this does.

    Args:
        program: A ``dspy.Module`` that nobody else empties.

    Returns:
        ``None`` where a call's price is not known.
    """
    entries, program.history = program.history, []
    costs = [entry.get("cost") for entry in entries if entry.get("usage")]  # a cache hit has none, and costs nothing
    return None if any(cost is None for cost in costs) else sum(costs)
