"""Where a program comes from: the commit of its code and the addresses of its data."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from dspy_observe.registry.programs.errors import UnserialisableProgramError
from dspy_observe.registry.programs.values import canonical, encode

__all__ = ["code_folder", "dataset_sha256", "git_state"]

_GIT_TIMEOUT_S: Final = 10.0


def git_state(folder: Path) -> tuple[str | None, bool | None]:
    """Commit of the checkout that a folder lies in, and whether tracked files differ from it.

    Args:
        folder: Any folder.

    Returns:
        The full SHA and the flag; ``None`` for what git cannot tell: outside a checkout, before the first commit, or
        without git.
    """
    sha = _git(folder, "rev-parse", "--verify", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no") if sha else None
    return sha or None, None if changed is None else bool(changed)


def _git(folder: Path, *arguments: str) -> str | None:
    # Git's own variables, as hooks set them, would name another repository than the one of the folder.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment["GIT_OPTIONAL_LOCKS"] = "0"  # looking must not get in the way of a command that changes something
    try:
        done = subprocess.run(  # noqa: S603 - the arguments are constants
            ["git", "-C", str(folder), *arguments],  # noqa: S607 - git is wherever the user has it
            capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=False, env=environment,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def code_folder(kind: type) -> Path:
    """Folder of the file that defines a program's class; the working directory for a class of DSPy or of a prompt.

    Args:
        kind: The class.
    """
    module = sys.modules.get(kind.__module__)
    file = getattr(module, "__file__", None)
    if not file or kind.__module__.split(".")[0] == "dspy":
        return Path.cwd()
    return Path(file).resolve().parent


def dataset_sha256(examples: Iterable[Any] | None) -> str | None:
    """Address of a list of examples: hexadecimal sha256 over their values in order.

    Args:
        examples: ``dspy.Example`` objects or mappings; ``None`` for unknown data.

    Returns:
        ``None`` for ``None``, and for data with a value that has no exact form as JSON: then nothing is known.
    """
    if examples is None:
        return None
    digest = hashlib.sha256()
    try:
        for at, example in enumerate(examples):
            digest.update(canonical(encode(example, f"examples[{at}]")).encode("ascii") + b"\n")
    except UnserialisableProgramError:
        return None
    return digest.hexdigest()
