"""What the billing cases share: a server that bills, LMs that ask it, and both books beside each other.

Truth is what the server billed, or the number that the answer's own text carries. Nothing here reads DSPy's histories
or trackers, which is where the observed figures come from.
"""

from __future__ import annotations

import itertools
import math
import os
import select
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import dspy
import pytest
from dspy.utils.callback import BaseCallback
from prometheus_client import CollectorRegistry

import dspy_observe
from dspy_observe import CallRecord, Cost, Metrics, RecordCallback
from dspy_observe.facts import installation
from dspy_observe.ledger import LEDGER
from dspy_observe.openai_server import Bill, ChatRequest, OpenAIServer, Reply, TokenUsage
from dspy_observe.testing import capture_records

# US dollars a token, as OpenAI lists them: https://openai.com/api/pricing/ (gpt-4o-mini: 0.15, 0.60 and, for input read
# from its cache, 0.075 a million).
PROMPT_USD, COMPLETION_USD, CACHED_USD = 0.15e-6, 0.60e-6, 0.075e-6


def usd(bill: Bill) -> float:
    """What a gpt-4o-mini reply costs by the public price list."""
    fresh = bill.prompt_tokens - bill.cached_tokens
    return fresh * PROMPT_USD + bill.cached_tokens * CACHED_USD + bill.completion_tokens * COMPLETION_USD


class SlowSibling(BaseCallback):
    """Somebody else's callback that waits two milliseconds for a pipe in every end handler, and so loses the thread.

    It also keeps what each LM call returned, by call id: the answer's text says which reply it was.
    """

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self._pipe = os.pipe()

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        if outputs:
            self.texts[call_id] = outputs[0]
        self._wait()

    def on_module_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        self._wait()

    def _wait(self) -> None:
        select.select([self._pipe[0]], [], [], 0.002)

    def close(self) -> None:
        """Give the pipe back."""
        for end in self._pipe:
            os.close(end)


class Arrivals(RecordCallback):
    """Wakes whoever waits for a record; listed last, so that all other books are written by then."""

    def __init__(self) -> None:
        self.changed = threading.Condition()

    def finished(self, record: CallRecord) -> None:
        with self.changed:
            self.changed.notify_all()


@dataclass
class Watch:
    """The observer's side: every record, and the Prometheus counters of one ``configure()``."""

    records: list[CallRecord]
    registry: CollectorRegistry
    arrivals: Arrivals

    @property
    def lms(self) -> list[CallRecord]:
        """Records of LM calls."""
        return [record for record in self.records if record.kind == "lm"]

    @property
    def modules(self) -> list[CallRecord]:
        """Records of module calls."""
        return [record for record in self.records if record.kind == "module"]

    def wait_for_lms(self, count: int, timeout_s: float = 10.0) -> None:
        """Wait for that many LM records; see :meth:`wait_for`."""
        self.wait_for(lambda: len(self.lms) >= count, timeout_s)

    def wait_for(self, happened: Callable[[], bool], timeout_s: float = 10.0) -> None:
        """Wait for records of calls that end in other threads; it blocks its own."""
        with self.arrivals.changed:
            assert self.arrivals.changed.wait_for(happened, timeout_s), self.records

    def total(self, metric: str, **labels: str) -> float:
        """The sum of a counter's series that carry these labels."""
        return sum(
            sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == metric and labels.items() <= sample.labels.items()
        )

    def agrees_with(self, bills: list[Bill], *, cost: float | None = -1.0) -> bool:
        """Assert that records and counters both hold exactly these bills.

        Args:
            bills: The bills whose figures the client was told.
            cost: US dollars expected; -1 prices the bills by the public list, ``None`` expects no known cost at all.
        """
        told = [record.usage for record in self.lms if record.usage is not None and not record.cache_hit]
        for kind in ("prompt", "completion"):
            billed = sum(getattr(bill, f"{kind}_tokens") for bill in bills)
            assert sum(getattr(usage, kind) or 0 for usage in told) == billed
            assert self.total("dspy_tokens_total", kind=kind) == billed
        assert self.total("dspy_tokens_total", kind="cache_read") == sum(bill.cached_tokens for bill in bills)
        assert self.total("dspy_tokens_total", kind="reasoning") == sum(bill.reasoning_tokens for bill in bills)
        assert self.total("dspy_requests_total") == len(self.lms)
        expected = math.fsum(map(usd, bills)) if cost == -1.0 else cost or 0.0
        known = [record.cost_usd for record in self.lms if record.cost_usd is not None]
        assert math.fsum(known) == pytest.approx(expected, rel=1e-9, abs=1e-15)
        assert self.total("dspy_cost_usd_total") == pytest.approx(expected, rel=1e-9, abs=1e-15)
        assert self.total("dspy_observe_internal_errors_total") == 0
        return True


def _watching(**cost: Any) -> Iterator[Watch]:
    registry = CollectorRegistry()
    metrics = Metrics(collector_registry=registry)
    with (
        dspy_observe.configure(metrics=metrics, tracing=False, logs=False, cost=Cost(**cost)),
        capture_records() as records,
    ):
        arrivals = Arrivals()
        installation.append([arrivals])
        yield Watch(records, registry, arrivals)
        installation.remove([arrivals])
    assert LEDGER.open_calls == 0


@pytest.fixture
def watch() -> Iterator[Watch]:
    """Everything on, in a Prometheus registry of its own; no call may be left open at the end."""
    yield from _watching()


@pytest.fixture
def metering_watch() -> Iterator[Watch]:
    """As ``watch``, asking LiteLLM for the usage of streams."""
    yield from _watching(meter_litellm_streams=True)


@pytest.fixture
def sibling() -> Iterator[SlowSibling]:
    """A slow callback of somebody else that DSPy's list starts with: request it before ``watch``."""
    slow = SlowSibling()
    dspy.configure(callbacks=[slow])
    yield slow
    slow.close()


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    """A server that answers whatever DSPy's adapters ask for, each reply with token counts of its own."""
    with OpenAIServer() as running:
        yield running


@pytest.fixture
def numbered_server() -> Iterator[OpenAIServer]:
    """A server whose n-th reply says "n" and is billed 1000 + n prompt and 2 * n completion tokens."""
    numbers = itertools.count(1)
    lock = threading.Lock()

    def respond(request: ChatRequest) -> Reply:
        with lock:
            number = next(numbers)
        return Reply(text=f"[[ ## answer ## ]]\n{number}", usage=TokenUsage(1000 + number, 2 * number))

    with OpenAIServer(respond) as running:
        yield running


MakeLM = Callable[..., dspy.LM]


@pytest.fixture
async def lm(request: pytest.FixtureRequest) -> AsyncIterator[MakeLM]:
    """Makes an LM on the test's server: ``lm()`` is native and uncached, other options are those of ``dspy.LM``.

    Asynchronous, because the connections of asynchronous calls can be closed on their event loop only.
    """
    name = "numbered_server" if "numbered_server" in request.fixturenames else "server"
    running: OpenAIServer = request.getfixturevalue(name)
    made: list[dspy.LM] = []

    def make(model: str = "openai/gpt-4o-mini", **options: Any) -> dspy.LM:
        made.append(dspy.LM(model, **{"api_base": running.base_url, "api_key": "x", "cache": False, **options}))
        return made[-1]

    yield make
    for each in made:
        await each.aclose()


@pytest.fixture
def question() -> str:
    """A question that no other test asks, so that the cache holds no answer to it."""
    return f"What is {uuid.uuid4().hex}?"
