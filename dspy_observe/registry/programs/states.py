"""The parts of a stored program: predictors, fields, demos, tools, LM and adapter as plain data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from dspy_observe.registry.programs.reading import Reader
from dspy_observe.registry.programs.values import canonical, sha256_of

__all__ = [
    "AdapterIdentity",
    "Demo",
    "FieldState",
    "LMIdentity",
    "PredictorState",
    "RedactedPlace",
    "ToolState",
    "plain",
]


@dataclass(frozen=True, slots=True)
class FieldState:
    """One field of a signature.

    Attributes:
        name: The field's name, by which its text is bound.
        direction: ``input`` or ``output``.
        type: The annotation as text; models and enumerations are spelled out, so that a change inside shows.
        required: Whether it has no default.
        prefix: The field's prefix.
        description: The field's description.
    """

    name: str
    direction: str
    type: str
    required: bool
    prefix: str
    description: str

    @classmethod
    def read(cls, data: Any, where: str) -> FieldState:
        """From plain data; :class:`ProgramStateError` when malformed."""
        with Reader(data, where) as read:
            return cls(
                read.text("name"), read.one_of("direction", ("input", "output")), read.text("type"),
                read.flag("required"), read.text("prefix"), read.text("description"),
            )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Demo:
    """One demonstration, or one entry of a predictor's ``train`` or ``traces``.

    Attributes:
        fields: Values by field name, encoded as JSON.
        input_keys: Names marked as inputs; ``None`` when the example says nothing.
        example: Whether it was a ``dspy.Example``; otherwise a plain dict.
    """

    fields: dict[str, Any]
    input_keys: tuple[str, ...] | None = None
    example: bool = True

    @property
    def sha256(self) -> str:
        """Address of the values; what kind of object carried them does not count."""
        return sha256_of({key: canonical(value, ordered=True) for key, value in self.fields.items()})

    @classmethod
    def read(cls, data: Any, where: str) -> Demo:
        """From plain data; :class:`ProgramStateError` when malformed."""
        with Reader(data, where) as read:
            return cls(read.mapping("fields"), read.maybe("input_keys", read.texts), read.flag("example"))


@dataclass(frozen=True, slots=True)
class LMIdentity:
    """Which language model, without endpoints and secrets.

    Attributes:
        class_path: The LM's class.
        model: Its model name.
        settings: Parameters of generation that are known to be harmless, by name.
        withheld: Names of further settings that shape its calls and whose values are never stored.
    """

    class_path: str
    model: str
    settings: dict[str, Any] = field(default_factory=dict)
    withheld: tuple[str, ...] = ()

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in sorted(self.settings.items()))
        return f"{self.model}({options})" if options else self.model

    @classmethod
    def read(cls, data: Any, where: str) -> LMIdentity:
        """From plain data; :class:`ProgramStateError` when malformed."""
        with Reader(data, where) as read:
            return cls(read.text("class_path"), read.text("model"), read.mapping("settings"), read.texts("withheld"))


@dataclass(frozen=True, slots=True)
class AdapterIdentity:
    """Which adapter turns fields into prompts.

    Attributes:
        class_path: The adapter's class.
        options: Its options by name; a class or LM among them is given by name.
    """

    class_path: str
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, data: Any, where: str) -> AdapterIdentity:
        """From plain data; :class:`ProgramStateError` when malformed."""
        with Reader(data, where) as read:
            return cls(read.text("class_path"), read.mapping("options"))


@dataclass(frozen=True, slots=True)
class ToolState:
    """One tool that a module of the program holds.

    Attributes:
        owner: Path of the module that holds it, ``self`` for the program itself.
        name: The tool's name.
        description: What the LM is told about it.
        args: JSON schema of each argument by name.
    """

    owner: str
    name: str
    description: str
    args: dict[str, Any]

    @classmethod
    def read(cls, data: Any, where: str) -> ToolState:
        """From plain data; :class:`ProgramStateError` when malformed."""
        with Reader(data, where) as read:
            return cls(read.text("owner"), read.text("name"), read.text("description"), read.mapping("args"))


@dataclass(frozen=True, slots=True)
class RedactedPlace:
    """A place where a credential was taken out of the state: the program that comes back differs there.

    Attributes:
        entity: What was found, such as ``SECRET``.
        path: Where it stood.
    """

    entity: str
    path: str

    @classmethod
    def read(cls, data: Any, where: str) -> RedactedPlace:
        """From plain data; :class:`ProgramStateError` when malformed."""
        with Reader(data, where) as read:
            return cls(read.text("entity"), read.text("path"))


@dataclass(frozen=True, slots=True)
class PredictorState:
    """Everything that tuning may change in one predictor, and the schema it was tuned for.

    Attributes:
        path: Where it stands in the program: ``self``, ``answer.predict``, ``steps[0]``, ``by_name['x']``.
        kind: ``predict``, or ``flex`` for a ``dspy.Flex``, whose state is source code.
        instructions: The signature's instructions.
        fields: The signature's fields, inputs first, in order.
        demos, train, traces: As in DSPy's own state.
        config: Harmless parameters of generation set on the predictor.
        config_withheld: Names of the others.
        decisions: Criteria of decision outputs by field name (``Predict.fields``).
        lm: The predictor's own LM; ``None`` when it uses the one of the settings.
        source: The module's source code; ``None`` for everything but ``flex``.
        code_instructions_sha256: Address of the instructions that the untuned code had; ``None`` when unknown.
    """

    path: str
    kind: str
    instructions: str
    fields: tuple[FieldState, ...]
    demos: tuple[Demo, ...] = ()
    train: tuple[Demo, ...] = ()
    traces: tuple[Demo, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    config_withheld: tuple[str, ...] = ()
    decisions: dict[str, Any] = field(default_factory=dict)
    lm: LMIdentity | None = None
    source: str | None = None
    code_instructions_sha256: str | None = None

    @classmethod
    def read(cls, path: str, data: Any, where: str) -> PredictorState:
        """From plain data; :class:`ProgramStateError` when malformed."""
        with Reader(data, where) as read:
            return cls(
                path,
                read.one_of("kind", ("predict", "flex")),
                read.text("instructions"),
                read.each("fields", FieldState.read),
                read.each("demos", Demo.read),
                read.each("train", Demo.read),
                read.each("traces", Demo.read),
                read.mapping("config"),
                read.texts("config_withheld"),
                read.mapping("decisions"),
                read.part("lm", LMIdentity.read),
                read.maybe("source", read.text),
                read.maybe("code_instructions_sha256", read.text),
            )

    def content(self) -> dict[str, Any]:
        """What the content address covers."""
        own = plain(self)
        del own["path"], own["code_instructions_sha256"]
        for name in ("demos", "train", "traces"):
            own[name] = [demo.sha256 for demo in getattr(self, name)]
        own["decisions"] = canonical(self.decisions, ordered=True)
        return dict(own)


def plain(value: Any) -> Any:
    """Dataclasses as dictionaries and tuples as lists, all of them new."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: plain(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value
