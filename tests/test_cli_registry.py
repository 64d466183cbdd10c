"""``dspy-observe registry``: every verb on real stores, its JSON, its refusals and exit codes, and what it imports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from dspy_observe.cli import app
from dspy_observe.registry import SignatureRegistry

VERBS = (
    "list", "show", "diff", "history", "log", "plan", "status", "deploy", "rollback", "quarantine", "score", "export",
    "import", "cleanup",
)  # fmt: skip


@pytest.fixture(params=["files", "sqlite"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A registry with three versions of ``clf``, scored 0.8, 0.85 and 0.9 on ``dev``; v0, then v1 deployed."""
    location = str(tmp_path / "registry") if request.param == "files" else f"sqlite:///{tmp_path / 'registry.db'}"
    with SignatureRegistry(location) as registry:
        for number, score in enumerate((0.8, 0.85, 0.9)):
            registry.register_version("clf", {"instruction": f"Text {number}", "k": number}, version=f"v{number}")
            registry.update_performance_score("clf", f"v{number}", score, dataset="dev", n=100)
        registry.deploy_version("clf", "v0")
        registry.deploy_version("clf", "v1", reason="better", actor="ann")
    return location


def call(place: str | None, *arguments: str) -> Result:
    """Run a verb in this process."""
    return CliRunner().invoke(app, ["registry", *arguments, *([] if place is None else ["--registry", place])])


def answer(place: str, *arguments: str) -> Any:
    """The JSON that a verb prints, when it is done."""
    done = call(place, *arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def running(place: str, environment: str = "production") -> str | None:
    """What is deployed, asked past the command line."""
    with SignatureRegistry(place) as registry:
        pointer = registry.pointer("clf", environment=environment)
        return None if pointer is None else pointer.version


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_explains_itself_with_an_example(verb: str) -> None:
    """And the example is of this verb."""
    done = call(None, verb, "--help")
    assert done.exit_code == 0
    assert f"Example: dspy-observe registry {verb}" in " ".join(done.output.split())


def test_signatures_are_listed(place: str) -> None:
    """With the number of versions, the newest, and what is deployed with its score."""
    assert answer(place, "list") == [{
        "signature_name": "clf", "versions": 3, "latest_version": "v2", "deployed_version": "v1",
        "performance_score": 0.85,
    }]  # fmt: skip
    assert {"clf", "v2", "v1", "0.85"} <= set(call(place, "list").stdout.replace("│", " ").split())


def test_versions_are_listed(place: str) -> None:
    """Oldest first, and exactly one is deployed."""
    assert [(one["version"], one["is_deployed"]) for one in answer(place, "list", "clf")] == [
        ("v0", False), ("v1", True), ("v2", False),
    ]  # fmt: skip


def test_a_version_is_shown(place: str) -> None:
    """The deployed one where none is named."""
    assert answer(place, "show", "clf", "v2")["configuration"] == {"instruction": "Text 2", "k": 2}
    assert answer(place, "show", "clf")["version"] == "v1"
    assert "Text 2" in call(place, "show", "clf", "v2").stdout


def test_two_versions_are_compared_from_old_to_new(place: str) -> None:
    """With one version, against what is deployed."""
    found = answer(place, "diff", "clf", "v0", "v2")
    assert (found["version_1"]["version"], found["version_2"]["version"]) == ("v2", "v0")
    assert found["performance_difference"] == pytest.approx(0.1)
    shown = call(place, "diff", "clf", "v2").stdout
    assert "Score: +0.05 on dev" in shown
    assert "Changed k: 1 → 2" in shown
    assert "The content is the same." in call(place, "diff", "clf", "v1").stdout


def test_scores_are_shown_with_their_trend(place: str) -> None:
    """Oldest first; of one data set where it is named."""
    assert call(place, "score", "clf", "v2", "0.5", "--dataset", "other", "--n", "3").exit_code == 0
    found = answer(place, "history", "clf", "--dataset", "dev")
    assert [one["score"] for one in found["versions"]] == [0.8, 0.85, 0.9]
    assert (found["trends"]["best_score"], found["trends"]["dataset"]) == (0.9, "dev")
    assert len(answer(place, "history", "clf")["versions"]) == 4


def test_the_log_tells_who_deployed_what_and_why(place: str) -> None:
    """Oldest first, of one environment or of all."""
    first, second = answer(place, "log", "clf")
    assert (first["version"], first["previous"], first["generation"]) == ("v0", None, 1)
    assert (second["version"], second["previous"], second["actor"], second["reason"]) == ("v1", "v0", "ann", "better")
    assert answer(place, "log", "clf", "-e", "staging") == []
    assert answer(place, "log", "clf", "--decisions") == []
    assert "better" in call(place, "log", "clf").stdout


def test_a_plan_changes_nothing(place: str) -> None:
    """It tells what the deployment would mean."""
    found = answer(place, "plan", "clf", "v2")
    assert (found["current_version"], found["target_version"], found["deployment_safe"]) == ("v1", "v2", True)
    assert "rises by 0.05" in call(place, "plan", "clf", "v2").stdout
    assert running(place) == "v1"


def test_the_status_names_what_a_rollback_would_bring(place: str) -> None:
    """For all signatures, or those that are named; an unknown one is refused after the others were told."""
    (found,) = answer(place, "status")["statuses"]
    assert (found["deployed_version"]["version"], found["rollback_target"], found["generation"]) == ("v1", "v0", 2)
    done = call(place, "status", "clf", "nope", "--json")
    assert done.exit_code == 1
    assert [one["signature_name"] for one in json.loads(done.stdout)["statuses"]] == ["clf"]
    assert "no signature 'nope'" in done.stderr
    assert "v2 has a higher score" in " ".join(call(place, "status").stdout.split())


def test_a_version_is_deployed_to_an_environment(place: str) -> None:
    """The log keeps who and why."""
    done = answer(place, "deploy", "clf", "v2", "-e", "staging", "--reason", "try it", "--actor", "ben")
    assert (done["version"], done["is_deployed"]) == ("v2", True)
    assert (running(place, "staging"), running(place)) == ("v2", "v1")
    (entry,) = answer(place, "log", "clf", "-e", "staging")
    assert (entry["actor"], entry["reason"]) == ("ben", "try it")


def test_another_environments_version_is_promoted(place: str) -> None:
    """``--from`` takes exactly what runs there."""
    assert call(place, "deploy", "clf", "v2", "-e", "staging").exit_code == 0
    assert call(place, "deploy", "clf", "--from", "staging").exit_code == 0
    assert running(place) == "v2"


def test_a_strategy_chooses_the_version(place: str) -> None:
    """Refused with the reason when the gain is too small; done when the best version runs already."""
    refused = call(place, "deploy", "clf", "--strategy", "conservative")
    assert (refused.exit_code, running(place)) == (1, "v1")
    assert "10.0% are needed" in refused.stderr
    assert answer(place, "deploy", "clf", "--strategy", "best_score")["version"] == "v2"
    assert running(place) == "v2"
    assert answer(place, "deploy", "clf", "--strategy", "best_score")["version"] == "v2"


def test_what_somebody_else_deployed_is_not_overwritten(place: str) -> None:
    """The generation or version that the caller saw has to stand; otherwise nothing moves."""
    late = call(place, "deploy", "clf", "v2", "--expect-generation", "1", "--json")
    assert late.exit_code == 1
    assert json.loads(late.stdout)["error"] == "Conflict"
    assert call(place, "rollback", "clf", "--expect-version", "v0").exit_code == 1
    assert running(place) == "v1"
    assert call(place, "deploy", "clf", "v2", "--expect-generation", "2").exit_code == 0


def test_a_rollback_quarantines_what_it_leaves(place: str) -> None:
    """It is not deployed again without force and a reason, and a second rollback has nowhere to go."""
    assert answer(place, "rollback", "clf", "--reason", "wrong")["version"] == "v0"
    assert answer(place, "show", "clf", "v1")["quarantined"] == "wrong"
    refused = call(place, "deploy", "clf", "v1")
    assert (refused.exit_code, running(place)) == (1, "v0")
    assert "quarantined (wrong)" in refused.stderr
    assert call(place, "rollback", "clf").exit_code == 1
    assert call(place, "deploy", "clf", "v1", "--force", "--reason", "it was the data").exit_code == 0
    assert running(place) == "v1"


def test_a_bad_version_is_quarantined(place: str) -> None:
    """With a reason; where it runs is said."""
    done = call(place, "quarantine", "clf", "v1", "--reason", "leaks")
    assert done.exit_code == 0
    assert "production still runs it" in done.stdout
    assert call(place, "quarantine", "clf", "v2").exit_code == 2


def test_a_score_is_added(place: str) -> None:
    """A negative one after two dashes; one that is no number is refused."""
    assert answer(place, "score", "clf", "v2", "0.95", "--dataset", "dev", "--n", "50")["performance_score"] == 0.95
    done = CliRunner().invoke(app, ["registry", "score", "--registry", place, "--", "clf", "v2", "-0.5"])
    assert done.exit_code == 0
    assert answer(place, "show", "clf", "v2")["performance_score"] == -0.5
    refused = call(place, "score", "clf", "v2", "nan", "--json")
    assert (refused.exit_code, json.loads(refused.stdout)["error"]) == (1, "InvalidScore")
    assert call(place, "score", "clf", "v2", "good").exit_code == 2


def test_an_export_is_imported_into_a_new_registry(place: str, tmp_path: Path) -> None:
    """With pointers and scores; a dry run and a second import do nothing."""
    file, copy = str(tmp_path / "out.yml"), f"sqlite:///{tmp_path / 'copy.db'}"
    assert answer(place, "export", file) == {"file": file, "signatures": ["clf"]}
    assert call(copy, "import", file, "--dry-run").exit_code == 1
    assert not (tmp_path / "copy.db").exists()
    assert answer(copy, "import", file)["added"] == ["clf/v0", "clf/v1", "clf/v2"]
    assert running(copy) == "v1"
    again = answer(copy, "import", file)
    assert (again["added"], again["present"], again["scores"]) == ([], 3, 0)
    (tmp_path / "bad.yml").write_text("format: [")
    assert call(copy, "import", str(tmp_path / "bad.yml")).exit_code == 1


def test_old_versions_are_cleaned_up(place: str) -> None:
    """Never the deployed one or the rollback's target; a dry run only tells."""
    assert answer(place, "cleanup", "--keep", "1", "--dry-run")["removed"] == {"clf": ["v2"]}
    assert len(answer(place, "list", "clf")) == 3
    assert answer(place, "cleanup", "--keep", "1")["cleaned_versions"] == 1
    assert [one["version"] for one in answer(place, "list", "clf")] == ["v0", "v1"]
    assert call(place, "cleanup", "--keep", "0").exit_code == 2


@pytest.mark.parametrize(
    "arguments",
    [("show", "nope"), ("show", "clf", "v9"), ("diff", "clf", "v0", "v9"), ("show", "../clf"),
     ("deploy", "clf", "v9"), ("show", "clf", "-e", "staging")],
)  # fmt: skip
def test_what_is_not_there_is_refused_with_the_reason(place: str, arguments: tuple[str, ...]) -> None:
    """Exit code 1, in words on standard error, and as an object for programs."""
    done = call(place, *arguments, "--json")
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert told["error"] in {"UnknownSignature", "UnknownVersion", "InvalidName"}
    assert done.stderr == f"refused: {told['message']}\n"


@pytest.mark.parametrize(
    "arguments",
    [("nope",), ("show",), ("deploy", "clf"), ("deploy", "clf", "v1", "--strategy", "manual"),
     ("deploy", "clf", "--strategy", "nope"), ("deploy", "clf", "--from", "staging", "--force")],
)  # fmt: skip
def test_wrong_usage_has_its_own_code(place: str, arguments: tuple[str, ...]) -> None:
    """Exit code 2, and nothing has moved."""
    done = CliRunner().invoke(app, ["registry", *arguments], env={"DSPY_OBSERVE_REGISTRY": place})
    assert done.exit_code == 2
    assert running(place) == "v1"


def test_a_mistyped_place_makes_no_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a folder nor a database file appears; a URL of no known kind is wrong usage."""
    monkeypatch.chdir(tmp_path)
    for location in (str(tmp_path / "nope"), f"sqlite:///{tmp_path / 'nope.db'}", None):
        done = call(location, "list")
        assert done.exit_code == 1
        assert "there is no registry at" in done.stderr
        assert "name it by --registry or DSPY_OBSERVE_REGISTRY; a first register_program() makes one" in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert call("oracle://host/name", "list").exit_code == 2


def test_the_place_comes_from_the_environment_or_is_the_usual_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An option wins over the variables, which win over ./dspy_registry; programs find the same one."""
    monkeypatch.chdir(tmp_path)
    for folder in ("dspy_registry", "named", "given"):
        with SignatureRegistry(folder) as registry:
            registry.register_version(folder, {})
    assert json.loads(call(None, "list", "--json").stdout)[0]["signature_name"] == "dspy_registry"
    monkeypatch.setenv("DSPY_OBSERVE_REGISTRY", "named")
    assert json.loads(call(None, "list", "--json").stdout)[0]["signature_name"] == "named"
    assert json.loads(call("given", "list", "--json").stdout)[0]["signature_name"] == "given"
    with SignatureRegistry() as registry:
        assert registry.list_signatures() == ["named"]
    monkeypatch.setenv("DSPY_OBSERVE_REGISTRY_PATH", "given")
    done = call(None, "list", "--json")
    assert done.exit_code == 2
    assert "name two registries" in json.loads(done.stdout)["message"]
    assert json.loads(call("named", "list", "--json").stdout)[0]["signature_name"] == "named"
    monkeypatch.delenv("DSPY_OBSERVE_REGISTRY")
    assert json.loads(call(None, "list", "--json").stdout)[0]["signature_name"] == "given"


def test_one_damaged_file_does_not_hide_the_others(tmp_path: Path) -> None:
    """The sound signatures are listed, the damaged one is named, and the exit code says so."""
    with SignatureRegistry(tmp_path / "r") as registry:
        registry.register_version("sound", {})
        registry.register_version("torn", {})
    (tmp_path / "r" / "signatures" / "torn.yml").write_text("versions: [")
    done = call(str(tmp_path / "r"), "list")
    assert done.exit_code == 1
    assert "sound" in done.stdout
    assert "torn.yml, line" in done.stderr
    assert json.loads(call(str(tmp_path / "r"), "list", "--json").stdout)["error"] == "Refused"


def test_stored_text_cannot_drive_the_terminal(tmp_path: Path) -> None:
    """Escape sequences and markup are shown as what they are."""
    with SignatureRegistry(tmp_path / "r") as registry:
        registry.register_version("clf", {}, version="v1", author="[red]\x1b]0;title\x07eve")
    shown = call(str(tmp_path / "r"), "list", "clf").stdout
    assert "[red]" in shown
    assert "\x1b" not in shown
    assert "\x07" not in shown


def test_reading_verbs_never_import_dspy(place: str, tmp_path: Path) -> None:
    """In a process of its own, a program's differences included."""
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom dspy_observe.cli import app\n"
        "for verb in (['list'], ['list', 'clf'], ['show', 'clf'], ['diff', 'clf', 'v0', 'v2'], ['history', 'clf'],\n"
        "    ['log', 'clf'], ['plan', 'clf', 'v2'], ['status'], ['list', '--json'], ['diff', 'program', 'a', 'b']):\n"
        "    done = CliRunner().invoke(app, ['registry', *verb, '--registry', sys.argv[1]])\n"
        "    assert done.exit_code == 0, done.output\n"
        "    assert 'dspy' not in sys.modules, verb\n"
        "print(done.output)\n"
    )
    import dspy

    with SignatureRegistry(place) as registry:
        registry.register_program("program", dspy.Predict("question -> answer"), version="a")
        other = dspy.Predict(dspy.Signature("question -> answer", "Answer in one word."))
        registry.register_program("program", other, version="b")
    done = subprocess.run([sys.executable, "-c", code, place], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "+Answer in one word." in done.stdout


def test_refusals_say_what_to_do_next(place: str) -> None:
    """Names that are written alike, where to look, and that nothing is deployed."""
    told = {
        ("show", "nope"): "no signature 'nope' in the registry; `dspy-observe registry list` shows what it holds",
        ("show", "clf", "v11"): "signature 'clf' has no version 'v11'; did you mean 'v1'?",
        (
            "show",
            "clf",
            "best",
        ): "signature 'clf' has no version 'best'; `dspy-observe registry list clf` shows its versions",
        ("show", "clf", "-e", "qa"): "nothing of 'clf' is deployed in qa; deploy a version first",
        ("diff", "clf", "v0", "-e", "qa"): "nothing of 'clf' is deployed in qa; deploy a version first",
        ("deploy", "clf", "--from", "qa"): "nothing of 'clf' is deployed in qa; deploy a version first",
        ("import", "nope.yml"): "cannot read nope.yml: No such file or directory",
    }
    for arguments, words in told.items():
        done = call(place, *arguments)
        assert done.exit_code == 1
        assert words in done.stderr
        assert "(nope.yml)" not in done.stderr


def test_numbers_of_things_read_as_sentences(place: str, tmp_path: Path) -> None:
    """One is not said in the plural, and each number has its verb."""
    file = tmp_path / "all.yml"
    assert call(place, "export", str(file)).stdout == f"1 signature written to {file}\n"
    assert "0 versions and 0 scores added; here before: 3 versions" in call(place, "import", str(file)).stdout
    assert call(place, "cleanup").stdout == "nothing to remove\n"
    assert "1 version of 1 signature would be removed" in call(place, "cleanup", "--keep", "1", "--dry-run").stdout
    assert "1 version of 1 signature removed" in call(place, "cleanup", "--keep", "1").stdout


def test_plan_for_what_runs_already_is_to_do_nothing(place: str) -> None:
    """It does not advise to deploy it."""
    advice = answer(place, "plan", "clf", "v1")["recommendations"]
    assert advice[0] == "Nothing to do."
    assert not any("Deploy it" in one for one in advice)
