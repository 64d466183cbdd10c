"""What stores tell of changes: soon, after the commit, about the signature that was asked for."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dspy_observe.registry import Conflict, SignatureRegistry, StoreUnavailable
from tests.servers import wait_until
from tests.serving.conftest import Open, Publish

Listen = Callable[..., list[str | None]]


@pytest.fixture
def listen(open_registry: Open) -> Iterator[Listen]:
    """Notes, for each hint, which version was deployed when it came."""
    stop, threads = threading.Event(), []

    def start(place: str, name: str = "bot") -> list[str | None]:
        registry, heard = open_registry(place), []

        def note() -> None:
            source = registry.changes(name, stop)
            assert source is not None
            for _ in source:
                pointer = registry.pointer(name)
                heard.append(None if pointer is None else pointer.version)

        threads.append(threading.Thread(target=note))
        threads[-1].start()
        wait_until(lambda: heard, "beginning")
        return heard

    yield start
    stop.set()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_moves_are_told_when_they_can_be_seen(
    location: str, open_registry: Open, publish: Publish, listen: Listen
) -> None:
    """Deployments, rollbacks and the steps of rollouts, of any process."""
    mover = open_registry(location)
    publish(mover, "v1")
    publish(mover, "v2", deploy=False)
    heard = listen(location)
    mover.deploy_version("bot", "v2")
    wait_until(lambda: heard[-1] == "v2", "deployment")
    mover.rollback("bot")
    wait_until(lambda: heard[-1] == "v1", "rollback")
    publish(mover, "v3", deploy=False)
    before = len(heard)
    mover.start_rollout("bot", "v3")
    wait_until(lambda: len(heard) > before, "rollout")


@pytest.mark.parametrize("kind", ["files", "postgresql"])
def test_nothing_else_is_told(
    kind: str, request: pytest.FixtureRequest, tmp_path: Any, open_registry: Open, publish: Publish, listen: Listen
) -> None:
    """Not what belongs to other signatures, not scores, not counts, not what was refused."""
    place = str(tmp_path / "r") if kind == "files" else request.getfixturevalue("postgres").new_registry()
    mover = open_registry(place)
    publish(mover, "v1")
    mover.register_version("other", {"k": 1}, version="o1")
    heard = listen(place)
    before = len(heard)
    mover.deploy_version("other", "o1")
    mover.update_performance_score("bot", "v1", 0.5)
    with pytest.raises(Conflict):
        mover.deploy_version("bot", "v1", expected_generation=9)
    publish(mover, "v2")
    wait_until(lambda: heard[-1] == "v2", "deployment")
    told = 1 if kind == "postgresql" else 2  # registering writes the signature's file, too
    assert len(heard) - before <= told


def test_counts_of_a_rollout_wake_nobody(postgres: Any, open_registry: Open, publish: Publish, listen: Listen) -> None:
    """Every process writes them, so that each would wake all others all the time."""
    place = postgres.new_registry()
    mover = open_registry(place)
    publish(mover, "v1")
    publish(mover, "v2", deploy=False)
    made = mover.start_rollout("bot", "v2")
    heard = listen(place)
    before = len(heard)
    for _ in range(5):
        mover.count_rollout("bot", generation=made.generation, calls={"canary": 1}, sampled={})
    mover.advance_rollout("bot")
    wait_until(lambda: len(heard) > before, "step")
    assert len(heard) == before + 1


def test_without_watchfiles_nothing_is_told(registry: SignatureRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base install polls."""
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "dspy_observe.registry.stores.watching.find_spec", lambda name: None if name == "watchfiles" else real(name)
    )
    assert registry.changes("bot", threading.Event()) is None


def test_a_folder_that_is_not_there_is_an_error(registry: SignatureRegistry) -> None:
    """To be tried again later."""
    source = registry.changes("bot", threading.Event())
    assert source is not None
    with pytest.raises(StoreUnavailable, match="cannot watch"):
        next(source)
