"""DSPy's disk cache as files: how large it is, how old, and pruning it beside running programs.

The cache is DiskCache's ``FanoutCache``: sixteen SQLite databases, each in a folder with its larger values as files.
https://grantjenks.com/docs/diskcache/ Pruning deletes through DiskCache's own transactions, so a program that reads or
writes at the same moment finds an entry whole or not at all; a missing one is asked for again. DSPy is not imported.

DSPy sets the eviction policy "least-recently-stored", under which reads are not recorded: an entry's age is then the
time since it was written. Under "least-recently-used" it is the time since it was last read or written.
"""

from __future__ import annotations

import heapq
import math
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sized
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from dspy_observe.errors import ConfigurationError, ObserveError

__all__ = ["CacheError", "DiskCache", "Pruned", "Status", "default_directory", "tree_bytes"]

_DATABASE: Final = "cache.db"
_BATCH: Final = 100  # entries a transaction: a program that writes waits a few milliseconds for it
_PAGE: Final = 500
# By eviction policy, the column that tells an entry's last use; DiskCache has an index on it.
_LAST_USE: Final = {"least-recently-used": "access_time"}
_WRITTEN: Final = "store_time"
_ENTRY_BYTES: Final = 200  # an entry's row and its places in the indexes, beside key and value
KEEP_RECENT_S: Final = 600.0
"""Entries used within the last ten minutes stay: the program that wrote them may be asking again."""


class CacheError(ObserveError):
    """The disk cache is not there, or cannot be read."""


class _Entry(NamedTuple):
    last_use: float
    rowid: int
    size: int
    shard: int


@dataclass(frozen=True, slots=True)
class Status:
    """What a disk cache holds."""

    directory: str
    entries: int
    size_bytes: int
    """All files of the cache, with SQLite's journals."""
    oldest_at: float | None
    """Unix time of the last use of the entry that was used longest ago; ``None`` when there is no entry."""
    newest_at: float | None
    limit_bytes: int | None
    """Where DSPy itself starts to evict; ``None`` when nothing was ever written."""
    reads_recorded: bool
    """Whether reading an entry counts as using it."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """What a pruning did, or would do."""

    deleted_entries: int
    freed_bytes: int
    """For a dry run, an estimate."""
    entries: int
    """Those that are left."""
    size_bytes: int
    """What is left of the databases and value files, without SQLite's journals."""
    held_back: bool
    """Whether the limits would have taken more, and it was used too recently."""
    dry_run: bool


def default_directory() -> Path:
    """Where DSPy keeps its cache: ``DSPY_CACHEDIR``, else ``~/.dspy_cache`` (``dspy/utils/caching.py``)."""
    explicit = os.environ.get("DSPY_CACHEDIR")
    return Path(explicit) if explicit else Path("~/.dspy_cache").expanduser()


def tree_bytes(directory: str) -> int:
    """The bytes of all files below a folder; files that vanish meanwhile count nothing."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size  # noqa: PTH118 - a cache has many files
            except OSError:  # pruned meanwhile
                continue
    return total


class DiskCache:
    """The disk cache in one folder.

    Args:
        directory: The folder; ``None`` is DSPy's default.

    Raises:
        CacheError: There is no DSPy cache.
    """

    def __init__(self, directory: str | Path | None = None) -> None:
        self.directory = Path(directory) if directory is not None else default_directory()
        self._shards = sorted(path.parent for path in self.directory.glob(f"[0-9][0-9][0-9]/{_DATABASE}"))
        if not self._shards:
            raise CacheError(f"there is no DSPy cache in {self.directory}")

    def status(self) -> Status:
        """Look, and change nothing.

        Raises:
            CacheError: A database cannot be read.
        """
        entries, limit = 0, 0
        times: list[float] = []
        columns: set[str] = set()
        for shard in self._shards:
            with closing(_reading(shard)) as database:
                settings = dict(_select(database, "SELECT key, value FROM Settings"))
                column = _last_use(database)
                # One extreme a query: SQLite then takes it from the index.
                extremes = [_select(database, f"SELECT {of}({column}) FROM Cache") for of in ("min", "max")]
            entries += settings.get("count", 0)
            limit += int(settings.get("size_limit", 0))
            columns.add(column)
            times += [at for ((at,),) in extremes if at is not None]
        return Status(
            directory=str(self.directory),
            entries=entries,
            size_bytes=sum(tree_bytes(str(shard)) for shard in self._shards),
            oldest_at=min(times, default=None),
            newest_at=max(times, default=None),
            limit_bytes=limit or None,
            reads_recorded=columns == {_LAST_USE["least-recently-used"]},
        )

    def prune(
        self,
        *,
        max_bytes: int | None = None,
        older_than_s: float | None = None,
        keep_recent_s: float = KEEP_RECENT_S,
        dry_run: bool = False,
        progress: Callable[[int, int], None] | None = None,
        now: Callable[[], float] = time.time,
    ) -> Pruned:
        """Delete entries, those used longest ago first.

        Args:
            max_bytes: Delete until the cache is no larger; ``None`` sets no size. An empty cache has half a megabyte.
            older_than_s: Delete what was not used for so many seconds; ``None`` sets no age.
            keep_recent_s: Keep what was used within so many seconds, whatever the limits say.
            dry_run: Only count.
            progress: Called with entries and estimated bytes deleted so far.
            now: Unix time in seconds.

        Raises:
            ConfigurationError: No limit is given, or one cannot work.
            CacheError: A database cannot be read or written.
        """
        _check(max_bytes, older_than_s, keep_recent_s)
        started = now()
        recent = started - keep_recent_s
        cutoff = started - older_than_s if older_than_s is not None else -math.inf
        before = self._volume()
        deleting = _Deletion(self._shards, recent, dry_run=dry_run, progress=progress)
        held_back, over = False, before - max_bytes if max_bytes is not None else 0
        try:
            for entry in heapq.merge(*(self._by_age(index) for index in range(len(self._shards)))):
                if entry.last_use >= cutoff and deleting.bytes >= over:
                    if dry_run or max_bytes is None:
                        break
                    deleting.flush()
                    # The estimate is settled: what the entries took, their databases' pages have given back by now.
                    over = deleting.bytes + self._volume() - max_bytes
                    if deleting.bytes >= over:
                        break
                if entry.last_use >= recent:
                    held_back = True  # all that follow are younger still
                    break
                deleting.add(entry)
            deleting.flush()
        finally:
            deleting.close()
        return self._outcome(before, deleting, held_back, dry_run=dry_run)

    def _outcome(self, before: int, deleting: _Deletion, held_back: bool, *, dry_run: bool) -> Pruned:
        entries = self._count()
        if dry_run:
            freed = min(deleting.bytes, before)
            return Pruned(deleting.entries, freed, entries - deleting.entries, before - freed, held_back, dry_run=True)
        after = self._volume()
        return Pruned(deleting.entries, max(0, before - after), entries, after, held_back, dry_run=False)

    def _by_age(self, index: int) -> Iterator[_Entry]:
        """The entries of one database in pages, so that no long read keeps it from giving pages back."""
        last, rowid = -math.inf, -1
        while True:
            with closing(_reading(self._shards[index])) as database:
                column = _last_use(database)
                query = (
                    f"SELECT {column}, rowid, size + length(key) + ifnull(length(value), 0) + {_ENTRY_BYTES} "
                    f"FROM Cache WHERE ({column}, rowid) > (?, ?) ORDER BY {column}, rowid LIMIT {_PAGE}"
                )
                page = _select(database, query, (last, rowid))
            for last, rowid, size in page:
                yield _Entry(last, rowid, size, index)
            if len(page) < _PAGE:
                return

    def _count(self) -> int:
        total = 0
        for shard in self._shards:
            with closing(_reading(shard)) as database:
                ((count,),) = _select(database, "SELECT value FROM Settings WHERE key = 'count'")
            total += count
        return total

    def _volume(self) -> int:
        """What DiskCache calls volume: pages of the databases, and files of values."""
        total = 0
        for shard in self._shards:
            with closing(_reading(shard)) as database:
                ((size,),) = _select(
                    database,
                    "SELECT (SELECT page_size FROM pragma_page_size) * (SELECT page_count FROM pragma_page_count) "
                    "+ (SELECT ifnull(max(value), 0) FROM Settings WHERE key = 'size')",
                )
            total += int(size)
        return total


class _Deletion:
    """Deletes in batches, each one transaction, and looks again whether an entry was used meanwhile."""

    def __init__(
        self, shards: list[Path], recent: float, *, dry_run: bool, progress: Callable[[int, int], None] | None
    ) -> None:
        self.entries = 0
        self.bytes = 0
        self._shards = shards
        self._recent = recent
        self._dry_run = dry_run
        self._progress = progress
        self._waiting: dict[int, list[_Entry]] = {}
        self._open: dict[int, Any] = {}

    def add(self, entry: _Entry) -> None:
        """Delete one entry, with others of its database."""
        self.bytes += entry.size
        self.entries += 1
        if self._dry_run:
            return
        waiting = self._waiting.setdefault(entry.shard, [])
        waiting.append(entry)
        if len(waiting) >= _BATCH:
            self._delete(entry.shard)

    def flush(self) -> None:
        """Delete all that wait."""
        for shard in list(self._waiting):
            self._delete(shard)

    def close(self) -> None:
        """Give the databases back."""
        for cache in self._open.values():
            cache.close()

    def _delete(self, shard: int) -> None:
        batch = self._waiting.pop(shard, [])
        try:
            if shard not in self._open:
                from diskcache import Cache

                self._open[shard] = Cache(str(self._shards[shard]))
            with self._open[shard]._transact(retry=True) as (sql, remove_file):
                column = _LAST_USE.get(self._open[shard].eviction_policy, _WRITTEN)
                rows = sql(
                    f"SELECT rowid, filename FROM Cache WHERE {column} < ? AND rowid IN ({_marks(batch)})",
                    (self._recent, *(entry.rowid for entry in batch)),
                ).fetchall()
                sql(f"DELETE FROM Cache WHERE rowid IN ({_marks(rows)})", [rowid for rowid, _ in rows])
                for _, filename in rows:
                    remove_file(filename)
        except (sqlite3.Error, OSError) as error:
            raise CacheError(f"cannot prune {self._shards[shard]}: {error}") from error
        gone = {rowid for rowid, _ in rows}
        for entry in batch:
            if entry.rowid not in gone:
                self.entries -= 1
                self.bytes -= entry.size
        if self._progress is not None:
            self._progress(self.entries, self.bytes)


def _check(max_bytes: int | None, older_than_s: float | None, keep_recent_s: float) -> None:
    if max_bytes is None and older_than_s is None:
        raise ConfigurationError("prune", "there is no limit", "Give a size, an age, or both")
    for name, value in (("max_bytes", max_bytes), ("older_than_s", older_than_s), ("keep_recent_s", keep_recent_s)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise ConfigurationError(name, f"{value!r} is no limit", "Give a number of 0 or more")


def _marks(values: Sized) -> str:
    return ",".join("?" * len(values))


def _last_use(database: sqlite3.Connection) -> str:
    rows = _select(database, "SELECT value FROM Settings WHERE key = 'eviction_policy'")
    return _LAST_USE.get(rows[0][0], _WRITTEN) if rows else _WRITTEN


def _reading(shard: Path) -> sqlite3.Connection:
    try:
        return sqlite3.connect(f"{(shard / _DATABASE).resolve().as_uri()}?mode=ro", uri=True, timeout=10)
    except sqlite3.Error as error:
        raise CacheError(f"cannot read {shard}: {error}") from error


def _select(database: sqlite3.Connection, query: str, arguments: tuple[Any, ...] = ()) -> list[Any]:
    try:
        return database.execute(query, arguments).fetchall()
    except sqlite3.Error as error:
        raise CacheError(f"cannot read the cache: {error}") from error
