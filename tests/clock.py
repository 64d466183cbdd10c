"""A clock that tests move by hand."""

from __future__ import annotations

__all__ = ["Clock"]


class Clock:
    """A clock that stands still until it is moved: 2024-01-15 14:30:22 UTC."""

    def __init__(self) -> None:
        self.now = 1705329022.0

    def __call__(self) -> float:
        return self.now

    def forward(self, seconds: float) -> None:
        """Move on."""
        self.now += seconds
