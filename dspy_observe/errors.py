"""Errors that the control plane raises. Telemetry raises none of them into a running program."""

from __future__ import annotations

__all__ = ["ConfigurationError", "ObserveError", "UnknownCallError"]


class ObserveError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigurationError(ObserveError, ValueError):
    """An option has a value that cannot work.

    Args:
        field: The option's public name, such as ``"Metrics.port"`` or the environment variable it came from.
        problem: What is wrong with the value.
        fix: What to write instead.
    """

    def __init__(self, field: str, problem: str, fix: str) -> None:
        super().__init__(f"{field}: {problem}. {fix}")
        self.field = field
        self.problem = problem
        self.fix = fix


class UnknownCallError(ObserveError, LookupError):
    """A score or reference names a call that this process did not observe."""
