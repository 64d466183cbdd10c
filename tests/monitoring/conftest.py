"""What the monitor's tests share: registries on all three stores, and answers that are scored."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from dspy_observe import Metrics
from dspy_observe.records import Score
from dspy_observe.registry import RegistryConfig, SignatureRegistry
from dspy_observe.rollback.monitor import Monitor, MonitorOptions
from tests.clock import Clock

Watch = Callable[..., Monitor]


@pytest.fixture
def open_at(clock: Clock) -> Iterator[Callable[[str], SignatureRegistry]]:
    """Opens a registry, again and again, as other processes would."""
    opened: list[SignatureRegistry] = []

    def make(where: str) -> SignatureRegistry:
        opened.append(SignatureRegistry(RegistryConfig(registry_path=where, max_versions_per_signature=0), clock=clock))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


@pytest.fixture
def two_versions(clock: Clock) -> Callable[..., SignatureRegistry]:
    """Registers v1 and v2 of a program, both scored 0.9 on 2,000 examples, and deploys v1, then v2."""

    def make(registry: SignatureRegistry, name: str = "qa") -> SignatureRegistry:
        for version in ("v1", "v2"):
            registry.register_version(name, {"instruction": f"Answer as {version}."}, version=version)
            registry.update_performance_score(name, version, 0.9, dataset="dev", n=2000, stdev=0.3)
            registry.deploy_version(name, version)
            clock.forward(3600)
        return registry

    return make


@pytest.fixture
def registry(
    location: str, open_at: Callable[[str], SignatureRegistry], two_versions: Callable[..., SignatureRegistry]
) -> SignatureRegistry:
    """A registry on every store, in which v2 of ``qa`` runs and v1 is what a rollback takes."""
    return two_versions(open_at(location))


@pytest.fixture
def collected() -> CollectorRegistry:
    """Where the metrics go."""
    return CollectorRegistry()


@pytest.fixture
def watch(clock: Clock, collected: CollectorRegistry) -> Iterator[Watch]:
    """Makes monitors that fold when they are told to."""
    made: list[Monitor] = []

    def make(registry: SignatureRegistry, names: Any = "qa", **options: Any) -> Monitor:
        made.append(
            Monitor(
                registry, names, options=MonitorOptions(flush_s=3600, retry_s=3600, **options),
                metrics=Metrics(collector_registry=collected), clock=clock,
            )
        )  # fmt: skip
        return made[-1]

    yield make
    for one in made:
        one._stop.set()
        one._work.set()


@pytest.fixture
def give(clock: Clock) -> Callable[..., list[Score]]:
    """Makes scores of 0 and 1, reproducibly."""

    def make(version: str | None, chance: float, n: int, **fields: Any) -> list[Score]:
        draw = random.Random(f"{version}{chance}{n}{fields}{clock.now}").random
        given = {"source": "user", "program": "qa", "role": "stable", "score_id": None, "at": clock.now} | fields
        return [
            Score(call_id=f"c{place}", value=float(draw() < chance), version=version, **given) for place in range(n)
        ]

    return make


@pytest.fixture
def series(collected: CollectorRegistry) -> Callable[[str], dict[tuple[str, ...], float]]:
    """All samples of a metric, by label values."""

    def read(name: str) -> dict[tuple[str, ...], float]:
        return {
            tuple(sample.labels.values()): sample.value
            for metric in collected.collect()
            for sample in metric.samples
            if sample.name == name
        }

    return read
