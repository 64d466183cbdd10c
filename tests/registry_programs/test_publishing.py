"""A program goes to a real MLflow server, comes back, and leaves no credential there."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_observe.registry.programs import (
    IncompatibleProgramError,
    MlflowMissingError,
    ProgramSnapshot,
    PublishError,
    content_hash,
    publish_to_mlflow,
    snapshot,
)
from dspy_observe.testing import offline_lm
from tests.mlflow_server import mlflow_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Address of an MLflow server of this module's own, and the folder in which it keeps everything."""
    folder = tmp_path_factory.mktemp("mlflow")
    with mlflow_server(folder) as url:
        yield url, folder


class Capital(dspy.Module):
    """Two predictors, one with an LM of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.ChainOfThought("question -> answer")
        self.check = dspy.Predict("answer -> right: bool")

    def forward(self, question: str) -> dspy.Prediction:
        return self.ask(question=question)


def compiled() -> dspy.Module:
    """A program with demos, a key in its LM, headers in its config, and a candidate with another key."""
    program = Capital()
    program.ask.predict.demos = [dspy.Example(question="Austria?", reasoning="r", answer="Vienna")]
    program.ask.predict.lm = dspy.LM("openai/gpt-4o-mini", temperature=0.2, api_key="canary-key-0001")
    program.check.config = {"n": 1, "extra_headers": {"X-Key": "canary-head-0002"}}
    program.check.demos = [{"answer": "my key is canary-key-0001", "right": "true"}]
    other = Capital()
    other.ask.predict.lm = dspy.LM("openai/other", api_key="canary-other-0003")
    program.candidate_programs = [{"score": 0.5, "program": other}]
    return program


@pytest.mark.e2e
@pytest.mark.slow
def test_a_published_program_comes_back_and_leaves_no_secret(server: tuple[str, Path]) -> None:
    """Version, alias, tags and snapshot are on the server; the loaded program works; no key is in any file of it."""
    import mlflow

    url, folder = server
    before = mlflow.get_tracking_uri()
    program = compiled()
    state = program.dump_state()
    lm = dspy.LM("openai/gpt-4o-mini", api_key="canary-lm-0004", extra_headers={"Authorization": "canary-lm-0005"})
    metadata = {"team": "geo", "score": 0.91, "note": {"api_key": "canary-meta-0006"}}
    with dspy.context(lm=lm, adapter=dspy.JSONAdapter(), rm=lambda: "canary-rm-0007"):
        stored = snapshot(program)
        made = publish_to_mlflow(
            stored, program, name="capital", alias="production", metadata=metadata, tracking_uri=url
        )
        again = publish_to_mlflow(stored, program, name="capital", alias="production", tracking_uri=url)
    assert (made.version, again.version) == ("1", "2")
    assert made.omitted == ("check.config.extra_headers", "settings.lm")
    assert program.dump_state() == state
    assert program.candidate_programs
    assert (mlflow.get_tracking_uri(), mlflow.active_run()) == (before, None)

    client = mlflow.MlflowClient(url)
    assert client.get_model_version_by_alias("capital", "production").version == "2"
    tags = client.get_model_version("capital", "1").tags
    assert tags["dspy_observe.content_hash"] == content_hash(stored)
    assert tags["dspy_observe.dspy_version"] == dspy.__version__
    assert (tags["team"], tags["score"]) == ("geo", "0.91")
    assert client.get_run(made.run_id).info.status == "FINISHED"
    text = Path(client.download_artifacts(made.run_id, "program.json")).read_text(encoding="utf-8")
    assert content_hash(ProgramSnapshot.from_json(text)) == content_hash(stored)

    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.name == "program.pkl" for path in files)
    assert [path for path in files if b"canary" in path.read_bytes()] == []

    mlflow.set_tracking_uri(url)  # the variable would not do where an earlier test of this process has set one
    try:
        loaded = mlflow.dspy.load_model(client.get_model_version("capital", "1").source)
    finally:
        mlflow.set_tracking_uri(before)
    assert loaded.ask.predict.demos[0]["answer"] == "Vienna"
    assert loaded.ask.predict.lm.kwargs["temperature"] == 0.2
    loaded.ask.predict.lm = None
    with dspy.context(lm=offline_lm({"reasoning": "r", "answer": "Paris"}), adapter=None):
        assert loaded(question="France?").answer == "Paris"


@pytest.mark.e2e
@pytest.mark.slow
def test_what_mlflow_refuses_is_a_typed_error(server: tuple[str, Path]) -> None:
    """A name with a slash is MLflow's to refuse; the run that was begun is marked as failed."""
    import mlflow

    program = Capital()
    with pytest.raises(PublishError, match="a/b"):
        publish_to_mlflow(snapshot(program), program, name="a/b", tracking_uri=server[0])
    client = mlflow.MlflowClient(server[0])
    experiment = client.get_experiment_by_name("a/b")
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["FAILED"]


def test_a_server_that_is_not_there_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens on the port that was free a moment ago."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    program = Capital()
    with pytest.raises(PublishError, match="did not take 'capital'"):
        publish_to_mlflow(snapshot(program), program, name="capital", tracking_uri=address)


def test_another_program_is_not_published_under_a_snapshot() -> None:
    """The program must be the one of the snapshot; nothing is asked of the server before that is known."""
    with pytest.raises(IncompatibleProgramError):
        publish_to_mlflow(snapshot(Capital()), dspy.Predict("a -> b"), name="x", tracking_uri="http://127.0.0.1:9")


def test_without_mlflow_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is named, and the error is an ImportError, too."""

    class Blocked:
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
            if name.split(".", maxsplit=1)[0] == "mlflow":
                raise ImportError(name)

    for name in [name for name in sys.modules if name.split(".")[0] == "mlflow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Blocked(), *sys.meta_path])
    program = Capital()
    with pytest.raises(MlflowMissingError, match="pip install 'mlflow") as caught:
        publish_to_mlflow(snapshot(program), program, name="x")
    assert isinstance(caught.value, ImportError)
