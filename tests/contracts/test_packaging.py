"""What the distribution promises: one version, type information, and pins that name nothing but packages."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = ("server", "serving", "sql", "bench", "dev")
PIN = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[0-9][0-9A-Za-z.+!]*)")


def pin_lines() -> list[str]:
    """Lines of constraints.txt that are not comments."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


def pins() -> dict[str, str]:
    """Canonical name to version, for every well-formed pin."""
    return {canonicalize_name(m["name"]): m["version"] for m in map(PIN.fullmatch, pin_lines()) if m}


def declared(*extras: str) -> list[Requirement]:
    """Requirements of the project and of the named extras, without the project's own name."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return [one for one in map(Requirement, lines) if one.name != PROJECT["name"]]


def test_package_is_typed() -> None:
    """Type checkers of users find our annotations."""
    assert (files("dspy_observe") / "py.typed").is_file()


def test_version_is_the_same_everywhere() -> None:
    """The project file, the installed metadata and the package name one version."""
    import dspy_observe

    assert dspy_observe.__version__ == PROJECT["version"] == importlib.metadata.version("dspy-observe")


def test_changelog_has_a_place_for_the_next_change() -> None:
    """The change log opens with Unreleased, and every other heading is a version with a date."""
    first, *rest = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert first == "[Unreleased]"
    assert [heading for heading in rest if not re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", heading)] == []


def test_constraints_name_only_packages_and_versions() -> None:
    """No host, no path, no option, no editable line: every line is name==version, once."""
    assert [line for line in pin_lines() if not PIN.fullmatch(line)] == []
    assert len(pins()) == len(pin_lines())


@pytest.mark.parametrize("line", ["-e .", "dspy @ https://host/dspy.whl", "--index" + "-url x", "a==1 ; x", "./a==1"])
def test_constraints_check_sees_what_is_not_a_pin(line: str) -> None:
    """The pattern for a pin refuses hosts, paths, options, markers and editable lines."""
    assert not PIN.fullmatch(line)


@pytest.mark.parametrize("requirement", declared(*EXTRAS), ids=str)
def test_every_declared_dependency_is_pinned_within_its_range(requirement: Requirement) -> None:
    """A dependency added to the project, or moved past its pin, needs the pins renewed."""
    assert pins()[canonicalize_name(requirement.name)] in requirement.specifier


def test_extras_are_the_ones_the_checks_cover() -> None:
    """An extra added without pins would slip past the check above."""
    assert set(PROJECT["optional-dependencies"]) == {*EXTRAS, "all"}


def test_root_is_lazy() -> None:
    """Importing the package loads neither DSPy nor a telemetry library, so that the command line starts at once."""
    heavy = {"dspy", "litellm", "opentelemetry", "prometheus_client", "structlog"}
    code = f"import dspy_observe, sys; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
