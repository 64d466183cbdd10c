"""The verbs of ``dspy-observe registry`` that change something. Each is refused whole or done whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dspy_observe.cli_options import (
    Actor,
    DryRun,
    Environment,
    Expected,
    Generation,
    Json,
    Location,
    Name,
    Reason,
    VersionName,
    opened,
)
from dspy_observe.cli_tables import answer_json, counted, refuse, refusing, say, table
from dspy_observe.registry import RegistryManager
from dspy_observe.registry.baselines import prospects

__all__ = ["app"]

app = typer.Typer()


@app.command()
@refusing
def deploy(
    name: Name,
    version: Annotated[str | None, typer.Argument(help="A version's name, alias or hash.")] = None,
    strategy: Annotated[
        str | None, typer.Option(help="Choose the version: conservative, aggressive or best_score.")
    ] = None,
    source: Annotated[str | None, typer.Option("--from", help="Take what this environment runs.")] = None,
    environment: Environment = "production",
    expect_generation: Generation = None,
    expect_version: Expected = None,
    reason: Reason = None,
    actor: Actor = None,
    force: Annotated[bool, typer.Option("--force", help="Also what is quarantined or not approved.")] = False,
    registry: Location = None,
    as_json: Json = False,
) -> None:
    """Make an environment run a version: one that is named, the best one, or what another environment runs.

    Example: dspy-observe registry deploy text_classifier v20240116_091500 --reason "better on dev"
    """
    if sum(one is not None for one in (version, strategy, source)) != 1:
        raise typer.BadParameter("name a VERSION, or give --strategy, or --from; one of them")
    if version is None and (force or expect_version is not None):
        raise typer.BadParameter("--force and --expect-version need a VERSION")
    if strategy is not None and (expect_generation is not None or reason is not None):
        raise typer.BadParameter("--strategy finds reason and generation itself")
    with opened(registry) as store:
        if version is not None:
            done = store.deploy_version(
                name, version, environment=environment, expected_generation=expect_generation,
                expected_version=expect_version, actor=actor, reason=reason, force=force,
            )  # fmt: skip
        elif source is not None:
            done = store.promote(
                name, source=source, environment=environment, expected_generation=expect_generation, actor=actor,
                reason=reason,
            )  # fmt: skip
        else:
            manager = RegistryManager(store)
            verdict = manager.judge_strategy(name, strategy, environment=environment)
            running = manager.deploy_with_strategy(name, strategy, environment=environment, actor=actor)
            if running is None and verdict.outcome == "nothing_to_do":
                running = store.get_deployed_version(name, environment=environment)
            if running is None:
                refuse(verdict.reason, as_json=as_json, kind=verdict.outcome)
            done = running
        said = prospects(store, name, done.version, environment=environment)
    if as_json:
        answer_json({**done.to_dict(), "monitoring": said})
    else:
        say(f"{environment} runs {name} {done.version}", said)


@app.command()
@refusing
def rollback(
    name: Name,
    environment: Environment = "production",
    expect_generation: Generation = None,
    expect_version: Expected = None,
    reason: Reason = None,
    actor: Actor = None,
    registry: Location = None,
    as_json: Json = False,
) -> None:
    """Go back to the last good version and quarantine the one that is left.

    Example: dspy-observe registry rollback text_classifier --reason "wrong answers since noon"
    """
    with opened(registry) as store:
        done = store.rollback(
            name, environment=environment, expected_generation=expect_generation, expected_version=expect_version,
            actor=actor, reason=reason,
        )  # fmt: skip
    if as_json:
        answer_json(done.to_dict())
    else:
        say(f"{environment} runs {name} {done.version} again")


@app.command()
@refusing
def quarantine(
    name: Name,
    version: VersionName,
    reason: Annotated[str, typer.Option(help="What is wrong with it.")],
    actor: Actor = None,
    registry: Location = None,
    as_json: Json = False,
) -> None:
    """Mark a version as bad: nothing deploys it and no rollback takes it. What runs it goes on.

    Example: dspy-observe registry quarantine text_classifier v20240116_091500 --reason "leaks names"
    """
    with opened(registry) as store:
        done = store.quarantine(name, version, reason=reason, actor=actor)
    if as_json:
        answer_json(done.to_dict())
    else:
        say(f"{name} {done.version} is quarantined")
        say(*(f"{where} still runs it; see rollback" for where in done.deployed_in))


@app.command()
@refusing
def score(
    name: Name,
    version: VersionName,
    value: Annotated[float, typer.Argument(help="Higher is better; write -- before a negative one.")],
    dataset: Annotated[str | None, typer.Option(help="What it was measured on.")] = None,
    n: Annotated[int | None, typer.Option(help="Examples that it is the mean of.")] = None,
    stdev: Annotated[float | None, typer.Option(help="Standard deviation of one example's score.")] = None,
    source: Annotated[str, typer.Option(help="Who measured.")] = "manual",
    score_id: Annotated[str | None, typer.Option(help="The same one counts once.")] = None,
    registry: Location = None,
    as_json: Json = False,
) -> None:
    """Add a score to a version; earlier ones stay.

    Example: dspy-observe registry score text_classifier v20240116_091500 0.92 --dataset dev --n 200
    """
    with opened(registry) as store:
        done = store.update_performance_score(
            name, version, value, dataset=dataset, n=n, stdev=stdev, source=source, score_id=score_id
        )
    if as_json:
        answer_json(done.to_dict())
    else:
        say(f"{name} {done.version} has {done.performance_score:g}")


@app.command()
@refusing
def export(
    file: Annotated[Path, typer.Argument(help="The YAML file to write; one that is there is replaced.")],
    registry: Location = None,
    as_json: Json = False,
) -> None:
    """Write the whole registry into one file.

    Example: dspy-observe registry export backup.yml
    """
    with opened(registry) as store:
        store.export_registry(file)
        signatures = store.list_signatures()
    if as_json:
        answer_json({"file": str(file), "signatures": signatures})
    else:
        say(f"{counted(len(signatures), 'signature')} written to {file}")


@app.command("import")
@refusing
def import_(
    file: Annotated[Path, typer.Argument(help="What export wrote.")],
    dry_run: DryRun = False,
    registry: Location = None,
    as_json: Json = False,
) -> None:
    """Add what an export holds; nothing that is here is changed. A registry is made where there is none.

    Example: dspy-observe registry import backup.yml --registry sqlite:///registry.db --dry-run
    """
    with opened(registry, new=not dry_run) as store:
        done = store.import_registry(file, dry_run=dry_run)
    if as_json:
        answer_json(done.to_dict())
        return
    would = "would be added" if dry_run else "added"
    new = f"{counted(len(done.added), 'version')} and {counted(done.scores, 'score')}"
    say(f"{new} {would}; here before: {counted(done.present, 'version')}")
    say(*done.added, *(f"Note: {conflict}" for conflict in done.conflicts))


@app.command()
@refusing
def cleanup(
    keep: Annotated[int | None, typer.Option(min=1, help="How many of the newest versions stay; 5 unless set.")] = None,
    dry_run: DryRun = False,
    registry: Location = None,
    as_json: Json = False,
) -> None:
    """Remove old versions. What runs, what a rollback would take and what has an alias always stays.

    Example: dspy-observe registry cleanup --keep 10 --dry-run
    """
    with opened(registry) as store:
        done = RegistryManager(store).cleanup_old_versions(dry_run=dry_run, keep=keep)
    if as_json:
        answer_json(done.to_dict())
        return
    if done.removed:
        table(("signature", "would be removed" if dry_run else "removed"), done.removed.items())
    gone = f"{counted(done.cleaned_versions, 'version')} of {counted(done.cleaned_signatures, 'signature')}"
    say(f"{gone} {'would be removed' if dry_run else 'removed'}" if done.removed else "nothing to remove")
