"""Content passes the redactor before anybody reads it, and what was found is counted once."""

from __future__ import annotations

from typing import Any

import dspy
import pytest
from prometheus_client import CollectorRegistry

from dspy_observe import CallbackGroup, Metrics, Redaction, RedactionCallback
from dspy_observe.testing import Capture, offline_lm

QUESTION = "mail alice@example.com"


class Wants(Capture):
    """A reader of modules and LM calls that wants content."""

    content = "redacted"
    kinds = frozenset({"module", "lm"})


def run(callbacks: list[Any]) -> Any:
    """One run whose question and answer hold an address each."""
    with dspy.context(lm=offline_lm({"answer": "write to bob@example.com"}), callbacks=callbacks):
        return dspy.Predict("question -> answer")(question=QUESTION)


def arrangements(redaction: RedactionCallback, wants: Wants) -> dict[str, list[Any]]:
    """Every way to list two callbacks."""
    return {
        "group": [CallbackGroup(redaction, wants)],
        "group reversed": [CallbackGroup(wants, redaction)],
        "listed": [redaction, wants],
        "listed reversed": [wants, redaction],
    }


@pytest.mark.parametrize("how", ["group", "group reversed", "listed", "listed reversed"])
def test_content_is_redacted_and_counted_the_same_however_callbacks_are_listed(how: str) -> None:
    """The program's own answer is untouched; the counter is the number of findings in the records."""
    registry = CollectorRegistry()
    wants, redaction = Wants(), RedactionCallback(metrics=Metrics(collector_registry=registry))
    prediction = run(arrangements(redaction, wants)[how])
    assert prediction.answer == "write to bob@example.com"
    assert "alice@" not in repr(wants.records)
    assert "bob@" not in repr(wants.records)
    (module,) = [record for record in wants.records if record.kind == "module"]
    assert module.inputs == {"question": "mail <EMAIL>"}
    assert module.outputs == {"answer": "write to <EMAIL>"}
    found = [finding.entity for record in wants.records for finding in record.findings]
    assert set(found) == {"EMAIL"}
    assert registry.get_sample_value("dspy_redactions_total", {"entity": "EMAIL"}) == len(found) == 4


def test_two_redactors_both_apply() -> None:
    """One for addresses, one for a word of the house."""

    def house(text: str) -> list[tuple[int, int]]:
        at = text.find("write")
        return [(at, at + 5)] if at >= 0 else []

    wants = Wants()
    callbacks = [
        RedactionCallback(metrics=Metrics(collector_registry=CollectorRegistry())),
        wants,
        RedactionCallback(Redaction(detectors=(house,)), Metrics(collector_registry=CollectorRegistry())),
    ]
    run([CallbackGroup(*callbacks)])
    (module,) = [record for record in wants.records if record.kind == "module"]
    assert module.outputs == {"answer": "<HOUSE> to <EMAIL>"}


def test_a_failing_detector_is_counted_and_its_text_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails closed."""
    monkeypatch.delenv("DSPY_OBSERVE_STRICT", raising=False)

    def bad(text: str) -> list[tuple[int, int]]:
        if "alice" in text:
            raise RuntimeError(text)
        return []

    registry, wants = CollectorRegistry(), Wants()
    redaction = RedactionCallback(Redaction(detectors=(bad,)), Metrics(collector_registry=registry))
    run([redaction, wants])
    assert "alice" not in repr(wants.records)
    failures = registry.get_sample_value("dspy_redaction_failures_total")
    assert failures is not None
    assert failures >= 2
    assert all(record.outcome == "ok" for record in wants.records)


def test_nothing_is_counted_where_no_content_is_captured() -> None:
    """The redactor does no work then."""
    registry, capture = CollectorRegistry(), Capture()
    run([RedactionCallback(metrics=Metrics(collector_registry=registry)), capture])
    assert registry.get_sample_value("dspy_redactions_total", {"entity": "EMAIL"}) is None
    assert all(record.inputs is None and record.outputs is None for record in capture.records)
