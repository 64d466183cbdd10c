"""The second part of the demonstration, run as users run it: on the real servers, and without them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import dspy
import pytest
from dspy.utils.exceptions import DSPyError

from dspy_observe.demo.loop import programs
from dspy_observe.demo.loop.timeline import Event, Timeline
from dspy_observe.demo.model import StandIn
from dspy_observe.demo.program import load_questions
from dspy_observe.openai_server import OpenAIServer
from dspy_observe.registry import SignatureRegistry
from tests.servers import needs


def loop(folder: Path, *arguments: str) -> str:
    """What the loop shows; it has to end well and to leave nothing."""
    scratch = folder / "scratch"
    scratch.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "OPENAI_"))}
    done = subprocess.run(
        [sys.executable, "-m", "dspy_observe.demo", "--only", "loop", "--plain", *arguments],
        cwd=folder, env={**environment, "TMPDIR": str(scratch), "COLUMNS": "160"}, capture_output=True, text=True,
        timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert [entry.name for entry in scratch.iterdir() if entry.name.startswith("dspy-observe")] == []
    return done.stdout


def assert_closed(said: str) -> None:
    """The steps came in their order, and the closing line says what it has to."""
    steps = [
        "v2 is deployed", "answers with v2", "first answer of v2 fails", "decision: roll back to v1",
        "answers with v1 again", "no answer has failed from here on",
    ]  # fmt: skip
    places = [said.index(step) for step in steps]
    assert places == sorted(places), said
    closing = re.search(r"(\d+) questions, (\d+) answered, (\d+) failed, 0 lost\.", said)
    assert closing is not None, said
    asked, answered, failed = map(int, closing.groups())
    assert asked == answered + failed
    assert failed > 0
    assert re.search(r"to the swapped program: \d+\.\d s\. v2 is quarantined\.", said)


@pytest.mark.e2e
@pytest.mark.slow
def test_the_loop_closes_on_the_real_servers(tmp_path: Path) -> None:
    """Prometheus notices, Alertmanager calls the receiver, the receiver moves the pointer, the process follows."""
    needs("prometheus", "prometheus-alertmanager")
    said = loop(tmp_path)
    assert_closed(said)
    assert re.search(r"DSPyVersion\w+ fires for v2", said)
    assert "receiver      http://127.0.0.1:" in said


@pytest.mark.e2e
@pytest.mark.slow
def test_the_loop_closes_without_servers(tmp_path: Path) -> None:
    """The monitor in the serving process does it from the scores alone, and the opening says so."""
    said = loop(tmp_path, "--embedded")
    assert "the monitor in the serving process" in said
    assert "receiver " not in said
    assert_closed(said)


def test_the_second_version_differs_by_its_instruction_and_breaks(tmp_path: Path) -> None:
    """What is deployed second reads well, and most of its replies cannot be parsed by either adapter."""
    questions = load_questions()[:12]
    with SignatureRegistry(tmp_path / "registry") as registry, OpenAIServer(StandIn(pace=0)) as server:
        for version in (programs.GOOD, programs.BAD):
            programs.register(registry, version)
        failed = {}
        for version in (programs.GOOD, programs.BAD):
            program = registry.load_program(programs.PROGRAM, programs.factory(), version)
            failed[version] = 0
            with dspy.context(lm=programs.make_lm(server.base_url)):
                for question in questions:
                    try:
                        program(question=question.text)
                    except DSPyError:
                        failed[version] += 1
        assert json.loads(registry.program_text(programs.PROGRAM, programs.BAD))
    assert failed[programs.GOOD] == 0
    assert len(questions) / 3 < failed[programs.BAD] < len(questions), "some waver, most fail"


def test_timeline_counts_the_first_of_a_kind_and_orders_by_time() -> None:
    """A second event of a kind changes nothing, and rows stand in the order in which things happened."""
    timeline = Timeline()
    timeline.add(Event(12.0, "late", "the later one"))
    timeline.add(Event(10.0, "deployed", "the first one"))
    timeline.add(Event(99.0, "late", "again"))
    assert timeline.wait_for("never", 0) is None
    table = timeline.render()
    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    assert cells == [["0.0 s", "2.0 s"], ["", "+2.0 s"], ["the first one", "the later one"]]
