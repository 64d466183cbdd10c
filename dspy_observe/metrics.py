"""Prometheus instruments: made once for each ``CollectorRegistry``, bounded in labels, right in several processes.

**One process.** ``Metrics(port=9464)`` opens a port of ours; or leave the port out and expose the default registry (or
the one given as ``collector_registry``) the way the application already does.

**Several worker processes** (gunicorn, ``uvicorn --workers``). Set ``PROMETHEUS_MULTIPROC_DIR`` to an empty directory
before Python starts, and serve :func:`render` from any worker: it adds up all of them, and drops the gauges of workers
that were killed. Call :func:`worker_exited` when a worker ends (gunicorn's ``child_exit``), so that its gauges go at
once. A ``port`` of ours is taken
by the first worker that asks; it answers for all, the others go on without one.
https://prometheus.github.io/client_python/multiprocess/

The file is long because all that touches prometheus_client stands in it: options, series, and the page.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import weakref
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from dspy_observe import safety
from dspy_observe.conventions import (
    LATENCY_BUCKETS_S,
    MAX_LABEL_VALUES,
    METRICS,
    OVERFLOW_LABEL,
    ROLLBACK_BUCKETS_S,
    SCORE_BUCKETS,
    TTFT_BUCKETS_S,
    UNKNOWN_LABEL,
    MetricSpec,
)
from dspy_observe.environment import at_least, check_at_least, env_default, parse_floats
from dspy_observe.errors import ConfigurationError
from dspy_observe.redaction import redact_given_name, redact_name

__all__ = [
    "Endpoint",
    "Instruments",
    "Metrics",
    "instruments",
    "preferred",
    "render",
    "separate",
    "serve",
    "worker_exited",
]

_logger = logging.getLogger("dspy_observe")

_CAPPED: Final = frozenset(
    {"program", "version", "model", "module", "tool", "adapter", "dataset", "source", "from_model", "to_model",
     "environment", "entity", "rule", "reason", "site"}
)  # fmt: skip
"""Labels whose values come from data; the others take a fixed set of words."""
_GIVEN: Final = frozenset({"program", "version"})
"""Labels whose values are names of the registry's, which alerts compare with what is deployed."""


_EXEMPLAR_EVERY_S: Final = 1.0  # far below any scrape interval
_HIGHEST_PORT: Final = 65_535
_DEFAULT_BUCKETS_S: Final[tuple[float, ...]] = LATENCY_BUCKETS_S


def _port(text: str) -> int | None:
    port = int(text)
    if not 0 <= port <= _HIGHEST_PORT:
        raise ValueError("no TCP port; use 0 to 65535")
    return port


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Where the Prometheus metrics go and how fine they are.

    Raises:
        ConfigurationError: A field has a value that cannot work.
    """

    port: int | None = field(default_factory=env_default("DSPY_OBSERVE_METRICS_PORT", None, _port))
    """TCP port of a metrics endpoint of ours, 1 to 65535, or 0 for any free one; ``None`` opens none."""
    host: str = field(default_factory=env_default("DSPY_OBSERVE_METRICS_HOST", "127.0.0.1", str))
    """Address of that endpoint. The default is reachable from this machine only; a scraper outside needs
    ``0.0.0.0``."""
    collector_registry: CollectorRegistry | None = None
    """The application's own registry; ``None`` is prometheus_client's default one."""
    latency_buckets_s: tuple[float, ...] = field(
        default_factory=env_default("DSPY_OBSERVE_METRICS_LATENCY_BUCKETS_S", _DEFAULT_BUCKETS_S, parse_floats)
    )
    """Upper bounds of the duration histograms in seconds, rising."""
    max_label_values: int = field(
        default_factory=env_default("DSPY_OBSERVE_METRICS_MAX_LABEL_VALUES", MAX_LABEL_VALUES, at_least(1))
    )
    """Distinct values of one label, at least 1; further ones are booked as ``other``."""

    def __post_init__(self) -> None:
        if self.port is not None and not (type(self.port) is int and 0 <= self.port <= _HIGHEST_PORT):
            raise ConfigurationError("Metrics.port", f"{self.port!r} is no TCP port", "Use 0 to 65535, or None")
        if not isinstance(self.host, str) or not self.host:
            raise ConfigurationError("Metrics.host", f"{self.host!r} is no address", 'Use "127.0.0.1" or "0.0.0.0"')
        if self.collector_registry is not None and not isinstance(self.collector_registry, CollectorRegistry):
            kind = type(self.collector_registry).__name__
            raise ConfigurationError(
                "Metrics.collector_registry", f"{kind} is no registry", "Pass a prometheus_client.CollectorRegistry"
            )
        _check_bounds(self.latency_buckets_s)
        check_at_least("Metrics.max_label_values", self.max_label_values, 1, "Use 1 or more; 100 is the default")


def _check_bounds(bounds: object) -> None:
    numbers = isinstance(bounds, Sequence) and all(isinstance(bound, int | float) for bound in bounds)
    if not isinstance(bounds, Sequence) or not numbers:
        problem = "is no list of numbers"
    elif not bounds:
        problem = "is empty"
    elif not all(bound > 0 for bound in bounds):
        problem = "is not all above 0"
    elif not all(left < right for left, right in pairwise(bounds)):
        problem = "does not rise"
    else:
        return
    raise ConfigurationError(
        "Metrics.latency_buckets_s", f"{bounds!r} {problem}", "Give rising positive numbers of seconds"
    )


def multiprocess() -> bool:
    """Whether prometheus_client keeps its values in files that several processes share."""
    return "PROMETHEUS_MULTIPROC_DIR" in os.environ or "prometheus_multiproc_dir" in os.environ


class Timing:
    """One series of a histogram, which keeps at most one exemplar a second in each of its buckets.

    An exemplar is the latest one anyway, and attaching it costs more than the observation itself. Other observations go
    to the numbers of the series themselves, where this release of prometheus_client has them in the known places: its
    own way there is twice as long.
    """

    __slots__ = ("_add", "_bounds", "_child", "_counts", "_next")

    def __init__(self, child: Any, bounds: tuple[float, ...]) -> None:
        self._child = child
        self._bounds = bounds
        self._next = [0.0] * (len(bounds) + 1)
        counts, total = getattr(child, "_buckets", None), getattr(child, "_sum", None)
        known = isinstance(counts, list) and len(counts) == len(bounds) + 1 and callable(getattr(total, "inc", None))
        self._add: Callable[[float], None] | None = getattr(total, "inc", None) if known else None
        self._counts: list[Callable[[float], None]] = [count.inc for count in counts or ()] if known else []

    def observe(self, value: float, trace_id: str | None = None, at: float = 0.0) -> None:
        """Book one value.

        Args:
            value: In the histogram's unit.
            trace_id: Where to find an example; ``None`` attaches none.
            at: Unix time of the observation in seconds.
        """
        bucket = bisect_left(self._bounds, value)
        if trace_id is not None and at >= self._next[bucket]:
            self._next[bucket] = at + _EXEMPLAR_EVERY_S
            self._child.observe(value, {"trace_id": trace_id})
        elif self._add is not None:
            self._add(value)
            self._counts[bucket](1)
        else:
            self._child.observe(value)


class Count:
    """One series of a counter, without the questions that prometheus_client asks before each step.

    Args:
        child: The counter's series.
    """

    __slots__ = ("_add",)

    def __init__(self, child: Counter) -> None:
        add = getattr(getattr(child, "_value", None), "inc", None)  # where this release of prometheus_client has it
        self._add: Callable[[float], None] = add if callable(add) else child.inc

    def inc(self, amount: float = 1.0) -> None:
        """Add an amount, which is never negative."""
        self._add(amount)


class Family:
    """One metric with its children kept at hand: asking prometheus_client for a child takes a lock each time."""

    __slots__ = ("_bounds", "_children", "_instruments", "_metric", "labels")

    def __init__(
        self, metric: MetricWrapperBase, labels: tuple[str, ...], owner: Instruments, bounds: tuple[float, ...] = ()
    ) -> None:
        self._metric = metric
        self._bounds = bounds
        self._children: dict[tuple[str | None, ...], Any] = {}
        self._instruments = owner
        self.labels = labels

    def child(self, *values: str | None) -> Any:
        """The time series for these label values, in the order of the metric's labels.

        ``None`` becomes ``unknown``, values beyond the ceiling become ``other``.
        """
        found = self._children.get(values)
        if found is not None:
            return found
        admitted = tuple(map(self._instruments.admit, self.labels, values))
        found = self._metric.labels(*admitted) if admitted else self._metric
        if self._bounds:
            found = Timing(found, self._bounds)
        elif type(found) is Counter:
            found = Count(found)
        if OVERFLOW_LABEL not in admitted:  # overflowing values are without number and must not be kept
            self._children[values] = found
        return found

    def remove(self, *values: str | None) -> None:
        """Drop one time series; nothing happens when there is none, or where several processes share the values."""
        if self._instruments.multiprocess:
            return  # prometheus_client cannot remove from shared files and warns
        self._children.pop(values, None)
        admitted = tuple(map(self._instruments.admit, self.labels, values))
        try:
            self._metric.remove(*admitted)
        except KeyError:
            return


class Instruments:
    """All metrics of ``conventions.METRICS`` in one ``CollectorRegistry``.

    Use :func:`instruments` to get the one that belongs to a registry.
    """

    def __init__(self, options: Metrics, registry: CollectorRegistry) -> None:
        self._max = options.max_label_values
        self._seen: dict[str, set[str]] = {}
        self._lock = threading.Lock()
        self._buckets = {
            "latency": options.latency_buckets_s, "ttft": TTFT_BUCKETS_S, "score": SCORE_BUCKETS,
            "rollback": ROLLBACK_BUCKETS_S,
        }  # fmt: skip
        self.multiprocess = multiprocess()
        self._families = {name: self._make(spec, registry) for name, spec in METRICS.items()}
        self._watch_ourselves()

    def __getitem__(self, name: str) -> Family:
        """The family of a metric by its full name.

        Raises:
            KeyError: ``conventions.METRICS`` has no such metric.
        """
        return self._families[name]

    def admit(self, label: str, value: str | None) -> str:
        """The label value to use for a value from data: redacted, and ``other`` beyond the ceiling."""
        if value is None or value == "":
            return UNKNOWN_LABEL
        value = redact_given_name(value) if label in _GIVEN else redact_name(value)
        if label not in _CAPPED:
            return value
        seen = self._seen.setdefault(label, set())
        if value in seen:
            return value
        with self._lock:
            if len(seen) >= self._max:
                return OVERFLOW_LABEL
            seen.add(value)
        return value

    def apply(self, options: Metrics) -> None:
        """Take over the ceiling of other options; buckets stay as they were when the metrics were made."""
        self._max = options.max_label_values
        if options.latency_buckets_s != self._buckets["latency"]:
            _logger.warning(
                "dspy_observe: Metrics.latency_buckets_s: this registry's histograms were made with other buckets and "
                "keep them; set them in the first configure() of the process, or pass a new collector_registry"
            )

    def _make(self, spec: MetricSpec, registry: CollectorRegistry) -> Family:
        metric: MetricWrapperBase
        if spec.type == "counter":
            metric = Counter(spec.name, spec.help, spec.labels, registry=registry)
        elif spec.type == "gauge":
            metric = Gauge(spec.name, spec.help, spec.labels, registry=registry, multiprocess_mode=spec.multiprocess)
        else:
            buckets = self._buckets[spec.buckets or "latency"]
            metric = Histogram(spec.name, spec.help, spec.labels, registry=registry, buckets=buckets)
            return Family(metric, spec.labels, self, buckets)
        return Family(metric, spec.labels, self)

    def _watch_ourselves(self) -> None:
        safety.on_error(self._count_error)  # which does not keep the instruments of a registry that is gone

    def _count_error(self, site: str, count: int) -> None:
        self["dspy_observe_internal_errors_total"].child(site).inc(count)


_by_registry: weakref.WeakKeyDictionary[CollectorRegistry, Instruments] = weakref.WeakKeyDictionary()
_by_registry_lock = threading.Lock()
_preferred: list[Metrics] = []


def preferred(options: Metrics) -> Callable[[], None]:
    """Have these options stand for ``None`` in :func:`instruments`, until the function that is returned is called."""
    _preferred.append(options)

    def end() -> None:
        _preferred[:] = [other for other in _preferred if other is not options]

    return end


def instruments(options: Metrics | None = None) -> Instruments:
    """The instruments of a registry, made on first use; the first options win.

    Args:
        options: Which registry, buckets and ceiling; ``None`` takes those of ``configure()`` where it is in force, else
            the defaults and the environment.

    Raises:
        ConfigurationError: The registry already holds a metric of the same name that is not ours.
    """
    options = options or (_preferred[-1] if _preferred else Metrics())
    registry = options.collector_registry or REGISTRY
    with _by_registry_lock:
        found = _by_registry.get(registry)
        if found is None:
            try:
                found = Instruments(options, registry)
            except ValueError as error:
                raise ConfigurationError(
                    "Metrics.collector_registry",
                    f"it already has a metric of one of our names ({error})",
                    "Remove the other metric, or pass a registry of its own",
                ) from error
            _by_registry[registry] = found
        return found


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A metrics endpoint; calling it closes it."""

    url: str | None
    """Where it is scraped; ``None`` where no port was asked for or another worker has it."""
    _stop: Callable[[], None]

    def __call__(self) -> None:
        """Close it; nothing happens where there is none."""
        self._stop()


def serve(options: Metrics) -> Endpoint:
    """Open the metrics endpoint that ``options.port`` asks for.

    Returns:
        The endpoint, which has no ``url`` where no port was asked for or another worker has it.

    Raises:
        ConfigurationError: The address cannot be bound.
    """
    if options.port is None:
        return Endpoint(None, lambda: None)
    try:
        server, thread = start_http_server(options.port, options.host, _exposed(options.collector_registry))
    except OSError as error:
        if error.errno == errno.EADDRINUSE and multiprocess():
            _logger.info("dspy_observe: port %s is taken, another worker serves the metrics of all", options.port)
            return Endpoint(None, lambda: None)
        taken = error.errno in (errno.EADDRINUSE, errno.EACCES)
        field_name, fix = ("Metrics.port", "Choose another port") if taken else ("Metrics.host", "Name an address here")
        what = f"cannot listen on {options.host}:{options.port} ({error.strerror})"
        raise ConfigurationError(field_name, what, fix) from error

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    host = f"[{options.host}]" if ":" in options.host else options.host
    return Endpoint(f"http://{host}:{server.server_port}/metrics", stop)


def render(collector_registry: CollectorRegistry | None = None, accept: str = "") -> tuple[bytes, str]:
    """The metrics page, of all worker processes where there are several.

    Args:
        collector_registry: The registry that was given to ``Metrics``; ``None`` is the default one.
        accept: The request's ``Accept`` header; a scraper that takes OpenMetrics gets exemplars.

    Returns:
        The body and its content type.
    """
    encode, content_type = choose_encoder(accept)
    return encode(_exposed(collector_registry)), content_type


def separate() -> Metrics:
    """Metrics in a registry of their own, for a command that shows what it found and nothing of its process."""
    return Metrics(port=None, collector_registry=CollectorRegistry())


def worker_exited(pid: int) -> None:
    """Forget the gauges of a worker process that has ended (gunicorn: ``child_exit(server, worker)``).

    Args:
        pid: Its process id.
    """
    mark_process_dead(pid)  # type: ignore[no-untyped-call]


def _exposed(registry: CollectorRegistry | None) -> CollectorRegistry:
    if not multiprocess():
        return registry or REGISTRY
    merged = CollectorRegistry()
    pages = MultiProcessCollector(merged)  # type: ignore[no-untyped-call]
    _forget_dead_workers(pages._path)
    return merged


def _forget_dead_workers(folder: str) -> None:
    """Drop the gauges of workers that were killed: nobody called :func:`worker_exited` for them."""
    for path in Path(folder).glob("gauge_live*_*.db"):
        pid = path.stem.rpartition("_")[2]
        if pid.isdecimal() and not _alive(int(pid)):
            worker_exited(int(pid))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, and is another user's
        return True
    return True
