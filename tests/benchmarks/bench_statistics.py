"""How often the tests of a monitor are wrong, and how soon right: ``python -m tests.benchmarks.bench_statistics``.

Simulates versions whose answers are scored 0 or 1 and prints, for each situation, the share of runs with a false alarm
within 10,000 scores, and the delay of the right alarm in scores (median and 90th percentile over all runs; a run that
found nothing counts as later than any other). The limits stand beside; the exit code is 1 when one is broken.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import Pool
from typing import Any, Final

import numpy as np

from dspy_observe.rollback.statistics import Baseline, Levels, lower_bound, minimum_detectable_drop
from tests.benchmarks.simulation import NEVER, Alarms, Chances, one_arm, plain_rule, scores, two_arms, verify

LEVELS: Final = Levels()
STEPS: Final = 10_000
GOOD: Final = 0.9
LATE: Final = 5_000
VERIFIED: Final = 5
BLOCK: Final = 500
"""Runs that are held in memory at once."""
Row = tuple[str, ...]


def always(chance: float, _: int) -> float:
    """The same chance at every step."""
    return chance


def falls_at(step: int, before: float, after: float, now: int) -> float:
    """One chance before a step, another from it on."""
    return before if now < step else after


def dips(start: int, end: int, usual: float, low: float, now: int) -> float:
    """A low chance between two steps."""
    return low if start <= now < end else usual


def simulate(chance: Chances, floors: Callable[[Any], Any], runs: int, steps: int, seed: int) -> tuple[Alarms, Any]:
    """All runs of one situation, in blocks; also the plain 5 % rule on each 50 of the same scores."""
    parts: list[Alarms] = []
    plain = []
    for block, start in enumerate(range(0, runs, BLOCK)):
        many = min(BLOCK, runs - start)
        generator = np.random.default_rng([seed, block, 1])
        values, floor = scores(chance, many, steps, seed * 1000 + block), floors((generator, many))
        parts.append(one_arm(values, floor, LEVELS))
        plain.append(plain_rule(values, GOOD, 50, 0.05))
        if block == 0:
            verify(values, floor, LEVELS, parts[0], VERIFIED)
    joined = (np.concatenate([getattr(part, name) for part in parts]) for name in ("hybrid", "e_process", "late"))
    return Alarms(*joined), np.concatenate(plain)


def exact(floor: float, size: tuple[Any, int]) -> Any:
    """A baseline that is known exactly."""
    return np.full(size[1], floor)


def estimated(n: int, size: tuple[Any, int]) -> Any:
    """The lower bounds of baselines that were each measured on ``n`` examples."""
    generator, many = size
    hits = generator.binomial(n, GOOD, many)
    bounds = {int(k): lower_bound(k / n, n, float(np.sqrt(k / n * (1 - k / n) * n / (n - 1)))) for k in np.unique(hits)}
    return np.array([bounds[int(k)] for k in hits])


def share(alarms: Any, until: int = STEPS) -> float:
    """Part of the runs with an alarm up to a score."""
    return float(np.mean(np.asarray(alarms) <= until))


def delay(alarms: Any, start: int, quantile: float) -> float:
    """A quantile of the delay after ``start``, over the runs without an earlier alarm."""
    after = np.asarray(alarms)[np.asarray(alarms) > start]
    found = float(np.quantile(after, quantile, method="inverted_cdf"))
    return NEVER if found >= NEVER else found - start


def shown(number: float) -> str:
    """A delay for the table."""
    return "-" if number >= NEVER else f"{number:.0f}"


def delays(alarms: Any, start: int = 0) -> str:
    """Median and 90th percentile."""
    return f"{shown(delay(alarms, start, 0.5))} ({shown(delay(alarms, start, 0.9))})"


def rules(runs: int, limits: list[tuple[str, float, float]]) -> list[Row]:
    """One version against an exact baseline of 0.90."""
    floor = partial(exact, GOOD)
    none, none_plain = simulate(partial(always, GOOD), floor, runs, STEPS, 1)
    five, five_plain = simulate(partial(always, 0.85), floor, runs, 5_000, 2)
    late, late_plain = simulate(partial(falls_at, LATE, GOOD, 0.85), floor, runs, STEPS, 3)
    ten, ten_plain = simulate(partial(always, 0.80), floor, runs, 2_000, 4)
    limits += [
        ("hybrid: false alarms", share(none.hybrid), 0.01),
        ("hybrid: median delay of 5 points", delay(five.hybrid, 0, 0.5), 700),
        ("hybrid: its 90 %", delay(five.hybrid, 0, 0.9), 1300),
        ("hybrid: median delay of 5 points at 5,000", delay(late.hybrid, LATE, 0.5), 1100),
    ]
    rows = []
    for name, field in (("e-process at .005", "e_process"), ("Shiryaev-Roberts at .005", "late"), ("hybrid", "hybrid")):
        picked = [getattr(one, field) for one in (none, five, late, ten)]
        rows.append((
            name, f"{share(picked[0]):.2%}", delays(picked[1]), f"{share(picked[2], LATE):.2%}",
            delays(picked[2], LATE), delays(picked[3]),
        ))  # fmt: skip
    rows.append((
        "plain: 5 % below, each 50 scores", f"{share(none_plain):.2%}", delays(five_plain),
        f"{share(late_plain, LATE):.2%}", "-" if share(late_plain, LATE) == 1 else delays(late_plain, LATE),
        delays(ten_plain),
    ))  # fmt: skip
    return rows


def baselines(runs: int, limits: list[tuple[str, float, float]]) -> list[Row]:
    """One version against baselines that were measured on few examples."""
    rows = []
    for n in (50, 100, 200, 500, 2000):
        floor = partial(estimated, n)
        none, _ = simulate(partial(always, GOOD), floor, runs, STEPS, 10 + n)
        five, _ = simulate(partial(always, 0.85), floor, runs, STEPS, 11 + n)
        ten, _ = simulate(partial(always, 0.80), floor, runs, STEPS, 12 + n)
        spread = (GOOD * (1 - GOOD) * n / (n - 1)) ** 0.5
        least = minimum_detectable_drop(Baseline(GOOD, n, spread))
        rows.append((
            f"{n}", f"{share(none.hybrid):.2%}", f"{share(five.hybrid):.0%} {delays(five.hybrid)}",
            f"{share(ten.hybrid):.0%} {delays(ten.hybrid)}", "-" if least is None else f"{100 * least:.1f}",
        ))  # fmt: skip
        limits.append((f"baseline of {n}: false alarms", share(none.hybrid), 0.05))
    return rows


def arms(runs: int, limits: list[tuple[str, float, float]]) -> list[Row]:
    """A version beside another one."""
    rows = []
    good, outage = partial(always, GOOD), partial(dips, 4_000, 5_000, GOOD, 0.6)
    with Pool() as pool:
        for part, name in ((0.5, "50/50"), (0.1, "10/90")):
            situations = [(good, good), (good, partial(always, 0.85)), (good, partial(always, 0.8)), (outage, outage)]
            found = []
            for place, (control, suspect) in enumerate(situations):
                run = partial(two_arms, share=part, control=control, suspect=suspect, steps=STEPS, levels=LEVELS)
                seeds = range(place * 10**6, place * 10**6 + runs)
                found.append(np.array(pool.map(run, seeds, chunksize=max(1, runs // 40))))
            rows.append((
                name, f"{share(found[0]):.2%}", f"{share(found[1]):.0%} {delays(found[1])}",
                f"{share(found[2]):.0%} {delays(found[2])}", f"{share(found[3]):.2%}",
            ))  # fmt: skip
            limits.append((f"two arms {name}: false alarms", share(found[0]), 0.01))
            limits.append((f"two arms {name}: false alarms in an outage", share(found[3]), 0.01))
    return rows


def show(title: str, heads: Sequence[str], rows: Sequence[Row]) -> None:
    """Print a table as Markdown."""
    print(f"\n{title}\n\n| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def main() -> int:
    """Simulate, print, and compare with the limits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1_000, help="simulated versions for each figure")
    runs = parser.parse_args().runs
    start, limits = time.monotonic(), list[tuple[str, float, float]]()
    print(f"{runs:,} runs for each figure; scores of 0 and 1; delay in scores: median (90 %)")
    show(
        "One version against an exact baseline of 0.90, alpha 0.01 within 10,000 scores",
        ["rule", "false in 10k", "0.85 from the start", "false before 5,000", "0.85 from 5,000 on", "0.80"],
        rules(runs, limits),
    )
    show(
        "Hybrid rule, baseline of 0.90 measured on n examples, compared with its lower 97.5 % bound",
        ["n", "false in 10k", "0.85: found, delay", "0.80: found, delay", "least drop found in 8 of 10, points"],
        baselines(runs, limits),
    )
    show(
        "Two versions side by side, 0.90, alpha 0.01; delay in scores of both",
        ["split", "false in 10k", "0.85: found, delay", "0.80: found, delay", "false, both 30 points down for 1,000"],
        arms(runs, limits),
    )
    print()
    broken = [(name, value, limit) for name, value, limit in limits if value > limit]
    for name, value, limit in broken:
        print(f"BROKEN: {name} is {value:g}, limit {limit:g}")
    print(f"{len(limits) - len(broken)} of {len(limits)} limits kept; {time.monotonic() - start:.0f} s")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
