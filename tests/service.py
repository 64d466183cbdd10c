"""``examples/service`` as a process group of its own, with Redis and a provider whose behaviour tests decide."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from dspy_observe.demo.model import StandIn
from dspy_observe.openai_server import ChatRequest, Failure, OpenAIServer, Reply
from dspy_observe.registry import SignatureRegistry
from tests.servers import free_port, needs, wait_until

__all__ = ["ADMIN", "NAME", "QUESTION", "ROOT", "Provider", "Redis", "Service", "part"]

ROOT = Path(__file__).parents[1]
NAME = "facts-service"
QUESTION = "Who discovered penicillin?"
ADMIN = {"authorization": "Bearer of-the-test"}
WORKERS = 2


def part(name: str) -> ModuleType:
    """A module of the service, imported here."""
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        return importlib.import_module(f"service.{name}")
    finally:
        sys.path.pop(0)


class Provider:
    """The stand-in model, and what befalls it."""

    def __init__(self) -> None:
        self._model = StandIn(pace=0)
        self.trouble: str | None = None

    def __call__(self, request: ChatRequest) -> Reply | Failure:
        """Answer, or fail as ``trouble`` says."""
        match self.trouble:
            case "down":
                return Failure.server_error()
            case "storm":
                return Failure.rate_limited()
            case "malformed":
                return Reply(text="Sure!")
            case "slow":
                answer = self._model(request)
                assert isinstance(answer, Reply)
                return Reply(text=answer.text, delay_s=6.0)
            case _:
                return self._model(request)


class Redis:
    """Debian's Redis on a free port."""

    def __init__(self, folder: Path) -> None:
        needs("redis-server")
        self.port = free_port()
        self._folder = folder
        self.start()

    def start(self) -> None:
        """Start it, on the same port as before."""
        self._process = subprocess.Popen(
            ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self._folder)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def stop(self) -> None:
        """End it, with what it holds."""
        self._process.kill()
        self._process.wait()


class Service:
    """The service as a process group of its own."""

    def __init__(self, folder: Path, provider: OpenAIServer, redis: Redis) -> None:
        self.folder = folder
        self.url = f"http://127.0.0.1:{free_port()}"
        self._log = folder / "service.log"
        self.collector_port = free_port()
        """Where spans go. Nobody listens there: a collector that is gone."""
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "DSPY_CACHEDIR": str(folder / "cache"),
            "DSPY_OBSERVE_REGISTRY": str(folder / "registry"), "DSPY_OBSERVE_STRICT": "0",
            "SERVICE_MODEL_URL": provider.base_url, "SERVICE_REDIS_URL": f"redis://127.0.0.1:{redis.port}/0",
            "SERVICE_ADMIN_TOKEN": "of-the-test", "SERVICE_REFRESH_S": "0.5", "SERVICE_STALE_LIMIT_S": "3",
            "SERVICE_REQUESTS_PER_S": "1000", "SERVICE_ANSWER_TIMEOUT_S": "4", "SERVICE_OPEN_S": "1",
            "SERVICE_FAILURES_TO_OPEN": "5",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.collector_port}",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "1", "OTEL_BSP_SCHEDULE_DELAY": "200",
        }  # fmt: skip
        environment.pop("PROMETHEUS_MULTIPROC_DIR", None)
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "examples/service/serve.py"), "--port", self.url.rpartition(":")[2]],
                env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.ready()

    def ready(self) -> None:
        """Wait until every worker that was started is warm: the page of all counts as many runs that warmed one up."""

        def warm() -> bool:
            started = len(re.findall(r"Started server process", self.log))
            counted = self.counted("dspy_program_duration_seconds_count", 'role="warmup"', 'status="ok"')
            return counted >= max(started, WORKERS) and self.get("/readyz").status_code == 200

        try:
            wait_until(warm, "service with all workers warm", 60)
        except pytest.fail.Exception as failed:
            failed.add_note(self.log[-2000:])
            raise

    @property
    def log(self) -> str:
        """What it wrote."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def get(self, path: str, **options: Any) -> httpx.Response:
        """One request; nobody there is an ``OSError``, as for other servers."""
        return self._ask("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        """One request."""
        return self._ask("POST", path, **options)

    def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return httpx.request(method, self.url + path, timeout=20, **options)
        except httpx.TransportError as error:
            raise OSError(str(error)) from error

    def ask(self, question: str = QUESTION) -> httpx.Response:
        """A question."""
        return self.post("/ask", json={"question": question})

    def stream(self, question: str) -> list[tuple[str, dict[str, Any]]]:
        """A question answered piece by piece: each event's name and data. It begins with 200, whatever comes of it."""
        reply = self.post("/ask/stream", json={"question": question})
        assert reply.status_code == 200
        events = [event.split("\ndata: ") for event in reply.text.strip().split("\n\n")]
        return [(name.removeprefix("event: "), json.loads(data)) for name, data in events]

    def counted(self, name: str, *matchers: str) -> float:
        """The sum of the series of a metric that hold all matchers."""
        lines = [line for line in self.get("/metrics").text.splitlines() if line.startswith(name + "{")]
        return sum(float(line.rpartition(" ")[2]) for line in lines if all(one in line for one in matchers))

    def deploy(self, version: str) -> None:
        """Register and deploy another version of the program, which goes by its instructions."""
        with SignatureRegistry(self.folder / "registry") as registry:
            program = registry.load_program(NAME, part("program").factory)
            predictor = program.quick.predict
            predictor.signature = predictor.signature.with_instructions(f"Answer the question. You are {version}.")
            registry.register_program(NAME, program, version=version)
            registry.deploy_version(NAME, version)

    def follows(self, version: str) -> None:
        """Wait until answers are of a version, whoever gives them."""
        # A new connection each time, so that both workers are asked.
        wait_until(lambda: {self.ask().json()["version"] for _ in range(12)} == {version}, version, 20)

    def workers(self) -> list[int]:
        """Process ids of the workers."""
        found = re.findall(r"Started server process \[(\d+)\]", self.log)
        return [int(pid) for pid in found if Path(f"/proc/{pid}").exists()]

    def end(self) -> None:
        """End all of it."""
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
