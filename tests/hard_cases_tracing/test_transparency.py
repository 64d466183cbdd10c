"""Case 35: everything on changes not a byte of what the program, the provider and other callbacks see."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import dspy
import pytest
from dspy.utils.callback import BaseCallback
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

import dspy_observe
from dspy_observe.metrics import render
from dspy_observe.openai_server import ChatRequest, OpenAIServer, Reply, TokenUsage
from dspy_observe.openai_server.answers import answer_prompt
from dspy_observe.testing import Capture, offline_lm

MAIL = "ada.lovelace@example.org"
CARD = "4111 1111 1111 1111"
UNPARSABLE = "Say nonsense."
QUESTION = f"Who is {MAIL}, who paid with {CARD}?"


class Lines:
    """A logger that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, event: str, **fields: Any) -> None:
        self.lines.append(json.dumps({"event": event, **fields}))

    warning = error = info


class Watching:
    """Everything on through configure(), and all that it exports."""

    def __init__(self, mode: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.registry = CollectorRegistry()
        self.lines = Lines()
        self.capture = Capture()
        self.observer = dspy_observe.configure(
            metrics=dspy_observe.Metrics(collector_registry=self.registry),
            tracing=dspy_observe.Tracing(tracer_provider=self.provider, capture_content=mode, adapter_spans=True),
            logs=dspy_observe.Logs(logger=self.lines),
            extra=[self.capture],
        )

    def exported(self) -> str:
        """All that left: spans, lines, metrics, records."""
        spans = "".join(span.to_json() for span in self.exporter.get_finished_spans())
        metrics = render(self.registry, "application/openmetrics-text")[0].decode()
        return "\n".join([spans, *self.lines.lines, metrics, repr(self.capture.starts), repr(self.capture.records)])


class Neighbour(BaseCallback):
    """Another callback: it keeps a copy of everything it is handed."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def _see(self, call_id: str, **handed: Any) -> None:
        handed.pop("instance", None)
        self.seen.append(re.sub(r"0x[0-9a-f]+|chatcmpl-\d+", "", repr(handed)))

    def __getattribute__(self, name: str) -> Any:
        return self._see if name.startswith("on_") else super().__getattribute__(name)


def respond(request: ChatRequest) -> Reply:
    """The same reply and bill for the same prompt."""
    answer = f"nonsense for {MAIL}" if UNPARSABLE in request.prompt else answer_prompt(request)
    assert isinstance(answer, str)
    return Reply(text=answer, usage=TokenUsage(100, 20))


def work(server: OpenAIServer) -> dict[str, Any]:
    """A program of many kinds of calls; returns everything it left behind."""
    first_request = len(server.requests)
    for cache in (dspy.cache.memory_cache, dspy.cache.disk_cache):
        cache.clear()
    lm = dspy.LM("openai/gpt-4o-mini", api_base=server.base_url, api_key="placeholder")
    neighbour = Neighbour()
    listed = [*dspy.settings.callbacks, neighbour]

    def mail(address: str) -> str:
        """Writes a mail."""
        return f"sent to {address}"

    results: list[Any] = []
    with dspy.context(lm=lm, callbacks=listed, track_usage=True):
        think = dspy.ChainOfThought("question -> answer")
        results.extend(think(question=QUESTION) for _ in range(2))  # the second one is a cache hit
        results.append(dspy.ReAct("question -> answer", tools=[mail], max_iters=2)(question=QUESTION))
        with dspy.context(adapter=dspy.JSONAdapter()):
            results.append(dspy.Predict("question -> answer, score: float")(question=QUESTION))
        with pytest.raises(dspy.utils.exceptions.AdapterParseError) as failure:
            dspy.Predict("question -> answer")(question=f"{UNPARSABLE} {QUESTION}")
        trainset = [dspy.Example(question=QUESTION, answer="x").with_inputs("question")]
        optimizer = dspy.BootstrapFewShot(metric=lambda *_: True, max_labeled_demos=0)
        compiled = optimizer.compile(dspy.Predict("question -> answer"), trainset=trainset)
    history = [{key: value for key, value in entry.items() if key not in ("timestamp", "uuid")} for entry in lm.history]
    return {
        "answers": [dict(result.items()) for result in results],
        "usage": [result.get_lm_usage() for result in results],
        "failure": str(failure.value),
        "demos": [dict(demo.items()) for demo in compiled.demos],
        "history": clean(repr(history)),
        "cache": {key: clean(repr(dspy.cache.memory_cache[key])) for key in sorted(dspy.cache.memory_cache)},
        "requests": [request.body for request in server.requests[first_request:]],
        "neighbour": neighbour.seen,
    }


def clean(text: str) -> str:
    """Leave out what differs from request to request."""
    return re.sub(r"chatcmpl-\d+|created=\d+|'created': \d+", "", text)


@pytest.mark.parametrize("mode", ["none", "redacted", "raw"])
def test_everything_is_byte_identical(mode: str) -> None:
    """Case 35: answers, usage, errors, demos, history, cache, requests and what neighbours are handed."""
    with OpenAIServer(respond) as server:
        without = work(server)
        watching = Watching(mode)
        with watching.observer:
            watched = work(server)
    assert len(without["requests"]) >= 6
    assert len(without["neighbour"]) > 60
    assert MAIL in json.dumps(without["answers"])
    assert MAIL in without["history"]
    assert MAIL in json.dumps(without["demos"])
    for part, value in without.items():
        assert watched[part] == value, part
    exported = watching.exported()
    if mode == "raw":
        assert MAIL in exported
    else:
        assert MAIL not in exported
        assert CARD not in exported
    if mode == "redacted":
        assert "<EMAIL>" in exported


def test_the_text_of_errors_is_redacted() -> None:
    """Case 35: messages of exceptions, of tools too, pass the redactor; no stack is exported."""
    watching = Watching("redacted")

    def pay(card: str) -> str:
        raise ValueError(f"no money on {card} of {MAIL}")

    with watching.observer, pytest.raises(ValueError, match=MAIL):
        dspy.Tool(pay)(card=CARD)
    exported = watching.exported()
    assert "no money on" in exported
    assert MAIL not in exported
    assert CARD not in exported
    assert "Traceback" not in exported


class Unprintable:
    """An argument that no one should look at."""

    def __repr__(self) -> str:
        raise RuntimeError("do not print me")

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("do not compare me")

    __hash__ = None  # type: ignore[assignment]


def odd_arguments() -> list[Any]:
    """Values that are hard to copy, print or count."""
    cyclic: dict[str, Any] = {}
    cyclic["self"] = [cyclic]
    deep: list[Any] = []
    for _ in range(5_000):
        deep = [deep]
    return [
        Unprintable(),
        cyclic,
        "x" * 3_000_000,
        list(range(200_000)),
        deep,
        {Unprintable: 1},
        b"\xff" * 10,
        object(),
    ]


@pytest.mark.parametrize("mode", ["redacted", "raw"])
@pytest.mark.parametrize("position", range(8))
def test_odd_arguments_never_break_a_call(mode: str, position: int) -> None:
    """Case 35: unprintable, cyclic, huge, deep and binary values go in and out of a module and a tool unharmed."""
    value = odd_arguments()[position]
    watching = Watching(mode)

    class Echo(dspy.Module):
        def forward(self, value: Any) -> Any:
            return value

    with watching.observer:
        assert Echo()(value=value) is value
        assert dspy.Tool(lambda value: value, name="echo")(value=value) is value
    assert [record.outcome for record in watching.capture.records] == ["ok", "ok"]
    assert all(record.inputs is not None for record in watching.capture.records)
    assert all(len(span.to_json()) < 100_000 for span in watching.exporter.get_finished_spans())


def test_inputs_are_not_kept_alive_or_changed() -> None:
    """Case 35: what is captured is a copy: changing the record's inputs changes nothing of the program's."""
    demos = [dspy.Example(question="q", answer="a")]
    predict = dspy.Predict("question -> answer")
    predict.demos = demos
    before = copy.deepcopy(predict.demos)
    watching = Watching("raw")
    with watching.observer, dspy.context(lm=offline_lm({"answer": "42"})):
        predict(question="why?")
    for record in watching.capture.records:
        if isinstance(record.inputs, dict):
            record.inputs.clear()
    assert predict.demos == before
