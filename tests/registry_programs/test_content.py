"""The content address changes with what a program says and with nothing else, and the diff says what changed."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_observe.registry.programs import (
    Demo,
    ProgramSnapshot,
    ProgramStateError,
    content_hash,
    diff,
    restore,
    snapshot,
)
from dspy_observe.registry.programs.values import Builders, decode, encode


def taken(change: Callable[[dspy.Module], Any] | None = None, signature: Any = "question -> answer") -> ProgramSnapshot:
    """A snapshot of one predictor after a change."""
    program = dspy.Predict(signature)
    program.demos = [{"question": "q", "answer": {"b": 1, "a": 2}}]
    program.lm = dspy.LM("openai/a", api_key="k1")
    if change:
        change(program)
    return snapshot(program)


def set_lm(**kwargs: Any) -> Callable[[dspy.Module], None]:
    """Give the program another LM."""
    return lambda program: setattr(program, "lm", dspy.LM(**{"model": "openai/a", "api_key": "k1", **kwargs}))


CHANGES: dict[str, Callable[[], ProgramSnapshot]] = {
    "config": lambda: taken(lambda program: program.update_config(temperature=0.1)),
    "withheld config": lambda: taken(lambda program: program.update_config(base_url="x")),
    "type": lambda: taken(signature="question -> answer: int"),
    "field order": lambda: taken(signature="question, more -> answer"),
    "instructions": lambda: taken(lambda p: setattr(p, "signature", p.signature.with_instructions("x"))),
    "description": lambda: taken(
        lambda p: setattr(p, "signature", p.signature.with_updated_fields("answer", desc="x"))
    ),
    "demo": lambda: taken(lambda program: program.demos.append({"question": "r"})),
    "demo order of keys": lambda: taken(lambda p: p.demos[0].update(answer={"a": 2, "b": 1})),
    "demo type": lambda: taken(lambda p: p.demos[0].update(question=("q",))),
    "train": lambda: taken(lambda program: program.train.append({"question": "r"})),
    "model": lambda: taken(set_lm(model="openai/b")),
    "lm parameter": lambda: taken(set_lm(temperature=0.9)),
    "lm endpoint": lambda: taken(set_lm(api_base="http://127.0.0.1:9")),
    "no lm": lambda: taken(lambda program: setattr(program, "lm", None)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_of_content_changes_address_and_diff(name: str) -> None:
    """Each change gives another address, and a diff that names the predictor and can be read and stored."""
    before, after = taken(), CHANGES[name]()
    assert content_hash(before) != content_hash(after)
    (found,) = diff(before, after)
    assert found.predictor == "self"
    assert str(found).startswith("self\n  ")
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()
    assert diff(after, before)


def test_adapter_tools_and_settings_lm_count(shapes: Any) -> None:
    """They belong to the program as a whole."""
    program = shapes.factories["agent"]()

    def other(topic: int) -> str:
        """Something else."""
        return ""

    plain = snapshot(program)
    with dspy.context(adapter=dspy.JSONAdapter()):
        adapted = snapshot(program)
    with dspy.context(adapter=dspy.ChatAdapter()):
        default = snapshot(program)
    with dspy.context(lm=dspy.LM("openai/z")):
        asked = snapshot(program)
    program.tools["look_up"] = dspy.Tool(other, name="look_up", desc=program.tools["look_up"].desc)
    tooled = snapshot(program)
    assert len({content_hash(one) for one in (plain, adapted, asked, tooled)}) == 4
    assert content_hash(default) == content_hash(plain)
    for one, what in ((adapted, "adapter"), (asked, "lm"), (tooled, "tool")):
        (found,) = diff(plain, one)
        assert found.predictor == ""
        assert {change.what for change in found.changes} == {what}
        assert str(found).startswith("(program)\n")


def test_what_is_not_content_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys, commits, optimizer, data, and what kind of object carried a demo leave the address alone."""
    one = taken()
    same = [
        taken(set_lm(api_key="another")),
        taken(set_lm(aws_secret_access_key="s")),
        taken(lambda p: setattr(p, "demos", [dspy.Example(**p.demos[0]).with_inputs("question")])),
        taken(lambda p: setattr(p, "_compiled", True)),
        replace(one, git_sha="0" * 40, git_dirty=True, optimizer="X", optimizer_params={"a": 1}, trainset_sha256="1"),
        replace(one, module="elsewhere.Program", dspy_version="9"),
    ]
    assert {content_hash(other) for other in same} == {content_hash(one)}
    assert [diff(one, other) for other in same] == [[]] * len(same)


def test_the_address_is_the_same_in_another_process(tmp_path: Any) -> None:
    """Neither the hash seed of Python nor the order of sets or options moves it."""
    script = tmp_path / "address.py"
    script.write_text(
        "import dspy, enum\n"
        "from dspy_observe.registry.programs import content_hash, snapshot\n"
        "p = dspy.Predict('question, tags: set[str] -> answer: dict[str, int]', temperature=0.5, n=2)\n"
        "p.demos = [{'tags': {'a', 'b', 'c', 'd', 'e'}, 'answer': {'x': 1}}]\n"
        "p.lm = dspy.LM('openai/a', top_p=0.1, stop=['x'])\n"
        "print(content_hash(snapshot(p)))\n"
    )
    found = {
        subprocess.run(
            [sys.executable, str(script)], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "77")
    }  # fmt: skip
    assert len(found) == 1
    assert len(found.pop().strip()) == 64


def test_pure_parts_do_not_load_dspy() -> None:
    """Reading, addressing and comparing stored programs answers at once: DSPy takes seconds to load."""
    code = (
        "import sys\n"
        "from dspy_observe.registry.programs import ProgramSnapshot, content_hash, diff, IncompatibleProgramError\n"
        "assert 'dspy' not in sys.modules and 'pydantic' not in sys.modules and 'mlflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_diff_reads_well(shapes: Any) -> None:
    """Instructions line by line; demos changed, added and removed; fields, config and LM by name."""
    old, new = shapes.Pipeline(), shapes.Pipeline()
    first = old.first.predict
    first.signature = first.signature.with_instructions("One.\nTwo.\nThree.")
    first.demos = [{"question": "a", "answer": "1"}, {"question": "b", "answer": "2"}]
    second = new.first.predict
    second.signature = second.signature.with_instructions("One.\n2.\nThree.").with_updated_fields(
        "answer", desc="short"
    )
    second.demos = [{"question": "a", "answer": "ONE"}, {"question": "c", "answer": "3"}]
    second.config = {"temperature": 0.9}
    second.lm = dspy.LM("openai/b")
    new.extra = dspy.Predict("x -> y")
    del new.by_name["x"]
    found = {one.predictor: one for one in diff(snapshot(old), snapshot(new))}
    assert list(found) == ["first.predict", "by_name['x']", "extra"]
    changes = [(change.what, change.kind) for change in found["first.predict"].changes]
    assert changes == [
        ("instructions", "changed"), ("field", "changed"), ("demo", "changed"), ("demo", "removed"), ("demo", "added"),
        ("config", "changed"), ("lm", "added"),
    ]  # fmt: skip
    text = str(found["first.predict"])
    assert "-Two." in text
    assert "+2." in text
    assert "config temperature changed: 0.4 -> 0.9" in text
    assert str(found["extra"]).startswith("extra\n  predictor added: ")
    assert found["by_name['x']"].changes[0].after is None


def test_moved_demos_are_reordered_and_not_replaced() -> None:
    """The order of demos shows in prompts."""
    one = taken(lambda p: setattr(p, "demos", [{"question": "a"}, {"question": "b"}]))
    two = taken(lambda p: setattr(p, "demos", [{"question": "b"}, {"question": "a"}]))
    (found,) = diff(one, two)
    assert [(change.what, change.kind) for change in found.changes] == [("demo", "reordered")]


@given(
    st.lists(st.sampled_from(["a", "b", "c"]), max_size=4),
    st.lists(st.sampled_from(["a", "b", "c"]), max_size=4),
)
def test_address_and_diff_agree_about_demos(before: list[str], after: list[str]) -> None:
    """Repeated, moved and lost demos: the diff is empty exactly when the address is the same."""
    base = taken()

    def having(names: list[str]) -> ProgramSnapshot:
        demos = tuple(Demo({"question": name, "answer": name}) for name in names)
        return replace(base, predictors=(replace(base.predictors[0], demos=demos),))

    one, two = having(before), having(after)
    assert (content_hash(one) == content_hash(two)) == (before == after) == (diff(one, two) == [])


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
# The fold of a repeated hour has no place in ISO 8601, nor in a prompt.
CLOCKS = (st.datetimes() | st.times()).map(lambda at: at.replace(fold=0))
TIMES = CLOCKS | st.dates() | st.timedeltas() | st.decimals(allow_nan=False) | st.uuids()
KEYS = st.text() | st.just("$type") | st.integers() | st.tuples(st.integers())
VALUES = st.recursive(
    PLAIN | TIMES | st.frozensets(st.integers() | st.text()) | st.sets(st.text()),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


def shape(value: Any) -> Any:
    """A value with the types in it, and with the order of everything that has one."""
    if isinstance(value, set | frozenset):
        return type(value), frozenset(map(shape, value))
    if isinstance(value, dict):
        return dict, tuple((shape(key), shape(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return type(value), tuple(map(shape, value))
    return type(value), repr(value)


@given(VALUES)
def test_values_come_back_exactly(value: Any) -> None:
    """Through a JSON document: same value, same types, same order of keys, and nothing shared."""
    stored = json.loads(json.dumps(encode(value, "x"), allow_nan=False))
    back = decode(stored, "x")
    assert shape(back) == shape(value)


JSON_KEYS = st.sampled_from(["$type", "value", "class", "a"])
KINDS = st.sampled_from(["tuple", "enum", "dict", "float", "bytes", "timedelta", "example", "set"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | KINDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(JSON_KEYS, inner, max_size=3),
)


@given(JSON)
def test_any_json_is_decoded_or_refused(data: Any) -> None:
    """Data that nobody encoded gives a value or the typed error, never another one."""
    with contextlib.suppress(ProgramStateError):
        decode(data, "x", Builders())


def test_an_enumeration_of_the_code_is_used_and_no_other(shapes: Any) -> None:
    """A member comes back when the signature mentions its class; else its bare value does."""
    stored = encode(shapes.Mood.SAD, "x")
    assert decode(stored, "x", Builders({"Mood": shapes.Mood})) is shapes.Mood.SAD
    assert decode(stored, "x") == "sad"
    stored["value"] = "unheard of"
    with pytest.raises(ProgramStateError):
        decode(stored, "x", Builders({"Mood": shapes.Mood}))


def test_what_dspy_itself_loaded_has_the_same_address(shapes: Any, tmp_path: Any) -> None:
    """A program that went through DSPy's own save and load is the same content, though its demos are dicts now."""
    program = shapes.Pipeline()
    program.steps[1].demos = [dspy.Example(question="q", answer="a").with_inputs("question")]
    program.save(tmp_path / "p.json")
    loaded = shapes.Pipeline()
    loaded.load(tmp_path / "p.json")
    assert content_hash(snapshot(loaded)) == content_hash(snapshot(program))
    assert restore(shapes.Pipeline, snapshot(loaded)).dump_state() == loaded.dump_state()
