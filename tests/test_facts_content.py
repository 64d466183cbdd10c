"""Content is copied as plain data, without credentials, without calling what objects define."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import dspy
import pydantic
import pytest
from dspy import lm15

from dspy_observe.facts.content import credentials_ahead, credentials_in, credentials_of, inputs_of, outputs_of
from dspy_observe.redaction import DEFAULT_ALLOW, DEFAULT_DENY_KEYS
from dspy_observe.serving import FallbackLM


class Hostile:
    """An object whose every text form raises."""

    def __repr__(self) -> str:
        raise RuntimeError("repr")

    __str__ = __repr__


class Person(pydantic.BaseModel):
    """A typed field."""

    name: str
    friends: list[str] = []


@dataclasses.dataclass
class Account:
    """A dataclass with a field that it hides."""

    owner: str
    secret: str = dataclasses.field(default="hidden", repr=False)


def lm_with(**kwargs: Any) -> Any:
    """An object with an LM's arguments."""
    return type("LM", (), {"kwargs": kwargs})()


def test_an_lm_call_shows_messages_and_sampling_and_nothing_else() -> None:
    """What is not on the list of parameters, such as a key, a header or a client, is not there at all."""
    instance = lm_with(temperature=0.5, api_key="sk-1234567890", api_base="http://inside:1/v1", max_tokens=None)
    messages = [{"role": "user", "content": "hi"}]
    inputs = {
        "prompt": None,
        "messages": messages,
        "kwargs": {"seed": 7, "extra_headers": {"Authorization": "Bearer abc"}, "client": Hostile(), "user": "me"},
    }
    before = copy.copy(inputs)
    taken = inputs_of("lm", instance, inputs)
    assert taken == {"messages": messages, "parameters": {"temperature": 0.5, "seed": 7}}
    assert taken["messages"] is not messages
    assert taken["messages"][0] is not messages[0]
    assert inputs == before


def test_call_arguments_win_over_the_lms_own() -> None:
    """As in DSPy."""
    taken = inputs_of("lm", lm_with(temperature=0.0), {"prompt": "hi", "kwargs": {"temperature": 1.0}})
    assert taken == {"messages": [{"role": "user", "content": "hi"}], "parameters": {"temperature": 1.0}}


def test_a_typed_request_shows_system_and_messages() -> None:
    """``dspy.lm15.Request`` instead of messages."""
    request = lm15.Request(model="m", messages=(lm15.Message.user("hi"),), system="be kind")
    taken = inputs_of("lm", lm_with(), {"prompt": request, "messages": None, "kwargs": {}})
    roles = [message["role"] for message in taken["messages"]]
    assert roles == ["system", "user"]
    assert "be kind" in json.dumps(taken)
    assert "hi" in json.dumps(taken)


def test_a_decision_request_shows_its_own_arguments() -> None:
    """LMs of other kinds take a state and questions."""
    taken = inputs_of("lm", lm_with(), {"state": {"a": 1}, "questions": ["?"], "kwargs": {"api_key": "sk-1234567890"}})
    assert taken["messages"] == [{"role": "user", "content": {"state": {"a": 1}, "questions": ["?"]}}]
    assert "sk-" not in json.dumps(taken)


@pytest.mark.parametrize(
    ("kind", "inputs", "expected"),
    [
        ("module", {"args": (), "kwargs": {"question": "?"}}, {"question": "?"}),
        ("module", {"args": (1, "b"), "kwargs": {"c": None}}, {"args": [1, "b"], "c": None}),
        ("tool", {"kwargs": {"x": [1, 2]}}, {"x": [1, 2]}),
        ("adapter_parse", {"signature": object, "completion": "text"}, "text"),
        ("interpreter", {"code": "1+1", "variables": {}}, {"code": "1+1", "variables": {}}),
        (
            "evaluate",
            {"program": dspy.Module(), "devset": [1, 2, 3], "metric": Hostile, "num_threads": 4, "x": None},
            {"program": "<Module>", "devset": "<3 items>", "metric": "<Hostile>", "num_threads": 4},
        ),
        ("compile", {"student": dspy.Module(), "trainset": []}, {"student": "<Module>", "trainset": "<0 items>"}),
    ],
)
def test_inputs_of_other_calls(kind: Any, inputs: dict[str, Any], expected: Any) -> None:
    """Arguments by name; data sets and programs by size and class only."""
    assert inputs_of(kind, None, inputs) == expected


def test_a_prompt_is_shown_by_signature_and_inputs() -> None:
    """Not by its demonstrations, which the messages hold anyway."""
    taken = inputs_of(
        "adapter_format",
        None,
        {"signature": dspy.Signature("question -> answer"), "demos": [1], "inputs": {"question": "?"}},
    )
    assert taken == {"signature": "question -> answer", "inputs": {"question": "?"}}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (1.5, 1.5),
        (b"abcd", "<4 bytes>"),
        (bytearray(3), "<3 bytes>"),
        (Person, "<Person>"),
        (Person(name="Ann", friends=["Bob"]), {"name": "Ann", "friends": ["Bob"]}),
        (Account("Ann"), {"owner": "Ann"}),
        (dspy.Prediction(answer="42"), {"answer": "42"}),
        (dspy.Example(a=1).with_inputs("a"), {"a": 1}),
        (Hostile(), "<Hostile>"),
        ({1: "a", "b": Hostile()}, {"<int>": "a", "b": "<Hostile>"}),
        ((1, (2,)), [1, [2]]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_outputs_as_plain_data(value: Any, expected: Any) -> None:
    """Everything becomes data that JSON can hold; what is no data appears by its class."""
    taken = outputs_of("module", value)
    assert taken == expected
    assert json.loads(json.dumps(taken)) == taken


def test_cycles_depth_and_size_are_bounded() -> None:
    """No value of a program can make the observer run for long."""
    cyclic: list[Any] = []
    cyclic.append(cyclic)
    text = json.dumps(outputs_of("module", cyclic))
    assert "<list>" in text
    assert len(text) < 200
    assert len(outputs_of("module", list(range(50_000)))) == 1_000
    assert len(outputs_of("module", {str(n): n for n in range(50_000)})) == 1_000


def test_a_typed_response_shows_content_and_reason() -> None:
    """Not its raw wire form."""
    response = lm15.Response(
        id="r1", model="m", message=lm15.Message.assistant("hello"), finish_reason="stop", usage=lm15.Usage()
    )
    taken = outputs_of("lm", response)
    assert taken["finish_reason"] == "stop"
    assert "hello" in json.dumps(taken["content"])


def test_an_evaluations_results_are_not_copied() -> None:
    """They hold the whole data set."""
    assert outputs_of("evaluate", dspy.Prediction(score=1.0)) == "<Prediction>"


def test_credentials_are_found_wherever_arguments_name_them() -> None:
    """On the LM, in the call, nested, with and without their scheme; counts and placeholders are none."""
    instance = lm_with(
        api_key="sk-1234567890", max_tokens="100000000", num_tokens="100000000", password="x", temperature=0.1
    )
    inputs = {
        "kwargs": {
            "extra_headers": {"Authorization": "Bearer abcdef123456", "X-Trace": "not secret at all"},
            "aws": {"deep": {"aws_secret_access_key": "wJalrXUtnFEMI"}},
            "client_secret": 12345678901,
        }
    }
    found = credentials_of(instance, inputs)
    assert set(found) == {"sk-1234567890", "Bearer abcdef123456", "abcdef123456", "wJalrXUtnFEMI"}


def test_credentials_of_an_object_without_arguments() -> None:
    """Custom engines and other kinds of LM have none, or keep the key as an attribute."""
    assert credentials_of(object(), {}) == []
    assert credentials_of(type("LM", (), {"kwargs": None, "api_key": "sk-1234567890"})(), {"kwargs": None}) == [
        "sk-1234567890"
    ]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://svc:EXAMPLEurlpw123@127.0.0.1:9/v1", {"EXAMPLEurlpw123"}),
        ("http://svc:EXAMPLE%40pw@127.0.0.1/v1", {"EXAMPLE%40pw", "EXAMPLE@pw"}),
        ("http://svc:EXAMPLE@pw1@127.0.0.1/v1", {"EXAMPLE@pw1"}),
        ("https://host/v1?key=EXAMPLEkey1%2B2&alt=something", {"EXAMPLEkey1%2B2", "EXAMPLEkey1+2"}),
        ("https://host/v1?x-api%2Dkey=EXAMPLEkey1", {"EXAMPLEkey1"}),
        ("https://host/v1#access_token=EXAMPLEkey1", {"EXAMPLEkey1"}),
        ("https://EXAMPLEtok1@host/v1", {"EXAMPLEtok1"}),
        ("https://service:pw@host/v1", {"service:pw@"}),
        ("https://administrator@host/v1", set()),
        ("https://host:8443/a@b/c?alt=something", set()),
        ("see http://svc:EXAMPLEurlpw123@127.0.0.1", set()),
        ("http://127.0.0.1/v1 with a text behind it, key=EXAMPLEkey1 or a@b", set()),
    ],
)
def test_credentials_in_an_address(url: str, expected: set[str]) -> None:
    """Passwords and credential parameters of a URL count as they are written and as they are meant."""
    assert set(credentials_of(lm_with(api_base=url), {})) == expected
    assert set(credentials_of(lm_with(), {"kwargs": {"proxies": [{"http": url}]}})) == expected


def test_credentials_are_found_in_lists() -> None:
    """Dicts in lists, pairs of name and value, dicts of name and value, and several values under one name."""
    kwargs = {
        "extra_body": {"vault": [{"token": "EXAMPLE-1-token"}]},
        "tools": [{"headers": {"Authorization": "Bearer EXAMPLE-2-token"}}],
        "extra_headers": [("X-Api-Key", "EXAMPLE-3-token"), ["X-Trace", "something else"]],
        "env": ({"name": "MY_SECRET", "value": "EXAMPLE-4-token"}, {"name": "mode", "value": "something else"}),
        "api_keys": ["EXAMPLE-5-token", "EXAMPLE-6-token"],
    }
    found = set(credentials_of(lm_with(**kwargs), {}))
    assert found == {"Bearer EXAMPLE-2-token", *(f"EXAMPLE-{number}-token" for number in range(1, 7))}


def test_schemas_and_lists_of_words_hold_no_credentials() -> None:
    """The names that a tool asks for and columns named keys are ordinary words, whatever stands before them."""
    parameters = {
        "properties": {"api_key": {"type": "string", "description": "the key to use"}},
        "required": ["api_key", "customer_id"],
    }
    kwargs = {
        "tools": [{"type": "function", "function": {"name": "lookup_token", "parameters": parameters}}],
        "key_columns": ["customer_id", "order_number"],
        "stop": ["password"],
    }
    assert credentials_of(lm_with(**kwargs), {}) == []


def test_lists_are_followed_to_a_bounded_depth() -> None:
    """A list that holds itself ends."""
    cycle: list[Any] = []
    cycle.append(cycle)
    assert credentials_of(lm_with(stop=cycle), {}) == []


def test_credentials_in_the_arguments_of_tools_and_modules() -> None:
    """By the names that redaction drops; fields that merely sound like them, words and placeholders are none."""
    kwargs = {
        "api_key": "EXAMPLE-tool-key-1", "headers": {"Authorization": "Bearer EXAMPLE-2-token"},
        "url": "http://svc:EXAMPLEurlpw123@host", "keywords": "observability", "key_points": ["reliability"],
        "max_tokens": "1000000000", "token": "language", "password": "x", "question": "what is api_key=EXAMPLE?",
    }  # fmt: skip
    found = credentials_in({"kwargs": kwargs}, DEFAULT_DENY_KEYS, DEFAULT_ALLOW)
    assert set(found) == {
        "EXAMPLE-tool-key-1", "Bearer EXAMPLE-2-token", "EXAMPLE-2-token", "EXAMPLEurlpw123",
    }  # fmt: skip
    assert credentials_in({"kwargs": kwargs}, DEFAULT_DENY_KEYS, frozenset({"api_key"})) == found[1:]
    assert credentials_in({"kwargs": {"vault_id": "vault-0001"}}, frozenset({"vault_id"}), frozenset()) == [
        "vault-0001"
    ]
    assert credentials_in({"args": ()}, DEFAULT_DENY_KEYS, DEFAULT_ALLOW) == []


def test_credentials_of_the_models_behind_an_lm_are_known_ahead() -> None:
    """Whichever of them will be asked, also behind two stand-ins."""
    lms = [dspy.LM(f"openai/gpt-{number}", api_key=f"EXAMPLE-lm-key-{number}") for number in range(3)]
    with dspy.context(lm=FallbackLM(lms[0], FallbackLM(*lms[1:]))):
        found = credentials_ahead(dspy.Predict("question -> answer"), {"kwargs": {"question": "?"}})
    assert found == [f"EXAMPLE-lm-key-{number}" for number in range(3)]
