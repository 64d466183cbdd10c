"""The program that is observed: ``examples/question_answering.py``, from the checkout or from the installed package."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final

__all__ = ["Question", "examples_folder", "load_program", "load_questions"]

_PACKAGE: Final = Path(__file__).parents[1]
_NAME: Final = "question_answering"


@dataclass(frozen=True, slots=True)
class Question:
    """A question and the reference answer, which a good answer holds word for word."""

    text: str
    reference: str


def examples_folder() -> Path:
    """Where the examples are: inside the installed package, else beside the package in a checkout.

    Raises:
        FileNotFoundError: They are in neither place.
    """
    for folder in (_PACKAGE / "examples", _PACKAGE.parent / "examples"):
        if (folder / f"{_NAME}.py").is_file():
            return folder
    raise FileNotFoundError(f"{_NAME}.py is neither in the package nor beside it; install dspy-observe from its wheel")


def load_program() -> ModuleType:
    """The example as a module; loaded once."""
    name = f"dspy_observe_examples_{_NAME}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, examples_folder() / f"{_NAME}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # DSPy resolves the annotations of signatures through it
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def load_questions() -> list[Question]:
    """The questions of the collection."""
    rows = load_program().read_rows(examples_folder() / "data" / "questions.jsonl")
    return [Question(row["question"], row["answer"]) for row in rows]
