"""What changed between two versions of a program, predictor by predictor. Pure."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dspy_observe.registry.programs.models import ProgramSnapshot
from dspy_observe.registry.programs.states import AdapterIdentity, Demo, LMIdentity, PredictorState, ToolState, plain
from dspy_observe.registry.programs.values import canonical

__all__ = ["Change", "PredictorDiff", "diff"]

PROGRAM: Final = ""
"""Path under which changes of the whole program stand: its adapter, tools and LM."""

_SHOWN_CHARS: Final = 120
_MISSING: Final = object()


@dataclass(frozen=True, slots=True)
class Change:
    """One changed thing.

    Attributes:
        what: ``predictor``, ``instructions``, ``source``, ``demo``, ``demos``, ``field``, ``config``, ``decisions``,
            ``train``, ``traces``, ``lm``, ``adapter`` or ``tool``.
        kind: ``added``, ``removed``, ``changed`` or ``reordered``.
        name: Which of them: a field, a setting, a tool, the first twelve digits of a demo's address; else ``""``.
        before: What was there; ``None`` when added.
        after: What is there; ``None`` when removed.
    """

    what: str
    kind: str
    name: str
    before: Any
    after: Any

    def to_dict(self) -> dict[str, Any]:
        """The change as plain data."""
        return {
            "what": self.what, "kind": self.kind, "name": self.name,
            "before": plain(self.before), "after": plain(self.after),
        }  # fmt: skip

    def __str__(self) -> str:
        head = " ".join(part for part in (self.what, self.name, self.kind) if part)
        if self.what in {"instructions", "source"}:
            return "\n".join([head, *self._lines()])
        if self.kind == "added":
            return f"{head}: {_shown(self.after)}"
        if self.kind == "removed":
            return f"{head}: {_shown(self.before)}"
        return f"{head}: {_shown(self.before)} -> {_shown(self.after)}"

    def _lines(self) -> Iterator[str]:
        before, after = str(self.before or "").splitlines(), str(self.after or "").splitlines()
        for line in difflib.unified_diff(before, after, lineterm="", n=2):
            if not line.startswith(("---", "+++")) or len(line) > 4:  # noqa: PLR2004 - the two file headers are "--- "
                yield f"    {line}"


@dataclass(frozen=True, slots=True)
class PredictorDiff:
    """Everything that changed in one predictor.

    Attributes:
        predictor: Its path; ``""`` for what belongs to the whole program.
        changes: At least one.
    """

    predictor: str
    changes: tuple[Change, ...]

    def to_dict(self) -> dict[str, Any]:
        """The changes as plain data."""
        return {"predictor": self.predictor, "changes": [change.to_dict() for change in self.changes]}

    def __str__(self) -> str:
        lines = [self.predictor or "(program)"]
        for change in self.changes:
            lines.extend(f"  {line}" for line in str(change).splitlines())
        return "\n".join(lines)


def diff(a: ProgramSnapshot, b: ProgramSnapshot) -> list[PredictorDiff]:
    """What changed from one program to another, over everything that the content address covers.

    Args:
        a: The earlier program.
        b: The later one.

    Returns:
        One entry for each predictor with changes, and one under ``""`` for the program; none when both have the same
        content address.
    """
    before, after = ({state.path: state for state in one.predictors} for one in (a, b))
    found = [PredictorDiff(PROGRAM, tuple(_program(a, b)))]
    paths = [*before, *(path for path in after if path not in before)]
    found.extend(PredictorDiff(path, tuple(_predictor(before.get(path), after.get(path)))) for path in paths)
    return [one for one in found if one.changes]


def _program(a: ProgramSnapshot, b: ProgramSnapshot) -> Iterator[Change]:
    yield from _identity("lm", a.lm, b.lm)
    yield from _identity("adapter", a.adapter, b.adapter)
    yield from _named("tool", _tools(a.tools), _tools(b.tools), ordered=True)


def _tools(tools: Sequence[ToolState]) -> dict[str, Any]:
    return {f"{tool.owner}.{tool.name}": plain(tool) for tool in tools}


def _predictor(before: PredictorState | None, after: PredictorState | None) -> Iterator[Change]:
    if before is None or after is None:
        kind = "added" if before is None else "removed"
        yield Change("predictor", kind, "", _summary(before), _summary(after))
        return
    if before.kind != after.kind:
        yield Change("predictor", "changed", "kind", before.kind, after.kind)
    if before.instructions != after.instructions:
        yield Change("instructions", "changed", "", before.instructions, after.instructions)
    if before.source != after.source:
        yield Change("source", "changed", "", before.source, after.source)
    yield from _named("field", _fields(before), _fields(after))
    was, now = [field.name for field in before.fields], [field.name for field in after.fields]
    if was != now and sorted(was) == sorted(now):
        yield Change("field", "reordered", "", was, now)
    yield from _demos("demo", before.demos, after.demos, before)
    yield from _demos("train", before.train, after.train, before)
    yield from _demos("traces", before.traces, after.traces, before)
    yield from _named("config", _config(before), _config(after))
    yield from _named("decisions", before.decisions, after.decisions, ordered=True)
    if canonical(before.decisions, ordered=True) != canonical(after.decisions, ordered=True) and (
        before.decisions == after.decisions and list(before.decisions) != list(after.decisions)
    ):
        yield Change("decisions", "reordered", "", list(before.decisions), list(after.decisions))
    yield from _identity("lm", before.lm, after.lm)


def _summary(state: PredictorState | None) -> dict[str, Any] | None:
    if state is None:
        return None
    return {
        "kind": state.kind, "instructions": state.instructions, "fields": [field.name for field in state.fields],
        "demos": len(state.demos),
    }  # fmt: skip


def _fields(state: PredictorState) -> dict[str, Any]:
    return {field.name: {key: value for key, value in plain(field).items() if key != "name"} for field in state.fields}


def _config(state: PredictorState) -> dict[str, Any]:
    return {**state.config, **dict.fromkeys(state.config_withheld, "<withheld>")}


def _identity(what: str, before: LMIdentity | AdapterIdentity | None, after: Any) -> Iterator[Change]:
    if before is None and after is None:
        return
    if before is None or after is None:
        yield Change(what, "added" if before is None else "removed", "", plain(before), plain(after))
        return
    yield from _named(what, _flat(before), _flat(after))


def _flat(identity: LMIdentity | AdapterIdentity) -> dict[str, Any]:
    if isinstance(identity, AdapterIdentity):
        return {**identity.options, "class": identity.class_path}
    own = {"class": identity.class_path, "model": identity.model, "withheld": list(identity.withheld)}
    return {**identity.settings, **own}


def _named(
    what: str, before: Mapping[str, Any], after: Mapping[str, Any], *, ordered: bool = False
) -> Iterator[Change]:
    for name in [*before, *(name for name in after if name not in before)]:
        was, now = before.get(name, _MISSING), after.get(name, _MISSING)
        if was is _MISSING:
            yield Change(what, "added", name, None, now)
        elif now is _MISSING:
            yield Change(what, "removed", name, was, None)
        elif canonical(was, ordered=ordered) != canonical(now, ordered=ordered):
            yield Change(what, "changed", name, was, now)


def _demos(what: str, before: Sequence[Demo], after: Sequence[Demo], state: PredictorState) -> Iterator[Change]:
    was, now = [demo.sha256 for demo in before], [demo.sha256 for demo in after]
    if was == now:
        return
    gone, new = _left(before, now), _left(after, was)
    inputs = [field.name for field in state.fields if field.direction == "input"]
    for demo in list(gone):
        twin = next((one for one in new if _asks(one, inputs) == _asks(demo, inputs)), None)
        if twin is not None:
            gone.remove(demo)
            new.remove(twin)
            yield Change(what, "changed", demo.sha256[:12], demo.fields, twin.fields)
    for demo in gone:
        yield Change(what, "removed", demo.sha256[:12], demo.fields, None)
    for demo in new:
        yield Change(what, "added", demo.sha256[:12], None, demo.fields)
    if sorted(was) == sorted(now):
        yield Change(what, "reordered", "", [one[:12] for one in was], [one[:12] for one in now])


def _left(demos: Sequence[Demo], others: Sequence[str]) -> list[Demo]:
    """The demos that are not among the others, counting repeats."""
    rest = list(others)
    left = []
    for demo in demos:
        if demo.sha256 in rest:
            rest.remove(demo.sha256)
        else:
            left.append(demo)
    return left


def _asks(demo: Demo, inputs: Sequence[str]) -> str:
    return canonical([demo.fields.get(name) for name in inputs], ordered=True)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(plain(value), ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}... ({len(text)} characters)"
