"""A real MLflow tracking server takes our spans over OTLP and shows a program run as one trace with its true bill."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import dspy
import pytest
from mlflow import MlflowClient
from mlflow.entities import Trace
from prometheus_client import CollectorRegistry

import dspy_observe
from dspy_observe.openai_server import OpenAIServer
from tests.mlflow_server import mlflow_server

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture(scope="module")
def mlflow_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an MLflow tracking server of this module's own."""
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as url:
        yield url


class Tracking:
    """One experiment of the server, and what arrived in it."""

    def __init__(self, url: str, name: str) -> None:
        self.client = MlflowClient(url)
        self.experiment = self.client.create_experiment(name)

    def traces(self) -> list[Trace]:
        """All traces, with their spans, oldest first."""
        found = self.client.search_traces(locations=[self.experiment], include_spans=True)
        return sorted(found, key=lambda trace: trace.info.request_time)


@pytest.fixture
def tracking(mlflow_url: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Tracking:
    """A fresh experiment to which the standard OTLP variables point."""
    tracking = Tracking(mlflow_url, request.node.name)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{mlflow_url}/v1/traces")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_HEADERS", f"x-mlflow-experiment-id={tracking.experiment}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "60")  # a loaded machine is slow to write its first trace
    return tracking


@pytest.fixture
def provider() -> Iterator[OpenAIServer]:
    """The LM's provider, which keeps the bills, and is DSPy's LM."""
    with OpenAIServer() as server:
        dspy.configure(lm=dspy.LM("openai/gpt-4o-mini", api_base=server.base_url, api_key="k", cache=False))
        yield server


def observe() -> dspy_observe.Observer:
    """Everything on, spans by a pipeline of ours."""
    return dspy_observe.configure(
        service="mlflow-test", metrics=dspy_observe.Metrics(collector_registry=CollectorRegistry()), logs=False
    )


def tree(trace: Trace) -> Any:
    """The spans as a nested value: (name, children), children sorted."""

    def node(span: Any) -> Any:
        return (span.name, sorted(node(child) for child in trace.data.spans if child.parent_id == span.span_id))

    ids = {span.span_id for span in trace.data.spans}
    roots = [span for span in trace.data.spans if span.parent_id not in ids]
    assert [root.parent_id for root in roots] == [None]
    return node(roots[0])


def tokens(trace: Trace) -> Counter[tuple[int, int]]:
    """Prompt and completion tokens of every LM span."""
    return Counter(
        (span.attributes["gen_ai.usage.input_tokens"], span.attributes["gen_ai.usage.output_tokens"])
        for span in trace.data.spans
        if span.name.startswith("chat ")
    )


def billed(server: OpenAIServer) -> Counter[tuple[int, int]]:
    """What the provider billed, in the same form."""
    return Counter((bill.prompt_tokens, bill.completion_tokens) for bill in server.bills)


def assert_total_is_the_bill(trace: Trace, server: OpenAIServer) -> None:
    """The tokens and dollars that MLflow shows for a trace are the sum of the bills, and those on our spans."""
    prompt = sum(bill.prompt_tokens for bill in server.bills)
    completion = sum(bill.completion_tokens for bill in server.bills)
    usage = trace.info.token_usage
    assert usage is not None
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (
        prompt, completion, prompt + completion,
    )  # fmt: skip
    dollars = prompt * 0.15e-6 + completion * 0.60e-6
    assert trace.info.cost is not None
    assert trace.info.cost["total_cost"] == pytest.approx(dollars)
    assert sum(span.attributes.get("dspy.cost_usd", 0) for span in trace.data.spans) == pytest.approx(dollars)


class Answerer(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.think = dspy.ChainOfThought("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        return self.think(question=question)


class FanOut(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = dspy.Predict("question -> answer")
        self.second = dspy.ChainOfThought("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        parallel = dspy.Parallel(num_threads=3, disable_progress_bar=True)
        calls = [(self.first, {"question": f"{question} {n}"}) for n in range(3)]
        answers = parallel([*calls, (self.second, {"question": question})])
        return dspy.Prediction(answer=" ".join(each.answer for each in answers))


LM_CALL = ("chat gpt-4o-mini", [])


def test_every_program_run_is_one_trace_with_its_own_bill(tracking: Tracking, provider: OpenAIServer) -> None:
    """Two runs of a program arrive as two traces of the same tree, each with the tokens of its own LM call."""
    with observe() as observer:
        program = Answerer()
        program(question="why?")
        program(question="how?")
        assert observer.flush(60)
    traces = tracking.traces()
    expected = ("invoke_workflow Answerer", [("ChainOfThought", [("Predict", [LM_CALL])])])
    assert [tree(trace) for trace in traces] == [expected, expected]
    assert [tokens(trace) for trace in traces] == [
        Counter([(bill.prompt_tokens, bill.completion_tokens)]) for bill in provider.bills
    ]
    for trace, bill in zip(traces, provider.bills, strict=True):
        assert trace.info.token_usage is not None
        assert trace.info.token_usage["input_tokens"] == bill.prompt_tokens
        assert trace.info.token_usage["output_tokens"] == bill.completion_tokens


def test_work_on_parallel_threads_stays_in_the_trace_of_its_program(tracking: Tracking, provider: OpenAIServer) -> None:
    """Four calls on the threads of ``dspy.Parallel`` hang below the one program run that made them."""
    with observe() as observer:
        FanOut()(question="where?")
        assert observer.flush(60)
    (trace,) = tracking.traces()
    predict = ("Predict", [LM_CALL])
    name, children = tree(trace)
    assert name == "invoke_workflow FanOut"
    assert children == sorted([predict, predict, predict, ("ChainOfThought", [predict])])
    assert len(provider.bills) == 4
    assert tokens(trace) == billed(provider)
    assert_total_is_the_bill(trace, provider)


def test_an_agent_run_shows_its_steps_and_tools(tracking: Tracking, provider: OpenAIServer) -> None:
    """A ReAct run is one trace of an agent, with its tool calls and the tokens of all its steps."""

    def look_up(topic: str) -> str:
        """Looks a topic up."""
        return f"{topic} is a river"

    first_step = (
        "[[ ## next_thought ## ]]\nI look it up.\n\n[[ ## next_tool_name ## ]]\nlook_up\n\n"
        '[[ ## next_tool_args ## ]]\n{"topic": "Danube"}\n\n[[ ## completed ## ]]'
    )
    provider.script([first_step])
    with observe() as observer:
        dspy.ReAct("question -> answer", tools=[look_up])(question="What is the Danube?")
        assert observer.flush(60)
    (trace,) = tracking.traces()
    name, children = tree(trace)
    assert name == "invoke_agent ReAct"
    step, tool = ("Predict", [LM_CALL]), "execute_tool look_up"
    assert (tool, []) in children
    assert ("execute_tool finish", []) in children
    assert children.count(step) == 2
    assert ("ChainOfThought", [step]) in children
    assert len(children) == 5
    types = Counter(span.span_type for span in trace.data.spans)
    assert types == {"AGENT": 1, "CHAIN": 4, "LLM": 3, "TOOL": 2}
    assert len(provider.bills) == 3
    assert tokens(trace) == billed(provider)
    assert_total_is_the_bill(trace, provider)
