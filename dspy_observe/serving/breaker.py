"""A circuit breaker for one model: after a row of failures it is left alone for a while, then tried by one call."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from dspy_observe.errors import ConfigurationError

__all__ = ["Breaker", "Circuit"]


@dataclass(frozen=True, slots=True)
class Breaker:
    """When a failing model is left alone.

    Raises:
        ConfigurationError: A field has a value that cannot work.
    """

    failures: int = 5
    """Failures in a row, at least 1, that open the circuit."""
    open_s: float = 30.0
    """Seconds that it stays open, above 0. After them one call tries the model; all others go on past it meanwhile."""

    def __post_init__(self) -> None:
        if type(self.failures) is not int or self.failures < 1:
            raise ConfigurationError("Breaker.failures", f"{self.failures!r} is below 1", "Use 1 or more")
        number = isinstance(self.open_s, int | float) and not isinstance(self.open_s, bool)
        if not number or not math.isfinite(self.open_s) or self.open_s <= 0:
            raise ConfigurationError("Breaker.open_s", f"{self.open_s!r} is no duration", "Give seconds above 0")


class Circuit:
    """The state of one model. Copies of an LM share it: what is down for one of them is down for all.

    Args:
        options: When it opens and for how long.
        now: Seconds from any origin, never running backwards.
    """

    def __init__(self, options: Breaker, now: Callable[[], float] = time.monotonic) -> None:
        self._options = options
        self._now = now
        self._lock = threading.Lock()
        self._failures = 0
        self._shut_until: float | None = None

    @property
    def state(self) -> Literal["closed", "open", "half_open"]:
        """``closed`` lets calls through, ``open`` none, ``half_open`` the next one."""
        until = self._shut_until
        if until is None:
            return "closed"
        return "open" if self._now() < until else "half_open"

    def admits(self) -> bool:
        """Whether the model may be asked now. In the half-open state the first one who asks may, for all others."""
        with self._lock:
            if self._shut_until is None:
                return True
            now = self._now()
            if now < self._shut_until:
                return False
            self._shut_until = now + self._options.open_s
            return True

    def succeeded(self) -> None:
        """The model answered."""
        with self._lock:
            self._failures = 0
            self._shut_until = None

    def failed(self) -> None:
        """The model failed."""
        with self._lock:
            self._failures += 1
            if self._failures >= self._options.failures:
                self._shut_until = self._now() + self._options.open_s

    def __deepcopy__(self, memo: dict[int, Any]) -> Circuit:
        return self

    def __reduce__(self) -> tuple[type[Circuit], tuple[Breaker]]:
        return Circuit, (self._options,)  # another process finds out for itself
