"""Names that are safe as file names everywhere, and that nobody can mistake for each other."""

from __future__ import annotations

import re
from typing import Final

from dspy_observe.registry.errors import InvalidName

__all__ = ["HASH_DIGITS", "SHORTEST_HASH", "checked", "checked_text", "folded", "is_hash", "is_name", "like_hash"]

LONGEST: Final = 100
"""Characters; leaves room for time stamps and endings below the 255 bytes of common file systems."""

HASH_DIGITS: Final = 64
"""Digits of a hash."""
SHORTEST_HASH: Final = 12
"""Digits of a hash that are enough to ask for a version."""

_HEX: Final = frozenset("0123456789abcdef")
_GRAMMAR: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._+-]*[A-Za-z0-9_+-])?")
# https://learn.microsoft.com/windows/win32/fileio/naming-a-file
_DEVICES: Final = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.IGNORECASE)


def checked(kind: str, name: object) -> str:
    """The name, if it is one.

    Args:
        kind: What it names, for the message: signature, version, alias, environment.
        name: 1 to 100 ASCII letters, digits, ``_ - + .``; not beginning with ``. - +``, not ending with a dot, and
            not a device name such as ``CON``.

    Raises:
        InvalidName: Anything else.
    """
    if not isinstance(name, str):
        raise InvalidName(kind, name, "it has to be a text")
    if not name:
        raise InvalidName(kind, name, "it is empty")
    if len(name) > LONGEST:
        raise InvalidName(kind, name, f"it has {len(name)} characters, {LONGEST} are allowed")
    if not _GRAMMAR.fullmatch(name):
        raise InvalidName(
            kind, name, "use ASCII letters, digits and _ - + . only, beginning with a letter, digit or _ and not "
            "ending with a dot",
        )  # fmt: skip
    if _DEVICES.fullmatch(name):
        raise InvalidName(kind, name, "some systems take it for a device")
    return str(name)


def is_name(name: str) -> bool:
    """Whether :func:`checked` accepts the name."""
    return len(name) <= LONGEST and _GRAMMAR.fullmatch(name) is not None and _DEVICES.fullmatch(name) is None


def is_hash(text: str) -> bool:
    """Whether the text is a whole hash, 64 hexadecimal digits."""
    return len(text) == HASH_DIGITS and not set(text) - _HEX


def like_hash(name: str) -> bool:
    """Whether a version that is asked for by this name may be meant by its hash, or the beginning of it."""
    return SHORTEST_HASH <= len(name) <= HASH_DIGITS and not set(name) - _HEX


def checked_text(kind: str, text: object, longest: int = 2_000) -> str | None:
    """A free text such as a reason or a person's name; ``None`` stays ``None``.

    Raises:
        InvalidName: It is no text, longer than ``longest`` characters, or holds what UTF-8 cannot.
    """
    if text is None:
        return None
    if not isinstance(text, str) or len(text) > longest:
        raise InvalidName(kind, text, f"it has to be a text of at most {longest} characters")
    if any("\ud800" <= char <= "\udfff" or char == "\0" for char in text):
        raise InvalidName(kind, text, "it holds characters that cannot be stored")
    return str(text)


def folded(name: str) -> str:
    """The form in which two names are the same file on a file system that ignores case."""
    return name.casefold()
