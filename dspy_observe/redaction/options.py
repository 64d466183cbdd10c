"""The options of redaction, checked when they are made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, get_args

from dspy_observe.environment import at_least, env_default, one_of, parse_bool, parse_names
from dspy_observe.redaction.detectors import DEFAULT_DETECTORS, Detector, Finder
from dspy_observe.redaction.errors import RedactionConfigError
from dspy_observe.redaction.keynames import DEFAULT_ALLOW, DEFAULT_DENY_KEYS
from dspy_observe.redaction.operators import Drop, Fixed, KeyedHash, Label, Mask, Operator, check_template, valid_entity
from dspy_observe.redaction.scan import entity_of
from dspy_observe.redaction.validators import IpScope

__all__ = ["Redaction"]

_MIN_CHARS: Final = 256


def _number(text: str) -> int | None:
    return at_least(_MIN_CHARS)(text)


@dataclass(frozen=True, kw_only=True, slots=True)
class Redaction:
    """What is removed from content, and what stands in its place.

    Raises:
        RedactionConfigError: A field has a value that cannot work; the message names it and what to write instead.
    """

    detectors: tuple[Detector | Finder, ...] = DEFAULT_DETECTORS
    """What to look for: detectors, or any function from a text to (start, end) pairs, whose entity is its attribute
    ``entity``, else its name in capitals. Usually ``DEFAULT_DETECTORS + (mine,)``."""
    replacement: str = field(default_factory=env_default("DSPY_OBSERVE_REDACTION_REPLACEMENT", "<{entity}>", str))
    """What replaces a value unless ``operators`` says otherwise; ``{entity}`` becomes its name."""
    operators: Mapping[str, Operator] = field(default_factory=dict)
    """By the name of an entity that ``detectors`` find, or ``KNOWN_SECRET``, or ``SECRET``: :class:`Label`,
    :class:`Fixed`, :class:`Mask`, :class:`Drop` or :class:`KeyedHash`."""
    deny_keys: frozenset[str] = field(
        default_factory=env_default(
            "DSPY_OBSERVE_REDACTION_DENY_KEYS", DEFAULT_DENY_KEYS, lambda text: DEFAULT_DENY_KEYS | parse_names(text)
        )
    )
    """Names, in any spelling, under which a value is dropped whole; a name matches when it ends in one of them. The
    variable, ``a,b``, adds to the defaults; an argument replaces both."""
    allow: frozenset[str] = field(
        default_factory=env_default(
            "DSPY_OBSERVE_REDACTION_ALLOW", DEFAULT_ALLOW, lambda text: DEFAULT_ALLOW | parse_names(text)
        )
    )
    """Names that stay although ``deny_keys`` matches them, such as ``prompt_tokens``. The variable adds, too."""
    scan_limit_chars: int = field(
        default_factory=env_default("DSPY_OBSERVE_REDACTION_SCAN_LIMIT_CHARS", 65_536, at_least(_MIN_CHARS))
    )
    """Characters of one text that are looked at, at least 256. What lies beyond is cut off, never passed on unseen,
    and the text ends in ``<TRUNCATED n CHARS>``."""
    max_chars: int | None = field(default_factory=env_default("DSPY_OBSERVE_REDACTION_MAX_CHARS", None, _number))
    """Characters of one text after redaction, at least 256, the note about the cut included; ``None`` does not cut."""
    known_secrets: bool = field(default_factory=env_default("DSPY_OBSERVE_REDACTION_KNOWN_SECRETS", True, parse_bool))
    """Also replace, literally, the values of this process's environment variables that are named like secrets, and
    whatever :meth:`Redactor.add_secrets` is told."""
    foreign_signals: bool = field(
        default_factory=env_default("DSPY_OBSERVE_REDACTION_FOREIGN_SIGNALS", False, parse_bool)
    )
    """Also redact spans and log records that other libraries produce, by wrapping the exporters."""
    ip_scope: IpScope = field(
        default_factory=env_default("DSPY_OBSERVE_REDACTION_IP_SCOPE", "private", one_of(*get_args(IpScope)))
    )
    """``public``: routed addresses only. ``private``: private networks and link-local too. ``all``: also loopback,
    unspecified and broadcast addresses."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "detectors", _detectors(self.detectors))
        for name in ("deny_keys", "allow"):
            object.__setattr__(self, name, _names(name, getattr(self, name)))
        check_template("Redaction.replacement", self.replacement)
        for name in ("scan_limit_chars", "max_chars"):
            _chars(name, getattr(self, name))
        if self.ip_scope not in get_args(IpScope):
            raise RedactionConfigError(
                "Redaction.ip_scope", f"{self.ip_scope!r} is unknown", "Use 'public', 'private' or 'all'"
            )
        for name in ("known_secrets", "foreign_signals"):
            if not isinstance(getattr(self, name), bool):
                raise RedactionConfigError(f"Redaction.{name}", "it is no switch", "Use True or False")
        _operators(self.operators, known_entities(self.detectors))


def known_entities(detectors: Iterable[Detector | Finder]) -> frozenset[str]:
    """The entities that redaction with these detectors can replace."""
    names = (detector.name if isinstance(detector, Detector) else entity_of(detector) for detector in detectors)
    return frozenset(names) | {"KNOWN_SECRET", "SECRET"}


def _detectors(given: Iterable[Detector | Finder]) -> tuple[Detector | Finder, ...]:
    try:
        detectors = tuple(given)
    except TypeError:
        raise RedactionConfigError(
            "Redaction.detectors", f"{type(given).__name__} is no sequence", "Use DEFAULT_DETECTORS + (mine,)"
        ) from None
    for detector in detectors:
        if not isinstance(detector, Detector) and not callable(detector):
            raise RedactionConfigError(
                "Redaction.detectors",
                f"{type(detector).__name__} is neither a Detector nor a function",
                "Use Detector(name, pattern=...) or a function from str to (start, end) pairs",
            )
    return detectors


def _names(field_name: str, given: object) -> frozenset[str]:
    if isinstance(given, str) or not hasattr(given, "__iter__"):
        raise RedactionConfigError(f"Redaction.{field_name}", "it is one text", "Use a set of names: {'my_key'}")
    names = tuple(given)
    if not all(isinstance(name, str) and name.strip() for name in names):
        raise RedactionConfigError(f"Redaction.{field_name}", "it holds something else than names", "Use texts only")
    return frozenset(names)


def _chars(name: str, value: object) -> None:
    if value is None and name == "max_chars":
        return
    if type(value) is not int:
        raise RedactionConfigError(f"Redaction.{name}", f"{value!r} is no whole number", "Use 256 or more")
    if value < _MIN_CHARS:
        raise RedactionConfigError(f"Redaction.{name}", f"{value!r} is too small", "Use 256 or more")


def _operators(operators: object, known: frozenset[str]) -> None:
    if not isinstance(operators, Mapping):
        raise RedactionConfigError("Redaction.operators", "it is no mapping", "Use {'CARD': Mask(keep_last=4)}")
    for entity, operator in operators.items():
        if not valid_entity(entity):
            raise RedactionConfigError(
                "Redaction.operators", f"{entity!r} is not an entity's name", "Use a detector's name, such as 'EMAIL'"
            )
        if entity not in known:
            raise RedactionConfigError(
                "Redaction.operators", f"no detector finds {entity}", f"Use one of {', '.join(sorted(known))}"
            )
        if not isinstance(operator, Label | Fixed | Mask | Drop | KeyedHash):
            raise RedactionConfigError(
                "Redaction.operators",
                f"{entity} has a {type(operator).__name__}",
                "Use Label, Fixed, Mask, Drop or KeyedHash",
            )
