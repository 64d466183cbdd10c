"""How long a registry takes with many versions of one signature: ``python tests/benchmarks/bench_registry.py``.

Fills a file store, SQLite, and (with ``--postgresql URL``) PostgreSQL, with as many versions as asked for, by one
import, and prints in milliseconds: the first read after opening, the median and the 99th percentile of reads after it,
a registration, a score and a deployment. The limits stand beside; the exit code is 1 when one is broken.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from dspy_observe.registry import RegistryConfig, SignatureRegistry
from dspy_observe.registry.records import Deployment, Pointer, Score, StoredVersion
from dspy_observe.registry.stores import open_store
from dspy_observe.registry.stores.base import Head
from dspy_observe.registry.versions import configuration_hash

NAME = "qa"
LIMITS_MS = {"files": 50.0, "sqlite": 5.0, "postgresql": 5.0}
"""What get_deployed_version may take after the first read."""


def fill(place: str, count: int) -> None:
    """Put the versions into an empty store, each scored once, in one transaction."""
    store = open_store(place)
    start = datetime(2024, 1, 1, tzinfo=UTC)
    with store.write(NAME) as txn:
        txn.set_head(Head(count + 1, ""))
        for number in range(1, count + 1):
            configuration = {"instruction": f"Answer the question carefully, way {number}.", "demos": number % 8}
            digits = configuration_hash(configuration)
            at = start + timedelta(minutes=number)
            metadata = {"optimizer": "MIPROv2", "git_sha": f"{number:040x}", "accuracy": number % 100 / 100}
            txn.add_version(StoredVersion(f"v{number}", number, digits, at, configuration, metadata, "bench"))
        txn.move_pointer(
            Pointer("production", f"v{count}", digits, 1, at),
            Deployment("first", "production", "deploy", f"v{count}", digits, None, None, 1, at),
        )
    with store.write(NAME) as txn:
        txn.add_score(Score("first", f"v{count}", digits, 0.9, at, "dev", 200))
    store.close()


def milliseconds(call: Callable[[], Any]) -> float:
    """One call."""
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1000


def measure(place: str, reads: int) -> dict[str, float]:
    """Times of one store, by name."""
    with SignatureRegistry(RegistryConfig(registry_path=place, max_versions_per_signature=0)) as registry:
        first = milliseconds(lambda: registry.get_deployed_version(NAME))
        again = sorted(milliseconds(lambda: registry.get_deployed_version(NAME)) for _ in range(reads))
        polls = sorted(milliseconds(lambda: registry.pointer(NAME)) for _ in range(reads))
        registry.register_version(NAME, {"warm": "up"}, version="warm")
        return {
            "first read": first,
            "get_deployed_version": statistics.median(again),
            "its 99 %": again[int(reads * 0.99)],
            "pointer": statistics.median(polls),
            "list_versions": milliseconds(lambda: registry.list_versions(NAME)),
            "register": milliseconds(lambda: registry.register_version(NAME, {"one": "more"}, version="more")),
            "score": milliseconds(lambda: registry.update_performance_score(NAME, "more", 0.5)),
            "deploy": milliseconds(lambda: registry.deploy_version(NAME, "more")),
        }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", type=int, default=10_000)
    parser.add_argument("--reads", type=int, default=300)
    parser.add_argument("--postgresql", metavar="URL", help="an empty database, as postgresql+psycopg://user@host/name")
    options = parser.parse_args()
    broken = 0
    with tempfile.TemporaryDirectory() as folder:
        places = {"files": str(Path(folder) / "registry"), "sqlite": f"sqlite:///{folder}/registry.db"}
        if options.postgresql:
            places["postgresql"] = options.postgresql
        print(f"{options.versions:,} versions of one signature, milliseconds")
        for kind, place in places.items():
            fill(place, options.versions)
            times = measure(place, options.reads)
            within = times["get_deployed_version"] < LIMITS_MS[kind]
            broken += not within
            figures = ", ".join(f"{name} {value:.1f}" for name, value in times.items())
            print(f"{kind:10} {figures}; limit {LIMITS_MS[kind]:.0f}: {'kept' if within else 'BROKEN'}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
