"""The quality gate of the example: what it lets pass, what it stops, and the workflow that runs it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import yaml

from dspy_observe.registry import SignatureRegistry

ROOT = Path(__file__).parents[1]
WORKFLOW = ROOT / "examples" / "regression_ci" / "dspy-regression.yml"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository that holds the example."""
    shutil.copytree(
        ROOT / "examples" / "regression_ci", tmp_path / "examples" / "regression_ci",
        ignore=shutil.ignore_patterns("__pycache__", "reports"),
    )  # fmt: skip
    return tmp_path


def run(script: str, checkout: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """A step of the workflow, in the repository's root."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "REPORTS": str(checkout / "reports"),
        "GITHUB_STEP_SUMMARY": str(checkout / "summary.md"),
        **more,
    }
    return subprocess.run(
        ["bash", "-eo", "pipefail", "-c", script], cwd=checkout, env=environment, capture_output=True, text=True,
        timeout=240, check=False,
    )  # fmt: skip


def steps() -> list[dict[str, Any]]:
    """The workflow's steps."""
    return list(yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"]["gate"]["steps"])


def own_steps() -> list[str]:
    """The commands that the workflow runs itself, but for the installation."""
    return [step["run"] for step in steps() if "run" in step and not step["run"].startswith("pip ")]


def worsen(checkout: Path) -> None:
    """An innocent-looking edit of the instructions that forgets the departments' names."""
    app = checkout / "examples" / "regression_ci" / "app.py"
    text = app.read_text(encoding="utf-8")
    assert text.count(": billing, technical or delivery.") == 1
    app.write_text(text.replace(": billing, technical or delivery.", "."), encoding="utf-8")


def test_the_steps_of_the_workflow_pass_and_leave_their_reports(checkout: Path) -> None:
    """As the pipeline runs them, with the empty secrets of a fork: passed, a summary, a report."""
    for script in own_steps():
        done = run(script, checkout, OPENAI_API_KEY="", DSPY_OBSERVE_REGISTRY="")
        assert done.returncode == 0, done.stderr
    assert "Quality gate: passed" in (checkout / "summary.md").read_text(encoding="utf-8")
    report = ET.parse(checkout / "reports" / "gate.xml").getroot()
    assert [suite.get("failures") for suite in report.iter("testsuite")] == ["0"]


def test_a_worse_program_fails_the_pull_request(checkout: Path) -> None:
    """The gate stops it, and the summary says by how much."""
    worsen(checkout)
    gate, summary = own_steps()
    done = run(gate, checkout)
    assert done.returncode == 1
    assert "drop" in done.stdout
    assert run(summary, checkout).returncode == 0
    assert "Quality gate: failed" in (checkout / "summary.md").read_text(encoding="utf-8")


def test_the_deployed_version_is_the_baseline_where_there_is_a_registry(checkout: Path) -> None:
    """The version that runs is loaded and evaluated; the number in the file counts no more."""
    app = checkout / "examples" / "regression_ci"
    (app / "baseline.txt").write_text("0.0\n")
    location = str(checkout / "registry")
    code = (
        "import app\nfrom dspy_observe.registry import SignatureRegistry\n"
        f"with SignatureRegistry({location!r}) as registry:\n"
        "    version = registry.register_program('Router', app.Router(), factory=app.Router)\n"
        "    registry.deploy_version('Router', version.version)\n"
    )
    made = run(f"cd examples/regression_ci && python -c '{code.replace(chr(39), chr(34))}'", checkout)
    assert made.returncode == 0, made.stderr
    with SignatureRegistry(location) as registry:
        assert registry.pointer("Router") is not None
    assert run(own_steps()[0], checkout, DSPY_OBSERVE_REGISTRY=location).returncode == 0
    worsen(checkout)
    done = run(own_steps()[0], checkout, DSPY_OBSERVE_REGISTRY=location)
    assert done.returncode == 1
    assert "deployed" in done.stdout or "evaluated" in done.stdout


def test_the_workflow_is_one_that_github_takes() -> None:
    """Events, least rights, a time limit, actions at a version, and secrets only in the environment."""
    text = WORKFLOW.read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    assert set(workflow[True]) == {"pull_request", "workflow_dispatch"}  # YAML 1.1 reads "on" as a boolean
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["jobs"]["gate"]["timeout-minutes"] <= 30
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in steps() if "uses" in step)
    assert not any("secrets." in step.get("run", "") for step in steps())
