"""Options of the registry and of its manager: attributes that are checked whenever they are set.

Mutable on purpose, as ``config.max_versions_per_signature = 20`` reads best. A registry takes a copy when it opens; a
manager reads its options at every call.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, NamedTuple

from dspy_observe.environment import parse_bool
from dspy_observe.errors import ConfigurationError
from dspy_observe.registry import names

__all__ = ["IntegrationConfig", "RegistryConfig"]

STRATEGIES: Final = ("conservative", "aggressive", "best_score", "manual")
_VARIABLES: Final = "DSPY_OBSERVE_REGISTRY_"
_PLACE: Final = "DSPY_OBSERVE_REGISTRY"
"""The short name of ``DSPY_OBSERVE_REGISTRY_PATH``."""


class Option(NamedTuple):
    """One attribute: its default, how its environment variable is read, and when a value is right."""

    default: Any
    parse: Callable[[str], Any]
    right: Callable[[Any], bool]
    needs: str


class Options:
    """Attributes by a table. An argument wins over the environment, the environment over the default."""

    table: ClassVar[Mapping[str, Option]] = {}
    __slots__ = ("_given", "_values")

    def __init__(self, **values: Any) -> None:
        object.__setattr__(self, "_values", {})
        object.__setattr__(self, "_given", set())
        for name, option in self.table.items():
            self._values[name] = option.default
            if name not in values:
                self._read(name, option)
        for name, value in values.items():
            setattr(self, name, value)

    def _read(self, name: str, option: Option) -> None:
        """Take an option from the environment, if it is there."""
        variable, text = _variable_and_text(name)
        if not text:
            return
        try:
            setattr(self, name, option.parse(text))
        except ConfigurationError as error:
            raise ConfigurationError(error.field, f"{error.problem} (from {variable})", error.fix) from None
        except ValueError as error:
            raise ConfigurationError(variable, f"{text!r} cannot be read ({error})", "Correct or unset it") from None

    def __getattr__(self, name: str) -> Any:
        values: dict[str, Any] = object.__getattribute__(self, "_values")
        try:
            return values[name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no option {name!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        option = self.table.get(name)
        if option is None:
            raise ConfigurationError(
                f"{type(self).__name__}.{name}", "there is no such option", f"Use one of {', '.join(self.table)}"
            )
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if not option.right(value):
            raise ConfigurationError(f"{type(self).__name__}.{name}", f"{value!r} cannot work", f"Use {option.needs}")
        self._values[name] = value
        self._given.add(name)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._values.items())})"

    def to_dict(self) -> dict[str, Any]:
        """All options by name."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in self._values.items()}

    @property
    def given(self) -> frozenset[str]:
        """Which options were set by an argument, an assignment or the environment."""
        return frozenset(self._given)


def variable_of(name: str) -> str:
    """The environment variable of an option: ``DSPY_OBSERVE_REGISTRY_PATH``, ``..._AUTO_VERSION``, ..."""
    return _VARIABLES + name.removeprefix("registry_").upper()


def _variable_and_text(name: str) -> tuple[str, str]:
    """The variable that says what an option is, and what it says.

    Raises:
        ConfigurationError: Two variables name two registries.
    """
    variable = variable_of(name)
    text = os.environ.get(variable, "")
    short = os.environ.get(_PLACE, "") if name == "registry_path" else ""
    if text and short and text != short:
        raise ConfigurationError(_PLACE, f"it and {variable} name two registries", "Unset one of them")
    return (_PLACE, short) if short and not text else (variable, text)


def _switch(default: bool) -> Option:
    return Option(default, parse_bool, lambda value: isinstance(value, bool), "True or False")


def _count(default: int, least: int, needs: str) -> Option:
    return Option(default, int, lambda value: type(value) is int and value >= least, needs)


def _number(default: float, needs: str) -> Option:
    def right(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0

    return Option(default, float, right, needs)


def _format_works(value: Any) -> bool:
    from datetime import UTC, datetime

    if not isinstance(value, str):
        return False
    try:
        return names.is_name(datetime(2024, 1, 15, 14, 30, 22, tzinfo=UTC).strftime(value))
    except ValueError:
        return False


def _names(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(name, str) and names.is_name(name) for name in value)


class RegistryConfig(Options):
    """How a registry keeps versions.

    Args:
        registry_path: Folder of the file store, or ``sqlite:///file.db``, or ``postgresql+psycopg://user@host/name``.
            Its variable is ``DSPY_OBSERVE_REGISTRY_PATH`` or, for short, ``DSPY_OBSERVE_REGISTRY``.
        auto_version: Make a version name from the clock where the caller gives none; otherwise a name is needed.
        max_versions_per_signature: How many versions to keep; 0 keeps all. What is deployed, what a rollback would
            take, and what has an alias is kept in any case and counts.
        backup_on_deploy: Keep a copy of what an environment ran before each deployment.
        version_format: Format of :meth:`~datetime.datetime.strftime` for those names, in UTC.
        protected_environments: Environments to which only approved versions go.

    Each option left out is read from ``DSPY_OBSERVE_REGISTRY_PATH``, ``DSPY_OBSERVE_REGISTRY_AUTO_VERSION``, ...; where
    that is unset, too, from the registry itself, which keeps what it was made with (never its own path).

    Raises:
        ConfigurationError: An option has a value that cannot work, or the two variables name two registries.
    """

    registry_path: str
    auto_version: bool
    max_versions_per_signature: int
    backup_on_deploy: bool
    version_format: str
    protected_environments: tuple[str, ...]

    __slots__ = ()
    table: ClassVar[Mapping[str, Option]] = {
        "registry_path": Option(
            "./dspy_registry", str, lambda value: isinstance(value, str) and bool(value.strip()), "a folder or a URL"
        ),
        "auto_version": _switch(True),
        "max_versions_per_signature": _count(10, 0, "a whole number; 0 keeps all versions"),
        "backup_on_deploy": _switch(True),
        "version_format": Option(
            "v%Y%m%d_%H%M%S", str, _format_works, "a strftime format that gives letters, digits and _ - + . only"
        ),
        "protected_environments": Option(
            (), lambda text: tuple(part.strip() for part in text.split(",")), _names, "a tuple of environment names"
        ),
    }

    def over(self, kept: Mapping[str, Any]) -> RegistryConfig:
        """These options, with what the registry keeps in place of the defaults.

        Raises:
            ConfigurationError: The registry keeps a value that cannot work.
        """
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in kept.items()}
        values.update({name: getattr(self, name) for name in self.given})
        values["registry_path"] = self.registry_path
        return RegistryConfig(**values)


class IntegrationConfig(Options):
    """What a manager does by itself.

    Args:
        auto_register_optimizations: Register what optimizers return.
        auto_deploy_best_versions: Deploy a registered version that is better than the deployed one.
        auto_deploy_threshold: How much better, relative to the deployed score: 0.1 is 10 %.
        rollback_on_performance_drop: Let ``monitor_and_rollback`` act.
        rollback_threshold: Drop that is bad enough, relative to the deployed version's score: 0.05 is 5 %.
        deployment_strategy: ``conservative``, ``aggressive``, ``best_score`` or ``manual``.
        require_evidence: Deploy automatically only where both scores say on how many examples of the same data set
            they rest and their difference is more than chance.
        rollback_cooldown_s: Seconds after a rollback in which no second one happens by itself.
        max_rollbacks_per_hour: How many rollbacks may happen by themselves within an hour, at least 1.
        keep_versions: How many of the newest versions ``cleanup_old_versions`` keeps, at least 1.

    Raises:
        ConfigurationError: An option has a value that cannot work.
    """

    auto_register_optimizations: bool
    auto_deploy_best_versions: bool
    auto_deploy_threshold: float
    rollback_on_performance_drop: bool
    rollback_threshold: float
    deployment_strategy: str
    require_evidence: bool
    rollback_cooldown_s: float
    max_rollbacks_per_hour: int
    keep_versions: int

    __slots__ = ()
    table: ClassVar[Mapping[str, Option]] = {
        "auto_register_optimizations": _switch(True),
        "auto_deploy_best_versions": _switch(False),
        "auto_deploy_threshold": _number(0.1, "a number from 0 up; 0.1 is 10 %"),
        "rollback_on_performance_drop": _switch(True),
        "rollback_threshold": _number(0.05, "a number from 0 up; 0.05 is 5 %"),
        "deployment_strategy": Option(
            "conservative", str, lambda value: value in STRATEGIES, "one of " + ", ".join(STRATEGIES)
        ),
        "require_evidence": _switch(True),
        "rollback_cooldown_s": _number(600.0, "a number of seconds, 0 for none"),
        "max_rollbacks_per_hour": _count(3, 1, "a whole number from 1 up"),
        "keep_versions": _count(5, 1, "a whole number from 1 up"),
    }
