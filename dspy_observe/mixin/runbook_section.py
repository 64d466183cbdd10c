"""What a runbook says about one alert."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Section"]


@dataclass(frozen=True, slots=True)
class Section:
    """One alert's section. ``$PROGRAM``, ``$VERSION`` and so on stand for the alert's labels."""

    meaning: str
    """What was seen."""
    impact: str
    """What it does to users, money or safety."""
    diagnosis: tuple[str, ...]
    """Commands and PromQL to paste, the most telling first."""
    mitigation: str
    """The way back."""
