"""What a deployment of the service may set, each by one environment variable."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from dspy_observe.registry import RegistryConfig


def _env(name: str, default: str) -> str:
    return os.environ.get(f"SERVICE_{name}", default)


@dataclass(frozen=True, slots=True)
class Settings:
    """Read once, when a worker starts."""

    registry: str = field(default_factory=lambda: RegistryConfig().registry_path)
    model: str = field(default_factory=lambda: _env("MODEL", "openai/gpt-4o-mini"))
    model_url: str | None = field(default_factory=lambda: _env("MODEL_URL", "") or None)
    """Base URL of the provider; ``None`` is the provider's own."""
    second_model: str | None = field(default_factory=lambda: _env("SECOND_MODEL", "") or None)
    """Answers when the first cannot; ``None`` lets the failure through."""
    redis_url: str | None = field(default_factory=lambda: _env("REDIS_URL", "") or None)
    """Where answers are kept; ``None`` keeps none."""
    answer_ttl_s: int = field(default_factory=lambda: int(_env("ANSWER_TTL_S", "86400")))
    requests_per_s: float = field(default_factory=lambda: float(_env("REQUESTS_PER_S", "100")))
    """For each worker; more wait for ``max_wait_s``, then they are refused."""
    max_wait_s: float = field(default_factory=lambda: float(_env("MAX_WAIT_S", "5")))
    answer_timeout_s: float = field(default_factory=lambda: float(_env("ANSWER_TIMEOUT_S", "30")))
    failures_to_open: int = field(default_factory=lambda: int(_env("FAILURES_TO_OPEN", "10")))
    """Failures of the provider in a row after which it is left alone for ``open_s``."""
    open_s: float = field(default_factory=lambda: float(_env("OPEN_S", "10")))
    stale_limit_s: float = field(default_factory=lambda: float(_env("STALE_LIMIT_S", "120")))
    """Not ready when the registry could not be read for so long."""
    refresh_s: float = field(default_factory=lambda: float(_env("REFRESH_S", "5")))
    admin_token: str | None = field(default_factory=lambda: _env("ADMIN_TOKEN", "") or None)
    """Bearer token of ``/admin/*``; ``None`` closes them."""
    allowed_origins: tuple[str, ...] = field(
        default_factory=lambda: tuple(filter(None, _env("ALLOWED_ORIGINS", "").split(",")))
    )
