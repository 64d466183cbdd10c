"""What users type: public names, keyword-only options, errors that name field and fix, and quick imports."""

from __future__ import annotations

import dataclasses
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import dspy_observe
from dspy_observe import (
    ConfigurationError,
    Cost,
    CostCallback,
    LatencyCallback,
    LogCallback,
    Logs,
    Metrics,
    ObserveError,
    OTelCallback,
    RecordCallback,
    Redaction,
    RedactionCallback,
    RegistryEventCallback,
    Tracing,
    UnknownCallError,
)

NAMES = {
    "__version__", "CallRecord", "CallStart", "CallbackGroup", "ConfigurationError", "Cost", "CostCallback",
    "LatencyCallback", "LiveProgram", "LogCallback", "Logs", "Metrics", "NotDeployedError", "OTelCallback",
    "ObserveError", "ObservedEmbedder", "Observer", "RecordCallback", "Redaction", "RedactionCallback", "RegistryEvent",
    "RegistryEventCallback", "Router", "Score", "Shadow", "Tracing", "UnknownCallError", "Usage", "configure",
}  # fmt: skip


def test_the_public_names_are_there_and_can_be_had() -> None:
    """Users import them from the top; removing one is a breaking change."""
    assert set(dspy_observe.__all__) >= NAMES
    for name in dspy_observe.__all__:
        assert getattr(dspy_observe, name) is not None
        assert name in dir(dspy_observe)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = dspy_observe.no_such_name


def test_configure_takes_keywords_only_and_nothing_is_required() -> None:
    """In the documented order, each with a default."""
    parameters = inspect.signature(dspy_observe.configure).parameters
    assert list(parameters) == ["service", "metrics", "tracing", "logs", "redaction", "cost", "registry", "extra"]
    assert {p.kind for p in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    assert all(p.default is not inspect.Parameter.empty for p in parameters.values())


@pytest.mark.parametrize("options", [Metrics, Tracing, Logs, Redaction, Cost])
def test_options_take_keywords_only(options: Any) -> None:
    """And are frozen: what was checked stays as it was."""
    assert {p.kind for p in inspect.signature(options).parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    made = options()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, dataclasses.fields(made)[0].name, 1)


@pytest.mark.parametrize(
    "callback",
    [LatencyCallback, CostCallback, OTelCallback, LogCallback, RedactionCallback, RegistryEventCallback],
)
def test_every_callback_stands_alone(callback: Any) -> None:
    """Without an argument."""
    assert isinstance(callback(), RecordCallback)


def test_errors_have_common_bases() -> None:
    """One ``except`` catches all of ours; a bad option is a ValueError, an unknown call a LookupError."""
    assert issubclass(ConfigurationError, ObserveError)
    assert issubclass(ConfigurationError, ValueError)
    assert issubclass(UnknownCallError, ObserveError)
    assert issubclass(UnknownCallError, LookupError)


class NotASink:
    """Something else."""


BAD: tuple[tuple[str, Any, str], ...] = (
    ("Metrics.port", lambda: Metrics(port=70_000), "0 to 65535"),
    ("Metrics.port", lambda: Metrics(port=-1), "0 to 65535"),
    ("Metrics.port", lambda: Metrics(port="9464"), "0 to 65535"),
    ("Metrics.port", lambda: Metrics(port=True), "0 to 65535"),
    ("Metrics.host", lambda: Metrics(host=""), "127.0.0.1"),
    ("Metrics.host", lambda: Metrics(host=None), "127.0.0.1"),
    ("Metrics.collector_registry", lambda: Metrics(collector_registry=NotASink()), "CollectorRegistry"),
    ("Metrics.latency_buckets_s", lambda: Metrics(latency_buckets_s=()), "rising"),
    ("Metrics.latency_buckets_s", lambda: Metrics(latency_buckets_s=(1.0, 1.0)), "rising"),
    ("Metrics.latency_buckets_s", lambda: Metrics(latency_buckets_s=(0.0, 1.0)), "positive"),
    ("Metrics.latency_buckets_s", lambda: Metrics(latency_buckets_s=("a", "b")), "numbers"),
    ("Metrics.latency_buckets_s", lambda: Metrics(latency_buckets_s=5), "rising"),
    ("Metrics.latency_buckets_s", lambda: Metrics(latency_buckets_s=(float("nan"),)), "rising"),
    ("Metrics.max_label_values", lambda: Metrics(max_label_values=0), "1 or more"),
    ("Metrics.max_label_values", lambda: Metrics(max_label_values="many"), "1 or more"),
    ("Metrics.max_label_values", lambda: Metrics(max_label_values=True), "1 or more"),
    ("Tracing.capture_content", lambda: Tracing(capture_content="all"), "none, redacted, raw"),
    ("Tracing.capture_content", lambda: Tracing(capture_content=True), "none, redacted, raw"),
    ("Tracing.capture_content", lambda: Tracing(capture_content=["raw"]), "none, redacted, raw"),
    ("Tracing.max_content_chars", lambda: Tracing(max_content_chars=0), "1 or more"),
    ("Tracing.max_content_chars", lambda: Tracing(max_content_chars=True), "1 or more"),
    ("Tracing.tracer_provider", lambda: Tracing(tracer_provider=NotASink()), "provider"),
    ("Tracing.meter_provider", lambda: Tracing(meter_provider=NotASink()), "provider"),
    ("Logs.level", lambda: Logs(level="loud"), "info"),
    ("Logs.level", lambda: Logs(level=None), "info"),
    ("Logs.level", lambda: Logs(level=["info"]), "info"),
    ("Logs.logger", lambda: Logs(logger=NotASink()), "logger"),
    ("Cost.price", lambda: Cost(price=3.5), "function"),
    ("Redaction.replacement", lambda: Redaction(replacement=""), "<{entity}>"),
    ("service", lambda: dspy_observe.configure(service=""), "support-bot"),
    ("service", lambda: dspy_observe.configure(service=5), "support-bot"),
    ("metrics", lambda: dspy_observe.configure(metrics=True), "False"),
    ("metrics", lambda: dspy_observe.configure(metrics=9464), "Metrics(...)"),
    ("tracing", lambda: dspy_observe.configure(tracing="on"), "Tracing(...)"),
    ("logs", lambda: dspy_observe.configure(logs=Metrics()), "Logs(...)"),
    ("redaction", lambda: dspy_observe.configure(redaction={}), "Redaction(...)"),
    ("cost", lambda: dspy_observe.configure(cost=lambda record: 1), "Cost(...)"),
    ("registry", lambda: dspy_observe.configure(registry="./registry"), "SignatureRegistry('./registry')"),
    ("registry", lambda: dspy_observe.configure(registry=5), "Pass a registry"),
    ("extra", lambda: dspy_observe.configure(extra=[NotASink()]), "RecordCallback"),
    ("extra", lambda: dspy_observe.configure(extra=[LatencyCallback]), "RecordCallback"),
    ("extra", lambda: dspy_observe.configure(extra=NotASink()), "RecordCallback"),
    ("extra", lambda: dspy_observe.configure(extra=None), "RecordCallback"),
    ("CallbackGroup", lambda: dspy_observe.CallbackGroup(NotASink()), "dspy.configure"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("field", "make", "fix"), BAD, ids=[f"{number}-{field}" for number, (field, *_) in enumerate(BAD)]
)
def test_a_bad_argument_names_its_field_and_the_fix(field: str, make: Any, fix: str) -> None:
    """And leaves nothing installed."""
    import dspy

    with pytest.raises(ConfigurationError) as caught:
        make()
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")
    assert fix in caught.value.fix
    assert list(dspy.settings.callbacks) == []


VARIABLES: tuple[tuple[str, str, Any, str], ...] = (
    ("DSPY_OBSERVE_METRICS_PORT", "web", Metrics, "DSPY_OBSERVE_METRICS_PORT"),
    ("DSPY_OBSERVE_METRICS_PORT", "70000", Metrics, "DSPY_OBSERVE_METRICS_PORT"),
    ("DSPY_OBSERVE_METRICS_LATENCY_BUCKETS_S", "fast,slow", Metrics, "DSPY_OBSERVE_METRICS_LATENCY_BUCKETS_S"),
    ("DSPY_OBSERVE_METRICS_LATENCY_BUCKETS_S", "2,1", Metrics, "Metrics.latency_buckets_s"),
    ("DSPY_OBSERVE_METRICS_MAX_LABEL_VALUES", "all", Metrics, "DSPY_OBSERVE_METRICS_MAX_LABEL_VALUES"),
    ("DSPY_OBSERVE_METRICS_MAX_LABEL_VALUES", "0", Metrics, "DSPY_OBSERVE_METRICS_MAX_LABEL_VALUES"),
    ("DSPY_OBSERVE_TRACING_CAPTURE_CONTENT", "all", Tracing, "DSPY_OBSERVE_TRACING_CAPTURE_CONTENT"),
    ("DSPY_OBSERVE_TRACING_MAX_CONTENT_CHARS", "8k", Tracing, "DSPY_OBSERVE_TRACING_MAX_CONTENT_CHARS"),
    ("DSPY_OBSERVE_TRACING_MAX_CONTENT_CHARS", "0", Tracing, "DSPY_OBSERVE_TRACING_MAX_CONTENT_CHARS"),
    ("DSPY_OBSERVE_TRACING_ADAPTER_SPANS", "maybe", Tracing, "DSPY_OBSERVE_TRACING_ADAPTER_SPANS"),
    ("DSPY_OBSERVE_LOGS_LEVEL", "loud", Logs, "DSPY_OBSERVE_LOGS_LEVEL"),
    ("DSPY_OBSERVE_COST_METER_LITELLM_STREAMS", "maybe", Cost, "DSPY_OBSERVE_COST_METER_LITELLM_STREAMS"),
)


@pytest.mark.parametrize(("variable", "text", "options", "field"), VARIABLES)
def test_a_bad_variable_names_itself_and_the_fix(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, options: Any, field: str
) -> None:
    """In the options and in ``configure()``, which installs nothing then."""
    import dspy

    monkeypatch.setenv(variable, text)
    for make in (options, dspy_observe.configure):
        with pytest.raises(ConfigurationError) as caught:
            make()
        assert caught.value.field == field
        assert caught.value.fix
    assert list(dspy.settings.callbacks) == []


@pytest.mark.parametrize(
    ("variable", "text", "options", "field", "value"),
    [
        ("DSPY_OBSERVE_METRICS_PORT", "9464", Metrics, "port", 9464),
        ("DSPY_OBSERVE_METRICS_HOST", "0.0.0.0", Metrics, "host", "0.0.0.0"),
        ("DSPY_OBSERVE_METRICS_LATENCY_BUCKETS_S", "0.5, 1", Metrics, "latency_buckets_s", (0.5, 1.0)),
        ("DSPY_OBSERVE_METRICS_MAX_LABEL_VALUES", "7", Metrics, "max_label_values", 7),
        ("DSPY_OBSERVE_TRACING_CAPTURE_CONTENT", "redacted", Tracing, "capture_content", "redacted"),
        ("DSPY_OBSERVE_TRACING_MAX_CONTENT_CHARS", "99", Tracing, "max_content_chars", 99),
        ("DSPY_OBSERVE_TRACING_ADAPTER_SPANS", "yes", Tracing, "adapter_spans", True),
        ("DSPY_OBSERVE_LOGS_LEVEL", "debug", Logs, "level", "debug"),
        ("DSPY_OBSERVE_COST_METER_LITELLM_STREAMS", "on", Cost, "meter_litellm_streams", True),
    ],
)
def test_every_field_that_is_data_has_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, options: Any, field: str, value: Any
) -> None:
    """``DSPY_OBSERVE_<ROOM>_<FIELD>``; an argument wins over it."""
    default = getattr(options(), field)
    monkeypatch.setenv(variable, text)
    assert getattr(options(), field) == value != default
    assert getattr(options(**{field: default}), field) == default


HEAVY = ("dspy", "litellm", "numpy")
LIGHT_MODULES = (
    "dspy_observe", "dspy_observe.errors", "dspy_observe.records", "dspy_observe.conventions", "dspy_observe.safety",
    "dspy_observe.environment", "dspy_observe.redaction", "dspy_observe.metrics", "dspy_observe.cli",
)  # fmt: skip


def test_light_modules_do_not_import_dspy() -> None:
    """The command line, the redactor and the registry start without its seconds; each module is imported in turn."""
    program = f"""
import importlib, json, sys
found = {{}}
for name in {LIGHT_MODULES!r}:
    importlib.import_module(name)
    found[name] = [heavy for heavy in {HEAVY!r} if heavy in sys.modules]
import dspy_observe
for name in ("Metrics", "Redaction", "ConfigurationError", "CallRecord", "Usage"):
    getattr(dspy_observe, name)
found["names"] = [heavy for heavy in {HEAVY!r} if heavy in sys.modules]
print(json.dumps(found))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert json.loads(done.stdout) == {name: [] for name in (*LIGHT_MODULES, "names")}


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: Metrics(max_label_values="5"), "'5' is no whole number"),
        (lambda: Metrics(latency_buckets_s="x"), "'x' is no list of numbers"),
        (lambda: Metrics(latency_buckets_s=[]), "[] is empty"),
        (lambda: Metrics(latency_buckets_s=[-1.0, 2.0]), "[-1.0, 2.0] is not all above 0"),
        (lambda: Metrics(latency_buckets_s=[2, 1]), "[2, 1] does not rise"),
        (lambda: Tracing(max_content_chars="5"), "'5' is no whole number"),
        (lambda: Redaction(replacement=5), "5 is no text"),
        (lambda: Redaction(max_chars="500"), "'500' is no whole number"),
    ],
)
def test_a_wrong_type_is_told_from_a_value_out_of_range(make: Any, problem: str) -> None:
    """Whoever passes a text where a number belongs is not told that it is too small."""
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert caught.value.problem == problem
