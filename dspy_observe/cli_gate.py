"""``dspy-observe gate``: fail a pipeline when a program answers worse than its baseline.

DSPy is imported when the program has to be built, after the arguments were checked.
Exit codes: 0 passed, 1 failed or refused with the reason, 2 wrong usage. ``gate`` is long by its options, a line each.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from dspy_observe.cli_options import Environment, Json, Location, opened
from dspy_observe.cli_programs import built, examples_of, importable, input_fields, named, rows_of
from dspy_observe.cli_tables import answer_json, details, refuse, refusing, say
from dspy_observe.errors import ObserveError
from dspy_observe.gate_verdict import Baseline, Measured, Verdict, judge, junit, markdown, measured
from dspy_observe.registry import SignatureRegistry, UnknownVersion

__all__ = ["gate"]

DEPLOYED = "deployed"


class GateError(ObserveError):
    """The program could not be measured, or the result not be written."""


@dataclass(frozen=True, slots=True)
class _Run:
    """What is evaluated, on what, and how."""

    factory: Callable[[], Any]
    metric: Callable[..., Any]
    examples: list[Any]
    lm: str | None
    num_threads: int


@refusing
def gate(
    program: Annotated[str, typer.Option(metavar="MODULE:CLASS", help="Class or function that makes the program.")],
    devset: Annotated[Path, typer.Option(help="JSON Lines: one object with inputs and labels on each line.")],
    metric: Annotated[str, typer.Option(metavar="MODULE:FUNCTION", help="Takes (example, prediction).")],
    baseline: Annotated[str, typer.Option(metavar="deployed|VERSION|NUMBER", help="What to compare with.")] = DEPLOYED,
    max_drop: Annotated[
        float, typer.Option(min=0, help="How much lower the mean may be, in the metric's units.")
    ] = 0.02,
    name: Annotated[str | None, typer.Option(help="The signature; the class's name unless given.")] = None,
    load: Annotated[
        str | None, typer.Option(metavar="deployed|VERSION", help="Load this state into the program.")
    ] = None,
    inputs: Annotated[str | None, typer.Option(help="Input fields, as a,b; the program's own unless given.")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Name under which the registry keeps scores on it; its hash unless given.")
    ] = None,
    reevaluate: Annotated[
        bool, typer.Option("--reevaluate", help="Evaluate the baseline even if it has a score.")
    ] = False,
    lm: Annotated[
        str | None, typer.Option(metavar="MODEL", help="For dspy.LM; what the module configures else.")
    ] = None,
    num_threads: Annotated[int, typer.Option(min=1, help="Examples at a time.")] = 4,
    junit_file: Annotated[Path | None, typer.Option("--junit", help="Write a JUnit XML report.")] = None,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Write a Markdown report.")] = None,
    environment: Environment = "production",
    registry: Location = None,
    as_json: Json = False,
) -> None:
    """Evaluate a program and fail when it is worse than its baseline: a regression check for a pipeline.

    The baseline is the score that the version has in the registry on this data set; without one, the version is
    loaded into the program's code and evaluated, too. Metrics have to be the same: --reevaluate makes sure of it.

    Example: dspy-observe gate --program app:Classifier --devset dev.jsonl --metric app:exact --max-drop 0.02
    """
    number = _number(baseline)
    rows = rows_of(devset)
    began = time.monotonic()
    with redirect_stdout(sys.stderr), importable():  # standard output is for the answer alone
        factory, score_of = named(program, "--program"), named(metric, "--metric")
        if not callable(factory) or not callable(score_of):
            raise typer.BadParameter("--program and --metric have to name something that can be called")
        signature = str(name or getattr(factory, "__name__", program))
        with nullcontext() if number is not None and load is None else opened(registry) as store:
            build = _loading(store, signature, factory, load, environment) if load is not None else factory
            current = built(build)
            run = _Run(factory, score_of, examples_of(rows, input_fields(current, inputs)), lm, num_threads)
            base = Baseline(number, "the number", "given") if number is not None else None
            if base is None:
                version = _baseline_version(store, signature, baseline, environment)
                recorded = None if reevaluate else _recorded(store, signature, version, run, dataset)
                base = recorded or _evaluated(store, signature, version, run)
            found = _evaluate(current, run)
    verdict = judge(
        found, base, max_drop, program=signature if load is None else f"{signature} {load}", devset=devset.name
    )
    _report(verdict, time.monotonic() - began, junit_file, markdown_file)
    _answer(verdict, as_json)


def _number(baseline: str) -> float | None:
    try:
        number = float(baseline)
    except ValueError:
        return None
    if number - number != 0:
        raise typer.BadParameter(f"--baseline {baseline} is no finite number")
    return number


def _loading(
    store: SignatureRegistry | None, name: str, factory: Callable[[], Any], version: str, environment: str
) -> Callable[[], Any]:
    assert store is not None
    chosen = None if version == DEPLOYED else version
    return lambda: store.load_program(name, factory, chosen, environment=environment)


def _baseline_version(store: SignatureRegistry | None, name: str, baseline: str, environment: str) -> str:
    assert store is not None
    if baseline != DEPLOYED:
        return store.get_version(name, baseline, environment=environment).version
    running = store.pointer(name, environment=environment)
    if running is None:
        raise UnknownVersion.nothing_deployed(name, environment)
    return running.version


def _recorded(
    store: SignatureRegistry | None, name: str, version: str, run: _Run, dataset: str | None
) -> Baseline | None:
    """The version's latest score on this data set; ``None`` when it has none."""
    from dspy_observe.registry.programs import dataset_sha256

    assert store is not None
    key = dataset or dataset_sha256(run.examples)
    mine = [one for one in store.scores(name, version) if key is not None and one.dataset == key]
    return Baseline(mine[-1].value, version, "recorded") if mine else None


def _evaluated(store: SignatureRegistry | None, name: str, version: str, run: _Run) -> Baseline:
    assert store is not None
    found = _evaluate(built(lambda: store.load_program(name, run.factory, version)), run)
    if found.failed == len(found.scores):
        raise GateError(f"the baseline {version} failed on all {found.failed} examples; see the log")
    return Baseline(found.score, version, "evaluated")


def _evaluate(program: Any, run: _Run) -> Measured:
    """Run the program over the examples; DSPy logs each failure and shows the progress on standard error."""
    import dspy

    failed = float("0")  # an object of its own: DSPy puts it where an example failed
    evaluate = dspy.Evaluate(
        devset=run.examples, metric=run.metric, num_threads=run.num_threads, display_progress=True,
        failure_score=failed, max_errors=len(run.examples) + 1,
    )  # fmt: skip
    with dspy.context(lm=dspy.LM(run.lm)) if run.lm is not None else nullcontext():
        results = evaluate(program).results
    try:
        return measured([None if score is failed else float(score) for *_, score in results])
    except (TypeError, ValueError) as error:
        raise GateError(f"the metric's scores cannot be used: {error}") from None


def _report(verdict: Verdict, duration_s: float, junit_file: Path | None, markdown_file: Path | None) -> None:
    for file, text in ((junit_file, junit(verdict, duration_s)), (markdown_file, markdown(verdict))):
        if file is not None:
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
            except OSError as error:
                raise GateError(f"cannot write {file}: {error.strerror}") from None


def _answer(verdict: Verdict, as_json: bool) -> None:
    if as_json:
        answer_json(verdict.to_dict())
        if not verdict.passed:
            raise typer.Exit(1)
        return
    found, base = verdict.measured, verdict.baseline
    details([
        ("program", verdict.program), ("data set", verdict.devset), ("examples", len(found.scores)),
        ("failed examples", found.failed), ("score", found.score), ("baseline", base.score),
        ("baseline is", f"{base.name}, {base.origin}"), ("drop", verdict.drop), ("allowed", verdict.max_drop),
    ])  # fmt: skip
    if not verdict.passed:
        refuse(verdict.reason, as_json=False)
    say(f"passed: {verdict.reason}")
