"""Swapping under load, and labels on everything. Numbers are those of the scenario list."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import subprocess
import sys
import textwrap
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import dspy
import pytest

from dspy_observe import LiveProgram, Metrics
from dspy_observe.openai_server import ChatRequest, OpenAIServer
from dspy_observe.records import CallRecord
from dspy_observe.registry import SignatureRegistry
from dspy_observe.testing import capture_records
from tests.postgres import Postgres
from tests.servers import wait_until
from tests.serving.conftest import Bot, Follow, Open, Publish, answer_with_version, version_in

VERSIONS = ("v1", "v2", "v3")


def prompts_by_question(server: OpenAIServer) -> dict[str, set[str]]:
    """Which versions' texts stood in the prompts of each question."""
    found = defaultdict(set)
    for request in server.requests:
        messages = request.json["messages"]
        question = re.search(r"question-\d+", messages[-1]["content"])
        assert question is not None
        found[question[0]].add(version_in(messages[0]["content"]))
    return found


def labels_by_question(records: list[CallRecord]) -> dict[str, set[tuple[str, str | None]]]:
    """Program and version on the records of each run, by the number of its root in the order of the ends."""
    found = defaultdict(set)
    for record in records:
        found[record.root_id].add((record.role, record.version))
    return found


class Traffic:
    """Questions from all sides, each asked once, until it is enough."""

    def __init__(self, live: LiveProgram) -> None:
        self.live = live
        self.answers: dict[str, dspy.Prediction] = {}
        self.done = threading.Event()
        self._numbers = itertools.count()
        self._stream = live.streamify()

    def _questions(self) -> Iterator[str]:
        while not self.done.is_set():
            yield f"question-{next(self._numbers)}"

    def ask(self) -> None:
        """In a thread."""
        for question in self._questions():
            self.answers[question] = self.live(question=question)

    async def ask_in_coroutines(self) -> None:
        """By ``acall``."""
        for question in self._questions():
            self.answers[question] = await self.live.acall(question=question)

    async def ask_for_streams(self) -> None:
        """Streamed."""
        for question in self._questions():
            self.answers[question] = [chunk async for chunk in self._stream(question=question)][-1]

    def more(self, count: int) -> None:
        """Wait for further answers."""
        wanted = len(self.answers) + count
        wait_until(lambda: len(self.answers) >= wanted, "traffic")


async def test_scenario_39_no_answer_mixes_two_versions(
    registry: SignatureRegistry, publish: Publish, follow: Follow, server: OpenAIServer
) -> None:
    """Six threads, coroutines and streams while versions change: each run is one version in prompts, answer, label."""
    for version in VERSIONS:
        publish(registry, version)
    traffic = Traffic(follow(registry, refresh_s=0.05))

    def deploy() -> None:
        try:
            for version in itertools.islice(itertools.cycle(VERSIONS), 24):
                registry.deploy_version("bot", version)
                traffic.live.wait_for(version)
                traffic.more(12)
        finally:
            traffic.done.set()

    with capture_records() as records:
        threads = [threading.Thread(target=traffic.ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        others = (traffic.ask_in_coroutines(), traffic.ask_in_coroutines(), traffic.ask_for_streams())
        await asyncio.gather(asyncio.to_thread(deploy), *others)
        await asyncio.to_thread(lambda: [thread.join(30) for thread in threads])
    prompts, answers = prompts_by_question(server), traffic.answers
    assert set(prompts) == set(answers)
    assert [question for question, one in answers.items() if {one.draft, one.answer} != prompts[question]] == []
    assert {one.answer for one in answers.values()} == set(VERSIONS)
    runs = labels_by_question(records)
    assert len(runs) == len(answers)
    assert all(len(labels) == 1 for labels in runs.values())
    roots = sorted(str(version) for labels in runs.values() for _, version in labels)
    assert roots == sorted(one.answer for one in answers.values())


class Worker(dspy.Module):
    """A predictor, a tool, and an adapter between them and the LM."""

    def __init__(self) -> None:
        super().__init__()
        self.draft = dspy.Predict("question -> answer")
        self.tool = dspy.Tool(self._look_up, name="look_up")

    def _look_up(self, text: str) -> str:
        return text

    def forward(self, question: str) -> dspy.Prediction:
        """Look something up, and answer."""
        return self.draft(question=self.tool(text=question))

    async def aforward(self, question: str) -> dspy.Prediction:
        """The same."""
        return await self.draft.acall(question=await self.tool.acall(text=question))


@pytest.fixture
def worker(registry: SignatureRegistry, metrics: Metrics, lm: dspy.LM) -> Iterator[LiveProgram]:
    """A deployed worker."""
    made = Worker()
    made.draft.signature = made.draft.signature.with_instructions("You are version <v7>.")
    registry.register_program("worker", made, version="v7")
    registry.deploy_version("worker", "v7")
    with LiveProgram(registry, "worker", Worker, metrics=metrics) as live:
        yield live


async def _stream(streaming: Any) -> list[Any]:
    return [chunk async for chunk in streaming]


async def _late(live: LiveProgram) -> Any:
    with dspy.context(temperature=0.5):
        streaming = live.streamify()(question="q")
    return await _stream(streaming)


def _examples() -> list[dspy.Example]:
    return [dspy.Example(question="q").with_inputs("question")]


WAYS: dict[str, Callable[[LiveProgram], Any]] = {
    "plain": lambda live: asyncio.to_thread(live, question="q"),
    "acall": lambda live: live.acall(question="q"),
    "asyncify": lambda live: dspy.asyncify(live)(question="q"),
    "batch": lambda live: asyncio.to_thread(live.batch, _examples(), num_threads=2, disable_progress_bar=True),
    "Parallel": lambda live: asyncio.to_thread(
        dspy.Parallel(num_threads=2, disable_progress_bar=True), [(live, {"question": "q"})]
    ),
    "streamify": lambda live: _stream(live.streamify()(question="q")),
    "dspy.streamify": lambda live: _stream(dspy.streamify(live)(question="q")),
    "asynchronous streamify": lambda live: _stream(live.streamify(is_async_program=True)(question="q")),
    "stream consumed after its context": _late,
}


@pytest.mark.parametrize("way", WAYS)
async def test_scenario_40_every_record_says_which_version(worker: LiveProgram, way: str) -> None:
    """On modules, LM, tool and adapter calls alike, however the program was called."""
    with capture_records() as records:
        await WAYS[way](worker)
    kinds = {record.kind for record in records}
    assert kinds == {"module", "lm", "tool", "adapter_format", "adapter_parse"}
    assert {(record.program, record.version, record.role) for record in records} == {("worker", "v7", "stable")}
    assert len({record.root_id for record in records}) == 1


def test_scenario_40_an_evaluation_is_of_its_version(worker: LiveProgram) -> None:
    """``dspy.Evaluate`` of the instance that answers is booked on the version, as ``eval``."""
    evaluate = dspy.Evaluate(devset=_examples(), metric=lambda *_: True, num_threads=1, display_progress=False)
    with capture_records() as records:
        evaluate(worker.program)
    assert {(record.version, record.role) for record in records} == {("v7", "eval")}


def test_scenario_44_polling_goes_on_without_notifications(
    postgres: Postgres, open_registry: Open, publish: Publish, follow: Follow
) -> None:
    """The server drops the connection that listens: a new version answers all the same, and it listens again."""
    place = postgres.new_registry()
    registry = open_registry(place)
    publish(registry, "v1")
    live = follow(open_registry(place), refresh_s=0.5)
    wait_until(lambda: live.status().following == "hints", "listening")

    def dropped() -> int:
        import psycopg

        with psycopg.connect(postgres.dsn("postgres"), autocommit=True) as connection:
            query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
            return len(connection.execute(query).fetchall())

    assert dropped() >= 1
    publish(registry, "v2")
    wait_until(lambda: live.version == "v2", "swap")
    wait_until(lambda: live.status().following == "hints", "listening again")
    live.close()
    live = follow(open_registry(place), refresh_s=60.0)
    wait_until(lambda: live.status().following == "hints", "listening")
    publish(registry, "v3")
    wait_until(lambda: live.version == "v3", "swap by notification")


def test_scenario_44_a_database_that_is_down_costs_no_answer(
    postgres: Postgres, open_registry: Open, publish: Publish, follow: Follow, collector: Any
) -> None:
    """The last good version goes on answering, its age rises, and when the database is back it is followed again."""
    place = postgres.new_registry()
    registry = open_registry(place)
    publish(registry, "v1")
    live = follow(open_registry(place))
    labels = {"program": "bot", "environment": "production"}

    def age() -> float:
        found = collector.get_sample_value("dspy_registry_stale_seconds", labels)
        assert found is not None
        return float(found)

    postgres.stop()
    try:
        wait_until(lambda: live.status().error is not None, "error")
        first = age()
        assert live(question="question-1").answer == "v1"
        wait_until(lambda: age() > first + 0.5, "rising age")
        assert live.status().version == "v1"
    finally:
        postgres.start()
    wait_until(lambda: live.status().error is None and age() < first + 0.5, "recovery")
    publish(registry, "v2")
    live.wait_for("v2")
    assert live(question="question-2").answer == "v2"


SERVER = """
    import json, sys, threading
    import dspy
    from prometheus_client import CollectorRegistry
    from dspy_observe import LiveProgram, Metrics
    from tests.serving.conftest import Bot

    place, base = sys.argv[1:]
    dspy.configure(lm=dspy.LM("openai/gpt-4o-mini", api_base=base, api_key="x", cache=False))
    own = Metrics(collector_registry=CollectorRegistry())
    with LiveProgram(place, "bot", Bot, refresh_s=60, metrics=own) as live:
        stop, answers = threading.Event(), []

        def serve():
            while not stop.is_set():
                one = live(question="question-1")
                answers.append((one.draft, one.answer))

        threads = [threading.Thread(target=serve) for _ in range(2)]
        for thread in threads:
            thread.start()
        while live.status().following != "hints":
            stop.wait(0.02)
        print("up", flush=True)
        for line in sys.stdin:
            while live.version != line.strip():
                stop.wait(0.01)
            seen = len(answers)
            while len(answers) < seen + 5:
                stop.wait(0.01)
            print(live.version, flush=True)
        stop.set()
        for thread in threads:
            thread.join()
    print(json.dumps(sorted(set(answers))))
"""


def test_three_processes_over_one_database_all_swap(
    postgres: Postgres, open_registry: Open, publish: Publish, server: OpenAIServer
) -> None:
    """Each is told of a deployment and of a rollback; under traffic none gives an answer of two versions."""
    place = postgres.new_registry()
    registry = open_registry(place)
    publish(registry, "v1")
    publish(registry, "v2", deploy=False)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SERVER), place, server.base_url],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(3)
    ]  # fmt: skip
    try:
        assert [child.stdout.readline() for child in children if child.stdout] == ["up\n"] * 3
        for move, version in (
            (lambda: registry.deploy_version("bot", "v2"), "v2"),
            (lambda: registry.rollback("bot"), "v1"),
        ):
            move()
            for child in children:
                assert child.stdin is not None
                child.stdin.write(f"{version}\n")
                child.stdin.flush()
            assert [child.stdout.readline() for child in children if child.stdout] == [f"{version}\n"] * 3
        for child in children:
            out, _ = child.communicate(timeout=60)
            assert json.loads(out) == [["v1", "v1"], ["v2", "v2"]]
            assert child.returncode == 0
    finally:
        for child in children:
            child.kill()
            child.communicate()


def test_the_server_reads_what_the_prompt_says() -> None:
    """The test's own provider answers by the prompt and nothing else."""
    messages = ({"role": "system", "content": "You are version <v7>."}, {"role": "user", "content": "q"})
    request = ChatRequest("m", messages, 1, stream=False, include_usage=False, body={})
    assert "v7" in str(answer_with_version(request).text)
    assert isinstance(Bot(), dspy.Module)
