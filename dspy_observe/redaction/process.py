"""Secrets that this process holds in its environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from dspy_observe.environment import variables
from dspy_observe.redaction.keynames import KeyNames

__all__ = ["environment_secrets"]

_DIRECTORIES: Final = frozenset({"PWD", "OLDPWD"})  # the shell's, not passwords
_ENDINGS: Final = ("KEY", "TOKEN", "SECRET", "PASSWORD")


def environment_secrets(names: KeyNames, environment: Mapping[str, str] | None = None) -> list[str]:
    """Values of the variables that are named like secrets, without space around them: files often end in a line break.

    Args:
        names: Decides by name.
        environment: Variables; ``None`` takes those of this process, once.
    """
    return [
        value.strip()
        for name, value in (variables() if environment is None else environment).items()
        if name not in _DIRECTORIES and (names.is_secret(name) or name.upper().endswith(_ENDINGS))
    ]
