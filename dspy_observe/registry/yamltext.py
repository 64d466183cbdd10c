"""YAML as the registry writes it and as it reads it back: exact, quick, and hard to get wrong by hand.

Written: block style, every text quoted (or a literal block where it has several lines), nothing left to a reader's
guess. Read: texts, JSON's numbers, ``true``, ``false``, ``null``, lists and mappings. Everything else that YAML can
do is refused with its line: tags (they name code), anchors and aliases (they multiply), duplicate keys, several
documents. An unquoted ``no`` or ``2024-01-15`` is a text, ``1.10`` a number that a text field then refuses.

Own reader and writer on PyYAML's event parser, because PyYAML's constructors resolve what must not be resolved, keep
the last of two equal keys, and take four times as long.
"""

from __future__ import annotations

import re
from typing import Any, Final

import yaml

from dspy_observe.registry.errors import CorruptRegistry

__all__ = ["dump", "line_of", "load"]

LARGEST_BYTES: Final = 512_000_000
DEEPEST: Final = 64

_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_WORDS: Final = {"true": True, "false": False, "null": None, "~": None, "": None}
_PLAIN_KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LONGEST_KEY: Final = 1_000
"""Characters of a key as written that may stand before its colon. YAML takes 1,024, and only a little less here, so
that no reader counts differently; a longer key is announced by a question mark, which has no limit.
https://yaml.org/spec/1.2.2/#742-flow-mappings"""
_NOT_PLAIN: Final = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})
# What YAML 1.1 does not print, or folds as a line break.
_ESCAPED: Final = re.compile('["\\\\\x00-\x1f\x7f-\xa0\xad\u2028\u2029\ufeff\ufffe\uffff]')
_NOT_LITERAL: Final = re.compile("[\x00-\x09\x0b-\x1f\x7f-\xa0\xad\u2028\u2029\ufeff\ufffe\uffff]")
_SHORT: Final = {"\n": "\\n", "\t": "\\t", "\r": "\\r", '"': '\\"', "\\": "\\\\"}


def dump(value: Any) -> str:
    """A plain value (see ``values.plain``) as YAML text that :func:`load` reads back exactly."""
    out: list[str] = []
    _block(value, 0, out)
    return "".join(out)


def _block(value: Any, indent: int, out: list[str]) -> None:
    """Write a value at the end of the current line, or below it where it has parts."""
    pad = " " * indent
    if isinstance(value, dict) and value:
        if out and not out[-1].endswith("- "):
            out.append("\n")
        for place, (key, item) in enumerate(value.items()):
            lead = "" if place == 0 and out and out[-1].endswith("- ") else pad
            written = _key(key)
            if len(written) > _LONGEST_KEY:
                written = f"? {written}\n{pad}"
            out.append(f"{lead}{written}:" + ("" if _has_parts(item) else " "))
            _block(item, indent + 2, out)
    elif isinstance(value, list) and value:
        if out:
            out.append("\n")
        for item in value:
            out.append(f"{pad}- ")
            if isinstance(item, list) and item:
                out.append("")  # a list in a list begins on a line of its own
            _block(item, indent + 2, out)
    elif isinstance(value, str):
        out.append(_scalar(value, indent) + "\n")
    else:
        out.append(_atom(value) + "\n")


def _has_parts(value: Any) -> bool:
    return isinstance(value, dict | list) and bool(value)


def _atom(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{}"
    if isinstance(value, list):
        return "[]"
    return repr(value)


def _key(key: str) -> str:
    return key if _PLAIN_KEY.fullmatch(key) and key.lower() not in _NOT_PLAIN else _quoted(key)


def _quoted(text: str) -> str:
    return '"' + _ESCAPED.sub(lambda m: _SHORT.get(m[0]) or f"\\u{ord(m[0]):04x}", text) + '"'


def _scalar(text: str, indent: int) -> str:
    """Several lines stay several lines, for reviews; where a block could lose something, quotes cannot."""
    lines = text.split("\n")
    if (
        len(lines) == 1
        or not lines[0]
        or lines[0][0] == " "
        or (len(lines) > 1 and lines[-1] == "" and lines[-2] == "")
        or any(line and not line.strip(" ") for line in lines)
        or _NOT_LITERAL.search(text)
    ):
        return _quoted(text)
    ends = lines[-1] == ""
    pad = " " * max(indent, 2)
    body = "\n".join(pad + line if line else "" for line in (lines[:-1] if ends else lines))
    return ("|\n" if ends else "|-\n") + body


def load(text: str | bytes, file: str) -> Any:
    """The value that a YAML text says.

    Args:
        text: The text; bytes have to be UTF-8.
        file: Its name, for the error.

    Raises:
        CorruptRegistry: It is no YAML, or uses what the registry does not take; with the line.
    """
    value, _ = _read(text, file, marks=False)
    return value


def line_of(text: str | bytes, file: str, path: tuple[str | int, ...]) -> int | None:
    """The line, from 1, at which the value under ``path`` stands, or the nearest value around it."""
    _, marks = _read(text, file, marks=True)
    while path:
        if path in marks:
            return marks[path]
        path = path[:-1]
    return marks.get((), 1)


class _Open:
    """A list or mapping that is not closed yet."""

    __slots__ = ("key", "path", "value")

    def __init__(self, value: Any, path: tuple[str | int, ...]) -> None:
        self.value = value
        self.path = path
        self.key: str | None = None


def _read(text: str | bytes, file: str, marks: bool) -> tuple[Any, dict[tuple[str | int, ...], int]]:
    if len(text) > LARGEST_BYTES:
        raise CorruptRegistry(file, None, f"more than {LARGEST_BYTES:,} bytes")
    lines: dict[tuple[str | int, ...], int] = {}
    try:
        return _build(yaml.parse(text, Loader=_LOADER), file, lines if marks else None), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise CorruptRegistry(file, None if mark is None else mark.line + 1, f"{error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CorruptRegistry(file, None, f"no YAML text: {str(error).splitlines()[0]}") from None


def _build(events: Any, file: str, lines: dict[tuple[str | int, ...], int] | None) -> Any:
    root: list[Any] = []
    stack = [_Open(root, ())]
    documents = 0
    for event in events:
        kind = type(event)
        top = stack[-1]
        if kind is yaml.ScalarEvent:
            _refuse_names(event, file)
            if type(top.value) is dict and top.key is None:
                if event.value in top.value:
                    raise CorruptRegistry(file, event.start_mark.line + 1, f"the key {event.value!r} stands here twice")
                top.key = event.value
                continue
            value: Any = event.value if event.style else _plain(event, file)
        elif kind is yaml.MappingStartEvent or kind is yaml.SequenceStartEvent:
            _refuse_names(event, file)
            if len(stack) > DEEPEST:
                raise CorruptRegistry(file, event.start_mark.line + 1, f"nested more than {DEEPEST} levels deep")
            if type(top.value) is dict and top.key is None:
                raise CorruptRegistry(file, event.start_mark.line + 1, "a key has to be a text")
            value = {} if kind is yaml.MappingStartEvent else []
        elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
            stack.pop()
            continue
        elif kind is yaml.AliasEvent:
            raise CorruptRegistry(file, event.start_mark.line + 1, "anchors and aliases are not taken; write it out")
        else:
            documents += kind is yaml.DocumentStartEvent
            if documents > 1:
                raise CorruptRegistry(file, event.start_mark.line + 1, "a second document begins here")
            continue
        path = _put(top, value) if lines is None else _put_marked(top, value, root, lines, event)
        if kind is not yaml.ScalarEvent:
            stack.append(_Open(value, path))
    return root[0] if root else None


def _put(top: _Open, value: Any) -> tuple[str | int, ...]:
    if type(top.value) is dict:
        top.value[top.key] = value
        top.key = None
    else:
        top.value.append(value)
    return ()


def _put_marked(
    top: _Open, value: Any, root: list[Any], lines: dict[tuple[str | int, ...], int], event: Any
) -> tuple[str | int, ...]:
    step: tuple[str | int, ...]
    if top.value is root:
        step = ()
    elif type(top.value) is dict:
        step = (top.key or "",)
    else:
        step = (len(top.value),)
    path = top.path + step
    lines[path] = event.start_mark.line + 1
    _put(top, value)
    return path


def _refuse_names(event: Any, file: str) -> None:
    if event.tag is not None:
        raise CorruptRegistry(file, event.start_mark.line + 1, f"the tag {event.tag!r:.80} is not taken")
    if event.anchor is not None:
        raise CorruptRegistry(file, event.start_mark.line + 1, "anchors and aliases are not taken; write it out")


def _plain(event: Any, file: str) -> Any:
    text = event.value
    if text in _WORDS:
        return _WORDS[text]
    number = _NUMBER.fullmatch(text)
    if number is None:
        return text
    if number[1] or number[2]:
        value = float(text)
        if value in (float("inf"), float("-inf")):
            raise CorruptRegistry(file, event.start_mark.line + 1, f"{text} is too large a number")
        return value
    if len(text) > 19 + (text[0] == "-"):
        raise CorruptRegistry(file, event.start_mark.line + 1, "an integer beyond 64 bits; quote it")
    return int(text)
