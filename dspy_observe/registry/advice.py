"""Status, plans and the plain rule for a rollback: what the registry knows, in words."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from dspy_observe.registry import baselines
from dspy_observe.registry.errors import CorruptRegistry
from dspy_observe.registry.models import DeploymentPlan, DeploymentStatus, Ruling, Standing, Version
from dspy_observe.registry.options import IntegrationConfig
from dspy_observe.registry.signatures import SignatureRegistry

__all__ = ["drop_ruling", "plan", "status"]

OLD: Final = timedelta(days=7)
"""A target older than this is worth a second look."""
_TIE: Final = 1e-9
"""A drop closer than this to the threshold does not exceed it."""
_HOUR: Final = timedelta(hours=1)


def drop_ruling(standing: Standing, current: float, baseline: float | None, config: IntegrationConfig) -> Ruling:
    """Whether a score is so much lower than the baseline that the deployed version has to go.

    A drop of exactly the threshold is no reason. The threshold is relative to the size of the baseline, and absolute
    where the baseline is 0.
    """
    known = standing.deployed_score if baseline is None else baseline
    inputs = {"current_score": current, "previous_score": known, "threshold": config.rollback_threshold}
    if not config.rollback_on_performance_drop:
        return Ruling("ignored", "rollback_on_performance_drop is off", inputs)
    if standing.pointer is None:
        return Ruling("rejected", "nothing is deployed", inputs)
    if known is None:
        return Ruling("ignored", f"{standing.pointer.version} has no score to compare with", inputs)
    drop = known - current
    inputs["performance_drop"] = drop
    allowed = config.rollback_threshold * (abs(known) or 1.0)
    if drop <= allowed + _TIE:
        return Ruling("ignored", f"a drop of {drop:g} is within {allowed:g}", inputs)
    words = f"the score fell from {known:g} to {current:g}, by more than {allowed:g}"
    recent = [one for one in standing.rollbacks if standing.now - one.at < _HOUR]
    if standing.rollbacks and (standing.now - standing.rollbacks[-1].at).total_seconds() < config.rollback_cooldown_s:
        return Ruling("held", f"{words}; within the cool-down after the last rollback", inputs)
    if len(recent) >= config.max_rollbacks_per_hour:
        return Ruling("held", f"{words}; {len(recent)} rollbacks within the last hour are enough", inputs)
    if standing.rollback_target is None:
        return Ruling("rejected", f"{words}, but there is nothing to roll back to", inputs)
    return Ruling("rollback", words, inputs)


def status(registry: SignatureRegistry, name: str, environment: str, config: IntegrationConfig) -> DeploymentStatus:
    """How a signature stands in an environment."""
    versions = registry.list_versions(name, environment=environment)
    pointer = registry.pointer(name, environment=environment)
    running = next((one for one in versions if one.is_deployed), None)
    log = registry.deployment_log(name, environment=environment)
    target = registry.rollback_target(name, environment=environment)
    history = registry.get_performance_history(name, environment=environment)
    times = [one.created_at for one in versions] + [one.scored_at for one in history.versions] + [one.at for one in log]
    return DeploymentStatus(
        name, environment, running, None if pointer is None else pointer.at,
        0 if pointer is None else pointer.generation, target, len(versions),
        tuple(one.version for one in versions if one.quarantined is not None), history,
        tuple(_recommendations(versions, running, target, environment, config)), max(times),
    )  # fmt: skip


def _recommendations(
    versions: list[Version], running: Version | None, target: str | None, environment: str, config: IntegrationConfig
) -> list[str]:
    said = []
    allowed = [one for one in versions if one.quarantined is None]
    scored = [one for one in allowed if one.performance_score is not None]
    best = max(scored, key=lambda one: one.performance_score or 0.0, default=None)
    if running is None:
        said.append(
            f"Nothing is deployed in {environment}. Deploy {best.version}, which has the highest score."
            if best is not None
            else f"Nothing is deployed in {environment}, and no version has a score. Evaluate one first."
        )
        return said
    if running.quarantined is not None:
        said.append(f"{running.version} is deployed and quarantined ({running.quarantined}). Deploy another.")
    if running.performance_score is None:
        said.append(f"{running.version} is deployed and has no score. Evaluate it, so that others can be compared.")
    elif best is not None and best.performance_score is not None and best.performance_score > running.performance_score:
        said.append(
            f"{best.version} has a higher score ({best.performance_score:g}) than what is deployed "
            f"({running.performance_score:g}). See create_deployment_plan."
        )
    if target is None:
        said.append("There is nothing to roll back to. Keep an earlier good version deployed once before the next one.")
    unscored = [one.version for one in allowed if one.performance_score is None and one is not running]
    if unscored:
        have = "version has" if len(unscored) == 1 else "versions have"
        said.append(f"{len(unscored)} {have} no score: {', '.join(unscored[-3:])}.")
    if len(versions) > config.keep_versions:
        said.append(f"There are {len(versions)} versions. See cleanup_old_versions, with dry_run first.")
    if not said:
        said.append(f"{running.version} is deployed and has the highest score. Nothing to do.")
    return said


def plan(registry: SignatureRegistry, name: str, target_version: str, environment: str) -> DeploymentPlan:
    """What deploying a version would mean."""
    checks: list[str] = []
    advice: list[str] = []
    safe = True
    current = registry.get_deployed_version(name, environment=environment)
    pointer = registry.pointer(name, environment=environment)
    listed = {one.version: one for one in registry.list_versions(name, environment=environment)}
    try:
        target = registry.get_version(name, target_version, environment=environment)
        checks.append("The content is complete and agrees with its hash.")
    except CorruptRegistry as error:
        if target_version not in listed:
            raise
        target, safe = listed[target_version], False
        checks.append(f"FAILED: {error}")
    if target.quarantined is not None:
        safe = False
        checks.append(f"FAILED: {target.version} is quarantined ({target.quarantined}).")
        advice.append("Deploying it takes force and a reason.")
    if environment in registry.config.protected_environments:
        checks.append(f"{environment} is protected: an approval of exactly this content is needed.")
    change: float | None = None
    changes: tuple[str, ...] = ()
    if current is None:
        checks.append(f"Nothing is deployed in {environment}: the first deployment has nothing to go back to.")
    elif current.version_hash == target.version_hash:
        checks.append(f"{environment} runs this version already.")
        advice.append("Nothing to do.")
    elif safe:
        comparison = registry.compare_versions(name, target.version, current.version, environment=environment)
        change, changes = comparison.performance_difference, comparison.configuration_changes
        checks.append(_about_scores(change, comparison.dataset))
        safe = change is None or change >= 0
        advice += comparison.warnings
        if change is None or comparison.version_1.n is None or comparison.version_2.n is None:
            advice.append("Evaluate both versions on the same data set and say on how many examples, before deploying.")
        elif not safe:
            advice.append(f"Keep {current.version}: the target is worse.")
    older_by = max(one.created_at for one in listed.values()) - target.created_at
    if older_by > OLD:
        advice.append(f"{target.version} is {older_by.days} days older than the latest version.")
    if not advice:
        advice.append("Deploy it, and watch its scores." if safe else "Do not deploy it.")
    advice.append(baselines.prospects(registry, name, target.version, environment=environment))
    return DeploymentPlan(
        name, environment, None if current is None else current.version, target.version, safe, tuple(checks),
        tuple(advice), change, tuple(changes), 0 if pointer is None else pointer.generation,
    )  # fmt: skip


def _about_scores(change: float | None, dataset: str | None) -> str:
    if change is None:
        return "Unknown: there are no scores of both versions on one data set."
    where = "" if dataset is None else f" on {dataset}"
    if change < 0:
        return f"FAILED: the score falls by {-change:g}{where}."
    return f"The score rises by {change:g}{where}." if change else f"The score stays the same{where}."
