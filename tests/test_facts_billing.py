"""Tokens, cost, cache hit, served model and finish reason, read from what was caught of one call."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import dspy
import pytest
from dspy import lm15
from dspy.clients.base_lm import GLOBAL_HISTORY

from dspy_observe.facts import billing
from dspy_observe.facts.billing import LMFacts, normalise_usage
from dspy_observe.facts.lm import LMCapture
from dspy_observe.records import Usage
from dspy_observe.testing import offline_lm


def caught(*usages: dict[str, Any], entry: Any = None) -> LMCapture:
    """A finished capture."""
    capture = LMCapture("c1", lambda: 0.0, meter_streams=False)
    capture.usages = [dict(usage) for usage in usages]
    capture.entry = entry
    capture.closed = True
    return capture


def response(**fields: Any) -> lm15.Response:
    """A provider's reply."""
    given = {"id": "r1", "model": "served", "finish_reason": "length", "usage": lm15.Usage(), **fields}
    return lm15.Response(message=lm15.Message.assistant("hi"), **given)


def gather(capture: LMCapture, instance: Any, outputs: Any, exception: BaseException | None) -> LMFacts:
    """Read a capture of a call without arguments."""
    return billing.gather(capture, instance, {"prompt": None, "messages": [], "kwargs": {}}, outputs, exception)


LM = offline_lm("hi", model="openai/gpt-4o-mini")
REPORT = {"prompt_tokens": 10, "completion_tokens": 5}


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 5}, Usage(10, 5)),
        ({"input_tokens": 10, "output_tokens": 5}, Usage(10, 5)),
        ({"prompt_tokens": 10, "completion_tokens": 5, "input_tokens": 99}, Usage(10, 5)),
        ({"prompt_tokens": 10}, Usage(10, None)),
        ({"prompt_tokens": 10, "completion_tokens": 0}, Usage(10, 0)),
        ({"prompt_tokens": 0, "completion_tokens": 0}, Usage()),
        ({"prompt_tokens": 0, "completion_tokens": 0, "prompt_tokens_details": {"cached_tokens": 3}}, Usage()),
        ({"prompt_tokens": None, "completion_tokens": None}, Usage()),
        ({}, Usage()),
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 5,
                "prompt_tokens_details": {"cached_tokens": 4, "cache_creation_tokens": 2},
                "completion_tokens_details": {"reasoning_tokens": 3},
            },
            Usage(10, 5, 4, 2, 3),
        ),
        (
            {
                "input_tokens": 10,
                "output_tokens": 5,
                "cache_read_input_tokens": 4,
                "cache_creation_input_tokens": 2,
                "output_tokens_details": {"reasoning_tokens": 0},
            },
            Usage(10, 5, 4, 2, 0),
        ),
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 5,
                "prompt_tokens_details": SimpleNamespace(cached_tokens=4),
                "completion_tokens_details": None,
            },
            Usage(10, 5, 4),
        ),
        ({"prompt_tokens": "10", "completion_tokens": True}, Usage()),
        ({"prompt_tokens": -1, "completion_tokens": 5}, Usage(None, 5)),
        ({"prompt_tokens": 10.0, "completion_tokens": 5.5}, Usage(10, None)),
        ({"prompt_tokens": float("inf"), "completion_tokens": float("nan")}, Usage()),
    ],
    ids=str,
)
def test_usage_in_every_spelling(entry: dict[str, Any], expected: Usage) -> None:
    """Spellings of providers and SDKs; what is no count is unknown, and 0 of 0 means that nobody counted."""
    assert normalise_usage(entry) == expected


def test_a_plain_call() -> None:
    """Everything is taken from its own history entry."""
    entry = {"response": response(), "cost": 0.25, "response_model": "named"}
    facts = gather(caught(REPORT, entry=entry), LM, ["hi"], None)
    assert (facts.usage, facts.cost_usd, facts.cost_saved_usd) == (Usage(10, 5), 0.25, None)
    assert (facts.cache_hit, facts.billed_but_failed) == (False, False)
    assert (facts.model_served, facts.response_id, facts.finish_reason) == ("named", "r1", "length")


def test_a_cache_hit_bills_nothing_and_saves_what_the_history_repeats() -> None:
    """A success without any report was answered by the cache."""
    facts = gather(caught(entry={"response": response(), "cost": 0.25}), LM, ["hi"], None)
    assert (facts.usage, facts.cost_usd, facts.cost_saved_usd) == (Usage(0, 0, 0, 0, 0), 0.0, 0.25)
    assert facts.cache_hit is True


def test_a_hit_of_unknown_price_saves_an_unknown_sum() -> None:
    """None, not 0."""
    facts = gather(caught(entry={"cost": None}), LM, ["hi"], None)
    assert (facts.cost_usd, facts.cost_saved_usd, facts.cache_hit) == (0.0, None, True)


def test_a_live_reply_without_figures_is_no_hit_and_its_cost_is_unknown() -> None:
    """Also where the history lists 0.0, as it does for a stream that nobody metered."""
    for usage in ({}, {"prompt_tokens": 0, "completion_tokens": 0}):
        facts = gather(caught(usage, entry={"cost": 0.0}), LM, ["hi"], None)
        assert (facts.usage, facts.cost_usd, facts.cache_hit) == (Usage(), None, False)


def test_candidates_are_added_and_an_unknown_one_hides_no_known_one() -> None:
    """What was billed was billed."""
    facts = gather(
        caught(REPORT, {}, {"prompt_tokens": 1, "completion_tokens": 2}, entry={"cost": None}), LM, ["a"], None
    )
    assert facts.usage == Usage(11, 7)
    assert facts.cost_usd is None


def test_several_responses_speak_through_the_first() -> None:
    """One response per candidate."""
    entry = {"response": (response(id="a", finish_reason="stop"), response(id="b")), "cost": 1}
    facts = gather(caught(REPORT, entry=entry), LM, ["a", "b"], None)
    assert (facts.response_id, facts.finish_reason, facts.model_served) == ("a", "stop", "served")


def test_an_empty_tuple_of_responses_says_nothing() -> None:
    """And raises nothing."""
    facts = gather(caught(REPORT, entry={"response": (), "cost": None}), LM, [], None)
    assert (facts.response_id, facts.finish_reason, facts.model_served) == (None, None, None)


def test_the_finish_reason_of_a_chat_completion_object() -> None:
    """LiteLLM and legacy models keep it in their first choice, as objects or as dictionaries."""
    for reply in (
        SimpleNamespace(model="m", id="x", choices=[SimpleNamespace(finish_reason="tool_calls")]),
        {"model": "m", "id": "x", "choices": [{"finish_reason": "tool_calls"}]},
    ):
        facts = gather(caught(REPORT, entry={"response": reply}), LM, ["a"], None)
        assert (facts.model_served, facts.response_id, facts.finish_reason) == ("m", "x", "tool_calls")


def test_a_failed_call_with_a_report_was_billed() -> None:
    """And it is no cache hit and no cache miss."""
    facts = gather(caught(REPORT), LM, None, ValueError())
    assert (facts.usage, facts.billed_but_failed, facts.cache_hit) == (Usage(10, 5), True, None)


def test_a_failed_call_without_a_report_is_unknown() -> None:
    """A neighbour's history entry must not be taken for its own."""
    GLOBAL_HISTORY.append({"outputs": None, "usage": REPORT, "cost": 1.0})
    facts = gather(caught(), LM, None, ValueError())
    assert (facts.usage, facts.cost_usd, facts.billed_but_failed) == (Usage(), None, False)
    assert facts.cache_hit is None


def test_the_history_is_searched_by_identity_only() -> None:
    """An equal list of another call is not ours; the very same one is, wherever it stands."""
    ours, equal = ["hi"], ["hi"]
    for outputs, cost in ((ours, 0.5), (equal, 9.0), (["x"], 8.0)):
        GLOBAL_HISTORY.append({"outputs": outputs, "cost": cost, "response": response(id=str(cost))})
    facts = gather(caught(REPORT), LM, ours, None)
    assert (facts.cost_usd, facts.response_id) == (0.5, "0.5")
    assert gather(caught(REPORT), LM, ["hi"], None).response_id is None
    with dspy.context(disable_history=True):
        assert gather(caught(REPORT), LM, ours, None).response_id is None


def test_a_typed_response_is_its_own_witness_without_history() -> None:
    """The call returned the response itself."""
    facts = gather(caught(REPORT), LM, response(), None)
    assert (facts.model_served, facts.response_id, facts.finish_reason) == ("served", "r1", "length")


def test_a_foreign_entry_is_survived() -> None:
    """Somebody may keep other things in the history."""
    facts = gather(caught(REPORT, entry=object()), LM, ["hi"], None)
    assert facts.usage == Usage(10, 5)


def test_an_lm_of_another_kind_says_itself_whether_the_cache_answered() -> None:
    """No usage report does not mean a hit there."""
    other = SimpleNamespace(model="m")
    assert gather(caught(entry={"cache_hit": True, "cost": 1.0}), other, [], None).cache_hit is True
    live = gather(caught(entry={"cache_hit": False, "usage": REPORT}), other, [], None)
    assert (live.cache_hit, live.usage) == (False, Usage(10, 5))
    assert gather(caught(entry={}), other, [], None).cache_hit is None


def test_without_history_the_tokens_are_priced_by_dspys_list() -> None:
    """A model with a price gives the same figure as DSPy's own entry; a custom engine has none."""
    listed = dspy.LM("openai/gpt-4o-mini", api_key="x")
    with dspy.context(disable_history=True):
        priced = gather(caught({"prompt_tokens": 1_000_000, "completion_tokens": 1_000_000}), listed, ["a"], None)
        # https://openai.com/api/pricing/ at the time of DSPy 3.4: 0.15 and 0.60 dollars a million tokens
        assert priced.cost_usd == pytest.approx(0.75)
        assert gather(caught(REPORT), LM, ["a"], None).cost_usd is None
        unheard = dspy.LM("openai/no-such-model-at-all", api_key="x")
        assert gather(caught(REPORT), unheard, ["a"], None).cost_usd is None
        assert gather(caught({"completion_tokens": 5}), listed, ["a"], None).cost_usd is None
