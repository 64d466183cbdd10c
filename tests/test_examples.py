"""The examples run as their headers say, and do what they tell."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dspy_observe.registry import SignatureRegistry

ROOT = Path(__file__).parents[1]
NAME = "ticket-triage"


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The walkthrough in a process of its own."""
    command = [sys.executable, str(ROOT / "examples" / "registry_walkthrough.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(cwd)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240, check=False)


def test_the_walkthrough_runs_as_its_header_says_and_leaves_nothing(tmp_path: Path) -> None:
    """Every step is told with its figures; the temporary registry is gone at the end."""
    done = run(cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"baseline \(\w{12}\): 33% right, runs in production", done.stdout)
    assert "made by BootstrapFewShot from the training set" in done.stdout
    assert re.search(r"against baseline: \+67% on dev\n +Changed predictors\.route\.demos: 0 → 6", done.stdout)
    assert re.search(r"_\d+ against \S+: -67% on dev", done.stdout)
    assert "goes to delivery" in done.stdout
    assert len(re.findall(r"^  \d  \S+ -> \S+  \(", done.stdout, re.MULTILINE)) == 4
    assert list(tmp_path.glob("dspy-observe-*")) == []


@pytest.mark.parametrize("location", ["folder", "sqlite:///registry.db"])
def test_the_walkthrough_keeps_the_registry_it_is_given(tmp_path: Path, location: str) -> None:
    """Three versions with their scores, the best one deployed after a rollback; a second run is refused."""
    done = run("--registry", location, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    where = str(tmp_path / location) if location == "folder" else f"sqlite:///{tmp_path}/registry.db"
    with SignatureRegistry(where) as registry:
        baseline, tuned, hasty = registry.list_versions(NAME)
        third = pytest.approx(1 / 3, abs=1e-4)
        assert (baseline.performance_score, tuned.performance_score, hasty.performance_score) == (third, 1.0, third)
        assert {(score.dataset, score.n, score.source) for score in registry.scores(NAME)} == {("dev", 9, "evaluate")}
        assert [one.is_deployed for one in (baseline, tuned, hasty)] == [False, True, False]
        assert hasty.quarantined == "routes only bills"
        assert [entry.version for entry in registry.deployment_log(NAME)] == [
            "baseline", tuned.version, hasty.version, tuned.version,
        ]  # fmt: skip
    again = run("--registry", location, cwd=tmp_path)
    assert again.returncode == 1
    assert "holds 'ticket-triage' already" in again.stderr
