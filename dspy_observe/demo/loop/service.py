"""The serving process of the story: a live program under steady traffic, which says what happens line by line.

Started by ``story.py``; reads nothing, writes one JSON object a line to standard output, and ends with ``SIGTERM``:
``ready`` (where its metrics are), ``bad`` (the first failed or wrong answer of a version), ``swap`` (the version that
answers from now on), ``tick`` (what was answered since the last one, by version) and ``end`` (totals).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import dspy
from dspy.utils.exceptions import DSPyError
from prometheus_client import CollectorRegistry

from dspy_observe.callbacks.base import RecordCallback
from dspy_observe.config import Metrics, Observer, configure
from dspy_observe.demo.loop.programs import ENVIRONMENT, PROGRAM, factory, make_lm
from dspy_observe.demo.program import Question, load_program, load_questions
from dspy_observe.records import CallRecord, RegistryEvent, Score
from dspy_observe.registry import SignatureRegistry
from dspy_observe.rollback.monitor import Monitor
from dspy_observe.serving import LiveProgram

__all__ = ["main"]

_TICK_S: Final = 0.5
_PAUSE_S: Final = (0.05, 0.25)
"""A user reads for so long before the next question."""


def _say(kind: str, **what: Any) -> None:
    sys.stdout.write(json.dumps({"kind": kind, "at": time.time(), **what}) + "\n")
    sys.stdout.flush()


@dataclass(slots=True)
class _Count:
    ok: int = 0
    failed: int = 0
    scores: list[float] = field(default_factory=list)


class Watch(RecordCallback):
    """Counts runs and scores by version, and tells the first bad answer of each."""

    kinds = frozenset({"module"})

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, _Count] = {}
        self._bad: set[str] = set()

    def finished(self, record: CallRecord) -> None:
        if not record.is_program or record.role == "warmup":
            return
        version = record.version or "?"
        with self._lock:
            count = self._counts.setdefault(version, _Count())
            if record.outcome == "ok":
                count.ok += 1
            else:
                count.failed += 1
        if record.outcome != "ok":
            self._first_bad(version, record.error_type or record.outcome)

    def scored(self, score: Score) -> None:
        with self._lock:
            self._counts.setdefault(score.version or "?", _Count()).scores.append(score.value)

    def happened(self, event: RegistryEvent) -> None:
        if event.name.endswith(("reload_complete", "reload_error")):
            _say("swap" if event.name.endswith("complete") else "swap_failed", version=event.version)

    def _first_bad(self, version: str, error: str) -> None:
        with self._lock:
            if version in self._bad:
                return
            self._bad.add(version)
        _say("bad", version=version, error=error)

    def take(self) -> dict[str, dict[str, float]]:
        """What was counted since the last time."""
        with self._lock:
            taken, self._counts = self._counts, {}
        return {
            version: {"ok": one.ok, "failed": one.failed, "scored": len(one.scores), "score_sum": sum(one.scores)}
            for version, one in taken.items()
        }


class Users:
    """Threads and tasks that ask one question after the other until they are told to stop."""

    def __init__(self, live: LiveProgram, observer: Observer, users: int, questions: Sequence[Question]) -> None:
        self._live, self._observer, self._users, self._questions = live, observer, users, questions
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self.asked = self.answered = self.failed = 0

    def run(self) -> None:
        """Let them ask; returns when all have stopped."""
        in_threads = range(0, self._users, 2)
        with ThreadPoolExecutor(len(in_threads) + 1, thread_name_prefix="user") as pool:
            waiting = [pool.submit(self._in_thread, user) for user in in_threads]
            waiting.append(pool.submit(asyncio.run, self._in_loop()))
            for one in waiting:
                one.result()

    def stop(self) -> None:
        """Let nobody ask any more."""
        self._stopped.set()

    def _in_thread(self, user: int) -> None:
        for question, pause_s in self._asking(user):
            try:
                prediction = self._live(question=question.text)
            except DSPyError:
                self._count(failed=1)
            else:
                self._booked(prediction, question)
            self._stopped.wait(pause_s)

    async def _in_loop(self) -> None:
        await asyncio.gather(*(self._in_task(user) for user in range(1, self._users, 2)))

    async def _in_task(self, user: int) -> None:
        for question, pause_s in self._asking(user):
            try:
                prediction = await self._live.acall(question=question.text)
            except DSPyError:
                self._count(failed=1)
            else:
                self._booked(prediction, question)
            await asyncio.sleep(pause_s)

    def _asking(self, user: int) -> Iterator[tuple[Question, float]]:
        luck = random.Random(user)  # noqa: S311 - no secret
        while not self._stopped.is_set():
            self._count(asked=1)
            yield luck.choice(self._questions), luck.uniform(*_PAUSE_S)

    def _booked(self, prediction: Any, question: Question) -> None:
        self._count(answered=1)
        good = load_program().agrees(prediction.answer, question.reference)
        self._observer.score(prediction, float(good), source="reference")

    def _count(self, asked: int = 0, answered: int = 0, failed: int = 0) -> None:
        with self._lock:
            self.asked += asked
            self.answered += answered
            self.failed += failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until ``SIGTERM``."""
    parser = argparse.ArgumentParser("python -m dspy_observe.demo.loop.service")
    parser.add_argument("--registry", required=True)
    parser.add_argument("--model-url", required=True)
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument(
        "--monitor", action="store_true", help="weigh the scores here, and roll back without a receiver"
    )
    options = parser.parse_args(arguments)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    dspy.configure(lm=make_lm(options.model_url))
    watch, metrics = Watch(), Metrics(port=0, collector_registry=CollectorRegistry())
    with SignatureRegistry(options.registry) as registry:
        monitors = [Monitor(registry, PROGRAM, environment=ENVIRONMENT, metrics=metrics)] if options.monitor else []
        with (
            configure(
                metrics=metrics, tracing=False, logs=False, registry=registry, extra=[watch, *monitors]
            ) as observer,
            LiveProgram(registry, PROGRAM, factory(), environment=ENVIRONMENT, refresh_s=0.5, metrics=metrics) as live,
        ):
            _say("ready", metrics_url=observer.metrics_url, version=live.version)
            users = Users(live, observer, options.users, load_questions())
            crowd = threading.Thread(target=users.run, name="users")
            crowd.start()
            while not stop.wait(_TICK_S):
                _say("tick", versions=watch.take())
            users.stop()
            crowd.join()
            _say("tick", versions=watch.take())
            _say("end", asked=users.asked, answered=users.answered, failed=users.failed)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
