"""Timing several variants of one program against each other on a machine that others use too.

Every round runs a short block of each variant, in an order that moves on from round to round, and gives one ratio for
each: its time a call over that of its baseline in the same round. Medians of these ratios stand still where times do
not; their quartiles show the noise.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

from tests.benchmarks.program import Program, say

__all__ = ["NO_OP", "NO_OP_LONG", "THREADS", "Variant", "measure"]

NO_OP: Final = "one no-op callback"
NO_OP_LONG: Final = "one no-op callback, 4 KB prompt"
THREADS: Final = (1, 16)
_CALLS: Final = 48
"""Program calls of a block, a multiple of every number of threads: some tens of milliseconds."""
_WARM_UP: Final = 1
"""Untimed calls of each thread before a block: what is made once, such as a metric's child, is made here."""


_numbers = itertools.count()
"""One for every question: what is remembered of an earlier text must not answer for a new one."""


class Times(NamedTuple):
    """Seconds of one program call."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Variant:
    """Something to time: what watches the program, what it is asked, and what it is compared with."""

    name: str
    install: Callable[[], AbstractContextManager[object]]
    question: str
    baseline: str


@dataclass(frozen=True, slots=True)
class Row:
    """What came out for one variant."""

    name: str
    threads: int
    baseline: str
    ratio: float
    ratio_q1: float
    ratio_q3: float
    cpu_ratio: float
    """The same of processor time, which other processes disturb less."""
    call_us: float
    """Microseconds a program call, the median of the rounds; wall time over all threads' calls."""
    rounds: int


def measure(program: Program, variants: Sequence[Variant], *, rounds: int) -> list[dict[str, Any]]:
    """Time all variants with each number of threads.

    Args:
        program: What is called.
        variants: Their baselines are among them.
        rounds: At least 4, for quartiles.

    Returns:
        One row for each variant and number of threads.
    """
    rows = []
    for threads in THREADS:
        times: dict[str, list[Times]] = {variant.name: [] for variant in variants}
        with ThreadPoolExecutor(threads) as pool:
            for number in range(rounds):
                say(f"{threads} thread{'s' if threads > 1 else ''}, round {number + 1} of {rounds}")
                turn = number % len(variants)
                for variant in (*variants[turn:], *variants[:turn]):
                    with variant.install():
                        _block(pool, threads, program, variant.question, _WARM_UP)
                        times[variant.name].append(_block(pool, threads, program, variant.question, _CALLS // threads))
        rows += [asdict(_row(variant, threads, times)) for variant in variants]
    return rows


def _block(pool: ThreadPoolExecutor, threads: int, program: Program, question: str, calls: int) -> Times:
    """Time a program call, with every thread making ``calls`` of them."""

    def run(_: int) -> None:
        for _call in range(calls):
            program(question=f"{question} ({next(_numbers)})")

    wall, cpu = time.perf_counter(), time.process_time()
    list(pool.map(run, range(threads)))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Times(wall / (calls * threads), cpu / (calls * threads))


def _row(variant: Variant, threads: int, times: dict[str, list[Times]]) -> Row:
    pairs = list(zip(times[variant.name], times[variant.baseline], strict=True))
    q1, ratio, q3 = statistics.quantiles((own.wall_s / base.wall_s for own, base in pairs), n=4)
    return Row(
        variant.name,
        threads,
        variant.baseline,
        ratio,
        q1,
        q3,
        cpu_ratio=statistics.median(own.cpu_s / base.cpu_s for own, base in pairs),
        call_us=statistics.median(own.wall_s for own, _ in pairs) * 1e6,
        rounds=len(pairs),
    )
