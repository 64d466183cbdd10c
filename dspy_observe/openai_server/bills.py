"""What an ``OpenAIServer`` received and billed, shared safely by all its connections."""

from __future__ import annotations

import json
import socket
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from dspy_observe.openai_server.replies import Failure, Reply, TokenUsage

__all__ = ["Bill", "Book", "Endpoint", "Outcome", "ReceivedRequest"]

FIRST_PROMPT_TOKENS = 1001
"""Prompt tokens of the first reply whose usage nobody set; each following one has one more."""
FIRST_COMPLETION_TOKENS = 501
"""Completion tokens of the first such reply."""

Outcome = str | Reply | Failure
"""What a request may meet; a string is a reply with that text."""
Endpoint = Literal["chat", "embeddings"]


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """A request as it came in. ``headers`` have lower-case names; ``json`` is None when ``body`` is no JSON."""

    request_id: str
    method: str
    path: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes
    json: Any


@dataclass(frozen=True, slots=True)
class Bill:
    """What one computed reply cost, whether or not the client got to know."""

    request_id: str
    """The reply's ``id``, also that of the :class:`ReceivedRequest`."""
    model: str
    """As the client named it."""
    served_model: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    streamed: bool
    usage_sent: bool
    """Whether the client was told the figures; never before the whole body was written."""
    delivered: bool
    """Whether the whole body was handed to a connection that the client had not closed."""
    choices: int
    """Answers computed; for embeddings, texts embedded."""
    prompt: str
    """The last user text; for embeddings, the last text."""


class Book:
    """All state that requests share, behind one condition that is notified of every change."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.closing = threading.Event()
        self.requests: list[ReceivedRequest] = []
        self.bills: dict[str, Bill] = {}
        self.scripts: dict[Endpoint, deque[Outcome]] = {"chat": deque(), "embeddings": deque()}
        self.unanswered: set[str] = set()
        self.holds: list[threading.Event] = []
        self.connections: set[socket.socket] = set()
        self._defaults = 0

    def arrived(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> ReceivedRequest:
        """Records a request, in flight until it is settled, under a number of its own."""
        try:
            parsed = json.loads(body)
        except ValueError:
            parsed = None
        with self.changed:
            request_id = f"chatcmpl-{len(self.requests) + 1:06d}"
            request = ReceivedRequest(request_id, method, path, headers, body, parsed)
            self.requests.append(request)
            self.unanswered.add(request_id)
            self.changed.notify_all()
        return request

    def scripted(self, endpoint: Endpoint) -> Outcome | None:
        """The outcome queued longest for these requests, None if there is none."""
        with self.changed:
            queue = self.scripts[endpoint]
            return queue.popleft() if queue else None

    def charge(
        self,
        request_id: str,
        usage: TokenUsage | None,
        *,
        model: str,
        served_model: str,
        prompt: str,
        choices: int,
        streamed: bool,
        completes: bool,
    ) -> TokenUsage:
        """Books a computed reply, not delivered so far, and returns its usage: unique figures if ``usage`` is None.

        ``completes`` is False for a reply, such as embeddings, that has no completion to bill.
        """
        with self.changed:
            if usage is None:
                completion_tokens = FIRST_COMPLETION_TOKENS + self._defaults if completes else 0
                usage = TokenUsage(FIRST_PROMPT_TOKENS + self._defaults, completion_tokens)
                self._defaults += 1
            self.bills[request_id] = Bill(
                request_id=request_id,
                model=model,
                served_model=served_model,
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                cached_tokens=usage.cached_tokens,
                reasoning_tokens=usage.reasoning_tokens,
                streamed=streamed,
                usage_sent=False,
                delivered=False,
                choices=choices,
                prompt=prompt,
            )
            self.changed.notify_all()
        return usage

    def settle(self, request_id: str, *, delivered: bool, usage_sent: bool = False) -> None:
        """Ends a request: it is in flight no longer, and its bill, if it has one, says what became of the reply."""
        with self.changed:
            self.unanswered.discard(request_id)
            if request_id in self.bills:
                settled = replace(self.bills[request_id], delivered=delivered, usage_sent=usage_sent and delivered)
                self.bills[request_id] = settled
            self.changed.notify_all()

    def hold(self, event: threading.Event) -> None:
        """Waits for the event, which ``close()`` sets too."""
        with self.changed:
            if self.closing.is_set():
                return
            self.holds.append(event)
        event.wait()

    def release(self) -> None:
        """Lets every held or sleeping reply go, and hangs up on every client."""
        with self.changed:
            self.closing.set()
            for event in self.holds:
                event.set()
            for connection in self.connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
