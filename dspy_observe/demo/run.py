"""Start everything, let the users ask, show what was observed, stop everything."""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import dspy
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.live import Live
from rich.rule import Rule
from rich.text import Text

from dspy_observe import conventions
from dspy_observe.callbacks.otel.pipeline import Pipeline
from dspy_observe.config import Logs, Metrics, Observer, Tracing, configure
from dspy_observe.demo.board import Board, count
from dspy_observe.demo.closing import (
    Tokens,
    choose_trace,
    log_tokens,
    metric_lines,
    metric_tokens,
    quote_content,
    span_tokens,
    trace_tree,
)
from dspy_observe.demo.model import LARGE_MODEL, RETRIES, SMALL_MODEL, StandIn
from dspy_observe.demo.program import examples_folder, load_program, load_questions
from dspy_observe.demo.users import PEOPLE, Crowd, signature
from dspy_observe.openai_server import OpenAIServer

__all__ = ["main", "parse", "play"]

SERVICE: Final = "facts-qa"
_REFRESHES_PER_S: Final = 8
_SNAPSHOT_EVERY_S: Final = 5.0
"""Without a terminal the tables are printed this often."""


@dataclass(frozen=True, slots=True)
class _Provider:
    """Where the models run; the server and its model are None when the provider is the real one."""

    small: dspy.LM
    large: dspy.LM
    server: OpenAIServer | None
    model: StandIn | None


@dataclass(frozen=True, slots=True)
class _Sinks:
    """Where the telemetry went."""

    observer: Observer
    board: Board
    exporter: InMemorySpanExporter
    log_file: Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the first part alone; arguments and exit code as for the whole demonstration."""
    return play(parse(arguments))


def play(options: argparse.Namespace) -> int:
    """Let the users ask, and show what was observed.

    Args:
        options: What :func:`parse` made of the command line.

    Returns:
        The exit code: 0 when what was observed agrees with the bill, 1 when not, 130 when the user broke off.
    """
    console = Console()
    with ExitStack() as stack:
        provider = stack.enter_context(_provider(options))
        sinks = stack.enter_context(_observe())
        _introduce(console, provider, sinks, options)
        broken_off = _let_them_ask(console, provider, sinks, options)
        sinks.observer.flush()
        agreed = _conclude(console, provider, sinks)
    return 130 if broken_off else 0 if agreed else 1


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of both parts of the demonstration."""
    parser = argparse.ArgumentParser("python -m dspy_observe.demo", description="Observe a program that answers.")
    parser.add_argument("--plain", action="store_true", help="print tables now and then instead of a live display")
    parser.add_argument("--offline", action="store_true", help="use the stand-in model even if OPENAI_API_KEY is set")
    parser.add_argument("--users", type=_positive, default=6, help="users at once (default: 6)")
    parser.add_argument("--questions", type=_positive, default=18, help="questions of each user (default: 18)")
    parser.add_argument("--seed", type=int, default=1, help="who asks what, and how fast the stand-in model is")
    parser.add_argument("--seconds-limit", type=float, default=30.0, help="nobody asks after this time (default: 30)")
    parser.add_argument("--pace", type=float, default=1.0, help="factor on the stand-in model's thinking time")
    parser.add_argument("--only", choices=("observe", "loop"), help="play one part only (default: both)")
    parser.add_argument(
        "--embedded", action="store_true", help="close the loop without Prometheus and Alertmanager, by the monitor"
    )
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


@contextmanager
def _provider(options: argparse.Namespace) -> Iterator[_Provider]:
    """The two models, with a cache of this run's own: answers of an earlier one would not be on this run's bill."""
    cache, lm = dspy.cache, dspy.settings.lm
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
    try:
        if os.environ.get("OPENAI_API_KEY") and not options.offline:
            small, large = (dspy.LM(f"openai/{model}", num_retries=RETRIES) for model in (SMALL_MODEL, LARGE_MODEL))
            dspy.configure(lm=small)
            yield _Provider(small, large, None, None)
            return
        # The bundled price list does, and nothing of this run leaves the machine.
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "true")
        model = StandIn(options.seed, options.pace)
        with OpenAIServer(model) as server:
            small, large = (
                dspy.LM(f"openai/{name}", api_base=server.base_url, api_key="stand-in", num_retries=RETRIES)
                for name in (SMALL_MODEL, LARGE_MODEL)
            )
            dspy.configure(lm=small)
            yield _Provider(small, large, server, model)
    finally:
        dspy.configure(lm=lm)
        dspy.cache = cache


@contextmanager
def _observe() -> Iterator[_Sinks]:
    """Everything on, through ``configure()``."""
    exporter, board = InMemorySpanExporter(), Board()
    pipeline = Pipeline(None, None, SERVICE)  # exports over OTLP where the environment names a collector
    tracers = pipeline.tracer_provider
    if not isinstance(tracers, TracerProvider):
        tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    with tempfile.TemporaryDirectory(prefix="dspy-observe-demo-") as folder:
        log_file = Path(folder) / "calls.jsonl"
        logger, handler = logging.getLogger("dspy_observe.demo.calls"), logging.FileHandler(log_file, encoding="utf-8")
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.addHandler(handler)
        try:
            with configure(
                service=SERVICE,
                metrics=Metrics(port=0, collector_registry=CollectorRegistry()),
                tracing=Tracing(
                    tracer_provider=tracers, meter_provider=pipeline.meter_provider, capture_content="redacted"
                ),
                logs=Logs(logger=logger),
                extra=[board],
            ) as observer:
                yield _Sinks(observer, board, exporter, log_file)
        finally:
            logger.removeHandler(handler)
            handler.close()
            pipeline.close()


def _introduce(console: Console, provider: _Provider, sinks: _Sinks, options: argparse.Namespace) -> None:
    where = (
        f"a stand-in that only reads, {provider.server.base_url}"
        if provider.server is not None
        else "the provider that OPENAI_API_KEY belongs to"
    )
    console.print(Text("dspy-observe", style="bold").append(f" {version('dspy-observe')} demo", style="not bold"))
    console.print(
        f"{options.users} users ask {options.questions} questions each, as threads and as asyncio tasks.\n"
        f"program  {examples_folder() / 'question_answering.py'}\n"
        "         v1 reads one passage; v2 reads three and may call a searching agent\n"
        f"model    {where}\n"
        f"metrics  {sinks.observer.metrics_url}\n",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


def _let_them_ask(console: Console, provider: _Provider, sinks: _Sinks, options: argparse.Namespace) -> bool:
    """Show the tables until every user is done; returns whether the run was broken off from the keyboard."""
    example = load_program()
    collection = example.Passages.load()
    versions = {
        "v1": example.QuestionAnswering(collection, limit=1, agent=False),
        "v2": example.QuestionAnswering(collection, limit=3, agent_lm=provider.large),
    }
    programs: list[Any] = [
        sinks.observer.track(program, name=SERVICE, version=number) for number, program in versions.items()
    ]
    deadline = time.monotonic() + options.seconds_limit
    crowd = Crowd(programs, load_questions(), sinks.observer, options.users, options.questions, options.seed, deadline)
    futures, stop = crowd.start()
    try:
        if options.plain or not console.is_terminal:
            while wait(futures, _SNAPSHOT_EVERY_S).not_done:
                console.print(sinks.board.render())
            console.print(sinks.board.render())
        else:
            with Live(get_renderable=sinks.board.render, console=console, refresh_per_second=_REFRESHES_PER_S):
                wait(futures)
    except KeyboardInterrupt:
        return True
    finally:
        stop()
    for future in futures:
        future.result()
    return False


def _conclude(console: Console, provider: _Provider, sinks: _Sinks) -> bool:
    """Show the closing screens; returns whether every total agrees with the bill."""
    page = _scrape(sinks.observer)
    spans = sinks.exporter.get_finished_spans()
    lines = sinks.log_file.read_text(encoding="utf-8").splitlines()
    chosen = choose_trace(spans)
    if chosen:
        console.print(Rule("One run as a trace", align="left"), trace_tree(chosen), "")
    quoted = quote_content(spans)
    if quoted is not None:
        name, _, _ = quoted.partition(",")
        signed = next(text for text in map(signature, range(len(PEOPLE))) if text.startswith(name))
        console.print(
            f"signed by a user:  {signed}", f"in the spans:      {quoted}\n", sep="\n", highlight=False, markup=False
        )
    console.print(Rule(f"From {sinks.observer.metrics_url}", align="left"))
    _print_raw(console, metric_lines(page))
    console.print(Rule("Two of the log lines", align="left"))
    _print_raw(console, _log_lines(lines, chosen))
    console.print(Rule("The bill", align="left"))
    agreed = _settle(
        console, provider, sinks.board,
        {"/metrics": metric_tokens(page), "spans": span_tokens(spans), "logs": log_tokens(lines)},
    )  # fmt: skip
    console.print()
    console.print(Rule("Where to look next", align="left"))
    console.print(_NEXT, highlight=False, markup=False, soft_wrap=True)
    return agreed


_NEXT: Final = """\
your program  dspy_observe.configure(metrics=dspy_observe.Metrics(port=9464))
the guide     README.md
the example   examples/question_answering.py, a start for a program of your own
the traces    set OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318 (your collector)
a real model  set OPENAI_API_KEY (some cents a run)"""


def _scrape(observer: Observer) -> str:
    assert observer.metrics_url is not None
    with urllib.request.urlopen(observer.metrics_url, timeout=5) as response:  # noqa: S310 - our own http:// address
        page: bytes = response.read()
    return page.decode()


def _log_lines(lines: Sequence[str], spans: Sequence[ReadableSpan]) -> list[str]:
    """The first line of an LM call and the line of the whole run, of the trace that was shown if there is one."""
    ids = {f"{span.context.trace_id:032x}" for span in spans if span.context is not None}
    fitting = [line for line in lines if any(f'"{trace_id}"' in line for trace_id in ids)] or list(lines)
    return [
        next(line for line in fitting if f'"event": "{event}"' in line)
        for event in (conventions.LOG_LM_CALL, conventions.LOG_ROOT_CALL)
        if any(f'"event": "{event}"' in line for line in fitting)
    ]


def _print_raw(console: Console, lines: Sequence[str]) -> None:
    """As they are, so that they can be copied; the terminal wraps what is too long."""
    for line in lines:
        text = Text(line)
        text.highlight_regex(r"^[a-z_]+|[0-9.e+-]+$", "bold")
        console.print(text, soft_wrap=True)
    console.print()


def _settle(console: Console, provider: _Provider, board: Board, observed: dict[str, Tokens]) -> bool:
    """Compare every total with the bill, or with each other where the provider sends its bill by the month."""
    server, model = provider.server, provider.model
    if server is None or model is None:
        bill, title = observed["/metrics"], "bill: the provider's own; /metrics"
    else:
        bills = server.bills
        bill = Tokens(sum(each.prompt_tokens for each in bills), sum(each.completion_tokens for each in bills))
        title = "bill"
    differing = {source: tokens for source, tokens in observed.items() if tokens != bill}
    others = ", ".join(source for source in observed if source not in differing)
    said = "; ".join(f"{source} {count(it.prompt)} / {count(it.completion)}" for source, it in differing.items())
    verdict = Text(f"observed: DIFFERENT ({said})", "bold red") if said else Text(f"observed: same ({others})", "green")
    line = f"{title}: {count(bill.prompt)} prompt / {count(bill.completion)} completion tokens; "
    whole_lines = not console.is_terminal  # for whoever greps a log of this
    console.print(Text(line).append_text(verdict), soft_wrap=whole_lines)
    if server is not None and model is not None:
        requests, went_out = len(server.requests), board.went_out
        refusals = ", ".join(f"{number} with {status}" for status, number in sorted(model.refused.items())) or "none"
        console.print(
            f"{count(requests)} requests for {count(went_out)} LM calls: refused {refusals}; "
            f"{requests - went_out} were retries, {board.failed} calls failed",
            highlight=False,
            soft_wrap=whole_lines,
        )
    return not differing
