"""Memory of a process that makes many program calls, watched and not, and what a call costs it in the long run.

DSPy itself keeps the last 10,000 LM calls three times over: of the LM, of each module (both cut to 100 here, by
``max_history_size``), and of the process, a fixed number that is reached at 10,000 calls; and the last 10,000 answers
in its trace. From there on memory has to be flat; up to there, compare with the process that is not watched. Every call
asks another question, so that whatever remembers texts has something to remember. What waits in a queue is written and
exported before memory is read. Beside the resident size, which also keeps the height of every wave, stands the number
of memory blocks in use, which does not. Linux only: it reads ``/proc/self/statm``.

Processor time is that of all calls between the last two stops, collections of garbage included, which short blocks
leave to chance.

Run by the runner as ``python -m tests.benchmarks.memory WATCHED CALLS...``; prints JSON lines.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import dspy
from dspy.utils.callback import BaseCallback

from dspy_observe.ledger import LEDGER
from tests.benchmarks.overhead import everything, listed
from tests.benchmarks.program import SHORT_QUESTION, prepare, report, say
from tests.benchmarks.rounds import Settle

__all__ = ["WATCHED"]

WATCHED: Final = {
    "no-op": "one no-op callback",
    "all": "all, configure()",
    "content": "all, configure(), redacted content",
}
_MB: Final = 1_000_000


def _resident_mb() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / _MB


def _install(watched: str) -> AbstractContextManager[Settle]:
    if watched == "no-op":
        return listed(BaseCallback())()
    return everything("redacted" if watched == "content" else "none")()


def _main(watched: str, stops: list[int]) -> None:
    program = prepare()
    dspy.configure(max_history_size=100)
    resident_mb, blocks, cpu_us = {0: _resident_mb()}, {0: sys.getallocatedblocks()}, 0.0
    with _install(watched) as settle:
        done = 0
        for stop in stops:
            cpu = time.process_time()
            for number in range(done, stop):
                program(question=f"{SHORT_QUESTION} ({number})")
                if number % 1000 == 0:
                    say(f"{number:,} of {stops[-1]:,} calls")
            settle()
            cpu_us = (time.process_time() - cpu) / (stop - done) * 1e6
            done = stop
            resident_mb[stop], blocks[stop] = _resident_mb(), sys.getallocatedblocks()
    report(
        {
            "name": WATCHED[watched], "resident_mb": resident_mb, "blocks": blocks, "cpu_us": cpu_us,
            "open_calls": LEDGER.open_calls,
        }
    )  # fmt: skip


if __name__ == "__main__":
    _main(sys.argv[1], [int(text) for text in sys.argv[2:]])
