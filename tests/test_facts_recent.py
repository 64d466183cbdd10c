"""The memory of ended calls is bounded and keeps the latest."""

from __future__ import annotations

import pytest

from dspy_observe.facts.recent import Recent


@pytest.mark.parametrize("size", [1, 3, 50])
def test_the_last_values_are_remembered_and_the_memory_is_bounded(size: int) -> None:
    """At every moment the newest ``size`` are there, and at most twice as many."""
    recent: Recent[int] = Recent(size)
    for number in range(size * 7):
        recent.remember(str(number), number)
        for kept in range(max(0, number - size + 1), number + 1):
            assert recent.get(str(kept)) == kept
        assert len(recent) <= 2 * size + 1
    assert recent.get("0") is None


def test_an_unknown_key_gives_none() -> None:
    """Nothing is invented."""
    assert Recent[int](2).get("x") is None


def test_a_value_told_again_is_the_newer_one() -> None:
    """Also when the older one has moved to the older generation."""
    recent: Recent[int] = Recent(1)
    recent.remember("a", 1)
    recent.remember("b", 2)
    recent.remember("a", 3)
    assert recent.get("a") == 3


def test_falsy_values_are_values() -> None:
    """A zero that was remembered is not forgotten."""
    recent: Recent[int] = Recent(2)
    recent.remember("zero", 0)
    assert recent.get("zero") == 0
