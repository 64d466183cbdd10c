"""Tokens of each user: who uses most, who is over budget, and refusing before the next call.

    budgets = UserBudgets(200_000, window_s=86_400)
    dspy_observe.configure(extra=[budgets])

    with budgets.user(request.user_id, enforce=True):  # raises BudgetExceededError for those over their budget
        prediction = program(question=request.question)

What you get
    Every record, span and log line inside the block carries a pseudonym of the user (``user``, ``enduser.pseudo.id``),
    never the id itself. ``remaining`` and ``check`` answer the application, ``guard`` refuses single LM calls.
Metrics
    ``dspy_user_tokens_max`` (the heaviest user of each program) and ``dspy_user_budget_exceeded_total``. Users are no
    labels: there would be as many series as users. Who it is stands in the log lines ``dspy.top_users`` and
    ``dspy.user_over_budget`` of the logger ``dspy_observe.budgets``, and on the spans.
Where the user is known
    In threads and tasks that DSPy starts (``Parallel``, ``Evaluate``, ``batch``, ``asyncify``, ``streamify``) and in
    tasks and threads that copy their context. A thread pool of your own has to enter the block in its threads.
What is counted
    Tokens that the provider reported and billed. Calls under way are not counted yet, so a user may go over the budget
    by what runs at once. Each process counts for itself, from its start on: with four workers give each a quarter.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from dspy_observe.conventions import LOG_TOP_USERS, LOG_USER_OVER_BUDGET, MAX_LABEL_VALUES, OVERFLOW_LABEL
from dspy_observe.environment import variables
from dspy_observe.errors import ConfigurationError, ObserveError
from dspy_observe.facts.users import acting_for, current_user
from dspy_observe.metrics import Metrics, instruments
from dspy_observe.readers import Reader
from dspy_observe.records import CallRecord
from dspy_observe.serving.windows import SlidingTotals

if TYPE_CHECKING:
    import dspy

__all__ = ["BudgetExceededError", "TopUser", "UserBudgets"]

KEY_VARIABLE: Final = "DSPY_OBSERVE_USER_KEY"
_PSEUDONYM_DIGITS: Final = 16  # 64 bits: a million users share none
_PLACES_A_PROGRAM: Final = 1_000  # only the heaviest is asked for
_MEASURE_EVERY_S: Final = 15.0

_logger = logging.getLogger("dspy_observe.budgets")


class BudgetExceededError(ObserveError):
    """A user has used up the tokens of the window; nothing was sent.

    Attributes:
        user: The pseudonym.
        used_tokens: Within the window.
        limit_tokens: The budget.
        retry_after_s: Seconds until the next call is let through.
    """

    def __init__(self, user: str, used_tokens: int, limit_tokens: int, retry_after_s: float) -> None:
        super().__init__(
            f"user {user} has used {used_tokens} of {limit_tokens} tokens; next call in {retry_after_s:.0f} s"
        )
        self.user = user
        self.used_tokens = used_tokens
        self.limit_tokens = limit_tokens
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class TopUser:
    """One of the heaviest users."""

    user: str
    """The pseudonym."""
    tokens: int
    """Within the window, at least."""
    over_budget: bool


class UserBudgets(Reader):
    """Count tokens by user and compare them with a budget.

    Args:
        limit_tokens: Tokens, prompt and completion together, that each user has within the window; at least 1.
        window_s: Seconds of the sliding window, above 0. What is older leaves it in twelfths.
        key: Secret of the pseudonyms, at least 16 bytes; the same key gives the same ones. ``None`` takes
            ``DSPY_OBSERVE_USER_KEY``, else a random one of this process.
        max_users: Users remembered at once. Beyond it the lightest are forgotten; totals may then be too low, never
            too high.
        top: How many users the log line names; 0 writes none.
        log_every_s: Seconds between two such lines.
        metrics: Registry and label ceiling; ``None`` takes the defaults and the environment.
        now: Unix time in seconds.

    Raises:
        ConfigurationError: An argument cannot work.
    """

    kinds = frozenset({"lm"})

    def __init__(
        self,
        limit_tokens: int,
        *,
        window_s: float = 86_400.0,
        key: str | bytes | None = None,
        max_users: int = 10_000,
        top: int = 5,
        log_every_s: float = 300.0,
        metrics: Metrics | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        _check(limit_tokens, window_s, max_users, top)
        self.limit_tokens = limit_tokens
        self.window_s = window_s
        self._key = _key(key)
        self._top = top
        self._log_every_s = log_every_s
        self._log_at = -math.inf
        self._now = now
        self._lock = threading.Lock()
        self._users = SlidingTotals(window_s, max_users)
        self._programs: dict[str, SlidingTotals] = {}
        own = instruments(metrics)
        self._multiprocess = own.multiprocess
        self._measure_at = -math.inf
        self._heaviest = own["dspy_user_tokens_max"]
        self._exceeded = own["dspy_user_budget_exceeded_total"]

    # --- for the application -----------------------------------------------------------------------------------------

    def pseudonym(self, user: str) -> str:
        """What records, spans and log lines say of a user: 16 hexadecimal digits, of no use without the key.

        Args:
            user: The application's id of the user.

        Raises:
            ConfigurationError: It is no text, or empty.
        """
        if not isinstance(user, str) or not user:
            raise ConfigurationError("user", f"a {type(user).__name__} names nobody", "Give the user's id as a text")
        raw = user.encode("utf-8", "surrogatepass")  # an id may come from bytes that were no text
        return hmac.new(self._key, raw, hashlib.sha256).hexdigest()[:_PSEUDONYM_DIGITS]

    @contextmanager
    def user(self, user: str, *, enforce: bool = False) -> Iterator[str]:
        """Book all LM calls inside the block on a user.

        Args:
            user: The application's id of the user.
            enforce: Refuse the block to a user who is over budget.

        Yields:
            The pseudonym.

        Raises:
            BudgetExceededError: ``enforce`` is on and nothing remains.
            ConfigurationError: ``user`` is no text, or empty.
        """
        pseudonym = self.pseudonym(user)
        if enforce:
            self._refuse_if_spent(pseudonym)
        with acting_for(pseudonym):
            yield pseudonym

    def used(self, user: str | None = None) -> int:
        """Tokens of a user within the window.

        Args:
            user: The application's id; ``None`` is the user of the surrounding block, without whom it is 0.
        """
        pseudonym = self.pseudonym(user) if user is not None else current_user()
        if pseudonym is None:
            return 0
        with self._lock:
            return self._users.total(pseudonym, self._now())

    def remaining(self, user: str | None = None) -> int:
        """Tokens that a user has left, at least 0; see :meth:`used`."""
        return max(0, self.limit_tokens - self.used(user))

    def check(self, user: str | None = None) -> None:
        """Refuse a user who has nothing left; see :meth:`used`.

        Raises:
            BudgetExceededError: The budget is spent.
        """
        pseudonym = self.pseudonym(user) if user is not None else current_user()
        if pseudonym is not None:
            self._refuse_if_spent(pseudonym)

    def guard(self, lm: dspy.BaseLM) -> dspy.BaseLM:
        """An LM that refuses calls of users who are over budget before anything is sent.

        An agent that goes on for many steps is so stopped in the middle. Calls without a user are let through.

        Args:
            lm: The LM that answers.
        """
        from dspy_observe.serving.guard import GuardedLM

        return GuardedLM(lm, self)

    def top_users(self, count: int = 5) -> list[TopUser]:
        """The heaviest users within the window, heaviest first."""
        with self._lock:
            found = self._users.top(count, self._now())
        return [TopUser(user, tokens, tokens >= self.limit_tokens) for user, tokens in found]

    # --- as a reader of records --------------------------------------------------------------------------------------

    def finished(self, record: CallRecord) -> None:
        """Book the tokens of one LM call."""
        if record.user is None:
            return
        usage, now = record.usage, self._now()
        tokens = (usage.prompt or 0) + (usage.completion or 0) if usage is not None else 0
        with self._lock:
            program, totals, is_new = self._program(record.program)
            total = self._users.add(record.user, tokens, now)
            totals.add(record.user, tokens, now)
        exceeded = self._exceeded.child(program)  # from its first call on, so that the first excess is an increase
        if is_new and not self._multiprocess:
            self._heaviest.child(program).set_function(lambda: self._most(totals))
        if total - tokens < self.limit_tokens <= total:
            exceeded.inc()
            self._log(logging.WARNING, LOG_USER_OVER_BUDGET, user=record.user, tokens=total, program=program)
        self._report(now)

    def _program(self, name: str | None) -> tuple[str | None, SlidingTotals, bool]:
        key = name or ""
        found = self._programs.get(key)
        if found is None and len(self._programs) >= MAX_LABEL_VALUES:
            key = name = OVERFLOW_LABEL
            found = self._programs.get(key)
        if found is not None:
            return name, found, False
        made = self._programs[key] = SlidingTotals(self.window_s, _PLACES_A_PROGRAM)
        return name, made, True

    def _most(self, totals: SlidingTotals) -> float:
        with self._lock:
            return float(totals.most(self._now()))

    def _report(self, now: float) -> None:
        if self._multiprocess and now >= self._measure_at:
            self._measure_at = now + _MEASURE_EVERY_S
            for program, totals in list(self._programs.items()):
                self._heaviest.child(program or None).set(self._most(totals))
        if self._top and now >= self._log_at and _logger.isEnabledFor(logging.INFO):
            self._log_at = now + self._log_every_s
            self._log(logging.INFO, LOG_TOP_USERS, users=[asdict(top) for top in self.top_users(self._top)])

    def _log(self, level: int, event: str, **fields: Any) -> None:
        figures = {"event": event, "limit_tokens": self.limit_tokens, "window_s": self.window_s, **fields}
        _logger.log(level, json.dumps(figures))

    def _refuse_if_spent(self, pseudonym: str) -> None:
        now = self._now()
        with self._lock:
            used = self._users.total(pseudonym, now)
            if used < self.limit_tokens:
                return
            wait_s = self._users.seconds_until_below(pseudonym, self.limit_tokens, now)
        raise BudgetExceededError(pseudonym, used, self.limit_tokens, wait_s)

    def __deepcopy__(self, memo: dict[int, Any]) -> UserBudgets:
        return self  # optimizers copy LMs; what their copies use is the same user's


def _check(limit_tokens: int, window_s: float, max_users: int, top: int) -> None:
    for name, value, least in (("limit_tokens", limit_tokens, 1), ("max_users", max_users, 1), ("top", top, 0)):
        if type(value) is not int or value < least:
            raise ConfigurationError(f"UserBudgets.{name}", f"{value!r} is below {least}", f"Use {least} or more")
    number = isinstance(window_s, int | float) and not isinstance(window_s, bool)
    if not number or not math.isfinite(window_s) or window_s <= 0:
        raise ConfigurationError("UserBudgets.window_s", f"{window_s!r} is no duration", "Give seconds above 0")


def _key(given: str | bytes | None) -> bytes:
    if given is None:
        given = variables().get(KEY_VARIABLE) or secrets.token_bytes(32)
    key = given.encode() if isinstance(given, str) else given
    if not isinstance(key, bytes) or len(key) < _PSEUDONYM_DIGITS:
        raise ConfigurationError("UserBudgets.key", "it is shorter than 16 bytes", "Use secrets.token_hex(32)")
    return key
