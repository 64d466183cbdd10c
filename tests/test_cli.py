"""The command line: versions, help, redaction of files, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dspy_observe.cli import app

TEXT = "first line\nmail alice@example.com, card 4111 1111 1111 1111\n"


def call(*arguments: str, stdin: str | bytes | None = None) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, list(arguments), input=stdin)


def test_the_version_is_the_installed_one() -> None:
    """And nothing else is printed."""
    done = call("--version")
    assert (done.exit_code, done.output) == (0, version("dspy-observe") + "\n")


def test_help_names_the_commands() -> None:
    """Without a command, help is shown and the exit code says that something is missing."""
    helped, bare = call("--help"), call()
    assert helped.exit_code == 0
    assert "redact" in helped.output
    assert "redact" in bare.output
    assert bare.exit_code == 2


def test_an_unknown_command_is_wrong_usage() -> None:
    """Exit code 2."""
    done = call("no-such-verb")
    assert done.exit_code == 2
    assert "no-such-verb" in done.output


def test_the_console_script_runs() -> None:
    """As installed, in a process of its own."""
    script = Path(sys.executable).with_name("dspy-observe")
    done = subprocess.run([script, "redact"], input=TEXT, capture_output=True, text=True, check=True)
    assert done.stdout == "first line\nmail <EMAIL>, card <CARD>\n"


@pytest.mark.parametrize("module", ["dspy_observe", "dspy_observe.cli"])
def test_the_package_runs_as_a_module(module: str) -> None:
    """Where the script is not on the path; a refusal has its exit code, too."""
    command = [sys.executable, "-m", module]
    done = subprocess.run([*command, "redact"], input=TEXT, capture_output=True, text=True, check=True)
    assert done.stdout == "first line\nmail <EMAIL>, card <CARD>\n"
    assert subprocess.run([*command, "redact", "no-such-file"], capture_output=True, check=False).returncode == 2


@pytest.mark.parametrize(
    "arguments",
    [("redact", "--drop", "EMIAL"), ("redact", "--nope"), ("registry", "deploy", "clf"), ("registry", "nope")],
)
def test_wrong_usage_is_an_object_too_where_json_is_asked_for(arguments: tuple[str, ...]) -> None:
    """Standard output holds the reason for programs, standard error the one for people."""
    done = call(*arguments, "--json", stdin=TEXT)
    assert done.exit_code == 2
    assert set(json.loads(done.stdout)) == {"error", "message"}
    assert "Usage: dspy-observe" in done.stderr or "Usage: root" in done.stderr
    assert call(*arguments, stdin=TEXT).stdout == ""


def test_a_file_is_redacted_as_it_stands(tmp_path: Path) -> None:
    """Line ends included; the file is not touched."""
    file = tmp_path / "prompt.txt"
    file.write_text(TEXT)
    done = call("redact", str(file))
    assert (done.exit_code, done.output) == (0, "first line\nmail <EMAIL>, card <CARD>\n")
    assert file.read_text() == TEXT


def test_operators_by_entity() -> None:
    """Mask, replace, take out."""
    done = call("redact", "--mask", "CARD=4", "--fixed", "EMAIL=[mail]", stdin=TEXT)
    assert done.exit_code == 0, done.output
    assert "[mail]" in done.output
    assert "1111\n" in done.output
    assert "4111" not in done.output
    assert "mail , card" in call("redact", "--drop", "EMAIL", stdin=TEXT).output


def test_findings_as_json_and_as_a_table() -> None:
    """Places that a machine or a person can find, never the values."""
    told = json.loads(call("redact", "--json", stdin=TEXT).output)
    assert told["text"] == "first line\nmail <EMAIL>, card <CARD>\n"
    assert [TEXT[f["start"] : f["end"]] for f in told["findings"]] == ["alice@example.com", "4111 1111 1111 1111"]
    assert [f["entity"] for f in told["findings"]] == ["EMAIL", "CARD"]
    table = call("redact", "--explain", stdin=TEXT)
    assert "EMAIL" in table.output
    assert "alice" not in table.output
    assert "Nothing private" in call("redact", "--explain", stdin="nothing here").output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("no-such-file.txt",), "cannot read"),
        (("--mask", "CARD"), "ENTITY=N"),
        (("--mask", "CARD=all"), "ENTITY=N"),
        (("--mask", "CARD=9"), "0 to 6"),
        (("--mask", "CARD=" + "9" * 5000), "ENTITY=N"),
        (("--mask", "CARD=\u00b2"), "ENTITY=N"),
        (("--fixed", "EMAIL"), "ENTITY=TEXT"),
        (("--fixed", "EMAIL="), "ENTITY=TEXT"),
        (("--replacement", ""), "replacement"),
        (("--replacement", "{nope}"), "no field {nope}"),
        (("--drop", "EMIAL"), "no detector finds EMIAL. Use one of API_KEY"),
        (("--no-such-option",), "no-such-option"),
    ],
)
def test_wrong_usage_says_what_to_write(arguments: tuple[str, ...], words: str) -> None:
    """Exit code 2, and no traceback."""
    done = call("redact", *arguments, stdin=TEXT)
    assert done.exit_code == 2
    assert words in " ".join(done.output.replace("│", " ").split())
    assert "Traceback" not in done.output


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """By name."""
    file = tmp_path / "picture.bin"
    file.write_bytes(b"\xff\xfe\x00\x80")
    done = call("redact", str(file))
    assert done.exit_code == 2
    assert "UTF-8" in done.output


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "gb18030", "latin-1"])
@pytest.mark.parametrize("piped", [True, False])
def test_a_text_in_another_encoding_is_refused(tmp_path: Path, encoding: str, piped: bool) -> None:
    """Piped as in a file: nothing private would be recognised in it."""
    beginning = {"gb18030": "\u90ae\u7bb1 ", "latin-1": "\xfc "}.get(encoding, "")
    read = f"{beginning}mail alice@example.com".encode(encoding)
    file = tmp_path / "text"
    file.write_bytes(read)
    code = "from dspy_observe.cli import main; main()"
    command = [sys.executable, "-c", code, "redact", "-" if piped else str(file)]
    done = subprocess.run(command, input=read, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"UTF-8" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("piped", [True, False])
def test_utf_8_is_read_whatever_the_locale_says(tmp_path: Path, piped: bool) -> None:
    """With or without a mark at its begin, which is no part of the text."""
    read = "\ufeff\u90ae\u7bb1 alice@example.com".encode()
    file = tmp_path / "text"
    file.write_bytes(read)
    done = call("redact", "--json", "-" if piped else str(file), stdin=read)
    assert json.loads(done.output)["text"] == "\u90ae\u7bb1 <EMAIL>"
