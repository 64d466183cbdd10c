"""Asking Prometheus, just before a decision, whether an alert still fires there and who else fails.

The server to ask is the one that evaluates the rules, or one that answers for it (Thanos, Mimir): whether an alert
fires is read from its ``ALERTS`` series, and from ``/api/v1/alerts``, which knows it a moment earlier.
https://prometheus.io/docs/prometheus/latest/querying/api/
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Final, Self

import httpx

from dspy_observe.errors import ConfigurationError
from dspy_observe.redaction import redact
from dspy_observe.rollback.alerts import Alert
from dspy_observe.rollback.freshness import Counts, Fresh

__all__ = ["Prometheus", "PrometheusError", "without_credentials"]

_NO_TRAFFIC: Final = "warmup|eval"
"""Roles whose calls nobody waits for."""
_OK: Final = "ok"


def without_credentials(url: str) -> str:
    """An address that works, for people: without user, password and query, which may hold credentials."""
    return str(httpx.URL(url).copy_with(userinfo=b"", query=None))


class PrometheusError(Exception):
    """It did not answer, or not with what was asked for."""


class PrometheusAwayError(PrometheusError):
    """It did not answer: nobody listens, or nothing came in time."""


class Prometheus:
    """One Prometheus server.

    Args:
        url: Its address, with the path prefix if it has one.
        window_s: Seconds that counts cover: at least four scrapes, and not so long that an outage of a minute is
            diluted by the good minutes before.
        timeout_s: For everything that one decision asks, together; Alertmanager waits 10 s and more.

    Raises:
        ConfigurationError: The URL or a number cannot work.
    """

    def __init__(self, url: str, *, window_s: float = 120.0, timeout_s: float = 3.0) -> None:
        try:
            parsed = httpx.URL(url)
        except (httpx.InvalidURL, TypeError):
            parsed = httpx.URL("")
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ConfigurationError(
                "prometheus_url", f"{redact(str(url))!r:.200} is no address", "Use http://host:9090"
            )
        for name, value in (("window_s", window_s), ("timeout_s", timeout_s)):
            if not 0 < value < math.inf:
                raise ConfigurationError(name, f"{value!r} cannot work", "Use a number of seconds above 0")
        self.url = url.rstrip("/")
        self.place = without_credentials(self.url)
        """The address for people: without user and password."""
        self._window_s = window_s
        self._timeout_s = timeout_s
        self._client = httpx.Client(timeout=timeout_s)

    def close(self) -> None:
        """Give up connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def fresh(self, alert: Alert, program: str, version: str) -> Fresh:
        """What it says about an alert now; never raises.

        Args:
            alert: The alert; Prometheus is asked for its name, program and version.
            program: The program that it is about.
            version: The version that is deployed.
        """
        until = time.monotonic() + self._timeout_s
        try:
            firing = self._fires(alert, until)
            span = f"{max(1, round(self._window_s))}s"
            runs = self.query(
                f"sum by (version, status) (increase(dspy_program_duration_seconds_count{{program={_quoted(program)},"
                f'role!~"{_NO_TRAFFIC}"}}[{span}]))', until,
            )  # fmt: skip
            asked = self.query(
                f"sum by (program, version, model, status) (increase(dspy_requests_total[{span}]))", until
            )
        except PrometheusError as error:
            away = isinstance(error, PrometheusAwayError)
            return Fresh(problem=str(error), away=away, window_s=self._window_s)
        counted = _counted(runs, "version")
        suspect = counted.pop(version, None)
        return Fresh(
            firing=firing,
            suspect=None if suspect is None else Counts(f"{program} {version}", *suspect),
            versions=tuple(Counts(f"{program} {name}", *found) for name, found in sorted(counted.items())),
            programs=_others(asked, program, version),
            window_s=self._window_s,
        )

    def query(self, expression: str, until: float | None = None) -> list[dict[str, Any]]:
        """Series of an instant query.

        Args:
            expression: PromQL that gives a vector.
            until: ``time.monotonic()`` at which to give up; ``None`` takes the whole time-out.

        Raises:
            PrometheusError: No such answer came.
        """
        data = self.get("/api/v1/query", until, query=expression)
        result = data.get("result") if isinstance(data, dict) else None
        if not isinstance(result, list):
            raise PrometheusError("the answer to a query holds no result")
        return result

    def get(self, path: str, until: float | None = None, **parameters: str) -> Any:
        """``data`` of an API answer.

        Args:
            path: Such as ``/api/v1/rules``.
            until: As for :meth:`query`.
            **parameters: Of the query string.

        Raises:
            PrometheusError: It does not answer, or with an error.
        """
        left = self._timeout_s if until is None else until - time.monotonic()
        if left <= 0:
            raise PrometheusAwayError(f"no answer within {self._timeout_s:g} s")
        try:
            reply = self._client.get(self.url + path, params=parameters, timeout=left)
            body = reply.json()
        except httpx.TimeoutException:
            raise PrometheusAwayError(f"no answer within {self._timeout_s:g} s") from None
        except httpx.ConnectError as error:
            raise PrometheusAwayError(f"{type(error).__name__}: {error}"[:200]) from None
        except (httpx.HTTPError, ValueError) as error:
            raise PrometheusError(f"{type(error).__name__}: {error}"[:200]) from None
        if not isinstance(body, dict) or body.get("status") != "success":
            raise PrometheusError(f"HTTP {reply.status_code}, no success"[:200])
        return body.get("data")

    def _fires(self, alert: Alert, until: float) -> bool:
        wanted = {"alertname": alert.name, "program": alert.program or "", "version": alert.version or ""}
        matchers = ",".join(f"{name}={_quoted(value)}" for name, value in wanted.items())
        if self.query(f'ALERTS{{alertstate="firing",{matchers}}}', until):
            return True
        # An alert is sent out before its ALERTS sample can be read; the list of alerts is ahead of both.
        try:
            data = self.get("/api/v1/alerts", until)
        except PrometheusError:
            return False  # a server that answers queries only
        rows = data.get("alerts") if isinstance(data, dict) else None
        return any(
            isinstance(row, dict)
            and row.get("state") == "firing"
            and all(row.get("labels", {}).get(name, "") == value for name, value in wanted.items())
            for row in rows or ()
        )


def _quoted(value: str) -> str:
    """A PromQL string."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _counted(rows: Iterable[dict[str, Any]], label: str) -> dict[str, tuple[float, float]]:
    """Calls and failed calls by a label."""
    found: dict[str, tuple[float, float]] = {}
    for row in rows:
        labels, value = row.get("metric", {}), _number(row)
        if value is None:
            continue
        calls, errors = found.get(labels.get(label, ""), (0.0, 0.0))
        found[labels.get(label, "")] = (calls + value, errors + (value if labels.get("status") != _OK else 0.0))
    return {name: pair for name, pair in found.items() if pair[0] > 0}


def _others(rows: list[dict[str, Any]], program: str, version: str) -> tuple[Counts, ...]:
    """LM calls of other programs to the models that the version asks, or to any where it asked none."""
    mine = {
        row["metric"].get("model") for row in rows
        if (row["metric"].get("program"), row["metric"].get("version")) == (program, version) and _number(row)
    }  # fmt: skip
    theirs = [
        row for row in rows
        if row["metric"].get("program") != program and (not mine or row["metric"].get("model") in mine)
    ]  # fmt: skip
    return tuple(Counts(f"LM calls of {name}", *pair) for name, pair in sorted(_counted(theirs, "program").items()))


def _number(row: dict[str, Any]) -> float | None:
    try:
        value = float(row["value"][1])
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
