"""The error of this room."""

from __future__ import annotations

from dspy_observe.errors import ConfigurationError

__all__ = ["RedactionConfigError"]


class RedactionConfigError(ConfigurationError):
    """An option of redaction has a value that cannot work; the message names the field and what to write instead."""
