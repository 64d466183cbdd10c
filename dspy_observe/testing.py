"""For your own tests of observed programs: what was recorded, answers without a network, and a clock that stands still.

    def test_my_program():
        with capture_records() as records, dspy.context(lm=offline_lm({"answer": "42"})):
            MyProgram()(question="why?")
        assert [r.name for r in records if r.kind == "module"] == ["Predict", "MyProgram"]

For tests that need a provider's wire format, real streaming, failures and a bill to compare with, there is
:class:`~dspy_observe.openai_server.OpenAIServer`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import dspy
from dspy import lm15

from dspy_observe.callbacks.base import RecordCallback
from dspy_observe.facts import calls, installation
from dspy_observe.ledger import LEDGER, Clock
from dspy_observe.openai_server import OpenAIServer
from dspy_observe.records import CallRecord, CallStart, RegistryEvent, Score

__all__ = [
    "Capture",
    "FrozenClock",
    "OfflineEngine",
    "OpenAIServer",
    "capture_records",
    "frozen_clock",
    "offline_lm",
    "sample_alert",
]


class Capture(RecordCallback):
    """A callback that keeps everything it is told.

    Attributes:
        starts, records, events, scores: In the order of arrival.
    """

    def __init__(self) -> None:
        self.starts: list[CallStart] = []
        self.records: list[CallRecord] = []
        self.events: list[RegistryEvent] = []
        self.scores: list[Score] = []

    def started(self, start: CallStart) -> None:
        self.starts.append(start)

    def finished(self, record: CallRecord) -> None:
        self.records.append(record)

    def happened(self, event: RegistryEvent) -> None:
        self.events.append(event)

    def scored(self, score: Score) -> None:
        self.scores.append(score)


@contextmanager
def capture_records() -> Iterator[list[CallRecord]]:
    """Record every DSPy call inside the block.

    Yields:
        The list that fills with one record for each finished call, children before their parents.
    """
    capture = Capture()
    installation.append([capture])
    listed = calls.listed_callbacks()
    # A dspy.context around the block has a list of its own, which the one of the process does not reach.
    inside = nullcontext() if any(capture is one for one in listed) else dspy.context(callbacks=[*listed, capture])
    try:
        with inside:
            yield capture.records
    finally:
        installation.remove([capture])


class OfflineEngine:
    """A DSPy engine that answers from memory, with token counts of its own making.

    Args:
        answers: The replies in turn, the last one again and again; or a function of the request. A mapping becomes a
            reply that DSPy's ``ChatAdapter`` parses into these fields; a text is sent as it is.
        prompt_tokens: Reported for every reply.
        completion_tokens: Reported for every reply.

    Raises:
        ValueError: ``answers`` is an empty sequence.
    """

    def __init__(
        self,
        answers: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] | Callable[[lm15.Request], Any],
        *,
        prompt_tokens: int = 10,
        completion_tokens: int = 5,
    ) -> None:
        if not callable(answers) and isinstance(answers, str | Mapping):
            answers = [answers]
        if not callable(answers) and not answers:
            raise ValueError("OfflineEngine needs at least one answer")
        self._answers = answers
        self._usage = (prompt_tokens, completion_tokens)
        self._asked = 0
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> OfflineEngine:
        # Optimizers copy LMs; all copies take their answers from the same list.
        return self

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Answer one request."""
        with self._lock:
            asked = self._asked
            self._asked += 1
        if callable(self._answers):
            answer = self._answers(request)
        else:
            answer = self._answers[min(asked, len(self._answers) - 1)]
        prompt, completion = self._usage
        return lm15.Response(
            id=f"offline-{asked}",
            model=request.model,
            message=lm15.Message.assistant(_text(answer)),
            finish_reason="stop",
            usage=lm15.Usage(input_tokens=prompt, output_tokens=completion, total_tokens=prompt + completion),
        )


class _AsyncOfflineEngine:
    def __init__(self, engine: OfflineEngine) -> None:
        self._engine = engine

    async def complete(self, request: lm15.Request) -> lm15.Response:
        return self._engine.complete(request)


def offline_lm(
    answers: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] | Callable[[lm15.Request], Any],
    *,
    model: str = "offline/model",
    **kwargs: Any,
) -> dspy.LM:
    """An LM that needs no network, for sync and async calls.

    Args:
        answers: See :class:`OfflineEngine`.
        model: The model's name as it appears in records.
        **kwargs: Further arguments of ``dspy.LM``; ``cache`` is off unless given.
    """
    engine = OfflineEngine(answers)
    kwargs.setdefault("cache", False)
    return dspy.LM(model, engine=engine, async_engine=_AsyncOfflineEngine(engine), **kwargs)


def _text(answer: Any) -> str:
    if not isinstance(answer, Mapping):
        return str(answer)
    fields = [
        f"[[ ## {name} ## ]]\n{value if isinstance(value, str) else json.dumps(value)}"
        for name, value in answer.items()
    ]
    return "\n\n".join([*fields, "[[ ## completed ## ]]"])


def sample_alert(
    program: str = "qa",
    version: str = "v2",
    *,
    alertname: str = "DSPyErrors",
    status: str = "firing",
    environment: str | None = None,
    starts_at: datetime | None = None,
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What Alertmanager posts about a version, ready for ``json.dumps``: the webhook's version 4, with one alert.

    Args:
        program: The program that the alert is about.
        version: The version that the alert is about.
        alertname: The rule's name.
        status: ``firing`` or ``resolved``.
        environment: Label; ``None`` leaves it out, which means ``production``.
        starts_at: When the alert began, with its offset from UTC; ``None`` is now. Another start is another episode.
        labels: More labels, or other ones; ``dspy_action="rollback"`` is there.
        annotations: In place of a summary.
    """
    began = datetime.now(UTC) if starts_at is None else starts_at.astimezone(UTC)
    named = {"alertname": alertname, "dspy_action": "rollback", "program": program, "version": version}
    if environment is not None:
        named["environment"] = environment
    named.update(labels or {})
    group = {key: named[key] for key in ("alertname", "program", "version")}
    alert = {
        "status": status, "labels": named,
        "annotations": dict(annotations if annotations is not None else {"summary": f"{program} {version} got worse"}),
        "startsAt": began.isoformat().replace("+00:00", "Z"),
        "endsAt": "0001-01-01T00:00:00Z" if status == "firing" else datetime.now(UTC).isoformat(),
        "generatorURL": "http://127.0.0.1:9090/graph",
        "fingerprint": sha256(json.dumps(sorted(named.items())).encode()).hexdigest()[:16],
    }  # fmt: skip
    return {
        "version": "4", "receiver": "rollback", "status": status, "alerts": [alert], "groupLabels": group,
        "commonLabels": named, "commonAnnotations": alert["annotations"], "externalURL": "http://127.0.0.1:9093",
        "groupKey": "{}:{" + ", ".join(f'{key}="{value}"' for key, value in group.items()) + "}", "truncatedAlerts": 0,
    }  # fmt: skip


class FrozenClock:
    """A clock that moves when told.

    Args:
        at: Unix time in seconds at which it stands.
    """

    def __init__(self, at: float = 1_700_000_000.0) -> None:
        self._now = at

    def advance(self, seconds: float) -> None:
        """Move on by some seconds, 0 or more."""
        if seconds < 0:
            raise ValueError("time does not run backwards")
        self._now += seconds

    def time(self) -> float:
        """Unix time in seconds."""
        return self._now


@contextmanager
def frozen_clock(at: float = 1_700_000_000.0) -> Iterator[FrozenClock]:
    """Let records be timed by a clock that stands still, inside the block.

    Args:
        at: Unix time in seconds at which it stands.
    """
    frozen = FrozenClock(at)
    before = LEDGER.clock
    LEDGER.clock = Clock(frozen.time, frozen.time)
    try:
        yield frozen
    finally:
        LEDGER.clock = before
