"""The service: questions in, answers out, by the version that is deployed now. ``serve.py`` starts it.

Change ``program.py`` and keep the rest. What each route does when something is down stands in ``examples/README.md``.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import dspy
import pybreaker
import structlog
from aiolimiter import AsyncLimiter
from dspy.utils.exceptions import DSPyError, LMError
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

import dspy_observe
from dspy_observe import LiveProgram, ObserveError
from dspy_observe.metrics import render
from dspy_observe.registry import NothingToRollBackTo, RegistryError, SignatureRegistry
from service.answers import Answers
from service.context import RequestContext
from service.program import NAME, STREAMED, WARM_UP, ensure_deployed, factory, make_lm
from service.settings import Settings

_log = logging.getLogger("service")


class Question(BaseModel):
    """A question."""

    question: str = Field(min_length=1, max_length=2000)


class Answer(BaseModel):
    """An answer, and what to score it by."""

    answer: str
    version: str | None
    call_ref: str
    kept: bool = False
    """Whether it was given before, by the same version."""


class Feedback(BaseModel):
    """How good an answer was, now or hours later."""

    call_ref: str
    score: float = Field(ge=0, le=1)
    score_id: str | None = None
    source: str = "user"


@dataclass(slots=True)
class Parts:
    """What one worker holds."""

    settings: Settings
    registry: SignatureRegistry
    observer: dspy_observe.Observer
    live: LiveProgram
    answers: Answers
    limiter: AsyncLimiter
    breaker: pybreaker.CircuitBreaker
    """pybreaker is kept and known to most teams; its context manager guards an await, which its own decorator for
    coroutines would do with Tornado only."""
    warm: bool = False


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Start up one worker, and warm it in the background: until then it is alive and not ready."""
    settings = Settings()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars, structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True), structlog.processors.JSONRenderer(),
        ],
    )  # fmt: skip
    dspy.configure(lm=make_lm(settings.model, settings.model_url, settings.second_model, settings.answer_timeout_s))
    registry = SignatureRegistry(settings.registry)
    ensure_deployed(registry)
    observer = dspy_observe.configure(service=NAME, registry=registry)
    live = LiveProgram(registry, NAME, factory, refresh_s=settings.refresh_s)
    app.state.parts = parts = Parts(
        settings, registry, observer, live,
        Answers(settings.redis_url, settings.answer_ttl_s),
        AsyncLimiter(settings.requests_per_s, 1),
        pybreaker.CircuitBreaker(
            fail_max=settings.failures_to_open, reset_timeout=settings.open_s, exclude=[_is_no_outage]
        ),
    )  # fmt: skip
    warming = asyncio.create_task(_warm_up(parts))
    try:
        yield
    finally:
        warming.cancel()
        await parts.answers.close()
        live.close()
        observer.close()
        registry.close()


def _is_no_outage(error: BaseException) -> bool:
    """A reply that cannot be parsed says nothing about the provider; the alert about the version is for that."""
    return not isinstance(error, LMError | TimeoutError)


async def _warm_up(parts: Parts) -> None:
    """One call with the role ``warmup``, tried until it succeeds: it makes the client of the LM."""
    program = parts.observer.track(factory(), name=NAME, version=parts.live.version, role="warmup")
    while not parts.warm:
        try:
            await program.acall(question=WARM_UP)
            parts.warm = True
        except DSPyError as error:
            _log.warning("not warm yet: %s", type(error).__name__)
            await asyncio.sleep(1)


app = FastAPI(title=NAME, lifespan=lifespan)
app.add_middleware(
    CORSMiddleware, allow_origins=list(Settings().allowed_origins), allow_methods=["GET", "POST"], allow_headers=["*"]
)
app.add_middleware(RequestContext)


def parts_of(request: Request) -> Parts:
    """What this worker holds."""
    parts: Parts = request.app.state.parts
    return parts


Held = Annotated[Parts, Depends(parts_of)]


def busy(status: int, why: str, retry_after_s: float) -> HTTPException:
    """A refusal that says when to come back."""
    return HTTPException(status, why, {"Retry-After": str(max(1, round(retry_after_s)))})


@asynccontextmanager
async def admitted(parts: Parts) -> AsyncIterator[None]:
    """Wait for a turn, then guard the call: what fails is told in a way that a caller can act on."""
    try:
        await asyncio.wait_for(parts.limiter.acquire(), parts.settings.max_wait_s)
    except TimeoutError:
        raise busy(429, "too many requests", parts.settings.max_wait_s) from None
    try:
        with parts.breaker.calling():
            async with asyncio.timeout(parts.settings.answer_timeout_s):
                yield
    except pybreaker.CircuitBreakerError:
        raise busy(503, "the model provider fails; it is left alone for a while", parts.settings.open_s) from None
    except TimeoutError:
        raise busy(504, "the model took too long", 1) from None
    except LMError as error:
        raise busy(503, f"the model provider failed ({type(error).__name__})", 1) from None
    except DSPyError as error:
        raise HTTPException(502, f"the model's reply could not be used ({type(error).__name__})") from None


@app.post("/ask")
async def ask(asked: Question, parts: Held) -> Answer:
    """Answer a question, from what this version answered before, or anew."""
    serving = parts.live.serving  # read once: the answer is kept under the version that gave it
    kept = await parts.answers.find(serving.version, asked.question)
    if kept is not None:
        return Answer(**kept, kept=True)
    async with admitted(parts):
        prediction = await serving.program.acall(question=asked.question)
    made = Answer(answer=prediction.answer, version=serving.version, call_ref=parts.observer.call_ref(prediction))
    await parts.answers.keep(serving.version, asked.question, made.model_dump(exclude={"kept"}))
    return made


@app.post("/ask/stream")
async def ask_stream(asked: Question, parts: Held) -> StreamingResponse:
    """Answer piece by piece: server-sent events ``chunk``, then ``answer`` or ``error``."""
    serving = parts.live.serving
    listener = dspy.streaming.StreamListener(signature_field_name=STREAMED)
    stream = dspy.streamify(serving.program, stream_listeners=[listener])

    async def events() -> AsyncIterator[str]:
        try:
            async with admitted(parts):
                async for item in stream(question=asked.question):
                    if isinstance(item, dspy.streaming.StreamResponse):
                        yield _event("chunk", text=item.chunk)
                    elif isinstance(item, dspy.Prediction):
                        ref = parts.observer.call_ref(item)
                        yield _event("answer", answer=item.answer, version=serving.version, call_ref=ref)
        except HTTPException as refused:
            yield _event("error", status=refused.status_code, detail=refused.detail)

    return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


def _event(name: str, **data: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


@app.post("/feedback")
def feedback(given: Feedback, parts: Held) -> dict[str, bool]:
    """Book a score on the version that answered, whatever is deployed now."""
    try:
        booked = parts.observer.score(given.call_ref, given.score, source=given.source, score_id=given.score_id)
    except ObserveError as error:
        raise HTTPException(422, str(error)) from None
    return {"booked": booked}


@app.get("/healthz")
def healthz() -> dict[str, str]:
    """Whether the process lives; never a reason to restart it because something else is down."""
    return {"status": "ok"}


@app.get("/readyz")
def readyz(parts: Held) -> dict[str, Any]:
    """Whether this worker should get traffic: warm, and not long without word from the registry."""
    status = parts.live.status()
    if not parts.warm:
        raise busy(503, "not warm yet", 1)
    if status.stale_s > parts.settings.stale_limit_s:
        raise busy(503, f"the registry has not been read for {status.stale_s:.0f} s", 5)
    return {"status": "ready", "version": status.version, "stale_s": round(status.stale_s, 1)}


@app.get("/metrics")
def metrics(request: Request) -> Response:
    """The metrics of all workers."""
    body, content_type = render(accept=request.headers.get("accept", ""))
    return Response(body, headers={"Content-Type": content_type})


def admin(request: Request, parts: Held) -> Parts:
    """Let in who has the token."""
    expected, given = parts.settings.admin_token, request.headers.get("authorization", "")
    if expected is None:
        raise HTTPException(403, "set SERVICE_ADMIN_TOKEN to open /admin")
    if not hmac.compare_digest(given.encode(), f"Bearer {expected}".encode()):
        raise HTTPException(401, "a bearer token is needed", {"WWW-Authenticate": "Bearer"})
    return parts


Admin = Annotated[Parts, Depends(admin)]


@app.post("/admin/reload")
def reload(parts: Admin) -> dict[str, Any]:
    """Look at the registry now instead of within ``refresh_s``; the other workers follow by themselves."""
    try:
        changed = parts.live.refresh()
    except Exception as error:  # noqa: BLE001 - also what the program's own code raises when it is made
        raise busy(503, f"the registry cannot be read, or the version not loaded ({type(error).__name__})", 5) from None
    return {"changed": changed, "version": parts.live.version}


@app.post("/admin/rollback")
def rollback(parts: Admin) -> dict[str, Any]:
    """Put the previous version back; every worker of every service that follows this registry does the same."""
    try:
        version = parts.registry.rollback(NAME, reason="POST /admin/rollback", actor="service admin")
    except NothingToRollBackTo as error:
        raise HTTPException(409, str(error)) from None
    except RegistryError as error:
        raise busy(503, str(error), 5) from None
    # It is rolled back, whatever this worker makes of it: those who can load the version follow.
    try:
        parts.live.refresh()
    except Exception as error:  # noqa: BLE001 - also what the program's own code raises when it is made
        _log.warning("rolled back, but not followed yet: %s", type(error).__name__)
    return {"version": version.version, "followed": parts.live.version == version.version}
