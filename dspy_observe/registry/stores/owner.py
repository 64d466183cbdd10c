"""Which process has to deliver an event, and whether it still can."""

from __future__ import annotations

import os
import socket
from functools import lru_cache
from pathlib import Path

from dspy_observe.registry.stores.base import LEASE_S

__all__ = ["orphaned", "this_process"]


def this_process() -> str:
    """Host, process id and start of this process; no other process ever has the same."""
    return _identity(os.getpid())


@lru_cache(maxsize=2)
def _identity(pid: int) -> str:
    return f"{socket.gethostname()}:{pid}:{_started(pid)}"


def _started(pid: int) -> str | None:
    """When a process of this host started, in its own clock; ``None`` when there is none. Linux: proc(5), field 22."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    state, started = fields[0], fields[19]
    return None if state in ("Z", "X") else started


def orphaned(owner: str, at: float, now: float) -> bool:
    """Whether an event needs another process to deliver it.

    Args:
        owner: As :func:`this_process` named it there.
        at: When the owner took it, Unix seconds.
        now: Unix seconds.
    """
    if now - at > LEASE_S:
        return True
    host, pid, started = owner.rsplit(":", 2)
    return host == socket.gethostname() and pid.isdigit() and _started(int(pid)) != started
