"""Hard cases, each with what must go and the promise that nothing else changes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dspy_observe.redaction import Redaction, Redactor

CASES: list[dict[str, Any]] = [
    json.loads(line)
    for line in (Path(__file__).parent / "data" / "redaction_adversarial.jsonl").read_text("utf-8").splitlines()
]
REDACTOR = Redactor(Redaction(known_secrets=False))
PLACEHOLDER = re.compile(r"<[A-Z][A-Z0-9_]*>")


def removed(text: str, out: str) -> list[tuple[int, int]]:
    """The stretches of the text that placeholders replaced, found by the pieces that were kept."""
    kept = PLACEHOLDER.split(out)
    assert text.startswith(kept[0])
    assert text.endswith(kept[-1])
    spans, at = [], len(kept[0])
    for place, piece in enumerate(kept[1:], 1):
        found = len(text) - len(piece) if place == len(kept) - 1 else text.index(piece, at)
        assert found >= at
        spans.append((at, found))
        at = found + len(piece)
    return spans


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_every_private_span_goes_and_nothing_else_changes(case: dict[str, Any]) -> None:
    """Labelled characters are gone; every changed stretch touches a label; cases without labels stay as they are."""
    text = case["text"]
    spans = removed(text, REDACTOR.redact_text(text))
    must = [span for span in case["spans"] if not span.get("optional")]
    for label in must:
        letters = [at for at in range(label["start"], label["end"]) if text[at].isalnum()]
        gone = sum(any(start <= at < end for start, end in spans) for at in letters)
        assert gone >= 0.75 * len(letters), f"{label['type']} left: {case.get('note', '')}"
    for start, end in spans:
        assert any(start < label["end"] and label["start"] < end for label in case["spans"]), text[start:end]


def test_the_cases_are_all_there() -> None:
    """The file holds its 217 cases, 59 of them with nothing private at all."""
    assert len(CASES) == 217
    assert sum(not case["spans"] for case in CASES) == 59
