"""What a version has to be as good as, by what the registry knows, and what a monitor can find out against it."""

from __future__ import annotations

from typing import Final

from dspy_observe.registry import versions
from dspy_observe.registry.core import PRODUCTION
from dspy_observe.registry.signatures import SignatureRegistry
from dspy_observe.registry.stores.base import View
from dspy_observe.registry.values import scrubbed_text
from dspy_observe.rollback.statistics import (
    Baseline,
    Evidence,
    Levels,
    MetricBounds,
    minimum_detectable_drop,
    scores_needed,
)

__all__ = ["EVALUATION", "LEAST_ONLINE", "SCORE", "baseline_of", "prospects", "words"]

SCORE: Final = "score"
"""The metric of all scores where none are declared."""
EVALUATION: Final = "evaluation"
"""The metric of evaluations on the held-out set."""
LEAST_ONLINE: Final = 100
"""Online scores below which a predecessor is no baseline."""
WANTED: Final = 0.05
"""A drop that should be found: less is hard to see for users, too."""
_FOUND_LATER: Final = frozenset({"canary"})
"""Sources of scores that were measured in operation: what is to be watched must not be its own measure."""


def baseline_of(
    view: View,
    evidence: Evidence | None,
    version_hash: str,
    environment: str,
    *,
    metric: str = SCORE,
    bounds: MetricBounds | None = None,
    dataset: str | None = None,
    least: int = LEAST_ONLINE,
) -> Baseline | None:
    """What a version is compared with: its predecessor's online scores, else a registered score of its own.

    A version that is not deployed and never was is compared with what is deployed.

    Args:
        view: The signature.
        evidence: What monitors know; ``None`` for nothing.
        version_hash: The version.
        environment: Where.
        metric: :data:`SCORE`, :data:`EVALUATION`, or the source of a declared metric.
        bounds: Of the metric; ``None`` is from 0 to 1.
        dataset: Only scores registered on it; ``None`` takes any. Needed for evaluations.
        least: Online scores that the predecessor has to have.

    Returns:
        ``None`` when there is nothing that says on how many examples it rests.
    """
    before = _predecessor(view, version_hash, environment)
    dataset = scrubbed_text(dataset)  # as it was kept
    if metric == EVALUATION:
        measured = None if before is None else _registered(view, before, metric, bounds, dataset)
        return measured or _registered(view, version_hash, metric, bounds, dataset, first=True)
    online = None if before is None or evidence is None else evidence.summary(before, metric)
    if online is not None and online.n is not None and online.n >= least:
        return online
    return _registered(view, version_hash, metric, bounds, dataset)


def _predecessor(view: View, version_hash: str, environment: str) -> str | None:
    pointer = view.pointer(environment)
    if pointer is None:
        return None
    if pointer.version_hash == version_hash:
        target = versions.target_of(view, environment)
        return None if target is None else target.version_hash
    served = {one.version_hash for one in view.deployments(environment)}
    bad = view.mark("quarantine", pointer.version_hash) is not None
    return None if version_hash in served or bad else pointer.version_hash


def _registered(
    view: View, version_hash: str, metric: str, bounds: MetricBounds | None, dataset: str | None, *, first: bool = False
) -> Baseline | None:
    """The latest score, or the first one, that says on how many examples it rests."""
    scale, scores = bounds or MetricBounds(), view.scores(version_hash)
    for one in scores if first else reversed(scores):
        own = metric in (SCORE, EVALUATION) or one.source == metric
        if one.n is None or one.source in _FOUND_LATER or not own or dataset not in (None, one.dataset):
            continue
        mean = scale.unit(one.value)
        if mean is not None:
            spread = None if one.stdev is None else one.stdev / (scale.high - scale.low)
            where = "" if one.dataset is None else f" on {one.dataset}"
            return Baseline(mean, one.n, spread, f"score of {one.version}{where}, n={one.n}")
    return None


def prospects(
    registry: SignatureRegistry, name: str, version: str, *, environment: str = PRODUCTION, levels: Levels | None = None
) -> str:
    """Which drop a monitor would find if the version ran in the environment: one line, for whoever deploys it.

    Args:
        registry: The registry.
        name: The signature.
        version: Display name, alias or hash.
        environment: Where.
        levels: How often a monitor may be wrong; ``None`` takes the defaults.

    Raises:
        UnknownSignature, UnknownVersion: There is no such version.
    """
    state = registry.evidence(name, environment=environment)
    with registry.view(name) as view:
        digits = versions.resolve(view, version).version_hash
        try:
            evidence = Evidence(state) if state else None
        except ValueError:  # a newer release wrote it
            evidence = None
        return words(baseline_of(view, evidence, digits, environment), levels or Levels())


def words(baseline: Baseline | None, levels: Levels) -> str:
    """What can be found out against a baseline, in a sentence."""
    if baseline is None:
        return (
            "Monitoring: there is nothing to compare online scores with. Register a score with its number of examples "
            "(n) and spread (stdev), or send part of the traffic to a control arm."
        )
    against = f"Monitoring: compared with {baseline.mean:.4g} ({baseline.origin}), at least {baseline.floor:.4g}"
    least = minimum_detectable_drop(baseline, levels)
    if least is None:
        return f"{against}: UNDERPOWERED, no drop can be found. Evaluate on more examples, or use a control arm."
    found = f"{against}; a drop of {least:.3f} or more is found within {levels.horizon:,} scores"
    if least > WANTED:
        return f"{found}. UNDERPOWERED for {WANTED:g}: evaluate on more examples, or use a control arm."
    return f"{found}, one of {WANTED:g} in about {scores_needed(baseline, WANTED, levels):,}."
