"""What the serving tests share: a program whose answers say which version's text stood in the prompt.

Truth is what the OpenAI-compatible server received: it answers each prompt with the version that it reads there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
from prometheus_client import CollectorRegistry

from dspy_observe import Metrics
from dspy_observe.openai_server import ChatRequest, OpenAIServer, Reply
from dspy_observe.registry import RegistryConfig, SignatureRegistry
from dspy_observe.serving import LiveProgram

Publish = Callable[..., str]
Open = Callable[..., SignatureRegistry]
Follow = Callable[..., LiveProgram]


class Bot(dspy.Module):
    """Two steps, each with instructions of the version, so that an answer of two versions shows."""

    def __init__(self) -> None:
        super().__init__()
        self.draft = dspy.Predict("question -> answer")
        self.polish = dspy.Predict("question, draft -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        """Draft, then polish."""
        draft = self.draft(question=question).answer
        return dspy.Prediction(draft=draft, answer=self.polish(question=question, draft=draft).answer)

    async def aforward(self, question: str) -> dspy.Prediction:
        """The same, asynchronously."""
        draft = (await self.draft.acall(question=question)).answer
        polished = await self.polish.acall(question=question, draft=draft)
        return dspy.Prediction(draft=draft, answer=polished.answer)


def tuned(version: str) -> Bot:
    """A bot whose prompts carry the version."""
    bot = Bot()
    for predict in (bot.draft, bot.polish):
        predict.signature = predict.signature.with_instructions(f"You are version <{version}>.")
    return bot


def version_in(text: str) -> str:
    """The version that a prompt carries."""
    found = re.search(r"version <([\w.]+)>", text)
    return found[1] if found else "untuned"


def answer_with_version(request: ChatRequest) -> Reply:
    """Answer with what the prompt says."""
    return Reply(text=f"[[ ## answer ## ]]\n{version_in(request.system)}\n\n[[ ## completed ## ]]")


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    """The provider."""
    with OpenAIServer(answer_with_version) as running:
        yield running


@pytest.fixture
def lm(server: OpenAIServer) -> dspy.LM:
    """Its LM, configured for the process, without cache."""
    made = dspy.LM("openai/gpt-4o-mini", api_base=server.base_url, api_key="x", cache=False, num_retries=0)
    dspy.configure(lm=made)
    return made


@pytest.fixture
def open_registry() -> Iterator[Open]:
    """Opens registries, the same one again and again as other processes would."""
    opened: list[SignatureRegistry] = []

    def make(where: str, **options: Any) -> SignatureRegistry:
        opened.append(SignatureRegistry(RegistryConfig(registry_path=where, **options)))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


@pytest.fixture
def registry(open_registry: Open, tmp_path: Path) -> SignatureRegistry:
    """An empty registry on files."""
    return open_registry(str(tmp_path / "registry"))


@pytest.fixture
def publish(lm: dspy.LM) -> Publish:
    """Registers a version of the bot, and deploys it unless told otherwise; gives its hash."""

    def make(registry: SignatureRegistry, version: str, *, deploy: bool = True) -> str:
        made = registry.register_program("bot", tuned(version), version=version)
        if deploy:
            registry.deploy_version("bot", version)
        return made.version_hash

    return make


@pytest.fixture
def collector() -> CollectorRegistry:
    """Where the metrics of a test go."""
    return CollectorRegistry()


@pytest.fixture
def metrics(collector: CollectorRegistry) -> Metrics:
    """Metrics into the test's own collector."""
    return Metrics(collector_registry=collector)


@pytest.fixture
def follow(metrics: Metrics) -> Iterator[Follow]:
    """Makes live programs, which are closed at the end."""
    made: list[LiveProgram] = []

    def make(registry: SignatureRegistry | str, factory: Callable[[], Any] = Bot, **options: Any) -> LiveProgram:
        options = {"refresh_s": 0.2, "metrics": metrics, **options}
        made.append(LiveProgram(registry, "bot", factory, **options))
        return made[-1]

    yield make
    for live in made:
        live.close()
