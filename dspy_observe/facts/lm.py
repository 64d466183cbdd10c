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

__all__ = ["HistoryTap", "LMCapture", "report", "setting"]


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
        return getattr(self._inner, name)

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
        self._meter_streams = meter_streams
        self._taps: dict[str, Any] = {}
        self._before: Any = None
        self._layer: Any = None

    def install(self) -> None:
        """Put the taps into the settings of the current context."""
        before = thread_local_overrides.get()
        tracker = _alive(setting(before, "usage_tracker"))
        modules = setting(before, "caller_modules") or ()
        stream = _alive(setting(before, "send_stream"))
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
        self._before = self._layer = None
        self._taps = {}


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


def _alive(value: Any) -> Any:
    """Skip taps of calls that have ended: a task started inside an LM call keeps its copy of them."""
    while isinstance(value, UsageTap | StreamTap) and value._capture.closed:
        value = value._inner
    return value
