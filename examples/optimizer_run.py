"""Compile a program with two optimizers, and see what each trial cost and brought.

    python examples/optimizer_run.py

What it shows
    BootstrapFewShot and MIPROv2 run on a small task, each of them one trace: proposals, nested compiles, trials with
    their evaluations, and every call of the model below. Each line of the output is a branch of that trace with its
    calls, tokens and dollars; the sum is the provider's bill. What each optimizer returns is registered by itself as a
    version, evaluated on the development set, and the best one is deployed.
What it needs
    ``pip install dspy-observe optuna numpy`` (MIPROv2 asks for the last two). Without ``OPENAI_API_KEY`` a stand-in for
    the model answers on 127.0.0.1; it knows a ticket's subject, but not how this company calls its departments, unless
    the prompt tells. With the key, ``openai/gpt-4o-mini`` is asked, for a few cents.
Options
    ``--trials N`` (MIPROv2's), ``--train N`` and ``--dev N`` (tickets), ``--registry DIR_OR_URL`` to keep the versions.
    Set ``OTEL_EXPORTER_OTLP_ENDPOINT`` and the traces go to your collector; their ids are printed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dspy

import dspy_observe
from dspy_observe import CallRecord, RecordCallback
from dspy_observe.openai_server import ChatRequest, OpenAIServer
from dspy_observe.openai_server.answers import answer_prompt, chat_fields
from dspy_observe.registry import RegistryManager, SignatureRegistry

NAME = "ticket-routing"
MODEL = "openai/gpt-4o-mini"
SUBJECTS = {
    "billing": ("money", ("invoice", "refund", "payment", "charge")),
    "technical": ("IT support", ("crash", "error", "login", "update")),
    "delivery": ("logistics", ("parcel", "courier", "tracking", "order")),
}
"""How this company calls a department, how the model calls it by itself, and words of its tickets."""
PHRASES = ("A question about my {}", "The {} is not what I expected", "Please help, the {} again", "Where is my {}?")


class Route(dspy.Module):
    """Sends a ticket to a department."""

    def __init__(self) -> None:
        super().__init__()
        self.route = dspy.Predict(dspy.Signature("ticket -> department", "Name the department for the ticket."))

    def forward(self, ticket: str) -> dspy.Prediction:
        """Choose the department."""
        return self.route(ticket=ticket)


class Spending(RecordCallback):
    """Keeps the records of all calls, to add them up along the trace."""

    def __init__(self) -> None:
        self.records: list[CallRecord] = []

    def finished(self, record: CallRecord) -> None:
        """Keep one."""
        self.records.append(record)


class Branch:
    """A call with everything that it called, directly or not."""

    def __init__(self, root: CallRecord, children: dict[str | None, list[CallRecord]]) -> None:
        self.root = root
        self.parts = [Branch(child, children) for child in children[root.call_id]]
        below = list(itertools.chain.from_iterable(part.models for part in self.parts))
        self.models: list[CallRecord] = [root] if root.kind == "lm" else below

    def __str__(self) -> str:
        return totals(self.models)


def totals(models: list[CallRecord]) -> str:
    """Calls, tokens and dollars of LM calls; what is not known is not counted as nothing."""
    tokens = sum(record.usage.total or 0 for record in models if record.usage is not None)
    costs = [record.cost_usd for record in models]
    known = f"${sum(cost for cost in costs if cost is not None):.6f}"
    unpriced = sum(cost is None for cost in costs)
    cost = f"{known} and {unpriced} calls without a price" if unpriced else known
    return f"{len(models):4} calls  {tokens:7} tokens  {cost}"


def report(records: list[CallRecord]) -> None:
    """Print each optimizer's run: a line for each trial, one for everything else, one for the whole."""
    children: dict[str | None, list[CallRecord]] = defaultdict(list)
    for record in records:
        children[record.parent_id].append(record)
    for root in children[None]:
        if root.kind != "compile":
            continue
        whole = Branch(root, children)
        print(f"\n{root.name}" + (f"  trace {root.trace_id}" if root.trace_id else ""))
        trials = [part for part in whole.parts if part.root.kind == "evaluate"]
        for number, trial in enumerate(trials, 1):
            score = "unscored" if trial.root.score is None else f"{trial.root.score:4.0%} right"
            print(f"  trial {number:2}        {score}  {trial}")
        others = [record for part in whole.parts if part.root.kind != "evaluate" for record in part.models]
        print(f"  {'demos and proposals' if trials else 'demos':27} {totals(others)}")
        print(f"  {'in all':27} {whole}")


def run(registry: SignatureRegistry, observer: dspy_observe.Observer, sizes: argparse.Namespace) -> None:
    """Evaluate the program as written, compile it twice, deploy the best of the three."""
    train, dev = tickets(sizes.train), tickets(sizes.dev, start=sizes.train)
    program = Route()
    first = registry.register_program(NAME, program, version="as-written", factory=Route)
    observer.track(program, name=NAME, version=first.version)
    evaluate(program, dev)
    few = dspy.BootstrapFewShot(metric=right, max_bootstrapped_demos=2, max_labeled_demos=4)
    evaluate(few.compile(program, trainset=train), dev)
    mipro = dspy.MIPROv2(
        metric=right, auto=None, num_candidates=2, max_bootstrapped_demos=1, max_labeled_demos=1, num_threads=2, seed=1
    )
    # A minibatch of everything: each trial is evaluated on the whole validation set.
    best = mipro.compile(program, trainset=train, num_trials=sizes.trials, minibatch=False)
    evaluate(best, dev)
    scored = [version for version in registry.list_versions(NAME) if version.performance_score is not None]
    chosen = max(scored, key=lambda version: version.performance_score or 0.0)
    registry.deploy_version(NAME, chosen.version, reason="best on dev")


def evaluate(program: dspy.Module, dev: list[dspy.Example]) -> None:
    """The score is booked on the version that the program is tracked as."""
    judge = dspy.Evaluate(devset=dev, metric=right, num_threads=2, display_progress=False)
    judge(program, callback_metadata={"dataset": "dev"})


def right(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:  # noqa: ARG001 - DSPy gives it
    """Whether the ticket went to the right department."""
    return bool(example.department == prediction.department)


def tickets(count: int, start: int = 0) -> list[dspy.Example]:
    """Made up, and never the same twice."""
    subjects = list(SUBJECTS)
    made = []
    for number in range(start, start + count):
        department = subjects[number % len(subjects)]
        words = SUBJECTS[department][1]
        thing = words[number // len(subjects) % len(words)]
        text = f"{PHRASES[number % len(PHRASES)].format(thing)} (ticket {1000 + number})"
        made.append(dspy.Example(ticket=text, department=department).with_inputs("ticket"))
    return made


@contextmanager
def model() -> Iterator[tuple[dspy.LM, OpenAIServer | None]]:
    """OpenAI's where there is a key, else the stand-in, whose server knows what it billed."""
    if os.environ.get("OPENAI_API_KEY"):
        yield dspy.LM(MODEL, cache=False), None
        return
    with OpenAIServer(stand_in) as server:
        lm = dspy.LM(MODEL, api_base=server.base_url, api_key="none", cache=False)
        yield lm, server
        lm.close()


def stand_in(request: ChatRequest) -> str:
    """A department's name where instructions or examples in the prompt tell it, else a word of the model's own."""
    asked = chat_fields(request.system)
    if "proposed_instruction" in asked:
        names = ", ".join(SUBJECTS)
        return f"[[ ## proposed_instruction ## ]]\nName the department: {names}.\n\n[[ ## completed ## ]]"
    if "department" not in asked:
        return answer_prompt(request)
    shown = request.system + "".join(str(message.get("content")) for message in request.messages[:-1])
    for department, (own_word, words) in SUBJECTS.items():
        if re.search("|".join(words), request.prompt):
            known = re.search(rf"(?:^|: |, ){department}\b", shown, re.MULTILINE)
            return f"[[ ## department ## ]]\n{department if known else own_word}\n\n[[ ## completed ## ]]"
    return answer_prompt(request)


def main() -> None:
    """Run it in the registry of the command line."""
    parser = argparse.ArgumentParser(description="Compile with BootstrapFewShot and MIPROv2, observed.")
    parser.add_argument("--trials", type=int, default=4, help="of MIPROv2, after the one of the program as it is")
    parser.add_argument("--train", type=int, default=18, help="tickets to compile with, 6 or more")
    parser.add_argument("--dev", type=int, default=12, help="tickets to evaluate on")
    parser.add_argument("--registry", help="a folder or a URL; without it, a folder that is removed at the end")
    sizes = parser.parse_args()
    dspy.disable_logging()  # MIPROv2 tells its progress at length
    spending = Spending()
    with tempfile.TemporaryDirectory(prefix="dspy-observe-") as folder, model() as (lm, server):
        dspy.configure(lm=lm)
        with SignatureRegistry(sizes.registry or folder) as registry:
            if NAME in registry.list_signatures():
                sys.exit(f"{registry.location} holds {NAME!r} already: give a registry without it")
            options: dict[str, Any] = {"metrics": False, "logs": False, "extra": [spending]}
            with dspy_observe.configure(registry=RegistryManager(registry), **options) as observer:
                run(registry, observer, sizes)
            report(spending.records)
            print("\nVersions")
            for version in registry.list_versions(NAME):
                made_by = version.metadata.get("optimizer", "hand")
                here = "  <- deployed" if version.is_deployed else ""
                print(f"  {version.version}  by {made_by}: {version.performance_score or 0:.0%} right on dev{here}")
    models = [record for record in spending.records if record.kind == "lm"]
    print(f"\nAll in all {totals(models).strip()}")
    if server is not None:
        billed = sum(bill.prompt_tokens + bill.completion_tokens for bill in server.bills)
        print(f"The server billed {len(server.bills)} calls, {billed} tokens")


if __name__ == "__main__":
    main()
