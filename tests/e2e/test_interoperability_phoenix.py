"""A real Phoenix takes our spans over OTLP and shows kinds, tokens, cost and the tree. ``make phoenix`` installs it."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

import dspy
import pytest
from prometheus_client import CollectorRegistry

import dspy_observe
from dspy_observe.openai_server import OpenAIServer
from tests.phoenix_server import phoenix_server

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
WAIT_S = 60.0
FIRST_STEP = (
    "[[ ## next_thought ## ]]\nI look it up.\n\n[[ ## next_tool_name ## ]]\nlook_up\n\n"
    '[[ ## next_tool_args ## ]]\n{"topic": "Danube"}\n\n[[ ## completed ## ]]'
)


@pytest.fixture(scope="module")
def phoenix_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Phoenix of this module's own."""
    with phoenix_server(tmp_path_factory.mktemp("phoenix")) as url:
        yield url


class Project:
    """A project of Phoenix, and what it shows."""

    def __init__(self, url: str, name: str) -> None:
        self.url, self.name = url, name

    def spans(self) -> list[dict[str, Any]]:
        """All spans; none before the project's first one has come in."""
        try:
            return self._ask(f"/v1/projects/{self.name}/spans?limit=1000")["data"]  # type: ignore[no-any-return]
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != HTTPStatus.NOT_FOUND:
                raise
            return []

    def cost(self) -> float:
        """US dollars, as the project's page shows them."""
        query = "{ projects { edges { node { name costSummary { total { cost } } } } } }"
        found = self._ask("/graphql", {"query": query})["data"]["projects"]["edges"]
        return next(each["node"]["costSummary"]["total"]["cost"] for each in found if each["node"]["name"] == self.name)

    def _ask(self, path: str, body: Any = None) -> Any:
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=10) as reply:
            return json.load(reply)


def look_up(topic: str) -> str:
    """Looks a topic up."""
    return f"{topic} is a river"


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until Phoenix has digested what it took."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "Phoenix did not show it in time"
        time.sleep(0.2)  # another process works; there is nothing to wait on


def test_phoenix_shows_kinds_tokens_cost_and_the_tree(phoenix_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent's run with a tool, and its LM calls with what they were billed, as one tree."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", phoenix_url)
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "openinference.project.name=agents")
    metrics = dspy_observe.Metrics(collector_registry=CollectorRegistry())
    with OpenAIServer() as server:
        dspy.configure(lm=dspy.LM("openai/gpt-4o-mini", api_base=server.base_url, api_key="k", cache=False))
        server.script([FIRST_STEP])
        with dspy_observe.configure(service="support-bot", metrics=metrics, logs=False) as observer:
            agent = observer.track(dspy.ReAct("question -> answer", tools=[look_up]), name="support", version="v3")
            agent(question="What is the Danube?")
            assert observer.flush(WAIT_S)
        bills = server.bills
    project = Project(phoenix_url, "agents")
    wait_for(lambda: len(project.spans()) == 10)
    spans = {span["context"]["span_id"]: span for span in project.spans()}

    def path(span: dict[str, Any]) -> str:
        above = spans.get(span["parent_id"] or "")
        return f"{path(above)} > {span['name']}" if above is not None else str(span["name"])

    agent_path = "invoke_agent support"
    assert Counter((path(span), span["span_kind"]) for span in spans.values()) == {
        (agent_path, "AGENT"): 1,
        (f"{agent_path} > Predict", "CHAIN"): 2,
        (f"{agent_path} > Predict > chat gpt-4o-mini", "LLM"): 2,
        (f"{agent_path} > execute_tool look_up", "TOOL"): 1,
        (f"{agent_path} > execute_tool finish", "TOOL"): 1,
        (f"{agent_path} > ChainOfThought", "CHAIN"): 1,
        (f"{agent_path} > ChainOfThought > Predict", "CHAIN"): 1,
        (f"{agent_path} > ChainOfThought > Predict > chat gpt-4o-mini", "LLM"): 1,
    }
    assert len({span["context"]["trace_id"] for span in spans.values()}) == 1
    shown = [span["attributes"] for span in spans.values() if span["span_kind"] == "LLM"]
    assert Counter((each["llm.token_count.prompt"], each["llm.token_count.completion"]) for each in shown) == Counter(
        (bill.prompt_tokens, bill.completion_tokens) for bill in bills
    )
    billed = sum(bill.prompt_tokens * 0.15e-6 + bill.completion_tokens * 0.60e-6 for bill in bills)
    assert sum(each["dspy.cost_usd"] for each in shown) == pytest.approx(billed)
    wait_for(lambda: project.cost() == pytest.approx(billed))
    (root,) = (span for span in spans.values() if span["parent_id"] is None)
    assert (root["attributes"]["dspy.program"], root["attributes"]["dspy.version"]) == ("support", "v3")
