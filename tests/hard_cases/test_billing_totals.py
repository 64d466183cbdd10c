"""All kinds of calls in one set of books: case 40's totals."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import dspy
import pytest
from dspy.utils.exceptions import LMError
from prometheus_client import generate_latest

from dspy_observe.openai_server import Failure, OpenAIServer, Reply

if TYPE_CHECKING:
    from tests.hard_cases.conftest import MakeLM, SlowSibling, Watch


def test_after_a_mixed_day_the_counters_equal_the_bill(
    sibling: SlowSibling, watch: Watch, server: OpenAIServer, lm: MakeLM, question: str
) -> None:
    """Case 40: after cache hits, candidates, retries, refusals, broken parses and threads, totals equal the ledger."""
    native, compatible, cached = lm(), lm(engine="litellm", num_retries=0), lm(cache=True)
    program = dspy.Predict("question -> answer")

    def ask(lm_: dspy.LM) -> None:
        with dspy.context(lm=lm_):
            program(question=question)

    server.script([Failure.rate_limited(), Failure.server_error(), "unparsable"])
    ask(native)  # three attempts, then ChatAdapter's failure and JSONAdapter's answer
    server.script([Failure.server_error()])
    with pytest.raises(LMError):
        compatible(question)
    native(question, n=3)
    server.script([Reply(text="untold", report_usage=False)])
    native(question)
    ask(cached)
    compatible(question)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(ask, [native, cached] * 24))
    with dspy.context(lm=native, disable_history=True):
        dspy.Parallel(num_threads=4, disable_progress_bar=True)([(program, {"question": question})] * 8)
    hold = threading.Event()
    server.script([Reply(text="late", hold=hold)])
    with pytest.raises(LMError):
        lm(num_retries=0, timeout=0.2)(question)
    hold.set()

    told = [bill for bill in server.bills if bill.usage_sent and bill.delivered]
    assert watch.agrees_with(told)
    hits = [record for record in watch.lms if record.cache_hit]
    assert len(hits) == 24 == watch.total("dspy_cache_requests_total", result="hit")
    assert watch.total("dspy_requests_total", status="ok") == len(watch.lms) - 2
    assert [watch.total("dspy_requests_total", status=status) for status in ("error", "timeout")] == [1, 1]
    assert watch.total("dspy_unmetered_requests_total") == watch.total("dspy_unpriced_requests_total") == 2
    assert watch.total("dspy_cost_saved_usd_total") == pytest.approx(24 * (hits[0].cost_saved_usd or 0))
    page = generate_latest(watch.registry).decode()
    assert not any(record.call_id in page for record in watch.records), "a call id is no label"
