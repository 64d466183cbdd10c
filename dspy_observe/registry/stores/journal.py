"""Append-only files of JSON lines: scores, and decisions that moved nothing.

A line counts once its line break is written, so a writer that dies in the middle leaves a tail that the next one
takes away. Readers remember how far they came.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from dspy_observe.registry.errors import CorruptRegistry
from dspy_observe.registry.records import FieldFault, Record
from dspy_observe.registry.values import canonical

__all__ = ["Journal"]

R = TypeVar("R", bound=Record)


class Journal(Generic[R]):
    """One journal file.

    Args:
        path: The file; it need not exist.
        kind: The record in each line.
    """

    def __init__(self, path: Path, kind: type[R]) -> None:
        self._path = path
        self._kind = kind
        self._inode: int | None = None
        self._offset = 0
        self._lines = 0
        self._changed = 0
        self._tail = b""
        self._records: list[R] = []
        self.last_commit = ""
        """Name of the commit that wrote the last line; ``""`` when there is none."""

    def records(self) -> list[R]:
        """All records so far, oldest first; the list is a copy.

        Raises:
            CorruptRegistry: A line is no such record.
        """
        try:
            found = self._path.stat()
        except FileNotFoundError:
            self._reset(None)
            return []
        if (found.st_ino, found.st_size, found.st_mtime_ns) == (self._inode, self._offset, self._changed):
            return self._records.copy()
        with self._path.open("rb") as file:
            found = os.fstat(file.fileno())
            if found.st_ino != self._inode or found.st_size <= self._offset or not self._continues(file):
                self._reset(found.st_ino)
            file.seek(self._offset)
            for line in file:
                if line.endswith(b"\n"):
                    self._take(line)
        self._changed = found.st_mtime_ns
        return self._records.copy()

    def append(self, records: Sequence[R], commit: str) -> int:
        """Add records and wait until they are on disk. The caller holds the registry's lock.

        Args:
            records: What to add.
            commit: Name of the commit.

        Returns:
            The file's size before, for :meth:`undo`.

        Raises:
            OSError: Nothing was added.
        """
        text = "".join(canonical({"commit": commit, **record.to_dict()}) + "\n" for record in records)
        self._path.parent.mkdir(exist_ok=True)
        with self._path.open("a+b", buffering=0) as file:
            size = _complete(file)
            try:
                file.truncate(size)
                rest = memoryview(text.encode("ascii"))
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(size)
                raise
        return size

    def undo(self, size: int) -> None:
        """Take back what was added after ``size``."""
        with self._path.open("r+b") as file:
            file.truncate(size)
        self._reset(None)

    def _continues(self, file: Any) -> bool:
        """Whether the file still holds what was read of it, as far as its last line tells."""
        file.seek(self._offset - len(self._tail))
        return bool(file.read(len(self._tail)) == self._tail)

    def _reset(self, inode: int | None) -> None:
        self._inode, self._offset, self._lines, self._records, self._tail = inode, 0, 0, [], b""
        self.last_commit = ""

    def _take(self, line: bytes) -> None:
        place = self._lines + 1
        try:
            row = json.loads(line, parse_constant=_refuse)
            commit = row.pop("commit")
            self._records.append(self._kind.from_dict(row))
        except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
            what = str(error) if isinstance(error, FieldFault) else "no record in JSON"
            self._reset(None)
            raise CorruptRegistry(str(self._path), place, what) from None
        self.last_commit = str(commit)
        self._lines, self._offset, self._tail = place, self._offset + len(line), line


def _refuse(word: str) -> None:
    raise ValueError(word)


def _complete(file: Any) -> int:
    """The size up to the last line break."""
    size = int(file.seek(0, os.SEEK_END))
    step = 4096
    end = size
    while end > 0:
        start = max(0, end - step)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + int(found) + 1
        end = start
    return 0
