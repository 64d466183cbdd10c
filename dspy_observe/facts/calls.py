"""Who is called: the facts of a DSPy call that are known when it begins, and how it ended."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from typing import Any, Final

import dspy
from dspy.dsp.utils.settings import main_thread_config, thread_local_overrides
from dspy.utils.callback import ACTIVE_CALL_ID
from dspy.utils.exceptions import LMError, LMRateLimitError, LMTimeoutError

from dspy_observe import safety
from dspy_observe.errors import ConfigurationError
from dspy_observe.facts.identity import WeakIdentityMap
from dspy_observe.facts.lm import HistoryTap, setting
from dspy_observe.facts.users import current_user
from dspy_observe.records import ROLES, CallKind, CallStart, Outcome, make_call_start
from dspy_observe.redaction import redact, redact_given_name, redact_name

__all__ = [
    "DEADLINE",
    "Tag",
    "active_call_id",
    "active_callbacks",
    "begin",
    "causes",
    "evaluation",
    "examples_scored",
    "is_same_logical_call",
    "outcome_of",
    "surroundings",
    "tag",
    "tag_of",
]

_AGENTS: Final = tuple(
    agent for agent in (getattr(dspy, name, None) for name in ("ReAct", "ReActV2", "CodeAct", "Avatar")) if agent
)

# Provider prefixes of DSPy model names -> well-known values of gen_ai.provider.name:
# https://opentelemetry.io/docs/specs/semconv/registry/attributes/gen-ai/
_PROVIDERS: Final = {
    "azure": "azure.ai.openai",
    "azure_ai": "azure.ai.inference",
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "vertex_ai": "gcp.vertex_ai",
    "vertex": "gcp.vertex_ai",
    "watsonx": "ibm.watsonx.ai",
    "mistral": "mistral_ai",
    "xai": "x_ai",
}
_OPERATIONS: Final = {"chat": "chat", "responses": "chat", "text": "text_completion", "embeddings": "embeddings"}

_CANCELLED: Final = (
    asyncio.CancelledError,
    concurrent.futures.CancelledError,
    KeyboardInterrupt,
    SystemExit,
    GeneratorExit,
)
# What anyio raises when a chunk is sent to a stream that nobody reads any more; DSPy wraps it in an LM error.
_CONSUMER_LEFT: Final = frozenset({"ClosedResourceError", "BrokenResourceError"})
DEADLINE: Final = "dspy_observe: the deadline of this attempt has passed"
"""Message of the cancellation that ends a call at its deadline, so that it counts as a timeout."""
_LONGEST_CHAIN: Final = 16  # LiteLLM wraps an error up to eight times; a cyclic chain must end
_ALL_PERCENT: Final = 100
_RATE_LIMITED: Final = 429  # https://www.rfc-editor.org/rfc/rfc6585#section-4


@dataclass(frozen=True, slots=True)
class Tag:
    """The name, version and role that a program instance was given."""

    name: str
    version: str | None
    role: str


_tags: WeakIdentityMap[Tag] = WeakIdentityMap()
_GUARD_EVALUATION = safety.guard("calls.evaluation")


def tag(module: object, name: str, version: str | None = None, role: str = "stable") -> None:
    """Remember which program, version and role a module instance is, for as long as the instance lives.

    Copies of the module (``deepcopy``, ``reset_copy``, compiled ones) are other instances and stay without a tag.

    Raises:
        ConfigurationError: ``module`` is no DSPy module, ``name`` or ``version`` is no text or empty, or ``role`` is
            not a known role.
    """
    if not isinstance(module, dspy.Module):
        raise ConfigurationError("module", f"{type(module).__name__} is not a dspy.Module", "Pass a program instance")
    if not isinstance(name, str) or not name:
        raise ConfigurationError("name", f"{redact(repr(name))} is no name", "Give the name it has in the registry")
    if version is not None and (not isinstance(version, str) or not version):
        shown = redact(repr(version))
        raise ConfigurationError("version", f"{shown} is no version", 'Give a text such as "v3", or None')
    if role not in ROLES:
        raise ConfigurationError("role", f"{redact(repr(role))} is not a role", f"Use one of {', '.join(ROLES)}")
    _tags.set(module, Tag(redact_given_name(name), redact_given_name(version), role))


def tag_of(module: object) -> Tag | None:
    """The tag of this very instance, or ``None``."""
    return _tags.get(module)


def active_call_id() -> str | None:
    """DSPy's id of the call that surrounds the code that asks; in a start handler, the new call's parent."""
    active: str | None = ACTIVE_CALL_ID.get()
    return active


def listed_callbacks() -> list[Any]:
    """DSPy's list of callbacks in force here, the very object; those of the instance come on top."""
    overrides = thread_local_overrides.get()
    listed: list[Any] | None
    listed = overrides["callbacks"] if "callbacks" in overrides else main_thread_config["callbacks"]
    return listed or []


def surroundings(instance: object) -> tuple[list[Any], list[Any]]:
    """The callbacks around a call of ``instance``, read in one go, for it is asked at every start.

    Returns:
        What :func:`listed_callbacks` tells, and the callbacks that the instance was given.
    """
    try:
        # dspy.Module answers every attribute access in Python; nothing of that concerns this one.
        own = object.__getattribute__(instance, "callbacks")
    except AttributeError:
        own = None
    return listed_callbacks(), own or []


def active_callbacks(instance: object) -> list[Any]:
    """The callbacks that DSPy runs for a call of ``instance`` now, in its order."""
    listed, own = surroundings(instance)
    return [*listed, *own]


def is_same_logical_call(kind: CallKind, instance: object, surrounding_instance: object) -> bool:
    """Whether a hook that fired inside another one of the same kind belongs to the same logical call.

    Adapters that inherit ``format`` or ``parse`` are wrapped once per class, so that ``JSONAdapter`` fires its format
    hooks twice and ``BAMLAdapter`` three times for one prompt.
    """
    return instance is surrounding_instance and kind in ("adapter_format", "adapter_parse")


def begin(
    call_id: str, kind: CallKind, instance: Any, inputs: dict[str, Any], parent: CallStart | None, started_at: float
) -> CallStart:
    """Describe a call that begins now, in the thread and context of its start handler.

    Args:
        call_id: DSPy's id of the call.
        kind: Which hook fired.
        instance: What is called.
        inputs: DSPy's argument dictionary; only read.
        parent: The observed call that makes this one, if there is one.
        started_at: Unix time in seconds.
    """
    model = provider = operation = None
    streaming = None
    if kind == "lm":
        name, provider = _model_facts(_model_name(instance))
        model = name
        operation = _OPERATIONS.get(getattr(instance, "model_type", "chat"), "chat")
        streaming = setting(thread_local_overrides.get(), "send_stream") is not None
    elif kind == "tool":
        name = redact_name(str(getattr(instance, "name", None) or type(instance).__name__))
        operation = "execute_tool"
    else:
        name, operation = _class_facts(type(instance))  # type: ignore[arg-type]  # classes are hashable
    is_program = False
    if parent is not None and parent.kind == "module" and not (_tags and _tags.get(instance)):
        # The usual case: below a module, whose program it belongs to.
        program, version, role = parent.program, parent.version, parent.role
    else:
        # Below a module there is a module already; elsewhere DSPy's list of calling modules tells.
        modules = () if parent is not None and parent.kind == "module" else _around(instance, _caller_modules())
        is_program = kind == "module" and not modules and (parent is None or parent.kind != "module")
        program, version, role = _identify(kind, instance, inputs, parent, modules)
        if is_program and operation is None:
            operation = "invoke_workflow"
    return make_call_start(
        call_id,
        parent.call_id if parent is not None else None,
        parent.root_id if parent is not None else call_id,
        kind,
        name,
        program,
        version,
        role,
        is_program,
        operation,
        model,
        provider,
        streaming,
        started_at,
        None,
        current_user(),
    )


def _model_name(instance: Any) -> str:
    model = getattr(instance, "model", None) or type(instance)
    if isinstance(model, str):
        return str(model)
    return str(getattr(model, "__name__", None) or type(model).__name__)  # a function that embeds, say


def _caller_modules() -> tuple[Any, ...]:
    modules = setting(thread_local_overrides.get(), "caller_modules")
    return tuple(module for module in modules if type(module) is not HistoryTap) if modules else ()


def _around(instance: Any, modules: tuple[Any, ...]) -> tuple[Any, ...]:
    """The modules that call an instance: one that is described late, from within, is itself among those that call."""
    return tuple(takewhile(lambda module: module is not instance, modules)) if modules else modules


@lru_cache(maxsize=1024)
def _class_facts(kind: type[Any]) -> tuple[str, str | None]:
    """Name and operation of a module, adapter or optimizer, by its class."""
    # By class: isinstance() would ask the module for its __class__, which dspy.Module answers in Python.
    return redact_name(kind.__name__), "invoke_agent" if issubclass(kind, _AGENTS) else None


@lru_cache(maxsize=1024)
def _model_facts(model: str) -> tuple[str, str | None]:
    """A model's name and provider."""
    name = redact_name(model)
    prefix, slash, _ = name.partition("/")
    return name, _PROVIDERS.get(prefix, prefix) if slash else None


def _identify(
    kind: CallKind, instance: Any, inputs: dict[str, Any], parent: CallStart | None, modules: tuple[Any, ...]
) -> tuple[str | None, str | None, str]:
    """Program, version and role: the innermost tagged module decides, else the outermost module's class."""
    subject = instance
    if kind == "evaluate":
        subject = inputs.get("program")
    elif kind == "compile":
        subject = inputs.get("student")
    own = _tags.get(subject) if _tags else None
    trial = kind in ("evaluate", "compile") or (parent is not None and parent.role == "eval")
    if own is not None:
        return own.name, own.version, "eval" if trial else own.role
    if parent is not None and parent.program is not None:
        return parent.program, parent.version, parent.role if not trial else "eval"
    for module in reversed(modules):
        found = _tags.get(module)
        if found is not None:
            return found.name, found.version, "eval" if trial else found.role
    outermost = modules[0] if modules else subject if isinstance(subject, dspy.Module) else None
    program = redact_name(type(outermost).__name__) if outermost is not None else None
    return program, None, "eval" if trial else "stable"


def evaluation(inputs: dict[str, Any], outputs: Any) -> tuple[float | None, str | None]:
    """Mean score and data set name of a finished evaluation.

    DSPy reports a percentage. The name is the caller's ``callback_metadata={"dataset": ...}``, else ``devset``.

    Returns:
        The score from 0 to 1, ``None`` when there is none on that scale; and the name, ``None`` when it cannot be had.
    """
    score = name = None
    with _GUARD_EVALUATION:  # a data set is the application's object, whose text may raise
        score = _share_of(getattr(outputs, "score", None))
        metadata = inputs.get("callback_metadata") or {}
        dataset = metadata.get("dataset") if isinstance(metadata, dict) else None
        name = redact_name(str(dataset)) if dataset else "devset"
    return score, name


def _share_of(percent: Any) -> float | None:
    """Percent as a share; what a metric on another scale gives, and NaN, can be compared with nothing."""
    if not isinstance(percent, int | float) or isinstance(percent, bool) or not 0 <= percent <= _ALL_PERCENT:
        return None
    return percent / _ALL_PERCENT


def examples_scored(outputs: Any) -> int | None:
    """How many examples the score of a finished evaluation is the mean of; ``None`` when it does not tell."""
    results = getattr(outputs, "results", None)
    return len(results) or None if isinstance(results, list | tuple) else None


def causes(exception: BaseException) -> Iterator[BaseException]:
    """An exception and what it was raised from or while handling, nearest first, as a traceback shows them."""
    cause: BaseException | None = exception
    for _ in range(_LONGEST_CHAIN):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def outcome_of(exception: BaseException | None) -> Outcome:
    """Classify how a call ended.

    A stream that its consumer left surfaces as an LM error *caused by* a cancellation, and DSPy's own engine reports a
    timeout as a transport error caused by one (itself caused, in ``acall``, by a cancellation), so causes are followed
    and the nearest one counts.
    """
    if exception is None:
        return "ok"
    if isinstance(exception, LMRateLimitError) or getattr(exception, "status_code", None) == _RATE_LIMITED:
        return "rate_limited"
    from_lm = isinstance(exception, LMError)
    for cause in causes(exception):
        if isinstance(cause, LMTimeoutError | TimeoutError):
            # What failed later, while a timeout was handled, is an error in its own right.
            return "timeout" if from_lm or cause is exception else "error"
        if isinstance(cause, _CANCELLED):
            return "timeout" if DEADLINE in cause.args else "cancelled"
    if from_lm and type(exception.__cause__).__name__ in _CONSUMER_LEFT:
        return "cancelled"
    return "error"
