"""What is looked for, as data: each detector with its search, its check, where its rule comes from, and examples."""
# ruff: noqa: RUF001 - examples with Chinese punctuation

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal

from dspy_observe.redaction import addresses, keys, numbers, secrets
from dspy_observe.redaction.errors import RedactionConfigError
from dspy_observe.redaction.keynames import DEFAULT_ALLOW, DEFAULT_DENY_KEYS, KeyNames
from dspy_observe.redaction.operators import valid_entity
from dspy_observe.redaction.shape import Lowered, words_after, words_before

__all__ = ["CREDENTIAL_DETECTORS", "DEFAULT_DETECTORS", "Detector", "Finder", "Span"]

Span = tuple[int, int]
Finder = Callable[[str], Iterable[Span]]
"""Any function from a text to the (start, end) of what is private in it."""

_CONTEXT_CHARS: Final = 40


@dataclass(frozen=True, slots=True)
class Detector:
    """One kind of private value and how to find it.

    Give ``pattern`` or one of the searches. Bound every quantifier of a pattern (``{1,64}``, not ``+``), begin it with
    a literal or a character class, and look behind after that: then it stays linear and fast.

    Raises:
        RedactionConfigError: A field cannot work: the name is not an entity's, there is no one search, the pattern does
            not compile or matches nothing at all, or something has another type.
    """

    name: str
    """The entity: capital letters, digits, underscores. It stands in findings, metrics and the default replacement."""
    pattern: str | re.Pattern[str] | None = None
    """What a value looks like. A group named ``value`` is what is replaced, else the whole match."""
    validator: Callable[[str], bool] | None = None
    """Says whether a match is one; ``None`` takes every match."""
    context: tuple[str, ...] = ()
    """If given, one of these words must stand within 40 characters before the match or 20 after it, in any case.
    The key of a short value counts as standing before it."""
    scan: Callable[[str, Lowered], Iterable[Span]] | None = None
    """A search over the text and its lower-cased copy: a ``str`` of the same length, which knows the text's shape."""
    number: Callable[[numbers.Run], Iterable[Span]] | None = None
    """A search over one run of digits."""
    gate: tuple[str, ...] = ()
    """The search is left out unless the text has one of these, in any case; empty always searches."""
    kind: Literal["pii", "credential"] = "pii"
    """Credentials are removed in every mode, also from raw content."""
    source: str = ""
    """Where the rule comes from."""
    examples: tuple[str, ...] = ()
    """Texts in which it finds something."""
    counterexamples: tuple[str, ...] = ()
    """Look-alikes in which it finds nothing."""

    def __post_init__(self) -> None:
        if not valid_entity(self.name):
            raise RedactionConfigError(
                "Detector.name", f"{self.name!r} is not an entity's name", "Use capital letters, digits and underscores"
            )
        ways = sum(way is not None for way in (self.pattern, self.scan, self.number))
        if ways != 1:
            raise RedactionConfigError("Detector.pattern", f"{self.name} has {ways} searches", "Give pattern= or scan=")
        if self.pattern is not None:
            object.__setattr__(self, "pattern", _compiled(self.name, self.pattern))
        for field in ("scan", "number", "validator"):
            way = getattr(self, field)
            if way is not None and not callable(way):
                raise RedactionConfigError(
                    f"Detector.{field}", f"{self.name} has a {type(way).__name__}", "Give a function, or None"
                )
        object.__setattr__(self, "context", _words(self.name, "context", self.context))
        # The gate is looked for in the lower-cased text.
        gate = tuple(word.lower() for word in _words(self.name, "gate", self.gate))
        object.__setattr__(self, "gate", gate)
        if self.kind not in ("pii", "credential"):
            raise RedactionConfigError("Detector.kind", f"{self.name} has {self.kind!r}", "Use 'pii' or 'credential'")

    def find(self, text: str, lowered: str) -> Iterable[Span]:
        """Spans of this entity in a text, for all but number detectors.

        Args:
            text: The text.
            lowered: Its lower-case copy of the same length.
        """
        if self.scan is not None:
            return self.scan(text, Lowered.of(text, lowered))
        return self._matches(text, lowered)

    def _matches(self, text: str, lowered: str) -> Iterable[Span]:
        if not isinstance(self.pattern, re.Pattern):
            return
        group: int | str = "value" if "value" in self.pattern.groupindex else 0
        for match in self.pattern.finditer(text):
            start, end = match.span(group)
            if end > start and self._accepts(text, lowered, start, end):
                yield start, end

    def _accepts(self, text: str, lowered: str, start: int, end: int) -> bool:
        if self.validator is not None and not self.validator(text[start:end]):
            return False
        if not self.context:
            return True
        around = "\n".join(
            (words_before(text, lowered, start, _CONTEXT_CHARS), words_after(text, lowered, end, _CONTEXT_CHARS // 2))
        )
        return any(word.lower() in around for word in self.context)


def _compiled(name: str, pattern: object) -> re.Pattern[str]:
    if isinstance(pattern, str):
        try:
            pattern = re.compile(pattern)
        except re.error as error:
            raise RedactionConfigError(
                "Detector.pattern", f"the pattern of {name} does not compile ({error})", "Correct it"
            ) from None
    if not isinstance(pattern, re.Pattern) or not isinstance(pattern.pattern, str):
        raise RedactionConfigError(
            "Detector.pattern", f"the pattern of {name} is no text", "Give a str or what re.compile makes of one"
        )
    if pattern.match("") is not None:
        raise RedactionConfigError(
            "Detector.pattern", f"the pattern of {name} matches the empty text", "Make a part of it required"
        )
    return pattern


def _words(name: str, field: str, given: object) -> tuple[str, ...]:
    words = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else (None,)
    if not all(isinstance(word, str) and word for word in words):
        raise RedactionConfigError(
            f"Detector.{field}", f"{name} has {given!r:.60}", "Give a tuple of words: ('badge', 'staff')"
        )
    return words


_RFC = "https://www.rfc-editor.org/rfc/"

_PII: Final = (
    Detector(
        "EMAIL",
        scan=addresses.emails,
        gate=("@", "%40", "\uff20", "\\u0040"),
        source=_RFC + "rfc5322, " + _RFC + "rfc6531 (internationalised)",
        examples=("邮箱zhang.san@example.com收", "jane.doe%40example.com", "用户@例子.公司", '"john doe"@example.com'),
        counterexamples=("user@localhost failed", "npm i @scope/name@4.5.6", "@dspy.module"),
    ),
    Detector(
        "CN_ID",
        number=numbers.cn_ids,
        source="GB 11643-1999, https://openstd.samr.gov.cn",
        examples=("身份证11010519491231002X", "320102-19900307-2434"),
        counterexamples=("订单320102199003072431已发货", "编号123456789012345678"),
    ),
    Detector(
        "CARD",
        number=numbers.cards,
        source="ISO/IEC 7812-1; issuer ranges of the card networks",
        examples=("card 4111-2222-3333-4448", "卡号6222021234567890128", "amex 3782 822463 10005"),
        counterexamples=("order 4111222233334449 shipped", "tracking 1234567890123456", "1732093200123"),
    ),
    Detector(
        "US_SSN",
        number=numbers.ssns,
        source="https://www.ssa.gov/employer/randomization.html",
        examples=("SSN 123-45-6789", "ssn=123 45 6789"),
        counterexamples=("part no 000-45-6789", "666-12-3456", "123 45 6789"),
    ),
    Detector(
        "PHONE",
        number=numbers.phones,
        source="ITU-T E.164, https://www.itu.int/rec/T-REC-E.164; NANP, https://www.nanpa.com; YD/T 1092 (China)",
        examples=("手机13812345678谢谢", "(021)6888-7777", "Call (415) 555-0132", "+44 20 7946 0958"),
        counterexamples=("ts=1732093200123", "发票号码 12345678", "logprob -13.812345678", "line 123-456 of 7890"),
    ),
    Detector(
        "IBAN",
        scan=addresses.ibans,
        source="ISO 13616, https://www.swift.com/standards/data-standards/iban-international-bank-account-number",
        examples=("DE82 3704 0044 0532 0139 99", "付款至GB19NWBK60161331926999账户"),
        counterexamples=("DE83370400440532013999", "ISO8601 and UTF16LE0123456789"),
    ),
    Detector(
        "IP",
        scan=addresses.ip_addresses,
        gate=(".", ":"),
        source=_RFC + "rfc791, " + _RFC + "rfc4291",
        examples=("client 203.0.113.42 connected", "[2001:db8::1]:443"),
        counterexamples=("dspy 2.6.1.3", "a[::2] b::c 12:34:56", "127.0.0.1"),
    ),
)

CREDENTIAL_DETECTORS: Final[tuple[Detector, ...]] = (
    Detector(
        "PRIVATE_KEY",
        scan=secrets.pem_blocks,
        kind="credential",
        source=_RFC + "rfc7468",
        examples=("-----BEGIN PRIVATE KEY-----\nRVhBTVBMRWtleQ==\n-----END PRIVATE KEY-----",),
        counterexamples=("-----BEGIN CERTIFICATE-----", "-----BEGIN PUBLIC KEY-----"),
    ),
    Detector(
        "JWT",
        scan=secrets.jwts,
        kind="credential",
        source=_RFC + "rfc7519",
        examples=("jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJFWEFNUExFIn0.EXAMPLEsignature0123 expired",),
        counterexamples=("eyJhbGciOiJIUzI1NiJ9", "eyJ is how a token begins"),
    ),
    Detector(
        "URL_CREDENTIAL",
        scan=secrets.url_credentials,
        gate=("://", "?", "&"),
        kind="credential",
        source=_RFC + "rfc3986#section-3.2.1",
        examples=("postgres://app:s3cr3tPa55@db.internal:5432/x", "?access_token=EXAMPLEtok0123456789abcdef"),
        counterexamples=("https://example.com:8443/a@b/c", "http://host/path:80@x"),
    ),
    Detector(
        "AUTHORIZATION",
        scan=secrets.authorization,
        kind="credential",
        source=_RFC + "rfc9110#section-11.6.2",
        examples=("Authorization: Bearer EXAMPLEopaque0123456789abcdef", "authorization: Basic dXNlcjpFWEFNUExF"),
        counterexamples=("Bearer of bad news; basic training", "Authorization: none"),
    ),
    Detector(
        "COOKIE",
        scan=secrets.cookies,
        gate=("cookie",),
        kind="credential",
        source=_RFC + "rfc6265",
        examples=("Cookie: session=EXAMPLEs3ss10n0123456789; theme=dark",),
        counterexamples=("Cookie: chocolate chip", "accept cookies"),
    ),
    Detector(
        "API_KEY",
        scan=keys.api_keys,
        kind="credential",
        source="The providers' documentation; see the families in keys.py",
        examples=("ghp_EXAMPLE0123456789abcdefghijABCDEFGHI", "密钥是sk-proj-EXAMPLEnotARealKey0123456789abcdef"),
        counterexamples=("sk-learn and task-force", "chatcmpl-9abcDEF0123456789ghiJKLmnopQR"),
    ),
    Detector(
        "SECRET",
        scan=secrets.secrets_for(KeyNames(DEFAULT_DENY_KEYS, DEFAULT_ALLOW)),
        kind="credential",
        source="Names of secrets: https://cheatsheetseries.owasp.org/cheatsheets/Logging_Cheat_Sheet.html",
        examples=(
            "password=hunter2EXAMPLE user=bob",
            '{\\"secret\\": \\"EXAMPLE0123456789abcdef\\"}',
            "密码：Abc12345EXAMPLE",
        ),
        counterexamples=(
            "secret=None, api_key=null",
            "prompt_tokens=123456",
            "primary_key=user_id",
            "password policy: 12",
        ),
    ),
)
"""What must never leave in any mode: keys, tokens, passwords, headers."""

DEFAULT_DETECTORS: Final[tuple[Detector, ...]] = CREDENTIAL_DETECTORS + _PII
"""All detectors that are on unless told otherwise. Names and postal addresses are not among them."""
