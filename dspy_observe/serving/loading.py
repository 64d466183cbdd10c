"""From a version in the registry to an instance that can answer: built aside, checked, labelled."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import dspy

from dspy_observe.errors import ConfigurationError
from dspy_observe.facts import calls
from dspy_observe.facts.identity import WeakIdentityMap
from dspy_observe.registry.programs import ProgramStateError, UnserialisableProgramError, fingerprint
from dspy_observe.registry.programs.walking import parameters
from dspy_observe.registry.signatures import SignatureRegistry
from dspy_observe.serving.series import Series

__all__ = ["Loader", "Serving"]


@dataclass(frozen=True, slots=True)
class Serving:
    """One program instance that answers, and what it is. A call takes it once and stays with it."""

    program: Any
    """The ``dspy.Module``. Start optimizers from it or evaluate it; do not change it."""
    version: str | None
    """Display name; ``None`` for the untuned program of the factory."""
    version_hash: str | None
    generation: int
    """Of the pointer that named the version; 0 for the untuned program."""
    role: str
    loaded_at: float
    """Unix time in seconds."""
    content: str | None
    """What the program said when it was loaded, as a hash; ``None`` where that cannot be told."""

    def has_drifted(self) -> bool:
        """Whether the instance was changed since it was loaded, so that its label is not true any more."""
        return self.content is not None and content_of(self.program) not in (None, self.content)


class Loader:
    """Builds instances of one program's versions.

    Args:
        registry: Where the versions are.
        name: The program.
        factory: Makes a new untuned program.
        check: Called with each new instance before it may answer; what it raises refuses the version. Its calls are
            recorded with the role ``warmup``. ``None`` checks nothing but hash and schema.
        options: For :meth:`SignatureRegistry.load_program`.
        series: Where the version's time series are made.
    """

    def __init__(
        self,
        registry: SignatureRegistry,
        name: str,
        factory: Callable[[], Any],
        *,
        check: Callable[[Any], object] | None,
        options: Mapping[str, Any],
        series: Series,
    ) -> None:
        if not callable(factory):
            raise ConfigurationError("factory", f"{factory!r:.80} is not callable", "Pass the program's class")
        if check is not None and not callable(check):
            raise ConfigurationError("check", f"{check!r:.80} is not callable", "Pass a function of one program")
        self._registry = registry
        self._name = name
        self._factory = factory
        self._check = check
        self._options = dict(options)
        self._series = series
        self._answering: WeakIdentityMap[bool] = WeakIdentityMap()

    def load(self, version: str, version_hash: str, generation: int, role: str) -> Serving:
        """A new instance of a version.

        Raises:
            RegistryError, IncompatibleProgramError, ProgramStateError: It cannot be had, or does not fit the code.
            ConfigurationError: The factory gave parts of an instance that is answering.
            Exception: Whatever the factory or the check raised.
        """
        try:
            program = self._registry.load_program(self._name, self._fresh, version_hash, **self._options)
            return self._ready(program, version, version_hash, generation, role)
        except SystemExit as error:  # it would end the follower's thread without a word
            raise ConfigurationError(
                "factory", f"it, or the check, wanted to end the process ({error})", "Raise an error instead"
            ) from error

    def untuned(self, role: str) -> Serving:
        """A new instance as the code makes it."""
        return self._ready(self._fresh(), None, None, 0, role)

    def _ready(
        self, program: Any, version: str | None, version_hash: str | None, generation: int, role: str
    ) -> Serving:
        if self._check is not None:
            calls.tag(program, self._name, version, "warmup")
            self._check(program)
        calls.tag(program, self._name, version, role)
        self._series.prepare(program, version, role)
        for one in _own(program):
            self._answering.set(one, True)
        return Serving(program, version, version_hash, generation, role, time.time(), content_of(program))

    def _fresh(self) -> Any:
        """What the factory makes, if it is new: state is about to be written into it."""
        made = self._factory()
        if isinstance(made, dspy.Module) and any(self._answering.get(one) for one in _own(made)):
            raise ConfigurationError(
                "factory", "it gave an instance, or predictors of one, that is answering calls",
                "Make everything anew each time; pass the program's class",
            )  # fmt: skip
        return made


def _own(program: Any) -> list[Any]:
    """The program and what of it is written to: retrievers may be shared."""
    return [program, *(one for one in parameters(program).values() if not isinstance(one, dspy.Retrieve))]


def content_of(program: Any) -> str | None:
    """What a program says, as a hash; ``None`` where that cannot be told."""
    try:
        return fingerprint(program)
    except (UnserialisableProgramError, ProgramStateError):
        return None
