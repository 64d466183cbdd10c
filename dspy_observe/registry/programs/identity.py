"""Which LM and which adapter a program runs with, without endpoints and secrets, and the LM back from that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import dspy

from dspy_observe.redaction.keynames import DEFAULT_ALLOW, DEFAULT_DENY_KEYS, KeyNames
from dspy_observe.registry.programs.errors import ProgramStateError, UnserialisableProgramError
from dspy_observe.registry.programs.states import AdapterIdentity, LMIdentity
from dspy_observe.registry.programs.values import decode, encode

__all__ = [
    "adapter_identity",
    "build_lm",
    "checked_settings",
    "class_path",
    "harmless_settings",
    "lm_identity",
    "secrets_of",
]

# Settings that say how to generate and can neither hold a secret nor lead a call elsewhere. Names as in LiteLLM's
# completion() and OpenAI's API: https://docs.litellm.ai/docs/completion/input
_HARMLESS: Final = frozenset(
    {
        "model_type", "cache", "num_retries", "temperature", "max_tokens", "max_completion_tokens", "top_p", "top_k",
        "min_p", "n", "num_generations", "stop", "seed", "presence_penalty", "frequency_penalty", "repetition_penalty",
        "logit_bias", "logprobs", "top_logprobs", "reasoning_effort", "reasoning", "verbosity", "thinking", "timeout",
        "rollout_id", "parallel_tool_calls", "tool_choice", "response_format", "service_tier", "modalities",
        "drop_params", "prediction", "use_developer_role", "finetuning_model", "prompt_cache",
    }
)  # fmt: skip
_BUILTIN: Final = "dspy.clients.lm.LM"
_KEYS: Final = KeyNames(DEFAULT_DENY_KEYS, DEFAULT_ALLOW)


def class_path(kind: type) -> str:
    """A class as ``module.Name``."""
    return f"{kind.__module__}.{kind.__qualname__}"


def harmless_settings(settings: Mapping[str, Any], where: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Settings that may be stored, as JSON, and the names of those that may not. Secrets are in neither.

    Args:
        settings: Settings of a predictor or an LM by name; unset ones (``None``, empty) are left out.
        where: Their place, for errors.
    """
    stored: dict[str, Any] = {}
    withheld = []
    for name, value in settings.items():
        if value is None or value in ({}, []) or _KEYS.is_secret(name):
            continue
        if name not in _HARMLESS:
            withheld.append(name)
            continue
        try:
            stored[name] = encode(value, f"{where}.{name}")
        except UnserialisableProgramError:
            withheld.append(name)
    return stored, tuple(sorted(withheld))


def checked_settings(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Stored settings as values.

    Raises:
        ProgramStateError: One of them is not among those that may be stored.
    """
    strange = sorted(settings.keys() - _HARMLESS)
    if strange:
        raise ProgramStateError(where, f"setting {strange[0]!r} is not allowed in a stored program")
    return {name: decode(value, f"{where}.{name}") for name, value in settings.items()}


def lm_identity(lm: Any, where: str) -> LMIdentity | None:
    """Which LM this is; ``None`` for ``None``.

    Args:
        lm: A ``dspy.BaseLM`` or a client of DSPy's decision requests.
        where: Its place, for errors.
    """
    if lm is None:
        return None
    stored, withheld = harmless_settings(_lm_settings(lm), where)
    return LMIdentity(class_path(type(lm)), str(getattr(lm, "model", "")), stored, withheld)


def _lm_settings(lm: Any) -> dict[str, Any]:
    names = ("model_type", "cache", "num_retries")
    own = {**{name: getattr(lm, name, None) for name in names}, **dict(getattr(lm, "kwargs", None) or {})}
    if type(lm) is not dspy.LM:
        return own
    try:
        state = dict(lm.dump_state())
    except TypeError:  # an engine that cannot be saved
        return {**own, "engine": True}
    return {name: value for name, value in state.items() if name != "model" and not name.startswith("_")}


def build_lm(identity: LMIdentity, where: str) -> Any | None:
    """A new LM of this identity, which takes its credentials from the environment; ``None`` when only code can make it.

    Args:
        identity: Which LM.
        where: Its place, for errors.

    Raises:
        ProgramStateError: A setting is not allowed in a stored program.
    """
    settings = checked_settings(identity.settings, f"{where}.settings")
    if identity.class_path != _BUILTIN or identity.withheld:
        return None
    return dspy.LM.load_state({"model": identity.model, **settings})


def secrets_of(settings: Any) -> Iterator[str]:
    """The texts under names of secrets, at any depth.

    Args:
        settings: Settings of an LM or a predictor.
    """
    if not isinstance(settings, Mapping):
        return
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from (_texts(value) if _KEYS.is_secret(str(name)) else secrets_of(value))
        elif isinstance(value, str) and _KEYS.is_secret(str(name)):
            yield value


def _texts(value: Mapping[Any, Any]) -> Iterator[str]:
    for item in value.values():
        if isinstance(item, str):
            yield item
        elif isinstance(item, Mapping):
            yield from _texts(item)


def adapter_identity(adapter: Any) -> AdapterIdentity:
    """Which adapter this is; ``None`` is DSPy's default, ``ChatAdapter``.

    Args:
        adapter: A ``dspy.Adapter`` or ``None``.
    """
    adapter = adapter or dspy.ChatAdapter()
    options = {}
    for name, value in sorted(vars(adapter).items()):
        if name != "callbacks" and not name.startswith("_") and value is not None and not _KEYS.is_secret(name):
            options[name] = _option(value)
    return AdapterIdentity(class_path(type(adapter)), options)


def _option(value: Any) -> Any:
    if isinstance(value, list | tuple | set | frozenset):
        return [_option(item) for item in value]
    if isinstance(value, type):
        return class_path(value)
    if isinstance(value, dspy.BaseLM):
        return f"{class_path(type(value))} {value.model}"
    if isinstance(value, bool | int | str):
        return value
    return class_path(type(value))
