"""The server is driven by a real HTTP client and by both of DSPy's real engines; nothing here is mocked."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import dspy
import httpx
import litellm
import pydantic
import pytest

from dspy_observe.openai_server import Bill, ChatRequest, Failure, OpenAIServer, Reply, TokenUsage, ToolCall
from dspy_observe.openai_server.answers import answer_prompt

# LiteLLM's own types make pydantic warn on first use; raised as an error inside LiteLLM it would fail the call.
pytestmark = pytest.mark.filterwarnings("ignore:Item '.*' on TypedDict class:UserWarning")

ENGINES = ("auto", "litellm")
HELLO = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}
STREAM = HELLO | {"stream": True, "stream_options": {"include_usage": True}}


class Person(pydantic.BaseModel):
    name: str
    age: int
    children: list[Person]
    parent: Person | None


class Everything(dspy.Signature):
    """Answers with one output of every type that DSPy describes in its own way."""

    context: list[str] = dspy.InputField(desc="passages")
    question: str = dspy.InputField()
    answer: str = dspy.OutputField(desc="often 1. `short`")
    score: float = dspy.OutputField(ge=0, le=1)
    sure: bool = dspy.OutputField()
    count: int = dspy.OutputField()
    label: Literal["red", "blue"] = dspy.OutputField()
    parts: list[str] = dspy.OutputField()
    totals: dict[str, int] = dspy.OutputField()
    person: Person = dspy.OutputField()
    maybe: str | None = dspy.OutputField()


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    """A running server with the default answers."""
    with OpenAIServer() as running:
        yield running


@pytest.fixture
def client(server: OpenAIServer) -> Iterator[httpx.Client]:
    """A client whose addresses are relative to the server's."""
    # No proxy or certificate settings of the environment: the server is on loopback.
    with httpx.Client(base_url=server.base_url, trust_env=False, timeout=10) as running:
        yield running


def engine_lm(server: OpenAIServer, engine: str, **options: Any) -> dspy.LM:
    """A real LM on the server, without a cache that could answer in its place."""
    return dspy.LM("openai/gpt-4o-mini", api_base=server.base_url, api_key="x", cache=False, engine=engine, **options)


def events(body: str) -> list[Any]:
    """The decoded server-sent events of a body, with the end marker as it is."""
    lines = [line.removeprefix("data: ") for line in body.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def figures(bill: Bill) -> tuple[int, int]:
    """Prompt and completion tokens."""
    return bill.prompt_tokens, bill.completion_tokens


def test_plain_completion_has_openais_shape_and_its_own_bill(server: OpenAIServer, client: httpx.Client) -> None:
    """Served model, usage and id that the client reads are those on the bill, and the request is kept as it came."""
    response = client.post("/chat/completions", json=HELLO, headers={"Authorization": "Bearer sesame"})
    body = response.json()
    assert response.status_code == 200
    assert body["object"] == "chat.completion"
    assert body["model"] == "gpt-4o-mini-2024-07-18"
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "The answer to: hello", "refusal": None}
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["total_tokens"] == 1001 + 501
    assert server.bills == [
        Bill(body["id"], "gpt-4o-mini", "gpt-4o-mini-2024-07-18", 1001, 501, 0, 0, False, True, True, 1, "hello")
    ]
    received = server.requests[0]
    assert (received.request_id, received.method, received.path) == (body["id"], "POST", "/v1/chat/completions")
    assert received.json == json.loads(received.body) == HELLO
    assert received.headers["authorization"] == "Bearer sesame"
    assert "sesame" not in repr(received)
    assert server.in_flight == 0


def test_stream_tells_usage_only_when_asked(server: OpenAIServer, client: httpx.Client) -> None:
    """The last chunk carries usage with include_usage and nothing does without; both replies are billed."""
    told = events(client.post("/chat/completions", json=STREAM).text)
    untold = events(client.post("/chat/completions", json=HELLO | {"stream": True}).text)
    assert told[-1] == untold[-1] == "[DONE]"
    assert told[-2]["choices"] == []
    assert told[-2]["usage"]["prompt_tokens"] == 1001
    assert all(event["usage"] is None for event in told[:-2])
    assert all("usage" not in event for event in untold[:-1])
    for chunks in (told[:-2], untold[:-1]):
        assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(each["choices"][0]["delta"].get("content", "") for each in chunks) == "The answer to: hello"
        assert [each["choices"][0]["finish_reason"] for each in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert [(bill.streamed, bill.usage_sent, bill.delivered) for bill in server.bills] == [
        (True, True, True),
        (True, False, True),
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_several_choices_are_one_bill(server: OpenAIServer, client: httpx.Client, stream: bool) -> None:
    """With n=3 every choice has its text, the last text serves the rest, and the figures are billed once."""
    server.script([Reply(text=("one", "two  words\n"))])
    response = client.post("/chat/completions", json=HELLO | {"n": 3, "stream": stream})
    texts = {0: "", 1: "", 2: ""}
    for event in events(response.text)[:-1] if stream else [response.json()]:
        for choice in event["choices"]:
            texts[choice["index"]] += choice.get("delta", choice.get("message")).get("content") or ""
    assert texts == {0: "one", 1: "two  words\n", 2: "two  words\n"}
    assert [(bill.choices, figures(bill)) for bill in server.bills] == [(3, (1001, 501))]


@pytest.mark.parametrize("stream", [False, True])
def test_scripted_reply_says_exactly_what_it_was_told(server: OpenAIServer, client: httpx.Client, stream: bool) -> None:
    """Usage with its details, finish reason, model and tool calls reach the client and the bill."""
    usage = TokenUsage(70, 30, cached_tokens=20, reasoning_tokens=10)
    call = ToolCall("find", {"query": "x"})
    server.script([Reply(usage=usage, model="tuned", tool_calls=[call]), Reply(text="cut", finish_reason="length")])
    asked = STREAM if stream else HELLO
    first, second = (client.post("/chat/completions", json=asked) for _ in range(2))
    bodies = events(first.text)[:-1] if stream else [first.json()]
    choices = [choice for body in bodies for choice in body["choices"]]
    calls = [each for choice in choices for each in choice.get("delta", choice.get("message")).get("tool_calls", [])]
    assert {body["model"] for body in bodies} == {"tuned"}
    assert calls[0]["function"] == {"name": "find", "arguments": '{"query": "x"}'}
    assert choices[-1]["finish_reason"] == "tool_calls"
    assert bodies[-1]["usage"]["prompt_tokens_details"] == {"cached_tokens": 20}
    assert bodies[-1]["usage"]["completion_tokens_details"] == {"reasoning_tokens": 10}
    last = events(second.text)[-3] if stream else second.json()
    assert last["choices"][0]["finish_reason"] == "length"
    bill = server.bills[0]
    assert TokenUsage(bill.prompt_tokens, bill.completion_tokens, bill.cached_tokens, bill.reasoning_tokens) == usage
    assert figures(server.bills[1]) == (1001, 501), "given figures use up none of the unique ones"


def test_unreported_usage_is_billed_all_the_same(server: OpenAIServer, client: httpx.Client) -> None:
    """report_usage=False leaves usage out of a body and of a stream that asked for it."""
    server.script([Reply(text="a", report_usage=False), Reply(text="b", report_usage=False)])
    assert "usage" not in client.post("/chat/completions", json=HELLO).json()
    assert all("usage" not in event for event in events(client.post("/chat/completions", json=STREAM).text)[:-1])
    assert [(figures(bill), bill.usage_sent, bill.delivered) for bill in server.bills] == [
        ((1001, 501), False, True),
        ((1002, 502), False, True),
    ]


def test_script_is_taken_in_order_and_then_respond_is_asked() -> None:
    """Failures bill nothing, carry Retry-After and OpenAI's error object, and keep the connection alive."""

    def respond(request: ChatRequest) -> str:
        return f"asked for {request.prompt}"

    with OpenAIServer(respond) as server, httpx.Client(base_url=server.base_url, trust_env=False) as client:
        page = Failure(503, "<h1>down</h1>")
        server.script([Failure.rate_limited(0.25), Failure(500), page, Failure(400, {"error": {"code": "mine"}}), "x"])
        limited, broken, proxied, own, text, asked = (client.post("/chat/completions", json=HELLO) for _ in range(6))
        assert (limited.status_code, limited.headers["retry-after"]) == (429, "0.25")
        assert limited.json()["error"]["code"] == "rate_limit_exceeded"
        assert (broken.status_code, broken.json()["error"]["type"]) == (500, "server_error")
        assert "retry-after" not in broken.headers
        assert (proxied.status_code, proxied.text, proxied.headers["content-type"]) == (503, page.body, "text/html")
        assert own.json() == {"error": {"code": "mine"}}
        assert text.json()["choices"][0]["message"]["content"] == "x"
        assert asked.json()["choices"][0]["message"]["content"] == "asked for hello"
        assert [figures(bill) for bill in server.bills] == [(1001, 501), (1002, 502)]
        assert len(server.requests) == 6


def test_respond_that_raises_is_answered_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A fault in the test's own function reaches the client as a 500 that names it, and the log with its traceback."""

    def respond(request: ChatRequest) -> str:
        raise LookupError(f"nothing for {request.prompt}")

    with OpenAIServer(respond) as server, caplog.at_level(logging.ERROR, "dspy_observe"):
        response = httpx.post(f"{server.base_url}/chat/completions", json=HELLO, trust_env=False)
        assert response.status_code == 500
        assert response.json()["error"]["message"] == "respond raised LookupError: nothing for hello"
        assert caplog.records[0].exc_info is not None
        assert server.bills == []


def test_one_connection_serves_everything_in_turn(server: OpenAIServer) -> None:
    """Lengths and chunk ends are right: plain, streamed, refused and listed replies follow each other on one socket."""
    server.script(["a b c", Failure(429), "d e f"])
    with httpx.Client(base_url=server.base_url, trust_env=False, limits=httpx.Limits(max_connections=1)) as client:
        for body in (HELLO, HELLO, STREAM, HELLO):
            client.post("/chat/completions", json=body).read()
        assert client.get("/models").status_code == 200
        assert client.get("/nowhere").status_code == 404
        assert len(server._book.connections) == 1
    assert len(server.requests) == 6


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{not json", None),
        (b"\xff\xfe", None),
        (b"[]", None),
        (b"{}", "model"),
        (b'{"model": 4, "messages": []}', "model"),
        (b'{"model": "m"}', "messages"),
        (b'{"model": "m", "messages": ["text"]}', "messages"),
        (b'{"model": "m", "messages": [{}], "n": 0}', "n"),
        (b'{"model": "m", "messages": [{}], "n": true}', "n"),
        (b'{"model": "m", "messages": [{}], "stream_options": {"include_usage": true}}', "stream_options"),
    ],
)
def test_malformed_request_is_refused_in_openais_shape(
    server: OpenAIServer, client: httpx.Client, body: bytes, param: str | None
) -> None:
    """Status 400 names the field, nothing is billed and no scripted outcome is used up."""
    server.script(["kept"])
    response = client.post("/chat/completions", content=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["message"]
    assert server.bills == []
    assert server.in_flight == 0
    assert client.post("/chat/completions", json=HELLO).json()["choices"][0]["message"]["content"] == "kept"


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/chat/completions"), ("POST", "/responses"), ("PUT", "/models"), ("GET", "/")]
)
def test_other_paths_and_methods_are_not_found(client: httpx.Client, method: str, path: str) -> None:
    """Status 404 with OpenAI's error object, for methods that the server does not know too."""
    response = client.request(method, path)
    assert response.status_code == 404
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("length", ["", "Content-Length: -1\r\n", "Content-Length: many\r\n"])
def test_body_without_a_usable_length_is_refused_at_once(server: OpenAIServer, length: str) -> None:
    """A missing, negative or absurd Content-Length gets a 400 and a hang-up instead of a read without end."""
    port = int(server.base_url.split(":")[2].split("/")[0])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n{length}\r\n".encode())
        with connection.makefile("rb") as reader:
            answer = reader.read()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"Content-Length" in answer.partition(b"\r\n\r\n")[2]


def test_models_are_listed(client: httpx.Client) -> None:
    """The list holds aliases and the dated names that answer for them."""
    names = {model["id"] for model in client.get("/models").json()["data"]}
    assert {"gpt-4o-mini", "gpt-4o-mini-2024-07-18"} <= names


def test_embeddings_place_texts_by_the_words_they_share(server: OpenAIServer, client: httpx.Client) -> None:
    """Vectors have length 1 and the asked dimension, agree in both encodings, and are near for related texts."""
    texts = ["a red cat", "the red cat sat", "quarterly revenue"]
    asked = {"model": "text-embedding-3-small", "input": texts, "dimensions": 512}
    body = client.post("/embeddings", json=asked).json()
    packed = client.post("/embeddings", json=asked | {"encoding_format": "base64"}).json()
    cat, sat, revenue = (entry["embedding"] for entry in body["data"])
    assert {len(cat), len(sat), len(revenue)} == {512}
    assert sum(value * value for value in sat) == pytest.approx(1)
    near, far = (sum(a * b for a, b in zip(cat, other, strict=True)) for other in (sat, revenue))
    assert near > 0.5 > far
    unpacked = struct.unpack("<512f", base64.b64decode(packed["data"][1]["embedding"]))
    assert list(unpacked) == pytest.approx(sat)
    assert body["usage"] == {"prompt_tokens": 1001, "total_tokens": 1001}
    assert [(figures(bill), bill.choices, bill.prompt) for bill in server.bills] == [
        ((1001, 0), 3, "quarterly revenue"),
        ((1002, 0), 3, "quarterly revenue"),
    ]


def test_embeddings_have_a_script_of_their_own(server: OpenAIServer, client: httpx.Client) -> None:
    """A chat outcome is not taken by an embeddings request, and a failing embedding can be scripted."""
    server.script(["for chat"])
    server.script([Failure.rate_limited(), Reply(usage=TokenUsage(7, 0))], endpoint="embeddings")
    asked = {"model": "text-embedding-3-small", "input": "x"}
    assert client.post("/embeddings", json=asked).status_code == 429
    assert client.post("/embeddings", json=asked).json()["usage"]["prompt_tokens"] == 7
    assert client.post("/embeddings", json=asked | {"input": [[1, 2]]}).status_code == 400
    assert client.post("/chat/completions", json=HELLO).json()["choices"][0]["message"]["content"] == "for chat"


@pytest.mark.parametrize("stream", [False, True])
def test_cut_reply_is_billed_and_the_client_is_told_nothing(
    server: OpenAIServer, client: httpx.Client, stream: bool
) -> None:
    """The connection drops inside the body, after exactly the chunks asked for in a stream."""
    server.script([Reply(text="one two three four", cut_after_chunks=2)])
    got: list[str] = []
    with client.stream("POST", "/chat/completions", json=STREAM if stream else HELLO) as response:
        assert response.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            read_all(response, got)
    if stream:
        assert [event["choices"][0]["delta"].get("content") for event in events("".join(got))] == ["", "one", " two"]
    assert [(figures(bill), bill.delivered, bill.usage_sent) for bill in server.bills] == [((1001, 501), False, False)]
    server.wait_for(lambda: server.in_flight == 0)


def test_hold_keeps_replies_back_until_its_event_is_set(server: OpenAIServer, client: httpx.Client) -> None:
    """While held a reply is in flight and unbilled; others overtake it and get the earlier figures."""
    event = threading.Event()
    server.script([Reply(text="late", hold=event)])
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(client.post, "/chat/completions", json=HELLO)
        server.wait_for(lambda: server.in_flight == 1)
        assert client.post("/chat/completions", json=HELLO).json()["usage"]["prompt_tokens"] == 1001
        assert not held.done()
        assert [bill.request_id for bill in server.bills] == ["chatcmpl-000002"]
        event.set()
        assert held.result().json()["usage"]["prompt_tokens"] == 1002
    assert server.in_flight == 0


@pytest.mark.parametrize(("asked", "after_chunks"), [(HELLO, None), (STREAM, None), (STREAM, 1)])
def test_client_that_hung_up_is_billed_without_delivery(
    server: OpenAIServer,
    client: httpx.Client,
    caplog: pytest.LogCaptureFixture,
    asked: dict[str, Any],
    after_chunks: int | None,
) -> None:
    """A client gone before the body or in the middle of a stream: billed, not delivered, and nothing is logged."""
    event = threading.Event()
    server.script([Reply(text="one two three", hold=event, hold_after_chunks=after_chunks)])
    port = int(server.base_url.split(":")[2].split("/")[0])
    body = json.dumps(asked).encode()
    with caplog.at_level(logging.DEBUG, "dspy_observe"):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            server.wait_for(lambda: server.in_flight == 1)
            if after_chunks:
                received = b""
                while b"one" not in received:
                    received += connection.recv(4096)
        event.set()
        server.wait_for(lambda: server.in_flight == 0)
    assert [(figures(bill), bill.delivered, bill.usage_sent) for bill in server.bills] == [((1001, 501), False, False)]
    assert caplog.records == []
    assert client.post("/chat/completions", json=HELLO).status_code == 200


def test_connection_that_is_reset_prints_nothing(
    server: OpenAIServer, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """A client that resets its connection in the middle of a request leaves no traceback anywhere."""
    port = int(server.base_url.split(":")[2].split("/")[0])
    with caplog.at_level(logging.DEBUG, "dspy_observe"):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            # Lingering for no time makes close() send a reset instead of an orderly end.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(b"POST /v1/chat/comp")
            server.wait_for(lambda: len(server._book.connections) == 1)
            threads = connection_threads()
            assert len(threads) == 1
        join_all(threads)
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def connection_threads() -> list[threading.Thread]:
    """The threads that serve connections at the moment."""
    return [thread for thread in threading.enumerate() if "process_request_thread" in thread.name]


def join_all(threads: list[threading.Thread]) -> None:
    """Waits for threads, and fails for one that does not end."""
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_delays_come_before_the_right_bytes(server: OpenAIServer, client: httpx.Client) -> None:
    """delay_s comes before headers and bill; a first delay comes after them and before the first event."""
    server.script([Reply(text="a", delay_s=3600), Reply(text="b", first_delay_s=3600)])
    with pytest.raises(httpx.ReadTimeout):
        client.post("/chat/completions", json=STREAM, timeout=httpx.Timeout(10, read=0.1))
    assert server.bills == []
    with client.stream("POST", "/chat/completions", json=STREAM) as response:
        assert response.status_code == 200
        assert len(server.bills) == 1
    assert server.in_flight == 2


def test_chunk_delay_is_between_chunks_only(server: OpenAIServer, client: httpx.Client) -> None:
    """The first chunk comes at once and the second does not."""
    server.script([Reply(text="one two", chunk_delay_s=3600)])
    with client.stream("POST", "/chat/completions", json=STREAM, timeout=1) as response:
        chunks = response.iter_lines()
        contents = [json.loads(line[6:])["choices"][0]["delta"]["content"] for line in take_lines(chunks, 2)]
        assert contents == ["", "one"]
        with pytest.raises(httpx.ReadTimeout):
            take_lines(chunks, 1)


def read_all(response: httpx.Response, into: list[str]) -> None:
    """Reads a body piece by piece, so that what came before a cut is kept."""
    for text in response.iter_text():
        into.append(text)  # noqa: PERF402  # extend() would lose what came before the cut


def take_lines(lines: Iterator[str], count: int) -> list[str]:
    """The next so many lines that are not blank."""
    taken: list[str] = []
    while len(taken) < count:
        line = next(lines)
        taken.extend([line] if line else [])
    return taken


def test_close_ends_everything_that_is_under_way() -> None:
    """Held and sleeping replies end unbilled, idle connections are hung up, no thread stays, the port is free."""
    event = threading.Event()
    server = OpenAIServer().start()
    server.script([Reply(hold=event), Reply(delay_s=3600)])
    with httpx.Client(base_url=server.base_url, trust_env=False) as client, ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(client.post, "/chat/completions", json=HELLO) for _ in range(2)]
        server.wait_for(lambda: server.in_flight == 2)
        client.get("/models")
        threads = [*connection_threads(), *(each for each in threading.enumerate() if each.name == "openai-server")]
        assert len(threads) >= 4, "one that accepts, an idle connection, two that wait"
        server.close()
        assert event.is_set()
        assert all(isinstance(future.exception(), httpx.TransportError) for future in futures)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.base_url}/models", trust_env=False)
    assert server.bills == []
    join_all(threads)
    server.close()
    with pytest.raises(RuntimeError, match="serves once"):
        server.start()


def test_two_hundred_connections_at_once_each_get_their_own_figures() -> None:
    """All 200 stand open together before the first is answered; every client's figures are those of its own bill."""
    event = threading.Event()

    async def main(server: OpenAIServer) -> list[dict[str, Any]]:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=server.base_url, trust_env=False, limits=limits, timeout=60) as client:
            bodies = (HELLO | {"messages": [{"role": "user", "content": str(number)}]} for number in range(200))
            calls = [asyncio.ensure_future(client.post("/chat/completions", json=body)) for body in bodies]
            await asyncio.to_thread(server.wait_for, lambda: server.in_flight == 200, 30)
            event.set()
            return [response.json() for response in await asyncio.gather(*calls)]

    with OpenAIServer(lambda request: Reply(text=request.prompt, hold=event)) as server:
        answers = asyncio.run(main(server))
        bills = {bill.request_id: bill for bill in server.bills}
    assert [answer["choices"][0]["message"]["content"] for answer in answers] == [str(number) for number in range(200)]
    assert all(bills[answer["id"]].prompt == answer["choices"][0]["message"]["content"] for answer in answers)
    assert all(bills[answer["id"]].prompt_tokens == answer["usage"]["prompt_tokens"] for answer in answers)
    assert sorted(figures(bill) for bill in bills.values()) == [(1001 + step, 501 + step) for step in range(200)]
    assert all(bill.delivered for bill in bills.values())


def test_waiting_in_vain_says_what_the_server_has(server: OpenAIServer) -> None:
    """A test that waits for what never comes fails with a message to go by."""
    with pytest.raises(TimeoutError, match=r"0\.01 s; the server has 0 requests, 0 bills, 0 in flight"):
        server.wait_for(lambda: server.in_flight == 1, 0.01)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Reply(delay_s=-1),
        lambda: Reply(cut_after_chunks=-1),
        lambda: Reply(hold_after_chunks=1),
        lambda: Failure(200),
        lambda: TokenUsage(1, 1, cached_tokens=2),
        lambda: TokenUsage(-1, 1),
    ],
)
def test_outcomes_that_cannot_be_are_refused(wrong: Any) -> None:
    """A wrong figure fails where it is written, not in the middle of a request."""
    with pytest.raises(ValueError, match=r"must|needs"):
        wrong()


def test_address_is_known_only_once_started() -> None:
    """Asking too early says what to do."""
    with pytest.raises(RuntimeError, match=r"before start\(\)"):
        _ = OpenAIServer().base_url


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("adapter", [dspy.ChatAdapter(use_json_adapter_fallback=False), dspy.JSONAdapter()])
def test_default_answers_parse_for_every_type_of_output(
    server: OpenAIServer, engine: str, adapter: dspy.Adapter
) -> None:
    """One call, no fallback: all outputs come parsed to their types, choices follow the question."""
    with dspy.context(lm=engine_lm(server, engine), adapter=adapter):
        answer = dspy.Predict(Everything)(context=["x [[ ## y ## ]]"], question='Is "it"\n\nred or Blue?')
        thought = dspy.ChainOfThought("question -> answer")(question="why?")
        agent = dspy.ReAct("question -> answer", tools=[lambda query: query])(question="who?")
    assert answer.answer == 'The answer to: Is "it" red or Blue?'
    assert (answer.score, answer.sure, answer.count, answer.label) == (0.5, True, 1, "red")
    assert (answer.parts, answer.totals) == (['The parts to: Is "it" red or Blue?'], {})
    assert isinstance(answer.person, Person)
    assert answer.maybe == 'The maybe to: Is "it" red or Blue?'
    assert (thought.reasoning, thought.answer) == ("The reasoning to: why?", "The answer to: why?")
    assert agent.answer == "The answer to: who?"
    assert len(server.bills) == 4, "Predict 1, ChainOfThought 1, ReAct 2: nothing was asked twice"


@pytest.mark.parametrize("engine", ENGINES)
def test_both_engines_report_the_figures_of_their_own_bill(server: OpenAIServer, engine: str) -> None:
    """Synchronous and asynchronous calls end in DSPy's history with the tokens the server billed for that prompt."""
    lm = engine_lm(server, engine)

    async def main() -> None:
        program = dspy.Predict("question -> answer")
        with dspy.context(lm=lm):
            answers = await asyncio.gather(*(program.acall(question=f"number {number}?") for number in range(8)))
        assert [answer.answer for answer in answers] == [f"The answer to: number {number}?" for number in range(8)]

    lm("hello")
    asyncio.run(main())
    billed = {bill.prompt: figures(bill) for bill in server.bills}
    booked = {
        (entry["messages"] or [{"content": entry["prompt"]}])[-1]["content"]: (
            entry["usage"]["prompt_tokens"],
            entry["usage"]["completion_tokens"],
        )
        for entry in lm.history
    }
    assert len(billed) == 9
    assert booked == billed


@pytest.mark.parametrize(("engine", "asks_usage"), [("auto", True), ("litellm", False)])
def test_streamify_gets_the_text_in_pieces(server: OpenAIServer, engine: str, asks_usage: bool) -> None:
    """Both engines stream; only the native one asks for usage, so only it is told."""
    listener = dspy.streaming.StreamListener("answer")
    program = dspy.streamify(dspy.Predict("question -> answer"), stream_listeners=[listener])

    async def main() -> tuple[list[str], dspy.Prediction]:
        pieces, prediction = [], None
        with dspy.context(lm=engine_lm(server, engine), adapter=dspy.ChatAdapter()):
            async for value in program(question="why?"):
                if isinstance(value, dspy.streaming.StreamResponse):
                    pieces.append(value.chunk)
                else:
                    prediction = value
        assert isinstance(prediction, dspy.Prediction)
        return pieces, prediction

    pieces, prediction = asyncio.run(main())
    assert len([piece for piece in pieces if piece]) > 1
    assert "".join(pieces) == prediction.answer == "The answer to: why?"
    assert [(bill.streamed, bill.usage_sent, bill.delivered) for bill in server.bills] == [(True, asks_usage, True)]


@pytest.mark.parametrize(("engine", "requests", "choices"), [("auto", 3, 1), ("litellm", 1, 3)])
def test_three_completions_are_what_each_engine_makes_of_them(
    server: OpenAIServer, engine: str, requests: int, choices: int
) -> None:
    """The native engine sends three requests, LiteLLM one with n=3; DSPy sums what was billed either way."""
    lm = engine_lm(server, engine)
    assert lm("hello", n=3, temperature=1.0) == ["The answer to: hello"] * 3
    assert [bill.choices for bill in server.bills] == [choices] * requests
    assert lm.history[-1]["usage"]["prompt_tokens"] == sum(bill.prompt_tokens for bill in server.bills)


def test_native_engine_retries_what_is_scripted(server: OpenAIServer) -> None:
    """Two refusals and a reply are three requests, one bill and one answer."""
    server.script([Failure.rate_limited(), Failure.server_error(), "made it"])
    assert engine_lm(server, "auto")("hello") == ["made it"]
    assert (len(server.requests), len(server.bills)) == (3, 1)


@pytest.mark.parametrize("engine", ENGINES)
def test_failures_become_dspys_own_errors(server: OpenAIServer, engine: str) -> None:
    """Error bodies are good enough for both engines to tell one failure from another."""
    lm = engine_lm(server, engine, num_retries=0)
    expected = {
        Failure.rate_limited(): "LMRateLimitError",
        Failure(401): "LMAuthError",
        Failure(500): "LMServerError",
    }
    for failure, name in expected.items():
        server.script([failure])
        with pytest.raises(Exception, match=r".") as caught:
            lm("hello")
        assert type(caught.value).__name__ == name
    server.script([Failure.context_length_exceeded()])
    with pytest.raises(dspy.ContextWindowExceededError):
        lm("hello")
    assert server.bills == []
    assert len(server.requests) == 4


def test_litellm_embeds(server: OpenAIServer) -> None:
    """The client behind dspy.Embedder reads vectors and usage."""
    reply = litellm.embedding("openai/text-embedding-3-small", ["a", "b"], api_base=server.base_url, api_key="x")
    assert [len(entry["embedding"]) for entry in reply.data] == [256, 256]
    assert reply.usage.prompt_tokens == server.bills[0].prompt_tokens == 1001


def test_structured_output_without_an_adapter_follows_its_schema() -> None:
    """A response_format schema alone, references and recursion included, is answered with JSON that it accepts."""
    schema = {"type": "json_schema", "json_schema": {"name": "person", "schema": Person.model_json_schema()}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "who?"}]}]
    text = answer_prompt(ChatRequest.parse({"model": "m", "messages": messages, "response_format": schema}))
    assert Person.model_validate_json(text).name == "The answer to: who?"
