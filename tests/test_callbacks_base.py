"""DSPy's handlers reach the ledger; callbacks survive copying and pickling; groups tell each reader once."""

from __future__ import annotations

import asyncio
import copy
import inspect
import pickle
from collections import Counter
from typing import Any

import dspy
import pytest
from dspy.utils.callback import BaseCallback

from dspy_observe import ConfigurationError, safety
from dspy_observe.callbacks.base import CallbackGroup, RecordCallback
from dspy_observe.ledger import LEDGER
from dspy_observe.records import RegistryEvent, Score
from dspy_observe.testing import Capture, offline_lm

EVENT = RegistryEvent("dspy.registry.export", "qa", 1.0)
SCORE = Score("c1", 0.5, "user", "qa", "v1", "stable", None, 1.0)


class Program(dspy.Module):
    """A program with a tool and a predictor."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict("question -> answer")
        self.tool = dspy.Tool(lambda query: query.upper(), name="search", args={"query": {"type": "string"}})

    def forward(self, question: str) -> dspy.Prediction:
        """Look up and answer."""
        return self.predict(question=self.tool(query=question))

    async def aforward(self, question: str) -> dspy.Prediction:
        """The same without blocking."""
        return await self.predict.acall(question=question)


def test_every_handler_of_dspy_is_overridden() -> None:
    """A hook that DSPy adds is noticed here."""
    handlers = {name for name, _ in inspect.getmembers(BaseCallback, inspect.isfunction) if name.startswith("on_")}
    assert len(handlers) >= 22
    for name in handlers:
        assert getattr(RecordCallback, name) is not getattr(BaseCallback, name), name


def test_a_run_is_told_with_children_before_their_parents() -> None:
    """One program run, one record for each call."""
    capture = Capture()
    with dspy.context(lm=offline_lm({"answer": "42"}), callbacks=[capture]):
        Program()(question="why")
    assert [(r.kind, r.name) for r in capture.records] == [
        ("tool", "search"),
        ("adapter_format", "ChatAdapter"),
        ("lm", "offline/model"),
        ("adapter_parse", "ChatAdapter"),
        ("module", "Predict"),
        ("module", "Program"),
    ]
    assert len({r.root_id for r in capture.records}) == 1
    assert next(s.call_id for s in capture.starts if s.kind == "module") == capture.records[-1].call_id
    assert LEDGER.open_calls == 0


async def test_gathered_runs_stay_apart() -> None:
    """Each of twenty runs has its own root and one LM call."""
    capture = Capture()
    with dspy.context(lm=offline_lm({"answer": "42"}), callbacks=[capture]):
        program = Program()
        await asyncio.gather(*(program.acall(question=str(number)) for number in range(20)))
    roots = Counter(r.root_id for r in capture.records if r.kind == "lm")
    assert len(roots) == 20
    assert set(roots.values()) == {1}


def test_a_group_tells_the_same_as_hand_listed_callbacks() -> None:
    """Only the ids and times differ."""
    told = []
    for listed in (False, True):
        one, two = Capture(), Capture()
        callbacks: list[Any] = [one, two] if listed else [CallbackGroup(one, two)]
        with dspy.context(lm=offline_lm({"answer": "42"}), callbacks=callbacks):
            Program()(question="why")
        assert all(a is b for a, b in zip(one.records, two.records, strict=True))
        told.append([(r.kind, r.name, r.program, r.usage, r.outcome) for r in one.records])
    assert told[0] == told[1]


def test_groups_are_taken_apart_and_take_nothing_else() -> None:
    """Nested and repeated readers count once."""
    one, two = Capture(), Capture()
    group = CallbackGroup(one, CallbackGroup(two, one), two)
    assert group.readers == (one, two)
    for wrong in (BaseCallback(), "latency", Capture):
        with pytest.raises(ConfigurationError) as caught:
            CallbackGroup(wrong)  # type: ignore[arg-type]
        assert caught.value.field == "CallbackGroup"


def test_a_group_passes_events_and_scores_on_past_a_raising_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its failure is counted under its name."""
    monkeypatch.delenv("DSPY_OBSERVE_STRICT", raising=False)

    class Raises(RecordCallback):
        def happened(self, event: RegistryEvent) -> None:
            raise OSError

        def scored(self, score: Score) -> None:
            raise OSError

    before = safety.counts()
    capture = Capture()
    group = CallbackGroup(Raises(), capture)
    group.happened(EVENT)
    group.scored(SCORE)
    assert (capture.events, capture.scores) == ([EVENT], [SCORE])
    for verb in ("happened", "scored"):
        assert safety.counts()[f"Raises.{verb}"] == before.get(f"Raises.{verb}", 0) + 1


@pytest.mark.parametrize("make", [Capture, lambda: CallbackGroup(Capture())])
def test_copies_are_the_callback_itself_and_pickles_observe_nothing(make: Any) -> None:
    """Optimizers deep-copy programs with their callbacks; saved settings carry no exporters."""
    callback = make()
    assert copy.copy(callback) is callback
    assert copy.deepcopy(callback) is callback
    loaded = pickle.loads(pickle.dumps(callback))
    assert isinstance(loaded, BaseCallback)
    assert not isinstance(loaded, RecordCallback)
    with dspy.context(lm=offline_lm({"answer": "42"}), callbacks=[loaded]):
        assert Program()(question="why").answer == "42"


def test_a_copied_lm_reports_to_the_same_place() -> None:
    """``lm.copy`` is what BestOfN does."""
    capture = Capture()
    lm = offline_lm({"answer": "42"}, callbacks=[capture])
    lm.copy(temperature=0.7)("hi")
    assert [r.kind for r in capture.records] == ["lm"]


def test_the_program_gets_its_own_objects_back() -> None:
    """Observed or not: the very same answer, with the same inputs."""
    seen: list[Any] = []
    answer = dspy.Prediction(a=1)

    class Echo(dspy.Module):
        def forward(self, thing: Any) -> Any:
            seen.append(thing)
            return answer

    thing = {"q": [1]}
    with dspy.context(callbacks=[Capture()]):
        assert Echo()(thing=thing) is answer
    assert seen[0] is thing
    assert thing == {"q": [1]}


def test_an_exception_reaches_the_program_unchanged() -> None:
    """The very object, and the record says what it was."""
    error = ZeroDivisionError("mine")

    class Fails(dspy.Module):
        def forward(self) -> None:
            raise error

    capture = Capture()
    with dspy.context(callbacks=[capture]), pytest.raises(ZeroDivisionError) as caught:
        Fails()()
    assert caught.value is error
    assert [(r.outcome, r.error_type) for r in capture.records] == [("error", "ZeroDivisionError")]
