"""The page of the examples is run: every command as it stands there, and its output compared but for the numbers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dspy_observe.demo.model import StandIn
from dspy_observe.openai_server import OpenAIServer

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
PAGE = (EXAMPLES / "README.md").read_text(encoding="utf-8")


def sections() -> dict[str, str]:
    """The page's sections by title."""
    titles = re.split(r"^## (.*)$", PAGE, flags=re.MULTILINE)[1:]
    return dict(zip(titles[::2], titles[1::2], strict=True))


def fenced(text: str, language: str) -> str:
    """The lines of the one block of a language."""
    (block,) = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return str(block)


def shape(line: str) -> str:
    """A line without what may differ from run to run: numbers and the room that they take."""
    return re.sub(r"\s+", " ", re.sub(r"\d[\d,]*(?:\.\d+)?", "#", line)).strip()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder that looks like the root of a checkout, so that what examples write does not go there."""
    (tmp_path / "examples").symlink_to(EXAMPLES)
    return tmp_path


@pytest.fixture
def environment(place: Path) -> Iterator[dict[str, str]]:
    """No key, and this interpreter's programs first; a server for the command that says it has a key."""
    with OpenAIServer(StandIn(pace=0)) as server:
        yield {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "DSPY_CACHEDIR": str(place / "cache"),
            "OPENAI_API_BASE": server.base_url,
            "REPORTS": str(place / "reports"),
        }


def run(command: str, place: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """One line of the page in a shell."""
    return subprocess.run(
        ["bash", "-c", command], cwd=place, env=environment, capture_output=True, text=True, timeout=240, check=False
    )


SERVERS = {"service/"}
"""They answer until they are interrupted: tests/e2e runs them."""


@pytest.mark.parametrize("title", [title for title in sections() if title not in SERVERS])
def test_every_command_prints_what_the_page_says(title: str, place: Path, environment: dict[str, str]) -> None:
    """A newcomer who types it sees it."""
    section = sections()[title]
    printed = ""
    for command in fenced(section, "sh").splitlines():
        done = run(command, place, environment)
        printed += done.stdout
        told = 3 if "budget is spent" in done.stdout else 1 if re.search(r"[1-9]\d* failed", done.stdout) else 0
        assert done.returncode == told, f"{command}\n{done.stdout}\n{done.stderr}"
    shapes = {shape(line) for line in printed.splitlines()}
    for line in fenced(section, "text").splitlines():
        assert shape(line) in shapes, f"{line!r} is not printed:\n{printed}"


def test_every_example_has_its_section_and_its_command_in_the_header() -> None:
    """What lies in the folder is on the page, and says on top how it is started."""
    programs = {path.name for path in EXAMPLES.glob("*.py")}
    folders = {
        f"{path.name}/" for path in EXAMPLES.iterdir() if path.is_dir() and path.name not in {"data", "__pycache__"}
    }
    assert programs | folders == set(sections())
    for name in programs:
        head = (EXAMPLES / name).read_text(encoding="utf-8")[:600]
        assert re.search(rf"^    .*python examples/{name}", head, re.MULTILINE), name


def test_links_and_table_lead_to_what_is_there() -> None:
    """Files that the page links exist, and its table has a line for each section."""
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (EXAMPLES / target).exists(), target
    anchors = {re.sub(r"[^\w-]", "", title.lower()) for title in sections()}
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) == anchors
