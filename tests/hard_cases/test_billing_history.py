"""Histories that are off, short or cleared: cases 3 and 4."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import dspy
import pytest
from dspy import lm15
from dspy.clients.base_lm import GLOBAL_HISTORY

from dspy_observe.openai_server import OpenAIServer, Reply, TokenUsage

if TYPE_CHECKING:
    from tests.hard_cases.conftest import MakeLM, SlowSibling, Watch


@pytest.mark.parametrize("engine", ["auto", "litellm"])
def test_without_history_tokens_are_exact_and_cost_is_priced_again(
    engine: str, watch: Watch, server: OpenAIServer, lm: MakeLM
) -> None:
    """Case 3: disable_history leaves tokens and cost exact, cached and reasoning tokens too, and writes nothing."""
    server.script([Reply(text="[[ ## answer ## ]]\nyes", usage=TokenUsage(900, 70, cached_tokens=512))])
    server.script([Reply(text="[[ ## answer ## ]]\nno", usage=TokenUsage(40, 80, reasoning_tokens=64))])
    program, asked, before = dspy.Predict("question -> answer"), lm(engine=engine), list(GLOBAL_HISTORY)
    with dspy.context(lm=asked, disable_history=True):
        assert [program(question="Is it?").answer for _ in range(2)] == ["yes", "no"]
    assert [record.usage.prompt for record in watch.lms if record.usage] == [900, 40]
    assert watch.agrees_with(server.bills)
    assert watch.total("dspy_unpriced_requests_total") == 0
    assert asked.history == program.history == []
    assert before == GLOBAL_HISTORY


def test_without_history_a_typed_request_is_priced_again(watch: Watch, server: OpenAIServer, lm: MakeLM) -> None:
    """Case 3: the response to a typed request has its figures and served model although no history holds it."""
    request = lm15.Request(model="openai/gpt-4o-mini", messages=(lm15.Message.user("Why?"),))
    with dspy.context(disable_history=True):
        response = lm()(request)
    (record,) = watch.lms
    assert response.usage.input_tokens == 1001
    assert (record.model_served, record.response_id) == ("gpt-4o-mini-2024-07-18", server.bills[0].request_id)
    assert record.finish_reason == "stop"
    assert watch.agrees_with(server.bills)


def test_without_history_several_candidates_are_priced_again(watch: Watch, server: OpenAIServer, lm: MakeLM) -> None:
    """Case 3: n=3 without history is the price of all three requests."""
    with dspy.context(disable_history=True):
        lm()("Why?", n=3)
    assert len(server.bills) == 3
    assert watch.agrees_with(server.bills)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        pytest.param("openai/no-such-model", {}, id="a model without a price"),
        pytest.param("together_ai/no-such-model", {"engine": "litellm"}, id="a model that only LiteLLM routes"),
        pytest.param("openai/gpt-4o-mini", {"service_tier": "priority"}, id="a dearer tier"),
        pytest.param("openai/gpt-4o-mini", {"service_tier": "flex"}, id="a cheaper tier"),
        pytest.param("openai/gpt-4o-mini", {"engine": "litellm", "web_search_options": {}}, id="a search fee"),
    ],
)
def test_without_history_a_price_that_cannot_be_told_stays_unknown(
    model: str, options: dict[str, Any], watch: Watch, server: OpenAIServer, lm: MakeLM
) -> None:
    """Case 3: where only the history entry would know the price, tokens are exact and cost is None and counted so."""
    with dspy.context(disable_history=True):
        lm(model, **options)("Why?")
    assert watch.lms[0].cost_usd is None
    assert watch.total("dspy_unpriced_requests_total") == 1
    assert watch.agrees_with(server.bills, cost=None)


class Forwarding(dspy.LM):
    """An LM whose calls take a way of their own, and so have a price of their own."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
@pytest.mark.parametrize("history", [True, False])
def test_an_lm_that_forwards_by_itself_is_not_priced_by_the_list(
    history: bool, watch: Watch, server: OpenAIServer
) -> None:
    """Case 3: without history an LM subclass with a forward has no more of a price than with it."""
    asked = Forwarding("openai/gpt-4o-mini", api_base=server.base_url, api_key="x", cache=False)
    with dspy.context(disable_history=not history):
        asked("Why?")
    asked.close()
    assert watch.lms[0].cost_usd is None
    assert watch.agrees_with(server.bills, cost=None)


@pytest.mark.parametrize("size", [0, 1])
def test_a_short_history_changes_no_figure(
    size: int, sibling: SlowSibling, watch: Watch, numbered_server: OpenAIServer, lm: MakeLM
) -> None:
    """Case 4: max_history_size 0 and 1 beside a slow callback leave each call its own tokens and cost."""
    program, shared = dspy.Predict("question -> answer"), lm()

    def ask(_: int) -> None:
        with dspy.context(lm=shared, max_history_size=size):
            program(question="The same for all?")

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(ask, range(96)))
    assert len(shared.history) == size
    for record in watch.lms:
        number = int(sibling.texts[record.call_id].rpartition("\n")[2])
        assert record.usage is not None
        assert (record.usage.prompt, record.usage.completion) == (1000 + number, 2 * number)
    assert watch.agrees_with(numbered_server.bills)


def test_a_history_that_is_cleared_meanwhile_changes_no_figure(
    sibling: SlowSibling, watch: Watch, numbered_server: OpenAIServer, lm: MakeLM
) -> None:
    """Case 4: a user who empties every history all the time costs no call its tokens or cost."""
    program, shared, done = dspy.Predict("question -> answer"), lm(), threading.Event()

    def ask(_: int) -> None:
        with dspy.context(lm=shared):
            program(question="The same for all?")

    def clear() -> None:
        while not done.wait(0.0005):
            for history in (shared.history, program.history, GLOBAL_HISTORY):
                history.clear()

    clearing = threading.Thread(target=clear)
    clearing.start()
    try:
        with ThreadPoolExecutor(16) as threads:
            list(threads.map(ask, range(96)))
    finally:
        done.set()
        clearing.join()
    assert len(watch.lms) == 96
    for record in watch.lms:
        number = int(sibling.texts[record.call_id].rpartition("\n")[2])
        assert record.usage is not None
        assert record.usage.prompt == 1000 + number
    assert watch.agrees_with(numbered_server.bills)
