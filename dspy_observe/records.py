"""What everybody reads: frozen, slotted records of calls, scores and registry changes.

``None`` always means "not known" and is never written as 0: tokens that the provider did not report, a price that
nobody can tell, an answer that was not scored. A zero is a fact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal
from operator import attrgetter
from typing import Any, Final, Literal, get_args

__all__ = [
    "CallKind",
    "CallRecord",
    "CallStart",
    "ContentMode",
    "Finding",
    "Outcome",
    "Price",
    "RegistryEvent",
    "Role",
    "Score",
    "Usage",
    "with_inputs",
]

CallKind = Literal["module", "lm", "tool", "adapter_format", "adapter_parse", "evaluate", "compile", "interpreter"]
Outcome = Literal["ok", "error", "rate_limited", "timeout", "cancelled"]
Role = Literal["stable", "canary", "control", "shadow", "warmup", "eval"]
ContentMode = Literal["none", "redacted", "raw"]

ROLES: tuple[str, ...] = get_args(Role)
CALL_KINDS: tuple[CallKind, ...] = get_args(CallKind)
ADAPTER_KINDS: frozenset[CallKind] = frozenset({"adapter_format", "adapter_parse"})


@dataclass(frozen=True, slots=True)
class Finding:
    """Something private that redaction removed: what kind it was and where it stood, never what it said."""

    entity: str
    """The detector's entity, such as ``EMAIL``."""
    path: str
    """Where in the value, such as ``messages[1].content``."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that one LM call was billed, as the provider reported them.

    A cache hit bills nothing, so all its fields are 0; a call whose provider reported nothing has ``None`` in all.
    """

    prompt: int | None = None
    """All input tokens, those read from the provider's cache included."""
    completion: int | None = None
    """All output tokens, reasoning included."""
    cache_read: int | None = None
    """The part of ``prompt`` that the provider served from its prompt cache."""
    cache_write: int | None = None
    """The part of ``prompt`` that was written to the provider's prompt cache."""
    reasoning: int | None = None
    """The part of ``completion`` that was spent on hidden reasoning."""

    @property
    def known(self) -> bool:
        """Whether the provider reported prompt or completion tokens."""
        return self.prompt is not None or self.completion is not None

    @property
    def total(self) -> int | None:
        """Prompt and completion tokens together; ``None`` unless both are known."""
        if self.prompt is None or self.completion is None:
            return None
        return self.prompt + self.completion


@dataclass(frozen=True, slots=True)
class CallStart:
    """One DSPy call as it is known when it begins."""

    call_id: str
    """DSPy's id of the call."""
    parent_id: str | None
    """The observed call that made this one; ``None`` for a root."""
    root_id: str
    """The outermost observed call; a root's own id."""
    kind: CallKind
    name: str
    """Class of the module, adapter or optimizer; model of an LM; name of a tool."""
    program: str | None
    """The name given to the program (registry or ``Observer.track``), else the root module's class."""
    version: str | None
    """The version of the program instance that runs; ``None`` when the program is not tracked."""
    role: str
    """Which traffic this is: stable, canary, control, shadow, warmup or eval."""
    is_program: bool
    """Whether this is the outermost module of a run: the call that a user of the program sees."""
    operation: str | None
    """The GenAI operation: ``chat``, ``text_completion``, ``embeddings``, ``execute_tool``, ``invoke_agent``,
    ``invoke_workflow``; ``None`` where the conventions have no name."""
    model_requested: str | None
    """The model as DSPy names it, such as ``openai/gpt-4o-mini``; LM calls only."""
    provider: str | None
    """The provider by its GenAI convention name, such as ``openai``; LM calls only."""
    streaming: bool | None
    """Whether the caller asked for a stream; LM calls only."""
    started_at: float
    """Unix time in seconds."""
    inputs: Any = None
    """A redacted copy of the inputs; ``None`` unless content is captured."""
    user: str | None = None
    """Pseudonym of the user for whom the call is made; ``None`` unless the application names one, see
    :class:`~dspy_observe.serving.budgets.UserBudgets`."""


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One finished DSPy call: gathered once, frozen, and read by every callback.

    The fields up to ``started_at`` are those of :class:`CallStart`.
    """

    call_id: str
    parent_id: str | None
    root_id: str
    kind: CallKind
    name: str
    program: str | None
    version: str | None
    role: str
    is_program: bool
    operation: str | None
    model_requested: str | None
    provider: str | None
    streaming: bool | None
    started_at: float
    duration_s: float = 0.0
    """Seconds between the last of our start handlers and the first of our end handlers. It holds what DSPy does in
    between (cache look-up, retries and their waits) and leaves out our own work and most of other callbacks'."""
    outcome: Outcome = "ok"
    error_type: str | None = None
    """Class name of the exception; ``None`` when the call succeeded."""
    model_served: str | None = None
    """The model that the provider says answered."""
    response_id: str | None = None
    ttft_s: float | None = None
    """Seconds to the first streamed chunk; ``None`` for calls that did not stream and for cache hits."""
    usage: Usage | None = None
    """Billed tokens; ``None`` for calls that are no LM calls."""
    cost_usd: float | None = None
    """US dollars billed: 0 for a cache hit, ``None`` when no price is known."""
    cost_saved_usd: float | None = None
    """What the cache hit would have cost; ``None`` unless it is a hit with a known price."""
    cache_hit: bool | None = None
    """Whether DSPy's cache answered; ``None`` when it cannot be told."""
    retries: int | None = None
    """Attempts after the first; ``None`` because DSPy 3.4 does not tell callbacks, unless a wrapper knows."""
    finish_reason: str | None = None
    billed_but_failed: bool = False
    """The call raised although the provider had billed part of it."""
    score: float | None = None
    """An evaluation's mean score from 0 to 1; evaluations only."""
    dataset: str | None = None
    """Name of the evaluated data set, from ``callback_metadata={"dataset": ...}``; evaluations only."""
    trace_id: str | None = None
    """32 hexadecimal digits; ``None`` when no sampled span was recorded."""
    span_id: str | None = None
    """16 hexadecimal digits."""
    inputs: Any = None
    """A redacted copy; ``None`` unless content is captured. The same holds for the next two."""
    outputs: Any = None
    error_message: str | None = None
    findings: tuple[Finding, ...] = ()
    """What redaction removed from the content of this record."""
    cut_off: bool | None = None
    """Whether the connection broke while the provider answered, so that it may have billed what it could not tell;
    ``None`` unless an LM call failed."""
    fallback_from: str | None = None
    """The model whose failure led to this call, where a ``FallbackLM`` asked; LM calls only. Each model that it asks
    has a record of its own, with its own tokens and cost."""
    fallback_reason: str | None = None
    """What was wrong with that model: ``rate_limit``, ``timeout``, ``deadline``, ``server``, ``circuit_open``, ..."""
    user: str | None = None

    @property
    def may_be_billed(self) -> bool:
        """Whether a provider may have billed this LM call.

        Not what DSPy's cache answered, nor what the provider refused before anything was generated.
        """
        if self.cache_hit:
            return False
        if self.outcome in ("ok", "cancelled", "timeout") or self.billed_but_failed:
            return True
        return bool(self.cut_off) or self.ttft_s is not None or self.error_type == "LMStreamAssemblyError"


def _quick(cls: type[Any]) -> Callable[..., Any]:
    """Make a function that builds a frozen slotted dataclass from all its fields, in order.

    The generated ``__init__`` of a frozen dataclass goes through ``object.__setattr__`` for every field, which for a
    record costs more than all the rest of its making. This one fills an object of a twin class with the same slots and
    then gives it its real class; the result is an ordinary frozen instance.
    """
    names = [f.name for f in fields(cls)]
    body = "".join(f"\n made.{name} = {name}" for name in names)
    source = f"def build({', '.join(names)}, /):\n made = new(Twin){body}\n made.__class__ = cls\n return made"
    scope: dict[str, Any] = {"new": object.__new__, "Twin": type("Twin", (), {"__slots__": cls.__slots__}), "cls": cls}
    exec(source, scope)  # noqa: S102 - the names come from the class above, as in dataclasses itself
    build: Callable[..., Any] = scope["build"]
    return build


make_usage: Callable[..., Usage] = _quick(Usage)
"""``Usage`` from all its fields, positionally."""
make_call_start: Callable[..., CallStart] = _quick(CallStart)
"""``CallStart`` from all its fields, positionally."""
make_call_record: Callable[..., CallRecord] = _quick(CallRecord)
"""``CallRecord`` from all its fields, positionally."""

_start_values = attrgetter(*(f.name for f in fields(CallStart)))
_INPUTS: Final = [f.name for f in fields(CallStart)].index("inputs")


def with_inputs(start: CallStart, inputs: Any) -> CallStart:
    """The start of a call with its redacted inputs."""
    values = _start_values(start)
    return make_call_start(*values[:_INPUTS], inputs, *values[_INPUTS + 1 :])


Price = Callable[[CallRecord], Decimal | float | None]
"""Prices one LM call in US dollars from its tokens and models; ``None`` leaves DSPy's own estimate in place."""


@dataclass(frozen=True, slots=True)
class Score:
    """How good one answer was, booked on the program version that gave it."""

    call_id: str
    value: float
    """From 0 (worst) to 1 (best)."""
    source: str
    """Who judged: ``user``, ``judge``, ``metric`` and the like; a metric label, so a small set."""
    program: str | None
    version: str | None
    role: str
    score_id: str | None
    """The caller's key: the same id counts once."""
    at: float
    """Unix time in seconds."""
    trace_id: str | None = None


@dataclass(frozen=True, slots=True)
class RegistryEvent:
    """A change in a registry of program versions, told after it was committed."""

    name: str
    """Full event name, such as ``dspy.registry.deploy_complete``; the list stands in ``conventions.py``."""
    program: str
    at: float
    """Unix time in seconds."""
    environment: str | None = None
    version: str | None = None
    """The version that the event is about: the deployed one, the one rolled back to, the one registered."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else belongs to the event, already free of secrets: ``previous``, ``trigger``, ``reason``, ..."""
