"""How much room DSPy's disk cache takes."""

from __future__ import annotations

import math
import time
from typing import Final

import dspy

from dspy_observe.disk_cache import tree_bytes
from dspy_observe.safety import guard

__all__ = ["disk_cache_bytes"]

_GUARD: Final = guard("cache.size")
_KEEP_S: Final = 60.0
_measured: tuple[float, float] = (-math.inf, math.nan)


def disk_cache_bytes() -> float:
    """Size of DSPy's disk cache in bytes, NaN when it is off.

    The files are added up at most once a minute. (The cache's own count would open its sixteen databases in each
    thread that asks, and a metrics endpoint asks from a new thread every time.)
    """
    global _measured  # noqa: PLW0603 - one figure for the process; a race costs one measurement
    at, size = _measured
    now = time.monotonic()
    if now - at >= _KEEP_S:
        size = math.nan
        with _GUARD:
            directory = getattr(getattr(dspy.cache, "disk_cache", None), "directory", None)
            if getattr(dspy.cache, "enable_disk_cache", False) and directory:
                size = float(tree_bytes(str(directory)))
        _measured = (now, size)
    return size
