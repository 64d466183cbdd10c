"""Records as span names and attributes, by the GenAI semantic conventions.

https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-agent-spans/
"""

from __future__ import annotations

import json
from typing import Any, Final

from opentelemetry.semconv._incubating.attributes import enduser_attributes
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from opentelemetry.semconv.attributes import error_attributes

from dspy_observe import conventions as names
from dspy_observe.records import CallRecord, CallStart, Usage

__all__ = ["content_attributes", "end_attributes", "model_name", "span_name", "start_attributes"]

Attribute = str | int | float | bool | list[str]

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
_NO_USAGE: Final = Usage()
_JSON: Final = "application/json"


def model_name(requested: str | None) -> str | None:
    """The model without DSPy's provider prefix: ``gpt-4o-mini`` for ``openai/gpt-4o-mini``."""
    if requested is None:
        return None
    _, slash, rest = requested.partition("/")
    return rest if slash else requested


def span_name(start: CallStart) -> str:
    """``{operation} {subject}`` where the conventions name the operation, else what DSPy calls it."""
    if start.kind == "lm":
        return f"{start.operation} {model_name(start.model_requested)}"
    if start.operation == "execute_tool":
        return f"execute_tool {start.name}"
    if start.operation == "invoke_agent":
        return f"invoke_agent {start.name}"
    if start.operation == "invoke_workflow":
        return f"invoke_workflow {start.program or start.name}"
    if start.kind in ("evaluate", "compile"):
        return f"{start.kind} {start.program or start.name}"
    if start.kind in ("adapter_format", "adapter_parse"):
        return f"{start.kind.removeprefix('adapter_')} {start.name}"
    return start.name


def start_attributes(start: CallStart | CallRecord) -> dict[str, Attribute]:
    """What a sampler may want to see.

    Every attribute costs a microsecond or two: call id and role are left to the spans that people look for.
    """
    found: dict[str, Attribute] = {names.OPENINFERENCE_SPAN_KIND: _OPENINFERENCE_KINDS[start.kind]}
    if start.program is not None:
        found[names.ATTR_PROGRAM] = start.program
    if start.version is not None:
        found[names.ATTR_VERSION] = start.version
    if start.operation is not None:
        found[gen_ai.GEN_AI_OPERATION_NAME] = start.operation
        _operation_attributes(start, found)
    if start.is_program or start.parent_id is None:
        found[names.ATTR_CALL_ID] = start.call_id
        found[names.ATTR_ROLE] = start.role
    elif start.kind == "lm":
        found[names.ATTR_ROLE] = start.role
    if start.user is not None and (start.is_program or start.kind == "lm"):
        found[enduser_attributes.ENDUSER_PSEUDO_ID] = start.user
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
        found[gen_ai.GEN_AI_AGENT_NAME] = start.program or start.name
        found[names.OPENINFERENCE_SPAN_KIND] = "AGENT"
    else:
        found[gen_ai.GEN_AI_WORKFLOW_NAME] = start.program or start.name


def end_attributes(record: CallRecord) -> dict[str, Attribute]:
    """What is known when the call has ended."""
    found: dict[str, Attribute] = {}
    if record.error_type is not None:
        found[error_attributes.ERROR_TYPE] = record.error_type
        found[names.ATTR_OUTCOME] = record.outcome
    if record.kind == "lm":
        found.update({name: value for name, value in _lm_pairs(record) if value is not None})
    elif record.score is not None:
        found[names.ATTR_SCORE] = record.score
    if record.dataset is not None:
        found[names.ATTR_DATASET] = record.dataset
    return found


def _lm_pairs(record: CallRecord) -> tuple[tuple[str, Attribute | None], ...]:
    usage = record.usage or _NO_USAGE
    return (
        (gen_ai.GEN_AI_RESPONSE_MODEL, record.model_served),
        (gen_ai.GEN_AI_RESPONSE_ID, record.response_id),
        (gen_ai.GEN_AI_RESPONSE_FINISH_REASONS, [record.finish_reason] if record.finish_reason else None),
        (gen_ai.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK, record.ttft_s),
        (gen_ai.GEN_AI_USAGE_INPUT_TOKENS, usage.prompt),
        (gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS, usage.completion),
        (gen_ai.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS, usage.cache_read or None),
        (gen_ai.GEN_AI_USAGE_CACHE_CREATION_INPUT_TOKENS, usage.cache_write or None),
        (gen_ai.GEN_AI_USAGE_REASONING_OUTPUT_TOKENS, usage.reasoning or None),
        (names.ATTR_CACHE_HIT, record.cache_hit),
        (names.ATTR_COST_USD, record.cost_usd),
        (names.ATTR_COST_SAVED_USD, record.cost_saved_usd),
        (names.ATTR_BILLED_BUT_FAILED, record.billed_but_failed or None),
        (names.ATTR_FALLBACK_FROM, record.fallback_from),
        (names.ATTR_FALLBACK_REASON, record.fallback_reason),
    )


def content_attributes(record: CallRecord, max_chars: int) -> dict[str, Attribute]:
    """The captured content, already redacted, cut to ``max_chars`` characters a value.

    LM calls use the conventions' message format; other spans OpenInference's ``input.value`` and ``output.value``.
    """
    found: dict[str, Attribute] = {}
    inputs, outputs = record.inputs, record.outputs
    if record.kind == "lm":
        if isinstance(inputs, dict) and inputs.get("messages"):
            found[gen_ai.GEN_AI_INPUT_MESSAGES] = _cut(_json([_message(m) for m in inputs["messages"]]), max_chars)
        if outputs is not None:
            found[gen_ai.GEN_AI_OUTPUT_MESSAGES] = _cut(_json(_replies(outputs, record.finish_reason)), max_chars)
        return found
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
    return found


def _message(message: Any) -> dict[str, Any]:
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


def _json(value: Any) -> str:
    """Render content; nested modules pass the very same copy on, which is rendered once."""
    known = _rendered.get(id(value))
    if known is not None and known[0] is value:
        return known[1]
    text = json.dumps(value, ensure_ascii=False, default=lambda other: f"<{type(other).__name__}>")
    if len(_rendered) >= _MAX_RENDERED:
        _rendered.clear()
    _rendered[id(value)] = (value, text)
    return text


def _cut(text: str, max_chars: int) -> str:
    return text if len(text) <= max_chars else f"{text[:max_chars]}... [{len(text) - max_chars} more characters]"
