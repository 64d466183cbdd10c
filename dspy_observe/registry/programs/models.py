"""A compiled program as plain data: what it says, what it was made of, and its content address.

Pure, and strict on the way in: what is read from a file has exactly the keys and types named here, or it is refused.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from dspy_observe.registry.programs.errors import ProgramStateError
from dspy_observe.registry.programs.reading import Reader
from dspy_observe.registry.programs.values import canonical, sha256_of

__all__ = [
    "AdapterIdentity",
    "Demo",
    "FieldState",
    "LMIdentity",
    "PredictorState",
    "ProgramSnapshot",
    "RedactedPlace",
    "ToolState",
    "content_hash",
    "plain",
]

FORMAT: Final = 1
_PROVENANCE: Final = (
    "dspy_version", "git_sha", "git_dirty", "trainset_sha256", "devset_sha256", "optimizer", "optimizer_params",
)  # fmt: skip


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
            )

    def content(self) -> dict[str, Any]:
        """What the content address covers."""
        own = plain(self)
        del own["path"]
        for name in ("demos", "train", "traces"):
            own[name] = [demo.sha256 for demo in getattr(self, name)]
        own["decisions"] = canonical(self.decisions, ordered=True)
        return dict(own)


@dataclass(frozen=True, slots=True)
class ProgramSnapshot:
    """A compiled program as data: state, schema, and where it comes from. Holds no credentials.

    The order of keys inside demos shows in prompts, so store it as text (``to_json``) and not where keys are sorted.

    Attributes:
        module: Class path of the program.
        predictors: State of each predictor, in the program's order, separately compiled sub-modules included.
        compiled: Paths of modules that are marked as compiled, which optimizers leave alone.
        adapter: Adapter at the time.
        tools: Tools of all modules.
        lm: The LM of the settings, or the one named by the caller; ``None`` when there was none.
        dspy_version: DSPy's version.
        git_sha: Commit of the checkout that the program's code lies in; ``None`` outside one.
        git_dirty: Whether tracked files were changed; ``None`` outside a checkout.
        trainset_sha256, devset_sha256: Address of the data; ``None`` when not given or not hashable.
        optimizer: Name of the optimizer's class; ``None`` when not given.
        optimizer_params: Its parameters.
        redactions: Places where a credential was taken out.
    """

    module: str
    predictors: tuple[PredictorState, ...]
    compiled: tuple[str, ...]
    adapter: AdapterIdentity | None
    tools: tuple[ToolState, ...]
    lm: LMIdentity | None
    dspy_version: str
    git_sha: str | None = None
    git_dirty: bool | None = None
    trainset_sha256: str | None = None
    devset_sha256: str | None = None
    optimizer: str | None = None
    optimizer_params: dict[str, Any] = field(default_factory=dict)
    redactions: tuple[RedactedPlace, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The snapshot as plain data that shares nothing with it; predictors by path."""
        data: dict[str, Any] = {"format": FORMAT, **plain(self)}
        data["predictors"] = {state.pop("path"): state for state in data["predictors"]}
        return data

    def to_json(self, *, indent: int | None = 2) -> str:
        """The snapshot as a JSON document in ASCII.

        Args:
            indent: Spaces per level; ``None`` for one line.
        """
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=True, allow_nan=False)

    def provenance(self) -> dict[str, Any]:
        """Where the program comes from: the part that the content address leaves out."""
        own = plain(self)
        return {name: own[name] for name in _PROVENANCE}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ProgramSnapshot:
        """A snapshot from plain data, which is copied.

        Raises:
            ProgramStateError: A key is missing, unknown or has a value of another type, or the format is unknown.
        """
        with Reader(data, "program") as read:
            if read.take("format") != FORMAT:
                raise ProgramStateError("program.format", f"only format {FORMAT} is known")
            states = read.mapping("predictors")
            return cls(
                read.text("module"),
                tuple(PredictorState.read(path, state, f"predictors.{path}") for path, state in states.items()),
                read.texts("compiled"),
                read.part("adapter", AdapterIdentity.read),
                read.each("tools", ToolState.read),
                read.part("lm", LMIdentity.read),
                read.text("dspy_version"),
                read.maybe("git_sha", read.text),
                read.maybe("git_dirty", read.flag),
                read.maybe("trainset_sha256", read.text),
                read.maybe("devset_sha256", read.text),
                read.maybe("optimizer", read.text),
                read.mapping("optimizer_params"),
                read.each("redactions", RedactedPlace.read),
            )

    @classmethod
    def from_json(cls, text: str) -> ProgramSnapshot:
        """A snapshot from a JSON document.

        Raises:
            ProgramStateError: The text is no JSON, repeats a key, or holds something else than a snapshot.
        """
        try:
            data = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        except ProgramStateError:
            raise
        except (ValueError, RecursionError) as error:
            raise ProgramStateError("program", "is not a complete JSON document") from error
        return cls.from_dict(data)


def content_hash(snapshot: ProgramSnapshot) -> str:
    """The program's address: sha256 (hexadecimal) over state, schema, config, adapter, tools and LM identity.

    Times, commits, optimizers, data and the program's own class path do not count, nor do credentials.

    Args:
        snapshot: The program.
    """
    own = plain(snapshot)
    content = {name: own[name] for name in ("adapter", "lm")}
    content["predictors"] = {state.path: state.content() for state in snapshot.predictors}
    # The order of arguments shows in prompts and tool calls; that of the tools in the instructions, if anywhere.
    content["tools"] = sorted(canonical(tool, ordered=True) for tool in own["tools"])
    return sha256_of(content)


def plain(value: Any) -> Any:
    """Dataclasses as dictionaries and tuples as lists, all of them new."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: plain(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ProgramStateError("program", "a key stands twice in one mapping")
    return found


def _no_constant(name: str) -> Callable[[], None]:
    raise ProgramStateError("program", f"{name} is not JSON")
