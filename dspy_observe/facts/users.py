"""For whom a program runs: a pseudonym that travels with DSPy's settings.

They reach the worker threads of ``dspy.Parallel``, ``Evaluate``, ``batch``, ``asyncify`` and ``streamify``, and tasks
and threads that copy their context; a thread pool of one's own knows no user unless it is told again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from dspy.dsp.utils.settings import thread_local_overrides

__all__ = ["acting_for", "current_user"]

_SETTING: Final = "dspy_observe_user"


@contextmanager
def acting_for(pseudonym: str) -> Iterator[None]:
    """Let all calls inside the block be made for one user.

    Args:
        pseudonym: What records say of the user; never a name or an address.
    """
    # Not dspy.context(): it would freeze all other settings for the length of the block.
    before = thread_local_overrides.get()
    layer = {**before, _SETTING: pseudonym}
    thread_local_overrides.set(layer)
    try:
        yield
    finally:
        current = thread_local_overrides.get()
        if current is layer:
            thread_local_overrides.set(before)
        elif current.get(_SETTING) is pseudonym:  # a block that ends in another context has nothing to undo there
            restored = {**current}
            if _SETTING in before:
                restored[_SETTING] = before[_SETTING]
            else:
                del restored[_SETTING]
            thread_local_overrides.set(restored)


def current_user() -> str | None:
    """The pseudonym of the user for whom the code that asks runs; ``None`` when nobody said."""
    found: str | None = thread_local_overrides.get().get(_SETTING)
    return found
