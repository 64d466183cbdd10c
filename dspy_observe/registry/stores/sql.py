"""The SQL store: SQLite for the processes of one host, PostgreSQL for many hosts, through SQLAlchemy Core.

One writer per signature at a time: SQLite's ``BEGIN IMMEDIATE``, PostgreSQL's advisory lock. Every write is one
transaction; a pointer is moved by ``UPDATE ... WHERE generation``, and decisions are unique in the database itself.

Long, because the protocol has some forty short methods, each a statement or two; the tables are in ``schema``.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy import (
    Connection,
    Engine,
    Integer,
    Select,
    Table,
    bindparam,
    create_engine,
    delete,
    event,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    NoSuchModuleError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from dspy_observe.errors import ConfigurationError
from dspy_observe.registry.errors import Conflict, CorruptRegistry, InvalidName, StoreUnavailable
from dspy_observe.registry.names import folded
from dspy_observe.registry.records import (
    Decision,
    Deployment,
    FieldFault,
    Mark,
    Pointer,
    Record,
    Score,
    StoredVersion,
)
from dspy_observe.registry.stores import schema, watching
from dspy_observe.registry.stores.base import LOCK_TIMEOUT_S, Head, Notice, backup_age
from dspy_observe.registry.stores.owner import orphaned
from dspy_observe.registry.values import canonical

__all__ = ["SqlStore"]

R = TypeVar("R", bound=Record)
_Query = tuple[Select[Any], Mapping[str, Any]]

_LOCK: Final = "dspy_observe"
_CONNECT_TIMEOUT_S: Final = 5
_KINDS: Final = ("sqlite", "postgresql+psycopg")
_MAX_POOL: Final = 16
_POLL_S: Final = 0.01
_CHANNEL: Final = "dspy_observe"
"""Where PostgreSQL notifies of moved pointers, with the signature's name; heard in all schemas of the database."""
_LISTEN_S: Final = 0.5
"""How long a listener waits before it looks whether it is to stop."""
_WATCHED_MARKS: Final = frozenset({"rollout"})
"""Marks that serving processes follow as they do pointers."""
_SECRET_PARAMETERS: Final = ("password", "secret", "_key")
"""How PostgreSQL's secret parameters end: password, sslpassword, oauth_client_secret, scram_client_key.
https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS"""
_KEPT_ALIVE: Final = {
    "keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 30_000,
}  # fmt: skip
"""A server that vanished without a word is noticed within half a minute, not after TCP's quarter of an hour.
https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS"""


class SqlStore:
    """A registry in a database; the tables are made, or brought up to date, at the first use.

    Args:
        url: ``sqlite:///file.db`` or ``postgresql+psycopg://user@host/name``.

    Raises:
        ConfigurationError: The URL names no database that works here.
    """

    def __init__(self, url: str) -> None:
        try:
            self._url = _parsed(url)
            if self._url.drivername not in _KINDS or (self._url.drivername == "sqlite" and not self._url.database):
                raise ConfigurationError(
                    "registry_path", f"{self.location!r} is not supported",
                    "Use sqlite:///file.db or postgresql+psycopg://user@host/name",
                )  # fmt: skip
            self._engine = _engine(self._url)
        except (ArgumentError, NoSuchModuleError) as error:
            raise ConfigurationError(
                "registry_path", str(error), "Use sqlite:///file.db or postgresql+psycopg://user@host/name"
            ) from None
        self._file = self._url.drivername == "sqlite"
        self._database = Path(str(self._url.database)).absolute() if self._file else None
        self._inode: tuple[int, int] | None = None
        self._ready = False
        self._preparing = threading.Lock()
        os.register_at_fork(after_in_child=_forget_connections(self._engine))

    @property
    def location(self) -> str:
        """The URL without its passwords."""
        secret = [name for name in self._url.query if name.lower().endswith(_SECRET_PARAMETERS)]
        return self._url.difference_update_query(secret).render_as_string(hide_password=True)

    def names(self) -> list[str]:
        """All signatures, sorted."""
        with self._connected() as connection:
            return sorted(connection.scalars(select(schema.signatures.c.name)))

    @contextmanager
    def read(self, name: str) -> Iterator[SqlView]:
        """See :class:`~dspy_observe.registry.stores.base.Store`."""
        with self._connected(snapshot=True) as connection:
            yield SqlView(connection, name, self.location)

    @contextmanager
    def write(self, name: str) -> Iterator[SqlTransaction]:
        """See :class:`~dspy_observe.registry.stores.base.Store`."""
        with self._connected(lock=name) as connection:
            yield SqlTransaction(connection, name, self.location)

    def program(self, program_hash: str) -> str | None:
        """See :class:`~dspy_observe.registry.stores.base.Store`."""
        table = schema.programs
        with self._connected() as connection:
            return connection.scalar(select(table.c.body).where(table.c.hash == program_hash))

    def place_of(self, program_hash: str) -> str:
        """Database, table and row."""
        return f"{self.location}, table {schema.programs.name}, {program_hash}"

    def backups(self, name: str) -> list[str]:
        """See :class:`~dspy_observe.registry.stores.base.Store`."""
        table = schema.backups
        with self._connected() as connection:
            return sorted(connection.scalars(select(table.c.label).where(table.c.name == name)), key=backup_age)

    def backup(self, name: str, label: str) -> str | None:
        """See :class:`~dspy_observe.registry.stores.base.Store`."""
        table = schema.backups
        with self._connected() as connection:
            return connection.scalar(select(table.c.body).where(table.c.name == name, table.c.label == label))

    def collect(self) -> int:
        """See :class:`~dspy_observe.registry.stores.base.Store`."""
        used = select(schema.versions.c.program_hash).where(schema.versions.c.program_hash.is_not(None))
        with self._connected(lock="") as connection:
            return connection.execute(delete(schema.programs).where(schema.programs.c.hash.not_in(used))).rowcount

    def settings(self) -> dict[str, Any]:
        """See :class:`~dspy_observe.registry.stores.base.Store`."""
        with self._connected() as connection:
            body = connection.scalar(select(schema.settings.c.body).where(schema.settings.c.key == "config"))
        return {} if body is None else dict(json.loads(body))

    def keep_settings(self, settings: Mapping[str, Any]) -> None:
        """See :class:`~dspy_observe.registry.stores.base.Store`."""
        if not self.settings():
            with self._connected(lock="") as connection:
                table = schema.settings
                if connection.scalar(select(table.c.key).where(table.c.key == "config")) is None:
                    connection.execute(insert(table).values(key="config", body=canonical(dict(settings))))

    def take_notices(self, owner: str, now: float) -> list[Notice]:
        """See :class:`~dspy_observe.registry.stores.base.Store`."""
        table = schema.notices
        wanted = select(table.c.delivery_id, table.c.program, table.c.owner, table.c.at, table.c.body)
        with self._connected() as connection:
            if not [row for row in connection.execute(wanted) if orphaned(row.owner, row.at, now)]:
                return []
        taken = []
        with self._connected(lock="") as connection:
            for row in connection.execute(wanted).all():
                if orphaned(row.owner, row.at, now):
                    connection.execute(
                        update(table).where(table.c.delivery_id == row.delivery_id).values(owner=owner, at=now)
                    )
                    taken.append(Notice(row.delivery_id, row.program, owner, now, json.loads(row.body)))
        return sorted(taken, key=lambda one: float(one.event["at"]))

    def forget(self, delivery_ids: Sequence[str]) -> None:
        """See :class:`~dspy_observe.registry.stores.base.Store`."""
        with self._connected(lock=None if not self._file else "") as connection:
            connection.execute(delete(schema.notices).where(schema.notices.c.delivery_id.in_(delivery_ids)))

    def changes(self, name: str, stop: threading.Event) -> Iterator[None] | None:
        """See :class:`~dspy_observe.registry.stores.base.Store`: SQLite's files are watched, PostgreSQL notifies."""
        if not self._file:
            return self._notified(name, stop)
        database = Path(str(self._url.database)).absolute()
        names = frozenset({database.name, f"{database.name}-wal"})
        # The log is written first, then waits for the disk, and only then can the commit be seen, which tells nobody.
        return watching.changes_of(database.parent, names, stop, echoes=4)

    def _notified(self, name: str, stop: threading.Event) -> Iterator[None]:
        """What writers of the signature notify, on a connection of its own."""
        with self._translated():
            self._prepare()
            held = self._engine.connect()
            held.detach()
        connection: Any = held.connection.dbapi_connection
        try:
            connection.autocommit = True
            connection.execute(f"LISTEN {_CHANNEL}")
            yield
            while not stop.is_set():
                if any(one.payload == name for one in connection.notifies(timeout=_LISTEN_S, stop_after=1)):
                    yield
        except connection.Error as error:
            raise StoreUnavailable(f"{self.location}: no notifications any more: {error}") from error
        finally:
            held.close()

    def close(self) -> None:
        """Give up the connections."""
        self._engine.dispose()

    @contextmanager
    def _connected(self, *, lock: str | None = None, snapshot: bool = False) -> Iterator[Connection]:
        """One transaction.

        Args:
            lock: The signature to lock, ``""`` for what belongs to none; ``None`` takes no lock.
            snapshot: All reads see the same moment.
        """
        with self._translated():
            self._prepare()
            self._check_still_there()
            connection = self._engine.connect()
            try:
                if lock is not None and self._file:
                    connection = connection.execution_options(immediate=True)
                if snapshot and not self._file:
                    connection = connection.execution_options(isolation_level="REPEATABLE READ")
                with connection.begin():
                    if lock is not None and not self._file:
                        self._lock(connection, lock)
                    yield connection
            finally:
                connection.close()

    def _lock(self, connection: Connection, name: str) -> None:
        connection.execute(text(f"SET LOCAL lock_timeout = {int(LOCK_TIMEOUT_S * 1000)}"))
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))"), {"key": f"{_LOCK}/{name}"})

    def _prepare(self) -> None:
        """Make or update the tables, once in each process."""
        if self._ready:
            return
        with self._preparing:
            if self._ready:
                return
            with self._engine.connect() as plain:
                connection = plain.execution_options(immediate=True) if self._file else plain
                with connection.begin():
                    if not self._file:
                        self._lock(connection, "schema")
                    schema.migrate(connection)
            self._inode = self._inode_now()
            self._ready = True

    def _inode_now(self) -> tuple[int, int] | None:
        """Which file the database is; ``None`` where there is none of that name, as for one in memory."""
        try:
            found = None if self._database is None else self._database.stat()
        except OSError:
            return None
        return None if found is None else (found.st_dev, found.st_ino)

    def _check_still_there(self) -> None:
        """SQLite goes on with a file that was deleted, and what it is told to keep is gone with the process."""
        if self._inode is not None and self._inode_now() != self._inode:
            self._engine.dispose()
            if self._database is not None and self._database.exists():
                self._ready = False  # another one was put in its place: the next attempt opens that
            raise StoreUnavailable(
                f"{self.location}: the file was there and is gone, or is another one now. Is its volume mounted?"
            )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError as error:
            what = f"{self.location}: somebody else wrote the same: {error.orig}"
            raise Conflict(what, expected=None, current=None) from error
        except (OperationalError, PoolTimeout) as error:
            raise StoreUnavailable(f"{self.location}: {getattr(error, 'orig', error)}") from error
        except DBAPIError as error:
            what = str(error.orig)
            if "not a database" in what or "malformed" in what:
                raise CorruptRegistry(self.location, None, what) from error
            raise StoreUnavailable(f"{self.location}: {what}") from error
        except SQLAlchemyError as error:
            raise StoreUnavailable(f"{self.location}: {error}") from error


def _parsed(url: str) -> URL:
    try:
        return make_url(url)
    except ValueError:  # says no more than that it expected a number
        raise ConfigurationError(
            "registry_path", "the port behind the host is no number", "Use postgresql+psycopg://user@host:5432/name"
        ) from None


def _engine(url: URL) -> Engine:
    if url.drivername != "sqlite":
        arguments = {"connect_timeout": _CONNECT_TIMEOUT_S, **_KEPT_ALIVE}
        return create_engine(url, pool_pre_ping=True, max_overflow=_MAX_POOL, connect_args=arguments)
    engine = create_engine(url, max_overflow=_MAX_POOL, connect_args={"timeout": LOCK_TIMEOUT_S})

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _: object) -> None:
        connection.isolation_level = None  # transactions are begun below, and nowhere else
        _write_ahead(connection)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A deferred transaction that writes after reading fails at once when another writer was quicker.
        immediate = connection.get_execution_options().get("immediate", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Switch to the write-ahead log; while another process does so, SQLite refuses at once instead of waiting."""
    until = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(_POLL_S)
        else:
            return


def _forget_connections(engine: Engine) -> Any:
    """After a fork the child must not use, nor close, its parent's connections."""
    known = weakref.ref(engine)

    def forget() -> None:
        there = known()
        if there is not None:
            there.dispose(close=False)

    return forget


# Building a statement costs more than SQLite takes to answer it, so each is built once.


@cache
def _bodies_of(table: Table, columns: tuple[str, ...], order: str | None, limited: bool) -> Select[Any]:
    query = select(table.c.body).where(table.c.name == bindparam("name_"))
    for column in columns:
        query = query.where(table.c[column] == bindparam(f"{column}_"))
    if order is not None:
        by = table.c[order.removeprefix("-")]
        query = query.order_by(by.desc() if order.startswith("-") else by)
    return query.limit(bindparam("limit_", type_=Integer)) if limited else query


@cache
def _one_of(table: Table, column: str) -> Select[Any]:
    return select(table.c[column]).where(table.c.name == bindparam("name_")).limit(1)


@cache
def _highest_of(table: Table) -> Select[Any]:
    return select(func.max(table.c.ordinal)).where(table.c.name == bindparam("name_"))


_BY_HASH: Final = (
    select(schema.versions.c.body)
    .where(schema.versions.c.name == bindparam("name_"))
    .where(schema.versions.c.hash >= bindparam("low"), schema.versions.c.hash <= bindparam("high"))
    .limit(2)
)


class SqlView:
    """A signature in one transaction."""

    def __init__(self, connection: Connection, name: str, location: str) -> None:
        self._connection = connection
        self._location = location
        self._name = name

    @property
    def name(self) -> str:
        """The signature."""
        return self._name

    @property
    def exists(self) -> bool:
        """Whether it has a row."""
        return self._one(schema.signatures, "name") is not None

    def head(self) -> Head:
        """See :class:`~dspy_observe.registry.stores.base.View`, here and below."""
        table = schema.signatures
        row = self._connection.execute(
            select(table.c.next_sequence, table.c.last_name).where(table.c.name == self._name)
        ).first()
        return Head() if row is None else Head(row.next_sequence, row.last_name)

    def count(self) -> int:
        """Number of versions."""
        table = schema.versions
        return self._connection.scalar(select(func.count()).select_from(table).where(table.c.name == self._name)) or 0

    def versions(self) -> Sequence[StoredVersion]:
        """Oldest first."""
        return self._many(StoredVersion, self._bodies(schema.versions, order="sequence"))

    def version(self, version: str) -> StoredVersion | None:
        """By display name."""
        return self._first(StoredVersion, self._bodies(schema.versions, version=version))

    def by_hash(self, prefix: str) -> StoredVersion | None:
        """By hash or its beginning."""
        found = self._many(StoredVersion, (_BY_HASH, {"name_": self._name, "low": prefix, "high": prefix + "g"}))
        return found[0] if len(found) == 1 else None

    def pointer(self, environment: str) -> Pointer | None:
        """Of one environment."""
        return self._first(Pointer, self._bodies(schema.pointers, environment=environment))

    def pointers(self) -> Sequence[Pointer]:
        """Of all environments."""
        return sorted(self._many(Pointer, self._bodies(schema.pointers)), key=lambda one: one.environment)

    def deployments(self, environment: str | None = None) -> Sequence[Deployment]:
        """Oldest first."""
        wanted: dict[str, Any] = {} if environment is None else {"environment": environment}
        table = schema.deployments
        return self._many(Deployment, self._bodies(table, order="ordinal", **wanted))

    def scores(self, version_hash: str | None = None) -> Sequence[Score]:
        """Oldest first."""
        wanted: dict[str, Any] = {} if version_hash is None else {"hash": version_hash}
        return self._many(Score, self._bodies(schema.scores, order="ordinal", **wanted))

    def last_score(self, version_hash: str) -> Score | None:
        """Latest of one version."""
        latest = self._bodies(schema.scores, order="-ordinal", limit=1, hash=version_hash)
        return self._first(Score, latest)

    def last_scores(self) -> Mapping[str, Score]:
        """Latest of each version."""
        return {one.version_hash: one for one in self.scores()}

    def marks(self, kind: str) -> Sequence[Mark]:
        """Of one kind."""
        table = schema.aliases_and_marks
        return self._many(Mark, self._bodies(table, order="ordinal", kind=kind))

    def mark(self, kind: str, key: str) -> Mark | None:
        """One."""
        return self._first(Mark, self._bodies(schema.aliases_and_marks, kind=kind, key=key))

    def decisions(self, environment: str | None = None, limit: int | None = None) -> Sequence[Decision]:
        """Oldest first."""
        wanted: dict[str, Any] = {} if environment is None else {"environment": environment}
        table = schema.decisions
        latest = self._bodies(table, order="-ordinal", limit=limit, **wanted)
        return self._many(Decision, latest)[::-1]

    def rollbacks(self, environment: str, limit: int) -> Sequence[Decision]:
        """By the column that only they have set."""
        latest = self._bodies(schema.decisions, order="-ordinal", limit=limit, environment=environment, applied=1)
        return self._many(Decision, latest)[::-1]

    def applied(self, environment: str, fingerprint: str, starts_at: str) -> Decision | None:
        """By alert."""
        key = _applied_key(fingerprint, starts_at)
        return self._first(Decision, self._bodies(schema.decisions, environment=environment, applied_key=key))

    def evidence(self, environment: str) -> dict[str, Any] | None:
        """A row."""
        body = self._connection.scalar(*self._bodies(schema.evidence, environment=environment))
        return None if body is None else dict(json.loads(body))

    def _bodies(
        self, table: Table, *, order: str | None = None, limit: int | None = None, **wanted: str | int
    ) -> _Query:
        """Records by columns; ``order`` is a column, with ``-`` before it from the last to the first."""
        values: dict[str, Any] = {"name_": self._name, **{f"{column}_": value for column, value in wanted.items()}}
        if limit is not None:
            values["limit_"] = limit
        return _bodies_of(table, tuple(wanted), order, limit is not None), values

    def _one(self, table: Table, column: str) -> Any:
        return self._connection.scalar(_one_of(table, column), {"name_": self._name})

    def _first(self, kind: type[R], query: _Query) -> R | None:
        body = self._connection.scalar(*query)
        return None if body is None else self._record(kind, body)

    def _many(self, kind: type[R], query: _Query) -> list[R]:
        return [self._record(kind, body) for body in self._connection.scalars(*query)]

    def _record(self, kind: type[R], body: str) -> R:
        try:
            return kind.from_dict(json.loads(body))
        except (ValueError, FieldFault) as fault:
            raise CorruptRegistry(f"{self._location}, {self._name}, {kind.__name__}", None, str(fault)) from None


class SqlTransaction(SqlView):
    """A signature in a transaction that holds its lock."""

    def set_head(self, head: Head) -> None:
        """See :class:`~dspy_observe.registry.stores.base.Transaction`, here and below."""
        table, values = schema.signatures, {"next_sequence": head.next_sequence, "last_name": head.last_name}
        if self._connection.execute(update(table).where(table.c.name == self._name).values(values)).rowcount:
            return
        try:
            self._connection.execute(insert(table).values(name=self._name, folded=folded(self._name), **values))
        except IntegrityError:
            raise InvalidName("signature", self._name, "it differs only in case from another one") from None

    def put_program(self, program_hash: str, text: str) -> None:
        """A row, unless there is one."""
        table = schema.programs
        # Held until the version refers to it, so that no clean-up of another process takes it away in between.
        there = select(table.c.hash).where(table.c.hash == program_hash).with_for_update(read=True, key_share=True)
        if self._connection.scalar(there) is None:
            try:
                with self._connection.begin_nested():
                    self._connection.execute(insert(table).values(hash=program_hash, body=text))
            except IntegrityError:  # another signature's writer was quicker with the same program
                return

    def add_version(self, version: StoredVersion) -> None:
        """A row."""
        self._connection.execute(
            insert(schema.versions).values(
                name=self._name, sequence=version.sequence, version=version.version, hash=version.version_hash,
                program_hash=version.program_hash, body=canonical(version.to_dict()),
            )
        )  # fmt: skip

    def remove_version(self, version_hash: str) -> None:
        """Its row."""
        table = schema.versions
        self._connection.execute(delete(table).where(table.c.name == self._name, table.c.hash == version_hash))

    def move_pointer(self, pointer: Pointer, deployment: Deployment) -> None:
        """Compare and swap in the database."""
        table, body = schema.pointers, canonical(pointer.to_dict())
        if pointer.generation == 1:
            moved = self.pointer(pointer.environment) is None
            if moved:
                self.place_pointer(pointer)
        else:
            mine = (table.c.name == self._name, table.c.environment == pointer.environment)
            swap = update(table).where(*mine, table.c.generation == pointer.generation - 1)
            moved = self._connection.execute(swap.values(generation=pointer.generation, body=body)).rowcount == 1
        if not moved:
            current = self.pointer(pointer.environment)
            generation = 0 if current is None else current.generation
            raise Conflict(
                f"{self._name} in {pointer.environment} is at generation {generation}, not {pointer.generation - 1}",
                expected=pointer.generation - 1, current=generation,
            )  # fmt: skip
        self.add_deployments([deployment])
        self._notify()

    def place_pointer(self, pointer: Pointer) -> None:
        """A row."""
        self._connection.execute(
            insert(schema.pointers).values(
                name=self._name, environment=pointer.environment, generation=pointer.generation,
                body=canonical(pointer.to_dict()),
            )
        )  # fmt: skip

    def add_deployments(self, deployments: Sequence[Deployment]) -> None:
        """A row each."""
        first = self._next(schema.deployments)
        for ordinal, one in enumerate(deployments, first):
            self._connection.execute(
                insert(schema.deployments).values(
                    name=self._name, ordinal=ordinal, environment=one.environment, body=canonical(one.to_dict())
                )
            )

    def add_score(self, score: Score) -> bool:
        """A row, unless its id is there."""
        table = schema.scores
        there = select(table.c.ordinal).where(table.c.name == self._name, table.c.score_id == score.score_id)
        if self._connection.scalar(there) is not None:
            return False
        self._connection.execute(
            insert(table).values(
                name=self._name, ordinal=self._next(table), score_id=score.score_id, hash=score.version_hash,
                body=canonical(score.to_dict()),
            )
        )  # fmt: skip
        return True

    def add_decision(self, decision: Decision) -> None:
        """A row; the database itself refuses a second one that was applied for the same alert."""
        key = None
        if decision.applied and decision.fingerprint is not None and decision.starts_at is not None:
            key = _applied_key(decision.fingerprint, decision.starts_at)
        self._connection.execute(
            insert(schema.decisions).values(
                name=self._name, ordinal=self._next(schema.decisions), environment=decision.environment,
                applied_key=key, applied=1 if decision.applied else None, body=canonical(decision.to_dict()),
            )
        )  # fmt: skip

    def set_mark(self, mark: Mark) -> None:
        """A row, or its new content."""
        table, body = schema.aliases_and_marks, canonical(mark.to_dict())
        mine = (table.c.name == self._name, table.c.kind == mark.kind, table.c.key == mark.key)
        if mark.kind in _WATCHED_MARKS:
            self._notify()
        if self._connection.execute(update(table).where(*mine).values(body=body)).rowcount:
            return
        ordinal = self._next(table)
        self._connection.execute(
            insert(table).values(name=self._name, kind=mark.kind, key=mark.key, ordinal=ordinal, body=body)
        )

    def drop_mark(self, kind: str, key: str) -> None:
        """Its row."""
        table = schema.aliases_and_marks
        self._connection.execute(
            delete(table).where(table.c.name == self._name, table.c.kind == kind, table.c.key == key)
        )

    def set_evidence(self, environment: str, state: Mapping[str, Any]) -> None:
        """A row, or its new content."""
        table, body = schema.evidence, canonical(dict(state))
        mine = (table.c.name == self._name, table.c.environment == environment)
        if not self._connection.execute(update(table).where(*mine).values(body=body)).rowcount:
            self._connection.execute(insert(table).values(name=self._name, environment=environment, body=body))

    def add_notice(self, notice: Notice) -> None:
        """A row."""
        self._connection.execute(
            insert(schema.notices).values(
                delivery_id=notice.delivery_id, program=notice.program, owner=notice.owner, at=notice.at,
                body=canonical(dict(notice.event)),
            )
        )  # fmt: skip

    def add_backup(self, label: str, text: str, keep: int) -> None:
        """A row; the oldest go."""
        table = schema.backups
        labels = set(self._connection.scalars(select(table.c.label).where(table.c.name == self._name)))
        if label not in labels:
            self._connection.execute(insert(table).values(name=self._name, label=label, body=text))
        if keep:
            old = sorted({*labels, label}, key=backup_age)[:-keep]
            self._connection.execute(delete(table).where(table.c.name == self._name, table.c.label.in_(old)))

    def _notify(self) -> None:
        """Let listeners know when, and only if, this transaction commits: a hint, lost where nobody listens."""
        if self._connection.dialect.name == "postgresql":
            self._connection.execute(
                text("SELECT pg_notify(:channel, :name)"), {"channel": _CHANNEL, "name": self._name}
            )

    def _next(self, table: Table) -> int:
        """The next row's number in this signature, which is locked."""
        highest = self._connection.scalar(_highest_of(table), {"name_": self._name})
        return 1 if highest is None else int(highest) + 1


def _applied_key(fingerprint: str, starts_at: str) -> str:
    return canonical([fingerprint, starts_at])
