"""Tokens, money and cache hits of every LM call.

What you get
    Counters that agree with the provider's bill: one LM call is booked once, with its own tokens, under any number of
    threads. What the provider did not report and what has no known price is counted apart, never as 0.
Metrics
    ``dspy_requests_total``, ``dspy_tokens_total``, ``dspy_cost_usd_total``, ``dspy_cost_saved_usd_total``,
    ``dspy_cache_requests_total``, ``dspy_unmetered_requests_total``, ``dspy_unpriced_requests_total``,
    ``dspy_retries_total``, ``dspy_fallbacks_total``, ``dspy_cache_dir_bytes``.
Options
    :class:`Cost` (a price function; usage of LiteLLM streams) and :class:`~dspy_observe.metrics.Metrics`.
Order and composition
    Any. Two of them on one ``CollectorRegistry`` book a call once. A price function changes the record itself, so
    spans and log lines show the same figure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from dspy_observe.callbacks.base import RecordCallback
from dspy_observe.environment import check_bool, env_default, parse_bool
from dspy_observe.errors import ConfigurationError
from dspy_observe.facts.disk_cache import disk_cache_bytes
from dspy_observe.metrics import Metrics, instruments
from dspy_observe.records import CallRecord, Price, Usage

__all__ = ["Cost", "CostCallback"]

_MEASURE_EVERY_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """How calls are priced and metered.

    Raises:
        ConfigurationError: ``price`` cannot be called.
    """

    price: Price | None = None
    """Called with the record of each billed LM call; returns US dollars, or ``None`` to keep DSPy's estimate."""
    meter_litellm_streams: bool = field(
        default_factory=env_default("DSPY_OBSERVE_COST_METER_LITELLM_STREAMS", False, parse_bool)
    )
    """Ask for usage in streams that run through LiteLLM, which reports none by default. It adds
    ``stream_options={"include_usage": true}`` to those requests and leaves all others as they are."""

    def __post_init__(self) -> None:
        check_bool("Cost.meter_litellm_streams", self.meter_litellm_streams)
        if self.price is not None and not callable(self.price):
            raise ConfigurationError(
                "Cost.price", f"{type(self.price).__name__} cannot be called", "Pass a function of one CallRecord"
            )


class CostCallback(RecordCallback):
    """Book tokens, cost and cache results in Prometheus.

    Args:
        cost: Prices; ``None`` takes DSPy's estimates.
        metrics: Registry and label ceiling; ``None`` takes the defaults and the environment.
    """

    kinds = frozenset({"lm"})

    def __init__(self, cost: Cost | None = None, metrics: Metrics | None = None) -> None:
        options = cost or Cost()
        self.price = options.price
        self.meter_streams = options.meter_litellm_streams
        own = instruments(metrics)
        self._instruments = own
        self._requests = own["dspy_requests_total"]
        self._tokens = own["dspy_tokens_total"]
        self._cost = own["dspy_cost_usd_total"]
        self._saved = own["dspy_cost_saved_usd_total"]
        self._cache = own["dspy_cache_requests_total"]
        self._unmetered = own["dspy_unmetered_requests_total"]
        self._unpriced = own["dspy_unpriced_requests_total"]
        self._retries = own["dspy_retries_total"]
        self._fallbacks = own["dspy_fallbacks_total"]
        self._cache_size = own["dspy_cache_dir_bytes"]
        self._measure_at: float | None = None
        if own.multiprocess:  # the shared files of several processes hold plain numbers, written now and then
            self._measure_at = 0.0
        else:
            self._cache_size.child().set_function(disk_cache_bytes)

    @property
    def identity(self) -> object:
        return ("cost", id(self._instruments))

    def finished(self, record: CallRecord) -> None:
        if self._measure_at is not None and record.started_at >= self._measure_at:
            self._measure_at = record.started_at + _MEASURE_EVERY_S
            self._cache_size.child().set(disk_cache_bytes())
        who = (record.program, record.version, record.model_requested)
        self._requests.child(*who, record.outcome).inc()
        if record.cache_hit is not None:
            self._cache.child(*who, "hit" if record.cache_hit else "miss").inc()
        if record.retries:
            self._retries.child(*who).inc(record.retries)
        if record.fallback_from is not None:
            self._fallbacks.child(record.fallback_from, record.model_requested, record.fallback_reason).inc()
        if record.cache_hit:
            if record.cost_saved_usd is not None:
                self._saved.child(*who).inc(record.cost_saved_usd)
            return
        self._book(record, record.usage or Usage(), who)

    def _book(self, record: CallRecord, usage: Usage, who: tuple[str | None, ...]) -> None:
        for kind, count in (
            ("prompt", usage.prompt),
            ("completion", usage.completion),
            ("cache_read", usage.cache_read),
            ("cache_write", usage.cache_write),
            ("reasoning", usage.reasoning),
        ):
            if count:
                self._tokens.child(*who, kind).inc(count)
        if not record.may_be_billed:
            return
        if not usage.known:
            self._unmetered.child(record.model_requested).inc()
        if record.cost_usd is None:
            self._unpriced.child(record.model_requested).inc()
        else:
            self._cost.child(*who).inc(record.cost_usd)
