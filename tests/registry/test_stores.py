"""What every store promises, below any rule of the registry."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from dspy_observe.errors import ConfigurationError
from dspy_observe.registry import Conflict, StoreUnavailable
from dspy_observe.registry.records import Decision, Deployment, Mark, Pointer, Score, StoredVersion
from dspy_observe.registry.stores import open_store
from dspy_observe.registry.stores.base import Head, Notice, Store
from dspy_observe.registry.values import canonical

AT = datetime(2024, 1, 15, 14, 30, 22, 5, tzinfo=UTC)


def version(number: int) -> StoredVersion:
    """A version whose hash is its number."""
    return StoredVersion(f"v{number}", number, f"{number:064x}", AT, {"n": number}, {})


def pointer(generation: int, number: int = 1) -> Pointer:
    """Production at a version."""
    return Pointer("production", f"v{number}", f"{number:064x}", generation, AT)


def entry(generation: int, number: int = 1) -> Deployment:
    """The log entry of that move."""
    return Deployment(
        f"d{generation}", "production", "deploy", f"v{number}", f"{number:064x}", None, None, generation, AT
    )


def add(store: Store, *numbers: int) -> None:
    """Register versions."""
    with store.write("qa") as txn:
        for number in numbers:
            txn.set_head(Head(number + 1, f"v{number}"))
            txn.add_version(version(number))


def test_nothing_is_there_at_first(store: Store) -> None:
    """And looking changes nothing."""
    assert store.names() == []
    with store.read("qa") as view:
        assert (view.exists, view.count(), view.head()) == (False, 0, Head())
        assert view.pointer("production") is None
    with store.write("qa"):
        pass
    assert store.names() == []
    assert store.settings() == {}
    assert store.take_notices("me", 0.0) == []


@pytest.mark.parametrize("taken", ["version", "version_hash"])
def test_second_version_with_a_name_or_hash_is_a_conflict(store: Store, taken: str) -> None:
    """The store itself refuses what it could not be opened with."""
    add(store, 1)
    with pytest.raises(Conflict), store.write("qa") as txn:  # noqa: PT012 - SQL refuses at the row or at the end
        txn.set_head(Head(3, "v2"))
        txn.add_version(replace(version(2), **{taken: getattr(version(1), taken)}))
    with store.read("qa") as view:
        assert (list(view.versions()), view.head()) == ([version(1)], Head(2, "v1"))


def test_block_that_raises_leaves_nothing(store: Store) -> None:
    """Of all that was written in it, in every table and file."""
    add(store, 1)
    with pytest.raises(RuntimeError), store.write("qa") as txn:  # noqa: PT012 - the block is what is undone
        txn.set_head(Head(9, "x"))
        txn.add_version(version(2))
        txn.put_program("f" * 64, "{}")
        txn.move_pointer(pointer(1), entry(1))
        txn.add_score(Score("s", "v1", f"{1:064x}", 0.5, AT))
        txn.set_mark(Mark("alias", "a", "v1", f"{1:064x}", AT))
        txn.add_notice(Notice("n", "qa", "host:1:0", 0.0, {"at": 0.0}))
        txn.add_backup("v1_20240115_143022_000000", "text", 3)
        assert txn.count() == 2
        assert txn.pointer("production") == pointer(1)
        raise RuntimeError
    with store.read("qa") as view:
        assert (view.count(), view.head(), view.pointer("production")) == (1, Head(2, "v1"), None)
        assert (list(view.scores()), list(view.marks("alias")), list(view.deployments())) == ([], [], [])
    assert store.program("f" * 64) is None
    assert store.backups("qa") == []
    assert store.take_notices("me", 1e12) == []


def test_pointer_moves_by_one_generation_only(store: Store) -> None:
    """A move from elsewhere than where it stands is a conflict that says where it stands."""
    add(store, 1, 2)
    with store.write("qa") as txn:
        txn.move_pointer(pointer(1), entry(1))
    for wrong in (1, 3):
        with pytest.raises(Conflict) as caught, store.write("qa") as txn:
            txn.move_pointer(pointer(wrong, 2), entry(wrong, 2))
        assert caught.value.current == 1
    with store.write("qa") as txn:
        txn.move_pointer(pointer(2, 2), entry(2, 2))
    with store.read("qa") as view:
        assert view.pointer("production") == pointer(2, 2)
        assert list(view.deployments("production")) == [entry(1), entry(2, 2)]
        assert list(view.deployments("staging")) == []


def test_view_is_of_one_moment(store: Store, location: str) -> None:
    """What another writer commits in between is not seen."""
    add(store, 1)
    other = open_store(location)
    with store.read("qa") as view:
        assert view.count() == 1
        add(other, 2)
        assert view.count() == 1
    with store.read("qa") as view:
        assert view.count() == 2
    other.close()


def test_records_come_back_as_they_were(store: Store, location: str) -> None:
    """By every way of asking, from another store object."""
    add(store, 1, 2, 300)
    score = Score("s1", "v1", f"{1:064x}", 0.1 + 0.2, AT, "dev", 3, 0.5, "me")
    mark = Mark("alias", "best", "v1", f"{1:064x}", AT, "me", "why", {"deep": [1, {"x": None}]})
    with store.write("qa") as txn:
        assert txn.add_score(score)
        assert not txn.add_score(score)
        txn.set_mark(mark)
        txn.add_backup("v1_20240115_143022_000001", "one", 2)
        txn.add_backup("v0_20240115_143022_000002", "two", 2)
        txn.add_backup("v9_20240115_143022_000000", "three", 2)
    other = open_store(location)
    with other.read("qa") as view:
        assert list(view.versions()) == [version(1), version(2), version(300)]
        assert view.version("v2") == version(2)
        assert view.by_hash(f"{300:064x}") == version(300)
        assert view.by_hash("0" * 62) is None
        assert view.by_hash(f"{300:064x}"[:63]) == version(300)
        assert view.last_score(f"{1:064x}") == score
        assert list(view.scores(f"{2:064x}")) == []
        assert view.last_scores() == {f"{1:064x}": score}
        assert view.mark("alias", "best") == mark
    assert other.backups("qa") == ["v1_20240115_143022_000001", "v0_20240115_143022_000002"]
    assert other.backup("qa", "v0_20240115_143022_000002") == "two"
    other.close()


def test_mark_is_replaced_and_dropped(store: Store) -> None:
    """Under its kind and key."""
    add(store, 1)
    with store.write("qa") as txn:
        txn.set_mark(Mark("alias", "a", "v1", f"{1:064x}", AT))
        txn.set_mark(Mark("alias", "a", "v1", f"{1:064x}", AT, reason="new"))
        txn.set_mark(Mark("note", "a", "v1", f"{1:064x}", AT))
    with store.write("qa") as txn:
        assert [mark.reason for mark in txn.marks("alias")] == ["new"]
        txn.drop_mark("alias", "a")
        txn.drop_mark("alias", "never")
    with store.read("qa") as view:
        assert list(view.marks("alias")) == []
        assert len(view.marks("note")) == 1


def test_notices_of_dead_processes_are_taken_once(store: Store) -> None:
    """And those that were left for five minutes; forgotten ones never."""
    add(store, 1)
    import socket

    dead = f"{socket.gethostname()}:999999999:1"
    with store.write("qa") as txn:
        txn.set_head(Head(5, "x"))
        for delivery_id, owner in (("a", dead), ("b", "elsewhere:1:1"), ("c", dead)):
            txn.add_notice(Notice(delivery_id, "qa", owner, 100.0, {"at": 1.0, "name": delivery_id}))
    store.forget(["c"])
    assert [notice.delivery_id for notice in store.take_notices("elsewhere:2:2", 200.0)] == ["a"]
    assert store.take_notices("elsewhere:3:3", 200.0) == []
    assert {notice.delivery_id for notice in store.take_notices("elsewhere:3:3", 600.0)} == {"a", "b"}
    store.forget(["a", "b"])
    assert store.take_notices("elsewhere:3:3", 1e9) == []


def test_settings_are_kept_once(store: Store, location: str) -> None:
    """The first ones win."""
    store.keep_settings({"version_format": "v%Y"})
    store.keep_settings({"version_format": "other"})
    other = open_store(location)
    assert other.settings() == {"version_format": "v%Y"}
    other.close()


@pytest.mark.parametrize(
    "url",
    ["mysql://x/y", "sqlite://", "nonsense://", "postgresql://u:secret@h/d", "mysql://h/d?password=secret", "://"],
)
def test_urls_that_name_no_store_are_refused(url: str) -> None:
    """Without the password in the message."""
    with pytest.raises(ConfigurationError) as caught:
        open_store(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://u:secret1@127.0.0.1:1/d?sslmode=disable",
        "postgresql+psycopg://u@127.0.0.1:1/d?sslmode=disable&password=secret1&sslpassword=secret2",
    ],
)
def test_password_is_not_part_of_the_location(url: str) -> None:
    """Which stands in messages and logs; it is of no matter where in the URL it was given."""
    store = open_store(url)
    assert "secret" not in store.location
    assert "sslmode=disable" in store.location
    with pytest.raises(StoreUnavailable) as caught:
        store.names()
    assert "secret" not in str(caught.value)


def test_a_port_that_is_no_number_is_named() -> None:
    """And what stands in its place is not repeated: it may be a password."""
    with pytest.raises(ConfigurationError, match="port") as caught:
        open_store("postgresql+psycopg://u:pw@host:secret/d")
    assert "secret" not in str(caught.value)


def test_newer_database_is_refused_and_an_older_one_brought_up_to_date(tmp_path: Any) -> None:
    """Each step runs once, in order, in one transaction."""
    from sqlalchemy import create_engine, text

    from dspy_observe.registry.stores import schema

    engine = create_engine(f"sqlite:///{tmp_path / 'registry.db'}")
    with engine.begin() as connection:
        assert schema.migrate(connection) == len(schema.MIGRATIONS)
    steps = (*schema.MIGRATIONS, ["CREATE TABLE more (x BIGINT)"], ["INSERT INTO more VALUES (7)"])
    with engine.begin() as connection:
        assert schema.migrate(connection, steps) == 2
    with engine.begin() as connection:
        assert schema.migrate(connection, steps) == 0
        assert connection.scalar(text("SELECT x FROM more")) == 7
    with pytest.raises(ConfigurationError, match="newer"), engine.begin() as connection:
        schema.migrate(connection)
    engine.dispose()
    with pytest.raises(ConfigurationError, match="newer"):
        open_store(f"sqlite:///{tmp_path / 'registry.db'}").names()


def test_rollbacks_of_an_older_database_are_found(location: str, clock: Any) -> None:
    """Decisions that were stored before they had a column of their own for it."""
    if "://" in location:
        from sqlalchemy import create_engine, text

        from dspy_observe.registry.stores import schema

        made = [
            Decision(f"d{n}", "production", outcome, "why", AT, "alert", "f", str(n))
            for n, outcome in enumerate(("held", "rollback", "stale", "rollback"))
        ]
        engine = create_engine(location)
        with engine.begin() as connection:
            schema.migrate(connection, schema.MIGRATIONS[:1])
            connection.execute(text("INSERT INTO dspy_observe_signatures VALUES ('qa', 'qa', 1, '')"))
            for ordinal, one in enumerate(made, 1):
                connection.execute(
                    text("INSERT INTO dspy_observe_decisions VALUES ('qa', :ordinal, 'production', NULL, :body)"),
                    {"ordinal": ordinal, "body": canonical(one.to_dict())},
                )
        engine.dispose()
        store = open_store(location)
        with store.read("qa") as view:
            assert list(view.rollbacks("production", 10)) == [made[1], made[3]]
            assert list(view.rollbacks("production", 1)) == [made[3]]
            assert list(view.rollbacks("staging", 10)) == []
            assert list(view.decisions("production")) == made
        store.close()


def test_processes_that_start_together_make_the_tables_once(location: str, start_python: Callable[..., Any]) -> None:
    """No one trips over another one's first use."""
    code = """
        import sys
        from dspy_observe.registry import SignatureRegistry
        SignatureRegistry(sys.argv[1]).register_version("qa", {"who": sys.argv[2]})
    """
    started = [start_python(code, location, str(number)) for number in range(4)]
    for process in started:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    store = open_store(location)
    with store.read("qa") as view:
        assert view.count() == 4
    store.close()


def test_forked_process_uses_connections_of_its_own(store: Store) -> None:
    """A server that forks its workers after it opened the registry does not mix their answers."""
    import os

    add(store, 1)
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of other tests may still be there
        child = os.fork()
    if child == 0:
        try:
            add(store, 2)
            os.write(writer, b"ok")
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as pipe:
        assert pipe.read() == "ok"
    with store.read("qa") as view:
        assert view.count() == 2


def test_registry_starts_without_dspy_and_file_store_without_sqlalchemy() -> None:
    """So that reading a registry takes a moment."""
    code = """
import sys, tempfile
from dspy_observe.registry import RegistryManager, SignatureRegistry
registry = SignatureRegistry(tempfile.mkdtemp())
assert registry.list_signatures() == []
assert RegistryManager(registry).bulk_deployment_status().statuses == ()
print(sorted({"dspy", "litellm", "sqlalchemy", "numpy", "opentelemetry"} & set(sys.modules)))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert out.strip() == "[]"
