"""Names, scores and registry events: what is private goes, what a registry calls a version stays."""

from __future__ import annotations

import pytest

from dspy_observe.records import RegistryEvent, Score
from dspy_observe.redaction import Detector, Redaction, Redactor, redact_event, redact_name, redact_score
from dspy_observe.redaction.names import encodable, redact_given_name

KEY = "ghp_EXAMPLE7NotARealTokenAtAll0123456789"


@pytest.mark.parametrize(
    "name", ["1.2.3.4", "v1.2.3.4", "release-4111111111111111", "1234567890", "123-45-6789", "qa_555-123-4567"]
)
def test_a_given_name_stays_what_the_registry_takes(name: str) -> None:
    """It may look like an address, a card or a phone; a model or tool of that name would not stay."""
    assert redact_given_name(name) == name
    assert redact_score(Score("c", 1.0, "user", name, name, "stable", None, 1.0)).version == name
    event = RegistryEvent("dspy.registry.decision", name, 1.0, "prod", name, {"previous": name, "target": name})
    assert redact_event(event, [Redactor()]) == event


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (KEY, "<API_KEY>"),
        (f"v1.{KEY}", "v1.<API_KEY>"),
        ("team@corp.example", "<EMAIL>"),
        ("for 4111111111111111 only", "for <CARD> only"),
        ("+442079460000", "<PHONE>"),
        (None, None),
    ],
)
def test_a_given_name_loses_credentials_and_what_no_registry_takes(name: str | None, expected: str | None) -> None:
    """Events and scores lose the same."""
    assert redact_given_name(name) == expected
    event = redact_event(RegistryEvent("dspy.registry.export", name or "qa", 1.0, None, name, {"previous": name}))
    assert (event.version, event.data["previous"]) == (expected, expected)
    assert redact_score(Score("c", 1.0, "user", name, name, "stable", None, 1.0)).program == expected


def test_other_names_pass_all_detectors_and_those_of_the_application() -> None:
    """Environment, source and data of an event are no names of the registry's."""
    house = Redactor(Redaction(detectors=(Detector("HOUSE", r"house"),)))
    event = RegistryEvent("dspy.registry.export", "qa", 1.0, "10.1.2.3", "v1", {"reason": "1.2.3.4 in the house"})
    clean = redact_event(event, [house])
    assert (clean.environment, clean.data) == ("<IP>", {"reason": "<IP> in the <HOUSE>"})
    assert redact_score(Score("c", 1.0, "1.2.3.4", "qa", "v1", "stable", None, 1.0)).source == "<IP>"
    assert redact_name("1.2.3.4") == "<IP>"


@pytest.mark.parametrize("text", ["plain", "密钥 \U0001f600", ""])
def test_a_text_that_can_be_encoded_is_the_very_same(text: str) -> None:
    """Nothing is copied."""
    assert encodable(text) is text


def test_lone_surrogates_become_question_marks_wherever_names_pass() -> None:
    """Half an emoji, as a text that was cut has it, in names of any length, in scores and in events."""
    for name in ("\ud83d", "q\ud800", "x" * 300 + "\udfff"):
        for clean in (redact_name(name), redact_given_name(name)):
            assert clean == name[:-1] + "?"
    data = {"k\ud800": ["v\ud800", {"n": "\ud800"}], "previous": "\ud800", "n": 1}
    event = redact_event(RegistryEvent("dspy.registry.x\ud800", "p\ud800", 1.0, "e\ud800", "v\ud800", data))
    assert event == RegistryEvent(
        "dspy.registry.x?", "p?", 1.0, "e?", "v?", {"k?": ["v?", {"n": "?"}], "previous": "?", "n": 1}
    )
