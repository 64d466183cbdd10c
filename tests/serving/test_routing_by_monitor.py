"""A router that asks the real monitor: scores of users decide what becomes of a candidate."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

import dspy_observe
from dspy_observe import Metrics, Router
from dspy_observe.registry import SignatureRegistry
from dspy_observe.rollback.monitor import Monitor, MonitorOptions
from tests.servers import wait_until
from tests.serving.conftest import Bot, Publish

QUALITY = {"v1": 0.8, "v2": 0.85, "v3": 0.3}
MOST = 1_500


@contextmanager
def asked(registry: SignatureRegistry, metrics: Metrics, candidate: str) -> Iterator[tuple[Router, Callable[[], None]]]:
    """A router with a candidate, and what lets a user ask and say whether the answer was good."""
    routers: list[Router] = []
    options = MonitorOptions(flush_s=0.02, min_scores=30, shares=lambda _: routers[0].shares() if routers else None)
    luck = random.Random(7)
    with (
        Monitor(registry, "bot", options=options, metrics=metrics) as monitor,
        dspy_observe.configure(
            registry=registry, metrics=metrics, tracing=False, logs=False, redaction=False, extra=[monitor]
        ) as observer,
        Router(
            registry, "bot", Bot, candidate, steps=(0.3, 0.6, 1), min_samples=40, min_step_s=0, refresh_s=0.1,
            verdicts=monitor, metrics=metrics,
        ) as router,
    ):  # fmt: skip
        routers.append(router)

        def ask() -> None:
            answer = router(key=f"user-{luck.randrange(400)}", question="q")
            observer.score(answer, float(luck.random() < QUALITY[answer.answer]), source="user")

        yield router, ask


@pytest.mark.parametrize(("candidate", "state", "runs"), [("v2", "promoted", "v2"), ("v3", "regressed", "v1")])
def test_users_decide(
    registry: SignatureRegistry, publish: Publish, metrics: Metrics, candidate: str, state: str, runs: str
) -> None:
    """A candidate as good as what is deployed gets everything; one that is worse gets nothing any more."""
    publish(registry, "v1")
    publish(registry, candidate, deploy=False)
    with asked(registry, metrics, candidate) as (router, ask):
        for number in range(MOST):
            ask()
            if number % 10 == 0:
                router.refresh()
            rollout = registry.rollout("bot")
            assert rollout is not None
            if not rollout.running:
                break
        assert rollout.state == state, (router.status(), rollout.history)
        users = [f"user-{number}" for number in range(50)]
        wait_until(lambda: {router.assign(user).version for user in users} == {runs}, "end of the split")
    quarantined = registry.get_version("bot", candidate).quarantined
    assert (quarantined is None) == (state == "promoted")


def test_while_frozen_a_candidate_gets_no_further(
    registry: SignatureRegistry, publish: Publish, metrics: Metrics
) -> None:
    """A step that is due waits, and says why, until the program is unfrozen."""
    publish(registry, "v1")
    publish(registry, "v2", deploy=False)
    registry.freeze("bot", reason="incident 7")
    with asked(registry, metrics, "v2") as (router, ask):

        def held() -> bool:
            ask()
            router.refresh()
            return router.status().waiting_for == "frozen: incident 7"

        def taken() -> bool:
            ask()
            router.refresh()
            rollout = registry.rollout("bot")
            return rollout is not None and rollout.step > 0

        wait_until(held, "word that the step waits for the program to be unfrozen")
        for _ in range(300):  # many more than a step needs
            ask()
        assert not taken()
        registry.unfreeze("bot", reason="mended")
        wait_until(taken, "step")


def test_a_monitor_that_is_closed_while_it_folds_waits_for_no_more(
    registry: SignatureRegistry, publish: Publish, metrics: Metrics
) -> None:
    """A flush that is under way when it is closed does not take back the word that ends its thread."""
    publish(registry, "v1")
    monitor = Monitor(registry, "bot", options=MonitorOptions(retry_s=3600.0), metrics=metrics)
    monitor._stop.set()  # as close() does, before it waits
    monitor._work.set()
    assert monitor.flush()
    assert monitor._work.is_set()
    monitor.close()
