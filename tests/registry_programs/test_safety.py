"""Secrets stay out of a snapshot, and nothing but known data comes out of one."""

from __future__ import annotations

import json
from typing import Any

import dspy
import pytest

from dspy_observe.redaction import Redaction, Redactor, credentials_only
from dspy_observe.registry.programs import (
    ProgramRedactionError,
    ProgramSnapshot,
    ProgramStateError,
    UnserialisableProgramError,
    content_hash,
    restore,
    snapshot,
)

CANARIES = {
    "api_key": "canary-key-0001", "extra_headers": {"Authorization": "Bearer canary-head-0002", "X-A": "canary-0009"},
    "aws_secret_access_key": "canary-aws-0003", "azure_ad_token": "canary-azure-0004",
    "vertex_credentials": {"private_key": "canary-vertex-0005"}, "api_base": "https://canary-0006.example.org/v1",
}  # fmt: skip


def simple() -> dspy.Module:
    """A program of one predictor."""
    return dspy.Predict("question -> answer")


def test_no_secret_of_an_lm_reaches_a_snapshot() -> None:
    """Keys, headers, cloud credentials and endpoints of the LM of the settings and of a predictor stay out."""
    program = simple()
    program.lm = dspy.LM("openai/a", **CANARIES)
    program.config = {"api_key": "canary-config-0007", "extra_headers": {"x": "canary-config-0008"}, "n": 2}
    optimizer = dspy.BootstrapFewShot(metric=None, teacher_settings={"lm": program.lm, "api_key": "canary-0010"})
    with dspy.context(lm=dspy.LM("openai/b", **CANARIES)):
        stored = snapshot(program, optimizer=optimizer)
    assert "canary" not in stored.to_json()
    assert "canary" not in repr(stored)
    assert stored.predictors[0].config == {"n": 2}


def test_a_secret_quoted_in_state_is_taken_out_and_told() -> None:
    """The LM's own key inside a demo, and a key by its form inside the instructions, leave a mark each."""
    program = simple()
    program.signature = program.signature.with_instructions("Use sk-proj-abcdefghijklmnopqrstuvwxyz0123456789ABCD.")
    program.demos = [{"question": "is house-secret-77 good?", "answer": "yes"}]
    program.lm = dspy.LM("openai/a", api_key="house-secret-77")
    stored = snapshot(program)
    text = stored.to_json()
    assert "house-secret-77" not in text
    assert "sk-proj-" not in text
    assert {place.path for place in stored.redactions} == {
        "predictors.self.instructions", "predictors.self.demos[0].question",
    }  # fmt: skip
    assert "house-secret-77" in program.demos[0]["question"]


def test_a_field_called_token_can_be_allowed() -> None:
    """A value under a secret's name is dropped unless the caller's redactor says otherwise."""
    program = dspy.Predict("token -> tag")
    program.demos = [{"token": "house", "tag": "NOUN"}]
    assert snapshot(program).redactions
    own = credentials_only(Redaction(allow=frozenset({"token"})))
    assert snapshot(program, redactor=own).predictors[0].demos[0].fields == {"token": "house", "tag": "NOUN"}


def test_long_text_is_stored_whole() -> None:
    """A demo of a megabyte is neither cut nor marked."""
    program = simple()
    program.demos = [{"question": "lorem ipsum " * 100_000, "answer": "x"}]
    stored = snapshot(program)
    assert restore(simple, stored).demos == program.demos
    assert stored.redactions == ()


def test_a_failing_redactor_stops_the_snapshot() -> None:
    """What cannot be searched for credentials is not stored."""

    def broken(text: str) -> list[tuple[int, int]]:
        raise RuntimeError("broken")

    redactor = Redactor(Redaction(detectors=(broken,)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DSPY_OBSERVE_STRICT", "0")
        with pytest.raises(ProgramRedactionError, match=r"predictors\.self"):
            snapshot(simple(), redactor=redactor)


class Thing:
    """Has no form as JSON."""


@pytest.mark.parametrize("value", [Thing(), Thing, {"deep": [Thing()]}, object()])
def test_what_has_no_form_is_refused_by_its_place(value: Any) -> None:
    """The error names predictor, demo and field, and the type."""
    program = simple()
    program.demos = [{"question": "q"}, {"question": value, "answer": "a"}]
    with pytest.raises(UnserialisableProgramError, match=r"predictors\.self\.demos\[1\]\.question"):
        snapshot(program)


def test_a_cycle_is_refused() -> None:
    """A demo that contains itself ends in an error and not in a crash."""
    loop: list[Any] = []
    loop.append(loop)
    program = simple()
    program.demos = [{"question": loop}]
    with pytest.raises(UnserialisableProgramError, match="contains itself"):
        snapshot(program)


def test_a_predictor_with_state_of_its_own_is_refused() -> None:
    """State that this package does not know would be lost without a word."""

    class Own(dspy.Predict):  # type: ignore[misc]
        def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
            return {**super().dump_state(json_mode), "mine": 1}

    with pytest.raises(UnserialisableProgramError, match="Own has state"):
        snapshot(Own("question -> answer"))


def stored_dict() -> dict[str, Any]:
    """A sound stored program as plain data."""
    program = simple()
    program.lm = dspy.LM("openai/a", temperature=0.5)
    program.demos = [{"question": "q", "answer": "a"}]
    return snapshot(program).to_dict()


def put(path: str, value: Any) -> Any:
    """A change of plain data: the value under a path of keys and positions."""

    def change(data: dict[str, Any]) -> None:
        *way, last = [int(key) if key.isdigit() else key for key in path.split("/")]
        place: Any = data
        for key in way:
            place = place[key]
        if value is KeyError:
            del place[last]
        else:
            place[last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        put("forward", "pwn"),
        put("format", 2),
        put("predictors/self/forward", "pwn"),
        put("predictors/self/callbacks", []),
        put("predictors/self/demos", "oops"),
        put("predictors/self/demos/0", "oops"),
        put("predictors/self/demos/0/fields/question", {"$type": "object", "value": "os.system"}),
        put("predictors/self/demos/0/fields/question", {"$type": "datetime", "value": "no date"}),
        put("predictors/self/demos/0/fields/question", {"$type": "tuple", "value": [1], "more": 1}),
        put("predictors/self/demos/0/fields/question", {"$type": "set", "value": [[1]]}),
        put("predictors/self/config", {"api_base": "https://evil.example.org"}),
        put("predictors/self/config", {"extra_headers": {}}),
        put("predictors/self/lm/settings/api_base", "https://evil.example.org"),
        put("predictors/self/lm/settings/engine", {"class": "os.system"}),
        put("predictors/self/lm/settings/model_list", []),
        put("predictors/self/lm/key", "x"),
        put("predictors/self/kind", "pickle"),
        put("predictors/self/instructions", None),
        put("predictors/self/instructions", KeyError),
        put("predictors/self/fields/0/direction", "sideways"),
        put("predictors/self/decisions", {"answer": {"threshold": 7}}),
        put("redactions", [{"entity": "SECRET"}]),
        put("tools", {}),
        put("dspy_version", 3),
        put("predictors/self/demos/0/fields/question", float("nan")),
    ],
)
def test_state_from_a_file_is_whitelisted(change: Any) -> None:
    """Unknown keys, wrong types, unknown value types, endpoints and foreign classes are refused with their place."""
    data = stored_dict()
    restore(simple, ProgramSnapshot.from_dict(data))
    change(data)
    with pytest.raises(ProgramStateError) as caught:
        restore(simple, ProgramSnapshot.from_dict(data))
    assert caught.value.where
    assert "evil" not in str(caught.value)


def test_a_foreign_lm_class_is_not_looked_up() -> None:
    """A class named in a file is neither imported nor called; the program is refused."""
    data = stored_dict()
    data["predictors"]["self"]["lm"]["class_path"] = "antigravity.Thing"
    from dspy_observe.registry.programs import IncompatibleProgramError

    with pytest.raises(IncompatibleProgramError, match=r"antigravity\.Thing"):
        restore(simple, ProgramSnapshot.from_dict(data))
    import sys

    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"format": 1, "format": 1}', '{"format": NaN}', "[" * 100_000]
)
def test_a_broken_document_is_refused(text: str) -> None:
    """Truncated, empty, foreign or repeated: one typed error."""
    with pytest.raises(ProgramStateError):
        ProgramSnapshot.from_json(text)


def test_a_document_cut_anywhere_is_refused() -> None:
    """No prefix of a stored program is taken for a program."""
    text = json.dumps(stored_dict())
    for end in range(0, len(text), 37):
        with pytest.raises(ProgramStateError):
            ProgramSnapshot.from_json(text[:end])
    assert content_hash(ProgramSnapshot.from_json(text)) == content_hash(ProgramSnapshot.from_dict(json.loads(text)))
