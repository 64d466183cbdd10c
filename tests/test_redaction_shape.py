"""What the searches ask of a text first: each answer must be true of every text in which they find something."""

from __future__ import annotations

import re
import re._parser as parser  # the standard library's own reading of a pattern: nothing else says what it can match
from collections.abc import Iterator
from typing import Any

import pytest

from dspy_observe.redaction import Redaction, Redactor
from dspy_observe.redaction.keys import FAMILIES, KeyFamily, api_keys
from dspy_observe.redaction.numbers import runs
from dspy_observe.redaction.shape import LONGEST_LITERAL, SHORTEST_TOKEN, TOKEN_CHARS, Edit, Lowered, lower

TOKEN = frozenset(TOKEN_CHARS.decode())
BESIDE = {"okta": " ", "teams webhook": "@"}  # characters of a key that stand outside its long token


def characters(items: Any) -> Iterator[str]:
    """Every ASCII character that a parsed pattern can take."""
    for kind, value in items:
        name = str(kind)
        if name == "LITERAL":
            yield chr(value)
        elif name == "RANGE":
            yield from map(chr, range(value[0], value[1] + 1))
        elif name == "CATEGORY":
            yield from "0123456789"
        elif name == "IN":
            yield from characters(value)
        elif name in ("MAX_REPEAT", "MIN_REPEAT"):
            yield from characters(value[2])
        elif name == "SUBPATTERN":
            yield from characters(value[3])
        elif name == "BRANCH":
            for branch in value[1]:
                yield from characters(branch)
        elif name not in ("ASSERT", "ASSERT_NOT"):
            raise AssertionError(name)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: f"{family.provider} {family.lead}")
def test_every_key_is_a_long_token(family: KeyFamily) -> None:
    """A family of shorter keys, or of keys with other characters, would be missed: widen the token, or search apart."""
    if family.lead == "-us":  # thirty-two hexadecimal digits stand before it
        return
    pattern = parser.parse(re.escape(family.lead) + family.rest)
    assert pattern.getwidth()[0] >= SHORTEST_TOKEN
    assert set(characters(pattern)) - TOKEN <= set(BESIDE.get(family.provider, ""))


@pytest.mark.parametrize("script", ["0", "\uff10", "\u0660"])
@pytest.mark.parametrize(
    "key",
    ["dt0c{0}1." + "aB3" * 8 + "." + "aB3d" * 16, "dt0c{0}{0}." + "aB3" * 8 + "." + "aB3d" * 16],
    ids=["one", "two"],
)
def test_a_digit_of_another_script_hides_no_key(key: str, script: str) -> None:
    """Such a digit ends a token, and the lead of the key is then in none that is long."""
    text = "see " + key.format(script)
    assert list(api_keys(text, Lowered(text))) == [(4, len(text))]


def test_long_tokens_are_found_with_their_places() -> None:
    """One short of the length is none; beyond Latin-1, places still count characters."""
    text = "abcdefghijkl 密钥" + "k" * SHORTEST_TOKEN + "。" + "A-1" * 5
    found = Lowered(text)
    assert [text[start:end] for start, end in found.spans] == ["k" * SHORTEST_TOKEN, "A-1" * 5]
    assert found.long_tokens == "k" * SHORTEST_TOKEN + " " + "A-1" * 5
    assert Lowered("only short words, and 12:30").spans == []


def test_a_text_of_many_long_tokens_is_taken_whole() -> None:
    """And what it holds is found as before, wherever it stands."""
    key = "ghp_EXAMPLE0123456789abcdefghijABCDEFGHI"
    text = "a-long-enough-token " * 100 + key
    assert Lowered(text).long_tokens == text
    assert Redactor(Redaction(known_secrets=False)).redact_text(text) == "a-long-enough-token " * 100 + "<API_KEY>"


def test_lower_case_keeps_every_place() -> None:
    """Also where the library's lower case is longer than the text."""
    text = "\u0130A\u212ab"
    assert len(lower(text)) == len(text)
    assert Lowered(text) == lower(text)


def test_what_was_absent_is_seen_again_only_where_something_changed() -> None:
    """A literal that a replacement completes is found; one that is nowhere stays absent."""
    before = Lowered("x pa@b.cc y " + "z" * 2 * LONGEST_LITERAL)
    assert not before.has("pass")
    assert not before.has("key")
    assert not before.has("z" * (LONGEST_LITERAL + 1) + "!")
    text = "x pass y " + "z" * 2 * LONGEST_LITERAL + "z!"
    after = Lowered(text, before, [Edit(3, 10, 3, 6), Edit(len(before), len(before), len(text) - 2, len(text))])
    assert after.has("pass")
    assert not after.has("key")
    assert after.has("z" * (LONGEST_LITERAL + 1) + "!")  # too long to be sure of


def test_a_secret_that_a_replacement_reveals_is_removed() -> None:
    """The name of the secret is there only after the first pass has taken out what stood inside it."""
    redactor = Redactor(Redaction(known_secrets=True, replacement="pass"))
    redactor.add_secrets(["#inside-it#"])
    out, entities = redactor.scan_text("the #inside-it#word=Ab3xY9qL77 is it")
    assert "Ab3xY9qL77" not in out
    assert entities == ["KNOWN_SECRET", "SECRET"]


@pytest.mark.parametrize("text", ["1234567", "call 1 2 3 4 5 6 7 8", "%41 1234567", "x" * 99 + "(021)6888-7777"])
def test_runs_of_digits_are_found_after_any_beginning(text: str) -> None:
    """The gate looks for what every run has."""
    assert [run.digits for run in runs(text, Lowered(text))] == [sum(map(str.isdigit, text)) - 2 * text.startswith("%")]
