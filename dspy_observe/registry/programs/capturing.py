"""From a running program to its snapshot."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

import dspy

from dspy_observe.redaction import Redaction, Redactor, credentials_only
from dspy_observe.registry.programs import walking
from dspy_observe.registry.programs.errors import ProgramRedactionError, UnserialisableProgramError
from dspy_observe.registry.programs.identity import (
    adapter_identity,
    class_path,
    harmless_settings,
    lm_identity,
    secrets_of,
)
from dspy_observe.registry.programs.models import ProgramSnapshot
from dspy_observe.registry.programs.optimizers import optimizer_parameters
from dspy_observe.registry.programs.provenance import code_folder, dataset_sha256, git_state
from dspy_observe.registry.programs.states import Demo, FieldState, PredictorState, RedactedPlace, ToolState
from dspy_observe.registry.programs.typetext import type_text
from dspy_observe.registry.programs.values import encode, sha256_of

__all__ = ["field_states", "fingerprint", "instructions_sha256", "snapshot", "tool_states"]

_WHOLE = 1 << 30  # characters: a state that is cut short would come back as another program


def snapshot(
    module: Any,
    *,
    lm: Any | None = None,
    optimizer: Any | None = None,
    optimizer_params: Mapping[str, Any] | None = None,
    trainset: Iterable[Any] | None = None,
    devset: Iterable[Any] | None = None,
    factory: Callable[[], Any] | None = None,
    redactor: Redactor | None = None,
) -> ProgramSnapshot:
    """The compiled state of a program with everything needed to check that it fits the code it is loaded into.

    Separately compiled sub-modules are included. Credentials are taken out; where that changed the state stands in
    ``redactions``. Nothing is changed and nothing is shared with the program.

    Args:
        module: The program.
        lm: The LM it runs with; ``None`` takes the one of DSPy's settings.
        optimizer: The optimizer, or its name; ``None`` when there was none.
        optimizer_params: Its parameters; ``None`` takes what the optimizer keeps.
        trainset: Examples it was trained on; ``None`` when unknown.
        devset: Examples it was chosen on; ``None`` when unknown.
        factory: Makes the untuned program, as for ``restore``; with it, a later change of the code's instructions is
            noticed. ``None`` leaves that out.
        redactor: Takes credentials out of texts; ``None`` takes the default one. It also learns the program's own keys.

    Raises:
        UnserialisableProgramError: Something in the state has no exact form as JSON, or is of a kind not known here.
        ProgramRedactionError: Credentials could not be looked for.
    """
    if not isinstance(module, dspy.Module):
        raise UnserialisableProgramError("program", f"a {type(module).__name__} is not a dspy.Module")
    found = walking.parameters(module)
    lm = lm if lm is not None else dspy.settings.lm
    clean = _Cleaner(redactor, [lm, *(getattr(one, "lm", None) for one in found.values())], found.values())
    states = tuple(_state(path, one, clean) for path, one in found.items() if not isinstance(one, dspy.Retrieve))
    if factory is not None:
        code = {path: instructions_sha256(one) for path, one in walking.parameters(factory()).items()}
        states = tuple(replace(state, code_instructions_sha256=code.get(state.path)) for state in states)
    name, params = _optimizer(optimizer, optimizer_params, clean)
    sha, dirty = git_state(code_folder(type(module)))
    return ProgramSnapshot(
        module=class_path(type(module)),
        predictors=states,
        compiled=tuple(path for path, one in walking.modules(module).items() if getattr(one, "_compiled", False)),
        adapter=adapter_identity(dspy.settings.adapter),
        tools=tuple(clean.tool(tool) for tool in tool_states(module)),
        lm=lm_identity(lm, "lm"),
        dspy_version=dspy.__version__,
        git_sha=sha,
        git_dirty=dirty,
        trainset_sha256=dataset_sha256(trainset),
        devset_sha256=dataset_sha256(devset),
        optimizer=name,
        optimizer_params=params,
        redactions=tuple(clean.places),
    )


def fingerprint(module: Any) -> str:
    """What a running program says, as a hash that changes when the program is changed. It is not a content address.

    Args:
        module: The program; only read.

    Raises:
        UnserialisableProgramError: Something in the state has no exact form as JSON.
    """
    as_it_is = _AsItIs(None, (), ())
    states = [
        _state(path, one, as_it_is).content()
        for path, one in walking.parameters(module).items()
        if not isinstance(one, dspy.Retrieve)
    ]
    return sha256_of({"predictors": states, "tools": [asdict(tool) for tool in tool_states(module)]})


class _Cleaner:
    """Encodes values and takes credentials out of them, and remembers where."""

    def __init__(self, redactor: Redactor | None, lms: Iterable[Any], predictors: Iterable[Any]) -> None:
        self.places: list[RedactedPlace] = []
        self.redactor = redactor or credentials_only(Redaction(scan_limit_chars=_WHOLE))
        settings = [getattr(lm, "kwargs", None) for lm in lms] + [getattr(one, "config", None) for one in predictors]
        self.redactor.add_secrets({secret for one in settings for secret in secrets_of(one)})

    def data(self, value: Any, where: str) -> Any:
        """A value as JSON without credentials."""
        return self.redacted(encode(value, where), where)

    def redacted(self, value: Any, where: str) -> Any:
        """JSON data without credentials."""
        failures = self.redactor.failures
        copy, findings = self.redactor.redact(value)
        if self.redactor.failures > failures:
            raise ProgramRedactionError(where)
        for finding in findings:
            place = f"{where}.{finding.path}" if finding.path else where
            self.places.append(RedactedPlace(finding.entity, place))
        return copy

    def demo(self, value: Any, where: str) -> Demo:
        """One demo."""
        if isinstance(value, dspy.Example):
            fields = {key: value[key] for key in value.keys(include_dspy=True)}
            keys = getattr(value, "_input_keys", None)
            return Demo(self.fields(fields, where), None if keys is None else tuple(sorted(keys)), example=True)
        if isinstance(value, Mapping):
            return Demo(self.fields(value, where), None, example=False)
        raise UnserialisableProgramError(where, f"a {type(value).__name__} is neither an Example nor a mapping")

    def fields(self, values: Mapping[Any, Any], where: str) -> dict[str, Any]:
        """The values of one demo by field name."""
        if not all(isinstance(key, str) for key in values):
            raise UnserialisableProgramError(where, "has a field whose name is no text")
        encoded = {key: encode(value, f"{where}.{key}") for key, value in values.items()}
        return dict(self.redacted(encoded, where))

    def demos(self, values: Iterable[Any], where: str) -> tuple[Demo, ...]:
        """A list of demos."""
        return tuple(self.demo(value, f"{where}[{at}]") for at, value in enumerate(values))

    def field(self, own: FieldState, where: str) -> FieldState:
        """A field whose texts hold no credentials."""
        prefix = self.redacted(own.prefix, f"{where}.prefix")
        description = self.redacted(own.description, f"{where}.description")
        return FieldState(own.name, own.direction, own.type, own.required, prefix, description)

    def tool(self, own: ToolState) -> ToolState:
        """A tool whose texts hold no credentials."""
        where = f"tools.{own.owner}.{own.name}"
        return ToolState(own.owner, own.name, self.redacted(own.description, where), self._args(own.args, where))

    def _args(self, args: dict[str, Any], where: str) -> dict[str, Any]:
        # One by one: an argument called "token" is a declaration, not a token.
        return {name: self.redacted(schema, f"{where}.{name}") for name, schema in args.items()}


class _AsItIs(_Cleaner):
    """Takes nothing out: for what stays in this process."""

    def redacted(self, value: Any, where: str) -> Any:  # noqa: ARG002 - as the base class has it
        """The value itself."""
        return value


def _state(path: str, one: Any, clean: _Cleaner) -> PredictorState:
    where = f"predictors.{path}"
    if isinstance(one, dspy.Flex):
        return PredictorState(
            path, "flex", "", _clean_fields(one.signature, clean, where), lm=lm_identity(one.lm, f"{where}.lm"),
            source=clean.redacted(one.module_src, f"{where}.source"),
        )  # fmt: skip
    if not isinstance(one, dspy.Predict) or type(one).dump_state is not dspy.Predict.dump_state:
        raise UnserialisableProgramError(where, f"{class_path(type(one))} has state of a kind that is not known here")
    config, withheld = harmless_settings(one.config, f"{where}.config")
    return PredictorState(
        path=path,
        kind="predict",
        instructions=clean.redacted(one.signature.instructions, f"{where}.instructions"),
        fields=_clean_fields(one.signature, clean, where),
        demos=clean.demos(one.demos, f"{where}.demos"),
        train=clean.demos(one.train, f"{where}.train"),
        traces=clean.demos(one.traces, f"{where}.traces"),
        config=clean.redacted(config, f"{where}.config"),
        config_withheld=withheld,
        decisions={name: clean.data(value, f"{where}.decisions.{name}") for name, value in one.fields.items()},
        lm=lm_identity(one.lm, f"{where}.lm"),
    )


def _clean_fields(signature: Any, clean: _Cleaner, where: str) -> tuple[FieldState, ...]:
    return tuple(clean.field(one, f"{where}.fields.{one.name}") for one in field_states(signature))


def field_states(signature: Any) -> tuple[FieldState, ...]:
    """The fields of a signature, inputs first, in order.

    Args:
        signature: A ``dspy.Signature`` class.
    """
    states = []
    for direction, fields in (("input", signature.input_fields), ("output", signature.output_fields)):
        for name, info in fields.items():
            extra = info.json_schema_extra
            states.append(
                FieldState(
                    name, direction, type_text(info.annotation), info.is_required(), str(extra["prefix"]),
                    str(extra["desc"]),
                )
            )  # fmt: skip
    return tuple(states)


def instructions_sha256(one: Any) -> str | None:
    """Address of a predictor's instructions; ``None`` for a parameter that has none.

    Args:
        one: A ``dspy.Predict`` or another parameter.
    """
    return sha256_of(one.signature.instructions) if isinstance(one, dspy.Predict) else None


def tool_states(module: Any) -> tuple[ToolState, ...]:
    """The tools of a program's modules.

    Args:
        module: The program.
    """
    return tuple(
        ToolState(owner, str(tool.name), str(tool.desc or ""), encode(tool.args or {}, f"tools.{owner}.{tool.name}"))
        for owner, tool in walking.tools(module)
    )


def _optimizer(
    optimizer: Any | None, params: Mapping[str, Any] | None, clean: _Cleaner
) -> tuple[str | None, dict[str, Any]]:
    if optimizer is None or isinstance(optimizer, str):
        name, own = optimizer, {}
    else:
        name, own = type(optimizer).__name__, optimizer_parameters(optimizer, clean.redactor)
    return name, dict(clean.data(dict(params), "optimizer_params")) if params is not None else own
