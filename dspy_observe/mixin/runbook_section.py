"""What a runbook says about one alert, and the commands that several alerts share.

Each command that acts on an environment names the alert's: without it an alert of staging would move production.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["BACK", "DECISIONS", "DIFF", "LOG", "STATUS", "UNFREEZE", "Section"]

_WHERE: Final = "$PROGRAM -e $ENVIRONMENT"
DECISIONS: Final = f"dspy-observe decisions list -p {_WHERE}"
STATUS: Final = f"dspy-observe registry status {_WHERE}"
LOG: Final = f"dspy-observe registry log {_WHERE}"
DIFF: Final = "dspy-observe registry diff $PROGRAM $PREVIOUS $VERSION -e $ENVIRONMENT"
BACK: Final = f"dspy-observe registry rollback {_WHERE} --reason 'why'"
UNFREEZE: Final = f"dspy-observe decisions unfreeze {_WHERE}"


@dataclass(frozen=True, slots=True)
class Section:
    """One alert's section. ``$PROGRAM``, ``$VERSION`` and so on stand for the alert's labels.

    ``$PREVIOUS`` is no label; the page's head says where it is found.
    """

    meaning: str
    """What was seen."""
    impact: str
    """What it does to users, money or safety."""
    diagnosis: tuple[str, ...]
    """Commands and PromQL to paste, the most telling first."""
    mitigation: str
    """The way back."""
