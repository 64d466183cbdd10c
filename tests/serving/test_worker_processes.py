"""Several worker processes: forked from one that loaded the program, each follows by itself, and metrics add up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dspy_observe.openai_server import OpenAIServer
from dspy_observe.registry import SignatureRegistry
from tests.servers import fetch, free_port, wait_until
from tests.serving.conftest import Bot, Follow, Publish

FORKING = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
"""From Python 3.12 on; that it works all the same is what is tested."""

APPLICATION = """
    import json, os
    import dspy
    from dspy_observe import Router
    from dspy_observe.metrics import render
    from tests.serving.conftest import Bot

    dspy.configure(lm=dspy.LM("openai/gpt-4o-mini", api_base=os.environ["BASE"], api_key="x", cache=False))
    router = Router(os.environ["PLACE"], "bot", Bot, refresh_s=1.0)

    def application(environ, start_response):
        if environ["PATH_INFO"] == "/metrics":
            body, kind = render()
        else:
            answer = router(key=environ["PATH_INFO"], question="question-1")
            role = router.assign(environ["PATH_INFO"]).role
            body, kind = json.dumps([os.getpid(), answer.draft, answer.answer, role]).encode(), "application/json"
        start_response("200 OK", [("Content-Type", kind)])
        return [body]
"""


@contextmanager
def gunicorn(folder: Path, place: str, base: str) -> Iterator[str]:
    """The application, loaded before two workers are forked; gives its URL."""
    (folder / "serving_application.py").write_text(textwrap.dedent(APPLICATION))
    (folder / "metrics").mkdir()
    port = free_port()
    environment = {**os.environ, "PLACE": place, "BASE": base, "PROMETHEUS_MULTIPROC_DIR": str(folder / "metrics")}
    command = [
        sys.executable, "-m", "gunicorn", "--preload", "--workers", "2", "--threads", "2", "--chdir", str(folder),
        "--bind", f"127.0.0.1:{port}", "--error-logfile", str(folder / "log"), "serving_application:application",
    ]  # fmt: skip
    path = os.pathsep.join([str(Path(__file__).parents[2]), environment.get("PYTHONPATH", "")])
    process = subprocess.Popen(command, env={**environment, "PYTHONPATH": path})
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: fetch(f"{url}/up"), "gunicorn", 60)
        yield url
    finally:
        process.send_signal(signal.SIGINT)  # SIGTERM waits for idle connections
        process.wait(30)


def value(page: str, series: str) -> float | None:
    """One series of a metrics page."""
    found = [line for line in page.splitlines() if line.startswith(series)]
    return float(found[0].rpartition(" ")[2]) if found else None


def test_workers_of_gunicorn_follow_what_its_parent_loaded(
    registry: SignatureRegistry, publish: Publish, server: OpenAIServer, tmp_path: Path
) -> None:
    """Both workers swap, agree on every user's arm, and their metrics page says what serves."""
    publish(registry, "v1")
    publish(registry, "v2", deploy=False)
    publish(registry, "v3", deploy=False)
    with gunicorn(tmp_path, registry.location, server.base_url) as url:
        seen: dict[int, str] = {}

        def both(version: str) -> bool:
            pid, draft, answer, _ = fetch(f"{url}/somebody")
            assert draft == answer
            seen[pid] = answer
            return len(seen) == 2 and set(seen.values()) == {version}

        wait_until(lambda: both("v1"), "both workers on v1", 60)
        registry.deploy_version("bot", "v2")
        wait_until(lambda: both("v2"), "both workers on v2", 60)
        info = 'dspy_serving_version_info{environment="production",program="bot",role="stable",version="%s"}'
        wait_until(lambda: value(fetch(f"{url}/metrics"), info % "v2") == 1, "metric of v2")
        wait_until(lambda: value(fetch(f"{url}/metrics"), info % "v1") == 0, "end of v1's metric")
        age = value(fetch(f"{url}/metrics"), "dspy_registry_stale_seconds")
        assert age is not None
        assert age < 30
        registry.start_rollout("bot", "v3", steps=(0.5, 1))
        arms: dict[str, set[tuple[str, str]]] = {}
        share = 'dspy_traffic_share{environment="production",program="bot",role="canary",version="v3"}'
        wait_until(lambda: value(fetch(f"{url}/metrics"), share) == 0.5, "split")

        def settled() -> bool:
            arms.clear()
            pids = set()
            for number in range(60):
                pid, _, answer, role = fetch(f"{url}/user-{number % 10}")
                arms.setdefault(f"user-{number % 10}", set()).add((answer, role))
                pids.add(pid)
            return len(pids) == 2 and all(len(found) == 1 for found in arms.values())

        wait_until(settled, "same arms in both workers", 60)
        assert {arm for found in arms.values() for arm in found} == {("v2", "stable"), ("v3", "canary")}


@FORKING
def test_a_fork_waits_until_nobody_looks(registry: SignatureRegistry, publish: Publish, follow: Follow) -> None:
    """A child that is forked while a version is being loaded finds no lock taken."""
    publish(registry, "v1")
    loading, go_on = threading.Event(), threading.Event()
    first = True

    def slowly() -> Any:
        if not first:
            loading.set()
            go_on.wait(10)
        return Bot()

    live = follow(registry, slowly)
    first = False
    publish(registry, "v2")
    assert loading.wait(10)
    threading.Timer(0.2, go_on.set).start()
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:  # no assertion may escape: it would run the rest of the suite twice
        told: list[Any] = []
        try:
            live.refresh()
            told = [live.version, registry.deploy_version("bot", "v1").version]
        finally:
            os.write(writable, json.dumps(told).encode())
            os._exit(0)
    os.close(writable)
    with os.fdopen(readable, "rb") as pipe:
        assert json.loads(pipe.read()) == ["v2", "v1"]
    os.waitpid(child, 0)
    live.wait_for("v1")


@FORKING
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_forked_children_use_connections_of_their_own(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, publish: Publish, follow: Follow
) -> None:
    """On databases, too, parent and children go on following."""
    if kind == "sqlite":
        place = f"sqlite:///{tmp_path / 'registry.db'}"
    else:
        place = request.getfixturevalue("postgres").new_registry()
    with SignatureRegistry(place) as registry:
        publish(registry, "v1")
        live = follow(place, refresh_s=1.0)
        wait_until(lambda: live.status().following == "hints", "hints")
        pipes = []
        for _ in range(2):
            readable, writable = os.pipe()
            child = os.fork()
            if child == 0:
                told = "failed"
                try:
                    wait_until(lambda: live.version == "v2", "swap")
                    told = str(live.version)
                finally:
                    os.write(writable, told.encode())
                    os._exit(0)
            os.close(writable)
            pipes.append((child, readable))
        publish(registry, "v2")
        for child, readable in pipes:
            with os.fdopen(readable, "rb") as pipe:
                assert pipe.read() == b"v2"
            os.waitpid(child, 0)
        wait_until(lambda: live.version == "v2", "swap in the parent")
        registry.rollback("bot")
        wait_until(lambda: live.version == "v1", "way back")
