"""Programs in production: the deployed version, splitting traffic, a second model, budgets of users, estimates.

Names are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dspy_observe.serving.breaker import Breaker as Breaker
    from dspy_observe.serving.budgets import BudgetExceededError as BudgetExceededError
    from dspy_observe.serving.budgets import UserBudgets as UserBudgets
    from dspy_observe.serving.errors import NotDeployedError as NotDeployedError
    from dspy_observe.serving.estimate import PredictorEstimate as PredictorEstimate
    from dspy_observe.serving.estimate import TokenEstimate as TokenEstimate
    from dspy_observe.serving.estimate import estimate_tokens as estimate_tokens
    from dspy_observe.serving.fallback import TRANSIENT as TRANSIENT
    from dspy_observe.serving.fallback import AttemptTimeoutError as AttemptTimeoutError
    from dspy_observe.serving.fallback import FallbackLM as FallbackLM
    from dspy_observe.serving.live import LiveProgram as LiveProgram
    from dspy_observe.serving.live import LiveStatus as LiveStatus
    from dspy_observe.serving.loading import Serving as Serving
    from dspy_observe.serving.routing import Router as Router
    from dspy_observe.serving.routing import RouterStatus as RouterStatus
    from dspy_observe.serving.shadowing import Shadow as Shadow
    from dspy_observe.serving.splitting import Assignment as Assignment

_HOMES = {
    "Assignment": "splitting",
    "AttemptTimeoutError": "fallback",
    "Breaker": "breaker",
    "BudgetExceededError": "budgets",
    "FallbackLM": "fallback",
    "LiveProgram": "live",
    "LiveStatus": "live",
    "NotDeployedError": "errors",
    "PredictorEstimate": "estimate",
    "Router": "routing",
    "RouterStatus": "routing",
    "Serving": "loading",
    "Shadow": "shadowing",
    "TRANSIENT": "fallback",
    "TokenEstimate": "estimate",
    "UserBudgets": "budgets",
    "estimate_tokens": "estimate",
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
