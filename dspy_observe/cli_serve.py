"""``dspy-observe serve``: the receiver of Alertmanager's alerts. Nothing here imports DSPy."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from dspy_observe.cli_options import Json, Location, opened
from dspy_observe.cli_tables import refusing
from dspy_observe.errors import ConfigurationError

__all__ = ["serve"]

_PREFIX = "DSPY_OBSERVE_SERVE_"


@refusing
def serve(
    listen: Annotated[str, typer.Option(envvar=_PREFIX + "LISTEN", help="Host and port; 0 is any.")] = "127.0.0.1:9095",
    token_file: Annotated[
        Path | None, typer.Option(envvar=_PREFIX + "TOKEN_FILE", help="Bearer token, one in a line.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Ask for no token; on loopback only.")] = False,
    prometheus_url: Annotated[
        str | None, typer.Option(envvar=_PREFIX + "PROMETHEUS_URL", help="Asked before every rollback.")
    ] = None,
    fresh_window: Annotated[
        float, typer.Option(envvar=_PREFIX + "FRESH_WINDOW", help="Seconds that it is asked about.")
    ] = 120.0,
    unconfirmed: Annotated[
        str, typer.Option(envvar=_PREFIX + "UNCONFIRMED", help="hold or proceed when it cannot tell.")
    ] = "hold",
    mode: Annotated[
        str, typer.Option(envvar=_PREFIX + "MODE", help="auto, approve, dry-run or off, for all programs.")
    ] = "auto",
    cooldown: Annotated[
        float, typer.Option(envvar=_PREFIX + "COOLDOWN", help="Seconds after a rollback without another.")
    ] = 600.0,
    max_rollbacks_per_hour: Annotated[
        int, typer.Option(envvar=_PREFIX + "MAX_ROLLBACKS_PER_HOUR", help="Then the program is frozen.")
    ] = 3,
    max_alert_age: Annotated[
        float, typer.Option(envvar=_PREFIX + "MAX_ALERT_AGE", help="Seconds; older alerts are stale.")
    ] = 21_600.0,
    tls_cert: Annotated[Path | None, typer.Option(envvar=_PREFIX + "TLS_CERT", help="PEM file, for HTTPS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(envvar=_PREFIX + "TLS_KEY", help="Its key.")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(envvar=_PREFIX + "TLS_CLIENT_CA", help="Who signs clients' certificates.")
    ] = None,
    max_body: Annotated[int, typer.Option(envvar=_PREFIX + "MAX_BODY", help="Bytes of a request.")] = 1_000_000,
    registry: Location = None,
    as_json: Json = False,
) -> None:
    """Receive Alertmanager's alerts at /api/v1/alerts, and roll back the version that they are about.

    The bearer token comes from --token-file or the variable DSPY_OBSERVE_TOKEN. On SIGTERM it finishes and ends.

    Example: dspy-observe serve --registry sqlite:///registry.db --token-file token --prometheus-url http://127.0.0.1:9090
    """
    from dspy_observe.rollback.policy import Limits
    from dspy_observe.rollback.receiver import ALERTS_PATH, ReceiverOptions
    from dspy_observe.rollback.receiver import serve as run
    from dspy_observe.rollback.tokens import TOKEN_VARIABLE

    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigurationError("--listen", f"{listen!r} is no host and port", "Use 127.0.0.1:9095")
    token = None if insecure or token_file is not None else os.environ.get(TOKEN_VARIABLE)
    if token_file is None and not token and not insecure:
        fix = f"Give --token-file, set {TOKEN_VARIABLE}, or give --insecure on a loopback address"
        raise ConfigurationError("--token-file", "no bearer token is given", fix)
    with _flags():
        options = ReceiverOptions(
            host=host, port=int(port), token_file=token_file, token=token, insecure=insecure, max_body_bytes=max_body,
            mode=mode, prometheus_url=prometheus_url, fresh_window_s=fresh_window,
            limits=Limits(
                cooldown_s=cooldown, max_rollbacks_per_hour=max_rollbacks_per_hour, max_alert_age_s=max_alert_age,
                unconfirmed=unconfirmed,
            ),
            tls_cert=tls_cert, tls_key=tls_key, tls_client_ca=tls_client_ca,
        )  # fmt: skip
    with opened(registry) as store:

        def listening(url: str) -> None:
            if as_json:
                said = {"url": url, "alerts_url": url + ALERTS_PATH, "registry": store.location, "mode": mode}
                typer.echo(json.dumps(said))
            else:
                typer.echo(f"listening on {url}, alerts at {url}{ALERTS_PATH}, registry {store.location}, mode {mode}")

        with _flags():
            run(store, options, listening=listening)


@contextmanager
def _flags() -> Iterator[None]:
    """Name the option of the command line where an error names a field: ``Limits.cooldown_s`` is ``--cooldown``."""
    try:
        yield
    except ConfigurationError as error:
        field = error.field.removeprefix("Limits.").removesuffix("_s").removesuffix("_bytes")
        raise ConfigurationError(f"--{field.replace('_', '-')}", error.problem, error.fix) from None
