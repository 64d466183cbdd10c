"""The stand-in model: reads a DSPy prompt and answers with the sentence of the given passages that fits the question.

It knows no answers, only how to compare words. The larger of its two models also knows some words of like meaning, so
that it finds what the smaller one misses. Now and then it fails as providers do: refuses, breaks down, or forgets the
format that it was asked for.
"""

from __future__ import annotations

import json
import math
import random
import re
import threading
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal

from dspy_observe.openai_server import ChatRequest, Failure, Reply, TokenUsage
from dspy_observe.openai_server.answers import chat_fields, json_fields

__all__ = ["LARGE_MODEL", "RETRIES", "SMALL_MODEL", "StandIn", "answer"]

SMALL_MODEL: Final = "gpt-4o-mini"
LARGE_MODEL: Final = "gpt-4o"
RETRIES: Final = 2
"""What the demo's LMs are set to; a call fails when it is refused once more than this."""

_CHARS_PER_TOKEN: Final = 4
"""OpenAI's rule of thumb for English, https://platform.openai.com/docs/concepts"""
_FOUND: Final = 0.6
"""Share of the question's words, weighted by rarity, that a sentence must hold to count as an answer."""
_OBEYS: Final = 0.6
"""Share of the prompts on which an instruction to write prose wins over a request for JSON."""
_SEARCHES: Final = 2
"""Searches before the agent gives up."""

_PROSE: Final = re.compile(r"plain prose, without (?:headers|markers)", re.IGNORECASE)
"""An instruction that takes away what an adapter reads replies by. A model that obeys it cannot be read."""
_HEADER: Final = re.compile(r"\[\[ ## (\w+) ## \]\]")
_QUOTED: Final = re.compile(r"«(.*?)»", re.DOTALL)
_SENTENCE_END: Final = re.compile(r"(?<=[.!?])\s+")
_TOOLS: Final = re.compile(r"one of: ([\w; ]+)")
_NUMBER_WANTED: Final = re.compile(r"\bhow (?!did|does|do\b)\w+|\bwhen\b|\bwhat temperature\b", re.IGNORECASE)
_NAME_WANTED: Final = re.compile(r"\bwho\b|\bwhom\b|\bwhose\b", re.IGNORECASE)
_NAME: Final = re.compile(r"[A-Z][\w-]+ (?:[a-z]{2,3} )?[A-Z][\w-]+")
_LITTLE_WORDS: Final = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be been before by did do does for from has have he her his how in is it its made make "
        "makes many most much not of on once one or our she than that the their they this to was were what when where "
        "which who whom whose why with would",
    )
)
_LIKE_MEANING: Final[Mapping[str, tuple[str, ...]]] = {
    "animal": ("octopus",), "astronaut": ("step", "first"), "beans": ("seeds",), "biggest": ("largest",),
    "days": ("day",), "gone": ("circles",), "greatest": ("largest", "more"), "grows": ("produces",),
    "inventor": ("created", "wrote"), "lunar": ("moon",), "nation": ("country",), "pass": ("circles",),
    "second": ("followed",), "soil": ("surface",), "squid": ("octopus",), "star": ("sun",), "walk": ("step",),
}  # fmt: skip
"""Words that the larger model takes for one another."""

Hiccup = Literal["rate_limit", "server_error", "broken_format", "long_rate_limit", "outage"]
_HICCUPS: Final[Mapping[int, Hiccup]] = {
    3: "broken_format", 5: "rate_limit", 8: "server_error", 11: "long_rate_limit", 16: "rate_limit", 20: "outage",
    24: "broken_format", 28: "rate_limit",
}  # fmt: skip
"""What befalls which of the signed prompts, which are those that no other user sends; it starts again after 32."""
_CYCLE: Final = 32


@dataclass(frozen=True, slots=True)
class _Finding:
    sentence: str
    title: str
    share: float
    """Of the question's words, weighted, from 0 to 1."""


class StandIn:
    """What the demo's server asks for replies; many threads at once.

    Args:
        seed: Varies how long replies take.
        pace: Factor on that time; 0 answers at once.
    """

    def __init__(self, seed: int = 0, pace: float = 1.0) -> None:
        self._seed = seed
        self._pace = pace
        self._lock = threading.Lock()
        self._plans: dict[str, deque[Failure | str]] = {}
        self.refused: Counter[int] = Counter()
        """Refused requests by HTTP status."""

    def __call__(self, request: ChatRequest) -> Reply | Failure:
        """Answer, refuse, or answer out of format."""
        event = self._next_hiccup(request)
        if isinstance(event, Failure):
            with self._lock:
                self.refused[event.status] += 1
            return event
        text = event or answer(request)
        read = sum(len(str(message.get("content", ""))) for message in request.messages)
        usage = TokenUsage(math.ceil(read / _CHARS_PER_TOKEN), math.ceil(len(text) / _CHARS_PER_TOKEN))
        return Reply(text=text, usage=usage, delay_s=self._thinking_s(request, usage))

    def _thinking_s(self, request: ChatRequest, usage: TokenUsage) -> float:
        """Seconds: a start and a time per token, larger for the larger model, and some luck; the same for a prompt."""
        luck = random.Random(f"{self._seed} {request.prompt}").lognormvariate(0, 0.35)  # noqa: S311 - no secret
        first, per_token = (0.15, 0.004) if request.model == SMALL_MODEL else (0.25, 0.006)
        return self._pace * luck * (first + per_token * usage.completion_tokens)

    def _next_hiccup(self, request: ChatRequest) -> Failure | str | None:
        """The failure that this request meets, or a reply out of format, or None."""
        inputs = read_inputs(request.prompt)
        if not inputs.get("asked_by"):
            return None
        with self._lock:
            plan = self._plans.get(request.prompt)
            if plan is None:
                hiccup = _HICCUPS.get(len(self._plans) % _CYCLE)
                plan = self._plans[request.prompt] = deque(_events(hiccup, request))
            return plan.popleft() if plan else None


def _events(hiccup: Hiccup | None, request: ChatRequest) -> list[Failure | str]:
    limited, broken_down = Failure.rate_limited(retry_after_s=0.2), Failure.server_error(retry_after_s=0.2)
    if hiccup == "broken_format":
        # A small model's typical lapse; of an agent's prompt, which has no passages, it would be no answer at all.
        return [f"Sure! {_best(request).sentence}"]
    if hiccup in ("rate_limit", "long_rate_limit"):
        return [limited] * (1 if hiccup == "rate_limit" else RETRIES + 1)
    return [broken_down] * {"server_error": 1, "outage": RETRIES + 1}.get(hiccup or "", 0)


def answer(request: ChatRequest) -> str:
    """The reply to a prompt of ``ChatAdapter`` or ``JSONAdapter``, in the format that it asks for."""
    as_json = json_fields(request.system)
    notes = chat_fields(request.system) if as_json is None else as_json
    best = _best(request)
    if _PROSE.search(request.system):
        # Told to write prose it does, but a request for JSON makes it waver, and what it then says is friendly only.
        if as_json is None or random.Random(request.prompt).random() < _OBEYS:  # noqa: S311 - no secret
            return f"Oh, a good question! {best.sentence}"
        best = _Finding("Oh, a good question! Many people ask it.", "", 1.0)
    values: dict[str, Any] = {
        "reasoning": f"Of what I read about {best.title or 'it'}, this fits {best.share:.0%} of the question.",
        "answer": best.sentence if best.share >= _FOUND else "The passages do not say.",
        "found": best.share >= _FOUND,
    }
    if "next_tool_name" in notes:
        values.update(_next_step(request, notes["next_tool_name"], best))
    wanted = {name: values.get(name, best.sentence) for name in notes}
    if as_json is not None:
        return json.dumps(wanted, ensure_ascii=False)
    sections = [
        f"[[ ## {name} ## ]]\n{json.dumps(value) if isinstance(value, dict) else value}"
        for name, value in wanted.items()
    ]
    return "\n\n".join([*sections, "[[ ## completed ## ]]"])


def read_inputs(prompt: str) -> dict[str, str]:
    """The input fields of a prompt; those of an agent's trajectory stand among them."""
    asked = prompt.rpartition("\n\nRespond with ")[0] or prompt
    parts = _HEADER.split(asked)[1:]
    return {name: text.strip() for name, text in zip(parts[::2], parts[1::2], strict=True)}


def _next_step(request: ChatRequest, note: str, best: _Finding) -> dict[str, Any]:
    """Search first; when that does not answer the question, search again with words of like meaning; then finish."""
    inputs = read_inputs(request.prompt)
    listed = _TOOLS.search(note)
    tools = [name.strip() for name in listed.group(1).split(";")] if listed else []
    searches = sum(name.startswith("observation_") for name in inputs)
    others = [name for name in tools if name != "finish"]
    if best.share >= _FOUND or searches >= _SEARCHES or not others:
        thought = "This answers the question." if best.share >= _FOUND else "I have looked everywhere."
        return {"next_thought": thought, "next_tool_name": "finish", "next_tool_args": {}}
    words = list(_content_words(inputs.get("question", "")))
    if searches:
        words = [other for word in words for other in _LIKE_MEANING.get(word, (word,))]
    thought = "I search with other words." if searches else "I search for the words of the question."
    return {"next_thought": thought, "next_tool_name": others[0], "next_tool_args": {"query": " ".join(words)}}


def _best(request: ChatRequest) -> _Finding:
    """The sentence of everything quoted in the prompt that fits the question best."""
    inputs = read_inputs(request.prompt)
    question = inputs.get("question", "")
    sentences = [
        (title, sentence)
        for title, _, text in (passage.partition(": ") for passage in dict.fromkeys(_passages(inputs)))
        for sentence in _SENTENCE_END.split(text)
    ]
    wanted = _wanted(question, with_like_meaning=request.model != SMALL_MODEL)
    holding = [_stems(sentence) for _, sentence in sentences]
    rarity = {
        word: math.log(1 + len(sentences) / (0.5 + sum(not stems.isdisjoint(forms) for stems in holding)))
        for word, forms in wanted.items()
    }
    total = sum(rarity.values()) or 1.0
    best, most = _Finding("The passages do not say.", "", 0.0), 0.0
    for (title, sentence), stems in zip(sentences, holding, strict=True):
        said = sum(rarity[word] for word, forms in wanted.items() if not stems.isdisjoint(forms))
        meant = sum(rarity[word] for word, forms in wanted.items() if not (stems | _stems(title)).isdisjoint(forms))
        fit = 0.25 * said + 0.75 * meant + total * _fits_kind(question, sentence)
        if meant and fit > most:
            best, most = _Finding(sentence, title, meant / total), fit
    return best


def _passages(inputs: Mapping[str, str]) -> Iterator[str]:
    """What the prompt gives to read: an input list is JSON, a list in a trajectory stands in guillemets."""
    for name, text in inputs.items():
        if name.startswith("observation_"):
            yield from _QUOTED.findall(text)
        elif name == "passages":
            with suppress(ValueError):
                yield from json.loads(text)


def _fits_kind(question: str, sentence: str) -> float:
    """Whether the sentence holds the kind of thing that is asked for: a number, a name."""
    if _NUMBER_WANTED.search(question):
        return 0.3 if re.search(r"\d|\bseven\b|\bthree\b|\beight\b", sentence) else 0.0
    return 0.2 if _NAME_WANTED.search(question) and _NAME.search(sentence) else 0.0


def _wanted(question: str, *, with_like_meaning: bool) -> dict[str, set[str]]:
    """The question's words, each with the stems that count as it."""
    found = {}
    for word in _content_words(question):
        others = _LIKE_MEANING.get(word, ()) if with_like_meaning else ()
        found[word] = {_stem(form) for form in (word, *others)}
    return found


def _content_words(text: str) -> Iterator[str]:
    return (word for word in re.findall(r"\w+", text.lower()) if word not in _LITTLE_WORDS)


def _stems(text: str) -> set[str]:
    return {_stem(word) for word in _content_words(text)}


def _stem(word: str) -> str:
    """The first letters of a word without its ending: enough to bring ``opened`` and ``opens`` together."""
    return re.sub(r"(?<=\w{3})(?:ing|ed|es|s|e)$", "", word)[:6]
