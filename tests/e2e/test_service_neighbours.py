"""What stands beside ``examples/service`` may go and come back: the receiver of alerts, the collector of spans."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
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


def test_spans_of_new_questions_arrive_when_the_collector_is_back_and_each_lost_one_is_counted(
    service: Service,
) -> None:
    """A collector comes, goes and comes back at its address: nothing is restarted, and no span is lost silently."""

    def lost() -> float:
        return service.counted("dspy_observe_internal_errors_total", 'site="otel.export"')

    def ask() -> bytes:
        """A question; gives the id of its trace, which is the caller's."""
        trace, span = secrets.token_bytes(16), secrets.token_bytes(8)
        caller = {"traceparent": f"00-{trace.hex()}-{span.hex()}-01"}
        reply = service.post("/ask", json={"question": f"{QUESTION} {trace.hex()}"}, headers=caller)
        assert reply.status_code == 200
        return trace

    def arrived(trace: bytes, collector: HTTPCollector) -> int:
        """How many spans of a trace are there, once its root is, which ends last."""
        spans = [span for span in collector.spans() if span.trace_id == trace]
        return len(spans) if any(span.name == f"invoke_workflow {NAME}" for span in spans) else 0

    def all_arrived(traces: Sequence[bytes], collector: HTTPCollector) -> set[int]:
        """Wait for traces; gives how many spans they have."""
        return {wait_until(lambda one=one: arrived(one, collector), "spans of a question") for one in traces}

    with HTTPCollector(service.collector_port) as collector:
        # So many that every worker is asked, and has nothing of an earlier test left that it could lose later.
        (size,) = all_arrived([ask() for _ in range(12)], collector)
    before = lost()
    gone = [ask() for _ in range(5)]
    assert service.get("/readyz").status_code == 200
    wait_until(lambda: lost() >= before + len(gone) * size, "count of what was lost")
    with HTTPCollector(service.collector_port) as collector:
        assert all_arrived([ask() for _ in range(5)], collector) == {size}
        assert [arrived(trace, collector) for trace in gone] == [0] * len(gone)
        assert lost() == before + len(gone) * size
