"""Records as span names and attributes, by the GenAI semantic conventions.

https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-agent-spans/
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final

from opentelemetry.semconv._incubating.attributes import enduser_attributes
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from opentelemetry.semconv.attributes import error_attributes

from dspy_observe import conventions as names
from dspy_observe.records import CallRecord, CallStart, Usage
from dspy_observe.redaction.names import encodable

__all__ = ["Attribute", "add_content_attributes", "add_end_attributes", "beginning", "model_name"]

Attribute = str | int | float | bool | tuple[str, ...]

_OPENINFERENCE_KINDS: Final = {
    "lm": "LLM",
    "module": "CHAIN",
    "tool": "TOOL",
    "evaluate": "EVALUATOR",
    "compile": "CHAIN",
    "adapter_format": "PROMPT",
    "adapter_parse": "CHAIN",
    "interpreter": "TOOL",
}
_JSON: Final = "application/json"


def model_name(requested: str | None) -> str | None:
    """The model without DSPy's provider prefix: ``gpt-4o-mini`` for ``openai/gpt-4o-mini``."""
    if requested is None:
        return None
    _, slash, rest = requested.partition("/")
    return rest if slash else requested


def _span_name(start: CallStart | CallRecord) -> str:
    """``{operation} {subject}`` where the conventions name the operation, else what DSPy calls it."""
    if start.kind == "lm":
        return f"{start.operation} {model_name(start.model_requested)}"
    if start.operation == "execute_tool":
        return f"execute_tool {start.name}"
    if start.operation == "invoke_agent":
        return f"invoke_agent {_agent_name(start)}"
    if start.operation == "invoke_workflow":
        return f"invoke_workflow {start.program or start.name}"
    if start.kind in ("evaluate", "compile"):
        return f"{start.kind} {start.program or start.name}"
    if start.kind in ("adapter_format", "adapter_parse"):
        return f"{start.kind.removeprefix('adapter_')} {start.name}"
    return start.name


def _agent_name(start: CallStart | CallRecord) -> str:
    """What the agent is called: one that is the program goes by the program's name, one inside by its class."""
    return (start.program if start.is_program else None) or start.name


def beginning(start: CallStart | CallRecord) -> tuple[str, Mapping[str, Attribute]]:
    """Name of a span that begins, and those of its attributes that a sampler may want to see.

    Calls of one kind differ in their ids and users only: all else is worked out once, and the mapping is only read.
    Every attribute costs an exporter time and room: call id and role are left to the spans that people look for.
    """
    has_id = _has_call_id(start)
    key = (
        start.kind, start.name, start.program, start.version, start.role, start.is_program, start.operation,
        start.model_requested, start.provider, start.streaming, has_id,
    )  # fmt: skip
    known = _beginnings.get(key)
    if known is None:
        if len(_beginnings) >= _MAX_BEGINNINGS:
            _beginnings.clear()
        known = _beginnings[key] = (_span_name(start), MappingProxyType(_common_attributes(start)))
    tells_user = start.user is not None and (start.is_program or start.kind == "lm")
    if not has_id and not tells_user:
        return known
    attributes = {**known[1]}
    if has_id:
        attributes[names.ATTR_CALL_ID] = start.call_id
    if tells_user and start.user is not None:
        attributes[enduser_attributes.ENDUSER_PSEUDO_ID] = start.user
    return known[0], attributes


_beginnings: Final[dict[tuple[Any, ...], tuple[str, Mapping[str, Attribute]]]] = {}
_MAX_BEGINNINGS: Final = 1024


def _has_call_id(start: CallStart | CallRecord) -> bool:
    return start.is_program or start.parent_id is None


def _common_attributes(start: CallStart | CallRecord) -> dict[str, Attribute]:
    """All but the call's id and user."""
    found: dict[str, Attribute] = {names.OPENINFERENCE_SPAN_KIND: _OPENINFERENCE_KINDS[start.kind]}
    if start.program is not None:
        found[names.ATTR_PROGRAM] = start.program
    if start.version is not None:
        found[names.ATTR_VERSION] = start.version
    if start.operation is not None:
        found[gen_ai.GEN_AI_OPERATION_NAME] = start.operation
        _operation_attributes(start, found)
    if _has_call_id(start) or start.kind == "lm":
        found[names.ATTR_ROLE] = start.role
    if start.is_program and start.version is not None and start.program is not None:
        found[gen_ai.GEN_AI_PROMPT_NAME] = start.program
        found[names.ATTR_PROMPT_VERSION] = start.version
    return found


def _operation_attributes(start: CallStart | CallRecord, found: dict[str, Attribute]) -> None:
    if start.kind == "lm":
        model = model_name(start.model_requested)
        if model is not None:
            found[gen_ai.GEN_AI_REQUEST_MODEL] = model
        if start.provider is not None:
            found[gen_ai.GEN_AI_PROVIDER_NAME] = start.provider
        if start.streaming:
            found[gen_ai.GEN_AI_REQUEST_STREAM] = True
        if start.operation == "embeddings":
            found[names.OPENINFERENCE_SPAN_KIND] = "EMBEDDING"
    elif start.kind == "tool":
        found[gen_ai.GEN_AI_TOOL_NAME] = start.name
        found[gen_ai.GEN_AI_TOOL_TYPE] = "function"
    elif start.operation == "invoke_agent":
        found[gen_ai.GEN_AI_AGENT_NAME] = _agent_name(start)
        found[names.OPENINFERENCE_SPAN_KIND] = "AGENT"
    else:
        found[gen_ai.GEN_AI_WORKFLOW_NAME] = start.program or start.name


def add_end_attributes(record: CallRecord, found: dict[str, Attribute]) -> None:
    """Add what is known when the call has ended."""
    if record.error_type is not None:
        found[error_attributes.ERROR_TYPE] = record.error_type
        found[names.ATTR_OUTCOME] = record.outcome
    if record.kind == "lm":
        _add_lm_attributes(record, found)
    elif record.score is not None:
        found[names.ATTR_SCORE] = record.score
    if record.dataset is not None:
        found[names.ATTR_DATASET] = record.dataset


def _add_lm_attributes(record: CallRecord, found: dict[str, Attribute]) -> None:
    if record.finish_reason:
        found[gen_ai.GEN_AI_RESPONSE_FINISH_REASONS] = _one(record.finish_reason)
    if record.usage is not None:
        _add_usage(record.usage, found)
    if record.billed_but_failed:
        found[names.ATTR_BILLED_BUT_FAILED] = True
    known = (
        (gen_ai.GEN_AI_RESPONSE_MODEL, record.model_served),
        (gen_ai.GEN_AI_RESPONSE_ID, record.response_id),
        (gen_ai.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK, record.ttft_s),
        (names.ATTR_CACHE_HIT, record.cache_hit),
        (names.ATTR_COST_USD, record.cost_usd),
        (names.ATTR_COST_SAVED_USD, record.cost_saved_usd),
        (names.ATTR_FALLBACK_FROM, record.fallback_from),
        (names.ATTR_FALLBACK_REASON, record.fallback_reason),
    )
    found.update({name: value for name, value in known if value is not None})


def _add_usage(usage: Usage, found: dict[str, Attribute]) -> None:
    if usage.prompt is not None:
        found[gen_ai.GEN_AI_USAGE_INPUT_TOKENS] = usage.prompt
    if usage.completion is not None:
        found[gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS] = usage.completion
    if usage.cache_read:
        found[gen_ai.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS] = usage.cache_read
    if usage.cache_write:
        found[gen_ai.GEN_AI_USAGE_CACHE_CREATION_INPUT_TOKENS] = usage.cache_write
    if usage.reasoning:
        found[gen_ai.GEN_AI_USAGE_REASONING_OUTPUT_TOKENS] = usage.reasoning


@lru_cache(maxsize=64)
def _one(reason: str) -> tuple[str]:
    """The same tuple every time: the garbage collector leaves it, and what holds it, alone."""
    return (reason,)


def add_content_attributes(record: CallRecord, max_chars: int, found: dict[str, Attribute]) -> None:
    """Add the captured content, already redacted, cut to ``max_chars`` characters a value.

    LM calls use the conventions' message format; other spans OpenInference's ``input.value`` and ``output.value``.
    """
    inputs, outputs = record.inputs, record.outputs
    if record.kind == "lm":
        if isinstance(inputs, dict) and inputs.get("messages"):
            found[gen_ai.GEN_AI_INPUT_MESSAGES] = _cut(_messages(inputs["messages"]), max_chars)
        if outputs is not None:
            found[gen_ai.GEN_AI_OUTPUT_MESSAGES] = _cut(_json(_replies(outputs, record.finish_reason)), max_chars)
        return
    if record.kind == "tool":
        if inputs is not None:
            found[gen_ai.GEN_AI_TOOL_CALL_ARGUMENTS] = _cut(_json(inputs), max_chars)
        if outputs is not None:
            found[gen_ai.GEN_AI_TOOL_CALL_RESULT] = _cut(_json(outputs), max_chars)
    if inputs is not None:
        found[names.ATTR_INPUTS] = _cut(_json(inputs), max_chars)
        found[names.ATTR_INPUTS_TYPE] = _JSON
    if outputs is not None:
        found[names.ATTR_OUTPUTS] = _cut(_json(outputs), max_chars)
        found[names.ATTR_OUTPUTS_TYPE] = _JSON


def _messages(messages: Any) -> str:
    return f"[{', '.join([_message(message) for message in messages])}]"


def _message(message: Any) -> str:
    """One message as JSON; nearly all are a role and a text."""
    if type(message) is dict:
        role, content = message.get("role", "user"), message.get("content")
        if type(role) is str and type(content) is str:
            return f'{{"role": {_quoted(role)}, "parts": [{{"type": "text", "content": {_quoted(content)}}}]}}'
    return _encode(_message_parts(message))


def _message_parts(message: Any) -> dict[str, Any]:
    if not isinstance(message, dict):
        return {"role": "user", "parts": [{"type": "text", "content": message}]}
    content = message.get("content")
    parts = [{"type": "text", "content": content}] if isinstance(content, str) else content
    return {"role": message.get("role", "user"), "parts": parts if parts is not None else []}


def _replies(outputs: Any, finish_reason: str | None) -> list[dict[str, Any]]:
    replies = outputs if isinstance(outputs, list) else [outputs]
    return [
        {
            "role": "assistant",
            "parts": [{"type": "text", "content": reply.get("text") if isinstance(reply, dict) else reply}],
            "finish_reason": finish_reason,
        }
        for reply in replies
    ]


_rendered: Final[dict[int, tuple[Any, str]]] = {}
_MAX_RENDERED: Final = 64
_TEXT: Final = frozenset({str})
_encode: Final = json.JSONEncoder(ensure_ascii=False, default=lambda other: f"<{type(other).__name__}>").encode
_quoted: Final = json.encoder.encode_basestring
"""A text as JSON, as the encoder writes it, which costs three times as much for a mapping of texts."""


def _json(value: Any) -> str:
    """Render content; nested modules pass the very same copy on, which is rendered once."""
    known = _rendered.get(id(value))
    if known is not None and known[0] is value:
        return known[1]
    if type(value) is dict and _TEXT.issuperset(map(type, value.values())) and _TEXT.issuperset(map(type, value)):
        text = f"{{{', '.join([f'{_quoted(name)}: {_quoted(item)}' for name, item in value.items()])}}}"
    else:
        text = _encode(value)
    if len(_rendered) >= _MAX_RENDERED:
        _rendered.clear()
    _rendered[id(value)] = (value, text)
    return text


def _cut(text: str, max_chars: int) -> str:
    if len(text) > max_chars:
        text = f"{text[:max_chars]}... [{len(text) - max_chars} more characters]"
    return encodable(text)
