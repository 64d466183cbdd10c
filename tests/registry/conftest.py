"""One registry suite for three stores: a folder, SQLite, and a real PostgreSQL server on loopback."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import psycopg.sql
import pytest

from dspy_observe.records import RegistryEvent
from dspy_observe.registry import RegistryConfig, SignatureRegistry
from dspy_observe.registry.stores import open_store
from dspy_observe.registry.stores.base import Store

STORES = ("files", "sqlite", "postgresql")
START_TIMEOUT_S = 60.0
Open = Callable[..., SignatureRegistry]


def _programs() -> Path | None:
    """The folder with PostgreSQL's server programs, the newest that is installed."""
    on_path = shutil.which("initdb")
    if on_path:
        return Path(on_path).resolve().parent
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


def _installed() -> Path:
    """PostgreSQL's programs; as root they are installed where they are missing."""
    found = _programs()
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["make", "servers"], cwd=Path(__file__).parents[2], check=True, capture_output=True)
        found = _programs()
    if found is None:
        pytest.skip("PostgreSQL is not installed and only root can install it: apt-get install postgresql")
    return found


def _user() -> str | None:
    """Who runs the server: it refuses to run as root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    raise AssertionError("no unprivileged user")


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Postgres:
    """A PostgreSQL server with its data in a folder of its own."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._folder = Path(tempfile.mkdtemp(prefix="dspy-observe-postgres-"))
        self._user = _user()
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        if self._user is not None:
            shutil.chown(self._folder, self._user)
        self._run("initdb", "-D", str(self._folder / "data"), "-A", "trust", "-U", "registry", "-N", "-E", "UTF8")

    def start(self) -> None:
        """Start the server and wait until it answers."""
        self._process = subprocess.Popen(
            [
                str(self._programs / "postgres"), "-D", str(self._folder / "data"), "-p", str(self.port),
                "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off",
                "-c", "max_connections=60",
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self._folder, **self._as(),
        )  # fmt: skip
        until = time.monotonic() + START_TIMEOUT_S
        while True:
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(self.dsn("postgres"), connect_timeout=2).close()
                return
            assert self._process.poll() is None, "the server ended"
            assert time.monotonic() < until, "the server does not answer"
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End the server and every connection to it."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(START_TIMEOUT_S)
            self._process = None

    def remove(self) -> None:
        """End the server and delete its data."""
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self._folder, ignore_errors=True)

    def dsn(self, database: str) -> str:
        """For psycopg."""
        return f"host=127.0.0.1 port={self.port} user=registry dbname={database}"

    def new_registry(self) -> str:
        """A URL of an empty registry: a schema of its own, as a database takes longer to make and to remove."""
        name = f"r{uuid4().hex}"
        with psycopg.connect(self.dsn("postgres"), autocommit=True) as connection:
            connection.execute(psycopg.sql.SQL("CREATE SCHEMA {}").format(psycopg.sql.Identifier(name)))
        return f"postgresql+psycopg://registry@127.0.0.1:{self.port}/postgres?options=-csearch_path%3D{name}"

    def _as(self) -> dict[str, Any]:
        return {} if self._user is None else {"user": self._user, "group": pwd.getpwnam(self._user).pw_gid}

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self._programs / program), *arguments], check=True, capture_output=True, cwd=self._folder, **self._as()
        )


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A running server, one for each test process."""
    server = Postgres(_installed())
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(params=STORES)
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where an empty registry may live: each test that asks runs on every store."""
    if request.param == "files":
        return str(tmp_path / "registry")
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'registry.db'}"
    return str(request.getfixturevalue("postgres").new_registry())


class Clock:
    """A clock that stands still until it is moved: 2024-01-15 14:30:22 UTC."""

    def __init__(self) -> None:
        self.now = 1705329022.0

    def __call__(self) -> float:
        return self.now

    def forward(self, seconds: float) -> None:
        """Move on."""
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    """One clock for all registries of a test."""
    return Clock()


@pytest.fixture
def open_registry(location: str, clock: Clock) -> Iterator[Open]:
    """Opens the same registry again and again, as other processes would, with any options."""
    opened: list[SignatureRegistry] = []

    def make(*, where: str = location, **options: Any) -> SignatureRegistry:
        opened.append(SignatureRegistry(RegistryConfig(registry_path=where, **options), clock=clock))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


@pytest.fixture
def registry(open_registry: Open) -> SignatureRegistry:
    """An empty registry that keeps all versions."""
    return open_registry(max_versions_per_signature=0)


@pytest.fixture
def store(location: str) -> Iterator[Store]:
    """An empty store."""
    made = open_store(location)
    yield made
    made.close()


class Heard(list[RegistryEvent]):
    """What a listener was told."""

    def short(self) -> list[str]:
        """The events' short names."""
        return [event.name.rpartition(".")[2] for event in self]


@pytest.fixture
def heard(registry: SignatureRegistry) -> Heard:
    """Everything that the registry tells."""
    events = Heard()
    registry.subscribe("*", events.append)
    return events


@pytest.fixture
def fill() -> Callable[..., None]:
    """Registers one version under each name."""

    def make(registry: SignatureRegistry, *names: str, signature: str = "qa") -> None:
        for name in names:
            registry.register_version(signature, {"instruction": f"Answer as {name}."}, version=name)

    return make


@pytest.fixture
def three(registry: SignatureRegistry, fill: Callable[..., None]) -> SignatureRegistry:
    """A registry with the versions v1, v2 and v3 of ``qa``."""
    fill(registry, "v1", "v2", "v3")
    return registry


@pytest.fixture
def start_python() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts programs on this package in other processes; all are ended."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: str) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(code), *arguments],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def run_python(start_python: Callable[..., subprocess.Popen[str]]) -> Callable[..., str]:
    """Runs a program in another process, and gives what it printed; it has to succeed."""

    def run(code: str, *arguments: str) -> str:
        process = start_python(code, *arguments)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        return out

    return run


@pytest.fixture
def seen() -> Callable[..., list[Any]]:
    """All that a reader can see of a signature, to compare before with after."""

    def see(registry: SignatureRegistry, signature: str = "qa") -> list[Any]:
        if signature not in registry.list_signatures():
            return []
        return [
            [one.to_dict() for one in records]
            for records in (
                registry.list_versions(signature), registry.deployment_log(signature), registry.pointers(signature),
                registry.scores(signature), registry.decisions(signature),
            )
        ]  # fmt: skip

    return see
