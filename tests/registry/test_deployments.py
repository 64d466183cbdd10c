"""Deployments, rollbacks, decisions and events. Numbers in names are those of the scenario list."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest

from dspy_observe import safety
from dspy_observe.errors import ConfigurationError
from dspy_observe.registry import (
    ApprovalMissing,
    Conflict,
    NothingToRollBackTo,
    Quarantined,
    RegistryConfig,
    Ruling,
    SignatureRegistry,
    Standing,
    StoreUnavailable,
    UnknownSignature,
    UnknownVersion,
)
from dspy_observe.registry.records import Mark
from dspy_observe.registry.stores import open_store

Open = Callable[..., SignatureRegistry]


def deployed(registry: SignatureRegistry, environment: str = "production") -> str | None:
    """What an environment runs, by name."""
    version = registry.get_deployed_version("qa", environment=environment)
    return None if version is None else version.version


def test_13_unknown_version_is_not_an_unusable_store(three: SignatureRegistry, seen: Callable[..., Any]) -> None:
    """It has its own error, and the log stays as it is."""
    before = seen(three)
    with pytest.raises(UnknownVersion):
        three.deploy_version("qa", "v9")
    assert not issubclass(UnknownVersion, StoreUnavailable)
    assert seen(three) == before


def test_14_rollback_follows_the_log_not_the_clock(three: SignatureRegistry) -> None:
    """Deployed v3, v2, v1: back to v2, then to v3."""
    for name in ("v3", "v2", "v1"):
        three.deploy_version("qa", name)
    assert three.rollback("qa").version == "v2"
    assert three.rollback("qa").version == "v3"
    assert [entry.action for entry in three.deployment_log("qa")] == ["deploy"] * 3 + ["rollback"] * 2


def test_15_what_was_left_is_quarantined_and_never_comes_back(three: SignatureRegistry) -> None:
    """v3 is bad, then v2: back to v1, never forward; v3 again takes force and a reason."""
    for name in ("v1", "v2", "v3"):
        three.deploy_version("qa", name)
    assert three.rollback("qa", reason="wrong answers").version == "v2"
    assert three.get_version("qa", "v3").quarantined == "wrong answers"
    assert three.rollback("qa").version == "v1"
    with pytest.raises(NothingToRollBackTo):
        three.rollback("qa")
    with pytest.raises(Quarantined, match="wrong answers"):
        three.deploy_version("qa", "v3")
    with pytest.raises(Quarantined):
        three.deploy_version("qa", "v3", force=True)
    assert deployed(three) == "v1"
    three.deploy_version("qa", "v3", force=True, reason="the judge was wrong")
    assert deployed(three) == "v3"
    assert three.get_version("qa", "v3").quarantined is None
    entry = three.deployment_log("qa")[-1]
    assert (entry.forced, entry.reason) == (True, "the judge was wrong")


def test_quarantine_by_hand_keeps_a_version_from_deployment(three: SignatureRegistry) -> None:
    """And from being rolled back to; what runs goes on."""
    three.deploy_version("qa", "v1")
    three.deploy_version("qa", "v2")
    three.deploy_version("qa", "v3")
    assert three.quarantine("qa", "v2", reason="leaks").quarantined == "leaks"
    assert deployed(three) == "v3"
    assert three.rollback_target("qa") == "v1"
    assert three.rollback("qa").version == "v1"


def test_17_one_deployment_ever_is_nothing_to_go_back_to(
    three: SignatureRegistry, heard: Any, seen: Callable[..., Any]
) -> None:
    """An error and its terminal event, never a version that was not deployed before."""
    with pytest.raises(NothingToRollBackTo, match="not deployed"):
        three.rollback("qa")
    three.deploy_version("qa", "v2")
    before = seen(three)
    heard.clear()
    with pytest.raises(NothingToRollBackTo):
        three.rollback("qa")
    assert seen(three) == before
    assert heard.short() == ["rollback_start", "rollback_error"]


def test_18_two_operators_with_one_expectation(three: SignatureRegistry, open_registry: Open) -> None:
    """One wins, the other is told what is there; the log has one entry."""
    three.deploy_version("qa", "v1")
    other = open_registry()
    outcomes: list[Any] = []
    ready = threading.Barrier(2)

    def deploy(registry: SignatureRegistry, version: str) -> None:
        ready.wait()
        try:
            outcomes.append(registry.deploy_version("qa", version, expected_generation=1).version)
        except Conflict as error:
            outcomes.append(error)

    threads = [threading.Thread(target=deploy, args=pair) for pair in ((three, "v2"), (other, "v3"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (conflict,) = [one for one in outcomes if isinstance(one, Conflict)]
    (winner,) = [one for one in outcomes if isinstance(one, str)]
    assert (conflict.expected, conflict.current) == (1, 2)
    assert deployed(other) == winner
    assert [entry.version for entry in three.deployment_log("qa")] == ["v1", winner]


RACE = """
    import sys
    from dspy_observe.registry import Conflict, SignatureRegistry
    where, version = sys.argv[1:]
    registry = SignatureRegistry(where)
    registry.get_deployed_version("qa")
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        registry.deploy_version("qa", version, expected_generation=0)
    except Conflict as error:
        print("conflict", error.current)
    else:
        print("won")
"""


def test_18_two_processes_race(three: SignatureRegistry, location: str) -> None:
    """The same between processes, and for a first deployment."""
    import subprocess
    import sys
    import textwrap

    command = [sys.executable, "-c", textwrap.dedent(RACE), location]
    racers = [
        subprocess.Popen([*command, version], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for version in ("v1", "v2")
    ]
    try:
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        outputs = []
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("go\n")
            racer.stdin.flush()
        outputs = [racer.communicate(timeout=60)[0].strip() for racer in racers]
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()
    assert sorted(outputs) == ["conflict 1", "won"]
    assert len(three.deployment_log("qa")) == 1


def test_18_expected_version(three: SignatureRegistry) -> None:
    """What the caller saw may be named, too."""
    with pytest.raises(Conflict):
        three.deploy_version("qa", "v1", expected_version="v2")
    three.deploy_version("qa", "v1")
    with pytest.raises(Conflict) as caught:
        three.rollback("qa", expected_version="v2")
    assert (caught.value.expected, caught.value.current) == ("v2", "v1")
    assert three.deploy_version("qa", "v2", expected_version="v1").is_deployed


def test_19_environments_are_apart_and_promotion_copies_exactly(three: SignatureRegistry) -> None:
    """Staging leaves production alone; promotion brings the same hash and says where from."""
    three.deploy_version("qa", "v1")
    version = three.deploy_version("qa", "v2", environment="staging")
    assert (deployed(three), deployed(three, "staging")) == ("v1", "v2")
    assert version.deployed_in == ("staging",)
    assert not three.get_version("qa", "v2").is_deployed
    promoted = three.promote("qa", source="staging", reason="tested")
    assert promoted.version_hash == version.version_hash
    entry = three.deployment_log("qa", environment="production")[-1]
    assert (entry.action, entry.source, entry.version_hash) == ("promote", "staging", version.version_hash)
    assert len(three.deployment_log("qa", environment="staging")) == 1
    assert len(three.deployment_log("qa")) == 3
    with pytest.raises(UnknownVersion):
        three.promote("qa", source="nowhere")


def test_deploying_what_runs_changes_nothing(three: SignatureRegistry) -> None:
    """No entry, no new generation; a wrong expectation is a conflict all the same."""
    three.deploy_version("qa", "v1")
    three.deploy_version("qa", "v1")
    assert len(three.deployment_log("qa")) == 1
    with pytest.raises(Conflict):
        three.deploy_version("qa", "v1", expected_generation=7)


def test_28_each_start_has_one_end_after_the_commit(
    registry: SignatureRegistry, heard: Any, open_registry: Open
) -> None:
    """In order, of success and failure; what a listener sees is committed, as another process sees it."""
    other = open_registry()
    committed: list[Any] = []
    registry.subscribe("deploy_complete", lambda event: committed.append((event.version, deployed(other))))
    registry.register_version("qa", {"a": 1}, version="v1")
    registry.update_performance_score("qa", "v1", 0.9)
    registry.register_version("qa", {"a": 2}, version="v2")
    registry.deploy_version("qa", "v1")
    registry.deploy_version("qa", "v2")
    with pytest.raises(UnknownVersion):
        registry.deploy_version("qa", "v9")
    registry.rollback("qa")
    with pytest.raises(NothingToRollBackTo):
        registry.rollback("qa")
    with pytest.raises(ValueError, match="configuration"):
        registry.register_version("qa", {"x": object()})
    with pytest.raises(UnknownSignature):
        registry.rollback("nobody")
    assert heard.short() == [
        "register_start", "register_complete", "performance_update", "register_start", "register_complete",
        "deploy_start", "deploy_complete", "deploy_start", "deploy_complete", "deploy_start", "deploy_error",
        "rollback_start", "rollback_complete", "quarantine", "rollback_start", "rollback_error",
        "register_start", "register_error", "rollback_start", "rollback_error",
    ]  # fmt: skip
    assert committed == [("v1", "v1"), ("v2", "v2")]
    failed = heard[10]
    assert (failed.environment, failed.version, failed.data["error_type"]) == ("production", "v9", "UnknownVersion")
    done = heard[8]
    assert (done.data["previous"], done.data["generation"], done.data["trigger"]) == ("v1", 2, "manual")


def test_28_export_and_import_tell_one_event_each(three: SignatureRegistry, heard: Any, tmp_path: Any) -> None:
    """With the number of signatures; a dry run tells none."""
    three.export_registry(tmp_path / "export.yml")
    three.import_registry(tmp_path / "export.yml", dry_run=True)
    three.import_registry(tmp_path / "export.yml")
    assert [(event.name, event.data["signature_count"]) for event in heard] == [
        ("dspy.registry.export", 1), ("dspy.registry.import", 1),
    ]  # fmt: skip


def test_28_a_raising_listener_changes_nothing(three: SignatureRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deployment holds, the next listener hears it, and the failure is counted."""
    told: list[str] = []

    def broken(event: Any) -> None:
        raise RuntimeError("listener")

    three.subscribe("*", broken)
    three.subscribe("deploy_*", lambda event: told.append(event.name))
    before = safety.counts().get("registry.listener", 0)
    assert three.deploy_version("qa", "v1").is_deployed
    assert told == ["dspy.registry.deploy_start", "dspy.registry.deploy_complete"]
    assert safety.counts()["registry.listener"] == before + 2


def test_28_listener_may_use_the_registry(three: SignatureRegistry, heard: Any) -> None:
    """What it does is told after what it was told of, to everybody in the same order."""
    second: list[str] = []

    def follow(event: Any) -> None:
        if event.environment == "production":
            three.deploy_version("qa", event.version, environment="mirror")

    stop = three.subscribe("deploy_complete", follow)
    three.subscribe("deploy_complete", lambda event: second.append(event.environment))
    three.deploy_version("qa", "v1")
    assert second == ["production", "mirror"]
    assert [event.environment for event in heard if event.name.endswith("deploy_complete")] == second
    stop()
    stop()
    three.deploy_version("qa", "v2")
    assert deployed(three, "mirror") == "v1"


def test_events_of_many_threads_come_in_the_order_of_their_commits(three: SignatureRegistry, heard: Any) -> None:
    """A gauge that follows the events ends at what is deployed."""

    def deploy(number: int) -> None:
        for turn in range(5):
            three.deploy_version("qa", f"v{(number + turn) % 3 + 1}")

    threads = [threading.Thread(target=deploy, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    moves = [event for event in heard if event.name.endswith("deploy_complete") and event.data["changed"]]
    assert [event.data["generation"] for event in moves] == list(range(1, len(moves) + 1))
    assert moves[-1].version == deployed(three)


@pytest.mark.parametrize("pattern", ["nothing_like_it", "dspy.registry.", ""])
def test_subscribing_to_nothing_is_an_error(registry: SignatureRegistry, pattern: str) -> None:
    """A pattern that can never match is a spelling mistake."""
    with pytest.raises(ConfigurationError, match="subscribe"):
        registry.subscribe(pattern, print)
    with pytest.raises(ConfigurationError, match="callable"):
        registry.subscribe("*", None)  # type: ignore[arg-type]


def roll_back(standing: Standing) -> Ruling:
    """A judge that always wants to."""
    return Ruling("rollback", "the score fell", {"current_score": 0.1, "previous_score": 0.9, "performance_drop": 0.8})


def test_29_one_alert_moves_the_pointer_once(three: SignatureRegistry, open_registry: Open) -> None:
    """Five deliveries from two receivers at once, beside the monitor's own decision: one rollback for the alert."""
    for name in ("v1", "v2", "v3"):
        three.deploy_version("qa", name)

    def judge(standing: Standing) -> Ruling:
        if standing.seen is not None:
            return Ruling("duplicate", "seen before")
        if standing.pointer is None or standing.pointer.version != "v3":
            return Ruling("stale", "v3 does not run any more")
        return roll_back(standing)

    decisions: list[Any] = []
    registries = [three, open_registry()]

    def deliver(registry: SignatureRegistry, alert: bool) -> None:
        if alert:
            made = registry.decide(
                "qa", judge, trigger="alert", fingerprint="f1", starts_at="2024-01-15T14:00:00Z", version="v3"
            )
        else:
            made = registry.decide("qa", judge, trigger="monitor", version="v3")
        decisions.append(made)

    threads = [threading.Thread(target=deliver, args=(registries[n % 2], n != 5)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outcomes = sorted(one.outcome for one in decisions)
    assert outcomes.count("rollback") == 1
    assert set(outcomes) <= {"rollback", "duplicate", "stale"}
    assert deployed(three) == "v2"
    assert len(three.deployment_log("qa")) == 4
    stored = three.decisions("qa")
    assert sorted(one.outcome for one in stored) == outcomes
    (applied,) = [one for one in stored if one]
    assert (applied.version, applied.target, applied.generation) == ("v3", "v2", 4)
    assert three.deployment_log("qa")[-1].decision_id == applied.decision_id


def test_29_the_store_itself_refuses_a_second_answer_to_an_alert(three: SignatureRegistry, store: Any) -> None:
    """Even a judge that looks at nothing, and a writer that asks nobody."""
    for name in ("v1", "v2", "v3"):
        three.deploy_version("qa", name)
    alert = {"trigger": "alert", "fingerprint": "f1", "starts_at": "t0"}
    assert three.decide("qa", roll_back, **alert).outcome == "rollback"
    assert three.decide("qa", roll_back, **alert).outcome == "duplicate"
    assert three.decide("qa", roll_back, **{**alert, "starts_at": "t1"}).outcome == "rollback"
    assert deployed(three) == "v1"
    first = three.decisions("qa")[0]
    with pytest.raises(Conflict), store.write("qa") as txn:
        txn.add_decision(first)
    assert len(three.decisions("qa")) == 3


def test_29_held_alert_may_be_answered_later(three: SignatureRegistry) -> None:
    """Only a move uses an alert up."""
    three.deploy_version("qa", "v1")
    three.deploy_version("qa", "v2")
    alert = {"trigger": "alert", "fingerprint": "f1", "starts_at": "t0"}
    assert three.decide("qa", lambda _: Ruling("held", "cool-down"), **alert).outcome == "held"
    assert three.decide("qa", roll_back, **alert).outcome == "rollback"


def test_30_stale_and_resolved_move_nothing_and_are_kept(three: SignatureRegistry, seen: Callable[..., Any]) -> None:
    """With their inputs and reasons."""
    three.deploy_version("qa", "v1")
    before = seen(three)[:-1]
    for outcome in ("stale", "ignored", "held", "rejected"):
        ruling = Ruling(outcome, f"because {outcome}", {"alert": {"status": "resolved"}})
        assert not three.decide("qa", lambda _, ruling=ruling: ruling, trigger="alert", version="v0")
    assert seen(three)[:-1] == before
    assert [(one.outcome, one.version, one.generation) for one in three.decisions("qa")] == [
        ("stale", "v0", 1), ("ignored", "v0", 1), ("held", "v0", 1), ("rejected", "v0", 1),
    ]  # fmt: skip
    assert three.decisions("qa", limit=1)[0].inputs == {"alert": {"status": "resolved"}}


def test_decision_without_a_target_is_rejected(three: SignatureRegistry, heard: Any) -> None:
    """A judge that overlooks it does not break anything."""
    three.deploy_version("qa", "v1")
    heard.clear()
    made = three.decide("qa", roll_back, trigger="monitor")
    assert made.outcome == "rejected"
    assert "no other version" in made.reason
    assert heard.short() == ["decision"]


def test_automatic_rollback_is_told_only_when_it_happened(three: SignatureRegistry, heard: Any) -> None:
    """In one order with the rollback's own events and the decision."""
    three.deploy_version("qa", "v1")
    three.deploy_version("qa", "v2")
    heard.clear()
    made = three.decide("qa", roll_back, trigger="alert", fingerprint="f", starts_at="t")
    assert heard.short() == ["rollback_start", "rollback_complete", "quarantine", "automatic_rollback", "decision"]
    assert heard[1].data["trigger"] == "alert"
    assert heard[3].data["performance_drop"] == 0.8
    assert heard[4].data["decision_id"] == made.decision_id


def test_judge_that_raises_changes_nothing(three: SignatureRegistry, seen: Callable[..., Any]) -> None:
    """Its error reaches the caller."""
    three.deploy_version("qa", "v1")
    before = seen(three)

    def judge(standing: Standing) -> Ruling:
        raise RuntimeError("judge")

    with pytest.raises(RuntimeError, match="judge"):
        three.decide("qa", judge, trigger="alert")
    with pytest.raises(ConfigurationError, match="judge"):
        three.decide("qa", lambda _: Ruling("maybe", ""), trigger="alert")
    assert seen(three) == before


def test_44_other_processes_see_a_deployment_at_their_next_look(
    three: SignatureRegistry, open_registry: Open, run_python: Callable[..., str], location: str
) -> None:
    """Nothing has to be notified: the pointer with its generation is read from the store each time."""
    watcher = open_registry()
    assert watcher.pointer("qa") is None
    code = """
        import sys
        from dspy_observe.registry import SignatureRegistry
        SignatureRegistry(sys.argv[1]).deploy_version("qa", "v2")
    """
    run_python(code, location)
    pointer = watcher.pointer("qa")
    assert pointer is not None
    assert (pointer.version, pointer.generation) == ("v2", 1)
    assert deployed(watcher) == "v2"


def test_45_protected_environment_needs_somebody_elses_approval(
    open_registry: Open, fill: Callable[..., None], clock: Any
) -> None:
    """Of exactly this content, resting on its own scores; the deployment records who and what."""
    registry = open_registry(protected_environments=("production",))
    registry.register_version("qa", {"a": 1}, version="v1", author="alice")
    registry.register_version("qa", {"a": 2}, version="v2", author="alice")
    first, second = (registry.get_version("qa", name).version_hash for name in ("v1", "v2"))
    registry.deploy_version("qa", "v1", environment="staging")
    with pytest.raises(ApprovalMissing, match="protected"):
        registry.deploy_version("qa", "v1")
    registry.update_performance_score("qa", "v1", 0.9, score_id="s1")
    registry.update_performance_score("qa", "v2", 0.9, score_id="s2")
    ask = {"environment": "production", "version_hash": first, "evidence": ["s1"]}
    with pytest.raises(ApprovalMissing, match="somebody else"):
        registry.approve("qa", "v1", by="alice", **ask)
    with pytest.raises(ApprovalMissing, match="scores"):
        registry.approve("qa", "v1", by="bob", **{**ask, "evidence": ["s2"]})
    with pytest.raises(ApprovalMissing, match="scores"):
        registry.approve("qa", "v1", by="bob", **{**ask, "evidence": []})
    with pytest.raises(Conflict):
        registry.approve("qa", "v1", by="bob", **{**ask, "version_hash": second})
    registry.approve("qa", "v1", by="bob", reason="reviewed", **ask)
    with pytest.raises(ApprovalMissing):
        registry.deploy_version("qa", "v2")
    registry.deploy_version("qa", "v1")
    entry = registry.deployment_log("qa", environment="production")[-1]
    assert (entry.approver, entry.evidence, entry.forced) == ("bob", ("s1",), False)
    registry.deploy_version("qa", "v2", force=True, reason="outage")
    assert registry.deployment_log("qa")[-1].forced
    assert registry.rollback("qa").version == "v1"


def test_45_approval_that_names_no_evidence_does_not_count(tmp_path: Any) -> None:
    """A database may hold one that came with an import of an earlier release."""
    place = f"sqlite:///{tmp_path / 'registry.db'}"
    with SignatureRegistry(RegistryConfig(registry_path=place, protected_environments=("production",))) as registry:
        digits = registry.register_version("qa", {"a": 1}, version="v1", author="alice").version_hash
        with closing(open_store(place)) as store, store.write("qa") as txn:
            txn.set_mark(Mark("approval", f"production/{digits}", "v1", digits, registry.now(), "bob"))
        with pytest.raises(ApprovalMissing):
            registry.deploy_version("qa", "v1")
        assert registry.deploy_version("qa", "v1", force=True, reason="outage").version == "v1"


def test_45_evidence_older_than_the_version_does_not_count(open_registry: Open, clock: Any) -> None:
    """A score from before the version was made is about something else."""
    registry = open_registry(protected_environments=("production",))
    version = registry.register_version("qa", {"a": 1}, version="v1", author="alice")
    clock.forward(-10)
    registry.update_performance_score("qa", "v1", 0.9, score_id="s1")
    with pytest.raises(ApprovalMissing, match="older"):
        registry.approve(
            "qa", "v1", by="bob", environment="production", version_hash=version.version_hash, evidence=["s1"]
        )


def test_backups_bring_removed_versions_back(open_registry: Open, fill: Callable[..., None], clock: Any) -> None:
    """Each deployment keeps what it replaced; restoring adds it and moves nothing."""
    registry = open_registry(max_versions_per_signature=2)
    fill(registry, "v1", "v2")
    registry.update_performance_score("qa", "v1", 0.5, score_id="s1")
    registry.deploy_version("qa", "v1")
    registry.deploy_version("qa", "v2")
    registry.quarantine("qa", "v1", reason="bad")
    fill(registry, "v3")
    assert [one.version for one in registry.list_versions("qa")] == ["v2", "v3"]
    (label,) = registry.backups("qa")
    assert label.startswith("v1_20240115_143022")
    assert registry.restore_backup("qa", label).added == ("qa/v1",)
    assert registry.get_version("qa", "v1").performance_score == 0.5
    assert registry.get_version("qa", "v1").quarantined == "bad"
    assert deployed(registry) == "v2"
    with pytest.raises(UnknownVersion):
        registry.restore_backup("qa", "../../registry")


def test_no_backups_when_they_are_off(open_registry: Open, fill: Callable[..., None]) -> None:
    """The option does what it says."""
    registry = open_registry(backup_on_deploy=False)
    fill(registry, "v1", "v2")
    registry.deploy_version("qa", "v1")
    registry.deploy_version("qa", "v2")
    assert registry.backups("qa") == []


def test_times_of_the_log_are_those_of_the_clock(three: SignatureRegistry, clock: Any) -> None:
    """In UTC, with their order."""
    three.deploy_version("qa", "v1")
    clock.forward(90)
    three.deploy_version("qa", "v2")
    first, second = three.deployment_log("qa")
    assert second.at - first.at == timedelta(seconds=90)
    assert first.at.isoformat() == "2024-01-15T14:30:22+00:00"
