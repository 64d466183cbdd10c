"""The registry as DSPy.rb documents it, section by section, in Python."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dspy_observe.conventions import REGISTRY_EVENTS
from dspy_observe.registry import (
    IntegrationConfig,
    NothingToRollBackTo,
    RegistryConfig,
    RegistryManager,
    SignatureRegistry,
    VersionExists,
)

NAME = "text_classifier"
Open = Callable[..., SignatureRegistry]


def test_setting_up_with_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without arguments the registry is ./dspy_registry and keeps ten versions named after the clock."""
    monkeypatch.chdir(tmp_path)
    registry = SignatureRegistry()
    version = registry.register_version(NAME, {"instruction": "Classify."})
    assert (tmp_path / "dspy_registry" / "signatures" / "text_classifier.yml").is_file()
    assert registry.config == RegistryConfig()
    assert RegistryConfig().to_dict() == {
        "registry_path": "./dspy_registry", "auto_version": True, "max_versions_per_signature": 10,
        "backup_on_deploy": True, "version_format": "v%Y%m%d_%H%M%S", "protected_environments": [],
    }  # fmt: skip
    assert len(version.version) == len("v20240115_143022")


def test_setting_up_with_options(tmp_path: Path) -> None:
    """Attributes of a config, as documented."""
    config = RegistryConfig()
    config.registry_path = str(tmp_path / "my_dspy_registry")
    config.auto_version = True
    config.max_versions_per_signature = 10
    registry = SignatureRegistry(config)
    registry.register_version(NAME, {"instruction": "Classify."})
    assert (tmp_path / "my_dspy_registry" / "registry.yml").is_file()


def test_registering_versions(registry: SignatureRegistry) -> None:
    """With configuration, metadata and the id of a stored program; or under a name of one's own."""
    metadata = {
        "optimizer": "MIPROv2", "training_examples": 5000, "accuracy": 0.92, "precision": 0.89, "recall": 0.94,
        "training_time_minutes": 45, "environment": "production", "tested_in": ["staging", "qa"], "team": "ml_platform",
        "approved_by": "alice@example.com",
    }  # fmt: skip
    version = registry.register_version(
        NAME, {"instruction": "Classify.", "few_shot_examples_count": 4}, metadata=metadata, program_id="abc123"
    )
    assert version.version == "v20240115_143022"
    assert registry.get_version(NAME, version.version).metadata == metadata
    assert registry.list_versions(NAME)[0].program_id == "abc123"
    assert registry.register_version(NAME, {"instruction": "Other."}, version="2.1.0").version == "2.1.0"


def test_automatic_integration(registry: SignatureRegistry) -> None:
    """A manager whose options are set one by one registers a result."""
    manager = RegistryManager(registry)
    manager.integration_config.auto_register_optimizations = True
    manager.integration_config.auto_deploy_best_versions = True
    manager.integration_config.auto_deploy_threshold = 0.1
    version = manager.register_optimization_result(
        {"configuration": {"instruction": "Classify."}, "best_score_value": 0.9}, signature_name=NAME,
        metadata={"environment": "production"},
    )  # fmt: skip
    assert version is not None
    assert version.performance_score == 0.9
    assert version.is_deployed


def test_auto_registration_by_default(registry: SignatureRegistry) -> None:
    """Switched on in a config of its own."""
    config = IntegrationConfig()
    config.auto_register_optimizations = True
    manager = RegistryManager(registry, integration_config=config)
    result = {"configuration": {"instruction": "Classify."}, "best_score_value": 0.9}
    assert manager.register_optimization_result(result, NAME) is not None
    assert registry.list_signatures() == [NAME]


@pytest.fixture
def two(registry: SignatureRegistry) -> SignatureRegistry:
    """The two versions of the documentation, with scores."""
    registry.register_version(NAME, {"instruction": "Classify.", "demos": 2}, version="v20240114_090511")
    registry.register_version(NAME, {"instruction": "Classify well.", "demos": 2}, version="v20240115_143022")
    registry.update_performance_score(NAME, "v20240114_090511", 0.80)
    registry.update_performance_score(NAME, "v20240115_143022", 0.92)
    return registry


def test_listing(two: SignatureRegistry) -> None:
    """Versions with score and state, and all signatures."""
    two.register_version("entity_extractor", {"a": 1})
    two.deploy_version(NAME, "v20240115_143022")
    assert [(v.version, v.performance_score, v.is_deployed) for v in two.list_versions(NAME)] == [
        ("v20240114_090511", 0.80, False), ("v20240115_143022", 0.92, True),
    ]  # fmt: skip
    assert ", ".join(two.list_signatures()) == "entity_extractor, text_classifier"


def test_performance_history(two: SignatureRegistry) -> None:
    """Best score and trend in percent."""
    history = two.get_performance_history(NAME)
    assert history.trends.best_score == 0.92
    assert history.trends.improvement_trend == pytest.approx(15.0)


def test_comparing(two: SignatureRegistry) -> None:
    """Difference of the scores, first minus second, and the changes in words."""
    comparison = two.compare_versions(NAME, "v20240115_143022", "v20240114_090511")
    assert comparison.performance_difference == pytest.approx(0.12)
    assert comparison.configuration_changes == ("Changed instruction: Classify. \u2192 Classify well.",)


def test_deploying_and_rolling_back(two: SignatureRegistry) -> None:
    """And nothing left to go back to is an error of its own."""
    two.deploy_version(NAME, "v20240114_090511")
    assert two.deploy_version(NAME, "v20240115_143022").version == "v20240115_143022"
    assert two.get_deployed_version(NAME).version == "v20240115_143022"
    assert two.rollback(NAME).version == "v20240114_090511"
    with pytest.raises(NothingToRollBackTo):
        two.rollback(NAME)


@pytest.mark.parametrize("strategy", ["conservative", "aggressive", "best_score"])
def test_deploying_by_strategy(two: SignatureRegistry, strategy: str) -> None:
    """0.92 is more than ten percent above 0.80."""
    two.deploy_version(NAME, "v20240114_090511")
    deployed = RegistryManager(two).deploy_with_strategy(NAME, strategy=strategy)
    assert deployed is not None
    assert deployed.version == "v20240115_143022"


def test_conservative_deployment_for_production(two: SignatureRegistry) -> None:
    """A threshold of fifteen percent, of which fifteen is enough and a little less is not."""
    two.deploy_version(NAME, "v20240114_090511")
    manager = RegistryManager(two)
    manager.integration_config.auto_deploy_threshold = 0.16
    manager.integration_config.deployment_strategy = "conservative"
    assert manager.deploy_with_strategy(NAME) is None
    manager.integration_config.auto_deploy_threshold = 0.15
    assert manager.deploy_with_strategy(NAME) is not None


def test_monitoring(two: SignatureRegistry) -> None:
    """A drop of more than five percent rolls back."""
    two.deploy_version(NAME, "v20240114_090511")
    two.deploy_version(NAME, "v20240115_143022")
    manager = RegistryManager(two)
    manager.integration_config.rollback_on_performance_drop = True
    manager.integration_config.rollback_threshold = 0.05
    assert not manager.monitor_and_rollback(NAME, 0.90)
    assert manager.monitor_and_rollback(NAME, 0.85)
    assert two.get_deployed_version(NAME).version == "v20240114_090511"


def test_files(tmp_path: Path, clock: Any) -> None:
    """The folder looks as documented, with a backup of what a deployment replaced."""
    registry = SignatureRegistry(tmp_path / "dspy_registry", clock=clock)
    registry.register_version(NAME, {"a": 1}, version="v20240115_143022")
    registry.register_version("entity_extractor", {"a": 1}, version="v1")
    registry.deploy_version(NAME, "v20240115_143022")
    registry.register_version(NAME, {"a": 2}, version="v2")
    registry.deploy_version(NAME, "v2")
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.yml")}
    assert found == {
        "dspy_registry/registry.yml", "dspy_registry/signatures/text_classifier.yml",
        "dspy_registry/signatures/entity_extractor.yml",
        "dspy_registry/backups/text_classifier/v20240115_143022_20240115_143022_000000.yml",
    }  # fmt: skip


def test_status(two: SignatureRegistry) -> None:
    """Deployed version, number of versions, recommendations."""
    two.deploy_version(NAME, "v20240114_090511")
    status = RegistryManager(two).get_deployment_status(NAME)
    assert status.deployed_version is not None
    assert status.deployed_version.version == "v20240114_090511"
    assert status.total_versions == 2
    assert "v20240115_143022 has a higher score" in status.recommendations[0]


def test_planning(two: SignatureRegistry) -> None:
    """Safe, by how much, checks and recommendations."""
    two.deploy_version(NAME, "v20240114_090511")
    plan = RegistryManager(two).create_deployment_plan(NAME, "v20240115_143022")
    assert plan.deployment_safe
    assert plan.performance_change == pytest.approx(0.12)
    assert plan.checks
    assert plan.recommendations


def test_cleaning_up(registry: SignatureRegistry, fill: Callable[..., None]) -> None:
    """Counts of versions and signatures."""
    fill(registry, *(f"v{number}" for number in range(8)), signature=NAME)
    results = RegistryManager(registry).cleanup_old_versions()
    assert (results.cleaned_versions, results.cleaned_signatures) == (3, 1)


def test_export_and_import(two: SignatureRegistry, tmp_path: Path) -> None:
    """All versions, configurations and metadata come back."""
    two.export_registry(tmp_path / "registry_backup.yml")
    other = SignatureRegistry(tmp_path / "other")
    other.import_registry(str(tmp_path / "registry_backup.yml"))
    assert [v.to_dict() for v in other.list_versions(NAME)] == [v.to_dict() for v in two.list_versions(NAME)]


def test_every_documented_event_is_told(two: SignatureRegistry, heard: Any, tmp_path: Path) -> None:
    """Each of the fourteen, under the documented name."""
    manager = RegistryManager(two, IntegrationConfig(require_evidence=False))
    two.register_version(NAME, {"a": 1})
    with pytest.raises(VersionExists):
        two.register_version(NAME, {"a": 2}, version="v20240114_090511")
    two.deploy_version(NAME, "v20240114_090511")
    with pytest.raises(LookupError):
        two.deploy_version(NAME, "none")
    two.update_performance_score(NAME, "v20240115_143022", 0.95)
    manager.auto_deploy(NAME, "v20240115_143022")
    manager.monitor_and_rollback(NAME, 0.1)
    with pytest.raises(NothingToRollBackTo):
        two.rollback(NAME)
    two.export_registry(tmp_path / "all.yml")
    two.import_registry(tmp_path / "all.yml")
    documented = {
        "register_start", "register_complete", "register_error", "deploy_start", "deploy_complete", "deploy_error",
        "rollback_start", "rollback_complete", "rollback_error", "performance_update", "auto_deployment",
        "automatic_rollback", "export", "import",
    }  # fmt: skip
    assert documented <= set(heard.short())
    assert {event.name for event in heard} <= set(REGISTRY_EVENTS)
