"""How many alert posts a second a receiver takes, and that none is lost or decided twice.

Run it by itself: ``python -m tests.benchmarks.bench_receiver``. It prints a table, and fails where a decision is
missing or double, or where the rate is below what is promised: 200 on a SQL store, 50 on files.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from dspy_observe.registry import SignatureRegistry
from dspy_observe.testing import sample_alert

POSTS = 1000
CLIENTS = 8
PROMISED = {"sqlite": 200.0, "files": 50.0}
TOKEN = "benchmark"


def measure(location: str, folder: Path) -> dict[str, Any]:
    """Post alerts as fast as they are answered; every tenth is one that moves the pointer of a program of its own."""
    token_file = folder / "token"
    token_file.write_text(TOKEN, encoding="utf-8")
    programs = [f"program{number}" for number in range(POSTS // 10)]
    with SignatureRegistry(location) as registry:
        for program in programs:
            for version in ("v1", "v2"):
                registry.register_version(program, {"instruction": version}, version=version)
                registry.deploy_version(program, version)
        # Each program gets its alert ten times: one rollback and nine duplicates, whatever comes first.
        bodies = [sample_alert(program, "v2") for program in programs] * 10
        command = [sys.executable, "-c", "from dspy_observe.cli import main; main()", "serve", "--registry", location]
        process = subprocess.Popen(
            [*command, "--token-file", str(token_file), "--listen", "127.0.0.1:0", "--json"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"]
            with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60) as client:

                def post(body: dict[str, Any]) -> tuple[int, float]:
                    began = time.perf_counter()
                    status = client.post("/api/v1/alerts", json=body).status_code
                    return status, time.perf_counter() - began

                began = time.perf_counter()
                with ThreadPoolExecutor(CLIENTS) as pool:
                    replies = list(pool.map(post, bodies))
                took = time.perf_counter() - began
        finally:
            process.terminate()
            process.wait(30)
        stored = Counter(one.outcome for program in programs for one in registry.decisions(program))
        moves = sum(one.action == "rollback" for program in programs for one in registry.deployment_log(program))
    assert {status for status, _ in replies} == {200}, Counter(status for status, _ in replies)
    assert stored == {"rollback": len(programs), "duplicate": POSTS - len(programs)}, stored
    assert moves == len(programs), moves
    slowest = sorted(seconds for _, seconds in replies)
    return {"rate": POSTS / took, "p50": slowest[POSTS // 2], "p99": slowest[POSTS * 99 // 100]}


def main() -> int:
    """Print the table; 1 where a promise is not kept."""
    print(f"{POSTS} alert posts by {CLIENTS} clients, {POSTS // 10} programs, each alert ten times")
    print(f"{'store':8} {'posts/s':>9} {'promised':>9} {'p50 ms':>8} {'p99 ms':>8}")
    kept = True
    for store, promised in PROMISED.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            location = str(folder / "registry") if store == "files" else f"sqlite:///{folder}/registry.db"
            found = measure(location, folder)
        kept &= found["rate"] >= promised
        p50, p99 = found["p50"] * 1000, found["p99"] * 1000
        print(f"{store:8} {found['rate']:9.0f} {promised:9.0f} {p50:8.1f} {p99:8.1f}")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
