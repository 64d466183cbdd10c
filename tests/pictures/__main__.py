"""Pictures of the generated dashboards with live data; ``make pictures`` runs it, CI does not.

A real Prometheus scrapes the demo traffic, every query of every panel is asked, and a page of Grafana's own published
components (@grafana/ui, @grafana/data) draws the dashboard's JSON with the answers in a headless Chromium.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import io
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from PIL import Image

from tests.pictures.capture import QUIET, capture

_HERE = Path(__file__).parent
_OUT = _HERE.parents[1] / "dashboards" / "pictures"
_WIDTH = 1600
_CELL, _GAP, _AROUND = 30, 8, 76
"""Grafana's grid in pixels, and what stands above and below it; the same as in page/src/main.jsx."""
_COLOURS = 256
_BIGGEST = 300_000


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def main() -> int:
    """Make all pictures; 1 if something is missing or a panel is empty that should not be."""
    parser = argparse.ArgumentParser(prog="python -m tests.pictures", description=__doc__)
    parser.add_argument("--seconds", type=int, default=240, help="how long the traffic runs (default 240)")
    parser.add_argument("--work", type=Path, required=True, help="folder for npm's packages and the page")
    parser.add_argument("--again", action="store_true", help="draw again what the last run captured")
    options = parser.parse_args()
    missing = [name for name in ("node", "npm", "chromium", "prometheus") if shutil.which(name) is None]
    if missing:
        sys.stderr.write(f"not found: {', '.join(missing)}\n")
        return 1
    site = _built(options.work.resolve())
    captured = options.work / "captured.json"
    if not options.again:
        with tempfile.TemporaryDirectory() as folder:
            captured.write_text(json.dumps(capture(Path(folder), options.seconds)), encoding="utf-8")
    boards = json.loads(captured.read_text(encoding="utf-8"))
    (site / "data").mkdir(exist_ok=True)
    for board in boards:
        (site / "data" / f"{board['uid']}.json").write_text(json.dumps(board), encoding="utf-8")
    _OUT.mkdir(parents=True, exist_ok=True)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for board in boards:
            path = _OUT / f"{board['uid'].replace('dspy-observe', 'dspy')}.png"
            _draw(f"http://127.0.0.1:{server.server_port}/?board={board['uid']}", board["dashboard"], path)
            sys.stdout.write(f"{path.name}: {path.stat().st_size // 1000} kB\n")
        server.shutdown()
    unexpected = [where for board in boards for where in _empty(board) if where not in QUIET]
    for where in unexpected:
        sys.stderr.write(f"empty, and not on the list: {where}\n")
    return 1 if unexpected else 0


def _built(work: Path) -> Path:
    """The page with its packages, made anew; npm keeps what it downloaded."""
    work.mkdir(parents=True, exist_ok=True)
    shutil.copytree(_HERE / "page", work, dirs_exist_ok=True)
    # Grafana's packages name peers that only its own build needs.
    flags = ["--silent", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "--legacy-peer-deps"]
    install = ["npm", "install", *flags]
    subprocess.run(install, cwd=work, check=True, timeout=600)
    subprocess.run([work / "node_modules/.bin/vite", "build"], cwd=work, check=True, timeout=600)
    return work / "dist"


def _draw(url: str, dashboard: dict[str, Any], path: Path) -> None:
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        command = [
            "chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", f"--user-data-dir={folder}/profile",
            f"--window-size={_WIDTH},{rows * (_CELL + _GAP) + _AROUND}", "--virtual-time-budget=15000",
            f"--screenshot={shot}", url,
        ]  # fmt: skip
        subprocess.run(command, check=True, timeout=120, capture_output=True)
        picture = Image.open(io.BytesIO(shot.read_bytes())).convert("RGB")
    # Median cut would give the rare colours of lines to the many greys of letters.
    picture.quantize(_COLOURS, Image.Quantize.MAXCOVERAGE, kmeans=2).save(path, optimize=True)
    if path.stat().st_size > _BIGGEST:
        raise SystemExit(f"{path.name} has more than {_BIGGEST} bytes")


def _empty(board: dict[str, Any]) -> list[str]:
    """Titles of the panels to which Prometheus had no answer."""
    return [
        panel["title"]
        for panel in board["dashboard"]["panels"]
        if panel.get("targets")
        and not any(board["results"][f"{panel['id']}/{target['refId']}"] for target in panel["targets"])
    ]


if __name__ == "__main__":
    sys.exit(main())
