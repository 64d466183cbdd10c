"""Embeddings, of which DSPy tells nobody: case 22."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from dspy_observe import ObservedEmbedder, Usage, embedding
from dspy_observe.openai_server import Failure, OpenAIServer, Reply, TokenUsage

if TYPE_CHECKING:
    from tests.hard_cases.conftest import Watch

MODEL = "openai/text-embedding-3-small"
PROMPT_USD = 0.02e-6  # a token, https://openai.com/api/pricing/


@pytest.fixture
def options(server: OpenAIServer) -> dict[str, Any]:
    """How an embedder reaches the test's server, without a cache unless a test says so."""
    return {"api_base": server.base_url, "api_key": "x", "caching": False}


def billed_usd(server: OpenAIServer) -> float:
    """What the embeddings on the bill cost."""
    return sum(bill.prompt_tokens for bill in server.bills) * PROMPT_USD


def test_a_plain_embedder_is_not_observed(watch: Watch, server: OpenAIServer, options: dict[str, Any]) -> None:
    """Case 22: DSPy fires no hook for dspy.Embedder, so that its bill is absent from the books, as documented."""
    dspy.Embedder(MODEL, **options)(["a", "b"])
    assert len(server.bills) == 1
    assert watch.records == []
    assert "plain ``dspy.Embedder`` stays invisible" in " ".join((embedding.__doc__ or "").split())


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_wrapped_embedder_has_the_tokens_of_its_replies(
    wrapped: bool, watch: Watch, server: OpenAIServer, options: dict[str, Any]
) -> None:
    """Case 22: three batches are one record with the tokens and cost of three replies, and the vectors are the same."""
    plain = dspy.Embedder(MODEL, batch_size=2, **options)
    observed = ObservedEmbedder(plain) if wrapped else ObservedEmbedder(MODEL, batch_size=2, **options)
    texts = ["a b", "b", "c d e", "d", "e"]
    assert (observed(texts) == plain(texts)).all()
    assert observed("just one").shape == (256,)
    several, one = watch.lms
    assert (several.operation, several.model_requested, several.provider) == ("embeddings", MODEL, "openai")
    assert (several.parent_id, several.outcome, several.cache_hit) == (None, "ok", False)
    ours = [*server.bills[:3], server.bills[-1]]
    assert several.usage == Usage(sum(bill.prompt_tokens for bill in ours[:3]), 0)
    assert one.usage == Usage(ours[3].prompt_tokens, 0)
    assert watch.agrees_with(ours, cost=sum(bill.prompt_tokens for bill in ours) * PROMPT_USD)


async def test_awaited_embeddings_are_told_from_each_other(
    watch: Watch, server: OpenAIServer, options: dict[str, Any]
) -> None:
    """Case 22: 20 gathered embeddings each have their own reply's tokens, below the module that asked."""
    embedder = ObservedEmbedder(MODEL, **options)

    class Search(dspy.Module):
        async def aforward(self, text: str) -> Any:
            return await embedder.acall(text)

    await asyncio.gather(*(Search().acall(text=f"text {n}") for n in range(20)))
    assert sorted(record.usage.prompt or 0 for record in watch.lms if record.usage) == list(range(1001, 1021))
    assert {record.parent_id for record in watch.lms} == {record.call_id for record in watch.modules}
    assert {record.program for record in watch.lms} == {"Search"}
    assert watch.agrees_with(server.bills, cost=billed_usd(server))


def test_cached_embeddings_bill_nothing(
    watch: Watch, server: OpenAIServer, options: dict[str, Any], question: str
) -> None:
    """Case 22: a repeated batch is a hit, and of two batches with one cached only the other is billed."""
    embedder = ObservedEmbedder(MODEL, batch_size=1, **{**options, "caching": True})
    embedder([question])
    embedder([question])
    embedder([question, f"{question} again"])
    assert [record.cache_hit for record in watch.lms] == [False, True, False]
    assert [record.usage.prompt for record in watch.lms if record.usage] == [1001, 0, 1002]
    assert len(server.bills) == 2
    assert watch.agrees_with(server.bills, cost=billed_usd(server))


def test_embeddings_without_usage_are_unreported(watch: Watch, server: OpenAIServer, options: dict[str, Any]) -> None:
    """Case 22: a reply without usage is unknown, and an unreported batch leaves the cost of all unknown."""
    server.script([Reply(report_usage=False), Reply(report_usage=False), Reply()], endpoint="embeddings")
    embedder = ObservedEmbedder(MODEL, batch_size=1, **options)
    embedder("a")
    embedder(["b", "c"])
    assert (watch.lms[0].usage, watch.lms[0].cost_usd, watch.lms[0].cache_hit) == (Usage(), None, False)
    assert watch.total("dspy_unmetered_requests_total") == 1
    assert watch.lms[1].cost_usd is None
    assert watch.total("dspy_unpriced_requests_total") == 2
    assert watch.agrees_with(server.bills[2:], cost=None)


def test_a_second_batch_that_fails_leaves_the_first_billed(
    watch: Watch, server: OpenAIServer, options: dict[str, Any]
) -> None:
    """Case 22: the call is an error, and the batch before it is on the bill."""
    server.script([Reply(usage=TokenUsage(7, 0)), Failure(401)], endpoint="embeddings")
    with pytest.raises(Exception, match="Incorrect API key"):
        ObservedEmbedder(MODEL, batch_size=1, **options)(["a", "b"])
    (record,) = watch.lms
    assert (record.outcome, record.billed_but_failed, record.usage) == ("error", True, Usage(7, 0))
    assert watch.agrees_with(server.bills, cost=7 * PROMPT_USD)


def test_a_function_that_embeds_is_named_and_reports_nothing(watch: Watch) -> None:
    """Case 22: a local function is booked under its own name, which holds no memory address, and of unknown usage."""

    def count_letters(texts: list[str]) -> list[list[float]]:
        return [[float(len(text))] for text in texts]

    assert ObservedEmbedder(count_letters)(["a", "bb"]).tolist() == [[1.0], [2.0]]
    (record,) = watch.lms
    assert (record.model_requested, record.name, record.provider) == ("count_letters", "count_letters", None)
    assert (record.usage, record.cost_usd, record.cache_hit) == (Usage(), None, False)
