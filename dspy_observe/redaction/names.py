"""Names, scores and registry events without what is private: short texts from data that become labels and fields.

A tool, model, data set or exception class can be named after data, and a score's id or source comes from users. Such
texts leave in every mode, as span names, metric labels and log fields, so they always pass the default detectors. The
name and version that a program was given only lose credentials: ``1.2.3.4`` is a version there and no address, and
whoever compares it with the registry's has to find the same. They recur, so each text is scanned once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final, TypeVar

from dspy_observe.conventions import REGISTRY_PREFIX
from dspy_observe.records import RegistryEvent, Score
from dspy_observe.redaction.redactor import Redactor, credentials_only, redact

__all__ = ["encodable", "redact_event", "redact_given_name", "redact_name", "redact_score"]

T = TypeVar("T", str, str | None)

_LONGEST_NAME: Final = 256
"""Characters; longer texts are no names, and keeping them would cost memory."""

_GIVEN: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,99}")
"""What a registry takes for a name or a version. Anything else, such as an e-mail address, is none of its."""

_VERSIONED: Final = frozenset({"previous", "target"})
"""Data of registry events that are versions too."""


def encodable(text: str) -> str:
    """The text with ``?`` for lone surrogates, which UTF-8 cannot carry: one would cost a whole page or line."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def _clean(name: str) -> str:
    return encodable(redact(name))


_remembered: Final = lru_cache(maxsize=4096)(_clean)


def redact_name(name: T) -> T:
    """A name without what is private, in characters that can be encoded.

    Args:
        name: Any text; ``None`` stays ``None``.
    """
    if name is None:
        return None
    return _remembered(name) if len(name) <= _LONGEST_NAME else _clean(name)


def redact_given_name(name: T) -> T:
    """The name or version that a program was given by its developer or registry, without credentials.

    Args:
        name: Any text; what no registry takes for a name passes all default detectors. ``None`` stays ``None``.
    """
    if name is None or _GIVEN.fullmatch(name) is None:
        return redact_name(name)
    return _given(name)


@lru_cache(maxsize=1024)
def _given(name: str) -> str:
    return _credentials().redact_text(name)


@lru_cache(maxsize=1)
def _credentials() -> Redactor:
    return credentials_only()


def redact_event(event: RegistryEvent, redactors: Sequence[Redactor] = ()) -> RegistryEvent:
    """A registry event without what is private in any of its fields.

    Args:
        event: The event; it is only read.
        redactors: Applied after the default detectors, such as those with detectors of the application's own.
    """
    return replace(
        event,
        name=_event_name(event.name, redactors),
        program=_given_through(event.program, redactors),
        environment=_through(event.environment, redactors),
        version=_given_through(event.version, redactors),
        data=_data(dict(event.data), redactors),
    )


def redact_score(score: Score, redactors: Sequence[Redactor] = ()) -> Score:
    """A score without what is private in any of its fields.

    Args:
        score: The score; it is only read.
        redactors: Applied after the default detectors.
    """
    return replace(
        score,
        call_id=_through(score.call_id, redactors),
        source=_through(score.source, redactors),
        program=_given_through(score.program, redactors),
        version=_given_through(score.version, redactors),
        score_id=_through(score.score_id, redactors),
        trace_id=_through(score.trace_id, redactors),
    )


def _event_name(name: str, redactors: Sequence[Redactor]) -> str:
    if not name.startswith(REGISTRY_PREFIX):
        return _through(name, redactors)
    return REGISTRY_PREFIX + _through(name.removeprefix(REGISTRY_PREFIX), redactors)


def _through(name: T, redactors: Sequence[Redactor]) -> T:
    if name is None:
        return None
    clean: str = redact_name(name)
    for redactor in redactors:
        clean = redactor.redact_text(clean)
    return clean


def _given_through(name: T, redactors: Sequence[Redactor]) -> T:
    """As records have it, whatever else the application's own detectors find."""
    if name is None or _GIVEN.fullmatch(name) is None:
        return _through(name, redactors)
    return redact_given_name(name)


@lru_cache(maxsize=1)
def _walking() -> Redactor:
    return Redactor()


def _data(data: dict[str, Any], redactors: Sequence[Redactor]) -> dict[str, Any]:
    if not data:
        return data
    clean: Any = data
    for redactor in (_walking(), *redactors):
        clean, _ = redactor.redact(clean)
    if not isinstance(clean, dict):  # a whole mapping that could not be redacted comes back as a text that says so
        return {"data": clean}
    found: dict[str, Any] = _all_encodable(clean)
    for key in _VERSIONED & data.keys():
        if isinstance(data[key], str):
            found[key] = _given_through(data[key], redactors)
    return found


def _all_encodable(value: Any) -> Any:
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, dict):
        return {_all_encodable(key): _all_encodable(item) for key, item in value.items()}
    return [_all_encodable(item) for item in value] if isinstance(value, list) else value
