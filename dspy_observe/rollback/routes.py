"""Where an Alertmanager's configuration sends an alert: its routing tree walked the way it walks it. Pure.

https://prometheus.io/docs/alerting/latest/configuration/#route
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["Webhook", "receivers_of", "webhooks_of"]

_MATCHER: Final = re.compile(r'\s*([^\s=!~"]+|"[^"]+")\s*(=~|!~|!=|=)\s*("(?:[^"\\]|\\.)*"|[^\s,]*)\s*,?')
_BEARER: Final = ("authorization", "bearer_token", "bearer_token_file", "oauth2")


@dataclass(frozen=True, slots=True)
class Webhook:
    """One place that alerts are posted to."""

    receiver: str
    """The name of the Alertmanager receiver that it belongs to."""
    url: str | None
    """``None`` where it is kept secret, as newer Alertmanagers do, or stands in a file."""
    bearer: bool
    """Whether a bearer token is sent along."""


def receivers_of(config: Mapping[str, Any], labels: Mapping[str, str]) -> list[str]:
    """Names of the receivers that an alert with these labels goes to, each once.

    Args:
        config: The configuration, as its YAML says.
        labels: Of the alert.
    """
    root = config.get("route")
    return list(dict.fromkeys(_walk(root, labels, ""))) if isinstance(root, Mapping) else []


def webhooks_of(config: Mapping[str, Any], labels: Mapping[str, str]) -> list[Webhook]:
    """The webhooks of those receivers.

    Args:
        config: The configuration, as its YAML says.
        labels: Of the alert.
    """
    names = receivers_of(config, labels)
    common = _mapping(_mapping(config.get("global")).get("http_config"))
    found = []
    for receiver in config.get("receivers") or ():
        if receiver.get("name") in names:
            for one in receiver.get("webhook_configs") or ():
                url, http = one.get("url"), _mapping(one.get("http_config")) or common
                shown = isinstance(url, str) and "://" in url
                found.append(Webhook(receiver["name"], url if shown else None, any(http.get(key) for key in _BEARER)))
    return found


def _walk(route: Mapping[str, Any], labels: Mapping[str, str], inherited: str) -> Iterator[str]:
    """The first child that matches takes it; ``continue`` lets the ones after it have it, too."""
    mine, taken = str(route.get("receiver") or inherited), False
    for child in route.get("routes") or ():
        if _matches(child, labels):
            yield from _walk(child, labels, mine)
            taken = True
            if not child.get("continue"):
                return
    if not taken:
        yield mine


def _matches(route: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    exact, patterns = _mapping(route.get("match")), _mapping(route.get("match_re"))
    told = route.get("matchers") or ()
    matchers = [
        *((name, "=", str(value)) for name, value in exact.items()),
        *((name, "=~", str(value)) for name, value in patterns.items()),
        *(one for line in ([told] if isinstance(told, str) else told) for one in _parsed(str(line))),
    ]
    return all(_holds(labels.get(name, ""), how, value) for name, how, value in matchers)


def _parsed(line: str) -> Iterator[tuple[str, str, str]]:
    for name, how, value in _MATCHER.findall(line.strip().removeprefix("{").removesuffix("}")):
        yield _unquoted(name), how, _unquoted(value)


def _unquoted(text: str) -> str:
    if not text.startswith('"'):
        return text
    return re.sub(r"\\(.)", lambda found: "\n" if found[1] == "n" else found[1], text[1:-1])


def _holds(value: str, how: str, wanted: str) -> bool:
    if how in ("=", "!="):
        return (value == wanted) == (how == "=")
    try:
        found = re.fullmatch(wanted, value) is not None
    except re.error:  # what Go's engine knows and this one does not
        return False
    return found == (how == "=~")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
