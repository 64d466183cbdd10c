"""One registry suite for three stores: a folder, SQLite, and a real PostgreSQL server on loopback."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dspy_observe.records import RegistryEvent
from dspy_observe.registry import RegistryConfig, SignatureRegistry
from dspy_observe.registry.stores import open_store
from dspy_observe.registry.stores.base import Store
from tests.clock import Clock

Open = Callable[..., SignatureRegistry]


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
