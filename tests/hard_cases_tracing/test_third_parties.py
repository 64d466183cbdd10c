"""Cases 24 and 33: other span makers beside ours, before and behind it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from typing import Any

import dspy
import pytest
from dspy.utils.callback import BaseCallback
from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from dspy_observe import CallbackGroup
from dspy_observe.callbacks.otel.context import Layer
from dspy_observe.conventions import INFERENCE_SPAN_KEY
from dspy_observe.testing import offline_lm


class Naive(BaseCallback):
    """What many instrumentors do: attach in the start handler, detach by token in the end handler."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self.provider = provider or TracerProvider(shutdown_on_exit=False)
        self.open: dict[str, Any] = {}

    def on_module_start(self, call_id: str, instance: Any, inputs: Any) -> None:
        span = self.provider.get_tracer("naive").start_span(type(instance).__name__)
        self.open[call_id] = span, context_api.attach(trace.set_span_in_context(span))

    def on_module_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        span, token = self.open.pop(call_id)
        span.end()
        context_api.detach(token)

    on_lm_start = on_module_start
    on_lm_end = on_module_end


def run(count: int = 1) -> None:
    """Run a program of two modules and an LM some times."""
    program = dspy.ChainOfThought("question -> answer")
    for number in range(count):
        program(question=str(number))


def own_layers(context: Any) -> int:
    """How many layers of ours a context holds, each over the one before it."""
    depth = 0
    while layers := [value for value in context.values() if isinstance(value, Layer)]:
        depth += 1
        context = layers[0].previous
    return depth


def alive_layers() -> int:
    """How many layers of ours are alive."""
    gc.collect()
    return sum(type(value) is Layer for value in gc.get_objects())


@pytest.fixture(scope="module")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where MLflow keeps its traces; setting one up takes it seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def behind_a_naive_one() -> Iterator[None]:
    """Take away what a naive callback behind ours leaves current, which nothing in front of it can prevent."""
    yield
    context_api.attach(context_api.Context())


@pytest.mark.parametrize("shared_provider", [False, True])
def test_a_naive_callback_in_front(observed: Any, answering: Any, shared_provider: bool) -> None:
    """Case 24: our tree stands on its own spans, and the span current before the call is current after it."""
    naive = Naive(observed.provider if shared_provider else None)
    with (
        observed.tracer.start_as_current_span("request") as request,
        dspy.context(lm=answering(), callbacks=[naive, *observed.callbacks]),
    ):
        for _ in range(3):
            run()
            assert trace.get_current_span() is request
            assert own_layers(context_api.get_current()) == 0
    spans = {span.context.span_id: span for span in observed.spans}
    assert {span.context.trace_id for span in spans.values()} == {request.get_span_context().trace_id}
    assert len(observed.named("chat model")) == 3
    for span in observed.named("chat model"):
        above = spans[span.parent.span_id]  # in a provider of its own, theirs would be a hole in our trace
        if shared_provider:
            assert (above.instrumentation_scope.name, above.name) == ("naive", "LM")
            above = spans[above.parent.span_id]
        assert (above.instrumentation_scope.name, above.name) == ("dspy_observe", "Predict")


@pytest.mark.parametrize("shared_provider", [False, True])
def test_a_naive_callback_behind(
    observed: Any, answering: Any, shared_provider: bool, behind_a_naive_one: None
) -> None:
    """Case 24: behind us it leaves its snapshot of our ended span; our next tree is right all the same."""
    naive = Naive(observed.provider if shared_provider else None)
    with dspy.context(lm=answering(), callbacks=[*observed.callbacks, naive]):
        run(5)
    observed.check_tree()
    assert len({span.context.trace_id for span in observed.spans if span.parent is None}) == 5


def test_a_naive_callback_behind_does_not_pile_up_contexts(
    observed: Any, answering: Any, behind_a_naive_one: None
) -> None:
    """Case 24: what it leaves behind does not grow from call to call."""
    before = alive_layers()
    with dspy.context(lm=answering(), callbacks=[*observed.callbacks, Naive()]):
        run(3)
        few = own_layers(context_api.get_current())
        run(30)
    assert own_layers(context_api.get_current()) <= max(few, 2)
    assert alive_layers() - before <= 2


@pytest.mark.parametrize("grouped", [False, True])
def test_two_of_ours_on_two_providers(observing: Any, answering: Any, grouped: bool) -> None:
    """Case 24: two span callbacks make the same tree twice, and leave the context as it was."""
    first, second = observing(), observing()
    pair = [first.otel, second.otel]
    # One capture would name the spans of the first provider for both; each tree is judged by its own outline.
    listed = [CallbackGroup(*pair)] if grouped else pair
    with dspy.context(lm=answering(), callbacks=listed):
        for _ in range(3):
            run()
            assert not trace.get_current_span().get_span_context().is_valid
            assert own_layers(context_api.get_current()) == 0
    workflow = "invoke_workflow ChainOfThought"
    expected = {workflow: 3, f"{workflow} > Predict": 3, f"{workflow} > Predict > chat model": 3}
    for observed in (first, second):
        assert observed.outline() == expected
        assert all(span.parent is None for span in observed.named(workflow))
        assert len({span.context.trace_id for span in observed.spans}) == 3


async def test_two_of_ours_and_a_naive_one_in_tasks(observing: Any, answering: Any) -> None:
    """Case 24: the same with a naive callback in front, in concurrent tasks."""
    first, second = observing(), observing()
    program = dspy.ChainOfThought("question -> answer")
    with dspy.context(lm=answering(), callbacks=[Naive(), first.otel, second.otel]):
        await asyncio.gather(*(program.acall(question=str(number)) for number in range(10)))
    assert own_layers(context_api.get_current()) == 0
    for observed in (first, second):
        spans = {span.context.span_id: span for span in observed.spans}
        assert len(spans) == 30
        for span in spans.values():
            if span.name == "chat model":
                assert spans[span.parent.span_id].name == "Predict"
            if span.name == "Predict":
                assert spans[span.parent.span_id].name == "invoke_workflow ChainOfThought"


@pytest.mark.parametrize(("ours_first", "propagate"), [(True, False), (False, False), (True, True)])
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own store, under SQLAlchemy 2.1
def test_mlflow_autolog(
    observed: Any, answering: Any, ours_first: bool, propagate: bool, mlflow_database: str, monkeypatch: Any,
    behind_a_naive_one: None,
) -> None:  # fmt: skip
    """Case 24: MLflow's autolog before or behind us changes nothing in our tree, nor do we in its traces."""
    import mlflow
    import mlflow.dspy
    from mlflow.tracing.provider import provider

    monkeypatch.setenv("MLFLOW_TRACE_PROPAGATE_TO_OTEL_CONTEXT", str(propagate).lower())
    exporter = InMemorySpanExporter()
    mlflow.tracing.reset()
    dspy.configure(lm=answering())
    if ours_first:
        dspy.configure(callbacks=observed.callbacks)
    mlflow.set_tracking_uri(mlflow_database)
    mlflow.dspy.autolog(log_traces=True)
    try:
        provider.get_or_init_tracer(__name__)
        provider.get().add_span_processor(SimpleSpanProcessor(exporter))
        if not ours_first:
            dspy.configure(callbacks=[*dspy.settings.callbacks, *observed.callbacks])
        run(2)
    finally:
        mlflow.dspy.autolog(disable=True)
    observed.check_tree()
    assert len({span.context.trace_id for span in observed.spans}) == 2
    theirs = exporter.get_finished_spans()
    assert len({span.context.trace_id for span in theirs}) == 2


def test_another_instrumentation_has_the_inference_span(observed: Any, answering: Any) -> None:
    """Case 33: with somebody's open inference span in the context, the LM call gets no second span."""
    with observed.tracer.start_as_current_span("chat elsewhere") as other:
        token = context_api.attach(context_api.set_value(INFERENCE_SPAN_KEY, other))
        with dspy.context(lm=answering(), callbacks=observed.callbacks):
            run()
        context_api.detach(token)
    assert [span.name for span in observed.spans] == ["Predict", "invoke_workflow ChainOfThought", "chat elsewhere"]
    assert [record.kind for record in observed.records].count("lm") == 1


def test_an_ended_inference_span_of_others_hides_nothing(observed: Any, answering: Any) -> None:
    """Case 33: a key left behind by an inference that is over does not swallow our span."""
    with observed.tracer.start_as_current_span("chat elsewhere") as other:
        pass
    token = context_api.attach(context_api.set_value(INFERENCE_SPAN_KEY, other))
    with dspy.context(lm=answering(), callbacks=observed.callbacks):
        run()
    context_api.detach(token)
    assert len(observed.named("chat model")) == 1


def test_our_own_key_tells_others_and_not_ourselves(observed: Any) -> None:
    """Case 33: below our LM span the key holds it, and a nested LM of ours still gets its own span."""
    seen: list[Any] = []
    inner = offline_lm("inner", model="offline/inner")

    def answer(_: Any) -> str:
        seen.append(context_api.get_value(INFERENCE_SPAN_KEY))
        inner("nested")
        return "outer"

    with dspy.context(callbacks=observed.callbacks):
        offline_lm(answer)("question")
    observed.check_tree()
    assert observed.outline() == {"chat model": 1, "chat model > chat inner": 1}
    assert seen[0].get_span_context() == observed.named("chat model")[0].context
