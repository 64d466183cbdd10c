"""Alertmanager's webhook, version 4, taken apart: tolerant of what newer releases add, strict about what is acted on.

Pure. https://prometheus.io/docs/alerting/latest/configuration/#webhook_config
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final, NoReturn

from dspy_observe.conventions import ALERT_ACTION, ALERT_DRY_RUN, ALERT_SIGNAL, WATCHDOG_ALERT
from dspy_observe.errors import ObserveError

__all__ = ["PAYLOAD_VERSION", "Alert", "AlertError", "Delivery", "parse"]

PAYLOAD_VERSION: Final = "4"
_STATUSES: Final = ("firing", "resolved")
_NEVER: Final = 1
"""Go's zero time, 0001-01-01T00:00:00Z, stands for an end that is not known."""
_FINGERPRINT_DIGITS: Final = 16
_LONGEST_FINGERPRINT: Final = 200
_LONGEST_NAME: Final = 200
_LONGEST_VALUE: Final = 4_000
"""Characters of a label that is kept with a decision; Prometheus itself sets no limit."""
_MOST_TRUNCATED: Final = 2**63 - 1
"""Alertmanager counts in unsigned 64 bits, and the registry stores signed ones."""
_TRUE: Final = frozenset({"true", "1", "yes", "on"})


class AlertError(ObserveError, ValueError):
    """A body that is no delivery of Alertmanager. The message says what is wrong and quotes no content."""


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert of a delivery."""

    status: str
    """``firing`` or ``resolved``."""
    labels: dict[str, str]
    annotations: dict[str, str]
    starts_at: datetime
    """UTC."""
    ends_at: datetime | None
    """UTC; ``None`` while nobody knows."""
    fingerprint: str
    """Alertmanager's hash of the labels; one made here where it sent none."""
    generator_url: str

    @property
    def firing(self) -> bool:
        """Whether it fires. ``resolved`` is also sent when Prometheus dies, so it proves nothing."""
        return self.status == "firing"

    @property
    def name(self) -> str:
        """The rule's name; ``""`` where the label is missing."""
        return self.labels.get("alertname", "")

    @property
    def action(self) -> str | None:
        """What it may do by itself; ``None`` for nothing."""
        return self.labels.get(ALERT_ACTION)

    @property
    def program(self) -> str | None:
        """Which program it is about."""
        return self.labels.get("program") or None

    @property
    def version(self) -> str | None:
        """Which version it is about."""
        return self.labels.get("version") or None

    @property
    def environment(self) -> str:
        """Where; ``production`` unless the label says otherwise."""
        return self.labels.get("environment") or "production"

    @property
    def signal(self) -> str | None:
        """What got worse: ``errors``, ``score``, ...; ``None`` where the rule does not say."""
        return self.labels.get(ALERT_SIGNAL) or None

    @property
    def is_watchdog(self) -> bool:
        """Whether it is the alert that always fires."""
        return self.name == WATCHDOG_ALERT

    @property
    def is_dry_run(self) -> bool:
        """Whether it asks for a judgement that moves nothing."""
        return self.labels.get(ALERT_DRY_RUN, "").lower() in _TRUE

    @property
    def kept_labels(self) -> dict[str, str]:
        """What a decision keeps of the labels: all but those whose name or value is too long for a store to keep.

        They are left out whole, as a part of one could be a part of a credential that nobody recognizes any more.
        """
        return {
            name: value for name, value in self.labels.items()
            if len(name) <= _LONGEST_NAME and len(value) <= _LONGEST_VALUE
        }  # fmt: skip

    @property
    def key(self) -> tuple[str, str]:
        """Fingerprint and start, the same in every delivery of one episode whatever way the time was written."""
        return self.fingerprint, self.starts_at.isoformat(timespec="microseconds")


@dataclass(frozen=True, slots=True)
class Delivery:
    """One POST of Alertmanager."""

    alerts: tuple[Alert, ...]
    """At least one."""
    group_key: str
    receiver: str
    status: str
    truncated_alerts: int
    """How many alerts ``max_alerts`` cut off, at most 2**63 - 1."""
    external_url: str


def parse(body: bytes | str | Mapping[str, Any]) -> Delivery:
    """Read what Alertmanager posted.

    Args:
        body: The request's body, or the mapping that it holds.

    Raises:
        AlertError: It is not JSON, of another payload version, or no delivery of alerts.
    """
    data = _json(body) if isinstance(body, bytes | str) else body
    if not isinstance(data, Mapping):
        _refuse("the body is no JSON object")
    if data.get("version") != PAYLOAD_VERSION:
        _refuse(f"version is not {PAYLOAD_VERSION!r}, the only payload version that is known here")
    rows = data.get("alerts")
    if not isinstance(rows, list) or not rows:
        _refuse("alerts has to be a list with at least one alert")
    truncated = data.get("truncatedAlerts", 0)
    if type(truncated) is not int or truncated < 0:
        _refuse("truncatedAlerts has to be a whole number from 0 up")
    return Delivery(
        tuple(_alert(row, f"alerts[{place}]") for place, row in enumerate(rows)), _text(data, "groupKey", ""),
        _text(data, "receiver", ""), _text(data, "status", ""),
        min(truncated, _MOST_TRUNCATED), _text(data, "externalURL", ""),
    )  # fmt: skip


def _json(body: bytes | str) -> Any:
    try:
        return json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        _refuse("the body is not JSON")


def _no_number(word: str) -> NoReturn:
    raise ValueError(word)


def _alert(row: Any, path: str) -> Alert:
    if not isinstance(row, Mapping):
        _refuse(f"{path} is no object")
    status, fingerprint = row.get("status"), _text(row, "fingerprint", "", path)
    if len(fingerprint) > _LONGEST_FINGERPRINT:
        _refuse(f"{path}.fingerprint is longer than {_LONGEST_FINGERPRINT} characters")
    if status not in _STATUSES:
        _refuse(f"{path}.status is neither firing nor resolved")
    labels = _texts(row, "labels", path)
    if not labels:
        _refuse(f"{path}.labels is empty")
    starts_at = _time(row.get("startsAt"), f"{path}.startsAt")
    if starts_at is None:
        _refuse(f"{path}.startsAt is missing")
    return Alert(
        status, labels, _texts(row, "annotations", path), starts_at, _time(row.get("endsAt"), f"{path}.endsAt"),
        fingerprint or _fingerprint(labels), _text(row, "generatorURL", "", path),
    )  # fmt: skip


def _texts(row: Mapping[str, Any], key: str, path: str) -> dict[str, str]:
    found = row.get(key)
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        _refuse(f"{path}.{key} is no object")
    return {_checked(name, f"{path}.{key}"): _checked(value, f"{path}.{key}") for name, value in found.items()}


def _text(row: Mapping[str, Any], key: str, default: str, path: str = "the body") -> str:
    found = row.get(key)
    return default if found is None else _checked(found, f"{path}, {key}")


def _checked(value: Any, path: str) -> str:
    if not isinstance(value, str):
        _refuse(f"{path} holds something that is no text")
    if any("\ud800" <= char <= "\udfff" or char == "\0" for char in value):
        _refuse(f"{path} holds characters that cannot be stored")
    return value


def _time(value: Any, path: str) -> datetime | None:
    if value is None:
        return None
    try:
        found = datetime.fromisoformat(value)
        if found.year == _NEVER:  # with an offset it may lead out of the calendar
            return None
        moved = found.astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        _refuse(f"{path} is no RFC 3339 time")
    if found.tzinfo is None:
        _refuse(f"{path} has no offset from UTC")
    return moved


def _fingerprint(labels: Mapping[str, str]) -> str:
    text = json.dumps(sorted(labels.items()), ensure_ascii=True)
    return sha256(text.encode("ascii")).hexdigest()[:_FINGERPRINT_DIGITS]


def _refuse(problem: str) -> NoReturn:
    raise AlertError(problem)
