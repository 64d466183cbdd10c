"""``make bench``: what observing costs a program call, as a ratio to one callback that does nothing.

Everything comes from one run on one program, each measurement in a process of its own. Compare ratios, not times: the
times are this machine's, of this hour.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from tests.benchmarks.memory import WATCHED
from tests.benchmarks.overhead import ALL, ALL_LONG
from tests.benchmarks.rounds import THREADS

_PACKAGES: Final = ("dspy", "opentelemetry-sdk", "structlog", "openinference-instrumentation-dspy", "mlflow")
_FOREIGN: Final = ("OTEL_", "DSPY_", "MLFLOW_", "PROMETHEUS_", "OPENAI_")
_LIMITS: Final = {ALL: 1.4, ALL_LONG: 1.8}
"""What one program call may cost at most."""
_ROUNDS: Final = {"overhead": 30, "peers": 20}
_QUICK_ROUNDS: Final = {"overhead": 8, "peers": 6}
_STOPS: Final = (1_000, 10_000, 100_000)
_QUICK_STOPS: Final = (100, 1_000, 10_000)
_PIPE_WIDTH: Final = 120
"""Columns where no terminal says how many it has."""

Result = dict[str, Any]
Cells = tuple[list[str], list[list[str]]]
_status = Console(stderr=True)


class BenchmarkError(Exception):
    """A measurement ended without a result that counts."""


def _measure(module: str, *arguments: object) -> Any:
    """Run one measurement in a process of its own, with nothing of the caller's settings, and return its result."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    result: Result | None = None
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        environment.update(
            DSPY_CACHEDIR=folder, LITELLM_LOCAL_MODEL_COST_MAP="True", MLFLOW_DISABLE_TELEMETRY="true",
            MLFLOW_TRACKING_URI=f"sqlite:///{folder}/mlflow.db", DO_NOT_TRACK="true",
        )  # fmt: skip
        command = [sys.executable, "-m", f"tests.benchmarks.{module}", *map(str, arguments)]
        label = " ".join([module, *(text for text in map(str, arguments) if text.isalpha())])
        with (
            _status.status(label) as status,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment) as process,
        ):
            assert process.stdout is not None
            for line in process.stdout:
                message = json.loads(line)
                if "progress" in message:
                    status.update(f"{label}: {message['progress']}")
                else:
                    result = message
        errors.seek(0)
        if process.returncode or result is None:
            raise BenchmarkError(f"{label} failed:\n{errors.read()}")
    if result["swallowed"]:
        raise BenchmarkError(f"{label} lost telemetry, so its figures do not count: {result['swallowed']}")
    return result["result"]


def _machine() -> Result:
    return {
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.system() + " " + platform.machine(),
        "load_1_min": round(os.getloadavg()[0], 2),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def _run(quick: bool, memory: bool) -> Result:
    rounds, stops = (_QUICK_ROUNDS, _QUICK_STOPS) if quick else (_ROUNDS, _STOPS)
    machine = _machine()
    rows = _measure("overhead", rounds["overhead"])
    for peer in ("openinference", "mlflow"):
        rows += [row for row in _measure("peers", peer, rounds["peers"]) if row["name"] != row["baseline"]]
    kept = [_measure("memory", watched, *stops) for watched in WATCHED] if memory else []
    return {"machine": machine, "overhead": rows, "memory": kept}


def _ratio_table(result: Result, threads: int) -> Cells:
    heads = [f"a program call, {threads} thread{'s' * (threads > 1)}", "ratio", "quartiles", "wall", "µs CPU", "limit"]
    return heads, [
        [
            row["name"], f"{row['ratio']:.2f}", f"{row['ratio_q1']:.2f} to {row['ratio_q3']:.2f}",
            f"{row['wall_ratio']:.2f}", f"{row['cpu_us']:.0f}",
            f"{_LIMITS[row['name']]:.1f}" if row["name"] in _LIMITS else "",
        ]
        for row in result["overhead"]
        if row["threads"] == threads
    ]  # fmt: skip


def _memory_tables(result: Result) -> list[Cells]:
    if not result["memory"]:
        return []
    stops = list(result["memory"][0]["resident_mb"])
    tables = []
    for title, key, form in (("resident memory after calls, MB", "resident_mb", ".1f"),
                             ("memory blocks in use, thousands", "blocks", ",.1f")):  # fmt: skip
        scale = 1 if key == "resident_mb" else 1_000
        cells = []
        for row in result["memory"]:
            sizes = [size / scale for size in row[key].values()]
            cells.append([row["name"], *(f"{size:{form}}" for size in sizes), f"{sizes[-1] - sizes[-2]:+{form}}"])
        tables.append(([title, *(f"{int(stop):,}" for stop in stops), "last step"], cells))
    base = result["memory"][0]["cpu_us"]
    heads = ["a program call in the long run", "ratio", "µs CPU", "open calls at the end"]
    long_run = [
        [row["name"], f"{row['cpu_us'] / base:.2f}", f"{row['cpu_us']:.0f}", str(row["open_calls"])]
        for row in result["memory"]
    ]
    return [*tables, (heads, long_run)]


def _facts(result: Result) -> str:
    machine = result["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return (
        f"{machine['cpus']} CPUs, load {machine['load_1_min']}, {machine['system']}, "
        f"Python {machine['python']}, {packages}."
    )


_NOTES: Final = (
    "Ratios are medians over interleaved rounds: the processor time of a call, of all threads, with everything written "
    "and exported, to that of a call with one no-op callback in the same round; the column wall is the same of wall "
    "time, which other processes disturb. Rows with a 4 KB prompt are compared with a no-op callback at that prompt, "
    "peers with the no-op callback of their own process. No question is asked twice. Peers record traces only, with "
    "content that is not redacted. Exporters read every span and discard it, the log sink discards rendered JSON. In "
    "the long run: the mean of the last 90 % of the calls in a process of its own, collections of garbage included. "
    "DSPy itself keeps the last 10,000 LM calls and answers of a process, which fill memory up to then."
)


def _print(result: Result, *, markdown: bool) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=_PIPE_WIDTH)
    for heads, cells in (*(_ratio_table(result, threads) for threads in THREADS), *_memory_tables(result)):
        if markdown:
            lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *cells]
            print("\n".join(f"| {' | '.join(line)} |" for line in lines), end="\n\n")
            continue
        table = Table(heads[0])
        for head in heads[1:]:
            table.add_column(head, justify="right")
        for line in cells:
            table.add_row(*line)
        console.print(table)
    if markdown:
        print(_facts(result), _NOTES)
    else:
        console.print(_facts(result), _NOTES, style="dim", highlight=False)


def main() -> int:
    """Run all benchmarks and print their tables; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds and a tenth of the calls: does it run at all?")
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables, as the README holds them")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file, too")
    parser.add_argument("--no-memory", action="store_true", help="leave out the memory of 100,000 calls")
    options = parser.parse_args()
    try:
        result = _run(options.quick, not options.no_memory)
    except BenchmarkError as error:
        _status.print(str(error), style="red", markup=False, highlight=False)
        return 1
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    _print(result, markdown=options.markdown)
    if not options.quick and importlib.util.find_spec("tests.benchmarks.bench_redaction"):
        sys.stdout.flush()
        subprocess.run([sys.executable, "-m", "tests.benchmarks.bench_redaction"], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
