"""Around every request: its id, the caller's trace, and one log line when it is done."""

from __future__ import annotations

import re
import time
import uuid

import structlog
from opentelemetry import context as context_api
from opentelemetry import propagate, trace
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ID = re.compile(r"[\w.-]{1,64}")
"""What is taken over from a caller; anything else could forge log lines."""
_log = structlog.get_logger("service.requests")


class RequestContext:
    """ASGI middleware.

    The caller's ``traceparent`` becomes the parent of the program's trace, and ``x-request-id`` comes back with the
    response and stands in the log lines that are written in between.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; other scopes pass through."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        status, began = 500, time.perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        token = context_api.attach(propagate.extract(headers))
        found = trace.get_current_span().get_span_context()
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self.app(scope, receive, send_with_id)
            finally:
                context_api.detach(token)
                _log.info(
                    "request", method=scope["method"], path=scope["path"], status=status,
                    duration_ms=round((time.perf_counter() - began) * 1000, 1),
                    trace_id=f"{found.trace_id:032x}" if found.is_valid else None,
                )  # fmt: skip
