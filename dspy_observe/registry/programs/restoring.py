"""From a snapshot back to a running program."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import dspy

from dspy_observe.registry.programs import walking
from dspy_observe.registry.programs.capturing import field_states, instructions_sha256, tool_states
from dspy_observe.registry.programs.errors import (
    IncompatibleProgramError,
    ProgramFactoryError,
    ProgramStateError,
    SchemaDifference,
    UntrustedProgramError,
)
from dspy_observe.registry.programs.identity import adapter_identity, build_lm, checked_settings, lm_identity
from dspy_observe.registry.programs.models import ProgramSnapshot
from dspy_observe.registry.programs.schema import schema_differences, tool_differences
from dspy_observe.registry.programs.states import Demo, LMIdentity, PredictorState
from dspy_observe.registry.programs.typetext import enums_in
from dspy_observe.registry.programs.values import Builders, decode

__all__ = ["restore"]

_logger = logging.getLogger("dspy_observe.registry")

Migration = Callable[[dict[str, Any]], Mapping[str, Any]]
LMSource = Callable[[LMIdentity], Any]


def restore(
    factory: Callable[[], Any],
    snapshot: ProgramSnapshot,
    *,
    migrate: Migration | None = None,
    lm_for: LMSource | None = None,
    trust_source: bool = False,
) -> Any:
    """A new program with the state of a snapshot.

    The schema is compared before anything is applied. Field text is bound by name. The state and config of the
    snapshot win over what the code says, so the program is the one that was tuned and scored. A predictor's LM is the
    one that the factory set, when it is of the same identity; otherwise a new ``dspy.LM`` that takes its credentials
    from the environment. Nothing is unpickled, and no class is looked up by a name from the snapshot.

    Args:
        factory: Makes a new program with the code of today, such as the program's class.
        snapshot: The stored program; it is not changed, and the result shares nothing with it.
        migrate: Called with the snapshot as plain data (``ProgramSnapshot.to_dict``) before the comparison; returns
            what should be loaded, such as the data with a field renamed.
        lm_for: Makes the LM of a predictor from its identity, where the factory set no such LM: needed for an LM with
            an endpoint, an engine or a class of its own, none of which is stored. ``None`` refuses such a snapshot.
        trust_source: Whether source code of a ``dspy.Flex`` may be taken from the snapshot; DSPy runs it in a sandbox.

    Raises:
        IncompatibleProgramError: The program does not fit; names each difference.
        ProgramStateError: The snapshot, or what ``migrate`` made of it, is malformed or holds what is not allowed.
        UntrustedProgramError: It holds source code other than the factory's, and ``trust_source`` is off.
        ProgramFactoryError: The factory gave no ``dspy.Module``.
    """
    if migrate is not None:
        snapshot = ProgramSnapshot.from_dict(migrate(snapshot.to_dict()))
    program = factory()
    if not isinstance(program, dspy.Module):
        raise ProgramFactoryError(f"the factory gave a {type(program).__name__}, not a dspy.Module")
    current = {
        path: one for path, one in walking.parameters(program).items() if isinstance(one, dspy.Predict | dspy.Flex)
    }
    modules = walking.modules(program)
    differences = [
        *schema_differences(snapshot.predictors, [_shape(path, one) for path, one in current.items()]),
        *tool_differences(snapshot.tools, tool_states(program)),
        *(_gone(path) for path in snapshot.compiled if path not in modules and path not in _paths(snapshot)),
    ]
    pairs = [(state, current[state.path]) for state in snapshot.predictors if state.path in current]
    lms: dict[str, Any] = {}
    for state, one in pairs:
        differences.extend(_withheld(state, one))
        lms[state.path] = _lm(state, one, lm_for)
        if state.lm is not None and lms[state.path] is None:
            differences.append(_no_lm(state, state.lm))
    if differences:
        raise IncompatibleProgramError(differences)
    rewritten = [
        state.path for state, one in pairs if state.code_instructions_sha256 not in (None, instructions_sha256(one))
    ]
    for state, one in pairs:
        _apply(state, one, lms[state.path], trust_source)
    for path, module in modules.items():
        module._compiled = path in snapshot.compiled  # DSPy has no other way to say it
    if rewritten:
        _logger.warning(
            "the code's instructions of these predictors changed since the stored program was tuned from them; the "
            "stored ones win, so what was added has no effect: %s",
            ", ".join(rewritten),
        )
    _warn(snapshot, program)
    return program


def _paths(snapshot: ProgramSnapshot) -> set[str]:
    return {state.path for state in snapshot.predictors}


def _shape(path: str, one: Any) -> PredictorState:
    kind = "flex" if isinstance(one, dspy.Flex) else "predict"
    return PredictorState(path, kind, "", field_states(one.signature))


def _gone(path: str) -> SchemaDifference:
    return SchemaDifference("module_missing", path, path, f"module {path!r} is stored as compiled but not in the code")


def _withheld(state: PredictorState, one: Any) -> list[SchemaDifference]:
    own = getattr(one, "config", {})
    return [
        SchemaDifference(
            "config_unavailable", state.path, name,
            f"predictor {state.path!r} was tuned with config {name!r}, whose value is not stored: set it in the code",
        )
        for name in state.config_withheld
        if name not in own
    ]  # fmt: skip


def _lm(state: PredictorState, one: Any, lm_for: LMSource | None) -> Any | None:
    if state.lm is None:
        return None
    where = f"predictors.{state.path}.lm"
    checked_settings(state.lm.settings, f"{where}.settings")
    if one.lm is not None and lm_identity(one.lm, where) == state.lm:
        return one.lm  # it has the credentials and the endpoint, which are not stored
    return lm_for(state.lm) if lm_for is not None else build_lm(state.lm, where)


def _no_lm(state: PredictorState, identity: LMIdentity) -> SchemaDifference:
    lacks = f" with settings that are not stored ({', '.join(identity.withheld)})" if identity.withheld else ""
    return SchemaDifference(
        "lm_unavailable", state.path, identity.model,
        f"predictor {state.path!r} was tuned for LM {identity.model!r} of class {identity.class_path}{lacks}: "
        "let the factory set it, or give lm_for",
    )  # fmt: skip


def _apply(state: PredictorState, one: Any, lm: Any | None, trust_source: bool) -> None:
    where = f"predictors.{state.path}"
    if isinstance(one, dspy.Flex):
        if state.source is not None and state.source != one.module_src:
            if not trust_source:
                raise UntrustedProgramError(
                    f"{where} holds source code that is not the factory's; load it with trust_source=True if you "
                    "know where the stored program comes from"
                )
            one.load_state({"module_src": state.source, "lm": None})
        one.lm = lm
        return
    config = checked_settings(state.config, f"{where}.config")
    config.update({name: one.config[name] for name in state.config_withheld})
    signature, loaded = one.signature, _dspy_state(state, one, where)
    try:
        one.load_state(loaded)
    except ValueError as error:  # DSPy checks the criteria of decisions
        raise ProgramStateError(f"{where}.decisions", "do not fit the fields") from error
    if loaded["signature"] == signature.dump_state():
        one.signature = signature  # DSPy makes a new class either way, and the code's own has its name
    one.config, one.lm = config, lm


def _dspy_state(state: PredictorState, one: Any, where: str) -> dict[str, Any]:
    """What ``Predict.load_state`` takes: these keys and no others, with field text in the order of the code."""
    enums = {name: kind for info in one.signature.fields.values() for name, kind in enums_in(info.annotation).items()}
    builders = Builders(enums, dspy.Example)
    texts = {field.name: field for field in state.fields}
    loaded: dict[str, Any] = {
        name: [_demo(demo, f"{where}.{name}[{at}]", builders) for at, demo in enumerate(getattr(state, name))]
        for name in ("demos", "train", "traces")
    }
    loaded["signature"] = {
        "instructions": state.instructions,
        "fields": [
            {"prefix": texts[name].prefix, "description": texts[name].description} for name in one.signature.fields
        ],
    }
    if state.decisions:
        loaded["fields"] = {name: decode(value, f"{where}.decisions.{name}") for name, value in state.decisions.items()}
    loaded["lm"] = None
    return loaded


def _demo(demo: Demo, where: str, builders: Builders) -> Any:
    fields = {name: decode(value, f"{where}.{name}", builders) for name, value in demo.fields.items()}
    if not demo.example:
        return fields
    example = dspy.Example(fields)
    return example if demo.input_keys is None else example.with_inputs(*demo.input_keys)


def _warn(snapshot: ProgramSnapshot, program: Any) -> None:
    """Say what does not stand in the way but makes the program another one than was stored."""
    if snapshot.adapter is not None and snapshot.adapter != adapter_identity(dspy.settings.adapter):
        _logger.warning(
            "the stored program was tuned with %s, which is not the adapter of dspy.settings here or has other "
            "options; its prompts will differ",
            snapshot.adapter.class_path,
        )
    stored = {(tool.owner, tool.name): tool.description for tool in snapshot.tools}
    changed = [tool.name for tool in tool_states(program) if stored.get((tool.owner, tool.name)) != tool.description]
    if changed:
        _logger.warning(
            "the code describes these tools otherwise than the stored program, which may quote the old text: %s",
            ", ".join(changed),
        )
    if snapshot.redactions:
        _logger.warning(
            "credentials were taken out of the stored program in %d places, where its prompts differ: %s",
            len(snapshot.redactions),
            ", ".join(place.path for place in snapshot.redactions[:5]),
        )
