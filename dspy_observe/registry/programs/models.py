"""A compiled program as plain data: what it says, what it was made of, and its content address.

Pure, and strict on the way in: what is read from a file has exactly the keys and types named here, or it is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from dspy_observe.registry.programs.errors import ProgramStateError
from dspy_observe.registry.programs.reading import Reader
from dspy_observe.registry.programs.states import (
    AdapterIdentity,
    LMIdentity,
    PredictorState,
    RedactedPlace,
    ToolState,
    plain,
)
from dspy_observe.registry.programs.values import canonical, sha256_of

__all__ = ["ProgramSnapshot", "content_hash"]

FORMAT: Final = 1
_PROVENANCE: Final = (
    "dspy_version", "git_sha", "git_dirty", "trainset_sha256", "devset_sha256", "optimizer", "optimizer_params",
)  # fmt: skip


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


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ProgramStateError("program", "a key stands twice in one mapping")
    return found


def _no_constant(name: str) -> Callable[[], None]:
    raise ProgramStateError("program", f"{name} is not JSON")
