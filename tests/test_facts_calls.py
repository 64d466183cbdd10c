"""Who is called: kind, name, program, version, role, operation, and how the call ended.

Long: one file holds all tests of one module.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import copy
import gc
from collections.abc import Iterator
from typing import Any

import dspy
import pytest
from dspy.utils.exceptions import LMError, LMRateLimitError, LMTimeoutError

from dspy_observe.errors import ConfigurationError
from dspy_observe.facts import calls
from dspy_observe.facts.calls import begin, evaluation, outcome_of, tag, tag_of
from dspy_observe.facts.lm import HistoryTap, LMCapture
from dspy_observe.records import ROLES, CallStart
from dspy_observe.testing import Capture, capture_records, offline_lm


class Answer(dspy.Module):
    """A program of one predictor."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        """Answer."""
        return self.predict(question=question)


class Outer(dspy.Module):
    """A program around another one."""

    def __init__(self, inner: dspy.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, question: str) -> dspy.Prediction:
        """Pass on."""
        return self.inner(question=question)


@pytest.fixture
def lm() -> Iterator[dspy.LM]:
    """An offline LM in DSPy's settings."""
    made = offline_lm({"answer": "42"})
    with dspy.context(lm=made):
        yield made


def start_of(kind: Any, instance: Any, inputs: dict[str, Any] | None = None, parent: Any = None) -> CallStart:
    """The start of one call."""
    return begin("c1", kind, instance, inputs or {}, parent, 1.0)


# --- tags ------------------------------------------------------------------------------------------------------------


def test_a_tag_belongs_to_the_instance_and_not_to_its_copies() -> None:
    """A compiled copy of version 1 is not version 1."""
    program = Answer()
    tag(program, "qa", "v1", "canary")
    found = tag_of(program)
    assert found is not None
    assert (found.name, found.version, found.role) == ("qa", "v1", "canary")
    for other in (Answer(), copy.deepcopy(program), program.reset_copy()):
        assert tag_of(other) is None


def test_a_tag_keeps_a_version_that_looks_like_an_address() -> None:
    """Alerts compare it with the registry's, which takes it as it is."""
    program = Answer()
    for version in ("1.2.3.4", "1.2.3.5"):
        tag(program, "support-4111111111111111", version)
        found = tag_of(program)
        assert found is not None
        assert (found.name, found.version) == ("support-4111111111111111", version)


def test_a_tag_goes_with_its_instance() -> None:
    """The map of tags does not grow with short-lived programs."""
    before = len(calls._tags)
    for _ in range(20):
        tag(Answer(), "qa", "v1")
    gc.collect()
    assert len(calls._tags) <= before


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("text", "qa"), "module"),
        ((Answer, "qa"), "module"),
        ((Answer(), ""), "name"),
        ((Answer(), None), "name"),
        ((Answer(), 7), "name"),
        ((Answer(), "qa", 7), "version"),
        ((Answer(), "qa", ""), "version"),
        ((Answer(), "qa", "v1", "boss"), "role"),
        ((Answer(), "qa", "v1", None), "role"),
        ((Answer(), "qa", "v1", ["stable"]), "role"),
    ],
)
def test_a_tag_that_cannot_work_is_refused(arguments: tuple[Any, ...], field: str) -> None:
    """The error names the argument and what to pass instead."""
    with pytest.raises(ConfigurationError) as caught:
        tag(*arguments)
    assert caught.value.field == field
    assert caught.value.fix


@pytest.mark.usefixtures("lm")
def test_the_innermost_tagged_module_names_the_program_for_all_below_it() -> None:
    """Without a tag, the outermost module's class does."""
    inner = Answer()
    outer = Outer(inner)
    with capture_records() as records:
        outer(question="?")
        tag(outer, "outside", "v1")
        outer(question="?")
        tag(inner, "inside", "v2", "shadow")
        outer(question="?")
    per_run = len(records) // 3
    runs = [records[i * per_run : (i + 1) * per_run] for i in range(3)]
    assert {(r.program, r.version, r.role) for r in runs[0]} == {("Outer", None, "stable")}
    assert {(r.program, r.version, r.role) for r in runs[1]} == {("outside", "v1", "stable")}
    below = {(r.program, r.version, r.role) for r in runs[2] if r.name != "Outer"}
    assert below == {("inside", "v2", "shadow")}
    assert runs[2][-1].program == "outside"


@pytest.mark.usefixtures("lm")
def test_the_tag_is_found_through_callers_that_no_callback_saw() -> None:
    """A callback on the LM alone hears of no module; DSPy's list of calling modules names the program all the same."""
    capture = Capture()
    program = Outer(Answer())
    tag(program, "qa", "v3", "canary")
    with dspy.context(lm=offline_lm({"answer": "42"}, callbacks=[capture])):
        program(question="?")
    (record,) = capture.records
    assert (record.kind, record.parent_id) == ("lm", None)
    assert (record.program, record.version, record.role) == ("qa", "v3", "canary")


def test_an_lm_called_by_itself_has_no_program(lm: dspy.LM) -> None:
    """Nothing is invented."""
    with capture_records() as records:
        lm("hello")
    (record,) = records
    assert (record.program, record.version, record.role, record.is_program) == (None, None, "stable", False)


# --- what a start says -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "name", "provider"),
    [
        ("openai/gpt-4o-mini", "openai/gpt-4o-mini", "openai"),
        ("gemini/gemini-2.0-flash", "gemini/gemini-2.0-flash", "gcp.gemini"),
        ("vertex_ai/x", "vertex_ai/x", "gcp.vertex_ai"),
        ("bedrock/anthropic/claude", "bedrock/anthropic/claude", "aws.bedrock"),
        ("azure/mine", "azure/mine", "azure.ai.openai"),
        ("xai/grok", "xai/grok", "x_ai"),
        ("mistral/large", "mistral/large", "mistral_ai"),
        ("groq/llama", "groq/llama", "groq"),
        ("local-model", "local-model", None),
    ],
)
def test_model_and_provider_of_an_lm(model: str, name: str, provider: str | None) -> None:
    """Providers have their GenAI convention names; a model without prefix has no known provider."""

    class Named:
        model_type = "chat"

    instance = Named()
    instance.model = model  # type: ignore[attr-defined]
    start = start_of("lm", instance)
    assert (start.model_requested, start.name, start.provider) == (model, name, provider)
    assert start.operation == "chat"
    assert start.streaming is False


@pytest.mark.parametrize(
    ("model_type", "operation"),
    [("chat", "chat"), ("responses", "chat"), ("text", "text_completion"), ("embeddings", "embeddings"), ("?", "chat")],
)
def test_operation_of_an_lm(model_type: str, operation: str) -> None:
    """By the LM's own type."""
    instance = type("Thing", (), {"model": "a/b", "model_type": model_type})()
    assert start_of("lm", instance).operation == operation


def test_an_lm_without_model_goes_by_its_class() -> None:
    """And without a model type it chats."""
    start = start_of("lm", type("Odd", (), {})())
    assert (start.name, start.provider, start.operation) == ("Odd", None, "chat")


@pytest.mark.parametrize(
    ("instance", "kind", "name", "operation"),
    [
        (dspy.Tool(lambda x: x, name="search"), "tool", "search", "execute_tool"),
        (dspy.ReAct("question -> answer", tools=[]), "module", "ReAct", "invoke_agent"),
        (Answer(), "module", "Answer", "invoke_workflow"),
        (dspy.ChatAdapter(), "adapter_format", "ChatAdapter", None),
        (dspy.JSONAdapter(), "adapter_parse", "JSONAdapter", None),
        (dspy.LabeledFewShot(), "compile", "LabeledFewShot", None),
    ],
)
def test_name_and_operation_of_other_calls(instance: Any, kind: Any, name: str, operation: str | None) -> None:
    """Tools by their name, the rest by their class; operations by the GenAI conventions."""
    start = start_of(kind, instance)
    assert (start.kind, start.name, start.operation) == (kind, name, operation)
    assert (start.model_requested, start.provider, start.streaming) == (None, None, None)
    assert (start.parent_id, start.root_id, start.started_at) == (None, "c1", 1.0)


def test_only_the_outermost_module_is_the_program() -> None:
    """Below a module nothing is; below a tool, DSPy's calling modules decide."""
    parent = start_of("module", Answer())
    assert parent.is_program
    child = begin("c2", "module", Answer(), {}, parent, 2.0)
    assert (child.is_program, child.operation) == (False, None)
    assert (child.parent_id, child.root_id) == ("c1", "c1")
    tool = begin("c3", "tool", dspy.Tool(lambda x: x, name="t"), {}, parent, 2.0)
    with dspy.context(caller_modules=[Answer()]):
        assert not begin("c4", "module", Answer(), {}, tool, 3.0).is_program
    assert begin("c5", "module", Answer(), {}, tool, 3.0).is_program


def test_our_own_history_tap_is_no_calling_module() -> None:
    """During an LM call it stands in that list."""
    tap = HistoryTap(LMCapture("c0", lambda: 0.0, meter_streams=False))
    with dspy.context(caller_modules=[tap]):
        start = start_of("module", Answer())
    assert (start.is_program, start.program) == (True, "Answer")


def test_runs_inside_an_evaluation_have_the_role_eval_and_keep_their_version() -> None:
    """Trial runs must not count as production traffic."""
    program = Answer()
    tag(program, "qa", "v1", "stable")
    root = start_of("evaluate", object(), {"program": program})
    assert (root.program, root.version, root.role) == ("qa", "v1", "eval")
    below = begin("c2", "module", program, {}, root, 2.0)
    assert (below.program, below.version, below.role) == ("qa", "v1", "eval")
    lm_call = begin("c3", "lm", object(), {}, below, 3.0)
    assert (lm_call.program, lm_call.version, lm_call.role) == ("qa", "v1", "eval")


def test_a_compilation_goes_by_its_student() -> None:
    """Tagged or not."""
    student = Answer()
    assert start_of("compile", object(), {"student": student}).program == "Answer"
    tag(student, "qa", "v1")
    start = start_of("compile", object(), {"student": student})
    assert (start.program, start.version, start.role) == ("qa", "v1", "eval")


# --- callbacks in force ----------------------------------------------------------------------------------------------


def test_the_callbacks_in_force_are_those_of_the_context_and_the_instance() -> None:
    """In DSPy's order; a context replaces the list of the process."""
    one, two, three = Capture(), Capture(), Capture()
    assert calls.active_callbacks(object()) == []
    dspy.configure(callbacks=[one])
    assert calls.active_callbacks(Answer()) == [one]
    instance = Answer()
    instance.callbacks = [three]
    assert calls.active_callbacks(instance) == [one, three]
    with dspy.context(callbacks=[two]):
        assert calls.active_callbacks(instance) == [two, three]
    with dspy.context(callbacks=None):
        assert calls.active_callbacks(object()) == []


# --- evaluations -----------------------------------------------------------------------------------------------------


def result(score: Any) -> Any:
    """What an evaluation returns, as far as it matters."""
    return type("Result", (), {"score": score})()


@pytest.mark.parametrize(
    ("inputs", "outputs", "expected"),
    [
        ({}, result(50.0), (0.5, "devset")),
        ({"callback_metadata": {"dataset": "hotpot"}}, result(0.0), (0.0, "hotpot")),
        ({"callback_metadata": {"dataset": 7}}, result(100), (1.0, "7")),
        ({"callback_metadata": "text"}, result(True), (None, "devset")),
        ({"callback_metadata": None}, None, (None, "devset")),
        ({}, result("good"), (None, "devset")),
        ({}, result(float("nan")), (None, "devset")),
        ({}, result(float("inf")), (None, "devset")),
        ({}, result(500.0), (None, "devset")),
        ({}, result(-0.5), (None, "devset")),
    ],
)
def test_score_and_data_set_of_an_evaluation(inputs: Any, outputs: Any, expected: tuple[float | None, str]) -> None:
    """Percent becomes a share; what is no number, or none on that scale, is unknown."""
    assert evaluation(inputs, outputs) == expected


# --- outcomes --------------------------------------------------------------------------------------------------------


def caused(outer: BaseException, cause: BaseException | None, context: BaseException | None = None) -> BaseException:
    """An exception with its chain."""
    outer.__cause__, outer.__context__ = cause, context
    outer.__suppress_context__ = cause is not None  # setting a cause, even None, sets it
    return outer


def raised_from_none(context: BaseException) -> BaseException:
    """What ``raise ValueError() from None`` raises while another exception is handled."""
    made = ValueError()
    made.__context__, made.__suppress_context__ = context, True
    return made


class StatusError(Exception):
    """A foreign SDK's error."""

    def __init__(self, status_code: Any) -> None:
        self.status_code = status_code


CYCLE = ValueError()
CYCLE.__context__ = KeyError()
CYCLE.__context__.__context__ = CYCLE


@pytest.mark.parametrize(
    ("exception", "outcome"),
    [
        (None, "ok"),
        (ValueError(), "error"),
        (asyncio.CancelledError(), "cancelled"),
        (concurrent.futures.CancelledError(), "cancelled"),
        (KeyboardInterrupt(), "cancelled"),
        (SystemExit(), "cancelled"),
        (GeneratorExit(), "cancelled"),
        (caused(ValueError(), asyncio.CancelledError()), "cancelled"),
        (caused(ValueError(), None, GeneratorExit()), "cancelled"),
        (caused(ValueError(), KeyError()), "error"),
        (raised_from_none(asyncio.CancelledError()), "error"),
        (LMRateLimitError("slow down"), "rate_limited"),
        (StatusError(429), "rate_limited"),
        (StatusError(500), "error"),
        (LMTimeoutError("late"), "timeout"),
        (TimeoutError(), "timeout"),
        (LMError("broken"), "error"),
        (CYCLE, "error"),
    ],
    ids=repr,
)
def test_outcomes(exception: BaseException | None, outcome: str) -> None:
    """Cancellation is told from error also behind an LM's own error; chains may be cyclic."""
    assert outcome_of(exception) == outcome


def test_all_roles_are_accepted() -> None:
    """Those of the records, no others."""
    program = Answer()
    for role in ROLES:
        tag(program, "qa", None, role)
        found = tag_of(program)
        assert found is not None
        assert found.role == role
