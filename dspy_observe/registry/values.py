"""Values that come back from any store exactly as they went in, without credentials, and the hash of their content."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from dspy_observe.registry.errors import InvalidScore, NotSerialisable

if TYPE_CHECKING:
    from dspy_observe.redaction import Redactor

__all__ = [
    "LARGEST_COUNT",
    "canonical",
    "check_sample",
    "copied",
    "digest",
    "finite",
    "plain",
    "scrubbed",
    "scrubbed_key",
    "scrubbed_text",
]

DEEPEST: Final = 48
"""Levels of nesting; deeper values are refused, so that every reader can bound its stack."""
LARGEST: Final = 4_000_000
"""Characters of all texts and keys of one value together."""
LARGEST_COUNT: Final = 2**53
"""The largest number that anything is counted to: exact in every reader of JSON, and far from the end of 64 bits."""
_INT_LIMIT: Final = 2**63
_KEY_DIGITS: Final = 16


class _Budget:
    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = LARGEST


def plain(value: object, path: str) -> Any:
    """A deep copy made of what JSON has: ``None``, bool, int, float, str, list, dict with text keys.

    Args:
        value: The caller's value, which is neither changed nor kept.
        path: Its name in error messages.

    Raises:
        NotSerialisable: Something in it has no exact JSON form: a date, an Enum, a tuple, NaN, a lone surrogate, an
            integer beyond 64 bits, a cycle. The message names the place.
    """
    return _plain(value, path, 0, _Budget())


def _plain(value: object, path: str, depth: int, budget: _Budget) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        raise NotSerialisable(path, f"{type(value).__name__} is an Enum; pass its .value or .name")
    if isinstance(value, str):
        return _text(value, path, budget)
    if isinstance(value, int):
        if not -_INT_LIMIT <= value < _INT_LIMIT:
            raise NotSerialisable(path, "the integer has more than 64 bits; pass it as a text")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise NotSerialisable(path, f"{float(value)} is no number; leave it out or pass None")
        return float(value)
    if depth >= DEEPEST:
        raise NotSerialisable(path, f"nested more than {DEEPEST} levels deep, or a cycle")
    if isinstance(value, Mapping):
        return _entries(value, path, depth, budget)
    if isinstance(value, list):
        return [_plain(item, f"{path}[{index}]", depth + 1, budget) for index, item in enumerate(value)]
    hint = {"datetime": "pass .isoformat()", "date": "pass .isoformat()", "tuple": "pass a list", "set": "pass a list"}
    kind = type(value).__name__
    fix = hint.get(kind, "pass texts, numbers, lists or dicts")
    raise NotSerialisable(path, f"{kind} has no exact JSON form; {fix}")


def _entries(value: Mapping[Any, Any], path: str, depth: int, budget: _Budget) -> dict[str, Any]:
    copy = {}
    for key, item in value.items():
        if not isinstance(key, str) or isinstance(key, Enum):
            raise NotSerialisable(path, f"the key {key!r:.60} is no text")
        copy[_text(key, f"{path}, a key", budget)] = _plain(item, f"{path}.{key:.60}", depth + 1, budget)
    return copy


def _text(value: str, path: str, budget: _Budget) -> str:
    budget.left -= len(value)
    if budget.left < 0:
        raise NotSerialisable(path, f"more than {LARGEST:,} characters; store it elsewhere and keep a reference")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise NotSerialisable(path, "a lone surrogate is no character") from None
    return str(value)


def copied(value: Any) -> Any:
    """A deep copy of a value that :func:`plain` made."""
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [copied(item) for item in value]
    return value


def canonical(value: Any) -> str:
    """The one text of a plain value: keys sorted, no spaces, ASCII only."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(text: str) -> str:
    """SHA-256 of a text, 64 hexadecimal digits."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def finite(value: object, bounds: tuple[float, float] | None = None) -> float:
    """A score as a float.

    Args:
        value: A number.
        bounds: The lowest and highest value that the metric can have; ``None`` means it has none.

    Raises:
        InvalidScore: Not a number, not finite, or out of bounds.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidScore(f"{value!r:.60} is no score: a finite number is needed")
    if bounds is not None and not bounds[0] <= value <= bounds[1]:
        raise InvalidScore(f"the score {value} is not between {bounds[0]} and {bounds[1]}")
    return float(value)


def check_sample(n: object, stdev: float | None) -> None:
    """Refuse what cannot be the sample that a score is the mean of.

    Args:
        n: Number of examples, from 1 to ``LARGEST_COUNT``; ``None`` when unknown.
        stdev: Standard deviation of one example's score, at least 0; ``None`` when unknown.

    Raises:
        InvalidScore: One of them makes no sense.
    """
    if n is not None and (type(n) is not int or not 1 <= n <= LARGEST_COUNT):
        raise InvalidScore(
            f"n={n!r:.60} is no number of examples: a whole number from 1 to {LARGEST_COUNT:,} is needed"
        )
    if stdev is not None and not (math.isfinite(stdev) and stdev >= 0):
        raise InvalidScore(f"stdev={stdev!r} is no standard deviation")


_redactor: Redactor | None = None


def scrubbed(value: Any) -> Any:
    """A copy of a plain value without credentials; personal data, such as who approved, stays."""
    if not value:
        return copied(value)
    clean, _ = _credentials().redact(value)
    return clean


def scrubbed_text(text: str | None) -> str | None:
    """A text without credentials; ``None`` stays ``None``."""
    return None if text is None else _credentials().redact_text(text)


def scrubbed_key(text: str | None) -> str | None:
    """A caller's key without credentials, which two keys that differ in nothing else still do not share."""
    clean = scrubbed_text(text)
    return clean if text is None or clean == text else f"{clean}#{digest(text)[:_KEY_DIGITS]}"


def _credentials() -> Redactor:
    global _redactor  # noqa: PLW0603 - reading a registry does not pay for redaction's tables
    if _redactor is None:
        from dspy_observe.redaction import Redaction, credentials_only

        _redactor = credentials_only(Redaction(scan_limit_chars=LARGEST))
    return _redactor
