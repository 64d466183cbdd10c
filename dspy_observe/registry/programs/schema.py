"""Does a stored program fit the code? Pure: two schemas in, differences in words out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dspy_observe.registry.programs.errors import SchemaDifference
from dspy_observe.registry.programs.states import FieldState, PredictorState, ToolState
from dspy_observe.registry.programs.values import canonical

__all__ = ["schema_differences", "tool_differences"]

_TEXT_KEYS = frozenset({"description", "title"})  # of an argument's JSON schema: they tell, they do not constrain


def schema_differences(
    stored: Sequence[PredictorState], current: Sequence[PredictorState]
) -> tuple[SchemaDifference, ...]:
    """How the predictors and fields of a stored program differ from those of the code.

    Args:
        stored: Predictors of the stored program.
        current: Predictors of a program that the code has just built; only paths, kinds and fields are read.

    Returns:
        One difference for each thing missing, unexpected, renamed, reordered or retyped; none when they fit.
    """
    before = {state.path: state for state in stored}
    after = {state.path: state for state in current}
    gone = [state for path, state in before.items() if path not in after]
    new = [state for path, state in after.items() if path not in before]
    found = list(_predictors(gone, new))
    for path, state in before.items():
        if path in after:
            found.extend(_fields(path, state, after[path]))
    return tuple(found)


def _predictors(gone: list[PredictorState], new: list[PredictorState]) -> Iterator[SchemaDifference]:
    for state in gone:
        twin = next((other for other in new if _same_names(state, other)), None)
        hint = f"; perhaps it is now {twin.path!r}" if twin else ""
        yield SchemaDifference(
            "predictor_missing", state.path, state.path, f"predictor {state.path!r} is stored but not in the code{hint}"
        )
    for state in new:
        yield SchemaDifference(
            "predictor_unexpected", state.path, state.path,
            f"predictor {state.path!r} is in the code but has no stored state",
        )  # fmt: skip


def _same_names(one: PredictorState, other: PredictorState) -> bool:
    return [field.name for field in one.fields] == [field.name for field in other.fields]


def _fields(path: str, stored: PredictorState, current: PredictorState) -> Iterator[SchemaDifference]:
    if stored.kind != current.kind:
        yield SchemaDifference(
            "predictor_kind", path, path,
            f"predictor {path!r} was a {stored.kind} and is a {current.kind} in the code",
        )  # fmt: skip
    before = {field.name: field for field in stored.fields}
    after = {field.name: field for field in current.fields}
    new = [field for name, field in after.items() if name not in before]
    for name, field in before.items():
        if name not in after:
            twin = _renamed(field, stored, current, new)
            hint = f"; perhaps it is now {twin.name!r}" if twin else ""
            yield SchemaDifference(
                "field_missing", path, name,
                f"{field.direction} field {name!r} of predictor {path!r} is stored but not in the code{hint}",
            )  # fmt: skip
    for field in new:
        yield SchemaDifference(
            "field_unexpected", path, field.name,
            f"{field.direction} field {field.name!r} of predictor {path!r} is in the code but not stored",
        )  # fmt: skip
    for name, field in before.items():
        if name in after:
            yield from _field(path, field, after[name])
    yield from _order(path, before, after)


def _renamed(
    field: FieldState, stored: PredictorState, current: PredictorState, new: list[FieldState]
) -> FieldState | None:
    at = [one.name for one in stored.fields].index(field.name)
    there = current.fields[at] if at < len(current.fields) else None
    candidates = [one for one in new if (one.direction, one.type) == (field.direction, field.type)]
    return there if there in candidates else candidates[0] if len(candidates) == 1 else None


def _field(path: str, before: FieldState, after: FieldState) -> Iterator[SchemaDifference]:
    place = f"field {before.name!r} of predictor {path!r}"
    if before.direction != after.direction:
        yield SchemaDifference(
            "field_direction", path, before.name,
            f"{place} was an {before.direction} and is an {after.direction} in the code",
        )  # fmt: skip
    if before.type != after.type:
        yield SchemaDifference(
            "field_retyped", path, before.name, f"{place} was {before.type} and is {after.type} in the code"
        )
    if before.required != after.required:
        words = {True: "required", False: "optional"}
        yield SchemaDifference(
            "field_required", path, before.name,
            f"{place} was {words[before.required]} and is {words[after.required]} in the code",
        )  # fmt: skip


def _order(path: str, before: Mapping[str, FieldState], after: Mapping[str, FieldState]) -> Iterator[SchemaDifference]:
    for direction in ("input", "output"):
        both = {
            name
            for name in before.keys() & after.keys()
            if before[name].direction == direction == after[name].direction
        }
        was, now = [name for name in before if name in both], [name for name in after if name in both]
        if was != now:
            yield SchemaDifference(
                "fields_reordered", path, direction,
                f"{direction} fields of predictor {path!r} were in the order {', '.join(was)} "
                f"and are {', '.join(now)} in the code",
            )  # fmt: skip


def tool_differences(stored: Sequence[ToolState], current: Sequence[ToolState]) -> tuple[SchemaDifference, ...]:
    """How the tools of a stored program differ from those of the code.

    A changed description of a tool is no difference: it constrains nothing.

    Args:
        stored: Tools of the stored program.
        current: Tools of a program that the code has just built.
    """
    before = {(tool.owner, tool.name): tool for tool in stored}
    after = {(tool.owner, tool.name): tool for tool in current}
    found = []
    for (owner, name), tool in before.items():
        now = after.get((owner, name))
        if now is None:
            message = f"tool {name!r} of {owner!r} is stored but not in the code"
            found.append(SchemaDifference("tool_missing", owner, name, message))
        elif _shape(tool.args) != _shape(now.args):
            message = f"tool {name!r} of {owner!r} took {_arguments(tool)} and takes {_arguments(now)} in the code"
            found.append(SchemaDifference("tool_changed", owner, name, message))
    for owner, name in after.keys() - before.keys():
        message = f"tool {name!r} of {owner!r} is in the code but not stored"
        found.append(SchemaDifference("tool_unexpected", owner, name, message))
    return tuple(sorted(found, key=lambda one: (one.predictor, one.subject, one.kind)))


def _shape(args: Mapping[str, Any]) -> str:
    return canonical({name: _constraint(schema) for name, schema in args.items()})


def _constraint(schema: Any, *, names: bool = False) -> Any:
    if isinstance(schema, dict):
        # Below "properties" the keys are the names of arguments, one of which may well be called "title".
        return {
            key: _constraint(item, names=key == "properties")
            for key, item in schema.items()
            if names or key not in _TEXT_KEYS
        }
    return [_constraint(item) for item in schema] if isinstance(schema, list) else schema


def _arguments(tool: ToolState) -> str:
    shown = [f"{name}: {canonical(_constraint(schema))}" for name, schema in tool.args.items()]
    return f"({', '.join(shown)})"
