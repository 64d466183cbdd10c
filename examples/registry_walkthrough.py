"""Versions of a program: compiled, registered, evaluated, deployed, compared, and rolled back.

    python examples/registry_walkthrough.py

Needs no key and no network: a stand-in for a model answers. It knows a ticket's subject, but calls two of the three
departments as it likes unless examples show it how this company calls them, so that compiling makes a difference.

The registry is a folder that is removed at the end. To keep it, and look at it with ``dspy-observe registry``:

    python examples/registry_walkthrough.py --registry ./dspy_registry
    python examples/registry_walkthrough.py --registry sqlite:///registry.db
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from typing import Any

import dspy
from dspy.teleprompt import BootstrapFewShot

import dspy_observe
from dspy_observe.registry import RegistryManager, SignatureRegistry, Version
from dspy_observe.testing import offline_lm

NAME = "ticket-triage"
SUBJECTS = {
    "billing": (r"invoice|charged|refund|payment", "billing"),
    "technical": (r"crash|error|login|slow", "IT support"),
    "delivery": (r"parcel|courier|tracking|arrive", "logistics"),
}
"""How this company calls a department, words of its tickets, and how the model calls it by itself."""
TRAIN = (
    ("I was charged twice this month", "billing"),
    ("The app shows an error when I save", "technical"),
    ("My parcel is still not here", "delivery"),
    ("Please send the invoice again", "billing"),
    ("The login page stays blank", "technical"),
    ("When will my order arrive?", "delivery"),
)
DEV = (
    ("I want a refund for June", "billing"),
    ("My payment was declined", "billing"),
    ("The invoice has the wrong address", "billing"),
    ("It takes minutes, everything is slow", "technical"),
    ("The app does crash on start", "technical"),
    ("An error appears after the update", "technical"),
    ("The courier left it at the neighbour's", "delivery"),
    ("Your tracking link is dead", "delivery"),
    ("The parcel came opened", "delivery"),
)


class Triage(dspy.Module):
    """Sends a ticket to the department that can answer it."""

    def __init__(self) -> None:
        super().__init__()
        self.route = dspy.Predict("ticket -> department")

    def forward(self, ticket: str) -> dspy.Prediction:
        """Choose the department."""
        return self.route(ticket=ticket)


def model(request: Any) -> dict[str, str]:
    """The stand-in: it uses a department's name if an example in the prompt shows it, else its own word."""
    *examples, question = [message.text for message in request.messages]
    shown = "\n".join(examples)
    ticket = question.partition("[[ ## ticket ## ]]")[2].partition("Respond with")[0]
    for department, (words, own_word) in SUBJECTS.items():
        if re.search(words, ticket, re.IGNORECASE):
            return {"department": department if f"[[ ## department ## ]]\n{department}" in shown else own_word}
    return {"department": "front desk"}


def right(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:  # noqa: ARG001 - DSPy gives it
    """Whether the ticket went to the right department."""
    return bool(example.department == prediction.department)


def examples(rows: tuple[tuple[str, str], ...]) -> list[dspy.Example]:
    """Rows as DSPy takes them."""
    return [dspy.Example(ticket=ticket, department=department).with_inputs("ticket") for ticket, department in rows]


def evaluate(program: dspy.Module) -> float:
    """Share of the development tickets that are routed right; the registry books it on the program's version."""
    run = dspy.Evaluate(devset=examples(DEV), metric=right, num_threads=1, display_progress=False)
    return float(run(program, callback_metadata={"dataset": "dev"}).score) / 100


def compiled_from(student: dspy.Module, rows: tuple[tuple[str, str], ...]) -> dspy.Module:
    """Compile with a real optimizer."""
    optimizer = BootstrapFewShot(metric=right, max_bootstrapped_demos=3, max_labeled_demos=6)
    return optimizer.compile(student, trainset=examples(rows))


def walk(registry: SignatureRegistry, observer: dspy_observe.Observer) -> None:
    """The life of three versions."""
    step("Register the program as it is written, evaluate it, deploy it")
    program = Triage()
    baseline = registry.register_program(NAME, program, version="baseline", factory=Triage)
    observer.track(program, name=NAME, version=baseline.version)
    evaluate(program)
    show(registry.deploy_version(NAME, baseline.version, reason="first release"))

    step("Compile it: what the optimizer returns registers itself, and its evaluation is booked")
    better = compiled_from(program, TRAIN)
    evaluate(better)
    tuned = registry.list_versions(NAME)[-1]
    show(tuned)
    print(f"  made by {tuned.metadata['optimizer']} from the training set {tuned.metadata['trainset_sha256'][:12]}")

    step("Compare it with what is deployed, then deploy it")
    compare(registry, tuned, baseline)
    show(registry.deploy_version(NAME, tuned.version, expected_version=baseline.version, reason="better on dev"))

    step("Compile again, from tickets of a week in which everybody asked about bills, and deploy without looking")
    narrow = compiled_from(program, tuple(row for row in TRAIN if row[1] == "billing"))
    hasty = registry.list_versions(NAME)[-1]
    show(registry.deploy_version(NAME, hasty.version, reason="fresh data"))
    evaluate(narrow)
    compare(registry, hasty, tuned)

    step("Roll back: the version before runs again, the bad one is quarantined")
    show(registry.rollback(NAME, reason="routes only bills", expected_version=hasty.version))
    print(f"  {hasty.version} is quarantined: {registry.get_version(NAME, hasty.version).quarantined}")

    step("Load what is deployed, and ask it")
    live = registry.load_program(NAME, Triage)
    ticket = "The courier never came"
    print(f"  {ticket!r} goes to {live(ticket=ticket).department}")

    step("What happened")
    for entry in registry.deployment_log(NAME):
        print(f"  {entry.generation}  {entry.previous or '-'} -> {entry.version}  ({entry.reason})")


def step(title: str) -> None:
    """A heading."""
    print(f"\n{title}")


def show(version: Version) -> None:
    """One version on a line."""
    score = "unscored" if version.performance_score is None else f"{version.performance_score:.0%} right"
    where = f", runs in {', '.join(version.deployed_in)}" if version.deployed_in else ""
    print(f"  {version.version} ({version.version_hash[:12]}): {score}{where}")


def compare(registry: SignatureRegistry, new: Version, old: Version) -> None:
    """What is different between two versions."""
    found = registry.compare_versions(NAME, new.version, old.version)
    print(f"  {new.version} against {old.version}: {found.performance_difference:+.0%} on {found.dataset}")
    for change in found.configuration_changes:
        print(f"    {change}")


def main() -> None:
    """Walk through it in the registry of the command line."""
    parser = argparse.ArgumentParser(description="Compile, register, evaluate, deploy, compare and roll back.")
    parser.add_argument("--registry", help="a folder or a URL; without it, a folder that is removed at the end")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dspy-observe-") as folder:
        dspy.configure(lm=offline_lm(model))
        with SignatureRegistry(arguments.registry or folder) as registry:
            if NAME in registry.list_signatures():
                sys.exit(f"{registry.location} holds {NAME!r} already: give a registry without it")
            manager = RegistryManager(registry)
            with dspy_observe.configure(registry=manager, metrics=False, tracing=False, logs=False) as observer:
                walk(registry, observer)


if __name__ == "__main__":
    main()
