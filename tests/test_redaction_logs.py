"""Log lines: structlog and the standard library."""

from __future__ import annotations

import io
import logging
import sys
from typing import Any

import pytest
import structlog

from dspy_observe.redaction import RedactingFilter, Redaction, Redactor, StructlogRedactor

MAIL = "a.b@example.com"
REDACTOR = Redactor(Redaction(known_secrets=False))


def test_structlog_events_fields_and_tracebacks_are_redacted() -> None:
    """As rendered at the end of a real chain of processors."""
    lines: list[Any] = []

    def sink(logger: Any, name: str, event: Any) -> Any:
        lines.append(event)
        raise structlog.DropEvent

    logger = structlog.wrap_logger(
        None, processors=[structlog.processors.format_exc_info, StructlogRedactor(REDACTOR), sink]
    )
    try:
        raise ValueError(f"no such user {MAIL}")  # noqa: TRY301 - a traceback is wanted
    except ValueError:
        logger.exception("failed for " + MAIL, user={"mail": MAIL, "password": "x"}, tokens=12)  # noqa: G003
    (event,) = lines
    assert event["event"] == "failed for <EMAIL>"
    assert event["user"] == {"mail": "<EMAIL>", "password": "<SECRET>"}
    assert event["tokens"] == 12
    assert "ValueError: no such user <EMAIL>" in event["exception"]
    assert MAIL not in repr(event)


def test_structlog_exceptions_that_are_still_objects_are_rendered() -> None:
    """Placed before ``format_exc_info`` nothing leaks either."""
    try:
        raise ValueError(MAIL)  # noqa: TRY301 - a traceback is wanted
    except ValueError:
        event = StructlogRedactor(REDACTOR)(None, "error", {"event": "x", "exc_info": sys.exc_info()})
    assert "exc_info" not in event
    assert "ValueError: <EMAIL>" in event["exception"]


@pytest.mark.parametrize("given", [True, 1, "yes"])
@pytest.mark.parametrize(
    "render",
    [
        structlog.processors.JSONRenderer(),
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ],
    ids=["json", "console"],
)
def test_structlog_resolves_the_exception_under_way(given: Any, render: Any) -> None:
    """``log.exception()`` says no more than that there is one; its traceback is in the line, redacted."""
    redact = StructlogRedactor(REDACTOR)
    try:
        raise ValueError(f"no such user {MAIL}")  # noqa: TRY301 - a traceback is wanted
    except ValueError:
        line = render(None, "error", redact(None, "error", {"event": "x", "exc_info": given}))
        also = render(None, "error", redact(None, "error", {"event": "x", "exc_info": given, "exception": "before"}))
    for text in (line, also):
        assert "ValueError: no such user <EMAIL>" in text
        assert "Traceback" in text
        assert MAIL not in text


@pytest.mark.parametrize("given", [True, False, None, (None, None, None), ()])
def test_structlog_without_an_exception_under_way(given: Any) -> None:
    """The line says nothing of one."""
    assert StructlogRedactor(REDACTOR)(None, "error", {"event": "x", "exc_info": given}) == {"event": "x"}


def test_the_logging_filter_takes_what_is_no_exception_for_none() -> None:
    """A triple that somebody made up does not break the program."""
    record = logging.makeLogRecord({"msg": "x", "exc_info": ("a", "b", "c")})
    assert RedactingFilter(REDACTOR).filter(record).exc_text is None


def test_the_logging_filter_redacts_message_arguments_extra_and_traceback() -> None:
    """What a handler writes holds nothing private; a handler before it still sees the original."""
    before, out, after = io.StringIO(), io.StringIO(), io.StringIO()
    logger = logging.Logger("test")  # noqa: LOG001 - known to nobody else
    for stream in (before, out, after):
        handler = logging.StreamHandler(stream)
        handler.setFormatter(logging.Formatter("%(levelname)s %(message)s %(user)s"))
        if stream is out:
            handler.addFilter(RedactingFilter(REDACTOR))
        logger.addHandler(handler)
    try:
        raise ValueError(f"bad {MAIL}")  # noqa: TRY301 - a traceback is wanted
    except ValueError:
        logger.exception("to %s", MAIL, extra={"user": {"mail": MAIL}})
    assert out.getvalue().startswith("ERROR to <EMAIL> {'mail': '<EMAIL>'}")
    assert "ValueError: bad <EMAIL>" in out.getvalue()
    assert MAIL not in out.getvalue()
    assert before.getvalue().startswith(f"ERROR to {MAIL}")
    if sys.version_info >= (3, 12):  # Python 3.11 lets a filter change the record only, for all handlers that follow
        assert after.getvalue().startswith(f"ERROR to {MAIL}")
    else:
        assert MAIL not in after.getvalue()


def test_a_message_that_does_not_fit_its_arguments_leaks_nothing() -> None:
    """Formatting fails inside logging; the line is an error mark."""
    record = logging.LogRecord("x", logging.INFO, __file__, 1, "%d", (MAIL,), None)
    assert RedactingFilter(REDACTOR).filter(record).getMessage() == "[REDACTION_ERROR:TypeError]"
