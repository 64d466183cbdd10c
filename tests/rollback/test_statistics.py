"""The tests behind verdicts: how often they are wrong, how soon they are right, and what they refuse."""

from __future__ import annotations

import json
import math
import random
from functools import partial

import numpy as np
import pytest

from dspy_observe.errors import ConfigurationError
from dspy_observe.rollback.statistics import (
    TIE,
    Baseline,
    Bets,
    Levels,
    MetricBounds,
    OneArm,
    Summary,
    TwoArms,
    lower_bound,
    minimum_detectable_drop,
    sample_ratio_mismatch,
    sample_ratio_p,
    scores_needed,
)
from tests.benchmarks import bench_statistics as bench

LEVELS = Levels()
RUNS = 300


@pytest.mark.slow
def test_s32_false_alarms_are_rare_and_drops_are_found_in_time() -> None:
    """Scenario 32: 0.90 that stays raises a false alarm in at most 1 % of runs; 0.85 is found within the limits."""
    limits: list[tuple[str, float, float]] = []
    rows = bench.rules(RUNS, limits)
    assert len(limits) == 4
    assert not [one for one in limits if one[1] > one[2]]
    plain = rows[-1]
    assert plain[1] == "100.00%", "the plain rule is wrong in every run, which is why there is another one"


@pytest.mark.slow
@pytest.mark.parametrize("n", [50, 2000])
def test_s35_an_uncertain_baseline_raises_few_false_alarms(n: int) -> None:
    """Scenario 35: against a baseline from 50 examples, at most 5 % of runs without a drop raise an alarm."""
    found, _ = bench.simulate(partial(bench.always, 0.9), partial(bench.estimated, n), RUNS, bench.STEPS, n)
    assert bench.share(found.hybrid) <= 0.05


def test_a_mean_taken_for_the_truth_would_raise_many_false_alarms() -> None:
    """Comparing with the baseline's mean in place of its lower bound is wrong far more often: the bound is needed."""

    def naive(size: tuple[np.random.Generator, int]) -> object:
        return np.minimum(size[0].binomial(50, 0.9, size[1]) / 50, 0.99)

    found, _ = bench.simulate(partial(bench.always, 0.9), naive, 100, bench.STEPS, 5)
    assert bench.share(found.hybrid) > 0.25


def test_two_arms_ignore_what_hits_both() -> None:
    """An outage of 1,000 scores in both arms leaves the comparison silent, a worse suspect does not."""
    outage = partial(bench.dips, 1_000, 2_000, 0.9, 0.6)
    worse = partial(bench.always, 0.7)
    runs = range(40)
    both = [bench.two_arms(run, 0.5, outage, outage, 3_000, LEVELS) for run in runs]
    assert sum(one != bench.NEVER for one in both) <= 1
    one_worse = [bench.two_arms(run, 0.5, partial(bench.always, 0.9), worse, 3_000, LEVELS) for run in runs]
    assert all(one < 1_000 for one in one_worse)


def test_two_arms_use_an_uneven_split() -> None:
    """With one suspect's score in ten, 20 points are found, and a better suspect is not."""
    good, bad = partial(bench.always, 0.9), partial(bench.always, 0.7)
    assert all(bench.two_arms(run, 0.1, good, bad, 5_000, LEVELS) < 3_000 for run in range(20))
    assert all(bench.two_arms(run, 0.1, bad, good, 3_000, LEVELS) == bench.NEVER for run in range(20))


def test_a_total_failure_is_found_at_once() -> None:
    """A version that always fails is found within a dozen scores."""
    arm = OneArm(0.9)
    while arm.beyond(LEVELS) < -TIE:
        arm.add(0.0)
    assert 2 <= arm.n <= 12


@pytest.mark.parametrize("floor", [0.0, 1.0])
def test_s34_a_baseline_at_either_end_works(floor: float) -> None:
    """Scenario 34: against 0 nothing is worse; against 1 one lower score is no proof, a few failures are."""
    arm = OneArm(floor)
    for _ in range(500):
        arm.add(floor)
    assert arm.beyond(LEVELS) < -1
    arm.add(0.0)
    assert arm.beyond(LEVELS) < -TIE
    for _ in range(20):
        arm.add(0.0)
    assert (arm.beyond(LEVELS) >= -TIE) is (floor == 1.0)


def test_an_exact_tie_at_the_threshold_counts() -> None:
    """Evidence of exactly 1/alpha is enough, also where binary fractions fall a little short of it."""
    bets = Bets([0.5])
    bets.add(1.0)
    bets.add(1.0)  # wealth 2.25
    exactly = bets.margin_of(1 / 2.25 / 0.5, 1e12, 0.5)
    assert abs(exactly) < TIE
    arm = OneArm(0.9)
    arm.bets.wealth = [math.log(200.0) - 1e-12] * len(arm.bets.wealth)
    assert arm.beyond(LEVELS) >= -TIE
    arm.bets.wealth = [math.log(200.0) - 1e-6] * len(arm.bets.wealth)
    assert arm.beyond(LEVELS) < -TIE


def test_bets_never_overflow() -> None:
    """A hundred thousand failures against a perfect baseline stay finite numbers that JSON can hold."""
    arm = OneArm(1.0)
    for _ in range(100_000):
        arm.add(0.0)
    assert json.loads(json.dumps(arm.to_dict(), allow_nan=False)) == arm.to_dict()
    assert arm.bets.log_e > 10_000


def test_a_margin_quiets_the_late_test_alone() -> None:
    """With a margin of 2 points, a drop of 1 point moves the e-process and not the Shiryaev-Roberts sum."""
    plain, careful = OneArm(0.9), OneArm(0.9, margin=0.02)
    for step in range(2_000):
        for arm in (plain, careful):
            arm.add(0.0 if step % 100 < 11 else 1.0)
    assert careful.bets.wealth == plain.bets.wealth
    assert careful.bets.log_late(10_000) < plain.bets.log_late(10_000)


def test_a_known_total_is_never_more_evidence_than_the_scores() -> None:
    """An evaluation of which only the mean is known counts as zeros and ones with that mean, the weakest evidence."""
    narrow, whole = OneArm(0.9), OneArm(0.9)
    for _ in range(100):
        narrow.add(0.8)
    whole.add_total(100, 80.0)
    assert whole.n == 100
    assert 0 < whole.bets.log_e <= narrow.bets.log_e
    by_hand = OneArm(0.9)
    for score in [1.0] * 80 + [0.0] * 20:
        by_hand.add(score)
    assert whole.bets.log_e == pytest.approx(by_hand.bets.log_e)
    assert whole.bets.log_late(10_000) < by_hand.bets.log_late(10_000), "the zeros are spread, not one block"


def test_a_total_with_a_rest_keeps_its_sum() -> None:
    """A total that is no whole number is kept exactly: 2.5 of 4 is two ones, a half and a zero."""
    whole, by_hand = OneArm(0.9), OneArm(0.9)
    whole.add_total(4, 2.5)
    for score in (1.0, 1.0, 0.5, 0.0):
        by_hand.add(score)
    assert whole.bets.log_e == pytest.approx(by_hand.bets.log_e)


@pytest.mark.parametrize(("n", "hits"), [(50, 45), (200, 180), (1000, 900), (10, 10), (5, 1)])
def test_bound_of_zeros_and_ones_is_the_exact_one(n: int, hits: int) -> None:
    """For zeros and ones, the chance of so many hits or more is 2.5 % at the bound: that of Clopper and Pearson."""
    mean = hits / n
    bound = lower_bound(mean, n, math.sqrt(mean * (1 - mean) * n / (n - 1)))
    tail = math.fsum(math.comb(n, k) * bound**k * (1 - bound) ** (n - k) for k in range(hits, n + 1))
    assert tail == pytest.approx(0.025)


def test_bound_without_spread_holds_for_any_scores() -> None:
    """Without a spread the bound is wider, with a small one it is narrower, and it is never above the mean."""
    mean, n = 0.9, 5_000
    binary = lower_bound(mean, n, math.sqrt(mean * (1 - mean) * n / (n - 1)))
    unknown, narrow = lower_bound(mean, n), lower_bound(mean, n, 0.02)
    assert unknown < binary < narrow < mean
    assert lower_bound(mean, 1) < 0.5
    assert lower_bound(0.0, 50) == 0.0
    assert 0.9 < lower_bound(1.0, 100, 0.0) < 1.0


def test_a_rounded_spread_of_zeros_and_ones_is_recognised() -> None:
    """A spread that somebody rounded, or divided by n, still gives the bound of zeros and ones."""
    exact = lower_bound(0.9, 200, math.sqrt(0.09 * 200 / 199))
    assert lower_bound(0.9, 200, 0.3) == lower_bound(0.9, 200, 0.301) == exact > lower_bound(0.9, 200)


def test_bound_covers_scores_that_are_not_binary() -> None:
    """Of baselines drawn from a skewed distribution, at most 2.5 % have a bound above the true mean."""
    draw = random.Random(7)
    above = 0
    for _ in range(1_500):
        summary = Summary()
        for _ in range(40):
            summary.add(draw.random() ** 0.25)
        above += lower_bound(summary.mean, summary.n, summary.stdev) > 0.8
    assert above <= 37


@pytest.mark.parametrize(
    ("counts", "shares", "p"),
    [
        ((900, 100), (90, 10), 1.0), ((870, 130), (0.9, 0.1), 0.00156540),
        ((120, 90, 90), (1, 1, 1), 0.0497871), ((100, 100, 100, 160), (1, 1, 1, 1), 3.2097e-05),
    ],
)  # fmt: skip
def test_sample_ratio_is_chi_square(counts: tuple[int, ...], shares: tuple[float, ...], p: float) -> None:
    """The p-values are those of Pearson's chi-square test, for any number of arms."""
    assert sample_ratio_p(counts, shares) == pytest.approx(p, rel=1e-3)


def test_s42_a_split_of_13_87_where_10_90_was_meant_is_a_mismatch() -> None:
    """Scenario 42: 13/87 where 10/90 was meant is a mismatch at 2,000 scores; 10/90 and too few scores are none."""
    assert sample_ratio_mismatch((1740, 260), (90, 10))
    assert not sample_ratio_mismatch((1800, 200), (90, 10))
    assert sample_ratio_p((30, 10), (90, 10)) is None
    assert sample_ratio_p((100,), (1,)) is None
    assert sample_ratio_mismatch((100, 1), (1, 0)), "an arm that should get nothing got something"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, 1.7, -0.1, "0.5", True, [0.5]])
def test_s33_what_is_no_score_is_refused(value: object) -> None:
    """Scenario 33: on a metric from 0 to 1, NaN, infinity, None, 1.7 and what is no number are refused."""
    assert MetricBounds().unit(value) is None


def test_s34_lower_is_better_is_turned_around() -> None:
    """Scenario 34: a lower latency is a better score, beyond its bound is worst if it is clipped, negatives work."""
    latency = MetricBounds(0.0, 10.0, higher_is_better=False, clip=True)
    assert [latency.unit(one) for one in (0.0, 2.5, 10.0, 60.0)] == [1.0, 0.75, 0.0, 0.0]
    assert latency.value(0.75) == 2.5
    assert MetricBounds(0.0, 10.0, higher_is_better=False).unit(60.0) is None
    loss = MetricBounds(-1.0, 1.0)
    assert [loss.unit(one) for one in (-1.0, -0.5, 1)] == [0.0, 0.25, 1.0]
    assert loss.value(0.25) == -0.5


@pytest.mark.parametrize("bounds", [(1.0, 0.0), (0.0, 0.0), (math.nan, 1.0), (0.0, math.inf), ("0", 1.0)])
def test_bounds_that_cannot_work_are_refused(bounds: tuple[float, float]) -> None:
    """A metric needs two finite bounds that rise."""
    with pytest.raises(ConfigurationError):
        MetricBounds(*bounds)


@pytest.mark.parametrize("wrong", [{"alpha": 0.0}, {"alpha": 0.6}, {"alpha": math.nan}, {"horizon": 0}])
def test_levels_that_cannot_work_are_refused(wrong: dict[str, float]) -> None:
    """A level lies between 0 and one half, a horizon is at least one score."""
    with pytest.raises(ConfigurationError):
        Levels(**wrong)


@pytest.mark.parametrize("wrong", [{"mean": 1.2}, {"mean": 0.5, "n": 0}, {"mean": 0.5, "stdev": -1.0}])
def test_baselines_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    """A baseline is a mean from 0 to 1 of at least one score, with a spread of at least 0."""
    with pytest.raises(ConfigurationError):
        Baseline(**wrong)


def test_levels_are_split_so_that_the_sum_stays() -> None:
    """Several metrics share one level."""
    assert LEVELS.split(4).alpha == pytest.approx(LEVELS.alpha / 4)
    assert LEVELS.split(0) == LEVELS


def test_least_detectable_drop_agrees_with_simulation() -> None:
    """The drop that is called detectable is found in about 8 of 10 runs, a smaller one in clearly fewer."""
    baseline = Baseline(0.9, 2000, math.sqrt(0.09 * 2000 / 1999))
    least = minimum_detectable_drop(baseline)
    assert least is not None
    floor = partial(bench.exact, baseline.floor)
    found = [
        bench.share(bench.simulate(partial(bench.always, 0.9 - drop), floor, 100, bench.STEPS, 9)[0].hybrid)
        for drop in (least, least * 0.75)
    ]
    assert 0.65 <= found[0] <= 0.97
    assert found[1] < found[0] - 0.2


def test_s35_a_small_baseline_cannot_find_a_small_drop() -> None:
    """Scenario 35: 200 examples cannot show a drop of 5 points; more examples, or a larger drop, can."""
    small, large = (Baseline(0.9, n, math.sqrt(0.09 * n / (n - 1))) for n in (200, 2000))
    least = minimum_detectable_drop(small)
    assert least is not None
    assert least > 0.05
    assert scores_needed(small, 0.05) is None
    assert (scores_needed(small, 0.15) or 10**9) < 500
    assert (scores_needed(large, 0.05) or 10**9) < 3_000
    assert minimum_detectable_drop(Baseline(0.05, 10)) is None
    assert (scores_needed(Baseline(0.9), 0.9) or 10**9) <= 12, "a total failure"


def test_states_of_two_arms_have_a_bound() -> None:
    """However long one arm waits for the other, the state stays small."""
    arms = TwoArms()
    for _ in range(10_000):
        arms.add(1.0, suspect=False)
    assert len(json.dumps(arms.to_dict())) < 2_000
