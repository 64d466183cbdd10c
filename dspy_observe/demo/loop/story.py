"""Tell the story: deploy the worse version, watch what happens to it, and show how long each step took."""

from __future__ import annotations

import json
import tempfile
import threading
import time
import urllib.request
from collections import deque
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from dspy_observe.demo.loop.programs import BAD, ENVIRONMENT, GOOD, PROGRAM
from dspy_observe.demo.loop.timeline import Event, Timeline
from dspy_observe.demo.loop.world import World, missing, opened

__all__ = ["tell"]

_USERS: Final = 8
_SETTLE_S: Final = 12.0
"""How long the good version serves first: rules compare with what was before."""
_PATIENCE_S: Final = 60.0
_RECOVERY_S: Final = 3.0
"""The program has recovered when no answer of so many seconds was bad."""
_WINDOW: Final = 4
"""Ticks (half seconds) that the live figures are about."""
_POLL_S: Final = 0.1


class _Story:
    """What is known so far, and what is shown of it."""

    def __init__(self) -> None:
        self.timeline = Timeline()
        self.ended: dict[str, int] | None = None
        self._ticks: deque[dict[str, dict[str, float]]] = deque(maxlen=_WINDOW)
        self._lock = threading.Lock()
        self._clean_since: float | None = None
        self.version = GOOD

    def hear(self, line: dict[str, Any]) -> None:
        """A line of the serving process."""
        kind, at = line["kind"], line["at"]
        if kind == "tick":
            self._tick(at, line["versions"])
        elif kind == "bad":
            if line["version"] == BAD:
                self.timeline.add(Event(at, "bad", f"the first answer of {BAD} fails: {line['error']}", "bad"))
        elif kind == "swap":
            self.version = line["version"]
            back = self.timeline.get("bad") is not None and line["version"] == GOOD
            words = f"the serving process answers with {line['version']}" + (" again" if back else "")
            if line["version"] == BAD or back:
                self.timeline.add(Event(at, f"swap-{line['version']}", words, "good" if back else ""))
        elif kind == "end":
            self.ended = {name: line[name] for name in ("asked", "answered", "failed")}

    def _tick(self, at: float, versions: dict[str, dict[str, float]]) -> None:
        with self._lock:
            self._ticks.append(versions)
        if self.timeline.get(f"swap-{GOOD}") is None:
            return
        if any(one["failed"] for one in versions.values()):
            self._clean_since = None
        elif self._clean_since is None:
            self._clean_since = at
        elif at - self._clean_since >= _RECOVERY_S:
            self.timeline.add(Event(self._clean_since, "recovered", "no answer has failed from here on", "good"))

    def render(self) -> Group:
        """The traffic of the last seconds, and what happened so far."""
        table = Table(
            "version", "answers/s", "failed", "score", box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim"
        )
        for column in table.columns[1:]:
            column.justify = "right"
        with self._lock:
            ticks = list(self._ticks)
        for version in (GOOD, BAD):
            rows = [tick[version] for tick in ticks if version in tick]
            ok, failed = sum(row["ok"] for row in rows), sum(row["failed"] for row in rows)
            scored, total = sum(row["scored"] for row in rows), ok + failed
            live = version == self.version
            table.add_row(
                Text(f"{version} {'serving' if live else ''}", style="bold" if live else "dim"),
                f"{total / (len(ticks) * 0.5):.0f}" if ticks and total else "-",
                Text(f"{failed / total:.0%}", style="red" if failed else "green") if total else "-",
                f"{sum(row['score_sum'] for row in rows) / scored:.2f}" if scored else "-",
            )  # fmt: skip
        return Group(table, self.timeline.render())


def tell(console: Console, *, plain: bool = False, embedded: bool = False) -> bool:
    """Play the whole loop.

    Args:
        console: Where it is shown.
        plain: Print the tables at the end only, instead of a live display.
        embedded: Use the monitor in the serving process even where the servers are installed.

    Returns:
        Whether the worse version was rolled back, the serving process followed, and no request was lost.
    """
    lacking = missing()
    real = not lacking and not embedded
    console.print(Rule("The closed loop", align="left"))
    console.print(_opening(real, lacking), highlight=False, soft_wrap=True)
    story = _Story()
    with (
        tempfile.TemporaryDirectory(prefix="dspy-observe-loop-") as folder,
        opened(Path(folder), story.hear, real=real, users=_USERS) as world,
    ):
        _where(console, world)
        if plain or not console.is_terminal:
            done = _play(world, story)
            console.print(story.render())
        else:
            with Live(get_renderable=story.render, console=console, refresh_per_second=6):
                done = _play(world, story)
        world.stop_serving()
        return _close(console, world, story, done)


def _opening(real: bool, lacking: list[str]) -> str:
    plot = (
        f"{_USERS} users ask {PROGRAM}, which serves {GOOD}. Then {BAD} is deployed: its new instruction reads well, "
        "and breaks it.\n"
    )
    if real:
        return plot + (
            "Prometheus, Alertmanager and the receiver are the real ones, on loopback, with the shipped rules at "
            "demonstration speed."
        )
    why = f"not installed here: {', '.join(lacking)}" if lacking else "as asked for"
    return plot + (
        f"Without Prometheus and Alertmanager ({why}) the monitor in the serving process weighs the scores of the "
        "answers."
    )


def _where(console: Console, world: World) -> None:
    places = {
        "registry": world.registry.location, "metrics": world.metrics_url, "prometheus": world.prometheus_url,
        "alertmanager": world.alertmanager_url, "receiver": world.receiver_url,
    }  # fmt: skip
    for name, place in places.items():
        if place is not None:
            console.print(Text(f"{name:<13} {place}"), soft_wrap=True, highlight=False)
    console.print()


def _play(world: World, story: _Story) -> bool:
    """Deploy the worse version and wait for each step; whether the last one came."""
    time.sleep(_SETTLE_S)
    world.registry.deploy_version(PROGRAM, BAD, environment=ENVIRONMENT, actor="demo", reason="friendlier instruction")
    story.timeline.add(Event(time.time(), "deployed", f"{BAD} is deployed: a friendlier instruction", "act"))
    watching = threading.Event()
    watcher = threading.Thread(target=_watch, args=(world, story, watching), daemon=True)
    watcher.start()
    try:
        return all(story.timeline.wait_for(key, _PATIENCE_S) for key in ("decided", f"swap-{GOOD}", "recovered"))
    finally:
        watching.set()
        watcher.join()


def _watch(world: World, story: _Story, stop: threading.Event) -> None:
    """Look at Prometheus and at the registry until the story is over."""
    while not stop.wait(_POLL_S):
        if world.prometheus_url is not None:
            with suppress(OSError, ValueError):
                _alerts(world.prometheus_url, story)
        for decision in world.registry.decisions(PROGRAM, environment=ENVIRONMENT):
            if decision.applied:
                at = decision.at.timestamp()
                story.timeline.add(Event(at, "decided", f"decision: roll back to {decision.target}", "act"))
                story.timeline.add(Event(at + 1e-6, "why", f"  because {decision.reason}"))


def _alerts(url: str, story: _Story) -> None:
    with urllib.request.urlopen(f"{url}/api/v1/alerts", timeout=2) as reply:  # noqa: S310 - our own http:// address
        found = json.load(reply)["data"]["alerts"]
    for alert in found:
        labels = alert["labels"]
        if labels.get("dspy_action") == "rollback" and labels.get("version") == BAD:
            name, state = labels["alertname"], alert["state"]
            verb = "begins to hold" if state == "pending" else "fires"
            # The rules of the demonstration wait for nothing, so an alert fires from the moment that it holds.
            waited = story.timeline.get("pending") is not None
            began = time.time() if waited else datetime.fromisoformat(alert["activeAt"]).timestamp()
            story.timeline.add(Event(began, state, f"Prometheus: {name} {verb} for {BAD}", "bad"))


def _close(console: Console, world: World, story: _Story, done: bool) -> bool:
    """The closing lines; whether all went as it should."""
    console.print()
    console.print(Rule("Why: dspy-observe decisions list", align="left"))
    table = Table("at", "outcome", "version", "reason", box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for decision in world.registry.decisions(PROGRAM, environment=ENVIRONMENT, limit=8):
        moved = f"{decision.version} → {decision.target}" if decision.applied else decision.version or "-"
        table.add_row(f"{decision.at:%H:%M:%S}", decision.outcome, moved, decision.reason)
    console.print(table)
    running = world.registry.get_deployed_version(PROGRAM, environment=ENVIRONMENT)
    bad = world.registry.get_version(PROGRAM, BAD)
    ended = story.ended or {"asked": 0, "answered": 0, "failed": 0}
    lost = ended["asked"] - ended["answered"] - ended["failed"]
    good = done and running is not None and running.version == GOOD and bad.quarantined is not None and lost == 0
    first, swapped = story.timeline.get("bad"), story.timeline.get(f"swap-{GOOD}")
    took = f"{swapped.at - first.at:.1f} s" if first is not None and swapped is not None else "-"
    words = (
        f"{ended['asked']} questions, {ended['answered']} answered, {ended['failed']} failed, {lost} lost. "
        f"From the first bad answer to the swapped program: {took}. {BAD} is quarantined."
        if good
        else f"the loop did not close: {running.version if running else None} is deployed, {lost} questions lost"
    )
    console.print(Text(words, style="green" if good else "bold red"), soft_wrap=True)
    return good
