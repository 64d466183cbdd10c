"""The closed loop on real servers: a bad version is deployed, alerted, rolled back, and the live program follows."""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dspy
import pytest
import yaml
from dspy.utils.exceptions import DSPyError
from prometheus_client import CollectorRegistry

import dspy_observe
from dspy_observe.demo.loop import programs
from dspy_observe.demo.loop.programs import BAD, GOOD, PROGRAM
from dspy_observe.demo.model import StandIn
from dspy_observe.metrics import Metrics
from dspy_observe.mixin import prometheus as rules
from dspy_observe.mixin.options import DashboardOptions
from dspy_observe.openai_server import ChatRequest, OpenAIServer, Reply
from dspy_observe.readers import Reader
from dspy_observe.records import CallRecord
from dspy_observe.registry import SignatureRegistry
from dspy_observe.serving import LiveProgram
from tests.postgres import Postgres
from tests.servers import Alertmanager, Prometheus, fetch, free_port, needs, rollback_config, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PROGRAMS = ("bot-a", "bot-b", "bot-c")
THREADS, TASKS = 3, 2
"""For each program: nine threads and six tasks in all."""
MARK = re.compile(r"<(v\d+)>")
SCRAPE_AND_EVALUATION_S = 2.0
ALLOWED_S = 2.0


class TwoSteps(dspy.Module):
    """Two predictors of one version, so that an answer tells whether both were of the same."""

    def __init__(self) -> None:
        super().__init__()
        self.first = dspy.Predict(dspy.Signature("question -> thought"))
        self.second = dspy.Predict(dspy.Signature("question, thought -> answer"))

    def forward(self, question: str) -> dspy.Prediction:
        """The second step sees what the first said."""
        thought = self.first(question=question).thought
        return dspy.Prediction(thought=thought, answer=self.second(question=question, thought=thought).answer)

    async def aforward(self, question: str) -> dspy.Prediction:
        """The same, awaited."""
        thought = (await self.first.acall(question=question)).thought
        answer = (await self.second.acall(question=question, thought=thought)).answer
        return dspy.Prediction(thought=thought, answer=answer)


def respond(request: ChatRequest) -> Reply:
    """Say the version that stands in the instruction; what an instruction called bad asks for, nobody can parse."""
    found = MARK.search(request.system)
    assert found is not None
    if "bad" in request.system:
        return Reply(text="Sure!")
    field = "thought" if "Your output fields are:\n1. `thought`" in request.system else "answer"
    return Reply(text=f"[[ ## {field} ## ]]\n{found[1]}\n\n[[ ## completed ## ]]")


def register(registry: SignatureRegistry, name: str, version: str, words: str) -> None:
    """A version whose instructions name it."""
    program = TwoSteps()
    for _, predictor in program.named_predictors():
        predictor.signature = predictor.signature.with_instructions(f"You are <{version}>. {words}")
    registry.register_program(name, program, version=version)


class Runs(Reader):
    """The version of every program run's record, by outcome."""

    kinds = frozenset({"module"})

    def __init__(self) -> None:
        self.seen: Counter[tuple[str | None, str | None, str]] = Counter()
        self._lock = threading.Lock()

    def finished(self, record: CallRecord) -> None:
        if record.is_program:
            with self._lock:
                self.seen[record.program, record.version, record.outcome] += 1


class Clients:
    """Threads and tasks that ask live programs until they are stopped, and what came of it."""

    def __init__(self, lives: dict[str, LiveProgram]) -> None:
        self._lives = lives
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.asked = 0
        self.mixed: list[tuple[str, str]] = []
        self.first_bad: dict[str, float] = {}

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Ask for as long as the block lasts."""
        with ThreadPoolExecutor(len(self._lives) * THREADS + 1) as pool:
            futures = [pool.submit(self._thread, name) for name in self._lives for _ in range(THREADS)]
            futures.append(pool.submit(asyncio.run, self._loop()))
            try:
                yield
            finally:
                self._stop.set()
        for future in futures:
            future.result()

    def _thread(self, name: str) -> None:
        while not self._stop.wait(0.04):
            with self._booked(name) as book:
                book(self._lives[name](question="?"))

    async def _loop(self) -> None:
        async def task(name: str) -> None:
            while not self._stop.is_set():
                with self._booked(name) as book:
                    book(await self._lives[name].acall(question="?"))
                await asyncio.sleep(0.04)

        await asyncio.gather(*(task(name) for name in self._lives for _ in range(TASKS)))

    @contextmanager
    def _booked(self, name: str) -> Iterator[Any]:
        with self._lock:
            self.asked += 1

        def book(prediction: dspy.Prediction) -> None:
            with self._lock:
                self.outcomes[name, prediction.answer] += 1
                if prediction.thought != prediction.answer:
                    self.mixed.append((prediction.thought, prediction.answer))

        try:
            yield book
        except DSPyError:
            with self._lock:
                self.outcomes[name, "failed"] += 1
                self.first_bad.setdefault(name, time.time())


@contextmanager
def receiver(registry: str, folder: Path, *arguments: str, environment: dict[str, str] | None = None) -> Iterator[str]:
    """``dspy-observe serve`` as a process of its own; gives its address."""
    port = free_port()
    command = [
        sys.executable, "-c", "from dspy_observe.cli import main; main()", "serve", "--registry", registry,
        "--listen", f"127.0.0.1:{port}", "--token-file", str(folder / "token"), *arguments,
    ]  # fmt: skip
    (folder / "token").write_text("a-token-of-the-test", encoding="utf-8")
    with (folder / f"receiver-{port}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        wait_until(lambda: fetch(f"http://127.0.0.1:{port}/healthz"), "receiver", 30)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        assert process.wait(20) == 0, "the receiver ends by itself when it is asked to"


def rule_files(folder: Path, options: DashboardOptions) -> list[Path]:
    """The shipped rules and alerts, as files."""
    made = []
    for name, text in {"rules.yml": rules.rules_yml(options), "alerts.yml": rules.alerts_yml(options)}.items():
        path = folder / name
        path.write_text(text, encoding="utf-8")
        assert yaml.safe_load(text)["groups"]
        made.append(path)
    return made


def back_at(live: LiveProgram) -> float:
    """When a live program answered with the first version again."""
    assert live.wait_for("v1", timeout_s=60), "the loop did not close"
    return time.time()


def test_bad_versions_are_rolled_back_under_load_and_no_request_is_lost(tmp_path: Path) -> None:
    """Three programs get a bad version each; all are put back within the rule's bound, and no answer is lost or mixed.

    The bound: one scrape and one evaluation (a second each, no waiting), and two seconds for everything else.
    """
    needs("prometheus", "prometheus-alertmanager")
    location, runs, collectors = str(tmp_path / "registry"), Runs(), CollectorRegistry()
    metrics = Metrics(port=0, collector_registry=collectors)
    with ExitStack() as stack:
        server = stack.enter_context(OpenAIServer(respond))
        lm = dspy.LM("openai/gpt-4o-mini", api_base=server.base_url, api_key="x", cache=False, num_retries=0)
        dspy.configure(lm=lm)
        registry = stack.enter_context(SignatureRegistry(location))
        for name in PROGRAMS:
            register(registry, name, "v1", "Be exact.")
            register(registry, name, "v2", "Be bad.")
            registry.deploy_version(name, "v1")
        observer = stack.enter_context(
            dspy_observe.configure(metrics=metrics, tracing=False, logs=False, registry=registry, extra=[runs])
        )
        assert observer.metrics_url is not None
        lives = {
            name: stack.enter_context(LiveProgram(registry, name, TwoSteps, refresh_s=1.0, metrics=metrics))
            for name in PROGRAMS
        }
        target = observer.metrics_url.removeprefix("http://").removesuffix("/metrics")
        options = DashboardOptions.fast()
        port_of_receiver = stack.enter_context(receiver(location, tmp_path))
        alerts = stack.enter_context(
            Alertmanager(
                tmp_path / "alertmanager",
                rollback_config(f"{port_of_receiver}/api/v1/alerts", token_file=tmp_path / "token"),
            )
        )
        scraper = stack.enter_context(
            Prometheus(
                tmp_path / "prometheus", targets=[target], rules=rule_files(tmp_path, options),
                alertmanagers=[alerts.host_port],
            )
        )  # fmt: skip
        clients = Clients(lives)
        with clients.asking():
            scraper.wait_for('dspy_program_duration_seconds_count{status="ok"} > 20')
            for name in PROGRAMS:
                registry.deploy_version(name, "v2", reason="a bad one")
                wait_until(lambda name=name: name in clients.first_bad, f"bad answer of {name}")
            with ThreadPoolExecutor(len(PROGRAMS)) as pool:
                swapped = dict(zip(PROGRAMS, pool.map(lambda name: back_at(lives[name]), PROGRAMS), strict=True))
            answered = clients.outcomes.copy()
            wait_until(
                lambda: all(clients.outcomes[name, "v1"] > answered[name, "v1"] + 10 for name in PROGRAMS), "recovery"
            )
        took = [swapped[name] - clients.first_bad[name] for name in PROGRAMS]
        assert statistics.median(took) <= SCRAPE_AND_EVALUATION_S + ALLOWED_S, took
        assert clients.mixed == []
        assert clients.asked == clients.outcomes.total(), "every request had an answer or an error of the program"
        for name in PROGRAMS:
            (applied,) = [one for one in registry.decisions(name) if one.applied]
            assert (applied.version, applied.target, applied.trigger) == ("v2", "v1", "alert")
            assert registry.get_version(name, "v2").quarantined is not None
            pointer = registry.pointer(name)
            assert pointer is not None
            assert pointer.generation == 3, "deployed twice, rolled back once"
            assert runs.seen[name, "v1", "ok"] == clients.outcomes[name, "v1"], "records carry what answered"
            assert runs.seen[name, "v2", "error"] == clients.outcomes[name, "failed"]
            assert runs.seen[name, "v2", "ok"] == 0


class ServingProcess:
    """The demonstration's serving process, and what it said."""

    def __init__(self, registry: str, model_url: str, log: Path) -> None:
        command = [
            sys.executable, "-m", "dspy_observe.demo.loop.service", "--registry", registry, "--model-url", model_url,
            "--users", "2",
        ]  # fmt: skip
        self._log = log.open("wb")
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._log)
        self.said: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.said.append(json.loads(line))

    def version(self) -> str | None:
        """What it answers with now."""
        return next((one["version"] for one in reversed(self.said) if one["kind"] in ("ready", "swap")), None)

    def end(self) -> dict[str, Any]:
        """End it, and give its totals."""
        self._process.terminate()
        self._process.wait(30)
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()
        return self.said[-1]


def test_two_receivers_and_three_serving_processes_behave_as_one(tmp_path: Path, postgres: Postgres) -> None:
    """Two Alertmanagers that do not know each other deliver to a receiver each: one decision, every process swapped."""
    needs("prometheus-alertmanager")
    location = postgres.new_registry()
    with ExitStack() as stack:
        model = stack.enter_context(OpenAIServer(StandIn(pace=0)))
        registry = stack.enter_context(SignatureRegistry(location))
        for version in (GOOD, BAD):
            programs.register(registry, version)
        registry.deploy_version(PROGRAM, GOOD)
        serving = [ServingProcess(location, model.base_url, tmp_path / f"serving-{n}.log") for n in range(3)]
        stack.callback(lambda: [one.end() for one in serving])
        for one in serving:
            wait_until(lambda one=one: one.version() == GOOD, "serving process", 60)
        registry.deploy_version(PROGRAM, BAD)
        for one in serving:
            wait_until(lambda one=one: one.version() == BAD, "serving process that follows")
        alertmanagers = []
        for number in range(2):
            folder = tmp_path / f"peer-{number}"
            folder.mkdir()
            url = stack.enter_context(receiver(location, folder))
            config = rollback_config(f"{url}/api/v1/alerts", token_file=folder / "token", repeat_interval="1s")
            alertmanagers.append(stack.enter_context(Alertmanager(folder / "alertmanager", config)))
        now = datetime.now(UTC)
        alert = {
            "labels": {"alertname": "Bad", "dspy_action": "rollback", "program": PROGRAM, "version": BAD},
            "startsAt": now.isoformat(), "endsAt": (now + timedelta(minutes=5)).isoformat(),
        }  # fmt: skip
        for one in alertmanagers:
            one.post(alert)
        for process in serving:
            wait_until(lambda process=process: process.version() == GOOD, "serving process that is back")
        decisions = wait_until(lambda: len(found := registry.decisions(PROGRAM)) >= 4 and found, "repeats", 30)
        assert [one.outcome for one in decisions].count("rollback") == 1
        assert {one.outcome for one in decisions} <= {"rollback", "duplicate", "stale"}
        pointer = registry.pointer(PROGRAM)
        assert pointer is not None
        assert (pointer.version, pointer.generation) == (GOOD, 3)
