"""What a live program and a router have in common: a registry that they hold, and an end."""

from __future__ import annotations

from os import PathLike
from types import TracebackType
from typing import Any, Self

from dspy_observe.errors import ConfigurationError
from dspy_observe.registry.options import RegistryConfig
from dspy_observe.registry.signatures import SignatureRegistry

__all__ = ["RegistryHolder"]


class RegistryHolder:
    """Serves from a registry until it is closed, in a ``with`` block or by :meth:`close`.

    Args:
        registry: The registry, its path or URL, or its options; what is opened here is closed here.

    Raises:
        ConfigurationError: It is no registry and names none.
    """

    def __init__(self, registry: SignatureRegistry | RegistryConfig | str | PathLike[str]) -> None:
        self._registry, self._owned = _opened(registry)
        self._closed = False

    def close(self) -> None:
        """Stop following. Calls go on being answered by what is there."""
        if self._closed:
            return
        self._closed = True
        self._stop()
        self._let_go()

    def _stop(self) -> None:
        """End what runs besides the calls."""
        raise NotImplementedError

    def _let_go(self) -> None:
        """Close the registry, unless it is the caller's."""
        if self._owned:
            self._registry.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # copies of a module that holds it follow the same deployment


def _opened(
    registry: SignatureRegistry | RegistryConfig | str | PathLike[str],
) -> tuple[SignatureRegistry, bool]:
    """A registry, and whether it was opened here and has to be closed."""
    if isinstance(registry, SignatureRegistry):
        return registry, False
    if isinstance(registry, RegistryConfig | str | PathLike):
        return SignatureRegistry(registry if isinstance(registry, RegistryConfig | str) else str(registry)), True
    raise ConfigurationError(
        "registry", f"{type(registry).__name__} is no registry", "Pass a SignatureRegistry, a path or a URL"
    )
