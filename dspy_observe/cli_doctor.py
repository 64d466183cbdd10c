"""``dspy-observe doctor``: whether an alert would roll back, and what is missing. Nothing here imports DSPy."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from dspy_observe.cli_options import Environment, Json, Location, opened
from dspy_observe.cli_tables import answer_json, refusing, say
from dspy_observe.errors import ConfigurationError, ObserveError

__all__ = ["doctor"]

_PREFIX = "DSPY_OBSERVE_DOCTOR_"


@refusing
def doctor(
    prometheus_url: Annotated[
        str | None, typer.Option(envvar=_PREFIX + "PROMETHEUS_URL", help="Which evaluates the rules.")
    ] = None,
    alertmanager_url: Annotated[
        str | None, typer.Option(envvar=_PREFIX + "ALERTMANAGER_URL", help="It gets a trial alert.")
    ] = None,
    receiver_url: Annotated[
        str | None, typer.Option(envvar=_PREFIX + "RECEIVER_URL", help="Where dspy-observe serve listens.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(envvar=_PREFIX + "TOKEN_FILE", help="The receiver's bearer token.")
    ] = None,
    program: Annotated[str | None, typer.Option("--program", "-p", help="Whose path; else any that runs.")] = None,
    environment: Environment = "production",
    wait: Annotated[float, typer.Option(help="Seconds in which the trial alert has to arrive.")] = 30.0,
    timeout: Annotated[float, typer.Option(help="Seconds for each request.")] = 5.0,
    registry: Location = None,
    as_json: Json = False,
) -> None:
    """Check every part between an alert and its rollback, then send a trial alert through; nothing is moved.

    The receiver's token comes from --token-file or the variable DSPY_OBSERVE_TOKEN. What has no URL is skipped.
    Exit code 1 if something is broken.

    Example: dspy-observe doctor --registry sqlite:///registry.db --prometheus-url http://127.0.0.1:9090
    --alertmanager-url http://127.0.0.1:9093 --receiver-url http://127.0.0.1:9095 --token-file token
    """
    from dspy_observe.rollback.doctor import DoctorOptions, examine

    options = DoctorOptions(
        prometheus_url=prometheus_url, alertmanager_url=alertmanager_url, receiver_url=receiver_url,
        token=_token(token_file), program=program, environment=environment, wait_s=wait, timeout_s=timeout,
    )  # fmt: skip
    store, problem, found = None, "", []
    with ExitStack() as stack:
        try:
            store = stack.enter_context(opened(registry))
        except ConfigurationError:
            raise
        except ObserveError as error:
            problem = str(error)
        for check in examine(store, options, problem):
            found.append(check)
            if not as_json:
                say(f"{check.state:8} {check.part:13} {check.name}: {check.found}")
                if check.mend is not None:
                    say(f"{'':22} -> {check.mend}")
    counts = Counter(check.state for check in found)
    if as_json:
        answer_json({"healthy": not counts["broken"], "checks": [check.to_dict() for check in found]})
    else:
        say(", ".join(f"{counts[state]} {state}" for state in ("ok", "warning", "broken", "skipped") if counts[state]))
    if counts["broken"]:
        raise typer.Exit(1)


def _token(file: Path | None) -> str | None:
    from dspy_observe.rollback.tokens import TOKEN_VARIABLE

    if file is None:
        return os.environ.get(TOKEN_VARIABLE, "").strip() or None
    try:
        lines = file.read_text(encoding="utf-8-sig").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError("--token-file", f"{file} cannot be read ({error})", "Name another") from None
    if not lines:
        raise ConfigurationError("--token-file", f"{file} holds no token", "Write one into it")
    return lines[0]
