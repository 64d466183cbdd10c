"""Amounts by key within a sliding window, in bounded memory: who uses most, and how much at least. Pure."""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from typing import Final

__all__ = ["SlidingTotals"]

_SLOTS: Final = 12
"""Parts of the window: amounts leave it a twelfth at a time."""
_DROP: Final = 0.01
"""Part of the keys that makes room at once when all places are taken, so that room is not made for each newcomer."""


@dataclass(slots=True)
class _Slot:
    number: int
    amounts: dict[str, int] = field(default_factory=dict)
    floor: int = 0
    """The most that a key dropped in this slot may have had."""


class SlidingTotals:
    """Totals by key of the last window, after the space-saving sketch for streams.

    https://doi.org/10.1007/978-3-540-30570-5_27 (Metwally, Agrawal, El Abbadi 2005) While no more keys are active than
    there are places, totals are exact. Beyond that the smallest make room: a total may then be too low by at most
    :attr:`floor`, and a key with more than ``1 / places`` of the whole is always among those kept. Not thread-safe.

    Args:
        window_s: Length of the window in seconds, above 0.
        places: Keys remembered at once, at least 1.
    """

    def __init__(self, window_s: float, places: int) -> None:
        self._slot_s = window_s / _SLOTS
        self._places = places
        self._slots: deque[_Slot] = deque()
        self._totals: dict[str, int] = {}
        self._unseen: dict[str, int] = {}  # what a key may have had before it came back, for the order of dropping

    def add(self, key: str, amount: int, now: float) -> int:
        """Book an amount of 0 or more and return the key's total.

        Args:
            key: Whose.
            amount: How much.
            now: Seconds from any origin; what came in a later slot before is not taken back.
        """
        self._advance(now)
        if not amount:
            return self._totals.get(key, 0)
        if key not in self._totals:
            if len(self._totals) >= self._places:
                self._make_room()
            if self.floor:
                self._unseen[key] = self.floor
        total = self._totals[key] = self._totals.get(key, 0) + amount
        newest = self._slots[-1].amounts
        newest[key] = newest.get(key, 0) + amount
        return total

    def total(self, key: str, now: float) -> int:
        """What the key has at least."""
        self._advance(now)
        return self._totals.get(key, 0)

    def top(self, count: int, now: float) -> list[tuple[str, int]]:
        """The keys with most, and what each has at least."""
        self._advance(now)
        return heapq.nlargest(count, self._totals.items(), key=lambda pair: pair[1])

    def most(self, now: float) -> int:
        """The largest total; 0 when nothing is in the window."""
        self._advance(now)
        return max(self._totals.values(), default=0)

    def seconds_until_below(self, key: str, limit: int, now: float) -> float:
        """How long until the key's total has fallen below ``limit`` if nothing is added; 0 when it is."""
        self._advance(now)
        total = self._totals.get(key, 0)
        for slot in self._slots:
            if total < limit:
                break
            total -= slot.amounts.get(key, 0)
            left_s = (slot.number + _SLOTS) * self._slot_s - now
            if total < limit:
                return max(0.0, left_s)
        return 0.0

    @property
    def floor(self) -> int:
        """By how much a total may be too low; 0 while no key was dropped within the window."""
        return max((slot.floor for slot in self._slots), default=0)

    def __len__(self) -> int:
        return len(self._totals)

    def _advance(self, now: float) -> None:
        number = int(now // self._slot_s)
        if not self._slots or number > self._slots[-1].number:
            self._slots.append(_Slot(number))
        oldest = self._slots[-1].number - _SLOTS
        while self._slots[0].number <= oldest:
            for key, amount in self._slots.popleft().amounts.items():
                left = self._totals[key] - amount
                if left:
                    self._totals[key] = left
                else:
                    del self._totals[key]
                    self._unseen.pop(key, None)

    def _make_room(self) -> None:
        count = max(1, int(self._places * _DROP))
        dropped = heapq.nsmallest(count, self._totals, key=lambda key: self._totals[key] + self._unseen.get(key, 0))
        newest = self._slots[-1]
        for key in dropped:
            newest.floor = max(newest.floor, self._totals.pop(key) + self._unseen.pop(key, 0))
            for slot in self._slots:
                slot.amounts.pop(key, None)
