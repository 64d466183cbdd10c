"""Counting who was sent where in a rollout's step, until the registry knows it."""

from __future__ import annotations

import heapq
import threading
from typing import Final

from dspy_observe.serving.splitting import Draw, Role

__all__ = ["Tally"]

_KEPT: Final = 2_000
"""Keys of the sample; as many as the registry keeps."""


class Tally:
    """Calls by role, and a sample of the distinct keys behind them: those with the smallest marks.

    One user may make a thousand calls, so calls say little about how users were split. The keys with the smallest
    marks are a sample of all keys, each in it once however often it came, and so are those of several processes
    together.
    """

    def __init__(self) -> None:
        self.generation = 0
        """Of the rollout that is counted."""
        self._lock = threading.Lock()
        self._calls: dict[str, int] = {}
        self._roles: dict[str, Role] = {}
        self._largest: list[int] = []

    def add(self, drawn: Draw, role: Role, generation: int) -> None:
        """Count one call."""
        with self._lock:
            if generation != self.generation:
                self._forget(generation)
            self._calls[role] = self._calls.get(role, 0) + 1
            mark = drawn.mark
            if mark in self._roles:
                return
            number = -int(mark, 16)
            if len(self._largest) < _KEPT:
                heapq.heappush(self._largest, number)
            elif number > self._largest[0]:
                del self._roles[f"{-heapq.heapreplace(self._largest, number):08x}"]
            else:
                return
            self._roles[mark] = role

    def take(self) -> tuple[int, dict[str, int], dict[str, str]]:
        """What was counted since the last time: the generation, calls and keys by role."""
        with self._lock:
            calls, marks = self._calls, dict(self._roles)
            self._calls = {}
            sampled: dict[str, list[str]] = {}
            for mark in sorted(marks):
                sampled.setdefault(marks[mark], []).append(mark)
            return self.generation, calls, {role: "".join(found) for role, found in sampled.items()}

    def give_back(self, generation: int, calls: dict[str, int]) -> None:
        """Calls that could not be told: they are told the next time."""
        with self._lock:
            if generation == self.generation:
                for role, count in calls.items():
                    self._calls[role] = self._calls.get(role, 0) + count

    def _forget(self, generation: int) -> None:
        self.generation = generation
        self._calls, self._roles, self._largest = {}, {}, []
