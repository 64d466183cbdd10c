"""A stored program that does not fit the code is refused in words, and a migration makes it fit."""

from __future__ import annotations

import enum
import logging
from typing import Any

import dspy
import pydantic
import pytest

from dspy_observe.errors import ObserveError
from dspy_observe.registry.programs import (
    IncompatibleProgramError,
    ProgramFactoryError,
    ProgramStateError,
    restore,
    snapshot,
)


class Old(dspy.Signature):
    """Answer."""

    context: str = dspy.InputField(desc="what is known")
    question: str = dspy.InputField(desc="what is asked")
    answer: str = dspy.OutputField(desc="one word")


def tuned(signature: Any = Old) -> dspy.Module:
    """A predictor with state in every field."""
    program = dspy.Predict(signature)
    program.signature = program.signature.with_instructions("Tuned.")
    program.demos = [dspy.Example(context="c", question="q", answer="a")]
    return program


def refused(program: dspy.Module, factory: Any) -> list[tuple[str, str]]:
    """Kind and subject of each difference; the message names each."""
    with pytest.raises(IncompatibleProgramError) as caught:
        restore(factory, snapshot(program))
    assert isinstance(caught.value, ObserveError)
    for difference in caught.value.differences:
        assert difference.message in str(caught.value)
        assert difference.subject in difference.message
        assert difference.to_dict()["message"] == str(difference)
    return [(one.kind, one.subject) for one in caught.value.differences]


def changed(**fields: Any) -> type[dspy.Signature]:
    """A signature of (type, field) pairs."""
    return dspy.Signature(fields, "Answer.")


TEXT_IN, TEXT_OUT = (str, dspy.InputField()), (str, dspy.OutputField())


@pytest.mark.parametrize(
    ("signature", "expected"),
    [
        ("context, question, lang -> answer", [("field_unexpected", "lang")]),
        ("context, lang, question -> answer", [("field_unexpected", "lang")]),
        ("question -> answer", [("field_missing", "context")]),
        ("question, context -> answer", [("fields_reordered", "input")]),
        ("context, user_question -> answer", [("field_missing", "question"), ("field_unexpected", "user_question")]),
        ("context, question -> answer: int", [("field_retyped", "answer")]),
        ("context -> question, answer", [("field_direction", "question")]),
    ],
)
def test_each_change_of_a_signature_is_named(signature: str, expected: list[tuple[str, str]]) -> None:
    """A field inserted, removed, moved, renamed, retyped or turned round is refused, and nothing else is blamed."""
    assert refused(tuned(), lambda: dspy.Predict(signature)) == expected


def test_a_rename_is_guessed() -> None:
    """The message says which new field the missing one may have become."""
    with pytest.raises(IncompatibleProgramError, match=r"'question' .*; perhaps it is now 'user_question'"):
        restore(lambda: dspy.Predict("context, user_question -> answer"), snapshot(tuned()))


def test_a_field_that_became_optional_is_named() -> None:
    """A default changes what the program accepts."""
    optional = changed(context=(str, dspy.InputField(default="")), question=TEXT_IN, answer=TEXT_OUT)
    assert refused(tuned(), lambda: dspy.Predict(optional)) == [("field_required", "context")]


def test_a_change_inside_a_model_or_enumeration_is_named() -> None:
    """Types of the same name are compared by what is in them."""

    def signature(member: str, kind: type) -> Any:
        color = enum.Enum("Color", {"RED": member})
        made = pydantic.create_model("Found", amount=(kind, ...))
        return changed(question=TEXT_IN, color=(color, dspy.OutputField()), found=(made, dspy.OutputField()))

    before = dspy.Predict(signature("red", int))
    assert refused(before, lambda: dspy.Predict(signature("rot", int))) == [("field_retyped", "color")]
    assert refused(before, lambda: dspy.Predict(signature("red", float))) == [("field_retyped", "found")]
    restore(lambda: dspy.Predict(signature("red", int)), snapshot(before))


def test_predictors_that_come_and_go_are_named(shapes: Any) -> None:
    """One more, one fewer, a renamed one, a list that grew."""

    class More(shapes.Pipeline):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.steps.append(dspy.Predict("question -> answer"))
            self.renamed = self.first
            del self.first

    assert refused(shapes.Pipeline(), More) == [
        ("predictor_missing", "first.predict"),
        ("predictor_unexpected", "steps[2]"),
        ("predictor_unexpected", "renamed.predict"),
    ]


def test_predict_and_chain_of_thought_do_not_pass_for_each_other() -> None:
    """The predictor of a ChainOfThought lies at another path and has a field more."""
    assert refused(dspy.Predict(Old), lambda: dspy.ChainOfThought(Old)) == [
        ("predictor_missing", "self"), ("predictor_unexpected", "predict"),
    ]  # fmt: skip


def test_changed_tools_are_named(shapes: Any) -> None:
    """A tool gone, a tool new and an argument retyped: the stored instructions would list the old ones."""

    def look_up(topic: int, limit: int = 3) -> str:
        """Looks a topic up."""
        return ""

    def other(topic: str) -> str:
        """Something else."""
        return ""

    before = shapes.factories["agent"]()
    now = refused(before, lambda: dspy.ReAct("question -> answer", tools=[look_up]))
    assert now == [("tool_changed", "look_up")]
    gone = refused(before, lambda: dspy.ReAct("question -> answer", tools=[other]))
    assert ("tool_missing", "look_up") in gone
    assert ("tool_unexpected", "other") in gone


def test_arguments_of_tools_are_compared_by_what_they_take() -> None:
    """The description of an argument is no difference; one that is called ``title`` is an argument like any other."""

    def agent(description: str, **fields: Any) -> dspy.Module:
        def book(order: Any) -> str:
            return ""

        book.__annotations__["order"] = pydantic.create_model("Order", **fields)
        tool = dspy.Tool(book, desc="Books.", arg_desc={"order": description})
        return dspy.ReAct("question -> answer", tools=[tool])

    before = agent("what to book", title=(str, ...))
    restore(lambda: agent("the order", title=(str, ...)), snapshot(before))
    assert refused(before, lambda: agent("what to book", title=(int, ...))) == [("tool_changed", "book")]
    assert refused(before, lambda: agent("what to book")) == [("tool_changed", "book")]


def test_a_tool_described_otherwise_is_loaded_with_a_warning(shapes: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A docstring constrains nothing; but the stored instructions quote the old one."""

    def look_up(topic: str, limit: int = 3) -> str:
        """Finds rivers."""
        return ""

    with caplog.at_level(logging.WARNING, "dspy_observe.registry"):
        restore(lambda: dspy.ReAct("question -> answer", tools=[look_up]), snapshot(shapes.factories["agent"]()))
    assert "look_up" in caplog.text


def test_another_adapter_is_loaded_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """The adapter belongs to the settings, which loading does not touch."""
    with dspy.context(adapter=dspy.JSONAdapter()):
        stored = snapshot(tuned())
    with caplog.at_level(logging.WARNING, "dspy_observe.registry"):
        restore(lambda: dspy.Predict(Old), stored)
    assert "JSONAdapter" in caplog.text


def test_instructions_changed_in_the_code_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """The stored instructions win over a rule added to the docstring since, but not in silence."""

    class New(Old):
        """Answer. Never give medical advice."""

    stored = snapshot(tuned(), factory=lambda: dspy.Predict(Old))
    with caplog.at_level(logging.WARNING, "dspy_observe.registry"):
        restore(lambda: dspy.Predict(Old), stored)
        assert caplog.text == ""
        program = restore(lambda: dspy.Predict(New), stored)
    assert program.signature.instructions == "Tuned."
    assert "has no effect: self" in caplog.text


def test_a_migration_binds_text_by_name() -> None:
    """After a rename and a move in the stored data, each field has its own text, whatever its position."""

    def migrate(data: dict[str, Any]) -> dict[str, Any]:
        state = data["predictors"]["self"]
        context, question, answer = state["fields"]
        question["name"] = "user_question"
        state["fields"] = [answer, question, context]
        for demo in state["demos"]:
            demo["fields"]["user_question"] = demo["fields"].pop("question")
        return data

    stored = snapshot(tuned())
    program = restore(lambda: dspy.Predict("user_question, context -> answer"), stored, migrate=migrate)
    described = {name: info.json_schema_extra["desc"] for name, info in program.signature.fields.items()}
    assert described == {"user_question": "what is asked", "context": "what is known", "answer": "one word"}
    assert program.demos[0].user_question == "q"
    assert stored.predictors[0].fields[1].name == "question"


def test_what_a_migration_makes_is_checked() -> None:
    """A migration cannot bring in what a file could not."""
    with pytest.raises(ProgramStateError, match="unknown key 'forward'"):
        restore(lambda: dspy.Predict(Old), snapshot(tuned()), migrate=lambda data: {**data, "forward": "x"})


def test_nothing_is_applied_when_anything_differs(shapes: Any) -> None:
    """The program that the factory made is as new when one of its predictors does not fit."""
    made: list[Any] = []

    class Changed(shapes.Pipeline):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.by_name["x"] = dspy.Predict("other -> answer")
            made.append(self)

    program = shapes.Pipeline()
    program.steps[0].demos = [{"question": "q", "answer": "a"}]
    with pytest.raises(IncompatibleProgramError):
        restore(Changed, snapshot(program))
    assert made[0].steps[0].demos == []


def test_settings_that_are_not_stored_are_asked_for() -> None:
    """An LM with an endpoint, and a config value that is a class, must come from the code."""
    program = dspy.Predict("question -> answer", response_format=pydantic.BaseModel)
    program.lm = dspy.LM("openai/local", api_base="http://127.0.0.1:9/v1")
    found = refused(program, lambda: dspy.Predict("question -> answer"))
    assert found == [("config_unavailable", "response_format"), ("lm_unavailable", "openai/local")]
    mine = dspy.LM("openai/mine")
    restored = restore(
        lambda: dspy.Predict("question -> answer", response_format=pydantic.BaseModel),
        snapshot(program),
        lm_for=lambda identity: mine,
    )
    assert restored.lm is mine
    assert restored.config == {"response_format": pydantic.BaseModel}


def test_a_factory_must_make_a_program() -> None:
    """A factory that gives a class or nothing is told so."""
    with pytest.raises(ProgramFactoryError, match="NoneType"):
        restore(lambda: None, snapshot(tuned()))
