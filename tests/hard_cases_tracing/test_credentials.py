"""Case 36: keys, authorization headers and other credentials leave the process through nothing of ours."""

from __future__ import annotations

import json
import logging
from typing import Any

import dspy
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

import dspy_observe
from dspy_observe.metrics import render
from dspy_observe.openai_server import Failure, OpenAIServer
from dspy_observe.openai_server.replies import error_body
from dspy_observe.testing import Capture

# None of them looks like a key of a known provider: what is removed, is removed because it was handed over as one.
LM_KEY = "correcthorse-lm-key-0001"
CALL_KEY = "correcthorse-call-key-0002"
LM_HEADER = "correcthorse-lm-header-0003"
CALL_HEADER = "correcthorse-call-header-0004"
PLANTED = (LM_KEY, CALL_KEY, LM_HEADER, CALL_HEADER)


class Everything:
    """Every callback, and all that it exports, as text."""

    def __init__(self, mode: Any, caplog: pytest.LogCaptureFixture) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.registry = CollectorRegistry()
        self.capture = Capture()
        self.caplog = caplog
        self.observer = dspy_observe.configure(
            metrics=dspy_observe.Metrics(collector_registry=self.registry),
            tracing=dspy_observe.Tracing(tracer_provider=provider, capture_content=mode, adapter_spans=True),
            logs=dspy_observe.Logs(logger=logging.getLogger("application.calls")),
            extra=[self.capture],
        )

    def exported(self) -> str:
        spans = [span.to_json() for span in self.exporter.get_finished_spans()]
        lines = [record.getMessage() for record in self.caplog.records if record.name.startswith(("dspy_o", "appl"))]
        metrics = render(self.registry, "application/openmetrics-text")[0].decode()
        assert spans
        assert lines
        return "\n".join([*spans, *lines, metrics, repr(self.capture.starts), repr(self.capture.records)])


def received(server: OpenAIServer) -> str:
    """The headers that reached the provider."""
    return json.dumps([dict(request.headers) for request in server.requests])


@pytest.mark.parametrize("mode", ["none", "redacted", "raw"])
@pytest.mark.parametrize("engine", ["lm15", "litellm"])
@pytest.mark.parametrize("is_async", [False, True])
async def test_credentials_of_lm_and_call(
    server: OpenAIServer, caplog: pytest.LogCaptureFixture, mode: str, engine: str, is_async: bool
) -> None:
    """Case 36: keys and headers reach the provider from the LM's and the call's arguments, and nobody else."""
    caplog.set_level(logging.DEBUG, "application.calls")
    settings: dict[str, Any] = {"api_key": LM_KEY}
    call: dict[str, Any] = {"api_key": CALL_KEY}
    if engine == "litellm":  # the native engine refuses headers of one's own
        settings["extra_headers"] = {"X-Extra": f"Bearer {LM_HEADER}"}
        call["extra_headers"] = {"X-Secret-Token": CALL_HEADER}
    lm = dspy.LM("openai/gpt-4o-mini", engine=engine, api_base=server.base_url, cache=False, **settings)
    everything = Everything(mode, caplog)
    with everything.observer, dspy.context(lm=lm):
        predict = dspy.Predict("question -> answer")
        for config in ({}, call):
            if is_async:
                await predict.acall(question="why?", config=config)
                await lm.acall("a bare prompt", **config)
            else:
                predict(question="why?", config=config)
                lm("a bare prompt", **config)
    for planted in PLANTED if engine == "litellm" else (LM_KEY, CALL_KEY):
        assert planted in received(server), "the provider did not get it, so that this test proves nothing"
        assert planted not in everything.exported()


@pytest.mark.parametrize("mode", ["none", "redacted", "raw"])
@pytest.mark.parametrize("engine", ["lm15", "litellm"])
def test_a_provider_that_quotes_the_key(
    server: OpenAIServer, caplog: pytest.LogCaptureFixture, mode: str, engine: str
) -> None:
    """Case 36: an error text that repeats the key is exported without it."""
    caplog.set_level(logging.DEBUG, "application.calls")
    server.script([Failure(401, error_body(401, f"Incorrect API key provided: {LM_KEY}."))] * 3)
    lm = dspy.LM(
        "openai/gpt-4o-mini", engine=engine, api_base=server.base_url, api_key=LM_KEY, cache=False, num_retries=0
    )
    everything = Everything(mode, caplog)
    with everything.observer, pytest.raises(dspy.utils.exceptions.LMError, match=LM_KEY):
        lm("why?")
    exported = everything.exported()
    assert LM_KEY not in exported
    if mode != "none":
        assert "Incorrect API key provided" in exported


@pytest.mark.parametrize("mode", ["redacted", "raw"])
def test_a_tool_that_is_handed_the_key(server: OpenAIServer, caplog: pytest.LogCaptureFixture, mode: str) -> None:
    """Case 36: arguments that are named like credentials are removed from what a tool and a module were given."""
    caplog.set_level(logging.DEBUG, "application.calls")
    everything = Everything(mode, caplog)

    class Caller(dspy.Module):
        def forward(self, question: str, api_key: str, headers: dict[str, str]) -> Any:
            return dspy.Tool(lambda api_key, headers: "done", name="fetch")(api_key=api_key, headers=headers)

    with everything.observer:
        Caller()(question="why?", api_key=LM_KEY, headers={"Authorization": f"Bearer {LM_HEADER}"})
    exported = everything.exported()
    assert "question" in exported
    assert LM_KEY not in exported
    assert LM_HEADER not in exported
