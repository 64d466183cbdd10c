"""Scenario 41: the same user gets the same arm everywhere, and shares are what they should be."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_observe.serving.splitting import BUCKETS, Split, draw

USERS = [f"user-{number}" for number in range(100_000)]


def share_of(split: Split, role: str = "canary") -> float:
    """The part of a hundred thousand users that a role gets."""
    return sum(split.role(draw(split.salt, user).bucket) == role for user in USERS) / len(USERS)


def test_the_same_user_gets_the_same_arm_in_every_process() -> None:
    """With different hash seeds, three processes agree with this one on every user."""
    code = (
        "from dspy_observe.serving.splitting import draw\n"
        "print([draw('e1', f'user-{number}').bucket for number in range(2000)])"
    )
    here = str([draw("e1", user).bucket for user in USERS[:2000]])
    for seed in ("0", "1", "12345"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert run.stdout.strip() == here
    assert [draw("e1", user).bucket for user in ("alice", "bob", "zoë", 42)] == [
        9255,
        120,
        1436,
        782,
    ]  # on every host, for ever


@pytest.mark.parametrize("percent", [1, 5, 10, 50])
def test_shares_are_kept(percent: int) -> None:
    """Within half a percent of a hundred thousand users."""
    assert share_of(Split("experiment", percent * BUCKETS // 100)) == pytest.approx(percent / 100, abs=0.005)


def test_nothing_and_everything_are_exact() -> None:
    """At 0 % nobody is canary, at 100 % everybody is, whatever the control arm has."""
    for control in (0, 1000):
        assert share_of(Split("e", 0, control)) == 0
        assert share_of(Split("e", BUCKETS, control)) == 1
    assert Split("e", BUCKETS, 1000).buckets() == {"stable": 0, "canary": BUCKETS, "control": 0}


@given(st.integers(0, BUCKETS), st.integers(0, BUCKETS), st.integers(0, 1000), st.text())
def test_growing_the_canary_keeps_its_users_and_moves_nobody_else(
    small: int, large: int, control: int, key: str
) -> None:
    """A ramp is a superset of what it was, and who is not newly canary stays where they were."""
    before, after = Split("salt", min(small, large), control), Split("salt", max(small, large), control)
    bucket = draw("salt", key or "k").bucket
    if before.role(bucket) == "canary":
        assert after.role(bucket) == "canary"
    elif after.role(bucket) != "canary":
        assert before.role(bucket) == after.role(bucket)


@given(st.integers(0, BUCKETS), st.integers(0, BUCKETS))
def test_buckets_add_up_to_what_roles_get(canary: int, control: int) -> None:
    """What is announced is what is given out."""
    split = Split("salt", canary, control)
    roles = [split.role(bucket) for bucket in range(BUCKETS)]
    assert split.buckets() == {role: roles.count(role) for role in ("stable", "canary", "control")}


def test_two_experiments_do_not_share_their_users() -> None:
    """Of one experiment's tenth, the other has a tenth; with the same salt it would be all."""
    one, other = Split("experiment-1", 1000), Split("experiment-2", 1000)
    first = [user for user in USERS if one.role(draw("experiment-1", user).bucket) == "canary"]
    both = sum(other.role(draw("experiment-2", user).bucket) == "canary" for user in first)
    assert both / len(first) == pytest.approx(0.1, abs=0.01)


def test_salt_and_key_are_kept_apart() -> None:
    """The salt ``a`` with the key ``1x`` is not the salt ``a1`` with the key ``x``."""
    assert draw("a", "1x") != draw("a1", "x")
    assert draw("a", 1) == draw("a", "1")


def test_without_a_key_calls_go_anywhere() -> None:
    """Each anew, by the shares, and marked as not sticky; an empty key is none."""
    drawn = [draw("salt", key) for key in (None, "") for _ in range(5_000)]
    assert not any(one.sticky for one in drawn)
    assert sum(one.bucket < BUCKETS // 10 for one in drawn) / len(drawn) == pytest.approx(0.1, abs=0.02)
    assert draw("salt", "alice").sticky


@pytest.mark.parametrize("buckets", [{"canary": -1}, {"canary": BUCKETS + 1}, {"control": -1}])
def test_shares_beyond_everything_are_refused(buckets: dict[str, int]) -> None:
    """A split cannot give out what there is not."""
    with pytest.raises(ValueError, match="from 0 to"):
        Split("salt", **buckets)
