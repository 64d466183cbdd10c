"""What a real Prometheus says before a rollback: confirmed, over, another cause, or nothing at all."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, start_http_server

from dspy_observe.metrics import Instruments, Metrics, instruments
from dspy_observe.registry import SignatureRegistry
from dspy_observe.rollback.alerts import Alert, parse
from dspy_observe.rollback.freshness import Fresh, Thresholds, doubt
from dspy_observe.rollback.handling import Handler
from dspy_observe.rollback.policy import Limits
from dspy_observe.rollback.prometheus import Prometheus as Asked
from dspy_observe.testing import sample_alert
from tests.rollback.conftest import fill
from tests.servers import Prometheus, free_port, needs, wait_until

pytestmark = pytest.mark.e2e

WINDOW_S = 5.0
ALERT = 'sum by (program, version) (rate(dspy_program_duration_seconds_count{status="error"}[5s])) > 0'


@contextmanager
def traffic(own: Instruments, *calls: tuple[str, str, str, str]) -> Iterator[None]:
    """Runs and LM calls of ``(program, version, model, status)``, fifty a second each, until the block ends."""
    stop = threading.Event()

    def go() -> None:
        while not stop.wait(0.02):
            for program, version, model, status in calls:
                own["dspy_requests_total"].child(program, version, model, status).inc()
                own["dspy_program_duration_seconds"].child(program, version, "stable", status).observe(0.1)

    for program, version, model, status in calls:
        own["dspy_requests_total"].child(program, version, model, status).inc(0)
    thread = threading.Thread(target=go)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def alert(version: str, name: str = "DSPyErrors", signal: str = "errors") -> Alert:
    """About qa."""
    (made,) = parse(sample_alert("qa", version, alertname=name, labels={"dspy_signal": signal})).alerts
    return made


@pytest.fixture
def own() -> CollectorRegistry:
    """The metrics of a serving process."""
    return CollectorRegistry()


@pytest.fixture
def prometheus(tmp_path: Path, own: CollectorRegistry) -> Iterator[Prometheus]:
    """Scrapes them five times a second, and has one rule."""
    needs("prometheus")
    server, thread = start_http_server(0, "127.0.0.1", own)
    rules = {"groups": [{"name": "g", "interval": "200ms", "rules": [{"alert": "DSPyErrors", "expr": ALERT}]}]}
    target = f"127.0.0.1:{server.server_port}"
    try:
        with Prometheus(tmp_path / "prometheus", targets=[target], rules=rules, scrape="200ms") as made:
            made.wait_for("up == 1")
            yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def reason(fresh: Fresh, signal: str = "errors") -> str | None:
    """Why it is doubted."""
    found = doubt(fresh, signal, Thresholds())
    return None if found is None else found.reason


def test_version_that_fails_alone_is_confirmed_and_an_outage_is_not(
    prometheus: Prometheus, own: CollectorRegistry, tmp_path: Path
) -> None:
    """With the figures; then another program fails on the same model, and the same alert is held."""
    numbers = instruments(Metrics(collector_registry=own))
    with Asked(prometheus.url, window_s=WINDOW_S) as asked:
        bad, fine = ("qa", "v3", "gpt", "error"), ("sql", "v1", "gpt", "ok")
        with traffic(numbers, bad, fine, ("mail", "v1", "other-model", "error")):
            fresh = wait_until(
                lambda: (now := asked.fresh(alert("v3"), "qa", "v3")).firing and now.suspect and now.suspect.calls > 20
                and now.programs and now.programs[0].calls > 20 and now, "fresh data", 30,
            )  # fmt: skip
            assert isinstance(fresh, Fresh)
            assert fresh.suspect is not None
            assert fresh.suspect.ratio == pytest.approx(1.0)
            assert [one.name for one in fresh.programs] == ["LM calls of sql"]  # mail asks another model
            assert reason(fresh) is None
            assert asked.fresh(alert("v2"), "qa", "v2").firing is False
            assert "does not fire there now" in (reason(asked.fresh(alert("v3", "Nobody"), "qa", "v3")) or "")
        with traffic(numbers, bad, ("sql", "v1", "gpt", "error")):
            wait_until(lambda: "LM calls of sql" in (reason(asked.fresh(alert("v3"), "qa", "v3")) or ""), "outage", 30)
            with SignatureRegistry(tmp_path / "registry") as registry:
                fill(registry, "v2", "v3")
                handler = Handler(registry, Limits(), numbers, prometheus=asked)
                delivery = parse(sample_alert("qa", "v3", labels={"dspy_signal": "errors"}))
                (answer,) = handler.handle(delivery).answers
                assert answer["outcome"] == "held"
                assert "a provider or the network" in answer["reason"]
                assert answer["inputs"]["fresh"]["programs"][0]["name"] == "LM calls of sql"


def test_prometheus_that_is_away_confirms_nothing(tmp_path: Path) -> None:
    """Held unless told to proceed; the decision says why, and nothing waits for longer than it may."""
    with SignatureRegistry(tmp_path / "registry") as registry:
        fill(registry, "v2", "v3")
        numbers = instruments(Metrics(collector_registry=CollectorRegistry()))
        delivery = parse(sample_alert("qa", "v3"))
        with Asked(f"http://127.0.0.1:{free_port()}", timeout_s=0.5) as away:
            (held,) = Handler(registry, Limits(), numbers, prometheus=away).handle(delivery).answers
            assert held["outcome"] == "held"
            assert "cannot confirm it: Prometheus could not be asked" in held["reason"]
            proceed = Limits(unconfirmed="proceed")
            (moved,) = Handler(registry, proceed, numbers, prometheus=away).handle(delivery).answers
            assert moved["outcome"] == "rollback"
            # What would not be rolled back anyway is decided without asking.
            (again,) = Handler(registry, Limits(), numbers, prometheus=away).handle(delivery).answers
            assert again["outcome"] == "duplicate"
