"""Reading Alertmanager's webhook: what its releases send, what they may add, and what is no delivery."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from dspy_observe.rollback.alerts import Alert, AlertError, Delivery, parse

RECEIVED = {
    "receiver": "hook",
    "status": "firing",
    "alerts": [
        {
            "status": "firing",
            "labels": {
                "dspy_action": "rollback", "alertname": "DSPyErrors", "instance": "127.0.0.1:56955", "job": "demo",
                "program": "qa", "severity": "critical", "version": "v2",
            },
            "annotations": {"runbook_url": "https://example/", "summary": "errors"},
            "startsAt": "2026-11-20T17:36:51.05Z",
            "endsAt": "0001-01-01T00:00:00Z",
            "generatorURL": "http://127.0.0.1:42833/graph?g0.expr=1",
            "fingerprint": "eb6e4818fb485954",
        }
    ],
    "groupLabels": {"alertname": "DSPyErrors"},
    "commonLabels": {},
    "commonAnnotations": {},
    "externalURL": "http://127.0.0.1:57093",
    "version": "4",
    "groupKey": '{}:{alertname="DSPyErrors"}',
    "truncatedAlerts": 0,
}  # fmt: skip
"""As Alertmanager 0.25 posted it."""


def changed(**fields: Any) -> dict[str, Any]:
    """The delivery with other fields in its one alert; ``...`` takes one out."""
    alert = {**RECEIVED["alerts"][0], **fields}  # type: ignore[dict-item]
    return {**RECEIVED, "alerts": [{key: value for key, value in alert.items() if value is not ...}]}


def only(body: Any) -> Alert:
    """The one alert of a delivery."""
    (alert,) = parse(body).alerts
    return alert


@pytest.mark.parametrize("body", [RECEIVED, json.dumps(RECEIVED), json.dumps(RECEIVED).encode()])
def test_delivery_is_read_whatever_it_comes_as(body: Any) -> None:
    """Bytes, text and mapping give the same."""
    delivery = parse(body)
    assert delivery == Delivery(
        delivery.alerts, '{}:{alertname="DSPyErrors"}', "hook", "firing", 0, "http://127.0.0.1:57093"
    )
    (alert,) = delivery.alerts
    assert alert.firing
    assert (alert.name, alert.action, alert.program, alert.version) == ("DSPyErrors", "rollback", "qa", "v2")
    assert (alert.environment, alert.signal, alert.is_watchdog, alert.is_dry_run) == ("production", None, False, False)
    assert alert.starts_at == datetime(2026, 11, 20, 17, 36, 51, 50_000, UTC)
    assert alert.ends_at is None
    assert alert.key == ("eb6e4818fb485954", "2026-11-20T17:36:51.050000+00:00")


def test_newer_releases_may_add_fields_and_leave_others_out() -> None:
    """Only what is acted on has to be there: status, labels, start."""
    newer = {**changed(annotations=..., endsAt=..., generatorURL=..., fingerprint=..., extra=[1])}
    newer["notification_reason"] = {"kind": "repeat"}
    for key in ("receiver", "status", "groupLabels", "externalURL", "groupKey", "truncatedAlerts"):
        del newer[key]
    alert = only(newer)
    assert (alert.annotations, alert.ends_at, alert.generator_url) == ({}, None, "")
    same = only(changed(fingerprint=..., labels=dict(reversed(list(RECEIVED["alerts"][0]["labels"].items())))))  # type: ignore[index]
    assert alert.fingerprint == same.fingerprint
    assert len(alert.fingerprint) == 16
    other = only(changed(fingerprint=..., labels={"alertname": "Other"}))
    assert other.fingerprint != alert.fingerprint


@pytest.mark.parametrize(
    "text",
    ["2026-11-20T17:36:51.05Z", "2026-11-20T17:36:51.050000000Z", "2026-11-20T18:36:51.05+01:00"],
)
def test_key_does_not_depend_on_how_a_time_is_written(text: str) -> None:
    """Two peers may write the same moment in different ways; it is one episode."""
    assert only(changed(startsAt=text)).key == only(RECEIVED).key


def test_labels_say_what_an_alert_is_and_may_do() -> None:
    """Environment, signal, dry run and watchdog; empty labels are missing ones."""
    staging = only(changed(labels={"environment": "staging", "dspy_signal": "errors", "dspy_dry_run": "true"}))
    assert (staging.environment, staging.signal, staging.is_dry_run, staging.action) == (
        "staging", "errors", True, None,
    )  # fmt: skip
    assert only(changed(labels={"alertname": "DSPyWatchdog"})).is_watchdog
    empty = only(changed(labels={"alertname": "X", "program": "", "version": "", "environment": ""}))
    assert (empty.program, empty.version, empty.environment) == (None, None, "production")
    assert not only(changed(labels={"dspy_dry_run": "false"})).is_dry_run


def test_labels_of_absurd_length_are_not_kept_and_still_tell_alerts_apart() -> None:
    """The fingerprint is of all labels; what is left out is left out whole."""
    labels = {"n" * 200: "short", "program": "qa", "value": "v" * 4000}
    long = {**labels, "n" * 201: "short", "longer": "v" * 4001}
    alert = only(changed(labels=long, fingerprint=...))
    assert alert.kept_labels == labels
    assert alert.labels == long
    assert alert.fingerprint != only(changed(labels=labels, fingerprint=...)).fingerprint
    assert only(RECEIVED).kept_labels == RECEIVED["alerts"][0]["labels"]  # type: ignore[index]


@pytest.mark.parametrize("count", [0, 12, 2**63 - 1, 2**63, 2**64 - 1, 10**40])
def test_count_of_truncated_alerts_is_as_large_as_can_be_stored(count: int) -> None:
    """Alertmanager's own has 64 bits without a sign."""
    assert parse({**RECEIVED, "truncatedAlerts": count}).truncated_alerts == min(count, 2**63 - 1)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", "NaN", "[" * 100_000, "1" * 10_000, '{"a": Infinity}'])
def test_what_is_not_json_is_refused(body: Any) -> None:
    """Cut off, not text, too deep, or numbers that JSON does not have."""
    with pytest.raises(AlertError, match="not JSON"):
        parse(body)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ([], "no JSON object"),
        ("[]", "no JSON object"),
        ({}, "version is not '4'"),
        ({**RECEIVED, "version": "5"}, "version is not '4'"),
        ({**RECEIVED, "version": 4}, "version is not '4'"),
        ({**RECEIVED, "alerts": []}, "at least one alert"),
        ({**RECEIVED, "alerts": {}}, "at least one alert"),
        ({**RECEIVED, "alerts": [1]}, r"alerts\[0\] is no object"),
        ({**RECEIVED, "truncatedAlerts": -1}, "truncatedAlerts"),
        ({**RECEIVED, "truncatedAlerts": True}, "truncatedAlerts"),
        ({**RECEIVED, "groupKey": 1}, "groupKey"),
        (changed(status="pending"), "neither firing nor resolved"),
        (changed(status=...), "neither firing nor resolved"),
        (changed(labels=...), "labels is empty"),
        (changed(labels=["a"]), "labels is no object"),
        (changed(labels={"program": 1}), "no text"),
        (changed(labels={"program": "\ud800"}), "cannot be stored"),
        (changed(labels={"program": "a\0"}), "cannot be stored"),
        (changed(annotations="x"), "annotations is no object"),
        (changed(startsAt=...), "startsAt is missing"),
        (changed(startsAt="0001-01-01T00:00:00Z"), "startsAt is missing"),
        (changed(startsAt="2026-11-20T17:36:51"), "no offset"),
        (changed(startsAt="yesterday"), "no RFC 3339"),
        (changed(startsAt="9999-12-31T23:59:59-12:00"), "no RFC 3339"),
        (changed(startsAt=5), "no RFC 3339"),
        (changed(endsAt="never"), "endsAt"),
        (changed(fingerprint="f" * 201), "fingerprint"),
    ],
)
def test_what_is_no_delivery_is_refused_with_the_place(body: Any, told: str) -> None:
    """So that whoever wrote it finds the mistake."""
    with pytest.raises(AlertError, match=told):
        parse(body)
    if isinstance(body, dict):
        with pytest.raises(AlertError, match=told):
            parse(json.dumps(body))


def test_one_broken_alert_spoils_the_delivery() -> None:
    """A body that is malformed is not Alertmanager's; what lacks a label is, and is judged one by one."""
    with pytest.raises(AlertError, match=r"alerts\[1\]"):
        parse({**RECEIVED, "alerts": [*RECEIVED["alerts"], {"status": "firing"}]})  # type: ignore[misc]
