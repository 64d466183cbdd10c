"""One run of a canary: the deployed version, and perhaps a candidate, over a held-out set; and what follows from it."""

from __future__ import annotations

import contextvars
import math
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Any, Final

from dspy_observe.canary_progress import Progress
from dspy_observe.errors import ObserveError
from dspy_observe.facts import calls
from dspy_observe.gate_verdict import Measured, measured
from dspy_observe.metrics import Metrics, instruments
from dspy_observe.registry import SignatureRegistry
from dspy_observe.registry.records import StoredVersion
from dspy_observe.rollback.monitor import Monitor
from dspy_observe.rollback.statistics import MetricBounds, Verdict

__all__ = ["Canary", "CanaryError", "Round", "Subject", "judge_candidate"]

TIE: Final = 1e-9
_POLL_S: Final = 0.2


class CanaryError(ObserveError):
    """Nothing could be measured."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A version that is evaluated."""

    record: StoredVersion
    role: str
    """``deployed`` or ``candidate``."""
    program: Any


@dataclass(frozen=True, slots=True)
class Round:
    """What one run found."""

    run: str
    dataset: str
    deployed: str
    measured: Measured
    verdict: Verdict
    """What all evidence says of the deployed version."""
    candidate: str | None = None
    candidate_measured: Measured | None = None
    candidate_passed: bool | None = None
    candidate_reason: str | None = None
    resumed: int = 0
    """Scores that an interrupted run had left."""
    errors: Mapping[str, int] = field(default_factory=dict)
    """Failed examples by the error's class."""

    @property
    def failed(self) -> bool:
        """Whether somebody has to look: what runs regressed or answers nothing, or the candidate is worse."""
        nothing = self.measured.failed == len(self.measured.scores)
        return nothing or self.verdict.verdict == "regressed" or self.candidate_passed is False

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        candidate = None if self.candidate_measured is None else {
            "version": self.candidate, **_numbers(self.candidate_measured), "passed": self.candidate_passed,
            "reason": self.candidate_reason,
        }  # fmt: skip
        return {
            "run": self.run, "dataset": self.dataset, "failed": self.failed, "resumed": self.resumed,
            "errors": dict(self.errors),
            "deployed": {"version": self.deployed, **_numbers(self.measured), "verdict": self.verdict.to_dict()},
            "candidate": candidate,
        }  # fmt: skip


def _numbers(found: Measured) -> dict[str, Any]:
    return {"score": found.score, "n": len(found.scores), "failed": found.failed, "stdev": found.stdev}


def judge_candidate(deployed: Measured, candidate: Measured, max_drop: float) -> tuple[bool, str]:
    """Whether a candidate may be worse than it is, measured on the same examples.

    Args:
        deployed: What runs.
        candidate: What should.
        max_drop: How much lower its mean may be, in the metric's units; a drop of exactly this passes.

    Returns:
        Whether it passes, and why, with the error of the difference.
    """
    pairs = [(one or 0.0) - (other or 0.0) for one, other in zip(candidate.scores, deployed.scores, strict=True)]
    difference = math.fsum(pairs) / len(pairs)
    spread = math.fsum((one - difference) ** 2 for one in pairs)
    error = math.sqrt(spread / (len(pairs) - 1) / len(pairs)) if len(pairs) > 1 else math.inf
    passed = candidate.failed < len(candidate.scores) and difference >= -max_drop - TIE
    words = f"{candidate.score:.4g} against {deployed.score:.4g}, a difference of {difference:+.4g} ± {error:.2g}"
    return passed, f"{words}, a drop of {max_drop:g} is allowed"


@dataclass(frozen=True, slots=True)
class Canary:
    """What is measured, how, and where it goes.

    Attributes:
        registry: Where the versions live and scores are kept.
        name: The signature.
        examples: DSPy examples that know their inputs.
        dataset: Name of the held-out set.
        metric: Takes an example and a prediction.
        threads: Examples at a time.
        bounds: Of the metric.
        monitor: Takes in the evidence.
        metrics: Where ``dspy_evaluation_score`` is set.
        max_drop: How much lower than the deployed version a candidate may be.
        stop: Ends the run; what was scored stays in the progress file.
    """

    registry: SignatureRegistry
    name: str
    examples: Sequence[Any]
    dataset: str
    metric: Callable[..., Any]
    threads: int
    bounds: MetricBounds
    monitor: Monitor
    metrics: Metrics
    max_drop: float
    stop: threading.Event
    errors: Counter[str] = field(default_factory=Counter)
    """Failed examples of the run by the error's class."""

    def run(self, subjects: Sequence[Subject], progress: Progress, step: Callable[[], None]) -> Round | None:
        """Evaluate, keep the scores, and judge.

        Args:
            subjects: The deployed version, and perhaps a candidate.
            progress: Of this run.
            step: Called after each example.

        Returns:
            ``None`` when it was stopped.

        Raises:
            CanaryError: The metric's scores cannot be used.
        """
        self.errors.clear()
        for one in subjects:
            calls.tag(one.program, self.name, one.record.version, "eval")
        found: list[Measured] = []
        for one in subjects:
            scores = self._scores(one, progress, step)
            if scores is None:
                return None
            try:
                found.append(measured(scores))
            except ValueError as error:
                raise CanaryError(f"the metric's scores cannot be used: {error}") from None
        for one, result in zip(subjects, found, strict=True):
            if result.failed < len(result.scores):
                self._keep(one, result, progress.run)
        self.monitor.flush()
        deployed = subjects[0].record
        verdict = self.monitor.evidence(self.name, deployed.version_hash)
        made = Round(
            progress.run, self.dataset, deployed.version, found[0], verdict, resumed=progress.resumed,
            errors=dict(self.errors),
        )  # fmt: skip
        if len(subjects) > 1:
            passed, reason = judge_candidate(found[0], found[1], self.max_drop)
            made = replace(
                made, candidate=subjects[1].record.version, candidate_measured=found[1], candidate_passed=passed,
                candidate_reason=reason,
            )  # fmt: skip
        progress.done(made.to_dict())
        return made

    def _scores(self, subject: Subject, progress: Progress, step: Callable[[], None]) -> list[float | None] | None:
        """Scores in the order of the examples; ``None`` when it was stopped."""
        known = progress.known(subject.record.version_hash)
        for _ in known:
            step()
        todo = iter([place for place in range(len(self.examples)) if place not in known])
        with ThreadPoolExecutor(self.threads) as pool:
            running: dict[Future[float | None], int] = {}
            try:
                while True:
                    while len(running) < self.threads and not self.stop.is_set():
                        place = next(todo, None)
                        if place is None:
                            break
                        context = contextvars.copy_context()  # a thread of its own would lose DSPy's settings
                        running[pool.submit(context.run, self._one, subject.program, self.examples[place])] = place
                    if not running:
                        break
                    for future in wait(running, _POLL_S, FIRST_COMPLETED).done:
                        place = running.pop(future)
                        known[place] = future.result()
                        progress.add(subject.record.version_hash, place, known[place])
                        step()
            except BaseException:
                self.stop.set()
                raise
        return [known[place] for place in range(len(self.examples))] if len(known) == len(self.examples) else None

    def _one(self, program: Any, example: Any) -> float | None:
        """One example's score; ``None`` when program or metric failed on it."""
        try:
            return float(self.metric(example, program(**example.inputs())))
        except Exception as error:  # noqa: BLE001 - a program that fails is what is being measured
            self.errors[type(error).__name__] += 1  # its text may quote a prompt
            return None

    def _keep(self, subject: Subject, result: Measured, run: str) -> None:
        version = subject.record
        instruments(self.metrics)["dspy_evaluation_score"].child(self.name, version.version, self.dataset).set(
            self.bounds.unit(result.score)
        )
        self.registry.update_performance_score(
            self.name, version.version_hash, result.score, dataset=self.dataset, n=len(result.scores),
            stdev=result.stdev, source="canary", score_id=f"canary:{run}:{version.version_hash[:12]}",
        )  # fmt: skip
        for place, score in enumerate(result.scores):
            self.monitor.observe_evaluation(
                self.name, version.version_hash, 0.0 if score is None else score, 1,
                score_id=f"canary:{run}:{version.version_hash[:12]}:{place}",
            )  # fmt: skip
