"""Redacted copies of nested, hostile and huge values; the redactor's own promises."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote, quote_plus

import pytest
from pydantic import BaseModel

from dspy_observe.records import Finding
from dspy_observe.redaction import (
    DEFAULT_DETECTORS,
    Detector,
    Fixed,
    KeyedHash,
    Label,
    Operator,
    Redaction,
    Redactor,
    credentials_only,
    explain,
)
from dspy_observe.redaction.keynames import DEFAULT_ALLOW, DEFAULT_DENY_KEYS, KeyNames
from dspy_observe.redaction.process import environment_secrets

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


@pytest.mark.parametrize(
    "held",
    ["<hunter2EXAMPLE", "<pw>hunter2EXAMPLE</pw>", "[REDACTION_ERROR hunter2EXAMPLE", "<SECRET>hunter2"],
)
def test_a_secret_that_looks_like_a_replacement_is_dropped(held: str) -> None:
    """Only what this redactor writes itself stays under the name of a secret."""
    copy, findings = plain().redact({"password": held, "text": json.dumps({"password": held})})
    assert copy == {"password": "<SECRET>", "text": '{"password": "<SECRET>"}'}
    assert [finding.entity for finding in findings] == ["SECRET", "SECRET"]


@pytest.mark.parametrize("operator", [Label(), Label("[{entity}]"), Fixed("(gone)"), KeyedHash(b"0" * 16)])
def test_what_replaced_a_secret_stays_under_its_name(operator: Operator) -> None:
    """The second time there is nothing to find."""
    redactor = plain(operators={"SECRET": operator})
    once, _ = redactor.redact({"password": "hunter2EXAMPLE"})
    assert redactor.redact(once) == (once, ())


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


@pytest.mark.parametrize("around", [" {}", "\n\t{}", "  {} \n"])
def test_json_with_space_around_it_is_json(around: str) -> None:
    """And the space stays."""
    text = around.format('{"password": "correct horse"}')
    assert plain().redact(text)[0] == around.format('{"password": "<SECRET>"}')
    assert plain().redact({"q": text})[0] == {"q": around.format('{"password": "<SECRET>"}')}


def test_json_lines_are_redacted_line_by_line() -> None:
    """Lines without a secret, and lines that are no JSON, stay as they were."""
    lines = ['{"password": "correct horse"}', '{"a":1}', "", '[{"secretKeys": ["x"]}]\r', '{"token": broken']
    clean = ['{"password": "<SECRET>"}', '{"a":1}', "", '[{"secretKeys": "<SECRET>"}]\r', '{"token": broken']
    assert plain().redact("\n".join(lines))[0] == "\n".join(clean)
    prose = '{"password": [1]}\nis what they sent'
    assert plain().redact(prose)[0] == prose


class Login(NamedTuple):
    """A value with names for its places."""

    user: str
    password: str


def test_a_named_tuple_keeps_its_names() -> None:
    """They say which of its values is a secret."""
    assert plain().redact([Login(MAIL, "correct horse"), ("a", 1)])[0] == [
        {"user": "<EMAIL>", "password": "<SECRET>"},
        ("a", 1),
    ]


def test_many_texts_end_as_many_containers_do() -> None:
    """Numbers, such as an embedding's, do not count."""
    copy, _ = plain().redact([f"text {number}" for number in range(150_000)])
    assert len(copy) == 100_000
    assert copy[-1] == "<TRUNCATED ITEMS>"
    assert len(plain().redact({"v": [0.5] * 150_000})[0]["v"]) == 150_000


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
    assert redactor.redact([5, MAIL])[0] == [
        "[REDACTION_ERROR:LookupError len=1]",
        "[REDACTION_ERROR:LookupError len=15]",
    ]
    assert redactor.failures == 3


@pytest.mark.parametrize("name", ["ghp_EXAMPLE0123456789abcdefghijABCDEFGHI", "not a name", "purple_elephant_9"])
def test_an_error_named_after_something_private_is_any_exception(name: str) -> None:
    """Names of types are made of data, too."""
    kind = type(name, (Exception,), {})

    def broken(text: str) -> Iterator[tuple[int, int]]:
        raise kind(text)

    seen: list[str] = []
    redactor = Redactor(Redaction(detectors=(broken,)), on_failure=lambda kind, _: seen.append(kind))
    redactor.add_secrets(["purple_elephant_9"])
    assert redactor.redact_text("hello there") == "[REDACTION_ERROR:Exception len=11]"
    assert seen == ["Exception"]


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


def test_a_secret_of_the_environment_may_end_in_a_line_break() -> None:
    """As it does when it was read from a file."""
    names = KeyNames(DEFAULT_DENY_KEYS, DEFAULT_ALLOW)
    assert environment_secrets(names, {"MY_API_KEY": " purple elephant\n", "HOME": "/x"}) == ["purple elephant"]


def test_a_known_secret_is_found_however_it_was_written() -> None:
    """In URLs, forms, JSON of every kind and ``repr``."""
    secret = "pass'EX/AMPLE\"q+9\\é8 z"
    redactor = Redactor()
    redactor.add_secrets([secret])
    written = (
        secret, quote(secret), quote(secret, safe=""), quote_plus(secret), json.dumps(secret)[1:-1],
        json.dumps(secret).replace("/", "\\/")[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], repr(secret)[1:-1],
    )  # fmt: skip
    for form in written:
        assert redactor.redact_text(f"said {form} again") == "said <KNOWN_SECRET> again"
    redactor.add_secrets(["lone \ud800 surrogate"])
    assert redactor.redact_text("lone%20%ED%A0%80%20surrogate") == "<KNOWN_SECRET>"


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


def test_credentials_only_keeps_the_credentials_and_names_of_its_options() -> None:
    """A token and a name of one's own go in every mode; personal data of one's own stays."""
    mine = Detector("DEPLOY_KEY", pattern=r"dpk-[0-9]{4}", kind="credential")
    badge = Detector("BADGE", pattern=r"[A-Z]{2}-[0-9]{6}")
    options = Redaction(
        detectors=(*DEFAULT_DETECTORS, badge, mine),
        deny_keys=frozenset({"vault"}),
        allow=frozenset({"old_vault"}),
        known_secrets=False,
    )
    copy, _ = credentials_only(options).redact(
        {"text": f"dpk-1234 {KEY} AB-123456 {MAIL}", "vault": "x", "old_vault": "y", "password": "z"}
    )
    assert copy == {
        "text": f"<DEPLOY_KEY> <API_KEY> AB-123456 {MAIL}", "vault": "<SECRET>", "old_vault": "y", "password": "z",
    }  # fmt: skip
    only_mine = credentials_only(Redaction(detectors=(mine,), known_secrets=False))
    assert only_mine.redact_text(f"dpk-1234 {KEY}") == "<DEPLOY_KEY> <API_KEY>"


def test_a_text_beyond_the_limit_is_cut_and_says_so() -> None:
    """No character beyond the limit leaves, no word is cut in two, and the count is right."""
    text = "word " * 200 + MAIL
    out = plain(scan_limit_chars=256).redact_text(text)
    assert len(out) <= 256
    kept, note = out[: out.index("<")], out[out.index("<") :]
    assert text.startswith(kept)
    assert kept.endswith("word ")
    assert note == f"<TRUNCATED {len(text) - len(kept)} CHARS>"


@pytest.mark.parametrize(
    "number",
    ["4111 1111 1111 1111", "139 1234 5678", "+44 (0)20 7946 0958", "GB19 NWBK 6016 1331 9269 99", "4111　1111"],
)
def test_no_number_in_groups_is_cut_in_two(number: str) -> None:
    """Wherever the limit falls, it is there as a whole, and replaced, or not at all."""
    for lead in range(190, 230):
        for before in ("x" * (lead - 1) + " ", "x" * (lead - 1) + "号"):
            out = plain(scan_limit_chars=256, detectors=()).redact_text(before + number + " tail" * 40)
            kept = out.partition("<TRUNCATED")[0].removeprefix("x" * (lead - 1)).strip(" 号+(")
            assert kept == "" or kept.startswith(number.strip("+"))
    assert plain(scan_limit_chars=256).redact_text("a3 " * 70 + "word " * 40).startswith("a3 " * 70)


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


def test_detectors_of_ones_own_see_short_texts_and_small_numbers() -> None:
    """What no built-in detector finds in a few characters, another may."""
    pin = Detector("PIN", pattern="[0-9]{4}")
    redactor = plain(detectors=(*DEFAULT_DETECTORS, pin))
    assert redactor.redact_text("1234") == "<PIN>"
    assert redactor.redact({"a": "1234", "b": 1234, "c": 12, "1234": ["x"]})[0] == {
        "a": "<PIN>", "b": "<PIN>", "c": 12, "<PIN>": ["x"],
    }  # fmt: skip
    assert plain().redact({"a": "1234", "b": 1234})[0] == {"a": "1234", "b": 1234}


def test_a_key_is_context_for_detectors_of_ones_own() -> None:
    """As the word before the value is in a text, in any case."""
    badge = Detector("BADGE", pattern=r"[A-Z]{2}-[0-9]{6}", context=("Badge", "工号"))
    redactor = plain(detectors=(*DEFAULT_DETECTORS, badge))
    value = {"badge": "AB-123456", "staffBadge": ["AB-123456"], "工号": "AB-123456", "part": "AB-123456"}
    assert redactor.redact(value)[0] == {
        "badge": "<BADGE>", "staffBadge": ["<BADGE>"], "工号": "<BADGE>", "part": "AB-123456",
    }  # fmt: skip


def test_a_detector_with_context_is_part_of_nested_values() -> None:
    """Own detectors work in the walk as in a text."""
    badge = Detector("BADGE", pattern=r"[A-Z]{2}-[0-9]{6}")
    assert plain(detectors=(badge,)).redact({"a": ["AB-123456"]})[0] == {"a": ["<BADGE>"]}
