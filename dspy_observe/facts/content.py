"""Inputs and outputs of a call as plain data, ready for redaction: no live objects, no credentials.

Only what a reader of a trace asks for is taken: messages and sampling parameters of an LM call, arguments and fields
elsewhere. Sampling parameters come from an allow-list, so that no key, header, address or client object can pass.
Objects are read without calling ``repr`` or ``str`` on them; what is neither data nor a DSPy or pydantic object
appears as ``<ClassName>``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import lru_cache
from itertools import islice
from typing import Any, Final

import dspy
from dspy import lm15
from dspy.dsp.utils.settings import thread_local_overrides

from dspy_observe.facts.identity import WeakIdentityMap
from dspy_observe.facts.lm import setting
from dspy_observe.records import CallKind
from dspy_observe.redaction.keynames import DEFAULT_ALLOW, DEFAULT_DENY_KEYS, KeyNames

__all__ = ["credentials_ahead", "credentials_of", "inputs_of", "outputs_of"]

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
_NAMES: Final = KeyNames(DEFAULT_DENY_KEYS, DEFAULT_ALLOW)
_NUMBERS: Final = frozenset({int, float, bool, type(None)})
"""What most arguments are, and what holds nothing."""
_MIN_SECRET: Final = 8  # characters; shorter ones ("x", "EMPTY") are placeholders and would blank out ordinary words


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
    """Values of the LM's and the call's arguments that are named like credentials, for literal removal elsewhere."""
    found: list[str] = []
    for source in (getattr(instance, "kwargs", None), inputs.get("kwargs")):
        if source and isinstance(source, Mapping):
            _collect(source, found, 0)
    own = getattr(instance, "api_key", None)
    if isinstance(own, str) and len(own) >= _MIN_SECRET:
        found.append(own)
    return found


def credentials_ahead(module: Any, inputs: Mapping[str, Any]) -> list[str]:
    """Credentials of the LMs that a module is about to call: what :func:`credentials_of` will find in them.

    Taken are the LM in force, the one given to this call, and those of the module's predictors, which are looked up
    at the first call of an instance; an LM set later becomes known when it is called.

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
    found = [secret for lm in lms if lm is not None for secret in credentials_of(lm, {})]
    config = given.get("config")
    if isinstance(config, Mapping):
        _collect(config, found, 0)
    return found


_looked_up: WeakIdentityMap[bool] = WeakIdentityMap()


def _collect(source: Mapping[Any, Any], found: list[str], depth: int) -> None:
    for name, value in source.items():
        if type(value) in _NUMBERS:
            continue
        if isinstance(value, str):
            if len(value) < _MIN_SECRET or not _is_secret(str(name)):
                continue
            found.append(value)
            _, space, rest = value.partition(" ")
            if space and len(rest) >= _MIN_SECRET:  # "Bearer abc" also appears without its scheme
                found.append(rest)
        elif isinstance(value, Mapping) and depth < _MAX_DEPTH:
            _collect(value, found, depth + 1)


@lru_cache(maxsize=1024)
def _is_secret(name: str) -> bool:
    lowered = name.lower()
    named = any(word in lowered for word in _SECRET_WORDS) and not any(word in lowered for word in _COUNTS)
    return named or _NAMES.is_secret(name)


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
