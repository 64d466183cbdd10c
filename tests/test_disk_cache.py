"""DSPy's disk cache: what it holds, and pruning it while programs use it."""

from __future__ import annotations

import itertools
import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from diskcache import FanoutCache
from typer.testing import CliRunner

from dspy_observe.cli import app
from dspy_observe.cli_cache import parse_age, parse_size
from dspy_observe.disk_cache import CacheError, DiskCache, default_directory, tree_bytes
from dspy_observe.errors import ConfigurationError

DAY = 86_400.0
LARGE = b"x" * 50_000  # above DiskCache's 32 kB, so a file of its own
SMALL = b"y" * 2_000


def dspy_cache(directory: Path, **settings: Any) -> FanoutCache:
    """The cache as DSPy makes it (``dspy/clients/cache.py``), with fewer databases, for each takes time to make."""
    return FanoutCache(str(directory), shards=4, timeout=10, size_limit=3e10, **settings)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[FanoutCache]:
    """An empty cache of the test's own."""
    with dspy_cache(tmp_path / "cache") as made:
        yield made


def age(cache: FanoutCache, seconds_of: dict[str, float]) -> None:
    """Let entries have been written and read so many seconds ago."""
    now = time.time()
    rows = [(now - seconds, now - seconds, key) for key, seconds in seconds_of.items()]
    for path in Path(cache.directory).glob("*/cache.db"):
        with closing(sqlite3.connect(path)) as database:
            database.executemany("UPDATE Cache SET store_time = ?, access_time = ? WHERE key = ?", rows)
            database.commit()


def fill(cache: FanoutCache, days: int, value: bytes = SMALL) -> None:
    """One entry for each of so many days, ``"0"`` of today."""
    for day in range(days):
        cache.set(str(day), value)
    age(cache, {str(day): day * DAY for day in range(days)})


def left(cache: FanoutCache) -> set[str]:
    """The keys that are still there."""
    return set(cache)


def test_status_tells_size_and_ages_and_changes_nothing(cache: FanoutCache) -> None:
    """Figures are the cache's own; looking leaves every file as it was."""
    fill(cache, 5)
    cache.set("large", LARGE)
    files = {path: path.read_bytes() for path in Path(cache.directory).rglob("*.val")}
    found = DiskCache(cache.directory).status()
    assert found.entries == len(cache) == 6
    assert found.size_bytes == tree_bytes(cache.directory) > 50_000
    assert found.oldest_at == pytest.approx(time.time() - 4 * DAY, abs=60)
    assert found.newest_at == pytest.approx(time.time(), abs=60)
    assert found.limit_bytes == 3e10
    assert not found.reads_recorded
    assert {path: path.read_bytes() for path in Path(cache.directory).rglob("*.val")} == files
    assert len(cache) == 6


def test_an_empty_cache_has_no_ages(cache: FanoutCache) -> None:
    """No entry, no time: unknown is None."""
    found = DiskCache(cache.directory).status()
    assert (found.entries, found.oldest_at, found.newest_at) == (0, None, None)


def test_old_entries_go_with_their_files(cache: FanoutCache) -> None:
    """What was not used for a week is deleted, values that are files of their own included."""
    fill(cache, 10, LARGE)
    done = DiskCache(cache.directory).prune(older_than_s=7 * DAY - 60)
    assert left(cache) == {str(day) for day in range(7)}
    assert len(list(Path(cache.directory).rglob("*.val"))) == 7
    assert (done.deleted_entries, done.entries, done.held_back, done.dry_run) == (3, 7, False, False)
    assert done.freed_bytes >= 3 * len(LARGE)
    assert done.size_bytes == cache.volume()
    assert cache.check() == []


def test_the_oldest_go_first_until_the_size_is_reached(cache: FanoutCache) -> None:
    """Across all databases, no younger entry goes before an older one, and not many more than needed."""
    fill(cache, 60, LARGE)
    limit = cache.volume() - 20 * len(LARGE)
    done = DiskCache(cache.directory).prune(max_bytes=limit)
    assert done.size_bytes == cache.volume() <= limit
    assert left(cache) == {str(day) for day in range(60 - done.deleted_entries)}
    assert 20 <= done.deleted_entries <= 22


def test_small_entries_shrink_the_databases(cache: FanoutCache) -> None:
    """Values inside the databases count too: the limit holds for pages and files together."""
    for key in range(2_000):
        cache.set(str(key), SMALL)
    limit = cache.volume() // 2
    done = DiskCache(cache.directory).prune(max_bytes=limit, keep_recent_s=0)
    assert cache.volume() <= limit
    assert 900 <= done.deleted_entries <= 1_300
    assert cache.check() == []


def test_what_was_just_used_stays(cache: FanoutCache) -> None:
    """Even a limit of nothing takes no entry of the last ten minutes, and says that it was held back."""
    fill(cache, 3)
    done = DiskCache(cache.directory).prune(max_bytes=0)
    assert left(cache) == {"0"}
    assert (done.deleted_entries, done.held_back) == (2, True)
    assert DiskCache(cache.directory).prune(max_bytes=0, keep_recent_s=0).deleted_entries == 1
    assert len(cache) == 0


def test_reading_counts_as_use_where_it_is_recorded(tmp_path: Path) -> None:
    """Under least-recently-used an old entry that was just read stays; under DSPy's own policy reads are not known."""
    with dspy_cache(tmp_path, eviction_policy="least-recently-used") as cache:
        fill(cache, 3)
        age(cache, {"0": 9 * DAY})
        assert cache.get("2") == SMALL
        assert DiskCache(tmp_path).status().reads_recorded
        DiskCache(tmp_path).prune(older_than_s=DAY / 2)
        assert left(cache) == {"2"}


def test_a_dry_run_deletes_nothing_and_foretells(cache: FanoutCache) -> None:
    """The count is that of the real run; bytes are an estimate near it."""
    fill(cache, 40, LARGE)
    limit = cache.volume() - 10 * len(LARGE)
    foretold = DiskCache(cache.directory).prune(max_bytes=limit, older_than_s=35 * DAY - 60, dry_run=True)
    assert len(cache) == 40
    done = DiskCache(cache.directory).prune(max_bytes=limit, older_than_s=35 * DAY - 60)
    assert abs(foretold.deleted_entries - done.deleted_entries) <= 1
    assert foretold.freed_bytes == pytest.approx(done.freed_bytes, rel=0.1)
    assert foretold.dry_run


def test_an_entry_used_between_the_look_and_the_delete_stays(cache: FanoutCache) -> None:
    """The last use is looked at again in the transaction that deletes."""
    fill(cache, 130)
    touched = threading.Event()

    def touch(entries: int, freed: int) -> None:
        if not touched.is_set():  # after the first batch the rest of the plan is still waiting
            touched.set()
            for key in left(cache):
                cache.set(key, SMALL)

    done = DiskCache(cache.directory).prune(older_than_s=DAY / 2, progress=touch)
    survivors = left(cache)
    assert touched.is_set()
    assert done.deleted_entries + len(survivors) == 130
    assert len(survivors) > 80  # a quarter was deleted before the others were used
    assert done.entries == len(survivors)


def test_programs_read_and_write_while_it_prunes(cache: FanoutCache) -> None:
    """Readers and writers in other threads see no error, no half entry, and lose nothing that they just wrote."""
    for key in range(3_000):
        cache.set(f"old {key}", LARGE if key % 10 == 0 else SMALL)
    for path in Path(cache.directory).glob("*/cache.db"):
        with closing(sqlite3.connect(path)) as database:
            database.execute("UPDATE Cache SET store_time = store_time - ?", (DAY,))
            database.commit()
    stop, wrong, written = threading.Event(), list[str](), list[str]()

    def use(worker: int) -> None:
        with dspy_cache(Path(cache.directory)) as own:
            for turn in itertools.count():
                if stop.is_set():
                    return
                key = f"new {worker} {turn}"
                own.set(key, SMALL)
                written.append(key)
                if own.get(key) != SMALL:
                    wrong.append(key)
                if own.get(f"old {turn * 7 % 3_000}") not in (None, SMALL, LARGE):
                    wrong.append("half an entry")

    threads = [threading.Thread(target=use, args=(worker,)) for worker in range(3)]
    for thread in threads:
        thread.start()
    try:
        done = DiskCache(cache.directory).prune(max_bytes=0, older_than_s=DAY / 2)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert done.deleted_entries == 3_000
    assert left(cache) == set(written)
    assert cache.check() == []


def test_dspy_answers_from_what_is_left_and_asks_again_for_the_rest(tmp_path: Path) -> None:
    """A program whose cached answer was pruned asks the model; the one that was kept is still answered for nothing."""
    import dspy

    from dspy_observe.testing import offline_lm

    dspy.configure_cache(disk_cache_dir=str(tmp_path), enable_memory_cache=False)
    lm = offline_lm([f"answer {n}" for n in range(9)], cache=True)
    with closing(dspy.cache.disk_cache):
        assert [lm("old"), lm("new"), lm("old")] == [["answer 0"], ["answer 1"], ["answer 0"]]
        (oldest, _) = sorted(_entries(tmp_path), key=lambda entry: entry[1])
        age(dspy.cache.disk_cache, {oldest[0]: DAY})
        assert DiskCache(tmp_path).prune(older_than_s=DAY / 2).deleted_entries == 1
        assert [lm("new"), lm("old")] == [["answer 1"], ["answer 2"]]


def _entries(directory: Path) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for path in directory.glob("*/cache.db"):
        with closing(sqlite3.connect(path)) as database:
            found += database.execute("SELECT key, store_time FROM Cache").fetchall()
    return found


@pytest.mark.parametrize(
    "limits",
    [{}, {"max_bytes": -1}, {"older_than_s": float("nan")}, {"older_than_s": 1.0, "keep_recent_s": -1.0}],
)
def test_limits_that_cannot_work_are_refused(cache: FanoutCache, limits: dict[str, Any]) -> None:
    """Pruning without a limit would be clearing."""
    with pytest.raises(ConfigurationError):
        DiskCache(cache.directory).prune(**limits)


def test_a_folder_without_a_cache_is_refused(tmp_path: Path) -> None:
    """A mistyped folder is not made into a cache."""
    with pytest.raises(CacheError, match="no DSPy cache"):
        DiskCache(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_a_broken_database_is_named(cache: FanoutCache) -> None:
    """A file that is no database is an error with its place, not an empty cache."""
    cache.close()
    (Path(cache.directory) / "003" / "cache.db").write_bytes(b"not a database, for sure" * 100)
    with pytest.raises(CacheError, match="not a database"):
        DiskCache(cache.directory).status()


def test_the_default_folder_is_dspys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule of ``dspy.utils.caching``."""
    from dspy.utils.caching import default_cache_dir

    assert str(default_directory()) == default_cache_dir()
    monkeypatch.delenv("DSPY_CACHEDIR")
    assert str(default_directory()) == default_cache_dir()


@pytest.mark.parametrize(
    ("text", "size"), [("10GB", 10**10), ("1.5 kb", 1_500), ("2KiB", 2_048), ("7", 7), ("3B", 3), ("1TiB", 2**40)]
)
def test_sizes(text: str, size: int) -> None:
    """Decimal and binary units, in any case."""
    assert parse_size(text) == size


@pytest.mark.parametrize(("text", "seconds"), [("7d", 7 * DAY), ("12h", 43_200), ("1.5m", 90), ("2W", 14 * DAY)])
def test_ages(text: str, seconds: float) -> None:
    """Seconds to weeks."""
    assert parse_age(text) == seconds


def run(*arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command."""
    result = CliRunner().invoke(app, ["cache", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_the_commands_answer_people_and_programs(cache: FanoutCache) -> None:
    """``status`` and ``prune`` in words and as JSON."""
    fill(cache, 4)
    where = ("--dir", cache.directory)
    code, out, _ = run("status", *where)
    assert code == 0
    assert "entries" in out
    code, out, _ = run("status", *where, "--json")
    assert (code, json.loads(out)["entries"]) == (0, 4)
    code, out, _ = run("prune", *where, "--older-than", "36h", "--dry-run")
    assert (code, out.splitlines()[0].startswith("would delete 2 entries")) == (0, True)
    code, out, _ = run("prune", *where, "--older-than", "36h", "--json")
    assert (code, json.loads(out)["deleted_entries"]) == (0, 2)
    code, out, _ = run("prune", *where, "--max-size", "0")
    assert code == 0
    assert "deleted 1 entries" in out
    assert "still above 0 B: the others were used too recently" in out
    assert len(cache) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("prune",), 2, "there is no limit"),
        (("prune", "--max-size", "10 apples"), 2, "size such as"),
        (("prune", "--older-than", "7"), 2, "duration such as"),
        (("status", "--dir", "/nonexistent"), 1, "there is no DSPy cache"),
    ],
)
def test_wrong_use_is_told(cache: FanoutCache, arguments: tuple[str, ...], code: int, says: str) -> None:
    """2 for what cannot work, 1 for what is not there."""
    if "--dir" not in arguments:
        arguments = (*arguments, "--dir", cache.directory)
    got, out, err = run(*arguments)
    assert got == code
    assert says in " ".join((out + err).replace("│", " ").split())
