"""A rollout's state in the registry, on every store."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from dspy_observe import ConfigurationError
from dspy_observe.records import RegistryEvent
from dspy_observe.registry import ApprovalMissing, Conflict, Quarantined, SignatureRegistry, UnknownVersion
from dspy_observe.registry.rollouts import merged
from tests.serving.conftest import Open


@pytest.fixture
def shelf(location: str, open_registry: Open) -> SignatureRegistry:
    """A registry with v1 deployed, and v2 and v3 beside it."""
    made = open_registry(location)
    for name in ("v1", "v2", "v3"):
        made.register_version("bot", {"instruction": name}, version=name)
    made.deploy_version("bot", "v1")
    return made


def test_steps_lead_to_a_deployment(shelf: SignatureRegistry) -> None:
    """Each step is one commit with one event; the last one deploys the candidate in the same commit."""
    heard: list[RegistryEvent] = []
    shelf.subscribe("*", heard.append)
    assert shelf.rollout("bot") is None
    made = shelf.start_rollout("bot", "v2", reason="better on dev", control=0.1)
    assert (made.state, made.step, made.share, made.base, made.control) == ("running", 0, 500, "v1", 1000)
    shares = [made.share]
    while made.running:
        made = shelf.advance_rollout("bot", expected_generation=made.generation, reason="ok", trigger="auto")
        shares.append(made.share)
    assert shares == [500, 2500, 5000, 0]
    assert made.state == "promoted"
    assert shelf.rollout("bot") == made
    running = shelf.get_deployed_version("bot")
    assert running is not None
    assert running.version == "v2"
    assert [line.split(" ", 1)[1] for line in made.history] == [
        "started: better on dev", "step 1: ok", "step 2: ok", "step 3, deployed: ok"
    ]  # fmt: skip
    told = [event.name.rpartition(".")[2] for event in heard]
    assert told == ["rollout"] * 3 + ["deploy_start", "deploy_complete", "auto_deployment", "rollout"]
    assert shelf.deployment_log("bot")[-1].trigger == "auto"
    with pytest.raises(Conflict, match="no rollout runs"):
        shelf.advance_rollout("bot")


def test_a_step_is_taken_once(shelf: SignatureRegistry, open_registry: Open, location: str) -> None:
    """Of eight that find the same step due, one takes it; the others are told that it was taken."""
    made = shelf.start_rollout("bot", "v2")
    conflicts: list[Conflict] = []

    def take() -> None:
        try:
            open_registry(location).advance_rollout("bot", expected_generation=made.generation)
        except Conflict as error:
            conflicts.append(error)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = shelf.rollout("bot")
    assert after is not None
    assert (after.step, after.generation, len(conflicts)) == (1, made.generation + 1, 7)


def test_what_regressed_falls_to_nothing_and_is_quarantined(shelf: SignatureRegistry) -> None:
    """In one commit; the pointer stays where it is, and the candidate does not come again without being wanted."""
    shelf.start_rollout("bot", "v2")
    stopped = shelf.stop_rollout("bot", regressed=True, reason="errors doubled")
    assert (stopped.state, stopped.share) == ("regressed", 0)
    assert shelf.get_version("bot", "v2").quarantined == "errors doubled"
    running = shelf.get_deployed_version("bot")
    assert running is not None
    assert running.version == "v1"
    with pytest.raises(Quarantined):
        shelf.start_rollout("bot", "v2")
    assert shelf.start_rollout("bot", "v3").generation == stopped.generation + 1


def test_a_candidate_that_was_quarantined_elsewhere_takes_no_step(shelf: SignatureRegistry) -> None:
    """Neither a step nor the deployment."""
    shelf.start_rollout("bot", "v2")
    shelf.quarantine("bot", "v2", reason="bad")
    with pytest.raises(Quarantined):
        shelf.advance_rollout("bot")
    assert shelf.stop_rollout("bot", regressed=True).state == "regressed"
    assert shelf.get_version("bot", "v2").quarantined == "bad"


def test_a_protected_environment_wants_its_approval(shelf: SignatureRegistry, open_registry: Open) -> None:
    """The last step is not taken without it; the rollout stays where it is."""
    guarded = open_registry(_place(shelf), protected_environments=("production",))
    guarded.start_rollout("bot", "v2", steps=(0.5, 1))
    with pytest.raises(ApprovalMissing):
        guarded.advance_rollout("bot")
    there = guarded.rollout("bot")
    assert there is not None
    assert (there.state, there.step) == ("running", 0)


def _place(registry: SignatureRegistry) -> str:
    return str(registry.config.registry_path)


def test_one_rollout_at_a_time(shelf: SignatureRegistry) -> None:
    """A second one has to wait; the same experiment again is the one that is there."""
    made = shelf.start_rollout("bot", "v2", experiment="autumn")
    assert shelf.start_rollout("bot", "v2", experiment="autumn") == made
    with pytest.raises(Conflict, match="a rollout of v2 runs"):
        shelf.start_rollout("bot", "v3")
    shelf.stop_rollout("bot")
    with pytest.raises(Conflict, match="what production runs"):
        shelf.start_rollout("bot", "v1")
    with pytest.raises(UnknownVersion, match="deployed in staging"):
        shelf.start_rollout("bot", "v2", environment="staging")


def test_counts_of_all_processes_add_up_and_go_with_their_step(shelf: SignatureRegistry) -> None:
    """Keys that two processes saw count once; what was counted in another step counts nothing."""
    made = shelf.start_rollout("bot", "v2")
    count: Callable[..., Any] = shelf.count_rollout
    count("bot", generation=made.generation, calls={"canary": 3}, sampled={"canary": "0000000a0000000b"})
    after = count(
        "bot", generation=made.generation, calls={"canary": 2, "stable": 7},
        sampled={"canary": "0000000b", "stable": "00000001"},
    )  # fmt: skip
    assert after.calls == {"canary": 5, "stable": 7}
    assert after.sampled == {"canary": "0000000a0000000b", "stable": "00000001"}
    assert shelf.rollout("bot") == after
    assert after.generation == made.generation
    moved = shelf.advance_rollout("bot")
    assert moved.calls == {}
    assert count("bot", generation=made.generation, calls={"canary": 9}, sampled={}) == moved == shelf.rollout("bot")


def test_the_sample_is_bounded() -> None:
    """The smallest two thousand of all keys stay."""
    many = "".join(f"{number:08x}" for number in range(3_000))
    kept = merged({"stable": many}, {"canary": "00000000" + "ffffffff"})
    assert sum(len(text) for text in kept.values()) == 8 * 2_000
    assert kept["canary"] == "00000000"


def test_a_rollback_of_what_is_deployed_begins_the_step_anew(shelf: SignatureRegistry) -> None:
    """The candidate keeps its share, and is compared with what is deployed now."""
    shelf.deploy_version("bot", "v3")
    made = shelf.start_rollout("bot", "v2", steps=(0.5, 1))
    shelf.rollback("bot")
    with pytest.raises(Conflict, match="production runs v1, not v3"):
        shelf.advance_rollout("bot")
    again = shelf.rebase_rollout("bot", expected_generation=made.generation)
    assert (again.base, again.step, again.share) == ("v1", 0, 5000)
    shelf.deploy_version("bot", "v2")
    done = shelf.rebase_rollout("bot", expected_generation=again.generation)
    assert (done.state, done.share) == ("promoted", 0)


def test_versions_of_a_rollout_are_kept(shelf: SignatureRegistry) -> None:
    """Scenario 20: cleaning up spares the candidate."""
    shelf.start_rollout("bot", "v2")
    assert shelf.remove_versions("bot", keep=1) == ("v3",)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"steps": ()}, "steps"),
        ({"steps": (0.5,)}, "steps"),
        ({"steps": (0.5, 0.5, 1)}, "steps"),
        ({"steps": (0, 1)}, "steps"),
        ({"steps": (5, 100)}, "steps"),
        ({"control": 1.5}, "control"),
        ({"min_samples": -1}, "min_samples"),
        ({"min_step_s": float("nan")}, "min_step_s"),
    ],
)
def test_steps_that_cannot_work_are_refused(shelf: SignatureRegistry, options: dict[str, Any], field: str) -> None:
    """Before anything is written."""
    with pytest.raises(ConfigurationError) as caught:
        shelf.start_rollout("bot", "v2", **options)
    assert caught.value.field == field
    assert shelf.rollout("bot") is None
