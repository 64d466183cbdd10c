"""``dspy-observe serve`` and ``dspy-observe decisions`` as people run them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from dspy_observe.cli import app
from dspy_observe.registry import SignatureRegistry
from dspy_observe.testing import sample_alert
from tests.rollback.conftest import HEADERS, Process, deployed

Serve = Callable[..., Process]
DYING = """
import os, signal
from dspy_observe.rollback import handling
settle = handling.settle
def dying(*arguments, **named):
    settle(*arguments, **named)
    os.kill(os.getpid(), signal.SIGKILL)
handling.settle = dying
"""
"""Ends between the commit and the answer."""


def run(*arguments: str, code: int = 0) -> str:
    """Run a command; gives what it printed."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result.output


def test_it_says_where_it_listens_and_ends_in_order(serve: Serve, registry: SignatureRegistry) -> None:
    """One line with the real port; SIGTERM is exit code 0; the token is in no output."""
    process = serve()
    assert process.post(sample_alert("qa", "v3")).json()["decisions"][0]["outcome"] == "rollback"
    assert httpx.get(f"{process.url}/readyz").json() == {"status": "ready", "programs": 1}
    assert process.end() == 0
    assert deployed(registry) == "v2"
    assert "rolled back from v3 to v2" in "".join(process.errors)
    assert "correct-horse" not in "".join(process.errors)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--listen", "nowhere"], "no host and port"),
        (["--listen", "0.0.0.0:0", "--insecure"], "reached from outside"),
        ([], "no bearer token is given. Give --token-file, set DSPY_OBSERVE_TOKEN, or give --insecure"),
        (["--insecure", "--mode", "on"], "--mode: 'on' is not known"),
        (["--insecure", "--prometheus-url", "prometheus:9090"], "--prometheus-url: "),
        (["--insecure", "--cooldown", "-1"], "--cooldown: -1.0 cannot work"),
        (["--insecure", "--unconfirmed", "maybe"], "--unconfirmed: 'maybe' is not known"),
        (["--token-file", "/nowhere/token"], "No such file"),
    ],
)
def test_what_cannot_work_is_wrong_usage(registry: SignatureRegistry, arguments: list[str], told: str) -> None:
    """Exit code 2 with the option to write, before anything listens."""
    output = run("serve", "--registry", registry.location, *arguments, code=2)
    assert told in " ".join(output.replace("│", " ").split())


@pytest.mark.parametrize("token", [" ", "\n"])
def test_blank_token_in_the_variable_is_wrong_usage(
    registry: SignatureRegistry, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    """A receiver that answers 401 to everybody would look as if it ran."""
    monkeypatch.setenv("DSPY_OBSERVE_TOKEN", token)
    output = run("serve", "--registry", registry.location, "--listen", "nowhere.invalid:0", code=2)
    assert "white space only" in " ".join(output.replace("│", " ").split())


def test_port_that_is_taken_is_said(serve: Serve, registry: SignatureRegistry) -> None:
    """And not met with a stack trace."""
    taken = serve().url.rpartition("/")[2]
    assert "cannot listen" in run("serve", "--registry", registry.location, "--insecure", "--listen", taken, code=2)


def test_31_crash_between_commit_and_answer_moves_nothing_twice(serve: Serve, registry: SignatureRegistry) -> None:
    """The sender saw no answer and sends again, to a receiver that was started anew."""
    body = sample_alert("qa", "v3")
    dying = serve(code=DYING)
    with pytest.raises(httpx.HTTPError):
        dying.post(body)
    assert deployed(registry) == "v2"
    again = serve().post(body).json()["decisions"][0]
    assert again["outcome"] == "duplicate"
    assert [one.action for one in registry.deployment_log("qa")].count("rollback") == 1


def test_https_with_and_without_clients_certificates(serve: Serve, tmp_path: Path) -> None:
    """A client that shows none is turned away where one is asked for."""
    made = subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
            "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem",
        ],
        cwd=tmp_path, capture_output=True, check=False,
    )  # fmt: skip
    if made.returncode != 0:
        pytest.skip("no openssl to make a certificate with")
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    open_to_all = serve("--tls-cert", cert, "--tls-key", key)
    assert open_to_all.url.startswith("https://")
    import ssl

    trusting = ssl.create_default_context(cafile=cert)
    assert httpx.get(f"{open_to_all.url}/healthz", verify=trusting).status_code == 200
    asking = serve("--tls-cert", cert, "--tls-key", key, "--tls-client-ca", cert)
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{asking.url}/healthz", verify=trusting)
    trusting.load_cert_chain(cert, key)
    assert httpx.get(f"{asking.url}/healthz", verify=trusting).status_code == 200


def test_serve_starts_without_dspy() -> None:
    """The receiver's machine pays neither its time nor its memory."""
    code = "import sys, dspy_observe.cli, dspy_observe.rollback.receiver; sys.exit('dspy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_person_on_call_sees_why_and_acts(registry: SignatureRegistry, serve: Serve) -> None:
    """List, show, approve, freeze, unfreeze, mode: the whole evening."""
    where = ("--registry", registry.location)
    assert "No decisions yet" in run("decisions", "list", *where)
    run("decisions", "mode", "qa", "approve", "--reason", "launch", *where)
    process = serve()
    body = sample_alert("qa", "v3")
    for _ in range(3):
        process.post(body)
    listed = run("decisions", "list", *where)
    assert "held x3" in listed
    assert "waiting for approval" in " ".join(listed.replace("│", " ").split())
    assert run("decisions", "list", "--all", *where).count("held") >= 3
    rows: list[dict[str, Any]] = json.loads(run("decisions", "list", "--json", "--outcome", "held", *where))
    assert [one["program"] for one in rows] == ["qa"] * 3
    shown = json.loads(run("decisions", "show", rows[0]["decision_id"][:8], "--json", *where))
    assert shown["inputs"]["labels"]["alertname"] == "DSPyErrors"
    assert "v2" in run("decisions", "approve", rows[0]["decision_id"], "--actor", "ana", *where)
    assert deployed(registry) == "v2"
    assert "stale" in run("decisions", "approve", rows[1]["decision_id"], "--actor", "ana", *where, code=1) or (
        "duplicate" in run("decisions", "approve", rows[1]["decision_id"], *where, code=1)
    )
    assert "frozen" in run("decisions", "freeze", "qa", "--reason", "incident 7", *where)
    held = httpx.post(f"{process.url}/api/v1/alerts", json=sample_alert("qa", "v2"), headers=HEADERS).json()
    assert "incident 7" in held["decisions"][0]["reason"]
    assert "approve" in run("decisions", "unfreeze", "qa", *where)
    assert json.loads(run("decisions", "mode", "qa", "--json", *where))["mode_reason"] == "launch"
    assert "no decision" in run("decisions", "show", "0" * 24, *where, code=1)
    assert "not known" in " ".join(run("decisions", "list", "--outcome", "maybe", *where, code=2).split())
