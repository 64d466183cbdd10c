"""Real programs on a real server, with secrets in every place that a call has, and what the programs themselves saw."""

from __future__ import annotations

import asyncio
import contextvars
import re
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy

from dspy_observe.openai_server import Failure, OpenAIServer, Reply, TokenUsage
from tests.e2e.leaks.secrets import LM_HEADER, LM_KEY, PER_CALL_HEADER, Secret

__all__ = ["Assistant", "Seen", "make_lm", "run", "slices"]

_USAGE = TokenUsage(100, 20)
_BREAK = "\n\n"  # between sentences; a key in PEM form has line breaks but no empty line


def slices(secrets: Sequence[Secret], count: int) -> list[str]:
    """The sentences of all secrets as ``count`` texts."""
    return [_BREAK.join(secret.text for secret in secrets[at::count]) for at in range(count)]


class Passages(dspy.Module):
    """A retriever, as far as a program sees one."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def forward(self, query: str, k: int = 3) -> dspy.Prediction:
        """The passages."""
        return self._found(k)

    def _found(self, k: int) -> dspy.Prediction:
        sentences = self.text.split(_BREAK)
        half = len(sentences) // 2
        passages = ["\n".join(sentences[:half]), "\n".join(sentences[half:])][:k]
        return dspy.Prediction(passages=passages, sources=[{"text": passage} for passage in passages])

    async def aforward(self, query: str, k: int = 3) -> dspy.Prediction:
        """The same."""
        return self._found(k)


class Assistant(dspy.Module):
    """Looks something up, asks a tool, answers.

    Args:
        parts: Texts in turn for the tool's arguments, the tool's result, and the passages.
        config: Arguments of each LM call.
    """

    def __init__(self, parts: Sequence[str], config: dict[str, Any]) -> None:
        super().__init__()
        self.parts = tuple(parts)
        self.config = config
        self.retrieve = Passages(parts[2])
        self.generate = dspy.Predict("context: list[str], question -> answer")

    def _tool(self) -> dspy.Tool:
        def note(text: str, details: dict[str, Any]) -> dict[str, Any]:
            """Write something down."""
            return {"noted": self.parts[1], "lines": self.parts[1].split(_BREAK), "at": text[:10]}

        return dspy.Tool(note)

    def forward(self, question: str) -> dspy.Prediction:
        """Answer."""
        found = self.retrieve(question)
        self._tool()(text=self.parts[0], details={"lines": self.parts[0].split(_BREAK)})
        return self.generate(context=found.passages, question=question, config=self.config)

    async def aforward(self, question: str) -> dspy.Prediction:
        """The same, awaited."""
        found = await self.retrieve.acall(question)
        await self._tool().acall(text=self.parts[0], details={"lines": self.parts[0].split(_BREAK)})
        return await self.generate.acall(context=found.passages, question=question, config=self.config)


_HEADERS = {"extra_headers": {"Authorization": f"Bearer {PER_CALL_HEADER}"}}


@dataclass
class Seen:
    """What the programs got, sent and kept."""

    answers: list[Any] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    predictions: list[Any] = field(default_factory=list)
    chunks: list[str] = field(default_factory=list)
    state: list[Any] = field(default_factory=list)

    def attempt(self, call: Callable[[], Any]) -> None:
        """Keep what a call returns or raises."""
        try:
            prediction = call()
        except Exception as error:  # noqa: BLE001 - whatever it is, the other run must raise the same
            self.errors.append(f"{type(error).__name__}: {error}")
        else:
            self.predictions.append(prediction)
            self.answers.append(prediction.toDict() if isinstance(prediction, dspy.Prediction) else prediction)


def make_lm(server: OpenAIServer, model: str = "openai/gpt-4o-mini", **options: Any) -> dspy.LM:
    """An LM with credentials of every kind among its arguments."""
    return dspy.LM(model, **{"api_base": server.base_url, "api_key": LM_KEY, "num_retries": 0, **options})


def answer(text: str) -> Reply:
    """A reply that the chat adapter parses, with a bill that does not depend on earlier ones."""
    return Reply(text=f"[[ ## answer ## ]]\n{text}\n\n[[ ## completed ## ]]", usage=_USAGE)


def run(server: OpenAIServer, texts: Sequence[str], track: Callable[[Any], Any] = lambda program: program) -> Seen:
    """Run programs synchronously, asynchronously, as a stream, from the cache and into every kind of failure.

    Args:
        server: Answers with secrets.
        texts: Each place gets another one at each call, so that over the run each place has had all of them.
        track: Called with each program before it runs.
    """
    seen = Seen()
    # Extra headers make DSPy take LiteLLM; its own engine sends the others. The LM that has every credential goes
    # first: a process knows only those of the LMs that it has met.
    lms = make_lm(server, extra_headers={"X-Team-Auth": LM_HEADER}), make_lm(server)
    # One event loop for all: connections of asynchronous calls can be closed on the loop that opened them only.
    with asyncio.Runner() as runner:
        _run_all(server, texts, track, lms, seen, runner)
        for lm in lms:
            seen.state.append(lm.dump_state())
            runner.run(lm.aclose())
    return seen


def _run_all(
    server: OpenAIServer,
    texts: Sequence[str],
    track: Callable[[Any], Any],
    lms: Sequence[dspy.LM],
    seen: Seen,
    runner: asyncio.Runner,
) -> None:
    count = len(texts)

    def part(at: int) -> str:
        return texts[at % count]

    def awaited(work: Coroutine[Any, Any, Any]) -> Any:
        return runner.run(work, context=contextvars.copy_context())

    for at in range(count):
        with dspy.context(lm=lms[at % 2], allow_tool_async_sync_conversion=True):
            program = track(Assistant([part(at + 2), part(at + 3), part(at + 4)], {} if at % 2 else _HEADERS))
            server.script([answer(part(at + 1))])
            seen.attempt(lambda p=program, at=at: p(question=part(at)))
            seen.attempt(lambda p=program, at=at: p(question=part(at)))  # from the cache
            server.script([answer(part(at + 1))])
            seen.attempt(lambda p=program, at=at: awaited(p.acall(question=part(at) + "\nawaited")))
            server.script([answer(part(at + 1))])
            seen.attempt(lambda p=program, at=at: awaited(_stream(p, part(at) + "\nstreamed", seen)))
            _fail(server, seen, program, part, at)
            seen.state.append(program.dump_state())


def _fail(server: OpenAIServer, seen: Seen, program: Any, part: Callable[[int], str], at: int) -> None:
    for status in (400, 401, 500):
        server.script([Failure(status, {"error": {"message": part(at + 5), "type": "t", "code": None}})])
        seen.attempt(lambda status=status: program(question=f"{part(at)}\nstatus {status}"))
    server.script([Reply(text=f"No. {part(at + 1)}", usage=_USAGE)] * 2)  # the JSON adapter asks once more
    seen.attempt(lambda: program(question=f"{part(at)}\nunparsable"))

    def broken(text: str) -> str:
        raise ValueError(f"upstream said: {part(at + 5)}")

    seen.attempt(lambda: dspy.Tool(broken)(text=part(at)))
    agent = dspy.ReAct("question -> answer", tools=[broken], max_iters=1)
    thought = f"[[ ## next_thought ## ]]\n{part(at + 1)}\n\n"
    call = f"{thought}[[ ## next_tool_name ## ]]\nbroken\n\n[[ ## next_tool_args ## ]]\n"
    arguments = '{"text": "retry with ghp_EXAMPLE7NotARealTokenAtAll0123456789"}'
    server.script([Reply(text=f"{call}{arguments}\n\n[[ ## completed ## ]]", usage=_USAGE)])
    extracted = f"[[ ## reasoning ## ]]\nr\n\n[[ ## answer ## ]]\n{part(at + 1)}\n\n[[ ## completed ## ]]"
    server.script([Reply(text=extracted, usage=_USAGE)])
    seen.attempt(lambda: agent(question=part(at)))


async def _stream(program: Any, question: str, seen: Seen) -> Any:
    listener = dspy.streaming.StreamListener(signature_field_name="answer")
    streaming = dspy.streamify(program, stream_listeners=[listener], is_async_program=True)
    last = None
    async for chunk in streaming(question=question):
        if isinstance(chunk, dspy.Prediction):
            last = chunk
        else:
            seen.chunks.append(re.sub(r"[0-9a-f-]{32,36}", "id", str(getattr(chunk, "chunk", ""))))
    return last
