"""Language models of every kind that DSPy runs: cases 17 and 21."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

import dspy
import httpx
import pytest
from dspy import lm15
from dspy.dsp.utils.settings import thread_local_overrides
from dspy.experimental import Noul, TypeSafe
from dspy.utils.callback import with_callbacks

from dspy_observe import Usage
from dspy_observe.openai_server import OpenAIServer, Reply, TokenUsage
from dspy_observe.testing import offline_lm

if TYPE_CHECKING:
    from tests.hard_cases.conftest import MakeLM, Watch

MESSAGES = [{"role": "user", "content": "Why?"}]
pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*experimental.*:UserWarning")


def ask_server(server: OpenAIServer, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """One completion over plain HTTP, for models that bring their own client."""
    body = {"model": "house-model", "messages": messages}
    return httpx.post(f"{server.base_url}/chat/completions", json=body, trust_env=False).json()


class HTTPEngine:
    """A custom engine with a client of its own."""

    def __init__(self, server: OpenAIServer) -> None:
        self._server = server

    def complete(self, request: lm15.Request) -> lm15.Response:
        body = ask_server(self._server, MESSAGES)
        usage = body["usage"]
        return lm15.Response(
            id=body["id"],
            model=body["model"],
            message=lm15.Message.assistant(body["choices"][0]["message"]["content"]),
            finish_reason="stop",
            usage=lm15.Usage(input_tokens=usage["prompt_tokens"], output_tokens=usage["completion_tokens"]),
        )


class LegacyLM(dspy.BaseLM):
    """A model of the old kind: ``forward`` returns an OpenAI-shaped object."""

    def __init__(self, model: str, server: OpenAIServer) -> None:
        super().__init__(model)
        self._server = server

    def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        body = ask_server(self._server, messages or [{"role": "user", "content": prompt}])
        message = SimpleNamespace(content=body["choices"][0]["message"]["content"])
        choice = SimpleNamespace(message=message, finish_reason="stop")
        return SimpleNamespace(id=body["id"], choices=[choice], usage=body["usage"], model=body["model"])


class ForwardingLM(dspy.LM):
    """An LM whose ``forward`` does something and then what it always did."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize("history", [True, False])
def test_a_custom_engine_has_exact_tokens_and_no_price(history: bool, watch: Watch, server: OpenAIServer) -> None:
    """Case 17: nobody can price a custom engine, so the cost is unknown and the totals are marked incomplete."""
    with dspy.context(disable_history=not history):
        dspy.LM("openai/gpt-4o-mini", engine=HTTPEngine(server), cache=False)("Why?")
    assert watch.lms[0].cost_usd is None
    assert watch.total("dspy_unpriced_requests_total", model="openai/gpt-4o-mini") == 1
    assert watch.total("dspy_unmetered_requests_total") == 0
    assert watch.agrees_with(server.bills, cost=None)


@pytest.mark.parametrize("engine", ["auto", "litellm"])
def test_a_model_without_a_price_marks_the_totals_incomplete(
    engine: str, watch: Watch, server: OpenAIServer, lm: MakeLM
) -> None:
    """Case 17: an unlisted model's tokens are counted, its cost is None, and a priced call beside it keeps its own."""
    lm("openai/no-such-model", engine=engine)("Why?")
    lm(engine=engine)("Why?")
    unlisted, listed = watch.lms
    assert unlisted.cost_usd is None
    assert watch.total("dspy_unpriced_requests_total", model="openai/no-such-model") == 1
    assert watch.total("dspy_unpriced_requests_total") == 1
    assert watch.total("dspy_cost_usd_total") == listed.cost_usd == pytest.approx(1002 * 0.15e-6 + 502 * 0.60e-6)


def test_a_dummy_lm_is_unreported(watch: Watch) -> None:
    """Case 21: DummyLM's 0/0/0 for an answer is unknown; repeated calls are calls, not cache hits."""
    with dspy.context(lm=dspy.utils.DummyLM([{"answer": "red"}, {"answer": "blue"}])):
        program = dspy.Predict("question -> answer")
        assert [program(question="Why?").answer for _ in range(2)] == ["red", "blue"]
    for record in watch.lms:
        assert (record.model_requested, record.provider, record.cache_hit) == ("dummy", None, False)
        assert (record.usage, record.cost_usd) == (Usage(), None)
    assert watch.total("dspy_unmetered_requests_total", model="dummy") == 2
    assert watch.agrees_with([], cost=None)


@pytest.mark.parametrize("model", ["house-model", "house/model"])
def test_a_legacy_lm_has_exact_tokens(model: str, watch: Watch, server: OpenAIServer) -> None:
    """Case 21: a BaseLM subclass with forward, with and without a slash in its model's name."""
    with dspy.context(lm=LegacyLM(model, server)):
        assert dspy.Predict("question -> answer")(question="Why?").answer.startswith("The answer to: Why?")
    (record,) = watch.lms
    assert (record.model_requested, record.provider) == (model, "house" if "/" in model else None)
    assert (record.model_served, record.response_id) == ("house-model", server.bills[0].request_id)
    assert (record.cache_hit, record.finish_reason) == (False, "stop")
    assert watch.agrees_with(server.bills, cost=None)


@pytest.mark.parametrize("engine", ["auto", "litellm"])
def test_an_lm_subclass_with_forward_is_exact(engine: str, watch: Watch, server: OpenAIServer) -> None:
    """Case 21: an LM subclass that overrides forward is booked once, not once for each layer."""
    asked = ForwardingLM("openai/gpt-4o-mini", api_base=server.base_url, api_key="x", cache=False, engine=engine)
    asked("Why?")
    asked.close()
    assert len(watch.lms) == 1
    # LiteLLM's answer brings its price along; DSPy's own engine is priced by DSPy, but not behind a forward.
    assert watch.agrees_with(server.bills, cost=-1.0 if engine == "litellm" else None)


def test_best_of_n_counts_every_attempt(watch: Watch, server: OpenAIServer, lm: MakeLM) -> None:
    """Case 21: BestOfN asks copies of the LM, and each attempt has its own figures."""
    program = dspy.BestOfN(dspy.Predict("question -> answer"), N=3, reward_fn=lambda *_: 0.0, threshold=1.0)
    with dspy.context(lm=lm()):
        program(question="Why?")
    assert [record.usage.prompt for record in watch.lms if record.usage] == [1001, 1002, 1003]
    assert {record.program for record in watch.lms} == {"BestOfN"}
    assert watch.agrees_with(server.bills)


@pytest.mark.parametrize("engine", ["auto", "litellm"])
def test_a_typed_request_is_exact(engine: str, watch: Watch, server: OpenAIServer, lm: MakeLM) -> None:
    """Case 21: a typed lm15.Request, called and awaited, has its figures and its finish reason."""
    server.script([Reply(text="cut", finish_reason="length", usage=TokenUsage(90, 8, 64, 2))])
    request = lm15.Request(model="openai/gpt-4o-mini", messages=(lm15.Message.user("Why?"),))
    response = lm(engine=engine)(request)
    assert isinstance(response, lm15.Response)
    (record,) = watch.lms
    assert (record.finish_reason, record.model_served) == ("length", "gpt-4o-mini-2024-07-18")
    # DSPy prices a typed request on its own engine only.
    assert watch.agrees_with(server.bills, cost=-1.0 if engine == "auto" else None)
    assert watch.total("dspy_unpriced_requests_total") == (0 if engine == "auto" else 1)


def test_an_lm_inside_an_engine_is_billed_to_itself(watch: Watch, server: OpenAIServer, lm: MakeLM) -> None:
    """Case 21: an engine that asks another LM leaves each of the two records its own tokens."""
    inner = lm()
    outer = offline_lm(lambda request: inner("inner")[0])
    outer("outer")
    first, second = watch.lms
    assert (first.model_requested, first.parent_id) == ("openai/gpt-4o-mini", second.call_id)
    assert (first.usage and first.usage.prompt, second.usage and second.usage.prompt) == (1001, 10)
    assert len(server.bills) == 1


class HandsOn(dspy.BaseLM):
    """A model that hands its calls on to another one, as routers and caches of one's own do."""

    def __init__(self, inner: dspy.BaseLM) -> None:
        super().__init__("house/router")
        self._inner = inner

    @with_callbacks
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._inner(*args, **kwargs)


@pytest.mark.parametrize("history", [True, False])
def test_an_lm_that_hands_its_call_on_is_no_cache_hit(
    history: bool, watch: Watch, server: OpenAIServer, lm: MakeLM
) -> None:
    """What it used is not known of itself: the record of the LM that it asked has the tokens and the cost."""
    with dspy.context(disable_history=not history):
        HandsOn(lm())("hello")
    asked, router = watch.lms
    assert (router.model_requested, router.cache_hit, router.usage, router.cost_usd) == (
        "house/router", None, Usage(), None,
    )  # fmt: skip
    assert asked.cache_hit is False
    assert watch.total("dspy_tokens_total") == sum(bill.prompt_tokens + bill.completion_tokens for bill in server.bills)


@pytest.mark.parametrize("way", ["tracked by itself", "tracked by setting"])
def test_a_program_inside_an_engine_counts_as_without_us(way: str, watch: Watch) -> None:
    """``track_usage`` in code that an LM runs works, and tells the tokens of the LM that the program asked."""
    inner = offline_lm({"answer": "42"}, model="inner/m")
    told: list[Any] = []

    def engine(_: Any) -> dict[str, str]:
        predict = dspy.Predict("question -> answer")
        if way == "tracked by itself":
            with dspy.track_usage() as tracker, dspy.context(lm=inner):
                answer = predict(question="x").answer
            told.append(tracker.get_total_tokens())
        else:
            with dspy.context(lm=inner, track_usage=True):
                prediction = predict(question="x")
            answer = prediction.answer
            told.append(prediction.get_lm_usage())
        return {"answer": answer}

    offline_lm(engine, model="outer/m")("q")
    assert [usage["inner/m"]["prompt_tokens"] for usage in told] == [10]
    assert [(record.model_requested, record.usage and record.usage.prompt) for record in watch.lms] == [
        ("inner/m", 10), ("outer/m", 10),
    ]  # fmt: skip
    assert thread_local_overrides.get().get("usage_tracker") is None


@pytest.fixture
def typesafe(server: OpenAIServer, monkeypatch: pytest.MonkeyPatch) -> TypeSafe:
    """DSPy's TypeSafe client, its SDK replaced by one that is billed by our server."""

    class TypeSafeClient:
        def __init__(self, **kwargs: Any) -> None: ...

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None: ...

        def system_one(self, state: Any, questions: Any) -> Any:
            body = ask_server(server, MESSAGES)
            usage = SimpleNamespace(
                input_tokens=body["usage"]["prompt_tokens"], output_tokens=body["usage"]["completion_tokens"]
            )
            answers = {name: SimpleNamespace(noul=0.9) for name in questions}
            return SimpleNamespace(model=body["model"], usage=usage, answers=answers)

    sdk = ModuleType("typesafe_sdk")
    sdk.TypeSafeClient = TypeSafeClient  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "typesafe_sdk", sdk)
    return TypeSafe("jev-test")


def test_a_decision_model_is_exact(watch: Watch, server: OpenAIServer, typesafe: TypeSafe, question: str) -> None:
    """Case 21: an LM that is no BaseLM, without model_type, kwargs or cost, has exact tokens and cache hits."""
    for _ in range(2):
        typesafe({"inputs": question}, {"sure": {"type": "noul"}})
    live, cached = watch.lms
    assert (live.model_requested, live.provider, live.operation, live.cache_hit) == ("jev-test", None, "chat", False)
    assert (live.usage and live.usage.prompt, live.cost_usd) == (1001, None)
    assert (cached.cache_hit, cached.usage, cached.cost_usd) == (True, Usage(0, 0, 0, 0, 0), 0)
    assert len(server.bills) == 1
    assert watch.agrees_with(server.bills, cost=None)


def test_a_program_on_a_decision_model_is_exact(watch: Watch, server: OpenAIServer, typesafe: TypeSafe) -> None:
    """Case 21: Predict asks such a model for a decision, and its module's total is the bill."""

    class Judge(dspy.Signature):
        """Says whether a claim holds."""

        claim: str = dspy.InputField()
        holds: Noul = dspy.OutputField(desc="whether the claim holds")

    with dspy.context(lm=typesafe.copy(cache=False)):
        assert dspy.Predict(Judge)(claim="Water is wet").holds.value is True
    (record,) = watch.lms
    assert record.parent_id == watch.modules[0].call_id
    assert watch.agrees_with(server.bills, cost=None)


def test_a_decision_model_without_history_has_exact_tokens(
    watch: Watch, server: OpenAIServer, typesafe: TypeSafe, question: str
) -> None:
    """Case 21: with history off such a model's tokens are exact, and whether the cache answered cannot be told."""
    with dspy.context(disable_history=True):
        for _ in range(2):
            typesafe({"inputs": question}, {"sure": {"type": "noul"}})
    live, cached = watch.lms
    assert (live.usage and live.usage.prompt, live.cost_usd) == (1001, None)
    assert (cached.usage, cached.cost_usd) == (Usage(), None)
    assert watch.agrees_with(server.bills, cost=None)
