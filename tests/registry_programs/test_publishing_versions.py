"""A registered version goes to MLflow, through a real tracking store; ``test_publishing.py`` has the server."""

from __future__ import annotations

import logging
from pathlib import Path

import dspy
import pytest

from dspy_observe.redaction import Redaction, credentials_only
from dspy_observe.registry import SignatureRegistry, UnknownSignature, UnknownVersion
from dspy_observe.registry.programs import IncompatibleProgramError, ProgramSnapshot, dataset_sha256


class Capital(dspy.Module):
    """One predictor."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.Predict("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        return self.ask(question=question)


DEMO = dspy.Example(question="Austria?", answer="Vienna")


@pytest.fixture
def registry(tmp_path: Path) -> SignatureRegistry:
    """A registry with two versions of a program."""
    made = SignatureRegistry(tmp_path / "registry")
    made.register_program("capital", Capital(), version="v1")
    program = Capital()
    program.ask.demos = [DEMO]
    made.register_program(
        "capital", program, version="v2", trainset=[DEMO], optimizer="ByHand", metadata={"team": "geo"}
    )
    made.update_performance_score("capital", "v2", 0.9)
    return made


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # of SQLAlchemy, about MLflow's own queries
def test_a_version_is_published_with_its_metadata_and_an_alias(
    registry: SignatureRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name, and the deployed one without a name; the stored program is the one that MLflow gets."""
    import mlflow

    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    made = registry.publish_to_mlflow(
        "capital", "v2", factory=Capital, alias="champion", metadata={"ticket": 7}, tracking_uri=uri
    )
    client = mlflow.MlflowClient(uri)
    assert made.version == "1"
    assert str(client.get_model_version_by_alias("capital", "champion").version) == "1"  # a SQL store gives a number
    tags, version = client.get_model_version("capital", "1").tags, registry.get_version("capital", "v2")
    assert (tags["registry.signature"], tags["registry.version"]) == ("capital", "v2")
    assert tags["registry.version_hash"] == tags["dspy_observe.content_hash"] == version.version_hash
    assert (tags["registry.performance_score"], tags["team"], tags["ticket"]) == ("0.9", "geo", "7")
    assert tags["dspy_observe.trainset_sha256"] == dataset_sha256([DEMO])
    stored = Path(client.download_artifacts(made.run_id, "program.json")).read_text(encoding="utf-8")
    assert stored == registry.program_text("capital", "v2")

    registry.deploy_version("capital", "v1")
    other = registry.publish_to_mlflow("capital", factory=Capital, model_name="capital-live", tracking_uri=uri)
    assert client.get_model_version("capital-live", other.version).tags["registry.version"] == "v1"


def test_what_cannot_be_published_is_a_typed_error(registry: SignatureRegistry) -> None:
    """Before MLflow is asked: nobody listens at this address."""
    nowhere = "http://127.0.0.1:9"
    with pytest.raises(UnknownSignature):
        registry.publish_to_mlflow("other", "v1", factory=Capital, tracking_uri=nowhere)
    with pytest.raises(UnknownVersion):
        registry.publish_to_mlflow("capital", factory=Capital, tracking_uri=nowhere)
    with pytest.raises(IncompatibleProgramError):
        registry.publish_to_mlflow("capital", "v1", factory=lambda: dspy.Predict("a -> b"), tracking_uri=nowhere)
    registry.register_version("plain", {"instruction": "x"}, version="v1")
    with pytest.raises(UnknownVersion, match="only a configuration"):
        registry.publish_to_mlflow("plain", "v1", factory=Capital, tracking_uri=nowhere)


def test_the_factory_lets_a_later_change_of_instructions_be_noticed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The stored instructions win, and a warning says so; without the factory nobody can know."""
    registry = SignatureRegistry(tmp_path)
    tuned = Capital()
    tuned.ask.signature = tuned.ask.signature.with_instructions("Tuned.")
    registry.register_program("capital", tuned, version="v1", factory=Capital)

    def rewritten() -> Capital:
        program = Capital()
        program.ask.signature = program.ask.signature.with_instructions("Rewritten.")
        return program

    with caplog.at_level(logging.WARNING, "dspy_observe.registry"):
        registry.load_program("capital", Capital, "v1")
        assert "instructions of these predictors changed" not in caplog.text
        assert registry.load_program("capital", rewritten, "v1").ask.signature.instructions == "Tuned."
    assert "instructions of these predictors changed" in caplog.text


def test_the_redactor_of_the_caller_is_used(tmp_path: Path) -> None:
    """A secret that only it knows does not reach the store."""
    redactor = credentials_only(Redaction())
    redactor.add_secrets({"hush-hush-4711"})
    program = Capital()
    program.ask.demos = [dspy.Example(question="Code?", answer="it is hush-hush-4711 here")]
    registry = SignatureRegistry(tmp_path)
    registry.register_program("capital", program, version="v1", redactor=redactor)
    text = registry.program_text("capital", "v1")
    assert "hush-hush" not in text
    assert ProgramSnapshot.from_json(text).redactions
