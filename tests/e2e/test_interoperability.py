"""Beside another instrumentation of DSPy, in either order, both sides see what each of them sees alone.

The instrumentations are the real packages, the LM is DSPy's own over HTTP, and the program runs in every way that DSPy
has: called, awaited, on threads, streamed, as an agent, evaluated, and failing.
"""

from __future__ import annotations

import asyncio
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import dspy
import pytest
from dspy.utils.exceptions import AdapterParseError
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

import dspy_observe
from dspy_observe import safety
from dspy_observe.openai_server import ChatRequest, OpenAIServer, Reply, TokenUsage
from dspy_observe.openai_server.answers import answer_prompt
from dspy_observe.testing import Capture
from tests.peers import PEERS

pytestmark = [
    pytest.mark.e2e,
    # MLflow's own store, under SQLAlchemy 2.1
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),
]
OURS = "dspy_observe"
_PASSING = ("call_id", "response.id", "time_to_first_chunk", "traceRequestId", "experimentId")
"""Ends of the names of attributes that are others in every run."""
FIRST_STEP = (
    "[[ ## next_thought ## ]]\nI look it up.\n\n[[ ## next_tool_name ## ]]\nlook_up\n\n"
    '[[ ## next_tool_args ## ]]\n{"topic": "Danube"}\n\n[[ ## completed ## ]]'
)


class Answerer(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.think = dspy.ChainOfThought("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        return self.think(question=question)

    async def aforward(self, question: str) -> dspy.Prediction:
        return await self.think.acall(question=question)


class FanOut(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = dspy.Predict("question -> answer")
        self.second = dspy.ChainOfThought("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        parallel = dspy.Parallel(num_threads=3, disable_progress_bar=True)
        calls = [(self.first, {"question": f"{question} {number}"}) for number in range(3)]
        answers = parallel([*calls, (self.second, {"question": question})])
        return dspy.Prediction(answer=" ".join(each.answer for each in answers))


def look_up(topic: str) -> str:
    """Looks a topic up."""
    return f"{topic} is a river"


def respond(request: ChatRequest) -> Reply:
    """A reply whose bill depends on the prompt alone, so that calls in any order are billed the same."""
    number = zlib.crc32(f"{request.system}{request.prompt}".encode())
    return Reply(text=answer_prompt(request), usage=TokenUsage(2000 + number % 997, 10 + number % 89))


def run_everything(server: OpenAIServer) -> list[Any]:
    """Run programs in every way that DSPy has; returns what the caller gets."""

    async def at_once() -> list[str]:
        program = Answerer()
        return [each.answer for each in await asyncio.gather(*(program.acall(question=f"{n}?") for n in range(4)))]

    async def streamed() -> str:
        listener = dspy.streaming.StreamListener(signature_field_name="answer")
        stream = dspy.streamify(dspy.Predict("question -> answer"), stream_listeners=[listener])
        return [item async for item in stream(question="Which river?")][-1].answer

    found = [Answerer()(question="Why?").answer, FanOut()(question="Where?").answer]
    server.script([FIRST_STEP])
    found.append(dspy.ReAct("question -> answer", tools=[look_up])(question="What is the Danube?").answer)
    found += [asyncio.run(at_once()), asyncio.run(streamed())]
    server.script(["no field in it", "no field in it"])
    with pytest.raises(AdapterParseError):
        dspy.Predict("question -> answer")(question="Unreadable?")
    examples = [dspy.Example(question=f"{n}?", answer="x").with_inputs("question") for n in range(2)]
    evaluate = dspy.Evaluate(devset=examples, metric=lambda *_: 1.0, num_threads=2, display_progress=False)
    found.append(evaluate(dspy.Predict("question -> answer")).score)
    return found


class Spans:
    """A provider, and what went through it."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def outline(self, *, ours: bool) -> Counter[str]:
        """How often each path of names stands in the trees of one side, the other's spans left out.

        A path begins with ``...`` where the topmost span continues a trace whose beginning went elsewhere.
        """
        every = {span.context.span_id: span for span in self.exporter.get_finished_spans()}
        side = {key for key, span in every.items() if (span.instrumentation_scope.name == OURS) is ours}

        def path(span: ReadableSpan) -> str:
            above = span.parent
            while above is not None and above.span_id in every:
                if above.span_id in side:
                    return f"{path(every[above.span_id])} > {span.name}"
                above = every[above.span_id].parent
            return span.name if above is None else f"... > {span.name}"

        return Counter(path(every[key]) for key in side)

    def attributes(self, *, ours: bool) -> Counter[str]:
        """Name and attributes of the spans of one side, without ids and addresses of this run."""
        return Counter(
            f"{span.name} {json.dumps(_lasting(dict(span.attributes or {})), sort_keys=True)}"
            for span in self.exporter.get_finished_spans()
            # MLflow wraps Evaluate and hands its metric on explicitly, which is content of ours
            if (span.instrumentation_scope.name == OURS) is ours and not span.name.startswith("evaluate")
        )


def _lasting(attributes: dict[str, Any]) -> dict[str, str]:
    """What of a span's attributes is the same in every run."""
    kept = {name: value for name, value in attributes.items() if not name.endswith(_PASSING)}
    return {name: re.sub(r"0x[0-9a-f]+|127\.0\.0\.1:\d+", "...", str(value)) for name, value in kept.items()}


@dataclass
class Seen:
    """What one arrangement of instrumentations left behind."""

    returned: list[Any]
    records: Counter[Any]
    counters: dict[Any, float]
    ours: Spans
    theirs: Spans
    bills: Counter[tuple[int, int]] = field(default_factory=Counter)


@contextmanager
def ourselves(spans: Spans, capture: Capture, registry: CollectorRegistry) -> Iterator[None]:
    """This toolkit, with everything on."""
    with dspy_observe.configure(
        metrics=dspy_observe.Metrics(collector_registry=registry),
        tracing=dspy_observe.Tracing(tracer_provider=spans.provider, capture_content="raw"),
        extra=[capture],
    ):
        yield


def see(*order: str, shared: bool = False) -> Seen:
    """Run everything with the instrumentations named, switched on in that order."""
    safety._counts.clear()  # a fixture of the module runs before the one that forgets what earlier tests caused
    ours = Spans()
    theirs = ours if shared else Spans()
    capture, registry = Capture(), CollectorRegistry()
    with OpenAIServer(respond) as server, ExitStack() as stack:
        lm = dspy.LM("openai/gpt-4o-mini", api_base=server.base_url, api_key="k", cache=False)
        dspy.configure(lm=lm, callbacks=[])
        for name in order:
            made = ourselves(ours, capture, registry) if name == OURS else PEERS[name](theirs.provider)
            stack.enter_context(made)
        returned = run_everything(server)
        bills = Counter((bill.prompt_tokens, bill.completion_tokens) for bill in server.bills)
    records = Counter(
        (
            each.kind, each.name, each.program, each.outcome, each.error_type, each.usage, each.cost_usd,
            None if each.kind == "evaluate" else json.dumps(each.inputs, default=str, sort_keys=True),
        )
        for each in capture.records
    )  # fmt: skip
    counters = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for metric in registry.collect()
        if metric.type == "counter"
        for sample in metric.samples
        if not sample.name.endswith("_created")
    }
    return Seen(returned, records, counters, ours, theirs, bills)


@pytest.fixture(scope="module")
def alone() -> Seen:
    """What we see with nobody beside us."""
    return see(OURS)


@pytest.fixture(scope="module")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A place for MLflow's traces; setting one up takes it seconds."""
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db")


@pytest.fixture(scope="module")
def peers_alone(mlflow_store: None) -> dict[str, Seen]:
    """What each of the others sees without us, worked out when it is first asked for."""

    class Alone(dict[str, Seen]):
        def __missing__(self, name: str) -> Seen:
            return self.setdefault(name, see(name))

    return Alone()


def assert_our_data(beside: Seen, alone: Seen) -> None:
    """Records, tokens, cost and metrics are those of a run without the others, and those of the provider's bill."""
    assert beside.returned == alone.returned
    assert beside.records == alone.records
    assert beside.counters == pytest.approx(alone.counters)
    used = Counter((usage.prompt, usage.completion) for *_, usage, _, _ in beside.records.elements() if usage)
    assert used == beside.bills == alone.bills


def orders(peer: str) -> Any:
    """Both orders of switching on."""
    return pytest.mark.parametrize("order", [(OURS, peer), (peer, OURS)], ids=["ours first", "ours last"])


@orders("mlflow")
def test_beside_mlflow_autolog(order: tuple[str, str], alone: Seen, peers_alone: dict[str, Seen]) -> None:
    """MLflow's spans stay in a context of their own; neither tree changes."""
    beside = see(*order)
    assert_our_data(beside, alone)
    assert beside.ours.outline(ours=True) == alone.ours.outline(ours=True)
    assert beside.ours.attributes(ours=True) == alone.ours.attributes(ours=True)
    theirs = peers_alone["mlflow"].theirs
    assert beside.theirs.outline(ours=False) == theirs.outline(ours=False)
    assert beside.theirs.attributes(ours=False) == theirs.attributes(ours=False)


@orders("openinference")
def test_beside_openinference(order: tuple[str, str], alone: Seen, peers_alone: dict[str, Seen]) -> None:
    """On one provider the spans stand between each other, and each side's own tree is what it is alone."""
    beside = see(*order, shared=True)
    assert_our_data(beside, alone)
    assert beside.ours.outline(ours=True) == alone.ours.outline(ours=True)
    assert beside.ours.attributes(ours=True) == alone.ours.attributes(ours=True)
    theirs = peers_alone["openinference"].theirs
    assert beside.theirs.outline(ours=False) == theirs.outline(ours=False)
    assert beside.theirs.attributes(ours=False) == theirs.attributes(ours=False)


@orders("openinference")
def test_beside_openinference_on_a_provider_of_its_own(
    order: tuple[str, str], alone: Seen, peers_alone: dict[str, Seen]
) -> None:
    """On two providers their tree is what it is alone; ours too, below a root that continues their trace."""
    beside = see(*order)
    assert_our_data(beside, alone)
    theirs = peers_alone["openinference"].theirs
    assert beside.theirs.outline(ours=False) == theirs.outline(ours=False)
    assert beside.theirs.attributes(ours=False) == theirs.attributes(ours=False)
    expected = alone.ours.outline(ours=True)
    assert without_ellipsis(beside.ours.outline(ours=True)) == expected
    traces = {span.context.trace_id for span in beside.theirs.exporter.get_finished_spans()}
    roots = [span for span in beside.ours.exporter.get_finished_spans() if span.parent is None]
    assert {span.name for span in roots} == {"evaluate Predict"}  # the only call of ours that they do not wrap
    others = [span for span in beside.ours.exporter.get_finished_spans() if not span.name.startswith("evaluate")]
    assert sum(span.context.trace_id in traces for span in others) == len(others) - spans_below(beside.ours, roots)


def without_ellipsis(outline: Counter[str]) -> Counter[str]:
    """An outline as it is where no trace began elsewhere."""
    return Counter({path.removeprefix("... > "): count for path, count in outline.items()})


def spans_below(spans: Spans, roots: list[ReadableSpan]) -> int:
    """How many spans the traces of these roots have beside them."""
    traces = {root.context.trace_id for root in roots}
    found = [span for span in spans.exporter.get_finished_spans() if span.context.trace_id in traces]
    return len(found) - len(roots)


@orders("openinference")
def test_a_request_span_stays_our_parent_past_a_peer_on_another_provider(order: tuple[str, str]) -> None:
    """With the application's spans going our way, a peer's span in between leaves no hole in our trace."""
    ours, theirs = Spans(), Spans()
    with OpenAIServer() as server, ExitStack() as stack:
        dspy.configure(lm=dspy.LM("openai/gpt-4o-mini", api_base=server.base_url, api_key="k", cache=False))
        for name in order:
            made = ourselves(ours, Capture(), CollectorRegistry()) if name == OURS else PEERS[name](theirs.provider)
            stack.enter_context(made)
        with ours.provider.get_tracer("application").start_as_current_span("request") as request:
            Answerer()(question="Why?")
            assert trace.get_current_span() is request
    found = {span.name: span for span in ours.exporter.get_finished_spans()}
    root = found["invoke_workflow Answerer"]
    assert root.parent is not None
    assert root.parent.span_id == request.get_span_context().span_id
    assert {span.context.trace_id for span in found.values()} == {request.get_span_context().trace_id}


@orders("opentelemetry")
def test_beside_opentelemetrys_own(order: tuple[str, str], alone: Seen, peers_alone: dict[str, Seen]) -> None:
    """On one provider an LM call has one span, theirs, in its place in our tree and with our facts on it."""
    beside = see(*order, shared=True)
    assert_our_data(beside, alone)
    everything = beside.ours.exporter.get_finished_spans()
    inferences = [span for span in everything if span.name == "chat gpt-4o-mini"]
    assert {span.instrumentation_scope.name for span in inferences} == {"opentelemetry.instrumentation.genai.dspy"}
    assert (
        Counter(
            (span.attributes["gen_ai.usage.input_tokens"], span.attributes["gen_ai.usage.output_tokens"])
            for span in inferences
        )
        == beside.bills
    )
    before = [span for span in alone.ours.exporter.get_finished_spans() if span.name == "chat gpt-4o-mini"]
    for name in ("dspy.cost_usd", "dspy.cache_hit", "dspy.program", "dspy.role"):
        assert Counter(span.attributes.get(name) for span in inferences) == Counter(
            span.attributes.get(name) for span in before
        )
    expected = Counter(
        {path: count for path, count in alone.ours.outline(ours=True).items() if not path.endswith("chat gpt-4o-mini")}
    )
    assert beside.ours.outline(ours=True) == expected
    parents = {span.context.span_id: span for span in everything}
    assert {parents[span.parent.span_id].name for span in inferences} == {"Predict", "invoke_workflow Predict"}
    assert beside.theirs.outline(ours=False) == peers_alone["opentelemetry"].theirs.outline(ours=False)


@orders("opentelemetry")
def test_beside_opentelemetrys_own_on_a_provider_of_its_own(
    order: tuple[str, str], alone: Seen, peers_alone: dict[str, Seen]
) -> None:
    """On two providers an LM call has a span in each, since a span that goes elsewhere stands for nothing here."""
    beside = see(*order)
    assert_our_data(beside, alone)
    assert beside.ours.outline(ours=True) == alone.ours.outline(ours=True)
    theirs = peers_alone["opentelemetry"].theirs.outline(ours=False)
    assert without_ellipsis(beside.theirs.outline(ours=False)) == theirs
