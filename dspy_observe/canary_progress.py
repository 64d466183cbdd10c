"""The progress file of a canary: what was scored already, so that an interrupted run goes on where it was.

JSON Lines: ``run`` begins a run, ``score`` is one example, ``done`` ends it. Each line is on disk before the next
example counts as scored; a line that was cut short by a crash is left out.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
from pathlib import Path
from typing import Any, Self

from dspy_observe.errors import ConfigurationError, ObserveError

__all__ = ["Progress", "ProgressError"]


class ProgressError(ObserveError):
    """The progress file cannot be written."""


class Progress:
    """The run that is under way. Also a context manager that closes the file.

    Args:
        file: Where it is kept; ``None`` keeps nothing.
        about: What makes two runs the same: data set, metric, versions and the like, plain values. An unfinished last
            run with the same goes on.

    Raises:
        ConfigurationError: The file is there and holds something else.
        ProgressError: The file cannot be read or written.
    """

    def __init__(self, file: Path | None, about: dict[str, Any]) -> None:
        self.run = secrets.token_hex(8)
        self._scores: dict[tuple[str, int], float | None] = {}
        self._lock = threading.Lock()
        self._file: Any = None
        self._path = file
        if file is None:
            return
        try:
            lines = self._open(file)
        except OSError as error:
            raise ProgressError(f"cannot write {file}: {error.strerror}") from None
        unfinished = _unfinished(lines)
        if unfinished is not None and unfinished[0].get("about") == about:
            self.run = str(unfinished[0]["run"])
            for line in unfinished[1:]:
                self._scores[str(line["version"]), int(line["example"])] = line["score"]
        else:
            self._write({"kind": "run", "run": self.run, "about": about})

    @property
    def resumed(self) -> int:
        """Scores that an interrupted run left."""
        return len(self._scores)

    def known(self, version_hash: str) -> dict[int, float | None]:
        """Scores of a version that are there, by example; ``None`` where the program failed."""
        return {example: score for (version, example), score in self._scores.items() if version == version_hash}

    def add(self, version_hash: str, example: int, score: float | None) -> None:
        """Keep one score; from any thread."""
        with self._lock:
            self._write({"kind": "score", "version": version_hash, "example": example, "score": score})

    def done(self, result: dict[str, Any]) -> None:
        """The run is over; the next one begins anew."""
        with self._lock:
            self._write({"kind": "done", "run": self.run, "result": result})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def _open(self, file: Path) -> list[dict[str, Any]]:
        file.parent.mkdir(parents=True, exist_ok=True)
        lines: list[dict[str, Any]] = []
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        for number, line in enumerate(text.splitlines(), 1):
            try:
                read = json.loads(line)
            except ValueError:
                continue  # cut short by a crash
            if not isinstance(read, dict) or read.get("kind") not in ("run", "score", "done"):
                raise ConfigurationError("--out", f"{file}:{number} is no line of a canary", "Name another file")
            lines.append(read)
        if text and not lines:
            raise ConfigurationError("--out", f"{file} is no progress file", "Name another file")
        self._file = file.open("a", encoding="utf-8")
        if text and not text.endswith("\n"):
            self._file.write("\n")
        return lines

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise ProgressError(f"cannot write {self._path}: {error.strerror}") from None


def _unfinished(lines: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """The last run and its scores, if it did not end."""
    begins = [place for place, line in enumerate(lines) if line["kind"] == "run"]
    if not begins or any(line["kind"] == "done" for line in lines[begins[-1] :]):
        return None
    return lines[begins[-1] :]
