"""How an ``OpenAIServer`` speaks HTTP: one request after another on a kept-alive connection, one thread each.

On ``http.server`` because slow, held and cut bodies need the raw socket.
"""

from __future__ import annotations

import json
import logging
import socket
import sys
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from dspy_observe.openai_server.bills import Book, Endpoint, Outcome, ReceivedRequest
from dspy_observe.openai_server.replies import (
    ChatRequest,
    EmbeddingRequest,
    Failure,
    MalformedRequestError,
    Reply,
    TokenUsage,
    error_body,
)
from dspy_observe.openai_server.wire import SERVED_MODELS, completion_body, embeddings_body, models_body, stream_parts

__all__ = ["HTTPServer", "Respond"]

Respond = Callable[[ChatRequest], Outcome]
_PATHS: Mapping[str, Endpoint] = {"/v1/chat/completions": "chat", "/v1/embeddings": "embeddings"}

logger = logging.getLogger(__name__)


class _ClientGoneError(ConnectionError):
    """The client closed its connection, or the server is closing: nothing more is to be written."""


class HTTPServer(ThreadingHTTPServer):
    """Accepts connections on a free port of 127.0.0.1 once it is made."""

    daemon_threads = True
    # A burst of clients must find room in the accept queue while the accepting thread waits for the interpreter lock.
    request_queue_size = 512

    def __init__(self, book: Book, respond: Respond) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.book = book
        self.respond = respond

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002  # the base's signature
        """A connection that broke is the client's affair and prints nothing; anything else is a bug here and logged."""
        if not isinstance(sys.exc_info()[1], OSError):
            logger.error("connection from %s failed", client_address, exc_info=True)  # noqa: LOG014  # the caller's handler


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Events of a stream are small: without this each would wait for the acknowledgement of the one before.
    disable_nagle_algorithm = True
    server: HTTPServer

    def setup(self) -> None:
        self.book = self.server.book
        with self.book.changed:
            if self.book.closing.is_set():
                raise _ClientGoneError
            super().setup()
            self.book.connections.add(self.connection)
            self.book.changed.notify_all()

    def finish(self) -> None:
        try:
            super().finish()
        finally:
            with self.book.changed:
                self.book.connections.discard(self.connection)
                self.book.changed.notify_all()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base's name
        """Keeps quiet: ``OpenAIServer.requests`` is the log."""

    def send_error(
        self,
        code: int,
        message: str | None = None,
        explain: str | None = None,  # noqa: ARG002  # the base's signature
    ) -> None:
        """Answers what the base class refuses (a broken request line, an unknown method) and hangs up."""
        self.close_connection = True
        status = 404 if code == HTTPStatus.NOT_IMPLEMENTED else max(400, code)
        self._write(status, json.dumps(error_body(status, message)).encode())

    def do_GET(self) -> None:
        self._exchange()

    def do_POST(self) -> None:
        self._exchange()

    def _exchange(self) -> None:
        """Receives one request and answers it; whatever happens, it ends up settled."""
        length = self.headers.get("Content-Length", "0" if self.command == "GET" else "")
        if not length.isdecimal():
            self.send_error(400, "A request body needs a Content-Length.")
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = self.book.arrived(self.command, self.path, headers, self.rfile.read(int(length)))
        try:
            self._route(request)
        except MalformedRequestError as error:
            self._refuse(request, Failure(400, error_body(400, str(error), param=error.param)))
        except Exception as error:
            self.close_connection = True
            self.book.settle(request.request_id, delivered=False)
            if not isinstance(error, OSError):
                raise

    def _route(self, request: ReceivedRequest) -> None:
        path = request.path.partition("?")[0]
        endpoint = _PATHS.get(path)
        if request.method == "GET" and path == "/v1/models":
            self.book.settle(request.request_id, delivered=True)
            self._write(200, json.dumps(models_body()).encode())
        elif request.method != "POST" or endpoint is None:
            message = f"Invalid URL ({request.method} {request.path})"
            self._refuse(request, Failure(404, error_body(404, message)))
        elif endpoint == "chat":
            self._chat(request, ChatRequest.parse(request.json))
        else:
            self._embeddings(request, EmbeddingRequest.parse(request.json))

    def _chat(self, received: ReceivedRequest, request: ChatRequest) -> None:
        outcome = self.book.scripted("chat")
        if outcome is None:
            try:
                outcome = self.server.respond(request)
            except Exception as error:  # A fault in the test's own function: it must be seen, and the client answered.
                logger.exception("respond raised")
                message = f"respond raised {type(error).__name__}: {error}"
                outcome = Failure(500, error_body(500, message))
        if isinstance(outcome, Failure):
            self._refuse(received, outcome)
            return
        reply = Reply(text=outcome) if isinstance(outcome, str) else outcome
        self._compute(reply, streamed=request.stream)
        model = reply.model or SERVED_MODELS.get(request.model, request.model)
        usage = self.book.charge(
            received.request_id,
            reply.usage,
            model=request.model,
            served_model=model,
            prompt=request.prompt,
            choices=request.choices,
            streamed=request.stream,
            completes=True,
        )
        if request.stream:
            self._stream(received, request, reply, model, usage)
        else:
            body = completion_body(request, reply, reply_id=received.request_id, model=model, usage=usage)
            self._deliver(received, reply, body)

    def _embeddings(self, received: ReceivedRequest, request: EmbeddingRequest) -> None:
        outcome = self.book.scripted("embeddings") or Reply()
        if isinstance(outcome, Failure):
            self._refuse(received, outcome)
            return
        reply = Reply() if isinstance(outcome, str) else outcome
        self._compute(reply, streamed=False)
        model = reply.model or request.model
        usage = self.book.charge(
            received.request_id,
            reply.usage,
            model=request.model,
            served_model=model,
            prompt=request.texts[-1],
            choices=len(request.texts),
            streamed=False,
            completes=False,
        )
        body = embeddings_body(request, model=model, usage=usage if reply.report_usage else None)
        self._deliver(received, reply, body)

    def _compute(self, reply: Reply, *, streamed: bool) -> None:
        """Takes the time a reply takes before it is billed; a server that is closing computes no more."""
        if reply.hold is not None and (reply.hold_after_chunks is None or not streamed):
            self.book.hold(reply.hold)
        self._pause(reply.delay_s)

    def _deliver(self, received: ReceivedRequest, reply: Reply, body: Mapping[str, Any]) -> None:
        """Writes a body whole, or half of it if the reply is to be cut."""
        payload = json.dumps(body).encode()
        if reply.cut_after_chunks is not None:
            self._head(200, {"Content-Length": str(len(payload))})
            self.wfile.write(payload[: len(payload) // 2])
            raise _ClientGoneError
        self._check_client()
        # Settled before the last byte leaves: a client that has the reply must find the bill as it will stay.
        self.book.settle(received.request_id, delivered=True, usage_sent=reply.report_usage)
        self._write(200, payload)

    def _stream(
        self, received: ReceivedRequest, request: ChatRequest, reply: Reply, model: str, usage: TokenUsage
    ) -> None:
        parts = stream_parts(request, reply, reply_id=received.request_id, model=model, usage=usage)
        self._head(200, {"Transfer-Encoding": "chunked"}, content_type="text/event-stream; charset=utf-8")
        self._pause(reply.first_delay_s)
        self._chunk(parts.opening)
        cut_at = _position(reply.cut_after_chunks, len(parts.chunks))
        hold_at = _position(reply.hold_after_chunks, len(parts.chunks))
        for index, chunk in enumerate((*parts.chunks, None)):
            if index == cut_at:
                raise _ClientGoneError
            if reply.hold is not None and index == hold_at:
                self.book.hold(reply.hold)
            if chunk is not None:
                self._pause(reply.chunk_delay_s if index else 0.0)
                self._chunk(chunk)
        self._check_client()
        usage_sent = request.include_usage and reply.report_usage
        self.book.settle(received.request_id, delivered=True, usage_sent=usage_sent)
        self._chunk(parts.closing, last=True)

    def _refuse(self, request: ReceivedRequest, failure: Failure) -> None:
        headers = {} if failure.retry_after_s is None else {"Retry-After": f"{failure.retry_after_s:g}"}
        kind = "text/html" if isinstance(failure.body, str) else "application/json"
        self.book.settle(request.request_id, delivered=False)
        self._write(failure.status, failure.payload(), headers, content_type=kind)

    def _pause(self, seconds: float) -> None:
        if self.book.closing.wait(seconds) if seconds else self.book.closing.is_set():
            raise _ClientGoneError

    def _check_client(self) -> None:
        """Raises if the client hung up: the kernel would take the bytes all the same, and nobody would read them."""
        timeout = self.connection.gettimeout()
        self.connection.settimeout(0)
        try:
            gone = self.connection.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            gone = False
        finally:
            self.connection.settimeout(timeout)
        if gone:
            raise _ClientGoneError

    def _chunk(self, data: bytes, *, last: bool = False) -> None:
        self._check_client()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data) + (b"0\r\n\r\n" if last else b""))

    def _write(
        self,
        status: int,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> None:
        self._head(status, {"Content-Length": str(len(body)), **(headers or {})}, content_type)
        self.wfile.write(body)

    def _head(self, status: int, headers: Mapping[str, str], content_type: str = "application/json") -> None:
        self.send_response(status)
        for name, value in {"Content-Type": content_type, **headers}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()


def _position(after_chunks: int | None, chunks: int) -> int | None:
    """Where in a stream something happens that was asked for after so many chunks: at the end if it has fewer."""
    return None if after_chunks is None else min(after_chunks, chunks)
