"""``dspy-observe gate``: the verdict and its reports as values, and the command on real programs and stores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from typer.testing import CliRunner, Result

from dspy_observe.cli import app
from dspy_observe.gate_verdict import Baseline, examples_from, judge, junit, markdown, measured
from dspy_observe.openai_server import OpenAIServer
from dspy_observe.registry import SignatureRegistry

PROGRAM = '''
import dspy
from dspy_observe.testing import offline_lm

def reply(request):
    """Right when the instructions ask for care; nothing that can be parsed about broken."""
    text = str(request)
    if "broken" in text:
        raise RuntimeError("no answer")
    return {"answer": "yes" if "Take care" in text else "no"}

class Grader(dspy.Module):
    def __init__(self):
        super().__init__()
        self.answer = dspy.Predict("question -> answer")
        self.answer.lm = offline_lm(reply)

    def forward(self, question):
        print("a program may print")
        return self.answer(question=question)

def careful():
    made = Grader()
    made.answer.signature = made.answer.signature.with_instructions("Take care.")
    return made

def bare():
    return dspy.Predict("question -> answer")

def anything():
    class Anything(dspy.Module):
        def forward(self, **fields):
            return dspy.Prediction(answer="yes")
    return Anything()

def no_program():
    return "text"

def exact(example, prediction):
    return example.answer == prediction.answer

def not_a_number(example, prediction):
    return float("nan")
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a program and four examples, three of them answered ``yes``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gate_program.py").write_text(PROGRAM)
    rows = [{"question": f"q{n}", "answer": "yes"} for n in range(3)] + [{"question": "q3", "answer": "no"}]
    (tmp_path / "dev.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    monkeypatch.delitem(sys.modules, "gate_program", raising=False)
    return tmp_path


@pytest.fixture(params=["files", "sqlite"])
def place(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A registry in which the careful program, 0.75 on the examples, is deployed as ``good``."""
    location = str(folder / "registry") if request.param == "files" else f"sqlite:///{folder / 'registry.db'}"
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(folder))
        import gate_program

        with SignatureRegistry(location) as registry:
            registry.register_program("Grader", gate_program.careful(), version="good")
            registry.register_program("Grader", gate_program.Grader(), version="careless")
            registry.deploy_version("Grader", "good")
    return location


def gate(*arguments: str, program: str = "Grader", metric: str = "exact") -> Result:
    """Run the gate in this process, in the working directory of the test."""
    named = ["--program", f"gate_program:{program}", "--metric", f"gate_program:{metric}", "--devset", "dev.jsonl"]
    return CliRunner().invoke(app, ["gate", *named, *arguments])


def in_a_process(folder: Path, program: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the console script as a pipeline does."""
    script = Path(sys.executable).with_name("dspy-observe")
    command = [
        script, "gate", "--program", f"gate_program:{program}", "--metric", "gate_program:exact", "--devset",
        "dev.jsonl", "--json", *arguments,
    ]  # fmt: skip
    environment = {**os.environ, **variables}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def verdict(done: Result) -> Any:
    """The JSON that a run printed."""
    return json.loads(done.stdout)


# --- the verdict -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "passed"), [(0.95, True), (0.9, True), (0.88, True), (0.8799, False), (0.0, False)]
)  # fmt: skip
def test_a_drop_of_exactly_the_limit_passes(score: float, passed: bool) -> None:
    """Whatever binary fractions make of 0.9 - 0.02."""
    found = judge(measured([score]), Baseline(0.9, "v1", "recorded"), 0.02, program="p", devset="d")
    assert found.passed is passed


def test_failed_examples_count_as_zero_and_are_told() -> None:
    """A gate on which everything failed never passes, whatever the baseline."""
    found = judge(measured([1.0, None]), Baseline(0.5, "v1", "recorded"), 0.0, program="p", devset="d")
    assert (found.passed, found.measured.score, found.measured.failed) == (True, 0.5, 1)
    assert "1 of 2 examples failed" in found.reason
    assert not judge(measured([None]), Baseline(-1.0, "v1", "given"), 9.0, program="p", devset="d").passed


def test_a_percentage_against_a_share_is_pointed_out() -> None:
    """DSPy prints 92.0 where the registry keeps 0.92."""
    found = judge(measured([0.9, 1.0]), Baseline(92.0, "the number", "given"), 0.02, program="p", devset="d")
    assert "looks like a percentage" in found.reason


def test_no_mean_without_numbers() -> None:
    """Not of nothing, and not of what is no finite number."""
    with pytest.raises(ValueError, match="no examples"):
        measured([])
    with pytest.raises(ValueError, match="nan for example 2"):
        measured([1.0, float("nan")])


def test_lines_are_read_as_examples() -> None:
    """Empty lines are skipped; a line that is no object is named by its number."""
    assert examples_from(['{"a": 1}', "", '{"a": 2}']) == [{"a": 1}, {"a": 2}]
    with pytest.raises(ValueError, match="line 2 is no JSON:"):
        examples_from(["{}", "{"])
    with pytest.raises(ValueError, match="line 1 is no JSON object"):
        examples_from(["[]"])
    with pytest.raises(ValueError, match="no examples"):
        examples_from([""])


def test_junit_says_what_failed_and_stays_xml() -> None:
    """One test case; control characters and markup in names cannot break the file."""
    name = 'a<b>&"\x00'
    bad = judge(measured([1.0, 0.0, None]), Baseline(0.9, name, "recorded"), 0.1, program=name, devset=name)
    root = ET.fromstring(junit(bad, 1.5))
    assert (root.get("tests"), root.get("failures"), root.get("time")) == ("1", "1", "1.500")
    (case,) = root.iter("testcase")
    assert case.get("classname") == 'a<b>&"\ufffd'
    failure = case.find("failure")
    assert failure is not None
    assert "a drop of 0.5667, 0.1 is allowed" in str(failure.get("message"))
    assert failure.text == "example 3: failed\nexample 2: 0"
    good = judge(measured([1.0]), Baseline(0.9, "v1", "recorded"), 0.1, program="p", devset="d")
    assert ET.fromstring(junit(good, 1.5)).find(".//failure") is None


def test_markdown_names_the_lowest_examples_by_number() -> None:
    """And bars in names do not break its tables."""
    bad = judge(measured([1.0, 0.5]), Baseline(0.9, "a|b", "recorded"), 0.1, program="p", devset="d")
    text = markdown(bad)
    assert text.startswith("## Quality gate: failed\n")
    assert "| baseline | 0.9 (a\\|b, recorded) |" in text
    assert "| 2 | 0.5 |" in text
    assert "| 1 | 1 |" not in text


# --- the command -----------------------------------------------------------------------------------------------------


def test_a_number_needs_no_registry(folder: Path) -> None:
    """It passes at the number and fails above it; what the program prints stays out of the answer."""
    passed = gate("--baseline", "0.25", "--json")
    assert (passed.exit_code, verdict(passed)["passed"]) == (0, True)
    assert verdict(passed)["measured"] == {
        "score": 0.25, "n": 4, "failed": 0, "stdev": 0.5, "scores": [0.0, 0.0, 0.0, 1.0],
    }  # fmt: skip
    assert "a program may print" in passed.stderr
    failed = gate("--baseline", "0.5")
    assert failed.exit_code == 1
    assert "refused: 0.25 against 0.5" in failed.stderr
    assert not (folder / "dspy_registry").exists()


def test_an_unscored_baseline_is_evaluated(place: str) -> None:
    """The deployed state is loaded into the code of today and measured on the same examples."""
    worse = gate("--registry", place, "--json")
    assert worse.exit_code == 1
    assert verdict(worse)["baseline"] == {"score": 0.75, "name": "good", "origin": "evaluated"}
    assert gate("--registry", place, "--max-drop", "0.5").exit_code == 0
    same = gate("--registry", place, "--baseline", "careless", "--json")
    assert (same.exit_code, verdict(same)["drop"]) == (0, 0)


def test_a_registered_state_is_loaded_into_the_program(place: str) -> None:
    """``--load`` measures a version instead of the bare code."""
    done = gate("--registry", place, "--load", "good", "--baseline", "careless", "--json")
    assert (done.exit_code, verdict(done)["measured"]["score"]) == (0, 0.75)
    assert verdict(done)["program"] == "Grader good"
    worse = gate("--registry", place, "--load", "careless", "--json")
    assert (worse.exit_code, verdict(worse)["measured"]["score"]) == (1, 0.25)
    assert gate("--registry", place, "--load", "deployed", "--baseline", "0.75").exit_code == 0


def test_a_recorded_score_of_the_same_data_set_is_the_baseline(place: str) -> None:
    """By the name that is given, else by the hash of the examples; scores on other data sets do not count."""
    from dspy import Example

    from dspy_observe.registry.programs import dataset_sha256

    rows = [json.loads(line) for line in Path("dev.jsonl").read_text().split("\n") if line]
    key = dataset_sha256([Example(row).with_inputs("question") for row in rows])
    with SignatureRegistry(place) as registry:
        registry.update_performance_score("Grader", "good", 0.1, dataset="other", n=9)
        assert verdict(gate("--registry", place, "--json"))["baseline"]["origin"] == "evaluated"
        registry.update_performance_score("Grader", "good", 0.26, dataset=key, n=4)
    by_hash = gate("--registry", place, "--json")
    assert (by_hash.exit_code, verdict(by_hash)["baseline"]) == (
        0, {"score": 0.26, "name": "good", "origin": "recorded"},
    )  # fmt: skip
    by_name = gate("--registry", place, "--dataset", "other", "--json")
    assert verdict(by_name)["baseline"]["score"] == 0.1
    again = gate("--registry", place, "--reevaluate", "--json")
    assert (again.exit_code, verdict(again)["baseline"]["score"]) == (1, 0.75)


def test_both_reports_are_written(folder: Path) -> None:
    """Into folders that are made, whether it passes or fails."""
    for number, failures in (("0.25", "0"), ("0.9", "1")):
        gate("--baseline", number, "--junit", "out/junit.xml", "--markdown", "out/gate.md")
        assert ET.parse(folder / "out" / "junit.xml").getroot().get("failures") == failures
    assert (folder / "out" / "gate.md").read_text().startswith("## Quality gate: failed")
    refused = gate("--baseline", "0.25", "--junit", "dev.jsonl/no.xml")
    assert refused.exit_code == 1
    assert "cannot write" in refused.stderr


def test_a_failing_example_counts_and_does_not_stop_the_others(folder: Path) -> None:
    """When all fail, the gate fails, too."""
    rows = [{"question": "broken", "answer": "no"}, {"question": "fine", "answer": "no"}]
    (folder / "dev.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = gate("--baseline", "0.5", "--json")
    assert (done.exit_code, verdict(done)["measured"]["scores"]) == (0, [None, 1.0])
    (folder / "dev.jsonl").write_text(json.dumps(rows[0]))
    none = gate("--baseline", "0", "--json")
    assert (none.exit_code, verdict(none)["reason"]) == (1, "all 1 examples failed")


def test_a_model_is_taken_from_the_command_line(folder: Path) -> None:
    """A bare predictor asks the model that ``--lm`` names, over HTTP; its inputs come from its signature."""
    with OpenAIServer() as server:
        keys = {"OPENAI_API_KEY": "none", "OPENAI_API_BASE": server.base_url, "OPENAI_BASE_URL": server.base_url}
        done = in_a_process(folder, "bare", "--baseline", "0", "--lm", "openai/gpt-4o-mini", **keys)
        assert done.returncode == 0, done.stderr
        assert len(server.requests) == 4
    assert json.loads(done.stdout)["measured"]["failed"] == 0


def test_input_fields_are_named_where_the_program_takes_any(folder: Path) -> None:
    """Without them it is wrong usage, as with fields that no example has."""
    assert gate("--baseline", "0.75", program="anything").exit_code == 2
    assert gate("--baseline", "0.75", "--inputs", "question", program="anything").exit_code == 0
    assert gate("--baseline", "0.75", "--inputs", "colour").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "options", "code", "reason"),
    [
        (("--baseline", "0.5"), {"program": "NoSuchClass"}, 2, "has no NoSuchClass"),
        (("--baseline", "nan"), {}, 2, "no finite number"),
        (("--baseline", "0.5", "--max-drop", "-1"), {}, 2, "max-drop"),
        (("--baseline", "0.5", "--devset", "no.jsonl"), {}, 2, "cannot read no.jsonl"),
        (("--baseline", "0.5", "--program", "nowhere:Thing"), {}, 2, "no module nowhere"),
        (("--baseline", "0.5", "--program", "gate_program"), {}, 2, "write module:name"),
        (("--baseline", "0.5"), {"program": "no_program"}, 1, "no dspy.Module"),
        (("--baseline", "0.5"), {"metric": "not_a_number"}, 1, "the metric gave nan"),
        ((), {}, 1, "there is no registry"),
    ],
)
def test_what_cannot_be_judged_says_why(
    folder: Path, arguments: tuple[str, ...], options: dict[str, str], code: int, reason: str
) -> None:
    """Wrong usage and refusals have their own exit codes; neither is a pass."""
    done = gate(*arguments, **options)
    assert done.exit_code == code
    assert reason in " ".join(done.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (("--baseline", "v9"), "UnknownVersion"),
        (("-e", "staging"), "UnknownVersion"),
        (("--name", "x"), "UnknownSignature"),
    ],
)
def test_a_baseline_that_is_not_there_is_refused(place: str, arguments: tuple[str, ...], kind: str) -> None:
    """Exit code 1 and the error's type for programs."""
    done = gate("--registry", place, *arguments, "--json")
    assert (done.exit_code, verdict(done)["error"]) == (1, kind)


def test_the_console_script_finds_the_program_in_the_working_directory(folder: Path) -> None:
    """As installed, in a process of its own, with the exit codes of the shell."""
    done = [in_a_process(folder, "Grader", "--baseline", number) for number in ("0.2", "0.9")]
    assert [one.returncode for one in done] == [0, 1]
    assert [json.loads(one.stdout)["passed"] for one in done] == [True, False]


def test_help_shows_an_example() -> None:
    """With the three arguments that it needs."""
    shown = " ".join(CliRunner().invoke(app, ["gate", "--help"]).output.split())
    assert "Example: dspy-observe gate --program app:Classifier --devset dev.jsonl" in shown
