"""The users: half of them are threads, half tasks of one event loop, and they ask until they have no more questions."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from dspy.utils.exceptions import DSPyError

from dspy_observe.config import Observer
from dspy_observe.demo.program import Question, load_program

__all__ = ["PEOPLE", "Crowd", "signature"]

PEOPLE: Final = (
    ("Ana Silva", "ana.silva@example.org", "+1 202-555-0143"),
    ("Ben Okafor", "ben.okafor@example.com", "+44 20 7946 0958"),
    ("Chloe Martin", "chloe.martin@example.net", "+1 (202) 555-0171"),
    ("Dmitri Petrov", "d.petrov@example.org", "+44 20 7946 0321"),
    ("Emi Tanaka", "emi@example.com", "+1 202-555-0118"),
    ("Farid Haddad", "farid.haddad@example.net", "+44 20 7946 0105"),
)
"""Nobody: names of no one, domains and numbers set aside for examples (RFC 2606; Ofcom's and the NANP's for drama)."""
_SIGNED_SHARE: Final = 0.35
"""How many of the questions carry a signature; the others may be answered by the cache when somebody else asks them."""


def signature(user: int) -> str:
    """How a user signs, with an e-mail address and a phone number."""
    name, address, phone = PEOPLE[user % len(PEOPLE)]
    return f"{name}, {address}, {phone}"


@dataclass(slots=True)
class Crowd:
    """Several users of the tracked programs.

    Args:
        programs: Versions of the program; users are spread over them.
        questions: What they ask from.
        observer: Where their verdicts go.
        users: How many, at least 1.
        each: Questions of each user, at least 1.
        seed: Who asks what in which order.
        deadline: When nobody asks any more, by ``time.monotonic()``.
    """

    programs: Sequence[Any]
    questions: Sequence[Question]
    observer: Observer
    users: int
    each: int
    seed: int
    deadline: float

    def start(self) -> tuple[list[Future[None]], Callable[[], None]]:
        """Let them ask.

        Returns:
            One future for the event loop and one for each thread, and a function that lets nobody ask any more and
            waits for the answers under way.
        """
        stopped = threading.Event()
        in_threads = list(range(0, self.users, 2))
        pool = ThreadPoolExecutor(len(in_threads) + 1, thread_name_prefix="demo user")
        futures = [pool.submit(self._ask_in_thread, user, stopped) for user in in_threads]
        futures.append(pool.submit(asyncio.run, self._ask_in_loop(stopped)))

        def stop() -> None:
            stopped.set()
            pool.shutdown()

        return futures, stop

    def _ask_in_thread(self, user: int, stopped: threading.Event) -> None:
        program = self._program_of(user)
        for question, asked_by in self._questions_of(user):
            if self._over(stopped):
                return
            try:
                prediction = program(question=question.text, asked_by=asked_by)
            except DSPyError:
                continue  # the user gives up on this question; the records say why it failed
            self._judge(prediction, question)

    async def _ask_in_loop(self, stopped: threading.Event) -> None:
        await asyncio.gather(*(self._ask_in_task(user, stopped) for user in range(1, self.users, 2)))

    async def _ask_in_task(self, user: int, stopped: threading.Event) -> None:
        program = self._program_of(user)
        for question, asked_by in self._questions_of(user):
            if self._over(stopped):
                return
            try:
                prediction = await program.acall(question=question.text, asked_by=asked_by)
            except DSPyError:
                continue
            self._judge(prediction, question)

    def _over(self, stopped: threading.Event) -> bool:
        return stopped.is_set() or time.monotonic() >= self.deadline

    def _program_of(self, user: int) -> Any:
        # Every version is asked by threads and by tasks, and by as many of both as there are.
        return self.programs[(user + user // 2) % len(self.programs)]

    def _questions_of(self, user: int) -> Iterator[tuple[Question, str]]:
        luck = random.Random(f"{self.seed} {user}")  # noqa: S311 - no secret
        asked: list[Question] = []
        while len(asked) < self.each:
            asked += luck.sample(self.questions, len(self.questions))
        for question in asked[: self.each]:
            yield question, signature(user) if luck.random() < _SIGNED_SHARE else ""

    def _judge(self, prediction: Any, question: Question) -> None:
        good = load_program().agrees(prediction.answer, question.reference)
        self.observer.score(prediction, float(good), source="reference")
