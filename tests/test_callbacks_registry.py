"""Registry events, evaluations and scores become metrics."""

from __future__ import annotations

from typing import Any

import dspy
import pytest
from prometheus_client import CollectorRegistry

from dspy_observe import Metrics, RegistryEventCallback
from dspy_observe.conventions import REGISTRY_EVENTS
from dspy_observe.facts import calls
from dspy_observe.records import RegistryEvent, Score
from dspy_observe.testing import offline_lm


@pytest.fixture
def registry() -> CollectorRegistry:
    """A registry of the test's own."""
    return CollectorRegistry()


@pytest.fixture
def callback(registry: CollectorRegistry) -> RegistryEventCallback:
    """A callback on it."""
    return RegistryEventCallback(Metrics(collector_registry=registry))


def event(name: str, version: str | None = "v1", environment: str | None = "prod", at: float = 1.0, **data: Any) -> Any:
    """An event of the program qa."""
    return RegistryEvent(f"dspy.registry.{name}", "qa", at, environment, version, data)


def series(registry: CollectorRegistry, name: str) -> dict[tuple[str, ...], float]:
    """All samples of one name, by label values."""
    return {
        tuple(sample.labels.values()): sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == name
    }


def test_every_registry_event_is_counted_by_its_short_name(
    registry: CollectorRegistry, callback: RegistryEventCallback
) -> None:
    """All eighteen, twice."""
    for name in REGISTRY_EVENTS * 2:
        callback.happened(RegistryEvent(name, "qa", 1.0, "prod", "v1"))
    found = series(registry, "dspy_registry_events_total")
    assert found == {("qa", name.removeprefix("dspy.registry.")): 2 for name in REGISTRY_EVENTS}


def test_exactly_one_version_is_deployed_in_each_environment(
    registry: CollectorRegistry, callback: RegistryEventCallback
) -> None:
    """Deployments and rollbacks move it; starts, errors and other events do not."""
    callback.happened(event("deploy_complete", "v1", at=10.0))
    callback.happened(event("deploy_complete", "v1", "staging", at=11.0))
    callback.happened(event("deploy_start", "v2", at=12.0))
    callback.happened(event("deploy_error", "v2", at=13.0))
    callback.happened(event("register_complete", "v3", at=14.0))
    assert series(registry, "dspy_deployed_version_info") == {("qa", "prod", "v1"): 1, ("qa", "staging", "v1"): 1}
    callback.happened(event("deploy_complete", "v2", at=20.0))
    assert series(registry, "dspy_deployed_version_info") == {("qa", "prod", "v2"): 1, ("qa", "staging", "v1"): 1}
    callback.happened(event("rollback_complete", "v1", at=30.0))
    callback.happened(event("deploy_complete", "v1", at=31.0))
    assert series(registry, "dspy_deployed_version_info") == {("qa", "prod", "v1"): 1, ("qa", "staging", "v1"): 1}
    assert series(registry, "dspy_deployment_timestamp_seconds") == {("qa", "prod"): 31.0, ("qa", "staging"): 11.0}


def test_rollbacks_by_trigger_and_outcome(registry: CollectorRegistry, callback: RegistryEventCallback) -> None:
    """A trigger that is no word of ours is unknown, so that the label stays bounded."""
    for trigger in ("alert", "monitor", "manual", "the full moon", None, 7):
        callback.happened(event("rollback_complete", trigger=trigger))
    callback.happened(event("rollback_error", trigger="alert"))
    callback.happened(event("rollback_start", trigger="alert"))
    assert series(registry, "dspy_rollbacks_total") == {
        ("qa", "prod", "alert", "complete"): 1,
        ("qa", "prod", "monitor", "complete"): 1,
        ("qa", "prod", "manual", "complete"): 1,
        ("qa", "prod", "unknown", "complete"): 3,
        ("qa", "prod", "alert", "error"): 1,
    }


def test_scores_are_booked_by_version_role_and_source(
    registry: CollectorRegistry, callback: RegistryEventCallback
) -> None:
    """Zero and one have a bucket each."""
    for value in (0.0, 1.0, 1.0):
        callback.scored(Score("c", value, "user", "qa", "v1", "canary", None, 1.0))
    labels = {"program": "qa", "version": "v1", "role": "canary", "source": "user"}
    assert registry.get_sample_value("dspy_score_count", labels) == 3
    assert registry.get_sample_value("dspy_score_sum", labels) == 2
    assert registry.get_sample_value("dspy_score_bucket", {**labels, "le": "0.0"}) == 1
    assert registry.get_sample_value("dspy_score_bucket", {**labels, "le": "0.9"}) == 1


def test_a_real_evaluation_sets_the_gauge_of_its_version_and_data_set(
    registry: CollectorRegistry, callback: RegistryEventCallback
) -> None:
    """Two of four answers are right; the next evaluation replaces the figure."""
    program = dspy.Predict("question -> answer")
    calls.tag(program, "qa", "v7")
    devset = [dspy.Example(question=str(n), answer="42" if n < 2 else "?").with_inputs("question") for n in range(4)]

    def right(example: Any, prediction: Any, trace: Any = None) -> bool:
        return bool(example.answer == prediction.answer)

    evaluate = dspy.Evaluate(devset=devset, metric=right, num_threads=1, display_progress=False)
    with dspy.context(lm=offline_lm({"answer": "42"}), callbacks=[callback]):
        evaluate(program, callback_metadata={"dataset": "small"})
        assert series(registry, "dspy_evaluation_score") == {("qa", "v7", "small"): 0.5}
        dspy.Evaluate(devset=devset[:2], metric=right, num_threads=1, display_progress=False)(
            program, callback_metadata={"dataset": "small"}
        )
        evaluate(program)
    assert series(registry, "dspy_evaluation_score") == {("qa", "v7", "small"): 1.0, ("qa", "v7", "devset"): 0.5}
