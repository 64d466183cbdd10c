"""Programs in production: following the deployed version, splitting traffic, falling back to another model.

Names are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dspy_observe.serving.errors import NotDeployedError as NotDeployedError
    from dspy_observe.serving.live import LiveProgram as LiveProgram
    from dspy_observe.serving.live import LiveStatus as LiveStatus
    from dspy_observe.serving.loading import Serving as Serving

_HOMES = {
    "LiveProgram": "live",
    "LiveStatus": "live",
    "NotDeployedError": "errors",
    "Serving": "loading",
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
