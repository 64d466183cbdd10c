"""The policy and the parser over everything that may come: what must never happen, whatever is asked."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_observe.rollback.alerts import AlertError, Delivery, parse
from dspy_observe.rollback.freshness import Counts, Fresh, doubt
from dspy_observe.rollback.policy import MODES, OUTCOMES, Limits, Request, Status, decide

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)

moments = st.integers(-90_000, 100).map(lambda seconds: NOW + timedelta(seconds=seconds))
counts = st.builds(
    lambda name, calls, part: Counts(name, calls, calls * part), st.sampled_from(("a", "b", "c")),
    st.floats(0, 1e6), st.floats(0, 1),
)  # fmt: skip
fresh_data = st.builds(
    Fresh, firing=st.none() | st.booleans(), suspect=st.none() | counts, versions=st.lists(counts, max_size=3),
    programs=st.lists(counts, max_size=3), problem=st.none() | st.just("timed out"),
)  # fmt: skip
requests = st.builds(
    Request, trigger=st.sampled_from(("alert", "monitor", "manual")), program=st.just("qa"),
    version=st.none() | st.sampled_from(("v1", "v2", "v3", "ab" * 8)), firing=st.booleans(),
    started_at=st.none() | moments, fingerprint=st.none() | st.just("f"), dry_run=st.booleans(),
    approved_by=st.none() | st.just("ana"), fresh=st.none() | fresh_data,
    signal=st.none() | st.sampled_from(("errors", "score")), reason=st.none() | st.text(max_size=20),
)  # fmt: skip
statuses = st.builds(
    Status, known=st.booleans(), version=st.none() | st.sampled_from(("v1", "v2", "v3")),
    version_hash=st.none() | st.just("ab" * 32), deployed_at=st.none() | moments,
    target=st.none() | st.sampled_from(("v0", "v1")), seen=st.none() | st.just("d1"),
    rollbacks=st.lists(moments, max_size=6).map(sorted), budget_since=st.none() | moments,
    mode=st.sampled_from(MODES), frozen=st.none() | st.just("why"),
)  # fmt: skip
limits = st.builds(
    Limits, cooldown_s=st.floats(0, 5000), max_rollbacks_per_hour=st.integers(1, 5), max_alert_age_s=st.floats(0, 1e5),
    unconfirmed=st.sampled_from(("hold", "proceed")),
)  # fmt: skip


def may_roll_back(request: Request, status: Status, limits: Limits) -> bool:
    """The rules once more, as one condition that knows no order."""
    began, by_itself = request.started_at, request.approved_by is None
    recent = [at for at in status.rollbacks if NOW - at < HOUR]
    if status.budget_since is not None:
        recent = [at for at in recent if at > status.budget_since]
    usable = (
        request.firing and not request.dry_run and status.known and status.version is not None and status.seen is None
        and status.target is not None
        and (request.version in (None, status.version) or (status.version_hash or "").startswith(str(request.version)))
        and not (began is not None and status.deployed_at is not None and began < status.deployed_at)
    )  # fmt: skip
    if not usable or not by_itself:
        return usable
    found = None if request.fresh is None else doubt(request.fresh, request.signal, limits.thresholds)
    return (
        status.frozen is None and status.mode == "auto"
        and not (began is not None and (NOW - began).total_seconds() > limits.max_alert_age_s)
        and not (status.rollbacks and (NOW - status.rollbacks[-1]).total_seconds() < limits.cooldown_s)
        and len(recent) < limits.max_rollbacks_per_hour
        and (found is None or (found.unknown and limits.unconfirmed == "proceed"))
    )  # fmt: skip


@settings(max_examples=400)
@given(requests, statuses, limits)
def test_rolls_back_exactly_where_every_rule_allows_it(request: Request, status: Status, limits: Limits) -> None:
    """Never otherwise; and always with an outcome that is known, a reason, and inputs that can be stored."""
    made = decide(request, status, limits, NOW)
    assert (made.outcome == "rollback") == may_roll_back(request, status, limits)
    assert made.outcome in OUTCOMES
    assert made.reason
    json.dumps(made.inputs, allow_nan=False)
    if made.freeze is not None:
        assert made.outcome == "held"
        assert status.frozen is None


@settings(max_examples=200)
@given(requests, statuses, limits)
def test_asking_for_less_never_gives_more(request: Request, status: Status, limits: Limits) -> None:
    """Nothing rolls back that is resolved or dry, or by itself where the program is frozen or off."""
    by_itself = replace(request, approved_by=None)
    assert decide(replace(request, firing=False), status, limits, NOW).outcome == "ignored"
    for asked, stands in (
        (replace(request, dry_run=True), status),
        (by_itself, replace(status, frozen="why")),
        (by_itself, replace(status, mode="off")),
        (by_itself, replace(status, mode="dry-run")),
    ):
        assert decide(asked, stands, limits, NOW).outcome in ("held", "ignored")


@settings(max_examples=200)
@given(requests, statuses, limits, fresh_data)
def test_fresh_data_only_ever_hold(request: Request, status: Status, limits: Limits, fresh: Fresh) -> None:
    """They make nothing roll back that would not without them."""
    without = decide(replace(request, fresh=None), status, limits, NOW)
    made = decide(replace(request, fresh=fresh), status, limits, NOW)
    if made.outcome == "rollback":
        assert without.outcome == "rollback"


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.sampled_from(("v1", "v2", "v3")), st.integers(1, 900)), max_size=40
    ),
    limits,
)
def test_alerts_in_any_order_never_flap(arrivals: list[tuple[str, str, int]], limits: Limits) -> None:
    """Each alert moves the pointer once at most, no version comes back, the budget holds, and then nothing moves."""
    good, quarantined = ["v3", "v2", "v1"], []
    answered: dict[str, str] = {}
    moves: list[datetime] = []
    frozen, now, deployed_at = None, NOW, NOW - timedelta(days=1)
    for fingerprint, version, later in arrivals:
        now += timedelta(seconds=later)
        status = Status(
            version=good[0], deployed_at=deployed_at, target=good[1] if len(good) > 1 else None,
            seen=answered.get(fingerprint), rollbacks=moves, frozen=frozen,
        )  # fmt: skip
        request = Request(trigger="alert", program="qa", version=version, started_at=now, fingerprint=fingerprint)
        made = decide(request, status, limits, now)
        frozen = made.freeze or frozen
        if made.outcome == "rollback":
            assert fingerprint not in answered
            assert version == good[0]
            answered[fingerprint] = version
            quarantined.append(good.pop(0))
            moves, deployed_at = [*moves, now], now
            assert good[0] not in quarantined
        assert sum(now - at < HOUR for at in moves) <= limits.max_rollbacks_per_hour


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=20,
)
keys = st.sampled_from(
    ("version", "alerts", "status", "labels", "startsAt", "endsAt", "fingerprint", "truncatedAlerts")
)
likely = json_values | st.sampled_from(("4", "firing", "resolved", "2026-11-20T17:36:51.05Z", "0001-01-01T00:00:00Z"))
alert_like = st.dictionaries(keys, likely | st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=3))
deliveries = st.fixed_dictionaries(
    {"version": st.just("4"), "alerts": st.lists(alert_like | json_values, max_size=3)},
    optional={"groupKey": likely, "truncatedAlerts": likely, "receiver": likely, "externalURL": likely},
)


@settings(max_examples=300)
@given(st.binary(max_size=200) | st.text(max_size=200) | (json_values | deliveries).map(json.dumps))
def test_anything_is_a_delivery_or_refused(body: Any) -> None:
    """Whatever the bytes: no other error, and a delivery holds only what can be stored."""
    try:
        found = parse(body)
    except AlertError:
        return
    assert isinstance(found, Delivery)
    for alert in found.alerts:
        "".join([*alert.labels, *alert.labels.values(), alert.fingerprint]).encode()
        assert alert.starts_at.utcoffset() == timedelta(0)


@given(
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=9),
                    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=9), min_size=1),
    st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001 - made aware
    st.sampled_from(("firing", "resolved")),
)  # fmt: skip
def test_what_was_sent_is_what_is_read(labels: dict[str, str], starts_at: datetime, status: str) -> None:
    """Labels and times come through as they are, and the made fingerprint depends on nothing else than the labels."""
    row = {"status": status, "labels": labels, "startsAt": starts_at.isoformat().replace("+00:00", "Z")}
    (alert,) = parse(json.dumps({"version": "4", "alerts": [row]})).alerts
    assert (alert.labels, alert.starts_at, alert.status) == (labels, starts_at, status)
    again = {**row, "labels": dict(reversed(list(labels.items())))}
    assert parse({"version": "4", "alerts": [again]}).alerts[0].key == alert.key
