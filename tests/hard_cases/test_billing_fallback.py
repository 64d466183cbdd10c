"""A model with stand-ins, on two servers that bill: who answered, what each attempt cost, and what it comes to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import dspy
import pytest
from dspy.utils.exceptions import LMError

from dspy_observe.openai_server import Failure, OpenAIServer, Reply, TokenUsage
from dspy_observe.serving.breaker import Breaker
from dspy_observe.serving.fallback import AttemptTimeoutError, FallbackLM

if TYPE_CHECKING:
    from tests.hard_cases.conftest import Watch

FIRST, SECOND = "openai/gpt-4o-mini", "openai/gpt-4o-mini-2024-07-18"  # two names at one price
ANSWER = "[[ ## answer ## ]]\na b c d e f g h\n\n[[ ## completed ## ]]"


class Pair:
    """Two servers and the LM that asks the second when the first fails."""

    def __init__(self, first: OpenAIServer, second: OpenAIServer) -> None:
        self.first, self.second = first, second
        self.made: list[FallbackLM] = []

    def lm(self, *, engine: str = "auto", cache: bool = False, retries: int = 0, **options: Any) -> FallbackLM:
        """The LM; ``options`` are those of ``FallbackLM``."""
        lms = [
            dspy.LM(model, api_base=server.base_url, api_key="x", cache=cache, num_retries=retries, engine=engine)
            for model, server in ((FIRST, self.first), (SECOND, self.second))
        ]
        self.made.append(FallbackLM(*lms, **options))
        return self.made[-1]

    def told(self) -> list[Any]:
        """The bills whose figures the clients were told."""
        return [bill for server in (self.first, self.second) for bill in server.bills if bill.usage_sent]


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    """Both servers; asynchronous, because connections of asynchronous calls close on their event loop only."""
    with OpenAIServer() as first, OpenAIServer() as second:
        found = Pair(first, second)
        yield found
        for lm in found.made:
            await lm.aclose()


@pytest.fixture
def holds() -> Iterator[threading.Event]:
    """Keeps replies back until the test's end at the latest."""
    event = threading.Event()
    yield event
    event.set()


FAILURES = [
    (Failure.rate_limited(), "rate_limit", "rate_limited"),
    (Failure.server_error(), "server", "error"),
    (Failure(503), "server", "error"),
    (Reply(text=ANSWER, cut_after_chunks=0, report_usage=False), "transport", "error"),
]


@pytest.mark.parametrize("engine", ["auto", "litellm"])
@pytest.mark.parametrize(("failure", "reason", "outcome"), FAILURES, ids=["429", "500", "503", "cut"])
async def test_the_second_model_answers_where_the_first_one_fails(
    engine: str, failure: Any, reason: str, outcome: str, watch: Watch, pair: Pair
) -> None:
    """Each attempt is a record under the same module, the second says why it was made, and nothing counts twice."""
    if engine == "litellm" and reason == "transport":
        reason = "server"  # LiteLLM calls a connection that broke an error of the server
    lm = pair.lm(engine=engine)
    for ask in (lambda: lm("Why?"), None):
        pair.first.script([failure])
        before = len(watch.lms)
        answers = ask() if ask is not None else await lm.acall("Why?")
        assert answers
        failed, answered = watch.lms[before:]
        assert (failed.model_requested, failed.outcome, failed.fallback_from) == (FIRST, outcome, None)
        assert (answered.model_requested, answered.outcome) == (SECOND, "ok")
        assert (answered.fallback_from, answered.fallback_reason) == (FIRST, reason)
        assert answered.usage is not None
        assert answered.usage.prompt == pair.second.bills[-1].prompt_tokens
    assert watch.total("dspy_fallbacks_total", from_model=FIRST, to_model=SECOND, reason=reason) == 2
    assert watch.agrees_with(pair.told())


async def test_a_model_that_answers_is_asked_alone(watch: Watch, pair: Pair) -> None:
    """As long as the first model answers, the second gets no request and no fallback is counted."""
    assert pair.lm()("Why?")
    assert not pair.second.requests
    assert watch.total("dspy_fallbacks_total") == 0
    assert watch.agrees_with(pair.told())


@pytest.mark.parametrize("failure", [Failure(400), Failure(401), Failure.context_length_exceeded()])
async def test_a_refused_request_goes_to_nobody_else(failure: Failure, watch: Watch, pair: Pair) -> None:
    """A bad request, a bad key or a full context is the caller's to know, unless ``on`` names it."""
    pair.first.script([failure, failure])
    with pytest.raises(LMError):
        pair.lm()("Why?")
    assert not pair.second.requests
    assert pair.lm(on=(LMError,))("Why?")
    assert len(pair.second.requests) == 1
    assert watch.agrees_with(pair.told())


async def test_each_model_retries_by_its_own_rule_first(watch: Watch, pair: Pair) -> None:
    """``num_retries`` of the first model comes before the second model."""
    pair.first.script([Failure.rate_limited()] * 3)
    assert pair.lm(retries=2)("Why?")
    assert (len(pair.first.requests), len(pair.second.requests)) == (3, 1)
    assert watch.agrees_with(pair.told())


async def test_the_last_failure_reaches_the_caller_with_the_others_noted(watch: Watch, pair: Pair) -> None:
    """When all models fail, the last one's error is raised and names those before it."""
    pair.first.script([Failure.rate_limited()])
    pair.second.script([Failure.server_error()])
    with pytest.raises(dspy.LMServerError) as caught:
        pair.lm()("Why?")
    assert caught.value.__notes__ == [f"FallbackLM asked before: {FIRST} (rate_limit)"]
    assert [record.outcome for record in watch.lms] == ["rate_limited", "error"]


async def test_fifty_concurrent_calls_are_billed_one_by_one(watch: Watch, pair: Pair) -> None:
    """Every third call of fifty is answered by the second model; each record has its own reply's tokens."""
    pair.first.script([Failure.rate_limited() if n % 3 == 0 else Reply(text=ANSWER) for n in range(50)])
    program, lm = dspy.Predict("question -> answer"), pair.lm(attempt_timeout_s=60)
    with dspy.context(lm=lm):
        answers = await asyncio.gather(*(program.acall(question=f"{n}?") for n in range(50)))
    assert len(answers) == 50
    assert len(watch.lms) == 50 + 17
    assert watch.total("dspy_fallbacks_total") == len(pair.second.bills) == 17
    bills = sorted(bill.prompt_tokens for bill in pair.second.bills)
    seconds = [record for record in watch.lms if record.model_requested == SECOND]
    assert sorted(record.usage.prompt for record in seconds if record.usage) == bills
    assert all(record.fallback_from == FIRST for record in seconds)
    assert len(lm.history) == 50
    assert watch.agrees_with(pair.told())


async def test_a_call_in_threads_keeps_its_place_in_the_tree(watch: Watch, pair: Pair) -> None:
    """With a deadline the attempts run in threads of their own, and still belong to the module that asked."""
    pair.first.script([Failure.server_error()])
    program = dspy.Predict("question -> answer")
    with dspy.context(lm=pair.lm(attempt_timeout_s=60)):
        program(question="Why?")
    (module,) = watch.modules
    assert [record.parent_id for record in watch.lms] == [module.call_id] * 2
    assert [record.program for record in watch.lms] == ["Predict"] * 2
    assert len(program.history) == 1
    assert watch.agrees_with(pair.told())


async def test_a_cached_answer_of_the_second_model_is_not_the_first_ones(
    watch: Watch, pair: Pair, question: str
) -> None:
    """Each model has its own cache entries: a recovered first model is asked, a second answer of the other is free."""
    lm = pair.lm(cache=True)
    pair.first.script([Failure.server_error(), Failure.server_error()])
    lm(question), lm(question)
    assert [record.cache_hit for record in watch.lms if record.outcome == "ok"] == [False, True]
    assert len(pair.second.bills) == 1
    lm(question), lm(question)
    assert [record.cache_hit for record in watch.lms[-2:]] == [False, True]
    assert (len(pair.first.bills), len(pair.second.bills)) == (1, 1)
    assert watch.agrees_with(pair.told())


async def test_a_slow_model_is_cancelled_at_its_deadline(watch: Watch, pair: Pair, holds: threading.Event) -> None:
    """An asynchronous attempt counts as timed out, of unknown cost, and the second model answers."""
    pair.first.script([Reply(text=ANSWER, hold=holds)])
    assert await pair.lm(attempt_timeout_s=0.2).acall("Why?")
    failed, answered = watch.lms
    assert (failed.model_requested, failed.outcome) == (FIRST, "timeout")
    assert (answered.fallback_from, answered.fallback_reason) == (FIRST, "deadline")
    assert watch.agrees_with(pair.told())


async def test_an_abandoned_thread_is_billed_when_it_ends(watch: Watch, pair: Pair, holds: threading.Event) -> None:
    """A blocking attempt cannot be stopped: its caller goes on, and its tokens are booked when the reply comes."""
    pair.first.script([Reply(text=ANSWER, hold=holds)])
    assert await asyncio.to_thread(pair.lm(attempt_timeout_s=0.2), "Why?")
    (answered,) = watch.lms
    assert (answered.model_requested, answered.fallback_reason) == (SECOND, "deadline")
    holds.set()
    await asyncio.to_thread(watch.wait_for_lms, 2)
    assert watch.lms[1].model_requested == FIRST
    assert watch.lms[1].usage.prompt == pair.first.bills[0].prompt_tokens  # type: ignore[union-attr]
    assert watch.agrees_with(pair.told())


async def test_all_models_slow_is_a_timeout(watch: Watch, pair: Pair, holds: threading.Event) -> None:
    """The caller gets DSPy's kind of timeout from the last model as well."""
    pair.first.script([Reply(text=ANSWER, hold=holds)])
    pair.second.script([Reply(text=ANSWER, hold=holds)])
    with pytest.raises(AttemptTimeoutError, match=r"No answer within 0\.1 s"):
        await pair.lm(attempt_timeout_s=0.1).acall("Why?")
    assert [record.outcome for record in watch.lms] == ["timeout", "timeout"]


def program(kind: str) -> Any:
    """A streamed program, asynchronous or run in a worker thread."""
    return dspy.streamify(
        dspy.Predict("question -> answer"),
        stream_listeners=[dspy.streaming.StreamListener(signature_field_name="answer")],
        is_async_program=kind == "async",
    )


async def streamed(lm: dspy.BaseLM, kind: str) -> tuple[str, dspy.Prediction | None]:
    """What the consumer of a stream sees: the text of its chunks, and the prediction."""
    text, prediction = "", None
    with dspy.context(lm=lm):
        async for item in program(kind)(question="Why?"):
            if isinstance(item, dspy.Prediction):
                prediction = item
            elif isinstance(item, dspy.streaming.StreamResponse):
                text += item.chunk
    return text, prediction


@pytest.mark.parametrize("deadline_s", [None, 60.0], ids=["", "deadline"])
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_stream_falls_back_before_its_first_chunk(
    kind: str, deadline_s: float | None, watch: Watch, pair: Pair
) -> None:
    """The consumer sees one whole answer, from the second model."""
    pair.first.script([Failure.rate_limited()])
    pair.second.script([Reply(text=ANSWER)])
    text, prediction = await streamed(pair.lm(attempt_timeout_s=deadline_s), kind)
    assert text == "a b c d e f g h"
    assert prediction is not None
    assert prediction.answer == text
    assert [record.model_requested for record in watch.lms] == [FIRST, SECOND]
    assert all(record.streaming for record in watch.lms)
    assert watch.lms[1].ttft_s is not None
    assert watch.lms[1].fallback_reason == "rate_limit"
    assert watch.agrees_with(pair.told())


@pytest.mark.parametrize("engine", ["auto", "litellm"])
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_stream_that_has_begun_is_never_replaced(kind: str, engine: str, watch: Watch, pair: Pair) -> None:
    """After the first chunk the consumer would see two answers in one: the second model is not asked."""
    pair.first.script([Reply(text=ANSWER, cut_after_chunks=6)])
    with suppress(Exception):  # LiteLLM takes what came as the answer; the native engine raises, in a group if async
        await streamed(pair.lm(engine=engine), kind)
    assert not pair.second.requests
    assert len(watch.lms) == 1
    assert watch.total("dspy_fallbacks_total") == 0


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_the_deadline_of_a_stream_ends_with_its_first_chunk(
    kind: str, watch: Watch, pair: Pair, holds: threading.Event
) -> None:
    """A stream that holds back its first chunk is replaced; one that has begun may take longer than the deadline."""
    pair.first.script([Reply(text=ANSWER, hold=holds)])
    pair.second.script([Reply(text=ANSWER, chunk_delay_s=0.06)])  # more than 0.3 s in all
    text, _ = await streamed(pair.lm(attempt_timeout_s=0.3), kind)
    assert text == "a b c d e f g h"
    assert watch.lms[-1].fallback_reason == "deadline"
    holds.set()
    await asyncio.to_thread(watch.wait_for_lms, 2)
    assert {record.model_requested for record in watch.lms} == {FIRST, SECOND}


async def test_a_cancelled_call_is_answered_by_nobody(watch: Watch, pair: Pair, holds: threading.Event) -> None:
    """The caller's cancellation ends the call: it is no failure of the model."""
    pair.first.script([Reply(text=ANSWER, hold=holds)])
    task = asyncio.create_task(pair.lm(attempt_timeout_s=60, on=(Exception,)).acall("Why?"))
    await asyncio.to_thread(pair.first.wait_for, lambda: len(pair.first.requests) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not pair.second.requests
    assert [record.outcome for record in watch.lms] == ["cancelled"]


@pytest.mark.parametrize("deadline_s", [None, 60.0], ids=["", "deadline"])
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_consumer_that_leaves_asks_for_no_other_model(
    kind: str, deadline_s: float | None, watch: Watch, pair: Pair, holds: threading.Event
) -> None:
    """A stream that nobody reads any more is not started again elsewhere."""
    pair.first.script([Reply(text=ANSWER, hold=holds, hold_after_chunks=6)])

    async def leave() -> None:
        with dspy.context(lm=pair.lm(on=(Exception,), attempt_timeout_s=deadline_s)):
            async for _ in program(kind)(question="Why?"):
                break

    # In a task of its own: closing an abandoned stream, anyio cancels the task that read it.
    await asyncio.gather(asyncio.create_task(leave()), return_exceptions=True)
    holds.set()  # a sync program goes on in its worker thread until its stream fails
    await asyncio.to_thread(watch.wait_for, lambda: len(watch.modules) == len(watch.lms) == 1)
    assert not pair.second.requests
    assert [record.outcome for record in watch.lms] == ["cancelled"]


async def test_an_open_circuit_spares_the_failing_model(watch: Watch, pair: Pair) -> None:
    """After two failures in a row the first model is not asked; each answer still says why the second one gave it."""
    lm = pair.lm(breaker=Breaker(failures=2, open_s=3600))
    pair.first.script([Failure.server_error()] * 2)
    for n in range(6):
        lm(f"{n}?")
    assert (len(pair.first.requests), len(pair.second.requests)) == (2, 6)
    assert lm.circuits == {FIRST: "open", SECOND: "closed"}
    assert watch.total("dspy_fallbacks_total", reason="server") == 2
    assert watch.total("dspy_fallbacks_total", reason="circuit_open") == 4
    assert watch.agrees_with(pair.told())


async def test_candidates_billed_before_the_failure_are_booked(watch: Watch, pair: Pair) -> None:
    """With ``n=2`` the first candidate was billed when the second failed: both models' tokens count."""
    pair.first.script([Reply(text="one", usage=TokenUsage(11, 3)), Failure.server_error()])
    assert len(pair.lm()("Why?", n=2)) == 2
    failed, answered = watch.lms
    assert failed.billed_but_failed
    assert failed.usage.prompt == 11  # type: ignore[union-attr]
    assert answered.fallback_reason == "server"
    assert watch.agrees_with(pair.told())
