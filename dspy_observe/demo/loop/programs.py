"""The program of the story and its two versions: one that answers, and one whose new instruction breaks it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import dspy

from dspy_observe.demo.model import SMALL_MODEL
from dspy_observe.demo.program import load_program
from dspy_observe.registry import SignatureRegistry

__all__ = ["BAD", "ENVIRONMENT", "GOOD", "PROGRAM", "factory", "make_lm", "register"]

PROGRAM: Final = "facts-qa"
ENVIRONMENT: Final = "production"
GOOD: Final = "v1"
BAD: Final = "v2"
_INSTRUCTIONS: Final = {
    GOOD: "Answer the question from the passages. Say that it was not found when they do not hold the answer.",
    BAD: "Be friendly. Answer the question from the passages in plain prose, without headers or markers of any kind.",
}
"""What an optimizer or a hasty edit can do: the second reads well, and takes away what replies are parsed by."""


def factory() -> Callable[[], Any]:
    """What makes the untuned program."""
    example = load_program()
    collection = example.Passages.load()
    return lambda: example.QuestionAnswering(collection, agent=False)


def make_lm(base_url: str) -> dspy.LM:
    """The LM at an address; no answer of it is kept, as every question has to be answered anew."""
    return dspy.LM(f"openai/{SMALL_MODEL}", api_base=base_url, api_key="stand-in", cache=False, num_retries=1)


def register(registry: SignatureRegistry, version: str) -> None:
    """Register one of the versions."""
    program = factory()()
    predictor = program.quick.predict
    predictor.signature = predictor.signature.with_instructions(_INSTRUCTIONS[version])
    registry.register_program(PROGRAM, program, version=version, author="demo")
