"""Arguments that several commands take, and the registry that they name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from dspy_observe.registry import RegistryConfig, SignatureRegistry, StoreUnavailable

__all__ = [
    "Actor",
    "DryRun",
    "Environment",
    "Expected",
    "Generation",
    "Json",
    "Location",
    "Name",
    "Reason",
    "VersionName",
    "opened",
]

Location = Annotated[
    str | None,
    typer.Option(
        "--registry",
        help="Folder or URL; else DSPY_OBSERVE_REGISTRY_PATH, else DSPY_OBSERVE_REGISTRY, else ./dspy_registry.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Answer with JSON.")]
Environment = Annotated[str, typer.Option("--environment", "-e", help="Which environment.")]
Name = Annotated[str, typer.Argument(help="The signature.")]
VersionName = Annotated[str, typer.Argument(metavar="VERSION", help="A version's name, alias or hash.")]
Actor = Annotated[str | None, typer.Option(help="Who does it; the user of this process unless given.")]
Reason = Annotated[str | None, typer.Option(help="Why; kept in the log.")]
Generation = Annotated[int | None, typer.Option(help="Refuse unless this generation is deployed; see status.")]
Expected = Annotated[str | None, typer.Option(help="Refuse unless this version is deployed.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only tell what would happen.")]


@contextmanager
def opened(location: str | None, *, new: bool = False) -> Iterator[SignatureRegistry]:
    """A registry that exists; a mistyped place makes none.

    Args:
        location: Folder or URL; ``None`` takes the registry's own environment and default.
        new: Whether one may be made where there is none.

    Raises:
        StoreUnavailable: There is none, or it cannot be reached.
        ConfigurationError: The location cannot work.
    """
    config = RegistryConfig() if location is None else RegistryConfig(registry_path=location)
    place = config.registry_path.removeprefix("sqlite:///").partition("?")[0]
    if not new and "://" not in place and place not in ("", ":memory:") and not Path(place).exists():
        raise StoreUnavailable(
            f"there is no registry at {config.registry_path}; name it by --registry or DSPY_OBSERVE_REGISTRY; "
            "a first register_program() makes one"
        )
    with SignatureRegistry(config) as registry:
        yield registry
