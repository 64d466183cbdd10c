"""Telemetry must never break the program it watches, and must never fail in silence.

Every place where our code runs inside somebody's program is wrapped in a :class:`guard`. An ``Exception`` that reaches
a guard is swallowed, counted under the guard's site, and logged at most once a minute per site. The log line carries
the error's type and place, never its text: the text of an error may quote a prompt or a key.

``DSPY_OBSERVE_STRICT=1`` re-raises instead, for test suites that want to see every fault.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import MethodType, TracebackType

__all__ = ["clean_names_with", "counts", "guard", "on_error", "swallowed"]

_LOG_EVERY_S = 60.0

_logger = logging.getLogger("dspy_observe")
_lock = threading.Lock()
_counts: dict[str, int] = {}
_logged_at: dict[str, float] = {}
_listeners: list[Callable[[], Callable[[str, int], None] | None]] = []
"""What gives the listeners, or ``None`` where the object of a method is gone."""
_cleaners: list[Callable[[str], str]] = []


class guard:  # noqa: N801 - reads as a keyword at the place of use
    """Swallow, count and log the exceptions of a block.

    Stateless and therefore reusable: make one at module level and enter it from any number of threads.

    Args:
        site: Where we are, as ``room.action``; it becomes the ``site`` label of
            ``dspy_observe_internal_errors_total``, so it is a constant, never built from data.
    """

    __slots__ = ("site",)

    def __init__(self, site: str) -> None:
        self.site = site

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if error is None or not isinstance(error, Exception):
            return False  # KeyboardInterrupt and cancellation belong to the program, not to us
        swallowed(self.site, error)
        return not strict()


def strict() -> bool:
    """Whether swallowed errors are raised again (``DSPY_OBSERVE_STRICT`` is set to 1 or true)."""
    return os.environ.get("DSPY_OBSERVE_STRICT", "").lower() in {"1", "true"}


def swallowed(site: str, error: BaseException, count: int = 1) -> None:
    """Count an error that was kept from the program, and log it unless the site logged within the last minute.

    Args:
        site: Where it happened; a constant, as for :class:`guard`.
        error: What was swallowed; only its type and place are logged.
        count: How many things were lost by it, such as the spans of a batch.
    """
    now = time.monotonic()
    with _lock:
        _counts[site] = _counts.get(site, 0) + count
        last = _logged_at.get(site)
        quiet = last is not None and now - last < _LOG_EVERY_S
        if not quiet:
            _logged_at[site] = now
        listeners = tuple(_listeners)
    for reference in listeners:
        listener = reference()
        if listener is not None:
            listener(site, count)
    if not quiet:
        _logger.warning(
            "dspy_observe: %s at %s in %s; the program is not affected, some telemetry is missing. "
            "Further errors here are only counted for a minute (dspy_observe_internal_errors_total).",
            _name(error),
            _place(error),
            site,
        )


def counts() -> dict[str, int]:
    """How many errors were swallowed so far in this process, by site."""
    with _lock:
        return dict(_counts)


def on_error(listener: Callable[[str, int], None]) -> Callable[[], None]:
    """Call ``listener(site, count)`` for every swallowed error from now on.

    The listener is told of the earlier errors too, so that a counter made late starts with the right value.

    Args:
        listener: A method does not keep its object alive, and is called as long as the object lives.

    Returns:
        A function that stops the calls.
    """
    reference: Callable[[], Callable[[str, int], None] | None]
    reference = weakref.WeakMethod(listener) if isinstance(listener, MethodType) else lambda: listener
    with _lock:
        earlier = dict(_counts)
        # Here and not in a finaliser, which may run in a thread that holds the lock.
        _listeners[:] = [known for known in _listeners if known() is not None]
        _listeners.append(reference)
    for site, count in earlier.items():
        listener(site, count)

    def stop() -> None:
        with _lock:
            _listeners[:] = [known for known in _listeners if known is not reference]

    return stop


def clean_names_with(cleaner: Callable[[str], str]) -> None:
    """Pass the names of error classes through ``cleaner`` before they are logged.

    A class that is made at run time can be named after data. Redaction stands above this room and registers itself.
    """
    _cleaners.append(cleaner)


def _name(error: BaseException) -> str:
    name = type(error).__name__
    for cleaner in _cleaners:
        name = cleaner(name)
    return name


def _place(error: BaseException) -> str:
    traceback = error.__traceback__
    if traceback is None:
        return "an unknown place"
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return f"{Path(traceback.tb_frame.f_code.co_filename).name}:{traceback.tb_lineno}"
