"""Whole programs through a registry, on every store. Numbers are those of the scenario list."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import dspy
import pytest

from dspy_observe.registry import (
    CorruptVersion,
    IncompatibleProgramError,
    RegistryManager,
    SignatureRegistry,
    UnknownVersion,
)

Open = Callable[..., SignatureRegistry]


class Answer(dspy.Signature):
    """Answer the question."""

    question: str = dspy.InputField()
    answer: str = dspy.OutputField(desc="a few words")


class AnswerShort(dspy.Signature):
    """Answer the question."""

    user_question: str = dspy.InputField()
    answer: int = dspy.OutputField(desc="a few words")


class Pipeline(dspy.Module):
    """A part that may have been compiled before, and one that was not."""

    def __init__(self, signature: type[dspy.Signature] = Answer) -> None:
        super().__init__()
        self.rewrite = dspy.Predict("question -> query")
        self.answer = dspy.Predict(signature)


def compiled(demo: str = "Paris") -> Pipeline:
    """A pipeline with a tuned and frozen part, demos, config and an LM with a key."""
    program = Pipeline()
    program.rewrite.signature = program.rewrite.signature.with_instructions("Rewrite it.")
    program.rewrite.demos = [dspy.Example(question="q", query="r").with_inputs("question")]
    program.rewrite._compiled = True
    program.answer.demos = [dspy.Example(question="Capital of France?", answer=demo).with_inputs("question")]
    program.answer.config = {"temperature": 0.3}
    return program


def lm(key: str) -> dspy.LM:
    """A model with a key and a header."""
    return dspy.LM("openai/gpt-4o-mini", api_key=key, extra_headers={"X": "CaNaRy42"})


@pytest.fixture(autouse=True)
def model() -> Iterator[None]:
    """A model that is never called, with a key that must never be stored."""
    with dspy.context(lm=lm("sk-" + "CaNaRy42" * 6)):
        yield


def test_25_program_comes_back_with_its_compiled_parts(registry: SignatureRegistry, open_registry: Open) -> None:
    """From what is deployed, or by version; its demos, instructions and config included."""
    version = registry.register_program("qa", compiled(), optimizer="MIPROv2", trainset=[dspy.Example(question="x")])
    assert version.program_hash is not None
    assert version.metadata["optimizer"] == "MIPROv2"
    assert len(version.metadata["trainset_sha256"]) == 64
    assert version.configuration["predictors"]["answer"] == {"instructions": "Answer the question.", "demos": 1}
    with pytest.raises(UnknownVersion):
        registry.load_program("qa", Pipeline)
    registry.deploy_version("qa", version.version)
    for back in (open_registry().load_program("qa", Pipeline), registry.load_program("qa", Pipeline, version.version)):
        assert back.rewrite.signature.instructions == "Rewrite it."
        assert back.rewrite.demos[0]["query"] == "r"
        assert back.answer.demos[0]["answer"] == "Paris"
        assert back.answer.config == {"temperature": 0.3}


def test_what_is_deployed_is_loaded_by_its_hash(registry: SignatureRegistry, store: Any) -> None:
    """Also where an earlier release let other content take the deployed version's hash as its name."""
    good = registry.register_program("qa", compiled("Paris"), version="v1")
    evil = registry.register_program("qa", compiled("Lyon"), version="v2")
    registry.deploy_version("qa", "v1")
    with store.write("qa") as txn:
        record = txn.by_hash(evil.version_hash)
        txn.remove_version(evil.version_hash)
        txn.add_version(replace(record, version=good.version_hash))
    assert registry.get_version("qa", evil.version_hash).version == good.version_hash
    for wanted in (None, good.version_hash, "v1"):
        assert registry.load_program("qa", Pipeline, wanted).answer.demos[0]["answer"] == "Paris"


def test_04_identity_is_the_content(registry: SignatureRegistry) -> None:
    """Config, a field's type and the model count; a key and the way of registering do not."""
    first = registry.register_program("qa", compiled())
    assert registry.register_program("qa", compiled(), metadata={"again": True}).created is False
    with dspy.context(lm=lm("sk-" + "zZ9yY8xX" * 6)):
        assert registry.register_program("qa", compiled()).version_hash == first.version_hash
    warmer, retyped = compiled(), Pipeline(AnswerShort)
    warmer.answer.config = {"temperature": 0.4}
    with dspy.context(lm=dspy.LM("openai/gpt-4o")):
        other_model = registry.register_program("qa", compiled()).version_hash
    hashes = {other_model, *(registry.register_program("qa", one).version_hash for one in (warmer, retyped))}
    assert len(hashes | {first.version_hash}) == 4


def test_24_program_that_does_not_fit_is_refused(registry: SignatureRegistry) -> None:
    """With each difference by name; a migration puts the text where it belongs."""
    version = registry.register_program("qa", compiled())
    with pytest.raises(IncompatibleProgramError, match="user_question"):
        registry.load_program("qa", lambda: Pipeline(AnswerShort), version.version)

    def migrate(data: dict[str, Any]) -> dict[str, Any]:
        state = data["predictors"]["answer"]
        for field in state["fields"]:
            if field["name"] == "question":
                field["name"] = "user_question"
            else:
                field["type"] = "int"
        state["demos"] = []
        return data

    back = registry.load_program("qa", lambda: Pipeline(AnswerShort), version.version, migrate=migrate)
    assert back.answer.signature.output_fields["answer"].json_schema_extra["desc"] == "a few words"


def test_26_credentials_of_a_program_never_reach_the_store(registry: SignatureRegistry, tmp_path: Any) -> None:
    """Neither keys nor headers of its LM; searched for in all that is kept."""
    registry.register_program("qa", compiled(), version="v1")
    registry.export_registry(tmp_path / "export.yml")
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"CaNaRy" not in kept


def test_27_what_cannot_be_stored_changes_nothing(registry: SignatureRegistry, seen: Callable[..., Any]) -> None:
    """An object in a demo is an error, and the versions before it are intact."""
    registry.register_program("qa", compiled(), version="v1")
    before = seen(registry)
    broken = compiled()
    broken.answer.demos = [dspy.Example(question=object(), answer="x")]
    with pytest.raises(TypeError, match="demos"):
        registry.register_program("qa", broken)
    assert seen(registry) == before
    assert registry.load_program("qa", Pipeline, "v1").answer.demos[0]["answer"] == "Paris"


def test_07_damaged_program_is_named_and_not_deployed(tmp_path: Any) -> None:
    """One changed byte, or no file at all."""
    registry = SignatureRegistry(tmp_path / "registry")
    first = registry.register_program("qa", compiled(), version="v1")
    second = registry.register_program("qa", compiled("Lyon"), version="v2")
    registry.deploy_version("qa", "v1")
    path = tmp_path / "registry" / "programs" / f"{second.program_hash}.json"
    path.write_bytes(path.read_bytes().replace(b"Lyon", b"Lyom"))
    for _ in range(2):
        with pytest.raises(CorruptVersion) as caught:
            registry.deploy_version("qa", "v2")
        assert caught.value.version_hash == second.version_hash
        with pytest.raises(CorruptVersion):
            registry.load_program("qa", Pipeline, "v2")
        path.unlink(missing_ok=True)
    assert not RegistryManager(registry).create_deployment_plan("qa", "v2").deployment_safe
    assert registry.get_deployed_version("qa").version_hash == first.version_hash


def test_47_programs_are_compared_by_predictor(registry: SignatureRegistry) -> None:
    """Instructions, demos and config by name; nothing for equal content."""
    registry.register_program("qa", compiled(), version="old")
    changed = compiled("Lyon")
    changed.answer.signature = changed.answer.signature.with_instructions("Answer in one word.")
    registry.register_program("qa", changed, version="new")
    comparison = registry.compare_versions("qa", "new", "old")
    (only,) = comparison.program_changes
    assert only["predictor"] == "answer"
    assert {change["what"] for change in only["changes"]} == {"instructions", "demo"}
    assert "Changed predictors.answer.instructions" in comparison.configuration_changes[0]
    assert registry.compare_versions("qa", "old", "old").program_changes == ()


def test_programs_go_through_export_and_clean_up(registry: SignatureRegistry, tmp_path: Any) -> None:
    """What is exported can be loaded elsewhere; what nothing refers to any more is deleted."""
    registry.register_program("qa", compiled(), version="v1")
    registry.register_program("qa", compiled("Lyon"), version="v2")
    registry.export_registry(tmp_path / "export.yml")
    other = SignatureRegistry(tmp_path / "other")
    other.import_registry(tmp_path / "export.yml")
    assert other.load_program("qa", Pipeline, "v1").answer.demos[0]["answer"] == "Paris"
    assert registry.collect_programs() == 0
    assert registry.remove_versions("qa", keep=1) == ("v1",)
    assert registry.collect_programs() == 1
    assert registry.load_program("qa", Pipeline, "v2").answer.demos[0]["answer"] == "Lyon"


def test_result_of_an_optimizer_is_registered_as_a_program(registry: SignatureRegistry) -> None:
    """With its score, which some optimizers give in percent, and the optimizer's name."""
    program = compiled()
    program.score = 75.0
    optimizer = type("MIPROv2", (), {})()
    manager = RegistryManager(registry)
    valset = [dspy.Example(question="x")] * 4
    version = manager.register_optimization_result(program, optimizer=optimizer, valset=valset)
    assert version is not None
    assert (version.signature_name, version.performance_score) == ("Pipeline", 0.75)
    assert version.metadata["optimizer"] == "MIPROv2"
    (score,) = registry.scores("Pipeline")
    assert (score.n, score.source) == (4, "optimizer")
    assert registry.load_program("Pipeline", Pipeline, version.version).answer.demos[0]["answer"] == "Paris"
