"""Names, scores and registry events: what is private goes, and what no encoding carries."""

from __future__ import annotations

import pytest

from dspy_observe.records import RegistryEvent
from dspy_observe.redaction import redact_event, redact_name
from dspy_observe.redaction.names import encodable


@pytest.mark.parametrize("text", ["plain", "密钥 \U0001f600", ""])
def test_a_text_that_can_be_encoded_is_the_very_same(text: str) -> None:
    """Nothing is copied."""
    assert encodable(text) is text


def test_lone_surrogates_become_question_marks_wherever_names_pass() -> None:
    """Half an emoji, as a text that was cut has it, in names of any length, in scores and in events."""
    for name in ("\ud83d", "q\ud800", "x" * 300 + "\udfff"):
        assert redact_name(name) == name[:-1] + "?"
    data = {"k\ud800": ["v\ud800", {"n": "\ud800"}], "previous": "\ud800", "n": 1}
    event = redact_event(RegistryEvent("dspy.registry.x\ud800", "p\ud800", 1.0, "e\ud800", "v\ud800", data))
    assert event == RegistryEvent(
        "dspy.registry.x?", "p?", 1.0, "e?", "v?", {"k?": ["v?", {"n": "?"}], "previous": "?", "n": 1}
    )
