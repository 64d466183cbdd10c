"""Tokens, money and cache results agree with the bill; what is not known is counted apart."""

from __future__ import annotations

from typing import Any

import dspy
import pytest
from prometheus_client import CollectorRegistry

from dspy_observe import CallbackGroup, Cost, CostCallback, Metrics
from dspy_observe.records import CallRecord, Usage
from dspy_observe.testing import Capture, offline_lm

WHO = {"program": "qa", "version": "v1", "model": "openai/m"}


def record(**fields: Any) -> CallRecord:
    """An LM record."""
    given: dict[str, Any] = {
        "call_id": "c", "parent_id": None, "root_id": "c", "kind": "lm", "name": "m", "program": "qa", "version": "v1",
        "role": "stable", "is_program": False, "operation": "chat", "model_requested": "openai/m", "provider": "openai",
        "streaming": False, "started_at": 1.0, "usage": Usage(),
    }  # fmt: skip
    return CallRecord(**{**given, **fields})


def booked(*records: CallRecord) -> dict[str, float]:
    """Every series that was booked, by metric and the label that tells it apart."""
    registry = CollectorRegistry()
    callback = CostCallback(metrics=Metrics(collector_registry=registry))
    for one in records:
        callback.finished(one)
    found = {}
    for metric in registry.collect():
        for sample in metric.samples:
            if "model" not in sample.labels or sample.name.endswith("_created"):
                continue
            rest = [value for name, value in sample.labels.items() if name not in WHO]
            assert {name: value for name, value in sample.labels.items() if name in WHO}.items() <= WHO.items()
            found["/".join([sample.name.removeprefix("dspy_"), *rest])] = sample.value
    return found


def test_a_live_call_with_everything_known() -> None:
    """Every figure once; a kind of token that is 0 or unknown makes no series."""
    usage = Usage(100, 50, 40, None, 0)
    assert booked(record(usage=usage, cost_usd=0.25, cache_hit=False)) == {
        "requests_total/ok": 1,
        "cache_requests_total/miss": 1,
        "tokens_total/prompt": 100,
        "tokens_total/completion": 50,
        "tokens_total/cache_read": 40,
        "cost_usd_total": 0.25,
    }


def test_a_cache_hit_bills_nothing_and_saves() -> None:
    """It is a request, not an unmetered one."""
    hit = record(usage=Usage(0, 0, 0, 0, 0), cost_usd=0.0, cost_saved_usd=0.25, cache_hit=True)
    assert booked(hit) == {"requests_total/ok": 1, "cache_requests_total/hit": 1, "cost_saved_usd_total": 0.25}
    unknown = record(usage=Usage(0, 0, 0, 0, 0), cost_usd=0.0, cost_saved_usd=None, cache_hit=True)
    assert booked(unknown) == {"requests_total/ok": 1, "cache_requests_total/hit": 1}


def test_what_is_not_known_is_counted_apart_and_never_as_zero() -> None:
    """No usage, no price; and a price of 0 is one."""
    assert booked(record(cache_hit=False)) == {
        "requests_total/ok": 1,
        "cache_requests_total/miss": 1,
        "unmetered_requests_total": 1,
        "unpriced_requests_total": 1,
    }
    assert booked(record(usage=Usage(1, 1), cost_usd=0.0)) == {
        "requests_total/ok": 1,
        "tokens_total/prompt": 1,
        "tokens_total/completion": 1,
        "cost_usd_total": 0,
    }


@pytest.mark.parametrize(
    ("fields", "may_be_billed"),
    [
        ({"outcome": "rate_limited", "error_type": "LMRateLimitError"}, False),
        ({"outcome": "error", "error_type": "LMServerError"}, False),
        ({"outcome": "timeout", "error_type": "LMTimeoutError"}, True),
        ({"outcome": "cancelled", "error_type": "CancelledError"}, True),
        ({"outcome": "error", "error_type": "X", "ttft_s": 0.1}, True),
        ({"outcome": "error", "error_type": "LMStreamAssemblyError"}, True),
    ],
)
def test_failed_calls_that_may_have_been_billed_are_unmetered(fields: dict[str, Any], may_be_billed: bool) -> None:
    """A refused request was not billed; a cancelled, late or cut one may have been."""
    found = booked(record(**fields))
    assert found[f"requests_total/{fields['outcome']}"] == 1
    assert ("unmetered_requests_total" in found) is may_be_billed
    assert ("unpriced_requests_total" in found) is may_be_billed


def test_a_failed_call_with_a_bill_is_booked() -> None:
    """Its candidates that succeeded were billed."""
    found = booked(record(outcome="error", billed_but_failed=True, usage=Usage(5, 5), cost_usd=0.5))
    assert found == {
        "requests_total/error": 1,
        "tokens_total/prompt": 5,
        "tokens_total/completion": 5,
        "cost_usd_total": 0.5,
    }


def test_retries_are_counted_where_they_are_known() -> None:
    """DSPy does not tell; a wrapper may."""
    assert booked(record(retries=2, cache_hit=None))["retries_total"] == 2
    assert "retries_total" not in booked(record(retries=0))
    assert "retries_total" not in booked(record(retries=None))


@pytest.mark.parametrize("grouped", [True, False])
def test_a_price_function_changes_the_record_itself(grouped: bool) -> None:
    """So that other readers show the same figure; two callbacks on one registry book once."""
    registry, capture = CollectorRegistry(), Capture()
    metrics = Metrics(collector_registry=registry)
    asked: list[CallRecord] = []

    def price(one: CallRecord) -> float:
        asked.append(one)
        assert one.usage is not None
        return (one.usage.prompt or 0) * 0.5

    callbacks: list[Any] = [capture, CostCallback(Cost(price=price), metrics), CostCallback(metrics=metrics)]
    if grouped:
        callbacks = [CallbackGroup(*callbacks)]
    with dspy.context(lm=offline_lm("hi"), callbacks=callbacks):
        dspy.settings.lm("hello")
    (lm,) = capture.records
    assert lm.cost_usd == 5.0
    assert len(asked) == 1
    labels = {"program": "unknown", "version": "unknown", "model": "offline/model"}
    assert registry.get_sample_value("dspy_cost_usd_total", labels) == 5.0
    assert registry.get_sample_value("dspy_requests_total", {**labels, "status": "ok"}) == 1
    assert registry.get_sample_value("dspy_tokens_total", {**labels, "kind": "prompt"}) == 10
