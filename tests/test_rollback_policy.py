"""The order of the policy's rules, and what each says to the person on call."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dspy_observe.errors import ConfigurationError
from dspy_observe.rollback.freshness import Counts, Thresholds
from dspy_observe.rollback.policy import OWN_INPUTS, Decision, Fresh, Limits, Request, Status, decide

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
LIMITS = Limits()


def ago(seconds: float) -> datetime:
    """Some seconds before now."""
    return NOW - timedelta(seconds=seconds)


ALERT = Request(trigger="alert", program="qa", version="v2", started_at=ago(30), fingerprint="f")
RUNNING = Status(version="v2", version_hash="ab" * 32, deployed_at=ago(300), target="v1")
BAD = Fresh(firing=True, suspect=Counts("qa v2", 100, 60))
OUTAGE = replace(BAD, programs=(Counts("LM calls of chat", 50, 40), Counts("LM calls of sql", 50, 1)))


def ask(request: Request = ALERT, status: Status = RUNNING, limits: Limits = LIMITS, **others: Any) -> Decision:
    """Decide on changed fields of the request or the status."""
    ours = {key: others.pop(key) for key in list(others) if key in Request.__dataclass_fields__ and key != "version"}
    return decide(replace(request, **ours), replace(status, **others), limits, NOW)


def test_plain_case_rolls_back_and_says_from_what_to_what() -> None:
    """With the alert's own words and the fresh figures."""
    made = ask(reason="DSPyErrors: half of all calls fail", fresh=BAD)
    assert made.outcome == "rollback"
    assert "half of all calls fail; rolled back from v2 to v1" in made.reason
    assert "qa v2: 60 of 100 failed (60 %)" in made.reason
    assert made.freeze is None


@pytest.mark.parametrize(
    ("others", "outcome", "told"),
    [
        ({"firing": False}, "ignored", "resolved"),
        ({"frozen": "the budget was spent"}, "held", "qa is frozen in production: the budget was spent"),
        ({"mode": "off"}, "held", "automatic rollback is off"),
        ({"mode": "dry-run"}, "held", "would roll back from v2 to v1"),
        ({"dry_run": True}, "held", "asked for by the alert itself; without it, this would roll back from v2 to v1"),
        ({"mode": "dry-run", "version": "v3"}, "held", "would be stale: it is about v2"),
        ({"known": False}, "rejected", "no program 'qa'"),
        ({"version": None}, "rejected", "nothing is deployed"),
        ({"seen": "d1"}, "duplicate", "decision d1"),
        ({"version": "v3"}, "stale", "it is about v2, but production runs v3"),
        ({"started_at": ago(301)}, "stale", "before v2 was deployed"),
        ({"started_at": ago(22_000), "deployed_at": ago(90_000)}, "stale", "longer than the 6.0 h"),
        ({"rollbacks": [ago(700), ago(90)]}, "held", "cool-down: qa was rolled back 90 s ago, and 10 min have to pass"),
        ({"rollbacks": [ago(3500), ago(3000), ago(601)]}, "held", "budget is spent (3 rollbacks within the last hour)"),
        ({"fresh": OUTAGE}, "held", "a provider or the network: LM calls of chat: 40 of 50 failed (80 %)"),
        ({"fresh": replace(BAD, firing=False)}, "held", "does not fire there now"),
        ({"fresh": Fresh(problem="timed out")}, "held", "cannot confirm it: Prometheus could not be asked (timed out)"),
        ({"target": None}, "rejected", "nothing to roll back to"),
        ({"mode": "approve"}, "held", "waiting for approval"),
    ],
)
def test_each_rule_answers_with_its_reason(others: dict[str, Any], outcome: str, told: str) -> None:
    """In words that need no source code beside them."""
    made = ask(**others)
    assert made.outcome == outcome
    assert told in made.reason


ORDER: list[tuple[str, dict[str, Any]]] = [
    ("ignored", {"firing": False}),
    ("frozen", {"frozen": "why"}),
    ("no program", {"known": False}),
    ("answered", {"seen": "d1"}),
    ("it is about", {"version": "v9"}),
    ("before", {"started_at": ago(400)}),
    ("cool-down", {"rollbacks": [ago(3), ago(2), ago(1)]}),
    ("budget", {"rollbacks": [ago(3400), ago(3300), ago(3200)]}),
    ("others fail", {"fresh": OUTAGE}),
    ("nothing to roll back", {"target": None}),
    ("approval", {"mode": "approve"}),
]
"""The order in which the rules answer; each with what makes its rule answer."""


@pytest.mark.parametrize("first", range(len(ORDER)))
def test_earlier_rule_answers_before_all_later_ones(first: int) -> None:
    """Everything from one rule on holds at once, and that rule speaks."""
    others: dict[str, Any] = {}
    for _, more in reversed(ORDER[first:]):
        others.update(more)
    word = ORDER[first][0]
    made = ask(**others)
    assert word in f"{made.outcome} {made.reason}"


def test_boundaries_are_exact() -> None:
    """A moment before the cool-down ends it holds; at its end it does not. Likewise for the hour and the age."""
    assert ask(rollbacks=[ago(599.999)]).outcome == "held"
    assert ask(rollbacks=[ago(600)]).outcome == "rollback"
    assert ask(rollbacks=[ago(3600), ago(3599), ago(700)]).outcome == "rollback"
    assert ask(started_at=ago(300)).outcome == "rollback"
    old = {"deployed_at": ago(90_000)}
    assert ask(started_at=ago(21_600), **old).outcome == "rollback"
    assert ask(started_at=ago(21_601), **old).outcome == "stale"


def test_spent_budget_freezes_and_unfreezing_grants_a_new_one() -> None:
    """The decision says so itself, and how to end it."""
    spent = [ago(3000), ago(2500), ago(2000)]
    made = ask(rollbacks=spent)
    assert made.freeze is not None
    assert "now frozen until a person unfreezes it" in made.reason
    assert ask(rollbacks=spent, budget_since=ago(2000)).outcome == "rollback"
    assert ask(rollbacks=spent, budget_since=ago(2501)).outcome == "rollback"
    assert ask(rollbacks=[*spent, ago(700)], budget_since=ago(3001)).outcome == "held"


@pytest.mark.parametrize(
    "others",
    [
        {"frozen": "why"}, {"mode": "off"}, {"mode": "dry-run"}, {"mode": "approve"}, {"fresh": OUTAGE},
        {"rollbacks": [ago(3), ago(2), ago(1)]}, {"started_at": ago(50_000), "deployed_at": ago(60_000)},
    ],
)  # fmt: skip
def test_approval_passes_what_holds(others: dict[str, Any]) -> None:
    """A person takes it on themselves, and is named."""
    made = ask(approved_by="ana", **others)
    assert made.outcome == "rollback"
    assert "approved by ana" in made.reason
    assert made.inputs["approved_by"] == "ana"


@pytest.mark.parametrize(
    ("others", "outcome"),
    [
        ({"firing": False}, "ignored"), ({"dry_run": True}, "held"), ({"known": False}, "rejected"),
        ({"seen": "d"}, "duplicate"), ({"version": "v3"}, "stale"), ({"started_at": ago(301)}, "stale"),
        ({"target": None}, "rejected"), ({"version": None}, "rejected"),
    ],
)  # fmt: skip
def test_approval_passes_nothing_else(others: dict[str, Any], outcome: str) -> None:
    """Somebody's word does not make another version the deployed one."""
    assert ask(approved_by="ana", **others).outcome == outcome


@pytest.mark.parametrize(("version", "outcome"), [("ab" * 32, "rollback"), ("ab" * 6, "rollback"), ("ab" * 5, "stale")])
def test_version_may_be_told_by_its_hash(version: str, outcome: str) -> None:
    """In full or by 12 digits; no version means the deployed one."""
    assert decide(replace(ALERT, version=version), RUNNING, LIMITS, NOW).outcome == outcome
    assert decide(replace(ALERT, version=None), RUNNING, LIMITS, NOW).outcome == "rollback"


def test_inputs_are_complete_and_plain() -> None:
    """What was asked, what came with it, how things stood and the limits: enough to judge the judgement."""
    made = ask(fresh=BAD, inputs={"labels": {"program": "qa"}})
    assert set(made.inputs) == OWN_INPUTS | {"labels"}
    assert made.inputs["fresh"]["suspect"] == {"name": "qa v2", "calls": 100, "errors": 60}
    assert made.inputs["deployed_at"] == "2026-11-20T11:55:00+00:00"
    import json

    json.dumps(made.inputs)


# --- fresh data ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fresh", "signal", "outcome"),
    [
        (BAD, None, "rollback"),
        (BAD, "errors", "rollback"),
        # An alert about scores is not refused because errors are few; one about errors is.
        (replace(BAD, suspect=Counts("v2", 100, 0)), "score", "rollback"),
        (replace(BAD, suspect=Counts("v2", 100, 0)), None, "rollback"),
        (replace(BAD, suspect=Counts("v2", 100, 1)), "errors", "held"),
        (replace(BAD, suspect=Counts("v2", 9, 0)), "errors", "rollback"),
        (replace(BAD, suspect=None), "errors", "rollback"),
        # Prometheus is the one that knows whether the rule fires, whatever the counts say.
        (replace(BAD, firing=False), "score", "held"),
        (replace(BAD, firing=None), None, "rollback"),
        (Fresh(), None, "held"),
        # Other versions of the program.
        (replace(BAD, versions=(Counts("v1", 100, 60),)), None, "held"),
        (replace(BAD, versions=(Counts("v1", 100, 25),)), None, "rollback"),
        (replace(BAD, versions=(Counts("v1", 9, 9),)), None, "rollback"),
        (replace(BAD, versions=(Counts("v1", 100, 25),), suspect=None), "score", "held"),
        # Other programs on the same models: the majority counts, so that one broken program holds nobody for ever.
        (replace(BAD, programs=(Counts("a", 50, 30),)), None, "held"),
        (replace(BAD, programs=(Counts("a", 50, 30), Counts("b", 50, 0))), None, "held"),
        (replace(BAD, programs=(Counts("a", 50, 30), Counts("b", 50, 0), Counts("c", 50, 0))), None, "rollback"),
        (replace(BAD, programs=(Counts("a", 50, 9),)), None, "rollback"),
        (replace(BAD, programs=(Counts("a", 0, 0),)), None, "rollback"),
    ],
)
def test_fresh_data(fresh: Fresh, signal: str | None, outcome: str) -> None:
    """What confirms, what speaks for another cause, and what says nothing."""
    assert ask(fresh=fresh, signal=signal).outcome == outcome


def test_unknown_may_be_let_pass_but_doubt_may_not() -> None:
    """``proceed`` is for the time when Prometheus does not answer, not for when it says no."""
    proceed = Limits(unconfirmed="proceed")
    assert ask(limits=proceed, fresh=Fresh(problem="timed out")).outcome == "rollback"
    assert ask(limits=proceed, fresh=replace(BAD, firing=False)).outcome == "held"
    assert ask(limits=proceed, fresh=OUTAGE).outcome == "held"


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Limits, {"cooldown_s": -1}), (Limits, {"cooldown_s": float("nan")}), (Limits, {"cooldown_s": True}),
        (Limits, {"max_rollbacks_per_hour": 0}), (Limits, {"max_rollbacks_per_hour": 61}),
        (Limits, {"max_rollbacks_per_hour": 1.5}), (Limits, {"max_alert_age_s": float("inf")}),
        (Limits, {"unconfirmed": "maybe"}), (Thresholds, {"min_calls": 0}), (Thresholds, {"outage_error_ratio": 2}),
        (Thresholds, {"errors_over_ratio": "x"}),
    ],
)  # fmt: skip
def test_limits_that_cannot_work_are_refused(kind: Any, values: dict[str, Any]) -> None:
    """With the field's name and what to write."""
    with pytest.raises(ConfigurationError, match=next(iter(values))):
        kind(**values)
