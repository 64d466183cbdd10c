"""Cases 28, 29 and 30: one record for one logical call; tools that fail inside an agent that does not."""

from __future__ import annotations

from collections import Counter
from typing import Any

import dspy
import pytest
from dspy.adapters.baml_adapter import BAMLAdapter
from opentelemetry.trace import StatusCode

from dspy_observe import CallbackGroup
from dspy_observe.testing import offline_lm

CHAT = {"answer": "42"}
XML = "<answer>42</answer>"


class Loud(dspy.ChatAdapter):
    """An adapter of the user's own that extends another one's prompt."""

    def format(self, signature: Any, demos: Any, inputs: Any) -> Any:
        return super().format(signature, demos, inputs)


ADAPTERS = [
    (dspy.ChatAdapter(), CHAT),
    (dspy.JSONAdapter(), '{"answer": "42"}'),
    (dspy.XMLAdapter(), XML),
    (BAMLAdapter(), '{"answer": "42"}'),
    (Loud(), CHAT),
]


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("adapter", "reply"), ADAPTERS, ids=lambda value: type(value).__name__)
def test_one_format_and_one_parse(observing: Any, adapter: Any, reply: Any, grouped: bool) -> None:
    """Case 28: adapters fire their hooks once per class; there is one record and one span for each prompt and reply."""
    observed = observing(adapter_spans=True)
    callbacks = (
        [observed.witness, CallbackGroup(observed.otel, observed.capture), observed.idle]
        if grouped
        else observed.callbacks
    )
    with dspy.context(lm=offline_lm(reply), adapter=adapter, callbacks=callbacks):
        assert dspy.Predict("question -> answer")(question="why?").answer == "42"
    name = type(adapter).__name__
    assert Counter(record.kind for record in observed.records) == {
        "adapter_format": 1, "lm": 1, "adapter_parse": 1, "module": 1,
    }  # fmt: skip
    workflow = "invoke_workflow Predict"
    assert observed.outline() == {
        workflow: 1, f"{workflow} > format {name}": 1, f"{workflow} > chat model": 1, f"{workflow} > parse {name}": 1,
    }  # fmt: skip


def test_hooks_of_json_adapters_really_nest(witness: Any) -> None:
    """Case 28: DSPy does fire more than one hook for these adapters; without that the tests above prove nothing."""
    for adapter, reply in ADAPTERS[1:]:
        witness.calls.clear()
        with dspy.context(lm=offline_lm(reply), adapter=adapter, callbacks=[witness]):
            dspy.Predict("question -> answer")(question="why?")
        kinds = Counter(call.kind for call in witness.calls.values())
        assert kinds["adapter_format"] + kinds["adapter_parse"] > 2, type(adapter).__name__


@pytest.mark.parametrize("adapter_spans", [False, True])
def test_an_lm_inside_a_parse(observing: Any, adapter_spans: bool) -> None:
    """Case 28: TwoStepAdapter's second LM stands under the parse that calls it, else under its module."""
    observed = observing(adapter_spans=adapter_spans)
    adapter = dspy.TwoStepAdapter(offline_lm(CHAT, model="offline/extractor"))
    with dspy.context(lm=offline_lm("It is 42."), adapter=adapter, callbacks=observed.callbacks):
        assert dspy.Predict("question -> answer")(question="why?").answer == "42"
    workflow = "invoke_workflow Predict"
    inner = f"{workflow} > parse TwoStepAdapter > chat extractor" if adapter_spans else f"{workflow} > chat extractor"
    assert observed.outline()[inner] == 1
    assert observed.outline()[f"{workflow} > chat model"] == 1
    by_id = {record.call_id: record for record in observed.records}
    (extractor,) = (record for record in observed.records if record.name == "offline/extractor")
    parse = by_id[extractor.parent_id]
    assert (parse.kind, parse.name) == ("adapter_parse", "TwoStepAdapter")
    assert by_id[parse.parent_id].kind == "module"
    assert {record.root_id for record in observed.records} == {by_id[parse.parent_id].call_id}


def test_a_failed_parse_is_told_on_its_module(observed: Any) -> None:
    """Case 28: without adapter spans, a reply that cannot be parsed is an event on the span of its module."""
    lm = offline_lm(["nonsense", '{"answer": "42"}'])
    with dspy.context(lm=lm, callbacks=observed.callbacks):
        assert dspy.Predict("question -> answer")(question="why?").answer == "42"
    observed.check_tree()
    (workflow,) = observed.named("invoke_workflow Predict")
    (event,) = [event for event in workflow.events if event.name == "dspy.adapter_failure"]
    assert dict(event.attributes) == {
        "dspy.adapter": "ChatAdapter",
        "dspy.adapter.stage": "parse",
        "error.type": "AdapterParseError",
    }
    assert workflow.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("grouped", [False, True])
def test_the_same_callback_twice(observed: Any, grouped: bool) -> None:
    """Case 29: given globally and on the LM, a callback counts each call once."""
    ours = (
        [CallbackGroup(observed.otel, observed.capture), observed.idle]
        if grouped
        else [observed.otel, observed.capture]
    )
    lm = offline_lm(CHAT, callbacks=ours)
    with dspy.context(lm=lm, callbacks=[observed.witness, *ours]):
        dspy.Predict("question -> answer")(question="why?")
    observed.check_tree()
    assert Counter(record.kind for record in observed.records)["lm"] == 1


async def test_the_same_callback_on_everything(observed: Any) -> None:
    """Case 29: globally, on the module, on the LM and in a group, for an async call."""
    group = CallbackGroup(observed.otel, observed.capture)
    lm = offline_lm(CHAT, callbacks=[observed.otel, group])
    predict = dspy.Predict("question -> answer", callbacks=[observed.capture])
    with dspy.context(lm=lm, callbacks=[*observed.callbacks, group, observed.otel]):
        await predict.acall(question="why?")
    observed.check_tree()
    assert Counter(record.kind for record in observed.calls) == {"lm": 1, "module": 1}


def agent(observed: Any, **options: Any) -> Any:
    """An agent whose tool fails at first."""
    attempts: list[str] = []

    def fetch(city: str) -> str:
        """Weather of a city."""
        attempts.append(city)
        if len(attempts) == 1:
            raise TimeoutError("upstream password=hunter2hunter2")
        return "sunny"

    call = {"next_thought": "t", "next_tool_name": "fetch", "next_tool_args": {"city": "Bern"}}
    done = {"next_thought": "t", "next_tool_name": "finish", "next_tool_args": {}}
    lm = offline_lm([call, call, done, {"reasoning": "r", "answer": "sunny"}])
    dspy.configure(lm=lm, callbacks=observed.callbacks)
    return dspy.ReAct("question -> answer", tools=[fetch])


def check_agent(observed: Any, answer: Any) -> None:
    """The tool failed, the agent did not."""
    assert answer.answer == "sunny"
    observed.check_tree()
    tools = [(record.name, record.outcome, record.error_type) for record in observed.records if record.kind == "tool"]
    assert tools == [("fetch", "timeout", "TimeoutError"), ("fetch", "ok", None), ("finish", "ok", None)]
    failed, fetched = observed.named("execute_tool fetch")
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.attributes["error.type"] == "TimeoutError"
    assert "hunter2" not in failed.to_json()
    assert fetched.status.status_code is StatusCode.UNSET
    (root,) = observed.named("invoke_agent ReAct")
    assert root.status.status_code is StatusCode.UNSET
    assert observed.records[-1].outcome == "ok"
    (finish,) = observed.named("execute_tool finish")
    assert finish.attributes["gen_ai.tool.name"] == "finish"
    assert finish.parent.span_id == root.context.span_id


def test_a_tool_that_fails_in_an_agent(observed: Any) -> None:
    """Case 30: the tool's span is an error, the agent that carried on is none, `finish` is a tool like others."""
    check_agent(observed, agent(observed)(question="weather?"))


async def test_a_tool_that_fails_in_an_async_agent(observed: Any) -> None:
    """Case 30: the same with acall."""
    program = agent(observed)
    with dspy.context(allow_tool_async_sync_conversion=True):
        check_agent(observed, await program.acall(question="weather?"))


def test_an_unknown_tool(observed: Any) -> None:
    """Case 30: an agent that names a tool that does not exist leaves no half call behind."""
    lm = offline_lm([{"next_thought": "t", "next_tool_name": "nowhere", "next_tool_args": {}}, "gibberish"])
    dspy.configure(lm=lm, callbacks=observed.callbacks)
    with pytest.raises(dspy.utils.exceptions.AdapterParseError):
        dspy.ReAct("question -> answer", tools=[])(question="weather?")
    observed.check_tree()
    (root,) = observed.named("invoke_agent ReAct")
    assert root.status.status_code is StatusCode.ERROR
