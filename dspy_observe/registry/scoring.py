"""Scores, their history, and versions side by side."""

from __future__ import annotations

from typing import Any

from dspy_observe.registry import deployments, history, versions
from dspy_observe.registry.core import PRODUCTION, RegistryCore
from dspy_observe.registry.engine import Batch
from dspy_observe.registry.models import Comparison, History, Version
from dspy_observe.registry.names import checked_text
from dspy_observe.registry.records import Score
from dspy_observe.registry.stores.base import Transaction
from dspy_observe.registry.values import check_sample, finite, scrubbed, scrubbed_key, scrubbed_text

__all__ = ["ScoreMethods"]


class ScoreMethods(RegistryCore):
    """The part of a registry that is about how good versions are."""

    def update_performance_score(
        self,
        name: str,
        version: str,
        score: float,
        *,
        dataset: str | None = None,
        n: int | None = None,
        stdev: float | None = None,
        source: str = "manual",
        score_id: str | None = None,
        bounds: tuple[float, float] | None = None,
    ) -> Version:
        """Add an observation of how good a version is. Earlier ones stay.

        Args:
            name: The signature.
            version: Display name, alias or hash.
            score: Any finite number; higher is better.
            dataset: What it was measured on; ``None`` when nobody says.
            n: Examples it is the mean of, from 1 to 2**53; ``None`` when unknown. Automatic deployment asks for it.
            stdev: Standard deviation of one example's score, at least 0; ``None`` when unknown.
            source: Who measured.
            score_id: The caller's key; the same one counts once. ``None`` makes one.
            bounds: Lowest and highest possible value of the metric; ``None`` when it has none.

        Raises:
            InvalidScore: No finite number, out of bounds, or ``n`` or ``stdev`` make no sense.
            UnknownSignature, UnknownVersion: There is no such version.
        """
        self._check(name)
        value = finite(score, bounds)
        check_sample(n, stdev)
        key = scrubbed_key(checked_text("score_id", score_id, 200)) or deployments.new_id()
        where = scrubbed_text(checked_text("dataset", dataset, 200))
        who = scrubbed_text(checked_text("source", source, 100)) or "manual"

        def body(txn: Transaction, batch: Batch) -> Version:
            record = versions.resolve(txn, version)
            made = Score(key, record.version, record.version_hash, value, batch.time, where, n, stdev, who)
            if txn.add_score(made):
                batch.tell(
                    "performance_update", None, record.version, performance_score=value, dataset=where, n=n, source=who
                )
            return versions.Viewer(txn, PRODUCTION).see(record)

        return self._engine.run(name, body)

    def get_performance_history(
        self, name: str, *, dataset: str | None = None, environment: str = PRODUCTION
    ) -> History:
        """Every observation of the signature's versions, oldest first, and their trend.

        Args:
            name: The signature.
            dataset: Only this data set; ``None`` lists all, with the trend over that of the latest observation.
            environment: The environment that ``is_deployed`` is about.

        Raises:
            UnknownSignature: There is no such signature.
        """
        self._check(name, environment=environment)
        with self._read(name) as view:
            return history.history(view, scrubbed_text(dataset), environment)

    def scores(self, name: str, version: str | None = None) -> tuple[Score, ...]:
        """The observations themselves, oldest first, with their ids; of one version or of all."""
        self._check(name)
        with self._read(name) as view:
            return tuple(view.scores(None if version is None else versions.resolve(view, version).version_hash))

    def compare_versions(
        self, name: str, version_1: str, version_2: str, *, environment: str = PRODUCTION
    ) -> Comparison:
        """Two versions side by side: the first minus the second.

        Args:
            name: The signature.
            version_1: Usually the newer; display name, alias or hash.
            version_2: Usually the older.
            environment: The environment that ``is_deployed`` is about.

        Raises:
            UnknownSignature, UnknownVersion: There is no such version.
            CorruptVersion: A stored program is missing or damaged.
        """
        self._check(name, environment=environment)
        with self._read(name) as view:
            first, second = versions.resolve(view, version_1), versions.resolve(view, version_2)
            mine, theirs = view.scores(first.version_hash), view.scores(second.version_hash)
            shared = history.common_scores(mine, theirs)
            sides = (
                history.side(view, first, shared[0] if shared else mine[-1] if mine else None, environment),
                history.side(view, second, shared[1] if shared else theirs[-1] if theirs else None, environment),
            )
        warnings = []
        if mine and theirs and shared is None:
            warnings.append("the two versions were scored on different data sets, so their scores are not compared")
        if shared is not None and shared[0].dataset is None:
            warnings.append("nobody said on which data set the scores were measured")
        return Comparison(
            *sides,
            (first.created_at - second.created_at).total_seconds() / 3600,
            None if shared is None else shared[0].value - shared[1].value,
            None if shared is None else shared[0].dataset,
            tuple(history.changes(second.configuration, first.configuration)),
            tuple(self._program_changes(first, second)),
            tuple(warnings),
        )

    def _program_changes(self, first: Any, second: Any) -> list[dict[str, Any]]:
        new, old = versions.check_content(self._store, first), versions.check_content(self._store, second)
        if new is None or old is None or new == old:
            return []
        from dspy_observe.registry.programs import ProgramSnapshot, diff

        found = diff(ProgramSnapshot.from_json(old), ProgramSnapshot.from_json(new))
        return [dict(scrubbed(one.to_dict())) for one in found]
