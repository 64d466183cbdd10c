"""What must hold of redaction on everything."""

# ruff: noqa: RUF001, E501 - texts with Chinese punctuation stay on one line

from __future__ import annotations

import contextvars
import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_observe.redaction import (
    DEFAULT_DETECTORS,
    Drop,
    KeyedHash,
    Mask,
    Redaction,
    Redactor,
    credentials_only,
)
from dspy_observe.redaction.shape import Edit, Lowered, lower

PLAIN = Redactor(Redaction(known_secrets=False))
REDACTORS = {
    "default": PLAIN,
    "mask": Redactor(Redaction(known_secrets=False, operators={d.name: Mask() for d in DEFAULT_DETECTORS})),
    "drop": Redactor(Redaction(known_secrets=False, operators={d.name: Drop() for d in DEFAULT_DETECTORS})),
    "hmac": Redactor(
        Redaction(known_secrets=False, operators={d.name: KeyedHash(b"0" * 16) for d in DEFAULT_DETECTORS})
    ),
    "brackets": Redactor(Redaction(known_secrets=False, replacement="[{entity}]")),
    "short": Redactor(Redaction(known_secrets=False, scan_limit_chars=256)),
    "cut": Redactor(Redaction(known_secrets=False, max_chars=256)),
    "credentials": credentials_only(Redaction(known_secrets=False)),
}
SECRETS = (
    "a.b@example.com", "zhang.san@example.com", "13812345678", "138-1234-5678", "+44 20 7946 0958", "(415) 555-0132",
    "4111 2222 3333 4448", "378282246310005", "11010519491231002X", "DE82 3704 0044 0532 0139 99", "123-45-6789",
    "203.0.113.42", "2001:db8:85a3::8a2e:370:7334", "ghp_EXAMPLE0123456789abcdefghijABCDEFGHI",
    "sk-proj-EXAMPLEnotARealKey0123456789abcdef", "AKIAEXAMPLE012345678", "xoxb-012345678901-EXAMPLEnotReal000",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJFWEFNUExFIn0.EXAMPLEsignature0123",
)  # fmt: skip
PIECES = st.sampled_from(
    [*SECRETS, "password=", "password: ", "'api_key': '", '"token": "', "\\n", "\\u53f7", "%20", "手机", "电话：", "卡号", " ", "\n",
     "-", ".", "@", ":", "://", "1", "12", "4111", "-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----", "Bearer ",
     "Cookie: a=bcdef", "<EMAIL>", "<", ">", '"', "'", "\\", "call me ", "hunter2EXAMPLE", "x", "İ", "１３８", "\u200b", "***"]
)  # fmt: skip
TEXTS = st.one_of(st.text(max_size=80), st.lists(PIECES, max_size=12).map("".join))
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), TEXTS, st.binary(max_size=8))
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.tuples(inner, inner), st.dictionaries(TEXTS, inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("name", REDACTORS)
@given(text=TEXTS)
def test_redacting_a_text_twice_is_redacting_it_once(name: str, text: str) -> None:
    """With every operator and limit."""
    once = REDACTORS[name].redact_text(text)
    assert REDACTORS[name].redact_text(once) == once


@given(value=VALUES)
def test_any_value_is_copied_without_error_and_stays_as_it_was(value: Any) -> None:
    """Never raises, never fails closed on plain data, never touches the input."""
    before, failures = copy.deepcopy(value), PLAIN.failures
    PLAIN.redact(value)
    assert value == before
    assert PLAIN.failures == failures


@given(value=VALUES)
def test_redacting_a_value_twice_is_redacting_it_once(value: Any) -> None:
    """Findings of the second time are none."""
    once, _ = PLAIN.redact(value)
    again, findings = PLAIN.redact(once)
    assert again == once
    assert findings == ()


def nestings(secret: str) -> st.SearchStrategy[Any]:
    """The secret in a text, in containers of any shape."""
    frame = st.sampled_from(["{}", "see {} now", "请看{}。", '{{"to": "{}"}}', "({})", "a\n{}\nb", "'{}'", "x; {}; y"])
    return st.recursive(
        frame.map(lambda f: f.format(secret)),
        lambda inner: st.one_of(
            st.lists(inner, min_size=1, max_size=3),
            st.tuples(st.just(1), inner),
            st.dictionaries(st.sampled_from(["a", "content", secret]), inner, min_size=1),
            inner.map(ValueError),
        ),
        max_leaves=4,
    )


@given(value=st.sampled_from(SECRETS).flatmap(lambda secret: st.tuples(st.just(secret), nestings(secret))))
def test_no_planted_secret_survives_in_any_nesting(value: tuple[str, Any]) -> None:
    """Neither in the copy nor in the findings."""
    secret, nested = value
    clean, findings = PLAIN.redact(nested)
    assert secret not in repr(clean)
    assert findings
    assert secret not in repr(findings)


@given(
    name=st.sampled_from(["password", "X-Api-Key", "clientSecret", "db_passwd"]),
    held=st.one_of(
        st.text(min_size=1),
        st.text().map("<{}".format),
        st.text().map("[REDACTION_ERROR{}".format),
        st.integers(),
        st.lists(st.integers(), min_size=1),
    ),
)
def test_whatever_a_secrets_name_holds_is_dropped(name: str, held: Any) -> None:
    """Also what only begins like a replacement made before."""
    clean, _ = PLAIN.redact({name: held})
    assert clean[name] == "<SECRET>"


PROSE = st.sampled_from(["the answer is grounded in passages", "page 12 of 30", "a-token-of-many-characters"])
LONG = st.tuples(st.lists(st.one_of(TEXTS, PROSE)), st.sampled_from(["\n", " ", ""])).map(
    lambda drawn: (drawn[1].join([*drawn[0], "plain words "]) * 99)[:1_500]
)


@given(known=LONG, head=TEXTS, tail=TEXTS, seen=st.booleans())
def test_what_was_seen_before_changes_no_result(known: str, head: str, tail: str, seen: bool) -> None:
    """A message that holds a text redacted a moment ago comes out as in a process that never saw it."""
    message = head + known + tail

    def here() -> tuple[str, list[str]]:
        redactor = Redactor(Redaction(known_secrets=False))
        if seen:
            redactor.scan_text(known)
        else:
            redactor.scan_text(message)
        return redactor.scan_text(message)

    def fresh() -> tuple[str, list[str]]:
        return Redactor(Redaction(known_secrets=False)).scan_text(message)

    assert contextvars.Context().run(here) == contextvars.Context().run(fresh)


MANY = ["long-token-99, " * 70, "(1234567), " * 20]  # so many that a shape no longer says where each of them is
PARTS = st.lists(
    st.sampled_from(["a", "aB-9aB", "1 1.1", "b1", "a" * 40, "\n", ", " * 20, "\u5bc6", "\u0130", *MANY]), max_size=4
).map("".join)


@settings(max_examples=400)
@given(kept=st.lists(PARTS, min_size=2, max_size=5), data=st.data())
def test_the_shape_of_an_edited_text_is_that_of_the_text(kept: list[str], data: st.DataObject) -> None:
    """Long tokens, numbers and words told from the shape before are those that a first look tells."""
    before, after, edits = kept[0], kept[0], []
    for part in kept[1:]:
        old, new = data.draw(PARTS), data.draw(PARTS)
        edits.append(Edit(len(before), len(before) + len(old), len(after), len(after) + len(new)))
        before, after = before + old + part, after + new + part
    known = Lowered(before)
    asked = data.draw(st.sets(st.sampled_from(["spans", "numbers", "letters_digits"])))
    for name in asked:
        getattr(known, name)
    known.lacks(frozenset({"ab", "a1b"}))
    known.has("b1")
    told, plain = Lowered(after, known, edits), Lowered(after)
    assert told == plain
    assert told.spans == plain.spans
    assert told.numbers == plain.numbers
    assert (told.letters_digits, told.long_tokens, told.raw) == (plain.letters_digits, plain.long_tokens, plain.raw)
    for literal in ("ab", "a1b", "b1", "a."):
        assert told.has(literal) == plain.has(literal) == (literal in lower(after))
        assert told.lacks(frozenset({literal})) == (literal not in lower(after))
