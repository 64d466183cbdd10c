"""What the registry refuses, each reason with a type of its own. A refused operation leaves the store as it was."""

# ruff: noqa: N818 - the names are what users catch, and say what is wrong; the base class ends in Error

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from dspy_observe.errors import ObserveError

__all__ = [
    "ApprovalMissing",
    "Conflict",
    "CorruptRegistry",
    "CorruptVersion",
    "InvalidName",
    "InvalidScore",
    "NotSerialisable",
    "NothingToRollBackTo",
    "Quarantined",
    "RegistryError",
    "StoreUnavailable",
    "UnknownSignature",
    "UnknownVersion",
    "VersionExists",
]


class RegistryError(ObserveError):
    """Base of every error that a registry raises on purpose."""


class UnknownSignature(RegistryError, LookupError):
    """No version was ever registered under this name.

    Args:
        name: The signature's name as it was asked for.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"no signature {name!r} in the registry; `dspy-observe registry list` shows what it holds")
        self.name = name


class UnknownVersion(RegistryError, LookupError):
    """The signature has no such version, alias or hash.

    Args:
        name: The signature.
        version: What was asked for.
        known: Versions that it has; one that is written alike is proposed.
        problem: What to say instead, where something else than the name is wrong.
    """

    def __init__(self, name: str, version: str, *, known: Iterable[str] = (), problem: str | None = None) -> None:
        if problem is None:
            alike = get_close_matches(version, known, n=3)
            hint = (
                f"did you mean {' or '.join(map(repr, alike))}?"
                if alike
                else f"`dspy-observe registry list {name}` shows its versions"
            )
            problem = f"signature {name!r} has no version {version!r}; {hint}"
        super().__init__(problem)
        self.name = name
        self.version = version

    @classmethod
    def nothing_deployed(cls, name: str, environment: str) -> UnknownVersion:
        """For whoever asks for what an environment runs, where it runs nothing."""
        problem = f"nothing of {name!r} is deployed in {environment}; deploy a version first"
        return cls(name, f"(deployed in {environment})", problem=problem)


class InvalidName(RegistryError, ValueError):
    """A name that could leave the registry's folder, or be mistaken for another one.

    Args:
        kind: What it should name: signature, version, alias, environment.
        name: The name.
        problem: Why it is refused.
    """

    def __init__(self, kind: str, name: object, problem: str) -> None:
        super().__init__(f"{name!r:.120} is no {kind} name: {problem}")
        self.kind = kind
        self.name = name
        self.problem = problem


class InvalidScore(RegistryError, ValueError):
    """A score that is no finite number, or outside the bounds it was declared to have."""


class NotSerialisable(RegistryError, ValueError):
    """A value that would not come back from the store as it went in.

    Args:
        path: Where it stands, such as ``metadata.splits[2]``.
        problem: Why, and what to pass instead.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


class Conflict(RegistryError):
    """Somebody else changed the state that the caller had seen.

    Args:
        message: What was expected and what is there.
        expected: What the caller expected: a generation or a version; ``None`` when it expected nothing deployed.
        current: What is there now.
    """

    def __init__(self, message: str, *, expected: object, current: object) -> None:
        super().__init__(message)
        self.expected = expected
        self.current = current


class VersionExists(Conflict):
    """The name is taken by a version with other content."""


class NothingToRollBackTo(RegistryError, LookupError):
    """The deployment log holds no earlier version that exists and is not quarantined."""


class Quarantined(RegistryError):
    """The version was found bad; deploying it again takes ``force`` and a reason."""


class ApprovalMissing(RegistryError, PermissionError):
    """The environment is protected and the version has no valid approval for it."""


class StoreUnavailable(RegistryError):
    """The store cannot be read or written: a full disk, a read-only folder, a database that does not answer."""


class CorruptRegistry(RegistryError, ValueError):
    """A file of the registry does not say what it should; nothing was changed.

    Args:
        file: The file, or the database and table.
        line: Its line, counted from 1; ``None`` where lines mean nothing.
        problem: What is wrong there.
    """

    def __init__(self, file: str, line: int | None, problem: str) -> None:
        super().__init__(f"{file}{'' if line is None else f', line {line}'}: {problem}")
        self.file = file
        self.line = line
        self.problem = problem


class CorruptVersion(CorruptRegistry):
    """A version's content is missing, or is not what its hash says. Other versions are not affected.

    Args:
        version_hash: The hash that the content should have.
        file: Where the content stands.
        problem: What is wrong.
    """

    def __init__(self, version_hash: str, file: str, problem: str) -> None:
        super().__init__(file, None, problem)
        self.version_hash = version_hash
