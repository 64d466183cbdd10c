"""FallbackLM as an LM among others: what it refuses, its copies, its saved state, its history, typed requests."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
import structlog
from dspy import lm15
from dspy.streaming.messages import StatusMessage
from dspy.utils.dummies import DummyLM
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.testing import capture_logs

from dspy_observe import ConfigurationError, LogCallback, Logs, OTelCallback, Tracing
from dspy_observe.registry import IncompatibleProgramError, SignatureRegistry
from dspy_observe.serving.breaker import Breaker, Circuit
from dspy_observe.serving.deadlines import Outlet
from dspy_observe.serving.fallback import TRANSIENT, FallbackLM
from dspy_observe.testing import FrozenClock, capture_records, offline_lm

NAMES = ("offline/first", "offline/second")


def failing(error: BaseException, model: str = NAMES[0], **options: Any) -> dspy.LM:
    """An LM that always fails in one way."""

    def fail(request: lm15.Request) -> Any:
        raise error

    return offline_lm(fail, model=model, num_retries=0, **options)


def answering(text: str = "two", model: str = NAMES[1], **options: Any) -> dspy.LM:
    """An LM that always says the same."""
    return offline_lm(text, model=model, **options)


def pair(error: BaseException | None = None, **options: Any) -> FallbackLM:
    """An LM whose first model fails, with a server error unless told otherwise."""
    return FallbackLM(failing(error or lm15.ServerError("down")), answering(), **options)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: FallbackLM("openai/gpt-4o-mini", answering()), "primary"),  # type: ignore[arg-type]
        (lambda: FallbackLM(answering(), answering(), None), r"secondaries\[1\]"),  # type: ignore[arg-type]
        (lambda: FallbackLM(answering()), "secondaries"),
        (lambda: pair(attempt_timeout_s=0), "attempt_timeout_s"),
        (lambda: pair(attempt_timeout_s=True), "attempt_timeout_s"),
        (lambda: pair(attempt_timeout_s=float("nan")), "attempt_timeout_s"),
        (lambda: pair(on=()), "on"),
        (lambda: pair(on=dspy.LMError), "on"),
        (lambda: pair(on=(KeyboardInterrupt,)), "on"),
        (lambda: pair(breaker=5), "breaker"),
        (lambda: Breaker(failures=0), "Breaker.failures"),
        (lambda: Breaker(open_s=-1), "Breaker.open_s"),
        (lambda: pair().copy(model="openai/gpt-4o"), "FallbackLM.model"),
        (lambda: pair().copy(attempt_timeout_s=-1), "attempt_timeout_s"),
        (lambda: pair()("Why?", api_key="sk-of-one-provider"), "FallbackLM.api_key"),
    ],
)
def test_what_cannot_work_is_refused(make: Callable[[], Any], field: str) -> None:
    """Each error names the argument, and a key given to one call never reaches two providers."""
    with pytest.raises(ConfigurationError, match=field):
        make()


@pytest.mark.parametrize(
    ("error", "falls"),
    [
        (lm15.RateLimitError("slow down"), True),
        (lm15.TimeoutError("late"), True),
        (lm15.ServerError("down"), True),
        (lm15.TransportError("reset"), True),
        (lm15.AuthError("who are you"), False),
        (lm15.BillingError("pay first"), False),
        (lm15.InvalidRequestError("what"), False),
        (lm15.ContextLengthError("too long"), False),
        (ValueError("a bug"), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
async def test_only_failures_of_the_provider_go_to_the_next_model(error: Exception, falls: bool) -> None:
    """By default the second model is asked after what a provider may recover from, in every way of calling."""
    lm = pair(error)
    if falls:
        assert lm("Why?") == await lm.acall("Why?") == ["two"]
        assert lm.forward("Why?").choices[0].message.content == "two"
        assert (await lm.aforward("Why?")).choices[0].message.content == "two"
    else:
        with pytest.raises(dspy.LMError):
            lm("Why?")
        with pytest.raises(dspy.LMError):
            await lm.acall("Why?")


@pytest.mark.parametrize("timeout_s", [None, 60.0])
@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), SystemExit(1)])
def test_an_interrupt_is_no_failure(interrupt: BaseException, timeout_s: float | None) -> None:
    """Whoever stops the program stops it, in a thread of an attempt too."""
    asked: list[Any] = []
    second = offline_lm(lambda request: asked.append(request) or "two", model=NAMES[1])
    with pytest.raises(type(interrupt)):
        FallbackLM(failing(interrupt), second, on=(Exception,), attempt_timeout_s=timeout_s)("Why?")
    assert not asked


def test_three_models_are_asked_in_turn() -> None:
    """Each failure leads to the next model, and each record names the model just before it."""
    lm = FallbackLM(
        failing(lm15.RateLimitError("slow"), "offline/a"), failing(lm15.ServerError("down"), "offline/b"), answering()
    )
    with capture_records() as records:
        assert lm("Why?") == ["two"]
    assert [(record.model_requested, record.fallback_from, record.fallback_reason) for record in records] == [
        ("offline/a", None, None),
        ("offline/b", "offline/a", "rate_limit"),
        (NAMES[1], "offline/b", "server"),
    ]


def test_a_stand_in_may_have_stand_ins() -> None:
    """Nested, the reason for a whole branch is that of its first model."""
    lm = FallbackLM(failing(lm15.RateLimitError("slow"), "offline/a"), pair())
    with capture_records() as records:
        assert lm("Why?") == ["two"]
    assert [(record.fallback_from, record.fallback_reason) for record in records] == [
        (None, None), ("offline/a", "rate_limit"), (NAMES[0], "server"),
    ]  # fmt: skip


def test_a_model_called_on_the_way_is_no_fallback() -> None:
    """A stand-in whose engine asks another LM: only the stand-in itself was switched to."""
    inner = answering("inner", "offline/inner")
    second = offline_lm(lambda request: inner("help")[0], model=NAMES[1])
    with capture_records() as records:
        assert FallbackLM(failing(lm15.ServerError("down")), second)("Why?") == ["inner"]
    assert [(record.model_requested, record.fallback_from) for record in records] == [
        (NAMES[0], None), ("offline/inner", None), (NAMES[1], NAMES[0]),
    ]  # fmt: skip


def test_typed_requests_name_each_model() -> None:
    """A request is sent to each model under that model's name, and its response comes back as it is."""
    lm = pair()
    request = lm15.Request(model=NAMES[0], messages=(lm15.Message.user("Why?"),))
    for response in (lm(request), lm(request=request)):
        assert isinstance(response, lm15.Response)
        assert response.model == NAMES[1]
    with pytest.raises(ValueError, match="must match"):
        lm(lm15.Request(model="offline/third", messages=(lm15.Message.user("Why?"),)))
    assert len(lm.history) == 2


def test_history_holds_each_answer_once() -> None:
    """Own, module's and global history hold the same entry, which tells who failed before; limits are kept."""
    lm, program = pair(), dspy.Predict("question -> answer")
    lm.lms[1].engine._answers = [{"answer": "two"}]
    with dspy.context(lm=lm):
        program(question="Why?")
    (entry,) = lm.history
    assert entry is program.history[-1]
    assert entry["model"] == NAMES[1]
    assert entry["fallbacks"] == [{"model": NAMES[0], "reason": "server"}]
    shown = io.StringIO()
    lm.inspect_history(file=shown)
    assert "Why?" in shown.getvalue()
    with dspy.context(max_history_size=2):
        for _ in range(4):
            lm("Why?")
    assert len(lm.history) == 2
    with dspy.context(max_history_size=0):
        lm("Why?")
    with dspy.context(disable_history=True):
        lm("Why?")
    assert len(lm.history) == 2


def test_copies_have_their_own_models_and_history() -> None:
    """``copy`` passes parameters on to each model, as optimizers and BestOfN expect."""
    lm = pair(attempt_timeout_s=5, breaker=Breaker(failures=1))
    lm("Why?")
    copied = lm.copy(rollout_id=7, temperature=1.0, attempt_timeout_s=9)
    assert [one.kwargs["rollout_id"] for one in copied.lms] == [7, 7]
    assert "rollout_id" not in lm.kwargs
    assert (copied.attempt_timeout_s, lm.attempt_timeout_s) == (9, 5)
    assert (copied.history, len(lm.history)) == ([], 1)
    assert copied.circuits == lm.circuits == {NAMES[0]: "open", NAMES[1]: "closed"}
    assert copied.copy(breaker=None).circuits == {}


def test_deep_copies_and_pickles_answer() -> None:
    """A program that holds one can be copied; a copy in the same process knows the same circuits."""
    lm = FallbackLM(DummyLM([{"answer": "one"}]), DummyLM([{"answer": "two"}]), breaker=Breaker(failures=1))
    program = dspy.Predict("question -> answer")
    program.lm = lm
    copied = program.deepcopy()
    assert copied(question="Why?").answer == "one"
    assert copy.deepcopy(lm).guards[0] is lm.guards[0]
    loaded = pickle.loads(pickle.dumps(FallbackLM(dspy.LM("openai/a"), dspy.LM("openai/b"), breaker=Breaker(2, 3))))
    assert (loaded.breaker, loaded.circuits) == (Breaker(2, 3), {"openai/a": "closed", "openai/b": "closed"})


def test_saved_state_makes_the_same_lm_without_its_keys(tmp_path: Path) -> None:
    """A saved program brings its LM back where the loader trusts the file."""
    first = dspy.LM("openai/gpt-4o-mini", api_key="sk-secret", num_retries=1, max_tokens=50)
    lm = FallbackLM(first, dspy.LM("anthropic/claude-haiku-4-5"), attempt_timeout_s=3, breaker=Breaker(2, 9),
                    on=(*TRANSIENT, dspy.ContextWindowExceededError))  # fmt: skip
    program = dspy.Predict("question -> answer")
    program.lm = lm
    program.save(tmp_path / "program.json")
    assert "sk-secret" not in (tmp_path / "program.json").read_text()
    loaded = dspy.Predict("question -> answer")
    with pytest.raises(ValueError, match="custom"):
        loaded.load(tmp_path / "program.json")
    loaded.load(tmp_path / "program.json", allow_unsafe_lm_state=True)
    assert loaded.lm.dump_state() == lm.dump_state()
    assert isinstance(loaded.lm, FallbackLM)
    assert (loaded.lm.breaker, loaded.lm.on) == (lm.breaker, lm.on)
    with pytest.raises(ConfigurationError, match="on"):
        FallbackLM.load_state({**lm.dump_state(), "on": ["os:system"]})


def test_it_promises_only_what_all_models_can() -> None:
    """An adapter asks for a feature before it knows who will answer."""
    able = dspy.LM("openai/gpt-4o-mini")
    assert FallbackLM(able, dspy.LM("openai/gpt-4o")).supports_function_calling
    mixed = FallbackLM(able, answering())
    assert not mixed.supports_function_calling
    assert not mixed.supports_response_schema
    assert mixed.supported_params <= able.supported_params
    assert (mixed.model, mixed.model_type, mixed.kwargs, mixed.num_retries) == (
        able.model, able.model_type, able.kwargs, able.num_retries,
    )  # fmt: skip
    mixed.cache = True
    assert [lm.cache for lm in mixed.lms] == [True, True]


def test_its_own_callbacks_see_each_attempt() -> None:
    """A callback given to the wrapper is told of every model that is asked."""
    seen: list[str] = []

    class Seen(dspy.utils.BaseCallback):  # type: ignore[misc]
        def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
            seen.append(instance.model)

    lm = pair()
    lm.callbacks.append(Seen())
    lm("Why?")
    assert tuple(seen) == NAMES


def test_a_circuit_opens_and_closes_by_what_the_model_does() -> None:
    """Failures in a row open it; after its time one caller tries for all, and an answer closes it."""
    clock = FrozenClock()
    circuit = Circuit(Breaker(failures=2, open_s=30), clock.time)
    circuit.failed()
    circuit.succeeded()
    circuit.failed()
    assert (circuit.admits(), circuit.state) == (True, "closed")
    circuit.failed()
    assert (circuit.admits(), circuit.state) == (False, "open")
    clock.advance(30)
    assert circuit.state == "half_open"
    assert [circuit.admits() for _ in range(3)] == [True, False, False]
    circuit.failed()
    clock.advance(29.9)
    assert not circuit.admits()
    clock.advance(0.1)
    assert circuit.admits()
    circuit.succeeded()
    assert (circuit.admits(), circuit.state) == (True, "closed")


def test_a_refusal_shows_that_the_provider_is_there() -> None:
    """Bad requests do not open a circuit."""
    lm = pair(lm15.InvalidRequestError("what"), breaker=Breaker(failures=1))
    with pytest.raises(dspy.LMError):
        lm("Why?")
    assert lm.circuits[NAMES[0]] == "closed"


def test_the_last_model_is_always_asked() -> None:
    """With every circuit open somebody still has to try."""
    lm = FallbackLM(failing(lm15.ServerError("down")), failing(lm15.ServerError("down"), NAMES[1]), breaker=Breaker(1))
    for _ in range(2):
        with capture_records() as records, pytest.raises(dspy.LMServerError):
            lm("Why?")
    assert [(record.model_requested, record.fallback_reason) for record in records] == [(NAMES[1], "circuit_open")]


def test_spans_and_log_lines_say_why_a_model_was_asked() -> None:
    """The second model's span and line name the first and what was wrong with it; the first one's name nothing."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    spans = OTelCallback(Tracing(tracer_provider=provider))
    logs = LogCallback(Logs(logger=structlog.get_logger()))
    with capture_logs() as lines, dspy.context(callbacks=[spans, logs]):
        pair()("Why?")
        assert logs.flush(10)
    first, second = exporter.get_finished_spans()
    expected = {"fallback_from": NAMES[0], "fallback_reason": "server"}
    assert {f"dspy.{name}": value for name, value in expected.items()}.items() <= dict(second.attributes or {}).items()
    assert expected.items() <= dict(lines[1]).items()
    assert not any("fallback" in name for name in (*(first.attributes or ()), *lines[0]))


async def test_status_messages_are_no_output() -> None:
    """DSPy's own messages of progress do not count as the answer's beginning."""
    sent: list[Any] = []

    class Stream:
        async def send(self, item: Any) -> None:
            sent.append(item)

    outlet = Outlet(Stream())
    await outlet.send(StatusMessage("Calling the model"))
    assert not outlet.emitted
    await outlet.send("chunk")
    assert outlet.emitted
    assert len(sent) == 2


def test_a_registered_program_gets_its_stand_ins_from_its_factory(tmp_path: Path) -> None:
    """Keys are never stored, so a stored version keeps which LM it ran with, and code makes that LM again."""

    def factory() -> dspy.Predict:
        program = dspy.Predict("question -> answer")
        program.lm = FallbackLM(
            dspy.LM("openai/gpt-4o-mini", api_key="sk-of-a-test-1234567890"), dspy.LM("openai/gpt-4o")
        )
        return program

    with SignatureRegistry(tmp_path / "registry") as registry:
        registry.register_program("qa", factory(), version="v1", factory=factory)
        loaded = registry.load_program("qa", factory, "v1")
        assert isinstance(loaded.lm, FallbackLM)
        assert [lm.model for lm in loaded.lm.lms] == ["openai/gpt-4o-mini", "openai/gpt-4o"]
        with pytest.raises(IncompatibleProgramError, match="openai/gpt-4o-mini"):
            registry.load_program("qa", lambda: dspy.Predict("question -> answer"), "v1")
    stored = b"".join(path.read_bytes() for path in (tmp_path / "registry").rglob("*") if path.is_file())
    assert b"sk-of-a-test" not in stored
