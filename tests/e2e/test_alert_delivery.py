"""Whatever a real Alertmanager and a network do to a delivery, the pointer moves once, or not where that is right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dspy_observe.registry import SignatureRegistry
from dspy_observe.testing import sample_alert
from tests.rollback.conftest import TOKEN, Process, deployed, fill
from tests.servers import Alertmanager, free_port, needs, rollback_config, wait_until

pytestmark = pytest.mark.e2e

FAILING = """
from dspy_observe.registry import StoreUnavailable
from dspy_observe.rollback import handling
settle, failures = handling.settle, [1, 2]
def failing(*arguments, **named):
    if failures:
        failures.pop()
        raise StoreUnavailable("away")
    return settle(*arguments, **named)
handling.settle = failing
"""
SLOW = """
import time
from dspy_observe.rollback import handling
settle, waits = handling.settle, [11.0]
def slow(*arguments, **named):
    made = settle(*arguments, **named)
    if waits:
        time.sleep(waits.pop())
    return made
handling.settle = slow
"""
"""Alertmanager gives a delivery up after 10 s, and sends it again."""


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[SignatureRegistry]:
    """v1, v2 and v3 of qa were deployed in turn."""
    needs("prometheus-alertmanager")
    with SignatureRegistry(f"sqlite:///{tmp_path / 'registry.db'}") as made:
        fill(made, "v1", "v2", "v3")
        yield made


@pytest.fixture
def started() -> Iterator[list[Any]]:
    """Whatever a test puts in is ended."""
    running: list[Any] = []
    yield running
    for one in reversed(running):
        if isinstance(one, Process):
            one.end(kill=True)
        else:
            one.kill()


class Site:
    """A receiver at a fixed address, and Alertmanagers that deliver to it."""

    def __init__(self, folder: Path, registry: SignatureRegistry, started: list[Any]) -> None:
        self.folder, self.registry, self.started = folder, registry, started
        self.port = free_port()
        self.token_file = folder / "token"
        self.token_file.write_text(TOKEN, encoding="utf-8")
        self.alert = {"labels": sample_alert("qa", "v3")["alerts"][0]["labels"], "startsAt": _now()}

    def receiver(self, code: str = "") -> Process:
        """Start it."""
        listen = f"127.0.0.1:{self.port}"
        made = Process(self.registry.location, self.token_file, "--listen", listen, code=code)
        self.started.append(made)
        return made

    def alertmanager(self, name: str = "am", **options: Any) -> Alertmanager:
        """Start one."""
        url = f"http://127.0.0.1:{self.port}/api/v1/alerts"
        config = rollback_config(url, token_file=self.token_file, repeat_interval="1s")
        made = Alertmanager(self.folder / name, config, **options)
        self.started.append(made)
        return made.start()

    def outcomes(self) -> list[str]:
        """What was decided so far."""
        return [one.outcome for one in self.registry.decisions("qa")]

    def wait(self, done: Callable[[list[str]], bool], what: str) -> None:
        """Until the decisions are as wanted."""
        wait_until(lambda: done(self.outcomes()), what, 40)

    def moved_once(self) -> None:
        """v3 was left for v2, and v2 for nothing."""
        assert deployed(self.registry) == "v2"
        assert [one.action for one in self.registry.deployment_log("qa")].count("rollback") == 1
        assert self.outcomes().count("rollback") == 1


@pytest.fixture
def site(tmp_path: Path, registry: SignatureRegistry, started: list[Any]) -> Site:
    """One for each test."""
    return Site(tmp_path, registry, started)


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _has(outcome: str, times: int = 1) -> Callable[[list[str]], bool]:
    return lambda found: found.count(outcome) >= times


def test_receiver_that_is_down_gets_it_when_it_is_up(site: Site) -> None:
    """Alertmanager tries again and again, and the alert is not lost."""
    am = site.alertmanager()
    am.post(site.alert)
    wait_until(lambda: "connection refused" in am.log, "delivery that failed")
    assert deployed(site.registry) == "v3"
    site.receiver()
    site.wait(_has("rollback"), "rollback")
    site.moved_once()


def test_503_is_sent_again_and_repeats_move_nothing(site: Site) -> None:
    """The store was away twice; then it is decided once, and every repeat is a duplicate."""
    process = site.receiver(FAILING)
    site.alertmanager().post(site.alert)
    site.wait(_has("duplicate", 2), "two repeats")
    site.moved_once()
    assert site.outcomes()[0] == "rollback"
    assert sum("was not decided" in line for line in process.errors) == 2


def test_slow_receiver_is_asked_twice_and_decides_once(site: Site) -> None:
    """The delivery was given up although it was committed."""
    site.receiver(SLOW)
    site.alertmanager().post(site.alert)
    site.wait(_has("duplicate"), "second delivery")
    site.moved_once()


def test_resolved_and_fired_again_is_about_what_is_gone(site: Site) -> None:
    """The end moves nothing; the next episode names a version that is not deployed any more."""
    site.receiver()
    am = site.alertmanager()
    am.post(site.alert)
    site.wait(_has("rollback"), "rollback")
    am.post({**site.alert, "endsAt": _now()})
    site.wait(_has("ignored"), "resolved")
    again = (datetime.now(UTC) + timedelta(milliseconds=1)).isoformat()
    am.post({**site.alert, "startsAt": again})
    site.wait(lambda found: "stale" in found or found.count("duplicate") > 0, "second episode")
    site.moved_once()


def test_alertmanager_that_lost_its_data_repeats_itself(site: Site) -> None:
    """Same fingerprint, same start: it was answered."""
    site.receiver()
    am = site.alertmanager()
    am.post(site.alert)
    site.wait(_has("rollback"), "rollback")
    am.kill()
    am.wipe()
    before = len(site.outcomes())
    am.start()
    am.post(site.alert)
    site.wait(lambda found: "duplicate" in found[before:], "repeat")
    site.moved_once()


@pytest.mark.parametrize("gossip", [True, False])
def test_pair_of_alertmanagers_moves_it_once(site: Site, gossip: bool) -> None:
    """Talking to each other or cut off from each other: Prometheus sends to both."""
    site.receiver()
    one = site.alertmanager("one", gossip=gossip)
    other = site.alertmanager("other", gossip=gossip, peer=one.cluster if gossip else None)
    for am in (one, other):
        am.post(site.alert)
    site.wait(lambda found: "rollback" in found and "duplicate" in found, "rollback and repeat")
    site.moved_once()
