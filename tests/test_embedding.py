"""An observed embedder gives the same vectors, and a record with what the provider billed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import dspy
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from dspy_observe import CostCallback, LatencyCallback, Metrics, ObservedEmbedder
from dspy_observe.ledger import LEDGER
from dspy_observe.openai_server import Failure, OpenAIServer
from dspy_observe.testing import Capture, capture_records

MODEL = "openai/text-embedding-3-small"
# LiteLLM's own types make pydantic warn on first use.
pytestmark = pytest.mark.filterwarnings("ignore:Item '.*' on TypedDict class:UserWarning")


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    """A running server that bills."""
    with OpenAIServer() as running:
        yield running


def hosted(server: OpenAIServer, **kwargs: Any) -> ObservedEmbedder:
    """An embedder that asks it."""
    given = {"caching": False, "api_base": server.base_url, "api_key": "sk-of-the-test", "max_retries": 0, **kwargs}
    return ObservedEmbedder(MODEL, **given)


def lengths(texts: list[str]) -> list[list[float]]:
    """A local model."""
    return [[float(len(text)), 1.0] for text in texts]


def test_a_local_function_is_a_call_of_unknown_cost() -> None:
    """The same vectors as a plain embedder; nobody counts tokens."""
    plain, observed = dspy.Embedder(lengths), ObservedEmbedder(lengths, batch_size=2)
    with capture_records() as records:
        vectors = observed(["a", "bb", "ccc"])
        single = observed("dddd")
    assert np.array_equal(vectors, plain(["a", "bb", "ccc"]))
    assert (vectors.dtype, single.tolist()) == (np.float32, [4.0, 1.0])
    assert [(r.kind, r.operation, r.outcome, r.cache_hit) for r in records] == [("lm", "embeddings", "ok", False)] * 2
    for record in records:
        assert record.usage is not None
        assert (record.usage.known, record.cost_usd) == (False, None)


def test_a_hosted_model_is_recorded_with_what_the_server_billed(server: OpenAIServer) -> None:
    """Three requests of one call add up; the model that answered is told."""
    with capture_records() as records:
        vectors = hosted(server, batch_size=2)(["one", "two words", "three words here", "four", "five"])
    assert vectors.shape[0] == 5
    assert len(server.bills) == 3
    (record,) = records
    assert record.usage is not None
    assert record.usage.prompt == sum(bill.prompt_tokens for bill in server.bills)
    assert record.usage.completion == 0
    assert (record.model_requested, record.provider, record.operation) == (MODEL, "openai", "embeddings")
    assert record.model_served == server.bills[0].model
    # 0.02 dollars a million tokens: https://openai.com/api/pricing/
    assert record.cost_usd == pytest.approx(record.usage.prompt * 0.02e-6)
    assert record.cache_hit is False


def test_async_calls_are_recorded_too(server: OpenAIServer) -> None:
    """Each with its own tokens."""

    async def run() -> None:
        embedder = hosted(server)
        await asyncio.gather(*(embedder.acall(["word " * number]) for number in range(1, 6)))

    with capture_records() as records:
        asyncio.run(run())
    told = sorted(record.usage.prompt or 0 for record in records if record.usage is not None)
    assert told == sorted(bill.prompt_tokens for bill in server.bills)
    assert len(records) == 5


def test_a_cached_batch_bills_nothing(server: OpenAIServer) -> None:
    """The second call is a hit."""
    embedder = hosted(server, caching=True)
    with capture_records() as records:
        first, second = embedder(["cache me"]), embedder(["cache me"])
    assert np.array_equal(first, second)
    assert len(server.bills) == 1
    assert [record.cache_hit for record in records] == [False, True]
    assert records[1].usage is not None
    assert (records[1].usage.prompt, records[1].cost_usd) == (0, 0.0)


def test_a_failing_model_raises_as_before_and_is_recorded(server: OpenAIServer) -> None:
    """Nothing stays open, and the next call is told right."""
    server.script([Failure(500)] * 3, endpoint="embeddings")
    embedder = hosted(server)
    with capture_records() as records, pytest.raises(Exception, match="server had an error"):
        embedder(["x"])
    (record,) = records
    assert (record.outcome, record.cost_usd, record.cache_hit) == ("error", None, None)
    assert LEDGER.open_calls == 0


def test_a_call_stands_under_the_module_that_asked() -> None:
    """And a failing local function ends it as an error."""

    class Search(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedder = ObservedEmbedder(lengths)

        def forward(self, query: str) -> Any:
            return dspy.Prediction(vector=self.embedder(query))

    with capture_records() as records:
        Search()(query="abc")
        with pytest.raises(ValueError, match="must be strings"):
            ObservedEmbedder(lengths)([1])  # type: ignore[list-item]
    embedding, module = records
    assert (embedding.parent_id, embedding.program, module.name) == (module.call_id, "Search", "Search")


def test_it_takes_over_the_settings_of_a_plain_embedder() -> None:
    """Model, batch size, caching and arguments; given ones win."""
    plain = dspy.Embedder(lengths, batch_size=3, caching=False, dimensions=5, user="a")
    observed = ObservedEmbedder(plain, user="b")
    assert (observed.model, observed.batch_size, observed.caching) == (lengths, 3, False)
    assert observed.default_kwargs == {"dimensions": 5, "user": "b"}


def test_it_works_without_any_callback_and_beside_those_of_others() -> None:
    """Only ours are told: DSPy has no hook for embeddings."""
    observed = ObservedEmbedder(lengths)
    assert observed("ab").tolist() == [2.0, 1.0]
    heard: list[str] = []

    class Foreign(dspy.utils.callback.BaseCallback):
        def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
            heard.append(call_id)

    capture = Capture()
    with dspy.context(callbacks=[Foreign(), capture]):
        observed("ab")
    assert heard == []
    assert len(capture.records) == 1


def test_metrics_count_it_as_an_lm_call(server: OpenAIServer) -> None:
    """Requests, tokens, cost and time by its model."""
    registry = CollectorRegistry()
    metrics = Metrics(collector_registry=registry)
    with dspy.context(callbacks=[CostCallback(metrics=metrics), LatencyCallback(metrics)]):
        hosted(server)(["one"])
    labels = {"program": "unknown", "version": "unknown", "model": MODEL}
    assert registry.get_sample_value("dspy_requests_total", {**labels, "status": "ok"}) == 1
    billed = server.bills[0].prompt_tokens
    assert registry.get_sample_value("dspy_tokens_total", {**labels, "kind": "prompt"}) == billed
    assert registry.get_sample_value("dspy_lm_duration_seconds_count", {**labels, "status": "ok"}) == 1
