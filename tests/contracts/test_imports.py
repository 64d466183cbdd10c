"""The rooms of the package: imports point downward only, and each third-party library has its rooms."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = "dspy_observe"
SOURCE = Path(__file__).parents[2] / PACKAGE

# Lowest first. A room may import itself and what stands above it in this table. The longest matching name counts,
# so a module with a line of its own is a room of its own.
LAYERS = (
    "errors",
    "environment",
    "records",
    "conventions",
    "safety",
    "handoff",
    "disk_cache",
    "redaction",
    "readers",
    "facts",
    "ledger",
    "metrics",
    "callbacks.base",
    "callbacks",
    "embedding",
    "rollback.statistics",
    "registry",
    "rollback.alerts",
    "rollback.freshness",
    "rollback.policy",
    "rollback.deciding",
    "rollback.prometheus",
    "rollback.tokens",
    "rollback.gauges",
    "rollback.handling",
    "rollback.monitor_options",
    "rollback.folding",
    "rollback.monitor",
    "serving",
    "mixin",
    "config",
    "rollback.receiver",
    "rollback.checks",
    "rollback.routes",
    "rollback.examining",
    "rollback.doctor",
    "openai_server",
    "testing",
    "gate_verdict",
    "canary_progress",
    "canary",
    "cli_tables",
    "cli_options",
    "cli_registry_changes",
    "cli_registry",
    "cli_rollout",
    "cli_programs",
    "cli_gate",
    "cli_serve",
    "cli_decisions",
    "cli_doctor",
    "cli_canary",
    "cli_dashboards",
    "cli_cache",
    "cli",
    "__main__",
    "demo",
)

# Below each other in the table or not, these never know each other.
NEVER = {
    "registry": ("callbacks", "ledger", "facts"),
    "rollback": ("callbacks", "ledger", "facts"),
    "serving": ("callbacks",),
}

# Pure rooms know nothing but these rooms, and do no input or output.
PURE = {
    "rollback.policy": (
        "errors",
        "records",
        "conventions",
        "rollback.alerts",
        "rollback.freshness",
        "rollback.statistics",
    ),
    "rollback.freshness": ("errors", "records", "conventions"),
    "rollback.alerts": ("errors", "records", "conventions"),
    "rollback.statistics": ("errors", "records", "conventions"),
    "redaction": ("errors", "environment", "records", "conventions", "safety"),
    "mixin": ("errors", "records", "conventions"),
    "gate_verdict": (),
}
INPUT_OUTPUT = ("asyncio", "http", "multiprocessing", "os", "socket", "sqlite3", "subprocess", "tempfile", "urllib")

# Which rooms may import which library. What is not named here is not restricted.
THIRD_PARTY = {
    "dspy": (
        "facts",
        "embedding",
        "callbacks.base",
        "registry.programs",
        "serving",
        "testing",
        "cli_programs",
        "cli_gate",
        "cli_canary",
        "demo",
    ),
    "prometheus_client": ("metrics", "config", "demo"),
    "opentelemetry": ("callbacks.otel", "redaction.exporters", "config", "demo"),
    "structlog": ("callbacks.logs", "redaction", "config"),
}


class Import(NamedTuple):
    """One imported name: the module that imports it, what it imports, and the line."""

    module: str
    target: str
    line: int


def within(module: str, room: str) -> bool:
    """Whether a module, named without the package, is the room or inside it."""
    return module == room or module.startswith(room + ".")


def room_of(module: str) -> str | None:
    """The longest line of the table that the module belongs to, or None for a module the table does not know."""
    return max((room for room in LAYERS if within(module, room)), key=len, default=None)


def modules_of(root: Path) -> dict[str, Path]:
    """Every module below a package folder: dotted name (``dspy_observe.callbacks.base``) to file."""
    names = {}
    for path in sorted(root.rglob("*.py")):
        parts = [PACKAGE, *path.relative_to(root).with_suffix("").parts]
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def targets_of(node: ast.AST, package: str, known: dict[str, Path]) -> Iterator[str]:
    """Dotted names that one node imports, wherever it stands: at the head, in a function, or under TYPE_CHECKING."""
    match node:
        case ast.Import(names=names):
            yield from (alias.name for alias in names)
        case ast.ImportFrom(module=module, names=names, level=level):
            base = package.split(".")[: len(package.split(".")) - level + 1] if level else []
            source = ".".join([*base, *([module] if module else [])])
            for alias in names:
                # `from dspy_observe import ledger` imports a module; `from dspy_observe import configure` the root.
                submodule = f"{source}.{alias.name}"
                yield submodule if submodule in known else source
        case ast.Call(
            func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
            args=[ast.Constant(value=str(name)), *_],
        ):
            yield name


def imports_of(root: Path) -> Iterator[Import]:
    """Every import of every module below a package folder."""
    known = modules_of(root)
    for module, path in known.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            for target in targets_of(node, package, known):
                yield Import(module, target, getattr(node, "lineno", 0))


def internal_fault(source: str, target: str) -> str | None:
    """Why a module (named without the package) may not import another one, or None if it may."""
    source_room, target_room = room_of(source), room_of(target)
    if not target:
        return "the package root is above every room: import the module that defines the name"
    if source_room is None or target_room is None:
        return f"no room for {source if source_room is None else target} in LAYERS"
    if LAYERS.index(target_room) > LAYERS.index(source_room):
        return f"{target_room} is above {source_room}"
    for room, strangers in NEVER.items():
        if within(source, room) and any(within(target, stranger) for stranger in strangers):
            return f"{room} never knows {target_room}"
    for room, friends in PURE.items():
        if within(source, room) and not any(within(target, friend) for friend in (room, *friends)):
            return f"{room} is pure and does not know {target_room}"
    return None


def external_fault(source: str, target: str) -> str | None:
    """Why a module (named without the package) may not import a library's module, or None if it may."""
    for library, rooms in THIRD_PARTY.items():
        if within(target, library) and not any(within(source, room) for room in rooms):
            return f"{library} is imported only by {', '.join(rooms)}"
    if any(within(source, room) for room in PURE) and any(within(target, library) for library in INPUT_OUTPUT):
        return f"a pure room does no input or output: {target}"
    return None


def faults(root: Path) -> list[str]:
    """Every broken rule below a package folder, one line each."""
    found = []
    for module, target, line in imports_of(root):
        source = module.removeprefix(PACKAGE).removeprefix(".")
        if within(target, PACKAGE):
            # The root re-exports from anywhere; test_packaging holds that it stays lazy.
            fault = internal_fault(source, target.removeprefix(PACKAGE).removeprefix(".")) if source else None
        else:
            fault = external_fault(source, target)
        if fault:
            found.append(f"{module}:{line}: imports {target}: {fault}")
    return found


def test_imports_point_downward_and_libraries_stay_in_their_rooms() -> None:
    """No module of the package breaks the table."""
    assert any(imports_of(SOURCE)), "the walk saw nothing"
    assert not faults(SOURCE)


def plant(root: Path, module: str, code: str) -> None:
    """Write one module, and the packages it lies in, below a package folder."""
    path = root.joinpath(*module.split(".")).with_suffix(".py")
    path.parent.mkdir(parents=True, exist_ok=True)
    for folder in (root, *(parent for parent in path.parents if root in parent.parents)):
        (folder / "__init__.py").touch()
    path.write_text(code, encoding="utf-8")


@pytest.mark.parametrize(
    ("module", "code", "reason"),
    [
        ("facts", "from dspy_observe.ledger import Ledger", "ledger is above facts"),
        ("facts", "from dspy_observe import ledger", "ledger is above facts"),
        ("facts.usage", "from ..ledger import Ledger", "ledger is above facts"),
        ("callbacks.base", "from .latency import LatencyCallback", "callbacks is above callbacks.base"),
        ("ledger", "def late():\n    import dspy_observe.config", "config is above ledger"),
        ("ledger", "if TYPE_CHECKING:\n    from dspy_observe.config import Metrics", "config is above ledger"),
        ("ledger", "importlib.import_module('dspy_observe.config')", "config is above ledger"),
        ("metrics", "from dspy_observe import configure", "the package root is above"),
        ("registry.manager", "from dspy_observe.callbacks.base import RecordCallback", "registry never knows"),
        ("rollback.policy", "from dspy_observe.registry import events", "rollback.policy is pure"),
        ("rollback.policy", "import urllib.request", "a pure room does no input or output"),
        ("helpers", "from dspy_observe import records", "no room for helpers"),
        ("callbacks.latency", "import dspy", "dspy is imported only by"),
        ("registry.manager", "from dspy.primitives import Module", "dspy is imported only by"),
        ("callbacks.cost", "from prometheus_client import Counter", "prometheus_client is imported only by"),
        ("redaction.detectors", "from opentelemetry import trace", "opentelemetry is imported only by"),
        ("ledger", "import structlog", "structlog is imported only by"),
    ],
)
def test_walk_finds_a_planted_fault(tmp_path: Path, module: str, code: str, reason: str) -> None:
    """The walk names the one import that breaks a rule, and why."""
    for name in ("ledger", "config", "registry.events", "callbacks.latency", "records"):
        plant(tmp_path, name, "")
    plant(tmp_path, module, code)
    (found,) = faults(tmp_path)
    assert found.startswith(f"{PACKAGE}.{module}:")
    assert reason in found


def test_walk_lets_a_sound_tree_pass(tmp_path: Path) -> None:
    """Imports that the table allows, of every form, are no faults."""
    plant(tmp_path, "records", "from dataclasses import dataclass\nimport dspy_observe.errors")
    plant(tmp_path, "errors", "")
    plant(tmp_path, "facts.usage", "import dspy\nfrom . import identity\nfrom ..records import Usage")
    plant(tmp_path, "facts.identity", "import dspy.utils")
    plant(tmp_path, "ledger", "from dspy_observe import facts, records")
    plant(tmp_path, "callbacks.base", "from dspy_observe.ledger import Ledger\nimport dspy")
    plant(tmp_path, "callbacks.otel", "from .base import RecordCallback\nfrom opentelemetry import trace")
    plant(tmp_path, "redaction.exporters", "import opentelemetry.sdk.trace")
    assert not faults(tmp_path)
