"""Telling that a file may have changed, by watching its folder: who watches the file itself loses it at a replace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import Any, Final

from dspy_observe.registry.errors import StoreUnavailable

__all__ = ["changes_of"]

_STEP_MS: Final = 20
"""How often the watcher looks into what the system reported; a change is told after one or two of these."""
_GROUPED_MS: Final = 200
"""A folder that never rests is told of at least this often."""
_CHECK_MS: Final = 250
"""How often it is made sure that the folder is still the one that is watched."""


def changes_of(folder: Path, names: frozenset[str], stop: Event, *, echoes: int = 0) -> Iterator[None] | None:
    """Yields once soon after watching began, and whenever one of the files changed, until ``stop`` is set.

    Args:
        folder: Where the files are, or will be.
        names: Their names.
        stop: Ends it.
        echoes: How often a change is told again, a quarter of a second apart, where what was written can be seen by
            others only later.

    Returns:
        ``None`` where ``watchfiles`` is not installed.

    Raises:
        StoreUnavailable: The folder is not there, was replaced, or cannot be watched; while iterating.
    """
    if find_spec("watchfiles") is None:
        return None
    return _changes(folder, names, stop, echoes, import_module("watchfiles").watch)


def _changes(
    folder: Path, names: frozenset[str], stop: Event, echoes: int, watch: Callable[..., Any]
) -> Iterator[None]:
    try:
        watched = folder.stat().st_ino
        to_tell = 1
        for changes in watch(
            folder, watch_filter=lambda _, path: Path(path).name in names, debounce=_GROUPED_MS, step=_STEP_MS,
            stop_event=stop, rust_timeout=_CHECK_MS, yield_on_timeout=True, recursive=False, raise_interrupt=False,
        ):  # fmt: skip
            if changes:
                to_tell = 1 + echoes
            if to_tell:
                to_tell -= 1
                yield
            if folder.stat().st_ino != watched:
                raise StoreUnavailable(f"{folder} was replaced")
    except (OSError, RuntimeError) as error:  # the Rust part raises RuntimeErrors of its own
        raise StoreUnavailable(f"cannot watch {folder}: {error}") from error
