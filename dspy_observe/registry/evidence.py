"""What monitors found out about versions, kept where all of them see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dspy_observe.registry import versions
from dspy_observe.registry.core import PRODUCTION, RegistryCore
from dspy_observe.registry.engine import Batch
from dspy_observe.registry.stores.base import Transaction, View

__all__ = ["EvidenceMethods"]


class EvidenceMethods(RegistryCore):
    """The part of a registry that keeps the evidence of monitors. What is in it, they alone know."""

    def evidence(self, name: str, *, environment: str = PRODUCTION) -> dict[str, Any] | None:
        """The evidence on a signature's versions in an environment; ``None`` when there is none.

        Raises:
            UnknownSignature: There is no such signature.
        """
        self._check(name, environment=environment)
        with self._read(name) as view:
            return view.evidence(environment)

    def fold_evidence(
        self,
        name: str,
        fold: Callable[[dict[str, Any] | None, View], Mapping[str, Any] | None],
        *,
        environment: str = PRODUCTION,
    ) -> None:
        """Replace the evidence by what ``fold`` makes of it, in one transaction: no other monitor comes in between.

        Args:
            name: The signature.
            fold: Takes the evidence, ``None`` before the first, and the signature as it is; returns the new evidence,
                for JSON, or ``None`` to leave it. It should do nothing else, as it holds up other writers.
            environment: Which environment.

        Raises:
            UnknownSignature: There is no such signature.
            StoreUnavailable: Nothing was stored.
        """
        self._check(name, environment=environment)

        def body(txn: Transaction, _: Batch) -> None:
            versions.existing(txn)
            state = fold(txn.evidence(environment), txn)
            if state is not None:
                txn.set_evidence(environment, state)

        self._engine.run(name, body)

    def forget_evidence(self, name: str, *, environment: str = PRODUCTION) -> None:
        """Begin anew in an environment: monitors forget scores, verdicts and score ids.

        Raises:
            UnknownSignature: There is no such signature.
        """
        self.fold_evidence(name, lambda _state, _view: {}, environment=environment)
