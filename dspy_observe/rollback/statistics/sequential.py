"""Evidence that grows while scores arrive, and may be looked at after each of them.

Two tests bet on the same payoffs. The *e-process* multiplies what it staked from the first score on: while nothing got
worse its expectation stays at most 1, so the chance that it ever reaches ``1/alpha`` is at most ``alpha`` (Ville). The
*Shiryaev-Roberts sum* begins a new bet before every score, so that it is quick when a version gets worse late; its
expectation grows by at most 1 with each score, so within ``horizon`` scores it passes ``horizon/alpha`` with a chance
of at most ``alpha``, and as seldom in each further horizon. :class:`Levels` halves alpha between them.

Sources: Waudby-Smith and Ramdas, https://arxiv.org/abs/2010.09686 (betting);
Shin, Ramdas and Rinaldo, https://arxiv.org/abs/2203.03532 (e-detectors).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from dspy_observe.errors import ConfigurationError

__all__ = ["TIE", "Bets", "Levels", "OneArm", "TwoArms"]

TIE: Final = 1e-9
"""Evidence closer than this to a threshold, in natural logarithms, has reached it, whatever binary fractions say."""
STAKES: Final = (0.01, 0.02, 0.05, 0.12, 0.3, 0.8)
"""Parts of the wealth that are staked, side by side. For scores of 0 and 1 the best stake is the relative drop, so
these are made for drops from 1 % to 80 %."""
ARM_STAKES: Final = (0.05, 0.1, 0.2, 0.4, 0.8)
"""The same for the difference of two arms."""
LATE_SHARE: Final = 0.5
"""Part of alpha that the Shiryaev-Roberts sum gets."""
ARMS_LATE_SHARE: Final = 0.2
"""The same for two arms, which are mostly compared from the beginning of an experiment."""
LEAST_ROOM: Final = 0.01
"""A baseline closer to 1 is treated as this far from it, so that one lower score alone proves nothing."""
MOST_WAITING: Final = 64
"""Scores of one arm that wait for a partner in the other; older ones are given up."""
_SLACK: Final = 4
_LARGE: Final = 36.0
"""Beyond this ``log(1 + exp(x))`` is ``x`` in double precision."""


@dataclass(frozen=True, slots=True)
class Levels:
    """How often a false verdict may happen.

    Raises:
        ConfigurationError: A number cannot work.
    """

    alpha: float = 0.01
    """Chance of a false verdict within ``horizon`` scores, over 0 and below 0.5."""
    horizon: int = 10_000
    """Scores, at least 1."""

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 0.5:  # noqa: PLR2004 - a coin is no test; NaN fails here, too
            raise ConfigurationError("alpha", f"{self.alpha!r} is no level", "Use a number over 0 and below 0.5")
        if type(self.horizon) is not int or self.horizon < 1:
            raise ConfigurationError("horizon", f"{self.horizon!r} is no number of scores", "Use 1 or more")

    def split(self, parts: int) -> Levels:
        """The level of one of several tests that together keep this one (Bonferroni)."""
        return Levels(self.alpha / max(parts, 1), self.horizon)


class Bets:
    """Both tests on one stream of payoffs, whose mean is at most 0 while nothing got worse.

    Args:
        rates: What is staked on each payoff, side by side; ``rate * payoff > -1`` for every possible payoff.
        late_rates: The same for the Shiryaev-Roberts sum; ``None`` takes ``rates``.
        late_margin: Taken off each payoff in that sum, so that it asks for a drop of more than this.
    """

    __slots__ = ("_late_margin", "_late_rates", "_rates", "sums", "wealth")

    def __init__(
        self, rates: Sequence[float], late_rates: Sequence[float] | None = None, late_margin: float = 0.0
    ) -> None:
        self._rates = tuple(rates)
        self._late_rates = self._rates if late_rates is None else tuple(late_rates)
        self._late_margin = late_margin
        self.wealth = [0.0] * len(self._rates)
        """Logarithm of the wealth of each stake."""
        self.sums = [0.0] * len(self._rates)
        """Logarithm of one more than the Shiryaev-Roberts sum of each stake."""

    def add(self, payoff: float) -> None:
        """Bet on one payoff."""
        wealth, sums, late = self.wealth, self.sums, payoff - self._late_margin
        same = self._late_margin == 0
        for place, rate in enumerate(self._rates):
            growth = math.log1p(rate * payoff)
            wealth[place] += growth
            if not same:
                growth = math.log1p(self._late_rates[place] * late)
            total = sums[place] + growth
            sums[place] = total if total > _LARGE else math.log1p(math.exp(total))

    @property
    def log_e(self) -> float:
        """Natural logarithm of the e-process."""
        return _log_mean(self.wealth)

    def log_late(self, horizon: float) -> float:
        """Natural logarithm of the Shiryaev-Roberts sum over the horizon: as evidence on the e-process' scale."""
        return _log_mean(self.sums) - math.log(horizon)

    def margin_of(self, alpha: float, horizon: float, late_share: float) -> float:
        """How far evidence is beyond what the level asks for, in natural logarithms; negative while it is not there.

        Args:
            alpha: The level of both tests together.
            horizon: Payoffs within which the late test keeps its part of it.
            late_share: That part, over 0 and below 1.
        """
        return max(
            self.log_e + math.log(alpha * (1 - late_share)), self.log_late(horizon) + math.log(alpha * late_share)
        )

    def to_dict(self) -> dict[str, Any]:
        """What was won so far; plain and of constant size."""
        return {"wealth": self.wealth.copy(), "sums": self.sums.copy()}

    def restore(self, state: Mapping[str, Any]) -> Self:
        """Go on from :meth:`to_dict` of bets with the same rates.

        Raises:
            ValueError: It is no such state.
        """
        self.wealth, self.sums = _numbers(state, "wealth", self._rates), _numbers(state, "sums", self._rates)
        return self


class OneArm:
    """One version against the least mean that its predecessor may have had.

    Args:
        floor: From 0 to 1; scores with at least this mean are no regression.
        margin: How much lower a late drop has to be before the Shiryaev-Roberts sum cares, in units of the score; keeps
            it quiet over a daily rhythm of that size.
    """

    __slots__ = ("bets", "floor", "margin", "n")

    def __init__(self, floor: float, margin: float = 0.0) -> None:
        self.floor = floor
        self.margin = margin
        room, late_room = max(1 - floor, LEAST_ROOM), max(1 - floor + margin, LEAST_ROOM)
        late = None if margin == 0 else [stake / late_room for stake in STAKES]
        self.bets = Bets([stake / room for stake in STAKES], late, margin)
        self.n = 0
        """Scores that were bet on."""

    def add(self, score: float) -> None:
        """Bet on one score from 0 to 1."""
        self.n += 1
        self.bets.add(self.floor - score)

    def add_total(self, n: int, total: float) -> None:
        """Bet on ``n`` scores of which only the total is known.

        They are taken as the ones and zeros with this total. Of all scores from 0 to 1 these give the least evidence
        of a drop, so that the test stays valid.
        """
        ones, rest = divmod(total, 1.0)
        scores = [1.0] * int(ones) + ([rest] if rest > 0 and ones < n else [])
        scores += [0.0] * (n - len(scores))
        # Evenly among each other: a block of zeros would look like an outage to the Shiryaev-Roberts sum.
        for index in _spread(n, n - int(ones)):
            self.add(scores[index])

    def beyond(self, levels: Levels) -> float:
        """How far the evidence is beyond what the levels ask for; from ``-TIE`` on the version regressed."""
        return self.bets.margin_of(levels.alpha, levels.horizon, LATE_SHARE)

    def to_dict(self) -> dict[str, Any]:
        """The state; plain and of constant size."""
        return {"floor": self.floor, "margin": self.margin, "n": self.n, **self.bets.to_dict()}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """The arm that :meth:`to_dict` wrote.

        Raises:
            ValueError, KeyError: It is no such state.
        """
        made = cls(float(state["floor"]), float(state["margin"]))
        made.bets.restore(state)
        made.n = int(state["n"])
        return made


class TwoArms:
    """One version against another that answers other users at the same time; what hits both cancels out.

    Scores are put in pairs as they arrive; where one arm gets more of them, several together make a partner. The
    payoff of a pair is the control's mean minus the suspect's.
    """

    __slots__ = ("_waiting", "_waiting_suspect", "bets", "n", "reverse")

    def __init__(self) -> None:
        self.bets = Bets(ARM_STAKES)
        self.reverse = Bets(ARM_STAKES)
        """The same bets on the control being the worse one."""
        self.n = [0, 0]
        """Scores of the control and of the suspect."""
        self._waiting: list[float] = []
        self._waiting_suspect = False

    def add(self, score: float, *, suspect: bool) -> None:
        """Take in one score from 0 to 1 of one arm."""
        self.n[suspect] += 1
        waiting = self._waiting
        if not waiting or self._waiting_suspect == suspect:
            self._waiting_suspect = suspect
            waiting.append(score)
            if len(waiting) > MOST_WAITING:
                del waiting[0]
            return
        # How many make a partner depends on how many came, never on what they were.
        share = max(1, round(self.n[not suspect] / self.n[suspect]))
        taken = min(len(waiting), max(share, len(waiting) - _SLACK))
        other = sum(waiting[:taken]) / taken
        del waiting[:taken]
        payoff = other - score if suspect else score - other
        self.bets.add(payoff)
        self.reverse.add(-payoff)

    def beyond(self, levels: Levels, *, reverse: bool = False) -> float:
        """How far the evidence is beyond what the levels ask for; from ``-TIE`` on the suspect is worse.

        Args:
            levels: Of one metric.
            reverse: Ask whether the control is worse.
        """
        bets = self.reverse if reverse else self.bets
        return bets.margin_of(levels.alpha, max(levels.horizon / 2, 1.0), ARMS_LATE_SHARE)

    def log_evidence(self, levels: Levels) -> float:
        """Natural logarithm of the stronger evidence of the two tests."""
        return max(self.bets.log_e, self.bets.log_late(max(levels.horizon / 2, 1.0)))

    def to_dict(self) -> dict[str, Any]:
        """The state; plain and of bounded size."""
        return {
            "n": self.n.copy(), "waiting": self._waiting.copy(), "waiting_suspect": self._waiting_suspect,
            "reverse": self.reverse.to_dict(), **self.bets.to_dict(),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """The arms that :meth:`to_dict` wrote.

        Raises:
            ValueError, KeyError: It is no such state.
        """
        made = cls()
        made.bets.restore(state)
        made.reverse.restore(state["reverse"])
        made.n = [int(count) for count in state["n"]]
        made._waiting = [float(score) for score in state["waiting"]]
        made._waiting_suspect = bool(state["waiting_suspect"])
        return made


def _spread(n: int, zeros: int) -> list[int]:
    """Places 0 to n-1, the last ``zeros`` of them evenly among the others."""
    order, ones_left, zeros_at = [], iter(range(n - zeros)), n - zeros
    for place in range(n):
        if (place + 1) * zeros // n > place * zeros // n:
            order.append(zeros_at)
            zeros_at += 1
        else:
            order.append(next(ones_left))
    return order


def _log_mean(logs: Sequence[float]) -> float:
    most = max(logs)
    return most + math.log(math.fsum(math.exp(one - most) for one in logs) / len(logs))


def _numbers(state: Mapping[str, Any], key: str, rates: Sequence[float]) -> list[float]:
    values = [float(value) for value in state[key]]
    if len(values) != len(rates) or not all(map(math.isfinite, values)):
        raise ValueError(f"{key} has to be {len(rates)} numbers")
    return values
