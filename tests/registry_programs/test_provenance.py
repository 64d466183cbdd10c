"""Where a program comes from: commit, data, optimizer, score."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dspy
import numpy as np
import pytest

from dspy_observe.registry.programs import (
    ProgramSnapshot,
    dataset_sha256,
    git_state,
    optimization_metadata,
    snapshot,
)


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder."""
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(["git", "-C", str(folder), *who, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with one commit, which has a program in a file."""
    git(tmp_path, "init", "-q")
    (tmp_path / "shipped_program.py").write_text(
        "import dspy\nclass Shipped(dspy.Module):\n    def __init__(self):\n        self.p = dspy.Predict('a -> b')\n"
    )
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def test_commit_and_dirty_flag(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clean, dirty, with an untracked file, and with the variables of a hook that name another repository."""
    sha = git(checkout, "rev-parse", "HEAD")
    assert git_state(checkout) == (sha, False)
    (checkout / "new.txt").write_text("x")
    assert git_state(checkout) == (sha, False)
    (checkout / "shipped_program.py").write_text("changed")
    assert git_state(checkout) == (sha, True)
    monkeypatch.setenv("GIT_DIR", str(checkout / "nowhere"))
    assert git_state(checkout) == (sha, True)


def test_outside_a_checkout_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No repository, no commit yet, and no git at all."""
    assert git_state(tmp_path) == (None, None)
    git(tmp_path, "init", "-q")
    assert git_state(tmp_path) == (None, None)
    monkeypatch.setenv("PATH", "")
    assert git_state(tmp_path) == (None, None)


def test_the_commit_is_that_of_the_program(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: Any
) -> None:
    """A service that runs elsewhere still records the commit of the file that defines its program."""
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    monkeypatch.syspath_prepend(str(checkout))
    shipped = __import__("shipped_program")
    monkeypatch.setattr(sys, "modules", {**sys.modules, "shipped_program": shipped})
    stored = snapshot(shipped.Shipped())
    assert (stored.git_sha, stored.git_dirty) == (git(checkout, "rev-parse", "HEAD"), False)
    assert snapshot(dspy.Predict("a -> b")).git_sha is None


def test_data_has_an_address() -> None:
    """Order, values and repeats count; markers of inputs do not; what has no form as JSON is unknown."""
    one = [dspy.Example(question="a", answer="b").with_inputs("question"), dspy.Example(question="c")]
    assert dataset_sha256(one) == dataset_sha256([dspy.Example(answer="b", question="a"), dspy.Example(question="c")])
    assert len({dataset_sha256(data) for data in (one, one[::-1], one[:1], one + one, [])}) == 5
    assert dataset_sha256(None) is None
    assert dataset_sha256([{"x": object()}]) is None
    assert dataset_sha256([{"x": np.float64(0.5)}]) == dataset_sha256([{"x": 0.5}])


def test_a_snapshot_says_how_it_was_made() -> None:
    """Optimizer, parameters and data stand in the snapshot and survive a JSON document."""
    data = [dspy.Example(question="a", answer="b").with_inputs("question")]
    optimizer = dspy.LabeledFewShot(k=3)
    stored = snapshot(dspy.Predict("question -> answer"), optimizer=optimizer, trainset=data, devset=data[:0])
    assert stored.optimizer == "LabeledFewShot"
    assert stored.optimizer_params == {"k": 3}
    assert stored.trainset_sha256 == dataset_sha256(data)
    assert stored.devset_sha256 == dataset_sha256([])
    assert ProgramSnapshot.from_json(stored.to_json()) == stored
    named = snapshot(
        dspy.Predict("question -> answer"), optimizer="Mine", optimizer_params={"api_key": "secret-1", "n": 2}
    )
    assert (named.optimizer, named.optimizer_params["n"]) == ("Mine", 2)
    assert "secret-1" not in named.to_json()
    assert stored.provenance()["dspy_version"] == dspy.__version__


def exact(example: Any, made: Any, trace: Any = None) -> float:
    """A metric that likes one answer of two."""
    return float(example.answer == made.answer)


def test_a_real_search_reports_its_score(shapes: Any) -> None:
    """Random search leaves scores in percent; the metadata has them on the scale of the metric."""
    data = [dspy.Example(question=f"q{n}", answer="42" if n else "x").with_inputs("question") for n in range(4)]
    with dspy.context(lm=shapes.answering()):
        optimizer = dspy.BootstrapFewShotWithRandomSearch(
            metric=exact, num_candidate_programs=1, max_bootstrapped_demos=1, max_labeled_demos=1, num_threads=1
        )
        made = optimizer.compile(dspy.Predict("question -> answer"), trainset=data, valset=data)
    found = optimization_metadata(optimizer, made, trainset=data, valset=data)
    assert (found.score, found.score_reported) == (0.75, 75.0)
    assert found.optimizer == "BootstrapFewShotWithRandomSearch"
    assert found.optimizer_params["metric"].endswith("test_provenance.exact")
    assert found.optimizer_params["max_labeled_demos"] == 1
    assert (found.trainset_size, found.valset_size) == (4, 4)
    assert found.candidates == len(made.candidate_programs)
    assert found.trainset_sha256 == found.valset_sha256 == dataset_sha256(data)
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()


def test_without_a_score_it_is_unknown(shapes: Any) -> None:
    """BootstrapFewShot scores nothing: unknown is None and not 0."""
    data = [dspy.Example(question="q", answer="42").with_inputs("question")]
    with dspy.context(lm=shapes.answering()):
        optimizer = dspy.BootstrapFewShot(metric=exact)
        made = optimizer.compile(dspy.Predict("question -> answer"), trainset=data)
    found = optimization_metadata(optimizer, made)
    assert (found.score, found.score_reported, found.candidates, found.trainset_size) == (None, None, None, None)


@pytest.mark.parametrize(
    ("optimizer", "result", "score"),
    [
        ("MIPROv2", {"score": 80.0}, 0.8),
        ("MIPROv2", {"score": float("nan")}, None),
        ("MIPROv2", {"score": True}, None),
        ("SIMBA", {"candidate_programs": [{"score": 0.4}, {"score": 0.6}]}, 0.6),
        ("GEPA", {"detailed_results": SimpleNamespace(val_aggregate_scores=[0.2, 0.9], best_idx=1)}, 0.9),
        ("GEPA", {"detailed_results": SimpleNamespace(val_aggregate_scores=[], best_idx=0)}, None),
        ("Mine", {"score": "good"}, None),
    ],
)
def test_scores_of_other_optimizers(optimizer: str, result: dict[str, Any], score: float | None) -> None:
    """Each leaves its score elsewhere and on another scale; what is no finite number is unknown."""
    found = optimization_metadata(type(optimizer, (), {})(), SimpleNamespace(**result))
    assert found.score == (None if score is None else pytest.approx(score))


def test_an_optimizer_with_a_key_tells_none() -> None:
    """LMs are told by model, and keys among the parameters are dropped."""
    lm = dspy.LM("openai/teacher", api_key="canary-1")
    optimizer = dspy.BootstrapFewShot(metric=exact, teacher_settings={"lm": lm, "api_key": "canary-2"})
    params = optimization_metadata(optimizer, dspy.Predict("a -> b")).optimizer_params
    assert params["teacher_settings"]["lm"] == "LM(openai/teacher)"
    assert "canary" not in json.dumps(params)
