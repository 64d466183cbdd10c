"""Answer thousands of questions within a budget of dollars; stop when it is spent, go on where it stopped.

    python examples/batch_job.py --budget 0.05

What it shows
    ``Module.batch`` over a file of questions in several threads, a progress bar with what was spent, and a budget that
    is kept to the cent: a question is begun only if the dearest question so far would still fit, for it and for all
    that are under way. Each answer is in the file before the next question begins; run the command again, with a larger
    budget or tomorrow, and it goes on with what is left. Failed questions are left for the next run too.
What it needs
    ``pip install dspy-observe``. Without ``OPENAI_API_KEY`` a stand-in for the model answers on 127.0.0.1, with real
    bills and real failures (429, 500, replies out of format); with the key, ``openai/gpt-4o-mini`` is asked.
Options
    ``--questions FILE`` and ``--answers FILE`` (JSON Lines), ``--count N`` (of the made-up questions, when there is no
    file), ``--threads N``, ``--metrics-port P`` to watch it in Grafana.
Exit code
    0 all answered · 1 some failed, run it again · 3 the budget is spent, run it again with more · 130 interrupted
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dspy
from question_answering import DATA, Passages, QuestionAnswering, read_rows
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import dspy_observe
from dspy_observe import CallRecord, RecordCallback
from dspy_observe.demo.model import StandIn
from dspy_observe.openai_server import OpenAIServer

MODEL = "openai/gpt-4o-mini"
USERS = ("Anna", "Bert", "Carla", "Dieter", "Emma", "Farid", "Greta", "Hugo")


class Budget(RecordCallback):
    """Dollars that may be spent, by the records of the calls that spend them.

    Args:
        limit_usd: The budget.
    """

    kinds = frozenset({"lm", "module"})

    def __init__(self, limit_usd: float) -> None:
        self.limit_usd = limit_usd
        self.spent_usd = 0.0
        self.unpriced: str | None = None
        self._dearest_usd = 0.0
        self._under_way = 0
        self._by_run: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    def admits(self) -> bool:
        """Whether one more question may begin; if so, it counts as under way until :meth:`done`."""
        with self._lock:
            expected = self.spent_usd + (self._under_way + 1) * self._dearest_usd
            if self.unpriced or self.spent_usd >= self.limit_usd or expected > self.limit_usd:
                return False
            self._under_way += 1
            return True

    def done(self) -> None:
        """A question that was begun has ended."""
        with self._lock:
            self._under_way -= 1

    def finished(self, record: CallRecord) -> None:
        """Book what one call cost."""
        with self._lock:
            if record.kind == "lm":
                if record.cost_usd is None and record.outcome == "ok":
                    self.unpriced = record.model_requested  # a price that is not known is not a price of nothing
                self.spent_usd += record.cost_usd or 0.0
                self._by_run[record.root_id] += record.cost_usd or 0.0
            elif record.parent_id is None:
                self._dearest_usd = max(self._dearest_usd, self._by_run.pop(record.call_id, 0.0))


class Answers:
    """A file of answers that grows by whole lines, whatever happens to the process.

    Args:
        path: The file; one that exists is gone on with.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file = path.open("ab+")
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        self._file.truncate(whole)  # a line that was cut off is a question that was not answered
        self.keys = {json.loads(line)["key"] for line in content[:whole].splitlines()}

    def add(self, row: dict[str, Any]) -> None:
        """Write one answer to the file, past this process' memory; one that is there already is left alone."""
        with self._lock:
            if row["key"] in self.keys:
                return
            self.keys.add(row["key"])
            self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            self._file.flush()  # it outlives the process now; fsync, for a power cut, waits for close()

    def close(self) -> None:
        """See all to the disk."""
        os.fsync(self._file.fileno())
        self._file.close()


class Job(dspy.Module):
    """Answers one question, if the budget admits it, and keeps the answer."""

    def __init__(self, budget: Budget, answers: Answers) -> None:
        super().__init__()
        self.program = QuestionAnswering(Passages.load(), agent=False)
        self._budget = budget
        self._answers = answers

    def forward(self, key: str, question: str, asked_by: str) -> dspy.Prediction:
        """The answer; ``None`` for a question that was not begun."""
        if not self._budget.admits():
            return dspy.Prediction(answer=None)
        try:
            found = self.program(question=question, asked_by=asked_by)
            self._answers.add({"key": key, "question": question, "answer": found.answer, "found": found.found})
        finally:
            self._budget.done()
        return dspy.Prediction(answer=found.answer)


def questions_of(arguments: argparse.Namespace) -> list[dspy.Example]:
    """The questions that are to be answered, each once, under a key that does not depend on their order."""
    if arguments.questions is not None:
        rows = [(row["question"], row.get("asked_by", "")) for row in read_rows(arguments.questions)]
    else:
        known = read_rows(DATA / "questions.jsonl")
        rows = [
            (known[number % len(known)]["question"], f"{USERS[number % len(USERS)]} {number // len(known)}")
            for number in range(arguments.count)
        ]
    return [
        dspy.Example(key=hashlib.sha256(f"{who}\n{text}".encode()).hexdigest()[:16], question=text, asked_by=who)
        .with_inputs("key", "question", "asked_by")
        for text, who in dict.fromkeys(rows)
    ]  # fmt: skip


@contextmanager
def model() -> Iterator[dspy.LM]:
    """OpenAI's where there is a key, else the stand-in."""
    if os.environ.get("OPENAI_API_KEY"):
        yield dspy.LM(MODEL, num_retries=2, cache=False)
        return
    with OpenAIServer(StandIn(pace=0)) as server:
        lm = dspy.LM(MODEL, api_base=server.base_url, api_key="none", num_retries=2, cache=False)
        yield lm
        lm.close()


@contextmanager
def progress_of(budget: Budget, answers: Answers, total: int) -> Iterator[None]:
    """A bar on a terminal that shows answers and dollars."""
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[spent]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("answers", total=total, completed=len(answers.keys), spent="")
        stop = threading.Event()

        def show() -> None:
            while not stop.wait(0.2):
                spent = f"${budget.spent_usd:.4f} of ${budget.limit_usd:.4f}"
                bar.update(task, completed=len(answers.keys), spent=spent)

        thread = threading.Thread(target=show)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def run(arguments: argparse.Namespace, budget: Budget, answers: Answers) -> int:
    """Answer what is left and tell how it ended; returns the exit code."""
    questions = questions_of(arguments)
    left = [question for question in questions if question.key not in answers.keys]
    before = len(questions) - len(left)
    job = Job(budget, answers)
    with progress_of(budget, answers, len(questions)):
        # Failures are for the next run, however many; a slow question is not asked twice.
        results, failed, _ = job.batch(
            left, num_threads=arguments.threads, max_errors=len(left) + 1, return_failed_examples=True, timeout=0,
            disable_progress_bar=True,
        ) if left else ([], [], [])  # fmt: skip
    answered = sum(result is not None and result.answer is not None for result in results)
    not_begun = len(left) - answered - len(failed)
    print(f"{before} answered before, {answered} now, {len(failed)} failed, {not_begun} not begun")
    print(f"${budget.spent_usd:.6f} of ${budget.limit_usd:.6f} spent; the answers are in {answers.path}")
    if budget.unpriced:
        print(f"no price is known for {budget.unpriced}, so no budget can be kept", file=sys.stderr)
        return 1
    if not_begun:
        print("The budget is spent. Run it again with more to go on.")
        return 3
    return 1 if failed else 0


def main() -> None:
    """Run the job of the command line."""
    parser = argparse.ArgumentParser(description="Answer many questions within a budget; run again to go on.")
    parser.add_argument("--budget", type=float, default=0.05, help="US dollars of this run")
    parser.add_argument("--questions", type=Path, help="JSON Lines with question and, if you like, asked_by")
    parser.add_argument("--answers", type=Path, default=Path("answers.jsonl"), help="where the answers go")
    parser.add_argument("--count", type=int, default=2000, help="questions to make up when there is no file")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--metrics-port", type=int, help="serve Prometheus metrics here meanwhile")
    arguments = parser.parse_args()
    logging.getLogger("dspy").setLevel(logging.CRITICAL)  # failures are counted below
    budget, answers = Budget(arguments.budget), Answers(arguments.answers)
    metrics = dspy_observe.Metrics(port=arguments.metrics_port)
    try:
        with model() as lm, dspy_observe.configure(metrics=metrics, logs=False, extra=[budget]):
            dspy.configure(lm=lm)
            code = run(arguments, budget, answers)
    except KeyboardInterrupt:
        print(f"\nInterrupted; {len(answers.keys)} answers are in {answers.path}, and those under way.")
        print("Run it again to go on.")
        code = 130
    finally:
        answers.close()
    sys.exit(code)


if __name__ == "__main__":
    main()
