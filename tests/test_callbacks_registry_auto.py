"""What optimizers return becomes versions, and evaluations become scores of the versions that were evaluated."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.teleprompt import BootstrapFewShot, BootstrapFewShotWithRandomSearch, LabeledFewShot, Teleprompter
from prometheus_client import CollectorRegistry

import dspy_observe
from dspy_observe import CallbackGroup, Metrics, RegistryEventCallback, safety
from dspy_observe.callbacks.registration import Registrar
from dspy_observe.facts import calls
from dspy_observe.records import CallRecord, RegistryEvent
from dspy_observe.registry import IntegrationConfig, RegistryManager, SignatureRegistry
from dspy_observe.registry.programs import dataset_sha256
from dspy_observe.testing import Capture, offline_lm

TRAINSET = [dspy.Example(question=f"q{n}", answer="42").with_inputs("question") for n in range(4)]
DEVSET = [dspy.Example(question=f"d{n}", answer="42" if n < 3 else "?").with_inputs("question") for n in range(4)]


class Helpdesk(dspy.Module):
    """One predictor."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.Predict("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        return self.ask(question=question)


def right(example: Any, prediction: Any, trace: Any = None) -> bool:
    """Whether the answer is the example's."""
    return bool(example.answer == prediction.answer)


def bootstrap() -> BootstrapFewShot:
    """A real optimizer."""
    return BootstrapFewShot(metric=right, max_bootstrapped_demos=2, max_labeled_demos=0)


def evaluate(program: Any, devset: list[Any] = DEVSET, dataset: str | None = "dev") -> Any:
    """A real evaluation."""
    metadata = {"dataset": dataset} if dataset else None
    return dspy.Evaluate(devset=devset, metric=right, num_threads=1, display_progress=False)(
        program, callback_metadata=metadata
    )


@pytest.fixture
def manager(tmp_path: Path) -> RegistryManager:
    """A manager with the defaults, on a file store."""
    return RegistryManager(tmp_path / "registry")


def callback_of(manager: Any) -> RegistryEventCallback:
    """A callback with metrics of its own."""
    return RegistryEventCallback(Metrics(collector_registry=CollectorRegistry()), manager=manager)


@pytest.fixture
def observing(manager: RegistryManager) -> Iterator[None]:
    """DSPy with an offline LM and the callback."""
    with dspy.context(lm=offline_lm({"answer": "42"}), callbacks=[callback_of(manager)]):
        yield


@pytest.mark.usefixtures("observing")
def test_what_an_optimizer_returns_is_registered_with_its_metadata(manager: RegistryManager) -> None:
    """Name, optimizer, parameters and trainset hash; the program that is stored is the one that was compiled."""
    compiled = bootstrap().compile(Helpdesk(), trainset=TRAINSET)
    (version,) = manager.registry.list_versions("Helpdesk")
    assert version.metadata["optimizer"] == "BootstrapFewShot"
    assert version.metadata["optimizer_params"]["max_bootstrapped_demos"] == 2
    assert version.metadata["trainset_sha256"] == dataset_sha256(TRAINSET)
    assert version.performance_score is None
    loaded = manager.registry.load_program("Helpdesk", Helpdesk, version.version)
    assert len(loaded.ask.demos) == len(compiled.ask.demos) == 2


@pytest.mark.usefixtures("observing")
def test_a_score_that_the_program_carries_is_booked_once_for_the_outermost_compile(manager: RegistryManager) -> None:
    """A random search compiles and evaluates candidates with other optimizers; only its choice is a version."""
    optimizer = BootstrapFewShotWithRandomSearch(
        metric=right, max_bootstrapped_demos=1, max_labeled_demos=1, num_candidate_programs=2, num_threads=1
    )
    optimizer.compile(Helpdesk(), trainset=TRAINSET, valset=DEVSET)
    assert manager.registry.list_signatures() == ["Helpdesk"]
    (version,) = manager.registry.list_versions("Helpdesk")
    assert version.metadata["optimizer"] == "BootstrapFewShotWithRandomSearch"
    (score,) = manager.registry.scores("Helpdesk")
    assert (score.value, score.n, score.source) == (0.75, 4, "optimizer")
    assert score.dataset == dataset_sha256(DEVSET)


@pytest.mark.usefixtures("observing")
def test_the_name_is_that_of_the_tracked_student(manager: RegistryManager) -> None:
    """Two students of one class are two programs."""
    student = Helpdesk()
    calls.tag(student, "helpdesk-de", "v1")
    LabeledFewShot(k=2).compile(student, trainset=TRAINSET)
    assert manager.registry.list_signatures() == ["helpdesk-de"]


@pytest.mark.usefixtures("observing")
def test_compile_then_evaluate_books_the_score_on_the_new_version(manager: RegistryManager) -> None:
    """The compiled program is tracked as what it was registered as; data set and number of examples are kept."""
    compiled = bootstrap().compile(Helpdesk(), trainset=TRAINSET)
    evaluate(compiled)
    (version,) = manager.registry.list_versions("Helpdesk")
    (score,) = manager.registry.scores("Helpdesk")
    assert (score.version, score.value, score.dataset, score.n, score.source) == (
        version.version, 0.75, "dev", 4, "evaluate",
    )  # fmt: skip


@pytest.mark.usefixtures("observing")
def test_only_the_tracked_instance_with_a_version_is_scored(manager: RegistryManager) -> None:
    """A copy, an unknown program, and a name without a version book nothing."""
    compiled = bootstrap().compile(Helpdesk(), trainset=TRAINSET)
    evaluate(compiled.deepcopy())
    evaluate(Helpdesk())
    named = Helpdesk()
    calls.tag(named, "Helpdesk")
    evaluate(named)
    assert manager.registry.scores("Helpdesk") == ()
    evaluate(compiled, DEVSET[:3])
    assert [(score.value, score.n) for score in manager.registry.scores("Helpdesk")] == [(1.0, 3)]


@pytest.mark.usefixtures("observing")
def test_an_evaluation_inside_another_call_is_not_the_versions_score(manager: RegistryManager) -> None:
    """An optimizer may evaluate its student while it changes it."""

    class Trying(LabeledFewShot):
        def compile(self, student: Any, *, trainset: Any) -> Any:
            evaluate(student)
            return super().compile(student, trainset=trainset)

    student = LabeledFewShot(k=1).compile(Helpdesk(), trainset=TRAINSET)
    Trying(k=2).compile(student, trainset=TRAINSET)
    assert len(manager.registry.list_versions("Helpdesk")) == 2
    assert manager.registry.scores("Helpdesk") == ()


@pytest.mark.usefixtures("observing")
def test_a_student_that_is_changed_in_place_becomes_the_new_version(manager: RegistryManager) -> None:
    """Its scores belong to what it is now, and it keeps its role."""

    class InPlace(Teleprompter):
        def compile(self, student: Any, *, trainset: Any) -> Any:
            student.ask.demos = list(trainset)
            return student

    student = Helpdesk()
    before = manager.registry.register_program("desk", student)
    calls.tag(student, "desk", before.version, "canary")
    assert InPlace().compile(student, trainset=TRAINSET) is student
    evaluate(student)
    after = manager.registry.list_versions("desk")[-1]
    assert after.version != before.version
    assert [score.version for score in manager.registry.scores("desk")] == [after.version]
    tag = calls.tag_of(student)
    assert tag is not None
    assert (tag.version, tag.role) == (after.version, "canary")


@pytest.mark.usefixtures("observing")
def test_nothing_is_registered_unless_the_manager_says_so(manager: RegistryManager) -> None:
    """The option is read at every compile; scores of versions that are tracked are booked either way."""
    manager.integration_config.auto_register_optimizations = False
    compiled = bootstrap().compile(Helpdesk(), trainset=TRAINSET)
    assert manager.registry.list_signatures() == []
    assert calls.tag_of(compiled) is None
    made = manager.registry.register_program("Helpdesk", compiled)
    calls.tag(compiled, "Helpdesk", made.version)
    evaluate(compiled)
    assert len(manager.registry.scores("Helpdesk")) == 1
    manager.integration_config.auto_register_optimizations = True
    LabeledFewShot(k=1).compile(Helpdesk(), trainset=TRAINSET)
    assert len(manager.registry.list_versions("Helpdesk")) == 2


@pytest.mark.usefixtures("observing")
def test_a_compile_or_evaluation_that_fails_leaves_no_trace(manager: RegistryManager) -> None:
    """There is no result to keep."""

    def broken(example: Any, prediction: Any, trace: Any = None) -> bool:
        raise ValueError("metric")

    class Failing(Teleprompter):
        def compile(self, student: Any, *, trainset: Any) -> Any:
            raise ValueError("no luck")

    with pytest.raises(ValueError, match="no luck"):
        Failing().compile(Helpdesk(), trainset=TRAINSET)
    compiled = LabeledFewShot(k=1).compile(Helpdesk(), trainset=TRAINSET)
    with pytest.raises(Exception, match=r"cancelled|metric"):
        dspy.Evaluate(devset=DEVSET, metric=broken, num_threads=1, display_progress=False, max_errors=1)(compiled)
    assert len(manager.registry.list_versions("Helpdesk")) == 1
    assert manager.registry.scores("Helpdesk") == ()


def test_a_registry_that_fails_never_reaches_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The store is a file where a folder has to be; the program comes back, and the loss is counted under its site."""
    monkeypatch.setenv("DSPY_OBSERVE_STRICT", "0")
    manager = RegistryManager(tmp_path / "registry")
    (tmp_path / "registry").write_text("in the way")
    with dspy.context(lm=offline_lm({"answer": "42"}), callbacks=[callback_of(manager)]), caplog.at_level(logging.INFO):
        compiled = bootstrap().compile(Helpdesk(), trainset=TRAINSET)
        assert len(compiled.ask.demos) == 2
        calls.tag(compiled, "Helpdesk", "v1")
        assert evaluate(compiled).score == 75.0
    assert safety.counts() == {"registry.auto": 2}
    assert "Error when applying callback" not in caplog.text


def test_strict_mode_shows_the_failure(manager: RegistryManager) -> None:
    """A score of a version that the registry does not know is lost; our suites want to see that."""
    program = Helpdesk()
    calls.tag(program, "Helpdesk", "v1")
    with dspy.context(lm=offline_lm({"answer": "42"}), callbacks=[callback_of(manager)]):
        assert evaluate(program).score == 75.0
    assert safety.counts()["registry.auto"] == 1


@pytest.mark.parametrize("listed", [
    lambda manager: [callback_of(manager), callback_of(manager)],
    lambda manager: [CallbackGroup(callback_of(manager), Registrar(manager)), Capture()],
    lambda manager: [Capture(), callback_of(None), Registrar(manager)],
])  # fmt: skip
def test_however_callbacks_are_listed_each_result_counts_once(
    manager: RegistryManager, listed: Callable[[RegistryManager], list[Any]]
) -> None:
    """Twice, grouped, or beside a callback on the same metrics without a manager."""
    started: list[RegistryEvent] = []
    manager.subscribe("register_start", started.append)
    with dspy.context(lm=offline_lm({"answer": "42"}), callbacks=listed(manager)):
        evaluate(bootstrap().compile(Helpdesk(), trainset=TRAINSET))
    assert len(started) == 1
    assert len(manager.registry.scores("Helpdesk")) == 1


def test_a_callback_on_the_same_metrics_does_not_keep_the_manager_from_being_told(manager: RegistryManager) -> None:
    """Metrics count once, yet the manager of the second one registers."""
    metrics = Metrics(collector_registry=CollectorRegistry())
    listed = [RegistryEventCallback(metrics), RegistryEventCallback(metrics, manager=manager)]
    with dspy.context(lm=offline_lm({"answer": "42"}), callbacks=listed):
        bootstrap().compile(Helpdesk(), trainset=TRAINSET)
    assert len(manager.registry.list_versions("Helpdesk")) == 1


def test_readers_are_handed_the_very_objects_after_the_record() -> None:
    """Optimizer, arguments and program of a compile; program and count of an evaluation; nothing for other calls."""
    told: list[tuple[Any, ...]] = []

    class Watching(Capture):
        def finished(self, record: CallRecord) -> None:
            told.append(("finished", record))

        def compiled(self, record: CallRecord, optimizer: Any, inputs: Mapping[str, Any], program: Any) -> None:
            told.append(("compiled", record, optimizer, inputs, program))

        def evaluated(self, record: CallRecord, program: Any, n: int | None) -> None:
            told.append(("evaluated", record, program, n))

    optimizer, student = LabeledFewShot(k=1), Helpdesk()
    with dspy.context(lm=offline_lm({"answer": "42"}), callbacks=[Watching()]):
        program = optimizer.compile(student, trainset=TRAINSET)
        evaluate(program)
    (at,) = [at for at, one in enumerate(told) if one[0] == "compiled"]
    _, record, handed, inputs, result = told[at]
    assert told[at - 1] == ("finished", record)
    assert (handed is optimizer, inputs["student"] is student, result is program) == (True, True, True)
    assert inputs["trainset"] is TRAINSET
    assert [one[2:] for one in told if one[0] == "evaluated"] == [(program, 4)]


def observed(source: Any, **options: Any) -> dspy_observe.Observer:
    """An observer of this registry that writes nowhere else."""
    return dspy_observe.configure(registry=source, tracing=False, logs=False, **options)


@pytest.mark.parametrize("kind", ["registry", "manager"])
@pytest.mark.parametrize("metered", [True, False])
def test_configure_wires_both_directions(tmp_path: Path, kind: str, *, metered: bool) -> None:
    """Compile and evaluation reach the registry, its events reach every reader; after close() neither happens."""
    registry = SignatureRegistry(tmp_path)
    source = registry if kind == "registry" else RegistryManager(registry)
    capture, numbers = Capture(), CollectorRegistry()
    dspy.configure(lm=offline_lm({"answer": "42"}))
    with observed(source, metrics=Metrics(collector_registry=numbers) if metered else False, extra=[capture]):
        compiled = bootstrap().compile(Helpdesk(), trainset=TRAINSET)
        evaluate(compiled)
    (version,) = registry.list_versions("Helpdesk")
    assert version.performance_score == 0.75
    assert [event.name.removeprefix("dspy.registry.") for event in capture.events] == [
        "register_start", "register_complete", "performance_update",
    ]  # fmt: skip
    if metered:
        counted = {"program": "Helpdesk", "event": "register_complete"}
        assert numbers.get_sample_value("dspy_registry_events_total", counted) == 1
        scored = {"program": "Helpdesk", "version": version.version, "dataset": "dev"}
        assert numbers.get_sample_value("dspy_evaluation_score", scored) == 0.75
    LabeledFewShot(k=1).compile(Helpdesk(), trainset=TRAINSET)
    evaluate(compiled)
    assert len(registry.list_versions("Helpdesk")) == 1
    assert len(registry.scores("Helpdesk")) == 1


def test_the_environment_turns_registering_off_for_a_bare_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no manager of the caller's to say it."""
    monkeypatch.setenv("DSPY_OBSERVE_REGISTRY_AUTO_REGISTER_OPTIMIZATIONS", "false")
    registry = SignatureRegistry(tmp_path)
    dspy.configure(lm=offline_lm({"answer": "42"}))
    with observed(registry, metrics=False):
        bootstrap().compile(Helpdesk(), trainset=TRAINSET)
    assert registry.list_signatures() == []


def test_a_better_result_is_deployed_when_the_manager_is_told_to(tmp_path: Path) -> None:
    """Nothing is deployed yet, so the first scored version goes."""
    manager = RegistryManager(tmp_path, IntegrationConfig(auto_deploy_best_versions=True))
    optimizer = BootstrapFewShotWithRandomSearch(
        metric=right, max_bootstrapped_demos=1, max_labeled_demos=1, num_candidate_programs=1, num_threads=1
    )
    with dspy.context(lm=offline_lm({"answer": "42"}), callbacks=[callback_of(manager)]):
        optimizer.compile(Helpdesk(), trainset=TRAINSET, valset=DEVSET)
    deployed = manager.registry.get_deployed_version("Helpdesk")
    assert deployed is not None
    assert deployed.performance_score == 0.75
