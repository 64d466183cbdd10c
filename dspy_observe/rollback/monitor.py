"""Watches the scores of answers, and asks to put the previous version back when one got worse.

::

    monitor = Monitor(registry, "support_bot")
    observer = dspy_observe.configure(registry=registry, extra=[monitor])
    observer.score(prediction, 1.0, source="user")  # booked on the version that answered

Scores are taken in without waiting and folded into the registry every second, in one transaction, so that any number
of monitors, restarted or moved, share one sequence of evidence. A rollback is asked of the same policy as by an alert.
A process that is killed loses the scores of its last second.

Long by what its methods promise; what a flush does stands in ``folding``.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

from dspy_observe import safety
from dspy_observe.conventions import REGISTRY_PREFIX
from dspy_observe.errors import ConfigurationError
from dspy_observe.metrics import Metrics, instruments
from dspy_observe.readers import Reader
from dspy_observe.records import CallRecord, RegistryEvent, Score
from dspy_observe.registry.baselines import EVALUATION, prospects
from dspy_observe.registry.errors import RegistryError, StoreUnavailable, UnknownSignature
from dspy_observe.registry.signatures import SignatureRegistry
from dspy_observe.rollback.folding import Folding, Outcome, Waiting
from dspy_observe.rollback.monitor_options import MonitorOptions
from dspy_observe.rollback.statistics import Evidence, Scene, Verdict

__all__ = ["Monitor", "MonitorOptions"]

_logger = logging.getLogger("dspy_observe")
_GUARD: Final = safety.guard("monitor.flush")
_GUARD_TAKE: Final = safety.guard("monitor.scored")
_THREAD: Final = "dspy-observe-monitor"
_UNSEEN: Final = Verdict("insufficient_data", "no score of it was seen")


class Monitor(Reader):
    """Keeps the evidence on the versions of some programs in one environment. Also a context manager.

    Args:
        registry: Where versions live and the evidence is kept.
        names: The program, or several: where none has a control arm, they are each other's witnesses of an outage.
        environment: Which environment.
        options: ``None`` takes the defaults.
        metrics: Prometheus registry; ``None`` takes the default one.
        clock: Gives Unix time in seconds; for tests.

    Raises:
        ConfigurationError: There is no name.
    """

    def __init__(
        self,
        registry: SignatureRegistry,
        names: str | Sequence[str],
        *,
        environment: str = "production",
        options: MonitorOptions | None = None,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.names: tuple[str, ...] = (names,) if isinstance(names, str) else tuple(names)
        if not self.names:
            raise ConfigurationError("names", "there is none", "Name the programs to watch")
        self.registry = registry
        self.environment = environment
        self.options = options or MonitorOptions()
        # Without a held-out set no call has to be watched for this reader.
        self.kinds = frozenset() if self.options.dataset is None else frozenset({"evaluate"})
        own = instruments(metrics)
        self._evidence_gauge, self._verdict_info = own["dspy_quality_evidence"], own["dspy_quality_verdict_info"]
        self._invalid = own["dspy_invalid_scores_total"]
        self._clock = clock
        self._folder = Folding(registry, self.names, environment, self.options, clock)
        self._known: dict[str, tuple[float, Evidence]] = {}
        self._shown: dict[tuple[str, str], str] = {}
        self._stop = threading.Event()
        self._begin()
        atexit.register(_close, weakref.ref(self))
        os.register_at_fork(after_in_child=partial(_forked, weakref.ref(self)))

    def _begin(self) -> None:
        self._waiting: deque[tuple[str, Waiting]] = deque()
        self._deployed: deque[tuple[str, str]] = deque(maxlen=100)
        self._lock = threading.Lock()
        self._folding = threading.Lock()
        self._work = threading.Event()
        self._thread: threading.Thread | None = None

    # --- taking in ---------------------------------------------------------------------------------------------------

    def scored(self, score: Score) -> None:
        """Take in a score of an answer, without waiting; scores of other programs are left alone."""
        with _GUARD_TAKE:
            self.observe(score)

    def observe(self, score: Score) -> None:
        """The same, for callers of their own. The value may be in the units of a declared metric.

        Args:
            score: Booked on ``score.version``; without a version it belongs to none and is left out.
        """
        found = self.options.metric_of(score.source)
        if score.program not in self.names or found is None:
            return
        metric, bounds = found
        value = bounds.unit(score.value)
        if value is None:
            self._invalid.child(score.program).inc()
        if score.version is not None:
            made = Waiting(score.version, score.role or "stable", metric, value, score.at, score.score_id)
            self._take(score.program, made)

    def evaluated(self, record: CallRecord, program: Any, n: int | None) -> None:  # noqa: ARG002 - a reader's signature
        """Take in an evaluation on the held-out set of a version that is tracked."""
        if record.dataset == self.options.dataset and record.score is not None and record.version is not None:
            self.observe_evaluation(record.program, record.version, record.score, n, score_id=record.call_id)

    def observe_evaluation(
        self, program: str | None, version: str, mean: float, n: int | None, *, score_id: str | None = None
    ) -> None:
        """Take in an evaluation on the held-out set.

        Args:
            program: Whose; others than those watched are left alone.
            version: Which was evaluated.
            mean: Of the scores, from 0 to 1.
            n: How many; without it the evaluation proves nothing.
            score_id: The same one counts once; ``None`` always counts.
        """
        if program not in self.names or self.options.dataset is None or n is None or n < 1:
            return
        value = self.options.bounds_of(EVALUATION).unit(mean)
        if value is None:
            self._invalid.child(program).inc()
        self._take(str(program), Waiting(version, "eval", EVALUATION, value, self._clock(), score_id, n))

    def happened(self, event: RegistryEvent) -> None:
        """Say after a deployment which drop can be found; needs ``configure(registry=...)``."""
        if (
            event.name == f"{REGISTRY_PREFIX}deploy_complete"
            and event.program in self.names
            and event.environment == self.environment
            and event.version is not None
        ):
            self._deployed.append((event.program, event.version))
            self._wake()

    def _take(self, name: str, waiting: Waiting) -> None:
        self._waiting.append((name, waiting))
        if len(self._waiting) > self.options.max_waiting:
            with self._lock:
                surplus = len(self._waiting) - self.options.max_waiting
                for _ in range(surplus):
                    self._waiting.popleft()
            if surplus > 0:
                safety.swallowed("monitor.waiting", OverflowError("too many scores wait"), surplus)
        self._wake()

    def _wake(self) -> None:
        if not self._work.is_set():
            self._work.set()
        thread = self._thread
        if (thread is None or not thread.is_alive()) and not self._stop.is_set():
            with self._lock, suppress(RuntimeError):  # at the end of the interpreter close() folds what is left
                if self._thread is thread:
                    started = threading.Thread(target=_run, args=(weakref.ref(self),), daemon=True, name=_THREAD)
                    started.start()
                    self._thread = started

    # --- folding -----------------------------------------------------------------------------------------------------

    def flush(self, timeout_s: float | None = None) -> bool:
        """Fold the scores that wait into the registry now, and act on what they say.

        Args:
            timeout_s: Seconds to wait; the registry may be slow, or locked by others. ``None`` waits as long as it
                takes.

        Returns:
            Whether nothing waits any more. What the registry could not take is tried again later.
        """
        if timeout_s is None:
            return self._flush()
        done: list[bool] = []
        helper = threading.Thread(target=lambda: done.append(self._flush()), daemon=True, name=f"{_THREAD}-flush")
        try:
            helper.start()
        except RuntimeError:  # no thread is begun any more when the interpreter ends
            return self._flush()
        helper.join(max(0.0, timeout_s))
        return done == [True]

    def _flush(self) -> bool:
        with self._folding:
            self._work.clear()
            if self._stop.is_set():
                self._work.set()  # or the thread that close() waits for would wait for work
            with self._lock:
                batch: dict[str, list[Waiting]] = {}
                while self._waiting:
                    name, waiting = self._waiting.popleft()
                    batch.setdefault(name, []).append(waiting)
            done = True
            for name in self.names:
                done = self._flush_one(name, batch.get(name, [])) and done
            while self._deployed:
                self._foretell(*self._deployed.popleft())
            return done

    def _flush_one(self, name: str, waiting: list[Waiting]) -> bool:
        if not waiting and not self._has_to_ask(name):
            return True
        try:
            outcome = self._folder.fold(name, waiting)
        except StoreUnavailable as error:
            safety.swallowed("monitor.store", error)
            with self._lock:
                self._waiting.extendleft((name, one) for one in reversed(waiting))
            return False
        except (RegistryError, ValueError) as error:  # no such program, or evidence that cannot be read
            safety.swallowed("monitor.evidence", error, max(len(waiting), 1))
            return True
        self._known[name] = (self._clock(), outcome.evidence)
        with _GUARD:
            self._show(name, outcome)
            self._folder.act(name, outcome)
        return True

    def _has_to_ask(self, name: str) -> bool:
        """Whether a regressed version may still be deployed."""
        known = self._known.get(name)
        if known is None or not self.options.act:
            return False
        scene = Scene(self._clock())
        return any(known[1].verdict(digits, scene).verdict == "regressed" for digits in known[1].versions)

    # --- telling -----------------------------------------------------------------------------------------------------

    def _show(self, name: str, outcome: Outcome) -> None:
        """Export what is known of the versions that answer; an alert on the others would never end."""
        present = outcome.evidence.answering(outcome.scene)
        for digits, version in present.items():
            verdict = outcome.evidence.verdict(digits, outcome.scene)
            for rule, log10 in verdict.log10_evidence.items():
                self._evidence_gauge.child(name, version, rule).set(log10)
            before = self._shown.get((name, version))
            if before is not None and before != verdict.verdict:
                self._verdict_info.child(name, version, before).set(0)
                self._verdict_info.remove(name, version, before)
            self._verdict_info.child(name, version, verdict.verdict).set(1)
            self._shown[name, version] = verdict.verdict
        for gone in [key for key in self._shown if key[0] == name and key[1] not in present.values()]:
            self._verdict_info.child(*gone, self._shown[gone]).set(0)
            self._verdict_info.remove(*gone, self._shown.pop(gone))
            for rule in ("e_process", "shiryaev_roberts", "two_arm"):
                self._evidence_gauge.child(*gone, rule).set(0)
                self._evidence_gauge.remove(*gone, rule)

    def _foretell(self, name: str, version: str) -> None:
        try:
            said = prospects(self.registry, name, version, environment=self.environment, levels=self.options.levels)
        except RegistryError as error:
            safety.swallowed("monitor.prospects", error)
        else:
            _logger.info("dspy_observe: %s %s is deployed. %s", name, version, said)

    # --- asking ------------------------------------------------------------------------------------------------------

    def evidence(self, program: str, version: str) -> Verdict:
        """What is known of a version, with the reason in words and the evidence by rule.

        Args:
            program: One of those watched.
            version: Its display name or hash.

        Raises:
            StoreUnavailable: The registry cannot be read.
        """
        document = self._document(program)
        for digits, name in document.versions.items():
            if version in (digits, name):
                return document.verdict(digits, self._folder.scene(program))
        return _UNSEEN

    def verdict(self, program: str, version: str) -> str:
        """``ok``, ``suspect``, ``regressed``, ``insufficient_data`` or ``global_cause``; see :meth:`evidence`."""
        return self.evidence(program, version).verdict

    def _document(self, program: str) -> Evidence:
        """The evidence as it was not longer than a flush ago: another monitor may have folded since."""
        now, known = self._clock(), self._known.get(program)
        if known is not None and 0 <= now - known[0] < self.options.flush_s:
            return known[1]
        try:
            state = self.registry.evidence(program, environment=self.environment)
        except UnknownSignature:
            state = None
        found = Evidence(state or None)
        self._known[program] = (now, found)
        return found

    # --- ending ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Fold what waits, and stop. Closing twice does nothing; scores that come later wait for a flush."""
        closed_before = self._stop.is_set()
        self._stop.set()
        self._work.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        if self._waiting or not closed_before:  # at the interpreter's end the registry may be gone
            self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _wait(self) -> bool:
        """Wait until there is something to do, and for scores that come with it; ``False`` at the end."""
        self._work.wait(self.options.retry_s)
        return not self._stop.wait(self.options.flush_s)


def _run(known: weakref.ref[Monitor]) -> None:
    """The monitor's thread, which ends with it."""
    while (monitor := known()) is not None:
        go_on = monitor._wait()
        if go_on:
            with _GUARD:
                monitor.flush()
        del monitor
        if not go_on:
            return


def _forked(known: weakref.ref[Monitor]) -> None:
    """A child has neither its parent's thread, nor its locks, nor its scores: the parent folds those."""
    monitor = known()
    if monitor is not None:
        monitor._begin()


def _close(known: weakref.ref[Monitor]) -> None:
    monitor = known()
    if monitor is not None:
        with _GUARD:
            monitor.close()
