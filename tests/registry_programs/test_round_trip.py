"""A program that went through a JSON document asks its LM exactly what the original asks."""

from __future__ import annotations

from datetime import date
from typing import Any

import dspy
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from dspy_observe.registry.programs import ProgramSnapshot, content_hash, diff, restore, snapshot

TEXT = st.text(max_size=30)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


def through_json(program: dspy.Module, factory: Any) -> dspy.Module:
    """A program stored as a JSON document and built again."""
    return restore(factory, ProgramSnapshot.from_json(snapshot(program).to_json()))


def value_for(shapes: Any, annotation: Any) -> st.SearchStrategy[Any]:
    """Values of one of the annotations of the signatures under test."""
    lines = st.lists(st.builds(shapes.Line, item=TEXT, price=NUMBERS), max_size=2)
    invoice = st.builds(shapes.Invoice, number=st.integers(), day=st.dates(date(1990, 1, 1)), lines=lines)
    history = st.builds(
        dspy.History, messages=st.lists(st.fixed_dictionaries({"question": TEXT, "answer": TEXT}), max_size=2)
    )
    known = {
        shapes.Mood: st.sampled_from(shapes.Mood),
        shapes.Invoice: invoice,
        dspy.Image: st.sampled_from([dspy.Image(shapes.pixel), dspy.Image("https://example.org/a.png")]),
        dspy.History: history,
        list[str]: st.lists(TEXT, max_size=3),
        dict[str, float]: st.dictionaries(TEXT, NUMBERS, max_size=3),
        dict[str, Any]: st.dictionaries(TEXT, st.one_of(TEXT, st.integers(), st.tuples(TEXT)), max_size=3),
        bool | None: st.sampled_from([True, False, None]),
        int: st.integers(),
        str: TEXT,
    }
    return known[annotation] if annotation in known else st.sampled_from(list(annotation.__args__))


@st.composite
def tunings(draw: st.DrawFn, shapes: Any, program: dspy.Module) -> None:
    """Change everything in a program's predictors that tuning may change."""
    for predictor in program.predictors():
        signature = predictor.signature
        if draw(st.booleans()):
            signature = signature.with_instructions(draw(TEXT))
        name = draw(st.sampled_from(list(signature.fields)))
        if draw(st.booleans()):
            signature = signature.with_updated_fields(name, desc=draw(TEXT), prefix=draw(TEXT))
        predictor.signature = signature
        predictor.demos = draw(st.lists(demos(shapes, signature), max_size=3))
        predictor.config = draw(
            st.sampled_from([{}, {"temperature": 0.5}, {"temperature": 1.0, "stop": ["a", "b"], "max_tokens": 7}])
        )


@st.composite
def demos(draw: st.DrawFn, shapes: Any, signature: Any) -> Any:
    """A demo for some or all fields, as the optimizers make them or as DSPy's own load leaves them."""
    names = draw(st.lists(st.sampled_from(list(signature.fields)), min_size=1, unique=True))
    values = {name: draw(value_for(shapes, signature.fields[name].annotation)) for name in names}
    kind = draw(st.sampled_from(["dict", "example", "augmented", "inputs"]))
    if kind == "dict":
        return values
    if kind == "augmented":
        return dspy.Example(augmented=True, **values)
    return dspy.Example(**values).with_inputs(*names[:1]) if kind == "inputs" else dspy.Example(**values)


@pytest.mark.parametrize("shape", ["predict", "typed", "chain", "models", "history", "agent", "pipeline"])
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_a_restored_program_has_the_same_state_and_prompts(shapes: Any, shape: str, data: st.DataObject) -> None:
    """State, prompts and content address survive, whatever was tuned, and the original is left as it was."""
    factory = shapes.factories[shape]
    program = factory()
    data.draw(tunings(shapes, program))
    stored = snapshot(program)
    assume(not stored.redactions)
    state = program.dump_state()
    restored = restore(factory, ProgramSnapshot.from_json(stored.to_json()))
    assert program.dump_state() == state
    assert restored.dump_state() == state
    assert [one.config for one in restored.predictors()] == [one.config for one in program.predictors()]
    inputs = shapes.inputs[shape]
    assert shapes.prompts(restored, inputs) == shapes.prompts(program, inputs)
    again = snapshot(restored)
    assert content_hash(again) == content_hash(stored)
    assert diff(stored, again) == []


@pytest.mark.parametrize("adapter", [dspy.ChatAdapter, dspy.JSONAdapter, dspy.XMLAdapter])
@pytest.mark.parametrize("shape", ["typed", "models", "history"])
def test_prompts_are_the_same_under_every_adapter(shapes: Any, shape: str, adapter: Any) -> None:
    """Images, models, enumerations and histories in demos look the same to each of DSPy's adapters."""
    factory = shapes.factories[shape]
    program = factory()
    values = {
        "message": "MARK", "tags": ["x"], "urgency": "high", "mood": shapes.Mood.SAD, "score": 2,
        "scan": dspy.Image(shapes.pixel), "known": shapes.Invoice(number=7788, day=date(2020, 2, 3)),
        "by_day": {"z": 1.0, "a": 2.0}, "invoice": shapes.Invoice(number=8, day=date(2020, 2, 3)), "paid": True,
        "question": "MARK", "history": dspy.History(messages=[{"question": "a", "answer": "b"}]), "answer": "a",
        "reasoning": "r",
    }  # fmt: skip
    for predictor in program.predictors():
        predictor.demos = [dspy.Example(**{name: values[name] for name in predictor.signature.fields})]
    restored = through_json(program, factory)

    def asked(one: dspy.Module) -> list[Any]:
        seen = []

        class Seen(adapter):  # type: ignore[misc]
            def format(self, signature: Any, demos: Any, inputs: Any) -> Any:
                messages = super().format(signature, demos, inputs)
                seen.append(messages)
                return messages

        lm = shapes.answering()
        with dspy.context(lm=lm, adapter=Seen()):
            try:
                one(**shapes.inputs[shape])
            except Exception as error:  # noqa: BLE001 - the canned answer is in the form of one adapter only
                seen.append(type(error).__name__)
        return seen

    first = asked(program)
    assert "MARK" in str(first) or "7788" in str(first), "the demos are not in the prompt"
    assert asked(restored) == first


def test_bootstrapped_demos_survive(shapes: Any) -> None:
    """What BootstrapFewShot put into every predictor of a pipeline comes back, input markers included."""
    trainset = [dspy.Example(question=f"q{n}", urgency="low").with_inputs("question") for n in range(3)]
    with dspy.context(lm=shapes.answering()):
        optimizer = dspy.BootstrapFewShot(metric=lambda example, made, trace=None: True, max_bootstrapped_demos=2)
        compiled = optimizer.compile(shapes.Pipeline(), trainset=trainset)
    assert [len(one.demos) for one in compiled.predictors()] == [3, 3, 3, 3, 3]
    restored = through_json(compiled, shapes.Pipeline)
    assert restored.dump_state() == compiled.dump_state()
    assert restored._compiled is True
    assert shapes.prompts(restored, {"question": "new"}) == shapes.prompts(compiled, {"question": "new"})


@pytest.mark.parametrize("shape", ["predict", "typed", "chain", "models", "history", "agent"])
def test_bootstrapped_demos_of_every_shape_survive(shapes: Any, shape: str) -> None:
    """Images, models, histories and trajectories that BootstrapFewShot recorded make the same prompts again."""
    inputs = shapes.inputs[shape]
    factory = shapes.factories[shape]
    with dspy.context(lm=shapes.answering()):
        optimizer = dspy.BootstrapFewShot(metric=lambda example, made, trace=None: True, max_bootstrapped_demos=1)
        compiled = optimizer.compile(factory(), trainset=[dspy.Example(**inputs).with_inputs(*inputs)])
    assert [len(one.demos) for one in compiled.predictors()] == [1] * len(compiled.predictors())
    restored = through_json(compiled, factory)
    assert restored.dump_state() == compiled.dump_state()
    assert shapes.prompts(restored, inputs) == shapes.prompts(compiled, inputs)
    assert content_hash(snapshot(restored)) == content_hash(snapshot(compiled))


def test_labeled_demos_survive(shapes: Any) -> None:
    """Demos that LabeledFewShot took from the training set come back as examples with their inputs marked."""
    trainset = [
        dspy.Example(message=f"m{n}", tags=["t"], urgency="low", mood=shapes.Mood.SAD, score=n)
        .with_inputs("message", "tags") for n in range(4)
    ]  # fmt: skip
    compiled = dspy.LabeledFewShot(k=2).compile(shapes.factories["typed"](), trainset=trainset)
    restored = through_json(compiled, shapes.factories["typed"])
    assert restored.demos == compiled.demos
    assert all(isinstance(demo, dspy.Example) for demo in restored.demos)
    assert [demo.inputs().toDict() for demo in restored.demos] == [demo.inputs().toDict() for demo in compiled.demos]
    assert restored.demos[0].mood is shapes.Mood.SAD
    assert shapes.prompts(restored, shapes.inputs["typed"]) == shapes.prompts(compiled, shapes.inputs["typed"])


def test_a_separately_compiled_sub_module_keeps_its_demos(shapes: Any) -> None:
    """DSPy's own state leaves such a sub-module out; the snapshot holds it, and it comes back marked as compiled."""
    with dspy.context(lm=shapes.answering()):
        optimizer = dspy.BootstrapFewShot(metric=lambda example, made, trace=None: True, max_bootstrapped_demos=1)
        inner = optimizer.compile(
            shapes.Inner(), trainset=[dspy.Example(question="deep", answer="x").with_inputs("question")]
        )
    program = shapes.Pipeline()
    program.sub = inner
    assert "sub.p" not in program.dump_state()
    restored = through_json(program, shapes.Pipeline)
    assert [demo.question for demo in restored.sub.p.demos] == ["deep"]
    assert restored.sub._compiled is True
    assert restored._compiled is False
    assert restored.dump_state() == program.dump_state()
    assert shapes.prompts(restored, {"question": "q"}) == shapes.prompts(program, {"question": "q"})


def test_an_example_inside_a_demo_stays_one(shapes: Any) -> None:
    """DSPy prints it otherwise than a dictionary, so it has to come back as what it was."""
    program = shapes.factories["predict"]()
    program.demos = [{"question": dspy.Example(a=1, b=["x"]), "answer": "y"}]
    restored = through_json(program, shapes.factories["predict"])
    assert isinstance(restored.demos[0]["question"], dspy.Example)
    assert shapes.prompts(restored, {"question": "q"}) == shapes.prompts(program, {"question": "q"})


def test_a_restored_program_shares_nothing(shapes: Any) -> None:
    """Changing one restored program changes neither the snapshot nor another program restored from it."""
    program = shapes.factories["predict"]()
    program.demos = [{"question": "q", "answer": ["a"]}]
    program.config = {"stop": ["x"]}
    stored = snapshot(program)
    text = stored.to_json()
    one, other = restore(shapes.factories["predict"], stored), restore(shapes.factories["predict"], stored)
    one.demos[0]["answer"].append("b")
    one.demos.append({})
    one.config["stop"].append("y")
    stored.to_dict()["predictors"]["self"]["demos"].clear()
    assert (other.demos, other.config) == ([{"question": "q", "answer": ["a"]}], {"stop": ["x"]})
    assert stored.to_json() == text


def test_an_lm_of_a_predictor_is_built_again() -> None:
    """Model and parameters come back; a key does not."""
    program = dspy.Predict("question -> answer")
    program.lm = dspy.LM("openai/gpt-4o-mini", temperature=0.3, max_tokens=99, cache=False, api_key="sk-one")
    restored = through_json(program, lambda: dspy.Predict("question -> answer"))
    assert restored.dump_state() == program.dump_state()
    assert "api_key" not in restored.lm.kwargs


def test_the_lm_that_the_code_sets_is_kept() -> None:
    """An LM with an endpoint of its own is not stored, but the factory's is of the same identity, so it stays."""
    local = dspy.LM("openai/local", api_base="http://127.0.0.1:9/v1", api_key="k")

    def factory() -> dspy.Module:
        program = dspy.Predict("question -> answer")
        program.lm = local
        return program

    assert through_json(factory(), factory).lm is local
    assert "127.0.0.1" not in snapshot(factory()).to_json()


def test_flex_source_needs_trust() -> None:
    """Source code that is not the factory's is loaded only when the caller vouches for it."""
    from dspy_observe.registry.programs import UntrustedProgramError

    program = dspy.Flex("question -> answer")
    changed = program.module_src + "\n# tuned\n"
    program.load_state({"module_src": changed})
    stored = snapshot(program)
    with pytest.raises(UntrustedProgramError, match="source code"):
        restore(lambda: dspy.Flex("question -> answer"), stored)
    restored = restore(lambda: dspy.Flex("question -> answer"), stored, trust_source=True)
    assert restored.module_src == changed
