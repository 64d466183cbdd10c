"""What stands beside ``examples/service`` may go and come back: the receiver of alerts, the collector of spans."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dspy_observe.testing import sample_alert
from tests.collectors import HTTPCollector
from tests.rollback.conftest import TOKEN, Process
from tests.servers import free_port, wait_until
from tests.service import ADMIN, NAME, QUESTION, Service

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


class Receiver:
    """``dspy-observe serve`` on the service's registry, always on the same port."""

    def __init__(self, service: Service, folder: Path) -> None:
        self._registry = str(service.folder / "registry")
        self._port = free_port()
        self._token = folder / "token"
        self._token.write_text(TOKEN, encoding="utf-8")
        self._process: Process | None = None

    def start(self) -> None:
        """Start it."""
        listen = f"127.0.0.1:{self._port}"
        self._process = Process(self._registry, self._token, "--listen", listen, "--cooldown", "0")

    def alert(self, version: str) -> str:
        """Deliver an alert about a version; gives what was decided."""
        assert self._process is not None
        reply = self._process.post(sample_alert(NAME, version))
        assert reply.status_code == 200, reply.text
        return str(reply.json()["decisions"][0]["outcome"])

    def kill(self) -> None:
        """Kill it; nothing happens when it does not run."""
        if self._process is not None:
            self._process.end(kill=True)
            self._process = None


@pytest.fixture
def receiver(service: Service, tmp_path: Path) -> Iterator[Receiver]:
    """A receiver that is not started yet."""
    made = Receiver(service, tmp_path)
    yield made
    made.kill()


def test_the_service_serves_on_without_the_receiver_and_follows_when_it_is_back(
    service: Service, receiver: Receiver
) -> None:
    """An alert moves every worker; with the receiver killed a person still can; started again, it moves them again."""
    receiver.start()
    service.deploy("v2")
    service.follows("v2")
    assert receiver.alert("v2") == "rollback"
    service.follows("v1")

    receiver.kill()
    assert service.ask(f"{QUESTION} Without a receiver.").status_code == 200
    assert service.get("/readyz").status_code == 200
    service.deploy("v3")
    service.follows("v3")
    assert service.post("/admin/rollback", headers=ADMIN).json() == {"version": "v1", "followed": True}
    service.follows("v1")

    receiver.start()
    service.deploy("v4")
    service.follows("v4")
    assert receiver.alert("v4") == "rollback"
    service.follows("v1")


def test_spans_that_the_collector_did_not_take_are_counted_and_later_ones_arrive(service: Service) -> None:
    """Nobody listens; then a collector does, and the spans of new questions come by themselves; then it goes again."""

    def lost() -> float:
        return service.counted("dspy_observe_internal_errors_total", 'site="otel.export"')

    before = lost()
    assert service.ask(f"{QUESTION} While nobody listens.").status_code == 200
    wait_until(lambda: lost() > before, "count of what was lost")
    with HTTPCollector(service.collector_port) as collector:

        def traced() -> bool:
            reply = service.ask(f"{QUESTION} Asked the collector, time {len(collector.requests)}.")
            assert reply.status_code == 200
            call_id = reply.json()["call_ref"]
            return bool(call_id) and any(span.name == f"invoke_workflow {NAME}" for span in collector.spans())

        wait_until(traced, "span of a new question", 40)
        assert service.get("/readyz").status_code == 200
    before = lost()
    assert service.ask(f"{QUESTION} Gone again.").status_code == 200
    wait_until(lambda: lost() > before, "count of what was lost again")
    assert service.get("/readyz").status_code == 200
