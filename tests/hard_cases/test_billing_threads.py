"""Programs that run their calls in other threads: cases 16, 18, 19 and 20."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import dspy
import pytest
from prometheus_client import CollectorRegistry

import dspy_observe
from dspy_observe import Metrics
from dspy_observe.openai_server import ChatRequest, OpenAIServer, Reply

if TYPE_CHECKING:
    from tests.hard_cases.conftest import MakeLM, Watch

EXAMPLES = [dspy.Example(question=f"Question {n}?", answer="x").with_inputs("question") for n in range(6)]


class Ask(dspy.Module):
    """Asks one question."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = dspy.Predict("question -> answer")

    def forward(self, question: str) -> Any:
        return self.answer(question=question)


class InParallel(Ask):
    """Asks several questions at once."""

    def forward(self, question: str) -> Any:
        pairs = [(self.answer, {"question": f"{question} {n}"}) for n in range(6)]
        return dspy.Prediction(answers=dspy.Parallel(num_threads=3, disable_progress_bar=True)(pairs))


class SelfEvaluating(Ask):
    """Scores its own predictor on a few examples."""

    def forward(self, question: str) -> Any:
        return dspy.Evaluate(devset=EXAMPLES, metric=lambda *_: True, num_threads=3)(self.answer)


class Batching(Ask):
    """Sends a batch through its predictor."""

    def forward(self, question: str) -> Any:
        return dspy.Prediction(answers=self.answer.batch(EXAMPLES, num_threads=3, disable_progress_bar=True))


class Compiling(Ask):
    """Lets MIPROv2 look for better instructions, which calls the LM from several threads and in other programs."""

    def forward(self, question: str) -> Any:
        demos = {"max_bootstrapped_demos": 1, "max_labeled_demos": 1}
        tuner = dspy.MIPROv2(metric=lambda *_: True, auto=None, num_candidates=2, num_threads=3, **demos)
        return tuner.compile(Ask(), trainset=EXAMPLES[:3], valset=EXAMPLES[3:], num_trials=2, minibatch=False)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*multivariate.*")  # the tuner's own
@pytest.mark.parametrize("program", [InParallel, SelfEvaluating, Batching, Compiling], ids=lambda kind: kind.__name__)
def test_whatever_runs_in_threads_inside_a_module_is_in_its_total(
    program: type[Ask], watch: Watch, server: OpenAIServer, lm: MakeLM
) -> None:
    """Case 18: the LM records below a module add up to the bill, where DSPy's own tracker may have nothing."""
    with dspy.context(lm=lm()):
        program()(question="Why?")
    (root,) = [record for record in watch.records if record.parent_id is None]
    assert (root.kind, root.name, root.program) == ("module", program.__name__, program.__name__)
    assert len(watch.lms) == len(server.bills) >= 6
    below = [record for record in watch.lms if record.root_id == root.call_id]
    assert sum(record.usage.prompt or 0 for record in below if record.usage) == sum(
        bill.prompt_tokens for bill in server.bills
    )
    assert watch.total("dspy_tokens_total", program=program.__name__) == sum(
        bill.prompt_tokens + bill.completion_tokens for bill in server.bills
    )
    assert watch.agrees_with(server.bills)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*multivariate.*")
def test_a_compilation_of_its_own_is_in_its_total(watch: Watch, server: OpenAIServer, lm: MakeLM) -> None:
    """Case 18: everything that BootstrapFewShot asks is below its compile record and on the bill."""
    with dspy.context(lm=lm()):
        dspy.BootstrapFewShot(metric=lambda *_: True, max_bootstrapped_demos=2).compile(Ask(), trainset=EXAMPLES)
    (root,) = [record for record in watch.records if record.parent_id is None]
    assert (root.kind, root.name) == ("compile", "BootstrapFewShot")
    assert {record.root_id for record in watch.lms} == {root.call_id}
    assert len(watch.lms) == len(server.bills) > 0
    assert watch.agrees_with(server.bills)


async def test_a_worker_that_outlives_its_caller_is_counted_once(
    watch: Watch, server: OpenAIServer, lm: MakeLM
) -> None:
    """Case 16: the caller of asyncify times out, its worker finishes later, once, still below the caller's module."""
    hold = threading.Event()
    server.script([Reply(text="[[ ## answer ## ]]\nlate", hold=hold)])

    class Hurried(Ask):
        async def aforward(self, question: str) -> Any:
            return await asyncio.wait_for(dspy.asyncify(self.answer)(question=question), 0.2)

    with dspy.context(lm=lm()), pytest.raises(TimeoutError):
        await Hurried().acall(question="Why?")
    (outer,) = watch.modules
    assert (outer.name, outer.outcome, watch.lms) == ("Hurried", "timeout", [])
    hold.set()
    await asyncio.to_thread(watch.wait_for, lambda: len(watch.modules) == 2)
    (late,), inner = watch.lms, watch.modules[1]
    assert (inner.name, inner.parent_id, inner.outcome) == ("Predict", outer.call_id, "ok")
    assert (late.kind, late.parent_id, late.root_id) == ("lm", inner.call_id, outer.call_id)
    assert watch.agrees_with(server.bills)


def test_an_item_that_a_straggler_repeats_is_counted_each_time(watch: Watch, lm: MakeLM, question: str) -> None:
    """Case 19: Parallel sends a slow item again, so that two items are three LM calls, and all three are booked."""
    hold, begun = threading.Event(), threading.Event()

    def respond(request: ChatRequest) -> Reply:
        text = "[[ ## answer ## ]]\nyes"
        if "slow" in request.prompt and not begun.is_set():
            begun.set()
            return Reply(text=text, hold=hold)
        return Reply(text=text)

    with OpenAIServer(respond) as server, dspy.context(lm=lm(api_base=server.base_url)):
        predict = dspy.Predict("question -> answer")
        parallel = dspy.Parallel(num_threads=2, timeout=0.2, straggler_limit=2, disable_progress_bar=True)
        answers = parallel([(predict, {"question": "quick"}), (predict, {"question": "slow"})])
        assert [answer.answer for answer in answers] == ["yes", "yes"]
        assert len(watch.lms) == 2
        hold.set()
        watch.wait_for_lms(3)
        assert len(server.bills) == 3
        assert watch.agrees_with(server.bills)
        watch.wait_for(lambda: len(watch.modules) == 3)


def usage_as_dspy_tells_it(server: OpenAIServer, lm: dspy.LM) -> list[Any]:
    """What DSPy's own two trackers say of two calls and one that is run in parallel."""
    program = dspy.Predict("question -> answer")
    with dspy.context(lm=lm), dspy.track_usage() as tracker:
        program(question="One?")
        program(question="Two?")
    with dspy.context(lm=lm, track_usage=True):
        prediction = program(question="Three?")
        parallel = InParallel()(question="Four?")
    return [tracker.get_total_tokens(), prediction.get_lm_usage(), parallel.get_lm_usage()]


@pytest.mark.parametrize("engine", ["auto", "litellm"])
def test_dspys_own_trackers_tell_the_same_with_and_without_us(engine: str) -> None:
    """Case 20: track_usage() and get_lm_usage() give identical numbers, and nobody's track_usage is switched on."""

    def ask() -> list[Any]:
        with OpenAIServer() as server:
            lm = dspy.LM("openai/gpt-4o-mini", api_base=server.base_url, api_key="x", cache=False, engine=engine)
            try:
                return usage_as_dspy_tells_it(server, lm)
            finally:
                lm.close()

    without = ask()
    metrics = Metrics(collector_registry=CollectorRegistry())
    with dspy_observe.configure(metrics=metrics, tracing=False, logs=False):
        observed = ask()
        assert not dspy.settings.track_usage
        assert dspy.settings.usage_tracker is None
    assert observed == without
    assert without[0]["openai/gpt-4o-mini"]["prompt_tokens"] == 1001 + 1002
    assert without[1]["openai/gpt-4o-mini"]["prompt_tokens"] == 1003
