"""OTLP collectors, real ones in small: they decode the protocol's own messages, over HTTP and over gRPC."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

__all__ = ["WAIT_S", "Collector", "GRPCCollector", "HTTPCollector"]

WAIT_S = 30.0


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


class HTTPCollector(Collector):
    """OTLP over HTTP with protobuf bodies."""

    protocol = "http/protobuf"

    def __enter__(self) -> Self:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                metadata = {name.lower(): value for name, value in self.headers.items()} | {"path": self.path}
                collector.take(ExportTraceServiceRequest.FromString(body), metadata)
                reply = ExportTraceServiceResponse().SerializeToString()
                self.send_response(500 if collector.failing else 200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, *args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


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
