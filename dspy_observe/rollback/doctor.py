"""Whether an alert would reach the registry: every part of the path looked at, then one trial alert sent through.

The alert carries a label with which the receiver judges it and moves nothing, so that it may be sent at any time, to
production too. It is ended as soon as its decision is seen, before people's routes would tell them of it.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from dspy_observe.conventions import (
    ALERT_ACTION,
    ALERT_ACTION_ROLLBACK,
    ALERT_DRY_RUN,
    DOCTOR_ALERT,
    DOCTOR_RUN,
)
from dspy_observe.errors import ConfigurationError, ObserveError
from dspy_observe.registry.models import Decision
from dspy_observe.registry.signatures import SignatureRegistry
from dspy_observe.rollback.checks import Check, Site, SiteError, broken, fine, skipped, warning
from dspy_observe.rollback.examining import Learned, examine_alertmanager, examine_prometheus, examine_receiver
from dspy_observe.rollback.prometheus import Prometheus

__all__ = ["DoctorOptions", "examine"]

_POLL_S: Final = 0.1
_LOOKED_AT: Final = 100
"""Latest decisions among which the alert's own is looked for."""
_HTTP_BAD: Final = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorOptions:
    """What is examined.

    Raises:
        ConfigurationError: A value cannot work.
    """

    prometheus_url: str | None = None
    """``None`` skips it, as for the others."""
    alertmanager_url: str | None = None
    receiver_url: str | None = None
    token: str | None = field(default=None, repr=False)
    """What the receiver asks for."""
    program: str | None = None
    """Which one the trial alert is about; ``None`` takes one that is deployed."""
    environment: str = "production"
    wait_s: float = 30.0
    """Seconds in which the alert has to arrive: more than Alertmanager's ``group_interval``."""
    timeout_s: float = 5.0
    """Of each request."""

    def __post_init__(self) -> None:
        for name in ("wait_s", "timeout_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigurationError(name, f"{getattr(self, name)!r} cannot work", "Use seconds above 0")


def examine(registry: SignatureRegistry | None, options: DoctorOptions, problem: str = "") -> Iterator[Check]:
    """Look at everything, yielding what is found as it is found.

    Args:
        registry: Where decisions are kept; ``None`` where it could not be opened.
        options: What else is examined.
        problem: Why it could not be opened.

    Raises:
        ConfigurationError: An address cannot work.
    """
    learned = Learned()
    with ExitStack() as stack:
        receiver = _site(stack, "receiver_url", options.receiver_url, options)
        alertmanager = _site(stack, "alertmanager_url", options.alertmanager_url, options)
        prometheus = None
        if options.prometheus_url is not None:
            prometheus = stack.enter_context(Prometheus(options.prometheus_url, timeout_s=options.timeout_s))
        suspect = yield from _registry(registry, options, problem)
        program, version = suspect or (options.program or "program", "version")
        labels = _labels(program, version, options.environment)
        if receiver is None:
            yield skipped("receiver", "all", "--receiver-url was not given")
        else:
            yield from examine_receiver(receiver, options.token, learned)
        if alertmanager is None:
            yield skipped("alertmanager", "all", "--alertmanager-url was not given")
        else:
            yield from examine_alertmanager(alertmanager, labels, options.receiver_url, learned)
        if prometheus is None:
            yield skipped("prometheus", "all", "--prometheus-url was not given")
        else:
            yield from examine_prometheus(prometheus, options.alertmanager_url)
        if registry is None or suspect is None:
            yield skipped("path", "trial alert", "there is no deployed version that it could be about")
        elif alertmanager is None or not learned.alertmanager:
            why = "--alertmanager-url was not given" if alertmanager is None else "Alertmanager does not answer"
            yield skipped("path", "trial alert", why)
        else:
            yield _sent_through(registry, alertmanager, labels, options, learned)


def _site(stack: ExitStack, name: str, url: str | None, options: DoctorOptions) -> Site | None:
    return None if url is None else stack.enter_context(Site(name, url, options.timeout_s))


def _registry(
    registry: SignatureRegistry | None, options: DoctorOptions, problem: str
) -> Generator[Check, None, tuple[str, str] | None]:
    """Yields what it finds; returns the program and version that an alert can be about."""
    part, mend = "registry", "Name it by --registry: a folder, or the URL of a database that can be reached"
    if registry is None:
        yield broken(part, "readable", problem, mend)
        return None
    try:
        names = registry.list_signatures()
        standings = [(name, registry.standing(name, environment=options.environment)) for name in names]
    except ObserveError as error:
        yield broken(part, "readable", str(error), mend)
        return None
    yield fine(part, "readable", f"{registry.location} has {len(names)} programs")
    yield _writable(registry, names, options.environment)
    running = [(name, one) for name, one in standings if one.pointer is not None]
    if not running:
        found = f"no program is deployed in {options.environment}"
        yield broken(part, "deployed", found, f"dspy-observe registry deploy NAME VERSION -e {options.environment}")
        return None
    shown = ", ".join(f"{name} {one.pointer.version}" for name, one in running if one.pointer is not None)
    yield fine(part, "deployed", f"{options.environment} runs {shown}")
    for name, one in running:
        control, where = one.control, f"{name} -e {options.environment}"
        if control.frozen:
            found = f"{name} is frozen ({control.frozen_reason}): nothing of it is rolled back by itself"
            yield warning(part, "frozen", found, f"When that is mended: dspy-observe decisions unfreeze {where}")
        if control.mode != "auto":
            found = f"the mode of {name} is {control.mode}"
            yield warning(part, "mode", found, f"If it is to act by itself: dspy-observe decisions mode {where} auto")
        if one.rollback_target is None:
            found = f"{name} has no earlier version that a rollback could put back"
            yield warning(
                part, "target", found, "From its second deployment on, or after lifting a quarantine, there is one"
            )
    wanted = [one for one in running if options.program in (None, one[0])]
    if not wanted:
        found = f"{options.program} is not deployed in {options.environment}"
        yield broken(part, "program", found, f"Name one of: {', '.join(name for name, _ in running)}")
        return None
    name, standing = wanted[0]
    assert standing.pointer is not None  # those that run have one
    return name, standing.pointer.version


def _writable(registry: SignatureRegistry, names: list[str], environment: str) -> Check:
    if not names:
        return skipped("registry", "writable", "it has no program that could be written to")
    try:
        # What is there is written again: a whole transaction that changes nothing.
        registry.fold_evidence(names[0], lambda state, _view: state or {}, environment=environment)
    except ObserveError as error:
        return broken(
            "registry", "writable", str(error), "Give this user the right to write there, and room on the disk"
        )
    return fine("registry", "writable", "a transaction was carried out")


def _labels(program: str, version: str, environment: str) -> dict[str, str]:
    return {
        "alertname": DOCTOR_ALERT, "program": program, "version": version, "environment": environment,
        "severity": "none", ALERT_ACTION: ALERT_ACTION_ROLLBACK, ALERT_DRY_RUN: "true",
        DOCTOR_RUN: secrets.token_urlsafe(6),
    }  # fmt: skip


def _sent_through(
    registry: SignatureRegistry, alertmanager: Site, labels: dict[str, str], options: DoctorOptions, learned: Learned
) -> Check:
    """Send the alert, and wait for its decision in the registry."""
    began = time.monotonic()
    now = datetime.now(UTC)
    alert = {
        "labels": labels, "startsAt": now.isoformat(),
        "endsAt": (now + timedelta(seconds=options.wait_s + 60)).isoformat(),
        "annotations": {"summary": "A trial by dspy-observe doctor: nothing is wrong, and nothing is moved"},
    }  # fmt: skip
    try:
        taken = alertmanager.ask("/api/v2/alerts", [alert])
        if taken.status_code >= _HTTP_BAD:
            raise SiteError(f"HTTP {taken.status_code}: {taken.text[:200]}")  # noqa: TRY301 - one place tells of all
    except SiteError as error:
        return broken("path", "trial alert", f"Alertmanager does not take it: {error}", "Look at Alertmanager's log")
    try:
        while True:
            made = _decision(registry, labels)
            if made is not None:
                return _arrived(made, time.monotonic() - began)
            if time.monotonic() - began > options.wait_s:
                return _lost(alertmanager, labels, options, learned, registry)
            time.sleep(_POLL_S)
    except ObserveError as error:
        return broken("path", "trial alert", f"the registry cannot be read: {error}", "Look at the registry")
    finally:
        with suppress(SiteError):
            alertmanager.ask("/api/v2/alerts", [{**alert, "endsAt": datetime.now(UTC).isoformat()}])


def _decision(registry: SignatureRegistry, labels: dict[str, str]) -> Decision | None:
    latest = registry.decisions(labels["program"], environment=labels["environment"], limit=_LOOKED_AT)
    wanted = labels[DOCTOR_RUN]
    return next((one for one in latest if (one.inputs.get("labels") or {}).get(DOCTOR_RUN) == wanted), None)


def _arrived(made: Decision, took_s: float) -> Check:
    if made.outcome == "held":
        return fine("path", "trial alert", f"decided after {took_s:.1f} s, {made.outcome}: {made.reason}")
    found = f"it was answered with {made.outcome}: {made.reason}"
    return broken("path", "trial alert", found, "A trial is only ever held: update the receiver to this release")


def _lost(
    alertmanager: Site, labels: dict[str, str], options: DoctorOptions, learned: Learned, registry: SignatureRegistry
) -> Check:
    """It never arrived: what Alertmanager says of it."""
    found = f"no decision within {options.wait_s:g} s"
    mend = "Look at the first broken check above, and at Alertmanager's log for what became of the delivery"
    try:
        rows = alertmanager.json("/api/v2/alerts", filter=f'{DOCTOR_RUN}="{labels[DOCTOR_RUN]}"')
        failed = _failed_deliveries(alertmanager.ask("/metrics").text)
    except SiteError as error:
        return broken("path", "trial alert", f"{found}; Alertmanager does not answer any more: {error}", mend)
    if not rows:
        return broken("path", "trial alert", f"{found}, and Alertmanager does not know the alert", mend)
    status, to = rows[0]["status"], ", ".join(one["name"] for one in rows[0]["receivers"])
    if status["state"] == "suppressed":
        found += "; a silence keeps it back" if status["silencedBy"] else "; another alert inhibits it"
        mend = "See what it is with amtool silence query, or amtool alert query; rollbacks are kept back by it, too"
    else:
        found += f"; Alertmanager sends it to {to}"
        if failed:
            found += f", and {failed:.0f} deliveries to webhooks failed so far"
    if learned.registry not in (None, registry.location):
        mend = (
            f"The receiver works on {learned.registry}, this command on {registry.location}: are they the same? " + mend
        )
    return broken("path", "trial alert", found, mend)


def _failed_deliveries(metrics: str) -> float:
    found = 0.0
    for line in metrics.splitlines():
        if line.startswith("alertmanager_notification_requests_failed_total{") and 'integration="webhook"' in line:
            with suppress(ValueError):
                found += float(line.rpartition(" ")[2])
    return found
