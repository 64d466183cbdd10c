"""OTLP collectors, real ones in small, over HTTP and over gRPC; those of spans decode the protocol's own messages."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

__all__ = ["WAIT_S", "Collector", "GRPCCollector", "HTTPCollector", "PostServer"]

WAIT_S = 30.0


class PostServer:
    """An HTTP server on 127.0.0.1 that is only posted to, in a ``with`` block."""

    port = 0
    """Where it listens; 0 is any."""
    url: str

    def answer(self, path: str, headers: Message, body: bytes) -> tuple[int, bytes]:
        """Take a body; gives status and reply."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                status, reply = server.answer(self.path, self.headers, body)
                self.send_response(status)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Collector:
    """What an OTLP collector took, and how it behaves.

    Args:
        port: Where it listens on 127.0.0.1; 0 is any.
    """

    protocol: str
    url: str

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.failing = False
        self.gate = threading.Event()
        self.gate.set()
        self.requests: list[ExportTraceServiceRequest] = []
        self.metadata: list[dict[str, str]] = []
        self.changed = threading.Condition()

    def take(self, request: ExportTraceServiceRequest, metadata: dict[str, str]) -> None:
        """Keep a request, then hold it while the gate is closed."""
        with self.changed:
            self.requests.append(request)
            self.metadata.append(metadata)
            self.changed.notify_all()
        self.gate.wait()

    def spans(self) -> list[Any]:
        """Every span of every request so far."""
        with self.changed:
            return [
                span
                for request in self.requests
                for resource in request.resource_spans
                for scope in resource.scope_spans
                for span in scope.spans
            ]

    def wait_for_a_request(self) -> None:
        """Wait until something came in."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.requests, WAIT_S)


class HTTPCollector(PostServer, Collector):
    """OTLP over HTTP with protobuf bodies."""

    protocol = "http/protobuf"

    def answer(self, path: str, headers: Message, body: bytes) -> tuple[int, bytes]:
        """Take the spans."""
        metadata = {name.lower(): value for name, value in headers.items()} | {"path": path}
        self.take(ExportTraceServiceRequest.FromString(body), metadata)
        return (500 if self.failing else 200), ExportTraceServiceResponse().SerializeToString()

    def __exit__(self, *error: object) -> None:
        self.gate.set()
        super().__exit__(*error)


class GRPCCollector(Collector):
    """OTLP over gRPC."""

    protocol = "grpc"

    def __enter__(self) -> Self:
        collector = self

        class Servicer(trace_service_pb2_grpc.TraceServiceServicer):
            def Export(self, request: ExportTraceServiceRequest, context: Any) -> ExportTraceServiceResponse:  # noqa: N802
                metadata = {name: value for name, value in context.invocation_metadata() if isinstance(value, str)}
                collector.take(request, metadata)
                if collector.failing:
                    context.abort(grpc.StatusCode.INTERNAL, "out of order")
                return ExportTraceServiceResponse()

        self._server = grpc.server(ThreadPoolExecutor(4))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Servicer(), self._server)
        self.url = f"http://127.0.0.1:{self._server.add_insecure_port(f'127.0.0.1:{self.port}')}"
        self._server.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.gate.set()
        self._server.stop(None).wait()
