"""What a version is compared with, and what is said of it when it is deployed; on every store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dspy_observe.cli import app
from dspy_observe.registry import RegistryManager, SignatureRegistry
from dspy_observe.registry.baselines import EVALUATION, baseline_of, prospects
from dspy_observe.rollback.statistics import Baseline, Evidence, MetricBounds, Observation, Scene


def found(
    registry: SignatureRegistry, version: str, evidence: Evidence | None = None, **options: object
) -> Baseline | None:
    """The baseline of a version in production."""
    digits = registry.get_version("qa", version).version_hash
    with registry.view("qa") as view:
        return baseline_of(view, evidence, digits, "production", **options)  # type: ignore[arg-type]


def online(registry: SignatureRegistry, version: str, score: float, n: int) -> Evidence:
    """Evidence that holds online scores of one version."""
    digits, evidence = registry.get_version("qa", version).version_hash, Evidence()
    scores = [Observation(digits, version, "stable", "score", score, 1.0)] * n
    evidence.fold(scores, Scene(2.0))
    return evidence


def test_a_score_without_its_number_of_examples_is_no_baseline(three: SignatureRegistry) -> None:
    """Nor is one out of bounds, or one that a canary measured in operation; the latest of the others is."""
    three.deploy_version("qa", "v1")
    three.update_performance_score("qa", "v1", 0.99)
    assert found(three, "v1") is None
    three.update_performance_score("qa", "v1", 0.9, dataset="dev", n=200, stdev=0.3)
    three.update_performance_score("qa", "v1", 87.0, n=100)
    three.update_performance_score("qa", "v1", 0.1, n=100, source="canary")
    baseline = found(three, "v1")
    assert baseline is not None
    assert (baseline.mean, baseline.n, baseline.stdev) == (0.9, 200, 0.3)
    assert "v1 on dev" in baseline.origin
    scaled = found(three, "v1", bounds=MetricBounds(0.0, 100.0))
    assert scaled is not None
    assert scaled.mean == 0.87


def test_a_data_set_is_found_by_the_name_it_was_given(three: SignatureRegistry) -> None:
    """Though a credential in it is not kept."""
    address = "s3://reader:EXAMPLEpw99@bucket/dev"
    three.update_performance_score("qa", "v1", 0.9, dataset=address, n=200)
    baseline = found(three, "v1", dataset=address)
    assert baseline is not None
    assert "EXAMPLEpw99" not in baseline.origin
    assert found(three, "v1", dataset="s3://reader:EXAMPLEpw99@bucket/other") is None


def test_the_predecessors_online_scores_come_first(three: SignatureRegistry) -> None:
    """If there are enough of them, and the predecessor was not found bad."""
    for version in ("v1", "v2"):
        three.deploy_version("qa", version)
    three.update_performance_score("qa", "v2", 0.9, n=200)
    few, many = online(three, "v1", 0.8, 99), online(three, "v1", 0.8, 100)
    first, second = found(three, "v2", few), found(three, "v2", many)
    assert first is not None
    assert second is not None
    assert (first.mean, second.mean, second.n) == (0.9, pytest.approx(0.8), 100)
    three.quarantine("qa", "v1", reason="bad")
    third = found(three, "v2", many)
    assert third is not None
    assert third.mean == 0.9


def test_a_new_version_is_compared_with_what_runs(three: SignatureRegistry) -> None:
    """A candidate with the deployed version's scores, an earlier version with its own."""
    for version in ("v1", "v2"):
        three.deploy_version("qa", version)
    three.update_performance_score("qa", "v1", 0.7, n=100)
    evidence = online(three, "v2", 0.8, 100)
    candidate, earlier = found(three, "v3", evidence), found(three, "v1", evidence)
    assert candidate is not None
    assert earlier is not None
    assert (candidate.mean, earlier.mean) == (pytest.approx(0.8), 0.7)


def test_an_evaluation_is_compared_on_its_own_data_set(three: SignatureRegistry) -> None:
    """With the predecessor's latest score there, else with the version's own first one, never with online scores."""
    for version in ("v1", "v2"):
        three.deploy_version("qa", version)
    evidence = online(three, "v1", 0.2, 500)
    three.update_performance_score("qa", "v2", 0.8, dataset="held", n=50, source="evaluate")
    three.update_performance_score("qa", "v2", 0.3, dataset="held", n=50, source="evaluate")
    own = found(three, "v2", evidence, metric=EVALUATION, dataset="held")
    assert own is not None
    assert own.mean == 0.8
    three.update_performance_score("qa", "v1", 0.9, dataset="held", n=50)
    theirs = found(three, "v2", evidence, metric=EVALUATION, dataset="held")
    assert theirs is not None
    assert theirs.mean == 0.9
    assert found(three, "v2", evidence, metric=EVALUATION, dataset="other") is None


def test_s35_a_small_baseline_is_called_underpowered(three: SignatureRegistry) -> None:
    """Scenario 35: 200 examples cannot show 5 points, which is said with the drop that they can show; 5,000 can."""
    assert "nothing to compare" in prospects(three, "qa", "v1")
    three.update_performance_score("qa", "v1", 0.9, dataset="dev", n=200, stdev=0.3)
    said = prospects(three, "qa", "v1")
    assert "n=200" in said
    assert "UNDERPOWERED for 0.05" in said
    assert "drop of 0.06" in said
    three.update_performance_score("qa", "v1", 0.9, dataset="dev", n=5000, stdev=0.3)
    said = prospects(three, "qa", "v1")
    assert "UNDERPOWERED" not in said
    assert "one of 0.05 in about" in said
    three.update_performance_score("qa", "v1", 0.05, dataset="tiny", n=5)
    assert "no drop can be found" in prospects(three, "qa", "v1")


def test_s35_a_plan_says_what_can_be_found(three: SignatureRegistry, fill: Callable[..., None]) -> None:
    """Scenario 35: the plan's recommendations hold the line, so that it is read before the deployment."""
    three.update_performance_score("qa", "v2", 0.9, dataset="dev", n=200, stdev=0.3)
    plan = RegistryManager(three).create_deployment_plan("qa", "v2")
    assert plan.recommendations[-1] == prospects(three, "qa", "v2")


def test_s35_deploying_prints_it(tmp_path: Path) -> None:
    """Scenario 35: ``registry deploy`` prints the baseline's n and the drop that can be found; JSON holds it, too."""
    place = str(tmp_path / "registry")
    with SignatureRegistry(place) as registry:
        registry.register_version("qa", {"n": 1}, version="v1")
        registry.update_performance_score("qa", "v1", 0.9, dataset="dev", n=200, stdev=0.3)
    done = CliRunner().invoke(app, ["registry", "deploy", "qa", "v1", "--registry", place])
    assert done.exit_code == 0
    assert "n=200" in done.output
    assert "UNDERPOWERED" in done.output
    done = CliRunner().invoke(app, ["registry", "deploy", "qa", "v1", "--registry", place, "--json"])
    assert '"monitoring": "Monitoring: compared with' in done.output
