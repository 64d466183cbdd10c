"""The README is run: every Python block in one session, every command as far as it can be run here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dspy_observe.openai_server import OpenAIServer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language, padded so that a traceback names the README's own lines."""
    found = []
    for match in re.finditer(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL):
        line = README.count("\n", 0, match.start(1))
        found.append("\n" * line + match.group(1))
    return found


def test_every_python_block_runs_in_order_and_leaves_metrics(tmp_path: Path) -> None:
    """A newcomer who types the README from top to bottom meets no error and finds the metrics on the port."""
    page = tmp_path / "page.txt"
    fetch = (
        "import urllib.request\n"
        f"open({str(page)!r}, 'wb').write(urllib.request.urlopen('http://127.0.0.1:9464/metrics').read())"
    )
    sources = blocks("python")
    assert len(sources) > 5
    sources.insert(2, fetch)
    script = "namespace = {'__name__': 'readme'}\n" + "".join(
        f"exec(compile({source!r}, 'README.md', 'exec'), namespace)\n" for source in sources
    )
    with OpenAIServer() as server:
        environment = {
            **os.environ,
            "OPENAI_API_KEY": "test-key",
            "OPENAI_API_BASE": server.base_url,
            "DSPY_CACHEDIR": str(tmp_path / "cache"),
        }
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip
        bills = server.bills
    assert done.returncode == 0, done.stderr
    assert "dspy_observe:" not in done.stderr, done.stderr
    metrics = page.read_text(encoding="utf-8")
    billed = bills[0]
    for series in re.findall(r"^(dspy_\w+\{.*?\}) ", README, re.MULTILINE):
        assert series in metrics, f"the README shows {series}, the endpoint does not"
    tokens = re.search(r'dspy_tokens_total\{kind="prompt".*\} (\S+)', metrics)
    assert tokens is not None
    assert float(tokens[1]) == billed.prompt_tokens


def test_every_make_target_of_the_readme_exists() -> None:
    """The README's make commands are targets of the Makefile."""
    named = set(re.findall(r"^make (\w+)", README, re.MULTILINE))
    assert {"demo", "test"} <= named
    for target in named:
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target


def make(*arguments: str | Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """GNU make with this Makefile, where programs are found on a path of the test's own."""
    program = shutil.which("make")
    assert program is not None
    environment = dict(os.environ) if path is None else {**os.environ, "PATH": str(path)}
    return subprocess.run(
        [program, "-C", ROOT, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("target", "packages"),
    [
        ("demo", "prometheus prometheus-alertmanager"),
        ("test", "prometheus prometheus-alertmanager postgresql redis-server"),
    ],
)
def test_make_installs_the_servers_that_a_target_needs(target: str, packages: str) -> None:
    """The demonstration gets the two that it plays on, and the tests all of Debian's servers."""
    planned = make("--dry-run", target)
    assert planned.returncode == 0, planned.stderr
    assert re.findall(r"--no-install-recommends ([\w -]+)", planned.stdout) == [packages]


def test_make_goes_on_where_it_cannot_install_a_server(tmp_path: Path) -> None:
    """It names what is missing and how to get it, and is no failure."""
    (tmp_path / "id").symlink_to(str(shutil.which("id")))
    done = make("--silent", "monitors", "MONITOR_PROGRAMS=no-such-server", path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Missing: no-such-server." in done.stderr
    assert "apt-get install prometheus prometheus-alertmanager" in done.stderr


def test_contributing_names_every_target_and_every_package_that_is_installed() -> None:
    """What `make help` lists stands in the table, and so does every package of Debian's."""
    targets = set(re.findall(r"^([a-z]+):.*## ", MAKEFILE, re.MULTILINE)) - {"help"}
    assert {"demo", "test", "servers", "clean", "pictures"} <= targets
    assert targets <= set(re.findall(r"^\| `make (\w+)` \|", CONTRIBUTING, re.MULTILINE))
    packages = " ".join(re.findall(r"^\w+_PACKAGES := (.*)$", MAKEFILE, re.MULTILINE)).split()
    for package in (one for one in packages if not one.startswith("$")):
        assert f"`{package}`" in CONTRIBUTING, package


COMMANDS = re.findall(r"^dspy-observe (.*)$", README, re.MULTILINE)


def run_command(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """The command line in a folder of its own."""
    return subprocess.run(
        [sys.executable, "-c", "from dspy_observe.cli import main; main()", *words],
        cwd=folder, env={**os.environ, "COLUMNS": "200"}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_the_redact_command_of_the_readme_runs(tmp_path: Path) -> None:
    """The command line does what the README types."""
    (command,) = [command for command in COMMANDS if command.startswith("redact")]
    (tmp_path / "prompt.txt").write_text("Mail anna@example.com", encoding="utf-8")
    done = run_command(command.split(), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "EMAIL" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_verb_and_option_of_the_readme_exists(command: str, tmp_path: Path) -> None:
    """Each command that the README types is one, with these options; what they do has tests of its own."""
    words = command.split()
    verbs = words[:2] if words[0] in {"registry", "decisions", "dashboards", "rollout", "cache"} else words[:1]
    done = run_command([*verbs, "--help"], tmp_path)
    assert done.returncode == 0, done.stderr
    for option in (word for word in words if word.startswith("--")):
        assert option in done.stdout, option


def test_the_map_of_the_code_names_every_room() -> None:
    """A module or package that the map leaves out would not be found by the next maintainer."""
    table = README[README.index("## Map of the code") :]
    for path in sorted((ROOT / "dspy_observe").iterdir()):
        name = f"{path.name}/" if path.is_dir() else path.name
        if name.startswith("__") or name == "py.typed":
            continue
        assert f"`{name}`" in table, name
