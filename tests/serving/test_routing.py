"""Router: who gets what, how a rollout goes on and back, and what survives. Numbers are those of the scenario list."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
from prometheus_client import CollectorRegistry

from dspy_observe import ConfigurationError, Metrics, NotDeployedError, Router
from dspy_observe.registry import SignatureRegistry
from dspy_observe.registry.rollouts import Rollout
from dspy_observe.testing import capture_records
from tests.servers import wait_until
from tests.serving.conftest import Bot, Open, Publish

Route = Callable[..., Router]


class Judge:
    """Says what it is told to say."""

    def __init__(self, word: str = "insufficient_data") -> None:
        self.word = word
        self.asked: list[tuple[str, str]] = []

    def verdict(self, program: str, version: str) -> str:
        """The word."""
        self.asked.append((program, version))
        return self.word


@pytest.fixture
def route(metrics: Metrics) -> Iterator[Route]:
    """Makes routers, which are closed at the end."""
    made: list[Router] = []

    def make(registry: SignatureRegistry | str, candidate: str | None = None, **options: Any) -> Router:
        options = {"refresh_s": 0.2, "metrics": metrics, "min_step_s": 0, **options}
        factory = options.pop("factory", Bot)
        made.append(Router(registry, "bot", factory, candidate, **options))
        return made[-1]

    yield make
    for router in made:
        router.close()


def stored(registry: SignatureRegistry) -> Rollout:
    """The rollout as the registry has it."""
    found = registry.rollout("bot")
    assert found is not None
    return found


def key_of(router: Router, role: str) -> str:
    """A user of a role."""
    return next(f"user-{number}" for number in range(100_000) if router.assign(f"user-{number}").role == role)


@pytest.fixture
def two(registry: SignatureRegistry, publish: Publish) -> SignatureRegistry:
    """A registry with v1 deployed and v2 beside it."""
    publish(registry, "v1")
    publish(registry, "v2", deploy=False)
    return registry


def test_users_keep_their_arm_and_records_say_which(two: SignatureRegistry, route: Route) -> None:
    """Every answer comes from the version that the key has, and every record carries it and its role."""
    router = route(two, "v2", steps=(0.5, 1))
    for role, version in (("canary", "v2"), ("stable", "v1")):
        key = key_of(router, role)
        assigned = router.assign(key)
        assert (assigned.version, assigned.role, assigned.sticky) == (version, role, True)
        with capture_records() as records:
            assert {router(key=key, question=str(number)).answer for number in range(3)} == {version}
        assert {(record.program, record.version, record.role) for record in records} == {("bot", version, role)}
    assert not router.assign().sticky
    other = route(two.location)
    keys = [f"user-{number}" for number in range(500)]
    assert [router.assign(key) for key in keys] == [other.assign(key) for key in keys]
    assert router.shares() == {"stable": 0.5, "canary": 0.5, "control": 0.0}
    assert router.serving(key_of(router, "canary")).program(question="a").answer == "v2"


async def test_every_way_of_calling_goes_by_the_key(two: SignatureRegistry, route: Route) -> None:
    """``acall``, streams, ``asyncify`` and ``dspy.Parallel``."""
    router = route(two, "v2", steps=(0.5, 1))
    canary, stable = key_of(router, "canary"), key_of(router, "stable")
    both = await asyncio.gather(*(router.acall(key=key, question="a") for key in (canary, stable)))
    assert [one.answer for one in both] == ["v2", "v1"]
    assert (await dspy.asyncify(router)(key=canary, question="a")).answer == "v2"
    stream = router.streamify(stream_listeners=[dspy.streaming.StreamListener("answer", predict_name="polish")])
    chunks = [chunk async for chunk in stream(key=canary, question="b")]
    assert chunks[-1].answer == "v2"
    pairs = [(router, {"key": key, "question": "c"}) for key in (canary, stable)]
    parallel = dspy.Parallel(num_threads=2, disable_progress_bar=True)
    assert [one.answer for one in await asyncio.to_thread(parallel, pairs)] == ["v2", "v1"]


def test_scenario_46_steps_are_taken_on_ok_with_enough_calls(
    two: SignatureRegistry, route: Route, collector: CollectorRegistry
) -> None:
    """5, 25, 50, 100 %: each waits for its calls and the verdict, the last one deploys; users never fall back."""
    judge = Judge("ok")
    router = route(two, "v2", min_samples=3, verdicts=judge)
    shares, lost = [], set()
    canary = key_of(router, "canary")
    for step in range(3):
        assert stored(two).step == step
        shares.append(router.shares()["canary"])
        labels = {"program": "bot", "environment": "production", "version": "v2", "role": "canary"}
        assert collector.get_sample_value("dspy_traffic_share", labels) == shares[-1]
        wait_until(lambda: "answered 0 calls" in str(router.status().waiting_for), "reason to wait")
        for number in range(3):
            assert router(key=canary, question=f"{step} {number}").answer == "v2"
        wait_until(lambda step=step: stored(two).step > step, f"step {step + 1}")  # type: ignore[misc]
        wait_until(lambda step=step: router.status().rollout.step > step, "sight of it")  # type: ignore[misc,union-attr]
        lost |= {router.assign(canary).version} - {"v2"}
    assert shares == [0.05, 0.25, 0.5]
    assert not lost
    assert (stored(two).state, router.assign(canary).version, router.assign(canary).role) == (
        "promoted",
        "v2",
        "stable",
    )
    running = two.get_deployed_version("bot")
    assert running is not None
    assert running.version == "v2"
    assert {router(key=f"user-{number}", question="z").answer for number in range(20)} == {"v2"}
    assert set(judge.asked) == {("bot", "v2")}
    steps = [line.split(" ", 1)[1].partition(":")[0] for line in stored(two).history]
    assert steps == ["started", "step 1", "step 2", "step 3, deployed"]


@pytest.mark.parametrize("word", ["insufficient_data", "suspect", "global_cause"])
def test_scenario_46_other_verdicts_wait(two: SignatureRegistry, route: Route, word: str) -> None:
    """However many calls there were."""
    router = route(two, "v2", min_samples=0, verdicts=Judge(word))
    router.refresh()
    assert stored(two).step == 0
    assert router.status().waiting_for == f"the verdict is {word}"


def test_scenario_46_a_step_lasts_its_time(two: SignatureRegistry, route: Route) -> None:
    """An ok before that waits."""
    router = route(two, "v2", min_samples=0, min_step_s=600, verdicts=Judge("ok"))
    assert "600 s are needed" in str(router.status().waiting_for)
    assert stored(two).step == 0
    assert router.advance(reason="by hand").step == 1
    assert router.shares()["canary"] == 0.25


def test_scenario_46_regressed_falls_to_nothing(two: SignatureRegistry, route: Route, open_registry: Open) -> None:
    """The candidate's users are back on stable, in every process, and it is quarantined."""
    judge = Judge()
    router, other = route(two, "v2", verdicts=judge), route(two.location)
    canary = key_of(router, "canary")
    wait_until(lambda: other.assign(canary).role == "canary", "same split")
    judge.word = "regressed"
    wait_until(lambda: router.assign(canary).version == "v1", "fall")
    wait_until(lambda: other.assign(canary).version == "v1", "fall elsewhere")
    assert stored(two).state == "regressed"
    assert two.get_version("bot", "v2").quarantined == "the verdict is regressed"
    assert router.shares() == {"stable": 1.0, "canary": 0.0, "control": 0.0}
    again = route(two.location, "v2", verdicts=Judge("ok"))
    assert again.shares()["canary"] == 0
    assert stored(two).state == "regressed"


def test_a_candidate_quarantined_by_somebody_else_falls(two: SignatureRegistry, route: Route) -> None:
    """Without anybody judging here."""
    router = route(two, "v2")
    two.quarantine("bot", "v2", reason="an alert said so")
    wait_until(lambda: router.shares()["canary"] == 0, "fall")
    assert stored(two).reason == "quarantined: an alert said so"


def test_a_rollback_of_what_is_deployed_is_followed(two: SignatureRegistry, publish: Publish, route: Route) -> None:
    """Stable goes back at once, and the step begins anew beside it."""
    publish(two, "v3")
    router = route(two, "v2", steps=(0.5, 1))
    stable, canary = key_of(router, "stable"), key_of(router, "canary")
    assert router(key=stable, question="a").answer == "v3"
    two.rollback("bot")
    wait_until(lambda: router.assign(stable).version == "v1", "rollback")
    wait_until(lambda: stored(two).base == "v1", "new base")
    assert router(key=stable, question="b").answer == "v1"
    assert router(key=canary, question="b").answer == "v2"


def test_a_candidate_deployed_by_hand_ends_the_rollout(two: SignatureRegistry, route: Route) -> None:
    """Everybody has it then, as stable."""
    router = route(two, "v2")
    two.deploy_version("bot", "v2")
    wait_until(lambda: stored(two).state == "promoted", "end")
    wait_until(lambda: router.assign("anybody").version == "v2", "swap")
    assert router.assign("anybody").role == "stable"


def test_a_control_arm_stays_with_the_version_before(two: SignatureRegistry, route: Route) -> None:
    """After the deployment a part of the users keeps the old version, as ``control``, until that is quarantined."""
    router = route(two, "v2", steps=(0.5, 1), control=0.2)
    assert router.shares()["control"] == 0
    router.advance()
    assert router.shares() == {"stable": 0.8, "canary": 0.0, "control": 0.2}
    control = key_of(router, "control")
    with capture_records() as records:
        assert router(key=control, question="a").answer == "v1"
        assert router(key=key_of(router, "stable"), question="a").answer == "v2"
    assert {(record.version, record.role) for record in records} == {("v1", "control"), ("v2", "stable")}
    two.quarantine("bot", "v1", reason="bad")
    router.refresh()
    assert router(key=control, question="b").answer == "v2"


def test_a_wrong_split_keeps_the_step(two: SignatureRegistry, route: Route) -> None:
    """Scenario 42: a 10/90 split that comes out as 13/87 lets no verdict count."""
    router = route(two, "v2", steps=(0.1, 1), min_samples=0)
    marks = iter(f"{number:08x}" for number in range(2_000))
    sampled = {"canary": "".join(next(marks) for _ in range(260)), "stable": "".join(next(marks) for _ in range(1740))}
    calls = {"canary": 260, "stable": 1740}
    two.count_rollout("bot", generation=stored(two).generation, calls=calls, sampled=sampled)
    judging = route(two.location, verdicts=Judge("ok"))
    assert str(judging.status().waiting_for).startswith("sample_ratio_mismatch: [1740, 260] keys")
    assert stored(two).step == 0
    assert router.shares()["canary"] == 0.1


def test_one_user_with_many_calls_is_no_wrong_split(two: SignatureRegistry, route: Route) -> None:
    """Keys are compared with the shares, not calls."""
    router = route(two, "v2", steps=(0.1, 1), min_samples=5, verdicts=Judge("ok"))
    canary = key_of(router, "canary")
    for number in range(60):
        router.serving(canary if number % 2 else f"user-{number}")
    wait_until(lambda: stored(two).state == "promoted", "deployment")


def test_a_candidate_that_cannot_be_loaded_leaves_its_users_to_stable(two: SignatureRegistry, route: Route) -> None:
    """And says so; the rollout itself stays as it is."""
    heard: list[Any] = []
    two.subscribe("reload_error", heard.append)
    text = Path(two.location) / "programs" / f"{two.get_version('bot', 'v2').program_hash}.json"
    two.start_rollout("bot", "v2", steps=(0.5, 1))
    text.write_bytes(text.read_bytes()[:-10])
    router = route(two, verdicts=Judge())
    assert {router.assign(f"user-{number}").version for number in range(50)} == {"v1"}
    assert "v2 cannot be loaded as canary" in str(router.status().error)
    assert [event.data["role"] for event in heard] == ["canary"]
    assert stored(two).running


def test_a_rollout_begun_later_is_followed(two: SignatureRegistry, route: Route) -> None:
    """A process that serves does not have to be started again for it; nor does it go on after it was stopped."""
    router = route(two)
    assert router.status().rollout is None
    two.start_rollout("bot", "v2", steps=(0.5, 1))
    wait_until(lambda: router.shares()["canary"] == 0.5, "canary")
    two.stop_rollout("bot", reason="enough")
    wait_until(lambda: router.shares()["canary"] == 0, "end")
    assert two.get_version("bot", "v2").quarantined is None
    assert router.status().to_dict()["rollout"]["reason"] == "enough"


def test_a_listener_may_ask_for_a_refresh(two: SignatureRegistry, publish: Publish, route: Route) -> None:
    """From within any event of the registry, while the router takes steps itself, it holds nobody up."""
    router = route(two, refresh_s=0.05, verdicts=Judge("ok"))
    two.subscribe("*", lambda _: router.refresh())
    done = threading.Event()

    def roll_out() -> None:
        for number in range(3, 9):
            publish(two, f"v{number}", deploy=False)
            two.start_rollout("bot", f"v{number}", steps=(0.2, 0.6, 1), min_samples=0, min_step_s=0)
            wait_until(lambda number=number: router.assign("u").version == f"v{number}", "deployment")  # type: ignore[misc]
        done.set()

    threading.Thread(target=roll_out, daemon=True).start()
    assert done.wait(60)


def test_a_judge_that_fails_stops_nothing_but_the_steps(two: SignatureRegistry, route: Route) -> None:
    """Calls are answered by the shares that hold."""

    class Broken:
        def verdict(self, program: str, version: str) -> str:
            raise RuntimeError("no evidence")

    router = route(two, "v2", steps=(0.5, 1), min_samples=0, verdicts=Broken())
    assert "no evidence" in str(router.status().error)
    assert router(key=key_of(router, "canary"), question="a").answer == "v2"


def test_an_unreachable_registry_keeps_the_split(two: SignatureRegistry, route: Route) -> None:
    """Scenario 44 for a router."""
    router = route(two, "v2", steps=(0.5, 1))
    canary = key_of(router, "canary")
    folder = Path(two.location)
    folder.rename(folder.with_name("away"))
    wait_until(lambda: router.status().error is not None and router.status().stable.error is not None, "errors")
    assert router(key=canary, question="a").answer == "v2"
    folder.with_name("away").rename(folder)
    wait_until(lambda: router.status().error is None, "recovery")


def test_what_cannot_work_is_named(two: SignatureRegistry, route: Route, metrics: Metrics) -> None:
    """With typed errors, and nothing is left running."""
    with pytest.raises(ConfigurationError, match="verdict"):
        route(two, verdicts=5)
    with pytest.raises(ConfigurationError, match="steps"):
        route(two, "v2", steps=(2, 1))
    with pytest.raises(NotDeployedError):
        route(two, environment="staging")
    assert not isinstance(route(two), dspy.Module)


def test_no_answer_mixes_versions_while_a_rollout_comes_and_goes(
    two: SignatureRegistry, publish: Publish, route: Route
) -> None:
    """Under traffic through steps, a deployment and a rollback: nothing is lost, and labels are true."""
    publish(two, "v3", deploy=False)
    router = route(two, refresh_s=0.05)
    done, answers, failures = threading.Event(), [], []

    def ask(number: int) -> None:
        while not done.is_set():
            try:
                answers.append(router(key=f"user-{(number := number + 4) % 97}", question="q"))
            except Exception as error:  # noqa: BLE001 - whatever it is, it is one too many
                failures.append(error)

    def more() -> None:
        wanted = len(answers) + 30
        wait_until(lambda: len(answers) >= wanted, "traffic")

    with capture_records() as records:
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        try:
            for candidate in ("v2", "v3"):
                two.start_rollout("bot", candidate, steps=(0.3, 0.7, 1))
                for _ in range(2):
                    more()
                    router.advance()
                more()
            two.rollback("bot")
            wait_until(lambda: router.assign("anybody").version == "v2", "rollback")
            more()
        finally:
            done.set()
            for thread in threads:
                thread.join(30)
    assert failures == []
    assert [one for one in answers if one.draft != one.answer] == []
    assert {one.answer for one in answers} == {"v1", "v2", "v3"}
    runs = {record.root_id: {one.version for one in records if one.root_id == record.root_id} for record in records}
    assert sorted(next(iter(found)) for found in runs.values()) == sorted(one.answer for one in answers)
    assert all(len(found) == 1 for found in runs.values())


CHILD = """
    import sys
    from dspy_observe import Metrics, Router
    from prometheus_client import CollectorRegistry
    from tests.serving.conftest import Bot

    class Ok:
        def verdict(self, program, version):
            return "ok"

    own = Metrics(collector_registry=CollectorRegistry())
    options = dict(min_samples=8, min_step_s=0.05, refresh_s=0.05, metrics=own, steps=[n / 20 for n in range(1, 21)])
    # A fixed experiment gives the users fixed arms, whose numbers fit every step's share. By a new one, one run in
    # a hundred or so has a step whose 5,000 users are split as by a mistake, where the rollout stands still by design.
    with Router(sys.argv[1], "bot", Bot, "v2", verdicts=Ok(), experiment="ramp", **options) as router:
        print("up", flush=True)
        number = 0
        while router.status().rollout.running:
            router.serving(f"user-{number % 5000}")
            number += 1
            if number % 200 == 0:
                router.refresh()
    print("done", flush=True)
"""


@pytest.mark.parametrize("kind", ["files", "postgresql"])
def test_scenario_46_a_killed_process_resumes_at_the_stored_step(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, open_registry: Open, publish: Publish
) -> None:
    """Processes are killed again and again during a ramp of twenty steps: none is repeated, none is skipped."""
    place = str(tmp_path / "registry") if kind == "files" else request.getfixturevalue("postgres").new_registry()
    registry = open_registry(place)
    publish(registry, "v1")
    publish(registry, "v2", deploy=False)
    killed = 0
    for _ in range(30):
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(CHILD), place], stdout=subprocess.PIPE, text=True, env=os.environ
        )
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "up\n"
            began = stored(registry)
            if killed < 2:
                wait_until(lambda began=began: stored(registry).step >= began.step + 3, "some steps", 60)  # type: ignore[misc]
                child.send_signal(signal.SIGKILL)
                killed += 1
            else:
                assert child.wait(120) == 0
        finally:
            child.kill()
            child.communicate()
        if not stored(registry).running:
            break
    rollout = stored(registry)
    assert rollout.state == "promoted"
    assert killed == 2
    words = [line.split(" ", 1)[1].partition(":")[0] for line in rollout.history]
    assert words == ["started", *(f"step {number}" for number in range(1, 19)), "step 19, deployed"]
    assert [one.version for one in registry.deployment_log("bot")] == ["v1", "v2"]
