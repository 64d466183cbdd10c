"""Whole log lines, where they go, and what a slow or raising logger costs."""

from __future__ import annotations

import contextvars
import io
import json
import logging
import threading
from typing import Any

import dspy
import pytest
import structlog
from dspy.utils.exceptions import LMUnexpectedError
from opentelemetry.sdk.trace import TracerProvider
from structlog.testing import CapturingLogger, capture_logs

from dspy_observe import CallbackGroup, LogCallback, Logs, OTelCallback, Tracing, handoff, safety
from dspy_observe.facts import calls
from dspy_observe.facts.users import acting_for
from dspy_observe.records import CallRecord, RegistryEvent, Score
from dspy_observe.testing import Capture, FrozenClock, frozen_clock, offline_lm

WHO: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")


class Lines:
    """A structlog logger that keeps whole lines."""

    def __init__(self) -> None:
        self.sink = CapturingLogger()
        self.logger = structlog.wrap_logger(self.sink, processors=[structlog.stdlib.add_log_level, _as_fields])

    @property
    def lines(self) -> list[dict[str, Any]]:
        """What was written."""
        settle()
        return [call.kwargs for call in self.sink.calls]


def settle() -> None:
    """Wait until every line is written."""
    assert all(each.flush(20) for each in list(handoff._all))


def _as_fields(_: Any, __: str, fields: Any) -> Any:
    return (), dict(fields)


@pytest.fixture
def lines() -> Lines:
    """A logger of the test's own."""
    return Lines()


def run(clock: FrozenClock, callbacks: list[Any], answer: Any = None, version: str | None = "v1") -> list[CallRecord]:
    """One run of a quarter of a second, and its records."""

    def reply(_: Any) -> Any:
        clock.advance(0.25)
        if isinstance(answer, Exception):
            raise answer
        return {"answer": "42"}

    capture = Capture()
    program = dspy.Predict("question -> answer")
    calls.tag(program, "qa", version)
    with dspy.context(lm=offline_lm(reply, num_retries=0), callbacks=[*callbacks, capture]):
        program(question="private words")
    return capture.records


def test_whole_lines_of_a_run(lines: Lines) -> None:
    """One for the LM call, one for the root call; ids of the trace are there where it is recorded."""
    otel = OTelCallback(Tracing(tracer_provider=TracerProvider()))
    with frozen_clock() as clock:
        records = run(clock, [otel, LogCallback(Logs(logger=lines.logger))])
    lm = next(record for record in records if record.kind == "lm")
    root = records[-1]
    assert lm.trace_id is not None
    assert lm.span_id != root.span_id
    assert lines.lines == [
        {
            "event": "dspy.lm_call",
            "level": "info",
            "call_id": lm.call_id,
            "root_id": root.call_id,
            "program": "qa",
            "version": "v1",
            "role": "stable",
            "model": "offline/model",
            "model_served": "offline/model",
            "outcome": "ok",
            "duration_s": 0.25,
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "cost_usd": None,
            "cache_hit": False,
            "finish_reason": "stop",
            "trace_id": lm.trace_id,
            "span_id": lm.span_id,
        },
        {
            "event": "dspy.call",
            "level": "info",
            "call_id": root.call_id,
            "kind": "module",
            "name": "Predict",
            "program": "qa",
            "version": "v1",
            "role": "stable",
            "outcome": "ok",
            "duration_s": 0.25,
            "trace_id": root.trace_id,
            "span_id": root.span_id,
        },
    ]


def test_whole_lines_of_a_failure(lines: Lines) -> None:
    """At warning, with the error's type and never its text."""
    with frozen_clock() as clock, pytest.raises(LMUnexpectedError, match="private"):
        run(clock, [LogCallback(Logs(logger=lines.logger))], ValueError("private words"))
    lm, root = lines.lines
    assert (lm["event"], lm["level"], lm["outcome"], lm["error_type"]) == (
        "dspy.lm_call", "warning", "error", "LMUnexpectedError",
    )  # fmt: skip
    assert (lm["prompt_tokens"], lm["cost_usd"], lm["cache_hit"], lm["billed_but_failed"]) == (None, None, None, False)
    assert (root["event"], root["level"], root["error_type"]) == ("dspy.call", "warning", "LMUnexpectedError")
    assert "private" not in repr(lines.lines)


def test_whole_lines_of_a_score_and_an_event(lines: Lines) -> None:
    """An event that ends in error is a warning."""
    callback = LogCallback(Logs(logger=lines.logger))
    callback.scored(Score("c", 0.5, "user", "qa", "v1", "canary", "s1", 1.0, "t" * 32))
    callback.happened(RegistryEvent("dspy.registry.deploy_complete", "qa", 1.0, "prod", "v2", {"previous": "v1"}))
    callback.happened(RegistryEvent("dspy.registry.deploy_error", "qa", 1.0, "prod", "v2"))
    assert lines.lines == [
        {
            "event": "dspy.score", "level": "info", "call_id": "c", "program": "qa", "version": "v1", "role": "canary",
            "source": "user", "value": 0.5, "score_id": "s1", "trace_id": "t" * 32,
        },
        {
            "event": "dspy.registry.deploy_complete", "level": "info", "program": "qa", "environment": "prod",
            "version": "v2", "previous": "v1",
        },
        {
            "event": "dspy.registry.deploy_error", "level": "warning", "program": "qa", "environment": "prod",
            "version": "v2",
        },
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("level", "ok", "failed"),
    [("debug", "debug", "warning"), ("info", "info", "warning"), ("error", "error", "error"), ("critical",) * 3],
)
def test_levels(lines: Lines, level: str, ok: str, failed: str) -> None:
    """Failures are warnings at least."""
    callback = LogCallback(Logs(logger=lines.logger, level=level))
    for name in ("export", "register_error"):
        callback.happened(RegistryEvent(f"dspy.registry.{name}", "qa", 1.0))
    assert [line["level"] for line in lines.lines] == [ok, failed]


# --- where lines go --------------------------------------------------------------------------------------------------


def test_a_structlog_that_the_application_configures_later_gets_the_lines() -> None:
    """The callback was made before."""
    callback = LogCallback()
    with frozen_clock() as clock:
        structlog.configure(processors=[structlog.processors.JSONRenderer()])
        try:
            with capture_logs() as captured:
                run(clock, [callback])
                assert callback.flush(20)
        finally:
            structlog.reset_defaults()
    assert [line["event"] for line in captured] == ["dspy.lm_call", "dspy.call"]
    assert captured[0]["log_level"] == "info"
    assert captured[0]["program"] == "qa"


def test_without_structlog_json_lines_go_to_the_standard_logger(caplog: pytest.LogCaptureFixture) -> None:
    """It is silent until the application lets its level through."""
    callback = LogCallback()
    with frozen_clock() as clock:
        with caplog.at_level(logging.WARNING, "dspy_observe.calls"):
            run(clock, [callback])
            assert callback.flush(20)
        assert [r for r in caplog.records if r.name == "dspy_observe.calls"] == []
        with caplog.at_level(logging.INFO, "dspy_observe.calls"):
            records = run(clock, [callback])
            assert callback.flush(20)
    found = [r for r in caplog.records if r.name == "dspy_observe.calls"]
    parsed = [json.loads(r.getMessage()) for r in found]
    assert [line["event"] for line in parsed] == ["dspy.lm_call", "dspy.call"]
    assert parsed[-1]["call_id"] == records[-1].call_id
    assert {r.levelname for r in found} == {"INFO"}


def test_a_standard_logger_may_be_given(caplog: pytest.LogCaptureFixture) -> None:
    """It gets JSON, whatever structlog does, and percent signs do no harm."""
    logger = logging.getLogger("app.calls")
    callback = LogCallback(Logs(logger=logger))
    with caplog.at_level(logging.INFO, "app.calls"), capture_logs() as captured:
        callback.happened(RegistryEvent("dspy.registry.export", "100%s", 1.0, data={"what": object()}))
        assert callback.flush(20)
    (line,) = [json.loads(r.getMessage()) for r in caplog.records if r.name == "app.calls"]
    assert line["program"] == "100%s"
    assert line["what"].startswith("<object")
    assert captured == []


def test_a_text_that_cannot_be_encoded_costs_no_line() -> None:
    """A file in UTF-8 gets the line with a question mark for the lone surrogate."""
    written = io.BytesIO()
    handler = logging.StreamHandler(io.TextIOWrapper(written, encoding="utf-8"))
    logger = logging.getLogger("app.surrogates")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    logger.propagate = False
    callback = LogCallback(Logs(logger=logger))
    try:
        callback.happened(RegistryEvent("dspy.registry.export", "q\ud800", 1.0, data={"why \ud800": ["cut \ud83d"]}))
        with frozen_clock() as clock, acting_for("\ud800"):
            run(clock, [callback], version="v\ud800")
        assert callback.flush(20)
    finally:
        logger.removeHandler(handler)
    handler.flush()
    event, *calls_ = map(json.loads, written.getvalue().decode().splitlines())
    assert (event["program"], event["why ?"]) == ("q?", ["cut ?"])
    assert [(line["version"], line["user"]) for line in calls_] == [("v?", "?")] * 2


def test_two_callbacks_with_one_logger_write_a_line_once(lines: Lines) -> None:
    """And with two loggers one each."""
    other = Lines()
    callbacks = [LogCallback(Logs(logger=one.logger)) for one in (lines, other)]
    callbacks.append(LogCallback(Logs(logger=callbacks[0]._logger)))
    with frozen_clock() as clock:
        run(clock, [CallbackGroup(*callbacks)])
        run(clock, callbacks)
    assert (len(lines.lines), len(other.lines)) == (4, 4)


@pytest.mark.parametrize("kind", ["print", "write", "bytes"])
def test_a_plain_file_gets_the_lines_that_the_logger_itself_would_write(kind: str) -> None:
    """With what the application bound, its level, and each caller's context variables."""
    file: Any = io.BytesIO() if kind == "bytes" else io.StringIO()
    plain: Any = {
        "print": structlog.PrintLogger, "write": structlog.WriteLogger, "bytes": structlog.BytesLogger,
    }[kind](file)  # fmt: skip
    renderer = structlog.processors.JSONRenderer(
        serializer=lambda *a, **k: json.dumps(*a, **k).encode() if kind == "bytes" else json.dumps(*a, **k)
    )
    logger = structlog.wrap_logger(
        plain,
        processors=[structlog.contextvars.merge_contextvars, structlog.stdlib.add_log_level, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    ).bind(service="shop")
    callback = LogCallback(Logs(logger=logger))
    silent = LogCallback(Logs(logger=logger, level="debug"))
    with frozen_clock() as clock:
        for number in range(40):
            with structlog.contextvars.bound_contextvars(request=number):
                run(clock, [callback])
                run(clock, [silent])
    assert callback.flush(20)
    assert silent.flush(20)
    written = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [(line["request"], line["event"]) for line in written] == [
        (number, event) for number in range(40) for event in ("dspy.lm_call", "dspy.call")
    ]
    file.seek(0)
    file.truncate()
    with structlog.contextvars.bound_contextvars(request=39):
        fields = {key: value for key, value in written[-1].items() if key not in ("event", "level", "request")}
        logger.info("dspy.call", **fields)
    assert json.loads(file.getvalue()) == written[-1]


# --- slow and raising sinks ------------------------------------------------------------------------------------------


def test_a_blocked_logger_does_not_hold_the_program() -> None:
    """Not even the first call that meets it; no line is lost, and each is written in its caller's context variables."""
    free, held = threading.Event(), threading.Event()

    class Blocked:
        """A logger whose pipe is full until somebody reads."""

        def __init__(self) -> None:
            self.written: list[tuple[str, str]] = []

        def info(self, event: str, **_: Any) -> None:
            """Wait for the test's leave."""
            held.set()
            assert free.wait(30)
            self.written.append((event, WHO.get()))

        warning = info

    sink = Blocked()
    callback = LogCallback(Logs(logger=sink))
    with frozen_clock() as clock:
        for who in ("anna", "bert"):
            token = WHO.set(who)
            run(clock, [callback])
            WHO.reset(token)
        assert held.wait(30)
        assert callback.flush(0.0) is False
        assert sink.written == []
        free.set()
    assert callback.flush(30.0) is True
    assert sink.written == [(event, who) for who in ("anna", "bert") for event in ("dspy.lm_call", "dspy.call")]


@pytest.mark.parametrize("place", ["file", "processor"])
def test_a_structlog_logger_that_blocks_does_not_hold_the_program(place: str) -> None:
    """Neither where it writes nor in a processor of the application; no line is lost."""
    free, held = threading.Event(), threading.Event()

    class Pipe(io.StringIO):
        """Full until somebody reads."""

        def write(self, text: str) -> int:
            """Wait for the test's leave."""
            if place == "file":
                held.set()
                assert free.wait(30)
            return super().write(text)

    def sending(_: Any, __: str, fields: Any) -> Any:
        if place == "processor":
            held.set()
            assert free.wait(30)
        return fields | {"who": WHO.get()}

    pipe = Pipe()
    renders = [structlog.processors.JSONRenderer()]
    processors = [sending, *renders] if place == "processor" else renders
    callback = LogCallback(Logs(logger=structlog.wrap_logger(structlog.WriteLogger(pipe), processors=processors)))
    token = WHO.set("anna")
    with frozen_clock() as clock:
        for _ in range(100):
            run(clock, [callback])
        WHO.reset(token)
        assert held.wait(30)
        assert callback.flush(0.0) is False
        assert pipe.getvalue() == ""
        free.set()
    assert callback.flush(30.0) is True
    lines = [json.loads(line) for line in pipe.getvalue().splitlines()]
    assert [line["event"] for line in lines] == 100 * ["dspy.lm_call", "dspy.call"]
    assert {line.get("who") for line in lines} == ({"anna"} if place == "processor" else {None})


def test_a_processor_that_raises_costs_its_lines_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted like any other fault of a logger."""
    monkeypatch.delenv("DSPY_OBSERVE_STRICT", raising=False)
    file = io.StringIO()

    def unable(fields: Any, **_: Any) -> str:
        if fields["event"] == "dspy.lm_call":
            raise TypeError("not serializable")
        return "line"

    logger = structlog.wrap_logger(
        structlog.WriteLogger(file), processors=[structlog.processors.JSONRenderer(serializer=unable)]
    )
    before = safety.counts().get("logs.emit", 0)
    callback = LogCallback(Logs(logger=logger))
    with frozen_clock() as clock:
        run(clock, [callback])
    assert callback.flush(20)
    assert file.getvalue() == "line\n"
    assert safety.counts()["logs.emit"] == before + 1


def test_a_raising_logger_costs_its_lines_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted; the program has its answer and its siblings their records."""
    monkeypatch.delenv("DSPY_OBSERVE_STRICT", raising=False)

    class Raises:
        def info(self, event: str, **_: Any) -> None:
            raise OSError(event)

    before = safety.counts().get("logs.emit", 0)
    callback = LogCallback(Logs(logger=Raises()))
    with frozen_clock() as clock:
        records = run(clock, [callback])
    assert callback.flush(20)
    assert records[-1].outcome == "ok"
    assert safety.counts()["logs.emit"] == before + 2


def test_a_level_is_read_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the standard library writes it, and as an argument or a variable."""
    assert Logs(level="INFO").level == "info"
    monkeypatch.setenv("DSPY_OBSERVE_LOGS_LEVEL", "WARNING")
    assert Logs().level == "warning"
