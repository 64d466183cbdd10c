"""Read what was caught of one LM call: tokens, cost, cache hit, served model, finish reason."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import dspy
from dspy import lm15
from dspy.clients.base_lm import GLOBAL_HISTORY
from dspy.clients.capabilities import resolve
from dspy.clients.costs import estimate_cost

from dspy_observe.facts.calls import causes
from dspy_observe.facts.lm import LMCapture
from dspy_observe.records import Usage, make_usage
from dspy_observe.redaction import redact, redact_name

__all__ = ["LMFacts", "entry_of", "gather", "normalise_usage"]

_HISTORY_SCAN: Final = 1_000  # newest entries looked at by identity; ours is among the last of all running threads
_NOTHING_BILLED: Final = Usage(0, 0, 0, 0, 0)
_UNKNOWN: Final = Usage()
_ID: Final = re.compile(r"[A-Za-z0-9_.:\-]{1,96}\Z")
_NUMBERS: Final = (int, float)
_USUAL_TIERS: Final = (None, "auto", "default", "standard", "ON_DEMAND")
"""``service_tier`` values that DSPy's price list bills at the plain rate (``dspy/clients/costs.py``)."""
_DEARER: Final = ("audio", "modalities", "prompt_cache", "web_search_options")
"""Options with a price of their own."""
_CUT_OFF: Final = frozenset(
    {"ProtocolError", "RemoteProtocolError", "ReadError", "ClientPayloadError", "ConnectionResetError"}
)
"""What lm15, httpx and aiohttp call a connection that broke in a reply; by name, for not all of them need be there."""
_NO_DETAILS: Final[Mapping[str, Any]] = {}
_DETAILS: Final = ("cached_tokens", "cache_creation_tokens", "reasoning_tokens")


@dataclass(slots=True)
class LMFacts:
    """Figures of one finished LM call; the fields are those of :class:`~dspy_observe.records.CallRecord`."""

    usage: Usage | None
    cost_usd: float | None
    cost_saved_usd: float | None
    cache_hit: bool | None
    billed_but_failed: bool
    model_served: str | None
    response_id: str | None
    finish_reason: str | None
    cut_off: bool | None


def gather(
    capture: LMCapture, instance: Any, inputs: Mapping[str, Any], outputs: Any, exception: BaseException | None
) -> LMFacts:
    """Put together what one LM call used.

    A call that succeeded without reporting any usage object to DSPy's tracker was answered by DSPy's cache: a live
    reply without figures still reports an empty one.

    Args:
        capture: The taps that were in place during the call.
        instance: The LM that was called.
        inputs: DSPy's argument dictionary; only read.
        outputs: What the call returned, the very object.
        exception: What it raised, or ``None``.
    """
    entry: Any = capture.entry
    if entry is None and exception is None and not capture.delegates:  # else its outputs are those of another call
        entry = entry_of(outputs)
    if not isinstance(entry, dict):
        entry = {}
    response = entry.get("response") if entry else _typed_response(outputs)
    cache_hit = _cache_hit(capture, instance, entry, exception)
    usages = capture.usages
    if not usages and not issubclass(type(instance), dspy.BaseLM) and isinstance(entry.get("usage"), Mapping):
        usages = [entry["usage"]]
    usage = _NOTHING_BILLED if cache_hit else _sum(usages)
    listed = _number(entry.get("cost"))
    cost: float | None = None
    if cache_hit:
        cost = 0.0  # the history of a hit repeats what the first call cost
    elif usage.known:  # LiteLLM lists 0.0 for a stream whose usage it never saw
        cost = listed if entry else _estimate(instance, inputs, usages, usage, response)
    first = response[0] if isinstance(response, tuple) and response else response  # one response per candidate
    return LMFacts(
        usage,
        cost,
        listed if cache_hit else None,
        cache_hit,
        exception is not None and usage.known,
        redact_name(_text(entry.get("response_model") or _field(first, "model"))),
        _opaque(_text(_field(first, "id"))),
        redact_name(_finish_reason(first)),
        None if exception is None else any(type(cause).__name__ in _CUT_OFF for cause in causes(exception)),
    )


def _cache_hit(
    capture: LMCapture, instance: Any, entry: Mapping[str, Any], exception: BaseException | None
) -> bool | None:
    if exception is not None:
        return None
    if isinstance(instance, dspy.BaseLM):
        if capture.delegates and capture.entry is None and not capture.usages:
            return None  # an LM that hands the call on: what the others did is in their own records
        return not capture.usages
    hit = entry.get("cache_hit")  # LMs of other kinds write the flag themselves
    return bool(hit) if hit is not None else None


def normalise_usage(entry: Mapping[str, Any]) -> Usage:
    """Read a usage report in any of the spellings that providers use.

    A report of 0 prompt and 0 completion tokens is what LiteLLM and dummy models write when they do not know; no
    provider bills a call with an empty prompt. It is read as unknown.
    """
    prompt = _count(entry, "prompt_tokens", "input_tokens")
    completion = _count(entry, "completion_tokens", "output_tokens")
    if not prompt and not completion:
        return _UNKNOWN
    into = _details(entry, "prompt_tokens_details", "input_tokens_details")
    out_of = _details(entry, "completion_tokens_details", "output_tokens_details")
    cache_read = _count(into, "cached_tokens")
    cache_write = _count(into, "cache_creation_tokens")
    return make_usage(
        prompt,
        completion,
        cache_read if cache_read is not None else _count(entry, "cache_read_input_tokens"),
        cache_write if cache_write is not None else _count(entry, "cache_creation_input_tokens"),
        _count(out_of, "reasoning_tokens"),
    )


def _sum(entries: list[dict[str, Any]]) -> Usage:
    """Add the reports of one call. What one report lacks does not hide what another one has: it was billed."""
    if len(entries) == 1:
        return normalise_usage(entries[0])
    total = _UNKNOWN
    for usage in map(normalise_usage, entries):
        total = Usage(
            _plus(total.prompt, usage.prompt),
            _plus(total.completion, usage.completion),
            _plus(total.cache_read, usage.cache_read),
            _plus(total.cache_write, usage.cache_write),
            _plus(total.reasoning, usage.reasoning),
        )
    return total


def _plus(left: int | None, right: int | None) -> int | None:
    if left is None or right is None:
        return left if right is None else right
    return left + right


def _count(entry: Mapping[str, Any], *keys: str) -> int | None:
    for key in keys:
        value = entry.get(key)
        if value is None:
            continue
        if type(value) is not int:  # the rule, and quick; the rest are an SDK's own number types
            value = _number(value)
        if value is not None and value >= 0 and value % 1 == 0:
            return int(value)
    return None


def _number(value: Any) -> float | int | None:
    return value if isinstance(value, _NUMBERS) and not isinstance(value, bool) else None


def _details(entry: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    for key in keys:
        value = entry.get(key)
        if value is None:
            continue
        if type(value) is dict or isinstance(value, Mapping):
            return value
        return {name: getattr(value, name, None) for name in _DETAILS}  # an SDK's own object
    return _NO_DETAILS


def _estimate(
    instance: Any, inputs: Mapping[str, Any], reports: list[dict[str, Any]], usage: Usage, response: Any
) -> float | None:
    """Price the tokens by DSPy's own list when there is no history entry that holds the price.

    That is so under ``disable_history`` and for candidates that were billed before the call failed.
    """
    if not _speaks_to_provider(instance) or _has_special_price(instance, inputs):
        return None
    if usage.prompt is None or usage.completion is None:
        return None
    if len(reports) > 1 and not all(normalise_usage(report).known for report in reports):
        return None  # one of several candidates is without figures
    try:
        route = resolve(instance)
    except lm15.LM15Error:  # a model that only LiteLLM knows
        return None
    provider = route.provider
    cached, written, reasoning = usage.cache_read or 0, usage.cache_write or 0, usage.reasoning or 0
    # DSPy's reports count cached input and thinking output in; its price list wants the provider's own counters.
    prompt = usage.prompt - cached - written if provider and "anthropic" in provider else usage.prompt
    completion = usage.completion
    if provider in {"gemini", "vertex", "vertex-express", "xai"}:
        completion -= reasoning
    priced = lm15.Response(
        id=None,
        model=(_text(_field(response, "model")) or route.model),
        message=lm15.Message.assistant(""),
        finish_reason="stop",
        usage=lm15.Usage(
            input_tokens=prompt,
            output_tokens=completion,
            cache_read_tokens=usage.cache_read,
            cache_write_tokens=usage.cache_write,
            reasoning_tokens=usage.reasoning,
        ),
        provider_data=_field(response, "provider_data"),  # names the tier that served
    )
    cost: float | None
    cost, _ = estimate_cost(priced, provider=provider, requested_model=route.model)
    return cost


def _speaks_to_provider(instance: Any) -> bool:
    """Whether DSPy itself sends the LM's calls: custom engines and subclasses with a ``forward`` have no price list."""
    if not isinstance(instance, dspy.LM) or not isinstance(getattr(instance, "_engine_spec", None), str):
        return False
    ways = ((instance.forward, dspy.LM.forward), (instance.aforward, dspy.LM.aforward))
    return all(getattr(own, "__func__", None) is built_in for own, built_in in ways)


def _has_special_price(instance: Any, inputs: Mapping[str, Any]) -> bool:
    """Whether plain token rates would not be the bill: another service tier, a tool that the provider runs."""
    given = {**(getattr(instance, "kwargs", None) or {}), **(inputs.get("kwargs") or {})}
    request = inputs.get("prompt") if isinstance(inputs.get("prompt"), lm15.Request) else given.get("request")
    tier, tools = given.get("service_tier"), given.get("tools") or ()
    if isinstance(request, lm15.Request):
        tier, tools = request.config.service_tier, ()
        if any(isinstance(tool, lm15.BuiltinTool) for tool in request.tools):
            return True
    hosted = any(isinstance(tool, Mapping) and tool.get("type") != "function" for tool in tools)
    return tier not in _USUAL_TIERS or hosted or any(given.get(name) is not None for name in _DEARER)


def entry_of(outputs: Any) -> Any:
    """The newest history entry that holds these very outputs: the way of last resort, exact because of ``is``."""
    if outputs is None or dspy.settings.disable_history:
        return None
    for entry in _newest(GLOBAL_HISTORY):
        if isinstance(entry, dict) and (entry.get("outputs") is outputs or entry.get("response") is outputs):
            return entry
    return None


def _newest(history: list[Any]) -> Iterator[Any]:
    position = len(history)
    for _ in range(min(position, _HISTORY_SCAN)):
        position -= 1
        try:
            yield history[position]
        except IndexError:  # other threads shorten the list
            continue


def _typed_response(outputs: Any) -> Any:
    """A typed request returns the response itself instead of a list of replies."""
    return outputs if isinstance(outputs, lm15.Response) else None


def _field(response: Any, name: str) -> Any:
    return response.get(name) if isinstance(response, dict) else getattr(response, name, None)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _opaque(made: str | None) -> str | None:
    """An id that the provider made. Each one is new: to scan them all would cost more than the rest of a record."""
    return made if made is None or _ID.match(made) else redact(made)


def _finish_reason(response: Any) -> str | None:
    """The first candidate's reason, in the words of its response object."""
    reason = _text(_field(response, "finish_reason"))
    if reason is None:
        choices = _field(response, "choices")
        if isinstance(choices, list) and choices:
            reason = _text(_field(choices[0], "finish_reason"))
    return reason
