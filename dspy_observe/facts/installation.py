"""Putting callbacks into DSPy's settings and taking them out again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dspy
from dspy.dsp.utils.settings import main_thread_config

__all__ = ["append", "remove"]


def append(callbacks: Sequence[Any]) -> None:
    """Append to the callbacks that DSPy has for the whole process, those of other packages included.

    DSPy adds lists together on every call, so that a tuple or ``None`` in its settings breaks every program; what is
    there is therefore turned into a list.
    """
    present = list(main_thread_config.get("callbacks") or ())
    _set(present + [callback for callback in callbacks if all(callback is not other for other in present)])


def remove(callbacks: Sequence[Any]) -> None:
    """Take these very callbacks out and leave all others in their order."""
    present = main_thread_config.get("callbacks") or ()
    kept = [callback for callback in present if all(callback is not ours for ours in callbacks)]
    if len(kept) != len(present):
        _set(kept)


def _set(callbacks: list[Any]) -> None:
    try:
        dspy.configure(callbacks=callbacks)
    except RuntimeError:
        # DSPy reserves its settings for the thread and task that configured it first, so that two of them do not
        # disagree about the LM. A web server's start-up hook runs elsewhere, and observing changes no program.
        main_thread_config["callbacks"] = callbacks
