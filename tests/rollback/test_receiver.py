"""The receiver's HTTP side, in this process: whom it lets in, what it answers, what it leaves behind."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from dspy_observe import safety
from dspy_observe.errors import ConfigurationError
from dspy_observe.metrics import Metrics, instruments
from dspy_observe.registry import CorruptRegistry, SignatureRegistry, StoreUnavailable
from dspy_observe.rollback.alerts import parse
from dspy_observe.rollback.handling import Handler
from dspy_observe.rollback.policy import Limits
from dspy_observe.rollback.prometheus import Prometheus
from dspy_observe.rollback.receiver import ReceiverOptions, create_app
from dspy_observe.rollback.tokens import Tokens
from dspy_observe.testing import sample_alert
from tests.rollback.conftest import HEADERS, InProcess, deployed, fill

Receive = Callable[..., InProcess]


def several(*bodies: dict[str, Any]) -> dict[str, Any]:
    """One delivery with the alerts of several."""
    return {**bodies[0], "alerts": [alert for body in bodies for alert in body["alerts"]]}


def test_alert_moves_the_pointer_once_however_often_it_comes(receive: Receive, registry: SignatureRegistry) -> None:
    """And the answer is the stored decision, with the raw inputs."""
    one, other = receive(), receive()
    body = sample_alert("qa", "v3")
    replies = [made.post(body) for made in (one, other, one, other, one)]
    assert [reply.status_code for reply in replies] == [200] * 5
    outcomes = [reply.json()["decisions"][0]["outcome"] for reply in replies]
    assert outcomes == ["rollback", *["duplicate"] * 4]
    assert deployed(registry) == "v2"
    first = replies[0].json()["decisions"][0]
    assert (first["version"], first["target"], first["program"]) == ("v3", "v2", "qa")
    inputs = registry.decisions("qa")[0].inputs
    assert inputs["labels"] == body["alerts"][0]["labels"]
    assert inputs["group_key"] == body["groupKey"]
    assert inputs["truncated_alerts"] == 0
    assert (
        one.number("dspy_rollbacks_total", program="qa", environment="production", trigger="alert", outcome="complete")
        == 1
    )
    assert one.number("dspy_alert_requests_total", code="200") == 3
    assert one.number("dspy_rollback_duration_seconds_count", program="qa", environment="production") == 1


def test_each_alert_of_a_delivery_is_judged_by_itself(receive: Receive, registry: SignatureRegistry) -> None:
    """One without labels, one about nobody, one that is stale, one that only people are to see, and a real one."""
    fill(registry, "a", "b", program="other")
    body = several(
        sample_alert("qa", ""), sample_alert("nobody", "v1"), sample_alert("qa", "v1"),
        sample_alert("qa", "v3", labels={"dspy_action": "page"}), sample_alert("other", "b"),
    )  # fmt: skip
    reply = receive().post({**body, "truncatedAlerts": 12})
    assert reply.status_code == 200
    told = reply.json()
    assert [one["outcome"] for one in told["decisions"]] == ["rejected", "rejected", "stale", "rollback"]
    assert told["ignored"] == 1
    assert (deployed(registry), deployed(registry, "other")) == ("v3", "a")
    assert registry.decisions("other")[-1].inputs["truncated_alerts"] == 12


def test_what_is_too_large_to_store_keeps_no_alert_back(receive: Receive, registry: SignatureRegistry) -> None:
    """A count beyond signed 64 bits, and labels of absurd length: the decision says that some are left out."""
    body = sample_alert("qa", "v3", labels={"l" * 1100: "x", "value": "y" * 5000})
    reply = receive().post({**body, "truncatedAlerts": 2**63})
    assert (reply.status_code, deployed(registry)) == (200, "v2")
    inputs = registry.decisions("qa")[0].inputs
    assert (inputs["truncated_alerts"], inputs["labels_left_out"]) == (2**63 - 1, 2)
    assert inputs["labels"] == sample_alert("qa", "v3")["alerts"][0]["labels"]


@pytest.mark.parametrize("label", ["program", "version"])
def test_30_alert_that_does_not_say_of_what_is_a_bad_request(receive: Receive, label: str) -> None:
    """The rule is wrong, and sending again mends nothing."""
    reply = receive().post(sample_alert("qa", "v3", labels={label: ""}))
    assert reply.status_code == 400
    assert f"no label {label}" in reply.json()["error"]


def test_other_alerts_are_taken_and_left_alone(receive: Receive, registry: SignatureRegistry) -> None:
    """Without the action nothing is done and nothing stored."""
    body = sample_alert("qa", "v3")
    del body["alerts"][0]["labels"]["dspy_action"]
    reply = receive().post(body)
    assert (reply.status_code, reply.json()) == (200, {"decisions": [], "ignored": 1})
    assert registry.decisions("qa") == ()


def test_resolved_is_recorded_and_never_rolls_forward(receive: Receive, registry: SignatureRegistry) -> None:
    """Also before and after the firing one, in any order."""
    made, start = receive(), datetime.now(UTC)
    statuses = ("resolved", "firing", "resolved", "firing")
    replies = [made.post(sample_alert("qa", "v3", status=one, starts_at=start)).json() for one in statuses]
    assert [one["decisions"][0]["outcome"] for one in replies] == ["ignored", "rollback", "ignored", "duplicate"]
    assert deployed(registry) == "v2"


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", "Basic correct-horse", "correct-horse"])
def test_without_the_token_nobody_gets_in(receive: Receive, registry: SignatureRegistry, header: str | None) -> None:
    """Not even to look; probes and metrics are open, as they tell nothing that is secret."""
    made = receive()
    headers = {} if header is None else {"Authorization": header}
    for reply in (
        made.client.post("/api/v1/alerts", json=sample_alert("qa", "v3"), headers=headers),
        made.client.get("/api/v1/decisions", headers=headers),
        made.client.get("/api/v1/status", headers=headers),
    ):
        assert reply.status_code == 401
        assert reply.headers["www-authenticate"] == "Bearer"
    assert deployed(registry) == "v3"
    for path in ("/healthz", "/readyz", "/metrics"):
        assert made.client.get(path, headers=headers).status_code == 200


@pytest.mark.parametrize("kind", ["files", "sqlite"])
def test_it_is_not_ready_while_the_registry_is_away(receive: Receive, tmp_path: Path, kind: str) -> None:
    """A volume that is not mounted is told as such, not as a registry without programs."""
    place = tmp_path / "volume"
    with SignatureRegistry(str(place) if kind == "files" else f"sqlite:///{place}") as one:
        fill(one, "v1")
        made = receive(one)
        assert made.client.get("/readyz").json() == {"status": "ready", "programs": 1}
        place.rename(tmp_path / "away")
        reply = made.client.get("/readyz")
        assert (reply.status_code, "volume mounted" in reply.text) == (503, True)


def test_token_file_is_read_again_when_it_changes(receive: Receive, token_file: Path) -> None:
    """Two lines let both in while it is changed; a file that is gone leaves the last word."""
    made = receive(token=None, token_file=token_file)

    def status(token: str) -> int:
        return made.client.get("/api/v1/status", headers={"Authorization": f"Bearer {token}"}).status_code

    assert status("correct-horse") == 200
    token_file.write_text("correct-horse\n\nbattery-staple\n", encoding="utf-8")
    assert (status("correct-horse"), status("battery-staple")) == (200, 200)
    token_file.write_text("battery-staple", encoding="utf-8")
    assert (status("correct-horse"), status("battery-staple")) == (401, 200)
    token_file.write_text("", encoding="utf-8")
    assert (status("other"), status("battery-staple")) == (401, 200)
    token_file.unlink()
    assert status("battery-staple") == 200


def test_token_file_that_becomes_unreadable_leaves_the_last_word(
    receive: Receive, token_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Bytes that are no text are no server error; the log says what is wrong and quotes none of them."""
    made = receive(token=None, token_file=token_file)
    token_file.write_bytes(b"battery-staple\n\xff\n")
    assert made.get("/api/v1/status").status_code == 200
    assert "cannot be read (it is no text in UTF-8); the last one holds" in caplog.text
    assert "battery" not in caplog.text
    token_file.write_bytes(b"battery-staple\n")
    assert made.get("/api/v1/status").status_code == 401


def test_token_is_what_stands_between_white_space_and_a_byte_order_mark(receive: Receive, token_file: Path) -> None:
    """As editors and shells leave it, in the file and in the variable."""
    token_file.write_bytes(b"\xef\xbb\xbf correct-horse \r\n")
    for options in ({"token": None, "token_file": token_file}, {"token": " correct-horse\n"}):
        assert receive(**options).get("/api/v1/status").status_code == 200


def test_body_limit_holds_with_and_without_a_declared_length(receive: Receive) -> None:
    """413 before the body is kept."""
    made = receive(max_body_bytes=1000)
    assert made.post(b" " * 1001).status_code == 413
    chunks = (b" " * 500 for _ in range(3))
    assert made.client.post("/api/v1/alerts", content=chunks, headers=HEADERS).status_code == 413
    assert made.post(b" " * 1000).status_code == 400


@pytest.mark.parametrize(
    "error", [StoreUnavailable("away"), CorruptRegistry("qa.yml", 3, "torn"), RuntimeError("a bug")]
)
def test_503_when_nothing_was_stored_so_that_it_comes_again(
    receive: Receive, registry: SignatureRegistry, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Alertmanager gives up after 4xx, 429 included."""
    made = receive()

    def broken(*_: Any, **__: Any) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(registry, "decide", broken)
        assert made.post(sample_alert("qa", "v3")).status_code == 503
    assert made.post(sample_alert("qa", "v3")).status_code == 200
    assert deployed(registry) == "v2"


def undecidable(monkeypatch: pytest.MonkeyPatch, registry: SignatureRegistry, program: str, error: Exception) -> None:
    """Have the registry raise where one program is decided about; the others are decided as ever."""
    real = registry.decide

    def partly(name: str, *arguments: Any, **named: Any) -> Any:
        if name == program:
            raise error
        return real(name, *arguments, **named)

    monkeypatch.setattr(registry, "decide", partly)


def test_200_when_part_was_stored(
    receive: Receive, registry: SignatureRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be decided is named."""
    fill(registry, "a", "b", program="other")
    undecidable(monkeypatch, registry, "qa", StoreUnavailable("away"))
    reply = receive().post(several(sample_alert("qa", "v3"), sample_alert("other", "b")))
    assert reply.status_code == 200
    assert [one.get("error") for one in reply.json()["decisions"]] == ["StoreUnavailable", None]
    assert deployed(registry, "other") == "a"


def mistyped(location: Path) -> SignatureRegistry:
    """A file registry with two programs; somebody has edited the mode of the first one, and missed a letter."""
    made = SignatureRegistry(location)
    for program in ("a", "p"):
        fill(made, "v1", "v2", program=program)
    made.set_mode("a", "approve")
    file = location / "signatures" / "a.yml"
    before = file.read_text(encoding="utf-8")
    assert 'mode: "approve"' in before
    file.write_text(before.replace('mode: "approve"', 'mode: "aprove"'), encoding="utf-8")
    return made


@pytest.mark.parametrize("order", [("a", "p"), ("p", "a")])
def test_mistyped_mode_of_a_program_keeps_back_no_other(
    receive: Receive, tmp_path: Path, order: tuple[str, str]
) -> None:
    """Wherever its alert stands in the delivery; alone it waits with Alertmanager until the mode is mended."""
    with mistyped(tmp_path / "files") as registry:
        made = receive(on=registry)
        alone = made.post(sample_alert("a", "v2"))
        assert alone.status_code == 503
        assert "'aprove' is no mode" in alone.json()["error"]
        reply = made.post(several(*(sample_alert(program, "v2") for program in order)))
        assert reply.status_code == 200
        told = dict(zip(order, reply.json()["decisions"], strict=True))
        assert told["a"]["error"] == "CorruptRegistry"
        assert told["p"]["outcome"] == "rollback"
        assert (deployed(registry, "a"), deployed(registry, "p")) == ("v2", "v1")
        registry.set_mode("a", "auto")
        assert made.post(sample_alert("a", "v2")).json()["decisions"][0]["outcome"] == "rollback"


def test_mistyped_mode_of_a_program_hides_no_other(receive: Receive, tmp_path: Path) -> None:
    """The status says it in its place, and the gauges of the programs after it are there."""
    with mistyped(tmp_path / "files") as registry:
        made = receive(on=registry)
        first, second = made.get("/api/v1/status").json()["programs"]
        assert (first["program"], first["version"], first["control"]) == ("a", "v2", None)
        assert "'aprove' is no mode" in first["error"]
        assert (second["program"], second["rollback_target"], "error" in second) == ("p", "v1", False)
        assert made.client.get("/metrics").status_code == 200
        assert made.number("dspy_rollback_frozen", program="p", environment="production") == 0


def test_fault_of_ours_with_one_alert_is_counted_and_keeps_back_no_other(
    receive: Receive, registry: SignatureRegistry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer names the fault and quotes nothing of it; what was stored is not asked for again."""
    fill(registry, "a", "b", program="other")
    undecidable(monkeypatch, registry, "qa", RuntimeError("a bug that quotes something"))
    made = receive()
    assert made.post(sample_alert("qa", "v3")).status_code == 503
    reply = made.post(several(sample_alert("qa", "v3"), sample_alert("other", "b")))
    assert reply.status_code == 200
    first, second = reply.json()["decisions"]
    assert (first["error"], second["outcome"]) == ("RuntimeError", "rollback")
    assert "quotes" not in reply.text
    assert deployed(registry, "other") == "a"
    assert safety.counts()["receiver.judge"] == 2
    place = {"program": "qa", "environment": "production", "trigger": "alert", "outcome": "error"}
    assert made.number("dspy_rollbacks_total", **place) == 2
    assert "an alert about qa could not be judged" in caplog.text


def test_decision_that_cannot_be_counted_is_still_committed(
    receive: Receive, registry: SignatureRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers are telemetry: their failure is counted, and no reason to send the alert again."""
    monkeypatch.delenv("DSPY_OBSERVE_STRICT", raising=False)

    def broken(*_: Any) -> None:
        raise OSError("no room for a number")

    monkeypatch.setattr(Handler, "_book", broken)
    reply = receive().post(sample_alert("qa", "v3"))
    assert (reply.status_code, reply.json()["decisions"][0]["outcome"]) == (200, "rollback")
    assert safety.counts()["receiver.book"] == 1


@pytest.mark.parametrize("listening", [True, False])
@pytest.mark.parametrize("unconfirmed", ["hold", "proceed"])
def test_prometheus_that_is_away_is_asked_once_for_a_delivery(
    registry: SignatureRegistry, listening: bool, unconfirmed: str
) -> None:
    """One that takes connections and says nothing, or refuses them: all alerts are as unconfirmed as the first."""
    programs = ("qa", "b", "c", "d")
    for program in (*programs[1:], "later"):
        fill(registry, "v2", "v3", program=program)
    requests: list[str] = []
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listening:
            server.listen()
        with Prometheus(f"http://127.0.0.1:{server.getsockname()[1]}", timeout_s=0.2) as asked:
            asked._client.event_hooks["request"].append(lambda request: requests.append(request.url.path))
            numbers = instruments(Metrics(collector_registry=CollectorRegistry()))
            handler = Handler(registry, Limits(unconfirmed=unconfirmed), numbers, prometheus=asked)
            delivery = parse(several(*(sample_alert(program, "v3") for program in programs)))
            made = handler.handle(delivery)
            assert len(requests) == 1
            handler.handle(parse(sample_alert("later", "v3")))
            assert len(requests) == 2
    outcome = {"hold": "held", "proceed": "rollback"}[unconfirmed]
    assert [one["outcome"] for one in made.answers] == [outcome] * 4
    for program in programs:
        fresh = registry.decisions(program)[0].inputs["fresh"]
        assert (fresh["firing"], fresh["suspect"], fresh["away"]) == (None, None, True)
        assert fresh["problem"] == ("no answer within 0.2 s" if listening else fresh["problem"])


class Picky(BaseHTTPRequestHandler):
    """A Prometheus that answers no query about qa, and has every other alert firing."""

    def do_GET(self) -> None:
        bad = "program%3D%22qa%22" in self.path
        reply = {"status": "error"} if bad else {"status": "success", "data": {"result": [{"metric": {}}]}}
        body = json.dumps(reply).encode()
        self.send_response(422 if bad else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing."""


def test_bad_answer_about_one_alert_says_nothing_of_the_next(receive: Receive, registry: SignatureRegistry) -> None:
    """A Prometheus that answers is asked about each."""
    fill(registry, "a", "b", program="other")
    with ThreadingHTTPServer(("127.0.0.1", 0), Picky) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            made = receive(prometheus_url=f"http://127.0.0.1:{server.server_port}")
            reply = made.post(several(sample_alert("qa", "v3"), sample_alert("other", "b")))
        finally:
            server.shutdown()
            thread.join()
    first, second = reply.json()["decisions"]
    assert (first["outcome"], second["outcome"]) == ("held", "rollback")
    assert "HTTP 422" in first["reason"]


def test_deliveries_beyond_what_fits_are_told_to_come_again(
    receive: Receive, registry: SignatureRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And probes are answered meanwhile."""
    from dspy_observe.rollback import receiver

    monkeypatch.setattr(receiver, "_WAITING", 2)
    made, go, inside = receive(), threading.Event(), threading.Semaphore(0)
    real = registry.decide

    def slow(*arguments: Any, **named: Any) -> Any:
        inside.release()
        assert go.wait(30)
        return real(*arguments, **named)

    monkeypatch.setattr(registry, "decide", slow)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(made.post, sample_alert("qa", "v3")) for _ in range(2)]
        for _ in waiting:
            assert inside.acquire(timeout=30)
        assert made.post(sample_alert("qa", "v3")).status_code == 503
        assert made.client.get("/readyz").status_code == 200
        go.set()
        assert [one.result(30).status_code for one in waiting] == [200, 200]


def test_status_shows_where_prometheus_is_without_its_password(receive: Receive) -> None:
    """To whoever may read the status."""
    made = receive(prometheus_url="http://scraper:EXAMPLEpw99@127.0.0.1:9/prom?token=EXAMPLEpw99")
    assert made.get("/api/v1/status").json()["prometheus_url"] == "http://127.0.0.1:9/prom"
    assert receive().get("/api/v1/status").json()["prometheus_url"] is None


@pytest.mark.parametrize("mode", ["approve", "dry-run", "off"])
def test_mode_of_the_receiver_caps_that_of_the_program(
    receive: Receive, registry: SignatureRegistry, mode: str
) -> None:
    """The one that allows less counts, whichever it is."""
    assert receive(mode=mode).post(sample_alert("qa", "v3")).json()["decisions"][0]["outcome"] == "held"
    registry.set_mode("qa", mode)
    assert receive().post(sample_alert("qa", "v3")).json()["decisions"][0]["outcome"] == "held"
    assert deployed(registry) == "v3"


def test_watchdog_is_recorded_with_its_time(receive: Receive, registry: SignatureRegistry) -> None:
    """In the status and as a metric; never heard is None, not 0."""
    made = receive()
    assert made.get("/api/v1/status").json()["watchdog_at"] is None
    body = sample_alert("-", "-", alertname="DSPyWatchdog")
    del body["alerts"][0]["labels"]["dspy_action"]
    before = registry.now().timestamp()
    assert made.post(body).json() == {"decisions": [], "ignored": 1}
    at = made.get("/api/v1/status").json()["watchdog_at"]
    assert before <= at <= registry.now().timestamp()
    assert made.number("dspy_watchdog_timestamp_seconds") == at


def test_decisions_can_be_looked_up(receive: Receive, registry: SignatureRegistry) -> None:
    """By program and outcome; what the registry could not keep stands beside."""
    made = receive()
    made.post(several(sample_alert("qa", "v3"), sample_alert("qa", "v1"), sample_alert("nobody", "v1")))
    found = made.get("/api/v1/decisions").json()
    assert [one["outcome"] for one in found["decisions"]] == ["rollback", "stale"]
    assert [one["program"] for one in found["unstored"]] == ["nobody"]
    (only,) = made.get("/api/v1/decisions?program=qa&outcome=stale&limit=5").json()["decisions"]
    assert only["outcome"] == "stale"
    assert made.get("/api/v1/decisions?program=nobody").status_code == 404
    for wrong in ("0", "x", "5000"):
        assert made.get(f"/api/v1/decisions?limit={wrong}").status_code == 400


def test_metrics_tell_how_every_program_stands(
    receive: Receive, registry: SignatureRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of programs that no alert was about; the version that is gone goes; counters begin at 0."""
    from dspy_observe.rollback import gauges

    monkeypatch.setattr(gauges, "_EVERY_S", 0.0)
    fill(registry, "a", program="other")
    made = receive(limits=Limits(max_rollbacks_per_hour=2))
    place = {"environment": "production", "program": "qa"}
    assert made.client.get("/metrics").status_code == 200
    assert made.number("dspy_deployed_version_info", version="v3", **place) == 1
    assert made.number("dspy_deployed_version_info", version="a", environment="production", program="other") == 1
    assert made.number("dspy_decisions_total", trigger="alert", outcome="rollback", **place) == 0
    assert made.number("dspy_rollback_budget_remaining", **place) == 2
    assert made.number("dspy_rollback_frozen", **place) == 0
    made.post(sample_alert("qa", "v3"))
    registry.freeze("qa")
    made.client.get("/metrics")
    assert made.number("dspy_deployed_version_info", version="v3", **place) is None
    assert made.number("dspy_deployed_version_info", version="v2", **place) == 1
    assert made.number("dspy_rollback_budget_remaining", **place) == 1
    assert made.number("dspy_rollback_frozen", **place) == 1
    pointer = registry.pointer("qa")
    assert pointer is not None
    assert made.number("dspy_deployment_timestamp_seconds", **place) == pytest.approx(pointer.at.timestamp())


def test_secrets_reach_neither_log_nor_store(
    receive: Receive, registry: SignatureRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """The token of the request, and credentials that somebody wrote into labels and annotations."""
    key = "sk-proj-" + "a1B2c3D4" * 6
    made = receive()
    with caplog.at_level(logging.DEBUG):
        made.post(sample_alert("qa", "v3", labels={"detail": key}, annotations={"summary": f"with {key}"}))
        made.post(sample_alert("qa", "v1", annotations={"summary": key}), Authorization="Bearer wrong-token-here")
    stored = json.dumps([one.to_dict() for one in registry.decisions("qa")])
    for secret in (key, "correct-horse", "wrong-token-here"):
        assert secret not in stored
        assert secret not in caplog.text
        assert secret not in made.get("/api/v1/decisions").text


def test_old_alert_and_cool_down_follow_the_limits(receive: Receive, registry: SignatureRegistry) -> None:
    """As given to the receiver."""
    made = receive(limits=Limits(cooldown_s=1000))
    made.post(sample_alert("qa", "v3"))
    held = made.post(sample_alert("qa", "v2")).json()["decisions"][0]
    assert held["outcome"] == "held"
    assert "cool-down" in held["reason"]
    old = sample_alert("qa", "v2", starts_at=datetime.now(UTC) - timedelta(days=2))
    assert made.post(old).json()["decisions"][0]["outcome"] == "stale"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({}, "token_file"), ({"token": ""}, "token_file"), ({"token": " \n"}, "token"),
        ({"token": "\n", "insecure": True}, "token"), ({"insecure": True, "host": "0.0.0.0"}, "insecure"),
        ({"insecure": True, "token": "t"}, "insecure"), ({"token": "t", "port": 70_000}, "listen"),
        ({"token": "t", "host": ""}, "listen"), ({"token": "t", "max_body_bytes": 0}, "max_body_bytes"),
        ({"token": "t", "mode": "on"}, "mode"), ({"token": "t", "tls_cert": Path("c")}, "tls_key"),
        ({"token": "t", "tls_client_ca": Path("c")}, "tls_client_ca"),
        ({"token": "t", "fresh_window_s": 0.0}, "fresh_window_s"),
    ],
)  # fmt: skip
def test_options_that_cannot_work_are_refused(options: dict[str, Any], field: str) -> None:
    """With the field and the fix; nobody listens without a token by accident."""
    with pytest.raises(ConfigurationError) as caught:
        ReceiverOptions(**options)
    assert caught.value.field == field
    assert "correct" not in str(caught.value)


def test_tokens_of_no_use_are_refused(tmp_path: Path) -> None:
    """A file that is missing or empty would let nobody in, or everybody."""
    with pytest.raises(ConfigurationError, match="No such file"):
        Tokens(tmp_path / "none")
    (tmp_path / "empty").write_text("\n \n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="no token"):
        Tokens(tmp_path / "empty")
    (tmp_path / "marked").write_bytes(b"\xef\xbb\xbf\r\n")
    with pytest.raises(ConfigurationError, match="no token"):
        Tokens(tmp_path / "marked")
    (tmp_path / "bytes").write_bytes(b"secret\n\xff\n")
    with pytest.raises(ConfigurationError, match="no text in UTF-8"):
        Tokens(tmp_path / "bytes")
    for blank in (" ", "\n", " \t\r\n"):
        with pytest.raises(ConfigurationError, match="white space only"):
            Tokens(token=blank)
    assert not Tokens(token="")
    assert "secret" not in repr(ReceiverOptions(token="secret"))


# --- fuzz ------------------------------------------------------------------------------------------------------------

text = st.text(max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
PATHS = [
    (),
    ("alerts",),
    ("alerts", 0),
    *(("alerts", 0, key) for key in ("labels", "status", "startsAt", "fingerprint")),
]
KEYS = ("version", "alerts", "truncatedAlerts", "groupKey", "status", "labels", "annotations", "startsAt", "endsAt",
        "fingerprint", "program", "dspy_action", "environment", "alertname")  # fmt: skip


@st.composite
def broken_bodies(draw: st.DrawFn) -> bytes:
    """A delivery that is damaged in one place; or bytes of any kind."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=60))
    body: Any = sample_alert("qa", "v3")
    place = draw(st.sampled_from(PATHS))
    spot = body
    for step in place[:-1]:
        spot = spot[step]
    value = draw(values)
    if place and draw(st.booleans()):
        spot[place[-1]] = value
    elif isinstance(target := spot[place[-1]] if place else body, dict):
        target[draw(st.sampled_from(KEYS) | text)] = value
    return json.dumps(body).encode()


@pytest.fixture
def memory() -> Iterator[SignatureRegistry]:
    """The same registry on a disk that need not spin, as thousands of bodies are right ones and are stored."""
    shm = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as folder,
        SignatureRegistry(f"sqlite:///{folder}/registry.db") as made,
    ):
        fill(made, "v1", "v2", "v3")
        yield made


@pytest.mark.slow
def test_10_000_broken_bodies_get_no_5xx(memory: SignatureRegistry) -> None:
    """Each is taken, or refused as what it is; nothing moves in a dry run."""
    options = ReceiverOptions(insecure=True, mode="dry-run", metrics=Metrics(collector_registry=CollectorRegistry()))
    app = create_app(memory, options)
    loop = asyncio.new_event_loop()
    seen: dict[int, int] = {}
    scope = {"type": "http", "method": "POST", "path": "/api/v1/alerts", "headers": [], "query_string": b""}

    async def post(body: bytes) -> int:
        status = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            status.append(message.get("status"))

        await app(dict(scope), receive, send)
        return int(status[0])

    @settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(broken_bodies())
    def run(body: bytes) -> None:
        status = loop.run_until_complete(post(body))
        seen[status] = seen.get(status, 0) + 1
        assert status in (200, 400)

    try:
        run()
    finally:
        loop.run_until_complete(_shut(app))
        loop.close()
    assert seen[400] > 1000
    assert seen[200] > 10
    assert deployed(memory) == "v3"


async def _shut(app: Any) -> None:
    async with app.router.lifespan_context(app):
        pass
