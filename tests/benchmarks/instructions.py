"""What observing costs in instructions and cache misses: figures that other processes of the machine do not disturb.

``python -m tests.benchmarks.instructions [VARIANT ...]`` runs each variant of the program twice under valgrind's
cachegrind, with few and with more calls; the difference is what the calls cost, without the start of the process.
Valgrind must be installed (``apt-get install valgrind``); it slows a program down fiftyfold.

Time follows instructions as long as what one program call touches fits into the processor's second-level cache.
``--cache-kb`` sets the size of the cache that is simulated.
https://valgrind.org/docs/manual/cg-manual.html
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from rich.console import Console
from rich.table import Table

from tests.benchmarks.overhead import ALL, ALL_LONG, variants
from tests.benchmarks.program import prepare
from tests.benchmarks.rounds import NO_OP, NO_OP_LONG

_USUAL: Final = (NO_OP, ALL, NO_OP_LONG, ALL_LONG)
_FEW: Final = 100
"""Calls of the short run: all that is made once is made in it."""
_MORE: Final = 300
_FIGURES: Final = {"instructions": r"I\s+refs", "L1 misses": r"(?:I1|D1)\s+misses", "L2 misses": r"LL[id]\s+misses"}
_WAYS_AND_LINE: Final = "16,64"  # of the second-level caches of today's server processors

Counts = dict[str, float]


def _call(name: str, calls: int) -> None:
    """Run one variant; full collections of garbage come too rarely to be counted in so few calls."""
    program = prepare()
    variant = next(variant for variant in variants() if variant.name == name)
    gc.freeze()
    with variant.install() as settle:
        for number in range(calls):
            program(question=f"{variant.question} ({number})")
        settle()


def _counted(name: str, calls: int, cache_kb: int) -> Counts:
    """All that one process executed and missed, by figure."""
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run(
            [
                "valgrind", "--tool=cachegrind", "--cache-sim=yes", f"--LL={cache_kb * 1024},{_WAYS_AND_LINE}",
                f"--cachegrind-out-file={folder}/out", sys.executable, "-m", "tests.benchmarks.instructions",
                "--calls", str(calls), name,
            ],
            env={**os.environ, "PYTHONHASHSEED": "0", "DSPY_CACHEDIR": folder, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    if run.returncode:
        raise SystemExit(f"{name} failed under valgrind:\n{run.stderr[-2_000:]}")
    return {
        figure: float(sum(int(found.replace(",", "")) for found in re.findall(rf"== {line}:\s+([0-9,]+)", run.stderr)))
        for figure, line in _FIGURES.items()
    }


def _cost_of_a_call(name: str, cache_kb: int) -> Counts:
    few, more = _counted(name, _FEW, cache_kb), _counted(name, _MORE, cache_kb)
    return {figure: (more[figure] - few[figure]) / (_MORE - _FEW) for figure in few}


def main() -> None:
    """Count what was asked for, or, as a child of itself, run what is counted."""
    known = {variant.name: variant for variant in variants()}
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.instructions", description=__doc__)
    parser.add_argument("variant", nargs="*", default=list(_USUAL), help=f"some of: {'; '.join(known)}")
    parser.add_argument("--cache-kb", type=int, default=1_024, help="size of the second-level cache; 1024 by default")
    parser.add_argument("--calls", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.calls is not None:
        _call(options.variant[0], options.calls)
        return
    if unknown := sorted(set(options.variant) - set(known)):
        parser.error(f"no variant {', '.join(unknown)}; there are: {'; '.join(known)}")
    if shutil.which("valgrind") is None:
        parser.error("valgrind is not installed; on Debian: apt-get install valgrind")
    console = Console() if sys.stdout.isatty() else Console(width=120)
    names = list(dict.fromkeys([*(known[name].baseline for name in options.variant), *options.variant]))
    with console.status(f"{len(names)} variants, some minutes"), ThreadPoolExecutor(os.cpu_count()) as pool:
        counts = dict(zip(names, pool.map(lambda name: _cost_of_a_call(name, options.cache_kb), names), strict=True))
    table = Table("a program call, 1 thread")
    for figure in _FIGURES:
        table.add_column(f"{figure}, 1,000s", justify="right")
        table.add_column("ratio", justify="right")
    for name in names:
        base = counts[known[name].baseline]
        cells = [(f"{count / 1_000:,.1f}", f"{count / base[figure]:.2f}") for figure, count in counts[name].items()]
        table.add_row(name, *(cell for pair in cells for cell in pair))
    console.print(table)


if __name__ == "__main__":
    main()
