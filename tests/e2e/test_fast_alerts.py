"""A version that fails, through our own rules and routes: real metrics, Prometheus, Alertmanager, and a webhook."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import dspy
import pytest
import yaml
from prometheus_client import CollectorRegistry

import dspy_observe
from dspy_observe.conventions import WATCHDOG_ALERT
from dspy_observe.metrics import Metrics
from dspy_observe.mixin import alertmanager, prometheus
from dspy_observe.mixin.options import DashboardOptions
from dspy_observe.openai_server import ChatRequest, Failure, OpenAIServer, Reply
from tests.servers import Alertmanager, Prometheus, fetch, needs, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

GOOD = "[[ ## answer ## ]]\n42\n\n[[ ## completed ## ]]"


class Hook:
    """A webhook that keeps what it is sent."""

    def __init__(self) -> None:
        self.posts: list[tuple[float, str, str | None, dict[str, Any]]] = []
        keep = self.posts

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                keep.append((time.time(), self.path, self.headers.get("Authorization"), json.loads(body)))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host_port = f"127.0.0.1:{self._server.server_port}"

    def alerts(self, name: str, status: str = "firing") -> list[tuple[float, dict[str, Any]]]:
        """When and what of the alerts of one name."""
        return [
            (at, alert)
            for at, _, _, body in list(self.posts)
            for alert in body["alerts"]
            if alert["labels"]["alertname"] == name and alert["status"] == status
        ]

    def rollbacks(self) -> list[dict[str, Any]]:
        """Every firing alert that asks for a rollback."""
        return [
            alert
            for _, _, _, body in list(self.posts)
            for alert in body["alerts"]
            if alert["labels"].get("dspy_action") == "rollback" and alert["status"] == "firing"
        ]

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class Service:
    """A program under steady traffic, whose version and provider can be changed while it runs."""

    def __init__(self, observer: dspy_observe.Observer, respond: Callable[[ChatRequest], Reply | Failure]) -> None:
        self.observer = observer
        self.respond = respond
        self.failed_at: float | None = None
        self._stop = threading.Event()
        self._stack = ExitStack()
        self.deploy("v1")

    def deploy(self, version: str) -> None:
        """Put another version into service."""
        made = dspy.Predict(dspy.Signature("question -> answer", f"You are version <{version}>."))
        self._program = self.observer.track(made, name="bot", version=version)
        self.failed_at = None

    def _respond(self, request: ChatRequest) -> Reply | Failure:
        return self.respond(request)

    def _run(self, lm: dspy.LM) -> None:
        with dspy.context(lm=lm):
            while not self._stop.wait(0.03):
                try:
                    self._program(question="?")
                except Exception:  # noqa: BLE001 - the failure is the point
                    self.failed_at = self.failed_at or time.time()

    def __enter__(self) -> Self:
        server = self._stack.enter_context(OpenAIServer(self._respond))
        lm = dspy.LM("openai/gpt-4o-mini", api_base=server.base_url, api_key="x", cache=False, num_retries=0)
        thread = threading.Thread(target=self._run, args=(lm,))
        thread.start()
        self._stack.callback(thread.join)
        self._stack.callback(self._stop.set)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()


def alert(name: str, **labels: str) -> dict[str, Any]:
    """An alert as Prometheus would send it, firing for a minute."""
    now = datetime.now(UTC)
    common = {"alertname": name, "program": "bot", "environment": "production", "severity": "critical"}
    until = (now + timedelta(minutes=1)).isoformat()
    return {"labels": common | labels, "startsAt": now.isoformat(), "endsAt": until}


def test_the_provider_holds_back_what_it_may_have_caused(tmp_path: Path) -> None:
    """An outage every rollback of its program; refusals those for scores, not those for errors; others none."""
    needs("prometheus-alertmanager")
    token = tmp_path / "token"
    token.write_text("a-long-secret", encoding="utf-8")
    with Hook() as hook:
        o = DashboardOptions.fast(receiver_target=hook.host_port, receiver_token_file=str(token))
        with Alertmanager(tmp_path / "am", yaml.safe_load(alertmanager.configuration(o))) as server:
            server.post(
                alert("DSPyProviderOutage", model="m1"),
                alert("DSPyRateLimited", program="limited", severity="warning"),
            )
            wait_until(lambda: len(fetch(f"{server.url}/api/v2/alerts")) == 2, "alerts that inhibit")
            act = {"dspy_action": "rollback", "version": "v2"}
            server.post(
                alert("DSPyVersionErrorRegression", dspy_signal="errors", **act),
                alert("DSPyVersionErrorRegression", dspy_signal="errors", program="other", **act),
                alert("DSPyVersionErrorRegression", dspy_signal="errors", environment="staging", **act),
                alert("DSPyVersionErrorRegression", dspy_signal="errors", program="limited", **act),
                alert("DSPyCanaryScoreRegression", dspy_signal="score", program="limited", **act),
            )
            wait_until(lambda: len(hook.rollbacks()) >= 3, "rollbacks")
            server.post(alert(WATCHDOG_ALERT, severity="none"))
            wait_until(lambda: hook.alerts(WATCHDOG_ALERT), "watchdog, which comes after all of them")
    seen = {
        (one["labels"]["alertname"], one["labels"]["program"], one["labels"]["environment"]) for one in hook.rollbacks()
    }
    assert seen == {
        ("DSPyVersionErrorRegression", "other", "production"),
        ("DSPyVersionErrorRegression", "bot", "staging"),
        ("DSPyVersionErrorRegression", "limited", "production"),
    }


def well(request: ChatRequest) -> Reply | Failure:
    """Version 1 answers; replies to version 2 cannot be parsed."""
    return Reply(text="No." if "version <v2>" in request.system else GOOD)


def down(request: ChatRequest) -> Reply | Failure:
    """The provider is down."""
    return Failure.server_error()


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[tuple[Service, Hook, Prometheus]]:
    """The service, the webhook, and what lies between."""
    needs("prometheus", "prometheus-alertmanager")
    metrics = Metrics(port=0, collector_registry=CollectorRegistry())
    token = tmp_path / "token"
    token.write_text("a-long-secret", encoding="utf-8")
    with ExitStack() as stack:
        hook = stack.enter_context(Hook())
        o = DashboardOptions.fast(receiver_target=hook.host_port, receiver_token_file=str(token))
        observer = stack.enter_context(dspy_observe.configure(metrics=metrics, logs=False))
        assert observer.metrics_url is not None
        rules = {"rules.yml": prometheus.rules_yml(o), "alerts.yml": prometheus.alerts_yml(o)}
        for name, text in rules.items():
            (tmp_path / name).write_text(text, encoding="utf-8")
        config = yaml.safe_load(alertmanager.configuration(o))
        between = stack.enter_context(Alertmanager(tmp_path / "alertmanager", config))
        server = Prometheus(
            tmp_path / "prometheus", rules=[tmp_path / name for name in rules], alertmanagers=[between.host_port],
            targets=[observer.metrics_url.removeprefix("http://").removesuffix("/metrics")],
        )  # fmt: skip
        service = stack.enter_context(Service(observer, well))
        stack.enter_context(server)
        server.wait_for('program_version:dspy_calls:increase10m{version="v1"} > 20', 60)
        yield service, hook, server


def test_a_failing_version_is_reported_with_its_name_and_nothing_else_is(
    loop: tuple[Service, Hook, Prometheus],
) -> None:
    """The webhook gets the alert with bearer token and labels, people's copy apart, and the watchdog besides."""
    service, hook, _ = loop
    wait_until(lambda: hook.alerts(WATCHDOG_ALERT), "watchdog", 60)
    assert hook.rollbacks() == []
    service.deploy("v2")
    wait_until(lambda: hook.alerts("DSPyVersionErrorRegression"), "alert", 60)
    wait_until(lambda: hook.alerts("DSPyVersionParseRegression"), "alert", 60)
    labels = hook.alerts("DSPyVersionErrorRegression")[0][1]["labels"]
    assert labels == {
        "alertname": "DSPyVersionErrorRegression", "dspy_action": "rollback", "dspy_signal": "errors",
        "environment": "production", "program": "bot", "severity": "critical", "version": "v2",
    }  # fmt: skip
    for _, path, token, body in list(hook.posts):
        assert (path, token, body["version"]) == ("/api/v1/alerts", "Bearer a-long-secret", "4")
        assert body["receiver"] == "rollback"
    assert {alert["labels"]["version"] for alert in hook.rollbacks()} == {"v2"}
    annotations = hook.alerts("DSPyVersionErrorRegression")[0][1]["annotations"]
    assert "bot v2" in annotations["summary"]
    assert "var-program=bot&var-version=v2" in annotations["dashboard_url"]
    service.deploy("v1")
    wait_until(lambda: hook.alerts("DSPyVersionErrorRegression", "resolved"), "end of the alert", 60)


def test_a_provider_that_goes_down_is_no_regression(loop: tuple[Service, Hook, Prometheus]) -> None:
    """One alert about the provider, to people; nothing asks for a rollback, for as long as it lasts."""
    service, hook, server = loop
    server.wait_for('increase(dspy_requests_total{status="ok"}[10s] offset 15s) > 0', 60)  # it is known to answer
    service.respond = down
    server.wait_for('ALERTS{alertname="DSPyProviderOutage",alertstate="firing",program="bot"}', 60)
    runs = 'dspy_program_duration_seconds_count{version="v1"}[15s]'
    failed = runs.replace("}", ',status="error"}')
    server.wait_for(f"sum(increase({failed})) / sum(increase({runs})) > 0.99", 60)
    before = len(hook.alerts(WATCHDOG_ALERT))
    wait_until(lambda: len(hook.alerts(WATCHDOG_ALERT)) > before, "another watchdog", 60)  # the path works
    assert hook.rollbacks() == []
    assert server.query('ALERTS{dspy_action="rollback"}') == []
    assert {alert["metric"]["model"] for alert in server.query('ALERTS{alertname="DSPyProviderOutage"}')} == {
        "openai/gpt-4o-mini"
    }
