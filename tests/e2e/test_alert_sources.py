"""What comes before Alertmanager fails: a Prometheus that is killed, a target that is gone, a provider that is down."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, start_http_server

from dspy_observe.metrics import Metrics, instruments
from tests.e2e import test_alert_delivery as delivery
from tests.rollback.conftest import deployed
from tests.servers import Prometheus, needs, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

registry, started, site = delivery.registry, delivery.started, delivery.site
"""The receiver and the Alertmanager of those tests."""

RUNS = "dspy_program_duration_seconds_count"
FAILS = f'sum by (program, version) (rate({RUNS}{{status="error"}}[3s])) > 0'


class Target:
    """A serving process' metrics, which can go away, and runs that it books as it is told."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._runs = instruments(Metrics(collector_registry=self._registry))["dspy_program_duration_seconds"]
        self._server, self._thread = start_http_server(0, "127.0.0.1", self._registry)
        self.address = f"127.0.0.1:{self._server.server_port}"
        self.failing: set[str] = set()
        for version in ("v2", "v3"):
            for status in ("ok", "error"):
                self._runs.child("qa", version, "stable", status)
        self._stop = threading.Event()
        self._traffic = threading.Thread(target=self._go)
        self._traffic.start()

    def _go(self) -> None:
        while not self._stop.wait(0.02):
            for version in ("v2", "v3"):
                status = "error" if version in self.failing else "ok"
                self._runs.child("qa", version, "stable", status).observe(0.1)

    def leave(self) -> None:
        """Answer no scrape any more; a second time does nothing."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def end(self) -> None:
        """End all of it."""
        self._stop.set()
        self._traffic.join()
        self.leave()


@contextmanager
def alerting(site: delivery.Site, started: list[Any], folder: Path) -> Iterator[tuple[Target, Prometheus]]:
    """A target, a Prometheus with one rule that asks for a rollback, an Alertmanager, and the receiver."""
    needs("prometheus")
    target = Target()
    rule = {"alert": "DSPyErrors", "expr": FAILS, "labels": {"dspy_action": "rollback", "severity": "critical"}}
    rules = {"groups": [{"name": "g", "interval": "200ms", "rules": [rule]}]}
    try:
        site.receiver()
        peer = site.alertmanager()
        prometheus = Prometheus(
            folder / "prometheus", targets=[target.address], rules=rules, alertmanagers=[peer.host_port], scrape="200ms"
        )
        started.append(prometheus)
        prometheus.start()
        prometheus.wait_for("up == 1")
        yield target, prometheus
    finally:
        target.end()


@pytest.mark.parametrize("fault", ["prometheus is killed", "the target is gone"])
def test_silence_moves_nothing_forward(site: delivery.Site, started: list[Any], tmp_path: Path, fault: str) -> None:
    """The version that failed is left once; the "resolved" that silence brings about is recorded and moves nothing."""
    with alerting(site, started, tmp_path) as (target, prometheus):
        target.failing = {"v3"}
        site.wait(lambda outcomes: "rollback" in outcomes, "rollback")
        if fault == "prometheus is killed":
            prometheus.kill()
        else:
            target.leave()
        site.wait(lambda outcomes: "ignored" in outcomes, "alert that is resolved")
        site.moved_once()
        assert "resolved" in site.registry.decisions("qa")[-1].reason


def test_an_alert_that_was_never_sent_for_a_dead_target_moves_nothing(
    site: delivery.Site,
    started: list[Any],
    tmp_path: Path,
) -> None:
    """A target that goes away before anything fails is no reason to go back."""
    with alerting(site, started, tmp_path) as (target, prometheus):
        target.leave()
        prometheus.wait_for("up == 0")
        wait_until(lambda: not prometheus.query(FAILS), "no alert")
        assert site.outcomes() == []
        assert deployed(site.registry) == "v3"
