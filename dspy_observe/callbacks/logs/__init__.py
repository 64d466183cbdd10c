"""One log line for every finished root call, LM call, score and registry event.

What you get
    Structured lines with ``call_id``, ``program``, ``version``, ``outcome``, ``duration_s``, tokens, cost, and
    ``trace_id`` and ``span_id`` where an ``OTelCallback`` records the trace; that span is current while the line is
    written, so that log records exported over OTLP join it too. No prompt, reply or error text.
Where the lines go
    To the logger given in :class:`Logs`; else through structlog once the application has configured it; else, as JSON,
    to the standard logger ``dspy_observe.calls``, which stays silent until the application lets its level through.
    They are written by a thread of ours within some 50 ms of the call, in the caller's context variables, so that a
    logger that blocks holds nobody up. A structlog logger that only renders before it writes to a plain file renders
    the lines of several calls in a row, in the thread of one of them. :meth:`LogCallback.flush`, ``Observer.flush()``
    and the end of the process wait for them.
Options
    :class:`Logs`.
Order and composition
    Any. Two of them with one logger write a line once.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from dspy_observe.callbacks.base import RecordCallback
from dspy_observe.callbacks.logs.rendering import NotApartError, is_structlog, rendered
from dspy_observe.conventions import LOG_LM_CALL, LOG_ROOT_CALL, LOG_SCORE
from dspy_observe.environment import env_default, one_of
from dspy_observe.errors import ConfigurationError
from dspy_observe.handoff import Handoff
from dspy_observe.records import CallRecord, RegistryEvent, Score
from dspy_observe.redaction import redact_event, redact_score
from dspy_observe.redaction.names import encodable

__all__ = ["LogCallback", "Logs"]

_LEVELS: Final = ("debug", "info", "warning", "error", "critical")
_NUMBERS: Final = {level: logging.getLevelNamesMapping()[level.upper()] for level in _LEVELS}
_STANDARD_LOGGER: Final = "dspy_observe.calls"


@dataclass(frozen=True, slots=True, kw_only=True)
class Logs:
    """Where log lines go.

    Raises:
        ConfigurationError: ``level`` is no level, or ``logger`` cannot log.
    """

    logger: Any = None
    """A structlog logger or a ``logging.Logger``; ``None`` chooses as the module's page says."""
    level: str = field(default_factory=env_default("DSPY_OBSERVE_LOGS_LEVEL", "info", one_of(*_LEVELS)))
    """Level of the lines about calls that went well: debug, info, warning, error or critical, in any case. Failures are
    logged as ``warning`` at least."""

    def __post_init__(self) -> None:
        if isinstance(self.level, str):
            object.__setattr__(self, "level", self.level.lower())
        if self.level not in _LEVELS:
            raise ConfigurationError("Logs.level", f"{self.level!r} is no level", f"Use one of {', '.join(_LEVELS)}")
        if self.logger is not None and not callable(getattr(self.logger, self.level, None)):
            raise ConfigurationError(
                "Logs.logger", f"{type(self.logger).__name__} has no method {self.level!r}", "Pass a structlog logger"
            )


class LogCallback(RecordCallback):
    """Write structured log lines.

    Args:
        logs: Logger and level; ``None`` takes the defaults and the environment.
    """

    kinds = frozenset({"lm", "module", "tool", "evaluate", "compile", "interpreter"})

    def __init__(self, logs: Logs | None = None) -> None:
        options = logs or Logs()
        self._logger = options.logger
        self._structlog = structlog.get_logger(_STANDARD_LOGGER)
        self._standard = logging.getLogger(_STANDARD_LOGGER)
        self._level = options.level
        self._failure_level = _LEVELS[max(_LEVELS.index(options.level), _LEVELS.index("warning"))]
        self._handoff = Handoff("logs.emit")

    @property
    def identity(self) -> object:
        return ("logs", id(self._logger) if self._logger is not None else None)

    def finished(self, record: CallRecord) -> None:
        if record.kind == "lm":
            self._emit(LOG_LM_CALL, record.outcome, _lm_fields, record)
        elif record.parent_id is None:
            self._emit(LOG_ROOT_CALL, record.outcome, _root_fields, record)

    def happened(self, event: RegistryEvent) -> None:
        """Log one registry event."""
        failed = event.name.endswith("_error")
        event = redact_event(event)
        self._emit(event.name, "error" if failed else "ok", _event_fields, event)

    def scored(self, score: Score) -> None:
        """Log one score."""
        self._emit(LOG_SCORE, "ok", _score_fields, redact_score(score))

    def flush(self, timeout_s: float) -> bool:
        """Wait for lines that are not written yet; returns whether all are."""
        return self._handoff.flush(timeout_s)

    def _emit(self, event: str, outcome: str, fields_of: Callable[[Any], dict[str, Any]], subject: Any) -> None:
        """Have a line written; its fields are worked out only where somebody takes it."""
        level = self._level if outcome == "ok" else self._failure_level
        logger = self._logger
        if logger is None:
            logger = self._structlog if structlog.is_configured() else self._standard
        if isinstance(logger, logging.Logger):
            if logger.isEnabledFor(_NUMBERS[level]):
                self._handoff.run(_write_json, logger, _NUMBERS[level], event, fields_of, subject)
        elif is_structlog(logger):
            self._handoff.run_prepared(_prepare, logger, level, event, fields_of, subject)
        else:
            self._handoff.run(_write, logger, level, event, fields_of, subject)


def _prepare(
    logger: Any, level: str, event: str, fields_of: Callable[[Any], dict[str, Any]], subject: Any
) -> tuple[Any, ...] | None:
    """Render a line where that alone blocks nobody, and leave the rest for later."""
    try:
        write = rendered(logger, level, event, fields_of(subject))
    except NotApartError:
        return (_write, logger, level, event, fields_of, subject)
    return None if write is None else (write,)


def _write(logger: Any, level: str, event: str, fields_of: Callable[[Any], dict[str, Any]], subject: Any) -> None:
    fields = fields_of(subject)
    _joined(fields, lambda: getattr(logger, level)(event, **fields))


def _write_json(
    logger: logging.Logger, level: int, event: str, fields_of: Callable[[Any], dict[str, Any]], subject: Any
) -> None:
    fields = fields_of(subject)
    _joined(fields, lambda: logger.log(level, _json({"event": event, **fields})))


def _joined(fields: Mapping[str, Any], write: Callable[[], None]) -> None:
    """Write a line with its call's span current: OpenTelemetry's log handler, for one, takes the trace from there."""
    if fields.get("span_id") is None:
        write()
        return
    # There is a span only where the tracing room is in use; lines alone do not load it.
    from dspy_observe.callbacks.otel.place import in_span

    in_span(fields["trace_id"], fields["span_id"], write)


def _json(fields: Mapping[str, Any]) -> str:
    return encodable(json.dumps(fields, ensure_ascii=False, default=lambda value: f"<{type(value).__name__}>"))


def _event_fields(event: RegistryEvent) -> dict[str, Any]:
    return {"program": event.program, "environment": event.environment, "version": event.version, **event.data}


def _score_fields(score: Score) -> dict[str, Any]:
    return {
        "call_id": score.call_id,
        "program": score.program,
        "version": score.version,
        "role": score.role,
        "source": score.source,
        "value": score.value,
        "score_id": score.score_id,
        "trace_id": score.trace_id,
    }


def _root_fields(record: CallRecord) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "call_id": record.call_id,
        "kind": record.kind,
        "name": record.name,
        "program": record.program,
        "version": record.version,
        "role": record.role,
        "outcome": record.outcome,
        "duration_s": round(record.duration_s, 6),
        "trace_id": record.trace_id,
        "span_id": record.span_id,
    }
    if record.user is not None:
        fields["user"] = record.user
    if record.error_type is not None:
        fields["error_type"] = record.error_type
    if record.score is not None:
        fields["score"] = record.score
        fields["dataset"] = record.dataset
    return fields


def _lm_fields(record: CallRecord) -> dict[str, Any]:
    usage = record.usage
    fields: dict[str, Any] = {
        "call_id": record.call_id,
        "root_id": record.root_id,
        "program": record.program,
        "version": record.version,
        "role": record.role,
        "model": record.model_requested,
        "model_served": record.model_served,
        "outcome": record.outcome,
        "duration_s": round(record.duration_s, 6),
        "prompt_tokens": usage.prompt if usage is not None else None,
        "completion_tokens": usage.completion if usage is not None else None,
        "cost_usd": record.cost_usd,
        "cache_hit": record.cache_hit,
        "finish_reason": record.finish_reason,
        "trace_id": record.trace_id,
        "span_id": record.span_id,
    }
    if record.ttft_s is not None:
        fields["ttft_s"] = round(record.ttft_s, 6)
    if record.user is not None:
        fields["user"] = record.user
    if record.fallback_from is not None:
        fields["fallback_from"] = record.fallback_from
        fields["fallback_reason"] = record.fallback_reason
    if record.error_type is not None:
        fields["error_type"] = record.error_type
        fields["billed_but_failed"] = record.billed_but_failed
    return fields
