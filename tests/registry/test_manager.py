"""The manager: strategies, gates, monitoring, status, plans, clean-up. Numbers are those of the scenario list."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dspy_observe.errors import ConfigurationError
from dspy_observe.registry import (
    Conflict,
    IntegrationConfig,
    InvalidScore,
    NotSerialisable,
    RegistryManager,
    SignatureRegistry,
    UnknownSignature,
    UnknownVersion,
)

Open = Callable[..., SignatureRegistry]


@pytest.fixture
def manager(three: SignatureRegistry) -> RegistryManager:
    """A manager of v1, v2 and v3, of which v1 is deployed."""
    three.deploy_version("qa", "v1")
    return RegistryManager(three)


def score(manager: RegistryManager, **values: float) -> None:
    """Book scores by version, on 1,000 examples of one data set."""
    for version, value in values.items():
        manager.registry.update_performance_score("qa", version, value, dataset="dev", n=1000)


def deployed(manager: RegistryManager) -> str | None:
    """What production runs."""
    version = manager.registry.get_deployed_version("qa")
    return None if version is None else version.version


def test_defaults_are_the_documented_ones() -> None:
    """The first six have the meaning and defaults of DSPy.rb."""
    assert IntegrationConfig().to_dict() == {
        "auto_register_optimizations": True, "auto_deploy_best_versions": False, "auto_deploy_threshold": 0.1,
        "rollback_on_performance_drop": True, "rollback_threshold": 0.05, "deployment_strategy": "conservative",
        "require_evidence": True, "rollback_cooldown_s": 600.0, "max_rollbacks_per_hour": 3, "keep_versions": 5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("deployment_strategy", "yolo"), ("auto_deploy_threshold", -0.1), ("rollback_threshold", math.nan),
        ("max_rollbacks_per_hour", 0), ("keep_versions", 0), ("auto_deploy_best_versions", "yes"),
    ],
)  # fmt: skip
def test_options_that_cannot_work_are_refused(option: str, value: Any) -> None:
    """When they are set, naming the option."""
    with pytest.raises(ConfigurationError, match=option):
        setattr(IntegrationConfig(), option, value)


def test_conservative_needs_ten_percent(manager: RegistryManager) -> None:
    """Just below stays, exactly ten goes, whatever binary fractions say."""
    score(manager, v1=0.7, v2=0.769)
    assert manager.deploy_with_strategy("qa") is None
    assert "10.0% are needed" in manager.judge_strategy("qa").reason
    score(manager, v2=0.77)
    assert manager.deploy_with_strategy("qa", strategy="conservative").version == "v2"
    assert deployed(manager) == "v2"


def test_conservative_honours_a_higher_threshold(manager: RegistryManager) -> None:
    """The configured one, where it is more than ten percent."""
    manager.integration_config.auto_deploy_threshold = 0.5
    score(manager, v1=0.6, v2=0.8)
    assert manager.deploy_with_strategy("qa") is None
    score(manager, v2=0.95)
    assert manager.deploy_with_strategy("qa").version == "v2"


@pytest.mark.parametrize("strategy", ["aggressive", "best_score"])
def test_aggressive_takes_the_highest_score(manager: RegistryManager, strategy: str) -> None:
    """However small the gain; not what is quarantined; nothing when the best one runs."""
    score(manager, v1=0.90, v2=0.95, v3=0.901)
    manager.registry.quarantine("qa", "v2", reason="leaks")
    assert manager.deploy_with_strategy("qa", strategy=strategy).version == "v3"
    assert manager.deploy_with_strategy("qa", strategy=strategy) is None


def test_manual_deploys_nothing_and_an_unknown_strategy_is_an_error(manager: RegistryManager) -> None:
    """They are not the same."""
    score(manager, v1=0.1, v2=0.9)
    assert manager.deploy_with_strategy("qa", strategy="manual") is None
    with pytest.raises(ConfigurationError, match="reckless"):
        manager.deploy_with_strategy("qa", strategy="reckless")
    assert deployed(manager) == "v1"


def test_first_deployment_by_strategy(three: SignatureRegistry) -> None:
    """Nothing runs: the best one goes; without any score nothing does."""
    manager = RegistryManager(three)
    assert manager.deploy_with_strategy("qa") is None
    score(manager, v2=0.4, v3=0.3)
    assert manager.deploy_with_strategy("qa").version == "v2"


@pytest.mark.parametrize(
    ("candidate", "running", "outcome"),
    [
        ((0.91, 50), (0.90, 50), "no_improvement"),
        ((0.99, 20), (0.85, 20), "insufficient_evidence"),
        ((0.99, 500), (0.85, 500), "deploy"),
        ((0.99, None), (0.85, 500), "insufficient_evidence"),
        ((0.99, 500), (0.85, None), "insufficient_evidence"),
        ((1.0, 3), (0.8, 5), "insufficient_evidence"),
        ((0.5, 500), (0.9, 500), "no_improvement"),
    ],
)
def test_23_gate_asks_for_evidence_on_both_sides(
    manager: RegistryManager, candidate: Any, running: Any, outcome: str
) -> None:
    """Few examples, unknown numbers and too small gains deploy nothing by themselves."""
    for version, (value, n) in (("v2", candidate), ("v1", running)):
        manager.registry.update_performance_score("qa", version, value, dataset="dev", n=n)
    verdict = manager.auto_deploy("qa", "v2")
    assert verdict.outcome == outcome
    assert deployed(manager) == ("v2" if outcome == "deploy" else "v1")


def test_23_small_gain_on_few_examples_is_insufficient_even_with_a_low_threshold(manager: RegistryManager) -> None:
    """0.91 on 50 against 0.90 on 50 is chance."""
    manager.integration_config.auto_deploy_threshold = 0.0
    manager.registry.update_performance_score("qa", "v1", 0.90, dataset="dev", n=50)
    manager.registry.update_performance_score("qa", "v2", 0.91, dataset="dev", n=50)
    assert manager.auto_deploy("qa", "v2").outcome == "insufficient_evidence"
    manager.integration_config.require_evidence = False
    assert manager.auto_deploy("qa", "v2").outcome == "deploy"


def test_23_unscored_or_other_data_never_passes(manager: RegistryManager) -> None:
    """The deployed version without a score, the candidate without one, different data sets."""
    manager.registry.update_performance_score("qa", "v2", 0.99, dataset="dev", n=1000)
    assert manager.auto_deploy("qa", "v2").outcome == "insufficient_evidence"
    manager.registry.update_performance_score("qa", "v1", 0.1, dataset="other", n=1000)
    assert manager.auto_deploy("qa", "v2").outcome == "insufficient_evidence"
    assert manager.auto_deploy("qa", "v3").outcome == "unscored"
    manager.registry.quarantine("qa", "v2", reason="bad")
    assert manager.auto_deploy("qa", "v2").outcome == "refused"
    assert deployed(manager) == "v1"


def test_auto_deployment_tells_its_event_and_trigger(manager: RegistryManager) -> None:
    """After the deployment, once."""
    events: list[Any] = []
    manager.registry.subscribe("*", events.append)
    score(manager, v1=0.5, v2=0.9)
    manager.auto_deploy("qa", "v2")
    told = [event.name.rpartition(".")[2] for event in events]
    assert told[2:] == ["deploy_start", "deploy_complete", "auto_deployment"]
    assert manager.registry.deployment_log("qa")[-1].trigger == "auto"


def test_auto_deployment_stops_at_a_protected_environment(open_registry: Open, fill: Callable[..., None]) -> None:
    """With the reason, and without an error for the optimizer."""
    registry = open_registry(protected_environments=("production",))
    fill(registry, "v1")
    manager = RegistryManager(registry)
    score(manager, v1=0.9)
    verdict = manager.auto_deploy("qa", "v1")
    assert verdict.outcome == "refused"
    assert "protected" in verdict.reason


def test_results_are_registered_scored_and_deployed(registry: SignatureRegistry) -> None:
    """A result with a configuration, as often as an optimizer runs; the second is better by far."""
    manager = RegistryManager(registry, IntegrationConfig(auto_deploy_best_versions=True))
    result = {"configuration": {"instruction": "a"}, "best_score_value": 0.5}
    first = manager.register_optimization_result(result, "qa", {"optimizer": "MIPROv2"}, dataset="dev", n=500)
    assert (first.performance_score, first.is_deployed, first.metadata) == (0.5, True, {"optimizer": "MIPROv2"})
    second = manager.register_optimization_result(
        SimpleNamespace(configuration={"instruction": "b"}, best_score_value=0.9), "qa", dataset="dev", n=500
    )
    assert second.is_deployed
    result = {"configuration": {"instruction": "c"}}
    third = manager.register_optimization_result(result, "qa", score=0.91, dataset="dev", n=5)
    assert (third.is_deployed, third.performance_score) == (False, 0.91)


def test_registration_can_be_switched_off(registry: SignatureRegistry) -> None:
    """Then nothing is written."""
    manager = RegistryManager(registry, IntegrationConfig(auto_register_optimizations=False))
    assert manager.register_optimization_result({"configuration": {"a": 1}}, "qa") is None
    assert registry.list_signatures() == []


@pytest.mark.parametrize("result", [{}, {"score": 1.0}, 7, SimpleNamespace(best_score_value=0.5)])
def test_results_without_content_are_refused(registry: SignatureRegistry, result: Any) -> None:
    """An error, not an empty version."""
    with pytest.raises(NotSerialisable, match="result"):
        RegistryManager(registry).register_optimization_result(result, "qa")
    with pytest.raises(ConfigurationError, match="signature_name"):
        RegistryManager(registry).register_optimization_result({"configuration": {"a": 1}})
    with pytest.raises(InvalidScore):
        RegistryManager(registry).register_optimization_result({"configuration": {"a": 1}}, "qa", score=math.nan)
    assert registry.list_signatures() == []


@pytest.mark.parametrize(
    ("known", "current", "rolled_back"),
    [
        (0.9, 0.854, True), (0.9, 0.855, False), (0.9, 0.856, False), (0.9, 1.0, False), (-1.0, -0.96, False),
        (-1.0, -1.06, True), (-1.0, -1.05, False), (0.0, -0.05, False), (0.0, -0.06, True), (0.0, 0.5, False),
        (1.0, 0.95, False), (1.0, 0.949, True),
    ],
)  # fmt: skip
def test_34_monitor_is_exact_at_the_threshold(
    tmp_path: Path, fill: Callable[..., None], known: float, current: float, rolled_back: bool
) -> None:
    """A drop of five percent is no reason, more is; an improvement never is, whatever the sign."""
    manager = RegistryManager(tmp_path)
    fill(manager.registry, "v1", "v2")
    manager.registry.deploy_version("qa", "v1")
    manager.registry.deploy_version("qa", "v2")
    score(manager, v2=known)
    decision = manager.monitor_and_rollback("qa", current)
    assert bool(decision) is rolled_back
    assert deployed(manager) == ("v1" if rolled_back else "v2")
    assert decision.inputs["current_score"] == current


def test_16_second_rollback_within_the_cool_down_is_held(manager: RegistryManager, clock: Any) -> None:
    """An outage does not walk through all versions; after the cool-down it may go on, up to the hourly limit."""
    for version in ("v2", "v3"):
        manager.registry.deploy_version("qa", version)
    score(manager, v1=0.9, v2=0.9, v3=0.9)
    assert manager.monitor_and_rollback("qa", 0.1).outcome == "rollback"
    assert deployed(manager) == "v2"
    for _ in range(5):
        clock.forward(60)
        decision = manager.monitor_and_rollback("qa", 0.1)
        assert decision.outcome == "held"
        assert "cool-down" in decision.reason
    assert deployed(manager) == "v2"
    clock.forward(600)
    manager.integration_config.max_rollbacks_per_hour = 1
    assert "enough" in manager.monitor_and_rollback("qa", 0.1).reason
    clock.forward(3600)
    assert manager.monitor_and_rollback("qa", 0.1).outcome == "rollback"
    clock.forward(3600)
    assert manager.monitor_and_rollback("qa", 0.1).outcome == "rejected"
    assert deployed(manager) == "v1"


def test_monitor_ignores_what_it_cannot_compare(manager: RegistryManager) -> None:
    """No score, switched off, nothing deployed, no number."""
    assert manager.monitor_and_rollback("qa", 0.1).outcome == "ignored"
    assert manager.monitor_and_rollback("qa", 0.1, environment="staging").outcome == "rejected"
    assert manager.monitor_and_rollback("qa", 0.1, baseline=0.9).outcome == "rejected"
    manager.integration_config.rollback_on_performance_drop = False
    assert manager.monitor_and_rollback("qa", 0.1, baseline=0.9).reason.startswith("rollback_on_performance_drop")
    for bad in (math.nan, None, "0.5"):
        with pytest.raises(InvalidScore):
            manager.monitor_and_rollback("qa", bad)  # type: ignore[arg-type]
    with pytest.raises(UnknownSignature):
        manager.monitor_and_rollback("nobody", 0.5)


def test_status_tells_what_to_do(manager: RegistryManager) -> None:
    """In words that name the versions."""
    status = manager.get_deployment_status("qa")
    assert status.deployed_version is not None
    assert (status.deployed_version.version, status.total_versions, status.generation) == ("v1", 3, 1)
    words = " ".join(status.recommendations)
    assert "v1 is deployed and has no score" in words
    assert "nothing to roll back to" in words
    assert "2 versions have no score: v2, v3" in words
    score(manager, v1=0.5, v2=0.9, v3=0.2)
    assert "v2 has a higher score (0.9)" in " ".join(manager.get_deployment_status("qa").recommendations)
    manager.registry.deploy_version("qa", "v2")
    status = manager.get_deployment_status("qa")
    assert status.recommendations == ("v2 is deployed and has the highest score. Nothing to do.",)
    assert status.rollback_target == "v1"
    manager.registry.rollback("qa", reason="worse")
    status = manager.get_deployment_status("qa")
    assert status.quarantined == ("v2",)
    assert "v2" not in " ".join(status.recommendations)
    nowhere = manager.get_deployment_status("qa", environment="staging")
    assert (nowhere.deployed_version, nowhere.generation) == (None, 0)
    assert nowhere.recommendations == ("Nothing is deployed in staging. Deploy v1, which has the highest score.",)
    assert status.to_dict()["deployed_version"]["version"] == "v1"


def test_bulk_status_does_not_stop_at_an_unknown_name(manager: RegistryManager) -> None:
    """The others are told all the same."""
    manager.registry.register_version("other", {"a": 1})
    bulk = manager.bulk_deployment_status(["qa", "nobody", "other"])
    assert [one.signature_name for one in bulk.statuses] == ["qa", "other"]
    assert set(bulk.errors) == {"nobody"}
    assert bulk["other"].deployed_version is None
    assert len(manager.bulk_deployment_status().statuses) == 2


def test_plan_says_what_a_deployment_would_mean(manager: RegistryManager, seen: Callable[..., Any]) -> None:
    """Safe, worse, unknown and quarantined targets; carried out on what it saw."""
    score(manager, v1=0.8, v2=0.9, v3=0.7)
    before = seen(manager.registry)
    better = manager.create_deployment_plan("qa", "v2")
    assert (better.deployment_safe, better.current_version, better.generation) == (True, "v1", 1)
    assert better.performance_change == pytest.approx(0.1)
    assert any("rises by 0.1 on dev" in check for check in better.checks)
    assert "Changed instruction" in better.configuration_changes[0]
    worse = manager.create_deployment_plan("qa", "v3")
    assert not worse.deployment_safe
    assert "Keep v1: the target is worse." in worse.recommendations
    with pytest.raises(UnknownVersion):
        manager.create_deployment_plan("qa", "v9")
    assert seen(manager.registry) == before
    manager.registry.quarantine("qa", "v2", reason="leaks")
    assert not manager.create_deployment_plan("qa", "v2").deployment_safe
    first = manager.create_deployment_plan("qa", "v2", environment="staging")
    assert "first deployment" in " ".join(first.checks)
    manager.registry.deploy_version("qa", "v3")
    with pytest.raises(Conflict):
        manager.registry.deploy_version("qa", "v1", expected_generation=better.generation)


def test_plan_without_comparable_scores_is_unknown_not_zero(manager: RegistryManager) -> None:
    """And says what to do about it."""
    plan = manager.create_deployment_plan("qa", "v2")
    assert plan.performance_change is None
    assert any(check.startswith("Unknown") for check in plan.checks)
    assert any("Evaluate both versions" in advice for advice in plan.recommendations)


def test_cleanup_lists_first_and_keeps_what_is_needed(manager: RegistryManager, fill: Callable[..., None]) -> None:
    """A dry run changes nothing and names exactly what the real one removes."""
    fill(manager.registry, *(f"w{number}" for number in range(6)))
    dry = manager.cleanup_old_versions(dry_run=True)
    assert dry.removed == {"qa": ["v2", "v3", "w0", "w1"]}
    assert len(manager.registry.list_versions("qa")) == 9
    done = manager.cleanup_old_versions()
    assert (done.removed, done.cleaned_versions, done.cleaned_signatures) == (dry.removed, 4, 1)
    assert [one.version for one in manager.registry.list_versions("qa")] == ["v1", "w2", "w3", "w4", "w5"]
    assert manager.cleanup_old_versions().cleaned_versions == 0
    with pytest.raises(ConfigurationError, match="keep"):
        manager.cleanup_old_versions(keep=0)
