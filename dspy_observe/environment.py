"""Options from the environment: ``DSPY_OBSERVE_<ROOM>_<FIELD>`` fills what the caller left unset.

Option classes use :func:`env_default` as a dataclass ``default_factory``, so the variable is read when the options are
built, an argument always wins, and a stand-alone callback honours the same variables as ``configure()``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TypeVar

from dspy_observe.errors import ConfigurationError

__all__ = [
    "at_least",
    "check_at_least",
    "check_bool",
    "env_default",
    "one_of",
    "parse_bool",
    "parse_floats",
    "parse_names",
    "unknown_variables",
    "variables",
]

T = TypeVar("T")

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})
_read: set[str] = set()
"""Every variable that an option class which was imported reads."""


def variables() -> Mapping[str, str]:
    """The environment of this process, as it is now."""
    return os.environ


def parse_bool(text: str) -> bool:
    """Read a switch: 1/true/yes/on or 0/false/no/off, in any case.

    Raises:
        ValueError: The text is none of these.
    """
    lowered = text.strip().lower()
    if lowered in _TRUE:
        return True
    if lowered in _FALSE:
        return False
    raise ValueError("expected true or false")


def check_bool(field: str, value: object) -> None:
    """Refuse what is neither ``True`` nor ``False``: the text ``"no"`` would count as true.

    Args:
        field: The option, such as ``Tracing.adapter_spans``.
        value: What was given for it.

    Raises:
        ConfigurationError: It is something else.
    """
    if not isinstance(value, bool):
        raise ConfigurationError(field, f"a {type(value).__name__} is no switch", "Use True or False")


def check_at_least(field: str, value: object, least: int, fix: str) -> None:
    """Refuse what is no whole number, or a smaller one.

    Args:
        field: The option, such as ``Metrics.max_label_values``.
        value: What was given for it.
        least: The smallest number that works.
        fix: What to use instead.

    Raises:
        ConfigurationError: It is something else.
    """
    if type(value) is not int:
        raise ConfigurationError(field, f"{value!r} is no whole number", fix)
    if value < least:
        raise ConfigurationError(field, f"{value!r} is below {least}", fix)


def unknown_variables(*rooms: str) -> list[str]:
    """Variables of these rooms that are set and that no option reads: misspelled, or of another version.

    Args:
        *rooms: Such as ``METRICS``; their option classes have been imported.
    """
    prefixes = tuple(f"DSPY_OBSERVE_{room}_" for room in rooms)
    return sorted(name for name in os.environ if name.startswith(prefixes) and name not in _read)


def parse_names(text: str) -> frozenset[str]:
    """Read a comma-separated list of names, such as ``"badge,plate"``.

    Raises:
        ValueError: A part is empty.
    """
    names = frozenset(part.strip() for part in text.split(","))
    if "" in names:
        raise ValueError("a name is empty")
    return names


def at_least(least: int) -> Callable[[str], int]:
    """A reader of whole numbers that refuses smaller ones, so that the error names the variable."""

    def parse(text: str) -> int:
        number = int(text)
        if number < least:
            raise ValueError(f"below {least}")
        return number

    return parse


def one_of(*words: T) -> Callable[[str], T]:
    """A reader of one word, in any case, that refuses all but these, so that the error names the variable."""

    def parse(text: str) -> T:
        for word in words:
            if word == text.strip().lower():
                return word
        raise ValueError(f"expected one of {', '.join(map(str, words))}")

    return parse


def parse_floats(text: str) -> tuple[float, ...]:
    """Read a comma-separated list of numbers, such as ``"0.1,0.5,1"``.

    Raises:
        ValueError: A part is not a number.
    """
    return tuple(float(part) for part in text.split(","))


def env_default(variable: str, default: T, parse: Callable[[str], T]) -> Callable[[], T]:
    """Make a dataclass ``default_factory`` that reads one environment variable.

    Args:
        variable: The variable's full name.
        default: The value when the variable is unset or empty.
        parse: Turns the text into the value; raises ``ValueError`` on text it cannot read.

    Returns:
        A function without arguments, for ``dataclasses.field(default_factory=...)``. It raises
        :class:`~dspy_observe.errors.ConfigurationError` naming the variable when its text cannot be read.
    """
    _read.add(variable)

    def factory() -> T:
        text = os.environ.get(variable, "")
        if not text:
            return default
        try:
            return parse(text)
        except ValueError as error:
            raise ConfigurationError(variable, f"{text!r} cannot be read ({error})", "Correct or unset it") from None

    return factory
