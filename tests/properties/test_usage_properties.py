"""Whatever a provider reports: reading it never raises and never invents a number."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dspy_observe.facts.billing import gather, normalise_usage
from dspy_observe.facts.lm import LMCapture
from dspy_observe.records import Usage
from dspy_observe.testing import offline_lm

TOP = (
    "prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "total_tokens", "cache_read_input_tokens",
    "cache_creation_input_tokens",
)  # fmt: skip
DETAILS = ("prompt_tokens_details", "completion_tokens_details", "input_tokens_details", "output_tokens_details")
INSIDE = ("cached_tokens", "cache_creation_tokens", "reasoning_tokens", "audio_tokens")

numbers = st.one_of(
    st.none(),
    st.integers(),
    st.integers(0, 5_000),
    st.floats(),
    st.booleans(),
    st.text(max_size=4),
    st.lists(st.integers(), max_size=2),
)
inside = st.dictionaries(st.sampled_from(INSIDE), numbers)
details = st.one_of(inside, inside.map(lambda given: SimpleNamespace(**given)), numbers)
reports = st.builds(
    lambda top, nested, rest: {**rest, **top, **nested},
    st.dictionaries(st.sampled_from(TOP), numbers),
    st.dictionaries(st.sampled_from(DETAILS), details),
    st.dictionaries(st.text(max_size=5), numbers, max_size=3),
)
counts = st.integers(0, 10_000)
LM = offline_lm("hi")


def said(report: Mapping[str, Any]) -> set[int]:
    """Every count that a report states: a whole number from 0 up that is no switch."""
    values = [report.get(name) for name in TOP]
    for name in DETAILS:
        nested = report.get(name)
        if isinstance(nested, SimpleNamespace):
            nested = vars(nested)
        if isinstance(nested, dict):
            values.extend(nested.get(key) for key in INSIDE)
    found = set()
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if value >= 0 and value != float("inf") and value == int(value):
            found.add(int(value))
    return found


def fields(usage: Usage) -> tuple[int | None, ...]:
    """The five figures."""
    return (usage.prompt, usage.completion, usage.cache_read, usage.cache_write, usage.reasoning)


@given(reports)
def test_reading_a_report_never_raises_and_never_invents(report: dict[str, Any]) -> None:
    """Every figure is one that the report states, as a plain int, or unknown; the report stays as it is."""
    before = repr(report)
    usage = normalise_usage(report)
    for value in fields(usage):
        assert value is None or (type(value) is int and value >= 0 and value in said(report))
    if not usage.known:
        assert fields(usage) == (None,) * 5
    assert (usage.prompt, usage.completion) != (0, 0)
    assert repr(report) == before


@given(st.fixed_dictionaries({"prompt": counts, "completion": counts, "read": counts, "write": counts}))
def test_both_families_of_spellings_read_the_same(figures: dict[str, int]) -> None:
    """OpenAI's words and Anthropic's words for the same bill."""
    openai = normalise_usage(
        {
            "prompt_tokens": figures["prompt"],
            "completion_tokens": figures["completion"],
            "prompt_tokens_details": {
                "cached_tokens": figures["read"],
                "cache_creation_tokens": figures["write"],
            },
        }
    )
    anthropic = normalise_usage(
        {
            "input_tokens": figures["prompt"],
            "output_tokens": figures["completion"],
            "cache_read_input_tokens": figures["read"],
            "cache_creation_input_tokens": figures["write"],
        }
    )
    assert openai == anthropic
    if figures["prompt"] or figures["completion"]:
        assert fields(openai)[:4] == tuple(figures[name] for name in ("prompt", "completion", "read", "write"))


@given(st.lists(reports, min_size=1, max_size=4), st.booleans())
def test_several_reports_of_one_call_add_up(given_reports: list[dict[str, Any]], failed: bool) -> None:
    """Each figure is the sum of those known; it is unknown exactly when none is."""
    capture = LMCapture("c1", lambda: 0.0, meter_streams=False)
    capture.usages = given_reports
    capture.closed = True
    facts = gather(capture, LM, {}, None, ValueError() if failed else None)
    singles = [fields(normalise_usage(report)) for report in given_reports]
    for total, parts in zip(fields(facts.usage), zip(*singles, strict=True), strict=True):
        known = [part for part in parts if part is not None]
        assert total == (sum(known) if known else None)
    assert facts.billed_but_failed is (failed and facts.usage.known)
    assert facts.cost_usd is None
