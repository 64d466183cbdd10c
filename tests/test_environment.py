"""Options read their variable when they are made, an argument wins, and unreadable text is a typed error."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from dspy_observe.environment import (
    at_least,
    check_bool,
    env_default,
    one_of,
    parse_bool,
    parse_floats,
    parse_names,
    unknown_variables,
)
from dspy_observe.errors import ConfigurationError

VARIABLE = "DSPY_OBSERVE_TEST_FIELD"


@dataclass
class Options:
    """Options with one field from the environment."""

    number: int = field(default_factory=env_default(VARIABLE, 7, int))


def test_the_default_holds_where_the_variable_is_unset_or_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """``VARIABLE=`` in a shell script means unset."""
    monkeypatch.delenv(VARIABLE, raising=False)
    assert Options().number == 7
    monkeypatch.setenv(VARIABLE, "")
    assert Options().number == 7


def test_the_variable_is_read_when_the_options_are_made_and_an_argument_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading at import would miss what a program sets before it configures us."""
    monkeypatch.setenv(VARIABLE, "8")
    assert Options().number == 8
    monkeypatch.setenv(VARIABLE, "9")
    assert Options().number == 9
    assert Options(number=1).number == 1


def test_unreadable_text_names_the_variable_and_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument spares the variable, so a bad one does no harm there."""
    monkeypatch.setenv(VARIABLE, "many")
    with pytest.raises(ConfigurationError, match=VARIABLE) as caught:
        Options()
    assert caught.value.field == VARIABLE
    assert "'many'" in caught.value.problem
    assert caught.value.fix
    assert Options(number=1).number == 1


@pytest.mark.parametrize("text", ["1", "true", "Yes", " ON "])
def test_switches_that_are_on(text: str) -> None:
    """The four usual words, in any case."""
    assert parse_bool(text) is True


@pytest.mark.parametrize("text", ["0", "false", "No", " OFF "])
def test_switches_that_are_off(text: str) -> None:
    """The four usual words, in any case."""
    assert parse_bool(text) is False


@pytest.mark.parametrize("text", ["2", "ja", "tru", "on off"])
def test_a_switch_that_is_neither_is_refused(text: str) -> None:
    """A typing error must not read as off."""
    with pytest.raises(ValueError, match="true or false"):
        parse_bool(text)


def test_lists_of_numbers() -> None:
    """Blanks around the commas are allowed, words are not."""
    assert parse_floats("0.1, 0.5,1") == (0.1, 0.5, 1.0)
    with pytest.raises(ValueError, match="could not convert"):
        parse_floats("0.1,,1")


def test_a_switch_is_true_or_false() -> None:
    """The text of a configuration file would count as true whatever it says."""
    check_bool("Options.switch", False)
    for value in ("no", 0, None):
        with pytest.raises(ConfigurationError, match=r"Options\.switch"):
            check_bool("Options.switch", value)


def test_a_misspelled_variable_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that no option reads is named; those that are read, and those of other rooms, are not."""
    for name in ("DSPY_OBSERVE_TEST_FEILD", VARIABLE, "DSPY_OBSERVE_OTHER_FIELD"):
        monkeypatch.setenv(name, "1")
    assert unknown_variables("TEST") == ["DSPY_OBSERVE_TEST_FEILD"]


def test_lists_of_names() -> None:
    """Blanks around the commas are allowed, empty names are not."""
    assert parse_names("badge, plate") == {"badge", "plate"}
    with pytest.raises(ValueError, match="empty"):
        parse_names("badge,,plate")


def test_numbers_with_a_least_value() -> None:
    """A smaller one is refused where the variable is known."""
    assert at_least(1)("7") == 7
    with pytest.raises(ValueError, match="below 1"):
        at_least(1)("0")


def test_words_out_of_a_list() -> None:
    """In any case; another word is refused with the list."""
    assert one_of("info", "error")(" INFO ") == "info"
    with pytest.raises(ValueError, match="expected one of info, error"):
        one_of("info", "error")("loud")
