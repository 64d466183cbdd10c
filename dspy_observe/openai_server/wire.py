"""The bodies that an ``OpenAIServer`` writes: completions, streams, embeddings, models.

Pure but for the ``created`` stamp. Shapes follow OpenAI's API reference,
https://platform.openai.com/docs/api-reference/chat and https://platform.openai.com/docs/api-reference/embeddings.
"""

from __future__ import annotations

import base64
import json
import math
import re
import struct
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dspy_observe.openai_server.replies import ChatRequest, EmbeddingRequest, Reply, TokenUsage

__all__ = ["SERVED_MODELS", "StreamParts", "completion_body", "embeddings_body", "models_body", "stream_parts"]

SERVED_MODELS: Mapping[str, str] = {
    "gpt-4o": "gpt-4o-2024-08-06",
    "gpt-4o-mini": "gpt-4o-mini-2024-07-18",
    "gpt-4.1": "gpt-4.1-2025-04-14",
    "gpt-4.1-mini": "gpt-4.1-mini-2025-04-14",
    "gpt-4.1-nano": "gpt-4.1-nano-2025-04-14",
    "o3-mini": "o3-mini-2025-01-31",
    "gpt-5": "gpt-5-2025-08-07",
    "gpt-5-mini": "gpt-5-mini-2025-08-07",
}
"""The dated name that answers for an alias, as of https://platform.openai.com/docs/models."""


def completion_body(
    request: ChatRequest, reply: Reply, *, reply_id: str, model: str, usage: TokenUsage
) -> dict[str, Any]:
    """The body of a completion that is not streamed."""
    calls = [call.wire(index) for index, call in enumerate(reply.tool_calls)]
    choices = []
    for index, text in enumerate(reply.texts(request.choices)):
        message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else ""), "refusal": None}
        if calls:
            message["tool_calls"] = calls
        choices.append({"index": index, "message": message, "logprobs": None, "finish_reason": reply.reason()})
    body = _head(reply_id, "chat.completion", model) | {"choices": choices}
    return body | ({"usage": usage.wire()} if reply.report_usage else {})


@dataclass(frozen=True, slots=True)
class StreamParts:
    """A streamed completion as server-sent events: ``opening`` (roles), ``chunks`` (text, tools), ``closing``."""

    opening: bytes
    chunks: Sequence[bytes]
    closing: bytes
    """Finish reasons, usage if it is to be told, and ``[DONE]``."""


def stream_parts(request: ChatRequest, reply: Reply, *, reply_id: str, model: str, usage: TokenUsage) -> StreamParts:
    """The events of a streamed completion; a chunk of text is about a word long, as a token is."""
    head = _head(reply_id, "chat.completion.chunk", model)
    if request.include_usage and reply.report_usage:
        head["usage"] = None

    def event(index: int, delta: Mapping[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return sse(head | {"choices": [choice]})

    texts = reply.texts(request.choices)
    opening = b"".join(event(index, {"role": "assistant", "content": ""}) for index in range(len(texts)))
    words = ((index, word) for index, text in enumerate(texts) for word in re.findall(r"\s*\S+|\s+$", text))
    chunks = [event(index, {"content": word}) for index, word in words]
    for number, call in enumerate(reply.tool_calls):
        delta = {"tool_calls": [{"index": number} | call.wire(number)]}
        chunks.extend(event(index, delta) for index in range(len(texts)))
    closing = b"".join(event(index, {}, reply.reason()) for index in range(len(texts)))
    if request.include_usage and reply.report_usage:
        closing += sse(head | {"choices": [], "usage": usage.wire()})
    return StreamParts(opening, chunks, closing + b"data: [DONE]\n\n")


def sse(body: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def embeddings_body(request: EmbeddingRequest, *, model: str, usage: TokenUsage | None) -> dict[str, Any]:
    """The body of an embeddings reply; None leaves the usage out.

    Each vector counts its text's words into buckets and has length 1: texts that share words are near each other.
    """
    data = []
    for index, text in enumerate(request.texts):
        vector = _embed(text, request.dimensions)
        packed = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": packed if request.as_base64 else vector})
    body: dict[str, Any] = {"object": "list", "data": data, "model": model}
    if usage is not None:
        body["usage"] = {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens}
    return body


def _embed(text: str, dimensions: int) -> list[float]:
    vector = [0.0] * dimensions
    for word in re.findall(r"\w+", text.lower()) or [text]:
        vector[zlib.crc32(word.encode()) % dimensions] += 1.0
    length = math.sqrt(sum(value * value for value in vector))
    return [value / length for value in vector]


def models_body() -> dict[str, Any]:
    """The list of models: every alias and every dated name known here."""
    names = sorted({*SERVED_MODELS, *SERVED_MODELS.values()})
    return {
        "object": "list",
        "data": [{"id": name, "object": "model", "created": 1721172741, "owned_by": "system"} for name in names],
    }


def _head(reply_id: str, kind: str, model: str) -> dict[str, Any]:
    return {"id": reply_id, "object": kind, "created": int(time.time()), "model": model}
