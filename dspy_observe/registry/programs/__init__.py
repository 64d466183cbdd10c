"""Compiled DSPy programs as data: taken from a running program, compared, put back into new code, published.

Names that need DSPy load it when they are first used; the data model, the content address and the diff do not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dspy_observe.registry.programs.comparing import Change, PredictorDiff, diff
from dspy_observe.registry.programs.errors import (
    IncompatibleProgramError,
    MlflowMissingError,
    ProgramFactoryError,
    ProgramRedactionError,
    ProgramStateError,
    PublishError,
    SchemaDifference,
    UnserialisableProgramError,
    UntrustedProgramError,
)
from dspy_observe.registry.programs.models import ProgramSnapshot, content_hash
from dspy_observe.registry.programs.optimizers import OptimizationMetadata, optimization_metadata
from dspy_observe.registry.programs.provenance import dataset_sha256, git_state
from dspy_observe.registry.programs.states import (
    AdapterIdentity,
    Demo,
    FieldState,
    LMIdentity,
    PredictorState,
    RedactedPlace,
    ToolState,
)

if TYPE_CHECKING:
    from dspy_observe.registry.programs.capturing import fingerprint as fingerprint
    from dspy_observe.registry.programs.capturing import snapshot as snapshot
    from dspy_observe.registry.programs.publishing import Publication as Publication
    from dspy_observe.registry.programs.publishing import publish_to_mlflow as publish_to_mlflow
    from dspy_observe.registry.programs.restoring import restore as restore

_HOMES = {
    "Publication": "publishing",
    "fingerprint": "capturing",
    "publish_to_mlflow": "publishing",
    "restore": "restoring",
    "snapshot": "capturing",
}

__all__ = [
    "AdapterIdentity",
    "Change",
    "Demo",
    "FieldState",
    "IncompatibleProgramError",
    "LMIdentity",
    "MlflowMissingError",
    "OptimizationMetadata",
    "PredictorDiff",
    "PredictorState",
    "ProgramFactoryError",
    "ProgramRedactionError",
    "ProgramSnapshot",
    "ProgramStateError",
    "Publication",
    "PublishError",
    "RedactedPlace",
    "SchemaDifference",
    "ToolState",
    "UnserialisableProgramError",
    "UntrustedProgramError",
    "content_hash",
    "dataset_sha256",
    "diff",
    "fingerprint",
    "git_state",
    "optimization_metadata",
    "publish_to_mlflow",
    "restore",
    "snapshot",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value
