"""How soon a deployment answers, and what a call through it costs: ``python -m tests.benchmarks.bench_serving``.

Swap: from the moment at which ``deploy_version`` or ``rollback`` returned in another registry object to the moment at
which the live program answers with the other version, in milliseconds, on each store; with hints at an interval of a
minute, and with polling alone at an interval of one second. Overhead: the time of a call through ``LiveProgram`` and
through ``Router`` over that of the module itself, in blocks that take turns; medians of the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import dspy
from prometheus_client import CollectorRegistry

from dspy_observe import LiveProgram, Metrics, Router
from dspy_observe.registry import SignatureRegistry
from dspy_observe.testing import offline_lm
from tests.postgres import Postgres, installed_postgres

_CALLS: Final = 40
_PAUSE_S: Final = 0.0005
_LISTENING_S: Final = 10.0


class Program(dspy.Module):
    """One predictor."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = dspy.Predict("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        """Answer."""
        return self.answer(question=question)


def fill(registry: SignatureRegistry) -> None:
    """Two versions, the first one deployed."""
    for version in ("v1", "v2"):
        program = Program()
        program.answer.demos = [dspy.Example(question=str(number), answer=version) for number in range(8)]
        registry.register_program("bench", program, version=version)
    registry.deploy_version("bench", "v1")


def own_metrics() -> Metrics:
    """Metrics that nothing else has."""
    return Metrics(collector_registry=CollectorRegistry())


def swaps(place: str, *, watch: bool, refresh_s: float, moves: int) -> list[float]:
    """Milliseconds of each swap."""
    times = []
    options: dict[str, Any] = {"refresh_s": refresh_s, "watch": watch, "metrics": own_metrics()}
    with SignatureRegistry(place) as mover, LiveProgram(place, "bench", Program, **options) as live:
        until = time.monotonic() + _LISTENING_S
        while watch and live.status().following != "hints" and time.monotonic() < until:
            time.sleep(_PAUSE_S)
        for number in range(moves):
            version = "v1" if live.version == "v2" else "v2"
            time.sleep(0.3 + number % 7 * 0.05)  # no move right behind another, and none in step with the polling
            mover.deploy_version("bench", version)
            moved = time.perf_counter()
            while live.version != version:
                time.sleep(_PAUSE_S)
            times.append((time.perf_counter() - moved) * 1000)
    return sorted(times)


def overhead(place: str, rounds: int) -> dict[str, list[float]]:
    """Ratios of a call's time to that of the module itself, by what is called."""
    ratios: dict[str, list[float]] = {"LiveProgram": [], "Router, 5 % canary": []}
    lm = offline_lm({"answer": "42"})
    with (
        dspy.context(lm=lm),
        LiveProgram(place, "bench", Program, metrics=own_metrics()) as live,
        Router(place, "bench", Program, "v1" if live.version == "v2" else "v2", metrics=own_metrics()) as router,
    ):
        program = live.program
        called: dict[str, Callable[..., Any]] = {
            "module": program, "LiveProgram": live,
            "Router, 5 % canary": lambda question: router(key=question, question=question),
        }  # fmt: skip
        for number in range(rounds):
            names = list(called)
            turn = number % len(names)
            took = {name: block(called[name]) for name in names[turn:] + names[:turn]}
            for name, found in ratios.items():
                found.append(took[name] / took["module"])
    return ratios


def block(call: Callable[..., Any]) -> float:
    """Seconds of some calls."""
    call(question="warm")
    start = time.perf_counter()
    for number in range(_CALLS):
        call(question=f"question {number}")
    return time.perf_counter() - start


@contextmanager
def places(folder: str) -> Iterator[dict[str, str]]:
    """A registry on each store."""
    server = Postgres(installed_postgres())
    try:
        server.start()
        yield {
            "files": str(Path(folder) / "registry"),
            "SQLite": f"sqlite:///{folder}/registry.db",
            "PostgreSQL": server.new_registry(),
        }
    finally:
        server.remove()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moves", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, places(folder) as registries:
        print("from the moved pointer to the swapped program, milliseconds: median, highest")
        for kind, place in registries.items():
            with SignatureRegistry(place) as registry:
                fill(registry)
            for how, watch, refresh_s in (("hints", True, 60.0), ("polling every 1 s", False, 1.0)):
                times = swaps(place, watch=watch, refresh_s=refresh_s, moves=options.moves)
                print(f"{kind:11} {how:18} {statistics.median(times):8.1f} {times[-1]:8.1f}")
        print("a call's time over that of the module itself: lower quartile, median, upper quartile")
        for name, ratios in overhead(registries["files"], options.rounds).items():
            low, middle, high = statistics.quantiles(ratios, n=4)
            print(f"{name:30} {low:8.3f} {middle:8.3f} {high:8.3f}")


if __name__ == "__main__":
    main()
