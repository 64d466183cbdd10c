"""What stands where a value stood."""

from __future__ import annotations

import os

import pytest

from dspy_observe.redaction import (
    Drop,
    Fixed,
    KeyedHash,
    Label,
    Mask,
    Operator,
    Redaction,
    RedactionConfigError,
    Redactor,
)

KEY = b"0123456789abcdef"


def out(operator: Operator, text: str = "card 4111222233334448 ok") -> str:
    """The text with one operator for cards and phones."""
    return Redactor(Redaction(operators={"CARD": operator, "PHONE": operator}, known_secrets=False)).redact_text(text)


@pytest.mark.parametrize(
    ("operator", "expected"),
    [
        (Label(), "card <CARD> ok"),
        (Label("[{entity}]"), "card [CARD] ok"),
        (Fixed("(gone)"), "card (gone) ok"),
        (Mask(), "card ************4448 ok"),
        (Mask(0), "card **************** ok"),
        (Mask(2, "#"), "card ##############48 ok"),
        (Drop(), "card  ok"),
    ],
)
def test_an_operator_writes_exactly_this(operator: Operator, expected: str) -> None:
    """And writing it twice changes nothing."""
    assert out(operator) == expected
    assert out(operator, expected) == expected


def test_a_keyed_hash_is_equal_for_equal_values_and_keys_only() -> None:
    """Letters only, so that no hash looks like a number; another key gives another hash."""
    one, again = out(KeyedHash(KEY)), out(KeyedHash(KEY))
    other_value = out(KeyedHash(KEY), "card 5555444433332226 ok")
    other_key = out(KeyedHash(os.urandom(32)))
    assert one == again
    assert len({one, other_value, other_key}) == 3
    label = one.removeprefix("card <CARD:").removesuffix("> ok")
    assert len(label) == 10
    assert label.isalpha()
    assert out(KeyedHash(KEY), one) == one
    assert KEY.decode() not in repr(KeyedHash(KEY))


def test_a_mask_never_leaves_more_than_a_third() -> None:
    """A short value keeps less than asked for."""
    redactor = Redactor(Redaction(operators={"SECRET": Mask(6)}, known_secrets=False))
    assert redactor.redact_text("password=ab12cd") == "password=****cd"


def test_the_template_of_all_labels_can_be_changed() -> None:
    """Everywhere, also under names of secrets."""
    redactor = Redactor(Redaction(replacement="[{entity}]", known_secrets=False))
    assert redactor.redact({"password": "x", "text": "a.b@example.com"})[0] == {
        "password": "[SECRET]",
        "text": "[EMAIL]",
    }


@pytest.mark.parametrize(
    "make",
    [
        lambda: Mask(7),
        lambda: Mask(-1),
        lambda: Mask(2, "ab"),
        lambda: Mask(2, "1"),
        lambda: KeyedHash(b"short"),
        lambda: KeyedHash(KEY, 4),
        lambda: Mask("a"),
        lambda: Mask(2.0),
        lambda: Mask(True),
        lambda: Mask(None),
        lambda: Mask(char=None),
        lambda: KeyedHash(None),
        lambda: KeyedHash("a" * 16),
        lambda: KeyedHash(KEY, "x"),
        lambda: KeyedHash(KEY, 10.0),
        lambda: Fixed(""),
        lambda: Fixed(5),
        lambda: Label(""),
        lambda: Label(5),
    ],
)
def test_an_operator_that_cannot_work_is_refused(make: object) -> None:
    """With the field's name in front."""
    with pytest.raises(RedactionConfigError, match=r"^(Mask|KeyedHash|Fixed|Label)\.\w+: .+\. Use "):
        make()  # type: ignore[operator]


def test_a_fixed_text_that_looks_private_is_refused() -> None:
    """It would be replaced again by the next pass."""
    with pytest.raises(RedactionConfigError, match="replacement"):
        Redactor(Redaction(operators={"EMAIL": Fixed("gone@example.com")}))
