"""With content capture on, none of some 280 planted secrets is in anything that leaves the process."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import dspy
import pytest
from prometheus_client import CollectorRegistry

import dspy_observe
from dspy_observe import ledger, safety
from dspy_observe.callbacks.base import RecordCallback
from dspy_observe.callbacks.cost import CostCallback
from dspy_observe.callbacks.latency import LatencyCallback
from dspy_observe.callbacks.logs import LogCallback
from dspy_observe.callbacks.otel import OTelCallback
from dspy_observe.callbacks.redaction import RedactionCallback
from dspy_observe.callbacks.registry import RegistryEventCallback
from dspy_observe.config import Cost, Logs, Metrics, Observer, Redaction, Tracing
from dspy_observe.openai_server import OpenAIServer
from dspy_observe.records import CallRecord, RegistryEvent, Score
from dspy_observe.redaction import names, redactor
from dspy_observe.registry.names import is_name
from dspy_observe.testing import Capture
from tests.e2e.leaks import outlets, scenario
from tests.e2e.leaks.secrets import ENVIRONMENT, Secret, named, planted

pytestmark = pytest.mark.e2e

SECRETS = planted()
CREDENTIALS = [secret for secret in SECRETS if secret.credential]
ROUNDS = 6  # places that a call has for texts: each secret visits each place


@pytest.fixture(autouse=True)
def process_with_secrets(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that was started with secrets in its environment, swallows what fails, and has logged nothing yet."""

    def forget() -> None:
        ledger._RAW.clear()
        names._remembered.cache_clear()
        names._given.cache_clear()
        names._credentials.cache_clear()
        names._walking.cache_clear()

    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DSPY_OBSERVE_STRICT", "0")
    monkeypatch.setattr(redactor, "_default", None)
    monkeypatch.setattr(safety, "_logged_at", {})
    dspy.configure_cache(enable_disk_cache=False)
    forget()
    yield
    forget()


@pytest.fixture
def lines() -> Iterator[outlets.Lines]:
    """The log lines of every logger of ours."""
    found = outlets.Lines()
    logger = logging.getLogger("dspy_observe")
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.addHandler(found)
    yield found
    logger.removeHandler(found)
    logger.setLevel(level)
    logger.propagate = propagate


class Broken(RecordCallback):
    """A reader that fails, in the words of what it was reading and under a name made of it."""

    def __init__(self, secrets: list[Secret]) -> None:
        self._bare = itertools.cycle(secret.values[0] for secret in named(secrets))

    def finished(self, record: CallRecord) -> None:
        """Fail."""
        value = next(self._bare)
        raise type(f"Fault {value}", (RuntimeError,), {})(value)

    def happened(self, event: RegistryEvent) -> None:
        """Fail."""
        raise RuntimeError(next(self._bare))

    def scored(self, score: Score) -> None:
        """Fail."""
        raise RuntimeError(next(self._bare))


def _price(record: CallRecord) -> float:
    raise ValueError(str(record))


def _custom(text: str) -> list[tuple[int, int]]:
    """A detector that fails on some texts, quoting them."""
    if "streamed" in text:
        raise ValueError(text)
    return []


def given(secret: Secret) -> str:
    """The secret as the name or version that a program is given, where it can be told from one that is meant.

    What a registry takes for a name is one, whatever number it looks like; only credentials are removed from it.
    """
    value = secret.values[0]
    return value if secret.credential or not is_name(value) else "v1"


def put_into_names(secrets: list[Secret], happened: Callable[[RegistryEvent], None]) -> list[Any]:
    """Name programs, versions, tools, modules, error classes, data sets and registry events after secrets.

    Returns:
        One answer of each program.
    """
    answers = []
    for number, secret in enumerate(named(secrets)):
        value = secret.values[0]
        label = f"for {value} only"

        def work(text: str, value: str = value) -> str:
            """Work."""
            raise type(f"Error {value}", (ValueError,), {})(text)

        with pytest.raises(ValueError, match="x"):
            dspy.Tool(work, name=label)(text=f"x {value}")
        program = type(f"Program {value}", (scenario.Passages,), {})(secret.text)
        answers.append(program("q"))
        tracked = scenario.Passages(secret.text)
        dspy_observe.facts.calls.tag(tracked, label, given(secret))
        answers.append(tracked("q"))
        metadata = {"dataset": label, "owner": value}
        data = {"reason": secret.text, "trigger": value, "nested": {"by": [value], label: 1}}
        for event in ("deploy_complete", "rollback_error", value):
            happened(RegistryEvent(f"dspy.registry.{event}", label, 1.7e9 + number, label, given(secret), data))
        if number % 16 == 0:
            judge = dspy.Evaluate(devset=[dspy.Example(query="q").with_inputs("query")], metric=lambda *_: 1.0)
            judge(tracked, callback_metadata=metadata)
    return answers


def put_into_models(server: OpenAIServer, secrets: list[Secret]) -> None:
    """Ask for models named after secrets, which the server says have served."""
    for secret in named(secrets)[::9]:
        lm = scenario.make_lm(server, f"openai/ft:{secret.values[0]}")
        with dspy.context(lm=lm):
            dspy.Predict("question -> answer")(question="q")


def put_into_scores(observer: Observer, answers: list[Any], secrets: list[Secret]) -> dict[str, bytes]:
    """Score answers in words that are secret; returns what their references say."""
    refs = [observer.call_ref(answer) for answer in answers]
    for ref, secret in zip(itertools.cycle(refs), named(secrets), strict=False):
        observer.score(ref, 0.5, source=secret.values[0], score_id=f"by {secret.values[0]}")
    return {"references": b"\n".join(map(outlets.reference, refs))}


@pytest.mark.parametrize("mode", ["redacted", "raw"])
def test_nothing_leaves_through_configure(mode: Any, lines: outlets.Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our OTLP pipeline, log lines, metrics, readers and references are free of them, also when we fail ourselves."""
    forbidden = SECRETS if mode == "redacted" else CREDENTIALS
    registry, capture = CollectorRegistry(), Capture()
    with outlets.Collector() as collector, OpenAIServer() as server:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", f"{collector.url}/v1/metrics")
        observer = dspy_observe.configure(
            service="leak-test",
            metrics=Metrics(port=0, collector_registry=registry, max_label_values=10_000),
            tracing=Tracing(capture_content=mode, max_content_chars=10_000_000, adapter_spans=True),
            logs=Logs(logger=lines.structlog),
            cost=Cost(price=_price),
            extra=[Broken(forbidden), LogCallback(), capture],
        )
        with observer:
            tracked = itertools.cycle(map(given, named(forbidden)))
            seen = scenario.run(
                server,
                scenario.slices(SECRETS, ROUNDS),
                lambda program: observer.track(program, name=next(tracked), version=next(tracked)),
            )
            put_into_models(server, forbidden)
            answers = put_into_names(forbidden, observer.happened)
            references = put_into_scores(observer, [*seen.predictions[:1], *answers], forbidden)
            found = outlets.pages(registry, observer.metrics_url)
            observer.flush(30)
        found |= references | lines.written() | outlets.told(capture)
        found |= {path: collector.bytes_at(path) for path in ("/v1/traces", "/v1/metrics")}
    _assert_worth_searching(found, mode)
    assert len(seen.errors) >= ROUNDS * 5
    assert b"AdapterParseError" in found["/v1/traces"]
    assert b"Fault <" in found["logging"], "our own warnings were not seen"
    found_out = outlets.leaks(found, forbidden)
    assert not found_out, outlets.listed(found_out)


def _assert_worth_searching(found: dict[str, bytes], mode: str) -> None:
    """A search in empty outlets would prove nothing: each holds what it is there for."""
    assert all(found.values()), [name for name, body in found.items() if not body]
    spans = found.get("/v1/traces") or found["spans"]
    for text in (b"Write to", b"upstream said", b"gen_ai.input.messages", b"exception.message", b"<SECRET>"):
        assert text in spans, text
    assert (b"<EMAIL>" in spans) is (mode == "redacted") or mode == "raw"
    if mode == "raw":
        assert b"jo.example0@mail0.example.com" in spans, "raw content was not captured"
    assert len(SECRETS) > 200


def test_nothing_leaves_when_a_detector_fails(lines: outlets.Lines) -> None:
    """What cannot be redacted is dropped, and neither its text nor its detector's complaint is seen anywhere."""
    registry, capture, providers = CollectorRegistry(), Capture(), outlets.Providers()
    with (
        OpenAIServer() as server,
        dspy_observe.configure(
            metrics=Metrics(collector_registry=registry),
            tracing=Tracing(
                tracer_provider=providers.tracer_provider,
                meter_provider=providers.meter_provider,
                capture_content="redacted",
                max_content_chars=10_000_000,
            ),
            redaction=Redaction(detectors=(*dspy_observe.redaction.DEFAULT_DETECTORS, _custom)),
            logs=Logs(logger=lines.structlog),
            extra=[capture],
        ),
    ):
        scenario.run(server, scenario.slices(SECRETS, ROUNDS)[:2])
    found = providers.exported() | lines.written() | outlets.told(capture) | outlets.pages(registry)
    assert b"REDACTION_ERROR:ValueError" in found["spans"]
    assert b"redaction.detector" in found["logging"]
    found_out = outlets.leaks(found, SECRETS)
    assert not found_out, outlets.listed(found_out)


def _orders() -> list[tuple[str, ...]]:
    """Every order of those whose order could matter, the others around them."""
    return list(itertools.permutations(("otel", "redaction", "logs", "reader")))


@pytest.mark.parametrize("order", _orders(), ids="-".join)
def test_nothing_leaves_in_any_order(order: tuple[str, ...], lines: outlets.Lines) -> None:
    """Hand-listed callbacks in any order, with an application's own providers, let nothing out."""
    registry, capture, providers = CollectorRegistry(), Capture(), outlets.Providers()
    metrics = Metrics(collector_registry=registry, max_label_values=10_000)
    tracing = Tracing(
        tracer_provider=providers.tracer_provider,
        meter_provider=providers.meter_provider,
        capture_content="redacted",
        max_content_chars=10_000_000,
    )
    turn = _orders().index(order)
    standard = LogCallback(Logs(logger=logging.getLogger("dspy_observe.calls")))
    by_name = {
        "otel": [OTelCallback(tracing)],
        "redaction": [RedactionCallback(metrics=metrics)],
        "logs": [LogCallback(Logs(logger=lines.structlog)), standard],
        "reader": [capture],
    }
    ordered = [callback for name in order for callback in by_name[name]]
    others = [LatencyCallback(metrics), CostCallback(metrics=metrics), RegistryEventCallback(metrics)]
    ordered[turn % 5 : turn % 5] = others
    texts = scenario.slices(SECRETS, 24)[turn : turn + 1]
    readers = [callback for callback in ordered if isinstance(callback, RecordCallback)]

    def happened(event: RegistryEvent) -> None:
        for reader in readers:
            if reader is not capture:  # who subscribes by hand gets the registry's own event
                reader.happened(event)

    with OpenAIServer() as server, dspy.context(callbacks=ordered):
        scenario.run(server, texts)
        put_into_names(SECRETS[turn::24], happened)
        for secret in named(SECRETS[turn::24]):
            value, name = secret.values[0], given(secret)
            for reader in (callback for callback in readers if callback is not capture):
                reader.scored(Score("0" * 32, 0.5, value, name, name, "stable", value, 1.7e9, None))
    found = providers.exported() | lines.written() | outlets.told(capture) | outlets.pages(registry)
    assert b"gen_ai.input.messages" in found["spans"]
    found_out = outlets.leaks(found, SECRETS)
    assert not found_out, outlets.listed(found_out)


def test_without_a_redactor_no_content_leaves(lines: outlets.Lines) -> None:
    """Redacted content that nobody redacts is left out, and said so once."""
    capture, providers = Capture(), outlets.Providers()
    tracing = Tracing(tracer_provider=providers.tracer_provider, capture_content="redacted")
    with OpenAIServer() as server, dspy.context(callbacks=[OTelCallback(tracing), capture]):
        scenario.run(server, scenario.slices(SECRETS, ROUNDS)[:2])
    found = providers.exported() | outlets.told(capture)
    assert b"gen_ai.input.messages" not in found["spans"]
    found_out = outlets.leaks(found, SECRETS)
    assert not found_out, outlets.listed(found_out)


def test_the_search_finds_what_leaks() -> None:
    """Content that is exported as it is would be found: the search knows every planted value."""
    providers = outlets.Providers()
    tracer = providers.tracer_provider.get_tracer("application")
    for secret in SECRETS:
        tracer.start_span("s", attributes={"input": secret.text}).end()
    found = outlets.leaks(providers.exported(), SECRETS)
    missed = {secret.kind for secret in SECRETS} - {text.rpartition(" in spans")[0] for text in found}
    assert not missed
