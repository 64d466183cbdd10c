"""What stands where something private stood: a label, a fixed text, a mask, nothing, or a keyed hash."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from dspy_observe.redaction.errors import RedactionConfigError

__all__ = ["Drop", "Fixed", "KeyedHash", "Label", "Mask", "Operator", "operator_name"]

_MAX_KEPT: Final = 6
_MIN_KEY: Final = 16
_SHORTEST_HASH: Final = 8
_LONGEST_HASH: Final = 32


def _whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


@dataclass(frozen=True, slots=True)
class Label:
    """The replacement template with the entity's name, ``<EMAIL>``: the default."""

    template: str | None = None
    """A text with ``{entity}``; ``None`` takes :attr:`Redaction.replacement`."""

    def __post_init__(self) -> None:
        if self.template is not None:
            check_template("Label.template", self.template)


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same text."""

    text: str
    """Must not itself look private, and must not be empty (that is :class:`Drop`)."""

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not self.text:
            raise RedactionConfigError(
                "Fixed.text", f"{self.text!r} is empty or no text", "Use a text such as '[gone]', or Drop()"
            )


@dataclass(frozen=True, slots=True)
class Mask:
    """Stars, except the last characters: ``*************4448``."""

    keep_last: int = 4
    """Characters left readable, 0 to 6, and never more than a third of the value."""
    char: str = "*"
    """One character, ``*`` or ``#`` or another that is neither letter nor digit."""

    def __post_init__(self) -> None:
        if not _whole(self.keep_last, 0, _MAX_KEPT):
            raise RedactionConfigError(
                "Mask.keep_last", f"{self.keep_last!r} is no whole number in range", "Use 0 to 6"
            )
        if not isinstance(self.char, str) or len(self.char) != 1 or self.char.isalnum() or self.char.isspace():
            raise RedactionConfigError("Mask.char", f"{self.char!r} is not one sign", "Use '*', '#' or '\u2022'")


@dataclass(frozen=True, slots=True)
class Drop:
    """Nothing: the value is taken out."""


@dataclass(frozen=True, slots=True)
class KeyedHash:
    """A short HMAC-SHA256, ``<PHONE:kfbmalogcd>``, so that equal values can be told apart from others.

    A plain hash would not do: there are only 7 billion Chinese mobile numbers, and all can be tried in minutes.
    """

    key: bytes
    """At least 16 bytes, one per deployment, kept like a password. Never shown by ``repr``."""
    length: int = 10
    """Letters of the hash, 8 to 32; ten hold 40 bits."""

    def __post_init__(self) -> None:
        if not isinstance(self.key, bytes):
            raise RedactionConfigError(
                "KeyedHash.key", f"a {type(self.key).__name__} is no key", "Use bytes, such as os.urandom(32)"
            )
        if len(self.key) < _MIN_KEY:
            raise RedactionConfigError("KeyedHash.key", "the key is shorter than 16 bytes", "Use os.urandom(32)")
        if not _whole(self.length, _SHORTEST_HASH, _LONGEST_HASH):
            raise RedactionConfigError(
                "KeyedHash.length", f"{self.length!r} is no whole number in range", "Use 8 to 32"
            )

    def __repr__(self) -> str:
        return f"KeyedHash(key=..., length={self.length})"


Operator = Label | Fixed | Mask | Drop | KeyedHash

_LETTERS: Final = str.maketrans("0123456789abcdef", "abcdefghijklmnop")
_FIELD: Final = re.compile(r"\{\w{0,64}(?:[!:]\w{0,64})?\}")
_ENTITY: Final = re.compile(r"[A-Z][A-Z0-9_]{0,63}\Z")


def operator_name(operator: Operator) -> str:
    """The operator's name for people: ``label``, ``fixed``, ``mask``, ``drop`` or ``hmac``."""
    names: dict[type[object], Literal["label", "fixed", "mask", "drop", "hmac"]] = {
        Label: "label", Fixed: "fixed", Mask: "mask", Drop: "drop", KeyedHash: "hmac",
    }  # fmt: skip
    return names[type(operator)]


def replacer(operator: Operator, entity: str, template: str) -> Callable[[str], str]:
    """A function from a private value to what replaces it.

    Args:
        operator: What to do.
        entity: The entity's name, upper case.
        template: The default template with ``{entity}``.
    """
    if isinstance(operator, Label):
        label = (operator.template or template).replace("{entity}", entity)
        return lambda _: label
    if isinstance(operator, Fixed):
        text = operator.text
        return lambda _: text
    if isinstance(operator, Mask):
        keep, char = operator.keep_last, operator.char

        def mask(value: str) -> str:
            kept = min(keep, len(value) // 3)
            return char * max(3, len(value) - kept) + (value[len(value) - kept :] if kept else "")

        return mask
    if isinstance(operator, KeyedHash):
        key, length = operator.key, operator.length

        def keyed(value: str) -> str:
            # Letters only: digits of a hash could look like a phone number.
            digest = hmac.new(key, value.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
            return f"<{entity}:{digest[:length].translate(_LETTERS)}>"

        return keyed
    return lambda _: ""


def check_template(field_name: str, template: object) -> None:
    """Refuse what is empty or no text, and fields of which nothing is known.

    Args:
        field_name: The option, such as ``Redaction.replacement``.
        template: What was given for it.

    Raises:
        RedactionConfigError: It is empty, something else than a text, or has another field than ``{entity}``.
    """
    if not isinstance(template, str):
        raise RedactionConfigError(field_name, f"{template!r} is no text", "Use a text: '<{entity}>'")
    if not template.strip():
        raise RedactionConfigError(field_name, "it is empty", "Use a text such as '<{entity}>', or Drop()")
    for found in _FIELD.findall(template):
        if found != "{entity}":
            raise RedactionConfigError(field_name, f"there is no field {found}", "Use {entity}, or no field")


def valid_entity(name: object) -> bool:
    """Whether a name is an entity's: capital letters, digits and underscores, at most 64."""
    return isinstance(name, str) and _ENTITY.match(name) is not None
