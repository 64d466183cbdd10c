"""The batch job keeps to its budget and loses nothing: when it is spent, interrupted, or killed in the middle."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dspy_observe.demo.model import StandIn
from dspy_observe.openai_server import OpenAIServer

THREADS = 8
"""What the job uses unless told otherwise."""

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "batch_job.py"


def command(*arguments: str) -> list[str]:
    """The job in a process of its own."""
    return [sys.executable, str(SCRIPT), *arguments]


def environment(cwd: Path, **more: str) -> dict[str, str]:
    """What the job runs in; no key unless given."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "DSPY_CACHEDIR": str(cwd / "cache"), **more}


def run(cwd: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """The job, to its end."""
    return subprocess.run(
        command(*arguments), cwd=cwd, env=environment(cwd, **more), capture_output=True, text=True, timeout=240,
        check=False,
    )  # fmt: skip


def answers(cwd: Path) -> list[dict[str, str]]:
    """The answers in the file; every line has to be whole."""
    return [json.loads(line) for line in (cwd / "answers.jsonl").read_bytes().splitlines()]


def figures(printed: str) -> tuple[int, int, int, int]:
    """Answered before, answered now, failed, not begun."""
    found = re.search(r"(\d+) answered before, (\d+) now, (\d+) failed, (\d+) not begun", printed)
    assert found is not None, printed
    before, now, failed, not_begun = map(int, found.groups())
    return before, now, failed, not_begun


def test_the_budget_is_kept_and_runs_add_up_to_every_question(tmp_path: Path) -> None:
    """Each run stays within its dollars; runs go on where the last one stopped, until each question has one answer."""
    done, runs = 0, 0
    for runs in range(1, 9):  # noqa: B007 - counted
        finished = run(tmp_path, "--count", "150", "--budget", "0.006")
        spent = re.search(r"^\$([\d.]+) of", finished.stdout, re.MULTILINE)
        assert spent is not None, finished.stderr
        assert float(spent[1]) <= 0.006
        before, now, failed, not_begun = figures(finished.stdout)
        assert before == done
        assert before + now + failed + not_begun == 150
        done += now
        assert len(answers(tmp_path)) == done
        assert finished.returncode == (3 if not_begun else 1 if failed else 0)
        if finished.returncode == 0:
            break
    assert runs > 2
    assert done == 150
    assert len({row["key"] for row in answers(tmp_path)}) == 150


@pytest.mark.parametrize(("ending", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_job_that_is_ended_in_the_middle_keeps_its_answers(ending: signal.Signals, code: int, tmp_path: Path) -> None:
    """What was answered is in the file, in whole lines, and is not asked again."""
    arguments = ("--count", "3000", "--budget", "9")
    path = tmp_path / "answers.jsonl"
    with subprocess.Popen(
        command(*arguments), cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.PIPE, text=True
    ) as job:
        deadline = time.monotonic() + 120
        while not (path.exists() and path.read_bytes().count(b"\n") > 50):
            assert time.monotonic() < deadline
            assert job.poll() is None
            time.sleep(0.02)
        job.send_signal(ending)
        printed, _ = job.communicate(timeout=120)
    assert job.returncode == code
    kept = answers(tmp_path)
    assert 50 < len(kept) < 2_900
    if ending is signal.SIGINT:
        told = re.search(r"(\d+) answers are in answers.jsonl, and those under way", printed)
        assert told is not None, printed
        assert int(told[1]) <= len(kept) <= int(told[1]) + THREADS
    before, now, *_ = figures(run(tmp_path, "--count", str(len(kept) + 60), "--budget", "9").stdout)
    assert before >= len(kept) - 60  # eight threads take the questions nearly in order
    assert now > 0
    keys = [row["key"] for row in answers(tmp_path)]
    assert len(keys) == len(set(keys))


def test_a_line_that_was_cut_off_is_asked_again(tmp_path: Path) -> None:
    """Half a line, as a full disk leaves it, is taken away and its question answered anew."""
    assert run(tmp_path, "--count", "20", "--budget", "9").returncode in (0, 1)
    path = tmp_path / "answers.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    count = len(whole.splitlines())
    before, now, *_ = figures(run(tmp_path, "--count", "20", "--budget", "9").stdout)
    assert before == count - 1
    assert now >= 1
    assert len(answers(tmp_path)) == before + now


def test_without_a_price_no_budget_is_kept_and_the_job_says_so(tmp_path: Path) -> None:
    """A cost that is not known is not a cost of nothing: nothing more is begun than was under way."""
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps({"question": f"Who wrote book {n}?"}) + "\n" for n in range(100)))
    code = (
        "import sys, dspy, batch_job\n"
        "batch_job.MODEL = 'openai/a-model-nobody-sells'\n"
        "sys.argv = ['batch_job.py', '--questions', 'questions.jsonl', '--budget', '9', '--threads', '4']\n"
        "batch_job.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
        env=environment(tmp_path, PYTHONPATH=f"{ROOT}:{ROOT / 'examples'}"),
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "no price is known for openai/a-model-nobody-sells" in done.stderr
    assert figures(done.stdout)[1] <= 8


def test_with_a_key_the_provider_is_asked(tmp_path: Path) -> None:
    """The key and address of the environment are DSPy's own; the file's questions are asked once each."""
    questions = tmp_path / "questions.jsonl"
    asked = ["Who discovered penicillin?", "What is the largest moon of Saturn?", "Who discovered penicillin?"]
    questions.write_text("".join(json.dumps({"question": text}) + "\n" for text in asked))
    with OpenAIServer(StandIn(pace=0)) as server:
        key = {"OPENAI_API_KEY": "test", "OPENAI_API_BASE": server.base_url}
        done = run(tmp_path, "--questions", "questions.jsonl", **key)
        assert len(server.bills) == 2
    assert (done.returncode, figures(done.stdout)) == (0, (0, 2, 0, 0)), done.stderr
    assert {row["question"] for row in answers(tmp_path)} == set(asked)
