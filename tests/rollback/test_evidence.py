"""The document of evidence by itself: what it forgets, what it refuses, who gets to ask."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from dspy_observe.rollback.statistics import SEEN_IDS, Baseline, Evidence, Observation, Scene
from dspy_observe.rollback.statistics.evidence import MOST_PAIRS, MOST_VERSIONS
from dspy_observe.rollback.statistics.seen import SeenIds

SCENE = Scene(1_000.0, "d" * 64, baseline=lambda _version, _metric: Baseline(0.9, 2000, 0.3))


def scored(digits: str, score: float, at: float = 990.0, role: str = "stable", **fields: Any) -> Observation:
    """One score."""
    return Observation(digits, f"v{digits[:3]}", role, "score", score, at, **fields)


def bad(scene: Scene = SCENE) -> Evidence:
    """Evidence that the deployed version regressed."""
    evidence = Evidence()
    evidence.fold([scored("d" * 64, 0.0)] * 30, scene)
    assert evidence.verdict("d" * 64, scene).verdict == "regressed"
    return evidence


def test_the_document_stays_small() -> None:
    """However many versions, pairs and ids it sees, the latest stay, what runs among them, and its size is bounded."""
    evidence = Evidence()
    evidence.fold([scored("d" * 64, 1.0, at=0.0)], SCENE)
    for number in range(60):
        digits = f"{number:064x}"
        evidence.fold(
            [
                scored(digits, 1.0, at=number, role="canary", score_id=f"{number}-{place}")
                for place in range(400)
            ],
            SCENE,
        )  # fmt: skip
    state = evidence.to_dict()
    assert len(state["versions"]) == MOST_VERSIONS
    assert len(state["pairs"]) == MOST_PAIRS
    assert "d" * 64 in state["versions"]
    assert f"{59:064x}" in state["versions"]
    assert len(json.dumps(state)) < 80_000 + MOST_VERSIONS * 3_000 + MOST_PAIRS * 3_000


def test_ids_are_forgotten_in_the_order_of_their_coming() -> None:
    """Of more ids than are remembered, the oldest counts again, the latest does not."""
    seen = SeenIds()
    assert all(seen.first_time(f"id{number}") for number in range(SEEN_IDS + 1))
    assert not seen.first_time(f"id{SEEN_IDS}")
    assert not seen.first_time("id1")
    assert seen.first_time("id0")


@pytest.mark.parametrize(
    "state",
    [{"format": 2}, {"format": 1}, {"format": 1, "versions": [], "pairs": [], "outage": None, "seen": ""},
     {"format": 1, "versions": {}, "pairs": [], "outage": None, "seen": "x"},
     {"format": 1, "versions": {"a": {}}, "pairs": [], "outage": None, "seen": ""}],
)  # fmt: skip
def test_a_state_that_is_none_is_refused(state: dict[str, Any]) -> None:
    """A newer format, or a damaged document, is an error and not an empty beginning."""
    with pytest.raises(ValueError, match=r"format|damaged|[Ii]ncorrect padding|Invalid"):
        Evidence(state)


def test_only_one_monitor_gets_to_ask_and_waits_longer_each_time() -> None:
    """The question is given out once, then after a minute, then after two, and survives being written down."""
    evidence = bad()
    assert evidence.ask("d" * 64, 1_000.0, 60.0)
    evidence = Evidence(json.loads(json.dumps(evidence.to_dict())))
    assert evidence.ask("d" * 64, 1_059.0, 60.0) is None
    assert evidence.ask("d" * 64, 1_060.0, 60.0)
    assert evidence.ask("d" * 64, 1_179.0, 60.0) is None
    assert evidence.ask("d" * 64, 1_180.0, 60.0)
    for number in range(1, 20):
        assert evidence.ask("d" * 64, 10_000.0 * number, 60.0), "an hour is the longest wait"
    assert evidence.ask("e" * 64, 2e9, 60.0) is None, "a version that did not regress"


def test_an_outage_is_told_once() -> None:
    """Whoever folds first tells, nobody else, also after a restart."""
    scene = replace(SCENE, witnesses=lambda: [True, True])
    evidence = Evidence()
    evidence.fold([scored("d" * 64, 0.0)] * 30, scene)
    assert evidence.verdict("d" * 64, scene).verdict == "global_cause"
    assert evidence.is_dropping(1_000.0)
    assert "programs" in (evidence.tell_outage() or "")
    assert Evidence(evidence.to_dict()).tell_outage() is None


def test_witnesses_that_do_not_all_fall_leave_the_blame() -> None:
    """One other program that is sound is enough."""
    scene = replace(SCENE, witnesses=lambda: [True, False])
    evidence = Evidence()
    evidence.fold([scored("d" * 64, 0.0)] * 30, scene)
    assert evidence.verdict("d" * 64, scene).verdict == "regressed"


def test_scores_of_an_outage_are_nobodys_baseline() -> None:
    """The mean that a successor is compared with leaves them out."""
    scene = replace(SCENE, witnesses=lambda: [True])
    evidence = Evidence()
    evidence.fold([scored("d" * 64, 1.0)] * 200, scene)
    evidence.fold([scored("d" * 64, 0.0)] * 300, scene)
    found = evidence.summary("d" * 64, "score")
    assert found is not None
    assert found.mean == 1.0
    assert evidence.summary("e" * 64, "score") is None


def test_an_arm_that_fell_silent_is_no_comparison() -> None:
    """When the control arm was not scored for an hour, the baseline decides again."""
    evidence = Evidence()
    both = [scored("c" * 64, 1.0, role="control"), scored("d" * 64, 1.0)] * 60
    evidence.fold(both, SCENE)
    assert "beside" in evidence.verdict("d" * 64, SCENE).reason
    later = replace(SCENE, now=1_000.0 + 7_200)
    evidence.fold([scored("d" * 64, 0.0, at=later.now)] * 40, later)
    assert evidence.verdict("d" * 64, later).verdict == "regressed"


def test_a_better_canary_is_no_regression_of_what_runs() -> None:
    """Beside a canary that is better, the deployed version at its baseline stays as it is."""
    evidence = Evidence()
    sound = [scored("d" * 64, float(place % 10 > 0)) for place in range(600)]
    better = [scored("c" * 64, 1.0, role="canary")] * 600
    evidence.fold([one for pair in zip(sound, better, strict=True) for one in pair], SCENE)
    assert evidence.verdict("d" * 64, SCENE).verdict == "ok"
    assert evidence.verdict("c" * 64, SCENE).verdict == "ok"


def test_a_deployed_version_worse_than_its_baseline_and_its_canary_is_found() -> None:
    """Where only the deployed version falls, the canary beside it is no excuse."""
    evidence = Evidence()
    fallen = [scored("d" * 64, float(place % 2)) for place in range(600)]
    sound = [scored("c" * 64, float(place % 10 > 0), role="canary") for place in range(600)]
    evidence.fold([one for pair in zip(fallen, sound, strict=True) for one in pair], SCENE)
    assert evidence.verdict("d" * 64, SCENE).verdict == "regressed"
    assert evidence.verdict("c" * 64, SCENE).verdict == "ok"


def test_suspicion_comes_before_the_verdict() -> None:
    """A tenth of the evidence makes a version suspect, and it passes when the scores recover."""
    evidence = Evidence()
    evidence.fold([scored("d" * 64, float(place % 10 > 0)) for place in range(100)], SCENE)
    words = []
    for _ in range(12):
        evidence.fold([scored("d" * 64, 0.0)], SCENE)
        words.append(evidence.verdict("d" * 64, SCENE).verdict)
    assert words[0] == "ok"
    assert words[-1] == "regressed"
    assert "suspect" in words


def test_a_verdict_is_plain_data() -> None:
    """With everything that was weighed."""
    found = json.loads(json.dumps(bad().verdict("d" * 64, SCENE).to_dict()))
    assert found["verdict"] == "regressed"
    assert found["n"] == 30
    assert found["baseline"]["mean"] == 0.9
    assert set(found["log10_evidence"]) == {"e_process", "shiryaev_roberts"}
    assert found["since"] == 1_000.0
