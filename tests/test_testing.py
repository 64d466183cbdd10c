"""What users test with: captured records, an offline LM, a frozen clock."""

from __future__ import annotations

import asyncio
from typing import Any

import dspy
import pytest

from dspy_observe.ledger import LEDGER
from dspy_observe.testing import Capture, FrozenClock, OfflineEngine, capture_records, frozen_clock, offline_lm


def test_records_are_captured_inside_the_block_only() -> None:
    """And DSPy's callbacks are as before."""
    mine = Capture()
    dspy.configure(lm=offline_lm({"answer": "42"}), callbacks=[mine])
    program = dspy.Predict("question -> answer")
    program(question="before")
    with capture_records() as records:
        program(question="inside")
    program(question="after")
    assert [r.kind for r in records] == ["adapter_format", "lm", "adapter_parse", "module"]
    assert dspy.settings.callbacks == [mine]
    assert len(mine.records) == 12


@pytest.mark.parametrize("outside", [True, False])
def test_records_are_captured_on_either_side_of_a_context(outside: bool) -> None:
    """A ``dspy.context`` around the block has settings of its own."""
    if outside:
        with capture_records() as records, dspy.context(lm=offline_lm({"answer": "42"})):
            dspy.Predict("question -> answer")(question="?")
    else:
        with dspy.context(lm=offline_lm({"answer": "42"})), capture_records() as records:
            dspy.Predict("question -> answer")(question="?")
    assert [r.kind for r in records] == ["adapter_format", "lm", "adapter_parse", "module"]
    assert dspy.settings.callbacks == []


def test_a_failing_block_is_cleaned_up_too() -> None:
    """The exception passes."""
    with pytest.raises(KeyError), capture_records():
        raise KeyError
    assert dspy.settings.callbacks == []


def test_answers_come_in_turn_and_the_last_one_again_and_again() -> None:
    """Mappings are parsed by DSPy's adapter, texts are sent as they are, values as JSON."""
    lm = offline_lm([{"answer": "one", "scores": [1, 2]}, "plain"])
    assert lm("x") == ["[[ ## answer ## ]]\none\n\n[[ ## scores ## ]]\n[1, 2]\n\n[[ ## completed ## ]]"]
    assert [lm("x"), lm("x")] == [["plain"], ["plain"]]
    with dspy.context(lm=offline_lm({"answer": "a", "scores": [1, 2]})):
        prediction = dspy.Predict("question -> answer, scores: list[int]")(question="?")
    assert prediction.scores == [1, 2]


def test_a_function_sees_the_request() -> None:
    """The typed one of DSPy."""
    seen: list[Any] = []

    def reply(request: Any) -> str:
        seen.append(request)
        return "ok"

    assert offline_lm(reply, model="mine/m")("hello") == ["ok"]
    assert seen[0].model == "mine/m"
    assert "hello" in repr(seen[0].messages)


def test_token_counts_are_those_asked_for_and_async_calls_share_the_engine() -> None:
    """Sync and async answers come from one list."""
    engine = OfflineEngine(["a", "b"], prompt_tokens=7, completion_tokens=3)
    lm = dspy.LM("offline/m", engine=engine, cache=False)
    with capture_records() as records:
        lm("x")
    assert records[0].usage is not None
    assert (records[0].usage.prompt, records[0].usage.completion, records[0].usage.total) == (7, 3, 10)
    both = offline_lm(["first", "second"])
    assert both("x") == ["first"]
    assert asyncio.run(both.acall("x")) == ["second"]


def test_an_engine_without_answers_is_refused() -> None:
    """At once, not at the first call."""
    with pytest.raises(ValueError, match="at least one answer"):
        OfflineEngine([])


def test_caching_is_off_unless_asked_for() -> None:
    """A test that counts calls counts all of them."""
    asked: list[Any] = []

    def reply(request: Any) -> str:
        asked.append(request)
        return "ok"

    for _ in range(2):
        offline_lm(reply)("same words")
    assert len(asked) == 2


def test_the_clock_moves_when_told_and_never_back() -> None:
    """Records are timed by it."""
    with frozen_clock(100.0) as clock, capture_records() as records:
        lm = offline_lm(lambda _: clock.advance(2.5) or "ok")
        lm("x")
        with pytest.raises(ValueError, match="backwards"):
            clock.advance(-1)
    assert (records[0].started_at, records[0].duration_s) == (100.0, 2.5)
    assert FrozenClock().time() == 1_700_000_000.0
    assert LEDGER.clock.time() > 1_700_000_000.0
