"""What holds for every sequence of scores: supermartingales, order, round trips, and values that are refused."""

from __future__ import annotations

import json
import math
import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_observe.rollback.statistics import (
    Baseline,
    Evidence,
    Levels,
    MetricBounds,
    Observation,
    OneArm,
    Scene,
    Summary,
    TwoArms,
    lower_bound,
    sample_ratio_p,
)
from dspy_observe.rollback.statistics.seen import SeenIds

UNIT = st.floats(0.0, 1.0)
SCORES = st.lists(UNIT, min_size=1, max_size=60)


@given(
    floor=st.floats(0.0, 1.0), mean_above=st.floats(0.0, 1.0), spread=st.floats(0.0, 1.0), margin=st.floats(0.0, 0.2)
)
def test_wealth_is_a_supermartingale_where_nothing_got_worse(
    floor: float, mean_above: float, spread: float, margin: float
) -> None:
    """One score of any two-point distribution with at least the floor as its mean wins nothing in expectation."""
    mean = floor + (1 - floor) * mean_above
    low, high = mean * (1 - spread), mean + (1 - mean) * spread
    chance = 0.5 if high == low else (mean - low) / (high - low)
    arms = [OneArm(floor, margin) for _ in range(2)]
    arms[0].add(low)
    arms[1].add(high)
    for place in range(len(arms[0].bets.wealth)):
        lost, won = (math.exp(arm.bets.wealth[place]) for arm in arms)
        assert (1 - chance) * lost + chance * won <= 1 + 1e-9
        # One more than the sum begins at 1 and may grow by 1.
        lost, won = (math.exp(arm.bets.sums[place]) for arm in arms)
        assert (1 - chance) * lost + chance * won <= 2 + 1e-9


def test_mean_wealth_stays_below_one_in_simulation() -> None:
    """Over many runs at the floor itself, the e-process has a mean of about 1 at most, at any time."""
    draw = random.Random(5).random
    totals = dict.fromkeys((10, 50, 200), 0.0)
    for _ in range(2_000):
        arm = OneArm(0.8)
        for step in range(1, 201):
            arm.add(float(draw() < 0.8))
            if step in totals:
                totals[step] += math.exp(arm.bets.log_e) / 2_000
    assert all(0.5 < mean < 1.2 for mean in totals.values()), totals


@given(scores=SCORES, floor=UNIT, seed=st.integers(0, 99))
def test_e_process_does_not_depend_on_order(scores: list[float], floor: float, seed: int) -> None:
    """The e-process and the summary are the same for the same scores in any order, and however they are merged."""
    shuffled = scores.copy()
    random.Random(seed).shuffle(shuffled)
    first, second = OneArm(floor), OneArm(floor)
    whole, parts = Summary(), [Summary(), Summary()]
    for score in scores:
        first.add(score)
        whole.add(score)
    for place, score in enumerate(shuffled):
        second.add(score)
        parts[place % 2].add(score)
    parts[0].merge(parts[1])
    assert second.bets.log_e == pytest.approx(first.bets.log_e, abs=1e-9)
    assert (parts[0].n, parts[0].mean) == (whole.n, pytest.approx(whole.mean))
    assert parts[0].squares == pytest.approx(whole.squares, abs=1e-9)


@given(scores=SCORES, floor=UNIT, cut=st.integers(0, 60))
def test_one_arm_goes_on_from_its_state(scores: list[float], floor: float, cut: int) -> None:
    """A test that was written as JSON in the middle ends exactly where an uninterrupted one does."""
    whole, part = OneArm(floor), OneArm(floor)
    for place, score in enumerate(scores):
        if place == cut:
            part = OneArm.from_dict(json.loads(json.dumps(part.to_dict(), allow_nan=False)))
        whole.add(score)
        part.add(score)
    assert part.to_dict() == whole.to_dict()


@given(scores=st.lists(st.tuples(UNIT, st.booleans()), max_size=120), cut=st.integers(0, 120))
def test_two_arms_go_on_from_their_state(scores: list[tuple[float, bool]], cut: int) -> None:
    """The comparison of two arms survives being written down, too, waiting scores and all."""
    whole, part = TwoArms(), TwoArms()
    for place, (score, suspect) in enumerate(scores):
        if place == cut:
            part = TwoArms.from_dict(json.loads(json.dumps(part.to_dict(), allow_nan=False)))
        whole.add(score, suspect=suspect)
        part.add(score, suspect=suspect)
    assert part.to_dict() == whole.to_dict()


@given(scores=st.lists(UNIT, min_size=1, max_size=80))
def test_equal_arms_that_alternate_win_nothing(scores: list[float]) -> None:
    """Two arms with the same scores have payoffs of 0, so their evidence stays at 1."""
    arms = TwoArms()
    for score in scores:
        arms.add(score, suspect=False)
        arms.add(score, suspect=True)
    assert arms.bets.log_e == pytest.approx(0.0, abs=1e-12)


ROLES = ("stable", "canary", "control", "shadow", "eval")
SCORED = st.builds(
    Observation,
    version_hash=st.sampled_from(["a" * 64, "b" * 64, "c" * 64]),
    version=st.just("v"),
    role=st.sampled_from(ROLES),
    metric=st.sampled_from(["score", "latency"]),
    score=UNIT,
    at=st.floats(0.0, 10_000.0),
    score_id=st.one_of(st.none(), st.text(max_size=3)),
)


def _scene() -> Scene:
    return Scene(
        5_000.0, "a" * 64, 0.0, Levels(), 2, baseline=lambda _version, _metric: Baseline(0.8, 500, 0.4),
        shares={"stable": 0.8, "canary": 0.1, "control": 0.1},
    )  # fmt: skip


def _plain(evidence: Evidence) -> Any:
    return json.loads(json.dumps(evidence.to_dict(), allow_nan=False))


@settings(max_examples=60)
@given(scores=st.lists(SCORED, max_size=60), cuts=st.sets(st.integers(0, 60), max_size=5))
def test_evidence_does_not_depend_on_batches_or_restarts(scores: list[Observation], cuts: set[int]) -> None:
    """Folding in one go, or in batches with the state written down in between, ends in the same document."""
    scene, whole = _scene(), Evidence()
    told = whole.fold(scores, scene)
    assert told.counted + told.duplicates + told.ignored == len(scores)
    state: Any = None
    edges = [0, *sorted(cuts), len(scores)]
    for start, end in pairwise(edges):
        part = Evidence(state)
        part.fold(scores[start:end], scene)
        state = _plain(part)
    assert state == _plain(whole)
    assert {name: whole.verdict(name, scene) for name in whole.versions} == {
        name: Evidence(state).verdict(name, scene) for name in whole.versions
    }


@settings(max_examples=30)
@given(scores=st.lists(SCORED, min_size=1, max_size=30))
def test_scores_that_come_twice_count_once(scores: list[Observation]) -> None:
    """The same scores again, with ids, change nothing."""
    scene, evidence = _scene(), Evidence()
    with_ids = [
        Observation(one.version_hash, one.version, one.role, one.metric, one.score, one.at, f"id{place}")
        for place, one in enumerate(scores)
    ]
    evidence.fold(with_ids, scene)
    before = _plain(evidence)
    told = evidence.fold(with_ids, scene)
    assert told.counted == 0
    assert _plain(evidence) == before


@given(ids=st.lists(st.text(max_size=5), max_size=40))
def test_ids_are_remembered_as_text(ids: list[str]) -> None:
    """The memory of ids knows after a round trip exactly what it knew before."""
    seen = SeenIds()
    new = [seen.first_time(one) for one in ids]
    assert sum(new) == len(set(ids))
    again = SeenIds(seen.to_text())
    assert not any(again.first_time(one) for one in ids)
    assert again.first_time(None)


@given(
    value=st.one_of(st.floats(), st.integers(), st.none(), st.text(max_size=3), st.booleans()), low=st.floats(-5, 4),
    width=st.floats(0.1, 5), higher=st.booleans(), clip=st.booleans(),
)  # fmt: skip
def test_only_values_within_bounds_become_scores(
    value: object, low: float, width: float, higher: bool, clip: bool
) -> None:
    """Whatever comes is either refused or a score from 0 to 1, and order is kept or turned around as declared."""
    bounds = MetricBounds(low, low + width, higher, clip)
    unit = bounds.unit(value)
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    inside = number and bounds.low <= value <= bounds.high  # type: ignore[operator]
    assert (unit is not None) is bool(inside or (number and clip))
    if unit is not None:
        assert 0 <= unit <= 1
        worst, best = bounds.unit(bounds.low), bounds.unit(bounds.high)
        assert (worst, best) == ((0.0, 1.0) if higher else (1.0, 0.0))


@given(mean=UNIT, n=st.integers(1, 5_000), stdev=st.one_of(st.none(), st.floats(0.0, 0.6)))
def test_lower_bound_lies_below_and_rises_with_examples(mean: float, n: int, stdev: float | None) -> None:
    """The bound is between 0 and the mean, and more examples with the same mean raise it."""
    bound = lower_bound(mean, n, stdev)
    assert 0 <= bound <= mean
    if stdev is None:
        assert bound <= lower_bound(mean, 2 * n) + 1e-9


@given(counts=st.lists(st.integers(0, 2_000), min_size=2, max_size=6), shares=st.lists(st.floats(0.05, 1), min_size=6))
def test_sample_ratio_is_a_chance(counts: list[int], shares: list[float]) -> None:
    """The p-value is between 0 and 1, and 1 where the counts are exactly the shares."""
    p = sample_ratio_p(counts, shares[: len(counts)])
    assert p is None or 0 <= p <= 1
    exact = sample_ratio_p([100 * count for count in counts], [float(count) for count in counts])
    assert exact is None or exact == pytest.approx(1.0)
