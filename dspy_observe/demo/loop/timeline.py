"""What happened when: one row an event, and the time since the one before."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final

from rich import box
from rich.table import Table
from rich.text import Text

__all__ = ["Event", "Timeline"]

_STYLES: Final = {"bad": "red", "good": "green", "act": "bold"}


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened."""

    at: float
    """Unix time in seconds."""
    key: str
    """What kind of thing; the first event of a kind counts."""
    words: str
    mood: str = ""
    """``bad``, ``good``, ``act`` (somebody did something), or empty."""


class Timeline:
    """Collects events from several threads."""

    def __init__(self) -> None:
        self._events: dict[str, Event] = {}
        self._changed = threading.Condition()

    def add(self, event: Event) -> None:
        """Note an event; of each kind the first counts."""
        with self._changed:
            self._events.setdefault(event.key, event)
            self._changed.notify_all()

    def wait_for(self, key: str, timeout_s: float) -> Event | None:
        """Wait for an event; ``None`` when it does not come in time."""
        with self._changed:
            self._changed.wait_for(lambda: key in self._events, timeout_s)
            return self._events.get(key)

    def get(self, key: str) -> Event | None:
        """An event that happened, or ``None``."""
        with self._changed:
            return self._events.get(key)

    def render(self, since: str = "deployed") -> Table:
        """All events in their order, with seconds since one of them and since the one before."""
        table = Table("after", "step", "what happened", box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
        table.columns[0].justify = table.columns[1].justify = "right"
        with self._changed:
            events = sorted(self._events.values(), key=lambda event: event.at)
        zero = next((event.at for event in events if event.key == since), None)
        before: float | None = None
        for event in events:
            after = "" if zero is None or event.at < zero else f"{event.at - zero:.1f} s"
            step = "" if before is None or not after or event.key == since else f"+{event.at - before:.1f} s"
            table.add_row(after, step, Text(event.words, style=_STYLES.get(event.mood, "")))
            before = event.at
        return table
