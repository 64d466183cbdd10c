"""Debian's Prometheus and Alertmanager on free ports of 127.0.0.1, ready when they are handed over.

Their data lies in a folder of the caller and is kept from one start to the next, so that a test can end a server and
start it again, or take its data away in between.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import pytest
import yaml

__all__ = ["Alertmanager", "Prometheus", "Server", "free_port", "needs", "rollback_config", "wait_until"]

START_S = 30.0
"""A start takes half a second on an idle machine."""
POLL_S = 0.02

T = TypeVar("T")


def needs(*programs: str) -> None:
    """Skip the test where a program is missing; in CI that is a failure, as nothing would be proved."""
    missing = [program for program in programs if shutil.which(program) is None]
    if not missing:
        return
    words = f"not installed: {', '.join(missing)}; on Debian, as root: make servers"
    if os.environ.get("CI"):
        pytest.fail(words)
    pytest.skip(words)


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_until(probe: Callable[[], T | None], what: str, timeout_s: float = 20.0) -> T:
    """Ask again and again until the answer is neither false nor ``None``, and give it.

    Args:
        probe: Asks once; an ``OSError`` (nobody listens) counts as no answer.
        what: What is waited for, for the failure.
        timeout_s: When to fail.
    """
    until = time.monotonic() + timeout_s
    while True:
        try:
            found = probe()
        except OSError:
            found = None
        if found:
            return found
        if time.monotonic() > until:
            pytest.fail(f"within {timeout_s:g} s there was no {what}")
        time.sleep(POLL_S)


def fetch(url: str, body: Any = None, timeout_s: float = 5.0) -> Any:
    """GET, or POST a body as JSON; what comes back, as JSON where it is.

    Raises:
        OSError: Nobody answers, or not with 2xx.
    """
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"} if data else {})
    with urllib.request.urlopen(request, timeout=timeout_s) as reply:
        text = reply.read().decode()
    try:
        return json.loads(text)
    except ValueError:
        return text


class Server:
    """One server process. Used in a ``with`` block, or by ``start`` and ``stop``.

    Attributes:
        url: Where it listens; the port stays the same over restarts.
    """

    program = ""

    def __init__(self, folder: Path) -> None:
        needs(self.program)
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address without a slash at its end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What it wrote so far."""
        path = self.folder / "log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def arguments(self) -> Sequence[str]:
        """The command line behind the program's name."""
        raise NotImplementedError

    def start(self) -> Self:
        """Start it and wait until it says that it is ready."""
        assert self._process is None, "it runs"
        with (self.folder / "log").open("ab") as out:
            self._process = subprocess.Popen(
                [self.program, *self.arguments()], stdout=out, stderr=subprocess.STDOUT, cwd=self.folder,
                start_new_session=True,
            )  # fmt: skip
        wait_until(self._ready, f"{self.program} that is ready", START_S)
        return self

    def _ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"{self.program} ended:\n{self.log[-4000:]}"
        fetch(f"{self.url}/-/ready", timeout_s=2.0)
        return True

    def stop(self) -> None:
        """End it by SIGTERM, so that it keeps its data; nothing happens when it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it by SIGKILL."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Hold it without ending it, as a network does that delivers nothing; :meth:`resume` lets it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def wipe(self) -> None:
        """Take its data away; it must not run."""
        assert self._process is None, "it runs"
        shutil.rmtree(self.folder / "data", ignore_errors=True)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        process.send_signal(how)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end(signal.SIGKILL)


class Prometheus(Server):
    """A Prometheus that scrapes and evaluates every second unless told otherwise.

    Args:
        folder: For its configuration, data and log.
        targets: ``host:port`` of what it scrapes, as the job ``dspy``.
        rules: Rule files to load; a mapping is the content of one.
        alertmanagers: ``host:port`` of those it sends alerts to.
        scrape: Scrape interval.
        evaluation: Evaluation interval of rules that have none of their own.
        resend: How often a firing alert is sent again.
        also_itself: Whether it scrapes itself, too.
    """

    program = "prometheus"

    def __init__(
        self,
        folder: Path,
        *,
        targets: Sequence[str] = (),
        rules: Sequence[Path] | Mapping[str, Any] = (),
        alertmanagers: Sequence[str] = (),
        scrape: str = "1s",
        evaluation: str = "1s",
        resend: str = "1s",
        also_itself: bool = False,
    ) -> None:
        super().__init__(folder)
        if also_itself:
            targets = [*targets, f"127.0.0.1:{self.port}"]
        self._resend = resend
        if isinstance(rules, Mapping):
            path = folder / "rules.yml"
            path.write_text(yaml.safe_dump(dict(rules)), encoding="utf-8")
            rules = [path]
        config: dict[str, Any] = {
            "global": {"scrape_interval": scrape, "scrape_timeout": scrape, "evaluation_interval": evaluation},
            "rule_files": [str(path.absolute()) for path in rules],
            "scrape_configs": [{"job_name": "dspy", "static_configs": [{"targets": list(targets)}]}],
        }
        if alertmanagers:
            config["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": list(alertmanagers)}]}]}
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")

    def arguments(self) -> Sequence[str]:
        """Listens on loopback only, and takes new rules by ``POST /-/reload``."""
        return (
            "--config.file=prometheus.yml", "--storage.tsdb.path=data", f"--web.listen-address=127.0.0.1:{self.port}",
            "--web.enable-lifecycle", f"--rules.alert.resend-delay={self._resend}", "--log.level=warn",
            "--enable-feature=exemplar-storage",
        )  # fmt: skip

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The result of an instant query: one mapping with ``metric`` and ``value`` for each series."""
        answer = fetch(f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}")
        return list(answer["data"]["result"])

    def exemplars(self, expression: str, seconds: float = 600.0) -> list[dict[str, Any]]:
        """The exemplars of the series of an expression, of the last so many seconds."""
        now = time.time()
        options = urllib.parse.urlencode({"query": expression, "start": now - seconds, "end": now})
        answer = fetch(f"{self.url}/api/v1/query_exemplars?{options}")
        return list(answer["data"])

    def wait_for(self, expression: str, timeout_s: float = 20.0) -> list[dict[str, Any]]:
        """Wait until an instant query has a result, and give it; ``up == 1`` is the first to wait for."""
        return wait_until(lambda: self.query(expression), f"result of {expression}", timeout_s)


class Alertmanager(Server):
    """An Alertmanager of its own, or one of a pair.

    Args:
        folder: For its configuration, data and log.
        config: Its configuration; see :func:`rollback_config`.
        gossip: Whether it talks to other ones; then ``cluster`` is where.
        peer: The ``cluster`` address of the one to join.
        flags: Further arguments.
    """

    program = "prometheus-alertmanager"

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        gossip: bool = False,
        peer: str | None = None,
        flags: Sequence[str] = (),
    ) -> None:
        super().__init__(folder)
        # Without an address it would listen on all of them: port 9094 of 0.0.0.0 is the default.
        self.cluster = f"127.0.0.1:{free_port()}" if gossip else ""
        self._peer = peer
        self._flags = tuple(flags)
        (folder / "alertmanager.yml").write_text(yaml.safe_dump(dict(config)), encoding="utf-8")

    def arguments(self) -> Sequence[str]:
        """Listens on loopback only."""
        peers = () if self._peer is None else (f"--cluster.peer={self._peer}",)
        return (
            "--config.file=alertmanager.yml", "--storage.path=data", f"--web.listen-address=127.0.0.1:{self.port}",
            f"--cluster.listen-address={self.cluster}", "--log.level=debug", *peers, *self._flags,
        )  # fmt: skip

    def post(self, *alerts: Mapping[str, Any]) -> None:
        """Give it alerts, as a Prometheus would: mappings with ``labels``, ``startsAt``, ``endsAt``."""
        fetch(f"{self.url}/api/v2/alerts", list(alerts))

    @property
    def host_port(self) -> str:
        """For a Prometheus's ``alertmanagers``."""
        return f"127.0.0.1:{self.port}"


def rollback_config(
    url: str,
    *,
    token_file: Path | None = None,
    group_wait: str = "0s",
    group_interval: str = "1s",
    repeat_interval: str = "2s",
    send_resolved: bool = True,
) -> dict[str, Any]:
    """A configuration that sends everything with ``dspy_action="rollback"``, and the watchdog, to one webhook.

    Args:
        url: The webhook's whole address.
        token_file: What it sends as the bearer token; ``None`` sends none.
        group_wait: How long a new group waits.
        group_interval: How long an old group waits; a failed delivery is tried again within it.
        repeat_interval: When an unchanged alert is delivered again; at least the group interval.
        send_resolved: Whether the end of an alert is delivered, too.
    """
    webhook: dict[str, Any] = {"url": url, "send_resolved": send_resolved}
    if token_file is not None:
        webhook["http_config"] = {"authorization": {"type": "Bearer", "credentials_file": str(token_file)}}
    return {
        "route": {
            "receiver": "people",
            "routes": [
                {
                    "receiver": "rollback", "matchers": [matcher], "group_by": ["alertname", "program", "version"],
                    "group_wait": group_wait, "group_interval": group_interval, "repeat_interval": repeat_interval,
                }
                for matcher in ('dspy_action="rollback"', 'alertname="DSPyWatchdog"')
            ],
        },
        "receivers": [{"name": "people"}, {"name": "rollback", "webhook_configs": [webhook]}],
    }  # fmt: skip
