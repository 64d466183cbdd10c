"""``dspy-observe canary`` on real programs and a real registry: once, on a schedule, interrupted, with a candidate."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner, Result

from dspy_observe.cli import app
from dspy_observe.registry import SignatureRegistry
from tests.servers import wait_until

PROGRAM = '''
import os, pathlib, time
import dspy
from dspy_observe.testing import offline_lm

ASKED = pathlib.Path(__file__).with_name("asked.txt")

def reply(request):
    """Careful is right always, plain is right for even numbers; broken fails."""
    text = str(request)
    if "broken" in text:
        raise RuntimeError("no answer")
    with ASKED.open("a") as file:
        file.write("x")
    time.sleep(float(os.environ.get("SLOW", "0")))
    number = int(text.rsplit("number ", 1)[1].split("?")[0])
    return {"answer": "yes" if "Take care" in text or number % 2 == 0 else "no"}

class Bot(dspy.Module):
    def __init__(self):
        super().__init__()
        self.answer = dspy.Predict("question -> answer")

    def forward(self, question):
        print("a program may print")
        return self.answer(question=question)

def made(instructions):
    bot = Bot()
    bot.answer.signature = bot.answer.signature.with_instructions(instructions)
    return bot

def exact(example, prediction):
    return example.answer == prediction.answer

dspy.configure(lm=offline_lm(reply))
'''

Canary = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a program, 40 examples, and a registry with careful v1, plain v2 and broken v3."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "canaryapp.py").write_text(PROGRAM)
    rows = [json.dumps({"question": f"Is it number {n}?", "answer": "yes"}) for n in range(40)]
    (tmp_path / "held.jsonl").write_text("\n".join(rows))
    sys.modules.pop("canaryapp", None)
    monkeypatch.syspath_prepend(str(tmp_path))
    import canaryapp  # type: ignore[import-not-found]

    with SignatureRegistry(tmp_path / "registry") as registry:
        for version, words in (("v1", "Take care."), ("v2", "Be plain."), ("v3", "Be broken.")):
            registry.register_program("bot", canaryapp.made(words), version=version)
        registry.deploy_version("bot", "v1")
    return tmp_path


@pytest.fixture
def canary(folder: Path) -> Canary:
    """Runs the command in this process."""

    def run(*arguments: str) -> Result:
        fixed = ["canary", "bot", "--program", "canaryapp:Bot", "--devset", "held.jsonl", "--metric", "canaryapp:exact"]
        return CliRunner().invoke(app, [*fixed, "--registry", "registry", "--dataset", "held", *arguments])

    return run


def asked(folder: Path) -> int:
    """How often the LM was asked."""
    file = folder / "asked.txt"
    return len(file.read_text()) if file.exists() else 0


def deploy(version: str) -> None:
    """Make production run a version."""
    with SignatureRegistry("registry") as registry:
        registry.deploy_version("bot", version)


def scores(version: str) -> list[Any]:
    """What the registry holds."""
    with SignatureRegistry("registry") as registry:
        return list(registry.scores("bot", version))


def test_the_deployed_version_is_scored_and_judged(canary: Canary, folder: Path) -> None:
    """Once: mean, number and spread go to the registry under source canary, and the evidence into the verdict."""
    done = canary("--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["deployed"]["version"] == "v1"
    assert (found["deployed"]["score"], found["deployed"]["n"], found["deployed"]["failed"]) == (1.0, 40, 0)
    assert found["deployed"]["verdict"]["verdict"] == "insufficient_data"
    assert found["candidate"] is None
    (score,) = scores("v1")
    assert (score.value, score.n, score.stdev, score.dataset, score.source) == (1.0, 40, 0.0, "held", "canary")
    assert asked(folder) == 40


def test_a_declined_version_ends_with_one(canary: Canary, folder: Path) -> None:
    """Half of the answers wrong where its predecessor had 0.95: regressed, exit 1; a rollback only if asked for."""
    with SignatureRegistry("registry") as registry:
        registry.update_performance_score("bot", "v1", 0.95, dataset="held", n=400, stdev=0.22)
    deploy("v2")
    done = canary()
    assert done.exit_code == 1
    assert "REGRESSED" in done.output
    with SignatureRegistry("registry") as registry:
        pointer = registry.pointer("bot")
        assert pointer is not None
        assert pointer.version == "v2"
        assert registry.decisions("bot") == ()
    assert canary("--act").exit_code == 1
    with SignatureRegistry("registry") as registry:
        pointer = registry.pointer("bot")
        assert pointer is not None
        assert pointer.version == "v1"
        assert [(one.outcome, one.trigger) for one in registry.decisions("bot")] == [("rollback", "monitor")]


def test_a_candidate_is_measured_on_the_same_examples(canary: Canary, folder: Path) -> None:
    """A worse candidate ends with 1, a better one with 0; both scores are kept, nothing is deployed."""
    worse = canary("--candidate", "v2", "--json")
    assert worse.exit_code == 1
    found = json.loads(worse.stdout)["candidate"]
    assert (found["version"], found["score"], found["passed"]) == ("v2", 0.5, False)
    assert "difference of -0.5" in found["reason"]
    assert canary("--candidate", "v2", "--max-drop", "0.5").exit_code == 0
    deploy("v2")
    better = canary("--candidate", "v1")
    assert better.exit_code == 0
    assert "v1 passes" in better.output
    assert len(scores("v2")) == 3


def test_an_interrupted_run_goes_on_where_it_was(folder: Path) -> None:
    """Interrupted by a signal, the second run asks only what was not scored, and keeps one score."""
    asking = command("--out", "progress.jsonl", "--threads", "2", "--json")
    environment = {**os.environ, "SLOW": "0.2"}
    process = subprocess.Popen(asking, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    progress, until = folder / "progress.jsonl", time.monotonic() + 100
    while not (progress.exists() and progress.read_text().count('"example"') >= 6) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 1, err
    assert "progress.jsonl has what was scored" in err
    assert out == ""
    before = asked(folder)
    assert 6 <= before < 40
    assert scores("v1") == []
    again = subprocess.run(asking, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    found = json.loads(again.stdout)
    assert asked(folder) == 40, "what was asked before the interrupt is not asked again"
    assert found["resumed"] == before
    assert found["deployed"]["score"] == 1.0
    assert len(scores("v1")) == 1


def test_a_finished_run_is_not_taken_for_an_unfinished_one(canary: Canary, folder: Path) -> None:
    """The next run asks everything anew; a line that a crash cut short does no harm."""
    assert canary("--out", "progress.jsonl").exit_code == 0
    file = folder / "progress.jsonl"
    file.write_text(file.read_text() + '{"kind": "sco')
    assert canary("--out", "progress.jsonl").exit_code == 0
    assert asked(folder) == 80
    lines = [json.loads(line) for line in file.read_text().splitlines() if line != '{"kind": "sco']
    assert [line["kind"] for line in lines if line["kind"] != "score"] == ["run", "done", "run", "done"]
    deploy("v2")
    file.write_text("\n".join(file.read_text().splitlines()[:-1]) + "\n")
    canary("--out", "progress.jsonl")
    assert asked(folder) == 120, "an unfinished run of another version is another run"


def test_a_schedule_runs_again_and_again(canary: Canary, folder: Path) -> None:
    """Each run is answered, asks anew instead of taking DSPy's cache, and follows what is deployed."""
    done = canary("--every", "0.1s", "--times", "3", "--limit", "10", "--json")
    assert done.exit_code == 0, done.output
    decoder, text, found = json.JSONDecoder(), done.stdout.strip(), []
    while text:
        one, end = decoder.raw_decode(text)
        found.append(one)
        text = text[end:].strip()
    assert [one["deployed"]["n"] for one in found] == [10, 10, 10]
    assert len({one["run"] for one in found}) == 3
    assert asked(folder) == 30
    assert len(scores("v1")) == 3


def test_a_schedule_outlasts_what_a_single_run_is_refused_for(canary: Canary, folder: Path) -> None:
    """Nothing deployed yet: each run says so, and the schedule goes on to the next; the last one decides the code."""
    done = canary("--environment", "staging", "--every", "0.1s", "--times", "2")
    assert done.exit_code == 1
    assert done.stderr.count("refused: ") == 2
    assert asked(folder) == 0


def test_metrics_are_written_for_node_exporter(canary: Canary, folder: Path) -> None:
    """The text file holds the evaluation's score and the verdict, whole at any time."""
    assert canary("--textfile", "out/canary.prom").exit_code == 0
    families = {
        sample.name: (sample.labels, sample.value)
        for family in text_string_to_metric_families((folder / "out" / "canary.prom").read_text())
        for sample in family.samples
        if sample.labels.get("program") == "bot"
    }
    assert families["dspy_evaluation_score"] == ({"program": "bot", "version": "v1", "dataset": "held"}, 1.0)
    assert "dspy_quality_verdict_info" in families
    assert list((folder / "out").iterdir()) == [folder / "out" / "canary.prom"]


def test_a_version_that_answers_nothing_fails(canary: Canary) -> None:
    """All examples failed: exit 1, and no score that could be taken for a bad version's."""
    deploy("v3")
    done = canary()
    assert done.exit_code == 1
    assert "FAILED on all 40" in done.output
    assert "errors: 40 " in done.output
    assert scores("v3") == []


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--every", "soon"), 2, "write a number"),
        (("--every", "0s"), 2, "write a number"),
        (("--candidate", "v9"), 1, "v9"),
        (("--environment", "staging"), 1, "deployed in staging"),
        (("--out", "held.jsonl"), 2, "no line of a canary"),
        (("--low", "1", "--high", "0"), 2, "not below"),
    ],
)
def test_what_cannot_work_is_refused(canary: Canary, arguments: tuple[str, ...], code: int, words: str) -> None:
    """Wrong usage ends with 2, what the registry does not have with 1, both with the reason."""
    done = canary(*arguments)
    assert done.exit_code == code, done.output
    assert words in " ".join(done.output.split())


def command(*arguments: str) -> list[str]:
    """The command in a process of its own."""
    return [
        sys.executable, "-c", "from dspy_observe.cli import main; main()", "canary", "bot", "--program",
        "canaryapp:Bot", "--devset", "held.jsonl", "--metric", "canaryapp:exact", "--registry", "registry",
        "--dataset", "held", *arguments,
    ]  # fmt: skip


def test_a_schedule_can_be_scraped_and_ends_in_order(folder: Path) -> None:
    """With a metrics port, Prometheus finds the score between two runs; a termination in between ends with 0."""
    process = subprocess.Popen(
        command("--every", "1h", "--metrics-port", "0", "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        address = next(line for line in process.stderr if line.startswith("metrics: ")).split()[1]

        def scraped() -> str | None:
            with urllib.request.urlopen(address, timeout=10) as answer:
                text: str = answer.read().decode()
            return text if "dspy_evaluation_score{" in text else None

        page = wait_until(scraped, "the evaluation's score", 60)
        assert 'dspy_evaluation_score{dataset="held",program="bot",version="v1"} 1.0' in page
        wait_until(lambda: scores("v1"), "the score in the registry")
    finally:
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(out)["deployed"]["score"] == 1.0


def test_a_terminal_gets_a_progress_bar(folder: Path) -> None:
    """On a terminal the examples are counted; the answer stays alone on standard output."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command("--json"), stdout=subprocess.PIPE, stderr=theirs, text=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # the terminal is gone when the process is
        while chunk := os.read(ours, 65536):
            seen += chunk
    out, _ = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0, seen
    assert b"40/40" in seen
    assert json.loads(out)["deployed"]["n"] == 40
