r"""E-mail addresses, IP addresses and IBANs. Each search begins at a rare character and grows to both sides from there.

A pattern that begins with ``[\w.+-]+@`` is quadratic on long texts without an ``@``; one that begins with ``@`` is not.
"""
# ruff: noqa: PLR2004, E501, SIM102 - lengths of the formats, long expressions and Chinese punctuation are the subject here

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final

from dspy_observe.redaction import validators
from dspy_observe.redaction.shape import Lowered, words_before

__all__ = ["emails", "ibans", "ip_addresses"]

Span = tuple[int, int]

_UNSEEN = "\u200b\u200c\u200d\u2060\ufeff\u00ad"  # zero-width characters and the soft hyphen
_AT = r"(?:@|\uff20|%40|\\u0040)"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9\-]{0,62})"
_DOMAIN: Final = re.compile(
    rf"{_AT}[{_UNSEEN}]?{_LABEL}(?:\.{_LABEL}){{0,8}}\.(?P<tld>[Xx][Nn]--[A-Za-z0-9\-]{{2,59}}|[A-Za-z]{{2,24}})"
)
_WIDE_LABEL = r"[^\W_](?:[\w\-]{0,62})"
_WIDE_DOMAIN: Final = re.compile(
    rf"{_AT}{_WIDE_LABEL}(?:[.\u3002\uff0e]{_WIDE_LABEL}){{0,8}}[.\u3002\uff0e](?P<tld>[^\W\d_]{{2,24}})"
)
_LOCAL_BACKWARDS: Final = re.compile(rf"[A-Za-z0-9._%+'&~\-{_UNSEEN}]{{1,72}}")
_WIDE_LOCAL_BACKWARDS: Final = re.compile(r"[\w.%+\-]{1,64}")
_QUOTED_BACKWARDS: Final = re.compile(r'"[^"\\\r\n]{1,64}"')
_PERCENT: Final = re.compile(r"%[0-9A-Fa-f]{2}")
_NOT_TLD: Final = frozenset(
    {
        "png",
        "jpg",
        "jpeg",
        "gif",
        "svg",
        "webp",
        "css",
        "js",
        "json",
        "html",
        "yaml",
        "yml",
        "toml",
        "txt",
        "cfg",
        "ipynb",
    }
)
"""File endings that are no top-level domains: ``icon@2x.png`` is a file."""


def emails(text: str, lowered: str) -> Iterator[Span]:
    """E-mail addresses, also beside Chinese, percent-encoded, with full-width ``@``, quoted or internationalised."""
    del lowered
    done = 0
    for at in _ats(text):
        if at < done:
            continue
        match = _DOMAIN.match(text, at)
        if match is None or _goes_on(text, match.end()):
            match = (None if text.isascii() else _WIDE_DOMAIN.match(text, at)) or match
            if match is None:
                continue
        if match["tld"].lower() in _NOT_TLD:
            continue
        start = _local_start(text, at, done)
        if start is not None and not _in_url(text, start):
            done = match.end()
            yield start, done


_ANY_AT: Final = re.compile(r"@(?=[^\s@])|%40|\uff20|\\u0040")


def _ats(text: str) -> Iterator[int]:
    if text.isascii() and not ("%" in text and "%40" in text) and not ("\\" in text and "\\u0040" in text):
        at = text.find("@")
        while at >= 0:
            yield at
            at = text.find("@", at + 1)
    else:
        for match in _ANY_AT.finditer(text):
            yield match.start()


_USERINFO_BEFORE: Final = re.compile(r"://[^\s/?#@:'\"<>\\]{0,64}:[^\s/?#@'\"<>\\]{0,64}$")


def _in_url(text: str, start: int) -> bool:
    """Whether ``password@host`` of a URL looks like an address; the search for URL credentials takes the password."""
    return text[start - 1 : start] in (":", "@", "!", "%", "*", "$") and (
        _USERINFO_BEFORE.search(text, max(0, start - 136), start) is not None
    )


def _goes_on(text: str, end: int) -> bool:
    """Whether the domain continues in letters that are neither ASCII nor Chinese: ``exam.cöm``."""
    return end < len(text) and text[end].isalpha() and "\u00aa" <= text[end] < "\u0590"


def _local_start(text: str, at: int, floor: int) -> int | None:
    left = text[max(floor, at - 72) : at][::-1]
    match = _LOCAL_BACKWARDS.match(left)
    local = match.group()[::-1] if match else ""
    if local and not _latin_before(text, at - len(local)):
        last = None
        for last in _PERCENT.finditer(local):  # noqa: B007 - the last escape ends what stands before the address
            pass
        if last is not None:
            local = local[last.end() :]
        local = local.lstrip(".'%&+-~")
        if text[at - len(local) - 1 : at - len(local)] == "\\":  # \n before the address, not the letter n
            local = local[5:] if local[:1] == "u" else local[1:]
        return at - len(local) if local.strip(_UNSEEN) else None
    quoted = _QUOTED_BACKWARDS.match(left)
    if quoted is not None and not local:
        return at - quoted.end()
    wide = None if left.isascii() else _WIDE_LOCAL_BACKWARDS.match(left)
    if wide is None:
        return None
    return at - wide.end()


def _latin_before(text: str, at: int) -> bool:
    """Whether a letter with an accent, or another alphabet's, touches from the left; Chinese does not count."""
    return at > 0 and text[at - 1].isalpha() and "\u00aa" <= text[at - 1] < "\u1100"


_V4_TAIL: Final = re.compile(r"\.(?<=[0-9]\.)[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}(?![0-9])")
_VERSION_BEFORE: Final = re.compile(
    r"(?:\bv|version|\bver\.?|\bversions|版本|release|build|\brev|firmware|driver|==|>=|<=|~=|\^|-)[ :=\"']{0,3}$"
)
_ADDRESS_BEFORE: Final = re.compile(
    r"\bip|ip\b|\bssh\b|host|addr|server|client|\bdns|from|\bto\b|gateway|\bvia\b|ping|connect|peer|remote|listen|bind|//|proxy|router|"
    r"subnet|address|来源|地址|主机|服务器"
)
_WORD_BEFORE: Final = re.compile(r"[a-z][\w.\-]{0,30}[ :=/]{1,2}$")


def ip_addresses(text: str, lowered: Lowered) -> Iterable[Span]:
    """IPv4 and IPv6 addresses; four dotted numbers after a word for versions, or small ones after a name, are none."""
    found: list[Span] = []
    if lowered.numbers:
        found.extend(_v4(text, lowered))
    if not lowered.lacks_match(_PAIR_IN_LOWER_CASE):
        found.extend(_v6(text))
    return found


def _v4(text: str, lowered: Lowered) -> Iterator[Span]:
    for match in chain.from_iterable([_V4_TAIL.finditer(text, *window) for window in lowered.numbers]):
        start = match.start()
        while start > 0 and match.start() - start < 4 and text[start - 1] in "0123456789":
            start -= 1
        end = match.end()
        octets = text[start:end].split(".")
        if any(int(octet) > 255 or (len(octet) > 1 and octet[0] == "0") for octet in octets):
            continue
        before = text[start - 1 : start]
        if before and (before in "._" or (before.isascii() and before.isalpha() and not _tied(lowered, start))):
            continue
        after = text[end : end + 2]
        if after[:1].isascii() and (
            after[:1].isalpha() or after[:1] in ("_", "-") or (after[:1] == "." and after[1:2].isalnum())
        ):
            if not (after[:1] == "-" and not after[1:2].isalnum()):
                continue
        context = words_before(text, lowered, start, 24)
        small = all(int(octet) < 32 for octet in octets)
        version = _VERSION_BEFORE.search(context) or (
            small and (context[-1:] == "@" or _WORD_BEFORE.search(context))  # name@1.2.3.4, name 1.2.3.4
        )
        if not version or _ADDRESS_BEFORE.search(context):
            yield start, end


def _tied(lowered: str, start: int) -> bool:
    return lowered[start - 2 : start] in ("ip", "\\n", "\\t", "\\r") or lowered[start - 4 : start] in ("ipv4", "addr")


_PAIR_IN_LOWER_CASE: Final = re.compile(r":[0-9a-f]{0,4}:")
_PAIR: Final = re.compile(r":[0-9A-Fa-f]{0,4}:")
_V6_CHARS: Final = re.compile(r"[0-9A-Fa-f:]{2,45}(?:(?<=:)[0-9]{1,3}(?:\.[0-9]{1,3}){3}|(?<=:[0-9])(?:\.[0-9]{1,3}){3}|"
                              r"(?<=:[0-9]{2})(?:\.[0-9]{1,3}){3}|(?<=:[0-9]{3})(?:\.[0-9]{1,3}){3})?")  # fmt: skip


def _v6(text: str) -> Iterator[Span]:
    at = 0
    while (pair := _PAIR.search(text, at)) is not None:
        start = pair.start()
        while start > 0 and pair.start() - start < 5 and text[start - 1] in "0123456789abcdefABCDEF":
            start -= 1
        whole = _V6_CHARS.match(text, start)
        at = pair.start() + 1
        if whole is None:
            continue
        at = max(at, whole.end() - 1)
        if start > 0 and _joined(text, start):
            continue
        end = whole.end()
        candidate = text[start:end]
        if candidate.endswith(":") and not candidate.endswith("::"):
            candidate = candidate[:-1]
            end -= 1
        after = text[end : end + 1]
        if after.isascii() and (after.isalnum() or after == "_"):
            continue
        if len(candidate) >= 6 and any(map(str.isdigit, candidate)) and _three_hex(candidate):
            if validators.ip_address(candidate) is not None:
                yield start, end


def _joined(text: str, start: int) -> bool:
    char = text[start - 1]
    if not (char.isascii() and (char.isalnum() or char in "_:.")):
        return False
    return not (char in "nrt" and text[start - 2 : start - 1] == "\\")


def _three_hex(candidate: str) -> bool:
    return any(len(group) >= 3 for group in candidate.split(":")) or candidate.count(":") == 7


_IBAN: Final = re.compile(
    r"[0-9][0-9](?<=[A-Za-z]{2}[0-9]{2})(?:(?: [A-Za-z0-9]{4}){2,7}(?: [A-Za-z0-9]{1,4})?|(?:-[A-Za-z0-9]{4}){2,7}(?:-[A-Za-z0-9]{1,4})?|"
    r"[A-Za-z0-9]{11,30})"
)


def ibans(text: str, lowered: Lowered) -> Iterable[Span]:
    """International bank account numbers of every registered country, grouped or not, in any case (mod 97)."""
    first = lowered.letters_digits
    return _ibans(text, first) if first >= 0 else ()


def _ibans(text: str, first: int) -> Iterator[Span]:
    for match in _IBAN.finditer(text, first + 2):
        start = match.start() - 2
        length = validators.iban_length(text[start : start + 2].upper())
        if length is None:
            continue
        before = text[start - 1 : start]
        if before and before.isascii() and before.isalnum():
            if (
                not (before in "nrt" and text[start - 2 : start - 1] == "\\")
                and text[start - 4 : start].upper() != "IBAN"
            ):
                continue
        end = _nth_alnum(text, start, match.end(), length)
        if end is None:
            continue
        after = text[end : end + 1]
        if after and after.isascii() and after.isalnum():
            continue
        if validators.iban(text[start:end].replace(" ", "").replace("-", "").upper()):
            yield start, end


def _nth_alnum(text: str, start: int, end: int, count: int) -> int | None:
    for at in range(start, end):
        if text[at] not in " -":
            count -= 1
            if count == 0:
                return at + 1
    return None
