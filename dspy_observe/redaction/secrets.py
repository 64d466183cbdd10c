"""Secrets by their surroundings: ``key=value`` in every spelling, headers, URLs, JSON web tokens and PEM blocks.

Names are looked for in lower-cased text, and a match grows from there: a pattern with ``(?i)`` or with an open
beginning costs ten times as much. The file is long because the spellings of ``key=value`` share their parts.
"""
# ruff: noqa: PLR2004, RUF001, E501 - lengths of the formats, long expressions and Chinese punctuation are the subject here

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from dspy_observe.redaction.keynames import KeyNames
from dspy_observe.redaction.shape import Lowered

__all__ = ["authorization", "cookies", "jwts", "pem_blocks", "secrets_for", "url_credentials"]

Span = tuple[int, int]

_BEGINNING: Final = (
    r"(?:(?<![A-Za-z0-9_\-]{0})|(?<=\\[nrtbf]{0})|(?<=\\u[0-9a-fA-F]{{4}}{0})|(?<=%[0-9A-Fa-f]{{2}}{0}))"
)


def _jwt(head: str) -> re.Pattern[str]:
    part = r"[A-Za-z0-9_\-=]"
    return re.compile(
        head + _BEGINNING.format(head) + rf"{part}{{8,4000}}\.{part}{{4,16000}}(?:\.{part}{{0,16000}}){{0,3}}"
    )


_JWTS: Final = tuple((head, _jwt(head)) for head in ("eyJ", "ewog", "ewoJ", "ew0K"))


def jwts(text: str, lowered: Lowered) -> Iterable[Span]:
    """JSON web tokens: base64url of a JSON header, then one to four dotted parts (RFC 7519, RFC 7516)."""
    if not lowered.spans:
        return ()
    tokens = lowered.long_tokens
    return [match.span() for head, pattern in _JWTS if head in tokens for match in pattern.finditer(text)]


_PEM_BEGIN: Final = re.compile(
    r"-----BEGIN[ A-Z0-9_\-]{0,48}PRIVATE KEY(?: BLOCK)?-----|---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----"
)
_PEM_BODY: Final = re.compile(r"(?:[A-Za-z0-9+/=,:.\-\s]|\\{1,4}[nrt]){0,16384}")
_PEM_END: Final = re.compile(r"-{4,5} ?END[ A-Z0-9_\-]{0,60}-{4,5}")
_PEM_BASE64: Final = re.compile(
    r"(?:LS0tLS1CRUdJTi|0tLS0tQkVHSU4g|tLS0tLUJFR0lOI)(?:[A-Za-z0-9+/=]|\\{1,4}[nr]|[\r\n]){16,16384}"
)
_PUTTY: Final = re.compile(
    r"PuTTY-User-Key-File-\d[^\0]{0,2000}?Private-Lines:(?: \d{1,4})?\s(?:[A-Za-z0-9+/=\s]|\\[nr]){16,16384}"
)
_PEM_LIMIT: Final = 32_768  # characters between BEGIN and END; an RSA key of 16 kbit has 12,000


def pem_blocks(text: str, lowered: Lowered) -> Iterable[Span]:
    """Private keys in PEM form with their body, also with escaped line breaks, cut off, or base64-encoded once more."""
    plain = "V" in text and "PRIVATE KEY" in text  # one character is found many times faster
    if not plain and not lowered.spans:
        return ()
    found = list(_plain_pem_blocks(text)) if plain else []
    tokens = lowered.long_tokens
    if "LS0tLS1CRUdJTi" in tokens or "0tLS0tQkVHSU4g" in tokens or "tLS0tLUJFR0lOI" in tokens:
        found.extend([match.span() for match in _PEM_BASE64.finditer(text)])
    if "PuTTY-User-Key-File-" in tokens:
        found.extend([match.span() for match in _PUTTY.finditer(text)])
    return found


def _plain_pem_blocks(text: str) -> Iterator[Span]:
    done = 0
    for begin in _PEM_BEGIN.finditer(text):
        if begin.start() < done:
            continue
        end = text.find("END", begin.end(), begin.end() + _PEM_LIMIT)
        last = (
            _PEM_END.match(text, max(begin.end(), end - 6))
            or _PEM_END.search(text, max(begin.end(), end - 6), end + 70)
            if end >= 0
            else None
        )
        if last is None:
            last = _PEM_BODY.match(text, begin.end())
        done = last.end() if last is not None else begin.end()
        yield begin.start(), done


_USERINFO: Final = re.compile(r"://([^\s/?#@:'\"<>\\]{0,128}):([^\s/'\"<>\\]{1,256})@(?=[^\s@])")
_USER_ONLY: Final = re.compile(r"://([A-Za-z0-9_\-.~%]{20,256})@(?=[A-Za-z0-9\[])")
_QUERY: Final = re.compile(
    r"[?&;](?:access_token|refresh_token|id_token|auth_token|token|api_?key|apikey|key|sig|signature|secret|client_secret|"
    r"password|passwd|pwd|auth|code|sv_sig|x-amz-signature|x-amz-security-token|x-amz-credential|x-goog-signature|"
    r"x-goog-credential|subscription-key|session|sessionid|sid|jwt|ticket|credential)=([^&\s\"'<>#\\;]{6,2048})"
)
_TEMPLATE: Final = re.compile(r"<|\$\{|\{|\$\(|%\(|%s|\*{3}|\[")


def url_credentials(text: str, lowered: str) -> Iterable[Span]:
    """Passwords in ``scheme://user:password@host`` and credentials in the query of a URL."""
    users = "@" in text and "://" in text
    query = "=" in text and ("?" in text or "&" in text)
    return _url_credentials(text, lowered, users, query) if users or query else ()


def _url_credentials(text: str, lowered: str, users: bool, query: bool) -> Iterator[Span]:
    if users:
        for pattern, group in ((_USERINFO, 2), (_USER_ONLY, 1)):
            for match in pattern.finditer(text):
                if not _TEMPLATE.match(match[group]) and (group == 2 or any(map(str.isdigit, match[1]))):
                    yield match.span(group)
    if query:
        for match in _QUERY.finditer(lowered):
            value = text[match.start(1) : match.end(1)]
            weak = lowered[match.start() + 1 : match.start(1) - 1] in _WEAK_PARAMETERS
            if not _TEMPLATE.match(value) and _drawn(value, 16 if weak else 6):
                yield match.span(1)


_WEAK_PARAMETERS: Final = frozenset({"code", "key", "session", "sid", "ticket", "auth", "sig"})
_AUTH: Final = re.compile(r"(?:proxy-|proxy_)?authorization[\"'\\\]]{0,4}\s{0,4}(?:=>|[:=,])\s{0,4}")
_AUTH_VALUE: Final = re.compile(
    r"\\{0,4}[\"'`]?(?:(?P<scheme>[A-Za-z][A-Za-z0-9\-]{2,24})[ \t]{1,4}(?=[^\s\"'\\,}]))?"
    r"(?P<value>[A-Za-z0-9_\-.~+/=:!@#$%^*|]{6,16000}(?:,[ ]?[A-Za-z_]{3,20}=[^\s\"'\\,]{1,600}){0,6})"
)
_AUTH_PARAMETER = r"[A-Za-z][A-Za-z0-9_\-]{0,40}=(?:\\{0,4}\"[^\"\r\n]{0,2000}\"|[^\s\"',\\]{1,2000})"
_AUTH_PARAMETERS: Final = re.compile(
    r"\\{0,4}[\"'`]?(?:(?i:digest|hawk|oauth|signature)|AWS4-[A-Z0-9\-]{6,40})[ \t]{1,4}"
    rf"(?P<value>{_AUTH_PARAMETER}(?:[ ]?,[ ]{{0,4}}{_AUTH_PARAMETER}){{0,20}})"
)
"""Schemes whose credential is one of several parameters: ``Digest username="x", response="y"``."""
_BEARER: Final = re.compile(
    r"\b(?:Bearer|bearer|BEARER|Token|token|ApiKey)[ \t]{1,2}(?P<value>[A-Za-z0-9_\-.~+/=]{16,16000})"
)
_CURL_USER: Final = re.compile(r"(?:-u|--user|--proxy-user)[ =][\"']?[\w.@+\-]{1,64}:(?P<value>[^\s\"'<>$]{3,256})")
_BASIC: Final = re.compile(r"\bBasic[ \t]{1,2}(?P<value>[A-Za-z0-9+/]{8,4000}={0,2})")
_SCHEMES: Final = frozenset(
    {
        "bearer",
        "basic",
        "token",
        "apikey",
        "digest",
        "negotiate",
        "hawk",
        "key",
        "aws4-hmac-sha256",
        "bot",
        "ssws",
        "splunk",
        "jwt",
        "sso-key",
        "oauth",
    }
)


def authorization(text: str, lowered: Lowered) -> Iterable[Span]:
    """Values of ``Authorization`` headers, and ``Bearer``, ``Token`` and ``Basic`` credentials anywhere."""
    basic = "B" in text and lowered.has("basic ") and "Basic " in text
    # What follows a scheme is drawn at random, so it is a long token with a digit.
    scheme = bool(lowered.spans) and _DIGIT.search(lowered.long_tokens) is not None and not lowered.lacks(_BEARERS)
    if not basic and not scheme and lowered.lacks(_HEADERS):
        return ()
    found: list[Span] = []
    if lowered.has("auth") and lowered.has("authorization"):
        found.extend(_headers(text, lowered))
    if scheme and (lowered.has("bearer") or lowered.has("token ") or "ApiKey " in text):
        found.extend([m.span("value") for m in _BEARER.finditer(text) if _drawn(m["value"], 16)])
    if lowered.has("curl"):
        found.extend([m.span("value") for m in _CURL_USER.finditer(text)])
    if basic:
        found.extend([m.span("value") for m in _BASIC.finditer(text) if _is_basic(m["value"])])
    return found


_HEADERS: Final = frozenset({"authorization", "curl"})
_DIGIT: Final = re.compile("[0-9]")
_BEARERS: Final = frozenset({"bearer", "token ", "apikey "})


def _headers(text: str, lowered: str) -> Iterator[Span]:
    for name in _AUTH.finditer(lowered):
        match = _AUTH_PARAMETERS.match(text, name.end())
        if match is not None:
            yield match.span("value")
            continue
        match = _AUTH_VALUE.match(text, name.end())
        if match is not None:
            value, scheme = match["value"], match["scheme"]
            if ((scheme or "").lower() in _SCHEMES and len(value) >= 6 and _not_code(value)) or (
                _drawn(value, 16) and not _WRITTEN.match(value)
            ):
                yield match.span("value")


def _not_code(value: str) -> bool:
    return value.lower() not in ("none", "token", "<token>", "bearer", "string") and not value.isupper()


def _is_basic(value: str) -> bool:
    try:
        return b":" in base64.b64decode(value + "=" * (-len(value) % 4), validate=True)
    except (binascii.Error, ValueError):
        return False


_COOKIE: Final = re.compile(r"(?:set-)?cookies?[\"'\\\]]{0,4}\s{0,4}(?:=>|[:=,])\s{0,4}(?:\\{0,4}[\"'`])?")
_COOKIE_VALUE: Final = re.compile(
    r"[A-Za-z0-9_.\-]{1,64}=(?:[^\s;\"'\\,]{4,4000}|[^\s;\"'\\,]{0,3}(?=;\s{0,2}[A-Za-z0-9_.\-]{1,64}=))"
    r"(?:;\s{0,2}[A-Za-z0-9_.\-]{1,64}(?:=[^\s;\"'\\]{0,4000})?){0,60}"
)


def cookies(text: str, lowered: Lowered) -> Iterable[Span]:
    """Everything that stands in a ``Cookie`` or ``Set-Cookie`` header."""
    if not lowered.has("cookie"):
        return ()
    values = [_COOKIE_VALUE.match(text, name.end()) for name in _COOKIE.finditer(lowered)]
    return [match.span() for match in values if match is not None]


_WRITTEN: Final = re.compile(
    r"(?:[a-z]{1,24}|[A-Z]{1,24}|[A-Z][a-z]{1,24})(?:[\W_]{1,3}(?:[a-z]{1,24}|[A-Z]{1,24}|[A-Z][a-z]{1,24})){0,12}[\W_]{0,3}$"
)


def _drawn(value: str, least: int) -> bool:
    """Whether a value looks drawn at random rather than written: long enough, with a digit beside letters."""
    if len(value) < least:
        return False
    value = value[:128]
    digits = sum(map(str.isdigit, value))
    return 0 < digits < len(value) or (value != value.lower() and value != value.upper() and len(value) >= 24)


# key=value. First the words, in lower-cased text, each with what must follow for it to be a name with a value.
_SEPARATOR = r"(?:=>|:=|={1,3}|:{1,2}=?|\|{2}|,(?=\s?[\"'])|\((?=[\"'])|>(?=[^<\s]{4,200}</)| is | was |\s?[：＝]\s?|是|为|\s(?=[^\s]))"
_FOLLOWED = rf"(?P<tail>[\w\-]{{0,32}})(?P<close>[\"'\\\]`)*]{{0,6}})\s{{0,8}}(?P<sep>{_SEPARATOR})\s{{0,8}}"
_WORDS: Final = tuple(
    (gate, word, re.compile(word + rest + _FOLLOWED))
    for gate, word, rest in (
        ("pass", "pass", r"(?:w(?:or)?d|phrase|code)?"), ("pw", "pwd", ""), ("cre", "secret", "s?"),
        ("token", "token", "(?!s|iz|is)"), ("key", "key", ""), ("cre", "cred", "(?:ential)?s?"),
        ("auth", "auth", r"(?!or[^i]|e)"), ("j", "jwt", ""), ("salt", "salt", ""), ("nonce", "nonce", ""),
        ("cv", "cvv", ""), ("cv", "cvc", ""), ("otp", "otp", ""), ("pw", "pw", ""), ("dsn", "dsn", ""),
        ("connection", "connection", "[_ ]?string"),
    )
)  # fmt: skip
"""Each with something that is found sooner, or that several words have."""
_GATES: Final = frozenset(gate for gate, _, _ in _WORDS)
_CHINESE_WORDS: Final = re.compile(r"(?:密码|口令|密钥|令牌|私钥|授权码)" + _FOLLOWED)
_OPEN: Final = re.compile(r"(?:@?(?:\\{0,4}[\"`']|[bru]{1,2}[\"'])){1,3}")
_UNQUOTED: Final = re.compile(r"[^\s\"'`,;&|<>(){}\[\]\\，。；、“”]{4,600}")
_ASCII_VALUE: Final = re.compile(r"[!-&(-+\--:=?-\[\]-~]{4,200}")
_PASSWORDS: Final = re.compile(r"pass|pwd|pw$|密码|口令")
_KEYED: Final = re.compile(
    r"(?:secret|api|access|private|sign|crypt|master|account|storage|shared|subscription|ssh|service|client|app|auth|licen[sc]e|web|account)[\w\-]{0,12}key|key[_\-]?(?:secret|pass)"
)
_WEAK: Final = re.compile(r"(?:^|[_\-.])?(?:key|auth|salt|nonce|otp|cvv|cvc|dsn|pass|pw)$")
_HASHLIKE: Final = re.compile(
    r"(?:[0-9a-f]{32}|[0-9a-f]{40}|[0-9a-f]{64}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})$"
)
_CODE: Final = re.compile(r"[A-Za-z_$][\w$]*(?:(?:\.|::|->)[A-Za-z_]\w*)*[.\[(]?$")
_ALGORITHM: Final = re.compile(r"(?:sha|md|base|utf|oauth|argon|pbkdf|scrypt|bcrypt|v)-?\d+[a-z]*$")
_NESTED: Final = re.compile(r"[a-z_]{2,24}=(?=[A-Za-z0-9_])")  # "key=name=value": the inner name decides
_SAFE: Final = re.compile(
    r"(?:none|null|nil|true|false|undefined|empty|required|optional|str|string|int|bool|bytes|todo|n/a|unset|missing|"
    r"invalid|expired|os\.\w|env\.|process\.|self\.|settings\.|config\.|\$|%[({s]|\{|<|\[|\*{3}|x{3,}$|\.{3}|your[_\-. ])"
)


def secrets_for(names: KeyNames) -> Callable[[str, Lowered], Iterable[Span]]:
    """A search for the values of ``name=value`` under the given names, however it is written.

    Plain, quoted, JSON, escaped JSON, ``repr``, YAML, XML, command-line flags, function arguments and Chinese.
    """

    def find(text: str, lowered: Lowered) -> Iterable[Span]:
        found: list[Span | None] = []
        if not lowered.lacks(_GATES):
            for gate, word, pattern in _WORDS:
                if lowered.has(gate) and lowered.has(word):
                    found.extend([_value_of(text, hit, names) for hit in pattern.finditer(lowered)])
        if not text.isascii():
            found.extend([_value_of(text, hit, names) for hit in _CHINESE_WORDS.finditer(text)])
        return [span for span in found if span is not None] if found else ()

    return find


def _value_of(text: str, hit: re.Match[str], names: KeyNames) -> Span | None:
    start, end = hit.start(), hit.end("tail")
    least = max(0, start - 40)
    while start > least and (text[start - 1].isalnum() or text[start - 1] in "_-"):
        start -= 1
    name = text[start:end]
    chinese = not text[hit.start()].isascii()
    if not chinese and not names.is_secret(name.strip("-")) and not _maybe_secret(name.lower()):
        return None
    return _value_at(text, hit, name, name[:1] == "-", chinese)


_PUBLIC_KEYS: Final = (
    "cache",
    "primary",
    "foreign",
    "public",
    "sort",
    "partition",
    "idempotency",
    "map",
    "group",
    "dedup",
)


def _maybe_secret(name: str) -> bool:
    """Whether a name may stand for a secret if its value looks like one: any ``..._key``, ``salt``, ``nonce``."""
    if name.endswith(("key", "salt", "nonce")):
        return not any(word in name for word in _PUBLIC_KEYS)
    return False


def _value_at(text: str, join: re.Match[str], name: str, flag: bool, chinese: bool) -> Span | None:
    at, separator = join.end(), join["sep"].strip()
    opening = _OPEN.match(text, at)
    lowered_name = name.lower()
    weak = _PASSWORDS.search(lowered_name) is None
    if opening is not None:
        quote = opening.group()[-1]
        start = opening.end()
        end = _closing(text, start, quote)
        value = text[start:end]
        if separator == "" and not flag:
            return None
        if separator in (",", "(") and not _drawn(value, 8):
            return None
        return (start, end) if _quoted_secret(value, lowered_name, weak) else None
    if separator in ("(", ",") or (join["close"] and separator == ""):
        return None
    if lowered_name in ("key", "token", "auth") and _NESTED.match(text, at):
        return None
    match = (_ASCII_VALUE if chinese else _UNQUOTED).match(text, at)
    if match is None:
        return None
    value = match.group().rstrip(".:!?" if separator not in ("=", "==") else ":")
    end = match.start() + len(value)
    tight = text[join.end("tail") : join.end()] == "="
    if text[match.end() : match.end() + 1] in ("(", "[") and _CODE.match(value):
        return None
    if _plain_secret(
        value,
        lowered_name,
        separator,
        flag,
        weak,
        caps=(tight or not separator) and name == name.upper() and name.isascii(),
    ):
        return match.start(), end
    return None


def _closing(text: str, start: int, quote: str) -> int:
    limit = min(len(text), start + 600)
    at = start
    while at < limit:
        char = text[at]
        if char == quote or char in "\r\n":
            break
        at += 1
    while at > start and text[at - 1] == "\\":
        at -= 1
    return at


def _quoted_secret(value: str, name: str, weak: bool) -> bool:
    low = value.lower().strip()
    if len(low) < 3 or _SAFE.match(low) or low == name or "***" in low:
        return False
    if not weak:
        return (
            len(low) >= 4
            and low not in ("password", "passwd", "pwd")
            and (" " not in low or any(map(str.isdigit, low)) or low.count(" ") <= 3)
        )
    if _bare(name):
        return _drawn(value, 16) and " " not in value and "." not in value and not _HASHLIKE.match(low)
    if value.isupper() and "_" in value and _CODE.match(value):
        return False  # the name of an environment variable
    return len(value) >= 6 and " " not in value and (_drawn(value, 8) or not _WRITTEN.match(value))


def _bare(name: str) -> bool:
    return name.strip("_-") in ("token", "key", "auth", "salt", "nonce", "otp", "dsn", "pw") or not _strong(name)


def _strong(name: str) -> bool:
    return "secret" in name or "token" in name or "cred" in name or _KEYED.search(name) is not None


def _plain_secret(value: str, name: str, separator: str, flag: bool, weak: bool, *, caps: bool) -> bool:
    value = value[:128]
    low = value.lower()
    if len(value) < 4 or _SAFE.match(low) or low == name or "***" in low:
        return False
    if _CODE.match(value) and (low.endswith(name) or name.endswith(low)):
        return False  # name=name, as arguments are passed on
    if separator == "" and not flag:  # "secret AbC123...": only what can be nothing else
        if not weak:
            return _drawn(value, 6) and value.isalnum() and _ALGORITHM.match(low) is None
        if caps and _drawn(value, 16):
            return _strong(name)
        return (
            _strong(name)
            and _drawn(value, 20)
            and value != low
            and not _HASHLIKE.match(low)
            and value.isascii()
            and value.isalnum()
        )
    if separator in ("is", "was"):
        return (_drawn(value, 6) and _CODE.match(value) is None) or (_drawn(value, 8) and value.isalnum())
    code = _CODE.match(value) is not None
    if code and not any(map(str.isdigit, value)):
        return caps and not value.isupper() and separator == "=" and len(value) >= 6
    if not weak:
        return True
    if _bare(name):
        return _drawn(value, 16) and not _HASHLIKE.match(low) and "." not in value[1:-1]
    return _drawn(value, 8) or (len(value) >= 12 and not _WRITTEN.match(value))
