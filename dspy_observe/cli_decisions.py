"""``dspy-observe decisions``: why each rollback did or did not happen, and the switches of automatic rollback.

Nothing here imports DSPy. Exit codes: 0 done, 1 refused with the reason, 2 wrong usage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from dspy_observe.cli_options import Actor, Environment, Json, Location, Name, Reason, opened
from dspy_observe.cli_tables import answer_json, details, refuse, refusing, say, table
from dspy_observe.errors import ConfigurationError
from dspy_observe.registry.models import Control
from dspy_observe.registry.records import Decision
from dspy_observe.rollback.deciding import approve as approve_decision
from dspy_observe.rollback.deciding import find, recent
from dspy_observe.rollback.policy import OUTCOMES, Limits

__all__ = ["app"]

_ID_DIGITS = 10

app = typer.Typer(
    help="""Decisions about rolling back: what was decided, why, and how to say yes, no or not now.

    Example: dspy-observe decisions list --program text_classifier --registry sqlite:///registry.db
    """,
    no_args_is_help=True,
)
DecisionId = Annotated[str, typer.Argument(help="The decision's id, or its first digits.", show_default=False)]


@app.command("list")
@refusing
def list_(
    program: Annotated[str | None, typer.Option("--program", "-p", help="Only this one.")] = None,
    environment: Annotated[str | None, typer.Option("--environment", "-e", help="Only this one.")] = None,
    outcome: Annotated[str | None, typer.Option(help="Only these, such as rollback or held.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most the last so many.")] = 50,
    every: Annotated[bool, typer.Option("--all", help="One line each, also for repeats.")] = False,
    registry: Location = None,
    as_json: Json = False,
) -> None:
    """Tell why each rollback did or did not happen, oldest first; repeats of one answer stand in one line.

    Example: dspy-observe decisions list --outcome held
    """
    if outcome is not None and outcome not in OUTCOMES:
        raise ConfigurationError("--outcome", f"{outcome!r} is not known", f"Use one of {', '.join(OUTCOMES)}")
    with opened(registry) as store:
        found = recent(store, program=program, environment=environment, outcome=outcome, limit=limit)
    if as_json:
        answer_json([{"program": name, **one.to_dict()} for name, one in found])
        return
    rows = [(name, one, 1) for name, one in found] if every else _folded(found)
    if not rows:
        say("No decisions yet.")
        return
    table(
        ("time", "id", "program", "environment", "outcome", "version", "to", "by", "reason"),
        (
            (
                one.at, one.decision_id[:_ID_DIGITS], name, one.environment,
                one.outcome if times == 1 else f"{one.outcome} x{times}", one.version, one.target, one.trigger,
                one.reason,
            )
            for name, one, times in rows
        ),
    )  # fmt: skip


def _folded(found: Sequence[tuple[str, Decision]]) -> list[tuple[str, Decision, int]]:
    """The same answer to the same alert again and again, as the last of them with their number."""
    rows: dict[tuple[str | None, ...], tuple[str, Decision, int]] = {}
    for name, one in found:
        # What is held is held for reasons with seconds in them; the alert and the outcome tell one line from another.
        key: tuple[str | None, ...] = (one.decision_id,)
        if one.fingerprint is not None and not one.applied:
            key = (name, one.environment, one.outcome, one.version, one.fingerprint, one.starts_at)
        before = rows.pop(key, None)
        rows[key] = (name, one, 1 if before is None else before[2] + 1)
    return list(rows.values())


@app.command()
@refusing
def show(decision_id: DecisionId, registry: Location = None, as_json: Json = False) -> None:
    """Show everything that was known when it was decided: labels, figures, limits, how things stood.

    Example: dspy-observe decisions show 1f3a9c
    """
    with opened(registry) as store:
        program, one = find(store, decision_id)
    found = {"program": program, **one.to_dict()}
    if as_json:
        answer_json(found)
    else:
        details((key.replace("_", " "), value) for key, value in found.items())


@app.command()
@refusing
def approve(
    decision_id: DecisionId,
    reason: Reason = None,
    actor: Actor = None,
    registry: Location = None,
    as_json: Json = False,
) -> None:
    """Carry out a rollback that was held, if its version still is deployed; your name is kept with it.

    Example: dspy-observe decisions approve 1f3a9c --reason "seen the traces"
    """
    with opened(registry) as store:
        made = approve_decision(store, decision_id, Limits(), actor=actor, reason=reason)
    if made.outcome != "rollback" or made.decision is None:
        refuse(f"{made.outcome}: {made.reason}", as_json=as_json, kind=made.outcome)
    if as_json:
        answer_json(made.to_dict())
    else:
        say(f"{made.environment} runs {made.program} {made.decision.target} again")


@app.command()
@refusing
def freeze(
    name: Name,
    environment: Environment = "production",
    reason: Reason = None,
    actor: Actor = None,
    registry: Location = None,
    as_json: Json = False,
) -> None:
    """Let nothing be rolled back by itself until unfreeze; by hand it stays possible.

    Example: dspy-observe decisions freeze text_classifier --reason "incident 7"
    """
    with opened(registry) as store:
        made = store.freeze(name, environment=environment, actor=actor, reason=reason)
    _answer(made, f"{name} is frozen in {environment}: {made.frozen_reason}", as_json)


@app.command()
@refusing
def unfreeze(
    name: Name,
    environment: Environment = "production",
    reason: Reason = None,
    actor: Actor = None,
    registry: Location = None,
    as_json: Json = False,
) -> None:
    """Let automatic rollback work again, with a new budget.

    Example: dspy-observe decisions unfreeze text_classifier --reason "mended"
    """
    with opened(registry) as store:
        made = store.unfreeze(name, environment=environment, actor=actor, reason=reason)
    _answer(made, f"{name} is not frozen in {environment}; its mode is {made.mode}", as_json)


@app.command()
@refusing
def mode(
    name: Name,
    mode: Annotated[str | None, typer.Argument(help="auto, approve, dry-run or off; else it is shown.")] = None,
    environment: Environment = "production",
    reason: Reason = None,
    actor: Actor = None,
    registry: Location = None,
    as_json: Json = False,
) -> None:
    """Show or set how far automatic rollback may go; it holds for all receivers and monitors at once.

    Example: dspy-observe decisions mode text_classifier approve --reason "launch week"
    """
    with opened(registry) as store:
        made = (
            store.control(name, environment=environment)
            if mode is None
            else store.set_mode(name, mode, environment=environment, actor=actor, reason=reason)
        )
    if mode is None and not as_json:
        details((key.replace("_", " "), value) for key, value in made.to_dict().items())
    else:
        _answer(made, f"the mode of {name} in {environment} is {made.mode}", as_json)


def _answer(made: Control, words: str, as_json: bool) -> None:
    """Tell how things stand after a switch."""
    if as_json:
        answer_json(made.to_dict())
    else:
        say(words)
