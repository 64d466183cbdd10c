"""A monitor that watches scores, shares its evidence through the registry, and asks for rollbacks; on every store."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
from prometheus_client import CollectorRegistry

import dspy_observe
from dspy_observe import Metrics, safety
from dspy_observe.errors import ConfigurationError
from dspy_observe.records import Score
from dspy_observe.registry import SignatureRegistry
from dspy_observe.rollback.deciding import approve
from dspy_observe.rollback.monitor import Monitor, MonitorOptions
from dspy_observe.rollback.policy import Limits
from dspy_observe.rollback.statistics import MetricBounds
from dspy_observe.testing import offline_lm

Watch = Callable[..., Monitor]
Give = Callable[..., list[Score]]
Series = Callable[[str], dict[tuple[str, ...], float]]


def feed(monitor: Monitor, scores: list[Score]) -> None:
    """Hand scores to a monitor and fold them."""
    for score in scores:
        monitor.scored(score)
    assert monitor.flush()


def decided(registry: SignatureRegistry, name: str = "qa") -> list[tuple[str, str, str | None]]:
    """Outcome, trigger and version of every decision."""
    return [(one.outcome, one.trigger, one.version) for one in registry.decisions(name)]


def running(registry: SignatureRegistry, name: str = "qa") -> str:
    """What is deployed."""
    pointer = registry.pointer(name)
    assert pointer is not None
    return pointer.version


def test_a_version_that_got_worse_is_rolled_back_once(
    registry: SignatureRegistry, watch: Watch, give: Give, series: Series
) -> None:
    """Scores of 0.6 where 0.9 was: the previous version runs again, by one decision with its reason and numbers."""
    monitor = watch(registry)
    feed(monitor, give("v2", 0.9, 100))
    assert monitor.verdict("qa", "v2") == "ok"
    assert running(registry) == "v2"
    feed(monitor, give("v2", 0.6, 200))
    assert monitor.verdict("qa", "v2") == "regressed"
    assert running(registry) == "v1"
    feed(monitor, give("v2", 0.6, 50))
    (decision,) = registry.decisions("qa")
    assert (decision.outcome, decision.trigger, decision.version, decision.target) == (
        "rollback", "monitor", "v2", "v1",
    )  # fmt: skip
    assert "0.9000" in decision.reason
    assert decision.inputs["previous_score"] == 0.9
    assert decision.inputs["performance_drop"] > 0.1
    assert series("dspy_quality_verdict_info") == {("qa", "v2", "regressed"): 1}
    evidence = series("dspy_quality_evidence")
    assert max(evidence["qa", "v2", "e_process"], evidence["qa", "v2", "shiryaev_roberts"]) > math.log10(200)


def test_the_thread_folds_by_itself(registry: SignatureRegistry, give: Give) -> None:
    """Nobody calls flush: a moment later the evidence is in the registry; closing ends the thread."""
    with Monitor(registry, "qa", options=MonitorOptions(flush_s=0.02)) as monitor:
        for score in give("v2", 0.9, 60):
            monitor.scored(score)
        deadline = time.monotonic() + 30
        while not registry.evidence("qa") and time.monotonic() < deadline:
            time.sleep(0.02)
        assert registry.evidence("qa")
        thread = monitor._thread
    assert thread is not None
    assert not thread.is_alive()
    assert monitor.verdict("qa", "v2") == "ok"


def test_s37_late_scores_are_booked_on_the_version_that_answered(
    registry: SignatureRegistry, watch: Watch, give: Give
) -> None:
    """Scenario 37: scores for v3 that come after v2 was put back count for v3; v2's evidence is unchanged."""
    registry.register_version("qa", {"instruction": "Answer as v3."}, version="v3")
    registry.deploy_version("qa", "v3")
    monitor = watch(registry)
    feed(monitor, give("v2", 0.9, 300) + give("v3", 0.9, 100))
    registry.rollback("qa", reason="by hand")
    assert running(registry) == "v2"
    before = monitor.evidence("qa", "v2")
    late = give("v3", 0.1, 100, at=monitor._clock() - 6 * 3600)
    feed(monitor, late)
    assert monitor.evidence("qa", "v2") == before
    assert monitor.evidence("qa", "v3").n == 200
    assert monitor.verdict("qa", "v3") == "regressed"
    assert running(registry) == "v2"
    assert decided(registry) == []


def test_s37_the_same_score_id_counts_once_across_monitors(
    registry: SignatureRegistry, watch: Watch, give: Give, open_at: Callable[[str], SignatureRegistry], location: str
) -> None:
    """Scenario 37: a score that is sent again, also to another worker, changes nothing."""
    scores = [Score(one.call_id, one.value, "user", "qa", "v2", "stable", f"id{place}", one.at)
              for place, one in enumerate(give("v2", 0.9, 80))]  # fmt: skip
    first, second = watch(registry), watch(open_at(location))
    feed(first, scores)
    state = registry.evidence("qa")
    feed(first, scores)
    feed(second, scores)
    assert registry.evidence("qa") == state
    assert first.evidence("qa", "v2").n == 80


def test_s38_restarted_moved_and_doubled_monitors_see_one_sequence(
    registry: SignatureRegistry, watch: Watch, give: Give, open_at: Callable[[str], SignatureRegistry], location: str,
    tmp_path: Path, two_versions: Callable[..., SignatureRegistry], clock: Any,
) -> None:  # fmt: skip
    """Scenario 38: monitors that take turns leave the evidence of one that ran through, and one decision."""
    scores = give("v2", 0.9, 150) + give("v2", 0.55, 250)
    alone = two_versions(open_at(f"sqlite:///{tmp_path / 'alone.db'}"))
    feed(watch(alone), scores)
    monitors = [watch(registry), watch(open_at(location))]
    for start in range(0, len(scores), 40):
        if start % 120 == 0:
            monitors[0].close()
            monitors[0] = watch(open_at(location))  # restarted
        feed(monitors[start // 40 % 2], scores[start : start + 40])
    mine, whole = registry.evidence("qa"), alone.evidence("qa")
    assert mine is not None
    assert whole is not None
    digits = registry.get_version("qa", "v2").version_hash
    assert mine["versions"][digits]["streams"] == whole["versions"][digits]["streams"]
    assert decided(registry) == decided(alone) == [("rollback", "monitor", "v2")]
    assert running(registry) == running(alone) == "v1"


def test_s38_two_monitors_at_once_make_one_decision(
    registry: SignatureRegistry, watch: Watch, give: Give, open_at: Callable[[str], SignatureRegistry], location: str
) -> None:
    """Scenario 38: two monitors that fold at the same time lose nothing and roll back once."""
    monitors = [watch(open_at(location)) for _ in range(2)]
    scores = [give("v2", 0.5, 200, source=f"s{number}") for number in range(2)]

    def feed_all(mine: Monitor, given: list[Score]) -> None:
        for start in range(0, 200, 20):
            feed(mine, given[start : start + 20])

    threads = [threading.Thread(target=feed_all, args=pair) for pair in zip(monitors, scores, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    state = registry.evidence("qa")
    assert state is not None
    digits = registry.get_version("qa", "v2").version_hash
    stream = state["versions"][digits]["streams"]["score"]
    assert stream["older"]["n"] + sum(block["n"] for block in stream["blocks"]) == 400
    assert stream["arm"]["n"] == 400
    assert decided(registry) == [("rollback", "monitor", "v2")]


@pytest.mark.parametrize("location", ["sqlite"], indirect=True)
def test_s38_monitors_in_other_processes(registry: SignatureRegistry, location: str) -> None:
    """Scenario 38: the same in processes of their own, each with its own scores."""
    code = """
        import sys
        from dspy_observe.records import Score
        from dspy_observe.registry import SignatureRegistry
        from dspy_observe.rollback.monitor import Monitor

        with SignatureRegistry(sys.argv[1]) as registry, Monitor(registry, "qa") as monitor:
            for number in range(150):
                score_id = f"{sys.argv[2]}{number}"
                monitor.scored(Score("c", float(number % 2), "user", "qa", "v2", "stable", score_id, 1.8e9))
                if number % 25 == 0:
                    monitor.flush()
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), location, name], stderr=subprocess.PIPE, text=True
        )
        for name in ("a", "b", "a")  # the third sends the first one's scores again
    ]
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    monitor = Monitor(registry, "qa")
    assert monitor.evidence("qa", "v2").n == 300
    assert decided(registry) == [("rollback", "monitor", "v2")]


def test_what_is_held_is_asked_again_later(registry: SignatureRegistry, watch: Watch, give: Give, clock: Any) -> None:
    """Within the cool-down the decision is held; an hour later, without a new score, it is made; never more often."""
    registry.register_version("qa", {"instruction": "Answer as v3."}, version="v3")
    monitor = watch(registry)
    feed(monitor, give("v2", 0.3, 100))
    assert decided(registry) == [("rollback", "monitor", "v2")]
    clock.forward(10)
    registry.update_performance_score("qa", "v3", 0.9, dataset="dev", n=2000, stdev=0.3)
    registry.deploy_version("qa", "v3")
    for _ in range(3):
        feed(monitor, give("v3", 0.3, 100))
    assert [one[0] for one in decided(registry)] == ["rollback", "held"]
    assert running(registry) == "v3"
    clock.forward(3601)
    monitor.flush()
    assert [one[0] for one in decided(registry)] == ["rollback", "held", "rollback"]
    assert running(registry) == "v1"


def test_redeploying_a_regressed_version_begins_anew(
    registry: SignatureRegistry, watch: Watch, give: Give, clock: Any
) -> None:
    """Who deploys it again by force knows better: its old evidence does not roll it back, new evidence does."""
    monitor = watch(registry)
    feed(monitor, give("v2", 0.5, 100))
    assert running(registry) == "v1"
    clock.forward(7200)
    registry.deploy_version("qa", "v2", force=True, reason="the judge was broken")
    feed(monitor, give("v2", 0.9, 100))
    assert monitor.verdict("qa", "v2") == "ok"
    assert running(registry) == "v2"
    clock.forward(7200)
    feed(monitor, give("v2", 0.5, 100))
    assert running(registry) == "v1"


def test_the_predecessors_online_scores_are_the_baseline(registry: SignatureRegistry, watch: Watch, give: Give) -> None:
    """Where v1 was scored online at 0.6, v2 at 0.6 is no regression, whatever was registered for it."""
    monitor = watch(registry)
    feed(monitor, give("v1", 0.6, 400))
    feed(monitor, give("v2", 0.6, 400))
    found = monitor.evidence("qa", "v2")
    assert found.verdict == "ok"
    assert found.baseline is not None
    assert found.baseline.n == 400
    assert "v1" in found.baseline.origin


def test_without_a_baseline_there_is_no_verdict(registry: SignatureRegistry, watch: Watch, give: Give) -> None:
    """Nothing to compare with: insufficient data, however low the scores are, and no rollback."""
    for version in ("a", "b"):
        registry.register_version("new", {"instruction": version}, version=version)
        registry.deploy_version("new", version)
    monitor = watch(registry, "new")
    feed(monitor, give("b", 0.1, 300, program="new"))
    found = monitor.evidence("new", "b")
    assert (found.verdict, found.n) == ("insufficient_data", 300)
    assert "nothing to compare with" in found.reason
    assert running(registry, "new") == "b"


def test_a_version_that_answers_nobody_is_exported_no_more(
    registry: SignatureRegistry, watch: Watch, give: Give, series: Series, clock: Any
) -> None:
    """Ten minutes after the rollback the bad version's series are gone, so that an alert on them ends."""
    monitor = watch(registry)
    feed(monitor, give("v2", 0.3, 100))
    assert ("qa", "v2", "regressed") in series("dspy_quality_verdict_info")
    clock.forward(601)
    feed(monitor, give("v1", 0.9, 60))
    assert series("dspy_quality_verdict_info") == {("qa", "v1", "ok"): 1}
    assert {labels[1] for labels in series("dspy_quality_evidence")} == {"v1"}
    assert monitor.verdict("qa", "v2") == "regressed", "who asks is still told"


def test_s33_invalid_scores_are_counted_and_never_compared(
    registry: SignatureRegistry, watch: Watch, give: Give, series: Series
) -> None:
    """Scenario 33: NaN, infinity, None and 1.7 are refused and counted; with nothing else there is no verdict."""
    monitor = watch(registry)
    bad: list[Any] = [math.nan, math.inf, -math.inf, None, 1.7, -0.2] * 20
    feed(monitor, [Score(f"c{n}", value, "judge", "qa", "v2", "stable", None, 1.0) for n, value in enumerate(bad)])
    assert series("dspy_invalid_scores_total") == {("qa",): 120}
    found = monitor.evidence("qa", "v2")
    assert found.verdict == "insufficient_data"
    assert "120" in found.reason
    assert series("dspy_quality_verdict_info") == {("qa", "v2", "insufficient_data"): 1}
    feed(monitor, give("v2", 0.9, 60))
    found = monitor.evidence("qa", "v2")
    assert (found.verdict, found.n) == ("ok", 60)
    assert decided(registry) == []


def test_s34_lower_latency_never_rolls_back_and_higher_does(
    registry: SignatureRegistry, watch: Watch, clock: Any
) -> None:
    """Scenario 34: by a metric where lower is better, an improvement is none the worse, a decline is found."""
    options = {"metrics": {"latency": MetricBounds(0.0, 10.0, higher_is_better=False, clip=True)}}
    registry.update_performance_score("qa", "v2", 4.0, n=2000, stdev=2.0, source="latency")
    monitor = watch(registry, **options)

    def taking(seconds: float, n: int) -> list[Score]:
        return [
            Score("c", seconds * (0.5 + place % 11 / 10), "latency", "qa", "v2", "stable", None, clock.now)
            for place in range(n)
        ]

    feed(monitor, taking(1.0, 400) + [Score("c", 0.0, "user", "qa", "v2", "stable", None, clock.now)] * 50)
    assert monitor.verdict("qa", "v2") == "ok", "scores of a source that is not declared are left out"
    assert decided(registry) == []
    feed(monitor, taking(8.0, 400))
    assert monitor.verdict("qa", "v2") == "regressed"
    assert running(registry) == "v1"


def test_a_version_that_is_not_deployed_is_not_rolled_back(
    registry: SignatureRegistry, watch: Watch, give: Give
) -> None:
    """A canary that regressed has its verdict, which its router reads; the pointer stays."""
    registry.register_version("qa", {"instruction": "Answer as v3."}, version="v3")
    monitor = watch(registry)
    feed(monitor, give("v2", 0.9, 150))
    feed(monitor, [one for pair in zip(give("v2", 0.9, 200), give("v3", 0.4, 200, role="canary"), strict=True)
                   for one in pair])  # fmt: skip
    assert monitor.verdict("qa", "v3") == "regressed"
    assert "beside it" in monitor.evidence("qa", "v3").reason
    assert monitor.verdict("qa", "v2") == "ok"
    assert running(registry) == "v2"
    assert decided(registry) == []


def test_a_control_arm_decides_for_the_deployed_version(registry: SignatureRegistry, watch: Watch, give: Give) -> None:
    """v2 worse than v1 beside it is rolled back by the comparison, although its baseline would not have said so."""
    for version in ("v1", "v2"):
        registry.update_performance_score("qa", version, 0.5, dataset="dev", n=50, stdev=0.5)
    monitor = watch(registry)
    control = give("v1", 0.9, 600, role="control")
    feed(monitor, [one for pair in zip(control, give("v2", 0.7, 600), strict=True) for one in pair])
    found = monitor.evidence("qa", "v2")
    assert found.verdict == "regressed"
    assert found.log10_evidence["two_arm"] > 2
    assert found.log10_evidence["e_process"] < 1
    assert running(registry) == "v1"


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_s36_an_outage_of_both_arms_blames_nobody(
    registry: SignatureRegistry, watch: Watch, give: Give, series: Series, share: float
) -> None:
    """Scenario 36: both arms 30 points down for 1,000 scores: global_cause, one decision held; sound afterwards."""
    registry.register_version("qa", {"instruction": "Answer as v3."}, version="v3")
    monitor = watch(registry)
    feed(monitor, give("v1", 0.9, 300))

    def mixed(chance: float, n: int, worse: float = 0.0) -> list[Score]:
        canary = give("v3", chance - worse, int(n * share), role="canary")
        stable = iter(give("v2", chance, n - len(canary)))
        every = round(1 / share)
        found: list[Score] = []
        for one in canary:
            found += [one, *(next(stable) for _ in range(every - 1))]
        return found

    feed(monitor, mixed(0.9, 2000))
    assert {monitor.verdict("qa", one) for one in ("v2", "v3")} == {"ok"}
    down = mixed(0.6, 1000)
    seen = set()
    for start in range(0, 1000, 100):
        feed(monitor, down[start : start + 100])
        seen |= {monitor.verdict("qa", one) for one in ("v2", "v3")}
    assert "regressed" not in seen
    assert monitor.verdict("qa", "v2") == monitor.verdict("qa", "v3") == "global_cause"
    assert decided(registry) == [("held", "monitor", "v2")]
    assert "global cause" in registry.decisions("qa")[0].reason
    assert series("dspy_quality_verdict_info")["qa", "v2", "global_cause"] == 1
    feed(monitor, mixed(0.9, 3000))
    assert {monitor.verdict("qa", one) for one in ("v2", "v3")} == {"ok"}
    assert running(registry) == "v2"
    assert len(decided(registry)) == 1
    feed(monitor, mixed(0.9, 4000, worse=0.3))
    assert monitor.verdict("qa", "v3") == "regressed", "after an outage the tests still find what is worse"
    assert monitor.verdict("qa", "v2") == "ok"


def test_s36_other_programs_are_witnesses_where_there_is_no_control_arm(
    registry: SignatureRegistry, watch: Watch, give: Give, two_versions: Callable[..., SignatureRegistry]
) -> None:
    """Scenario 36: when the scores of all watched programs fall, none is rolled back; when one falls, it is."""
    two_versions(registry, "other")
    monitor = watch(registry, ["qa", "other"])

    def both(mine: float, theirs: float, n: int) -> None:
        for _ in range(0, n, 10):
            feed(monitor, give("v2", mine, 10) + give("v2", theirs, 10, program="other"))
            monitor._clock.forward(1)  # type: ignore[attr-defined]

    both(0.9, 0.9, 200)
    both(0.5, 0.5, 300)
    assert running(registry) == running(registry, "other") == "v2"
    assert {monitor.verdict(name, "v2") for name in ("qa", "other")} == {"global_cause"}
    assert decided(registry) == decided(registry, "other") == [("held", "monitor", "v2")]
    both(0.9, 0.9, 400)
    assert {monitor.verdict(name, "v2") for name in ("qa", "other")} == {"ok"}
    both(0.5, 0.9, 200)
    assert running(registry) == "v1"
    assert running(registry, "other") == "v2"


def test_s36_an_outage_does_not_hide_a_version_that_stays_bad(
    registry: SignatureRegistry, watch: Watch, give: Give, two_versions: Callable[..., SignatureRegistry]
) -> None:
    """When the other program has recovered and this one has not, its version is to blame after all."""
    two_versions(registry, "other")
    monitor = watch(registry, ["qa", "other"])
    for mine, theirs, n in ((0.9, 0.9, 20), (0.5, 0.5, 30), (0.5, 0.9, 60)):
        for _ in range(n):
            feed(monitor, give("v2", mine, 10) + give("v2", theirs, 10, program="other"))
            monitor._clock.forward(1)  # type: ignore[attr-defined]
    assert running(registry) == "v1"
    assert running(registry, "other") == "v2"


def test_s42_a_sample_ratio_mismatch_gives_no_verdict(registry: SignatureRegistry, watch: Watch, give: Give) -> None:
    """Scenario 42: 13/87 where 10/90 was meant: insufficient data with the reason, however bad the canary looks."""
    registry.register_version("qa", {"instruction": "Answer as v3."}, version="v3")
    monitor = watch(registry, shares=lambda program: {"stable": 0.9, "canary": 0.1})
    canary, stable = iter(give("v3", 0.85, 390, role="canary")), iter(give("v2", 0.9, 2610))
    mixed = [next(canary) if place * 13 // 100 < (place + 1) * 13 // 100 else next(stable) for place in range(3000)]
    feed(monitor, mixed)
    found = monitor.evidence("qa", "v3")
    assert found.verdict == "insufficient_data"
    assert "sample_ratio_mismatch" in found.reason
    other = watch(registry, shares=lambda program: {"stable": 0.87, "canary": 0.13})
    canary, stable = iter(give("v3", 0.9, 260, role="canary")), iter(give("v2", 0.9, 1740))
    feed(other, [next(canary) if at * 13 // 100 < (at + 1) * 13 // 100 else next(stable) for at in range(2000)])
    assert other.verdict("qa", "v3") != "insufficient_data", "counted anew since the split was changed"


def test_the_plain_rule_stays_available(registry: SignatureRegistry, watch: Watch, give: Give) -> None:
    """By a fixed threshold, one block of 50 scores that is more than 5 % below the baseline is enough."""
    monitor = watch(registry, rule="threshold", threshold=0.05)
    feed(monitor, [Score("c", float(place % 10 > 0), "user", "qa", "v2", "stable", None, 1.0) for place in range(50)])
    assert running(registry) == "v2"
    feed(monitor, [Score("c", float(place % 5 > 0), "user", "qa", "v2", "stable", None, 1.0) for place in range(50)])
    assert running(registry) == "v1"
    assert "0.05" in registry.decisions("qa")[0].reason


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("off", "automatic rollback is off"),
        ("dry-run", "would roll back from v2 to v1"),
        ("approve", "waiting for approval"),
        (None, "qa is frozen in production: incident 7"),
    ],
)
def test_a_mode_or_freeze_holds_the_monitor_too(
    registry: SignatureRegistry, watch: Watch, give: Give, mode: str | None, reason: str
) -> None:
    """The same policy as for alerts: the decision is held with its reason, the pointer stays until a person says so."""
    if mode is None:
        registry.freeze("qa", reason="incident 7")
    else:
        registry.set_mode("qa", mode, reason="maintenance")
    monitor = watch(registry)
    feed(monitor, give("v2", 0.4, 150))
    (held,) = registry.decisions("qa")
    assert (held.outcome, held.trigger, held.version) == ("held", "monitor", "v2")
    assert reason in held.reason
    assert held.inputs["previous_score"] == 0.9
    assert running(registry) == "v2"
    assert monitor.verdict("qa", "v2") == "regressed"
    assert approve(registry, held.decision_id, Limits(), actor="ada").outcome == "rollback"
    assert running(registry) == "v1"


def test_a_spent_budget_freezes_the_program_for_the_monitor_too(
    registry: SignatureRegistry, watch: Watch, give: Give, clock: Any
) -> None:
    """The second regression of the hour is held and freezes the program: from then on nothing moves by itself."""
    monitor = watch(registry, limits=Limits(cooldown_s=0, max_rollbacks_per_hour=1))
    feed(monitor, give("v2", 0.4, 150))
    assert running(registry) == "v1"
    registry.register_version("qa", {"instruction": "Answer as v3."}, version="v3")
    registry.update_performance_score("qa", "v3", 0.9, dataset="dev", n=2000, stdev=0.3)
    clock.forward(60)
    registry.deploy_version("qa", "v3")
    clock.forward(60)
    feed(monitor, give("v3", 0.4, 150))
    assert decided(registry) == [("rollback", "monitor", "v2"), ("held", "monitor", "v3")]
    assert running(registry) == "v3"
    control = registry.control("qa")
    assert control.frozen
    assert "budget was spent" in str(control.frozen_reason)


def test_without_acting_there_are_verdicts_only(registry: SignatureRegistry, watch: Watch, give: Give) -> None:
    """``act=False`` decides nothing and leaves the question to a monitor that acts."""
    feed(watch(registry, act=False), give("v2", 0.4, 150))
    assert decided(registry) == []
    acting = watch(registry)
    feed(acting, give("v2", 0.4, 1))
    assert decided(registry) == [("rollback", "monitor", "v2")]


def test_scores_of_others_are_left_alone(registry: SignatureRegistry, watch: Watch, give: Give) -> None:
    """Other programs, calls without a version, evaluations and shadows are no evidence."""
    monitor = watch(registry)
    feed(monitor, give("v2", 0.0, 100, program="other") + give(None, 0.0, 100) + give("v2", 0.0, 100, role="shadow"))
    assert monitor.evidence("qa", "v2").n == 0
    assert running(registry) == "v2"


@pytest.mark.parametrize("location", ["sqlite"], indirect=True)
def test_unknown_versions_and_programs_are_counted(
    registry: SignatureRegistry, watch: Watch, give: Give, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be booked is counted as lost, and the rest is booked."""
    monkeypatch.delenv("DSPY_OBSERVE_STRICT", raising=False)
    monitor = watch(registry, ["qa", "nowhere"])
    feed(monitor, give("v9", 0.9, 7) + give("v2", 0.9, 5) + give("v2", 0.9, 3, program="nowhere"))
    assert monitor.evidence("qa", "v2").n == 5
    assert safety.counts()["monitor.version"] == 7
    assert safety.counts()["monitor.evidence"] == 3
    assert monitor.verdict("nowhere", "v2") == "insufficient_data"


@pytest.mark.parametrize("location", ["sqlite"], indirect=True)
def test_scores_wait_while_the_registry_is_away(
    registry: SignatureRegistry, watch: Watch, give: Give, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that cannot be written costs nothing but time: the scores are folded in order when it is back."""
    from dspy_observe.registry.errors import StoreUnavailable

    monitor, real = watch(registry), registry.fold_evidence

    def away(*_: Any, **__: Any) -> None:
        raise StoreUnavailable("the disk is full")

    monkeypatch.setattr(registry, "fold_evidence", away)
    for score in give("v2", 0.9, 60):
        monitor.scored(score)
    assert monitor.flush() is False
    assert safety.counts()["monitor.store"] == 1
    monkeypatch.setattr(registry, "fold_evidence", real)
    assert monitor.flush()
    assert monitor.evidence("qa", "v2").n == 60


@pytest.mark.parametrize("location", ["sqlite"], indirect=True)
def test_closing_again_asks_nothing_of_a_registry_that_is_gone(
    registry: SignatureRegistry, watch: Watch, give: Give, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the interpreter's end it is closed once more; a version that regressed is not asked about then."""
    monkeypatch.delenv("DSPY_OBSERVE_STRICT", raising=False)
    registry.set_mode("qa", "off")
    monitor = watch(registry)
    feed(monitor, give("v2", 0.4, 150))
    monitor.close()
    before = safety.counts()
    registry.close()
    monkeypatch.setattr(registry, "fold_evidence", None)
    monitor.close()
    assert safety.counts() == before


def test_a_queue_that_is_full_gives_up_the_oldest(registry: SignatureRegistry, watch: Watch, give: Give) -> None:
    """Memory is bounded whatever happens to the registry, and what is lost is counted."""
    monitor = watch(registry, max_waiting=50)
    for score in give("v2", 0.9, 80):
        monitor.scored(score)
    assert len(monitor._waiting) == 50
    assert safety.counts()["monitor.waiting"] == 30
    monitor.flush()
    assert monitor.evidence("qa", "v2").n == 50


@pytest.mark.parametrize("location", ["sqlite"], indirect=True)
def test_a_flush_waits_no_longer_than_it_is_told(
    registry: SignatureRegistry, watch: Watch, give: Give, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registry that hangs holds up nobody who gave a time; the scores are folded when it goes on."""
    monitor, real, go_on = watch(registry), registry.fold_evidence, threading.Event()

    def slow(*arguments: Any, **options: Any) -> None:
        go_on.wait(60)
        real(*arguments, **options)

    monkeypatch.setattr(registry, "fold_evidence", slow)
    for score in give("v2", 0.9, 60):
        monitor.scored(score)
    assert monitor.flush(0.05) is False
    assert monitor.flush(0.0) is False
    go_on.set()
    assert monitor.flush(60) is True
    assert monitor.evidence("qa", "v2").n == 60


FORKED = """
    import os, sys, threading
    from dspy_observe.records import Score
    from dspy_observe.registry import SignatureRegistry
    from dspy_observe.rollback.monitor import Monitor, MonitorOptions

    def give(number):
        for _ in range(number):
            monitor.scored(Score("c", 1.0, "user", "qa", "v2", "stable", None, 1.8e9))

    registry = SignatureRegistry(sys.argv[1])
    monitor = Monitor(registry, "qa", options=MonitorOptions(flush_s=3600))
    give(10)
    with monitor._folding, monitor._lock:  # as a thread would hold them
        child = os.fork()
    give(5)
    if child == 0:
        monitor.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    monitor.close()
"""


@pytest.mark.parametrize("location", ["sqlite"], indirect=True)
def test_a_forked_worker_counts_its_own_scores(registry: SignatureRegistry, location: str) -> None:
    """A child of a fork neither hangs on its parent's locks nor counts its parent's scores again."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(FORKED), location], capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert Monitor(registry, "qa").evidence("qa", "v2").n == 20


@pytest.mark.parametrize("location", ["sqlite"], indirect=True)
def test_configure_hands_it_scores_and_evaluations(
    registry: SignatureRegistry, watch: Watch, caplog: pytest.LogCaptureFixture, collected: CollectorRegistry
) -> None:
    """As a reader in ``configure(extra=...)`` it books what users score, by version, and evaluations on the set."""
    monitor = watch(registry, dataset="held-out")
    registry.update_performance_score("qa", "v1", 0.95, dataset="held-out", n=500, stdev=0.2)
    caplog.set_level(logging.INFO, "dspy_observe")
    dspy.configure(lm=offline_lm({"answer": "yes"}))
    metrics = Metrics(collector_registry=collected)
    with dspy_observe.configure(
        metrics=metrics, registry=registry, extra=[monitor], tracing=False, logs=False
    ) as observer:
        program = observer.track(dspy.Predict("question -> answer"), name="qa", version="v2")
        observer.score(program(question="a?"), 0.5, source="user", score_id="first")
        evaluate = dspy.Evaluate(
            devset=[dspy.Example(question=f"{n}?", answer="no").with_inputs("question") for n in range(10)],
            metric=lambda example, prediction, trace=None: float(example.answer == prediction.answer),
            display_progress=False, num_threads=1,
        )  # fmt: skip
        evaluate(program, callback_metadata={"dataset": "held-out"})
        assert observer.flush(30)
        registry.deploy_version("qa", "v1")
        assert observer.flush(30)
    state = registry.evidence("qa")
    assert state is not None
    streams = state["versions"][registry.get_version("qa", "v2").version_hash]["streams"]
    assert streams["score"]["blocks"][1]["n"] == 1
    assert streams["evaluation"]["arm"]["n"] == 10
    assert streams["evaluation"]["baseline"]["mean"] == 0.95
    assert any("v1 is deployed. Monitoring: compared with" in one.getMessage() for one in caplog.records)


@pytest.mark.parametrize(
    "wrong",
    [{"flush_s": 0.0}, {"retry_s": -1.0}, {"min_scores": 0}, {"max_waiting": 1.5}, {"rule": "guess"},
     {"threshold": math.nan}, {"min_effect": -0.1}, {"metrics": {"evaluation": MetricBounds()}}],
)  # fmt: skip
def test_options_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    """With the name of the field."""
    with pytest.raises(ConfigurationError, match="MonitorOptions"):
        MonitorOptions(**wrong)
