"""A registry of compiled programs: every version, its scores, its deployments, and the way back.

::

    from dspy_observe.registry import RegistryManager, SignatureRegistry

    registry = SignatureRegistry("./dspy_registry")  # or sqlite:///registry.db, postgresql+psycopg://user@host/name
    version = registry.register_version("text_classifier", {"instruction": "Classify the text."})
    registry.update_performance_score("text_classifier", version.version, 0.92, dataset="dev", n=200)
    registry.deploy_version("text_classifier", version.version)
    registry.rollback("text_classifier")

Names are loaded when they are first used; DSPy only where a program is taken apart or built.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dspy_observe.registry.manager import RegistryManager as RegistryManager
    from dspy_observe.registry.models import ApprovalMissing as ApprovalMissing
    from dspy_observe.registry.models import Comparison as Comparison
    from dspy_observe.registry.models import Conflict as Conflict
    from dspy_observe.registry.models import Control as Control
    from dspy_observe.registry.models import CorruptRegistry as CorruptRegistry
    from dspy_observe.registry.models import CorruptVersion as CorruptVersion
    from dspy_observe.registry.models import Decision as Decision
    from dspy_observe.registry.models import Deployment as Deployment
    from dspy_observe.registry.models import InvalidName as InvalidName
    from dspy_observe.registry.models import InvalidScore as InvalidScore
    from dspy_observe.registry.models import NothingToRollBackTo as NothingToRollBackTo
    from dspy_observe.registry.models import NotSerialisable as NotSerialisable
    from dspy_observe.registry.models import Quarantined as Quarantined
    from dspy_observe.registry.models import RegistryError as RegistryError
    from dspy_observe.registry.models import Ruling as Ruling
    from dspy_observe.registry.models import Standing as Standing
    from dspy_observe.registry.models import StoreUnavailable as StoreUnavailable
    from dspy_observe.registry.models import UnknownSignature as UnknownSignature
    from dspy_observe.registry.models import UnknownVersion as UnknownVersion
    from dspy_observe.registry.models import Version as Version
    from dspy_observe.registry.models import VersionExists as VersionExists
    from dspy_observe.registry.options import IntegrationConfig as IntegrationConfig
    from dspy_observe.registry.options import RegistryConfig as RegistryConfig
    from dspy_observe.registry.programs import IncompatibleProgramError as IncompatibleProgramError
    from dspy_observe.registry.rollouts import Rollout as Rollout
    from dspy_observe.registry.signatures import SignatureRegistry as SignatureRegistry

_HOMES = {
    "ApprovalMissing": "errors",
    "Comparison": "models",
    "Conflict": "errors",
    "Control": "models",
    "CorruptRegistry": "errors",
    "CorruptVersion": "errors",
    "Decision": "models",
    "Deployment": "models",
    "IncompatibleProgramError": "programs",
    "IntegrationConfig": "options",
    "InvalidName": "errors",
    "InvalidScore": "errors",
    "NotSerialisable": "errors",
    "NothingToRollBackTo": "errors",
    "Quarantined": "errors",
    "RegistryConfig": "options",
    "RegistryError": "errors",
    "RegistryManager": "manager",
    "Rollout": "rollouts",
    "Ruling": "models",
    "SignatureRegistry": "signatures",
    "Standing": "models",
    "StoreUnavailable": "errors",
    "UnknownSignature": "errors",
    "UnknownVersion": "errors",
    "Version": "models",
    "VersionExists": "errors",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
