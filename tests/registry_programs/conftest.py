"""Programs of every shape that DSPy has, and what they ask an LM that needs no network."""

from __future__ import annotations

import enum
from collections.abc import Callable
from datetime import date
from typing import Any, Literal

import dspy
import pydantic
import pytest

from dspy_observe.testing import offline_lm

PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAA"
    "AABJRU5ErkJggg=="
)


class Mood(enum.Enum):
    GLAD = "glad"
    SAD = "sad"


class Line(pydantic.BaseModel):
    item: str
    price: float


class Invoice(pydantic.BaseModel):
    number: int
    day: date
    lines: list[Line] = []


class Triage(dspy.Signature):
    """Sort a message."""

    message: str = dspy.InputField(desc="what the customer wrote")
    tags: list[str] = dspy.InputField()
    urgency: Literal["low", "high"] = dspy.OutputField()
    mood: Mood = dspy.OutputField(desc="how the customer feels")
    score: int = dspy.OutputField()


class Billing(dspy.Signature):
    """Read an invoice."""

    scan: dspy.Image = dspy.InputField()
    known: Invoice = dspy.InputField()
    by_day: dict[str, float] = dspy.InputField()
    invoice: Invoice = dspy.OutputField()
    paid: bool | None = dspy.OutputField()


class Talk(dspy.Signature):
    """Keep talking."""

    question: str = dspy.InputField()
    history: dspy.History = dspy.InputField()
    answer: str = dspy.OutputField()


def look_up(topic: str, limit: int = 3) -> str:
    """Looks a topic up."""
    return f"{topic}: {limit} rivers"


class Inner(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.p = dspy.Predict("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        return self.p(question=question)


class Pipeline(dspy.Module):
    """Predictors as attributes, in a list, in a dict, and in a sub-module."""

    def __init__(self) -> None:
        super().__init__()
        self.sub = Inner()
        self.first = dspy.ChainOfThought("question -> answer", temperature=0.4)
        self.steps = [dspy.Predict("question -> answer"), dspy.Predict("question -> answer")]
        self.by_name = {"x": dspy.Predict(Triage)}

    def forward(self, question: str) -> dspy.Prediction:
        self.sub(question=question)
        self.first(question=question)
        for step in self.steps:
            step(question=question)
        return self.by_name["x"](message=question, tags=["a"])


FACTORIES: dict[str, Callable[[], dspy.Module]] = {
    "predict": lambda: dspy.Predict("question -> answer"),
    "typed": lambda: dspy.Predict(Triage),
    "chain": lambda: dspy.ChainOfThought(Triage),
    "models": lambda: dspy.Predict(Billing),
    "history": lambda: dspy.ChainOfThought(Talk),
    "agent": lambda: dspy.ReAct("question -> answer", tools=[look_up], max_iters=2),
    "pipeline": Pipeline,
}

INPUTS: dict[str, dict[str, Any]] = {
    "predict": {"question": "why?"},
    "typed": {"message": "help", "tags": ["a", "b"]},
    "chain": {"message": "help", "tags": ["a", "b"]},
    "models": {
        "scan": dspy.Image(PIXEL), "known": Invoice(number=1, day=date(2024, 1, 2)), "by_day": {"mon": 1.5, "apr": 2.0},
    },
    "history": {"question": "and then?", "history": dspy.History(messages=[{"question": "q", "answer": "a"}])},
    "agent": {"question": "why?"},
    "pipeline": {"question": "why?"},
}  # fmt: skip

ANSWERS = {
    "reasoning": "because", "answer": "42", "urgency": "low", "mood": "glad", "score": "3",
    "invoice": {"number": 2, "day": "2024-01-02", "lines": []}, "paid": "true", "next_thought": "done",
    "next_tool_name": "finish", "next_tool_args": "{}",
}  # fmt: skip


def answering() -> dspy.LM:
    """An LM that fills every field of the programs above."""
    return offline_lm(ANSWERS)


def prompts(program: dspy.Module, inputs: dict[str, Any], adapter: dspy.Adapter | None = None) -> list[Any]:
    """The messages and parameters of every call that one run of a program makes."""
    lm = answering()
    with dspy.context(lm=lm, adapter=adapter):
        program(**inputs)
    return [(entry["messages"], entry["kwargs"]) for entry in lm.history]


class Shapes:
    """What the tests of this folder share."""

    factories = FACTORIES
    inputs = INPUTS
    prompts = staticmethod(prompts)
    answering = staticmethod(answering)
    pixel = PIXEL
    Mood, Line, Invoice, Triage, Billing, Talk = Mood, Line, Invoice, Triage, Billing, Talk
    Inner, Pipeline = Inner, Pipeline
    look_up = staticmethod(look_up)


@pytest.fixture(scope="session")
def shapes() -> type[Shapes]:
    """The programs, their inputs, and how to see their prompts."""
    return Shapes
