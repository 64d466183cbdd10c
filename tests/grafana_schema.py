"""Type-checks the generated dashboards against Grafana's own TypeScript schema; ``make schema`` runs it.

Every dashboard, panel, panel option and field option becomes a constant of its type of `@grafana/schema`, and the
TypeScript compiler says what does not fit: an enum's value that does not exist, a number where a text belongs, a
property that nobody reads. JSON holds an enum's values as plain texts, so types are loosened by exactly that much.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["PACKAGES", "faults", "installed"]

PACKAGES = ("@grafana/schema@13.2.2", "typescript@5.9.3")
"""Both by exact version: a newer schema is a change to look at, not a failing check."""

_FOLDERS = {
    "timeseries": "timeseries", "stat": "stat", "table": "table", "heatmap": "heatmap", "bargauge": "bargauge",
    "state-timeline": "statetimeline",
}  # fmt: skip
_WITH_FIELDS = {"timeseries", "table", "heatmap", "state-timeline"}
_RAW = "./node_modules/@grafana/schema/dist/types/raw"
_HEAD = f"""\
import type {{ Dashboard, Panel }} from "{_RAW}/dashboard/x/types.gen";
type Loose<T> = T extends string ? `${{T}}`
  : T extends number | boolean | null | undefined ? T
  : T extends (infer U)[] ? Loose<U>[]
  : T extends object ? {{ [K in keyof T]?: Loose<T[K]> }} : T;
type Query = {{ refId: string; datasource: {{ type: "prometheus"; uid: string }}; editorMode: "code" | "builder";
  expr: string; legendFormat: string; instant: boolean; range: boolean; exemplar?: boolean;
  format?: "time_series" | "table" | "heatmap" }};
// What the published types leave out: a query's own text of a variable, and Prometheus' fields of an annotation.
type Variable = NonNullable<NonNullable<Dashboard["templating"]>["list"]>[number];
type Annotation = NonNullable<NonNullable<Dashboard["annotations"]>["list"]>[number]
  & {{ titleFormat: string; textFormat: string; tagKeys: string; useValueForTime: boolean; expr: string }};
"""


def installed(folder: Path) -> str | None:
    """Install the packages into a folder, once.

    Returns:
        ``None`` when they are there, else why not.
    """
    if shutil.which("npm") is None or shutil.which("node") is None:
        return "Node is not installed"
    marker = folder / "installed"
    if marker.is_file() and marker.read_text(encoding="utf-8") == " ".join(PACKAGES):
        return None
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "package.json").write_text('{"private": true}', encoding="utf-8")
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", *PACKAGES]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=180, check=False)
    except subprocess.TimeoutExpired:
        return "npm took longer than three minutes"
    if done.returncode != 0:
        return f"npm cannot install {' '.join(PACKAGES)}: {done.stderr.strip()[-300:]}"
    marker.write_text(" ".join(PACKAGES), encoding="utf-8")
    return None


def faults(folder: Path, dashboards: list[dict[str, Any]]) -> list[str]:
    """What the compiler says, one line each.

    Args:
        folder: Where the packages are.
        dashboards: Dashboards as JSON objects.
    """
    (folder / "check.ts").write_text(_source(dashboards), encoding="utf-8")
    command = ["node_modules/.bin/tsc", "--noEmit", "--strict", "--skipLibCheck", "--target", "es2022",
               "--moduleResolution", "bundler", "--module", "esnext", "check.ts"]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    lines = (folder / "check.ts").read_text(encoding="utf-8").splitlines()
    found = []
    for line in done.stdout.splitlines():
        place = re.match(r"check\.ts\((\d+),\d+\): (.*)", line)
        if place:
            name = next((one for one in reversed(lines[: int(place[1])]) if one.startswith("// ")), "// the types")
            found.append(f"{name[3:]}: {place[2]}")
    if done.returncode != 0 and not found:
        found.append(done.stdout + done.stderr)
    return found


def _source(dashboards: list[dict[str, Any]]) -> str:
    parts = [_HEAD]
    for place in _FOLDERS.values():
        name = place.capitalize()
        parts.append(f'import type * as {name} from "{_RAW}/composable/{place}/panelcfg/x/types.gen";')
    count = 0

    def constant(what: str, kind: str, value: Any) -> None:
        nonlocal count
        count += 1
        parts.append(f"// {what}\nexport const c{count}: {kind} = {json.dumps(value, indent=1, ensure_ascii=True)};")

    for board in dashboards:
        where = board["title"]
        bare = {**board, "panels": [], "templating": {"list": []}, "annotations": {"list": []}}
        constant(where, "Loose<Dashboard>", bare)
        for variable in board["templating"]["list"]:
            constant(f"{where}: ${variable['name']}", "Loose<Variable>", variable)
        for note in board["annotations"]["list"]:
            constant(f"{where}: annotation {note['name']}", "Loose<Annotation>", note)
        for panel in board["panels"]:
            if panel["type"] == "row":
                continue
            what, name = f"{where}: {panel['title']}", _FOLDERS[panel["type"]].capitalize()
            config = panel["fieldConfig"]
            shell = {**panel, "options": {}, "targets": [], "fieldConfig": _without_custom(config)}
            constant(what, "Loose<Panel>", shell)
            constant(f"{what}, options", f"Loose<{name}.Options>", panel["options"])
            constant(f"{what}, queries", "Query[]", panel["targets"])
            if panel["type"] in _WITH_FIELDS:
                constant(f"{what}, fields", f"Loose<{name}.FieldConfig>", config["defaults"]["custom"])
    return "\n".join(parts)


def _without_custom(config: dict[str, Any]) -> dict[str, Any]:
    return {**config, "defaults": {key: value for key, value in config["defaults"].items() if key != "custom"}}


def main() -> int:
    """Check the committed dashboards."""
    root = Path(__file__).parents[1]
    folder = root / ".venv" / "grafana-schema"
    missing = installed(folder)
    if missing:
        sys.stderr.write(f"{missing}\n")
        return 2
    boards = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(root.glob("dashboards/grafana/*.json"))]
    found = faults(folder, boards)
    sys.stdout.write("\n".join([*found, f"{len(boards)} dashboards, {len(found)} faults", ""]))
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
