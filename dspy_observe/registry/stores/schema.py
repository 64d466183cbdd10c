"""Tables of the SQL store, and how a database gets from one shape to the next.

A row's identity and what is searched for stand in columns; the record itself is JSON text in ``body``, exact in every
database. Numbers of rows are per signature and given out under its lock, so no database sequence is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import BigInteger, Column, Connection, Float, MetaData, String, Table, Text, inspect, select, text

from dspy_observe.errors import ConfigurationError

__all__ = [
    "MIGRATIONS", "aliases_and_marks", "backups", "decisions", "deployments", "evidence", "migrate", "notices",
    "pointers", "programs", "scores", "settings", "signatures", "versions",
]  # fmt: skip

_meta: Final = MetaData()
_PREFIX: Final = "dspy_observe_"


def _table(name: str, *columns: Column[object]) -> Table:
    return Table(_PREFIX + name, _meta, *columns)


signatures: Final = _table(
    "signatures", Column("name", String, primary_key=True), Column("folded", String),
    Column("next_sequence", BigInteger), Column("last_name", Text),
)  # fmt: skip
programs: Final = _table("programs", Column("hash", String, primary_key=True), Column("body", Text))
versions: Final = _table(
    "versions", Column("name", String, primary_key=True), Column("sequence", BigInteger, primary_key=True),
    Column("version", String), Column("hash", String), Column("program_hash", String), Column("body", Text),
)  # fmt: skip
pointers: Final = _table(
    "pointers", Column("name", String, primary_key=True), Column("environment", String, primary_key=True),
    Column("generation", BigInteger), Column("body", Text),
)  # fmt: skip
deployments: Final = _table(
    "deployments", Column("name", String, primary_key=True), Column("ordinal", BigInteger, primary_key=True),
    Column("environment", String), Column("body", Text),
)  # fmt: skip
scores: Final = _table(
    "scores", Column("name", String, primary_key=True), Column("ordinal", BigInteger, primary_key=True),
    Column("score_id", String), Column("hash", String), Column("body", Text),
)  # fmt: skip
aliases_and_marks: Final = _table(
    "marks", Column("name", String, primary_key=True), Column("kind", String, primary_key=True),
    Column("key", String, primary_key=True), Column("ordinal", BigInteger), Column("body", Text),
)  # fmt: skip
decisions: Final = _table(
    "decisions", Column("name", String, primary_key=True), Column("ordinal", BigInteger, primary_key=True),
    Column("environment", String), Column("applied_key", String), Column("applied", BigInteger), Column("body", Text),
)  # fmt: skip
notices: Final = _table(
    "notices", Column("delivery_id", String, primary_key=True), Column("program", String), Column("owner", Text),
    Column("at", Float), Column("body", Text),
)  # fmt: skip
backups: Final = _table(
    "backups", Column("name", String, primary_key=True), Column("label", String, primary_key=True),
    Column("body", Text),
)  # fmt: skip
evidence: Final = _table(
    "evidence", Column("name", String, primary_key=True), Column("environment", String, primary_key=True),
    Column("body", Text),
)  # fmt: skip
settings: Final = _table("settings", Column("key", String, primary_key=True), Column("body", Text))

# The statements of a migration never change once released: they make the shape of their time, not that of today.
_FIRST: Final = (
    (
        "CREATE TABLE dspy_observe_signatures (name VARCHAR PRIMARY KEY, folded VARCHAR NOT NULL UNIQUE, "
        "next_sequence BIGINT NOT NULL, last_name TEXT NOT NULL)"
    ),
    "CREATE TABLE dspy_observe_programs (hash VARCHAR PRIMARY KEY, body TEXT NOT NULL)",
    (
        "CREATE TABLE dspy_observe_versions (name VARCHAR NOT NULL REFERENCES dspy_observe_signatures (name), "
        "sequence BIGINT NOT NULL, version VARCHAR NOT NULL, hash VARCHAR NOT NULL, program_hash VARCHAR REFERENCES "
        "dspy_observe_programs (hash), body TEXT NOT NULL, PRIMARY KEY (name, sequence), UNIQUE (name, version), "
        "UNIQUE (name, hash))"
    ),
    "CREATE INDEX dspy_observe_versions_program ON dspy_observe_versions (program_hash)",
    (
        "CREATE TABLE dspy_observe_pointers (name VARCHAR NOT NULL REFERENCES dspy_observe_signatures (name), "
        "environment VARCHAR NOT NULL, generation BIGINT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (name, "
        "environment))"
    ),
    (
        "CREATE TABLE dspy_observe_deployments (name VARCHAR NOT NULL REFERENCES dspy_observe_signatures (name), "
        "ordinal BIGINT NOT NULL, environment VARCHAR NOT NULL, body TEXT NOT NULL, PRIMARY KEY (name, ordinal))"
    ),
    (
        "CREATE TABLE dspy_observe_scores (name VARCHAR NOT NULL REFERENCES dspy_observe_signatures (name), ordinal "
        "BIGINT NOT NULL, score_id VARCHAR NOT NULL, hash VARCHAR NOT NULL, body TEXT NOT NULL, PRIMARY KEY (name, "
        "ordinal), UNIQUE (name, score_id))"
    ),
    "CREATE INDEX dspy_observe_scores_hash ON dspy_observe_scores (name, hash, ordinal)",
    (
        "CREATE TABLE dspy_observe_marks (name VARCHAR NOT NULL REFERENCES dspy_observe_signatures (name), kind "
        "VARCHAR NOT NULL, key VARCHAR NOT NULL, ordinal BIGINT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (name, "
        "kind, key))"
    ),
    (
        "CREATE TABLE dspy_observe_decisions (name VARCHAR NOT NULL REFERENCES dspy_observe_signatures (name), "
        "ordinal BIGINT NOT NULL, environment VARCHAR NOT NULL, applied_key VARCHAR, body TEXT NOT NULL, PRIMARY "
        "KEY (name, ordinal), UNIQUE (name, environment, applied_key))"
    ),
    (
        "CREATE TABLE dspy_observe_notices (delivery_id VARCHAR PRIMARY KEY, program VARCHAR NOT NULL, owner TEXT "
        "NOT NULL, at DOUBLE PRECISION NOT NULL, body TEXT NOT NULL)"
    ),
    (
        "CREATE TABLE dspy_observe_backups (name VARCHAR NOT NULL, label VARCHAR NOT NULL, body TEXT NOT NULL, "
        "PRIMARY KEY (name, label))"
    ),
    "CREATE TABLE dspy_observe_settings (key VARCHAR PRIMARY KEY, body TEXT NOT NULL)",
)
_EVIDENCE: Final = (
    (
        "CREATE TABLE dspy_observe_evidence (name VARCHAR NOT NULL, environment VARCHAR NOT NULL, body TEXT NOT NULL, "
        "PRIMARY KEY (name, environment))"
    ),
)
# Rollbacks are few and what was held may be much: whoever asks for the rollbacks of an hour reads no others.
_ROLLBACKS: Final = (
    "ALTER TABLE dspy_observe_decisions ADD COLUMN applied BIGINT",
    """UPDATE dspy_observe_decisions SET applied = 1 WHERE body LIKE '%"outcome":"rollback"%'""",
    (
        "CREATE INDEX dspy_observe_decisions_applied ON dspy_observe_decisions (name, environment, ordinal) "
        "WHERE applied IS NOT NULL"
    ),
)
MIGRATIONS: Final[tuple[Sequence[str], ...]] = (_FIRST, _EVIDENCE, _ROLLBACKS)
"""Statements from each shape to the next; the first makes an empty database into shape 1."""

_SHAPE: Final = Table(_PREFIX + "shape", MetaData(), Column("number", BigInteger, primary_key=True))


def migrate(connection: Connection, migrations: Sequence[Sequence[str]] = MIGRATIONS) -> int:
    """Bring a database to the shape of this release, in the caller's transaction.

    Args:
        connection: In a transaction that no other migration runs beside.
        migrations: All of them, from the first.

    Returns:
        How many were run.

    Raises:
        ConfigurationError: A newer release made the database.
    """
    if not inspect(connection).has_table(_SHAPE.name):
        connection.execute(text(f"CREATE TABLE {_SHAPE.name} (number BIGINT PRIMARY KEY)"))
    shape = max(connection.scalars(select(_SHAPE.c.number)), default=0)
    if shape > len(migrations):
        raise ConfigurationError(
            "registry_path", f"the database has shape {shape}, this release knows {len(migrations)}",
            "Use the release that made it, or a newer one",
        )  # fmt: skip
    for number, statements in enumerate(migrations[shape:], shape + 1):
        for statement in statements:
            connection.execute(text(statement))
        connection.execute(_SHAPE.insert().values(number=number))
    return len(migrations) - shape
