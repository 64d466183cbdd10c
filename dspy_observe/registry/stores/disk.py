"""Writing files so that a crash leaves the old one or the new one, never half of it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dspy_observe.registry.errors import StoreUnavailable

__all__ = ["SPARE", "make_folder", "remove", "replace", "translated"]

SPARE = ".tmp"
"""Ending of files that are being written."""


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn what the operating system refuses into :class:`StoreUnavailable`.

    Args:
        doing: What was tried, for the message.
    """
    try:
        yield
    except OSError as error:
        where = "" if error.filename and str(error.filename) in doing else f" ({error.filename or 'no file'})"
        raise StoreUnavailable(f"cannot {doing}: {error.strerror or error}{where}") from error


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, durably; one that is there is fine."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Wait until the folder's entries are on disk."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def replace(path: Path, content: bytes) -> os.stat_result:
    """Put new content in the place of a file at one moment, and wait until it is on disk.

    Returns:
        The new file's status.
    """
    make_folder(path.parent)
    spare = path.with_name(f".{path.name}.{secrets.token_hex(4)}{SPARE}")
    try:
        with spare.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            status = os.fstat(file.fileno())
        spare.replace(path)
    except BaseException:
        remove(spare)
        raise
    sync_folder(path.parent)
    return status


def remove(path: Path) -> bool:
    """Delete a file, if it is there and may be deleted; returns whether it was."""
    with suppress(OSError):
        path.unlink()
        return True
    return False
