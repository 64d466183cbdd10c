"""What an ``OpenAIServer`` is asked and what it can answer: requests, replies, failures.

Pure. Shapes follow OpenAI's API reference,
https://platform.openai.com/docs/api-reference/chat and https://platform.openai.com/docs/api-reference/embeddings.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ChatRequest", "EmbeddingRequest", "Failure", "MalformedRequestError", "Reply", "TokenUsage", "ToolCall"]

EMBEDDING_DIMENSIONS = 256
"""Length of an embedding when the request names none."""
MOST_DIMENSIONS = 3072
"""Of text-embedding-3-large, OpenAI's longest, https://platform.openai.com/docs/guides/embeddings."""
MOST_CHOICES = 128
"""The API reference's limit for ``n``."""

_ERROR_KINDS: Mapping[int, tuple[str, str | None, str]] = {
    400: ("invalid_request_error", None, "The request is not valid."),
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
    403: ("invalid_request_error", "unsupported_country_region_territory", "Access is denied."),
    404: ("invalid_request_error", "unknown_url", "Not found."),
    429: ("requests", "rate_limit_exceeded", "Rate limit reached for requests."),
    500: ("server_error", None, "The server had an error while processing your request."),
    503: ("server_error", None, "The engine is currently overloaded, please try again later."),
}
"""Type, code and message by status, as https://platform.openai.com/docs/guides/error-codes has them."""


class MalformedRequestError(ValueError):
    """A request body that OpenAI would refuse with status 400. ``param`` names the field at fault, if one is."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens of one reply. ``cached_tokens`` lie within the prompt's, ``reasoning_tokens`` within the completion's.

    Raises:
        ValueError: A count is negative, or a part is larger than its whole.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.cached_tokens <= self.prompt_tokens and 0 <= self.reasoning_tokens <= self.completion_tokens):
            raise ValueError(f"token counts must be positive and a part no larger than its whole, got {self}")

    def wire(self) -> dict[str, Any]:
        """The ``usage`` object of a chat completion."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
        }


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One tool that the model asks to have called, with its arguments by name."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def wire(self, index: int) -> dict[str, Any]:
        """An entry of ``message.tool_calls``; ``index`` makes its id unique within the message."""
        function = {"name": self.name, "arguments": json.dumps(self.arguments)}
        return {"id": f"call_{index}", "type": "function", "function": function}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A reply that the server computes, bills and (unless told otherwise) delivers whole.

    Args:
        text: The text of every choice, or one text per choice (the last one serves the choices left over).
        usage: What to bill; None bills numbers that no other reply of the server has.
        finish_reason: ``finish_reason`` of every choice; "stop" becomes "tool_calls" when there are tool calls.
        model: The served model's name; None takes the dated name of the model asked for.
        tool_calls: Tools the model wants called.
        delay_s: Seconds of computing before the first byte, headers included, and before the bill.
        first_delay_s: Streams only: seconds between the headers and the first chunk.
        chunk_delay_s: Streams only: seconds between one chunk and the next.
        report_usage: False bills the reply without telling the client the figures.
        cut_after_chunks: Drop the connection after so many chunks of text, 0 or more; a reply that is not streamed is
            dropped in the middle of its body instead. None delivers everything.
        hold: Keep the reply back, neither billed nor sent, until this event is set; closing the server sets it.
        hold_after_chunks: Streams only: bill and send so many chunks of text first, and hold then. None holds first.

    Raises:
        ValueError: A delay or a number of chunks is negative, or ``hold_after_chunks`` comes without ``hold``.
    """

    text: str | Sequence[str] = ""
    usage: TokenUsage | None = None
    finish_reason: str = "stop"
    model: str | None = None
    tool_calls: Sequence[ToolCall] = ()
    delay_s: float = 0.0
    first_delay_s: float = 0.0
    chunk_delay_s: float = 0.0
    report_usage: bool = True
    cut_after_chunks: int | None = None
    hold: threading.Event | None = None
    hold_after_chunks: int | None = None

    def __post_init__(self) -> None:
        numbers = (self.delay_s, self.first_delay_s, self.chunk_delay_s, self.cut_after_chunks, self.hold_after_chunks)
        if any(number is not None and number < 0 for number in numbers):
            raise ValueError("Reply: delays and numbers of chunks must not be negative")
        if self.hold_after_chunks is not None and self.hold is None:
            raise ValueError("Reply: hold_after_chunks needs the event to wait for, hold=threading.Event()")

    def texts(self, choices: int) -> list[str]:
        """One text per choice."""
        given = [self.text] if isinstance(self.text, str) else (list(self.text) or [""])
        return [given[min(index, len(given) - 1)] for index in range(choices)]

    def reason(self) -> str:
        """The finish reason to send."""
        return "tool_calls" if self.tool_calls and self.finish_reason == "stop" else self.finish_reason


@dataclass(frozen=True, slots=True)
class Failure:
    """A refusal: nothing is computed, nothing billed.

    Args:
        status: HTTP status, 400 to 599.
        body: The body: an object sent as JSON, a string sent as it is (a proxy's HTML page, say), or None for
            OpenAI's error object of that status.
        retry_after_s: Seconds for the ``Retry-After`` header; None sends no such header.

    Raises:
        ValueError: The status is not one of a failure.
    """

    status: int
    body: Mapping[str, Any] | str | None = None
    retry_after_s: float | None = None

    def __post_init__(self) -> None:
        if self.status not in range(400, 600):
            raise ValueError(f"Failure: status must be from 400 to 599, got {self.status}")

    @classmethod
    def rate_limited(cls, retry_after_s: float | None = 0.0) -> Failure:
        """Status 429; by default the client may come back at once, so that retries cost a test no time."""
        return cls(429, retry_after_s=retry_after_s)

    @classmethod
    def server_error(cls, retry_after_s: float | None = 0.0) -> Failure:
        """Status 500; by default the client may come back at once."""
        return cls(500, retry_after_s=retry_after_s)

    @classmethod
    def context_length_exceeded(cls) -> Failure:
        """Status 400 with the code that clients turn into a context-window error."""
        message = "This model's maximum context length is 128000 tokens. Please reduce the length of the messages."
        return cls(400, error_body(400, message, param="messages", code="context_length_exceeded"))

    def payload(self) -> bytes:
        """The body as bytes."""
        if isinstance(self.body, str):
            return self.body.encode()
        return json.dumps(error_body(self.status) if self.body is None else self.body).encode()


def error_body(
    status: int, message: str | None = None, *, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """OpenAI's error object; None takes what is usual for the status."""
    family = status // 100 * 100
    kind, usual_code, usual_message = _ERROR_KINDS.get(status, _ERROR_KINDS[family])
    error = {"message": message or usual_message, "type": kind, "param": param, "code": code or usual_code}
    return {"error": error}


def content_text(content: object) -> str:
    """The text of a message's ``content``, which is a string or a list of parts; parts without text are left out."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A request for a chat completion that passed OpenAI's basic checks. ``body`` is everything the client sent."""

    model: str
    messages: Sequence[Mapping[str, Any]]
    choices: int
    """How many answers are wanted, the request's ``n``."""
    stream: bool
    include_usage: bool
    """Whether a stream is to end with a chunk of usage; other replies always carry it."""
    body: Mapping[str, Any] = field(repr=False)

    @classmethod
    def parse(cls, body: object) -> ChatRequest:
        """Checks a decoded body.

        Raises:
            MalformedRequestError: A required field is missing or a field has a type OpenAI would refuse.
        """
        model, fields = _model_and_fields(body)
        messages, choices = fields.get("messages"), fields.get("n")
        if not isinstance(messages, list) or not messages or not all(isinstance(each, dict) for each in messages):
            raise MalformedRequestError("'messages' must be a non-empty array of objects.", "messages")
        choices = 1 if choices is None else choices
        if not isinstance(choices, int) or isinstance(choices, bool) or not 1 <= choices <= MOST_CHOICES:
            raise MalformedRequestError(f"'n' must be an integer from 1 to {MOST_CHOICES}.", "n")
        options, stream = fields.get("stream_options"), bool(fields.get("stream"))
        if options is not None and not (stream and isinstance(options, dict)):
            raise MalformedRequestError("'stream_options' must be an object, and needs 'stream'.", "stream_options")
        include_usage = bool(options and options.get("include_usage"))
        return cls(model, tuple(messages), choices, stream, include_usage, fields)

    @property
    def system(self) -> str:
        """The text of the system (or developer) messages."""
        return "\n".join(
            content_text(each.get("content")) for each in self.messages if each.get("role") in ("system", "developer")
        )

    @property
    def prompt(self) -> str:
        """The text of the last user message, "" if there is none."""
        users = [each for each in self.messages if each.get("role") == "user"]
        return content_text(users[-1].get("content")) if users else ""


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """A request for embeddings that passed OpenAI's basic checks."""

    model: str
    texts: Sequence[str]
    dimensions: int
    as_base64: bool

    @classmethod
    def parse(cls, body: object) -> EmbeddingRequest:
        """Checks a decoded body; input given as token numbers is refused.

        Raises:
            MalformedRequestError: A required field is missing or a field has a type OpenAI would refuse.
        """
        model, fields = _model_and_fields(body)
        given, dimensions = fields.get("input"), fields.get("dimensions")
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise MalformedRequestError("'input' must be a string or a non-empty array of strings.", "input")
        dimensions = EMBEDDING_DIMENSIONS if dimensions is None else dimensions
        if not isinstance(dimensions, int) or isinstance(dimensions, bool) or not 1 <= dimensions <= MOST_DIMENSIONS:
            message = f"'dimensions' must be an integer from 1 to {MOST_DIMENSIONS}."
            raise MalformedRequestError(message, "dimensions")
        return cls(model, tuple(texts), dimensions, fields.get("encoding_format") == "base64")


def _model_and_fields(body: object) -> tuple[str, dict[str, Any]]:
    if not isinstance(body, dict):
        raise MalformedRequestError("We could not parse the JSON body of your request.")
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise MalformedRequestError("you must provide a model parameter", "model")
    return model, body
