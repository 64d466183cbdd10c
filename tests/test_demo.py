from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import dspy
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from rich.console import Console

import dspy_observe
from dspy_observe.demo import closing, run
from dspy_observe.demo.board import Board, percentile
from dspy_observe.demo.model import LARGE_MODEL, RETRIES, SMALL_MODEL, StandIn
from dspy_observe.demo.program import examples_folder, load_program
from dspy_observe.demo.users import signature
from dspy_observe.openai_server import ChatRequest, Failure, OpenAIServer, Reply

example = load_program()
QUICK = ("--plain", "--offline", "--pace", "0")


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    """The demo's provider, without delays."""
    with OpenAIServer(StandIn(pace=0)) as running:
        yield running


def lm_of(server: OpenAIServer, model: str = SMALL_MODEL) -> dspy.LM:
    """An LM of the demo's kind that no cache answers for."""
    return dspy.LM(f"openai/{model}", api_base=server.base_url, api_key="x", num_retries=RETRIES, cache=False)


def shown(renderable: object, width: int = 100) -> str:
    """What a terminal of that width would show."""
    console = Console(width=width, file=io.StringIO())
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


# --- the collection and the example ----------------------------------------------------------------------------------


def test_reference_answers_stand_in_their_passages() -> None:
    """Every reference answer is found, word for word, in the passage that the question names."""
    passages = {row["id"]: row["text"] for row in example.read_rows(examples_folder() / "data" / "passages.jsonl")}
    questions = example.read_rows(examples_folder() / "data" / "questions.jsonl")
    assert len(passages) >= 40
    assert len(questions) >= 30
    assert [row for row in questions if not example.agrees(passages[row["passage"]], row["answer"])] == []


def test_search_puts_the_right_passage_among_the_first_three() -> None:
    """The search finds the passage of nearly every question; the few that avoid its words may miss."""
    collection = example.Passages.load()
    titles = {row["id"]: row["title"] for row in example.read_rows(examples_folder() / "data" / "passages.jsonl")}
    questions = example.read_rows(examples_folder() / "data" / "questions.jsonl")
    missed = [
        row["question"]
        for row in questions
        if not any(text.startswith(f"{titles[row['passage']]}: ") for text in collection.search(row["question"]))
    ]
    assert len(missed) <= 2


def test_search_prefers_rare_words_and_leaves_out_strangers() -> None:
    """A rare word outweighs a common one, and passages that share no word are not returned."""
    collection = example.Passages(["A: red apples", "B: red bricks", "C: red zebras", "D: green grass"])
    assert collection.search("red zebra") == ["C: red zebras", "A: red apples", "B: red bricks"]
    assert collection.search("the") == []


def test_collection_of_nothing_is_refused() -> None:
    """A collection without passages says so at once."""
    with pytest.raises(ValueError, match="at least one passage"):
        example.Passages([])


@pytest.mark.parametrize(("answer", "agreed"), [("It is AU.", True), ("It is August.", False), ("Gold", False)])
def test_answers_agree_word_for_word(answer: str, agreed: bool) -> None:
    """A reference answer counts as a whole word, in any case."""
    assert example.agrees(answer, "Au") is agreed


# --- the stand-in model ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [dspy.ChatAdapter(), dspy.JSONAdapter()])
@pytest.mark.parametrize("symbol", ["Au", "Qx"])
def test_model_answers_from_the_passages_it_is_given(server: OpenAIServer, adapter: dspy.Adapter, symbol: str) -> None:
    """What the passage says is what the model answers, also when the passage is wrong; it knows nothing itself."""
    collection = example.Passages([f"Gold: Gold has the symbol {symbol}. Gold is yellow.", "Tin: Tin is grey."])
    with dspy.context(lm=lm_of(server), adapter=adapter):
        prediction = example.QuestionAnswering(collection)(question="What is the symbol of gold?")
    assert prediction.answer == f"Gold has the symbol {symbol}."
    assert prediction.found is True
    assert len(server.bills) == 1, "the reply was readable at the first try"


def test_model_says_when_the_passages_do_not_answer(server: OpenAIServer) -> None:
    """A passage that shares a word with the question, but does not answer it, is not passed off as an answer."""
    with dspy.context(lm=lm_of(server)):
        program = example.QuestionAnswering(example.Passages(["Tin: Tin is a grey metal."]), agent=False)
        prediction = program(question="Which metal melts in the hand of a person?")
    assert prediction.found is False


def test_agent_searches_again_with_other_words_before_it_finishes(server: OpenAIServer) -> None:
    """The larger model calls the real tool, finds nothing, searches with words of like meaning, and answers from it."""
    collection = example.Passages(["Cacao: The country that produces more cacao than others is Ivory Coast."])
    with dspy.context(lm=lm_of(server)):
        program = example.QuestionAnswering(collection, agent_lm=lm_of(server, LARGE_MODEL))
        prediction = program(question="Which nation grows most of it?")
    steps = prediction.trajectory
    assert [steps[f"tool_name_{step}"] for step in range(3)] == ["search_passages", "search_passages", "finish"]
    assert steps["observation_0"] == []
    assert "country" in steps["tool_args_1"]["query"]
    assert "Ivory Coast" in prediction.answer
    assert {bill.model for bill in server.bills} == {SMALL_MODEL, LARGE_MODEL}


def test_model_bills_by_the_length_of_the_text(server: OpenAIServer) -> None:
    """Tokens of a reply are what its prompt and its text are long, at four characters each."""
    with dspy.context(lm=lm_of(server)):
        example.QuestionAnswering(example.Passages.load(), limit=1)(question="Who discovered penicillin?")
    (bill,), (request,) = server.bills, server.requests
    letters = sum(len(message["content"]) for message in request.json["messages"])
    assert bill.prompt_tokens == -(-letters // 4)
    assert 10 < bill.completion_tokens < 100


def signed_prompt(number: int) -> ChatRequest:
    """A request for an answer that a user signed."""
    inputs = {"passages": json.dumps(["Tin: Tin is grey."]), "question": "Is tin grey?", "asked_by": f"User {number}"}
    prompt = "\n\n".join(f"[[ ## {name} ## ]]\n{text}" for name, text in inputs.items())
    return ChatRequest.parse({"model": SMALL_MODEL, "messages": [{"role": "user", "content": prompt}]})


def test_failures_befall_signed_prompts_and_pass() -> None:
    """Among 32 signed prompts some are refused once, two until the retries are used up, and two out of format."""
    model = StandIn(pace=0)
    tries = []
    for number in range(32):
        outcomes = [model(signed_prompt(number)) for _ in range(RETRIES + 2)]
        assert isinstance(outcomes[-1], Reply)
        tries.append(sum(isinstance(outcome, Failure) for outcome in outcomes))
    assert sorted(filter(None, tries)) == [1, 1, 1, 1, RETRIES + 1, RETRIES + 1]
    assert model.refused == {429: 3 + RETRIES + 1, 500: 1 + RETRIES + 1}


# --- what is shown ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("percent", "value"), [(0, 1), (50, 2), (51, 3), (95, 4), (100, 4)])
def test_percentile_is_one_of_the_values(percent: int, value: float) -> None:
    """The nearest-rank percentile, for every share of four values."""
    assert percentile([4, 1, 3, 2], percent) == value


def test_percentile_of_nothing_is_unknown() -> None:
    """No values have no percentile."""
    assert percentile([], 50) is None


def test_metric_tokens_add_up_all_series_of_a_kind() -> None:
    """Tokens are summed over programs and models, and other kinds and metrics are left out."""
    page = (
        'dspy_tokens_total{kind="prompt",model="a"} 10.0\n'
        'dspy_tokens_total{kind="prompt",model="b"} 1e+03\n'
        'dspy_tokens_total{kind="completion",model="a"} 7.0\n'
        'dspy_tokens_total{kind="cache_read",model="a"} 4.0\n'
        'dspy_tokens_created{kind="prompt",model="a"} 1.7e+09\n'
    )
    assert closing.metric_tokens(page) == (1010, 7)


def test_metric_lines_quote_the_largest_series() -> None:
    """Of each metric the line with the largest value is quoted as it stands, and of failed requests one more."""
    page = (
        'dspy_requests_total{model="a",status="ok"} 2.0\ndspy_requests_total{model="b",status="ok"} 10.0\n'
        'dspy_requests_total{model="b",status="error"} 1.0\ndspy_requests_created{model="b",status="ok"} 99.0\n'
    )
    wanted = ['dspy_requests_total{model="b",status="ok"} 10.0', 'dspy_requests_total{model="b",status="error"} 1.0']
    assert closing.metric_lines(page) == wanted


def test_board_trace_and_signature_show_what_happened(server: OpenAIServer) -> None:
    """Of a signed run with an unreadable reply, tables show the bill, the tree every call, the prompt no address."""
    board, exporter, tracers = Board(), InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    server.script(["Sure! Alexander Fleming."])
    with (
        dspy_observe.configure(
            metrics=dspy_observe.Metrics(collector_registry=CollectorRegistry()),
            tracing=dspy_observe.Tracing(tracer_provider=tracers, capture_content="redacted"),
            extra=[board],
        ) as observer,
        dspy.context(lm=lm_of(server)),
    ):
        program = observer.track(example.QuestionAnswering(example.Passages.load()), name="facts", version="v7")
        observer.score(program(question="Who discovered penicillin?", asked_by=signature(0)), 0.5, source="user")
    prompt, completion = sum(b.prompt_tokens for b in server.bills), sum(b.completion_tokens for b in server.bills)
    spans = exporter.get_finished_spans()
    assert closing.span_tokens(spans) == (prompt, completion)

    tables = shown(board.render(), 80)
    assert re.search(r"facts +v7 +1 +0 +\d\.\d\d +\d\.\d\d +0 +1 +0\.50", tables)
    assert re.search(rf"{SMALL_MODEL} +v7 +2 +0 .* {prompt:,} +{completion:,} +\$\d\.\d+ +0", tables)
    assert board.went_out == len(server.requests) == 2

    chosen = closing.choose_trace(spans)
    assert len(chosen) == len(spans)
    tree = shown(closing.trace_tree(chosen))
    assert tree.count("chat gpt-4o-mini") == 2
    assert "invoke_workflow facts v7" in tree
    assert "execute_tool search_passages" in tree
    assert "reply unreadable for ChatAdapter" in tree
    for bill in server.bills:
        assert f"{bill.prompt_tokens:,} → {bill.completion_tokens:,} tokens" in tree
    quoted = closing.quote_content(spans)
    assert quoted is not None
    assert quoted.startswith("Ana Silva, <EMAIL>")
    assert "555" not in quoted


# --- the whole run ---------------------------------------------------------------------------------------------------


@pytest.mark.e2e
def test_demo_runs_from_anywhere_and_leaves_nothing(tmp_path: Path) -> None:
    """Started as users do, in a foreign folder, it agrees with the bill, shows failures and retries, leaves no file.

    Nothing that a user signed with is shown but in the one line that says how they signed.
    """
    place, scratch = tmp_path / "place", tmp_path / "scratch"
    place.mkdir()
    scratch.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "OPENAI_"))}
    done = subprocess.run(
        [sys.executable, "-m", "dspy_observe.demo", "--only", "observe", "--plain", "--pace", "0.05", "--users", "4",
         "--questions", "20"],
        cwd=place, env={**environment, "TMPDIR": str(scratch)}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"bill: [\d,]+ prompt / [\d,]+ completion tokens; observed: same \(/metrics, spans, logs\)",
                     done.stdout)  # fmt: skip
    figures = re.search(r"(\d+) requests for (\d+) LM calls: .*; (\d+) were retries, (\d+) calls", done.stdout)
    assert figures is not None
    sent, needed, retried, failed = map(int, figures.groups())
    assert sent - needed == retried > 0 < failed
    assert re.search(r"in the spans: +\w+ \w+, <EMAIL>, <PHONE>", done.stdout)
    assert [line for line in done.stdout.splitlines() if "@example" in line and "signed by a user:" not in line] == []
    assert "dspy_requests_total{" in done.stdout
    assert '"event": "dspy.lm_call"' in done.stdout
    assert "invoke_agent" in done.stdout
    assert "observed: DIFFERENT" not in done.stdout
    assert list(place.iterdir()) == []
    assert [entry.name for entry in scratch.iterdir() if entry.name.startswith("dspy-observe")] == []


@pytest.mark.e2e
@pytest.mark.slow
def test_demo_asks_the_real_provider_when_a_key_is_set(tmp_path: Path) -> None:
    """With ``OPENAI_API_KEY`` nothing of the demo's own answers: the requests, and the key, go to OpenAI's address.

    That address is another server here, through the variable that DSPy's LiteLLM route honours; it keeps the bill.
    """
    with OpenAIServer(StandIn(pace=0)) as provider:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "OPENAI_"))}
        environment |= {"OPENAI_API_KEY": "sk-of-the-user", "OPENAI_API_BASE": provider.base_url}
        done = subprocess.run(
            [sys.executable, "-m", "dspy_observe.demo", "--only", "observe", "--plain", "--users", "2",
             "--questions", "2"],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        billed = sum(bill.prompt_tokens for bill in provider.bills)
        chats = [request for request in provider.requests if request.path == "/v1/chat/completions"]
    assert chats
    assert {request.headers["authorization"] for request in chats} == {"Bearer sk-of-the-user"}
    assert f"bill: the provider's own; /metrics: {billed:,} prompt" in done.stdout
    assert "sk-of-the-user" not in done.stdout + done.stderr


@pytest.mark.e2e
def test_demo_fails_when_the_totals_miss_the_bill(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A provider that bills without saying how much leaves less observed than billed: exit code 1, and both figures."""

    class Silent(StandIn):
        def __call__(self, request: ChatRequest) -> Reply | Failure:
            outcome = super().__call__(request)
            return replace(outcome, report_usage=False) if isinstance(outcome, Reply) else outcome

    monkeypatch.setattr(run, "StandIn", Silent)
    assert run.main([*QUICK, "--users", "1", "--questions", "2"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "observed: DIFFERENT (/metrics 0 / 0; spans 0 / 0; logs 0 / 0)" in said
    assert re.search(rf"{SMALL_MODEL} v1 2 0 [\d.]+ [\d.]+ 0\+ 0\+ \$0\.0000\+ 0", said), "more is owed than is known"


@pytest.mark.e2e
def test_demo_stops_asking_at_the_limit_and_puts_dspy_back(capsys: pytest.CaptureFixture[str]) -> None:
    """With no time nobody asks; afterwards DSPy has the cache, the model and the callbacks of before."""
    before = (dspy.cache, dspy.settings.lm, list(dspy.settings.callbacks or ()))
    assert run.main([*QUICK, "--seconds-limit", "0"]) == 0
    assert "bill: 0 prompt / 0 completion tokens; observed: same" in capsys.readouterr().out
    assert (dspy.cache, dspy.settings.lm, list(dspy.settings.callbacks or ())) == before


@pytest.mark.parametrize("users", ["0", "-1", "x"])
def test_demo_refuses_a_number_that_cannot_be(users: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong number is refused by the command line, by name."""
    with pytest.raises(SystemExit) as refusal:
        run.main(["--users", users])
    assert refusal.value.code == 2
    assert f"--users: '{users}' is not a whole number of 1 or more" in capsys.readouterr().err


def test_wheel_holds_the_examples() -> None:
    """The build packs the folder where the installed package looks for it."""
    import tomllib

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    packed = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert packed["examples"] == "dspy_observe/examples"
