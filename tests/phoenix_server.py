"""A real Phoenix on loopback, where ``make phoenix`` has installed one."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["phoenix_server"]

_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
PROGRAM = _CACHE / "dspy-observe" / "phoenix" / "bin" / "phoenix"
"""Where the Makefile puts it."""
START_S = 120.0


@contextmanager
def phoenix_server(folder: Path) -> Iterator[str]:
    """Run a server that keeps everything in a folder; yields its address. Skips where Phoenix is not installed."""
    if not (PROGRAM.parent.parent / "installed-constraints.txt").exists():
        pytest.skip("Phoenix is not installed: make phoenix (850 MB, about a minute)")
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        port, grpc_port = one.getsockname()[1], two.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "PHOENIX_WORKING_DIR": str(folder),
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(grpc_port),
        "PHOENIX_TELEMETRY_ENABLED": "false",
    }
    log = folder / "server.log"
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            [PROGRAM, "serve"], stdout=out, stderr=subprocess.STDOUT, env=environment, cwd=folder
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_healthy(url, process, log)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text(encoding="utf-8")
        try:
            with urllib.request.urlopen(f"{url}/healthz", timeout=2) as reply:
                assert reply.status == 200
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)  # another process comes up; there is nothing to wait on
    pytest.fail(f"Phoenix did not start within {START_S:g} s:\n{log.read_text(encoding='utf-8')}")
