"""Redacted copies of nested values. Reads only; survives cycles, depth, size and objects that raise when looked at."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from functools import lru_cache
from typing import Any, Final, NamedTuple

from dspy_observe.records import Finding

__all__ = ["Rules", "Walker", "telling"]

_MAX_DEPTH: Final = 64
_MAX_NODES: Final = 100_000
_MAX_JSON: Final = 1_000_000
_MAX_LINES: Final = 10_000
_MAX_ORDINARY: Final = 4_096
_SMALL_INT: Final = 1_000_000
_LONGEST_INT: Final = 20  # digits; a card number has at most 19
_CONTEXT_CHARS: Final = 256  # a longer text carries its own context
_NAME_CHARS: Final = 100  # of a number's name; more than any detector looks at
_TELLING: Final = re.compile(
    r"phone|tel|mobile|cell|fax|ssn|social|card|pan\b|passport|id_?card|identity|contact|手机|电话|身份证|卡号|证件",
    re.IGNORECASE,
)
# Brackets, then a value or an end. Prompts often begin with a bracket too: "[[ ## question ## ]]", "[INST]".
_JSON_FIRST: Final = frozenset("{[ \t\r\n")
_JSON_START: Final = re.compile(r"""\s{0,1000}[\[{][\s\[{]{0,64}(?:["0-9\]}-]|true|false|null|NaN|Infinity)""")
_JSON_SECRET: Final = re.compile(
    r"pass|pwd|secret|token|key|cred|auth|cookie|jwt|cvv|cvc|otp|dsn|bearer|connection|mnemonic|密|令牌|\\u5bc6",
    re.IGNORECASE,
)


@lru_cache(maxsize=4096)
def _is_telling(name: str) -> bool:
    """Whether a name says what the short number under it is."""
    return _TELLING.search(name) is not None


def telling(words: Iterable[str]) -> Callable[[str], bool]:
    """Whether a name says what the short value under it is.

    Args:
        words: Context words of detectors that are not built in.
    """
    own = tuple({word.lower() for word in words})
    if not own:
        return _is_telling
    return lru_cache(maxsize=4096)(lambda name: _is_telling(name) or any(word in name.lower() for word in own))


class Rules(NamedTuple):
    """What a redactor decides about the parts of values. Made once and shared."""

    failed: Callable[[BaseException, int | None], str]
    """From an error and a length to what replaces a value that could not be redacted."""
    is_secret: Callable[[str], bool]
    """Whether a value under this name is dropped whole."""
    drop: Callable[[str], str]
    """From a secret's text to what replaces it."""
    is_output: Callable[[str], bool]
    """Whether a text is, as a whole, what stands in place of something removed before."""
    is_telling: Callable[[str], bool]
    """Whether a name is the context of a short value under it."""
    all_numbers: bool
    """Whether numbers of few digits can be private, too."""


class Walker:
    """Copies one value. Made for each value and not shared.

    Args:
        scan: From a text to its redacted form and the entities removed.
        rules: The redactor's decisions.
        ordinary: Keys known to be no secret's name and to have nothing private in them; those met are added.
    """

    def __init__(
        self,
        scan: Callable[[str], tuple[str, list[str]]],
        rules: Rules,
        ordinary: set[str],
    ) -> None:
        self.findings: list[Finding] = []
        self._ordinary = ordinary
        self._scan, self._rules, self._is_secret = scan, rules, rules.is_secret
        self._open: set[int] = set()
        self._nodes = 0

    def copy(self, value: Any, path: str = "", name: str = "") -> Any:
        """A redacted copy.

        Args:
            value: Anything.
            path: Where it stands, for the findings.
            name: The key it stands under, if any; it is the context of short values.
        """
        kind = type(value)
        if kind is str:
            return self._text(value, path, name)
        if value is None or kind is bool:
            return value
        if kind is int or kind is float:
            return self._number(value, path, name)
        self._nodes += 1
        if self._nodes > _MAX_NODES:
            return "<TRUNCATED ITEMS>"
        if id(value) in self._open:
            return "<CYCLE>"
        if len(self._open) >= _MAX_DEPTH:
            return "<TRUNCATED DEPTH>"
        self._open.add(id(value))
        try:
            return self._object(value, path, name)
        except Exception as error:  # noqa: BLE001 - objects of others may raise anything when read
            return self._rules.failed(error, None)
        finally:
            self._open.discard(id(value))

    def _object(self, value: Any, path: str, name: str) -> Any:
        if type(value) is dict:  # first and without asking an abstract class: nearly everything is
            return self._mapping(value, path)
        if isinstance(value, list):
            return self._items(value, path, name)
        if isinstance(value, str):
            return self._text(str.__str__(value), path, name)
        if isinstance(value, bytes | bytearray | memoryview):
            return f"<bytes len={len(value)}>"
        if isinstance(value, Mapping):
            return self._mapping(value, path)
        if isinstance(value, tuple):
            return self._tuple(value, path, name)
        if isinstance(value, AbstractSet):
            return self._set(value, path, name)
        if isinstance(value, BaseException):
            return self._text(f"{type(value).__name__}: {value}", path, name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return self._mapping({f.name: getattr(value, f.name) for f in dataclasses.fields(value)}, path)
        dump = getattr(type(value), "model_dump", None)
        if callable(dump) and not isinstance(value, type):
            return self.copy(dump(value), path, name)
        if isinstance(value, int | float):
            return self._number(value, path, name)
        return self._text(repr(value), path, name)

    def _tuple(self, value: tuple[Any, ...], path: str, name: str) -> Any:
        fields = getattr(type(value), "_fields", ())
        if fields and len(fields) == len(value):  # a named one
            return self._mapping(dict(zip(fields, value, strict=True)), path)
        return tuple(self._items(value, path, name))

    def _items(self, values: Iterable[Any], path: str, name: str) -> list[Any]:
        result: list[Any] = []
        for at, item in enumerate(values):
            if self._nodes >= _MAX_NODES:
                result.append("<TRUNCATED ITEMS>")
                break
            if type(item) is str:  # containers count themselves, and numbers cost next to nothing
                self._nodes += 1
            result.append(self.copy(item, f"{path}[{at}]", name))
        return result

    def _mapping(self, value: Mapping[Any, Any], path: str) -> dict[Any, Any]:
        result: dict[Any, Any] = {}
        for key, item in value.items():
            self._nodes += 1
            if self._nodes > _MAX_NODES:
                result["<TRUNCATED ITEMS>"] = None
                break
            if type(key) is str and key in self._ordinary:
                clean, drops = key, False
            else:
                clean, drops = self._judged(key, item, value, path)
            unique, number = clean, 2
            while unique in result:
                unique, number = f"{clean}#{number}", number + 1
            place = f"{path}.{clean}" if path else str(clean)
            if drops:
                result[unique] = self._dropped(item, place)
            elif type(item) is str:
                result[unique] = self._text(item, place, clean if isinstance(clean, str) else "")
            else:
                result[unique] = self.copy(item, place, clean if isinstance(clean, str) else "")
        return result

    def _judged(self, key: Any, item: Any, siblings: Mapping[Any, Any], path: str) -> tuple[Any, bool]:
        """A redacted key, and whether it names a secret."""
        clean = self._key(key, path)
        if not isinstance(key, str):
            return clean, False
        if clean == key and type(key) is str and not self._is_secret(key):
            if len(self._ordinary) < _MAX_ORDINARY and len(key) <= _CONTEXT_CHARS:
                self._ordinary.add(key)
            return key, False
        return clean, item is not None and type(item) is not bool and self._drops(clean, item, siblings)

    def _drops(self, key: str, item: Any, siblings: Mapping[Any, Any]) -> bool:
        if not self._is_secret(key) or (isinstance(item, str | list | dict | tuple) and not item):
            return False
        # The token of a log-probability is a piece of an answer, not a credential.
        return not (key == "token" and "logprob" in siblings)

    def _dropped(self, item: Any, place: str) -> str:
        text = item if isinstance(item, str) else ""
        if text and self._rules.is_output(text):
            return text  # replaced already; a password may begin with "<", too
        self.findings.append(Finding("SECRET", place))
        return self._rules.drop(text)

    def _key(self, key: Any, path: str) -> Any:
        if isinstance(key, str):
            return self._text(key, f"{path}<key>", "", parse=False)
        clean = self.copy(key, f"{path}<key>")
        try:
            hash(clean)
        except TypeError:
            return self._text(str(clean), f"{path}<key>", "", parse=False)
        return clean

    def _set(self, value: AbstractSet[Any], path: str, name: str) -> Any:
        items = self._items(value, path, name)
        try:
            return frozenset(items) if isinstance(value, frozenset) else set(items)
        except TypeError:
            return items

    def _number(self, value: float, path: str, name: str) -> Any:
        if (-_SMALL_INT < value < _SMALL_INT and not self._rules.all_numbers) or not (
            isinstance(value, int) or value.is_integer()
        ):
            return value
        digits = str(abs(int(value)))
        if len(digits) > _LONGEST_INT:
            return value
        before = f"{name[-_NAME_CHARS:]}=" if name else ""
        out, entities = self._scan(before + digits)
        if not entities and out == before + digits:  # else a detector has failed
            return value
        self.findings.extend(Finding(entity, path) for entity in entities)
        return out.removeprefix(before)

    def _text(self, text: str, path: str, name: str, parse: bool = True) -> str:
        if (
            parse
            and text[:1] in _JSON_FIRST
            and len(text) <= _MAX_JSON
            and _JSON_START.match(text)
            and _JSON_SECRET.search(text)
        ):
            parsed = self._json(text, path)
            if parsed is not None:
                text = parsed
        out, entities = self._scan(text)
        if name and len(out) <= _CONTEXT_CHARS and self._rules.is_telling(name):
            prefix = f"{name}: "
            told, more = self._scan(prefix + out)
            if more and told.startswith(prefix):
                out, entities = told[len(prefix) :], [*entities, *more]
        if entities:
            self.findings.extend([Finding(entity, path) for entity in entities])
        return out

    def _json(self, text: str, path: str) -> str | None:
        """A JSON document, or one on each line, with secrets dropped by name; ``None`` when it has none."""
        try:
            parsed = json.loads(text)
        except ValueError:
            return self._json_lines(text, path)
        except RecursionError:
            return None
        inner = Walker(lambda part: (part, []), self._rules, set())
        copied = inner.copy(parsed)
        if not inner.findings:
            return None
        self.findings.extend(Finding(f.entity, f"{path}.{f.path}" if path else f.path) for f in inner.findings)
        separators = (", ", ": ") if re.match(r"[^:]{0,400}: ", text) else (",", ":")
        inside = text.strip()
        clean = json.dumps(copied, ensure_ascii=text.isascii(), separators=separators)
        return f"{text[: text.index(inside)]}{clean}{text[len(text.rstrip()) :]}"

    def _json_lines(self, text: str, path: str) -> str | None:
        lines = text.split("\n", _MAX_LINES)
        if not 1 < len(lines) <= _MAX_LINES or any(line.lstrip()[:1] not in ("{", "[", "") for line in lines):
            return None
        clean = [self._json(line, path) if _JSON_SECRET.search(line) else None for line in lines]
        if clean.count(None) == len(lines):
            return None
        return "\n".join(line if new is None else new for line, new in zip(lines, clean, strict=True))
