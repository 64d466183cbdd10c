"""The rollout's example: the better candidate reaches everybody, the worse one a tenth of the users and no further."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dspy_observe.registry import SignatureRegistry

ROOT = Path(__file__).parents[1]
NAME = "ticket-router"


@pytest.mark.parametrize("location", ["folder", "sqlite:///registry.db"])
def test_one_candidate_is_promoted_and_one_is_stopped_by_the_evidence(location: str, tmp_path: Path) -> None:
    """Shares, scores, stickiness and the end of both rollouts, on the page and in the registry."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "canary_rollout.py"), "--registry", location, "--users", "120",
         "--min-samples", "40"],
        cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "DSPY_CACHEDIR": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    steps = re.findall(
        r"^ +(\d+)% to (v\d): v\d +(\d+)% right of (\d+), (v\d) +(\d+)% right of (\d+)$", done.stdout, re.MULTILINE
    )
    assert [(int(step[0]), step[1]) for step in steps] == [(10, "v2"), (50, "v2"), (10, "v3")]
    for share, candidate, stable_right, stable_n, beside, candidate_right, candidate_n in steps:
        assert beside == candidate
        assert (int(candidate_right) > int(stable_right)) == (candidate == "v2")
        part = int(candidate_n) / (int(candidate_n) + int(stable_n))
        assert part < 0.25 if share == "10" else 0.25 < part < 0.75  # 120 users, split anew each time
    assert len(re.findall(r"users met v\d, 0 of them were sent back and forth", done.stdout)) == 2
    with SignatureRegistry(
        str(tmp_path / location) if location == "folder" else f"sqlite:///{tmp_path}/registry.db"
    ) as registry:
        pointer, rollout = registry.pointer(NAME), registry.rollout(NAME)
        assert pointer is not None
        assert pointer.version == "v2"
        assert rollout is not None
        assert (rollout.version, rollout.state, rollout.step) == ("v3", "regressed", 0)
        assert registry.get_version(NAME, "v3").quarantined == "the verdict is regressed"
        assert [entry.version for entry in registry.deployment_log(NAME)] == ["v1", "v2"]
