"""Each detector with its own examples, validators and shapes."""

# ruff: noqa: E501 - texts with Chinese punctuation stay on one line

from __future__ import annotations

import re

import pytest

from dspy_observe.redaction import (
    CREDENTIAL_DETECTORS,
    DEFAULT_DETECTORS,
    Detector,
    Drop,
    Label,
    Redaction,
    RedactionConfigError,
    Redactor,
    credentials_only,
    validators,
)
from dspy_observe.redaction.keynames import DEFAULT_ALLOW, DEFAULT_DENY_KEYS, KeyNames
from dspy_observe.redaction.keys import FAMILIES

PLAIN = Redactor(Redaction(known_secrets=False))
EXAMPLES = [(detector, text) for detector in DEFAULT_DETECTORS for text in detector.examples]
COUNTER = [(detector, text) for detector in DEFAULT_DETECTORS for text in detector.counterexamples]


@pytest.mark.parametrize(("detector", "text"), EXAMPLES, ids=[f"{d.name}-{n}" for n, (d, _) in enumerate(EXAMPLES)])
def test_a_detector_alone_finds_its_examples(detector: Detector, text: str) -> None:
    """What a detector says it finds, it finds by itself, under its own name."""
    _, entities = Redactor(Redaction(detectors=(detector,), known_secrets=False)).scan_text(text)
    assert set(entities) == {detector.name}


@pytest.mark.parametrize(("detector", "text"), COUNTER, ids=[f"{d.name}-{n}" for n, (d, _) in enumerate(COUNTER)])
def test_a_detector_leaves_its_look_alikes(detector: Detector, text: str) -> None:
    """What a detector says it does not find stays as it is."""
    alone = Redactor(Redaction(detectors=(detector,), known_secrets=False))
    assert alone.redact_text(text) == text


def test_every_detector_names_its_source_and_shows_both_sides() -> None:
    """No rule without where it comes from, an example and a look-alike."""
    for detector in DEFAULT_DETECTORS:
        assert detector.source, detector.name
        assert detector.examples, detector.name
        assert detector.counterexamples, detector.name
    assert {d.kind for d in CREDENTIAL_DETECTORS} == {"credential"}


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (validators.luhn, "4111222233334448", "4111222233334449"),
        (validators.card_issuer, "378282246310005", "1732093200123456"),
        (validators.cn_resident_id, "11010519491231002X", "110105194912310021"),
        (validators.us_ssn, "123456789", "666121234"),
        (validators.iban, "DE82370400440532013999", "DE83370400440532013999"),
        (validators.iban, "GB19NWBK60161331926999", "GB19NWBK6016133192699"),
    ],
)
def test_a_validator_tells_right_from_nearly_right(check: object, good: str, bad: str) -> None:
    """One changed digit is enough to be rejected."""
    assert check(good) is True  # type: ignore[operator]
    assert check(bad) is False  # type: ignore[operator]


@pytest.mark.parametrize(
    ("address", "public", "private", "everything"),
    [
        ("203.0.113.42", True, True, True),
        ("192.168.1.7", False, True, True),
        ("fe80::1ff:fe23:4567:890a", False, True, True),
        ("127.0.0.1", False, False, True),
        ("0.0.0.0", False, False, True),
        ("::1", False, False, True),
        ("999.1.1.1", False, False, False),
    ],
)
def test_the_scope_of_addresses_is_a_switch(address: str, public: bool, private: bool, everything: bool) -> None:
    """Public, private and all include one another."""
    assert validators.ip_scope_includes(address, "public") is public
    assert validators.ip_scope_includes(address, "private") is private
    assert validators.ip_scope_includes(address, "all") is everything


def test_private_networks_stay_when_only_public_addresses_are_asked_for() -> None:
    """``ip_scope`` reaches the detector."""
    text = "from 10.1.2.3 to 203.0.113.42"
    assert PLAIN.redact_text(text) == "from <IP> to <IP>"
    assert Redactor(Redaction(ip_scope="public", known_secrets=False)).redact_text(text) == "from 10.1.2.3 to <IP>"


@pytest.mark.parametrize(
    "name",
    ["password", "dbPassword", "DB_PASSWORD", "X-Api-Key", "openai_api_key", "authToken", "client-secret", "userpassword",
     "Authorization", "set-cookie", "aws_secret_access_key", "password1", "session_token", "APIKEY", "密码",
     "passwords", "access_tokens", "private_keys", "secretKeys", "user_passwords", "a_" * 110 + "password"],
)  # fmt: skip
def test_names_of_secrets_are_known_in_any_spelling(name: str) -> None:
    """Case, hyphens, underscores and camel case do not matter."""
    assert KeyNames(DEFAULT_DENY_KEYS, DEFAULT_ALLOW).is_secret(name)


@pytest.mark.parametrize(
    "name",
    ["prompt_tokens", "max_tokens", "token_count", "trace_id", "cache_key", "primary_key", "author", "keyboard", "tokens",
     "secretary", "compass", "gen_ai.usage.input_tokens", "next_page_token", "time_to_first_token", "model", "",
     "cached_tokens", "session_tokens", "public_keys", "cache_keys", "passwords_count"],
)  # fmt: skip
def test_names_that_only_look_so_stay(name: str) -> None:
    """Usage, identifiers and ordinary words are not secrets."""
    assert not KeyNames(DEFAULT_DENY_KEYS, DEFAULT_ALLOW).is_secret(name)


def test_key_families_are_many_and_bounded() -> None:
    """A hundred and fifty families, none with an open quantifier."""
    assert len(FAMILIES) >= 150
    for family in FAMILIES:
        assert "*" not in family.rest, family
        assert "+)" not in family.rest, family
        assert not family.rest.endswith("+"), family


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Call me at 4155550132 tomorrow", "Call me at <PHONE> tomorrow"),
        ("epoch 1732093200 ended", "epoch 1732093200 ended"),
        ("my card 4111 1111 1111 1111 123", "my card <CARD> 123"),
        ("https://user:s3cr3t@example.com/x", "https://user:<URL_CREDENTIAL>@example.com/x"),
        ("define('DB_PASSWORD', 's3cret99');", "define('DB_PASSWORD', '<SECRET>');"),
        ("--password s3cret99 --verbose", "--password <SECRET> --verbose"),
        ("icon@2x.png and a@b.png", "icon@2x.png and a@b.png"),
        ('{"token": " Hello", "logprob": -0.1}', '{"token": " Hello", "logprob": -0.1}'),
        ("password=<SECRET> api_key='<SECRET>'", "password=<SECRET> api_key='<SECRET>'"),
        ("user 13812345678 scored 7654321", "user <PHONE> scored 7654321"),
        ("paid 4111222233334448 ref 6011000990139", "paid <CARD> ref 6011000990139"),
        ("ref 6011000990139 paid 4111222233334448", "ref 6011000990139 paid <CARD>"),
        ("203.0.113.9 runs dspy 2.6.1.3", "<IP> runs dspy 2.6.1.3"),
        ("1.1.1.1 was " * 40, "<IP> was " + "1.1.1.1 was " * 39),
        ("<PHONE>4155550132</PHONE>", "<PHONE><PHONE></PHONE>"),
        ("phone of <EMAIL> 4155550132", "phone of <EMAIL> <PHONE>"),
        ("LM call 6912888 us", "LM call 6912888 us"),
        ("call 3 of 70 took 6912888 ns", "call 3 of 70 took 6912888 ns"),
        ("tool call used 1234567 bytes", "tool call used 1234567 bytes"),
        ("LM call 12345678 ended, tool_call 7654321", "LM call 12345678 ended, tool_call 7654321"),
        ("call 5550132 after the tool call", "call <PHONE> after the tool call"),
        ("called 7123532 times", "called 7123532 times"),
        ("LM call with phone 4155550132", "LM call with phone <PHONE>"),
        ("dial +44 (0)20 7946 0958 now", "dial <PHONE> now"),
        ("+44 (0)7911 123456, +81 (0)90-1234-5678", "<PHONE>, <PHONE>"),
        ("+91 (0)22 1234 5678; +86\uff080\uff0910 6888 7777", "<PHONE>; <PHONE>"),
        ("ssh deploy@203.0.113.42 failed", "ssh deploy@<IP> failed"),
        ("ssh root@10.1.2.3", "ssh root@<IP>"),
        ("npm i pkg@1.2.3.4", "npm i pkg@1.2.3.4"),
        ("Cookie: lang=en; session=EXAMPLEopaque0123456789abcdef", "Cookie: <COOKIE>"),
        ("Cookie: seen=; a=1; s=EXAMPLEopaque0123456789abcdef ok", "Cookie: <COOKIE> ok"),
        ("cookie: n=1 and more; cookies = a=b", "cookie: n=1 and more; cookies = a=b"),
        (
            "Authorization: AWS4-HMAC-SHA256 Credential=EXAMPLE/s3/aws4_request, SignedHeaders=host;date, Signature=fe5f80f77d5",
            "Authorization: <SECRET> <AUTHORIZATION>",
        ),
        (
            'Authorization: Digest username="Mufasa", uri="/dir", response="6629fae49393a05397450978507c4ef1" sent',
            "Authorization: Digest <AUTHORIZATION> sent",
        ),
        (
            '{"h": "Authorization: Hawk id=\\"dh37\\", ts=\\"1353832234\\", mac=\\"6R4rV5iE+NPoym+WwjeHzjAGX=\\"", "n": 1}',
            '{"h": "Authorization: Hawk <AUTHORIZATION>", "n": 1}',
        ),
        (
            "{'Authorization': 'OAuth realm=\"x\",oauth_signature=\"EXAMPLEwOJIO9A2W5mFwDgiDvZbTSMK%2FPY%3D\"', 'n': 1}",
            "{'Authorization': 'OAuth <AUTHORIZATION>', 'n': 1}",
        ),
        (
            '{"Authorization": "Basic ZXhhbXBsZTpleGFtcGxl=", "realm": "x", "n": 1}',
            '{"Authorization": "Basic <AUTHORIZATION>", "realm": "x", "n": 1}',
        ),
        ("Authorization: Custom id_token=EXAMPLE0123456789,sig_value=abc", "Authorization: Custom <AUTHORIZATION>"),
    ],
)
def test_texts_become_exactly_this(text: str, expected: str) -> None:
    """Whole outputs, so that an over-eager rule shows."""
    assert PLAIN.redact_text(text) == expected


def test_a_detector_of_ones_own_takes_pattern_check_and_context() -> None:
    """All three decide together; the group named value is what goes."""
    badge = Detector(
        "BADGE", pattern=r"id=(?P<value>[A-Z]{2}[0-9]{4})", validator=lambda v: v.endswith("7"), context=("staff",)
    )
    redactor = Redactor(Redaction(detectors=(badge,), known_secrets=False))
    assert redactor.redact_text("staff id=AB1237") == "staff id=<BADGE>"
    assert redactor.redact_text("staff id=AB1238") == "staff id=AB1238"
    assert redactor.redact_text("parts id=AB1237") == "parts id=AB1237"


def test_labels_are_no_context_for_a_detector_of_ones_own() -> None:
    """What stands for a removed phone says nothing about the number beside it."""
    pin = Detector("PIN", pattern="[0-9]{4}", context=("phone",))
    redactor = Redactor(Redaction(detectors=(*DEFAULT_DETECTORS, pin), known_secrets=False))
    text = "1 2024 is when 13812345678 scored 2023 points"
    assert redactor.redact_text(text) == text.replace("13812345678", "<PHONE>")
    assert redactor.redact_text("phone pin 2023") == "phone pin <PIN>"


def test_any_function_from_text_to_spans_is_a_detector() -> None:
    """Its entity is its attribute, else its name."""

    def person(text: str) -> list[tuple[int, int]]:
        at = text.find("Ada")
        return [(at, at + 3)] if at >= 0 else []

    redactor = Redactor(Redaction(detectors=(*DEFAULT_DETECTORS, person), known_secrets=False))
    assert redactor.redact_text("Ada: a.b@example.com") == "<PERSON>: <EMAIL>"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Detector("email", pattern="x"),
        lambda: Detector("X"),
        lambda: Detector("X", pattern="("),
        lambda: Detector("X", pattern="a*"),
        lambda: Detector(5, pattern="a"),  # type: ignore[arg-type]
        lambda: Detector(None, pattern="a"),  # type: ignore[arg-type]
        lambda: Detector("X", pattern=b"abc"),  # type: ignore[arg-type]
        lambda: Detector("X", pattern=re.compile(b"abc")),  # type: ignore[arg-type]
        lambda: Detector("X", pattern=5),  # type: ignore[arg-type]
        lambda: Detector("X", scan=5),  # type: ignore[arg-type]
        lambda: Detector("X", number=5),  # type: ignore[arg-type]
        lambda: Detector("X", pattern="a", validator=5),  # type: ignore[arg-type]
        lambda: Detector("X", pattern="a", context="badge"),  # type: ignore[arg-type]
        lambda: Detector("X", pattern="a", context=(5,)),  # type: ignore[arg-type]
        lambda: Detector("X", pattern="a", context=5),  # type: ignore[arg-type]
        lambda: Detector("X", pattern="a", gate="abc"),  # type: ignore[arg-type]
        lambda: Detector("X", pattern="a", gate=("",)),
        lambda: Detector("X", pattern="a", kind="foo"),  # type: ignore[arg-type]
        lambda: Redactor({}),  # type: ignore[arg-type]
        lambda: Redaction(scan_limit_chars=10),
        lambda: Redaction(max_chars=0),
        lambda: Redaction(replacement=" "),
        lambda: Redaction(deny_keys="password"),  # type: ignore[arg-type]
        lambda: Redaction(ip_scope="none"),  # type: ignore[arg-type]
        lambda: Redaction(operators={"EMAIL": "mask"}),  # type: ignore[dict-item]
        lambda: Redaction(operators={"EMIAL": Drop()}),
        lambda: Redaction(replacement="<{nope}>"),
        lambda: Redaction(operators={"EMAIL": Label("<{0}>")}),
        lambda: Redaction(detectors=(1,)),  # type: ignore[arg-type]
        lambda: Redactor(Redaction(replacement="me@example.com")),
    ],
)
def test_bad_options_say_which_field_and_what_to_write(make: object) -> None:
    """The error is a ValueError with the field's name in front."""
    with pytest.raises(RedactionConfigError, match=r"^(Detector|Label|Redaction|Redactor)\.\w+: .+\. .+"):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("span", [(0, 13), (-1, 12), (-5, 99)])
def test_a_span_that_reaches_beyond_the_text_is_cut_to_it(span: tuple[int, int]) -> None:
    """A search that is one off still removes what it found, whether function or detector."""

    def off(text: str, _lowered: str = "") -> list[tuple[int, int]]:
        return [span] if text == "hello secret" else []

    for detector in (off, Detector("X", scan=off)):
        redactor = Redactor(Redaction(detectors=(detector,), known_secrets=False, replacement="<GONE>"))
        assert redactor.redact_text("hello secret") == "<GONE>"
        assert redactor.failures == 0


@pytest.mark.parametrize("span", [(5, 3), (20, 25), (-9, -3), (None, 3)])
def test_what_is_no_span_at_all_drops_the_text(span: tuple[int, int]) -> None:
    """It fails closed and is counted; an empty span finds nothing."""
    redactor = Redactor(Redaction(detectors=(lambda _: [span],), known_secrets=False))
    assert redactor.redact_text("hello secret").startswith("[REDACTION_ERROR:")
    assert redactor.failures == 1
    empty = Redactor(Redaction(detectors=(lambda _: [(3, 3)],), known_secrets=False))
    assert empty.redact_text("hello secret") == "hello secret"


def test_a_gate_is_given_in_any_case() -> None:
    """As is the text; lists are as good as tuples."""
    badge = Detector("BADGE", pattern=r"AB-[0-9]{6}", gate=["AB-"], context=["Badge"])  # type: ignore[arg-type]
    redactor = Redactor(Redaction(detectors=(badge,), known_secrets=False))
    assert redactor.redact_text("badge AB-123456") == "badge <BADGE>"
    assert badge.gate == ("ab-",)


def test_an_entity_that_nothing_finds_is_refused_with_those_that_are_found() -> None:
    """Names of own detectors and of own functions count, and what is found without a detector."""

    def person(text: str) -> list[tuple[int, int]]:
        return []

    badge = Detector("BADGE", pattern="[A-Z]{2}-[0-9]{6}")
    entities = ("BADGE", "PERSON", "EMAIL", "SECRET", "KNOWN_SECRET")
    Redaction(detectors=(*DEFAULT_DETECTORS, badge, person), operators={entity: Drop() for entity in entities})
    for detectors, entity in ((DEFAULT_DETECTORS, "BADGE"), ((badge, person), "EMAIL")):
        with pytest.raises(RedactionConfigError, match=f"no detector finds {entity}. Use one of .*KNOWN_SECRET"):
            Redaction(detectors=detectors, operators={entity: Drop()})


def test_credentials_only_takes_the_operators_of_any_options() -> None:
    """Those for personal data have nothing to do there; the others work."""
    redactor = credentials_only(Redaction(operators={"EMAIL": Drop(), "JWT": Drop()}, known_secrets=False))
    assert set(redactor.options.operators) == {"JWT"}
    assert redactor.redact_text("mail a@b.example") == "mail a@b.example"


def test_names_from_the_environment_add_to_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deployment that names one more secret does not lose the others; an argument replaces all."""
    monkeypatch.setenv("DSPY_OBSERVE_REDACTION_DENY_KEYS", "badge, plate")
    monkeypatch.setenv("DSPY_OBSERVE_REDACTION_ALLOW", "our_token")
    assert Redaction().deny_keys == DEFAULT_DENY_KEYS | {"badge", "plate"}
    assert Redaction().allow == DEFAULT_ALLOW | {"our_token"}
    assert Redactor().redact({"badge": "Ada", "our_token": "x y z"})[0] == {"badge": "<SECRET>", "our_token": "x y z"}
    assert Redaction(deny_keys={"mine"}).deny_keys == {"mine"}  # type: ignore[arg-type]
