"""What every test stands on: a quiet environment, DSPy's settings as new after each test, hypothesis profiles, stores.

DSPy, LiteLLM and OpenTelemetry read the environment when they are imported, so it is set here at module level: pytest
imports this file before any test module.
"""

from __future__ import annotations

import copy
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from dspy_observe import handoff, safety
from tests.clock import Clock
from tests.postgres import Postgres, installed_postgres

STORES = ("files", "sqlite", "postgresql")

# One cache folder per process, below the one make test gave us: an answer of another run, or of another xdist worker,
# would be a cache hit where the test counts a call.
_CACHE = tempfile.mkdtemp(prefix="dspy-cache-", dir=os.environ.get("DSPY_CACHEDIR"))

# Whatever the developer's shell exports must neither reach a real collector nor bill a real key.
_FOREIGN_PREFIXES = ("OTEL_", "DSPY_", "OPENAI_", "ANTHROPIC_", "MLFLOW_", "PROMETHEUS_")
_STRICT = os.environ.get("DSPY_OBSERVE_STRICT", "1")
for _name in [name for name in os.environ if name.startswith(_FOREIGN_PREFIXES)]:
    del os.environ[_name]

os.environ.update(
    DSPY_CACHEDIR=_CACHE,
    DSPY_OBSERVE_STRICT=_STRICT,
    # LiteLLM fetches its price list at import otherwise, and the suite needs no network.
    LITELLM_LOCAL_MODEL_COST_MAP="True",
    # MLflow reports its own use otherwise.
    MLFLOW_DISABLE_TELEMETRY="true",
    DO_NOT_TRACK="true",
)

# dev: hypothesis' own defaults without a deadline, because the machine is shared. ci: the same examples on every run.
settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_unconfigure() -> None:
    """Take the cache folder away with the process that made it."""
    shutil.rmtree(_CACHE, ignore_errors=True)


@pytest.fixture(autouse=True)
def errors_counted_from_zero() -> None:
    """Forget the telemetry errors that earlier tests caused on purpose; a new registry would count them.

    Those that sinks of earlier tests are still to raise are waited for.
    """
    for each in list(handoff._all):
        each.flush(5)
    safety._counts.clear()
    safety._logged_at.clear()


@pytest.fixture(autouse=True)
def dspy_settings_as_new() -> Iterator[None]:
    """Put DSPy's process-wide settings and cache back to what they were after every test.

    ``dspy.configure()`` cannot do it: it refuses from another thread or task than the first, which here is often the
    task of an asynchronous test that has ended. A test that never imported DSPy does not pay for importing it.
    """
    package = sys.modules.get("dspy")
    cache = package.cache if package is not None else None
    yield
    module = sys.modules.get("dspy.dsp.utils.settings")
    if module is None:
        return
    if cache is not None:  # dspy.configure_cache() puts another one in its place
        sys.modules["dspy"].cache = cache
    module.main_thread_config.clear()
    module.main_thread_config.update(copy.deepcopy(module.DEFAULT_CONFIG))
    module.config_owner_thread_id = None
    module.config_owner_async_task = None
    module.thread_local_overrides.set(type(module.DEFAULT_CONFIG)())


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A running PostgreSQL, one for each test process that asks for it."""
    running = Postgres(installed_postgres())
    try:
        running.start()
        yield running
    finally:
        running.remove()


@pytest.fixture
def clock() -> Clock:
    """One clock for everything that a test makes."""
    return Clock()


@pytest.fixture(params=STORES)
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where an empty registry may live: each test that asks runs on every store."""
    if request.param == "files":
        return str(tmp_path / "registry")
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'registry.db'}"
    return str(request.getfixturevalue("postgres").new_registry())
