"""All evidence on the versions of one program in one environment, and the verdicts that follow from it.

One plain document of bounded size holds it, so that a store can fold new scores into it in one transaction: several
monitors, and monitors that were restarted or moved, see one sequence of scores. Scores are tested one by one, so how
they were batched changes nothing.

Who decides: where a second version answers other users at the same time, the comparison with it, because what hits
both is no fault of a version; else the version's scores against its baseline, unless everybody's scores fall.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from dspy_observe.rollback.statistics import verdicts
from dspy_observe.rollback.statistics.baselines import Baseline
from dspy_observe.rollback.statistics.members import ACTIVE_S, Pair, Scored
from dspy_observe.rollback.statistics.outages import Outage
from dspy_observe.rollback.statistics.scene import LIVE_ROLES, Folded, Observation, Scene, Verdict
from dspy_observe.rollback.statistics.seen import SeenIds
from dspy_observe.rollback.statistics.sequential import TIE
from dspy_observe.rollback.statistics.streams import Stream

__all__ = ["Evidence"]

FORMAT: Final = 1
MOST_VERSIONS: Final = 12
MOST_PAIRS: Final = 8
"""The versions and pairs that were scored last stay."""
SILENT_S: Final = 600.0
"""A version that is not deployed and was not scored for so long answers nobody."""
LONGEST_WAIT_S: Final = 3600.0
"""Seconds between two questions whether to roll back the same version."""
BESIDE: Final = {"canary": "stable", "stable": "control"}
"""The role that answers beside a suspect of this role."""


class Evidence:
    """The document: everything that is known about the versions of one program in one environment.

    Args:
        state: What :meth:`to_dict` gave; ``None`` begins.

    Raises:
        ValueError: It is no such state.
    """

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        self._versions: dict[str, Scored] = {}
        self._pairs: list[Pair] = []
        self._outage: Outage | None = None
        self._seen = SeenIds()
        self._tried: set[tuple[str, str]] = set()
        if state is None:
            return
        if state.get("format") != FORMAT:
            raise ValueError(f"evidence of format {state.get('format')!r} is not known here")
        try:
            self._versions = {digits: Scored.from_dict(one) for digits, one in state["versions"].items()}
            self._pairs = [Pair.from_dict(one) for one in state["pairs"]]
            self._outage = None if state["outage"] is None else Outage.from_dict(state["outage"])
            self._seen = SeenIds(state["seen"])
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"the evidence is damaged: {error!r}") from error

    def to_dict(self) -> dict[str, Any]:
        """The state, for JSON; of bounded size."""
        return {
            "format": FORMAT,
            "versions": {digits: version.to_dict() for digits, version in self._versions.items()},
            "pairs": [pair.to_dict() for pair in self._pairs],
            "outage": None if self._outage is None else self._outage.to_dict(),
            "seen": self._seen.to_text(),
        }

    @property
    def versions(self) -> dict[str, str]:
        """Names of the versions that were scored, by hash."""
        return {digits: version.name for digits, version in self._versions.items()}

    def answering(self, scene: Scene) -> dict[str, str]:
        """Names of the versions that are deployed or were scored within ten minutes, by hash."""
        return {
            digits: version.name
            for digits, version in self._versions.items()
            if digits == scene.deployed or scene.now - version.last_at < SILENT_S
        }

    def summary(self, version_hash: str, metric: str) -> Baseline | None:
        """What a version's scores by a metric were, as a baseline for its successor; ``None`` when there are none."""
        version = self._versions.get(version_hash)
        stream = None if version is None else version.streams.get(metric)
        whole = None if stream is None else stream.summary()
        if version is None or whole is None or whole.n == 0:
            return None
        mean = min(max(whole.mean, 0.0), 1.0)
        return Baseline(mean, whole.n, whole.stdev, f"{whole.n} scores of {version.name}")

    def is_dropping(self, now: float) -> bool | None:
        """Whether this program's scores fall lately, whoever is to blame; ``None`` when there are too few to tell."""
        if self._outage is not None:
            return True
        newest = sorted(self._versions.values(), key=lambda one: one.last_at)
        if not newest or now - newest[-1].last_at > ACTIVE_S:
            return None
        found = [one for stream in (newest[-1].streams.values() if newest else ()) for one in [stream.is_dropping()]]
        told = [one for one in found if one is not None]
        return any(told) if told else None

    # --- taking in scores --------------------------------------------------------------------------------------------

    def fold(self, observations: Iterable[Observation], scene: Scene) -> Folded:
        """Take in scores, one after the other.

        Args:
            observations: In the order of their arrival.
            scene: What they are weighed against.
        """
        told = Folded()
        self._tried.clear()
        deployed = self._versions.get(scene.deployed or "")
        if deployed is not None and deployed.regressed_at is not None and scene.deployed_at > deployed.regressed_at:
            deployed.restart()  # somebody deployed it again, knowing better
        for one in observations:
            if one.n is None and one.role not in LIVE_ROLES:
                told.ignored += 1
            elif not self._seen.first_time(one.score_id):
                told.duplicates += 1
            else:
                told.counted += 1
                self._take(one, scene)
        self._trim(scene)
        return told

    def reject(self, version_hash: str, version: str, count: int = 1) -> None:
        """Count scores that were no values of their metric; they are compared with nothing."""
        self._versions.setdefault(version_hash, Scored(version)).rejected += count

    def ask(self, version_hash: str, now: float, again_after_s: float) -> str | None:
        """Take on the question whether to roll back a regressed version; only one of several monitors gets it.

        Returns:
            The reason; ``None`` when the version did not regress or somebody asked within ``again_after_s``, which
            doubles with each time it was asked, up to an hour.
        """
        version = self._versions.get(version_hash)
        if version is None or version.regressed_at is None:
            return None
        wait = min(again_after_s * 2.0 ** min(version.asked - 1, 30), LONGEST_WAIT_S)
        if version.asked_at is not None and now - version.asked_at < wait:
            return None
        version.asked_at, version.asked = now, version.asked + 1
        return version.why

    def tell_outage(self) -> str | None:
        """Take on telling of an outage; only the first of several monitors gets the reason."""
        if self._outage is None or self._outage.told:
            return None
        self._outage.told = True
        return self._outage.reason

    def _take(self, one: Observation, scene: Scene) -> None:
        version = self._versions.setdefault(one.version_hash, Scored(one.version))
        version.name = one.version
        stream = version.streams.setdefault(one.metric, Stream())
        if stream.baseline is None and (one.version_hash, one.metric) not in self._tried:
            self._tried.add((one.version_hash, one.metric))  # it costs a look into the store
            baseline = scene.baseline(one.version_hash, one.metric)
            if baseline is not None:
                stream.compare_with(baseline, scene.margin)
        if one.n is not None:
            stream.add_total(one.n, one.score, one.at)
        elif self._outage is not None:
            stream.last_at = max(stream.last_at, one.at)
            recovered = self._outage.add(one.version_hash, one.score, stream.reference)
            if recovered is not None:
                self._end_outage(recovered, scene)
        else:
            stream.add(one.score, one.at, scene.threshold if scene.rule == "threshold" else None)
        suspects = {one.version_hash}
        if one.n is None:
            for pair in self._joined(one, scene):
                suspects.add(pair.suspect)
        for suspect in suspects:
            self._check(suspect, one.metric, scene)

    def _joined(self, one: Observation, scene: Scene) -> list[Pair]:
        """The pairs that a score belongs to, with the score in them."""
        mine, deployed = one.version_hash, scene.deployed
        if deployed is not None and deployed != mine:
            if one.role == "canary":
                self._pair(mine, deployed, one.metric, "canary")
            elif one.role == "control":
                self._pair(deployed, mine, one.metric, "stable")
        joined = []
        for pair in self._pairs:
            suspect = pair.suspect == mine
            role = pair.suspect_role if suspect else BESIDE[pair.suspect_role]
            if pair.metric == one.metric and mine in (pair.suspect, pair.control) and one.role == role:
                pair.add(one.score, one.at, suspect=suspect, shares=_shares(pair, scene))
                joined.append(pair)
        return joined

    def _pair(self, suspect: str, control: str, metric: str, role: str) -> None:
        wanted = (suspect, control, metric, role)
        if all((one.suspect, one.control, one.metric, one.suspect_role) != wanted for one in self._pairs):
            self._pairs.append(Pair(suspect, control, metric, role))

    def _pairs_of(self, digits: str, metric: str, now: float) -> list[Pair]:
        return [
            one for one in self._pairs
            if one.metric == metric and digits in (one.suspect, one.control) and one.active(now)
        ]  # fmt: skip

    # --- what follows ------------------------------------------------------------------------------------------------

    def _check(self, digits: str, metric: str, scene: Scene) -> None:
        """Whether the latest score makes a version regressed, or shows that everybody's scores fall."""
        version = self._versions.get(digits)
        stream = None if version is None else version.streams.get(metric)
        if version is None or stream is None or version.regressed_at is not None:
            return
        levels = scene.levels.split(scene.metrics)
        pairs = self._pairs_of(digits, metric, scene.now)
        mine = [pair for pair in pairs if pair.suspect == digits]
        for pair in mine:
            if pair.arms.beyond(levels) >= -TIE and not pair.mismatch:
                self._regressed(version, f"{metric}: worse than {self._name(pair.control)} beside it", scene)
                return
        if self._outage is not None or not verdicts.fell(stream, levels, scene):
            return
        common: Sequence[bool | None]
        if not pairs:
            common, blamed = scene.witnesses(), True
            who = "programs"
        else:
            common = [self._drops(pair.control if pair.suspect == digits else pair.suspect, metric) for pair in pairs]
            # A suspect is blamed by its comparison alone, its control by both tests: a better canary is no regression.
            blamed = not mine and any(pair.arms.beyond(levels, reverse=True) >= -TIE for pair in pairs)
            who = "versions that answer"
        if common and all(common):
            self._outage = Outage(scene.now, f"{metric}: the scores of all {who} fall together")
            for one in self._versions.values():
                if one.regressed_at is None:
                    one.restart()
        elif blamed:
            self._regressed(version, verdicts.about(metric, stream, scene), scene)

    def _regressed(self, version: Scored, why: str, scene: Scene) -> None:
        version.regressed_at, version.why = scene.now, why

    def _end_outage(self, recovered: bool, scene: Scene) -> None:
        """An outage is over as soon as one version has recovered, or other programs have."""
        if not recovered:
            witnesses = scene.witnesses()
            recovered = bool(witnesses) and not all(witnesses)
        if recovered:
            self._outage = None

    def _drops(self, digits: str, metric: str) -> bool | None:
        version = self._versions.get(digits)
        stream = None if version is None else version.streams.get(metric)
        return None if stream is None else stream.is_dropping()

    def _name(self, digits: str) -> str:
        version = self._versions.get(digits)
        return digits[:12] if version is None else version.name

    def _trim(self, scene: Scene) -> None:
        newest = sorted(self._versions, key=lambda one: (one == scene.deployed, self._versions[one].last_at))
        for digits in newest[:-MOST_VERSIONS]:
            del self._versions[digits]
        known = [one for one in self._pairs if one.suspect in self._versions or one.control in self._versions]
        self._pairs = sorted(known, key=lambda one: max(one.last_at))[-MOST_PAIRS:]

    def verdict(self, version_hash: str, scene: Scene) -> Verdict:
        """What the evidence says of a version now."""
        version = self._versions.get(version_hash)
        if version is None:
            return Verdict("insufficient_data", "no score of it was seen")
        if not version.streams:
            return Verdict("insufficient_data", f"all {version.rejected} scores of it were refused")
        found = []
        for metric in version.streams:
            pairs = [one for one in self._pairs_of(version_hash, metric, scene.now) if one.suspect == version_hash]
            pair = pairs[-1] if pairs else None
            beside = "" if pair is None else self._name(pair.control)
            found.append(verdicts.by_metric(version, metric, (pair, beside), self._outage, scene))
        return verdicts.gravest(found)


def _shares(pair: Pair, scene: Scene) -> list[float] | None:
    if scene.shares is None:
        return None
    roles = (BESIDE[pair.suspect_role], pair.suspect_role)
    return [float(scene.shares[role]) for role in roles] if all(role in scene.shares for role in roles) else None
