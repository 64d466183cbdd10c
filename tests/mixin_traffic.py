"""Traffic of a real program, of every kind that a dashboard shows.

Two versions behind a router, tools, streams, failures, refusals, a second model, a cache, scores, evaluations, budgets,
private values, and a registry that changes.

What other processes export (the receiver, the monitor) stands beside it with figures of its own making.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import dspy
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry

import dspy_observe
from dspy_observe.metrics import Metrics, instruments
from dspy_observe.openai_server import ChatRequest, Failure, OpenAIServer, Reply, TokenUsage
from dspy_observe.registry import RegistryConfig, SignatureRegistry
from dspy_observe.serving.budgets import UserBudgets
from dspy_observe.serving.fallback import FallbackLM
from dspy_observe.serving.live import LiveProgram
from dspy_observe.serving.routing import Router
from dspy_observe.serving.shadowing import Shadow

__all__ = ["Traffic"]


def search(query: str) -> str:
    """Find passages; it breaks for some questions."""
    if "broken" in query:
        raise ValueError("the index is gone")
    return f"passages about {query}"


class Bot(dspy.Module):
    """Searches, then answers."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = dspy.Predict("question -> answer")
        self.search = dspy.Tool(search)

    def forward(self, question: str) -> dspy.Prediction:
        """A tool call that may fail, and an LM call."""
        with suppress(ValueError):
            self.search(query=question)
        return self.answer(question=question)


class _Provider:
    """Answers by what the prompt says; the first choice of models is down now and then, another refuses."""

    def __init__(self) -> None:
        self._count = itertools.count(1)

    def __call__(self, request: ChatRequest) -> Reply | Failure:
        number = next(self._count)
        if request.model == "first-choice":
            return Failure.server_error()
        if number % 9 == 0:
            return Failure.rate_limited()
        if "version <v2>" in request.system and number % 3 == 0:
            return Reply(text="I would rather not.")
        usage = TokenUsage(200, 40, 20, 10) if request.model == "gpt-4o-mini" else TokenUsage(100, 20)
        text = "[[ ## answer ## ]]\n42\n\n[[ ## completed ## ]]"
        return Reply(text=text, usage=usage, report_usage=request.model != "house-model")


class Traffic:
    """Runs until the block ends.

    Args:
        folder: For the registry.
        pause_s: Between two turns.
        redeploy_every: Turns between the deployments of the second program.

    Attributes:
        host_port: Where its metrics are scraped.
    """

    def __init__(self, folder: Path, *, pause_s: float = 0.02, redeploy_every: int = 40) -> None:
        self._folder = folder
        self._pause_s = pause_s
        self._redeploy_every = redeploy_every
        self._stack = ExitStack()
        self._stop = threading.Event()
        self._other: LiveProgram | None = None
        self.failures: list[BaseException] = []
        self.metrics = Metrics(port=0, collector_registry=CollectorRegistry())
        self.host_port = ""

    def __enter__(self) -> Self:
        enter = self._stack.enter_context
        server = enter(OpenAIServer(_Provider()))
        self._lm = self._model(server, "gpt-4o-mini", cache=False)
        self._cached = self._model(server, "gpt-4o-mini", cache=True)
        self._house = self._model(server, "house-model", cache=False)
        self._fallback = FallbackLM(self._model(server, "first-choice", cache=False), self._lm)
        registry = enter(SignatureRegistry(RegistryConfig(registry_path=str(self._folder / "registry"))))
        self._budgets = UserBudgets(500, metrics=self.metrics)
        self.observer = enter(
            dspy_observe.configure(
                service="traffic", metrics=self.metrics, registry=registry, extra=[self._budgets],
                tracing=dspy_observe.Tracing(tracer_provider=TracerProvider(), capture_content="redacted"), logs=False,
            )
        )  # fmt: skip
        assert self.observer.metrics_url is not None
        self.host_port = self.observer.metrics_url.removeprefix("http://").removesuffix("/metrics")
        enter(dspy.context(lm=self._lm))
        for version in ("v1", "v2"):
            bot = Bot()
            bot.answer.signature = bot.answer.signature.with_instructions(f"You are version <{version}>.")
            registry.register_program("bot", bot, version=version)
        registry.deploy_version("bot", "v1")
        self._registry = registry
        self._router = Router(
            registry, "bot", Bot, "v2", steps=(0.5, 1), control=0.0, refresh_s=0.2, metrics=self.metrics,
            shadow=Shadow(share=1.0, max_waiting=1, read_only_tools=("search",)),
        )  # fmt: skip
        self._stack.callback(self._router.close)
        thread = threading.Thread(target=self._run, name="traffic")
        thread.start()
        self._stack.callback(thread.join)
        self._stack.callback(self._stop.set)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()
        if error is None and self.failures:
            raise self.failures[0]

    def _model(self, server: OpenAIServer, name: str, *, cache: bool) -> dspy.LM:
        return dspy.LM(f"openai/{name}", api_base=server.base_url, api_key="x", cache=cache, num_retries=0)

    def _run(self) -> None:
        try:
            for turn in itertools.count():
                if self._stop.is_set():
                    return
                self._turn(turn)
                time.sleep(self._pause_s)
        except BaseException as error:  # noqa: BLE001 - told to the test
            self.failures.append(error)

    def _turn(self, turn: int) -> None:
        question = ("mail a@b.example about", "broken index of", "tell me of")[turn % 3] + f" {turn}"
        with dspy.context(lm=self._lm), self._budgets.user(f"user-{turn % 3}"), suppress(Exception):
            prediction = self._router(key=str(turn), question=question)
            self.observer.score(prediction, 1.0 if turn % 4 else 0.0, source="user")
        for lm, asked in ((self._cached, "the same again"), (self._house, question), (self._fallback, question)):
            with dspy.context(lm=lm), suppress(Exception):
                self._router(key=str(turn), question=asked)
        if turn % 10 == 0:
            with dspy.context(lm=self._lm), suppress(Exception):
                asyncio.run(self._stream(question))
        if turn % 20 == 0:
            _other_processes(self.metrics)
        if turn % 40 == 0:
            with dspy.context(lm=self._lm):
                self._evaluate()
        if turn % self._redeploy_every == 0:
            with dspy.context(lm=self._lm):
                self._other_program(turn)

    async def _stream(self, question: str) -> None:
        listener = dspy.streaming.StreamListener("answer", predict_name="answer")
        async for _ in self._router.streamify(stream_listeners=[listener])(key="1", question=question):
            pass

    def _evaluate(self) -> None:
        bot = self.observer.track(Bot(), name="bot", version="v1", role="eval")
        examples = [dspy.Example(question=f"held out {n}", answer="42").with_inputs("question") for n in range(4)]
        evaluate = dspy.Evaluate(
            devset=examples, metric=lambda example, answer, trace=None: example.answer == answer.answer,
            num_threads=1, display_progress=False, provide_traceback=False, max_errors=100,
        )  # fmt: skip
        evaluate(bot, callback_metadata={"dataset": "held-out"})

    def _other_program(self, turn: int) -> None:
        """Deployments and rollbacks of another program, so that the first one's rollout goes on."""
        for version in (f"a{turn}", f"b{turn}"):
            bot = Bot()
            bot.answer.signature = bot.answer.signature.with_instructions(version)
            self._registry.register_program("other", bot, version=version)
            self._registry.deploy_version("other", version)
            if self._other is None:
                self._other = LiveProgram(self._registry, "other", Bot, refresh_s=0.2, metrics=self.metrics)
                self._stack.callback(self._other.close)
        self._registry.rollback("other")


def _other_processes(metrics: Metrics) -> None:
    """What the receiver and the monitor of this program would export, again and again."""
    own = instruments(metrics)
    here = ("bot", "production")
    for outcome in ("held", "rollback"):
        own["dspy_decisions_total"].child(*here, "alert", outcome).inc()
    own["dspy_rollback_duration_seconds"].child(*here).observe(2.0)
    own["dspy_rollback_frozen"].child(*here).set(0)
    own["dspy_rollback_budget_remaining"].child(*here).set(3)
    for code in ("200", "401"):
        own["dspy_alert_requests_total"].child(code).inc()
    own["dspy_watchdog_timestamp_seconds"].child().set(time.time())
    for version, evidence in (("v1", -0.5), ("v2", 1.2)):
        own["dspy_quality_evidence"].child("bot", version, "baseline").set(evidence)
    own["dspy_quality_verdict_info"].child("bot", "v2", "suspect").set(1)
    own["dspy_invalid_scores_total"].child("bot").inc()
