"""``examples/service`` as it is started: two workers, Redis, a registry and a provider that can fail."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import signal
import time
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from dspy_observe.registry import SignatureRegistry
from tests.servers import wait_until
from tests.service import ADMIN, NAME, QUESTION, Provider, Redis, Service, part

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CLIENTS = 200


def test_two_hundred_clients_get_answers_and_every_one_is_counted_once(service: Service) -> None:
    """No request fails, and the page of both workers counts exactly the runs that there were."""
    before = service.counted("dspy_program_duration_seconds_count", 'role="stable"')
    failed = service.counted("dspy_program_duration_seconds_count", 'status="error"')

    async def client(number: int, session: httpx.AsyncClient) -> tuple[int, bool]:
        reply = await session.post("/ask", json={"question": f"{QUESTION} Asked by number {number}."})
        return reply.status_code, reply.json()["kept"]

    async def all_at_once() -> list[tuple[int, bool]]:
        limits = httpx.Limits(max_connections=CLIENTS)
        async with httpx.AsyncClient(base_url=service.url, timeout=60, limits=limits) as session:
            return await asyncio.gather(*(client(number, session) for number in range(CLIENTS)))

    began = time.perf_counter()
    replies = asyncio.run(all_at_once())
    took_s = time.perf_counter() - began
    assert Counter(replies) == {(200, False): CLIENTS}
    print(f"{CLIENTS} clients at once: all answered in {took_s:.1f} s, {CLIENTS / took_s:.0f} requests/s")  # noqa: T201 - the figure that examples/README.md quotes

    def runs() -> float:
        return service.counted("dspy_program_duration_seconds_count", 'role="stable"') - before

    wait_until(lambda: runs() >= CLIENTS, "count of every run")
    assert runs() == CLIENTS
    assert service.counted("dspy_program_duration_seconds_count", 'status="error"') == failed


def test_streams_feedback_ids_and_tokens(service: Service) -> None:
    """A stream tells the answer piece by piece, its reference takes a score, ids come back, and /admin is guarded."""
    *chunks, (last, final) = service.stream(QUESTION)
    assert ({kind for kind, _ in chunks}, last) == ({"chunk"}, "answer")
    assert "".join(chunk["text"] for _, chunk in chunks).strip() == final["answer"]
    given = {"call_ref": final["call_ref"], "score": 1.0, "score_id": "one"}
    assert service.post("/feedback", json=given).json() == {"booked": True}
    wait_until(lambda: service.counted("dspy_score_count", 'version="v1"') == 1, "score")
    assert service.post("/feedback", json={"call_ref": "nonsense", "score": 1}).status_code == 422
    assert service.post("/feedback", json={"call_ref": final["call_ref"], "score": 7}).status_code == 422
    assert service.get("/healthz", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    forged = service.get("/healthz", headers={"x-request-id": "a b\\n"}).headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", forged)
    for token in ("", "Bearer wrong"):
        assert service.post("/admin/rollback", headers={"authorization": token}).status_code == 401
    assert service.post("/admin/rollback", headers=ADMIN).status_code == 409, "there is no version before"
    assert service.post("/admin/reload", headers=ADMIN).json() == {"changed": False, "version": "v1"}


def test_a_rollback_reaches_every_worker_and_no_kept_answer_of_the_bad_version(service: Service) -> None:
    """What one version answered is not served as another's, and after the rollback both workers are back."""
    first = service.ask().json()
    assert (first["version"], first["kept"]) == ("v1", False)
    made = [first]  # several, where Redis was too slow for the first

    def kept() -> bool:
        made.append(service.ask().json())
        return bool(made[-1]["kept"])

    wait_until(kept, "answer that was kept")
    assert made.pop()["call_ref"] in {one["call_ref"] for one in made}, "what is scored is the call that gave it"
    service.deploy("v2")
    service.follows("v2")
    assert service.post("/admin/rollback", headers=ADMIN).json() == {"version": "v1", "followed": True}
    service.follows("v1")
    with SignatureRegistry(service.folder / "registry") as registry:
        assert registry.get_version(NAME, "v2").quarantined is not None


def test_a_rollback_by_hand_stands_although_the_worker_cannot_follow(tmp_path: Path) -> None:
    """The version that is back cannot be loaded here: the caller is told so, and the worker serves on what it has."""
    app, program = part("app"), part("program")
    with SignatureRegistry(tmp_path / "registry") as registry:
        program.ensure_deployed(registry)
        other = registry.load_program(NAME, program.factory)
        other.quick.predict.signature = other.quick.predict.signature.with_instructions("Answer. Be brief.")
        registry.register_program(NAME, other, version="v2")
        registry.deploy_version(NAME, "v2")
        made: list[Any] = []

        def only_once() -> Any:
            if made:
                raise MemoryError
            made.append(program.factory())
            return made[0]

        live = app.LiveProgram(registry, NAME, only_once)
        try:
            held = app.Parts(app.Settings(), registry, None, live, None, None, None)
            assert app.rollback(held) == {"version": "v1", "followed": False}
            assert live.version == "v2"
            with pytest.raises(app.HTTPException, match="503"):
                app.reload(held)
            assert registry.get_deployed_version(NAME).version == "v1"
        finally:
            live.close()


def test_a_killed_worker_loses_at_most_what_it_was_doing(service: Service) -> None:
    """Under load one worker is killed: at most its requests in flight fail, another takes its place."""
    (victim, *_) = service.workers()
    at_once, failures, answered = 8, Counter[str](), Counter[int]()

    async def client(number: int, stop: asyncio.Event) -> None:
        async with httpx.AsyncClient(base_url=service.url, timeout=20) as session:
            turn = 0
            while not stop.is_set():
                turn += 1
                try:
                    reply = await session.post("/ask", json={"question": f"{QUESTION} {number}/{turn}"})
                    answered[reply.status_code] += 1
                except httpx.TransportError as error:
                    failures[type(error).__name__] += 1

    async def under_load() -> None:
        stop = asyncio.Event()
        clients = [asyncio.create_task(client(number, stop)) for number in range(at_once)]
        while answered[200] < 20:  # noqa: ASYNC110 - counted by many tasks
            await asyncio.sleep(0.02)
        os.kill(victim, signal.SIGKILL)
        seen = answered[200]
        while answered[200] < seen + 60:  # noqa: ASYNC110 - counted by many tasks
            await asyncio.sleep(0.02)
        stop.set()
        await asyncio.gather(*clients)

    asyncio.run(asyncio.wait_for(under_load(), 60))
    assert set(answered) == {200}
    assert failures.total() <= at_once, "a client has one request under way"
    wait_until(lambda: len(set(service.workers()) - {victim}) >= 2, "new worker", 40)
    service.ready()
    wait_until(lambda: service.counted("dspy_in_flight_calls") == 0, "gauges of the dead worker to go")


@pytest.mark.parametrize(
    ("trouble", "statuses"), [("down", {503}), ("storm", {503}), ("slow", {503, 504}), ("malformed", {502})]
)
def test_a_failing_provider_is_told_and_recovered_from(
    service: Service, provider: Provider, trouble: str, statuses: set[int]
) -> None:
    """Each failure is a status to act on, in a stream its last event; afterwards every worker answers by itself."""
    seen = set()
    provider.trouble = trouble
    try:
        for number in range(2 if trouble == "slow" else 12):
            reply = service.ask(f"{QUESTION} {trouble} {number}")
            seen.add(reply.status_code)
            if reply.status_code in (503, 504):
                assert int(reply.headers["retry-after"]) >= 1
        assert service.get("/healthz").status_code == 200
        event, told = service.stream(f"{QUESTION} {trouble} in a stream")[-1]
    finally:
        provider.trouble = None
    assert seen <= statuses, seen
    # A worker's breaker that the provider's failures opened refuses the stream, whatever ails the provider now.
    assert (event, told["status"] in {*statuses, 503}) == ("error", True), told
    numbers = count()

    def all_answer() -> bool:
        # Never the same question: a kept answer would hide that the breaker of a worker is still open.
        return all(service.ask(f"{QUESTION} After {trouble}, {next(numbers)}.").status_code == 200 for _ in range(12))

    wait_until(all_answer, "recovery of every worker", 20)


def test_answers_go_on_without_redis_and_registry_and_readiness_says_so(service: Service, redis: Redis) -> None:
    """Without Redis nothing is kept; without the registry it serves on, says that it is not ready, and comes back."""
    redis.stop()
    assert service.ask("What is the symbol of gold?").status_code == 200
    redis.start()
    wait_until(lambda: service.ask("What is the symbol of gold?").json()["kept"], "kept answers again", 30)
    place, away = service.folder / "registry", service.folder / "away"
    place.rename(away)
    wait_until(lambda: service.get("/readyz").status_code == 503, "staleness", 30)
    assert service.ask("Which planet is the largest?").status_code == 200
    assert service.get("/healthz").status_code == 200
    for route in ("reload", "rollback"):
        assert service.post(f"/admin/{route}", headers=ADMIN).status_code == 503, route
    away.rename(place)
    wait_until(lambda: {service.get("/readyz").status_code for _ in range(8)} == {200}, "readiness", 30)


def test_answers_go_on_when_the_disk_is_full(service: Service) -> None:
    """No worker may make a file larger, as on a full disk: answers, scores and metrics go on."""
    workers = service.workers()
    limits = {pid: resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in workers}
    before = service.counted("dspy_program_duration_seconds_count", 'status="ok"', 'role="stable"')
    try:
        for pid in workers:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, limits[pid][1]))
        replies = [service.ask(f"{QUESTION} On a full disk, number {number}.") for number in range(6)]
        assert [reply.status_code for reply in replies] == [200] * 6
        given = {"call_ref": replies[-1].json()["call_ref"], "score": 0.5}
        assert service.post("/feedback", json=given).status_code == 200
        assert service.get("/readyz").status_code == 200
    finally:
        for pid in workers:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits[pid])
    wait_until(
        lambda: service.counted("dspy_program_duration_seconds_count", 'status="ok"', 'role="stable"') == before + 6,
        "count of every run",
    )
    assert service.ask(f"{QUESTION} With room again.").status_code == 200
