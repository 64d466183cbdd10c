"""``configure()``: one call that observes every DSPy program of the process, and the :class:`Observer` it returns.

The file is long because every argument of the public face is described and checked here.
"""

from __future__ import annotations

import atexit
import base64
import json
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeVar, cast

from opentelemetry._logs import get_logger_provider
from prometheus_client import CollectorRegistry

from dspy_observe import safety
from dspy_observe.callbacks.base import CallbackGroup
from dspy_observe.callbacks.cost import Cost, CostCallback
from dspy_observe.callbacks.latency import LatencyCallback
from dspy_observe.callbacks.logs import LogCallback, Logs
from dspy_observe.callbacks.otel import OTelCallback, Tracing
from dspy_observe.callbacks.otel.shield import shield_logs
from dspy_observe.callbacks.redaction import RedactionCallback
from dspy_observe.callbacks.registration import Manager, Registrar
from dspy_observe.callbacks.registry import RegistryEventCallback
from dspy_observe.environment import unknown_variables
from dspy_observe.errors import ConfigurationError, UnknownCallError
from dspy_observe.facts import calls, installation
from dspy_observe.ledger import LEDGER, Answer
from dspy_observe.metrics import Metrics, instruments, preferred, serve
from dspy_observe.readers import Reader
from dspy_observe.records import ROLES, RegistryEvent, Role, Score
from dspy_observe.redaction import Redaction, redact

__all__ = ["Cost", "EventSource", "Logs", "Metrics", "Observer", "Redaction", "Tracing", "configure"]

T = TypeVar("T")
_logger = logging.getLogger("dspy_observe")
_REF_PREFIX = "call1."
_TRACE_ID = re.compile("[0-9a-f]{32}")
_SEEN_SCORES = 100_000
"""Score ids remembered, so that a score that is sent again counts once: some hours of feedback, about 10 MB."""
_FLUSH_S = 5.0


class EventSource(Protocol):
    """A registry of program versions, as far as an observer needs it."""

    def subscribe(self, pattern: str, listener: Callable[[RegistryEvent], None]) -> Callable[[], None]:
        """Call ``listener`` for events whose name matches ``pattern`` (``*`` is a wildcard), after their commit.

        Returns:
            A function that ends the subscription.
        """


class Observer:
    """What :func:`configure` installed. Also a context manager that closes itself.

    Attributes:
        callbacks: The callbacks that were put into DSPy's list: one group, followed by those of ``extra`` that are not
            ours to group.
        metrics_url: Where the metrics are scraped; ``None`` where no port of ours was asked for or another worker
            process serves it.
    """

    metrics_url: str | None = None

    def __init__(self, group: CallbackGroup, callbacks: Sequence[Any], stops: Sequence[Callable[[], None]]) -> None:
        self.callbacks: tuple[Any, ...] = tuple(callbacks)
        self._group = group
        self._stops = list(stops)
        self._seen: dict[str, None] = {}
        self._lock = threading.Lock()
        self._closed = False

    def track(self, module: T, *, name: str, version: str | None = None, role: Role = "stable") -> T:
        """Say which program and version a module instance is; its calls carry both from now on.

        Args:
            module: The program instance. Copies of it are other instances.
            name: The program's name, as in the registry.
            version: Its version; ``None`` when it has none.
            role: Which traffic it serves.

        Returns:
            The same instance.

        Raises:
            ConfigurationError: ``module`` is no DSPy module, or ``name`` or ``role`` cannot be used.
        """
        calls.tag(module, name, version, role)
        return module

    def call_ref(self, prediction: object) -> str:
        """A reference to the call that returned ``prediction``, to score it later, also from another process.

        Args:
            prediction: The very object that a program returned.

        Returns:
            An opaque text that holds the call's id, program, version and role. Keep it on your side or sign it: whoever
            can change it can book scores on another version.

        Raises:
            UnknownCallError: The object was not returned by an observed program run, or is a plain string or number.
        """
        answer = LEDGER.answer_of(prediction)
        if answer is None:
            raise UnknownCallError(
                f"this {type(prediction).__name__} was not returned by a program run that this observer saw; "
                "pass the very object that the program returned"
            )
        fields = [answer.call_id, answer.program, answer.version, answer.role, answer.trace_id]
        text = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
        return _REF_PREFIX + base64.urlsafe_b64encode(text.encode("utf-8", "replace")).decode().rstrip("=")

    def score(self, call_ref_or_prediction: object, value: float, *, source: str, score_id: str | None = None) -> bool:
        """Book how good an answer was, on the program version that gave it.

        Args:
            call_ref_or_prediction: What :meth:`call_ref` returned, now or hours ago, or the prediction itself.
            value: From 0 (worst) to 1 (best).
            source: Who judged, such as ``user`` or ``judge``; it becomes a metric label.
            score_id: Your key for this judgement. The same key counts once in this process; ``None`` always counts.

        Returns:
            Whether the score was booked; ``False`` when its ``score_id`` was seen before.

        Raises:
            UnknownCallError: The reference cannot be read, or the prediction was not observed.
            ConfigurationError: ``value`` is no number from 0 to 1, or ``source`` is empty.
        """
        if isinstance(value, bool):
            value = float(value)
        if not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= 1:
            raise ConfigurationError("value", f"{redact(repr(value))} is not from 0 to 1", "Scale the score to 0..1")
        if not isinstance(source, str) or not source:
            raise ConfigurationError("source", "it is empty", 'Say who judged, such as "user"')
        if not isinstance(call_ref_or_prediction, str):
            call_ref_or_prediction = self.call_ref(call_ref_or_prediction)
        answer = _read_ref(call_ref_or_prediction)
        if score_id is not None and not self._first_time(score_id):
            return False
        self._group.scored(
            Score(
                answer.call_id,
                float(value),
                source,
                answer.program,
                answer.version,
                answer.role,
                score_id,
                LEDGER.clock.time(),
                answer.trace_id,
            )
        )
        return True

    def happened(self, event: RegistryEvent) -> None:
        """Tell every callback of a registry event; registries given to ``configure`` do so by themselves."""
        self._group.happened(event)

    def flush(self, timeout_s: float = _FLUSH_S) -> bool:
        """Send what waits: log lines of a slow logger, spans, metrics.

        Args:
            timeout_s: Seconds to wait at most.

        Returns:
            Whether everything went out in time.
        """
        deadline = time.monotonic() + timeout_s
        done = True
        for reader in self._group.readers:
            done = reader.flush(max(0.0, deadline - time.monotonic())) and done
        return done

    def close(self) -> None:
        """Flush, then remove exactly what ``configure`` added. Closing twice does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        installation.remove(self.callbacks)
        self.flush()
        for stop in reversed(self._stops):
            with safety.guard("observer.close"):
                stop()
        _forget(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _first_time(self, score_id: str) -> bool:
        with self._lock:
            if score_id in self._seen:
                return False
            self._seen[score_id] = None
            if len(self._seen) > _SEEN_SCORES:
                self._seen.pop(next(iter(self._seen)))
            return True


def configure(
    *,
    service: str | None = None,
    metrics: Metrics | Literal[False] | None = None,
    tracing: Tracing | Literal[False] | None = None,
    logs: Logs | Literal[False] | None = None,
    redaction: Redaction | Literal[False] | None = None,
    cost: Cost | Literal[False] | None = None,
    registry: EventSource | None = None,
    extra: Sequence[Any] = (),
) -> Observer:
    """Observe every DSPy program of this process.

    Call it once at start-up. It appends to the callbacks that are there. Calling
    it again with the same arguments returns the observer that runs; with others, it replaces that observer.

    Args:
        service: ``service.name`` of the exported spans; ``None`` leaves it to ``OTEL_SERVICE_NAME``.
        metrics: Prometheus metrics. For this and the next four, ``None`` takes the defaults, in which
            ``DSPY_OBSERVE_<ROOM>_<FIELD>`` variables fill the fields; ``False`` leaves the room out.
        tracing: OpenTelemetry spans.
        logs: Log lines.
        redaction: What is removed from captured content. Without it, redacted content is not captured at all.
        cost: Prices and metering; the counters need ``metrics``.
        registry: A registry or registry manager. Its events become metrics, spans and log lines; what optimizers return
            becomes versions in it, as the manager's ``IntegrationConfig`` says, and evaluations of tracked versions
            become scores. A bare ``SignatureRegistry`` gets a manager with the defaults and the environment, where
            ``DSPY_OBSERVE_REGISTRY_AUTO_REGISTER_OPTIMIZATIONS=false`` turns registering off.
        extra: Callbacks of your own: :class:`~dspy_observe.callbacks.base.RecordCallback` subclasses and other readers,
            such as a :class:`~dspy_observe.rollback.monitor.Monitor`, join the group, other DSPy callbacks are listed
            behind it.

    Returns:
        The observer, to track programs, score answers, flush and close.

    Raises:
        ConfigurationError: An argument or environment variable cannot work; the message names it and the fix.
    """
    if not isinstance(extra, Sequence) or isinstance(extra, str):
        raise ConfigurationError(
            "extra", f"{type(extra).__name__} is no list", "Pass a list of RecordCallback or BaseCallback objects"
        )
    arguments = (service, metrics, tracing, logs, redaction, cost, registry, tuple(extra))
    _check(arguments)
    with _running_lock:
        if _running:
            before, running = _running[0]
            if before == arguments:
                installation.append(running.callbacks)  # dspy.configure(callbacks=...) may have taken them out
                return running
            running.close()
        for variable in unknown_variables("METRICS", "TRACING", "LOGS", "REDACTION", "COST"):
            _logger.warning("dspy_observe: %s is set, but %s", variable, _why_unread(variable))
        observer = _build(*arguments)
        _running[:] = [(arguments, observer)]
        return observer


_running: list[tuple[tuple[Any, ...], Observer]] = []
_running_lock = threading.RLock()


def _forget(observer: Observer) -> None:
    with _running_lock:
        if _running and _running[0][1] is observer:
            _running.clear()


def _check(arguments: tuple[Any, ...]) -> None:
    service, *rooms, registry, extra = arguments
    if service is not None and (not isinstance(service, str) or not service):
        shown = redact(repr(service))
        raise ConfigurationError("service", f"{shown} is no name", 'Use a text such as "support-bot", or None')
    for (name, kind), value in zip(_ROOMS, rooms, strict=True):
        if value is not None and value is not False and not isinstance(value, kind):
            given = redact(repr(value))
            raise ConfigurationError(
                name, f"{given} is not {kind.__name__}", f"Pass {kind.__name__}(...), or False to leave it out"
            )
    if registry is not None and not callable(getattr(registry, "subscribe", None)):
        raise ConfigurationError("registry", f"{type(registry).__name__} has no subscribe()", _registry_fix(registry))
    for callback in extra:
        if isinstance(callback, Reader):
            continue
        if isinstance(callback, type) or not callable(getattr(callback, "on_module_start", None)):
            what = f"the class {callback.__name__}" if isinstance(callback, type) else type(callback).__name__
            raise ConfigurationError(
                "extra", f"{what} is no DSPy callback", "Pass objects of RecordCallback or BaseCallback subclasses"
            )


_ROOMS: tuple[tuple[str, type[Any]], ...] = (
    ("metrics", Metrics),
    ("tracing", Tracing),
    ("logs", Logs),
    ("redaction", Redaction),
    ("cost", Cost),
)


def _registry_fix(given: object) -> str:
    if isinstance(given, str | Path):
        return f"Pass SignatureRegistry({redact(repr(str(given)))})"
    return "Pass a registry, or leave it out"


def _why_unread(variable: str) -> str:
    room, _, name = variable.removeprefix("DSPY_OBSERVE_").lower().partition("_")
    if name in {one.name for one in fields(dict(_ROOMS)[room])}:
        return f"no text can say {name}: set it in code"
    return "there is no such option"


def _build(
    service: str | None,
    metrics: Metrics | Literal[False] | None,
    tracing: Tracing | Literal[False] | None,
    logs: Logs | Literal[False] | None,
    redaction: Redaction | Literal[False] | None,
    cost: Cost | Literal[False] | None,
    registry: EventSource | None,
    extra: tuple[Any, ...],
) -> Observer:
    stops: list[Callable[[], None]] = []
    members: list[Reader | CallbackGroup] = []
    endpoint = None
    otel: OTelCallback | None = None
    versions: RegistryEventCallback | None = None
    try:
        if tracing is not False:
            otel = OTelCallback(tracing, service=service)
            members.append(otel)
            stops.append(otel.close)
        if metrics is not False:
            metrics = metrics or Metrics()
            members.append(LatencyCallback(metrics))
            if cost is not False:
                members.append(CostCallback(cost, metrics))
            versions = RegistryEventCallback(metrics)
            members.append(versions)
            instruments(metrics).apply(metrics)
            stops.append(preferred(metrics))
        members.extend(_registrars(registry))
        if redaction is not False:
            # Without metrics its counts go where nobody looks.
            redactors = RedactionCallback(redaction, metrics or Metrics(collector_registry=CollectorRegistry()))
            members.append(redactors)
            if redactors.redactor.options.foreign_signals:
                stops.append(shield_logs(get_logger_provider(), redactors.redactor))
                if otel is not None:
                    stops.append(otel.shield(redactors.redactor))
        if logs is not False:
            members.append(LogCallback(logs))
        members.extend(callback for callback in extra if isinstance(callback, Reader | CallbackGroup))
        others = [callback for callback in extra if not isinstance(callback, Reader | CallbackGroup)]
        group = CallbackGroup(*members)
        if metrics is not False and metrics is not None:
            endpoint = serve(metrics)
            stops.append(endpoint)
        if registry is not None:
            stops.append(registry.subscribe("*", group.happened))
            with safety.guard("configure.deployed"):
                _show_deployed(registry, versions)
        callbacks = [group, *others]
        installation.append(callbacks)
    except BaseException:
        for stop in reversed(stops):
            with safety.guard("configure.undo"):
                stop()
        raise
    observer = Observer(group, callbacks, stops)
    observer.metrics_url = endpoint.url if endpoint is not None else None
    atexit.register(observer.close)
    observer._stops.append(lambda: atexit.unregister(observer.close))
    return observer


def _registrars(registry: EventSource | None) -> list[Registrar]:
    """Who registers in a registry; nobody for a source that only has events."""
    if callable(getattr(registry, "register_optimization_result", None)):
        return [Registrar(cast(Manager, registry))]
    if registry is None:
        return []
    from dspy_observe.registry import RegistryManager, SignatureRegistry

    return [Registrar(RegistryManager(registry))] if isinstance(registry, SignatureRegistry) else []


def _show_deployed(registry: EventSource, versions: RegistryEventCallback | None) -> None:
    """Tell what is deployed already: events tell of later deployments only."""
    from dspy_observe.registry import RegistryManager, SignatureRegistry

    if isinstance(registry, RegistryManager):
        registry = registry.registry
    if versions is not None and isinstance(registry, SignatureRegistry):
        for program in registry.list_signatures():
            for pointer in registry.pointers(program):
                versions.stands(program, pointer.environment, pointer.version, pointer.at.timestamp())


def _read_ref(ref: str) -> Answer:
    text = ref.removeprefix(_REF_PREFIX) if ref.startswith(_REF_PREFIX) else "!"
    try:
        call_id, program, version, role, trace_id = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (ValueError, TypeError, RecursionError):  # of base64, UTF-8, JSON, and of its shape
        raise UnknownCallError("this is no call reference; pass what Observer.call_ref() returned") from None
    known = all(part is None or isinstance(part, str) for part in (program, version))
    traced = trace_id is None or (isinstance(trace_id, str) and _TRACE_ID.fullmatch(trace_id) is not None)
    if not isinstance(call_id, str) or role not in ROLES or not known or not traced:
        raise UnknownCallError("this call reference has been altered; pass what Observer.call_ref() returned")
    return Answer(call_id, program, version, role, trace_id)
