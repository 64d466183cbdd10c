"""Inputs and outputs of a call as plain data, ready for redaction: no live objects, no credentials.

Only what a reader of a trace asks for is taken: messages and sampling parameters of an LM call, arguments and fields
elsewhere. Sampling parameters come from an allow-list, so that no key, header, address or client object can pass.
Objects are read without calling ``repr`` or ``str`` on them; what is neither data nor a DSPy or pydantic object
appears as ``<ClassName>``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any, Final
from urllib.parse import unquote

import dspy
from dspy import lm15
from dspy.dsp.utils.settings import thread_local_overrides

from dspy_observe.facts.identity import WeakIdentityMap
from dspy_observe.facts.lm import setting
from dspy_observe.records import CallKind
from dspy_observe.redaction.keynames import DEFAULT_ALLOW, DEFAULT_DENY_KEYS, KeyNames

__all__ = ["credentials_ahead", "credentials_in", "credentials_of", "inputs_of", "outputs_of"]

_MAX_DEPTH: Final = 12
_MAX_ITEMS: Final = 1_000
"""Items of one container that are looked at: content is cut at a few thousand characters later on."""

_SAMPLING: Final = frozenset(
    {
        "temperature", "top_p", "top_k", "max_tokens", "max_completion_tokens", "n", "stop", "seed", "logprobs",
        "top_logprobs", "presence_penalty", "frequency_penalty", "reasoning_effort", "response_format", "tools",
        "tool_choice", "parallel_tool_calls", "rollout_id", "cache",
    }
)  # fmt: skip
"""OpenAI's chat parameters and DSPy's own: https://platform.openai.com/docs/api-reference/chat/create"""

_SECRET_WORDS: Final = ("key", "token", "secret", "password", "authorization", "credential")
_COUNTS: Final = ("tokens", "max_", "num_")
_DEFAULT_NAMES: Final = KeyNames(DEFAULT_DENY_KEYS, DEFAULT_ALLOW)
_NUMBERS: Final = frozenset({int, float, bool, type(None)})
"""What most arguments are, and what holds nothing."""
_MIN_SECRET: Final = 8  # characters; shorter ones ("x", "EMPTY") are placeholders and would blank out ordinary words
_MAX_WITHIN: Final = 4
"""How deep stand-ins for LMs are looked into: one of them may hold another."""

_SCHEME_CHARS: Final = 40  # a text is a URL when it begins with a scheme; the longest in use is far shorter
_URL: Final = re.compile(r"[^\s/]+://(?:([^\s/?#]*)@)?([^\s]*)\s*\Z")
_PARAMETER: Final = re.compile(r"[?&#;]([^=?&#;]+)=([^?&#;]+)")


def inputs_of(kind: CallKind, instance: Any, inputs: Mapping[str, Any]) -> Any:
    """A plain copy of what a call was given.

    Args:
        kind: Which hook fired.
        instance: What is called; an LM's own sampling parameters are part of the request.
        inputs: DSPy's argument dictionary; only read.
    """
    if kind == "lm":
        return _lm_inputs(instance, inputs)
    if kind == "module":
        positional, given = inputs.get("args"), inputs.get("kwargs") or {}
        return _mapping({"args": list(positional), **given} if positional else given, 0)
    if kind == "tool":
        return _plain(inputs.get("kwargs") or {}, 0)
    if kind == "adapter_format":
        return _plain({"signature": _signature(inputs.get("signature")), "inputs": inputs.get("inputs")}, 0)
    if kind == "adapter_parse":
        return _plain(inputs.get("completion"), 0)
    if kind in ("evaluate", "compile"):
        return {name: _size_or_class(value) for name, value in inputs.items() if value is not None}
    return _plain(dict(inputs), 0)


def outputs_of(kind: CallKind, outputs: Any) -> Any:
    """A plain copy of what a call returned; an evaluation's results and a compiled program only by name."""
    if kind in ("evaluate", "compile"):
        return _size_or_class(outputs)
    return _plain(outputs, 0)


def credentials_of(instance: Any, inputs: Mapping[str, Any]) -> list[str]:
    """Values of the LM's and the call's arguments that are named like credentials, for literal removal elsewhere.

    Passwords and credentials in addresses are among them: a failed connection's error text has them without the scheme
    by which they would be known.
    """
    found: list[str] = []
    for source in (getattr(instance, "kwargs", None), inputs.get("kwargs")):
        if source and isinstance(source, Mapping):
            _collect(source, found, 0, _is_secret)
    own = getattr(instance, "api_key", None)
    if isinstance(own, str) and len(own) >= _MIN_SECRET:
        found.append(own)
    return found


def credentials_ahead(module: Any, inputs: Mapping[str, Any]) -> list[str]:
    """Credentials of the LMs that a module is about to call: what :func:`credentials_of` will find in them.

    Taken are the LM in force, the one given to this call, and those of the module's predictors, which are looked up
    at the first call of an instance; an LM set later becomes known when it is called. Of an LM that stands before
    others, in an attribute ``lms``, theirs are taken.

    Args:
        module: The module that is called.
        inputs: DSPy's argument dictionary; only read.
    """
    given = inputs.get("kwargs")
    if not isinstance(given, Mapping):
        given = {}
    lms = [setting(thread_local_overrides.get(), "lm"), given.get("lm")]
    if _looked_up.get(module) is None:
        _looked_up.set(module, True)
        if isinstance(module, dspy.Module):
            lms.extend(predictor.lm for _, predictor in module.named_predictors())
    found: list[str] = []
    for lm in lms:
        if lm is not None:
            _collect_ahead(lm, found, 0)
    config = given.get("config")
    if isinstance(config, Mapping):
        _collect(config, found, 0, _is_secret)
    return found


def credentials_in(inputs: Mapping[str, Any], deny: frozenset[str], allow: frozenset[str]) -> list[str]:
    """Values of a tool's or a module's arguments that are named like credentials, for literal removal elsewhere.

    Unlike an LM's parameters these are named by the program, so only the names count by which redaction drops values,
    and no words: ``token="language"`` is a question to a tagger, and would blank the word out everywhere.

    Args:
        inputs: DSPy's argument dictionary; only read.
        deny: Names of secrets, as in ``Redaction.deny_keys``.
        allow: Names that are none, as in ``Redaction.allow``.
    """
    given = inputs.get("kwargs")
    if not given or not isinstance(given, Mapping):
        return []
    found: list[str] = []
    _collect(given, found, 0, _names(deny, allow).is_secret)
    return [value for value in found if not value.isalpha()] if found else found


_looked_up: WeakIdentityMap[bool] = WeakIdentityMap()


@lru_cache(maxsize=16)  # a set of names keeps its hash
def _names(deny: frozenset[str], allow: frozenset[str]) -> KeyNames:
    return KeyNames(deny, allow)


def _collect_ahead(lm: Any, found: list[str], depth: int) -> None:
    held = getattr(lm, "lms", None)
    if isinstance(held, tuple | list) and depth < _MAX_WITHIN:
        for one in held:
            _collect_ahead(one, found, depth + 1)
    else:
        found.extend(credentials_of(lm, {}))


def _collect(source: Mapping[Any, Any], found: list[str], depth: int, is_secret: Callable[[str], bool]) -> None:
    for name, value in source.items():
        kind = type(value)
        if kind in _NUMBERS:
            continue
        if kind is str or isinstance(value, str):
            if len(value) >= _MIN_SECRET:
                _collect_text(value, isinstance(name, str) and is_secret(name), found, is_secret)
        elif depth < _MAX_DEPTH:
            if kind is dict or isinstance(value, Mapping):
                _collect(value, found, depth + 1, is_secret)
            elif isinstance(value, list | tuple):
                _collect_items(name, value, found, depth + 1, is_secret)


def _collect_items(
    name: Any, values: Iterable[Any], found: list[str], depth: int, is_secret: Callable[[str], bool]
) -> None:
    # By the stricter names: "key_columns" and the like list ordinary words.
    strict = _DEFAULT_NAMES.is_secret if is_secret is _is_secret else is_secret
    secrets = isinstance(name, str) and strict(name)
    for value in islice(values, _MAX_ITEMS):
        if isinstance(value, str):
            if len(value) >= _MIN_SECRET:
                _collect_text(value, secrets, found, is_secret)
        elif isinstance(value, Mapping):
            _collect(value, found, depth, is_secret)
            if "value" in value:
                _collect_pair(value.get("name"), value["value"], found, is_secret)
        elif isinstance(value, list | tuple) and depth < _MAX_DEPTH:
            # A pair that is no item of a list may be a schema's {"required": ["api_key", "customer"]}.
            if len(value) == 2 and isinstance(value[0], str):  # noqa: PLR2004 - headers are also given as pairs
                _collect_pair(value[0], value[1], found, is_secret)
            _collect_items(name, value, found, depth + 1, is_secret)


def _collect_text(value: str, named: bool, found: list[str], is_secret: Callable[[str], bool]) -> None:
    """Take a text that is named like a credential, and the credentials of an address."""
    if named:
        _take(value, found)
    if value.find("://", 0, _SCHEME_CHARS) > 0:
        _take_from_url(value, found, is_secret)


def _collect_pair(name: Any, value: Any, found: list[str], is_secret: Callable[[str], bool]) -> None:
    if isinstance(name, str) and isinstance(value, str) and len(value) >= _MIN_SECRET and is_secret(name):
        _take(value, found)


def _take(value: str, found: list[str]) -> None:
    found.append(value)
    _, space, rest = value.partition(" ")
    if space and len(rest) >= _MIN_SECRET:  # "Bearer abc" also appears without its scheme
        found.append(rest)


def _take_from_url(url: str, found: list[str], is_secret: Callable[[str], bool]) -> None:
    if "@" not in url and "=" not in url:
        return
    parts = _URL.match(url)
    if parts is None:  # a text that begins with one
        return
    secrets = [value for name, value in _PARAMETER.findall(parts[2]) if is_secret(unquote(name))]
    user, colon, password = (parts[1] or "").partition(":")
    if len(password) >= _MIN_SECRET:
        secrets.append(password)
    elif colon:
        secrets.append(f"{parts[1]}@")  # too short to be looked for alone
    elif any(map(str.isdigit, user)):
        secrets.append(user)
    for secret in secrets:
        if len(secret) >= _MIN_SECRET:
            found.append(secret)
            if "%" in secret:
                found.append(unquote(secret))


@lru_cache(maxsize=1024)
def _is_secret(name: str) -> bool:
    lowered = name.lower()
    named = any(word in lowered for word in _SECRET_WORDS) and not any(word in lowered for word in _COUNTS)
    return named or _DEFAULT_NAMES.is_secret(name)


def _lm_inputs(instance: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    prompt, messages = inputs.get("prompt"), inputs.get("messages")
    given = {**(getattr(instance, "kwargs", None) or {}), **(inputs.get("kwargs") or {})}
    request = prompt if isinstance(prompt, lm15.Request) else given.get("request")
    if isinstance(request, lm15.Request):
        system = [{"role": "system", "content": _plain(request.system, 0)}] if request.system is not None else []
        messages = system + [{"role": m.role, "content": _plain(m.parts, 0)} for m in request.messages]
    elif messages is None and prompt is not None:
        messages = [{"role": "user", "content": prompt}]
    elif messages is None:  # a decision request: state and questions instead of messages
        messages = [{"role": "user", "content": {k: v for k, v in inputs.items() if k != "kwargs" and v is not None}}]
    sampling = {name: _plain(value, 0) for name, value in given.items() if name in _SAMPLING and value is not None}
    return {"messages": _plain(messages, 0), "parameters": sampling}


def _signature(signature: Any) -> Any:
    return getattr(signature, "signature", None) or getattr(signature, "__name__", None)


def _size_or_class(value: Any) -> Any:
    if isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, list | tuple):
        return f"<{len(value)} items>"
    return f"<{value.__name__ if isinstance(value, type) else type(value).__name__}>"


def _plain(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind is str or kind in _NUMBERS or isinstance(value, str | int | float):
        return value
    if depth >= _MAX_DEPTH:
        return f"<{kind.__name__}>"
    if kind is dict:
        return _mapping(value, depth)
    if isinstance(value, dspy.Example):  # Prediction too
        return _mapping(dict(value.items()), depth)
    if isinstance(value, Mapping):
        return _mapping(value, depth)
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, depth + 1) for _, item in zip(range(_MAX_ITEMS), value, strict=False)]
    if isinstance(value, bytes | bytearray):
        return f"<{len(value)} bytes>"
    if isinstance(value, type):
        return f"<{value.__name__}>"
    if isinstance(value, lm15.Response):
        return {"content": _plain(value.message.parts, depth + 1), "finish_reason": value.finish_reason}
    fields = getattr(type(value), "model_fields", None)
    if isinstance(fields, Mapping):
        return _mapping({name: getattr(value, name, None) for name in fields}, depth)
    if dataclasses.is_dataclass(value):
        return _mapping({f.name: getattr(value, f.name, None) for f in dataclasses.fields(value) if f.repr}, depth)
    return f"<{type(value).__name__}>"


def _mapping(value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    pairs = value.items() if len(value) <= _MAX_ITEMS else islice(value.items(), _MAX_ITEMS)
    return {name if isinstance(name, str) else f"<{type(name).__name__}>":
            item if type(item) is str else _plain(item, depth + 1)
            for name, item in pairs}  # fmt: skip
