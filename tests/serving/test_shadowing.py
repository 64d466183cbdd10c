"""Scenario 43: calls in the shadow, and that no user ever notices them."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import dspy
import pytest
from prometheus_client import CollectorRegistry

from dspy_observe import ConfigurationError, LatencyCallback, Metrics, Router, Shadow
from dspy_observe.openai_server import ChatRequest, Failure, OpenAIServer, Reply
from dspy_observe.registry import SignatureRegistry
from dspy_observe.serving.shadowing import side_effects
from dspy_observe.testing import capture_records
from tests.servers import wait_until
from tests.serving.conftest import Bot, Publish, answer_with_version

Beside = Callable[..., Router]


class Provider:
    """Answers v1; what v2 gets can be changed."""

    def __init__(self) -> None:
        self.v2: Callable[[ChatRequest], Any] = answer_with_version

    def __call__(self, request: ChatRequest) -> Any:
        """By the version in the prompt."""
        return self.v2(request) if "<v2>" in request.system else answer_with_version(request)


@pytest.fixture
def provider() -> Provider:
    """What the server does."""
    return Provider()


@pytest.fixture
def server(provider: Provider) -> Iterator[OpenAIServer]:
    """The provider's server."""
    with OpenAIServer(provider) as running:
        yield running


@pytest.fixture
def two(registry: SignatureRegistry, publish: Publish) -> SignatureRegistry:
    """A registry with v1 deployed and v2 beside it."""
    publish(registry, "v1")
    publish(registry, "v2", deploy=False)
    return registry


@pytest.fixture
def beside(two: SignatureRegistry, metrics: Metrics) -> Iterator[Beside]:
    """Makes routers with v2 in the shadow of every call."""
    made: list[Router] = []

    def make(**options: Any) -> Router:
        shadow = Shadow(**{"version": "v2", "share": 1.0, **options})
        made.append(Router(two, "bot", Bot, shadow=shadow, metrics=metrics, refresh_s=0.5))
        return made[-1]

    yield make
    for router in made:
        router.close()


def dropped(collector: CollectorRegistry, reason: str) -> float:
    """How many were left out for a reason."""
    labels = {"program": "bot", "reason": reason}
    return collector.get_sample_value("dspy_shadow_dropped_total", labels) or 0.0


def asked_of_v2(server: OpenAIServer) -> int:
    """Requests that v2 made."""
    return sum(b"<v2>" in request.body for request in server.requests)


def test_a_shadow_answers_beside_and_apart(
    two: SignatureRegistry, beside: Beside, metrics: Metrics, collector: CollectorRegistry
) -> None:
    """The user's answer, record and usage are as without it; the shadow's call is a root of its own, with its role."""
    dspy.configure(track_usage=True, callbacks=[LatencyCallback(metrics)])
    alone = Router(two, "bot", Bot, metrics=metrics)
    tokens = len(alone(key="u", question="a").get_lm_usage())
    alone.close()
    router = beside()
    assert router.status().shadow == "v2"
    with capture_records() as records:
        answer = router(key="u", question="a")
        wait_until(lambda: any(record.role == "shadow" and record.is_program for record in records), "shadow call")
    usage = answer.get_lm_usage()
    assert answer.answer == "v1"
    assert len(usage) == tokens
    own = sum(r.usage.prompt or 0 for r in records if r.kind == "lm" and r.role == "stable" and r.usage)
    assert usage["openai/gpt-4o-mini"]["prompt_tokens"] == own
    roots = {record.role: record for record in records if record.is_program}
    assert {(one.version, one.parent_id, one.outcome) for one in roots.values()} == {
        ("v1", None, "ok"), ("v2", None, "ok")
    }  # fmt: skip
    assert {record.version for record in records if record.root_id == roots["shadow"].call_id} == {"v2"}
    labels = {"program": "bot", "version": "v2", "role": "shadow", "status": "ok"}
    assert collector.get_sample_value("dspy_program_duration_seconds_count", labels) == 1


async def test_asynchronous_calls_have_a_shadow_too(beside: Beside, server: OpenAIServer) -> None:
    """Also for programs that have nothing but an asynchronous form."""
    router = beside()
    assert (await router.acall(key="u", question="a")).answer == "v1"
    wait_until(lambda: asked_of_v2(server) == 2, "shadow call")


def test_the_callers_own_settings_hold_in_the_shadow(beside: Beside, server: OpenAIServer) -> None:
    """What ``dspy.context`` says of LM and adapter counts there as well."""
    router = beside()
    other = dspy.LM("openai/gpt-4.1", api_base=server.base_url, api_key="x", cache=False)
    with dspy.context(lm=other):
        router(key="u", question="a")
    wait_until(lambda: asked_of_v2(server) == 2, "shadow call")
    assert {request.json["model"] for request in server.requests} == {"gpt-4.1"}


def test_a_shadow_that_raises_is_only_a_record(beside: Beside, provider: Provider) -> None:
    """The user gets the answer; the shadow's failure is on the shadow's account."""
    provider.v2 = lambda _: Failure(400)
    router = beside()
    with capture_records() as records:
        assert router(key="u", question="a").answer == "v1"
        wait_until(lambda: any(record.role == "shadow" and record.is_program for record in records), "shadow call")
    assert {(r.role, r.outcome) for r in records if r.is_program} == {("stable", "ok"), ("shadow", "error")}


def test_a_shadow_that_hangs_holds_nobody_up(
    beside: Beside, provider: Provider, server: OpenAIServer, collector: CollectorRegistry
) -> None:
    """The queue fills, the rest is dropped and counted; what waited too long is dropped when its turn comes."""
    released = threading.Event()
    provider.v2 = lambda request: Reply(text=answer_with_version(request).text, hold=released)
    router = beside(max_waiting=3, max_wait_s=0.1)
    began = time.monotonic()
    router(key="u", question="first")
    wait_until(lambda: asked_of_v2(server) == 1, "shadow call")
    for number in range(10):
        assert router(key="u", question=str(number)).answer == "v1"
    assert time.monotonic() - began < 30  # the shadow would have held it up for ever
    assert dropped(collector, "full") == 7
    filled = time.monotonic()
    wait_until(lambda: time.monotonic() - filled > 0.1, "lateness")
    released.set()
    wait_until(lambda: dropped(collector, "late") == 3, "late ones")


class Acting(dspy.Module):
    """A program with a tool."""

    def __init__(self) -> None:
        super().__init__()
        self.act = dspy.ReAct("question -> answer", tools=[send_mail, search], max_iters=2)

    def forward(self, question: str) -> dspy.Prediction:
        """Act."""
        return self.act(question=question)


sent: list[str] = []


def send_mail(to: str) -> str:
    """Send a mail."""
    sent.append(to)
    return "sent"


def search(query: str) -> str:
    """Search."""
    return query


def act(request: ChatRequest) -> str:
    """Call the tool, then finish."""
    fields = re.findall(r"^\d+\. `(\w+)`", request.system.partition("output fields are")[2], re.MULTILINE)
    if "next_tool_name" not in fields:
        return "[[ ## reasoning ## ]]\nr\n\n[[ ## answer ## ]]\ndone\n\n[[ ## completed ## ]]"
    tool, args = ("finish", "{}") if "observation_0" in request.prompt else ("send_mail", '{"to": "x"}')
    return (
        f"[[ ## next_thought ## ]]\nt\n\n[[ ## next_tool_name ## ]]\n{tool}\n\n[[ ## next_tool_args ## ]]\n{args}\n\n"
        "[[ ## completed ## ]]"
    )


def test_tools_that_act_are_not_called_in_the_shadow(
    registry: SignatureRegistry, metrics: Metrics, collector: CollectorRegistry
) -> None:
    """Unless they are known to only read, or it is allowed; the status says which stand in the way."""
    sent.clear()
    with OpenAIServer(act) as server:
        dspy.configure(lm=dspy.LM("openai/gpt-4o-mini", api_base=server.base_url, api_key="x", cache=False))
        for version in ("v1", "v2"):
            made = Acting()
            made.act.react.demos = [dspy.Example(question=version, next_thought="t")]
            registry.register_program("bot", made, version=version)
        registry.deploy_version("bot", "v1")
        options: dict[str, Any] = {"metrics": metrics, "refresh_s": 0.5}
        shadow = Shadow(version="v2", share=1.0, read_only_tools=("search",))
        with Router(registry, "bot", Acting, shadow=shadow, **options) as router:
            assert router.status().shadow == "not called, as it may act twice: send_mail"
            router(key="u", question="a")
        assert dropped(collector, "tools") == 1
        assert len(sent) == 1
        for allowed in ({"side_effects": True}, {"read_only_tools": ("search", "send_mail")}):
            shadow, before = Shadow(version="v2", share=1.0, **allowed), len(sent)
            with Router(registry, "bot", Acting, shadow=shadow, **options) as router, capture_records() as records:
                router(key="u", question="a")
                wait_until(lambda: any(r.role == "shadow" and r.is_program for r in records), "shadow")
            assert len(sent) == before + 2


def test_programs_that_run_code_may_act() -> None:
    """What they run is not known beforehand."""
    assert side_effects(dspy.RLM("question -> answer")) == ["self"]
    assert side_effects(Bot()) == []
    assert side_effects(Acting(), ("search", "send_mail")) == []


def test_a_shadow_keeps_within_its_costs(beside: Beside, server: OpenAIServer, collector: CollectorRegistry) -> None:
    """When the hour's money is spent, the rest is dropped; the user's own costs do not count."""
    router = beside(max_cost_usd_per_hour=0.0005)  # a call of v2 is two requests of some 0.00045 dollars
    for number in range(3):
        before = asked_of_v2(server)
        router(key="u", question=str(number))
        wait_until(lambda: asked_of_v2(server) == before + 2 or dropped(collector, "cost"), "shadow")  # noqa: B023
        wait_until(lambda: server.in_flight == 0, "end")
    wait_until(lambda: dropped(collector, "cost") >= 1, "drop")
    assert asked_of_v2(server) < 6


def test_without_a_price_a_limit_stops_the_shadow(
    two: SignatureRegistry, beside: Beside, server: OpenAIServer, collector: CollectorRegistry
) -> None:
    """What cannot be counted cannot be limited."""
    dspy.configure(lm=dspy.LM("openai/nobody-knows", api_base=server.base_url, api_key="x", cache=False))
    router = beside(max_cost_usd_per_hour=1.0)
    for number in range(3):
        router(key="u", question=str(number))
        wait_until(lambda: asked_of_v2(server) == 2, "shadow")
        wait_until(lambda: server.in_flight == 0, "end")
    wait_until(lambda: (router(key="u", question="z"), dropped(collector, "unpriced"))[1], "drop")
    assert asked_of_v2(server) <= 4


def test_a_share_of_the_calls_has_a_shadow(beside: Beside, server: OpenAIServer) -> None:
    """None of them at 0."""
    router = beside(share=0.0)
    for number in range(5):
        router(key="u", question=str(number))
    assert asked_of_v2(server) == 0


def test_the_candidate_of_a_rollout_is_in_the_shadow_of_stable_only(
    two: SignatureRegistry, metrics: Metrics, server: OpenAIServer
) -> None:
    """A canary's own calls need no shadow."""
    with Router(two, "bot", Bot, "v2", steps=(0.5, 1), shadow=Shadow(share=1.0), metrics=metrics) as router:
        keys = {router.assign(f"user-{number}").role: f"user-{number}" for number in range(100)}
        router(key=keys["canary"], question="a")
        assert asked_of_v2(server) == 2
        router(key=keys["stable"], question="b")
        wait_until(lambda: asked_of_v2(server) == 4, "shadow call")
        router.stop(reason="enough")
        assert router.status().shadow == "nothing to call"


@pytest.mark.parametrize(
    "options", [{"share": 2}, {"max_waiting": 0}, {"max_wait_s": -1}, {"workers": 0}, {"max_cost_usd_per_hour": "1"}]
)
def test_limits_that_cannot_work_are_named(options: dict[str, Any]) -> None:
    """With the field."""
    with pytest.raises(ConfigurationError, match=f"Shadow.{next(iter(options))}"):
        Shadow(**options)
