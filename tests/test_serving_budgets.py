"""Budgets of users: who is counted where, what is refused, and that nobody's id leaves the process."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dspy
import pytest
import structlog
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

import dspy_observe
from dspy_observe import ConfigurationError, LogCallback, Logs, Metrics, OTelCallback, Tracing
from dspy_observe.conventions import LOG_TOP_USERS, LOG_USER_OVER_BUDGET
from dspy_observe.serving.budgets import BudgetExceededError, TopUser, UserBudgets
from dspy_observe.testing import FrozenClock, OpenAIServer, capture_records, offline_lm

KEY = "a secret of at least sixteen bytes"
CALL = 15  # tokens of one call to the offline model


class Books:
    """Budgets of 100 tokens an hour under a clock that stands still, installed."""

    def __init__(self) -> None:
        self.clock = FrozenClock()
        self.registry = CollectorRegistry()
        self.metrics = Metrics(collector_registry=self.registry)
        self.budgets = UserBudgets(100, window_s=3600, key=KEY, metrics=self.metrics, now=self.clock.time)

    def value(self, name: str, program: str = "Predict") -> float | None:
        """One series of ours."""
        return self.registry.get_sample_value(name, {"program": program})


@pytest.fixture
def books() -> Iterator[Books]:
    """Installed the way an application does."""
    made = Books()
    with dspy_observe.configure(metrics=made.metrics, tracing=False, logs=False, extra=[made.budgets]):
        yield made


def program() -> dspy.Module:
    """One step, answered by an offline model."""
    made = dspy.Predict("question -> answer")
    made.lm = offline_lm({"answer": "42"})
    return made


def in_line(run: dspy.Module) -> None:
    """In the caller's thread."""
    run(question="?")


def in_dspy_threads(run: dspy.Module) -> None:
    """In dspy.Parallel's threads."""
    dspy.Parallel(num_threads=2, disable_progress_bar=True)([(run, dspy.Example(question="?").with_inputs("question"))])


def in_a_batch(run: dspy.Module) -> None:
    """In a batch's threads."""
    run.batch([dspy.Example(question="?").with_inputs("question")], disable_progress_bar=True)


def in_an_evaluation(run: dspy.Module) -> None:
    """In an evaluation's threads."""
    devset = [dspy.Example(question="?", answer="42").with_inputs("question")]
    dspy.Evaluate(devset=devset, metric=lambda *_: True, num_threads=2, display_progress=False)(run)


def in_a_loop(run: dspy.Module) -> None:
    """On an event loop."""
    asyncio.run(run.acall(question="?"))


def in_tasks(run: dspy.Module) -> None:
    """In a task."""

    async def main() -> None:
        await asyncio.gather(asyncio.create_task(run.acall(question="?")))

    asyncio.run(main())


def asyncified(run: dspy.Module) -> None:
    """In a worker thread of asyncify."""
    asyncio.run(dspy.asyncify(run)(question="?"))


def in_a_copied_context(run: dspy.Module) -> None:
    """In a thread that was given a copy of the context."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(contextvars.copy_context().run, lambda: run(question="?")).result()


WAYS = [in_line, in_dspy_threads, in_a_batch, in_an_evaluation, in_a_loop, in_tasks, asyncified,
        in_a_copied_context]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_a_user_is_known_wherever_dspy_runs(way: Callable[[dspy.Module], None], books: Books) -> None:
    """The tokens of calls in DSPy's threads and tasks are booked on the user who asked, and on nobody after."""
    with capture_records() as records, books.budgets.user("anna") as pseudonym:
        way(program())
    assert {record.user for record in records} == {pseudonym}
    assert books.budgets.used("anna") == CALL
    with capture_records() as records:
        way(program())
    assert {record.user for record in records} == {None}
    assert books.budgets.used("anna") == CALL


@pytest.mark.parametrize("is_async_program", [False, True])
async def test_a_user_is_known_in_a_stream(is_async_program: bool, books: Books) -> None:
    """Streams run in a task and a thread of their own; the bill says what they used."""
    run = dspy.Predict("question -> answer")
    with OpenAIServer() as server, books.budgets.user("anna"):
        run.lm = dspy.LM("openai/gpt-4o-mini", api_base=server.base_url, api_key="x", cache=False)
        async for _ in dspy.streamify(run, is_async_program=is_async_program)(question="?"):
            pass
        await run.lm.aclose()
        (bill,) = server.bills
    assert books.budgets.used("anna") == bill.prompt_tokens + bill.completion_tokens


def test_a_pool_of_ones_own_knows_nobody_until_told(books: Books) -> None:
    """A thread that copies nothing books on nobody; entering the block in it does."""
    run = program()

    def told() -> None:
        with books.budgets.user("anna"):
            run(question="?")

    with books.budgets.user("anna"), ThreadPoolExecutor(1) as pool:
        pool.submit(run, question="?").result()
        assert books.budgets.used() == 0
        pool.submit(told).result()
    assert books.budgets.used("anna") == CALL


def test_concurrent_users_are_kept_apart(books: Books) -> None:
    """Twenty users at once, each with as many calls as their number; blocks nest, the inner one counts."""
    run = program()

    async def serve(number: int) -> None:
        with books.budgets.user(f"user {number}"):
            for _ in range(number):
                await run.acall(question="?")

    async def main() -> None:
        await asyncio.gather(*map(serve, range(20)))

    asyncio.run(main())
    assert [books.budgets.used(f"user {number}") for number in range(20)] == [number * CALL for number in range(20)]
    with books.budgets.user("outer"):
        with books.budgets.user("inner"):
            run(question="?")
        run(question="?")
        assert books.budgets.used() == CALL
    assert books.budgets.used("inner") == CALL


def test_the_block_leaves_other_settings_alone(books: Books) -> None:
    """Settings made or changed inside the block go on as without it."""
    with books.budgets.user("anna"):
        dspy.configure(max_history_size=7)
        assert dspy.settings.max_history_size == 7
        with dspy.context(max_history_size=3):
            assert dspy.settings.max_history_size == 3
    assert dspy.settings.max_history_size == 7


def test_a_generator_closed_elsewhere_takes_no_user_along(books: Books) -> None:
    """The end of a block in another context changes nothing there."""

    def block() -> Iterator[None]:
        with books.budgets.user("anna"):
            yield

    made = block()
    contextvars.copy_context().run(next, made)
    with books.budgets.user("bert") as bert:
        made.close()
        with capture_records() as records:
            program()(question="?")
    assert {record.user for record in records} == {bert}


def test_what_is_over_the_budget_is_counted_once_and_refused(books: Books, caplog: pytest.LogCaptureFixture) -> None:
    """The seventh call goes over 100 tokens: one excess, a warning, a refusal, and room again when the hour is over."""
    run, budgets = program(), books.budgets
    with caplog.at_level(logging.WARNING, "dspy_observe.budgets"), budgets.user("anna") as pseudonym:
        for _ in range(6):
            run(question="?")
        assert books.value("dspy_user_budget_exceeded_total") == 0
        assert budgets.remaining() == 10
        budgets.check()
        run(question="?")
        run(question="?")
    assert (budgets.remaining("anna"), budgets.used("anna")) == (0, 8 * CALL)
    assert books.value("dspy_user_budget_exceeded_total") == 1
    (line,) = [json.loads(record.message) for record in caplog.records]
    assert (line["event"], line["user"], line["program"]) == (LOG_USER_OVER_BUDGET, pseudonym, "Predict")
    with pytest.raises(BudgetExceededError) as caught:
        budgets.check("anna")
    error = caught.value
    assert (error.user, error.used_tokens, error.limit_tokens) == (pseudonym, 8 * CALL, 100)
    budgets.check("bert")
    books.clock.advance(error.retry_after_s - 1)
    with pytest.raises(BudgetExceededError), budgets.user("anna", enforce=True):
        pytest.fail("the block must not begin")
    books.clock.advance(2)
    with budgets.user("anna", enforce=True):
        assert budgets.remaining() == 100


def test_the_heaviest_user_of_each_program_is_a_metric(books: Books) -> None:
    """The gauge follows the window without a call; users are no labels."""
    run = program()
    for user, calls in (("anna", 1), ("bert", 3)):
        with books.budgets.user(user):
            for _ in range(calls):
                run(question="?")
    assert books.value("dspy_user_tokens_max") == 3 * CALL
    bert = books.budgets.pseudonym("bert")
    assert books.budgets.top_users(1) == [TopUser(bert, 3 * CALL, over_budget=False)]
    books.clock.advance(3600)
    assert books.value("dspy_user_tokens_max") == 0
    assert books.budgets.top_users() == []


def test_id_that_is_no_utf_8_is_a_user_like_any_other(books: Books) -> None:
    """As the operating system hands on bytes that are no text; whoever else is booked is somebody else."""
    pseudonyms = {books.budgets.pseudonym(user) for user in ("\ud800", "\udcff", "anna")}
    assert len(pseudonyms) == 3
    with books.budgets.user("\ud800", enforce=True):
        program()(question="?")
    assert (books.budgets.used("\ud800"), books.budgets.used("\udcff")) == (CALL, 0)


def test_ids_never_leave_the_process(books: Books, caplog: pytest.LogCaptureFixture) -> None:
    """Records, spans, log lines, metrics and errors hold the pseudonym only."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    readers: list[Any] = [
        OTelCallback(Tracing(tracer_provider=provider)),
        LogCallback(Logs(logger=structlog.get_logger())),
    ]
    listed = [*dspy.settings.callbacks, *readers]
    with (
        caplog.at_level(logging.INFO, "dspy_observe.budgets"), capture_logs() as lines, dspy.context(callbacks=listed),
        capture_records() as records, books.budgets.user("anna@example.com") as pseudonym,
    ):  # fmt: skip
        for _ in range(7):
            program()(question="?")
        with pytest.raises(BudgetExceededError) as caught:
            books.budgets.check()
        assert readers[1].flush(10)
    spans = [dict(span.attributes or {}) for span in exporter.get_finished_spans()]
    assert {attributes.get("enduser.pseudo.id") for attributes in spans} == {pseudonym}
    assert {line["user"] for line in lines} == {pseudonym}
    top = next(line for line in map(json.loads, caplog.messages) if line["event"] == LOG_TOP_USERS)
    assert top["users"] == [{"user": pseudonym, "tokens": CALL, "over_budget": False}]
    everything = repr((records, spans, lines, caplog.messages, str(caught.value)))
    assert "anna" not in everything + dspy_observe.metrics.render(books.registry)[0].decode()


def test_the_key_makes_the_pseudonym(monkeypatch: pytest.MonkeyPatch) -> None:
    """One key, one pseudonym in all processes; without a key each process has its own."""
    metrics = Metrics(collector_registry=CollectorRegistry())
    one, same, other = (UserBudgets(1, key=key, metrics=metrics) for key in (KEY, KEY.encode(), KEY[::-1]))
    assert one.pseudonym("anna") == same.pseudonym("anna") != other.pseudonym("anna")
    assert len(one.pseudonym("anna")) == 16
    assert UserBudgets(1, metrics=metrics).pseudonym("anna") != UserBudgets(1, metrics=metrics).pseudonym("anna")
    monkeypatch.setenv("DSPY_OBSERVE_USER_KEY", KEY)
    assert UserBudgets(1, metrics=metrics).pseudonym("anna") == one.pseudonym("anna")


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"limit_tokens": 0}, "limit_tokens"),
        ({"limit_tokens": 1.5}, "limit_tokens"),
        ({"window_s": 0}, "window_s"),
        ({"key": "short"}, "key"),
        ({"max_users": 0}, "max_users"),
        ({"top": -1}, "top"),
    ],
)
def test_options_that_cannot_work_are_refused(arguments: dict[str, Any], field: str) -> None:
    """The error names the option."""
    with pytest.raises(ConfigurationError, match=field):
        UserBudgets(**{"limit_tokens": 1, **arguments})


@pytest.mark.parametrize("user", ["", None, 7])
def test_nobody_is_no_user(books: Books, user: Any) -> None:
    """An id that is missing is a fault of the application, not a user that all share."""
    with pytest.raises(ConfigurationError, match="user"), books.budgets.user(user):
        pytest.fail("the block must not begin")


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_guarded_lm_stops_an_agent_in_the_middle(asynchronous: bool, books: Books) -> None:
    """The call after the budget is spent is refused before it is sent; other users go on."""
    asked: list[Any] = []
    lm = offline_lm(lambda request: asked.append(request) or {"answer": "42"})
    run = dspy.Predict("question -> answer")
    run.lm = books.budgets.guard(lm)

    def agent() -> None:
        for _ in range(100):
            if asynchronous:
                asyncio.run(run.acall(question="?"))
            else:
                run(question="?")

    with pytest.raises(BudgetExceededError), books.budgets.user("anna"):
        agent()
    assert len(asked) == 7
    with capture_records() as records, books.budgets.user("bert"):
        run(question="?")
    assert [record.kind for record in records if record.kind == "lm"] == ["lm"]
    run(question="a call without a user")
    assert len(asked) == 9


def test_a_guarded_lm_is_the_lm_in_all_else(books: Books) -> None:
    """Model, parameters, history, state and copies are those of the LM behind it."""
    lm = offline_lm("42", temperature=0.5)
    guarded = books.budgets.guard(lm)
    guarded("?")
    assert (guarded.model, guarded.kwargs, guarded.history) == (lm.model, lm.kwargs, lm.history)
    assert guarded.history
    copied = guarded.copy(temperature=1.0)
    assert (copied.kwargs["temperature"], lm.kwargs["temperature"]) == (1.0, 0.5)
    plain = dspy.LM("openai/gpt-4o-mini")
    assert books.budgets.guard(plain).dump_state() == plain.dump_state()
    with books.budgets.user("anna"):
        for _ in range(7):
            copied("?")
        for way in (copied, copied.forward):
            with pytest.raises(BudgetExceededError):
                way("?")
    with pytest.raises(ConfigurationError, match="lm"):
        books.budgets.guard("openai/gpt-4o-mini")  # type: ignore[arg-type]


def test_memory_is_bounded(books: Books) -> None:
    """Of ten thousand users with one call and one with many, the heavy one is known and the rest take no room."""
    budgets = UserBudgets(10**9, key=KEY, max_users=100, top=0, metrics=books.metrics, now=books.clock.time)
    lm = offline_lm("42")
    with capture_records() as records, budgets.user("heavy"):
        lm("?")
    (record,) = records
    for number in range(10_000):
        light = dataclasses.replace(record, user=f"{number:016x}", program=f"program {number % 300}")
        budgets.finished(light)
        if number % 50 == 0:
            budgets.finished(record)
    assert len(budgets._users) <= 100
    assert len(budgets._programs) <= 101
    assert budgets.top_users(1)[0].user == record.user


def test_many_threads_lose_no_token(books: Books) -> None:
    """Eight threads book two hundred calls of one user."""
    lm = offline_lm("42")

    def work() -> None:
        with books.budgets.user("anna"):
            for _ in range(25):
                lm("?")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert books.budgets.used("anna") == 200 * CALL


def test_worker_processes_show_the_heaviest_user_of_all(tmp_path: Path) -> None:
    """With prometheus_client's shared files the gauge is the largest of the workers, and excesses add up."""
    code = (
        "import sys, dspy\n"
        "from dspy_observe import configure, Metrics\n"
        "from dspy_observe.serving.budgets import UserBudgets\n"
        "from dspy_observe.testing import offline_lm\n"
        "from dspy_observe.metrics import render\n"
        "budgets, lm = UserBudgets(30, key='k' * 16), offline_lm('42')\n"
        "with configure(metrics=Metrics(), tracing=False, logs=False, extra=[budgets]):\n"
        "    for _ in range(int(sys.argv[1])):\n"
        "        with budgets.user('anna'): lm('?')\n"
        "        budgets._measure_at = 0\n"  # the files are written every 15 s
        "    with budgets.user('bert'): lm('?')\n"
        "    print(render()[0].decode(), '# done', sep='\\n', flush=True)\n"
        "    sys.stdin.read()\n"  # it lives on, as a worker does
    )
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", code, "4"], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdin is not None
        assert first.stdout is not None
        assert any(line == "# done\n" for line in first.stdout)
        page = subprocess.run(
            [sys.executable, "-c", code, "2"], env=environment, input="", capture_output=True, text=True, check=True,
            timeout=120,
        ).stdout  # fmt: skip
        first.stdin.close()
    lines = [line.rpartition(" ") for line in page.splitlines() if line.startswith("dspy_user")]
    samples = {series: float(value) for series, _, value in lines}
    assert samples['dspy_user_tokens_max{program="unknown"}'] == 4 * CALL
    assert samples['dspy_user_budget_exceeded_total{program="unknown"}'] == 2
