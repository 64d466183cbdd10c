"""Redacted copies of nested, hostile and huge values; the redactor's own promises."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel

from dspy_observe.records import Finding
from dspy_observe.redaction import Detector, Redaction, Redactor, credentials_only, explain

MAIL, PHONE = "a.b@example.com", "13812345678"
KEY = "sk-proj-EXAMPLEnotARealKey0123456789abcdef"


def plain(**options: Any) -> Redactor:
    """A redactor that does not depend on this process's environment."""
    return Redactor(Redaction(known_secrets=False, **options))


@dataclass
class Person:
    """A value with fields."""

    mail: str
    phones: list[int]


class Row(BaseModel):
    """A pydantic value."""

    mail: str
    n: int


def test_every_kind_of_container_is_copied_and_redacted() -> None:
    """Kinds that JSON knows keep their kind; the others become plain data."""
    value = {
        "messages": [{"role": "user", "content": f"mail {MAIL}"}],
        "pair": (MAIL, 3),
        "set": {MAIL},
        "person": Person(MAIL, [13812345678]),
        "row": Row(mail=MAIL, n=5),
        "error": ValueError(f"bad {MAIL}"),
        "bytes": b"abc",
        MAIL: None,
        "n": 12,
        "x": 0.5,
        "ok": True,
    }
    copy, findings = plain().redact(value)
    assert copy == {
        "messages": [{"role": "user", "content": "mail <EMAIL>"}],
        "pair": ("<EMAIL>", 3),
        "set": {"<EMAIL>"},
        "person": {"mail": "<EMAIL>", "phones": ["<PHONE>"]},
        "row": {"mail": "<EMAIL>", "n": 5},
        "error": "ValueError: bad <EMAIL>",
        "bytes": "<bytes len=3>",
        "<EMAIL>": None,
        "n": 12,
        "x": 0.5,
        "ok": True,
    }
    assert Finding("EMAIL", "messages[0].content") in findings
    assert Finding("PHONE", "person.phones[0]") in findings
    assert MAIL not in repr(findings)


def test_numbers_are_judged_with_the_name_they_stand_under() -> None:
    """The same digits are a phone here and a count of bytes there."""
    copy, _ = plain().redact(
        {"phone": 4155550132, "bytes": 13812345678, "ssn": "219099998", "total_tokens": 13812345678}
    )
    assert copy == {"phone": "<PHONE>", "bytes": 13812345678, "ssn": "<US_SSN>", "total_tokens": 13812345678}


def test_values_under_names_of_secrets_are_dropped_whole() -> None:
    """Whatever they hold; ``None``, switches and empty values say nothing and stay."""
    value = {
        "password": 12345,
        "api_key": {"a": [1]},
        "token": None,
        "secret": "",
        "max_tokens": 5,
        "headers": {"X-Auth-Token": "x"},
    }
    copy, findings = plain().redact(value)
    assert copy == {
        "password": "<SECRET>", "api_key": "<SECRET>", "token": None, "secret": "", "max_tokens": 5,
        "headers": {"X-Auth-Token": "<SECRET>"},
    }  # fmt: skip
    assert {finding.path for finding in findings} == {"password", "api_key", "headers.X-Auth-Token"}


def test_deny_and_allow_are_options() -> None:
    """``allow`` wins over ``deny_keys``."""
    redactor = plain(deny_keys=frozenset({"badge"}), allow=frozenset({"test_badge"}))
    assert redactor.redact({"badge": 1, "staffBadge": 2, "test_badge": 3, "password": 4})[0] == {
        "badge": "<SECRET>", "staffBadge": "<SECRET>", "test_badge": 3, "password": 4,
    }  # fmt: skip


@pytest.mark.parametrize("ascii_only", [True, False])
def test_json_inside_a_string_is_redacted_by_name_and_stays_json(ascii_only: bool) -> None:
    """Secrets that only their key betrays; the style of escapes is kept."""
    text = json.dumps(
        {"备注": f"打{PHONE}", "password": 12345, "n": [1, {"credentials": {"u": "x"}}]}, ensure_ascii=ascii_only
    )
    out, findings = plain().redact(text)
    assert json.loads(out) == {"备注": "打<PHONE>", "password": "<SECRET>", "n": [1, {"credentials": "<SECRET>"}]}
    assert out.isascii() is ascii_only
    assert {finding.entity for finding in findings} == {"PHONE", "SECRET"}


def test_cycles_depth_and_size_end() -> None:
    """A value that holds itself, one of ten thousand levels, one of a hundred and fifty thousand items."""
    loop: dict[str, Any] = {"mail": MAIL}
    loop["self"] = loop
    assert plain().redact(loop)[0] == {"mail": "<EMAIL>", "self": "<CYCLE>"}
    deep: list[Any] = [MAIL]
    for _ in range(10_000):
        deep = [deep]
    assert MAIL not in repr(plain().redact(deep)[0])
    assert "<TRUNCATED ITEMS>" in plain().redact([{} for _ in range(150_000)])[0]
    shared = [MAIL]
    assert plain().redact([shared, shared])[0] == [["<EMAIL>"], ["<EMAIL>"]]


class Hostile:
    """Raises, with something private, whatever is asked of it."""

    def __repr__(self) -> str:
        raise RuntimeError(MAIL)

    __str__ = __repr__


class HostileDict(dict[str, str]):
    """Cannot be read."""

    def items(self) -> Any:
        """Never."""
        raise KeyError(MAIL)


class HostileModel:
    """Its dump fails."""

    def model_dump(self) -> dict[str, str]:
        """Never."""
        raise ValueError(MAIL)


def test_hostile_objects_become_an_error_mark_and_their_neighbours_live() -> None:
    """One bad object costs its own value only, and is counted."""
    seen: list[tuple[str, int]] = []
    redactor = Redactor(Redaction(known_secrets=False), on_failure=lambda kind, size: seen.append((kind, size)))
    copy, _ = redactor.redact({"a": Hostile(), "b": HostileDict(x="y"), "c": HostileModel(), "d": MAIL})
    assert copy == {
        "a": "[REDACTION_ERROR:RuntimeError]",
        "b": "[REDACTION_ERROR:KeyError]",
        "c": "[REDACTION_ERROR:ValueError]",
        "d": "<EMAIL>",
    }
    assert redactor.failures == 3
    assert seen == [("RuntimeError", 0), ("KeyError", 0), ("ValueError", 0)]


def test_a_detector_that_raises_drops_the_value_and_is_counted() -> None:
    """Fails closed: the type and the length are all that is left."""

    def broken(text: str) -> Iterator[tuple[int, int]]:
        raise LookupError(text)

    redactor = plain(detectors=(broken,))
    assert redactor.redact_text("hello " + MAIL) == "[REDACTION_ERROR:LookupError len=21]"
    assert redactor.redact({"n": 5, "text": MAIL})[0] == {"n": 5, "text": "[REDACTION_ERROR:LookupError len=15]"}
    assert redactor.failures == 2  # the keys are shorter than anything private and are not looked at


def test_input_is_never_touched() -> None:
    """The copy shares no container with the input."""
    value = {"a": [MAIL, {"b": (PHONE,)}], "password": "x1y2z3"}
    before = json.dumps(value)
    copy, _ = plain().redact(value)
    copy["a"].append(1)
    assert json.dumps(value) == before


def test_secrets_of_the_process_are_replaced_literally(monkeypatch: pytest.MonkeyPatch) -> None:
    """From variables named like secrets, in every escaped form; short values and directories are none."""
    monkeypatch.setenv("ACME_API_KEY", 'plain words "here"')
    monkeypatch.setenv("ACME_TOKEN", "short")
    monkeypatch.setenv("PWD", "/home/somebody/somewhere")
    redactor = Redactor()
    assert redactor.redact_text('x plain words "here" y') == "x <KNOWN_SECRET> y"
    assert redactor.redact_text(json.dumps({"q": 'plain words "here"'})) == '{"q": "<KNOWN_SECRET>"}'
    assert redactor.redact_text("plain%20words%20%22here%22") == "<KNOWN_SECRET>"
    assert redactor.redact_text("short /home/somebody/somewhere") == "short /home/somebody/somewhere"


def test_secrets_learnt_later_are_replaced_from_then_on() -> None:
    """Also while other threads redact; placeholders are never taken for secrets."""
    redactor = Redactor()
    redactor.add_secrets(["purple elephant", "", "EMPTY", "<SECRET>", "TRUNCATED"])
    assert (
        redactor.redact_text("the purple elephant <SECRET> TRUNCATED EMPTY")
        == "the <KNOWN_SECRET> <SECRET> TRUNCATED EMPTY"
    )
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(50):
                redactor.add_secrets([f"secret number {number} {turn}"])
                assert f"{number} {turn}" not in redactor.redact_text(f"a secret number {number} {turn} b")
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_known_secrets_can_be_off() -> None:
    """Then nothing is learnt."""
    redactor = plain()
    redactor.add_secrets(["purple elephant"])
    assert redactor.redact_text("purple elephant") == "purple elephant"


def test_of_the_secrets_of_single_calls_the_latest_are_known() -> None:
    """Those told before for good stay; one that is told again is new again; and all of them are bounded."""
    redactor = Redactor(Redaction())
    redactor.add_secrets(["EXAMPLE-lm-key"])
    before = len(redactor._known)
    for number in range(200):
        redactor.add_passing_secrets(["EXAMPLE-lm-key", "EXAMPLE-first", f"EXAMPLE-call-{number:03}", "short"])
    assert len(redactor._known) == before + 64
    assert redactor.redact_text("EXAMPLE-lm-key") == "<KNOWN_SECRET>"
    assert redactor.redact_text("EXAMPLE-first") == "<KNOWN_SECRET>"
    assert redactor.redact_text("EXAMPLE-call-199") == "<KNOWN_SECRET>"
    assert redactor.redact_text("EXAMPLE-call-000") == "EXAMPLE-call-000"
    off = Redactor(Redaction(known_secrets=False))
    off.add_passing_secrets(["EXAMPLE-first"])
    assert off.redact_text("EXAMPLE-first") == "EXAMPLE-first"


def test_credentials_only_leaves_personal_data_and_no_credential() -> None:
    """What raw content passes."""
    copy, _ = credentials_only().redact(
        {"text": f"{MAIL} {KEY} {PHONE}", "password": "x", "Authorization": "Bearer abc"}
    )
    assert copy == {"text": f"{MAIL} <API_KEY> {PHONE}", "password": "<SECRET>", "Authorization": "<SECRET>"}


def test_a_text_beyond_the_limit_is_cut_and_says_so() -> None:
    """No character beyond the limit leaves, no word is cut in two, and the count is right."""
    text = "word " * 200 + MAIL
    out = plain(scan_limit_chars=256).redact_text(text)
    assert len(out) <= 256
    kept, note = out[: out.index("<")], out[out.index("<") :]
    assert text.startswith(kept)
    assert kept.endswith("word ")
    assert note == f"<TRUNCATED {len(text) - len(kept)} CHARS>"


def test_truncation_comes_after_redaction() -> None:
    """A number across the edge is gone as a whole."""
    for lead in range(180, 260):
        out = plain(max_chars=256).redact_text("x" * lead + " " + "4111 2222 3333 4448 " + "tail " * 40)
        assert "4111" not in out
        assert "3333" not in out
        assert len(out) <= 256


def test_explain_names_places_and_operators_without_values() -> None:
    """Positions are those of the text given."""
    text = f"mail {MAIL} now"
    assert explain(text, Redaction(known_secrets=False)) == [("EMAIL", 5, 5 + len(MAIL), "label")]


def test_strange_unicode_keeps_its_positions() -> None:
    """``İ`` has a lower case of two characters, lone surrogates have no encoding."""
    assert plain().redact_text("İİİ phone 4155550132 \ud800") == "İİİ phone <PHONE> \ud800"


def test_a_detector_with_context_is_part_of_nested_values() -> None:
    """Own detectors work in the walk as in a text."""
    badge = Detector("BADGE", pattern=r"[A-Z]{2}-[0-9]{6}")
    assert plain(detectors=(badge,)).redact({"a": ["AB-123456"]})[0] == {"a": ["<BADGE>"]}
