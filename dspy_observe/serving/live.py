"""A program that follows its deployed version.

::

    live = LiveProgram(registry, "support", SupportBot)
    live(question="...")                       # answered by the version that is deployed now
    registry.rollback("support")               # in whatever process
    live(question="...")                       # a moment later: by the one before

Every call reads one reference and stays with what it found, so that no answer mixes two versions and a stream ends on
the version that it began with. Loading happens aside; what cannot be loaded leaves in place what is there.

The file is long because half of it is what its public methods promise.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from os import PathLike
from typing import Any, Final

from dspy_observe.metrics import Metrics
from dspy_observe.redaction import redact, redact_name
from dspy_observe.registry.errors import UnknownSignature
from dspy_observe.registry.options import RegistryConfig
from dspy_observe.registry.records import Pointer
from dspy_observe.registry.signatures import SignatureRegistry
from dspy_observe.serving.errors import NotDeployedError
from dspy_observe.serving.following import Follower
from dspy_observe.serving.holding import RegistryHolder
from dspy_observe.serving.loading import Loader, Serving
from dspy_observe.serving.series import Seen, Series
from dspy_observe.serving.streams import Listeners, streamify_each

__all__ = ["LiveProgram", "LiveStatus", "told"]

_logger = logging.getLogger("dspy_observe")

_FIRST_RETRY_S: Final = 1.0
_LAST_RETRY_S: Final = 60.0
_SHORTEST_HASH: Final = 12
_ERROR_CHARS: Final = 500


@dataclass(frozen=True, slots=True)
class LiveStatus:
    """How a live program stands."""

    name: str
    environment: str
    version: str | None
    """What answers; ``None`` for the factory's untuned program."""
    version_hash: str | None
    generation: int
    role: str
    loaded_at: float
    """Unix time in seconds."""
    stale_s: float
    """Seconds since the registry was last read."""
    following: str
    """``hints`` where the store tells of changes, ``polling``, ``stopped`` where nobody looks, or ``closed``."""
    failed_version: str | None
    """The deployed version that could not be loaded; ``None`` when what is deployed answers."""
    failures: int
    """How often in a row loading it failed."""
    error: str | None
    """Why, or why the registry could not be read; ``None`` when nothing is wrong."""
    drifted: bool
    """Whether the instance was changed since it was loaded."""

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Trouble:
    """A deployed version that could not be loaded."""

    pointer: Pointer
    failures: int
    retry_at: float


class LiveProgram(RegistryHolder):
    """Calls go to an instance of the deployed version; when the version changes, to an instance of the new one.

    It is called like a module, alone or by ``dspy.Parallel``, ``dspy.Evaluate``, ``dspy.asyncify`` and
    ``dspy.streamify``, but is none: it has no state, no predictors and no record of its own. The instance that answers
    is ``live.program``: pass that to an optimizer (its copies carry no label) or to an evaluation that must not change
    horses. For streams with listeners use :meth:`streamify`.

    Args:
        registry: The registry, its path or URL, or its options.
        name: The program's name there.
        factory: Makes a new untuned program, such as the program's class. Called for every version.
        environment: Which environment to follow.
        refresh_s: Seconds between two looks at the registry. With the extra ``serving`` a file or SQLite registry, and
            a PostgreSQL one anyway, tell of changes besides, and a new version answers within about 0.1 s.
        check: Called with every new instance before it may answer; what it raises keeps the old version. Its calls are
            recorded with the role ``warmup``. ``None`` checks hash and schema only.
        fallback: Answer with the factory's untuned program, recorded without a version, as long as nothing can be
            loaded. Otherwise a program that cannot be loaded at the start is an error.
        watch: Whether to ask the store for hints; ``False`` polls only.
        drift_check_s: Seconds between two looks whether somebody changed the instance that answers; ``None`` never
            looks.
        metrics: Where the metrics go; ``None`` takes the defaults and the environment.
        options: Further arguments for ``registry.load_program``: ``lm_for``, ``migrate``, ``trust_source``.

    Raises:
        NotDeployedError: Nothing is deployed, and ``fallback`` is off.
        RegistryError, IncompatibleProgramError: What is deployed cannot be loaded, and ``fallback`` is off.
        ConfigurationError: An argument cannot work.
    """

    def __init__(
        self,
        registry: SignatureRegistry | RegistryConfig | str | PathLike[str],
        name: str,
        factory: Callable[[], Any],
        environment: str = "production",
        refresh_s: float = 5.0,
        *,
        check: Callable[[Any], object] | None = None,
        fallback: bool = False,
        watch: bool = True,
        drift_check_s: float | None = 60.0,
        metrics: Metrics | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(registry)
        self._name = name
        self._environment = environment
        self._fallback = fallback
        self._drift_check_s = drift_check_s
        self._series = Series(metrics, name, environment)
        self._loader = Loader(
            self._registry, name, factory, check=check, options=options or {}, series=self._series
        )  # fmt: skip
        changes = partial(self._registry.changes, name) if watch else None
        self._follower = Follower(self._look, changes, refresh_s, f"{name}/{environment}")
        self._changed = threading.Condition()
        self._also: weakref.WeakMethod[Callable[[], None]] | None = None
        self._trouble: _Trouble | None = None
        self._load_error: str | None = None
        self._read_error: str | None = None
        self._drifted = False
        self._drift_at = time.monotonic()
        self._seen = Seen()
        self._events: deque[tuple[str, str | None, dict[str, Any]]] = deque()
        self._serving: Serving = None  # type: ignore[assignment]  # until the first is loaded, below
        try:
            self._serving = self._first()
        except BaseException:
            self._let_go()
            raise
        self._speak()
        self._show()
        self._follower.start()

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        """Call the program."""
        return self._serving.program(*args, **inputs)

    async def acall(self, *args: Any, **inputs: Any) -> Any:
        """Call the program's asynchronous form."""
        return await self._serving.program.acall(*args, **inputs)

    def batch(self, examples: Any, **options: Any) -> Any:
        """``dspy.Module.batch``, all on the version that is deployed when it begins."""
        return self._serving.program.batch(examples, **options)

    def streamify(self, *, stream_listeners: Listeners | None = None, **options: Any) -> Callable[..., Any]:
        """``dspy.streamify``, each stream on the version that is deployed when the returned function is called.

        Args:
            stream_listeners: Listeners without ``predict``, of which each stream gets its own; or a function that makes
                them for an instance.
            **options: The other arguments of ``dspy.streamify``.

        Raises:
            ConfigurationError: A listener is bound to a predictor.
        """
        return streamify_each(lambda *_, **inputs: (self._serving.program, inputs), stream_listeners, options)

    @property
    def serving(self) -> Serving:
        """What answers now: instance, version, hash, generation, role."""
        return self._serving

    @property
    def program(self) -> Any:
        """The instance that answers now. It stays one version; do not change it."""
        return self._serving.program

    @property
    def version(self) -> str | None:
        """The version that answers now; ``None`` for the untuned program."""
        return self._serving.version

    @property
    def registry(self) -> SignatureRegistry:
        """The registry that is followed."""
        return self._registry

    def status(self) -> LiveStatus:
        """How things stand."""
        serving, trouble = self._serving, self._trouble
        following = "hints" if self._follower.hinted else "polling" if self._follower.running else "stopped"
        return LiveStatus(
            self._name, self._environment, serving.version, serving.version_hash, serving.generation, serving.role,
            serving.loaded_at, self._seen.age_s(), "closed" if self._closed else following,
            None if trouble is None else trouble.pointer.version, 0 if trouble is None else trouble.failures,
            self._read_error or self._load_error, self._drifted,
        )  # fmt: skip

    def refresh(self) -> bool:
        """Look at the registry now, and load what is deployed if something else answers.

        Returns:
            Whether another version answers than before.

        Raises:
            RegistryError, IncompatibleProgramError, Exception: The registry cannot be read, or the version cannot be
                loaded; what answered goes on answering.
        """
        try:
            with self._follower.turn:
                return self._adopt(self._pointer())
        finally:
            self._speak()

    def wait_for(self, version: str, timeout_s: float = 30.0) -> Serving:
        """Wait until a version answers, for scripts and tests.

        Args:
            version: Its display name, or at least 12 digits of its hash.
            timeout_s: How long to wait at most.

        Returns:
            What answers.

        Raises:
            TimeoutError: It does not answer within the time; says what does, and what went wrong.
        """

        def answers() -> bool:
            serving = self._serving
            by_hash = len(version) >= _SHORTEST_HASH and (serving.version_hash or "").startswith(version)
            return serving.version == version or by_hash

        self._follower.poke()
        with self._changed:
            if not self._changed.wait_for(answers, timeout_s):
                raise TimeoutError(f"{version} does not answer after {timeout_s:g} s: {self.status()}")
            return self._serving

    def _stop(self) -> None:
        self._follower.stop()
        self._series.close()

    def __repr__(self) -> str:
        return f"LiveProgram({self._name!r}, environment={self._environment!r}, version={self.version!r})"

    def __getattr__(self, name: str) -> Any:
        # Not passed on: what was read from one version would be used on another.
        hint = " For streams with listeners, use live.streamify()." if name == "named_predictors" else ""
        raise AttributeError(f"LiveProgram has no {name!r}; the instance that answers now is live.program.{hint}")

    def _pointer(self) -> Pointer | None:
        """What is deployed; ``None`` before the first deployment."""
        try:
            pointer = self._deployed()
        except Exception as error:
            if self._read_error is None:
                _logger.warning("dspy_observe: the registry of %s cannot be read (%s)", self._name, _kind(error))
            self._read_error = told(error)
            raise
        self._seen.at = time.monotonic()
        if self._read_error is not None:
            _logger.info("dspy_observe: the registry of %s can be read again", self._name)
            self._read_error = None
        return pointer

    def _deployed(self) -> Pointer | None:
        began = self._serving is not None and self._serving.version is not None
        try:
            pointer = self._registry.pointer(self._name, environment=self._environment)
        except UnknownSignature:
            if began:  # it was there: a folder was unmounted, say
                raise
            return None
        if pointer is None and began:
            raise NotDeployedError(self._name, self._environment)
        return pointer

    def _first(self) -> Serving:
        """What to begin with."""
        pointer = None
        try:
            pointer = self._pointer()
            if pointer is None:
                raise NotDeployedError(self._name, self._environment)  # noqa: TRY301 - as any other reason
            return self._load(pointer)
        except Exception as error:
            if not self._fallback:
                raise
            if pointer is not None:
                self._failed(pointer, error)
            return self._loader.untuned("stable")

    def _look(self) -> float | None:
        """One round of the follower's thread."""
        try:
            with self._follower.turn:
                return self._look_once()
        finally:
            self._show()
            self._speak()
            also = None if self._also is None else self._also()
            if also is not None:
                also()

    def look_soon(self) -> None:
        """Look at the registry as soon as possible, without waiting for it."""
        self._follower.poke()

    def look_also(self, look: Callable[[], None]) -> None:
        """Call a bound method after each look at the registry, on the follower's thread; a router lives by it."""
        self._also = weakref.WeakMethod(look)

    def _look_once(self) -> float | None:
        try:
            pointer = self._pointer()
        except Exception:  # noqa: BLE001 - the store may fail in any way; told by _pointer, and what answers goes on
            return None
        trouble = self._trouble
        if trouble is not None and pointer == trouble.pointer and time.monotonic() < trouble.retry_at:
            return trouble.retry_at - time.monotonic()
        try:
            self._adopt(pointer)
        except Exception:  # noqa: BLE001 - told, counted and shown by _failed
            trouble = self._trouble
            return None if trouble is None else trouble.retry_at - time.monotonic()
        self._look_for_drift()
        return None

    def _adopt(self, pointer: Pointer | None) -> bool:
        """Serve what is deployed. Raises what kept it from loading."""
        serving = self._serving
        if pointer is None:
            return False
        if pointer.version_hash == serving.version_hash:
            self._trouble = self._load_error = None
            if pointer.generation != serving.generation:
                self._serving = replace(serving, generation=pointer.generation)
            return False
        began = time.monotonic()
        try:
            self._swap(self._load(pointer), began)
        except Exception as error:
            self._failed(pointer, error)
            raise
        return True

    def _load(self, pointer: Pointer) -> Serving:
        return self._loader.load(pointer.version, pointer.version_hash, pointer.generation, "stable")

    def _swap(self, serving: Serving, began: float) -> None:
        before = self._serving
        self._serving = serving
        self._trouble = self._load_error = None
        self._drifted = False
        self._drift_at = time.monotonic()
        with self._changed:
            self._changed.notify_all()
        self._tell(
            "reload_complete", serving.version, version_hash=serving.version_hash, previous=before.version,
            generation=serving.generation, duration_s=time.monotonic() - began,
        )  # fmt: skip

    def _failed(self, pointer: Pointer, error: Exception) -> None:
        before = self._trouble
        failures = before.failures + 1 if before is not None and before.pointer == pointer else 1
        pause = min(_FIRST_RETRY_S * 2 ** (failures - 1), _LAST_RETRY_S)
        self._trouble = _Trouble(pointer, failures, time.monotonic() + pause)
        self._load_error = told(error)
        _logger.warning(
            "dspy_observe: %s %s cannot be loaded (%s); another version goes on answering", self._name, pointer.version,
            _kind(error),
        )  # fmt: skip
        self._tell(
            "reload_error", pointer.version, version_hash=pointer.version_hash, generation=pointer.generation,
            failures=failures, error=self._load_error, error_type=_kind(error),
        )  # fmt: skip

    def _look_for_drift(self) -> None:
        if self._drift_check_s is None or self._drifted or time.monotonic() - self._drift_at < self._drift_check_s:
            return
        self._drift_at = time.monotonic()
        serving = self._serving
        if serving.has_drifted():
            self._drifted = True
            _logger.warning(
                "dspy_observe: somebody changed the instance of %s %s that answers; it is not that version any more",
                self._name, serving.version,
            )  # fmt: skip
            self._tell("drift", serving.version, version_hash=serving.version_hash)

    def _show(self) -> None:
        self._series.ages(self._seen)
        self._series.serves([(self._serving.version, self._serving.role)])

    def _tell(self, event: str, version: str | None, **data: Any) -> None:
        """Keep an event until nobody can be held up by its listeners."""
        self._events.append((event, version, data))

    def _speak(self) -> None:
        while self._events:
            try:
                event, version, data = self._events.popleft()
            except IndexError:  # another thread was quicker
                return
            self._registry.tell(event, self._name, environment=self._environment, version=version, **data)


def _kind(error: Exception) -> str:
    return redact_name(type(error).__name__)


def told(error: Exception) -> str:
    """An error in words that may leave the process."""
    return redact(f"{type(error).__name__}: {error}"[:_ERROR_CHARS])
