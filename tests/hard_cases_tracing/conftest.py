"""What the hard cases of tracing share: an independent witness of every DSPy call, and the spans to compare it with."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import dspy
import pytest
from dspy.dsp.utils.settings import thread_local_overrides
from dspy.utils.callback import ACTIVE_CALL_ID, BaseCallback
from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from dspy_observe import OTelCallback, Tracing, safety
from dspy_observe.ledger import LEDGER
from dspy_observe.openai_server import OpenAIServer
from dspy_observe.testing import Capture, offline_lm


@dataclass
class Seen:
    """One call as DSPy itself told of it."""

    kind: str
    parent: str | None
    instance: Any
    exception: BaseException | None = None
    ended: bool = False


class Witness(BaseCallback):
    """Writes down every call and the ``ACTIVE_CALL_ID`` around it, with nothing of ours in between."""

    def __init__(self) -> None:
        self.calls: dict[str, Seen] = {}

    def _start(self, kind: str) -> Callable[..., None]:
        def start(call_id: str, instance: Any, inputs: Any) -> None:
            self.calls[call_id] = Seen(kind, ACTIVE_CALL_ID.get(), instance)

        return start

    def _end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        self.calls[call_id].exception = exception
        self.calls[call_id].ended = True

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("on_"):
            kind, _, moment = name.removeprefix("on_").rpartition("_")
            return self._start(kind) if moment == "start" else self._end
        return super().__getattribute__(name)


class Idle(BaseCallback):
    """Last in the list: knows when the end handlers of all others have run, also in threads that nobody waits for."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.open = 0

    def _count(self, step: int) -> Callable[..., None]:
        def count(**_: Any) -> None:
            with self.changed:
                self.open += step
                self.changed.notify_all()

        return count

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("on_"):
            return self._count(1 if name.endswith("_start") else -1)
        return super().__getattribute__(name)

    def wait(self) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.open == 0, 10), f"{self.open} calls did not end"


class Observed:
    """Spans of one provider, our records, and a witness, of the same calls."""

    def __init__(self, **tracing: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("application")
        self.otel = OTelCallback(Tracing(tracer_provider=self.provider, **tracing))
        self.capture = Capture()
        self.witness = Witness()
        self.idle = Idle()
        self.callbacks = [self.witness, self.otel, self.capture, self.idle]

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    @property
    def records(self) -> list[Any]:
        return self.capture.records

    @property
    def calls(self) -> list[Any]:
        """The records of all but the adapters, whose spans are off."""
        return [record for record in self.records if not record.kind.startswith("adapter")]

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def outline(self) -> Counter[str]:
        """How often each path of span names stands in the traces."""
        by_id = {span.context.span_id: span for span in self.spans}

        def path(span: ReadableSpan) -> str:
            above = by_id.get(span.parent.span_id) if span.parent is not None else None
            return f"{path(above)} > {span.name}" if above is not None else span.name

        return Counter(map(path, by_id.values()))

    def check_tree(self, root_parent: int | None = None) -> None:
        """Compare our spans with DSPy's call ids; ``root_parent`` is the span id that all roots must stand under."""
        calls = self.witness.calls
        assert calls, "nothing was called"
        assert all(call.ended for call in calls.values())
        spanned = {call_id for call_id, call in calls.items() if not call.kind.startswith("adapter")}
        span_of = {record.call_id: record.span_id for record in self.records if record.call_id in spanned}
        assert set(span_of) == spanned
        ours = [span for span in self.spans if span.instrumentation_scope.name == "dspy_observe"]
        by_id = {f"{span.context.span_id:016x}": span for span in ours}
        assert len(by_id) == len(ours)
        assert sorted(by_id) == sorted(span_of.values())
        for call_id, span_id in span_of.items():
            above = calls[call_id].parent
            while above is not None and above not in spanned:
                above = calls[above].parent
            found = self._parent(by_id[span_id], ours)
            if above is None:
                assert found == root_parent
            else:
                assert f"{found:016x}" == span_of[above]
                assert by_id[span_id].context.trace_id == by_id[span_of[above]].context.trace_id

    def _parent(self, span: ReadableSpan, ours: list[ReadableSpan]) -> int | None:
        """Id of the next span of ours above, past the application's own; else of the topmost span above."""
        everything = {each.context.span_id: each for each in self.spans}
        parent = span.parent
        while parent is not None:
            above = everything.get(parent.span_id)
            if above is None or above in ours or above.parent is None:
                return parent.span_id
            parent = above.parent
        return None


@pytest.fixture
def observed() -> Observed:
    """Spans without adapter spans, a capture and a witness."""
    return Observed()


@pytest.fixture
def observing() -> type[Observed]:
    """The class itself, for tests that need several or other options."""
    return Observed


@pytest.fixture
def witness() -> Witness:
    """A callback that is none of ours."""
    return Witness()


@pytest.fixture
def answering() -> Callable[..., dspy.LM]:
    """An offline LM that answers ``question -> answer``."""

    def make(answer: Any = "42", **kwargs: Any) -> dspy.LM:
        return offline_lm({"reasoning": "because", "answer": answer}, **kwargs)

    return make


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    """A billing server on loopback."""
    with OpenAIServer() as running:
        yield running


@pytest.fixture
def served(server: OpenAIServer) -> Callable[..., dspy.LM]:
    """An LM of DSPy's own engines that speaks to that server."""

    def make(**kwargs: Any) -> dspy.LM:
        options = {"api_base": server.base_url, "api_key": "placeholder", "cache": False, **kwargs}
        return dspy.LM("openai/gpt-4o-mini", **options)

    return make


@pytest.fixture
def expected_sites() -> set[str]:
    """Where this test makes our own code fail; a test adds to it."""
    return set()


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in production: faults of ours are swallowed and counted, each site may log anew."""
    monkeypatch.delenv("DSPY_OBSERVE_STRICT")
    monkeypatch.setattr(safety, "_logged_at", {})


@pytest.fixture(autouse=True)
def nothing_left_behind(caplog: pytest.LogCaptureFixture, expected_sites: set[str]) -> Iterator[None]:
    """After every test here: no open call, no layer in OpenTelemetry's or DSPy's context, no detach error, no fault."""
    swallowed = safety.counts()
    token = context_api.attach(Context())
    with caplog.at_level(logging.WARNING):
        yield
    assert LEDGER.open_calls == 0
    assert not trace.get_current_span().get_span_context().is_valid
    assert thread_local_overrides.get() == {}
    assert ACTIVE_CALL_ID.get() is None
    assert not [record for record in caplog.records if "detach context" in record.getMessage()]
    new = {site for site, count in safety.counts().items() if count != swallowed.get(site, 0)}
    assert new == expected_sites
    context_api.detach(token)
