"""Answer questions from a collection of texts: search, a quick answer, and an agent that searches on when that fails.

    OPENAI_API_KEY=... python examples/question_answering.py "Who discovered penicillin?"

A starting point for a program of your own: put your texts into ``data/passages.jsonl``. The search is BM25 in plain
Python, so that the example needs nothing but DSPy.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import dspy

DATA = Path(__file__).parent / "data"
_STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a after an and are as at be been but by did do does for from has have how in is it its of on or that the "
        "their there these they this to was were what when where which who whom whose why will with would you",
    )
)


class Passages:
    """A collection of texts, searched with BM25.

    Args:
        texts: The passages, each with its title in front.

    Raises:
        ValueError: There are none.
    """

    K1 = 1.2
    """How soon repeating a word stops counting; with the next, the usual choice of Robertson and Zaragoza, "The
    Probabilistic Relevance Framework" (2009), https://doi.org/10.1561/1500000019"""
    B = 0.75
    """How much long passages are held back, from 0 to 1."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = list(texts)
        if not self._texts:
            raise ValueError("a collection needs at least one passage")
        self._counts = [Counter(words(text)) for text in self._texts]
        self._lengths = [count.total() for count in self._counts]
        self._average = sum(self._lengths) / len(self._lengths)
        self._holding = Counter(word for count in self._counts for word in count)

    @classmethod
    def load(cls, path: Path = DATA / "passages.jsonl") -> Passages:
        """Read a file with one JSON object a line, each with ``title`` and ``text``."""
        return cls(f"{row['title']}: {row['text']}" for row in read_rows(path))

    def search(self, query: str, limit: int = 3) -> list[str]:
        """The passages that fit the query best, best first; those that share no word with it are left out."""
        wanted = set(words(query))
        scores = [self._score(index, wanted) for index in range(len(self._texts))]
        best = sorted(range(len(scores)), key=lambda index: -scores[index])[:limit]
        return [self._texts[index] for index in best if scores[index] > 0]

    def _score(self, index: int, wanted: set[str]) -> float:
        count, held_back = self._counts[index], 1 - self.B + self.B * self._lengths[index] / self._average
        return sum(
            self._rarity(word) * count[word] * (self.K1 + 1) / (count[word] + self.K1 * held_back)
            for word in wanted & count.keys()
        )

    def _rarity(self, word: str) -> float:
        holding = self._holding[word]
        return math.log(1 + (len(self._texts) - holding + 0.5) / (holding + 0.5))


class Answer(dspy.Signature):
    """Answer the question from the passages. Say that it was not found when they do not hold the answer."""

    passages: list[str] = dspy.InputField()
    question: str = dspy.InputField()
    asked_by: str = dspy.InputField(desc="who asks, as they signed; may be empty")
    answer: str = dspy.OutputField(desc="one sentence")
    found: bool = dspy.OutputField(desc="whether the passages hold the answer")


class Research(dspy.Signature):
    """Answer the question from what the tools find. Search again with other words when nothing fits."""

    question: str = dspy.InputField()
    asked_by: str = dspy.InputField(desc="who asks, as they signed; may be empty")
    answer: str = dspy.OutputField(desc="one sentence")
    found: bool = dspy.OutputField(desc="whether the tools found the answer")


class QuestionAnswering(dspy.Module):
    """Answers one question at a time.

    Args:
        collection: What to search.
        limit: Passages that the quick answer reads, at least 1.
        agent: Whether an agent goes on searching when the quick answer says that it found nothing.
        agent_lm: The agent's model; ``None`` takes the one that DSPy is configured with.
    """

    def __init__(
        self, collection: Passages, *, limit: int = 3, agent: bool = True, agent_lm: dspy.LM | None = None
    ) -> None:
        super().__init__()
        self.limit = limit

        def search_passages(query: str, limit: int = 5) -> list[str]:
            """Search the collection for passages that share words with the query."""
            return collection.search(query, limit)

        self.search = dspy.Tool(search_passages)
        self.quick = dspy.ChainOfThought(Answer)
        self.agent = dspy.ReAct(Research, tools=[self.search], max_iters=3) if agent else None
        if self.agent is not None and agent_lm is not None:
            self.agent.set_lm(agent_lm)

    def forward(self, question: str, asked_by: str = "") -> dspy.Prediction:
        """Answer a question; ``answer`` and ``found`` of the prediction are what to read."""
        passages = self.search(query=question, limit=self.limit)
        prediction = self.quick(passages=passages, question=question, asked_by=asked_by)
        if prediction.found or self.agent is None:
            return prediction
        return self.agent(question=question, asked_by=asked_by)

    async def aforward(self, question: str, asked_by: str = "") -> dspy.Prediction:
        """The same without blocking the event loop, for ``await program.acall(...)``."""
        passages = await self.search.acall(query=question, limit=self.limit)
        prediction = await self.quick.acall(passages=passages, question=question, asked_by=asked_by)
        if prediction.found or self.agent is None:
            return prediction
        return await self.agent.acall(question=question, asked_by=asked_by)


def words(text: str) -> Iterator[str]:
    """The words that a search goes by: lower case, without stop words, plurals cut to their singular."""
    for word in re.findall(r"\w+", text.lower()):
        if word not in _STOP_WORDS:
            yield word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word  # noqa: PLR2004


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one JSON object a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def agrees(answer: str, reference: str) -> bool:
    """Whether an answer holds the reference answer, word for word, whatever the case."""
    return re.search(rf"(?<!\w){re.escape(reference)}(?!\w)", answer, re.IGNORECASE) is not None


def main() -> None:
    """Answer the question of the command line."""
    parser = argparse.ArgumentParser(description="Answer a question from a small collection of texts.")
    parser.add_argument("question")
    parser.add_argument("--model", default="openai/gpt-4o-mini", help="any model that dspy.LM takes")
    arguments = parser.parse_args()
    dspy.configure(lm=dspy.LM(arguments.model))
    print(QuestionAnswering(Passages.load())(question=arguments.question).answer)


if __name__ == "__main__":
    main()
