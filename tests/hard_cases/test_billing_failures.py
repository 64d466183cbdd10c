"""Several candidates, and calls of which something failed: cases 9 to 14."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dspy
import pytest
from dspy.utils.exceptions import AdapterParseError, LMError, LMServerError

from dspy_observe import Usage
from dspy_observe.openai_server import Failure, OpenAIServer, Reply, TokenUsage

if TYPE_CHECKING:
    from tests.hard_cases.conftest import MakeLM, Watch


@pytest.mark.parametrize(("engine", "requests"), [("auto", 3), ("litellm", 1)])
def test_three_candidates_are_summed(
    engine: str, requests: int, watch: Watch, server: OpenAIServer, lm: MakeLM
) -> None:
    """Case 9: n=3 is one record with the tokens and cost of all its requests, three of them on the native engine."""
    usage = TokenUsage(1003, 70, cached_tokens=512, reasoning_tokens=64)
    server.script([Reply(text=text, usage=usage) for text in ("a", "b", "c")[:requests]])
    assert len(lm(engine=engine)("Why?", n=3)) == 3
    assert len(server.bills) == requests
    assert len(watch.lms) == 1
    assert watch.lms[0].usage == Usage(
        1003 * requests, 70 * requests, 512 * requests, watch.lms[0].usage.cache_write, 64 * requests
    )
    assert watch.agrees_with(server.bills)


def test_one_candidate_without_figures_leaves_the_cost_unknown(watch: Watch, server: OpenAIServer, lm: MakeLM) -> None:
    """Case 9: with one of three replies unreported, the tokens told are counted and the sum of prices is unknown."""
    server.script(["a", Reply(text="b", report_usage=False), "c"])
    lm()("Why?", n=3)
    assert len(server.bills) == 3
    told = [bill for bill in server.bills if bill.usage_sent]
    assert len(told) == 2
    assert watch.lms[0].cost_usd is None
    assert watch.total("dspy_unpriced_requests_total") == 1
    assert watch.agrees_with(told, cost=None)


@pytest.mark.parametrize("history", [True, False])
def test_a_third_candidate_that_fails_leaves_two_billed(
    history: bool, watch: Watch, server: OpenAIServer, lm: MakeLM
) -> None:
    """Case 10: the call is an error, and the two candidates before it are billed."""
    server.script(["a", "b", Failure.server_error()])
    with dspy.context(disable_history=not history), pytest.raises(LMServerError):
        lm(num_retries=0)("Why?", n=3)
    (record,) = watch.lms
    assert (record.outcome, record.billed_but_failed, record.cache_hit) == ("error", True, None)
    assert len(server.bills) == 2
    assert watch.agrees_with(server.bills)


def test_a_third_candidate_that_fails_after_an_unreported_one_is_of_unknown_cost(
    watch: Watch, server: OpenAIServer, lm: MakeLM
) -> None:
    """Case 10: of two candidates before the failure one has no figures, so the cost of both is unknown."""
    server.script(["a", Reply(text="b", report_usage=False), Failure.server_error()])
    with pytest.raises(LMServerError):
        lm(num_retries=0)("Why?", n=3)
    assert watch.lms[0].cost_usd is None
    assert watch.agrees_with(server.bills[:1], cost=None)


@pytest.mark.parametrize("engine", ["auto", "litellm"])
def test_a_second_attempt_in_json_is_a_call_of_its_own(
    engine: str, watch: Watch, server: OpenAIServer, lm: MakeLM
) -> None:
    """Case 11: a reply ChatAdapter cannot parse and JSONAdapter's repeat are two LM records under one Predict."""
    server.script(["not what was asked for"])
    with dspy.context(lm=lm(engine=engine)):
        assert dspy.Predict("question -> answer")(question="Why?").answer.startswith("The answer to: Why?")
    (module,) = watch.modules
    assert [record.root_id for record in watch.lms] == [module.call_id] * 2
    assert {record.parent_id for record in watch.lms} == {module.call_id}
    assert [record.usage.prompt for record in watch.lms if record.usage] == [1001, 1002]
    assert module.outcome == "ok"
    assert watch.agrees_with(server.bills)


def test_tokens_of_an_answer_that_cannot_be_parsed_are_counted(watch: Watch, server: OpenAIServer, lm: MakeLM) -> None:
    """Case 12: the LM calls succeed, the module fails, and what the LM billed stays in the books."""
    server.script(["no fields", "no fields either"])
    with dspy.context(lm=lm()), pytest.raises(AdapterParseError):
        dspy.Predict("question -> answer")(question="Why?")
    (module,) = watch.modules
    assert (module.outcome, module.error_type) == ("error", "AdapterParseError")
    assert [record.outcome for record in watch.lms] == ["ok", "ok"]
    assert watch.total("dspy_adapter_failures_total", stage="parse") == 2
    assert watch.agrees_with(server.bills)


@pytest.mark.parametrize("engine", ["auto", "litellm"])
@pytest.mark.parametrize("failure", [Failure.rate_limited(), Failure.server_error(), Failure(401)], ids=str)
def test_a_failure_after_the_same_call_succeeded_has_no_usage(
    failure: Failure, engine: str, watch: Watch, server: OpenAIServer, lm: MakeLM
) -> None:
    """Case 13: a refused call right after an identical successful one takes none of its figures."""
    server.script(["yes", failure])
    asked = lm(engine=engine, num_retries=0)
    asked("Why?")
    with pytest.raises(LMError):
        asked("Why?")
    good, bad = watch.lms
    assert (good.outcome, good.usage) == ("ok", Usage(1001, 501, 0, good.usage.cache_write, 0))
    assert bad.outcome == ("rate_limited" if failure.status == 429 else "error")
    assert (bad.usage, bad.cost_usd, bad.billed_but_failed, bad.model_served) == (Usage(), None, False, None)
    assert watch.total("dspy_unmetered_requests_total") == 0, "what was refused is not billed"
    assert watch.agrees_with(server.bills)


def test_retries_are_one_call_whose_duration_holds_the_waits(watch: Watch, server: OpenAIServer, lm: MakeLM) -> None:
    """Case 14: 429 twice and then an answer is one record that lasts at least both waits and claims no attempts."""
    server.script([Failure.rate_limited(0.1), Failure.rate_limited(0.1), "yes"])
    assert lm(num_retries=2)("Why?") == ["yes"]
    assert len(server.requests) == 3
    (record,) = watch.lms
    assert (record.outcome, record.retries) == ("ok", None)
    assert record.duration_s >= 0.2, "time.sleep() never returns early"
    assert watch.total("dspy_retries_total") == 0
    assert watch.total("dspy_requests_total", status="ok") == 1
    assert watch.agrees_with(server.bills)
