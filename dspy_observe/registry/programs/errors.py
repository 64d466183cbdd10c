"""What can go wrong between a running program and its stored form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from dspy_observe.errors import ObserveError

__all__ = [
    "IncompatibleProgramError",
    "MlflowMissingError",
    "ProgramFactoryError",
    "ProgramRedactionError",
    "ProgramStateError",
    "PublishError",
    "SchemaDifference",
    "UnserialisableProgramError",
    "UntrustedProgramError",
]


@dataclass(frozen=True, slots=True)
class SchemaDifference:
    """One way in which a stored program and the code differ.

    Attributes:
        kind: What sort of difference, a constant such as ``field_missing`` or ``tool_changed``.
        predictor: The predictor's path, or ``""`` when the whole program is meant.
        subject: The field, tool or setting.
        message: The difference in words.
    """

    kind: str
    predictor: str
    subject: str
    message: str

    def __str__(self) -> str:
        return self.message

    def to_dict(self) -> dict[str, str]:
        """The difference as plain data."""
        return asdict(self)


class IncompatibleProgramError(ObserveError):
    """A stored program does not fit the code that should run it; nothing was loaded.

    Args:
        differences: Every difference found, at least one.
    """

    def __init__(self, differences: Sequence[SchemaDifference]) -> None:
        lines = "".join(f"\n- {difference}" for difference in differences)
        super().__init__(f"The stored program does not fit the code:{lines}")
        self.differences = tuple(differences)


class ProgramStateError(ObserveError, ValueError):
    """Stored state is malformed or holds something that is not allowed there.

    Args:
        where: The place, such as ``predictors.answer.demos[2]``.
        problem: What is wrong with it; never quotes a value.
    """

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}")
        self.where = where
        self.problem = problem


class UntrustedProgramError(ObserveError):
    """Stored state holds source code, and the caller did not say that its origin is trusted."""


class UnserialisableProgramError(ObserveError, TypeError):
    """A part of a program's state has no exact form as plain data.

    Args:
        where: The place, such as ``predictors.answer.demos[2].photo``.
        problem: What stands there, by type.
    """

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}")
        self.where = where
        self.problem = problem


class ProgramFactoryError(ObserveError, TypeError):
    """The factory of a program did not give a ``dspy.Module``."""


class ProgramRedactionError(ObserveError):
    """Credentials could not be looked for in a program's state, so it is not stored.

    Args:
        where: The place that could not be redacted.
    """

    def __init__(self, where: str) -> None:
        super().__init__(f"{where}: redaction failed, so the program is not stored")
        self.where = where


class PublishError(ObserveError):
    """MLflow refused or failed to take a program."""


class MlflowMissingError(PublishError, ImportError):
    """MLflow is not installed."""

    def __init__(self) -> None:
        super().__init__("Publishing to MLflow needs the mlflow package: pip install 'mlflow>=3.10,<4'")
