"""LiveProgram: what it serves, how it follows, and what it does when something is wrong."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import shutil
import sys
import threading
import weakref
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import pytest
from prometheus_client import CollectorRegistry

from dspy_observe import ConfigurationError, LiveProgram, NotDeployedError
from dspy_observe.facts import calls
from dspy_observe.openai_server import OpenAIServer, Reply
from dspy_observe.records import RegistryEvent
from dspy_observe.registry import CorruptVersion, IncompatibleProgramError, InvalidName, SignatureRegistry
from dspy_observe.registry.stores import open_store
from dspy_observe.testing import capture_records
from tests.servers import wait_until
from tests.serving.conftest import Bot, Follow, Open, Publish, tuned, version_in


def sample(collector: CollectorRegistry, name: str, **labels: str) -> float | None:
    """One value of one series."""
    return collector.get_sample_value(name, labels)


def test_it_is_called_like_a_module_and_answers_with_what_is_deployed(
    registry: SignatureRegistry, publish: Publish, follow: Follow
) -> None:
    """Calls of every kind go to the deployed version; what is put in place by anybody answers soon after."""
    publish(registry, "v1")
    live = follow(registry)
    assert live(question="a").answer == "v1"
    publish(registry, "v2")
    assert live.wait_for("v2").version == "v2"
    assert live(question="b").draft == live(question="c").answer == "v2"
    registry.rollback("bot")
    live.wait_for("v1")
    examples = [dspy.Example(question=str(number)).with_inputs("question") for number in range(3)]
    assert [one.answer for one in live.batch(examples, num_threads=2, disable_progress_bar=True)] == ["v1"] * 3
    assert live.status().version == live.serving.version == "v1"
    assert live.serving.generation == 3
    assert live.status().to_dict()["error"] is None


def test_no_version_answers_under_the_hash_of_another(
    registry: SignatureRegistry, publish: Publish, follow: Follow
) -> None:
    """A name that looks like a hash is refused, and where a store holds one, what is deployed answers all the same."""
    publish(registry, "v1")
    digits = registry.get_version("bot", "v1").version_hash
    with pytest.raises(InvalidName):
        registry.register_program("bot", tuned("v2"), version=digits)
    other = registry.register_program("bot", tuned("v2"), version="v2")
    with closing(open_store(registry.config.registry_path)) as store, store.write("bot") as txn:
        record = txn.by_hash(other.version_hash)
        txn.remove_version(other.version_hash)
        txn.add_version(replace(record, version=digits))
    live = follow(registry)
    assert (live.version, live(question="a").answer) == ("v1", "v1")


async def test_asynchronous_calls(registry: SignatureRegistry, publish: Publish, follow: Follow) -> None:
    """``acall`` and ``dspy.asyncify`` work as for a module."""
    publish(registry, "v1")
    live = follow(registry)
    assert (await live.acall(question="a")).answer == "v1"
    assert (await dspy.asyncify(live)(question="b")).answer == "v1"


@pytest.mark.parametrize("watch", [True, False])
def test_a_new_version_answers_on_every_store(
    location: str, open_registry: Open, publish: Publish, follow: Follow, watch: bool
) -> None:
    """Whether the store tells of changes or is only asked from time to time, another process' move is followed."""
    mover = open_registry(location)
    publish(mover, "v1")
    live = follow(open_registry(location), watch=watch, refresh_s=30.0 if watch else 0.2)
    wanted = "hints" if watch else "polling"
    wait_until(lambda: live.status().following == wanted, wanted)
    publish(mover, "v2")
    wait_until(lambda: live.version == "v2", "swap")  # not wait_for, which asks at once
    mover.rollback("bot")
    wait_until(lambda: live.version == "v1", "way back")


def test_nothing_deployed_is_an_error_that_names_the_way_out(
    registry: SignatureRegistry, publish: Publish, follow: Follow
) -> None:
    """Whether the signature is unknown or has no pointer; with ``fallback`` the untuned program answers until then."""
    with pytest.raises(NotDeployedError, match=r"registry.deploy_version\('bot'.*fallback=True"):
        follow(registry)
    publish(registry, "v1", deploy=False)
    with pytest.raises(NotDeployedError):
        follow(registry)
    live = follow(registry, fallback=True)
    with capture_records() as records:
        assert live(question="a").answer == "untuned"
    assert {(record.program, record.version) for record in records} == {("bot", None)}
    assert live.status().error is None or "NotDeployed" in str(live.status().error)
    registry.deploy_version("bot", "v1")
    live.wait_for("v1")
    assert live(question="b").answer == "v1"


def test_a_version_that_cannot_be_loaded_leaves_the_old_one(
    registry: SignatureRegistry, publish: Publish, follow: Follow
) -> None:
    """The failure is told with its reason, tried again, and gone when it is mended."""
    publish(registry, "v1")
    publish(registry, "v2", deploy=False)
    heard: list[RegistryEvent] = []
    registry.subscribe("reload_*", heard.append)
    broken = threading.Event()
    broken.set()

    class Sometimes(Bot):
        def __init__(self) -> None:
            super().__init__()
            if broken.is_set() and live_exists:
                raise RuntimeError("the key is sk-live-0123456789abcdefghijABCDEFGHIJ0123456789abcd")

    live_exists = False
    live = follow(registry, Sometimes)
    live_exists = True
    registry.deploy_version("bot", "v2")
    wait_until(lambda: live.status().failed_version == "v2", "failure")
    assert live(question="a").answer == "v1"
    wait_until(lambda: live.status().failures >= 2, "second try")
    assert [event.version for event in heard[:2]] == ["v2", "v2"]
    assert heard[0].data["error_type"] == "RuntimeError"
    assert "sk-live" not in str(heard[0].data) + str(live.status())
    with pytest.raises(RuntimeError):
        live.refresh()
    broken.clear()
    live.wait_for("v2")
    assert heard[-1].name.endswith("reload_complete")
    assert heard[-1].data["previous"] == "v1"
    assert live.status().error is live.status().failed_version is None


def test_a_damaged_version_leaves_the_old_one_until_a_rollback(
    registry: SignatureRegistry, publish: Publish, follow: Follow
) -> None:
    """Scenario 7: its content is not what its hash says; when the pointer comes back, nothing is wrong any more."""
    publish(registry, "v1")
    live = follow(registry)
    live.close()  # looks from here on are those of this test
    publish(registry, "v2")
    file = Path(registry.location) / "programs" / f"{registry.get_version('bot', 'v2').program_hash}.json"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(CorruptVersion):
        live.refresh()
    assert live(question="a").answer == "v1"
    assert live.status().failed_version == "v2"
    registry.rollback("bot")
    assert not live.refresh()
    assert live.status().failed_version is live.status().error is None


def test_a_registry_that_cannot_be_read_is_no_end(
    registry: SignatureRegistry, publish: Publish, follow: Follow
) -> None:
    """Somebody edits its file by hand and makes a mistake, which is mended later."""
    publish(registry, "v1")
    live = follow(registry)
    file = Path(registry.location) / "signatures" / "bot.yml"
    whole = file.read_bytes()
    file.write_bytes(whole + b"\n: [")
    wait_until(lambda: "CorruptRegistry" in str(live.status().error), "error")
    assert live(question="a").answer == "v1"
    file.write_bytes(whole)
    wait_until(lambda: live.status().error is None, "recovery")
    publish(registry, "v2")
    live.wait_for("v2")


def test_an_instance_that_answers_no_more_is_let_go(
    registry: SignatureRegistry, publish: Publish, follow: Follow
) -> None:
    """A call that is under way keeps its version; after it, nothing does."""
    publish(registry, "v1")
    live = follow(registry)
    under_way, known = live.program, weakref.ref(live.program)
    publish(registry, "v2")
    live.wait_for("v2")
    assert under_way(question="a").answer == "v1"
    del under_way
    gc.collect()
    assert known() is None


def test_a_check_that_wants_to_end_the_process_is_a_failed_load(
    registry: SignatureRegistry, publish: Publish, follow: Follow
) -> None:
    """Following goes on."""
    publish(registry, "v1")
    live = follow(registry, check=lambda program: sys.exit(1) if "v2" in str(program.draft.signature) else None)
    publish(registry, "v2")
    wait_until(lambda: live.status().failed_version == "v2", "refusal")
    publish(registry, "v3")
    live.wait_for("v3")


def test_a_program_of_other_code_is_refused(registry: SignatureRegistry, publish: Publish, follow: Follow) -> None:
    """The schema is compared before anything answers."""

    class Other(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.draft = dspy.Predict("query -> reply")

    publish(registry, "v1")
    with pytest.raises(IncompatibleProgramError):
        follow(registry, Other)


def test_a_check_may_refuse_a_version_and_is_recorded_as_warmup(
    registry: SignatureRegistry, publish: Publish, follow: Follow, server: OpenAIServer
) -> None:
    """The smoke call sees the new instance before any user does."""

    def check(program: Any) -> None:
        if program(question="2 + 2?").answer == "v2":
            raise ValueError("wrong")

    publish(registry, "v1")
    with capture_records() as records:
        live = follow(registry, check=check)
    assert {(record.version, record.role) for record in records} == {("v1", "warmup")}
    publish(registry, "v2")
    wait_until(lambda: live.status().failed_version == "v2", "refusal")
    with capture_records() as records:
        assert live(question="a").answer == "v1"
    assert {(record.version, record.role) for record in records} == {("v1", "stable")}


def test_a_factory_that_gives_the_answering_instance_is_refused(
    registry: SignatureRegistry, publish: Publish, follow: Follow
) -> None:
    """Its state would be changed under the calls that it answers."""
    publish(registry, "v1")
    one, shared = Bot(), dspy.Predict("question -> answer")

    class Sharing(Bot):
        def __init__(self) -> None:
            super().__init__()
            self.draft = shared

    for factory in (lambda: one, Sharing):
        live = follow(registry, factory)
        assert live.version == "v1"
        publish(registry, "v2")
        with pytest.raises(ConfigurationError, match="answering calls"):
            live.refresh()
        assert live(question="a").draft == "v1"
        registry.rollback("bot")
        registry.deploy_version("bot", "v2", force=True, reason="test")
        registry.deploy_version("bot", "v1")
        live.close()


def test_a_changed_instance_is_told_of_once(registry: SignatureRegistry, publish: Publish, follow: Follow) -> None:
    """Scenario 40: a mutated live program no longer equals its label."""
    heard: list[RegistryEvent] = []
    registry.subscribe("drift", heard.append)
    publish(registry, "v1")
    live = follow(registry, drift_check_s=0.05, refresh_s=0.05)
    for _ in range(3):
        live(question="a")
    assert not live.status().drifted
    live.program.draft.demos = [dspy.Example(question="q", answer="a")]
    wait_until(lambda: live.status().drifted, "drift")
    publish(registry, "v2")
    live.wait_for("v2")
    assert not live.status().drifted
    assert [(event.version, event.program) for event in heard] == [("v1", "bot")]


def test_an_unreachable_registry_keeps_the_last_version_and_ages(
    registry: SignatureRegistry, publish: Publish, follow: Follow, collector: CollectorRegistry
) -> None:
    """Scenario 44 on files: the folder goes away; calls are answered, the age of what is known rises."""
    publish(registry, "v1")
    live = follow(registry)
    folder = Path(registry.location)
    away = folder.with_name("away")
    folder.rename(away)
    wait_until(lambda: live.status().error is not None, "error")
    before = sample(collector, "dspy_registry_stale_seconds", program="bot", environment="production")
    assert before is not None
    assert live(question="a").answer == "v1"

    def age() -> float:
        found = sample(collector, "dspy_registry_stale_seconds", program="bot", environment="production")
        assert found is not None
        return found

    wait_until(lambda: age() > max(before, 1.0), "rising age")
    shutil.move(away, folder)
    wait_until(lambda: age() < 0.7, "fresh reading")
    publish(registry, "v2")
    live.wait_for("v2")
    assert live.status().error is None


def test_a_watcher_that_loses_events_is_caught_by_polling(
    registry: SignatureRegistry, publish: Publish, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scenario 44: with a watch that never tells anything (NFS), the new version answers within the interval."""
    publish(registry, "v1")

    def deaf(name: str, stop: threading.Event) -> Any:
        yield
        stop.wait()

    monkeypatch.setattr(registry, "changes", deaf)
    live = follow(registry, refresh_s=0.5)
    wait_until(lambda: live.status().following == "hints", "watch")
    publish(registry, "v2")
    wait_until(lambda: live.version == "v2", "swap")


def test_a_watch_is_opened_again_after_its_folder_was_replaced(
    registry: SignatureRegistry, publish: Publish, follow: Follow
) -> None:
    """A restored backup is another folder under the same name."""
    publish(registry, "v1")
    live = follow(registry, refresh_s=30.0)
    wait_until(lambda: live.status().following == "hints", "watch")
    folder = Path(registry.location) / "signatures"
    shutil.copytree(folder, folder.with_name("copy"))
    shutil.move(folder, folder.with_name("old"))
    shutil.move(folder.with_name("copy"), folder)
    publish(registry, "v2")
    wait_until(lambda: live.version == "v2", "swap")


def test_series_exist_before_the_first_call_and_go_at_the_end(
    registry: SignatureRegistry, publish: Publish, follow: Follow, collector: CollectorRegistry
) -> None:
    """Alerts compare rates, which need a first value; what does not answer any more is not shown."""
    publish(registry, "v1")
    live = follow(registry)
    info = {"program": "bot", "environment": "production", "role": "stable"}
    labels = {"program": "bot", "role": "stable"}
    assert sample(collector, "dspy_serving_version_info", version="v1", **info) == 1
    for status in ("ok", "error"):
        count = sample(collector, "dspy_program_duration_seconds_count", version="v1", status=status, **labels)
        assert count == 0
    model = {"program": "bot", "model": "openai/gpt-4o-mini"}
    assert sample(collector, "dspy_requests_total", version="v1", status="error", **model) == 0
    failures = {"program": "bot", "version": "v1", "adapter": "ChatAdapter", "stage": "parse"}
    assert sample(collector, "dspy_adapter_failures_total", **failures) == 0
    publish(registry, "v2")
    live.wait_for("v2")
    wait_until(lambda: sample(collector, "dspy_serving_version_info", version="v1", **info) is None, "old one gone")
    assert sample(collector, "dspy_serving_version_info", version="v2", **info) == 1
    live.close()
    assert sample(collector, "dspy_serving_version_info", version="v2", **info) is None
    assert sample(collector, "dspy_registry_stale_seconds", program="bot", environment="production") is None
    assert live(question="a").answer == "v2"
    assert live.status().following == "closed"


def test_environments_are_followed_apart(registry: SignatureRegistry, publish: Publish, follow: Follow) -> None:
    """A move in staging does nothing to production."""
    publish(registry, "v1")
    publish(registry, "v2", deploy=False)
    registry.deploy_version("bot", "v2", environment="staging")
    assert follow(registry, environment="staging").version == "v2"
    assert follow(registry).version == "v1"


def test_a_listener_may_ask_for_a_refresh(registry: SignatureRegistry, publish: Publish, follow: Follow) -> None:
    """Refreshing from within a deployment's own event, while the follower tells events, holds nobody up."""
    publish(registry, "v1")
    live = follow(registry, refresh_s=0.05)
    registry.subscribe("deploy_complete", lambda _: live.refresh())
    registry.subscribe("reload_complete", lambda _: live.refresh())
    done = threading.Event()

    def deploy() -> None:
        for number in range(2, 12):
            publish(registry, f"v{number}")
            assert live.version == f"v{number}"
        done.set()

    threading.Thread(target=deploy, daemon=True).start()
    assert done.wait(60)


def test_it_stops_when_nobody_holds_it(registry: SignatureRegistry, publish: Publish) -> None:
    """A live program that was dropped without closing leaves no thread behind."""
    publish(registry, "v1")
    live = LiveProgram(registry, "bot", Bot, refresh_s=0.05)
    threads = [one for one in threading.enumerate() if "bot/production" in one.name]
    assert threads
    del live
    gc.collect()
    wait_until(lambda: not any(thread.is_alive() for thread in threads), "end of the threads")


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # from Python 3.12 on
def test_a_forked_child_follows_with_threads_of_its_own(
    registry: SignatureRegistry, publish: Publish, follow: Follow
) -> None:
    """Gunicorn's preload: the parent loads the program, the children serve and follow it."""
    publish(registry, "v1")
    live = follow(registry)
    wait_until(lambda: live.status().following == "hints", "watch")
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:  # no assertion may escape: it would run the rest of the suite twice
        answer = b"failed"
        try:
            os.write(writable, b"ready;")
            answer = str(live.wait_for("v2", 20).version).encode() + live.status().following.encode()
        finally:
            os.write(writable, answer)
            os._exit(0)
    os.close(writable)
    with os.fdopen(readable, "rb") as pipe:
        assert os.read(pipe.fileno(), 6) == b"ready;"
        publish(registry, "v2")
        assert pipe.read().startswith(b"v2")
    os.waitpid(child, 0)
    live.wait_for("v2")
    assert live(question="a").answer == "v2"


def test_compiling_from_the_deployed_program_carries_no_label(
    registry: SignatureRegistry, publish: Publish, follow: Follow
) -> None:
    """Scenario 40: what an optimizer makes of the answering instance is another program."""
    publish(registry, "v1")
    live = follow(registry)
    trainset = [dspy.Example(question="q", answer="v1").with_inputs("question")]
    optimizer = dspy.BootstrapFewShot(metric=lambda *_: True, max_bootstrapped_demos=1)
    compiled = optimizer.compile(live.program, trainset=trainset)
    assert calls.tag_of(live.program) is not None
    assert calls.tag_of(compiled) is calls.tag_of(copy.deepcopy(live.program)) is None
    with capture_records() as records:
        compiled(question="a")
    assert {record.version for record in records} == {None}
    assert not live.serving.has_drifted()


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"refresh_s": 0}, "refresh_s"),
        ({"refresh_s": "5"}, "refresh_s"),
        ({"refresh_s": float("nan")}, "refresh_s"),
        ({"check": 5}, "check"),
        ({"factory": 5}, "factory"),
        ({"registry": 5}, "registry"),
    ],
)
def test_arguments_that_cannot_work_are_named(
    registry: SignatureRegistry, publish: Publish, options: dict[str, Any], field: str
) -> None:
    """With the way to mend them."""
    publish(registry, "v1")
    arguments = {"registry": registry, "name": "bot", "factory": Bot, **options}
    with pytest.raises(ConfigurationError) as caught:
        LiveProgram(**arguments)
    assert caught.value.field == field


def test_what_belongs_to_an_instance_is_asked_of_the_instance(
    registry: SignatureRegistry, publish: Publish, follow: Follow
) -> None:
    """Predictors read from one version must not be used on another; the error says where they are."""
    publish(registry, "v1")
    live = follow(registry)
    with pytest.raises(AttributeError, match=r"live\.program.*live\.streamify"):
        live.named_predictors()
    assert [name for name, _ in live.program.named_predictors()] == ["draft", "polish"]
    assert not isinstance(live, dspy.Module)
    assert copy.deepcopy(live) is live
    with pytest.raises(TimeoutError, match="v9 does not answer"):
        live.wait_for("v9", 0.01)
    with LiveProgram(registry.location, "bot", Bot) as other:
        assert other.wait_for(other.serving.version_hash or "").version == "v1"
        assert "v1" in repr(other)


def test_usage_of_a_call_is_that_of_the_program(registry: SignatureRegistry, publish: Publish, follow: Follow) -> None:
    """Nothing stands between the caller and the module: usage tracking works as before."""
    publish(registry, "v1")
    live = follow(registry)
    dspy.settings.configure(track_usage=True)
    usage = live(question="a").get_lm_usage()
    assert usage["openai/gpt-4o-mini"]["prompt_tokens"] > 2000  # two LM calls of a thousand each


async def test_streams_with_listeners_follow_the_version(
    registry: SignatureRegistry, publish: Publish, follow: Follow, server: OpenAIServer
) -> None:
    """Scenario 39: a stream that began on one version ends on it; the next one hears the new one."""
    publish(registry, "v1")
    live = follow(registry)
    listener = dspy.streaming.StreamListener("answer", predict_name="polish")
    stream = live.streamify(stream_listeners=[listener])
    held = threading.Event()

    def text(version: str) -> str:
        return f"[[ ## answer ## ]]\n{version} is what I am and\n\n[[ ## completed ## ]]"

    server.script([text("v1"), Reply(text=text("v1"), hold=held, hold_after_chunks=2)])

    async def consume() -> list[Any]:
        return [one async for one in stream(question="a")]

    began = asyncio.create_task(consume())
    await asyncio.to_thread(server.wait_for, lambda: len(server.requests) == 2)  # the second one is half way
    publish(registry, "v2")
    await asyncio.to_thread(live.wait_for, "v2")
    held.set()
    chunks = await began
    assert isinstance(chunks[-1], dspy.Prediction)
    assert "v1 is what" in "".join(one.chunk for one in chunks[:-1])
    assert {version_in(request.body.decode()) for request in server.requests} == {"v1"}
    chunks = [one async for one in stream(question="b")]
    assert "".join(one.chunk for one in chunks[:-1]).strip() == "v2"
    with pytest.raises(ConfigurationError, match="bound to a predictor"):
        live.streamify(stream_listeners=[dspy.streaming.StreamListener("answer", predict=live.program.polish)])
    with pytest.raises(ConfigurationError, match="no predictor 'nobody'"):
        live.streamify(stream_listeners=[dspy.streaming.StreamListener("answer", predict_name="nobody")])(question="c")


def test_tuned_programs_differ() -> None:
    """The test's own versions are what they say."""
    assert version_in(tuned("v7").draft.signature.instructions) == "v7"
