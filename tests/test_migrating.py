"""The page for those who come from elsewhere is run, and its links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from dspy_observe.openai_server import OpenAIServer

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "MIGRATING.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language, padded so that a traceback names the page's own lines."""
    fenced = re.finditer(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return ["\n" * PAGE.count("\n", 0, match.start(1)) + match.group(1) for match in fenced]


def test_every_python_block_runs_in_order(tmp_path: Path) -> None:
    """Somebody who moves over by the page meets no error, and nothing of ours is swallowed on the way."""
    sources = blocks("python")
    assert len(sources) > 10
    script = "namespace = {'__name__': 'migrating'}\n" + "".join(
        f"exec(compile({source!r}, 'MIGRATING.md', 'exec'), namespace)\n" for source in sources
    )
    with OpenAIServer() as server:
        environment = {
            **os.environ,
            "OPENAI_API_KEY": "test-key",
            "OPENAI_API_BASE": server.base_url,
            "DSPY_CACHEDIR": str(tmp_path / "cache"),
        }
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        bills = server.bills
    assert done.returncode == 0, done.stderr
    assert "dspy_observe:" not in done.stderr, done.stderr
    assert len({bill.prompt for bill in bills}) > 2
    assert f"{bills[-1].served_model} " in done.stdout


def test_the_regression_check_runs_as_typed(tmp_path: Path) -> None:
    """The command line of the page judges the example's program."""
    (command,) = blocks("sh")
    name, *arguments = shlex.split(command)
    assert name == "dspy-observe"
    done = subprocess.run(
        [sys.executable, "-c", "from dspy_observe.cli import main; main()", *arguments],
        cwd=ROOT / "examples" / "regression_ci",
        env={**os.environ, "DSPY_CACHEDIR": str(tmp_path)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_row_of_the_table_leads_to_its_section() -> None:
    """No link of the page is dead."""
    headings = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(([^)]+)\)", PAGE)
    assert len(links) >= len(headings)
    for link in links:
        assert link.removeprefix("#") in anchors if link.startswith("#") else (ROOT / link).exists(), link
