"""Programs started on loopback for as long as the demonstration lasts: Debian's Prometheus and Alertmanager, and ours.

Each gets a free port, a folder of its own for its data and its log, and is ended with the block.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from dspy_observe.errors import ObserveError

__all__ = ["NotStartedError", "alertmanager", "free_port", "missing_programs", "prometheus", "running", "wait_ready"]

_PROGRAMS: Final = ("prometheus", "prometheus-alertmanager")
"""As Debian names them."""
_START_S: Final = 30.0
_STOP_S: Final = 5.0
_POLL_S: Final = 0.05


class NotStartedError(ObserveError):
    """A program of the demonstration did not come up."""


def missing_programs() -> list[str]:
    """Which of the servers are not installed."""
    return [name for name in _PROGRAMS if shutil.which(name) is None]


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(command: Sequence[str], log: Path, **options: object) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended with the block, at first politely.

    Args:
        command: What to run.
        log: Where its standard error goes, and its output unless ``options`` say otherwise.
        **options: Passed on to :class:`subprocess.Popen`.
    """
    with log.open("ab") as said:
        settings = {"stdin": subprocess.DEVNULL, "stdout": said, "stderr": said, **options}
        process: subprocess.Popen[bytes] = subprocess.Popen(  # noqa: S603 - our own commands
            list(command),
            **settings,  # type: ignore[call-overload]
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()


def wait_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a server answers with success.

    Raises:
        NotStartedError: It ended, or took longer than half a minute.
    """
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=1):  # noqa: S310 - loopback
            return
        time.sleep(_POLL_S)
    last = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:])
    raise NotStartedError(f"{Path(str(process.args[0])).name} is not ready at {url}; it said:\n{last}")  # type: ignore[index]


@contextmanager
def prometheus(config: str, folder: Path) -> Iterator[str]:
    """Debian's Prometheus.

    Args:
        config: Its configuration; relative rule files are looked for in ``folder``.
        folder: Where its configuration, data and log go.

    Yields:
        Its base URL.
    """
    url = f"http://127.0.0.1:{free_port()}"
    file, log = folder / "prometheus.yml", folder / "prometheus.log"
    file.write_text(config, encoding="utf-8")
    command = [
        "prometheus", f"--config.file={file}", f"--storage.tsdb.path={folder / 'prometheus-data'}",
        f"--web.listen-address={url.removeprefix('http://')}", "--web.enable-lifecycle",
        "--rules.alert.resend-delay=1s", "--enable-feature=exemplar-storage", "--log.level=warn",
    ]  # fmt: skip
    with running(command, log) as process:
        wait_ready(f"{url}/-/ready", process, log)
        yield url


@contextmanager
def alertmanager(config: str, folder: Path) -> Iterator[str]:
    """Debian's Alertmanager, alone, without a cluster port.

    Args:
        config: Its configuration.
        folder: Where its configuration, data and log go.

    Yields:
        Its base URL.
    """
    url = f"http://127.0.0.1:{free_port()}"
    file, log = folder / "alertmanager.yml", folder / "alertmanager.log"
    file.write_text(config, encoding="utf-8")
    command = [
        "prometheus-alertmanager", f"--config.file={file}", f"--storage.path={folder / 'alertmanager-data'}",
        f"--web.listen-address={url.removeprefix('http://')}", "--cluster.listen-address=", "--log.level=warn",
    ]  # fmt: skip
    with running(command, log) as process:
        wait_ready(f"{url}/-/ready", process, log)
        yield url
