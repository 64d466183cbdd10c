"""``dspy-observe registry``: what is registered, deployed and measured, and the verbs that change it.

Nothing here imports DSPy. Exit codes: 0 done, 1 refused with the reason, 2 wrong usage.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dspy_observe.cli_options import Environment, Json, Location, Name, VersionName, opened
from dspy_observe.cli_registry_changes import app as changes
from dspy_observe.cli_tables import answer_json, details, refuse, refusing, say, table
from dspy_observe.errors import ObserveError
from dspy_observe.registry import RegistryManager, SignatureRegistry, UnknownVersion

__all__ = ["app"]

app = typer.Typer(
    help="""Versions of programs, their scores and deployments.

    The registry is --registry, a folder or URL (sqlite:///file.db, postgresql+psycopg://user@host/name); else the
    variable DSPY_OBSERVE_REGISTRY_PATH; else DSPY_OBSERVE_REGISTRY; else ./dspy_registry. Programs read the same.
    Exit codes: 0 done, 1 refused with the reason, 2 wrong usage.

    Example: dspy-observe registry status --registry sqlite:///registry.db
    """,
    no_args_is_help=True,
)


@app.command("list")
@refusing
def list_(
    name: Annotated[str | None, typer.Argument(help="List this signature's versions.")] = None,
    environment: Environment = "production",
    registry: Location = None,
    as_json: Json = False,
) -> None:
    """List the signatures, or the versions of one.

    Example: dspy-observe registry list text_classifier --json
    """
    with opened(registry) as store:
        if name is None:
            _list_signatures(store, environment, as_json)
            return
        versions = store.list_versions(name, environment=environment)
    if as_json:
        answer_json([one.to_dict() for one in versions])
        return
    table(
        ("version", "created", "score", "deployed in", "aliases", "quarantined", "author"),
        (
            (v.version, v.created_at, v.performance_score, v.deployed_in, v.aliases, v.quarantined, v.author)
            for v in versions
        ),
    )


def _list_signatures(store: SignatureRegistry, environment: str, as_json: bool) -> None:
    rows: list[dict[str, Any]] = []
    broken = []
    for name in store.list_signatures():
        try:
            versions = store.list_versions(name, environment=environment)
        except ObserveError as error:  # one damaged file does not hide the other signatures
            broken.append(f"{name}: {error}")
            continue
        running = next((one for one in versions if one.is_deployed), None)
        rows.append({
            "signature_name": name, "versions": len(versions),
            "latest_version": versions[-1].version if versions else None,
            "deployed_version": None if running is None else running.version,
            "performance_score": None if running is None else running.performance_score,
        })  # fmt: skip
    if as_json and not broken:
        answer_json(rows)
    elif not as_json:
        table(("signature", "versions", "latest", f"{environment} runs", "score"), (list(row.values()) for row in rows))
    if broken:
        refuse("\n".join(broken), as_json=as_json)


@app.command()
@refusing
def show(
    name: Name,
    version: Annotated[str | None, typer.Argument(help="Name, alias or hash; else what is deployed.")] = None,
    environment: Environment = "production",
    registry: Location = None,
    as_json: Json = False,
) -> None:
    """Show everything about one version.

    Example: dspy-observe registry show text_classifier v20240115_143022
    """
    with opened(registry) as store:
        if version is None:
            running = store.pointer(name, environment=environment)
            if running is None:
                raise UnknownVersion.nothing_deployed(name, environment)
            version = running.version
        found = store.get_version(name, version, environment=environment).to_dict()
    if as_json:
        answer_json(found)
    else:
        details((key.replace("_", " "), value) for key, value in found.items() if key != "created")


@app.command()
@refusing
def diff(
    name: Name,
    version: VersionName,
    other: Annotated[str | None, typer.Argument(help="The newer one; else VERSION is, against what runs.")] = None,
    environment: Environment = "production",
    registry: Location = None,
    as_json: Json = False,
) -> None:
    """Tell what changed from one version to another: scores, configuration, instructions, demos, LM, tools.

    Example: dspy-observe registry diff text_classifier v20240115_143022 v20240116_091500
    """
    with opened(registry) as store:
        new, old = (version, None) if other is None else (other, version)
        if old is None:
            running = store.pointer(name, environment=environment)
            if running is None:
                raise UnknownVersion.nothing_deployed(name, environment)
            old = running.version
        found = store.compare_versions(name, new, old, environment=environment)
    if as_json:
        answer_json(found.to_dict())
        return
    from dspy_observe.registry.programs import Change, PredictorDiff

    sides = (found.version_2, found.version_1)
    table(
        ("", "version", "created", "score", "data set", "n", "deployed"),
        (
            (word, one.version, one.created_at, one.performance_score, one.dataset, one.n, one.is_deployed)
            for word, one in zip(("from", "to"), sides, strict=True)
        ),
    )
    if found.performance_difference is not None:
        say(f"Score: {found.performance_difference:+.4g}" + (f" on {found.dataset}" if found.dataset else ""))
    say(*found.configuration_changes)
    for one in found.program_changes:
        say(str(PredictorDiff(one["predictor"], tuple(Change(**change) for change in one["changes"]))))
    if not found.configuration_changes and not found.program_changes:
        say("The content is the same.")
    say(*(f"Note: {warning}" for warning in found.warnings))


@app.command()
@refusing
def history(
    name: Name,
    dataset: Annotated[str | None, typer.Option(help="Only scores on this data set.")] = None,
    environment: Environment = "production",
    registry: Location = None,
    as_json: Json = False,
) -> None:
    """Show every score of a signature, oldest first, and the trend.

    Example: dspy-observe registry history text_classifier --dataset dev
    """
    with opened(registry) as store:
        found = store.get_performance_history(name, dataset=dataset, environment=environment)
    if as_json:
        answer_json(found.to_dict())
        return
    table(
        ("scored", "version", "score", "data set", "n", "source", "deployed"),
        ((p.scored_at, p.version, p.score, p.dataset, p.n, p.source, p.is_deployed) for p in found.versions),
    )
    details((key.replace("_", " "), value) for key, value in found.trends.to_dict().items())


@app.command()
@refusing
def log(
    name: Name,
    environment: Annotated[str | None, typer.Option("--environment", "-e", help="Only this one.")] = None,
    decisions: Annotated[bool, typer.Option("--decisions", help="What was decided about rolling back.")] = False,
    registry: Location = None,
    as_json: Json = False,
) -> None:
    """Show every deployment and rollback, oldest first.

    Example: dspy-observe registry log text_classifier -e staging
    """
    with opened(registry) as store:
        moves = () if decisions else store.deployment_log(name, environment=environment)
        rulings = store.decisions(name, environment=environment) if decisions else ()
    if as_json:
        answer_json([one.to_dict() for one in (*moves, *rulings)])
    elif decisions:
        table(
            ("at", "environment", "outcome", "version", "target", "trigger", "reason"),
            ((d.at, d.environment, d.outcome, d.version, d.target, d.trigger, d.reason) for d in rulings),
        )
    else:
        table(
            ("at", "environment", "generation", "action", "version", "before", "actor", "trigger", "reason"),
            (
                (m.at, m.environment, m.generation, m.action, m.version, m.previous, m.actor, m.trigger, m.reason)
                for m in moves
            ),
        )


@app.command()
@refusing
def plan(
    name: Name,
    version: VersionName,
    environment: Environment = "production",
    registry: Location = None,
    as_json: Json = False,
) -> None:
    """Tell what deploying a version would mean; nothing is changed.

    Example: dspy-observe registry plan text_classifier v20240116_091500
    """
    with opened(registry) as store:
        found = RegistryManager(store).create_deployment_plan(name, version, environment=environment).to_dict()
    if as_json:
        answer_json(found)
        return
    lists = ("checks", "recommendations", "configuration_changes")
    details((key.replace("_", " "), "\n".join(found[key]) if key in lists else found[key]) for key in found)


@app.command()
@refusing
def status(
    names: Annotated[list[str] | None, typer.Argument(help="Which signatures; else all.")] = None,
    environment: Environment = "production",
    registry: Location = None,
    as_json: Json = False,
) -> None:
    """Show what is deployed, what a rollback would bring, and what to do next.

    Example: dspy-observe registry status -e production
    """
    with opened(registry) as store:
        found = RegistryManager(store).bulk_deployment_status(names or None, environment=environment)
    if as_json:
        answer_json(found.to_dict())
    else:
        table(
            ("signature", "deployed", "since", "generation", "score", "rollback to", "versions", "recommendations"),
            (
                (
                    one.signature_name, one.deployed_version and one.deployed_version.version, one.deployed_at,
                    one.generation, one.deployed_version and one.deployed_version.performance_score,
                    one.rollback_target, one.total_versions, "\n".join(one.recommendations),
                )
                for one in found.statuses
            ),
        )  # fmt: skip
    if found.errors:
        refuse("\n".join(f"{name}: {error}" for name, error in found.errors.items()), as_json=False)


app.add_typer(changes)
