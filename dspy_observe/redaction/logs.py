"""Log lines without what is private: a structlog processor and a filter for the standard library's logging."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import MutableMapping
from typing import Any

from dspy_observe.redaction.options import Redaction
from dspy_observe.redaction.redactor import Redactor

__all__ = ["RedactingFilter", "StructlogRedactor"]

_TAKES_REPLACEMENT = sys.version_info >= (3, 12)
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class StructlogRedactor:
    """A structlog processor that redacts the event and every field.

    Put it last before the renderer and after ``format_exc_info`` or ``dict_tracebacks``, so that it sees tracebacks as
    text or data. Exceptions that are still objects are rendered here, without local variables.

    Args:
        redactor: What redacts; options make one; ``None`` takes the defaults.
    """

    def __init__(self, redactor: Redactor | Redaction | None = None) -> None:
        self.redactor = redactor if isinstance(redactor, Redactor) else Redactor(redactor)

    def __call__(self, logger: Any, method_name: str, event_dict: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """The event with everything private replaced."""
        del logger, method_name
        fields = {
            key: _rendered(value) if isinstance(value, BaseException) else value
            for key, value in event_dict.items()
            if key != "exc_info"  # a renderer that finds it writes the traceback as it is
        }
        error = _error_of(event_dict.get("exc_info"))
        if error is not None:
            fields["exception"] = _rendered(error)
        copy, _ = self.redactor.redact(fields)
        return copy if isinstance(copy, dict) else {"event": copy}


def _error_of(exc_info: Any) -> BaseException | None:
    """The exception that structlog's ``exc_info`` stands for: itself, a triple, or anything true for the latest."""
    if isinstance(exc_info, BaseException):
        return exc_info
    if isinstance(exc_info, tuple) and len(exc_info) == 3:  # noqa: PLR2004 - as sys.exc_info() has it
        return exc_info[1] if isinstance(exc_info[1], BaseException) else None
    return sys.exc_info()[1] if exc_info else None


def _rendered(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)).rstrip("\n")


class RedactingFilter(logging.Filter):
    """A filter for loggers and handlers that redacts message, arguments, extra fields, traceback and stack.

    From Python 3.12 on the record is replaced by a redacted copy, so that other handlers keep theirs: put the filter
    on every handler that writes to somewhere, or on the logger itself. Python 3.11 takes no replacement; there the
    record itself is redacted, for all handlers that follow.

    Args:
        redactor: What redacts; options make one; ``None`` takes the defaults.
    """

    def __init__(self, redactor: Redactor | Redaction | None = None) -> None:
        super().__init__()
        self.redactor = redactor if isinstance(redactor, Redactor) else Redactor(redactor)

    def filter(self, record: logging.LogRecord) -> logging.LogRecord:  # type: ignore[override]  # a record since 3.12
        """The redacted record."""
        copy = self._copy(record)
        if _TAKES_REPLACEMENT:
            return copy
        record.__dict__.clear()
        record.__dict__.update(copy.__dict__)
        return record

    def _copy(self, record: logging.LogRecord) -> logging.LogRecord:
        copy = logging.makeLogRecord(dict(record.__dict__))
        redact = self.redactor.redact_text
        try:
            copy.msg = redact(record.getMessage())
        except Exception as error:  # noqa: BLE001 - a wrong number of arguments must not leak them
            copy.msg = self.redactor.failed(error, None)
        copy.args = None
        raised = None if record.exc_text else _error_of(record.exc_info)
        if raised is not None:
            copy.exc_text = _rendered(raised)
        if copy.exc_text:
            copy.exc_text = redact(copy.exc_text)
        copy.exc_info = None
        if record.stack_info:
            copy.stack_info = redact(record.stack_info)
        extra = {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
        if extra:
            redacted, _ = self.redactor.redact(extra)
            for name in extra:
                del copy.__dict__[name]
            copy.__dict__.update(redacted if isinstance(redacted, dict) else {})
        return copy
