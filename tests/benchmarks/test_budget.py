"""Case 41: what the full set costs one call, in the thread's own processor time, which other processes disturb least.

A ratio would not say it: the budget is time. Measured on two busy cores: 0.13 ms an LM call, 0.29 ms a program run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

import dspy
import pytest
from dspy.utils.callback import BaseCallback

from tests.benchmarks.overhead import everything, listed
from tests.benchmarks.program import SHORT_QUESTION, prepare

CALLS = 24
ROUNDS = 12
BUDGET_S = 0.0005


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """The benchmarks' program turns logging off."""
    before = logging.root.manager.disable
    yield
    logging.disable(before)


def cheapest(call: Callable[[str], object], baseline: object) -> tuple[float, float]:
    """Processor seconds of one call in the cheapest round: with everything on, and with the baseline."""
    best: dict[str, float] = {}
    for number in range(ROUNDS):
        for name, install in (("everything", everything("none")), ("baseline", baseline)):
            with install():  # type: ignore[operator]
                call(f"{SHORT_QUESTION} {name} {number}")  # what is made once is made here
                began = time.thread_time()
                for turn in range(CALLS):
                    call(f"{SHORT_QUESTION} {name} {number} {turn}")
                took = (time.thread_time() - began) / CALLS
            best[name] = min(took, best.get(name, took))
    return best["everything"], best["baseline"]


@pytest.mark.slow
def test_an_lm_call_costs_less_than_half_a_millisecond_more() -> None:
    """Case 41: span, log line, all metrics, usage and price of one LM call, beside a call that nobody watches."""
    prepare()
    lm = dspy.settings.lm
    watched, unwatched = cheapest(lm, listed())
    assert watched - unwatched < BUDGET_S, (watched, unwatched)


@pytest.mark.slow
def test_a_program_run_costs_less_than_half_a_millisecond_more_than_with_an_idle_callback() -> None:
    """Case 41: three modules, two adapter calls and an LM call, beside what DSPy's own dispatch costs anyway."""
    program = prepare()
    watched, idle = cheapest(lambda question: program(question=question), listed(BaseCallback()))
    assert watched - idle < BUDGET_S, (watched, idle)
