"""What every search first asks of a text, answered once: where its long tokens are.

Ordinary prose has no word of thirteen letters, digits and marks, and every access key has one. Classes of characters
are told apart by :meth:`bytes.translate` and found by :meth:`bytes.find`, which is many times faster than a pattern.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Self

__all__ = ["LONGEST_LITERAL", "SHORTEST_TOKEN", "TOKEN_CHARS", "Lowered", "classes", "lower"]

TOKEN_CHARS: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.=+/%~$:"
"""The characters of a token; every key is made of them, or has enough of them in a row."""
SHORTEST_TOKEN: Final = 13
"""Characters; the shortest key has as many: ``xoxa-`` and eight more."""
LONGEST_LITERAL: Final = 32
"""Characters of a literal that is not looked for again where nothing was replaced."""

_MOST_SPANS: Final = 64  # one search over the whole text costs less than so many over parts of it
_NEEDLE: Final = b"a" * SHORTEST_TOKEN


def classes(**characters: bytes) -> bytes:
    """A table for :meth:`bytes.translate`: each class of characters becomes its name, all others a space.

    Args:
        characters: By a letter that names the class, the ASCII characters in it.
    """
    table = bytearray(b" " * 256)
    for name, members in characters.items():
        for member in members:
            table[member] = ord(name)
    return bytes(table)


_TOKEN: Final = classes(a=TOKEN_CHARS)


def lower(text: str) -> str:
    """The text in lower case, character by character: ``str.lower`` makes two of ``\u0130``."""
    lowered = text.lower()
    if len(lowered) == len(text):
        return lowered
    return "".join(low if len(low := char.lower()) == 1 else char for char in text)


class Lowered(str):
    """A text in lower case that also knows the shape of the text, so that the searches share what they ask of it.

    Args:
        text: The text as it is.
        before: What is known of the text before some of it was replaced; ``None`` when this is the first look.
        changed: Where the replacements stand in the text, in order; read with ``before`` only.
    """

    __slots__ = ("_absent", "_has", "_near", "long_tokens", "raw", "spans")

    raw: bytes
    """The text, one byte a character; those beyond Latin-1 are ``?``."""
    spans: list[tuple[int, int]]
    """Where tokens of :data:`SHORTEST_TOKEN` characters or more begin and end, in order; the whole text if many."""
    long_tokens: str
    """These tokens with a space between: what is in a long token of the text is in here. Empty when there is none.

    The whole text when there are many.
    """
    _has: dict[str, bool]
    _absent: frozenset[str]
    _near: str

    def __new__(cls, text: str, before: Lowered | None = None, changed: Sequence[tuple[int, int]] = ()) -> Self:
        """Lower the text and find its long tokens."""
        self = super().__new__(cls, lower(text))
        self._has = {}
        self._absent = frozenset()
        self._near = ""
        if before is not None:  # what was nowhere can now only be where something was replaced
            self._absent = frozenset(
                literal
                for literal, found in before._has.items()
                if not found and literal.isascii() and len(literal) <= LONGEST_LITERAL
            )
            self._near = "\n".join(
                [self[max(0, start - LONGEST_LITERAL) : end + LONGEST_LITERAL] for start, end in changed]
            )
        self.raw = text.encode("latin-1", "replace")
        flat = self.raw.translate(_TOKEN)
        self.spans = spans = []
        at = flat.find(_NEEDLE)
        while at >= 0:
            end = flat.find(b" ", at)
            if end < 0:
                end = len(flat)
            spans.append((at, end))
            if len(spans) > _MOST_SPANS:
                self.spans, self.long_tokens = [(0, len(text))], text
                return self
            at = flat.find(_NEEDLE, end)
        self.long_tokens = " ".join([text[start:end] for start, end in spans]) if spans else ""
        return self

    def has(self, literal: str) -> bool:
        """Whether the lower-cased text has a literal; looks once."""
        found = self._has.get(literal)
        if found is None:
            found = literal in (self._near if literal in self._absent else self)
            self._has[literal] = found
        return found

    @classmethod
    def of(cls, text: str, lowered: str) -> Lowered:
        """The lower-cased text as it is when it knows the text's shape, else one that does."""
        return lowered if type(lowered) is cls else cls(text)
