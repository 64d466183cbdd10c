"""Who does something, when nobody says so."""

from __future__ import annotations

import getpass
import os

from dspy_observe.registry.names import checked_text
from dspy_observe.registry.values import scrubbed_text

__all__ = ["actor_or_user"]


def actor_or_user(actor: str | None) -> str | None:
    """The name given, else ``DSPY_OBSERVE_ACTOR``, else the user of this process; ``None`` where there is none.

    Credentials in it are taken out.

    Raises:
        InvalidName: The name cannot be stored.
    """
    if actor is not None:
        return scrubbed_text(checked_text("actor", actor, 200))
    named = os.environ.get("DSPY_OBSERVE_ACTOR")
    if named:
        return scrubbed_text(checked_text("actor", named, 200))
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user id without an entry
        return None
