"""The HTTP side: Alertmanager posts alerts, people and probes look. Starlette on uvicorn.

Deciding waits for disks and databases, so it runs in a bounded pool of threads; the event loop only reads and answers.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
import signal
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dspy_observe.errors import ConfigurationError, ObserveError
from dspy_observe.metrics import Metrics, instruments, render
from dspy_observe.registry.errors import CorruptRegistry, InvalidName, UnknownSignature
from dspy_observe.registry.models import Pointer
from dspy_observe.registry.signatures import SignatureRegistry
from dspy_observe.rollback.alerts import AlertError, parse
from dspy_observe.rollback.deciding import recent
from dspy_observe.rollback.gauges import Gauges
from dspy_observe.rollback.handling import Handled, Handler
from dspy_observe.rollback.policy import MODES, Limits
from dspy_observe.rollback.prometheus import Prometheus
from dspy_observe.rollback.tokens import TOKEN_VARIABLE, Tokens, check_token

__all__ = ["ALERTS_PATH", "ReceiverOptions", "create_app", "serve"]

ALERTS_PATH: Final = "/api/v1/alerts"
_WORKERS: Final = 8
_WAITING: Final = 64
"""Deliveries under way at once; further ones are told to come again."""
_BODY_S: Final = 10.0
"""Seconds in which a body has to arrive."""
_MOST_DECISIONS: Final = 1000
_HIGHEST_PORT: Final = 65_535
_STOP_S: Final = 10
_BACKLOG: Final = 256

_logger = logging.getLogger("dspy_observe")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiverOptions:
    """How the receiver listens and decides.

    Raises:
        ConfigurationError: A field cannot work, or neither a token nor ``insecure`` is given.
    """

    host: str = "127.0.0.1"
    port: int = 9095
    """0 takes any free one."""
    token_file: Path | None = None
    """File with the bearer token, or one in each line; read again when it changes."""
    token: str | None = field(default=None, repr=False)
    insecure: bool = False
    """Ask for no token; only on a loopback address."""
    max_body_bytes: int = 1_000_000
    """Larger bodies are refused with 413: Alertmanager sends about 1 kB for each alert."""
    mode: str = "auto"
    """Caps every program's own mode; see :meth:`SignatureRegistry.set_mode`."""
    limits: Limits = field(default_factory=Limits)
    prometheus_url: str | None = None
    """Where to ask for fresh data before a rollback; ``None`` asks nobody."""
    fresh_window_s: float = 120.0
    """Seconds that those data cover."""
    prometheus_timeout_s: float = 3.0
    metrics: Metrics | None = None
    """Where its own metrics go; ``None`` is prometheus_client's default registry."""
    tls_cert: Path | None = None
    """Certificate chain for HTTPS, PEM."""
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    """Authority that clients' certificates have to come from; ``None`` asks clients for none."""

    def __post_init__(self) -> None:
        self._check_listening()
        if type(self.max_body_bytes) is not int or self.max_body_bytes < 1:
            raise ConfigurationError("max_body_bytes", f"{self.max_body_bytes!r} cannot work", "Use 1 or more")
        if self.mode not in MODES:
            raise ConfigurationError("mode", f"{self.mode!r} is not known", f"Use one of {', '.join(MODES)}")
        for name in ("fresh_window_s", "prometheus_timeout_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigurationError(name, f"{getattr(self, name)!r} cannot work", "Use seconds above 0")

    def _check_listening(self) -> None:
        if type(self.port) is not int or not 0 <= self.port <= _HIGHEST_PORT:
            raise ConfigurationError("listen", f"{self.port!r} is no TCP port", "Use 0 to 65535")
        if not self.host:
            raise ConfigurationError("listen", "the host is missing", "Use 127.0.0.1:9095")
        check_token(self.token)
        given = self.token_file is not None or bool(self.token)
        if self.insecure and given:
            raise ConfigurationError("insecure", "a token is given, too", "Leave one of them out")
        if self.insecure and not _is_loopback(self.host):
            raise ConfigurationError("insecure", f"{self.host} can be reached from outside", "Give a token file")
        if not self.insecure and not given:
            fix = f"Give a token file, set {TOKEN_VARIABLE}, or say insecure on a loopback address"
            raise ConfigurationError("token_file", "no bearer token is given", fix)
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigurationError("tls_key", "certificate and key belong together", "Give both, or none")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ConfigurationError("tls_client_ca", "without HTTPS no client shows a certificate", "Give tls_cert")


def create_app(registry: SignatureRegistry, options: ReceiverOptions) -> Starlette:
    """The receiver as an ASGI application.

    Args:
        registry: Where decisions are stored and carried out; it stays the caller's to close.
        options: How it decides and whom it lets in; where it listens is the server's business.

    Raises:
        ConfigurationError: The token file or the Prometheus URL cannot work.
    """
    return _Receiver(registry, options).app()


class _Receiver:
    def __init__(self, registry: SignatureRegistry, options: ReceiverOptions) -> None:
        self._options = options
        self._registry = registry
        self._tokens = Tokens(options.token_file, options.token)
        self._numbers = instruments(options.metrics)
        self._prometheus = None if options.prometheus_url is None else Prometheus(
            options.prometheus_url, window_s=options.fresh_window_s, timeout_s=options.prometheus_timeout_s
        )  # fmt: skip
        self._handler = Handler(registry, options.limits, self._numbers, prometheus=self._prometheus, mode=options.mode)
        self._gauges = Gauges(registry, options.limits, self._numbers)
        # Looking has threads of its own: probes and scrapes are answered while deliveries wait for the store.
        self._deciding = ThreadPoolExecutor(_WORKERS, "dspy-observe-decide")
        self._looking = ThreadPoolExecutor(2, "dspy-observe-look")
        self._under_way = 0

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route(ALERTS_PATH, self._guarded(self.alerts), methods=["POST"]),
                Route("/api/v1/decisions", self._guarded(self.decisions)),
                Route("/api/v1/status", self._guarded(self.status)),
                Route("/healthz", self.healthz),
                Route("/readyz", self.readyz),
                Route("/metrics", self.metrics),
            ],
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        yield
        # What is being decided is finished: its commit may have happened, and its answer is worth waiting for.
        await asyncio.to_thread(self._deciding.shutdown)
        await asyncio.to_thread(self._looking.shutdown)
        if self._prometheus is not None:
            self._prometheus.close()

    def _guarded(self, inner: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            header = request.headers.get("authorization")
            if not self._options.insecure and not self._tokens.accept(header):
                reply: Response = _error(401, "a bearer token is needed", {"WWW-Authenticate": "Bearer"})
            else:
                reply = await inner(request)
            if request.url.path == ALERTS_PATH:
                self._numbers["dspy_alert_requests_total"].child(str(reply.status_code)).inc()
            return reply

        return endpoint

    async def alerts(self, request: Request) -> Response:
        """Alertmanager's webhook."""
        try:
            async with asyncio.timeout(_BODY_S):
                body = await self._body(request)
        except TimeoutError:
            return _error(408, f"the body did not arrive within {_BODY_S:g} s")
        except ClientDisconnect:
            return _error(400, "the body ended early")
        if body is None:
            return _error(413, f"the body is larger than {self._options.max_body_bytes} bytes")
        try:
            delivery = parse(body)
        except AlertError as error:
            return _error(400, str(error))
        if self._under_way >= _WAITING:
            return _error(503, "too many deliveries are under way; nothing was decided")
        self._under_way += 1
        try:
            made = await asyncio.get_running_loop().run_in_executor(self._deciding, self._handler.handle, delivery)
        except Exception:
            # Nobody must lose an alert to a fault of ours: told to come again, it is judged once more.
            _logger.exception("dspy_observe: a delivery could not be judged")
            return _error(503, "the delivery could not be judged; see the log")
        finally:
            self._under_way -= 1
        return _answered(made)

    async def _body(self, request: Request) -> bytes | None:
        """The body; ``None`` where it is too large."""
        most = self._options.max_body_bytes
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and len(declared) <= 20 and int(declared) > most:  # noqa: PLR2004 - digits of 2**64
            return None
        read = bytearray()
        async for part in request.stream():
            read += part
            if len(read) > most:
                return None
        return bytes(read)

    async def decisions(self, request: Request) -> Response:
        """The latest decisions; the query string may name program, environment, outcome and limit."""
        asked = request.query_params
        try:
            limit = int(asked.get("limit", "50"))
        except ValueError:
            limit = 0
        if not 1 <= limit <= _MOST_DECISIONS:
            return _error(400, f"limit has to be 1 to {_MOST_DECISIONS}")
        try:
            found = await self._look(
                lambda: recent(
                    self._registry, program=asked.get("program"), environment=asked.get("environment"),
                    outcome=asked.get("outcome"), limit=limit,
                )
            )  # fmt: skip
        except (UnknownSignature, InvalidName) as error:
            return _error(404, str(error))
        except ObserveError as error:
            return _error(503, str(error))
        rows = [{"program": program, **one.to_dict()} for program, one in found]
        return JSONResponse({"decisions": rows, "unstored": list(self._handler.unstored)})

    async def status(self, _: Request) -> Response:
        """How every program stands, and when the watchdog was last heard."""
        try:
            rows = await self._look(self._standings)
        except ObserveError as error:
            return _error(503, str(error))
        return JSONResponse({
            "registry": self._registry.location, "mode": self._options.mode,
            "prometheus_url": None if self._prometheus is None else self._prometheus.place,
            "watchdog_at": self._handler.watchdog_at, "programs": rows,
        })  # fmt: skip

    def _standings(self) -> list[dict[str, Any]]:
        return [
            self._standing(program, pointer)
            for program in self._registry.list_signatures()
            for pointer in self._registry.pointers(program)
        ]

    def _standing(self, program: str, pointer: Pointer) -> dict[str, Any]:
        row = {
            "program": program, "environment": pointer.environment, "version": pointer.version,
            "deployed_at": pointer.at.isoformat(), "rollback_target": None, "control": None, "last_rollback": None,
        }  # fmt: skip
        try:
            standing = self._registry.standing(program, environment=pointer.environment)
        except CorruptRegistry as error:  # said in its place: the others are still to be seen
            return {**row, "error": str(error)}
        return {
            **row, "rollback_target": standing.rollback_target, "control": standing.control.to_dict(),
            "last_rollback": standing.rollbacks[-1].at.isoformat() if standing.rollbacks else None,
        }  # fmt: skip

    async def healthz(self, _: Request) -> Response:
        """Whether the process answers."""
        return JSONResponse({"status": "ok"})

    async def readyz(self, _: Request) -> Response:
        """Whether the registry answers, too."""
        try:
            count = len(await self._look(self._registry.list_signatures))
        except ObserveError as error:
            return _error(503, str(error))
        return JSONResponse({"status": "ready", "programs": count})

    async def metrics(self, request: Request) -> Response:
        """For Prometheus."""
        accept = request.headers.get("accept", "")
        registry = None if self._options.metrics is None else self._options.metrics.collector_registry

        def page() -> tuple[bytes, str]:
            self._gauges.refresh()
            return render(registry, accept)

        body, kind = await self._look(page)
        return Response(body, media_type=None, headers={"Content-Type": kind})

    async def _look(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._looking, work, *arguments)


def _answered(made: Handled) -> Response:
    body = {"decisions": made.answers, "ignored": made.ignored}
    if made.status == 200:  # noqa: PLR2004 - the HTTP status
        return JSONResponse(body)
    told = made.answers[0]["reason"] if made.answers else "nothing was decided"
    return JSONResponse({"error": told, **body}, status_code=made.status)


def _error(status: int, problem: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": problem}, status_code=status, headers=headers)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def serve(
    registry: SignatureRegistry, options: ReceiverOptions, *, listening: Callable[[str], None] | None = None
) -> None:
    """Answer until SIGTERM or SIGINT, then finish what is under way.

    Args:
        registry: Where decisions are stored and carried out.
        options: Everything else.
        listening: Told the address, with the real port, once it answers there.

    Raises:
        ConfigurationError: It cannot listen there, or a certificate cannot be used.
    """
    app = create_app(registry, options)
    config = uvicorn.Config(
        app, host=options.host.strip("[]"), port=options.port, log_level="warning", access_log=False,
        server_header=False, timeout_graceful_shutdown=_STOP_S, ssl_certfile=_path(options.tls_cert),
        ssl_keyfile=_path(options.tls_key), ssl_ca_certs=_path(options.tls_client_ca),
        ssl_cert_reqs=ssl.CERT_NONE if options.tls_client_ca is None else ssl.CERT_REQUIRED,
    )  # fmt: skip
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError("tls_cert", f"the certificate cannot be used ({error})", "Give PEM files") from None
    listener = _bound(options)
    scheme = "http" if options.tls_cert is None else "https"
    host = f"[{options.host.strip('[]')}]" if ":" in options.host else options.host
    if listening is not None:
        listening(f"{scheme}://{host}:{listener.getsockname()[1]}")
    with listener, _ended_by_signals():
        uvicorn.Server(config).run(sockets=[listener])


def _bound(options: ReceiverOptions) -> socket.socket:
    """A socket that connections already wait at: whoever is told the address is not refused."""
    host = options.host.strip("[]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, options.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        what = f"cannot listen on {options.host}:{options.port} ({error.strerror})"
        raise ConfigurationError("listen", what, "Choose another address or port") from None
    return listener


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let an orderly end be exit code 0: uvicorn sends itself the signal again that ended it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {one: signal.signal(one, lambda *_: None) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _path(file: Path | None) -> str | None:
    return None if file is None else str(file)
