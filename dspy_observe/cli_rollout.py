"""``dspy-observe rollout``: bring a candidate to the traffic step by step, look at it, and stop it.

What is done here is followed by every process that serves through a ``Router`` on the same registry, within moments.
Exit codes: 0 done, 1 refused with the reason, 2 wrong usage.
"""

from __future__ import annotations

from typing import Annotated

import typer

from dspy_observe.cli_options import Actor, Environment, Json, Location, Name, Reason, VersionName, opened
from dspy_observe.cli_tables import answer_json, details, refuse, refusing, say
from dspy_observe.registry.core import PRODUCTION
from dspy_observe.registry.rollouts import BUCKETS, Rollout

__all__ = ["app"]

app = typer.Typer(
    help="""Candidates on their way to all traffic: 5, 25, 50, 100 %, on evidence.

    Example: dspy-observe rollout status text_classifier
    """,
    no_args_is_help=True,
)

_KEYS_DIGITS = 8


@app.command()
@refusing
def start(
    name: Name,
    version: VersionName,
    steps: Annotated[str, typer.Option(help="Shares of the candidate in percent, rising to 100.")] = "5,25,50,100",
    control: Annotated[float, typer.Option(help="Percent that keep the old version once it is deployed.")] = 0.0,
    min_samples: Annotated[int, typer.Option(help="Calls that the candidate answers in a step, at least.")] = 200,
    min_step_s: Annotated[float, typer.Option(help="Seconds that a step lasts, at least.")] = 600.0,
    experiment: Annotated[str | None, typer.Option(help="Its id; the same one a second time changes nothing.")] = None,
    environment: Environment = "production",
    reason: Reason = None,
    actor: Actor = None,
    registry: Location = None,
    as_json: Json = False,
) -> None:
    """Begin to bring a candidate to the traffic.

    Example: dspy-observe rollout start text_classifier v20240116_091500 --steps 10,50,100
    """
    try:
        shares = [float(share) / 100 for share in steps.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--steps {steps}: write percents such as 5,25,50,100") from None
    with opened(registry) as store:
        made = store.start_rollout(
            name, version, environment=environment, steps=shares, control=control / 100, min_samples=min_samples,
            min_step_s=min_step_s, experiment=experiment, actor=actor, reason=reason,
        )  # fmt: skip
    _answer(name, environment, made, as_json)


@app.command()
@refusing
def status(
    name: Name, environment: Environment = "production", registry: Location = None, as_json: Json = False
) -> None:
    """Show the rollout that runs, or ran last, with every step and why it was taken.

    A program that is frozen takes no step by itself; then the reason is shown (frozen in JSON).

    Example: dspy-observe rollout status text_classifier --json
    """
    with opened(registry) as store:
        view = store.rollout_view(name, environment=environment)
    found = view.rollout
    if found is None:
        refuse(f"there was no rollout of {name} in {environment}", as_json=as_json, kind="NoRollout")
    frozen = view.frozen if found.running else None
    if as_json:
        answer_json({**_plain(found), "frozen": frozen})
        return
    details((
        ("candidate", found.version), ("beside", found.base), ("state", found.state), ("reason", found.reason),
        ("share", f"{found.share / BUCKETS:.2%}"), ("step", f"{found.step + 1} of {len(found.steps)}"),
        ("since", found.step_at), ("at least", f"{found.min_samples} calls, {found.min_step_s:g} s"),
        ("calls in this step", ", ".join(f"{role} {count}" for role, count in sorted(found.calls.items()))),
        ("experiment", found.experiment), ("generation", found.generation),
    ))  # fmt: skip
    say(*found.history)
    if frozen is not None:
        where = "" if environment == PRODUCTION else f" --environment {environment}"
        say(
            f"It waits: {name} is frozen in {environment} ({frozen}). It goes on after "
            f"dspy-observe decisions unfreeze {name}{where}; by hand it can be advanced or stopped as it is."
        )


@app.command()
@refusing
def advance(
    name: Name,
    expect_generation: Annotated[int | None, typer.Option(help="Refuse unless the rollout is at this one.")] = None,
    environment: Environment = "production",
    reason: Reason = None,
    actor: Actor = None,
    registry: Location = None,
    as_json: Json = False,
) -> None:
    """Take the next step by hand; the last one deploys the candidate.

    Example: dspy-observe rollout advance text_classifier --reason "looked at the answers"
    """
    with opened(registry) as store:
        moved = store.advance_rollout(
            name, environment=environment, expected_generation=expect_generation, actor=actor, reason=reason
        )
    _answer(name, environment, moved, as_json)


@app.command()
@refusing
def stop(
    name: Name,
    regressed: Annotated[bool, typer.Option("--regressed", help="It is bad: quarantine it.")] = False,
    environment: Environment = "production",
    reason: Reason = None,
    actor: Actor = None,
    registry: Location = None,
    as_json: Json = False,
) -> None:
    """Take the candidate's share to 0; what is deployed answers everybody.

    Example: dspy-observe rollout stop text_classifier --regressed --reason "leaks names"
    """
    with opened(registry) as store:
        stopped = store.stop_rollout(name, environment=environment, regressed=regressed, actor=actor, reason=reason)
    _answer(name, environment, stopped, as_json)


def _answer(name: str, environment: str, rollout: Rollout, as_json: bool) -> None:
    if as_json:
        answer_json(_plain(rollout))
    elif rollout.state == "promoted":
        say(f"{environment} runs {name} {rollout.version}")
    else:
        say(f"{name} {rollout.version} gets {rollout.share / BUCKETS:.2%} of {environment} ({rollout.state})")


def _plain(rollout: Rollout) -> dict[str, object]:
    """As plain data: shares from 0 to 1, and how many keys are in the sample instead of the sample."""
    keys = {role: len(text) // _KEYS_DIGITS for role, text in rollout.sampled.items()}
    shares = {"steps": [step / BUCKETS for step in rollout.steps], "control": rollout.control / BUCKETS}
    return {**rollout.to_dict(), **shares, "share": rollout.share / BUCKETS, "sampled": keys}
