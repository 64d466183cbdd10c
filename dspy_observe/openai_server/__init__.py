"""A small OpenAI-compatible HTTP server on loopback, for tests and demonstrations, that knows exactly what it billed.

Standard library only, ``http.server.ThreadingHTTPServer`` on a background thread: the testing kit has to work on the
base install, and needs the raw socket to send bodies slowly, hold them back and cut them off, which web frameworks
keep to themselves.

    with OpenAIServer() as server:
        lm = dspy.LM("openai/gpt-4o-mini", api_base=server.base_url, api_key="x")
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from dspy_observe.openai_server.answers import answer_prompt
from dspy_observe.openai_server.bills import Bill, Book, Endpoint, Outcome, ReceivedRequest
from dspy_observe.openai_server.http import HTTPServer, Respond
from dspy_observe.openai_server.replies import ChatRequest, Failure, Reply, TokenUsage, ToolCall

__all__ = ["Bill", "ChatRequest", "Failure", "OpenAIServer", "ReceivedRequest", "Reply", "TokenUsage", "ToolCall"]

CLOSE_TIMEOUT_S = 5.0
"""How long ``close()`` waits for connections to end; only a ``respond`` that blocks can make it wait so long."""


class OpenAIServer:
    """An OpenAI-compatible server on 127.0.0.1 and a free port, as a context manager or with ``start()``/``close()``.

    It serves ``POST /v1/chat/completions`` (also streamed, also ``n`` above 1), ``POST /v1/embeddings`` and
    ``GET /v1/models``, accepts any API key, keeps connections alive, and answers anything else with OpenAI's errors.

    Args:
        respond: Decides what a chat request gets when nothing is scripted for it. It runs on the connection's thread,
            several at once; a string is the text of a reply. By default it answers what DSPy's adapters ask for, see
            :func:`~dspy_observe.openai_server.answers.answer_prompt`.
    """

    def __init__(self, respond: Respond = answer_prompt) -> None:
        self._respond = respond
        self._book = Book()
        self._http: HTTPServer | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> Self:
        """Binds a free port, serves in the background, and returns this server.

        Raises:
            RuntimeError: It was started or closed before; a server serves once.
        """
        if self._http is not None or self._book.closing.is_set():
            raise RuntimeError("OpenAIServer serves once: make a new one instead of starting it again")
        self._http = HTTPServer(self._book, self._respond)
        # A short poll, since close() waits for one.
        arguments = {"poll_interval": 0.02}
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs=arguments, name="openai-server", daemon=True
        )
        self._thread.start()
        return self

    def close(self) -> None:
        """Stops serving, lets held replies go unanswered and unbilled, hangs up on clients; harmless when repeated."""
        self._book.release()
        if self._http is None or self._thread is None:
            return
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
        with self._book.changed:
            self._book.changed.wait_for(lambda: not self._book.connections, CLOSE_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def base_url(self) -> str:
        """What clients call ``api_base`` or ``base_url``; ends in ``/v1``.

        Raises:
            RuntimeError: The server was not started.
        """
        if self._http is None:
            raise RuntimeError("OpenAIServer has no address before start()")
        return f"http://127.0.0.1:{self._http.server_port}/v1"

    def script(self, outcomes: Iterable[Outcome], *, endpoint: Endpoint = "chat") -> None:
        """Queues what the next requests get, first in first out, before ``respond`` is asked.

        Args:
            outcomes: A string or :class:`Reply` to compute and bill, a :class:`Failure` to refuse with.
            endpoint: Which requests take from the queue. An embeddings reply has vectors in place of the text.
        """
        with self._book.changed:
            self._book.scripts[endpoint].extend(outcomes)

    @property
    def bills(self) -> list[Bill]:
        """Every reply computed so far, in the order of computing; a client that has a reply finds its final bill."""
        with self._book.changed:
            return list(self._book.bills.values())

    @property
    def requests(self) -> list[ReceivedRequest]:
        """Every request so far, in the order of arrival, refused ones and other paths included."""
        with self._book.changed:
            return list(self._book.requests)

    @property
    def in_flight(self) -> int:
        """Requests that came in and whose last byte was neither handed over nor given up."""
        with self._book.changed:
            return len(self._book.unanswered)

    def wait_for(self, predicate: Callable[[], bool], timeout_s: float = 10.0) -> None:
        """Waits until ``predicate()`` is true, asked again whenever a request, bill or reply changes.

        It blocks its thread: in a coroutine, ``await asyncio.to_thread(server.wait_for, ...)``.

        Raises:
            TimeoutError: It was not true within ``timeout_s`` seconds.
        """
        with self._book.changed:
            if not self._book.changed.wait_for(predicate, timeout_s):
                state = f"{len(self.requests)} requests, {len(self.bills)} bills, {self.in_flight} in flight"
                raise TimeoutError(f"not true within {timeout_s:g} s; the server has {state}")
