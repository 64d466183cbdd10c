"""Each detector with its own examples, validators and shapes."""

# ruff: noqa: E501 - texts with Chinese punctuation stay on one line

from __future__ import annotations

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
     "Authorization", "set-cookie", "aws_secret_access_key", "password1", "session_token", "APIKEY", "密码"],
)  # fmt: skip
def test_names_of_secrets_are_known_in_any_spelling(name: str) -> None:
    """Case, hyphens, underscores and camel case do not matter."""
    assert KeyNames(DEFAULT_DENY_KEYS, DEFAULT_ALLOW).is_secret(name)


@pytest.mark.parametrize(
    "name",
    ["prompt_tokens", "max_tokens", "token_count", "trace_id", "cache_key", "primary_key", "author", "keyboard", "tokens",
     "secretary", "compass", "gen_ai.usage.input_tokens", "next_page_token", "time_to_first_token", "model", ""],
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
    with pytest.raises(RedactionConfigError, match=r"^(Detector|Label|Redaction)\.\w+: .+\. .+"):
        make()  # type: ignore[operator]


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
