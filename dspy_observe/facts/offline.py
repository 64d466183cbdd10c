"""Asking DSPy what a model can do without letting it go to the network for the answer.

DSPy fetches its list of models once, at the first question, and LiteLLM another one when it is imported. Whoever only
wants to look must not set that off, nor keep a later call from it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from dspy import lm15
from dspy.clients import model_metadata
from dspy.clients.capabilities import resolve

__all__ = ["bundled_metadata", "can_tell_offline"]


@cache
def _bundled() -> dict[str, Any]:
    """Unpacking it takes 50 ms; DSPy copies what it reads out of it."""
    found: dict[str, Any] = model_metadata._snapshot()
    return found


@contextmanager
def bundled_metadata() -> Iterator[None]:
    """Let DSPy answer from the list that it brings along, unless it has fetched one already.

    Other threads that ask meanwhile get the same answers; the first question after the block fetches the list as ever.
    """
    with model_metadata._lock:
        if model_metadata._data is not None:
            yield
            return
        model_metadata._data = _bundled()
        try:
            yield
        finally:
            model_metadata._data = None


def can_tell_offline(lm: Any) -> bool:
    """Whether DSPy can tell what an LM supports without importing LiteLLM anew."""
    spec = getattr(lm, "engine", None)
    if not isinstance(spec, str) or "litellm" in sys.modules:
        return True
    if spec == "litellm":
        return False
    try:
        resolve(lm)
    except lm15.LM15Error:  # a model that only LiteLLM knows
        return False
    return True
