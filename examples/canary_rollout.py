"""Bring a new version to a tenth of the users, to all of them while it does well, and back to none when it does not.

    python examples/canary_rollout.py

What it shows
    Two rollouts. The first candidate is better: it gets 10 % of the users, then half, then all, a step each time that
    enough answers were scored and the evidence finds nothing wrong. The second one looks harmless and is worse: it is
    stopped at its 10 % by the evidence alone, quarantined, and never gets further. Users who met the candidate keep
    it, by their key; every score is booked on the version that answered; the state lies in the registry, so that all
    processes of a service take the same steps.
What it needs
    ``pip install dspy-observe``. Without ``OPENAI_API_KEY`` a stand-in for the model answers on 127.0.0.1: it knows
    what a ticket is about, and calls a department by its name if the instructions have it. With the key,
    ``openai/gpt-4o-mini`` is asked, a few thousand times.
Options
    ``--users N``, ``--min-samples N`` (answers of the candidate in a step), ``--registry DIR_OR_URL``,
    ``--metrics-port P`` to watch the shares and scores in Grafana.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import dspy

import dspy_observe
from dspy_observe.openai_server import ChatRequest, OpenAIServer
from dspy_observe.registry import SignatureRegistry
from dspy_observe.rollback.monitor import Monitor, MonitorOptions
from dspy_observe.serving.routing import Router

NAME = "ticket-router"
MODEL = "openai/gpt-4o-mini"
STEPS = (0.1, 0.5, 1.0)
WORDS = {"billing": r"invoice|refund", "technical": r"crash|login", "delivery": r"parcel|courier"}
TICKETS = {
    "billing": ("Please send the invoice again", "When do I get my refund?"),
    "technical": ("It crashes on start", "The login page stays blank"),
    "delivery": ("My parcel is still not here", "The courier left it at the neighbour's"),
}
INSTRUCTIONS = {
    "v1": "Name the department for the ticket: billing or technical.",
    "v2": "Name the department for the ticket: billing, technical or delivery.",
    "v3": "Name the department for the ticket. If in doubt, choose billing.",
}
"""The second one knows a department more; the third one is shorter, and forgets two."""


class TicketRouter(dspy.Module):
    """Sends a ticket to a department."""

    def __init__(self) -> None:
        super().__init__()
        self.route = dspy.Predict("ticket -> department")

    def forward(self, ticket: str) -> dspy.Prediction:
        """Choose the department."""
        return self.route(ticket=ticket)


class Users:
    """A crowd that sends tickets and says whether they went to the right department.

    Args:
        count: How many they are.
    """

    def __init__(self, count: int) -> None:
        self._names = [f"user {number}" for number in range(count)]
        self._luck = random.Random(7)  # noqa: S311 - no secret
        self.right: dict[str, list[bool]] = defaultdict(list)
        self.moved: set[str] = set()
        self.sent_back = 0

    def ask(self, router: Router, observer: dspy_observe.Observer, candidate: str) -> None:
        """One of them sends a ticket; their score is booked on the version that answered."""
        name, department = self._luck.choice(self._names), self._luck.choice(list(TICKETS))
        version = str(router.assign(name).version)
        answer = router(key=name, ticket=self._luck.choice(TICKETS[department]))
        fine = bool(answer.department == department)
        observer.score(answer, float(fine), source="user")
        self.right[version].append(fine)
        if version == candidate:
            self.moved.add(name)
        elif router.shares()["canary"]:  # while the candidate is on its way, nobody who has it loses it
            self.sent_back += name in self.moved


def roll_out(router: Router, observer: dspy_observe.Observer, users: Users, candidate: str) -> str:
    """Let users ask until the rollout ends; tell each step, and return how it ended."""
    asked = 0
    while True:
        rollout = router.status().rollout
        if rollout is None or not rollout.running:
            break
        share, step = router.shares()["canary"], rollout.step
        while rollout is not None and rollout.running and rollout.step == step:
            for _ in range(20):
                users.ask(router, observer, candidate)
            asked += 20
            router.refresh()  # also by itself every few seconds
            rollout = router.status().rollout
        told = ", ".join(
            f"{version} {sum(right) / len(right):4.0%} right of {len(right)}"
            for version, right in sorted(users.right.items())
        )
        print(f"  {share:4.0%} to {candidate}: {told}")
        users.right.clear()
    assert rollout is not None
    print(f"  {len(users.moved)} users met {candidate}, {users.sent_back} of them were sent back and forth")
    print(f"  {rollout.state} after {asked} questions: {rollout.reason}")
    return rollout.state


def run(registry: SignatureRegistry, options: argparse.Namespace) -> None:
    """One deployed version, a better candidate, and a worse one."""
    for version, instructions in INSTRUCTIONS.items():
        program = TicketRouter()
        program.route.signature = program.route.signature.with_instructions(instructions)
        registry.register_program(NAME, program, version=version, factory=TicketRouter)
    registry.deploy_version(NAME, "v1", reason="first release")
    metrics = dspy_observe.Metrics(port=options.metrics_port)
    judge = Monitor(registry, NAME, options=MonitorOptions(min_scores=30, flush_s=0.2), metrics=metrics)
    rollout = {
        "steps": STEPS,
        "min_samples": options.min_samples,
        "min_step_s": 0.0,
        "verdicts": judge,
        "refresh_s": 0.2,
    }
    with judge, dspy_observe.configure(registry=registry, metrics=metrics, logs=False, extra=[judge]) as observer:
        for candidate in ("v2", "v3"):
            print(f"\n{candidate}: {INSTRUCTIONS[candidate]!r}")
            with Router(registry, NAME, TicketRouter, candidate, metrics=metrics, **rollout) as router:
                roll_out(router, observer, Users(options.users), candidate)
    print("\nWhat the registry says")
    for version in registry.list_versions(NAME):
        state = f"quarantined: {version.quarantined}" if version.quarantined is not None else "may run"
        here = ", deployed" if version.is_deployed else ""
        print(f"  {version.version}  {state}{here}")


@contextmanager
def model() -> Iterator[dspy.LM]:
    """OpenAI's where there is a key, else the stand-in."""
    if os.environ.get("OPENAI_API_KEY"):
        yield dspy.LM(MODEL)
        return
    with OpenAIServer(stand_in) as server:
        lm = dspy.LM(MODEL, api_base=server.base_url, api_key="none", cache=False)
        yield lm
        lm.close()


def stand_in(request: ChatRequest) -> str:
    """The stand-in's reply."""
    department = next(name for name, words in WORDS.items() if re.search(words, request.prompt))
    if department not in request.system:
        department = "front desk"
    return f"[[ ## department ## ]]\n{department}\n\n[[ ## completed ## ]]"


def main() -> None:
    """Run it in the registry of the command line."""
    parser = argparse.ArgumentParser(description="Two candidates, one brought to all users and one stopped.")
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--min-samples", type=int, default=60, help="answers of the candidate in each step, 30 or more")
    parser.add_argument("--registry", help="a folder or a URL; without it, a folder that is removed at the end")
    parser.add_argument("--metrics-port", type=int, help="serve Prometheus metrics here meanwhile")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dspy-observe-") as folder, model() as lm:
        dspy.configure(lm=lm)
        with SignatureRegistry(options.registry or folder) as registry:
            if NAME in registry.list_signatures():
                sys.exit(f"{registry.location} holds {NAME!r} already: give a registry without it")
            run(registry, options)


if __name__ == "__main__":
    main()
