"""Bringing a candidate to an environment's traffic in steps. The state is one mark for each environment.

All processes that route traffic follow it, and whichever finds a step due takes it, by compare-and-swap on the
rollout's generation: a step is taken once, and neither repeated nor skipped when processes die.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

from dspy_observe.errors import ConfigurationError
from dspy_observe.registry import deployments, versions
from dspy_observe.registry.controlling import written_control
from dspy_observe.registry.core import PRODUCTION, at_now
from dspy_observe.registry.deploying import DeploymentMethods
from dspy_observe.registry.engine import Batch
from dspy_observe.registry.errors import Conflict, CorruptRegistry, Quarantined, UnknownVersion
from dspy_observe.registry.names import checked, checked_text
from dspy_observe.registry.records import FieldFault, Mark, Pointer, Record
from dspy_observe.registry.stores.base import Transaction, View

__all__ = ["BUCKETS", "ROLLOUT", "Rollout", "RolloutMethods", "RolloutView"]

ROLLOUT: Final = "rollout"
"""Kind of the mark; its key is the environment."""
COUNTS: Final = "rollout-count"
"""Kind of the mark with a step's counts, which change often and wake nobody."""
BUCKETS: Final = 10_000
"""Parts that traffic is split into; a share is a whole number of them."""
SAMPLED: Final = 2_000
"""Keys that are kept of those that were seen: enough to find 10 % that became 13 %."""
_HISTORY: Final = 100


@dataclass(frozen=True, slots=True)
class Rollout(Record):
    """One candidate on its way."""

    experiment: str
    """Its id; a new one for each rollout."""
    salt: str
    """What keys are hashed with, so that two experiments do not share their users."""
    version: str
    """The candidate."""
    version_hash: str
    base: str
    """The version that it is compared with: what was deployed when the step began."""
    base_hash: str
    steps: tuple[int, ...]
    """Shares of the candidate in buckets, rising; the last one is all."""
    control: int
    """Buckets that stay with the version before, as role ``control``, once the candidate is deployed."""
    min_samples: int
    """Calls that the candidate has to answer in a step."""
    min_step_s: float
    """Seconds that a step lasts at least."""
    state: str
    """``running``, ``promoted``, ``regressed`` or ``stopped``."""
    step: int
    """Which of the steps, from 0."""
    generation: int
    """Grows by one with every change but that of the counts."""
    started_at: datetime
    step_at: datetime
    reason: str | None = None
    """Why it is as it is."""
    calls: dict[str, Any] = field(default_factory=dict)
    """Calls in this step by role, of all processes."""
    sampled: dict[str, Any] = field(default_factory=dict)
    """A sample of the keys that came in this step, by role: 8 hexadecimal digits each, in one text."""
    history: tuple[str, ...] = ()
    """Every change in words, oldest first."""

    @property
    def running(self) -> bool:
        """Whether the candidate is on its way."""
        return self.state == "running"

    @property
    def share(self) -> int:
        """Buckets that the candidate gets as a canary now."""
        return self.steps[self.step] if self.running else 0


@dataclass(frozen=True, slots=True)
class RolloutView:
    """What a router has to know at one moment."""

    rollout: Rollout | None
    pointer: Pointer | None
    """What is deployed."""
    bad_candidate: str | None
    """Why the candidate must not run; ``None`` when it may."""
    bad_base: str | None
    """The same of the version beside it."""
    pinned: tuple[str, str] | None
    """Name and hash of a version that was asked for besides."""
    frozen: str | None
    """Why nothing is to move by itself; ``None`` when it may."""
    now: datetime


class RolloutMethods(DeploymentMethods):
    """The part of a registry that brings candidates to traffic."""

    def start_rollout(
        self,
        name: str,
        version: str,
        *,
        environment: str = PRODUCTION,
        steps: Sequence[float] = (0.05, 0.25, 0.5, 1.0),
        control: float = 0.0,
        min_samples: int = 200,
        min_step_s: float = 600.0,
        experiment: str | None = None,
        salt: str | None = None,
        actor: str | None = None,
        reason: str | None = None,
    ) -> Rollout:
        """Begin to bring a candidate to an environment's traffic; routers of all processes follow.

        Args:
            name: The signature.
            version: The candidate: display name, alias or hash.
            environment: Where; something has to be deployed there.
            steps: The candidate's share of the traffic in each step, rising to 1.
            control: Share that stays with the version before once the candidate is deployed, to compare them.
            min_samples: Calls that the candidate has to answer in a step before the next one.
            min_step_s: Seconds that a step lasts at least.
            experiment: Its id; ``None`` makes one. A rollout of this id that is there already is returned as it is.
            salt: What keys are hashed with; ``None`` takes the experiment's id, so that users are split anew.
            actor: Who does it; ``None`` takes ``DSPY_OBSERVE_ACTOR`` or the user of this process.
            reason: Why.

        Raises:
            UnknownSignature, UnknownVersion: There is no such version, or nothing is deployed.
            Conflict: Another rollout runs there, or the version is deployed already.
            Quarantined: The version was found bad.
            ConfigurationError: Shares or limits cannot work.
        """
        buckets, held = _steps(steps), _buckets("control", control)
        _check_limits(min_samples, min_step_s)
        move = self._move(environment, actor, reason, "manual")
        self._check(name, environment=environment)
        if experiment is not None:
            checked("experiment", experiment)

        def body(txn: Transaction, batch: Batch) -> Rollout:
            record = versions.resolve(txn, version)
            before, pointer = rollout_of(txn, environment), txn.pointer(environment)
            if before is not None and before.experiment == experiment and before.version_hash == record.version_hash:
                return before
            if before is not None and before.running:
                what = f"a rollout of {before.version} runs in {environment}; stop it first"
                raise Conflict(what, expected=None, current=before.experiment)
            if pointer is None:
                raise UnknownVersion.nothing_deployed(name, environment)
            if pointer.version_hash == record.version_hash:
                what = f"{record.version} is what {environment} runs"
                raise Conflict(what, expected=None, current=record.version)
            bad = txn.mark("quarantine", record.version_hash)
            if bad is not None:
                raise Quarantined(f"{name} {record.version} is quarantined ({bad.reason or 'no reason given'})")
            versions.check_content(self._store, record)
            made = experiment or deployments.new_id()
            rollout = Rollout(
                made, checked_text("salt", salt, 200) or made, record.version, record.version_hash, pointer.version,
                pointer.version_hash, buckets, held, min_samples, float(min_step_s), "running", 0,
                1 if before is None else before.generation + 1, batch.time, batch.time, move.reason,
            )  # fmt: skip
            return _keep(txn, batch, environment, rollout, "started", move.actor)

        return self._engine.run(name, body)

    def rollout(self, name: str, *, environment: str = PRODUCTION) -> Rollout | None:
        """The rollout that runs in an environment, or ran there last; ``None`` when there never was one.

        Raises:
            UnknownSignature: There is no such signature.
        """
        self._check(name, environment=environment)
        with self._read(name) as view:
            return rollout_of(view, environment)

    def rollout_view(self, name: str, *, environment: str = PRODUCTION, pinned: str | None = None) -> RolloutView:
        """The rollout, the pointer and the quarantines, all of one moment: the question for polling.

        Args:
            name: The signature.
            environment: Where.
            pinned: A version to look up besides: display name, alias or hash.

        Raises:
            UnknownSignature, UnknownVersion: There is no such version.
        """
        self._check(name, environment=environment)

        def bad(view: View, version_hash: str | None) -> str | None:
            mark = None if version_hash is None else view.mark("quarantine", version_hash)
            return None if mark is None else mark.reason or ""

        with self._read(name) as view:
            rollout = rollout_of(view, environment)
            record = None if pinned is None else versions.resolve(view, pinned)
            control = written_control(view, environment)
            candidate, base = (None, None) if rollout is None else (rollout.version_hash, rollout.base_hash)
            return RolloutView(
                rollout, view.pointer(environment), bad(view, candidate), bad(view, base),
                None if record is None else (record.version, record.version_hash),
                (control.frozen_reason or "no reason given") if control.frozen else None, self.now(),
            )  # fmt: skip

    def count_rollout(
        self,
        name: str,
        *,
        environment: str = PRODUCTION,
        generation: int,
        calls: Mapping[str, int],
        sampled: Mapping[str, str],
    ) -> Rollout | None:
        """Add what one process counted in a step; nothing when the rollout has moved on since.

        Args:
            name: The signature.
            environment: Where.
            generation: Of the rollout when it was counted.
            calls: New calls by role.
            sampled: A sample of the keys by role, as :attr:`Rollout.sampled`; keys that are there count once.

        Raises:
            UnknownSignature: There is no such signature.
        """
        self._check(name, environment=environment)

        def body(txn: Transaction, batch: Batch) -> Rollout | None:
            before = rollout_of(versions.existing(txn), environment)
            if before is None or before.generation != generation or not before.running:
                return before
            counted = {role: before.calls.get(role, 0) + calls.get(role, 0) for role in {*before.calls, *calls}}
            after = replace(before, calls=counted, sampled=merged(before.sampled, sampled))
            data = {"generation": generation, "calls": after.calls, "sampled": after.sampled}
            txn.set_mark(Mark(COUNTS, environment, before.version, before.version_hash, batch.time, data=data))
            return after

        return self._engine.run(name, body)

    def advance_rollout(
        self,
        name: str,
        *,
        environment: str = PRODUCTION,
        expected_generation: int | None = None,
        actor: str | None = None,
        reason: str | None = None,
        trigger: str = "manual",
    ) -> Rollout:
        """Take the next step; the last one deploys the candidate, in the same commit.

        Args:
            name: The signature.
            environment: Where.
            expected_generation: Of the rollout that the caller saw; ``None`` takes any.
            actor: Who does it.
            reason: Why.
            trigger: ``manual``, or ``auto`` for a router's own step.

        Raises:
            Conflict: No rollout runs there, or another generation than the caller saw.
            Quarantined, ApprovalMissing, CorruptVersion: The candidate may not be deployed; the step is not taken.
            UnknownSignature: There is no such signature.
        """
        move = self._move(environment, actor, reason, trigger)

        def step(txn: Transaction, batch: Batch, before: Rollout) -> tuple[Rollout, str]:
            bad, pointer = txn.mark("quarantine", before.version_hash), txn.pointer(environment)
            if bad is not None:
                raise Quarantined(f"{name} {before.version} is quarantined ({bad.reason or 'no reason given'})")
            after = replace(before, step=before.step + 1, step_at=batch.time)
            if after.share < BUCKETS:
                return after, f"step {after.step}"
            if pointer is None or pointer.version_hash != before.base_hash:
                current = None if pointer is None else pointer.version
                what = f"{environment} runs {current}, not {before.base}, beside which the step began"
                raise Conflict(what, expected=before.base, current=current)
            record = versions.with_hash(txn, before.version_hash)
            batch.tell("deploy_start", environment, record.version)
            self._deploy_in(txn, batch, record, at_now(move, batch))
            return replace(after, state="promoted"), f"step {after.step}, deployed"

        return self._change(name, environment, expected_generation, move, step)

    def stop_rollout(
        self,
        name: str,
        *,
        environment: str = PRODUCTION,
        regressed: bool = False,
        expected_generation: int | None = None,
        actor: str | None = None,
        reason: str | None = None,
        trigger: str = "manual",
    ) -> Rollout:
        """Take the candidate's share back to 0.

        Args:
            name: The signature.
            environment: Where.
            regressed: The candidate was found bad: it is quarantined in the same commit.
            expected_generation: Of the rollout that the caller saw; ``None`` takes any.
            actor: Who does it.
            reason: Why.
            trigger: ``manual``, or ``auto`` for a router's own step.

        Raises:
            Conflict: No rollout runs there, or another generation than the caller saw.
            UnknownSignature: There is no such signature.
        """
        move = self._move(environment, actor, reason, trigger)

        def stop(txn: Transaction, batch: Batch, before: Rollout) -> tuple[Rollout, str]:
            state = "regressed" if regressed else "stopped"
            if regressed and txn.mark("quarantine", before.version_hash) is None:
                record = versions.with_hash(txn, before.version_hash)
                deployments.quarantine(txn, record, at_now(move, batch))
                batch.tell("quarantine", environment, record.version, reason=move.reason, trigger=move.trigger)
            return replace(before, state=state, step_at=batch.time), state

        return self._change(name, environment, expected_generation, move, stop)

    def rebase_rollout(
        self, name: str, *, environment: str = PRODUCTION, expected_generation: int, reason: str | None = None
    ) -> Rollout:
        """Begin the step anew, compared with what is deployed now; when that is the candidate, it is done.

        Raises:
            Conflict: No rollout runs there, or another generation than the caller saw.
            UnknownSignature: There is no such signature.
        """
        move = self._move(environment, None, reason, "auto")

        def again(txn: Transaction, batch: Batch, before: Rollout) -> tuple[Rollout, str]:
            pointer = txn.pointer(environment)
            assert pointer is not None  # pointers never go away
            if pointer.version_hash == before.version_hash:
                return replace(before, state="promoted", step_at=batch.time), "deployed by somebody else"
            after = replace(before, base=pointer.version, base_hash=pointer.version_hash, step_at=batch.time)
            return after, f"step {after.step} again, beside {pointer.version}"

        return self._change(name, environment, expected_generation, move, again)

    def _change(
        self,
        name: str,
        environment: str,
        expected: int | None,
        move: deployments.Move,
        change: Callable[[Transaction, Batch, Rollout], tuple[Rollout, str]],
    ) -> Rollout:
        self._check(name, environment=environment)

        def body(txn: Transaction, batch: Batch) -> Rollout:
            before = rollout_of(versions.existing(txn), environment)
            if before is None or not before.running:
                current = None if before is None else before.state
                raise Conflict(f"no rollout runs in {environment}", expected="running", current=current)
            if expected is not None and expected != before.generation:
                what = f"the rollout in {environment} is at generation {before.generation}, not {expected}"
                raise Conflict(what, expected=expected, current=before.generation)
            after, words = change(txn, batch, before)
            after = replace(after, generation=before.generation + 1, reason=move.reason, calls={}, sampled={})
            return _keep(txn, batch, environment, after, words, move.actor)

        return self._engine.run(name, body)


def rollout_of(view: View, environment: str) -> Rollout | None:
    """The rollout of an environment.

    Raises:
        CorruptRegistry: What stands in the store is none.
    """
    mark, counts = view.mark(ROLLOUT, environment), view.mark(COUNTS, environment)
    if mark is None:
        return None
    data = dict(mark.data)
    if counts is not None and counts.data.get("generation") == data.get("generation"):
        data.update(calls=counts.data.get("calls"), sampled=counts.data.get("sampled"))
    try:
        return Rollout.from_dict(data)
    except FieldFault as fault:
        raise CorruptRegistry(f"{view.name}, rollout in {environment}", None, str(fault)) from None


def merged(one: Mapping[str, str], other: Mapping[str, str]) -> dict[str, str]:
    """The union of two samples: the smallest of all digits, so that it is a sample of all keys, each counted once."""
    keys = {text[at : at + 8]: role for sample in (one, other) for role, text in sample.items()
            for at in range(0, len(text), 8)}  # fmt: skip
    kept: dict[str, list[str]] = {}
    for digits in sorted(keys)[:SAMPLED]:
        kept.setdefault(keys[digits], []).append(digits)
    return {role: "".join(digits) for role, digits in kept.items()}


def _keep(txn: Transaction, batch: Batch, environment: str, rollout: Rollout, words: str, actor: str | None) -> Rollout:
    line = f"{batch.time.isoformat(timespec='milliseconds')} {words}" + (
        f": {rollout.reason}" if rollout.reason else ""
    )
    rollout = replace(rollout, history=(*rollout.history, line)[-_HISTORY:])
    _set(txn, environment, rollout, batch.time, actor)
    batch.tell(
        "rollout", environment, rollout.version, version_hash=rollout.version_hash, state=rollout.state,
        step=rollout.step, share=rollout.share / BUCKETS, experiment=rollout.experiment, reason=rollout.reason,
        actor=actor,
    )  # fmt: skip
    return rollout


def _set(txn: Transaction, environment: str, rollout: Rollout, at: datetime, actor: str | None) -> None:
    data = replace(rollout, calls={}, sampled={}).to_dict()
    txn.set_mark(Mark(ROLLOUT, environment, rollout.version, rollout.version_hash, at, actor, rollout.reason, data))


def _steps(steps: Sequence[float]) -> tuple[int, ...]:
    made = tuple(_buckets("steps", share) for share in steps)
    rising = all(left < right for left, right in zip((0, *made), made, strict=False))
    if not made or not rising or made[-1] != BUCKETS:
        raise ConfigurationError(
            "steps", f"{steps!r:.80} does not rise to 1", "Use shares such as (0.05, 0.25, 0.5, 1)"
        )
    return made


def _buckets(field_name: str, share: float) -> int:
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise ConfigurationError(field_name, f"{share!r} is no share", "Use a number from 0 to 1")
    return round(share * BUCKETS)


def _check_limits(min_samples: int, min_step_s: float) -> None:
    if isinstance(min_samples, bool) or not isinstance(min_samples, int) or min_samples < 0:
        raise ConfigurationError("min_samples", f"{min_samples!r} is no number of calls", "Use 0 or more")
    if isinstance(min_step_s, bool) or not isinstance(min_step_s, int | float) or not 0 <= min_step_s < math.inf:
        raise ConfigurationError("min_step_s", f"{min_step_s!r} is no time", "Use seconds, 0 or more")
