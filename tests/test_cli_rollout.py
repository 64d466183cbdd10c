"""``dspy-observe rollout``: its verbs on real stores, their JSON, refusals and exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from dspy_observe.cli import app
from dspy_observe.registry import SignatureRegistry


@pytest.fixture(params=["files", "sqlite"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A registry with v1 of ``clf`` deployed and v2 beside it."""
    location = str(tmp_path / "registry") if request.param == "files" else f"sqlite:///{tmp_path / 'registry.db'}"
    with SignatureRegistry(location) as registry:
        for version in ("v1", "v2"):
            registry.register_version("clf", {"instruction": version}, version=version)
        registry.deploy_version("clf", "v1")
    return location


def call(place: str | None, *arguments: str) -> Result:
    """Run a verb in this process."""
    return CliRunner().invoke(app, ["rollout", *arguments, *([] if place is None else ["--registry", place])])


def answer(place: str, *arguments: str) -> Any:
    """The JSON that a verb prints, when it is done."""
    done = call(place, *arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.parametrize("verb", ["start", "status", "advance", "stop"])
def test_each_verb_explains_itself_with_an_example(verb: str) -> None:
    """And the example is of this verb."""
    done = call(None, verb, "--help")
    assert done.exit_code == 0
    assert f"Example: dspy-observe rollout {verb}" in " ".join(done.output.split())


def test_a_candidate_is_brought_to_all_traffic_by_hand(place: str) -> None:
    """Each step is told, with its reason, and the last one deploys."""
    made = answer(place, "start", "clf", "v2", "--steps", "10,50,100", "--control", "5", "--reason", "better")
    assert (made["share"], made["steps"], made["control"], made["state"]) == (0.1, [0.1, 0.5, 1.0], 0.05, "running")
    assert "gets 50.00% of production (running)" in call(place, "advance", "clf", "--reason", "looked").stdout
    shown = call(place, "status", "clf").stdout
    assert "step 1: looked" in shown
    assert "50.00%" in shown
    assert answer(place, "status", "clf")["step"] == 1
    assert call(place, "advance", "clf").stdout == "production runs clf v2\n"
    with SignatureRegistry(place) as registry:
        pointer = registry.pointer("clf")
        assert pointer is not None
        assert pointer.version == "v2"


def test_a_candidate_that_waits_for_a_freeze_says_so(place: str) -> None:
    """With the reason and the way on; no longer when it is unfrozen, nor when the rollout is over."""
    answer(place, "start", "clf", "v2", "--steps", "10,100")
    assert answer(place, "status", "clf")["frozen"] is None
    assert "waits" not in call(place, "status", "clf").stdout
    with SignatureRegistry(place) as registry:
        registry.freeze("clf", reason="incident 7")
        assert answer(place, "status", "clf")["frozen"] == "incident 7"
        shown = " ".join(call(place, "status", "clf").stdout.split())
        assert "It waits: clf is frozen in production (incident 7)" in shown
        assert "dspy-observe decisions unfreeze clf;" in shown
        registry.unfreeze("clf")
        assert answer(place, "status", "clf")["frozen"] is None
        registry.freeze("clf")
        call(place, "advance", "clf")
        assert answer(place, "status", "clf")["frozen"] is None


def test_a_candidate_is_stopped(place: str) -> None:
    """And quarantined where it is bad."""
    answer(place, "start", "clf", "v2")
    stopped = answer(place, "stop", "clf", "--regressed", "--reason", "leaks names")
    assert (stopped["state"], stopped["share"]) == ("regressed", 0.0)
    with SignatureRegistry(place) as registry:
        assert registry.get_version("clf", "v2").quarantined == "leaks names"


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("status", "clf"), 1, "there was no rollout"),
        (("advance", "clf"), 1, "no rollout runs"),
        (("stop", "clf"), 1, "no rollout runs"),
        (("start", "clf", "v9"), 1, "no version"),
        (("start", "clf", "v1"), 1, "is what production runs"),
        (("start", "nobody", "v1"), 1, "no signature"),
        (("start", "clf", "v2", "--steps", "a,b"), 2, "percents"),
        (("start", "clf", "v2", "--steps", "50,10,100"), 2, "does not rise"),
    ],
)
def test_what_is_refused_says_why(place: str, arguments: tuple[str, ...], code: int, word: str) -> None:
    """With exit code 1, or 2 for wrong usage; nothing is written."""
    done = call(place, *arguments)
    assert done.exit_code == code
    assert word in " ".join(done.output.replace("│", " ").split())
    with SignatureRegistry(place) as registry:
        assert registry.rollout("clf") is None


def test_a_step_that_somebody_else_took_is_not_taken_again(place: str) -> None:
    """By the generation that was seen."""
    seen = answer(place, "start", "clf", "v2")["generation"]
    answer(place, "advance", "clf", "--expect-generation", str(seen))
    again = call(place, "advance", "clf", "--expect-generation", str(seen), "--json")
    assert again.exit_code == 1
    assert json.loads(again.stdout)["error"] == "Conflict"
