"""The registry: versions of signatures and programs, their scores, their deployments, and the way back."""

from __future__ import annotations

from pathlib import Path

from dspy_observe.registry import transfer, versions
from dspy_observe.registry.deciding import DecisionMethods
from dspy_observe.registry.engine import Batch
from dspy_observe.registry.errors import UnknownVersion
from dspy_observe.registry.evidence import EvidenceMethods
from dspy_observe.registry.models import ImportReport
from dspy_observe.registry.programming import ProgramMethods
from dspy_observe.registry.rollouts import RolloutMethods
from dspy_observe.registry.scoring import ScoreMethods
from dspy_observe.registry.stores.base import Transaction

__all__ = ["SignatureRegistry"]


class SignatureRegistry(ProgramMethods, ScoreMethods, DecisionMethods, EvidenceMethods, RolloutMethods):
    """Versions, scores and deployments of any number of signatures, in one store.

    Safe to share between threads; any number of processes may open the same store.

    Args:
        config: Options; or a folder or URL alone; ``None`` takes the environment and the defaults.
        clock: Gives Unix time in seconds; for tests.

    Raises:
        ConfigurationError: The path or an option cannot work.
        StoreUnavailable: The store cannot be reached.
        CorruptRegistry: The store's own configuration cannot be read.
    """

    def export_registry(self, path: str | Path) -> None:
        """Write everything into one YAML file: versions, programs, scores, logs, marks.

        Raises:
            StoreUnavailable: The file cannot be written.
            CorruptVersion: A version's content is damaged.
        """
        names = transfer.export(self._store, Path(path), self._engine.clock())
        self._engine.announce(*transfer.told("export", names, Path(path), self._engine.clock()))

    def import_registry(self, path: str | Path, *, dry_run: bool = False) -> ImportReport:
        """Add what an export or a backup holds. Nothing that is here is changed or lost.

        A signature that is not here comes with its pointers and log. For one that is here versions are united by
        hash, scores by id and quarantines by version; pointers stay, and what differs is listed. A second import of
        the same file does nothing.

        Args:
            path: The file.
            dry_run: Only tell what would happen.

        Raises:
            CorruptRegistry: The file is no export, or holds names or values that cannot be used; nothing was imported.
            InvalidName: A signature's name differs only in case from one that is here; nothing was imported.
            StoreUnavailable: A file cannot be read or the store cannot be written.
        """
        bundle = transfer.read_export(Path(path))
        if not dry_run:
            self._keep_settings()
        report = transfer.import_bundle(self._engine, bundle, dry_run=dry_run)
        if not dry_run:
            self._engine.announce(*transfer.told("import", list(bundle.signatures), Path(path), self._engine.clock()))
        return report

    def backups(self, name: str) -> list[str]:
        """Labels of a signature's backups, oldest first; see ``backup_on_deploy``."""
        self._check(name)
        return self._store.backups(name)

    def restore_backup(self, name: str, label: str) -> ImportReport:
        """Bring a version back from a backup, as :meth:`import_registry` would; pointers stay.

        Raises:
            UnknownVersion: There is no such backup.
        """
        self._check(name)
        text = self._store.backup(name, label)
        if text is None:
            raise UnknownVersion(name, label, problem=f"{name} has no backup {label!r}; see backups()")
        return transfer.import_bundle(self._engine, transfer.parse_export(text.encode(), f"backup {label}"))

    def remove_versions(self, name: str, *, keep: int, dry_run: bool = False) -> tuple[str, ...]:
        """Remove the oldest versions that nothing holds, so that ``keep`` stay.

        Held is what an environment runs, what its rollback would take, and what has an alias.

        Args:
            name: The signature.
            keep: How many to keep, at least 1.
            dry_run: Only tell which.

        Returns:
            Their names, oldest first.

        Raises:
            UnknownSignature: There is no such signature.
        """
        self._check(name)

        def body(txn: Transaction, _: Batch) -> tuple[str, ...]:
            found = versions.prune(versions.existing(txn), max(keep, 1))
            for record in found:
                txn.remove_version(record.version_hash)
            return tuple(record.version for record in found)

        if dry_run:
            with self._read(name) as view:
                return tuple(record.version for record in versions.prune(view, max(keep, 1)))
        return self._engine.run(name, body)

    def collect_programs(self) -> int:
        """Delete stored programs that no version refers to; returns how many.

        Raises:
            CorruptRegistry: A file or row is damaged or missing, so that it cannot be told; nothing was deleted.
            StoreUnavailable: The store cannot be written.
        """
        return self._store.collect()
