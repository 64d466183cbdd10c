"""Estimates of tokens against what DSPy really sends, and the errors that they state against real tokenizers."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.clients import model_metadata
from tokenizers import Tokenizer

from dspy_observe import ConfigurationError
from dspy_observe.openai_server import OpenAIServer
from dspy_observe.serving import tokenizers
from dspy_observe.serving.estimate import TokenEstimate, estimate_tokens
from dspy_observe.serving.fallback import FallbackLM
from dspy_observe.serving.tokenizers import counter_for
from dspy_observe.testing import capture_records, offline_lm

MODEL = "openai/gpt-4o-mini"
DEMO = dspy.Example(question="What is one and one?", answer="two")


def encoding(name: str) -> Any:
    """OpenAI's own, from LiteLLM's files."""
    found = tokenizers._encoding(name)
    assert found is not None
    return found


def cookbook(messages: list[dict[str, str]]) -> int:
    """Tokens of a prompt by OpenAI's published rule, counted apart from the code under test."""
    encode = encoding("o200k_base").encode
    return 3 + sum(3 + len(encode(message["role"])) + len(encode(message["content"])) for message in messages)


class TwoSteps(dspy.Module):
    """The second step needs what the first one finds."""

    def __init__(self) -> None:
        super().__init__()
        self.query = dspy.Predict("question -> query")
        self.answer = dspy.ChainOfThought("context: list[str], question -> answer")

    def forward(self, question: str) -> Any:
        raise AssertionError("nothing is executed")


def one(module: dspy.Module, inputs: dict[str, Any], model: str | None = None) -> Any:
    """The estimate of a program's only predictor."""
    (found,) = estimate_tokens(module, inputs, model).predictors
    return found


@pytest.mark.parametrize("adapter", [None, dspy.ChatAdapter(), dspy.XMLAdapter(), dspy.JSONAdapter()])
@pytest.mark.parametrize("signature", ["question -> answer", "question, facts: list[str] -> answer: int, sure: bool"])
def test_the_estimate_is_what_dspy_sends(signature: str, adapter: Any) -> None:
    """The prompt that reaches the server, counted by the published rule; a schema beside it makes it an estimate."""
    program = dspy.ChainOfThought(signature)
    program.predict.demos = [DEMO]
    inputs = {"question": "Why is the sky blue?", "facts": ["Light scatters.", "Straße, 空, небо"]}
    inputs = {name: inputs[name] for name in program.predict.signature.input_fields}
    with OpenAIServer() as server:
        lm = dspy.LM(MODEL, api_base=server.base_url, api_key="x", cache=False)
        with dspy.context(lm=lm, adapter=adapter):
            estimated = one(program, inputs)
            assert not server.requests
            program(**inputs)
        lm.close()
        sent = server.requests[0].json
    assert estimated.prompt_tokens == estimated.known_tokens
    if "response_format" in sent:
        assert not estimated.exact
        assert estimated.prompt_tokens > cookbook(sent["messages"])
    else:
        assert estimated.exact
        assert (estimated.prompt_tokens, estimated.error) == (cookbook(sent["messages"]), 0.0)


def test_nothing_is_executed_sent_or_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """No connection, no tool, no forward, no callback, no history, no warning, no list of models fetched."""

    def tool(city: str) -> str:
        """Tell the weather."""
        raise AssertionError("no tool runs")

    def connect(*_: Any) -> None:
        raise AssertionError("nothing is sent")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(model_metadata, "_data", None)
    monkeypatch.delenv("LITELLM_LOCAL_MODEL_COST_MAP")
    program = dspy.ReAct("question -> answer", tools=[tool])
    lm = dspy.LM(MODEL, api_key="x", max_tokens=100)
    adapter = dspy.JSONAdapter()
    before = len(dspy.clients.base_lm.GLOBAL_HISTORY)
    with (
        caplog.at_level(logging.INFO), capture_records() as records,
        dspy.context(lm=lm, adapter=adapter, trace=[]),
    ):  # fmt: skip
        found = estimate_tokens(program, {"question": "Why?"})
        assert dspy.settings.adapter is adapter
        assert dspy.settings.trace == []
    assert [one.missing for one in found.predictors] == [("trajectory",), ("trajectory",)]
    assert (records, caplog.messages, lm.history) == ([], [], [])
    assert len(dspy.clients.base_lm.GLOBAL_HISTORY) == before
    assert model_metadata._data is None


def test_a_later_step_is_unknown_not_zero() -> None:
    """What the first step will find is None in sums too; what is certain is counted."""
    with dspy.context(lm=dspy.LM(MODEL, max_tokens=300)):
        found = estimate_tokens(TwoSteps(), {"question": "Why?"})
        query, answer = found.predictors
        known = estimate_tokens(TwoSteps(), {"question": "Why?", "context": ["It scatters."]})
    assert (query.name, answer.name) == ("query", "answer.predict")
    assert query.prompt_tokens == query.known_tokens > 100
    assert (answer.prompt_tokens, answer.missing) == (None, ("context",))
    assert answer.known_tokens > 100
    assert found.prompt_tokens is None
    assert found.known_tokens == query.known_tokens + answer.known_tokens
    assert found.max_completion_tokens == 600
    assert known.prompt_tokens == known.known_tokens > found.known_tokens


def test_the_limit_of_an_answer_is_the_lms() -> None:
    """``max_tokens`` from the predictor before the LM's, times the answers wanted; without one it is not known."""
    lm = dspy.LM(MODEL, max_tokens=300)
    with dspy.context(lm=lm):
        assert one(dspy.Predict("question -> answer"), {"question": "?"}).max_completion_tokens == 300
        several = one(dspy.Predict("question -> answer", n=3, max_tokens=50), {"question": "?"})
        assert (several.max_completion_tokens, several.requests) == (150, 3)
        total = estimate_tokens(dspy.Predict("question -> answer", n=3), {"question": "?"})
        assert total.prompt_tokens == 3 * total.predictors[0].prompt_tokens  # type: ignore[operator]
    with dspy.context(lm=dspy.LM(MODEL)):
        assert one(dspy.Predict("question -> answer"), {"question": "?"}).max_completion_tokens is None
    with dspy.context(lm=dspy.LM("openai/gpt-5", max_tokens=20_000, temperature=1.0)):
        assert one(dspy.Predict("question -> answer"), {"question": "?"}).max_completion_tokens == 20_000
    with dspy.context(lm=dspy.LM(MODEL, engine="litellm")):
        assert one(dspy.Predict("question -> answer", n=3), {"question": "?"}).requests == 1


def test_images_are_for_the_provider_to_count() -> None:
    """Text beside an image is counted; the whole is not known."""
    found = one(dspy.Predict("image: dspy.Image -> answer"), {"image": dspy.Image("https://example.com/a.png")}, MODEL)
    assert (found.prompt_tokens, found.uncounted) == (None, ("image_url",))
    assert found.known_tokens > 50


@pytest.mark.parametrize(
    ("model", "method", "exact"),
    [
        ("openai/gpt-4o-mini", "o200k_base", True),
        ("azure/gpt-4o", "o200k_base", True),
        ("openai/gpt-4.1-nano", "o200k_base", True),
        ("openai/gpt-3.5-turbo", "cl100k_base", True),
        ("openai/gpt-4-0613", "cl100k_base", True),
        ("openai/o3", "o200k_base", False),  # what it adds for reasoning is not told
        ("openai/my-model", "o200k_base", False),
        ("anthropic/claude-haiku-4-5", "o200k_base", False),
        ("ollama_chat/gpt-4o", "o200k_base", False),
    ],
)
def test_each_model_is_counted_by_what_is_known_of_it(model: str, method: str, exact: bool) -> None:
    """Only OpenAI's plain chat models are exact."""
    counter = counter_for(model)
    assert (counter.method, counter.exact) == (method, exact)
    count = counter.messages([("user", "Why is the sky blue?")])
    assert (count.exact, count.error > 0) == (exact, not exact)


def test_the_predictors_own_lm_counts_unless_another_is_named() -> None:
    """A stand-in counts as its first model; a named model needs no LM at all."""
    program = dspy.Predict("question -> answer")
    assert one(program, {"question": "?"}, "anthropic/claude-haiku-4-5").model == "anthropic/claude-haiku-4-5"
    program.lm = FallbackLM(dspy.LM(MODEL), dspy.LM("anthropic/claude-haiku-4-5"))
    assert (one(program, {"question": "?"}).model, one(program, {"question": "?"}).exact) == (MODEL, True)
    program.lm = offline_lm("42")
    assert not one(program, {"question": "?"}).exact
    example = dspy.Example(question="?", answer="!").with_inputs("question")
    assert estimate_tokens(program, example).prompt_tokens == estimate_tokens(program, {"question": "?"}).prompt_tokens


@pytest.mark.parametrize(
    ("module", "inputs", "field"),
    [
        ("a program", {}, "module"),
        (dspy.Module(), {}, "module"),
        (dspy.Predict("question -> answer"), ["why"], "inputs"),
        (dspy.Predict("question -> answer"), {"question": "?"}, "model"),
    ],
)
def test_what_cannot_be_counted_is_refused(module: Any, inputs: Any, field: str) -> None:
    """The error names the argument."""
    with pytest.raises(ConfigurationError, match=field):
        estimate_tokens(module, inputs)


SEEDS = Path(__file__).parents[1]
TEXTS = {
    "english": (SEEDS / "CONTRIBUTING.md").read_text(encoding="utf-8"),
    "readme": (SEEDS / "README.md").read_text(encoding="utf-8"),
    "python": (SEEDS / "dspy_observe" / "ledger.py").read_text(encoding="utf-8"),
    "toml": (SEEDS / "pyproject.toml").read_text(encoding="utf-8"),
    "json": json.dumps([{"id": n, "name": f"user {n}", "tags": ["a", "b"], "score": n / 7} for n in range(200)]),
    # Article 1 of the Universal Declaration of Human Rights, https://www.un.org/en/about-us/udhr-translations
    "german": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen "
    "begabt und sollen einander im Geist der Brüderlichkeit begegnen. ",
    "french": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de "
    "conscience et doivent agir les uns envers les autres dans un esprit de fraternité. ",
    "russian": "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью "  # noqa: RUF001
    "и должны поступать в отношении друг друга в духе братства. ",
    "japanese": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "chinese": "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心,并应以兄弟关系的精神相对待。",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_stated_errors_hold_on_real_texts(text: str) -> None:
    """Against the tokenizers that are there: Claude 2's own and cl100k for other vendors, o200k for the rule."""
    spec = find_spec("litellm")
    assert spec is not None
    place = Path(spec.submodule_search_locations[0])  # type: ignore[index]
    claude = Tokenizer.from_file(str(place / "litellm_core_utils" / "tokenizers" / "anthropic_tokenizer.json"))
    standard = len(encoding("o200k_base").encode(text))
    other = counter_for("anthropic/claude-haiku-4-5").messages([("user", text)])
    for truth in (len(claude.encode(text).ids), len(encoding("cl100k_base").encode(text))):
        assert abs(truth - standard) <= other.error * standard
    foreign = tokenizers._is_foreign(text)
    assert abs(tokenizers._by_characters(text) - standard) <= tokenizers._NO_FILES[foreign] * standard


def test_without_files_it_is_an_estimate_and_nothing_is_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A missing or damaged file of an encoding means the rule of thumb, never a download; the environment stays."""
    damaged = tmp_path / tokenizers._FILES["o200k_base"][0]
    damaged.write_bytes(b"damaged")
    monkeypatch.setattr(tokenizers, "_folders", lambda: [tmp_path])
    tokenizers._encoding.cache_clear()
    try:
        counter = counter_for(MODEL)
        assert (counter.method, counter.exact) == ("characters", False)
        assert counter.messages([("user", "Why is the sky blue?")]).error == 0.3
        assert damaged.read_bytes() == b"damaged"
    finally:
        tokenizers._encoding.cache_clear()
    monkeypatch.undo()
    before = os.environ.get("TIKTOKEN_CACHE_DIR")
    assert counter_for(MODEL).exact
    assert os.environ.get("TIKTOKEN_CACHE_DIR") == before


def test_litellm_is_not_imported_to_count() -> None:
    """Its import takes seconds and fetches a list; what only it knows makes the estimate unsure instead."""
    import subprocess

    code = (
        "import sys, dspy\n"
        "from dspy_observe.serving.estimate import estimate_tokens\n"
        "with dspy.context(adapter=dspy.JSONAdapter()):\n"
        "    found = estimate_tokens(dspy.Predict('question -> answer'), {'question': '?'}, 'some_vendor/some-model')\n"
        "assert 'litellm' not in sys.modules\n"
        "print(found.predictors[0].exact, found.predictors[0].error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["False", "0.45"]


def test_an_estimate_without_predictors_has_no_tokens() -> None:
    """Sums of nothing are nothing, exactly."""
    assert TokenEstimate(()).prompt_tokens == 0
