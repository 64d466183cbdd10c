"""What evidence says of a version, in one word and in a sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from dspy_observe.rollback.statistics.members import Pair, Scored
from dspy_observe.rollback.statistics.outages import Outage
from dspy_observe.rollback.statistics.power import minimum_detectable_drop
from dspy_observe.rollback.statistics.scene import Scene, Verdict, VerdictName
from dspy_observe.rollback.statistics.sequential import TIE, Levels
from dspy_observe.rollback.statistics.streams import Stream

__all__ = ["about", "by_metric", "fell", "gravest"]

SUSPECT: Final = math.log(10.0)
"""A tenth of the evidence that is needed makes a version suspect."""
_GRAVITY: Final = ("regressed", "global_cause", "suspect", "insufficient_data", "ok")
_LN10: Final = math.log(10.0)


def gravest(found: Sequence[Verdict]) -> Verdict:
    """The verdict that counts among those by several metrics."""
    return min(found, key=lambda one: _GRAVITY.index(one.verdict))


def fell(stream: Stream, levels: Levels, scene: Scene, slack: float = TIE) -> bool:
    """Whether a stream by itself is below its baseline.

    Args:
        stream: Scores of a version.
        levels: Of one metric.
        scene: Says by which rule.
        slack: By how much the evidence may fall short, in natural logarithms.
    """
    if scene.rule == "threshold":
        return stream.fell
    return stream.arm is not None and stream.arm.beyond(levels) >= -slack


def about(metric: str, stream: Stream, scene: Scene) -> str:
    """The numbers of a stream and of its baseline, in words."""
    whole, baseline = stream.summary(), stream.baseline
    if baseline is None:
        return metric
    rule = f"by more than {scene.threshold:g}" if scene.rule == "threshold" else f"at least {baseline.floor:.4f}"
    return (
        f"{metric}: mean {whole.mean:.4f} of {whole.n} scores against {baseline.mean:.4f} ({baseline.origin}), {rule}"
    )


def by_metric(
    version: Scored, metric: str, beside: tuple[Pair | None, str], outage: Outage | None, scene: Scene
) -> Verdict:
    """The verdict by one metric.

    Args:
        version: The version, which has scores by this metric.
        metric: Which.
        beside: The pair in which it is the suspect, and the name of the version beside it.
        outage: The common cause that is under way.
        scene: What the evidence is weighed against.
    """
    stream, levels, pair = version.streams[metric], scene.levels.split(scene.metrics), beside[0]
    whole = stream.summary()
    evidence = {}
    if stream.arm is not None:
        bets = stream.arm.bets
        evidence = {"e_process": bets.log_e / _LN10, "shiryaev_roberts": bets.log_late(levels.horizon) / _LN10}
    if pair is not None:
        evidence["two_arm"] = pair.arms.log_evidence(levels) / _LN10
    if version.regressed_at is not None:
        name, reason = _REGRESSED, version.why
    elif outage is not None:
        name, reason = _GLOBAL, outage.reason
    elif pair is not None:
        name, reason = _beside(stream, metric, pair, beside[1], scene)
    else:
        name, reason = _alone(stream, metric, scene)
    mean = None if whole.n == 0 else whole.mean
    return Verdict(name, reason, whole.n, mean, stream.baseline, evidence, version.regressed_at)


_REGRESSED: Final[VerdictName] = "regressed"
_GLOBAL: Final[VerdictName] = "global_cause"


def _beside(stream: Stream, metric: str, pair: Pair, control: str, scene: Scene) -> tuple[VerdictName, str]:
    """By the comparison with a version that answers at the same time."""
    levels = scene.levels.split(scene.metrics)
    theirs, own = pair.arms.n
    if pair.mismatch:
        return "insufficient_data", f"sample_ratio_mismatch: {pair.counts} scores where shares are {pair.shares}"
    if pair.arms.beyond(levels) >= -SUSPECT:
        return "suspect", f"{metric}: seems worse than {control} beside it"
    if fell(stream, levels, scene, SUSPECT):
        return "suspect", f"{metric}: below its baseline, but not known to be worse than {control} beside it"
    if min(theirs, own) < scene.least:
        return "insufficient_data", f"{metric}: {own} scores, and {theirs} beside it, of {scene.least} needed"
    return "ok", f"{metric}: {own} scores, and {theirs} of {control} beside it, show no difference for the worse"


def _alone(stream: Stream, metric: str, scene: Scene) -> tuple[VerdictName, str]:
    """By the comparison with the baseline."""
    levels, n = scene.levels.split(scene.metrics), stream.summary().n
    if stream.baseline is None:
        return "insufficient_data", f"{metric}: there is nothing to compare with"
    if fell(stream, levels, scene, SUSPECT):
        return "suspect", about(metric, stream, scene)
    if n < scene.least:
        return "insufficient_data", f"{metric}: {n} scores of {scene.least} needed"
    least = minimum_detectable_drop(stream.baseline, Levels(levels.alpha, n))
    seen = "no drop could have been found yet" if least is None else f"a drop of {least:.3f} would have been found"
    return "ok", f"{metric}: {n} scores show no regression; {seen}"
