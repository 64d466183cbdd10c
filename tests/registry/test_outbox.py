"""The file store's outbox, while others deliver what is in it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from dspy_observe.registry import SignatureRegistry
from dspy_observe.registry.stores import outbox
from dspy_observe.registry.stores.base import Notice


def test_an_event_that_is_delivered_while_it_is_settled_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file goes away between reading and renaming."""
    box = outbox.Outbox(tmp_path)
    box.prepare(Notice("one", "qa", "me", 0.0, {"at": 0.0}), "commit")
    read = outbox._row

    def read_and_forget(path: Path) -> Any:
        row = read(path)
        box.forget(["one"])
        return row

    monkeypatch.setattr(outbox, "_row", read_and_forget)
    box.settle("qa", {"commit"})
    assert not box.has("qa")


def test_writers_with_listeners_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Threads of one process and registries of several objects write and deliver at once; every event comes once."""
    place = str(tmp_path / "registry")
    registries = [SignatureRegistry(place) for _ in range(2)]
    heard: list[str] = []
    failures: list[Exception] = []
    for registry in registries:
        registry.subscribe("performance_update", lambda event: heard.append(event.data["delivery_id"]))
    registries[0].register_version("qa", {"k": 1}, version="v1")

    def write(registry: SignatureRegistry) -> None:
        try:
            for _ in range(25):
                registry.update_performance_score("qa", "v1", 0.5)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is one too many
            failures.append(error)

    threads = [threading.Thread(target=write, args=(registry,)) for registry in registries * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(heard) == len(set(heard)) == 150
    for registry in registries:
        registry.close()
