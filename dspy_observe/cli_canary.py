"""``dspy-observe canary``: keep evaluating what is deployed on a held-out set, so that a silent decline is noticed.

DSPy is imported when the program has to be built, after the arguments were checked.
Exit codes: 0 sound, 1 regressed, failed, or refused with the reason; 2 wrong usage. ``canary`` is long by its options.
"""

from __future__ import annotations

import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dspy_observe.cli_options import Environment, Json, Location, opened
from dspy_observe.cli_programs import built, examples_of, importable, input_fields, named, rows_of
from dspy_observe.cli_tables import answer_json, details, refusing, say
from dspy_observe.errors import ConfigurationError, ObserveError
from dspy_observe.registry import SignatureRegistry, UnknownVersion

if TYPE_CHECKING:
    from dspy_observe.canary import Canary, Round, Subject
    from dspy_observe.metrics import Metrics

__all__ = ["canary"]

_UNITS_S: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@refusing
def canary(
    name: Annotated[str, typer.Argument(help="The signature.")],
    program: Annotated[str, typer.Option(metavar="MODULE:CLASS", help="Class or function that makes the program.")],
    devset: Annotated[Path, typer.Option(help="JSON Lines: one object with inputs and labels on each line.")],
    metric: Annotated[str, typer.Option(metavar="MODULE:FUNCTION", help="Takes (example, prediction).")],
    candidate: Annotated[str | None, typer.Option(metavar="VERSION", help="Evaluate this version, too.")] = None,
    every: Annotated[str | None, typer.Option(metavar="10m", help="Again and again: 30s, 10m, 6h, 1d.")] = None,
    times: Annotated[int | None, typer.Option(min=1, help="Stop after so many runs.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Examples at a time.")] = 4,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many examples.")] = None,
    out: Annotated[Path | None, typer.Option(help="Progress file: an interrupted run goes on from it.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Name of the set in the registry; its hash unless given.")] = None,
    inputs: Annotated[str | None, typer.Option(help="Input fields, as a,b; the program's own unless given.")] = None,
    lm: Annotated[str | None, typer.Option(metavar="MODEL", help="For dspy.LM; the module's own else.")] = None,
    low: Annotated[float, typer.Option(help="Lowest value of the metric.")] = 0.0,
    high: Annotated[float, typer.Option(help="Highest value of the metric.")] = 1.0,
    max_drop: Annotated[float, typer.Option(min=0, help="How much lower than what runs a candidate may be.")] = 0.02,
    act: Annotated[bool, typer.Option("--act", help="Ask for a rollback when the deployed version regressed.")] = False,
    cached: Annotated[bool, typer.Option("--cached", help="Take answers from DSPy's cache, too.")] = False,
    metrics_port: Annotated[int | None, typer.Option(help="Serve dspy_evaluation_score here while running.")] = None,
    textfile: Annotated[
        Path | None, typer.Option(help="Write the metrics here after each run, for node_exporter's textfile collector.")
    ] = None,
    environment: Environment = "production",
    registry: Location = None,
    as_json: Json = False,
) -> None:
    """Evaluate the deployed version on a held-out set, once or on a schedule, and a candidate beside it.

    Scores go to the registry and to the evidence of monitors; the verdict is theirs. DSPy's cache is left out, as it
    would repeat the answers of the first run.

    Example: dspy-observe canary support --program app:Bot --devset held.jsonl --metric app:exact --every 10m
    """
    wait_s = _seconds(every)
    rows, stdout = rows_of(devset)[:limit], sys.stdout
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(sys.stderr))  # standard output is for the answer alone
        stack.enter_context(importable())
        factory, score_of = named(program, "--program"), named(metric, "--metric")
        if not callable(factory) or not callable(score_of):
            raise typer.BadParameter("--program and --metric have to name something that can be called")
        store = stack.enter_context(opened(registry))
        fields = input_fields(built(factory), inputs)
        plan = _Plan(store, name, factory, environment, candidate, out, lm, textfile, as_json, metric, stdout)
        made = _canary(
            stack, plan, examples_of(rows, fields), score_of, dataset, threads, (low, high), max_drop, act,
            metrics_port, cached=cached,
        )  # fmt: skip
        failed = False
        with _stopping(made.stop):
            done = 0
            while not made.stop.is_set() and (done == 0 or wait_s is not None) and (times is None or done < times):
                begun, done = time.monotonic(), done + 1
                try:
                    failed = _round(plan, made)
                except ConfigurationError:
                    raise
                except ObserveError as error:  # a schedule outlasts a registry that is away, or nothing deployed
                    if wait_s is None:
                        raise
                    typer.echo(f"refused: {error}", err=True)
                    failed = True
                if wait_s is not None and done != times:
                    made.stop.wait(max(0.0, wait_s - (time.monotonic() - begun)))
    if failed:
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What each run needs besides the canary itself."""

    store: SignatureRegistry
    name: str
    factory: Callable[[], Any]
    environment: str
    candidate: str | None
    out: Path | None
    lm: str | None
    textfile: Path | None
    as_json: bool
    metric: str
    stdout: Any
    """For the answer; what programs print goes to standard error."""


def _seconds(every: str | None) -> float | None:
    if every is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", every.strip())
    if found is None or float(found[1]) == 0:
        raise typer.BadParameter(f"--every {every}: write a number and s, m, h or d, such as 10m")
    return float(found[1]) * _UNITS_S[found[2]]


def _canary(
    stack: ExitStack, plan: _Plan, examples: list[Any], score_of: Callable[..., Any], dataset: str | None, threads: int,
    bounds: tuple[float, float], max_drop: float, act: bool, port: int | None, *, cached: bool,
) -> Canary:  # fmt: skip
    import dspy

    from dspy_observe.canary import Canary
    from dspy_observe.metrics import separate, serve
    from dspy_observe.registry.programs import dataset_sha256
    from dspy_observe.rollback.monitor import Monitor, MonitorOptions
    from dspy_observe.rollback.statistics import MetricBounds

    if not cached:
        dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    where = dataset or dataset_sha256(examples) or "held-out"
    options = replace(separate(), port=port)
    endpoint = serve(options)
    stack.callback(endpoint)
    if endpoint.url is not None:
        typer.echo(f"metrics: {endpoint.url}", err=True)
    scale = MetricBounds(*bounds)
    monitor = Monitor(
        plan.store, plan.name, environment=plan.environment,
        options=MonitorOptions(dataset=where, act=act, evaluation=scale), metrics=options,
    )  # fmt: skip
    stack.callback(monitor.close)
    return Canary(
        plan.store, plan.name, examples, where, score_of, threads, scale, monitor, options, max_drop,
        threading.Event(),
    )  # fmt: skip


def _round(plan: _Plan, made: Canary) -> bool:
    """One run; whether somebody has to look."""
    import dspy

    from dspy_observe.canary import Subject
    from dspy_observe.canary_progress import Progress as Kept

    subjects: list[Subject] = []
    for role, version in (("deployed", None), ("candidate", plan.candidate)):
        if role == "deployed" or version is not None:
            record = _record(plan, version)
            if role == "deployed" or record.version_hash != subjects[0].record.version_hash:
                program = built(partial(_loaded, plan, record.version_hash))
                subjects.append(Subject(record, role, program))
    about = {
        "name": plan.name, "dataset": made.dataset, "n": len(made.examples), "metric": plan.metric,
        "versions": [one.record.version_hash for one in subjects],
    }  # fmt: skip
    with (
        Kept(plan.out, about) as kept,
        _bar(len(subjects) * len(made.examples), plan.name) as step,
        dspy.context(lm=dspy.LM(plan.lm)) if plan.lm is not None else nullcontext(),
    ):
        found = made.run(subjects, kept, step)
    if found is None:
        kept_in = f"; {plan.out} has what was scored" if plan.out else ""
        typer.echo(f"stopped before the run was over{kept_in}", err=True)
        return True
    if plan.textfile is not None:
        _write(plan.textfile, made.metrics)
    with redirect_stdout(plan.stdout):
        _answer(found, plan)
    return found.failed


def _loaded(plan: _Plan, version_hash: str) -> Any:
    return plan.store.load_program(plan.name, plan.factory, version_hash, environment=plan.environment)


def _record(plan: _Plan, version: str | None) -> Any:
    from dspy_observe.registry import versions

    with plan.store.view(plan.name) as view:
        if version is not None:
            return versions.resolve(view, version)
        pointer = view.pointer(plan.environment)
        record = None if pointer is None else view.by_hash(pointer.version_hash)
    if record is None:
        raise UnknownVersion.nothing_deployed(plan.name, plan.environment)
    return record


@contextmanager
def _bar(total: int, name: str) -> Iterator[Callable[[], None]]:
    """A progress bar on a terminal; nothing elsewhere."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console,
        disable=not console.is_terminal,
    ) as bar:  # fmt: skip
        task = bar.add_task(name, total=total)
        yield lambda: bar.advance(task)


@contextmanager
def _stopping(stop: threading.Event) -> Iterator[None]:
    """The first interrupt or termination ends the run in order, the second at once."""
    before = {}

    def ask(_number: int, _frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is threading.main_thread():
        before = {one: signal.signal(one, ask) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _write(file: Path, options: Metrics) -> None:
    from dspy_observe.metrics import render

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        spare = file.with_name(f".{file.name}.tmp")
        spare.write_bytes(render(options.collector_registry)[0])
        spare.replace(file)  # the collector never reads half a file
    except OSError as error:
        raise ConfigurationError("--textfile", f"cannot write {file}: {error.strerror}", "Name another file") from None


def _answer(found: Round, plan: _Plan) -> None:
    if plan.as_json:
        answer_json(found.to_dict())
        return
    own = found.measured
    rows: list[tuple[str, Any]] = [
        ("program", plan.name), ("data set", found.dataset), ("examples", len(own.scores)),
        ("deployed", found.deployed), ("score", own.score), ("failed examples", own.failed),
        ("verdict", f"{found.verdict.verdict}: {found.verdict.reason}"),
    ]  # fmt: skip
    if found.resumed:
        rows.append(("scored before", found.resumed))
    if found.candidate_measured is not None:
        rows += [
            ("candidate", found.candidate), ("its score", found.candidate_measured.score),
            ("its failed examples", found.candidate_measured.failed), ("it is compared", found.candidate_reason),
        ]  # fmt: skip
    details(rows)
    if found.verdict.verdict == "regressed":
        say(f"{found.deployed} REGRESSED: {found.verdict.reason}")
    elif own.failed == len(own.scores):
        say(f"{found.deployed} FAILED on all {own.failed} examples; no score was kept")
    if found.errors:
        say(f"errors: {', '.join(f'{count} {error}' for error, count in found.errors.items())}")
    if found.candidate_passed is not None:
        say(f"{found.candidate} {'passes' if found.candidate_passed else 'is WORSE'}: {found.candidate_reason}")
