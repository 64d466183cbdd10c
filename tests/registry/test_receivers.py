"""Two receivers, each a process, over one PostgreSQL behave as one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dspy_observe.registry import SignatureRegistry
from dspy_observe.testing import sample_alert
from tests.rollback.conftest import TOKEN, Process, deployed, fill


def test_29_two_receivers_over_one_database_decide_once(postgres: Any, tmp_path: Path) -> None:
    """Twenty deliveries of one alert at the same time: one rollback, all others duplicates, all answered."""
    location = postgres.new_registry()
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN, encoding="utf-8")
    with SignatureRegistry(location) as registry:
        fill(registry, "v1", "v2", "v3")
        receivers: list[Process] = []
        try:
            receivers += [Process(location, token_file) for _ in range(2)]
            body = sample_alert("qa", "v3")
            with ThreadPoolExecutor(8) as pool:
                replies = list(pool.map(lambda n: receivers[n % 2].post(body), range(20)))
        finally:
            for one in receivers:
                one.end(kill=True)
        assert {reply.status_code for reply in replies} == {200}
        outcomes = [reply.json()["decisions"][0]["outcome"] for reply in replies]
        assert sorted(outcomes) == ["duplicate"] * 19 + ["rollback"]
        assert deployed(registry) == "v2"
        assert len(registry.decisions("qa")) == 20
