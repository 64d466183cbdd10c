"""Sending part of the traffic to a candidate, more of it step by step, and back to nothing when it is worse.

::

    router = Router(registry, "support", SupportBot, candidate="v7", verdicts=monitor)
    router(key=user_id, question="...")

The rollout's state is in the registry: every process with a router on the same registry follows it, and takes a step
when it finds one due. Users keep their arm by their key. Stable is a :class:`LiveProgram`, so that a deployment or
rollback of what is deployed is followed during a rollout, too.

Long, because half of it is what the public methods promise; the rules are in ``ramping``, ``splitting``, ``tallying``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any, Final, Protocol

from dspy_observe.errors import ConfigurationError
from dspy_observe.metrics import Metrics
from dspy_observe.registry.errors import Conflict, RegistryError
from dspy_observe.registry.options import RegistryConfig
from dspy_observe.registry.rollouts import Rollout, RolloutView
from dspy_observe.registry.signatures import SignatureRegistry
from dspy_observe.serving.holding import RegistryHolder
from dspy_observe.serving.live import LiveProgram, LiveStatus, told
from dspy_observe.serving.loading import Loader, Serving
from dspy_observe.serving.ramping import Known, Move, next_move
from dspy_observe.serving.series import Series
from dspy_observe.serving.shadowing import Shadow, Shadower
from dspy_observe.serving.splitting import BUCKETS, Assignment, Draw, Role, Split, draw
from dspy_observe.serving.streams import Listeners, streamify_each
from dspy_observe.serving.tallying import Tally

__all__ = ["Router", "RouterStatus", "Verdicts"]

_logger = logging.getLogger("dspy_observe")

_AGAIN_S: Final = 30.0
"""Before a version that could not be loaded is tried again."""
_COUNT_S: Final = 30.0
"""Between two writings of counts that no step waits for."""

Key = str | int | None


class Verdicts(Protocol):
    """Who judges candidates, such as :class:`~dspy_observe.rollback.monitor.Monitor`."""

    def verdict(self, program: str, version: str) -> str:
        """``ok``, ``suspect``, ``regressed``, ``insufficient_data`` or ``global_cause``."""


@dataclass(frozen=True, slots=True)
class RouterStatus:
    """How a router stands."""

    stable: LiveStatus
    rollout: Rollout | None
    """The rollout as the registry has it; ``None`` when there never was one."""
    shares: dict[str, float]
    """Part of the traffic by role, from 0 to 1."""
    waiting_for: str | None
    """Why the next step is not taken; ``None`` when no rollout runs."""
    shadow: str | None
    """The version in the shadow, or why there is none; ``None`` without :class:`Shadow`."""
    error: str | None
    """What went wrong at the last look; ``None`` when nothing did."""

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        rollout = None if self.rollout is None else self.rollout.to_dict()
        return {**asdict(self), "stable": self.stable.to_dict(), "rollout": rollout}


@dataclass(frozen=True, slots=True)
class _Routes:
    """Who has which buckets, and what answers there. A call takes it once."""

    split: Split
    generation: int
    counted: bool
    canary: Serving | None = None
    control: Serving | None = None
    shadow: Serving | None = None

    def serving(self, role: Role) -> Serving | None:
        return self.canary if role == "canary" else self.control if role == "control" else None


class Router(RegistryHolder):
    """Calls go to the deployed version, the candidate, or the version before, by the caller's key.

    Args:
        registry: The registry, its path or URL, or its options.
        name: The program's name there.
        factory: Makes a new untuned program, such as the program's class. Called for every version.
        candidate: A version to bring to the traffic: begins a rollout, unless the registry holds one of this candidate
            already, which is then followed whatever became of it. ``None`` follows what
            ``registry.start_rollout`` began, then or later, in whatever process.
        environment: Where.
        steps, control, min_samples, min_step_s, experiment: Of the rollout that is begun, as for
            :meth:`SignatureRegistry.start_rollout`.
        verdicts: Who judges the candidate, such as the monitor: steps are taken on ``ok``, and on ``regressed`` the
            candidate's share goes to 0 and it is quarantined. ``None`` leaves the steps to :meth:`advance`.
        shadow: Lets a version answer in the shadow; ``None`` does not.
        refresh_s, check, fallback, watch, drift_check_s, metrics, options: As for :class:`LiveProgram`.

    Raises:
        NotDeployedError: Nothing is deployed, and ``fallback`` is off.
        RegistryError, IncompatibleProgramError: What is deployed cannot be loaded, or the rollout cannot be begun.
        ConfigurationError: An argument cannot work.
    """

    def __init__(
        self,
        registry: SignatureRegistry | RegistryConfig | str | PathLike[str],
        name: str,
        factory: Callable[[], Any],
        candidate: str | None = None,
        *,
        environment: str = "production",
        steps: Sequence[float] = (0.05, 0.25, 0.5, 1.0),
        control: float = 0.0,
        min_samples: int = 200,
        min_step_s: float = 600.0,
        experiment: str | None = None,
        verdicts: Verdicts | None = None,
        shadow: Shadow | None = None,
        refresh_s: float = 5.0,
        check: Callable[[Any], object] | None = None,
        fallback: bool = False,
        watch: bool = True,
        drift_check_s: float | None = 60.0,
        metrics: Metrics | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if verdicts is not None and not callable(getattr(verdicts, "verdict", None)):
            raise ConfigurationError("verdicts", f"{type(verdicts).__name__} has no verdict()", "Pass the Monitor")
        super().__init__(registry)
        self._name = name
        self._environment = environment
        self._verdicts = verdicts
        self._series = Series(metrics, name, environment)
        self._loader = Loader(
            self._registry, name, factory, check=check, options=options or {}, series=self._series
        )  # fmt: skip
        self._shadower = None if shadow is None else Shadower(shadow, self._series)
        self._tally = Tally()
        self._turn = threading.Lock()
        self._again = False
        self._failed: dict[tuple[str, str], tuple[float, str]] = {}
        self._rollout: Rollout | None = None
        self._waiting_for: str | None = None
        self._error: str | None = None
        self._counted_at = time.monotonic()
        self._refresh_s = float(refresh_s) if isinstance(refresh_s, int | float) else 0.0  # LiveProgram refuses others
        self._routes = _Routes(Split(""), 0, counted=False)
        try:
            self._live = LiveProgram(
                self._registry, name, factory, environment, refresh_s, check=check, fallback=fallback, watch=watch,
                drift_check_s=drift_check_s, metrics=metrics, options=options,
            )  # fmt: skip
            try:
                self._begin(
                    candidate, steps=steps, control=control, min_samples=min_samples, min_step_s=min_step_s,
                    experiment=experiment,
                )  # fmt: skip
                self._look()
                self._live.look_also(self._look)
            except BaseException:
                self._live.close()
                raise
        except BaseException:
            self._let_go()
            raise

    def __call__(self, *args: Any, key: Key = None, **inputs: Any) -> Any:
        """Call the version that has the key.

        Args:
            *args: For the program.
            key: Whose call it is: the user, session or tenant. The same key gets the same arm in every process. A call
                without one goes anywhere by the shares. For a program with an input of this name, use :meth:`serving`.
            **inputs: For the program.
        """
        return self._route(key, args, inputs, asynchronous=False).program(*args, **inputs)

    async def acall(self, *args: Any, key: Key = None, **inputs: Any) -> Any:
        """The asynchronous form of calling."""
        return await self._route(key, args, inputs, asynchronous=True).program.acall(*args, **inputs)

    def streamify(self, *, stream_listeners: Listeners | None = None, **options: Any) -> Callable[..., Any]:
        """``dspy.streamify``; the returned function takes ``key`` besides the program's inputs.

        Args:
            stream_listeners: As for :meth:`LiveProgram.streamify`.
            **options: The other arguments of ``dspy.streamify``.

        Raises:
            ConfigurationError: A listener is bound to a predictor.
        """

        def program_for(*args: Any, key: Key = None, **inputs: Any) -> tuple[Any, dict[str, Any]]:
            return self._route(key, args, inputs, asynchronous=False).program, inputs

        return streamify_each(program_for, stream_listeners, options)

    def serving(self, key: Key = None) -> Serving:
        """What answers a key, to be called in any way: ``router.serving(user).program(...)``. Counts as a call."""
        routes = self._routes
        return self._pick(routes, draw(routes.split.salt, key))[0]

    def assign(self, key: Key = None) -> Assignment:
        """Which version a key gets now; counts nothing."""
        routes = self._routes
        drawn = draw(routes.split.salt, key)
        serving, role = self._find(routes, drawn)
        return Assignment(serving.version, role, drawn.sticky, drawn.bucket)

    def shares(self) -> dict[str, float]:
        """Part of the traffic that each role is meant to get, from 0 to 1."""
        return {role: buckets / BUCKETS for role, buckets in self._routes.split.buckets().items()}

    def status(self) -> RouterStatus:
        """How things stand."""
        routes, shadow = self._routes, None
        if self._shadower is not None:
            shadow = "nothing to call" if routes.shadow is None else str(routes.shadow.version)
            refused = [] if routes.shadow is None else self._shadower.refused(routes.shadow)
            if refused:
                shadow = f"not called, as it may act twice: {', '.join(refused)}"
        return RouterStatus(
            self._live.status(), self._rollout, self.shares(), self._waiting_for, shadow, self._error
        )  # fmt: skip

    def refresh(self) -> None:
        """Look at the registry now: follow what is deployed and the rollout, and take a step that is due.

        Called by a listener of the registry while another thread looks, it lets that one look once more and returns.
        """
        try:
            self._live.refresh()
        finally:
            self._look(wait=not self._registry.telling)

    def advance(self, *, reason: str | None = None, actor: str | None = None) -> Rollout:
        """Take the next step by hand.

        Raises:
            Conflict: No rollout runs.
            Quarantined, ApprovalMissing: The candidate may not be deployed.
        """
        moved = self._registry.advance_rollout(self._name, environment=self._environment, actor=actor, reason=reason)
        self.refresh()
        return moved

    def stop(self, *, regressed: bool = False, reason: str | None = None, actor: str | None = None) -> Rollout:
        """Take the candidate's share to 0 by hand; ``regressed`` quarantines it.

        Raises:
            Conflict: No rollout runs.
        """
        stopped = self._registry.stop_rollout(
            self._name, environment=self._environment, regressed=regressed, actor=actor, reason=reason
        )
        self.refresh()
        return stopped

    def _stop(self) -> None:
        self._live.close()
        with self._turn:
            self._count(now=True)
        if self._shadower is not None:
            self._shadower.close()
        self._series.close()

    def __repr__(self) -> str:
        return f"Router({self._name!r}, environment={self._environment!r}, shares={self.shares()})"

    def _route(self, key: Key, args: tuple[Any, ...], inputs: dict[str, Any], *, asynchronous: bool) -> Serving:
        routes = self._routes
        serving, role = self._pick(routes, draw(routes.split.salt, key))
        if self._shadower is not None and role == "stable":
            self._shadower.offer(routes.shadow, args, inputs, asynchronous=asynchronous)
        return serving

    def _pick(self, routes: _Routes, drawn: Draw) -> tuple[Serving, Role]:
        found = self._find(routes, drawn)
        if routes.counted:
            self._tally.add(drawn, found[1], routes.generation)
        return found

    def _find(self, routes: _Routes, drawn: Draw) -> tuple[Serving, Role]:
        role = routes.split.role(drawn.bucket)
        serving = routes.serving(role)
        return (self._live.serving, "stable") if serving is None else (serving, role)

    def _begin(self, candidate: str | None, **options: Any) -> None:
        """Begin the rollout, or find the one that is there."""
        if candidate is None:
            return
        digits = self._registry.get_version(self._name, candidate).version_hash
        for _ in range(2):  # another process may begin it between the question and the deed
            there = self._registry.rollout(self._name, environment=self._environment)
            same = there is not None and there.version_hash == digits
            wanted = options["experiment"]
            if there is not None and same and (wanted in (None, there.experiment) or there.running):
                return
            pointer = self._registry.pointer(self._name, environment=self._environment)
            if pointer is not None and pointer.version_hash == digits:
                return  # it is deployed: there is nothing to bring
            try:
                self._registry.start_rollout(self._name, candidate, environment=self._environment, **options)
            except Conflict as error:
                lost = error
            else:
                return
        raise lost

    def _look(self, *, wait: bool = False) -> None:
        """Follow the rollout, and take the steps that are due. Never raises what the registry does.

        Args:
            wait: Whether to wait for another thread's look; else that one looks once more.
        """
        self._again = True
        if wait:
            with self._turn:
                self._again = False
                self._look_once()
        while self._again and self._turn.acquire(blocking=False):
            try:
                self._again = False
                self._look_once()
            finally:
                self._turn.release()

    def _look_once(self) -> None:
        before, self._error = self._error, None
        try:
            self._count()
            while self._step(self._follow()):
                pass
        except Conflict:  # another process took the step; the next look shows it
            self._live.look_soon()
        except Exception as error:  # noqa: BLE001 - what answers goes on answering
            self._error = told(error)
            if self._error != before:
                _logger.warning("dspy_observe: the rollout of %s stands still: %s", self._name, self._error)

    def _count(self, *, now: bool = False) -> None:
        """Tell the registry what was counted here, often while a step waits for it, seldom else."""
        rollout, age = self._rollout, time.monotonic() - self._counted_at
        if rollout is None or not rollout.running:
            return
        enough = rollout.calls.get("canary", 0) >= rollout.min_samples
        if not now and age < (max(_COUNT_S, self._refresh_s) if enough else self._refresh_s):
            return
        self._counted_at = time.monotonic()
        generation, calls, sampled = self._tally.take()
        if not calls:
            return
        try:
            self._registry.count_rollout(
                self._name, environment=self._environment, generation=generation, calls=calls, sampled=sampled
            )
        except RegistryError:
            self._tally.give_back(generation, calls)
            if not now:
                raise

    def _follow(self) -> RolloutView:
        """Load what the rollout asks for, and send calls there."""
        pinned = None if self._shadower is None else self._shadower.options.version
        view = self._registry.rollout_view(self._name, environment=self._environment, pinned=pinned)
        rollout = view.rollout
        before = self._routes
        canary = control = shadow = None
        split = Split("")
        if rollout is not None:
            running = None if view.pointer is None else view.pointer.version_hash
            if rollout.state == "promoted" and running == rollout.version_hash != self._live.serving.version_hash:
                self._live.refresh()  # or the candidate's users would fall back until it is seen that it is deployed
            deployed = self._live.serving.version_hash == rollout.version_hash
            if rollout.share:
                canary = self._arm(before.canary, rollout.version, rollout.version_hash, "canary")
            if rollout.control and rollout.state == "promoted" and deployed and view.bad_base is None:
                control = self._arm(before.control, rollout.base, rollout.base_hash, "control")
            split = Split(rollout.salt, rollout.share if canary else 0, rollout.control if control else 0)
        if self._shadower is not None:
            shadow = self._in_shadow(before.shadow, view)
        generation, counted = (0, False) if rollout is None else (rollout.generation, rollout.running)
        self._routes = _Routes(split, generation, counted, canary, control, shadow)
        self._rollout = rollout
        arms = [(arm.version, arm.role) for arm in (canary, control, shadow) if arm is not None]
        self._series.serves(arms)
        names = {"stable": self._live.version, **{role: version for version, role in arms}}
        self._series.shares({(names[role], role): share for role, share in self.shares().items() if role in names})
        return view

    def _in_shadow(self, present: Serving | None, view: RolloutView) -> Serving | None:
        rollout, wanted = view.rollout, view.pinned
        if wanted is None and rollout is not None and rollout.running:
            wanted = (rollout.version, rollout.version_hash)
        return None if wanted is None else self._arm(present, *wanted, "shadow")

    def _arm(self, present: Serving | None, version: str, version_hash: str, role: str) -> Serving | None:
        """An instance for an arm; ``None`` while it cannot be loaded, and its calls go to stable."""
        if present is not None and present.version_hash == version_hash:
            return present
        at, why = self._failed.get((version_hash, role), (0.0, ""))
        if at > time.monotonic():
            self._error = why
            return None
        try:
            made = self._loader.load(version, version_hash, 0, role)
        except Exception as error:  # noqa: BLE001 - the factory and the check may raise anything
            self._error = f"{version} cannot be loaded as {role}: {told(error)}"
            self._failed[version_hash, role] = (time.monotonic() + _AGAIN_S, self._error)
            _logger.warning("dspy_observe: %s", self._error)
            self._registry.tell(
                "reload_error", self._name, environment=self._environment, version=version, version_hash=version_hash,
                role=role, error=self._error, error_type=type(error).__name__,
            )  # fmt: skip
            return None
        self._failed.pop((version_hash, role), None)
        return made

    def _step(self, view: RolloutView) -> bool:
        """Take a step if one is due; whether the rollout changed."""
        rollout, self._waiting_for = view.rollout, None
        if rollout is None or not rollout.running:
            return False
        move = self._due(rollout, view)
        common: dict[str, Any] = {
            "environment": self._environment, "expected_generation": rollout.generation, "reason": move.reason
        }  # fmt: skip
        if move.act == "wait":
            self._waiting_for = move.reason
            return False
        if move.act == "advance":
            self._registry.advance_rollout(self._name, trigger="auto", **common)
        elif move.act == "fall":
            self._registry.stop_rollout(self._name, regressed=True, trigger="auto", **common)
        else:
            self._registry.rebase_rollout(self._name, **common)
        return True

    def _due(self, rollout: Rollout, view: RolloutView) -> Move:
        known = Known(
            "" if view.pointer is None else view.pointer.version_hash, rollout.base_hash, rollout.version_hash,
            view.bad_candidate, (view.now - rollout.step_at).total_seconds(), rollout.min_step_s,
            int(rollout.calls.get("canary", 0)), rollout.min_samples, _mismatch(rollout),
            view.frozen,
        )  # fmt: skip
        judge = self._verdicts
        if judge is None:
            return next_move(known, None)
        return next_move(known, lambda: str(judge.verdict(self._name, rollout.version)))


def _mismatch(rollout: Rollout) -> str | None:
    """How the keys of a step were split otherwise than intended."""
    from dspy_observe.rollback.statistics import sample_ratio_mismatch

    counts = [len(rollout.sampled.get(role, "")) // 8 for role in ("stable", "canary")]
    shares = [BUCKETS - rollout.share, rollout.share]
    return f"{counts} keys where shares are {shares}" if sample_ratio_mismatch(counts, shares) else None
