"""With everything on, programs see, keep, send and save byte for byte what they do without the toolkit."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import dspy
import orjson
import pytest
from dspy.clients.base_lm import GLOBAL_HISTORY
from dspy.utils.callback import BaseCallback
from prometheus_client import CollectorRegistry

import dspy_observe
from dspy_observe.config import Cost, Logs, Metrics, Tracing
from dspy_observe.openai_server import OpenAIServer
from tests.e2e.leaks import outlets, scenario
from tests.e2e.leaks.secrets import planted

pytestmark = pytest.mark.e2e

TEXTS = scenario.slices(planted(), 6)


@dataclass
class Traces:
    """What one run of the programs left behind, each part as text."""

    seen: str
    requests: list[bytes]
    history: list[str]
    cache: list[str]
    demos: str


def _plain(value: Any) -> str:
    """A text of any value, without what differs between any two runs: times, random ids, ports, object addresses."""
    text = repr(value)
    for pattern in (
        r"\d{4}-\d\d-\d\dT[\d:.]+", r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", r"127\.0\.0\.1:\d+",
        r"created[\"']?[=:] ?\d+", r" at 0x[0-9a-f]+", r"(?:_ms|duration|latency)[\"']?[=:] ?[\d.]+",
        r"[\"'](?:date|Date)[\"']: [\"'][^\"']*[\"']",
    ):  # fmt: skip
        text = re.sub(pattern, "~", text)
    return text


def _run() -> Traces:
    dspy.configure_cache(enable_disk_cache=False)
    GLOBAL_HISTORY.clear()
    with OpenAIServer() as server:
        seen = scenario.run(server, TEXTS)
        demos = _compile(server)
        entries = [(key, dspy.cache.memory_cache[key]) for key in sorted(dspy.cache.memory_cache)]
        return Traces(
            _plain((seen.answers, seen.errors, seen.chunks, seen.state)),
            [re.sub(rb"127\.0\.0\.1:\d+", b"~", request.body) for request in server.requests],
            [_plain(entry) for entry in GLOBAL_HISTORY],
            [_plain(entry) for entry in entries],
            demos,
        )


def _compile(server: OpenAIServer) -> str:
    """The demos that BootstrapFewShot collects, as the saved program has them."""
    lm = scenario.make_lm(server)
    trainset = [
        dspy.Example(context=[TEXTS[at]], question=f"{TEXTS[at + 1]} {at}", answer=TEXTS[at + 2]).with_inputs(
            "context", "question"
        )
        for at in range(3)
    ]
    server.script([scenario.answer(TEXTS[at]) for at in range(3)])
    with dspy.context(lm=lm):
        student = dspy.Predict("context: list[str], question -> answer")
        optimizer = dspy.BootstrapFewShot(metric=lambda *_: True, max_bootstrapped_demos=3, max_labeled_demos=0)
        compiled = optimizer.compile(student, trainset=trainset)
    asyncio.run(lm.aclose())
    state = compiled.dump_state()
    assert len(state["demos"]) == 3
    return re.sub(r"127\.0\.0\.1:\d+", "~", orjson.dumps(state).decode())


@pytest.fixture
def quiet() -> Iterator[outlets.Lines]:
    """The log lines, kept from the test's output."""
    lines = outlets.Lines()
    logger = logging.getLogger("dspy_observe")
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.addHandler(lines)
    yield lines
    logger.removeHandler(lines)
    logger.setLevel(level)
    logger.propagate = propagate


@pytest.mark.parametrize("mode", ["redacted", "raw"])
def test_programs_are_byte_identical(mode: Any, quiet: outlets.Lines) -> None:
    """Answers, errors, streams, requests, history, cache, demos and saved state are the same with everything on."""
    # A callback that does nothing: with any callback, DSPy runs a tool from another line of its own, and what an agent
    # is told of a failed tool quotes that line.
    with dspy.context(callbacks=[BaseCallback()]):
        without = _run()
    providers = outlets.Providers()
    with dspy_observe.configure(
        metrics=Metrics(collector_registry=CollectorRegistry()),
        tracing=Tracing(
            tracer_provider=providers.tracer_provider,
            meter_provider=providers.meter_provider,
            capture_content=mode,
            adapter_spans=True,
        ),
        logs=Logs(logger=quiet.structlog),
        cost=Cost(price=lambda record: 1.0),
    ):
        observed = _run()
    assert b"gen_ai.input.messages" in providers.exported()["spans"]
    assert len(without.requests) > 40
    assert len(without.cache) > 10
    for part in ("requests", "seen", "history", "cache", "demos"):
        assert getattr(observed, part) == getattr(without, part), part
