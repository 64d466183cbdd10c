"""Everything that runs while the story is told: model, registry, serving process, and the servers that watch it."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from dspy_observe.demo.loop.processes import alertmanager, free_port, missing_programs, prometheus, running, wait_ready
from dspy_observe.demo.loop.programs import BAD, ENVIRONMENT, GOOD, PROGRAM, register
from dspy_observe.demo.model import StandIn
from dspy_observe.mixin import alertmanager as routes
from dspy_observe.mixin import prometheus as rules
from dspy_observe.mixin.options import DashboardOptions
from dspy_observe.openai_server import OpenAIServer
from dspy_observe.registry import SignatureRegistry

__all__ = ["World", "missing", "opened"]

_SERVER_LIBRARIES: Final = ("starlette", "uvicorn", "httpx")


def missing() -> list[str]:
    """What the real servers lack here: programs, and packages of the extra ``server``."""
    return missing_programs() + [name for name in _SERVER_LIBRARIES if find_spec(name) is None]


@dataclass(frozen=True, slots=True)
class World:
    """What runs, and where."""

    registry: SignatureRegistry
    metrics_url: str
    prometheus_url: str | None
    alertmanager_url: str | None
    receiver_url: str | None
    stop_serving: Callable[[], None]
    """Ends the serving process and returns when its last line was told."""


@contextmanager
def opened(folder: Path, tell: Callable[[dict[str, Any]], None], *, real: bool, users: int) -> Iterator[World]:
    """Start everything, with the good version deployed.

    Args:
        folder: For the registry, configurations, data and logs.
        tell: Called with each line of the serving process, in a thread of ours.
        real: Whether Prometheus, Alertmanager and the receiver watch; otherwise the monitor in the serving process.
        users: How many ask at once.
    """
    with ExitStack() as stack:
        model = stack.enter_context(OpenAIServer(StandIn(pace=0.2)))
        registry = stack.enter_context(SignatureRegistry(folder / "registry"))
        for version in (GOOD, BAD):
            register(registry, version)
        registry.deploy_version(PROGRAM, GOOD, environment=ENVIRONMENT, actor="demo", reason="first version")
        lines: _Lines = stack.enter_context(_serving(folder, model.base_url, tell, monitor=not real, users=users))
        metrics_url = lines.metrics_url()
        urls: tuple[str | None, str | None, str | None] = (None, None, None)
        if real:
            urls = stack.enter_context(_watching(folder, metrics_url))
        yield World(registry, metrics_url, *urls, lines.stop)


class _Lines:
    """Reads what the serving process says."""

    def __init__(self, process: subprocess.Popen[bytes], tell: Callable[[dict[str, Any]], None], log: Path) -> None:
        self._process, self._tell, self._log = process, tell, log
        self._ready = threading.Event()
        self._url = ""
        self._thread = threading.Thread(target=self._read, name="serving process", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = json.loads(line)
            if said["kind"] == "ready":
                self._url = said["metrics_url"]
                self._ready.set()
            self._tell(said)
        self._ready.set()

    def metrics_url(self) -> str:
        """Where its metrics are, once it serves."""
        self._ready.wait(60)
        if not self._url:
            raise RuntimeError(f"the serving process did not start:\n{self._log.read_text(errors='replace')[-2000:]}")
        return self._url

    def stop(self) -> None:
        """End the process and read to its last line."""
        self._process.terminate()
        self._thread.join(30)


@contextmanager
def _serving(
    folder: Path, model_url: str, tell: Callable[[dict[str, Any]], None], *, monitor: bool, users: int
) -> Iterator[_Lines]:
    command = [
        sys.executable, "-m", "dspy_observe.demo.loop.service", "--registry", str(folder / "registry"),
        "--model-url", model_url, "--users", str(users), *(["--monitor"] if monitor else []),
    ]  # fmt: skip
    log = folder / "serving.log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "OPENAI_"))}
    with running(command, log, stdout=subprocess.PIPE, env=environment) as process:
        lines = _Lines(process, tell, log)
        yield lines
        lines.stop()


@contextmanager
def _watching(folder: Path, metrics_url: str) -> Iterator[tuple[str, str, str]]:
    """Prometheus, Alertmanager and the receiver, wired as the shipped configuration wires them."""
    receiver, token = f"http://127.0.0.1:{free_port()}", folder / "token"
    token.touch(0o600)
    token.write_text(secrets.token_urlsafe(24), encoding="utf-8")
    options = replace(
        DashboardOptions.fast(), targets=(metrics_url.removeprefix("http://").removesuffix("/metrics"),),
        receiver_target=receiver.removeprefix("http://"), receiver_token_file=str(token),
    )  # fmt: skip
    with ExitStack() as stack:
        alerts = stack.enter_context(alertmanager(routes.configuration(options), folder))
        options = replace(options, alertmanager_target=alerts.removeprefix("http://"))
        for name, text in {"rules.yml": rules.rules_yml(options), "alerts.yml": rules.alerts_yml(options)}.items():
            (folder / name).write_text(text, encoding="utf-8")
        scraper = stack.enter_context(prometheus(rules.configuration(options), folder))
        command = [
            sys.executable, "-c", "from dspy_observe.cli import main; main()", "serve",
            "--registry", str(folder / "registry"),
            "--listen", options.receiver_target, "--token-file", str(token), "--prometheus-url", scraper,
        ]  # fmt: skip
        log = folder / "receiver.log"
        process = stack.enter_context(running(command, log))
        wait_ready(f"{receiver}/healthz", process, log)
        yield scraper, alerts, receiver
