"""Resident memory of a process that makes many program calls, watched and not.

DSPy itself keeps the last 10,000 LM calls three times over: of the LM, of each module (both cut to 100 here, by
``max_history_size``), and of the process, a fixed number that is reached at 10,000 calls. From there on memory has to
be flat; up to there, compare with the process that is not watched. Every call asks another question, so that whatever
remembers texts has something to remember. Linux only: it reads ``/proc/self/statm``.

Run by the runner as ``python -m tests.benchmarks.memory WATCHED CALLS...``; prints JSON lines.
"""

from __future__ import annotations

import gc
import os
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import dspy
from dspy.utils.callback import BaseCallback

from dspy_observe.ledger import LEDGER
from tests.benchmarks.overhead import everything, listed
from tests.benchmarks.program import SHORT_QUESTION, prepare, report, say

__all__ = ["WATCHED"]

WATCHED: Final = {"no-op": "one no-op callback", "all": "all, configure(), redacted content"}
_MB: Final = 1_000_000


def _resident_mb() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / _MB


def _main(watched: str, stops: list[int]) -> None:
    program = prepare()
    dspy.configure(max_history_size=100)
    install: AbstractContextManager[object] = (everything("redacted") if watched == "all" else listed(BaseCallback()))()
    resident_mb = {0: _resident_mb()}
    with install:
        done = 0
        for stop in stops:
            for number in range(done, stop):
                program(question=f"{SHORT_QUESTION} ({number})")
                if number % 1000 == 0:
                    say(f"{number:,} of {stops[-1]:,} calls")
            done = stop
            resident_mb[stop] = _resident_mb()
    report({"name": WATCHED[watched], "resident_mb": resident_mb, "open_calls": LEDGER.open_calls})


if __name__ == "__main__":
    _main(sys.argv[1], [int(text) for text in sys.argv[2:]])
