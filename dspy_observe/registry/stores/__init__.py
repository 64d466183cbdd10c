"""Where a registry lives: files, SQLite or PostgreSQL, behind one protocol."""

from __future__ import annotations

from dspy_observe.errors import ConfigurationError
from dspy_observe.registry.stores.base import Store

__all__ = ["open_store"]


def open_store(location: str) -> Store:
    """The store of a folder or a URL.

    Args:
        location: A folder, ``sqlite:///relative.db``, ``sqlite:////absolute.db``, or
            ``postgresql+psycopg://user@host/name``.

    Raises:
        ConfigurationError: The URL names another kind of database, or SQLAlchemy is not installed.
        StoreUnavailable: The store cannot be reached.
    """
    if "://" not in location:
        from dspy_observe.registry.stores.files import FileStore

        return FileStore(location)
    try:
        from dspy_observe.registry.stores.sql import SqlStore
    except ImportError as error:
        raise ConfigurationError(
            "registry_path", f"a URL needs {error.name}", "Install it: pip install 'dspy-observe[sql]'"
        ) from None
    return SqlStore(location)
