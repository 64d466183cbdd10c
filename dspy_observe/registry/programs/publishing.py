"""A program, logged and registered in MLflow, without the credentials that its process holds.

``mlflow.dspy`` pickles the program and DSPy's settings as they are, keys of the LM included. So a copy is published:
the state of the snapshot, LMs rebuilt from their identities, and settings reduced to LM and adapter.
"""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import dspy

from dspy_observe.redaction import credentials_only
from dspy_observe.registry.programs import walking
from dspy_observe.registry.programs.errors import MlflowMissingError, PublishError
from dspy_observe.registry.programs.identity import adapter_identity, build_lm, lm_identity
from dspy_observe.registry.programs.models import ProgramSnapshot, content_hash
from dspy_observe.registry.programs.restoring import restore
from dspy_observe.registry.programs.states import plain

__all__ = ["Publication", "publish_to_mlflow"]

_ARTIFACT: Final = "model"
_SNAPSHOT: Final = "program.json"
_PREFIX: Final = "dspy_observe."
# What optimizers leave on a program besides its state: other programs, with other LMs.
_LEFTOVERS: Final = ("candidate_programs", "mb_candidate_programs", "trial_logs", "detailed_results", "results_best")


@dataclass(frozen=True, slots=True)
class Publication:
    """A program as MLflow has it.

    Attributes:
        name: The registered model.
        version: Its version, a number as text.
        alias: The alias that points to it now; ``None`` when none was asked for.
        run_id: The run that holds the artifacts.
        model_uri: ``models:/name/version``, for ``mlflow.dspy.load_model``.
        omitted: What was left out because it may hold secrets or needs code: whoever loads the program sets it.
    """

    name: str
    version: str
    alias: str | None
    run_id: str
    model_uri: str
    omitted: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The publication as plain data."""
        return dict(plain(self))


def publish_to_mlflow(
    snapshot: ProgramSnapshot,
    module: Any,
    *,
    name: str,
    alias: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    tracking_uri: str | None = None,
) -> Publication:
    """Log a program with ``mlflow.dspy``, register it, and point an alias at it.

    Neither MLflow's global tracking address nor its active run is touched. The program's class is pickled by
    reference, so whoever loads it needs the code; attributes of it that are not DSPy's are pickled as they are.
    An unreachable server is tried again as ``MLFLOW_HTTP_REQUEST_MAX_RETRIES`` says.

    Args:
        snapshot: What is published; its content address and provenance become tags of the version.
        module: The program of that snapshot; it is copied.
        name: The registered model, made when missing; also the experiment. MLflow refuses ``/`` and ``:``.
        alias: Moved to the new version; ``None`` moves none.
        metadata: Further tags; what is no text becomes JSON, and credentials are taken out. ``None`` adds none.
        tracking_uri: The server; ``None`` takes MLflow's own setting.

    Raises:
        MlflowMissingError: MLflow is not installed.
        IncompatibleProgramError: The module does not have the snapshot's schema.
        PublishError: MLflow refused or failed; a run that was begun is marked as failed.
    """
    mlflow = _mlflow()
    program, settings, omitted = _without_secrets(snapshot, module)
    tags = _tags(snapshot, metadata or {})
    client = mlflow.MlflowClient(tracking_uri=tracking_uri)
    run_id = None
    try:
        run_id = client.create_run(_experiment(client, name), run_name=name, tags=tags).info.run_id
        client.log_text(run_id, snapshot.to_json(), _SNAPSHOT)
        with tempfile.TemporaryDirectory(prefix="dspy-observe-") as folder:
            path = Path(folder) / _ARTIFACT
            _save(mlflow, program, settings, path, run_id, tags)
            client.log_artifacts(run_id, str(path), _ARTIFACT)
        version = _register(mlflow, client, name, run_id, tags)
        if alias is not None:
            client.set_registered_model_alias(name, alias, version)
        client.set_terminated(run_id)
    except (mlflow.MlflowException, OSError) as error:
        _mark_failed(mlflow, client, run_id)
        raise PublishError(f"MLflow did not take {name!r}: {error}") from error
    return Publication(name, version, alias, run_id, f"models:/{name}/{version}", omitted)


def _mlflow() -> Any:
    try:
        importlib.import_module("mlflow.dspy")
    except ImportError as error:
        raise MlflowMissingError from error
    return importlib.import_module("mlflow")


def _experiment(client: Any, name: str) -> str:
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found is not None else client.create_experiment(name))


def _save(
    mlflow: Any, program: Any, settings: Mapping[str, Any], path: Path, run_id: str, tags: Mapping[str, str]
) -> None:
    with dspy.context(**settings):
        mlflow.dspy.save_model(
            program,
            str(path),
            mlflow_model=mlflow.models.Model(artifact_path=_ARTIFACT, run_id=run_id),
            metadata=dict(tags),
            pip_requirements=[f"dspy=={dspy.__version__}"],  # inferring them loads the model in another process
            use_dspy_model_save=True,
        )


def _register(mlflow: Any, client: Any, name: str, run_id: str, tags: Mapping[str, str]) -> str:
    try:
        client.create_registered_model(name)
    except mlflow.MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"runs:/{run_id}/{_ARTIFACT}"
    return str(client.create_model_version(name, source, run_id, tags=dict(tags)).version)


def _mark_failed(mlflow: Any, client: Any, run_id: str | None) -> None:
    if run_id is not None:
        try:
            client.set_terminated(run_id, "FAILED")
        except mlflow.MlflowException:
            return  # the server is gone; the first error is the one to report


def _tags(snapshot: ProgramSnapshot, metadata: Mapping[str, Any]) -> dict[str, str]:
    own = {"content_hash": content_hash(snapshot), "module": snapshot.module, **snapshot.provenance()}
    found = {f"{_PREFIX}{key}": value for key, value in own.items() if value not in (None, {})}
    clean, _ = credentials_only().redact(dict(metadata))
    return {key: value if isinstance(value, str) else _json(value) for key, value in {**clean, **found}.items()}


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _without_secrets(snapshot: ProgramSnapshot, module: Any) -> tuple[Any, dict[str, Any], tuple[str, ...]]:
    """A copy of the program, the settings to save with it, and the names of what was left out of both."""
    omitted = []
    copy = module.deepcopy()
    for name in _LEFTOVERS:
        vars(copy).pop(name, None)
    program = restore(lambda: copy, snapshot, lm_for=lambda identity: build_lm(identity, "lm"), trust_source=True)
    for state in snapshot.predictors:
        one = walking.parameters(program)[state.path]
        one.lm = None if state.lm is None else build_lm(state.lm, f"predictors.{state.path}.lm")
        if state.lm is not None and one.lm is None:
            omitted.append(f"{state.path}.lm")
        for name in state.config_withheld:
            del one.config[name]
            omitted.append(f"{state.path}.config.{name}")
    settings, more = _settings()
    return program, settings, (*omitted, *more)


def _settings() -> tuple[dict[str, Any], list[str]]:
    """Every setting of DSPy, each at its default but LM and adapter: a retriever or a custom one may hold keys."""
    omitted = []
    current = dict(dspy.settings.config)
    kept = dict.fromkeys(current) | _defaults()
    identity = lm_identity(current.get("lm"), "lm")
    kept["lm"] = None if identity is None else build_lm(identity, "lm")
    if identity is not None and kept["lm"] is None:
        omitted.append("settings.lm")
    adapter = current.get("adapter")
    if adapter is not None:
        kept["adapter"] = _same_adapter(adapter)
        if kept["adapter"] is None:
            omitted.append("settings.adapter")
    return kept, omitted


def _defaults() -> dict[str, Any]:
    from dspy.dsp.utils.settings import DEFAULT_CONFIG

    return deepcopy(dict(DEFAULT_CONFIG))


def _same_adapter(adapter: Any) -> Any | None:
    """A new adapter of the same identity, made by its class without arguments or with its flags; else ``None``."""
    identity = adapter_identity(adapter)
    flags = {name: value for name, value in identity.options.items() if isinstance(value, bool)}
    for arguments in ({}, flags):
        try:
            made = type(adapter)(**arguments)
        except TypeError:
            continue
        if adapter_identity(made) == identity:
            return made
    return None
