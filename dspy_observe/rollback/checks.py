"""What ``dspy-observe doctor`` finds, and how it asks the servers it examines."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Final, Self

import httpx

from dspy_observe.errors import ConfigurationError
from dspy_observe.redaction import redact
from dspy_observe.rollback.prometheus import without_credentials

__all__ = ["STATES", "Check", "Site", "SiteError", "broken", "fine", "skipped", "warning"]

STATES: Final = ("ok", "warning", "broken", "skipped")
_QUOTED: Final = 200


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    part: str
    """``registry``, ``receiver``, ``alertmanager``, ``prometheus`` or ``path``."""
    name: str
    state: str
    """``ok``; ``warning``: it works, and somebody should know; ``broken``: no alert can roll back; ``skipped``."""
    found: str
    """In words."""
    mend: str | None = None
    """What to do; ``None`` where there is nothing to do."""

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def fine(part: str, name: str, found: str) -> Check:
    """Nothing to do."""
    return Check(part, name, "ok", found)


def warning(part: str, name: str, found: str, mend: str) -> Check:
    """It works, and somebody should know."""
    return Check(part, name, "warning", found, mend)


def broken(part: str, name: str, found: str, mend: str) -> Check:
    """No alert can roll back like this."""
    return Check(part, name, "broken", found, mend)


def skipped(part: str, name: str, why: str) -> Check:
    """It was not looked at."""
    return Check(part, name, "skipped", why)


class SiteError(Exception):
    """Nobody answers there."""


class Site:
    """One HTTP server to examine. Also a context manager.

    Args:
        field: The option that the address came from.
        url: Its address, with the path prefix if it has one.
        timeout_s: For each request.

    Raises:
        ConfigurationError: The URL cannot work.
    """

    def __init__(self, field: str, url: str, timeout_s: float) -> None:
        try:
            parsed = httpx.URL(url)
        except (httpx.InvalidURL, TypeError):
            parsed = httpx.URL("")
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ConfigurationError(field, f"{redact(str(url))!r:.200} is no address", "Use http://host:port")
        self.url = url.rstrip("/")
        self.place = without_credentials(self.url)
        """The address for people: without user and password."""
        self._client = httpx.Client(timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.close()

    def ask(self, path: str, body: Any = None, *, token: str | None = None, **parameters: str) -> httpx.Response:
        """GET, or POST a body as JSON; any status is an answer.

        Args:
            path: Behind the address.
            body: What is posted; ``None`` gets.
            token: Sent as the bearer token.
            **parameters: Of the query string.

        Raises:
            SiteError: Nobody answers.
        """
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        method = "GET" if body is None else "POST"
        try:
            return self._client.request(method, self.url + path, json=body, headers=headers, params=parameters)
        except httpx.TimeoutException:
            raise SiteError("no answer in time") from None
        except httpx.HTTPError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise SiteError("its certificate is not trusted; set SSL_CERT_FILE to its authority's") from None
            raise SiteError(f"{type(error).__name__}: {error}"[:_QUOTED]) from None

    def json(self, path: str, **parameters: str) -> Any:
        """What a GET gives, where it is 200 and JSON.

        Raises:
            SiteError: It is not.
        """
        reply = self.ask(path, **parameters)
        if not reply.is_success:
            raise SiteError(f"HTTP {reply.status_code}")
        try:
            return reply.json()
        except ValueError:
            raise SiteError("the answer is no JSON; another server listens there") from None
