"""Case 39: copied, saved, compiled and pickled programs work with callbacks on them; installing harms nobody."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from pathlib import Path
from typing import Any

import cloudpickle
import dspy
import pytest
from dspy.dsp.utils.settings import main_thread_config
from dspy.utils.callback import BaseCallback
from prometheus_client import CollectorRegistry

import dspy_observe
from dspy_observe import CallbackGroup, LatencyCallback, LogCallback, Metrics, Tracing
from dspy_observe.testing import Capture, offline_lm


class Foreign(BaseCallback):
    """Somebody else's callback."""


@pytest.fixture
def ours(observed: Any) -> list[Any]:
    """Callbacks that hold locks, providers and registries."""
    latency = LatencyCallback(Metrics(collector_registry=CollectorRegistry()))
    return [CallbackGroup(observed.otel, latency, LogCallback()), observed.capture]


def kinds(observed: Any) -> list[str]:
    """What was called, in the order of the ends."""
    return [record.kind for record in observed.calls]


def test_deepcopy_of_an_lm(observed: Any, ours: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    """Case 39: copies of an LM report to the same place."""
    lm = offline_lm({"answer": "42"}, callbacks=ours)
    for copied in (copy.deepcopy(lm), copy.copy(lm), lm.copy(temperature=1.0)):
        copied("why?")
    assert kinds(observed) == ["lm"] * 3
    assert caplog.records == []


def test_deepcopy_of_a_module(observed: Any, ours: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    """Case 39: a module with callbacks of ours, and with an LM that has them, is copied and reset without complaint."""
    predict = dspy.Predict("question -> answer", callbacks=ours)
    predict.lm = offline_lm({"answer": "42"}, callbacks=ours)
    for copied in (predict.deepcopy(), copy.deepcopy(predict)):
        assert copied(question="why?").answer == "42"
    assert kinds(observed).count("lm") == 2
    with dspy.context(lm=predict.lm):
        assert predict.reset_copy()(question="why?").answer == "42"
    assert caplog.records == []


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
def test_pickle(ours: list[Any], pickler: Any) -> None:
    """Case 39: a pickled LM carries no exporter with it; what is loaded observes nothing and works."""
    lm = dspy.LM("openai/gpt-4o-mini", callbacks=[*ours, Foreign()])
    loaded = pickle.loads(pickler.dumps(lm))
    assert loaded.model == lm.model
    assert [type(callback).__name__ for callback in loaded.callbacks] == ["_Unpickled", "_Unpickled", "Foreign"]
    assert not any(isinstance(callback, dspy_observe.RecordCallback | CallbackGroup) for callback in loaded.callbacks)


def test_settings_and_programs_are_saved_and_loaded(observed: Any, ours: list[Any], tmp_path: Path) -> None:
    """Case 39: settings.save, save_program and save with callbacks in the settings, on the LM and on the module."""
    lm = dspy.LM("openai/gpt-4o-mini", callbacks=ours)
    dspy.configure(lm=lm, callbacks=[*ours, Foreign()])
    dspy.settings.save(str(tmp_path / "settings.pkl"))
    loaded = dspy.load_settings(str(tmp_path / "settings.pkl"), allow_pickle=True)
    assert len(loaded["callbacks"]) == 3
    predict = dspy.Predict("question -> answer", callbacks=ours)
    predict.save(str(tmp_path / "program"), save_program=True)
    predict.save(str(tmp_path / "state.json"))
    restored = dspy.load(str(tmp_path / "program"), allow_pickle=True)
    restored.load(str(tmp_path / "state.json"))
    with dspy.context(lm=offline_lm({"answer": "42"}), callbacks=loaded["callbacks"]):
        assert restored(question="why?").answer == "42"
    assert observed.records == []


def test_compile_with_callbacks_on_lm_and_module(observed: Any, ours: list[Any]) -> None:
    """Case 39: an optimizer copies a program whose module and LM have our callbacks."""
    student = dspy.Predict("question -> answer", callbacks=ours)
    trainset = [dspy.Example(question=str(n), answer="42").with_inputs("question") for n in range(3)]
    optimizer = dspy.BootstrapFewShot(metric=lambda *_: True, max_bootstrapped_demos=2)
    with dspy.context(lm=offline_lm({"answer": "42"}, callbacks=ours)):
        compiled = optimizer.compile(student, trainset=trainset)
        assert compiled(question="why?").answer == "42"
    assert kinds(observed).count("lm") == 3


def options(**extra: Any) -> dict[str, Any]:
    """Arguments of configure() that touch nothing outside the test."""
    metrics = Metrics(collector_registry=CollectorRegistry())
    return {"metrics": metrics, "tracing": Tracing(), "logs": False, **extra}


def predict_once() -> None:
    """One program run."""
    with dspy.context(lm=offline_lm({"answer": "42"})):
        assert dspy.Predict("question -> answer")(question="why?").answer == "42"


@pytest.mark.parametrize("present", [None, (), [], "tuple", "list"])
def test_whatever_was_configured_before(present: Any) -> None:
    """Case 39: None, a tuple or a list of callbacks is there already; it stays, and programs run."""
    foreign = Foreign()
    before = {"tuple": (foreign,), "list": [foreign]}.get(present, present) if isinstance(present, str) else present
    dspy.configure(callbacks=before)
    capture = Capture()
    with dspy_observe.configure(**options(extra=[capture])) as observer:
        assert main_thread_config["callbacks"] == [*(before or ()), *observer.callbacks]
        predict_once()
    assert main_thread_config["callbacks"] == list(before or ())
    predict_once()
    assert [record.kind for record in capture.records].count("lm") == 1


def test_from_a_thread_that_does_not_own_the_settings() -> None:
    """Case 39: a server's start-up thread may configure us although another thread configured DSPy."""
    dspy.configure(callbacks=[])
    capture = Capture()
    failures: list[BaseException] = []

    def elsewhere() -> None:
        try:
            with pytest.raises(RuntimeError):
                dspy.configure(callbacks=[])  # DSPy's own rule
            observer = dspy_observe.configure(**options(extra=[capture]))
            predict_once()
            observer.close()
        except BaseException as error:  # noqa: BLE001  # raised again in the test's own thread
            failures.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert failures == []
    assert main_thread_config["callbacks"] == []
    assert [record.kind for record in capture.records].count("lm") == 1


async def test_from_another_task() -> None:
    """Case 39: the same from another task than the one that configured DSPy."""

    async def first() -> None:
        dspy.configure(callbacks=[])

    async def second() -> None:
        with dspy_observe.configure(**options()) as observer:
            assert main_thread_config["callbacks"] == list(observer.callbacks)

    await asyncio.create_task(first())
    await asyncio.create_task(second())
    assert main_thread_config["callbacks"] == []


def test_repeated_installation() -> None:
    """Case 39: the same arguments give the same observer; others replace it; a call is never counted twice."""
    capture, other = Capture(), Capture()
    same = options(extra=[capture])
    first = dspy_observe.configure(**same)
    assert dspy_observe.configure(**same) is first
    predict_once()
    second = dspy_observe.configure(**options(extra=[other]))
    assert second is not first
    assert main_thread_config["callbacks"] == list(second.callbacks)
    predict_once()
    second.close()
    second.close()
    first.close()
    assert main_thread_config["callbacks"] == []
    assert [record.kind for record in capture.records].count("lm") == 1
    assert [record.kind for record in other.records].count("lm") == 1


def test_others_may_come_and_go_in_between() -> None:
    """Case 39: what others add or remove while we are installed stays as they left it."""
    early, middle, late = Foreign(), Foreign(), Foreign()
    dspy.configure(callbacks=[early, middle])
    observer = dspy_observe.configure(**options())
    dspy.configure(callbacks=[callback for callback in dspy.settings.callbacks if callback is not middle] + [late])
    observer.close()
    assert main_thread_config["callbacks"] == [early, late]
    dspy.configure(callbacks=[early])
    observer = dspy_observe.configure(**options())
    dspy.configure(callbacks=[late])  # somebody replaced the whole list
    observer.close()
    assert main_thread_config["callbacks"] == [late]
