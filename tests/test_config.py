"""``configure()`` puts one group behind what is there, takes exactly that out again, and scores find their version.

Long: one file holds all tests of one module.
"""

from __future__ import annotations

import base64
import gc
import json
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.utils.callback import BaseCallback
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import REGISTRY, CollectorRegistry

import dspy_observe
from dspy_observe import CallbackGroup, ConfigurationError, Logs, Metrics, Tracing, UnknownCallError, safety
from dspy_observe.metrics import instruments
from dspy_observe.records import RegistryEvent
from dspy_observe.registry import RegistryManager, SignatureRegistry
from dspy_observe.testing import Capture, frozen_clock, offline_lm


class Foreign(BaseCallback):
    """Somebody else's callback."""


class Registry:
    """A registry of program versions, as far as an observer needs it."""

    def __init__(self) -> None:
        self.listeners: list[Callable[[RegistryEvent], None]] = []

    def subscribe(self, pattern: str, listener: Callable[[RegistryEvent], None]) -> Callable[[], None]:
        """Keep a listener."""
        assert pattern == "*"
        self.listeners.append(listener)
        return lambda: self.listeners.remove(listener)


@pytest.fixture
def registry() -> CollectorRegistry:
    """A registry of the test's own."""
    return CollectorRegistry()


@pytest.fixture
def quiet(registry: CollectorRegistry) -> dict[str, Any]:
    """Options that write nowhere but into that registry."""
    return {"metrics": Metrics(collector_registry=registry), "tracing": False, "logs": False}


def answered() -> Any:
    """The answer of a program run."""
    with dspy.context(lm=offline_lm({"answer": "42"})):
        return dspy.Predict("question -> answer")(question="why?")


def samples(registry: CollectorRegistry, name: str) -> list[Any]:
    """The samples of one name."""
    return [sample for family in registry.collect() for sample in family.samples if sample.name == name]


@pytest.fixture(autouse=True)
def closed_afterwards() -> Iterator[None]:
    """No observer runs on into the next test."""
    yield
    for _, observer in list(dspy_observe.config._running):
        observer.close()


def ask(program: Any = None) -> Any:
    """One program run."""
    with dspy.context(lm=offline_lm({"answer": "42"})):
        return (program or dspy.Predict("question -> answer"))(question="?")


# --- installing and removing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_manager", [True, False])
def test_one_group_is_appended_and_exactly_that_is_removed(quiet: dict[str, Any], as_manager: bool) -> None:
    """What others listed before and since stays, in its order."""
    before, after, extra = Foreign(), Foreign(), Foreign()
    dspy.configure(callbacks=[before])
    observer = dspy_observe.configure(**quiet, extra=[extra, Capture()])
    assert observer.callbacks[1:] == (extra,)
    assert isinstance(observer.callbacks[0], CallbackGroup)
    assert dspy.settings.callbacks == [before, *observer.callbacks]
    dspy.configure(callbacks=[*dspy.settings.callbacks, after])
    if as_manager:
        with observer as same:
            assert same is observer
    else:
        observer.close()
    assert dspy.settings.callbacks == [before, after]
    observer.close()
    assert dspy.settings.callbacks == [before, after]


@pytest.mark.parametrize("present", [None, (), []])
def test_an_odd_list_of_callbacks_is_mended(quiet: dict[str, Any], present: Any) -> None:
    """DSPy adds lists on every call: a tuple or ``None`` would break the program."""
    dspy.configure(callbacks=present)
    with dspy_observe.configure(**quiet) as observer:
        assert dspy.settings.callbacks == list(observer.callbacks)
        assert ask().answer == "42"


def test_the_same_arguments_give_the_same_observer_and_others_replace_it(registry: CollectorRegistry) -> None:
    """Never two groups in DSPy's list."""
    metrics = Metrics(collector_registry=registry)
    first = dspy_observe.configure(metrics=metrics, tracing=False, logs=False)
    assert dspy_observe.configure(metrics=metrics, tracing=False, logs=False) is first
    second = dspy_observe.configure(service="other", metrics=metrics, tracing=False, logs=False)
    assert second is not first
    assert dspy.settings.callbacks == list(second.callbacks)
    second.close()
    assert dspy_observe.configure(metrics=metrics, tracing=False, logs=False) is not first


def test_configuring_again_brings_back_what_somebody_took_out(quiet: dict[str, Any]) -> None:
    """``dspy.configure(callbacks=...)`` replaces the list; the same ``configure()`` mends it, once."""
    observer = dspy_observe.configure(**quiet)
    theirs = Foreign()
    dspy.configure(callbacks=[theirs])
    for _ in range(2):
        assert dspy_observe.configure(**quiet) is observer
        assert dspy.settings.callbacks == [theirs, *observer.callbacks]


def test_a_thread_that_does_not_own_dspys_settings_may_configure(quiet: dict[str, Any]) -> None:
    """A web server's start-up hook runs elsewhere."""
    dspy.configure(lm=offline_lm({"answer": "42"}))
    made: list[Any] = []

    def start() -> None:
        made.append(dspy_observe.configure(**quiet))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert dspy.settings.callbacks == list(made[0].callbacks)


def test_rooms_can_be_left_out(registry: CollectorRegistry) -> None:
    """Each room is the callback of its name; cost needs metrics to count in."""
    metrics = Metrics(collector_registry=registry)

    def names(**rooms: Any) -> list[str]:
        with dspy_observe.configure(**{"metrics": metrics, **rooms}) as observer:
            return [type(reader).__name__ for reader in observer.callbacks[0].readers]

    every = [
        "OTelCallback", "LatencyCallback", "CostCallback", "RegistryEventCallback", "RedactionCallback", "LogCallback",
    ]  # fmt: skip
    assert names() == every
    assert names(tracing=False) == every[1:]
    assert names(cost=False) == [name for name in every if name != "CostCallback"]
    assert names(redaction=False, logs=False) == every[:4]
    assert names(metrics=False) == ["OTelCallback", "RedactionCallback", "LogCallback"]
    nothing = {"metrics": False, "tracing": False, "logs": False, "redaction": False}
    assert names(**nothing, cost=False) == []
    with dspy_observe.configure(**nothing, cost=False):
        assert ask().answer == "42"


def test_the_port_is_served_until_close(registry: CollectorRegistry) -> None:
    """And a port that is taken installs nothing."""
    metrics = Metrics(port=0, collector_registry=registry)
    with dspy_observe.configure(metrics=metrics, tracing=False, logs=False) as observer:
        assert observer.metrics_url is not None
        ask()
        page = urllib.request.urlopen(observer.metrics_url, timeout=10).read().decode()
        assert 'dspy_requests_total{model="offline/model",program="Predict",status="ok",version="unknown"} 1.0' in page
        port = int(observer.metrics_url.split(":")[2].split("/")[0])
        taken = Metrics(port=port, collector_registry=CollectorRegistry())
        endpoint_of_others = observer.callbacks
        with pytest.raises(ConfigurationError, match=str(port)) as caught:
            dspy_observe.metrics.serve(taken)
        assert caught.value.field == "Metrics.port"
        assert dspy.settings.callbacks == list(endpoint_of_others)
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10)


def test_a_configure_that_fails_leaves_nothing_behind(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No callback, no running observer."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier pigeon")
    with pytest.raises(ConfigurationError, match="OTEL_EXPORTER_OTLP_PROTOCOL"):
        dspy_observe.configure(metrics=Metrics(collector_registry=registry), logs=False)
    assert dspy.settings.callbacks == []
    assert dspy_observe.config._running == []


def test_the_ceiling_of_a_later_configure_holds(registry: CollectorRegistry, caplog: pytest.LogCaptureFixture) -> None:
    """Buckets cannot be changed any more, which is said."""
    dspy_observe.configure(metrics=Metrics(collector_registry=registry), tracing=False, logs=False).close()
    assert not caplog.records
    later = Metrics(collector_registry=registry, max_label_values=1, latency_buckets_s=(1.0, 2.0))
    with dspy_observe.configure(metrics=later, tracing=False, logs=False) as observer:
        for source in ("user", "judge"):
            observer.score(observer.call_ref(answered()), 1, source=source)
    assert "latency_buckets_s" in caplog.text
    counted = {sample.labels["source"] for sample in samples(registry, "dspy_score_count")}
    assert counted == {"user", "other"}


def test_what_names_no_metrics_takes_those_of_configure_while_it_runs(registry: CollectorRegistry) -> None:
    """A live program or a monitor beside it is scraped with the rest."""
    with dspy_observe.configure(metrics=Metrics(collector_registry=registry), tracing=False, logs=False):
        assert instruments() is instruments(Metrics(collector_registry=registry))
    assert instruments() is instruments(Metrics(collector_registry=REGISTRY))


@pytest.mark.parametrize("managed", [True, False])
def test_what_is_deployed_already_is_shown(registry: CollectorRegistry, tmp_path: Path, managed: bool) -> None:
    """Not only from the next deployment on, which then takes its place."""
    versions = SignatureRegistry(tmp_path / "registry")
    for name in ("v1", "v2"):
        versions.register_version("qa", {"prompt": name}, version=name)
    versions.deploy_version("qa", "v1")
    source: Any = RegistryManager(versions) if managed else versions
    with dspy_observe.configure(
        metrics=Metrics(collector_registry=registry), tracing=False, logs=False, registry=source
    ):
        shown = {"program": "qa", "environment": "production"}
        assert registry.get_sample_value("dspy_deployed_version_info", {**shown, "version": "v1"}) == 1
        pointer = versions.pointers("qa")[0]
        assert registry.get_sample_value("dspy_deployment_timestamp_seconds", shown) == pointer.at.timestamp()
        versions.deploy_version("qa", "v2")
        assert registry.get_sample_value("dspy_deployed_version_info", {**shown, "version": "v2"}) == 1
        assert registry.get_sample_value("dspy_deployed_version_info", {**shown, "version": "v1"}) is None


def test_a_registry_that_cannot_be_subscribed_to_leaves_nothing_behind(registry: CollectorRegistry) -> None:
    """No callback, no running observer, and the port is free again."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]

    def scrape() -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
            return int(page.status)

    class Unreachable(Registry):
        def subscribe(self, pattern: str, listener: Callable[[RegistryEvent], None]) -> Callable[[], None]:
            assert scrape() == 200
            raise OSError("unreachable")

    metrics = Metrics(port=port, collector_registry=registry)
    with pytest.raises(OSError, match="unreachable"):
        dspy_observe.configure(metrics=metrics, tracing=False, logs=False, registry=Unreachable())
    with pytest.raises(OSError, match="refused"):
        scrape()
    assert dspy.settings.callbacks == []
    assert dspy_observe.config._running == []


@pytest.mark.parametrize("metrics", [lambda: False, lambda: Metrics(collector_registry=CollectorRegistry())])
def test_configuring_and_closing_again_and_again_keeps_nothing(metrics: Any) -> None:
    """What counted the errors of closed observers goes with the next one."""

    def listeners() -> int:
        with dspy_observe.configure(metrics=metrics(), tracing=False, logs=False):
            pass
        gc.collect()
        safety.on_error(lambda *_: None)()
        return len(safety._listeners)

    before = listeners()
    assert max(listeners() for _ in range(5)) <= before


def test_close_ends_the_subscription_and_goes_on_past_a_failing_part(
    quiet: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events reach every reader until then."""
    monkeypatch.delenv("DSPY_OBSERVE_STRICT", raising=False)
    source, capture = Registry(), Capture()
    observer = dspy_observe.configure(**quiet, registry=source, extra=[capture])
    event = RegistryEvent("dspy.registry.export", "qa", 1.0)
    for listener in source.listeners:
        listener(event)
    observer.happened(event)
    assert capture.events == [event, event]

    def fail() -> None:
        raise OSError

    before = safety.counts().get("observer.close", 0)
    observer._stops.append(fail)
    observer.close()
    assert source.listeners == []
    assert safety.counts()["observer.close"] == before + 1


def test_flush_says_whether_everything_went_out(registry: CollectorRegistry) -> None:
    """A held logger keeps it waiting no longer than it was told to wait."""
    free = threading.Event()

    class Held:
        """A logger that is held."""

        def info(self, *_: Any, **__: Any) -> None:
            free.wait(30)

        warning = info

    metrics = Metrics(collector_registry=registry)
    observer = dspy_observe.configure(metrics=metrics, tracing=False, logs=Logs(logger=Held()))
    ask()
    assert observer.flush(0.01) is False
    free.set()
    assert observer.flush(30.0) is True
    observer.close()


# --- tracking and scoring --------------------------------------------------------------------------------------------


@pytest.fixture
def capture() -> Capture:
    """What the observer's readers are told."""
    return Capture()


@pytest.fixture
def observer(quiet: dict[str, Any], capture: Capture) -> dspy_observe.Observer:
    """An observer with that reader."""
    return dspy_observe.configure(**quiet, extra=[capture])


def test_track_returns_the_same_instance_and_names_its_calls(observer: dspy_observe.Observer, capture: Capture) -> None:
    """All calls below it, too."""
    program = dspy.Predict("question -> answer")
    assert observer.track(program, name="qa", version="v1", role="canary") is program
    ask(program)
    assert {(r.program, r.version, r.role) for r in capture.records} == {("qa", "v1", "canary")}
    for arguments in ({"name": ""}, {"name": "qa", "version": 3}, {"name": "qa", "role": "king"}):
        with pytest.raises(ConfigurationError) as caught:
            observer.track(program, **arguments)  # type: ignore[arg-type]
        assert caught.value.field in arguments


def test_a_score_is_booked_on_the_version_that_answered(
    observer: dspy_observe.Observer, capture: Capture, registry: CollectorRegistry
) -> None:
    """Although another one is deployed by now, by reference and by prediction."""
    program = observer.track(dspy.Predict("question -> answer"), name="qa", version="v1")
    prediction = ask(program)
    ref = observer.call_ref(prediction)
    observer.track(program, name="qa", version="v2", role="canary")
    with frozen_clock(5.0):
        assert observer.score(ref, 1, source="user")
        assert observer.score(prediction, False, source="judge", score_id="j1")
    root = capture.records[-1]
    assert [(s.call_id, s.program, s.version, s.role, s.source, s.value, s.at) for s in capture.scores] == [
        (root.call_id, "qa", "v1", "stable", "user", 1.0, 5.0),
        (root.call_id, "qa", "v1", "stable", "judge", 0.0, 5.0),
    ]
    labels = {"program": "qa", "version": "v1", "role": "stable", "source": "user"}
    assert registry.get_sample_value("dspy_score_count", labels) == 1
    assert registry.get_sample_value("dspy_score_count", {**labels, "version": "v2"}) is None


def test_a_score_carries_the_trace_of_its_answer(registry: CollectorRegistry, capture: Capture) -> None:
    """So that a bad answer is found again."""
    observer = dspy_observe.configure(
        metrics=Metrics(collector_registry=registry), tracing=Tracing(tracer_provider=TracerProvider()), logs=False,
        extra=[capture],
    )  # fmt: skip
    observer.score(observer.call_ref(ask()), 0.5, source="user")
    assert capture.scores[0].trace_id == capture.records[-1].trace_id is not None


def test_the_same_score_id_counts_once(observer: dspy_observe.Observer, capture: Capture) -> None:
    """A queue may deliver twice; without an id every score counts."""
    ref = observer.call_ref(ask())
    assert [observer.score(ref, 1.0, source="user", score_id="s1") for _ in range(3)] == [True, False, False]
    assert observer.score(ref, 1.0, source="user", score_id="s2")
    assert observer.score(ref, 1.0, source="user")
    assert observer.score(ref, 1.0, source="user")
    assert [score.score_id for score in capture.scores] == ["s1", "s2", None, None]


def test_a_refused_score_does_not_use_up_its_id(observer: dspy_observe.Observer) -> None:
    """The corrected one counts."""
    ref = observer.call_ref(ask())
    with pytest.raises(ConfigurationError):
        observer.score(ref, 7, source="user", score_id="s1")
    with pytest.raises(UnknownCallError):
        observer.score("nonsense", 1.0, source="user", score_id="s1")
    assert observer.score(ref, 0.7, source="user", score_id="s1")


def test_equal_ids_from_many_threads_count_once(observer: dspy_observe.Observer, capture: Capture) -> None:
    """Sixteen deliveries at the same moment."""
    ref, together = observer.call_ref(ask()), threading.Barrier(16)
    booked: list[bool] = []

    def deliver() -> None:
        together.wait(20)
        booked.append(observer.score(ref, 1.0, source="user", score_id="same"))

    threads = [threading.Thread(target=deliver) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(booked) == 1
    assert len(capture.scores) == 1


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf"), "1", None])
def test_a_value_that_is_no_share_is_refused(observer: dspy_observe.Observer, value: Any) -> None:
    """From 0 to 1."""
    with pytest.raises(ConfigurationError, match=r"0\.\.1") as caught:
        observer.score(observer.call_ref(ask()), value, source="user")
    assert caught.value.field == "value"


@pytest.mark.parametrize("source", ["", None, 5])
def test_a_source_is_needed(observer: dspy_observe.Observer, source: Any) -> None:
    """It is a label."""
    with pytest.raises(ConfigurationError) as caught:
        observer.score(observer.call_ref(ask()), 1.0, source=source)
    assert caught.value.field == "source"


def packed(fields: Any) -> str:
    """A reference made by hand."""
    return "call1." + base64.urlsafe_b64encode(json.dumps(fields).encode()).decode().rstrip("=")


GOOD = ["c", "qa", "v1", "stable", None]


@pytest.mark.parametrize(
    "ref",
    [
        "", "call1.", "call2.abc", "call1.!!!", "call1.eyJ9", packed({}), packed(GOOD[:4]), packed([*GOOD, 1]),
        packed(["c", "qa", "v1", "king", None]), packed([1, "qa", "v1", "stable", None]),
        packed(["c", 7, "v1", "stable", None]), packed(["c", "qa", ["v"], "stable", None]), packed(5), packed(None),
        packed(["c", "qa", "v1", ["stable"], None]), packed(["c", "qa", "v1", "stable", 5]), "call1.ünïcode",
        packed([]), "call1.\x00", "call1." + base64.urlsafe_b64encode(b"[" * 90_000).decode(),
        packed({"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}),
    ],
)  # fmt: skip
def test_altered_references_are_refused(observer: dspy_observe.Observer, capture: Capture, ref: str) -> None:
    """With the typed error, whatever is wrong with them."""
    with pytest.raises(UnknownCallError):
        observer.score(ref, 1.0, source="user")
    assert capture.scores == []


def test_a_reference_is_plain_text_that_another_process_can_read(
    observer: dspy_observe.Observer, capture: Capture
) -> None:
    """It holds what is needed, so nothing is looked up."""
    assert observer.score(packed(GOOD), 1.0, source="user")
    ref = observer.call_ref(ask())
    assert ref.isascii()
    assert set(ref).isdisjoint(" +/=&?%")
    assert capture.scores[0].version == "v1"


def test_a_name_that_cannot_be_encoded_can_be_referred_to(observer: dspy_observe.Observer, capture: Capture) -> None:
    """A lone surrogate is a question mark everywhere."""
    program = observer.track(dspy.Predict("question -> answer"), name="q\ud800", version="\ud800")
    assert observer.score(observer.call_ref(ask(program)), 1.0, source="\ud800", score_id="\ud800")
    (score,) = capture.scores
    assert (score.program, score.version, score.source, score.score_id) == ("q?", "?", "?", "?")


@pytest.mark.parametrize("thing", [dspy.Prediction(answer="42"), 5, None, object(), ("a",)])
def test_what_no_program_returned_has_no_reference(observer: dspy_observe.Observer, thing: Any) -> None:
    """An equal prediction is another answer."""
    ask()
    with pytest.raises(UnknownCallError, match=type(thing).__name__):
        observer.call_ref(thing)
    with pytest.raises(UnknownCallError):
        observer.score(thing, 1.0, source="user")


def test_a_misspelled_variable_is_said_at_the_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Otherwise somebody believes for months that content is captured."""
    monkeypatch.setenv("DSPY_OBSERVE_TRACING_CAPTURE_CONTENTS", "redacted")
    dspy_observe.configure(metrics=False).close()
    assert "DSPY_OBSERVE_TRACING_CAPTURE_CONTENTS is set, but there is no such option" in caplog.text


@pytest.mark.parametrize("variable", ["DSPY_OBSERVE_COST_PRICE", "DSPY_OBSERVE_REDACTION_DETECTORS"])
def test_a_variable_for_what_no_text_can_say_points_to_the_code(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variable: str
) -> None:
    """The option exists, so that it is not called misspelled."""
    monkeypatch.setenv(variable, "x")
    dspy_observe.configure(metrics=False).close()
    assert f"{variable} is set, but no text can say" in caplog.text
    assert "set it in code" in caplog.text


@pytest.mark.parametrize("endpoint", ["not an address", "collector:4318", "http://", "http://host:port"])
def test_an_endpoint_that_is_no_address_is_refused(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Spans would only be lost, one batch after the other, where nobody looks."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    with pytest.raises(ConfigurationError, match="OTEL_EXPORTER_OTLP_ENDPOINT"):
        dspy_observe.configure(metrics=False)
