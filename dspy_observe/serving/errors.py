"""What serving refuses."""

from __future__ import annotations

from dspy_observe.errors import ObserveError

__all__ = ["NotDeployedError"]


class NotDeployedError(ObserveError, LookupError):
    """There is no version to serve.

    Args:
        name: The program.
        environment: Where it should run.
    """

    def __init__(self, name: str, environment: str) -> None:
        super().__init__(
            f"no version of {name!r} is deployed in {environment!r}. Deploy one "
            f"(registry.deploy_version({name!r}, version, environment={environment!r})), or pass fallback=True to "
            "answer with the factory's untuned program until then"
        )
        self.name = name
        self.environment = environment
