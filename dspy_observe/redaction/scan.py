"""The engine: gate, candidate, check, replace. One text in, one text and its entities out.

A pass collects the spans of all detectors, merges those that overlap, and builds the text once. A replacement can
free what stood beside it, so passes repeat until nothing changes; a text in which nothing was found costs one pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import filterfalse
from typing import Final, NamedTuple

from dspy_observe.redaction import numbers
from dspy_observe.redaction.detectors import Detector, Finder
from dspy_observe.redaction.seen import shape_of
from dspy_observe.redaction.shape import Edit, Lowered, is_near

__all__ = ["Hit", "Scanner"]

_MAX_PASSES: Final = 12
_MARKER: Final = re.compile(r"<TRUNCATED ([0-9]{1,18}) CHARS>\Z")
_MARKER_ROOM: Final = 40
_TOKEN_MAX: Final = 256
_GROUPED_MAX: Final = 64  # characters of a number with what stands between its groups
_GROUPS: Final = re.compile(
    r"(?<![A-Za-z0-9])(?:[A-Z]{0,4}\d{1,19}[A-Z]{0,4}[\s.()\u2010-\u2015-]{1,3}|[A-Z]{4}\s){1,16}\Z"
)
_FEW: Final = 16  # replacements around which to look again, rather than in the whole text


class Hit(NamedTuple):
    """A place in a text and what is there."""

    start: int
    """First character."""
    end: int
    """One beyond the last."""
    entity: str
    """The detector's name."""


class Scanner:
    """Finds and replaces with a fixed set of detectors. Holds no state of its own; safe to share between threads.

    Args:
        detectors: What to look for, in order of precedence between spans of equal length.
        replace: From an entity and a value to what stands in its place.
        keeps: Says whether a stretch of a text is, or lies in, a replacement made before.
    """

    def __init__(
        self,
        detectors: Sequence[Detector | Finder],
        replace: Callable[[str, str], str],
        keeps: Callable[[str, int, int], bool],
    ) -> None:
        own = [detector for detector in detectors if isinstance(detector, Detector)]
        self._numbers = tuple((d.name, d.number) for d in own if d.number is not None)
        self._searches = tuple((d.name, *_gate(d.gate), d.scan or d.find) for d in own if d.number is None)
        self._finders = tuple((entity_of(d), d) for d in detectors if not isinstance(d, Detector))
        self._replace = replace
        self._keeps = keeps

    def hits(self, text: str, known: Sequence[str]) -> list[Hit]:
        """What is private in a text, in order and without overlaps.

        Args:
            text: The text.
            known: Secrets to find literally.

        Raises:
            Exception: Whatever a detector raises.
        """
        return self._hits(text, Lowered(text), known)

    def _hits(self, text: str, lowered: Lowered, known: Sequence[str]) -> list[Hit]:
        found: list[Hit] = []
        for secret in known:
            at = text.find(secret)
            while at >= 0:
                found.append(Hit(at, at + len(secret), "KNOWN_SECRET"))
                at = text.find(secret, at + len(secret))
        for name, gate, far, find in self._searches:
            if gate is not None and lowered.lacks(gate) and not (far and any(map(lowered.__contains__, far))):
                continue
            for start, end in find(text, lowered):
                found.append(Hit(start, end, name))
        if self._numbers:
            for run in numbers.runs(text, lowered):
                for name, number in self._numbers:
                    spans = number(run)
                    if spans:
                        found.extend(Hit(start, end, name) for start, end in spans)
        for name, finder in self._finders:
            found.extend(_foreign(text, name, finder))
        if not found:
            return found
        hits = _within(merged(found), len(text))
        return [hit for hit in hits if not self._keeps(text, hit.start, hit.end)]

    def redact(self, text: str, known: Sequence[str], limit: int) -> tuple[str, list[str]]:
        """The text without what is private, and the entities removed, one for each place.

        Args:
            text: The text.
            known: Secrets to find literally.
            limit: Characters of the text that are read, and at most returned.

        Raises:
            Exception: Whatever a detector raises.
        """
        entities: list[str] = []
        if len(text) > limit:
            text = cut(text, limit)
        lowered = shape_of(text)
        for _ in range(_MAX_PASSES):
            hits = self._hits(text, lowered, known)
            if not hits:
                break
            entities.extend(hit.entity for hit in hits)
            before = text
            text, edits = self._rebuilt(text, hits)
            if text == before:
                break
            if len(text) > limit:
                text = cut(text, limit)
                if text == before:
                    break
                lowered = Lowered(text)
            else:
                lowered = Lowered(text, lowered, edits) if len(edits) <= _FEW else Lowered(text)
        return text, entities

    def _rebuilt(self, text: str, hits: list[Hit]) -> tuple[str, list[Edit]]:
        """The text with the hits replaced, and what was replaced by what."""
        parts: list[str] = []
        edits: list[Edit] = []
        at = size = 0
        for start, end, entity in hits:
            parts.append(text[at:start])
            replacement = self._replace(entity, text[start:end])
            parts.append(replacement)
            size += start - at
            edits.append(Edit(start, end, size, size + len(replacement)))
            size += len(replacement)
            at = end
        parts.append(text[at:])
        return "".join(parts), edits


def _gate(literals: tuple[str, ...]) -> tuple[frozenset[str] | None, tuple[str, ...]]:
    """A detector's gate: literals whose absence a text remembers, and the others; ``None`` when it always searches."""
    return frozenset(filter(is_near, literals)) if literals else None, tuple(filterfalse(is_near, literals))


def entity_of(finder: Finder) -> str:
    """The entity a foreign finder finds: its attribute ``entity``, else its name in capitals."""
    name = getattr(finder, "entity", None) or getattr(finder, "__name__", type(finder).__name__)
    return re.sub(r"[^A-Z0-9_]", "_", str(name).upper()).strip("_")[:64] or "CUSTOM"


def _foreign(text: str, name: str, finder: Finder) -> Iterable[Hit]:
    for span in finder(text):
        start, end = int(span[0]), int(span[1])
        if start > end or end < 0 or start > len(text):  # what it means cannot be known, so the text must not leave
            raise ValueError(f"{name} found characters {start} to {end} of {len(text)}")
        if start < end:
            yield Hit(start, end, name)


def _within(hits: list[Hit], size: int) -> list[Hit]:
    """Hits in order, cut to the text: a finder that is one off has still found something."""
    if hits[0].start >= 0 and hits[-1].end <= size:
        return hits
    return [Hit(max(0, start), min(end, size), name) for start, end, name in hits if start < size and end > 0]


def merged(found: list[Hit]) -> list[Hit]:
    """Join overlapping hits; the longest gives the entity, among equals the one that came first."""
    found.sort(key=_by_start)
    result: list[Hit] = []
    longest = 0
    for hit in found:
        if result and hit.start < result[-1].end:
            last = result[-1]
            size = hit.end - hit.start
            entity = hit.entity if size > longest else last.entity
            longest = max(longest, size)
            result[-1] = Hit(last.start, max(last.end, hit.end), entity)
        else:
            result.append(hit)
            longest = hit.end - hit.start
    return result


def _by_start(hit: Hit) -> int:
    return hit.start


def _word_start(text: str, until: int) -> int:
    """Where the word begins in which a text is cut; for a very long word, a place that far back."""
    end = until
    while end > 0 and until - end < _TOKEN_MAX and not text[end - 1].isspace():
        end -= 1
    return end if end > 0 and text[end - 1].isspace() else max(0, until - _TOKEN_MAX)


def cut(text: str, limit: int) -> str:
    """Shorten a text to a limit at the end of a word and say so at its end.

    The last word goes too, and so do groups of digits before it: half a number or half a replacement could no longer
    be recognised.
    """
    dropped = 0
    marker = _MARKER.search(text, max(0, len(text) - _MARKER_ROOM))
    if marker is not None:
        dropped = int(marker[1])
        text = text[: marker.start()]
    end = _word_start(text, max(0, limit - _MARKER_ROOM))
    groups = _GROUPS.search(text, max(0, end - _GROUPED_MAX), end)
    if groups is not None:
        end = _word_start(text, groups.start())
    return f"{text[:end]}<TRUNCATED {dropped + len(text) - end} CHARS>"
