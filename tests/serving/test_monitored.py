"""Scores close the loop: the monitor rolls back, live programs and routers follow; no alert and no Prometheus in it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import dspy
import pytest

import dspy_observe
from dspy_observe import LiveProgram, Metrics, Router
from dspy_observe.registry import SignatureRegistry
from dspy_observe.rollback.monitor import Monitor, MonitorOptions
from tests.servers import wait_until
from tests.serving.conftest import Bot, Follow, Publish

Watch = Callable[..., Monitor]


@pytest.fixture
def watch(metrics: Metrics) -> Iterator[Watch]:
    """Makes monitors that fold by themselves, all the time."""
    made: list[Monitor] = []

    def make(registry: SignatureRegistry, **options: Any) -> Monitor:
        made.append(Monitor(registry, "bot", options=MonitorOptions(flush_s=0.02, **options), metrics=metrics))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def observed(metrics: Metrics) -> Iterator[Callable[[Monitor], dspy_observe.Observer]]:
    """Puts a monitor into ``configure``, as an application does."""
    opened: list[dspy_observe.Observer] = []

    def make(monitor: Monitor) -> dspy_observe.Observer:
        opened.append(
            dspy_observe.configure(metrics=metrics, tracing=False, logs=False, redaction=False, extra=[monitor])
        )
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def baseline(registry: SignatureRegistry, *versions: str) -> None:
    """What each version was worth before it was deployed."""
    for version in versions:
        registry.update_performance_score("bot", version, 0.9, dataset="dev", n=2000, stdev=0.3)


def test_a_bad_version_is_taken_out_of_the_running_program(
    registry: SignatureRegistry, publish: Publish, follow: Follow, watch: Watch,
    observed: Callable[[Monitor], dspy_observe.Observer],
) -> None:  # fmt: skip
    """Answers of v2 that users reject put v1 back into the live program; a late score still counts for v2."""
    publish(registry, "v1")
    live: LiveProgram = follow(registry)
    publish(registry, "v2")
    baseline(registry, "v1", "v2")
    wait_until(lambda: live.status().version == "v2", "v2 answers")
    monitor = watch(registry)
    observer = observed(monitor)
    late = observer.call_ref(live(question="first"))
    for number in range(200):
        answer = live(question=f"{number}?")
        if answer.answer == "v1":
            break
        observer.score(answer, 0.0 if answer.answer == "v2" else 1.0, source="user")
    wait_until(lambda: live.status().version == "v1", "v1 answers again")
    assert live(question="again?").answer == "v1"
    (decision,) = registry.decisions("bot")
    assert (decision.outcome, decision.version, decision.target, decision.trigger) == (
        "rollback", "v2", "v1", "monitor",
    )  # fmt: skip
    assert monitor.flush()
    before = monitor.evidence("bot", "v2").n
    observer.score(late, 0.0, source="user")
    wait_until(lambda: monitor.evidence("bot", "v2").n == before + 1, "the late score is counted")
    assert monitor.evidence("bot", "v1").n == 0


def test_a_bad_candidate_falls_to_nothing(
    registry: SignatureRegistry, publish: Publish, watch: Watch, metrics: Metrics,
    observed: Callable[[Monitor], dspy_observe.Observer],
) -> None:  # fmt: skip
    """A candidate that is worse than what runs beside it loses its traffic by the monitor's verdict."""
    publish(registry, "v1")
    publish(registry, "v2", deploy=False)
    baseline(registry, "v1", "v2")
    monitor = watch(registry)
    observer = observed(monitor)
    draw = random.Random(1).random
    router = Router(
        registry, "bot", Bot, "v2", steps=(0.5, 1.0), verdicts=monitor, refresh_s=0.1, min_step_s=0, min_samples=10_000,
        metrics=metrics,
    )  # fmt: skip
    try:
        for number in range(600):
            answer = router(question=f"{number}?", key=f"user{number}")
            good = 0.9 if answer.answer == "v1" else 0.3
            observer.score(answer, float(draw() < good), source="user")
            if number % 20 == 19 and router.status().shares.get("canary", 0.0) == 0:
                break
        wait_until(lambda: monitor.verdict("bot", "v2") == "regressed", "the verdict")
        wait_until(lambda: router.status().shares.get("canary", 0.0) == 0, "the fall")
        assert {router(question=f"{number}?", key=f"user{number}").answer for number in range(20)} == {"v1"}
        assert monitor.verdict("bot", "v1") in ("ok", "insufficient_data")
        pointer = registry.pointer("bot")
        assert pointer is not None
        assert pointer.version == "v1"
        assert registry.decisions("bot") == ()
    finally:
        router.close()
    assert isinstance(dspy.settings.lm, dspy.LM)
