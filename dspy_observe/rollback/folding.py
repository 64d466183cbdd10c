"""How scores become evidence in the registry, and evidence a decision: what a monitor does at each flush."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from dspy_observe import safety
from dspy_observe.registry import versions
from dspy_observe.registry.baselines import EVALUATION, baseline_of
from dspy_observe.registry.errors import UnknownSignature, UnknownVersion
from dspy_observe.registry.models import Ruling
from dspy_observe.registry.records import StoredVersion
from dspy_observe.registry.signatures import SignatureRegistry
from dspy_observe.registry.stores.base import View
from dspy_observe.rollback.deciding import settle
from dspy_observe.rollback.monitor_options import MonitorOptions
from dspy_observe.rollback.policy import Request
from dspy_observe.rollback.statistics import Baseline, Evidence, Observation, Scene, Verdict

__all__ = ["Folding", "Outcome", "Waiting"]

_logger = logging.getLogger("dspy_observe")


@dataclass(frozen=True, slots=True)
class Waiting:
    """A score that was taken in; its version is looked up in the registry later."""

    version: str
    role: str
    metric: str
    score: float | None
    """On the scale from 0 to 1; ``None`` when it was no value of its metric."""
    at: float
    score_id: str | None
    n: int | None = None
    """Of an evaluation."""


@dataclass(slots=True)
class Outcome:
    """What a fold found out, to be done after its commit."""

    evidence: Evidence
    scene: Scene
    ask: tuple[str, str, Verdict] | None = None
    """Hash and name of the version to be rolled back, and why."""
    outage: str | None = None
    unknown: int = 0


class Folding:
    """Folds scores into the registry, and asks for what follows.

    Args:
        registry: Where versions live and the evidence is kept.
        names: The programs that are watched together.
        environment: Which environment.
        options: Of the monitor.
        clock: Gives Unix time in seconds.
    """

    def __init__(
        self,
        registry: SignatureRegistry,
        names: Sequence[str],
        environment: str,
        options: MonitorOptions,
        clock: Callable[[], float],
    ) -> None:
        self.registry = registry
        self.names = names
        self.environment = environment
        self.options = options
        self._clock = clock

    def fold(self, name: str, waiting: Sequence[Waiting]) -> Outcome:
        """Fold scores of one program, in one transaction.

        Raises:
            UnknownSignature: The registry has no such program.
            StoreUnavailable: Nothing was stored.
            ValueError: The evidence there cannot be read.
        """
        made: list[Outcome] = []

        def change(state: dict[str, Any] | None, view: View) -> dict[str, Any]:
            evidence = Evidence(state or None)
            outcome = Outcome(evidence, self.scene(name, view, evidence))
            made[:] = [outcome]
            observations = []
            records = {version: _known(view, version) for version in {one.version for one in waiting}}
            for one in waiting:
                record = records[one.version]
                if record is None:
                    outcome.unknown += 1
                elif one.score is None:
                    evidence.reject(record.version_hash, record.version)
                else:
                    observations.append(
                        Observation(
                            record.version_hash, record.version, one.role, one.metric, one.score, one.at, one.score_id,
                            one.n,
                        )
                    )  # fmt: skip
            evidence.fold(observations, outcome.scene)
            self._claim(evidence, view, outcome)
            return evidence.to_dict()

        self.registry.fold_evidence(name, change, environment=self.environment)
        (outcome,) = made
        if outcome.unknown:
            safety.swallowed("monitor.version", UnknownVersion(name, "of a score"), outcome.unknown)
        return outcome

    def _claim(self, evidence: Evidence, view: View, outcome: Outcome) -> None:
        """Take on what has to be asked and told; of several monitors one gets it."""
        if not self.options.act:
            return
        outcome.outage = evidence.tell_outage()
        pointer = view.pointer(self.environment)
        if pointer is not None and evidence.ask(pointer.version_hash, outcome.scene.now, self.options.retry_s):
            verdict = evidence.verdict(pointer.version_hash, outcome.scene)
            outcome.ask = (pointer.version_hash, pointer.version, verdict)

    def scene(self, name: str, view: View | None = None, evidence: Evidence | None = None) -> Scene:
        """What evidence is weighed against; without a view, as far as a verdict needs it."""
        options = self.options

        def baseline(digits: str, metric: str) -> Baseline | None:
            if view is None:
                return None
            return baseline_of(
                view, evidence, digits, self.environment, metric=metric, bounds=options.bounds_of(metric),
                dataset=options.dataset if metric == EVALUATION else None, least=options.min_baseline,
            )  # fmt: skip

        pointer = None if view is None else view.pointer(self.environment)
        return Scene(
            self._clock(), None if pointer is None else pointer.version_hash,
            0.0 if pointer is None else pointer.at.timestamp(), options.levels, options.parts, options.rule,
            options.threshold, options.min_effect, options.min_scores, baseline,
            None if options.shares is None else options.shares(name), lambda: self._witnesses(name),
        )  # fmt: skip

    def _witnesses(self, name: str) -> list[bool]:
        found = []
        for other in self.names:
            if other != name:
                try:
                    state = self.registry.evidence(other, environment=self.environment)
                    drops = Evidence(state or None).is_dropping(self._clock())
                except (UnknownSignature, ValueError):
                    continue
                if drops is not None:
                    found.append(drops)
        return found

    def act(self, name: str, outcome: Outcome) -> None:
        """Ask for the rollback and tell of the outage that a fold took on."""
        if outcome.outage is not None:
            reason = f"global cause: {outcome.outage}; no version is to blame"
            _logger.warning("dspy_observe: %s: %s", name, reason)
            self.registry.decide(
                name, lambda _: Ruling("held", reason, {"verdict": "global_cause"}), environment=self.environment,
                trigger="monitor",
            )  # fmt: skip
        if outcome.ask is None:
            return
        digits, version, verdict = outcome.ask
        since = datetime.fromtimestamp(verdict.since or self._clock(), UTC)
        # The evidence is as of now, however long ago it began: only a younger beginning tells of a later deployment.
        recent = self._clock() - since.timestamp() < self.options.limits.max_alert_age_s
        request = Request(
            trigger="monitor", program=name, environment=self.environment, version=version,
            started_at=since if recent else None, fingerprint=f"evidence:{digits[:12]}", reason=verdict.reason,
            inputs=_inputs(verdict),
        )  # fmt: skip
        made = settle(self.registry, request, self.options.limits, starts_at=since.isoformat())
        _logger.warning("dspy_observe: %s %s regressed: %s: %s", name, version, made.outcome, made.reason)


def _known(view: View, version: str) -> StoredVersion | None:
    try:
        return versions.resolve(view, version)
    except UnknownVersion:
        return None


def _inputs(verdict: Verdict) -> dict[str, Any]:
    baseline = verdict.baseline
    drop = None if baseline is None or verdict.mean is None else baseline.mean - verdict.mean
    return {
        "current_score": verdict.mean, "previous_score": None if baseline is None else baseline.mean,
        "performance_drop": drop, "verdict": replace(verdict, since=None).to_dict(),
    }  # fmt: skip
