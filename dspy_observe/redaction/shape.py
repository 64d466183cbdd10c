"""What every search first asks of a text, answered once: where its long tokens are.

Ordinary prose has no word of thirteen letters, digits and marks, and every access key has one. Classes of characters
are told apart by :meth:`bytes.translate` and found by :meth:`bytes.find`, which is many times faster than a pattern.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import filterfalse
from typing import Final, NamedTuple, Self

__all__ = ["LONGEST_LITERAL", "SHORTEST_NUMBER", "SHORTEST_TOKEN", "TOKEN_CHARS", "Edit", "Lowered", "is_near",
           "lower", "words_after", "words_before"]  # fmt: skip

Span = tuple[int, int]

TOKEN_CHARS: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.=+/%~$:"
"""The characters of a token; every key is made of them, or has enough of them in a row."""
SHORTEST_TOKEN: Final = 13
"""Characters; the shortest key has as many: ``xoxa-`` and eight more."""
SHORTEST_NUMBER: Final = 7
"""Characters of the shortest run of digits and separators, and of the shortest IPv4 address."""
LONGEST_LITERAL: Final = 32
"""Characters of a literal that is not looked for again where nothing was replaced."""

_MOST_NUMBERS: Final = 16
_MOST_SPANS: Final = 64  # one search over the whole text costs less than so many over parts of it


def _classes(**characters: bytes) -> bytes:
    """A table for :meth:`bytes.translate`: each class of characters becomes its name, all others a space.

    Args:
        characters: By a letter that names the class, the ASCII characters in it.
    """
    table = bytearray(b" " * 256)
    for name, members in characters.items():
        for member in members:
            table[member] = ord(name)
    return bytes(table)


_TOKEN: Final = _classes(a=TOKEN_CHARS)
_NUMBER: Final = _classes(a=b"0123456789 .()-")
_LETTER_DIGIT: Final = _classes(a=b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", **{"0": b"0123456789"})


def lower(text: str) -> str:
    """The text in lower case, character by character: ``str.lower`` makes two of ``\u0130``."""
    lowered = text.lower()
    if len(lowered) == len(text):
        return lowered
    return "".join(low if len(low := char.lower()) == 1 else char for char in text)


_LABEL = r"[A-Z][A-Z0-9_]{0,63}(?::[a-p]{1,32})?"
_LABEL_BEFORE: Final = re.compile(rf"(?:<|\A){_LABEL}>(?!\Z)")
_LABEL_AFTER: Final = re.compile(rf"<{_LABEL}(?:>|\Z)")


def words_before(text: str, lowered: str, at: int, count: int) -> str:
    """The characters before a position, in lower case; labels such as ``<PHONE>`` are no words, but what is gone.

    A label that touches the position stays: ``<PHONE>4155550132`` is somebody's tag, as no two numbers touch.
    """
    start = max(0, at - count)
    words = lowered[start:at]
    return _without(_LABEL_BEFORE, words, text[start:at]) if ">" in words else words


def words_after(text: str, lowered: str, at: int, count: int) -> str:
    """The characters after a position, in lower case and without the words of labels."""
    words = lowered[at : at + count]
    return _without(_LABEL_AFTER, words, text[at : at + count]) if "<" in words else words


def _without(labels: re.Pattern[str], words: str, written: str) -> str:
    for label in labels.finditer(written):
        words = words[: label.start()] + "\0" * len(label.group()) + words[label.end() :]
    return words


def is_near(literal: str) -> bool:
    """Whether a literal that was nowhere can only be where a text has changed, or not much farther away."""
    return len(literal) <= LONGEST_LITERAL and literal.isascii()


class Edit(NamedTuple):
    """A stretch of a known text that another text has something else for."""

    old_start: int
    old_end: int
    start: int
    """Where the new begins in the other text."""
    end: int


class Lowered(str):
    """A text in lower case that also knows the shape of the text, so that the searches share what they ask of it.

    Every answer is worked out when somebody asks. What a known text had nowhere can only touch what is new here.

    Args:
        text: The text as it is.
        before: What is known of a text that this one has most of; ``None`` when this is the first look.
        edits: How this text came of that one, in order, at least one; read with ``before`` only.
    """

    __slots__ = ("_before", "_edits", "_letters_digits", "_long_tokens", "_missing", "_near", "_numbers", "_raw",
                 "_spans", "_text", "_unmatched")  # fmt: skip

    _text: str
    _edits: Sequence[Edit]
    _near: str  # what is new, with some of what stands beside it
    _before: tuple[list[Span] | None, list[Span] | None, int | None, set[str]]  # its spans, numbers and so on
    _missing: set[str]  # literals that are nowhere
    _unmatched: set[str]  # patterns that are nowhere
    _raw: bytes | None
    _spans: list[Span] | None
    _long_tokens: str | None
    _numbers: list[Span] | None
    _letters_digits: int | None

    def __new__(cls, text: str, before: Lowered | None = None, edits: Sequence[Edit] = ()) -> Self:
        """Lower the text."""
        if before is None:
            self = super().__new__(cls, lower(text))
            self._before = _UNKNOWN
            self._missing = set()
        else:
            self = super().__new__(cls, _spliced(text, before, edits) if text.isascii() else lower(text))
            self._before = (before._spans, before._numbers, before._letters_digits, before._unmatched)
            self._near = near = "\n".join(
                [self[max(0, edit.start - LONGEST_LITERAL) : edit.end + LONGEST_LITERAL] for edit in edits]
            )
            self._missing = set(filterfalse(near.__contains__, before._missing))
        self._text = text
        self._edits = edits
        self._unmatched = set()
        self._raw = self._spans = self._long_tokens = self._numbers = self._letters_digits = None
        return self

    @property
    def raw(self) -> bytes:
        """The text, one byte a character; those beyond Latin-1 are ``?``."""
        if self._raw is None:
            self._raw = _bytes(self._text)
        return self._raw

    @property
    def spans(self) -> list[Span]:
        """Where tokens of :data:`SHORTEST_TOKEN` characters or more begin and end, in order; the whole text if many."""
        if self._spans is None:
            self._spans = self._stretches(_TOKEN, SHORTEST_TOKEN, _MOST_SPANS, self._before[0])
        return self._spans

    @property
    def long_tokens(self) -> str:
        """These tokens with a space between: what is in a long token of the text is in here. Empty when there is none.

        The whole text when there are many.
        """
        if self._long_tokens is None:
            self._long_tokens = " ".join([self._text[start:end] for start, end in self.spans])
        return self._long_tokens

    @property
    def numbers(self) -> list[Span]:
        """Where ASCII digits and what people put between them go on for :data:`SHORTEST_NUMBER` characters or more.

        In order; the whole text if many.
        """
        if self._numbers is None:
            self._numbers = self._stretches(_NUMBER, SHORTEST_NUMBER, _MOST_NUMBERS, self._before[1])
        return self._numbers

    @property
    def letters_digits(self) -> int:
        """Where two ASCII letters with two digits behind them first stand; -1 if nowhere."""
        if self._letters_digits is None:
            none = self._before[2] == -1 and b"aa00" not in _bytes(self._near).translate(_LETTER_DIGIT)
            self._letters_digits = -1 if none else self.raw.translate(_LETTER_DIGIT).find(b"aa00")
        return self._letters_digits

    def has(self, literal: str) -> bool:
        """Whether the lower-cased text has a literal; where it has not, it looks once."""
        if literal in self._missing:
            return False
        if literal in self:
            return True
        if is_near(literal):
            self._missing.add(literal)
        return False

    def lacks(self, literals: frozenset[str]) -> bool:
        """Whether the lower-cased text has none of some literals, each of which :func:`is_near`."""
        missing = self._missing
        if literals <= missing:
            return True
        unknown = literals - missing
        found = set(filter(self.__contains__, unknown))
        missing |= unknown - found
        return not found

    def lacks_match(self, pattern: re.Pattern[str]) -> bool:
        """Whether a pattern is nowhere in the lower-cased text; it looks at no more than the longest literal has."""
        source = pattern.pattern
        if source in self._unmatched:
            return True
        if pattern.search(self._near if source in self._before[3] else self) is not None:
            return False
        self._unmatched.add(source)
        return True

    @classmethod
    def of(cls, text: str, lowered: str) -> Lowered:
        """The lower-cased text as it is when it knows the text's shape, else one that does."""
        return lowered if type(lowered) is cls else cls(text)

    def _stretches(self, table: bytes, shortest: int, most: int, before: list[Span] | None) -> list[Span]:
        """Where characters of a class go on for so many or more; from those of the text before where it is known."""
        if before is None or len(before) > _MOST_KEPT:
            return self._anywhere(table, shortest, most)
        if b"a" * shortest not in _bytes(self._near).translate(table):
            kept = _untouched(before, self._edits)
            if kept is not None:
                return kept
        spans: list[Span] = []
        number, count, shift, until = 0, len(before), 0, -SHORTEST_TOKEN - 1
        for low, high, low_shift, high_shift in _windows(self._edits):
            if low <= until:  # a long one reaches from edit to edit
                return self._anywhere(table, shortest, most)
            start, until = low, high
            while number < count and before[number][0] <= high:
                if before[number][1] < low:
                    spans.append((before[number][0] + low_shift, before[number][1] + low_shift))
                else:
                    start, until = min(start, before[number][0]), max(until, before[number][1])
                number += 1
            start, shift = max(0, start + low_shift), high_shift
            found = _stretches(_bytes(self._text[start : until + high_shift]).translate(table), shortest, most)
            if found is None:
                return [(0, len(self))]
            spans.extend([(start + at, start + end) for at, end in found])
        spans.extend([(at + shift, end + shift) for at, end in before[number:]])
        return spans if len(spans) <= most else [(0, len(self))]

    def _anywhere(self, table: bytes, shortest: int, most: int) -> list[Span]:
        """The same, from a look at the whole text."""
        found = _stretches(self.raw.translate(table), shortest, most)
        return [(0, len(self))] if found is None else found


_UNKNOWN: Final[tuple[None, None, None, set[str]]] = (None, None, None, set())
_MOST_KEPT: Final = 16


def _untouched(spans: list[Span], edits: Sequence[Edit]) -> list[Span] | None:
    """The spans of the known text that no edit touches, where they are now, when none is left of those touched.

    ``None`` where something may be left: of one span that stands for many, or that several edits touch.
    """
    kept: list[Span] = []
    number, count, shift = 0, len(edits), 0
    for start, end in spans:
        while number < count and edits[number].old_end <= start:
            shift = edits[number].end - edits[number].old_end
            number += 1
        if number == count or end <= edits[number].old_start:
            kept.append((start + shift, end + shift))
        elif start < edits[number].old_start - SHORTEST_TOKEN or end > edits[number].old_end + SHORTEST_TOKEN:
            return None
    return kept


def _windows(edits: Sequence[Edit]) -> list[tuple[int, int, int, int]]:
    """Edits with some room, joined if close: start and end in the known text, and what takes each to the new one."""
    windows: list[tuple[int, int, int, int]] = []
    for old_start, old_end, start, end in edits:
        low, shift = old_start - SHORTEST_TOKEN, start - old_start
        if windows and low <= windows[-1][1]:
            low, _, shift, _ = windows.pop()
        windows.append((low, old_end + SHORTEST_TOKEN, shift, end - old_end))
    return windows


def _spliced(text: str, before: str, edits: Sequence[Edit]) -> str:
    """An ASCII text in lower case, from that of the text before."""
    parts: list[str] = []
    at = 0
    for old_start, old_end, start, end in edits:
        parts.append(before[at:old_start])
        parts.append(text[start:end].lower())
        at = old_end
    parts.append(before[at:])
    return "".join(parts)


def _bytes(text: str) -> bytes:
    return text.encode("latin-1", "replace")


def _stretches(flat: bytes, shortest: int, most: int) -> list[Span] | None:
    """Where ``a`` goes on for so many characters or more, in order; ``None`` if at many places."""
    spans: list[Span] = []
    needle = b"a" * shortest
    at = flat.find(needle)
    while at >= 0:
        end = flat.find(b" ", at + shortest)
        if end < 0:
            end = len(flat)
        spans.append((at, end))
        if len(spans) > most:
            return None
        at = flat.find(needle, end)
    return spans
