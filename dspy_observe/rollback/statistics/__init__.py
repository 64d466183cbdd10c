"""Whether a version got worse: tests that stay right however often one looks, and what they say. Pure."""

from __future__ import annotations

from dspy_observe.rollback.statistics.baselines import Baseline, MetricBounds, Summary, lower_bound
from dspy_observe.rollback.statistics.evidence import Evidence
from dspy_observe.rollback.statistics.power import minimum_detectable_drop, scores_needed
from dspy_observe.rollback.statistics.ratio import sample_ratio_mismatch, sample_ratio_p
from dspy_observe.rollback.statistics.scene import Folded, Observation, Rule, Scene, Verdict, VerdictName
from dspy_observe.rollback.statistics.seen import SEEN_IDS
from dspy_observe.rollback.statistics.sequential import TIE, Bets, Levels, OneArm, TwoArms

__all__ = [
    "SEEN_IDS",
    "TIE",
    "Baseline",
    "Bets",
    "Evidence",
    "Folded",
    "Levels",
    "MetricBounds",
    "Observation",
    "OneArm",
    "Rule",
    "Scene",
    "Summary",
    "TwoArms",
    "Verdict",
    "VerdictName",
    "lower_bound",
    "minimum_detectable_drop",
    "sample_ratio_mismatch",
    "sample_ratio_p",
    "scores_needed",
]
