"""Who reads records: what readers and the callbacks that hold them promise to the ledger."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from dspy_observe.records import CallKind, CallRecord, CallStart, ContentMode, Price, RegistryEvent, Score
from dspy_observe.redaction import Redactor

__all__ = ["Plan", "Reader", "Recorder", "Route", "without"]


class Reader:
    """Somebody who reads records. What a reader wants to be told and needs gathered, it says in these attributes."""

    kinds: frozenset[CallKind] | None = None
    """The calls that the reader is told of; ``None`` is all of them."""
    failures_only: frozenset[CallKind] = frozenset()
    """Kinds among them of which only failed calls matter; their start is not told."""
    passive: bool = False
    """Whether the reader is told only of calls that another reader asks for."""
    redactor: Redactor | None = None
    """Applied to the content of a call before any reader sees it."""
    price: Price | None = None
    """Replaces DSPy's estimate of a call's cost."""
    content: ContentMode = "none"
    """Whether the reader wants inputs and outputs, and how."""
    meter_streams: bool = False
    """Whether LiteLLM is asked to report the usage of streams."""
    told_of_starts: bool = True
    """Whether a reader that has a :meth:`started` of its own is told of starts."""

    @property
    def identity(self) -> object:
        """Readers with equal identities do the same work; only the first of them reads a call."""
        return id(self)

    def started(self, start: CallStart) -> None:
        """A call begins."""

    def finished(self, record: CallRecord) -> None:
        """A call ended, in whatever way."""

    def compiled(self, record: CallRecord, optimizer: Any, inputs: Mapping[str, Any], program: Any) -> None:
        """An optimizer returned a program; told after ``finished``, before its caller has it.

        Args:
            record: The ``compile`` call.
            optimizer: The very optimizer.
            inputs: The arguments of its ``compile`` by name, such as ``student`` and ``trainset``; only read.
            program: The very object that it returned; only read.
        """

    def evaluated(self, record: CallRecord, program: Any, n: int | None) -> None:
        """An evaluation ended; told after ``finished``.

        Args:
            record: The ``evaluate`` call, with score and data set.
            program: The very object that was evaluated; only read.
            n: Examples that the score is the mean of; ``None`` when the evaluation does not tell.
        """

    def dropped(self, start: CallStart) -> None:
        """A call was given up: its end was never told, or too many calls are open."""

    def happened(self, event: RegistryEvent) -> None:
        """The registry of program versions changed."""

    def scored(self, score: Score) -> None:
        """An answer was scored."""

    def flush(self, timeout_s: float) -> bool:  # noqa: ARG002 - for readers that keep something back
        """Send what waits; returns whether everything went out within ``timeout_s`` seconds."""
        return True


@dataclass(frozen=True, slots=True)
class Plan:
    """What the readers of a call need gathered, taken together."""

    content: ContentMode = "none"
    redactors: tuple[Redactor, ...] = ()
    prices: tuple[Price, ...] = ()
    meter_streams: bool = False

    @classmethod
    def of(cls, readers: Iterable[Reader]) -> Plan:
        """Combine the wishes of readers. Redacted content is the rule as soon as one reader asks for it so."""
        readers = tuple(readers)
        modes = {reader.content for reader in readers}
        return cls(
            content="redacted" if "redacted" in modes else "raw" if "raw" in modes else "none",
            redactors=tuple(dict.fromkeys(r.redactor for r in readers if r.redactor is not None)),
            prices=tuple(dict.fromkeys(r.price for r in readers if r.price is not None)),
            meter_streams=any(reader.meter_streams for reader in readers),
        )


class Route(NamedTuple):
    """Who is told what about the calls of one kind. Worked out once for each callback, not on every call."""

    readers: tuple[Reader, ...]
    """Told of every end."""
    starters: tuple[Reader, ...]
    """Those of them that do something at the start."""
    on_failure: tuple[Reader, ...]
    """Told of failed ends only."""
    passive: tuple[Reader, ...] = ()
    """Told of the calls that another callback in DSPy's list reads, where none of this one's readers asks for them."""
    only_failures: bool = False
    """Whether this callback needs nothing gathered of a call that goes well. Not so for an LM: how it fails, only taps
    tell that were there before."""

    @classmethod
    def of(cls, readers: Iterable[Reader], kind: CallKind) -> Route:
        """Sort the readers that want calls of this kind."""
        wanting = tuple(reader for reader in readers if reader.kinds is None or kind in reader.kinds)
        always = tuple(reader for reader in wanting if kind not in reader.failures_only)
        passive: tuple[Reader, ...] = ()
        if all(reader.passive for reader in always):
            always, passive = (), always
        starters = tuple(
            reader for reader in always if reader.told_of_starts and type(reader).started is not Reader.started
        )
        on_failure = tuple(reader for reader in wanting if reader not in always)
        return cls(always, starters, on_failure, passive, kind != "lm" and not always)


class Recorder:
    """What the ledger expects of a callback in DSPy's list; ``callbacks/base.py`` has the two kinds."""

    @property
    def readers(self) -> tuple[Reader, ...]:
        """Who reads through this callback; the same for its whole life."""
        raise NotImplementedError

    @property
    def plan(self) -> Plan:
        """What those readers need gathered."""
        raise NotImplementedError

    @property
    def routes(self) -> dict[CallKind, Route]:
        """Who is told what, for every kind of call."""
        raise NotImplementedError


def without(route: Route, present: Iterable[Route]) -> Route:
    """Leave out readers whose work another callback of the same call already does."""
    taken = {reader.identity for other in present for reader in other.readers + other.on_failure}

    def left(part: tuple[Reader, ...]) -> tuple[Reader, ...]:
        return tuple(reader for reader in part if reader.identity not in taken)

    return route._replace(
        readers=left(route.readers), starters=left(route.starters), on_failure=left(route.on_failure),
        passive=left(route.passive),
    )  # fmt: skip
