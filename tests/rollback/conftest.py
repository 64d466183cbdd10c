"""A receiver in this process, and receivers as processes of their own."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from prometheus_client import CollectorRegistry

from dspy_observe.metrics import Metrics
from dspy_observe.registry import SignatureRegistry
from dspy_observe.rollback.receiver import ReceiverOptions, create_app
from tests.servers import wait_until

TOKEN = "correct-horse"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


def deployed(registry: SignatureRegistry, program: str = "qa") -> str:
    """What production runs."""
    pointer = registry.pointer(program)
    assert pointer is not None
    return pointer.version


def fill(registry: SignatureRegistry, *versions: str, program: str = "qa") -> None:
    """Register and deploy versions in turn."""
    for version in versions:
        registry.register_version(program, {"instruction": version}, version=version)
        registry.deploy_version(program, version)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[SignatureRegistry]:
    """v1, v2 and v3 of qa were deployed in turn."""
    with SignatureRegistry(f"sqlite:///{tmp_path / 'registry.db'}") as made:
        fill(made, "v1", "v2", "v3")
        yield made


@dataclass
class InProcess:
    """A receiver and its numbers."""

    client: httpx.Client
    numbers: CollectorRegistry

    def post(self, body: Any, **headers: str) -> httpx.Response:
        """Deliver a body with the right token."""
        content = body if isinstance(body, bytes | str) else json.dumps(body)
        return self.client.post("/api/v1/alerts", content=content, headers={**HEADERS, **headers})

    def get(self, path: str) -> httpx.Response:
        """Ask with the right token."""
        return self.client.get(path, headers=HEADERS)

    def number(self, name: str, **labels: str) -> float | None:
        """One series."""
        return self.numbers.get_sample_value(name, labels)


@pytest.fixture
def receive(registry: SignatureRegistry) -> Iterator[Callable[..., InProcess]]:
    """Makes receivers on the registry, or on another one."""
    started: list[tuple[uvicorn.Server, threading.Thread, httpx.Client]] = []

    def make(on: SignatureRegistry = registry, **options: Any) -> InProcess:
        numbers = CollectorRegistry()
        options.setdefault("token", TOKEN)
        app = create_app(on, ReceiverOptions(metrics=Metrics(collector_registry=numbers), **options))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        wait_until(lambda: server.started, "receiver")
        client = httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=30)
        started.append((server, thread, client))
        return InProcess(client, numbers)

    yield make
    for server, thread, client in started:
        client.close()
        server.should_exit = True
        thread.join(30)


class Process:
    """``dspy-observe serve`` in a process of its own, on any free port."""

    def __init__(self, location: str, token_file: Path, *arguments: str, code: str = "") -> None:
        program = f"{code}\nfrom dspy_observe.cli import main\nmain()"
        listen = () if "--listen" in arguments else ("--listen", "127.0.0.1:0")
        self._process = subprocess.Popen(
            [
                sys.executable, "-c", program, "serve", "--registry", location, "--token-file", str(token_file),
                "--json", *listen, *arguments,
            ],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        line = self._process.stdout.readline()
        if not line:
            raise AssertionError(self._process.communicate()[1])
        self.url: str = json.loads(line)["url"]
        self.errors: list[str] = []
        # Read to the end, or the process would stand still once the pipe is full.
        self._reader = threading.Thread(target=self.errors.extend, args=(self._process.stderr,), daemon=True)
        self._reader.start()

    def post(self, body: Any, **options: Any) -> httpx.Response:
        """Deliver a body."""
        return httpx.post(f"{self.url}/api/v1/alerts", json=body, headers=HEADERS, **{"timeout": 30, **options})

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def end(self, *, kill: bool = False) -> int:
        """End it; gives the exit code."""
        (self._process.kill if kill else self._process.terminate)()
        code = self._process.wait(30)
        self._reader.join(10)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
        return code


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    """Holds the token."""
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n", encoding="utf-8")
    return path


@pytest.fixture
def serve(registry: SignatureRegistry, token_file: Path) -> Iterator[Callable[..., Process]]:
    """Starts receivers; all are ended."""
    started: list[Process] = []

    def start(*arguments: str, location: str = registry.location, code: str = "") -> Process:
        started.append(Process(location, token_file, *arguments, code=code))
        return started[-1]

    yield start
    for one in started:
        one.end(kill=True)
