"""Automatic registration, deployment by strategy, monitoring, status and clean-up on top of a registry.

Long, because it is one public class, half of it what its methods promise; the rules are in ``gates`` and ``advice``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from dspy_observe.errors import ConfigurationError, ObserveError
from dspy_observe.records import RegistryEvent
from dspy_observe.registry import advice, gates
from dspy_observe.registry.core import PRODUCTION
from dspy_observe.registry.errors import ApprovalMissing, NotSerialisable, Quarantined
from dspy_observe.registry.models import (
    BulkStatus,
    Cleanup,
    Decision,
    DeploymentPlan,
    DeploymentStatus,
    GateVerdict,
    Ruling,
    Standing,
    Version,
)
from dspy_observe.registry.options import STRATEGIES, IntegrationConfig, RegistryConfig
from dspy_observe.registry.signatures import SignatureRegistry
from dspy_observe.registry.values import finite

__all__ = ["RegistryManager"]

CONSERVATIVE_GAIN: Final = 0.1
"""The least relative gain of the conservative strategy."""


class RegistryManager:
    """What a team does around a registry, by itself where it is told to.

    Args:
        registry: The registry, or what makes one: options, a folder, a URL; ``None`` takes environment and defaults.
        integration_config: What happens by itself; read at every call, so it may be changed at any time.
        clock: Gives Unix time in seconds when a registry is made here; for tests.

    Raises:
        ConfigurationError, StoreUnavailable, CorruptRegistry: As for :class:`SignatureRegistry`.
    """

    def __init__(
        self,
        registry: SignatureRegistry | RegistryConfig | str | Path | None = None,
        integration_config: IntegrationConfig | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        own = integration_config if integration_config is not None else IntegrationConfig()
        if not isinstance(own, IntegrationConfig):
            raise ConfigurationError("RegistryManager", f"{own!r:.80} is no IntegrationConfig", "Pass one, or None")
        self.integration_config = own
        if not isinstance(registry, SignatureRegistry):
            registry = SignatureRegistry(registry, clock=clock)
        self.registry = registry

    def subscribe(self, pattern: str, listener: Callable[[RegistryEvent], None]) -> Callable[[], None]:
        """Call ``listener(event)`` after each change of the registry; see :meth:`SignatureRegistry.subscribe`."""
        return self.registry.subscribe(pattern, listener)

    # --- what optimizers return --------------------------------------------------------------------------------------

    def register_optimization_result(
        self,
        result: Any,
        signature_name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        score: float | None = None,
        dataset: str | None = None,
        n: int | None = None,
        optimizer: Any | None = None,
        trainset: Sequence[Any] | None = None,
        valset: Sequence[Any] | None = None,
        environment: str = PRODUCTION,
    ) -> Version | None:
        """Register what an optimizer returned, book its score, and deploy it when it is better.

        Args:
            result: The compiled program; or an object or mapping with ``optimized_program`` and maybe
                ``best_score_value``; or a mapping with ``configuration``.
            signature_name: Where to register it; ``None`` takes the program's class name.
            metadata: Besides what the program and optimizer tell.
            score: Mean of the metric; ``None`` takes what the result says of itself.
            dataset: What it was scored on; ``None`` takes the validation set's hash where it is known.
            n: Examples of that; ``None`` takes the validation set's size.
            optimizer: The optimizer, so that its name, parameters and kind of score are known.
            trainset: Examples it learned from; ``None`` when unknown.
            valset: Examples it was chosen on; ``None`` when unknown.
            environment: Where ``auto_deploy_best_versions`` deploys.

        Returns:
            The version; ``None`` when ``auto_register_optimizations`` is off.

        Raises:
            NotSerialisable: The result holds neither a program nor a configuration.
            Besides those of :meth:`SignatureRegistry.register_program` and
            :meth:`SignatureRegistry.update_performance_score`.
        """
        if not self.integration_config.auto_register_optimizations:
            return None
        program, configuration, reported = _parts(result)
        about: dict[str, Any] = {}
        if optimizer is not None and program is not None:
            from dspy_observe.registry.programs import optimization_metadata

            found = optimization_metadata(optimizer, program, trainset=trainset, valset=valset)
            about = {key: value for key, value in found.to_dict().items() if value not in (None, {}, [])}
            reported = found.score if reported is None else reported
            dataset = dataset or found.valset_sha256
            n = n if n is not None else found.valset_size
        own = score if score is not None else reported
        value = None if own is None else finite(own)
        about.update(metadata or {})
        if program is not None:
            name = signature_name or type(program).__name__
            version = self.registry.register_program(
                name, program, metadata=about, optimizer=optimizer, trainset=trainset, devset=valset
            )
        else:
            if signature_name is None:
                raise ConfigurationError("signature_name", "a configuration has no name of its own", "Pass one")
            name = signature_name
            version = self.registry.register_version(name, configuration or {}, metadata=about)
        if value is not None:
            version = self.registry.update_performance_score(
                name, version.version, value, dataset=dataset, n=n, source="optimizer"
            )
        if self.integration_config.auto_deploy_best_versions:
            self.auto_deploy(name, version.version, environment=environment)
        return self.registry.get_version(name, version.version, environment=environment)

    # --- deployment --------------------------------------------------------------------------------------------------

    def auto_deploy(self, name: str, version: str, *, environment: str = PRODUCTION) -> GateVerdict:
        """Deploy a version if the gate lets it pass: better by ``auto_deploy_threshold``, with evidence on both sides.

        Returns:
            Why it was deployed, or why not.

        Raises:
            UnknownSignature, UnknownVersion: There is no such version.
            StoreUnavailable: The store cannot be written.
        """
        verdict = self.gate(name, version, environment=environment)
        return self._carry_out(name, verdict, environment, "auto")

    def gate(
        self, name: str, version: str, *, environment: str = PRODUCTION, threshold: float | None = None
    ) -> GateVerdict:
        """Judge a version against what is deployed, and change nothing.

        Args:
            name: The signature.
            version: The candidate: display name, alias or hash.
            environment: What it should replace.
            threshold: The least relative gain; ``None`` takes ``auto_deploy_threshold``.
        """
        config = self.integration_config
        candidate = self.registry.get_version(name, version, environment=environment)
        running = self.registry.get_deployed_version(name, environment=environment)
        if candidate.quarantined is not None:
            return GateVerdict("refused", f"{candidate.version} is quarantined", candidate.version, _named(running))
        if running is not None and running.version_hash == candidate.version_hash:
            return GateVerdict("nothing_to_do", f"{environment} runs it", candidate.version, running.version)
        return gates.judge(
            candidate.version, _named(running), self.registry.scores(name, candidate.version),
            () if running is None else self.registry.scores(name, running.version),
            threshold=config.auto_deploy_threshold if threshold is None else threshold,
            require_evidence=config.require_evidence,
        )  # fmt: skip

    def deploy_with_strategy(
        self, name: str, strategy: str | None = None, *, environment: str = PRODUCTION, actor: str | None = None
    ) -> Version | None:
        """Deploy the best version, as the strategy allows.

        ``conservative`` deploys it when it is better by 10 %, or by ``auto_deploy_threshold`` where that is more, and
        not by chance as far as the scores tell; ``aggressive`` and ``best_score`` deploy whatever has the highest
        score; ``manual`` deploys nothing.

        Args:
            name: The signature.
            strategy: ``None`` takes ``deployment_strategy``.
            environment: Where.
            actor: Who asks for it.

        Returns:
            What was deployed; ``None`` when nothing was. :meth:`judge_strategy` tells why.

        Raises:
            ConfigurationError: There is no such strategy.
            UnknownSignature, StoreUnavailable, ApprovalMissing, Conflict: As for ``deploy_version``.
        """
        verdict = self.judge_strategy(name, strategy, environment=environment)
        if not verdict or verdict.candidate is None:
            return None
        generation = self._generation(name, environment, verdict)
        return self.registry.deploy_version(
            name, verdict.candidate, environment=environment, reason=verdict.reason, actor=actor,
            expected_generation=generation,
        )  # fmt: skip

    def judge_strategy(self, name: str, strategy: str | None = None, *, environment: str = PRODUCTION) -> GateVerdict:
        """What :meth:`deploy_with_strategy` would do, and why; nothing is changed."""
        strategy = strategy if strategy is not None else self.integration_config.deployment_strategy
        if strategy not in STRATEGIES:
            raise ConfigurationError("strategy", f"{strategy!r} is not known", f"Use one of {', '.join(STRATEGIES)}")
        running = self.registry.get_deployed_version(name, environment=environment)
        if strategy == "manual":
            return GateVerdict("refused", "the strategy is manual: deploy by name", None, _named(running))
        scores = self.registry.scores(name)
        allowed = [one.version_hash for one in self.registry.list_versions(name) if one.quarantined is None]
        mine = [one for one in scores if running is not None and one.version_hash == running.version_hash]
        dataset = mine[-1].dataset if mine else next(
            (one.dataset for one in reversed(scores) if one.version_hash in allowed), None
        )  # fmt: skip
        chosen = gates.best(scores, allowed, dataset)
        if chosen is None:
            return GateVerdict("unscored", "no version has a score to go by", None, _named(running))
        candidate = self.registry.get_version(name, chosen)
        if running is not None and candidate.version_hash == running.version_hash:
            here = running.version
            return GateVerdict("nothing_to_do", f"{environment} runs the best version", here, here)
        if strategy in ("aggressive", "best_score"):
            reason = f"{candidate.version} has the highest score"
            return GateVerdict("deploy", reason, candidate.version, _named(running), None, dataset)
        theirs = [one for one in scores if one.version_hash == chosen]
        known = all(one.n is not None for one in (*theirs[-1:], *mine[-1:]))
        return gates.judge(
            candidate.version, _named(running), theirs, mine,
            threshold=max(CONSERVATIVE_GAIN, self.integration_config.auto_deploy_threshold),
            require_evidence=known and self.integration_config.require_evidence,
        )  # fmt: skip

    def _carry_out(self, name: str, verdict: GateVerdict, environment: str, trigger: str) -> GateVerdict:
        if not verdict or verdict.candidate is None:
            return verdict
        try:
            self.registry.deploy_version(
                name, verdict.candidate, environment=environment, reason=verdict.reason, trigger=trigger,
                expected_generation=self._generation(name, environment, verdict),
            )  # fmt: skip
        except (ApprovalMissing, Quarantined) as error:
            return replace(verdict, outcome="refused", reason=str(error))
        return verdict

    def _generation(self, name: str, environment: str, verdict: GateVerdict) -> int:
        """The generation at which the judged version is deployed; a move in between is a conflict."""
        pointer = self.registry.pointer(name, environment=environment)
        if pointer is None:
            return 0
        return pointer.generation if pointer.version == verdict.deployed else pointer.generation - 1

    # --- monitoring --------------------------------------------------------------------------------------------------

    def monitor_and_rollback(
        self, name: str, current_score: float, *, environment: str = PRODUCTION, baseline: float | None = None
    ) -> Decision:
        """Roll back when the deployed version is worse than it was by more than ``rollback_threshold``.

        A plain rule on one number; the monitor of ``dspy_observe.rollback`` weighs evidence instead. Within
        ``rollback_cooldown_s`` of a rollback, and beyond ``max_rollbacks_per_hour``, nothing moves.

        Args:
            name: The signature.
            current_score: How good the deployed version is now; higher is better.
            environment: Where.
            baseline: How good it was; ``None`` takes its latest score.

        Returns:
            The decision, with its reason; true when it was rolled back.

        Raises:
            InvalidScore: The score is no finite number; nothing was decided.
            UnknownSignature: There is no such signature.
            StoreUnavailable: The store cannot be written.
        """
        current = finite(current_score)
        if baseline is not None:
            finite(baseline)
        config = self.integration_config

        def judge(standing: Standing) -> Ruling:
            return advice.drop_ruling(standing, current, baseline, config)

        return self.registry.decide(name, judge, environment=environment, trigger="monitor")

    # --- what stands where -------------------------------------------------------------------------------------------

    def get_deployment_status(self, name: str, *, environment: str = PRODUCTION) -> DeploymentStatus:
        """How a signature stands in an environment, with recommendations in words.

        Raises:
            UnknownSignature: There is no such signature.
        """
        return advice.status(self.registry, name, environment, self.integration_config)

    def bulk_deployment_status(
        self, names: Iterable[str] | None = None, *, environment: str = PRODUCTION
    ) -> BulkStatus:
        """The status of several signatures; one that cannot be told does not keep the others back.

        Args:
            names: Which; ``None`` takes all.
            environment: Where.
        """
        statuses, errors = [], {}
        for name in self.registry.list_signatures() if names is None else names:
            try:
                statuses.append(self.get_deployment_status(name, environment=environment))
            except ObserveError as error:
                errors[str(name)] = str(error)
        return BulkStatus(tuple(statuses), errors)

    def create_deployment_plan(
        self, name: str, target_version: str, *, environment: str = PRODUCTION
    ) -> DeploymentPlan:
        """What deploying a version would mean; nothing is changed.

        Raises:
            UnknownSignature, UnknownVersion: There is no such version.
        """
        return advice.plan(self.registry, name, target_version, environment)

    def cleanup_old_versions(self, *, dry_run: bool = False, keep: int | None = None) -> Cleanup:
        """Remove old versions of all signatures, and programs that nothing refers to.

        What an environment runs, what its rollback would take, and what has an alias always stays.

        Args:
            dry_run: Only tell what would go.
            keep: How many of the newest stay in each signature, at least 1; ``None`` takes ``keep_versions``.

        Raises:
            CorruptRegistry: A part of the registry cannot be read; nothing was removed.
            StoreUnavailable: The store cannot be written.
        """
        least = self.integration_config.keep_versions if keep is None else keep
        if type(least) is not int or least < 1:
            raise ConfigurationError("keep", f"{least!r} would leave nothing", "Use a whole number from 1 up")
        names, collected = self.registry.list_signatures(), 0
        planned = {name: self.registry.remove_versions(name, keep=least, dry_run=True) for name in names}
        if not dry_run:
            # Both have now read every signature, so that a damaged one refuses the clean-up before anything is cut.
            collected = self.registry.collect_programs()
            planned = {name: self.registry.remove_versions(name, keep=least) for name in names}
            collected += self.registry.collect_programs()
        removed = {name: list(gone) for name, gone in planned.items() if gone}
        return Cleanup(dry_run, len(removed), sum(len(gone) for gone in removed.values()), removed, collected)


def _named(version: Version | None) -> str | None:
    return None if version is None else version.version


def _parts(result: Any) -> tuple[Any | None, Mapping[str, Any] | None, float | None]:
    """A result's program, configuration and score."""
    if isinstance(result, Mapping):
        program, configuration = result.get("optimized_program"), result.get("configuration")
        score = result.get("best_score_value", result.get("score"))
    else:
        program = getattr(result, "optimized_program", None)
        configuration, score = getattr(result, "configuration", None), getattr(result, "best_score_value", None)
        if program is None and configuration is None and callable(getattr(result, "named_predictors", None)):
            program, score = result, None
    if program is None and not isinstance(configuration, Mapping):
        raise NotSerialisable("result", f"{type(result).__name__} holds neither a program nor a configuration")
    return program, configuration, score
