"""Whether a program is still as good as its baseline, and the reports that say so. Pure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any, Final
from xml.etree import ElementTree as ET

__all__ = ["Baseline", "Measured", "Verdict", "examples_from", "judge", "junit", "markdown", "measured"]

_TIE: Final = 1e-9
"""A drop closer than this to the limit does not exceed it, whatever binary fractions say."""
_WORST: Final = 10
_PERCENT: Final = 100
# https://www.w3.org/TR/xml/#charsets
_NO_XML: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Measured:
    """What an evaluation found.

    Attributes:
        score: Mean of the metric; a failed example counts as 0.
        scores: The metric by example, in the order of the data set; ``None`` where program or metric failed.
        stdev: Standard deviation of one example's score; ``None`` for a single example.
    """

    score: float
    scores: tuple[float | None, ...]
    stdev: float | None

    @property
    def failed(self) -> int:
        """Examples on which program or metric failed."""
        return sum(one is None for one in self.scores)


@dataclass(frozen=True, slots=True)
class Baseline:
    """What the program is compared with.

    Attributes:
        score: Its mean on the same metric and data set.
        name: The version, or ``given`` for a number.
        origin: ``given``, ``recorded`` or ``evaluated``.
    """

    score: float
    name: str
    origin: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the program passes; drop and limit are in the metric's own units."""

    passed: bool
    reason: str
    program: str
    devset: str
    measured: Measured
    baseline: Baseline
    drop: float
    max_drop: float

    def to_dict(self) -> dict[str, Any]:
        """The verdict as plain data."""
        plain = asdict(self)
        plain["measured"] = {
            "score": self.measured.score, "n": len(self.measured.scores), "failed": self.measured.failed,
            "stdev": self.measured.stdev, "scores": list(self.measured.scores),
        }  # fmt: skip
        return plain


def measured(scores: Sequence[float | None]) -> Measured:
    """The mean of at least one example's scores.

    Raises:
        ValueError: There is none, or one is no finite number.
    """
    if not scores:
        raise ValueError("there are no examples")
    for at, one in enumerate(scores, 1):
        if one is not None and not math.isfinite(one):
            raise ValueError(f"the metric gave {one} for example {at}")
    values = [0.0 if one is None else one for one in scores]
    return Measured(fmean(values), tuple(scores), stdev(values) if len(values) > 1 else None)


def judge(found: Measured, baseline: Baseline, max_drop: float, *, program: str, devset: str) -> Verdict:
    """Compare a program with its baseline.

    Args:
        found: The program's evaluation.
        baseline: What it has to reach.
        max_drop: How much lower it may be, in the metric's units; a drop of exactly this passes.
        program: Its name, for the reports.
        devset: The data set's name, for the reports.

    Returns:
        The verdict; it never passes when every example failed.
    """
    drop = baseline.score - found.score
    known = [one for one in found.scores if one is not None]
    passed = bool(known) and drop <= max_drop + _TIE
    reason = f"{found.score:.4g} against {baseline.score:.4g} of {baseline.name} ({baseline.origin}): "
    reason += f"a drop of {drop:.4g}, {max_drop:g} is allowed" if drop > 0 else "no drop"
    if not known:
        reason = f"all {len(found.scores)} examples failed"
    elif found.failed:
        reason += f"; {found.failed} of {len(found.scores)} examples failed and count as 0"
    if known and max(known) <= 1 < baseline.score <= _PERCENT:
        reason += "; the baseline looks like a percentage, the metric does not"
    return Verdict(passed, reason, program, devset, found, baseline, drop, max_drop)


def examples_from(lines: Sequence[str]) -> list[dict[str, Any]]:
    """The examples of a JSON Lines file: one object on each line; empty lines are skipped.

    Raises:
        ValueError: A line is no JSON object, with its number; or there is none.
    """
    rows = []
    for at, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {at} is no JSON: {error}") from None
        if not isinstance(row, Mapping):
            raise ValueError(f"line {at} is no JSON object")  # noqa: TRY004 - the file's content, not an argument
        rows.append(dict(row))
    if not rows:
        raise ValueError("it holds no examples")
    return rows


def junit(verdict: Verdict, duration_s: float) -> str:
    """The verdict as JUnit XML: one test case, so that a passing gate is not failed by one bad example.

    Args:
        verdict: What was found.
        duration_s: Seconds that it took.
    """
    counts = {"tests": "1", "failures": str(int(not verdict.passed)), "errors": "0", "time": f"{duration_s:.3f}"}
    suites = ET.Element("testsuites", counts)
    suite = ET.SubElement(suites, "testsuite", {"name": "dspy-observe gate", **counts})
    properties = ET.SubElement(suite, "properties")
    for name, value in _facts(verdict):
        ET.SubElement(properties, "property", {"name": name, "value": _xml(value)})
    about = {"classname": _xml(verdict.program), "name": _xml(f"no regression on {verdict.devset}")}
    case = ET.SubElement(suite, "testcase", {**about, "time": counts["time"]})
    if not verdict.passed:
        failure = ET.SubElement(case, "failure", {"message": _xml(verdict.reason), "type": "regression"})
        failure.text = _xml("\n".join(f"example {at}: {_shown(one)}" for at, one in _worst(verdict)))
    ET.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(suites, encoding="unicode") + "\n"


def markdown(verdict: Verdict) -> str:
    """The verdict as Markdown, for a pull request; examples by number only, as their content may be private."""
    lines = [f"## Quality gate: {'passed' if verdict.passed else 'failed'}", "", f"{_cell(verdict.reason)}.", ""]
    lines += ["| | |", "| --- | --- |", *(f"| {name} | {_cell(value)} |" for name, value in _facts(verdict)), ""]
    worst = _worst(verdict)
    if worst:
        lines += ["Lowest scores:", "", "| example | score |", "| ---: | ---: |"]
        lines += [f"| {at} | {_shown(one)} |" for at, one in worst]
        lines.append("")
    return "\n".join(lines)


def _facts(verdict: Verdict) -> list[tuple[str, str]]:
    found, baseline = verdict.measured, verdict.baseline
    return [
        ("program", verdict.program), ("data set", verdict.devset), ("score", f"{found.score:.4g}"),
        ("baseline", f"{baseline.score:.4g} ({baseline.name}, {baseline.origin})"), ("drop", f"{verdict.drop:.4g}"),
        ("largest drop allowed", f"{verdict.max_drop:g}"), ("examples", str(len(found.scores))),
        ("failed examples", str(found.failed)),
    ]  # fmt: skip


def _worst(verdict: Verdict) -> list[tuple[int, float | None]]:
    """The lowest scores with their examples, counted from 1; none where all are the same."""
    numbered = list(enumerate(verdict.measured.scores, 1))
    if len(set(verdict.measured.scores)) == 1:
        return []
    best = max(one for _, one in numbered if one is not None)
    below = [pair for pair in numbered if pair[1] is None or pair[1] < best]
    return sorted(below, key=lambda pair: (pair[1] is not None, pair[1] or 0.0))[:_WORST]


def _shown(score: float | None) -> str:
    return "failed" if score is None else f"{score:.4g}"


def _xml(text: str) -> str:
    return _NO_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def _cell(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())
