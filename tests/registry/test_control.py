"""Mode and freeze of automatic rollback, and the policy at work, on every store."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from dspy_observe.errors import ConfigurationError
from dspy_observe.registry import (
    Control,
    CorruptRegistry,
    Ruling,
    SignatureRegistry,
    Standing,
    StoreUnavailable,
    UnknownSignature,
)
from dspy_observe.registry.controlling import CONTROL
from dspy_observe.registry.records import Mark
from dspy_observe.rollback.deciding import DecisionError, approve, find, judge_for, preview, recent, settle
from dspy_observe.rollback.policy import Limits, Request

Open = Callable[..., SignatureRegistry]
LIMITS = Limits()


@pytest.fixture
def running(three: SignatureRegistry, clock: Any) -> SignatureRegistry:
    """v1, v2 and v3 were deployed in turn; v3 runs, since a minute."""
    for version in ("v1", "v2", "v3"):
        three.deploy_version("qa", version)
    clock.forward(60)
    return three


def request(registry: SignatureRegistry, **fields: Any) -> Request:
    """An alert about v3 that began just now."""
    plain = {"trigger": "alert", "program": "qa", "version": "v3", "started_at": registry.now(), "fingerprint": "f"}
    return Request(**{**plain, **fields})


def ask(registry: SignatureRegistry, starts_at: str = "s", **fields: Any) -> Any:
    """Settle it."""
    return settle(registry, request(registry, **fields), LIMITS, starts_at=starts_at, actor="test")


def preview_of(registry: SignatureRegistry) -> Any:
    """Look at it."""
    return preview(registry, request(registry), LIMITS, starts_at="s")


def deployed(registry: SignatureRegistry) -> str:
    """What production runs."""
    pointer = registry.pointer("qa")
    assert pointer is not None
    return pointer.version


# --- control ---------------------------------------------------------------------------------------------------------


def test_automatic_rollback_is_on_until_somebody_says_otherwise(running: SignatureRegistry, clock: Any) -> None:
    """Who said it, when and why is kept; each environment has its own word."""
    assert running.control("qa") == Control()
    said = running.set_mode("qa", "approve", actor="ana", reason="launch week")
    assert (said.mode, said.mode_by, said.mode_reason) == ("approve", "ana", "launch week")
    assert said.mode_at is not None
    assert said.mode_at.timestamp() == clock.now
    frozen = running.freeze("qa", actor="ben", reason="incident 7")
    assert (frozen.mode, frozen.frozen, frozen.frozen_by, frozen.frozen_reason) == (
        "approve",
        True,
        "ben",
        "incident 7",
    )
    assert running.control("qa") == frozen
    assert running.control("qa", environment="staging") == Control()
    assert running.freeze("qa", actor="cleo", reason="me too") == frozen
    clock.forward(5)
    free = running.unfreeze("qa", actor="ben")
    assert (free.frozen, free.frozen_reason, free.mode) == (False, None, "approve")
    assert free.unfrozen_at is not None
    assert free.unfrozen_at.timestamp() == clock.now
    assert running.unfreeze("qa") == free


def test_other_processes_obey_at_once(running: SignatureRegistry, open_registry: Open) -> None:
    """The word is in the store, not in the process."""
    other = open_registry(max_versions_per_signature=0)
    running.freeze("qa")
    assert other.control("qa").frozen
    assert ask(other).outcome == "held"
    other.unfreeze("qa")
    assert ask(running).outcome == "rollback"


def test_control_is_told_as_events(running: SignatureRegistry, heard: Any) -> None:
    """One for each change, none where nothing changed."""
    running.set_mode("qa", "dry-run", reason="trial")
    running.freeze("qa")
    running.freeze("qa")
    running.unfreeze("qa")
    running.unfreeze("qa")
    assert heard.short() == ["mode_change", "freeze", "unfreeze"]
    assert (heard[0].data["mode"], heard[0].data["previous"], heard[0].environment) == ("dry-run", "auto", "production")


def test_control_of_nothing_is_refused(running: SignatureRegistry) -> None:
    """A mode that does not exist, a program that does not exist."""
    with pytest.raises(ConfigurationError, match="auto, approve, dry-run, off"):
        running.set_mode("qa", "manual")
    for call in (running.control, running.freeze, running.unfreeze):
        with pytest.raises(UnknownSignature):
            call("nobody")
    assert running.list_signatures() == ["qa"]


def test_mode_that_does_not_exist_is_named_and_can_be_said_anew(running: SignatureRegistry) -> None:
    """A slip of the pen in the store is a typed error for whoever needs the mode, and for nobody else."""
    running.set_mode("qa", "approve")
    written = {**running.control("qa").to_dict(), "mode": "aprove"}

    def mistype(txn: Any, batch: Any) -> None:
        txn.set_mark(Mark(CONTROL, "production", "", "", batch.time, None, None, written))

    running._engine.run("qa", mistype)
    for call in (running.control, running.standing, lambda _: ask(running), lambda _: preview_of(running)):
        with pytest.raises(
            CorruptRegistry, match=r"qa, control of production: 'aprove' is no mode.*approve.*decisions"
        ):
            call("qa")
    assert running.decisions("qa") == ()
    assert running.freeze("qa", reason="incident").frozen
    assert running.rollout_view("qa").frozen == "incident"
    assert not running.unfreeze("qa").frozen
    assert running.set_mode("qa", "auto").mode == "auto"
    assert ask(running).outcome == "rollback"


def test_control_goes_with_an_export_but_overrules_nobody(
    running: SignatureRegistry, open_registry: Open, tmp_path: Any
) -> None:
    """A new home gets it; a registry that has the program keeps its own word."""
    running.freeze("qa", reason="incident")
    running.export_registry(tmp_path / "all.yml")
    new = open_registry(where=str(tmp_path / "new"))
    new.import_registry(tmp_path / "all.yml")
    assert new.control("qa").frozen_reason == "incident"
    running.unfreeze("qa")
    running.set_mode("qa", "off")
    before = running.control("qa")
    running.import_registry(tmp_path / "all.yml")
    assert running.control("qa") == before


@pytest.mark.parametrize(("mode", "told"), [("approve", "the mode is approve"), ("off", "off"), (None, "frozen: hand")])
def test_no_judge_can_overrule_it(running: SignatureRegistry, mode: str | None, told: str) -> None:
    """The plain rule on one score knows of no mode; the registry does. A person is not bound by it."""
    if mode is None:
        running.freeze("qa", reason="hand")
    else:
        running.set_mode("qa", mode)

    def always(_: Standing) -> Ruling:
        return Ruling("rollback", "because", {})

    made = running.decide("qa", always, trigger="monitor")
    assert (made.outcome, deployed(running)) == ("held", "v3")
    assert told in made.reason
    assert running.decide("qa", always, trigger="manual").outcome == "rollback"


# --- the policy on a registry ----------------------------------------------------------------------------------------


def test_30_alert_moves_the_pointer_once_and_a_late_one_is_stale(running: SignatureRegistry) -> None:
    """Repeats are duplicates; another alert about the version that is gone is stale; resolved is kept and no more."""
    assert ask(running).outcome == "rollback"
    assert [ask(running).outcome for _ in range(3)] == ["duplicate"] * 3
    assert ask(running, fingerprint="other").outcome == "stale"
    assert ask(running, firing=False).outcome == "ignored"
    assert deployed(running) == "v2"
    assert [one.outcome for one in running.decisions("qa")] == ["rollback", *["duplicate"] * 3, "stale", "ignored"]


def test_held_alert_is_judged_anew_when_it_comes_again(running: SignatureRegistry, clock: Any) -> None:
    """The cool-down ends, the alert still fires: then it acts."""
    ask(running)
    clock.forward(30)
    second = {"fingerprint": "g", "version": "v2"}
    assert ask(running, **second).outcome == "held"
    clock.forward(599)
    assert ask(running, **second).outcome == "rollback"
    assert deployed(running) == "v1"


def test_six_outages_in_a_row_never_flap(running: SignatureRegistry, clock: Any) -> None:
    """Each goes one version back or nowhere; nothing that was left comes back."""
    seen = [deployed(running)]
    for outage in range(6):
        clock.forward(1200)
        ask(running, starts_at=str(outage), version=deployed(running))
        seen.append(deployed(running))
    assert seen == ["v3", "v2", "v1", "v1", "v1", "v1", "v1"]
    assert "nothing to roll back to" in running.decisions("qa")[-1].reason


def test_spent_budget_freezes_in_the_same_transaction(
    registry: SignatureRegistry, fill: Callable[..., None], clock: Any, heard: Any
) -> None:
    """The held decision says so, the next one says why, and a person ends it with a new budget."""
    fill(registry, *(f"v{n}" for n in range(8)))
    for n in range(8):
        registry.deploy_version("qa", f"v{n}")
    limits = Limits(cooldown_s=0, max_rollbacks_per_hour=2)
    outcomes = []
    for n in range(4):
        clock.forward(10)
        made = settle(registry, request(registry, version=deployed(registry)), limits, starts_at=str(n), actor="am")
        outcomes.append(made.outcome)
    assert outcomes == ["rollback", "rollback", "held", "held"]
    third, fourth = registry.decisions("qa")[-2:]
    assert "the rollback budget is spent (2 rollbacks within the last hour)" in third.reason
    assert "qa is now frozen" in third.reason
    assert "qa is frozen in production: the rollback budget was spent" in fourth.reason
    assert registry.control("qa").frozen_at == third.at
    assert heard.short().count("freeze") == 1
    registry.unfreeze("qa")
    clock.forward(10)
    assert settle(registry, request(registry, version="v5"), limits, starts_at="5").outcome == "rollback"


def test_decision_keeps_what_was_known(running: SignatureRegistry) -> None:
    """What came with the alert, how things stood, and no credential."""
    ask(running, inputs={"labels": {"program": "qa", "token": "sk-proj-" + "a1B2" * 12}, "group_key": "g"})
    (stored,) = running.decisions("qa")
    assert stored.inputs["group_key"] == "g"
    assert stored.inputs["deployed"] == "v3"
    assert stored.inputs["rollback_target"] == "v2"
    assert "sk-proj-" not in str(stored.to_dict())


def test_unknown_programs_are_rejected_and_leave_nothing(running: SignatureRegistry) -> None:
    """Whoever sends labels must not fill the registry."""
    for program in ("nobody", "../../x", "a" * 500, ""):
        made = ask(running, program=program)
        assert (made.outcome, made.decision) == ("rejected", None)
        assert made.to_dict()["reason"]
    assert ask(running, version="v" * 300).outcome == "rejected"
    assert running.list_signatures() == ["qa"]
    assert running.decisions("qa") == ()


def test_preview_stores_nothing_and_agrees(running: SignatureRegistry) -> None:
    """It is what the receiver asks before it asks Prometheus."""
    assert preview(running, request(running), LIMITS, starts_at="s").outcome == "rollback"
    assert running.decisions("qa") == ()
    assert preview(running, request(running, program="nobody"), LIMITS).outcome == "rejected"
    ask(running)
    assert preview(running, request(running), LIMITS, starts_at="s").outcome == "duplicate"


def test_damaged_target_is_a_decision_and_no_crash(running: SignatureRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The alert is answered: the version cannot be put in place, and nothing moved."""
    from dspy_observe.registry import CorruptVersion, versions

    def damaged(store: object, record: Any) -> None:
        raise CorruptVersion(record.version_hash, "there", "the program is missing")

    monkeypatch.setattr(versions, "check_content", damaged)
    made = ask(running)
    assert made.outcome == "rejected"
    assert "v2 cannot be put in place" in made.reason
    assert deployed(running) == "v3"


def test_29_many_at_once_move_it_once(running: SignatureRegistry, open_registry: Open) -> None:
    """Five deliveries of one alert by two receivers, and the monitor with them."""
    receivers = [open_registry(max_versions_per_signature=0) for _ in range(2)]
    asked = request(running)
    gate, outcomes, lock = threading.Barrier(6), [], threading.Lock()

    def deliver(place: int) -> None:
        gate.wait(30)
        fields = {"trigger": "monitor", "fingerprint": None, "started_at": None} if place == 5 else {}
        one = Request(**{**{name: getattr(asked, name) for name in asked.__dataclass_fields__}, **fields})
        made = settle(receivers[place % 2], one, LIMITS, starts_at=None if place == 5 else "s", actor="x")
        with lock:
            outcomes.append(made.outcome)

    threads = [threading.Thread(target=deliver, args=(place,)) for place in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(set(outcomes)) in (
        ["duplicate", "rollback"],
        ["duplicate", "rollback", "stale"],
        ["rollback", "stale"],
    )
    assert outcomes.count("rollback") == 1
    pointer = running.pointer("qa")
    assert pointer is not None
    assert (pointer.version, pointer.generation) == ("v2", 4)


def test_rollbacks_are_found_among_many_held_ones(running: SignatureRegistry, clock: Any) -> None:
    """Only those that moved something, oldest first, however much was held in between."""
    ask(running)
    for n in range(5):
        ask(running, starts_at=f"held {n}", version="v2", fingerprint="g")
    clock.forward(700)
    ask(running, starts_at="late", version="v2", fingerprint="g")
    standing = running.standing("qa")
    assert [one.version for one in standing.rollbacks] == ["v3", "v2"]
    assert standing.rollbacks[1].at - standing.rollbacks[0].at == timedelta(seconds=700)
    assert running.standing("qa", environment="staging").rollbacks == ()


# --- approving and finding -------------------------------------------------------------------------------------------


def test_person_approves_what_was_held(running: SignatureRegistry, clock: Any) -> None:
    """It is carried out under the alert's own key and names who approved; the alert then is answered."""
    running.set_mode("qa", "approve")
    held = ask(running, reason="DSPyErrors: half fail", inputs={"labels": {"a": "b"}})
    assert "waiting for approval" in held.reason
    clock.forward(30_000)
    done = approve(running, held.decision.decision_id[:8], LIMITS, actor="ana", reason="seen the traces")
    assert (done.outcome, deployed(running)) == ("rollback", "v2")
    assert "approved by ana" in done.reason
    assert done.decision.trigger == "manual"
    assert done.decision.inputs["approves"] == held.decision.decision_id
    assert done.decision.inputs["labels"] == {"a": "b"}
    assert running.deployment_log("qa")[-1].actor == "ana"
    assert ask(running, started_at=None).outcome == "duplicate"
    with pytest.raises(DecisionError, match="only what was held"):
        approve(running, done.decision.decision_id, LIMITS, actor="ana")


def test_approval_of_what_is_no_longer_deployed_is_stale(running: SignatureRegistry) -> None:
    """Somebody rolled back by hand meanwhile: a second step back is not what was approved."""
    running.set_mode("qa", "approve")
    held = ask(running)
    running.rollback("qa")
    assert approve(running, held.decision.decision_id, LIMITS, actor="ana").outcome == "stale"
    assert deployed(running) == "v2"


def test_dry_run_of_an_alert_cannot_be_approved_into_a_rollback(running: SignatureRegistry) -> None:
    """The doctor's alert stays what it is."""
    held = ask(running, dry_run=True)
    assert approve(running, held.decision.decision_id, LIMITS, actor="ana").outcome == "held"
    assert deployed(running) == "v3"


def test_decisions_are_found_by_id_and_listed_across_programs(
    running: SignatureRegistry, fill: Callable[..., None], clock: Any
) -> None:
    """In the order of time; by program, environment and outcome; at most so many."""
    fill(running, "a", "b", signature="other")
    running.deploy_version("other", "a", environment="staging")
    first = ask(running)
    clock.forward(1)
    second = ask(running, program="other", version="a", environment="staging", fingerprint="x")
    clock.forward(1)
    third = ask(running)
    ids = [one.decision.decision_id for one in (first, second, third)]
    assert [(program, one.decision_id) for program, one in recent(running)] == list(
        zip(["qa", "other", "qa"], ids, strict=True)
    )
    assert [one.decision_id for _, one in recent(running, limit=2)] == ids[1:]
    assert [one.decision_id for _, one in recent(running, outcome="rollback", limit=1)] == ids[:1]
    assert [one.decision_id for _, one in recent(running, environment="staging")] == ids[1:2]
    assert [one.decision_id for _, one in recent(running, program="qa")] == [ids[0], ids[2]]
    assert find(running, ids[1][:10])[0] == "other"
    for wrong in ("000000000000", "abc", ""):
        with pytest.raises(DecisionError):
            find(running, wrong)


def test_store_that_is_away_is_not_a_decision(running: SignatureRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was stored, and the caller knows."""

    def away(*_: Any) -> Any:
        raise StoreUnavailable("away")

    monkeypatch.setattr(running._store, "write", away)
    with pytest.raises(StoreUnavailable):
        settle(running, request(running), LIMITS)


def test_judge_may_be_used_by_itself(running: SignatureRegistry) -> None:
    """As the monitor does."""
    made = running.decide("qa", judge_for(request(running), LIMITS), trigger="monitor")
    assert made.outcome == "rollback"
