"""Catch what one LM call used while it runs; ``billing`` reads the catch.

DSPy hands its end hook only the list of replies. The figures pass through three objects in DSPy's settings, which are
local to the call's context: the usage tracker, the histories of the calling modules and the stream to the consumer.
For the time of one LM call, :class:`LMCapture` puts a tap in front of each. A tap passes everything on to the object
that stood there before and keeps what belongs to its own call, which it knows by DSPy's active call id. Taps are
removed by ownership: end hooks run in list order and sometimes in another context, where resetting a context variable
by token would bring a dead layer back.

Reading ``lm.history[-1]`` instead gives another call's figures as soon as a neighbouring callback takes a millisecond.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from dspy.dsp.utils.settings import main_thread_config, thread_local_overrides
from dspy.utils.callback import ACTIVE_CALL_ID
from dspy.utils.usage_tracker import UsageTracker

__all__ = ["HistoryTap", "LMCapture", "Veil", "report", "setting"]


class UsageTap:
    """Stands in for ``settings.usage_tracker`` during one LM call."""

    __slots__ = ("_capture", "_inner")

    def __init__(self, capture: LMCapture, inner: Any) -> None:
        self._capture = capture
        self._inner = inner

    def add_usage(self, lm: str, usage_entry: dict[str, Any]) -> None:
        """Keep the usage when it is our call's, and pass it on in any case."""
        capture = self._capture
        if not capture.closed and ACTIVE_CALL_ID.get() == capture.call_id:
            capture.usages.append(dict(usage_entry))
        if self._inner is not None:
            self._inner.add_usage(lm, usage_entry)

    def __bool__(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        # ``dspy.track_usage()`` adds what it counted to the tracker around it, and there is none.
        return getattr(self._inner if self._inner is not None else UsageTracker(), name)

    def __deepcopy__(self, memo: dict[int, Any]) -> UsageTap:
        # DSPy copies the tracker for every worker thread; the capture itself must stay the one of its call.
        return UsageTap(self._capture, copy.deepcopy(self._inner, memo))


class HistoryTap:
    """Stands among ``settings.caller_modules`` during one LM call; its history keeps only our call's entry."""

    __slots__ = ("_capture",)

    def __init__(self, capture: LMCapture) -> None:
        self._capture = capture

    @property
    def history(self) -> HistoryTap:
        """Where DSPy appends its entry: here."""
        return self

    def __len__(self) -> int:
        return 0  # DSPy drops the oldest entry of a full history before it appends

    def __bool__(self) -> bool:
        return True

    def append(self, entry: Any) -> None:
        """Keep the entry when it is our call's."""
        capture = self._capture
        if not capture.closed and ACTIVE_CALL_ID.get() == capture.call_id:
            capture.entry = entry


class StreamTap:
    """Stands in for ``settings.send_stream`` during one LM call and notes when its first chunk passes."""

    __slots__ = ("_capture", "_inner")

    def __init__(self, capture: LMCapture, inner: Any) -> None:
        self._capture = capture
        self._inner = inner

    async def send(self, item: Any) -> None:
        """Note the time of the first chunk, then pass it on."""
        capture = self._capture
        if capture.first_chunk_at is None and not capture.closed and ACTIVE_CALL_ID.get() == capture.call_id:
            capture.first_chunk_at = capture.now()
        await self._inner.send(item)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class LMCapture:
    """The taps of one LM call, and what they caught.

    Args:
        call_id: DSPy's id of the call.
        now: The clock that times the first chunk, in seconds.
        meter_streams: Ask LiteLLM to report the usage of this call's stream, which it leaves out unless DSPy's
            ``track_usage`` is on.
    """

    __slots__ = (
        "_before",
        "_layer",
        "_meter_streams",
        "_taps",
        "call_id",
        "closed",
        "delegates",
        "entry",
        "first_chunk_at",
        "now",
        "usages",
    )

    def __init__(self, call_id: str, now: Callable[[], float], *, meter_streams: bool) -> None:
        self.call_id = call_id
        self.now = now
        self.usages: list[dict[str, Any]] = []
        self.entry: Any = None
        self.first_chunk_at: float | None = None
        self.closed = False
        self.delegates = False
        """Whether calls were made from within this one: then the LM runs code of its own."""
        self._meter_streams = meter_streams
        self._taps: dict[str, Any] = {}
        self._before: Any = None
        self._layer: Any = None

    def install(self) -> None:
        """Put the taps into the settings of the current context."""
        before, around = thread_local_overrides.get(), ACTIVE_CALL_ID.get()
        tracker = _alive(setting(before, "usage_tracker"), around)
        modules = setting(before, "caller_modules") or ()
        stream = _alive(setting(before, "send_stream"), around)
        taps: dict[str, Any] = {
            "usage_tracker": UsageTap(self, tracker),
            # In front: DSPy and its users look at the last module as the innermost caller.
            "caller_modules": [HistoryTap(self), *(m for m in modules if type(m) is not HistoryTap)],
        }
        if stream is not None:
            taps["send_stream"] = StreamTap(self, stream)
            if self._meter_streams:
                taps["track_usage"] = True
        self._taps = taps
        self._before = before
        self._layer = {**before, **taps}
        thread_local_overrides.set(self._layer)

    def remove(self) -> None:
        """Take out what is still ours in the current context; a context that holds none of it stays as it is."""
        self.closed = True
        current = thread_local_overrides.get()
        if current is self._layer:
            thread_local_overrides.set(self._before)
        else:
            ours = [key for key, tap in self._taps.items() if tap is not True and current.get(key) is tap]
            if ours:
                if "track_usage" in self._taps:
                    ours.append("track_usage")
                restored = {**current}
                for key in ours:
                    if key in self._before:
                        restored[key] = self._before[key]
                    else:
                        restored.pop(key, None)
                thread_local_overrides.set(restored)
        self._let_go()

    def give_up(self) -> None:
        """Keep nothing any more: the call's end will not be told, and its taps stay where they are."""
        self.closed = True
        self._let_go()

    def _let_go(self) -> None:
        self._before = self._layer = None
        self._taps = {}


class Veil:
    """Hides the taps from a module that runs where an LM call's are in place, for as long as it runs.

    A program that an LM runs inside its own call must see DSPy's settings as they are without us: DSPy starts a usage
    tracker only where it finds none. An LM call that never ended leaves its taps behind in the same way.
    """

    __slots__ = ("_before", "_layer")

    def __init__(self, before: Mapping[str, Any]) -> None:
        self._before = before
        hidden = {"usage_tracker": _untapped(before["usage_tracker"])}
        for name in ("send_stream", "caller_modules"):
            if name in before:
                hidden[name] = _untapped(before[name])
        self._layer = {**before, **hidden}
        thread_local_overrides.set(self._layer)

    @classmethod
    def over_taps(cls) -> Veil | None:
        """Hide the taps of the current context; ``None`` where there are none."""
        before = thread_local_overrides.get()
        return cls(before) if type(before.get("usage_tracker")) is UsageTap else None

    def lift(self) -> None:
        """Show them again, in the context where they were hidden."""
        if thread_local_overrides.get() is self._layer:
            thread_local_overrides.set(self._before)


def report(entry: Mapping[str, Any]) -> None:
    """Hand a history entry to the call that is active, for models whose calls DSPy does not record."""
    for owner in setting(thread_local_overrides.get(), "caller_modules") or ():
        if type(owner) is HistoryTap:
            owner.append(entry)


def setting(overrides: Mapping[str, Any], key: str) -> Any:
    """One of DSPy's settings: ``dspy.settings`` takes twenty times as long to tell it.

    Args:
        overrides: What ``thread_local_overrides`` holds here.
        key: The setting's name.
    """
    return overrides[key] if key in overrides else main_thread_config.get(key)


def _alive(value: Any, around: str | None) -> Any:
    """Skip taps of calls that are not around us.

    A task started inside an LM call keeps its copy of them, and a call that never came to its end leaves them behind.

    Args:
        value: What stands in DSPy's settings.
        around: DSPy's id of the call in which another one begins.
    """
    while isinstance(value, UsageTap | StreamTap) and (value._capture.closed or value._capture.call_id != around):
        value = value._inner
    return value


def _untapped(value: Any) -> Any:
    """A setting as it is without us."""
    if isinstance(value, list | tuple):
        return [owner for owner in value if type(owner) is not HistoryTap]
    while isinstance(value, UsageTap | StreamTap):
        value = value._inner
    return value
