"""One running service for all tests of a module: it has to survive every one of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dspy_observe.openai_server import OpenAIServer
from tests.service import Provider, Redis, Service


@pytest.fixture(scope="module")
def provider() -> Provider:
    """The provider's behaviour; a test that changes it puts it back."""
    return Provider()


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """A Redis."""
    running = Redis(tmp_path_factory.mktemp("redis"))
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, provider: Provider, redis: Redis) -> Iterator[Service]:
    """The service, ready; it has to survive every test, so one serves them all."""
    with OpenAIServer(provider) as server:
        running = Service(tmp_path_factory.mktemp("service"), server, redis)
        try:
            yield running
        finally:
            running.end()
