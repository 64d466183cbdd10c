"""How long calls take, how many are under way, and how they end.

What you get
    Histograms of program runs, modules, LM calls and tools; time to the first streamed chunk; calls in flight; prompts
    that could not be formatted and replies that could not be parsed.
Metrics
    ``dspy_program_duration_seconds``, ``dspy_module_duration_seconds``, ``dspy_lm_duration_seconds``,
    ``dspy_tool_duration_seconds``, ``dspy_lm_time_to_first_token_seconds``, ``dspy_adapter_failures_total``,
    ``dspy_in_flight_calls``. Histograms carry the trace id as an exemplar (OpenMetrics exposition) where an
    ``OTelCallback`` records the trace.
Options
    :class:`~dspy_observe.metrics.Metrics`.
Order and composition
    Any. Two of them on one ``CollectorRegistry`` count a call once. The durations leave out the observer's own work.
"""

from __future__ import annotations

from functools import partial

from dspy_observe.callbacks.base import RecordCallback
from dspy_observe.ledger import LEDGER
from dspy_observe.metrics import Metrics, instruments
from dspy_observe.records import ADAPTER_KINDS, CALL_KINDS, CallRecord, CallStart

__all__ = ["LatencyCallback"]


class LatencyCallback(RecordCallback):
    """Count and time calls in Prometheus.

    Args:
        metrics: Registry, buckets and label ceiling; ``None`` takes the defaults and the environment.
    """

    failures_only = ADAPTER_KINDS

    def __init__(self, metrics: Metrics | None = None) -> None:
        own = instruments(metrics)
        self._instruments = own
        self._program = own["dspy_program_duration_seconds"]
        self._module = own["dspy_module_duration_seconds"]
        self._lm = own["dspy_lm_duration_seconds"]
        self._tool = own["dspy_tool_duration_seconds"]
        self._first_token = own["dspy_lm_time_to_first_token_seconds"]
        self._adapter_failures = own["dspy_adapter_failures_total"]
        self._in_flight = own["dspy_in_flight_calls"]
        self._open = own["dspy_observe_open_calls"]
        self.told_of_starts = own.multiprocess
        if not self.told_of_starts:  # the shared files of several processes hold plain numbers, counted up and down
            self._open.child().set_function(lambda: LEDGER.open_calls)
            for kind in CALL_KINDS:
                self._in_flight.child(kind).set_function(partial(LEDGER.open_calls_of, kind))
        self._given_up = own["dspy_observe_dropped_calls_total"]

    @property
    def identity(self) -> object:
        return ("latency", id(self._instruments))

    def started(self, start: CallStart) -> None:
        self._in_flight.child(start.kind).inc()
        self._open.child().inc()

    def finished(self, record: CallRecord) -> None:
        if self.told_of_starts and record.kind not in self.failures_only:
            self._gone(record.kind)
        kind, status, seconds = record.kind, record.outcome, record.duration_s
        program, version = record.program, record.version
        trace, at = record.trace_id, record.started_at
        if kind == "module":
            self._module.child(program, version, record.name, status).observe(seconds, trace, at)
            if record.is_program:
                self._program.child(program, version, record.role, status).observe(seconds, trace, at)
        elif kind == "lm":
            model = record.model_requested
            self._lm.child(program, version, model, status).observe(seconds, trace, at)
            if record.ttft_s is not None:
                self._first_token.child(program, version, model).observe(record.ttft_s, trace, at)
        elif kind == "tool":
            self._tool.child(program, version, record.name, status).observe(seconds, trace, at)
        elif status != "ok" and kind in ("adapter_format", "adapter_parse"):
            stage = "format" if kind == "adapter_format" else "parse"
            self._adapter_failures.child(program, version, record.name, stage).inc()

    def dropped(self, start: CallStart) -> None:
        if self.told_of_starts:
            self._gone(start.kind)
        self._given_up.child().inc()

    def _gone(self, kind: str) -> None:
        self._in_flight.child(kind).dec()
        self._open.child().dec()
