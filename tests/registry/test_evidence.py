"""What monitors find out is kept for all of them, on every store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dspy_observe.registry import CorruptRegistry, SignatureRegistry, UnknownSignature

Open = Callable[..., SignatureRegistry]
COUNT = """
    import sys
    from dspy_observe.registry import SignatureRegistry

    def fold(state, view):
        state = state or {"count": 0, "by": {}}
        state["count"] += 1
        state["by"][sys.argv[2]] = state["by"].get(sys.argv[2], 0) + 1
        return state

    with SignatureRegistry(sys.argv[1]) as registry:
        for _ in range(25):
            registry.fold_evidence("qa", fold)
"""


def test_evidence_is_kept_by_environment(
    three: SignatureRegistry, open_registry: Callable[..., SignatureRegistry]
) -> None:
    """What one process folded in, another one finds; environments have their own."""
    assert three.evidence("qa") is None
    seen: list[Any] = []

    def fold(state: dict[str, Any] | None, view: Any) -> dict[str, Any]:
        seen.append((state, view.version("v2").version))
        return {"n": 1 + (state or {"n": 0})["n"], "text": "ä", "number": 0.1}

    three.fold_evidence("qa", fold)
    other = open_registry()
    other.fold_evidence("qa", fold)
    assert three.evidence("qa") == {"n": 2, "text": "ä", "number": 0.1}
    assert three.evidence("qa", environment="staging") is None
    assert seen == [(None, "v2"), ({"n": 1, "text": "ä", "number": 0.1}, "v2")]


def test_evidence_is_no_part_of_a_version(three: SignatureRegistry, seen: Callable[..., list[Any]]) -> None:
    """Nothing that describes versions, scores and deployments changes with it."""
    before = seen(three)
    three.fold_evidence("qa", lambda _state, _view: {"n": 1})
    assert seen(three) == before


def test_a_fold_that_fails_changes_nothing(three: SignatureRegistry) -> None:
    """An error in the fold leaves the evidence as it was, and so does None."""
    three.fold_evidence("qa", lambda _state, _view: {"n": 1})

    def broken(state: dict[str, Any] | None, view: Any) -> dict[str, Any]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        three.fold_evidence("qa", broken)
    three.fold_evidence("qa", lambda _state, _view: None)
    assert three.evidence("qa") == {"n": 1}
    three.forget_evidence("qa")
    assert not three.evidence("qa")


def test_an_unknown_signature_has_no_evidence(three: SignatureRegistry) -> None:
    """It is an error, as everywhere, and nothing is made."""
    with pytest.raises(UnknownSignature):
        three.fold_evidence("other", lambda _state, _view: {"n": 1})
    with pytest.raises(UnknownSignature):
        three.evidence("other")
    assert three.list_signatures() == ["qa"]


def test_two_processes_lose_nothing(three: SignatureRegistry, location: str, start_python: Callable[..., Any]) -> None:
    """Two monitors that fold at once see each other's state, every time."""
    running = [start_python(COUNT, location, name) for name in ("first", "second")]
    for process in running:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert three.evidence("qa") == {"count": 50, "by": {"first": 25, "second": 25}}


def test_a_damaged_evidence_file_is_named(tmp_path: Path) -> None:
    """In the file store, the message names the file and the way out."""
    with SignatureRegistry(tmp_path / "registry") as registry:
        registry.register_version("qa", {"n": 1})
        registry.fold_evidence("qa", lambda _state, _view: {"n": 1})
        file = tmp_path / "registry" / "evidence" / "qa.json"
        assert json.loads(file.read_text()) == {"production": {"n": 1}}
        file.write_text("{")
        with pytest.raises(CorruptRegistry, match=r"qa\.json.*delete it"):
            registry.evidence("qa")
        file.write_text("[]")
        with pytest.raises(CorruptRegistry, match="no evidence"):
            registry.evidence("qa")
