"""A structlog line rendered at one time and written at another.

Rendering is quick and blocks nobody; writing may wait for a pipe or a disk. Where a logger keeps the two apart, the
line is rendered here and the rest is left to whoever may wait: a logger of structlog's own that ends in one of its
three plain file loggers, and none of whose processors is somebody else's. https://www.structlog.org/en/stable/loggers.html
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, Final

import structlog
from structlog._base import BoundLoggerBase

__all__ = ["NotApartError", "is_structlog", "rendered"]

_PLAIN: Final = (structlog.PrintLogger, structlog.WriteLogger, structlog.BytesLogger)


def is_structlog(logger: object) -> bool:
    """Whether a logger is one of structlog's, bound or not yet."""
    return _is_own(type(logger)) and hasattr(logger, "bind")


def rendered(logger: Any, level: str, event: str, fields: Mapping[str, Any]) -> Callable[[], Any] | None:
    """Render a line as the logger would.

    Args:
        logger: One of structlog's.
        level: Its method, such as ``info``.
        event: The line's event.
        fields: Its fields.

    Returns:
        What writes it; ``None`` where the logger's level or processors drop the line.

    Raises:
        NotApartError: The logger does more than render before it writes.
        Exception: What a processor raised.
    """
    bound = logger.bind()
    kind: Any = type(bound)
    if not isinstance(bound, BoundLoggerBase) or not _is_own(kind):
        raise NotApartError
    plain = bound._logger
    if type(plain) not in _PLAIN or not _only_render(tuple(bound._processors)):
        raise NotApartError
    method = _method(kind, level)
    if method is None:
        return None
    try:
        args, kwargs = bound._process_event(method, event, dict(fields))
    except structlog.DropEvent:
        return None
    return partial(getattr(plain, method), *args, **kwargs)


@lru_cache(maxsize=32)
def _method(kind: Any, level: str) -> str | None:
    """What a class of bound loggers calls for a level; ``None`` where it lets the level not through."""
    note = _Note()
    getattr(kind(note, [lambda *_: ((), {})], {}), level)("probe")
    return note.method


class NotApartError(Exception):
    """Rendering and writing cannot be told apart."""


class _Note:
    """Stands in for the logger that writes, and notes which method is called."""

    method: str | None = None

    def __getattr__(self, name: str) -> Callable[..., None]:
        def note(*_: Any, **__: Any) -> None:
            self.method = name

        return note


def _only_render(processors: tuple[Any, ...]) -> bool:
    """Whether all processors are structlog's own. The latest answer is kept: an application has one chain of them."""
    known, answer = _latest[0]
    if known != processors:
        answer = all(_is_own(processor) or _is_own(type(processor)) for processor in processors)
        _latest[0] = (processors, answer)
    return answer


_latest: Final[list[tuple[tuple[Any, ...], bool]]] = [((), True)]


def _is_own(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "")).partition(".")[0] == "structlog"
