"""Timing several variants of one program against each other on a machine that others use too.

Every round runs a short block of each variant, in an order that moves on from round to round, and gives one ratio for
each: its time a call over that of its baseline in the same round. A block ends when everything that it handed to other
threads is written and exported, so that no work goes unmeasured. Ratios are of processor time, of all threads of the
process: that stands nearly still when others use the machine, and hides no work behind a thread. Medians of these
ratios stand still where times do not; their quartiles show the noise.
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

__all__ = ["NO_OP", "NO_OP_LONG", "THREADS", "Settle", "Variant", "measure"]

NO_OP: Final = "one no-op callback"
NO_OP_LONG: Final = "one no-op callback, 4 KB prompt"
THREADS: Final = (1, 16)
_CALLS: Final = 96
"""Program calls of a block, a multiple of every number of threads: some tens of milliseconds."""
_WARM_UP: Final = 1
"""Untimed calls of each thread before a block: what is made once, such as a metric's child, is made here."""


_numbers = itertools.count()
"""One for every question: what is remembered of an earlier text must not answer for a new one."""


Settle = Callable[[], object]
"""Waits until everything that was handed to other threads is done."""


class Times(NamedTuple):
    """Seconds of one program call."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Variant:
    """Something to time: what watches the program, what it is asked, and what it is compared with."""

    name: str
    install: Callable[[], AbstractContextManager[Settle]]
    question: str
    baseline: str


@dataclass(frozen=True, slots=True)
class Row:
    """What came out for one variant."""

    name: str
    threads: int
    baseline: str
    ratio: float
    """Processor time of a call over that of the baseline, the median of the rounds; then its quartiles."""
    ratio_q1: float
    ratio_q3: float
    wall_ratio: float
    """The same of wall time."""
    cpu_us: float
    """Microseconds of processor time a program call, the median of the rounds."""
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
                    with variant.install() as settle:
                        _block(pool, threads, program, variant.question, _WARM_UP, settle)
                        block = _block(pool, threads, program, variant.question, _CALLS // threads, settle)
                        times[variant.name].append(block)
        rows += [asdict(_row(variant, threads, times)) for variant in variants]
    return rows


def _block(
    pool: ThreadPoolExecutor, threads: int, program: Program, question: str, calls: int, settle: Settle
) -> Times:
    """Time a program call, with every thread making ``calls`` of them, until all that waits is done."""

    def run(_: int) -> None:
        for _call in range(calls):
            program(question=f"{question} ({next(_numbers)})")

    wall, cpu = time.perf_counter(), time.process_time()
    list(pool.map(run, range(threads)))
    settle()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Times(wall / (calls * threads), cpu / (calls * threads))


def _row(variant: Variant, threads: int, times: dict[str, list[Times]]) -> Row:
    pairs = list(zip(times[variant.name], times[variant.baseline], strict=True))
    q1, ratio, q3 = statistics.quantiles((own.cpu_s / base.cpu_s for own, base in pairs), n=4)
    return Row(
        variant.name,
        threads,
        variant.baseline,
        ratio,
        q1,
        q3,
        wall_ratio=statistics.median(own.wall_s / base.wall_s for own, base in pairs),
        cpu_us=statistics.median(own.cpu_s for own, _ in pairs) * 1e6,
        rounds=len(pairs),
    )
