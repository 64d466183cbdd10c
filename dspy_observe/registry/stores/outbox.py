"""Events of the file store that were committed and not delivered yet, one small file each.

An event's file is written before its commit and names it. While somebody holds the registry's lock no commit is under
way, so a file whose commit is not the last one that happened belongs to a writer that died before it: it is deleted.
The others are marked as ready, because later commits will hide theirs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from dspy_observe.registry.stores import disk
from dspy_observe.registry.stores.base import Notice
from dspy_observe.registry.stores.owner import orphaned
from dspy_observe.registry.values import canonical

__all__ = ["Outbox"]

_PREPARED: Final = ".json"
_READY: Final = ".ready"


class Outbox:
    """The outbox folder; :meth:`settle`, :meth:`take` and :meth:`prepare` need the registry's lock.

    Args:
        root: The folder; it need not exist.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def names(self) -> list[str]:
        """Signatures with undelivered events."""
        return [path.name for path in self._root.iterdir() if self.has(path.name)] if self._root.is_dir() else []

    def has(self, name: str) -> bool:
        """Whether there are any of one signature."""
        folder = self._root / name
        return folder.is_dir() and next(folder.iterdir(), None) is not None

    def prepare(self, notice: Notice, commit: str) -> None:
        """Write an event that counts once its commit happened."""
        path = self._root / notice.program / (notice.delivery_id + _PREPARED)
        disk.replace(path, canonical({"commit": commit, **asdict(notice)}).encode("ascii"))

    def settle(self, name: str, commits: AbstractSet[str]) -> None:
        """Sort the prepared events of a signature.

        Args:
            name: The signature.
            commits: The last commits that happened to it.
        """
        for path in (self._root / name).glob("*" + _PREPARED):
            row = _row(path)
            if row is not None and row["commit"] in commits:
                with suppress(FileNotFoundError):  # who delivers forgets without the lock, perhaps just now
                    path.rename(path.with_suffix(_READY))
            else:
                disk.remove(path)

    def take(self, owner: str, now: float) -> list[Notice]:
        """Make the events that nobody else will deliver the owner's, oldest first."""
        taken = []
        for path in self._root.glob("*/*" + _READY):
            row = _row(path)
            if row is None:
                disk.remove(path)
                continue
            commit = row.pop("commit")
            notice = Notice(**row)
            if orphaned(notice.owner, notice.at, now):
                mine = replace(notice, owner=owner, at=now)
                disk.replace(path, canonical({"commit": commit, **asdict(mine)}).encode("ascii"))
                taken.append(mine)
        return sorted(taken, key=lambda one: float(one.event.get("at", 0.0)))

    def forget(self, delivery_ids: Sequence[str]) -> None:
        """Delete events; which signature they are of need not be known."""
        for folder in self._root.iterdir() if delivery_ids and self._root.is_dir() else ():
            for delivery_id in delivery_ids:
                for ending in (_PREPARED, _READY):
                    disk.remove(folder / (delivery_id + ending))


def _row(path: Path) -> dict[str, Any] | None:
    """What a file says; ``None`` for one that was not finished, or is gone."""
    try:
        row = json.loads(path.read_bytes())
        Notice(**{key: value for key, value in row.items() if key != "commit"})
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return row if isinstance(row.get("commit"), str) else None
