"""DSPy's handlers turned into ``started``, ``finished`` and ``happened``.

A callback of ours is a reader of records. Subclass :class:`RecordCallback`, override the verbs you need, and put it in
``dspy.configure(callbacks=[...])``, on one LM or module, or in a :class:`CallbackGroup`::

    class SlowCalls(RecordCallback):
        def finished(self, record):
            if record.kind == "lm" and record.duration_s > 10:
                print(record.program, record.model_requested, record.duration_s)

DSPy's own dispatch costs more for every further callback in its list than most callbacks do, so ``configure()`` puts
one group there. The records are the same either way.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from dspy.utils.callback import BaseCallback

from dspy_observe import safety
from dspy_observe.errors import ConfigurationError
from dspy_observe.ledger import LEDGER
from dspy_observe.readers import Plan, Reader, Recorder, Route
from dspy_observe.records import CALL_KINDS, CallKind, RegistryEvent, Score
from dspy_observe.redaction import redact_event, redact_score

__all__ = ["CallbackGroup", "RecordCallback"]


_GUARD_EVENT = safety.guard("redaction.event")


class _DSPyHandlers(BaseCallback, Recorder):
    """Every handler that DSPy 3.4 knows, forwarded to the ledger of this process."""

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        LEDGER.open(self, "module", call_id, instance, inputs)

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        LEDGER.open(self, "lm", call_id, instance, inputs)

    def on_tool_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        LEDGER.open(self, "tool", call_id, instance, inputs)

    def on_adapter_format_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        LEDGER.open(self, "adapter_format", call_id, instance, inputs)

    def on_adapter_parse_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        LEDGER.open(self, "adapter_parse", call_id, instance, inputs)

    def on_evaluate_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        LEDGER.open(self, "evaluate", call_id, instance, inputs)

    def on_compile_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        LEDGER.open(self, "compile", call_id, instance, inputs)

    def _on_interpreter_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        LEDGER.open(self, "interpreter", call_id, instance, inputs)

    def _on_end(self, call_id: str, outputs: Any | None, exception: BaseException | None = None) -> None:
        LEDGER.close(self, call_id, outputs, exception)

    on_interpreter_startup_start = _on_interpreter_start
    on_interpreter_execute_start = _on_interpreter_start
    on_interpreter_tool_call_start = _on_interpreter_start
    on_interpreter_shutdown_start = _on_interpreter_start
    on_module_end = _on_end
    on_lm_end = _on_end
    on_tool_end = _on_end
    on_adapter_format_end = _on_end
    on_adapter_parse_end = _on_end
    on_evaluate_end = _on_end
    on_compile_end = _on_end
    on_interpreter_startup_end = _on_end
    on_interpreter_execute_end = _on_end
    on_interpreter_tool_call_end = _on_end
    on_interpreter_shutdown_end = _on_end

    @cached_property
    def routes(self) -> dict[CallKind, Route]:
        """Who is told what, for every kind of call."""
        return {kind: Route.of(self.readers, kind) for kind in CALL_KINDS}

    def __copy__(self) -> _DSPyHandlers:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> _DSPyHandlers:
        # Optimizers deep-copy programs and LMs with their callbacks; the copies report to the same place.
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # Saved settings and pickled LMs carry no exporters, locks or sockets; what is loaded observes nothing.
        return (_Unpickled, ())


class _Unpickled(BaseCallback):
    """Stands where a callback of ours was when settings or an LM were pickled."""


class RecordCallback(_DSPyHandlers, Reader):
    """One reader of records that DSPy can call.

    Subclasses that override ``__init__`` and set ``redactor``, ``price``, ``content`` or ``meter_streams`` do so before
    the callback is used.
    """

    @cached_property
    def readers(self) -> tuple[Reader, ...]:
        """The callback itself."""
        return (self,)

    @cached_property
    def plan(self) -> Plan:
        """What this reader needs gathered."""
        return Plan.of((self,))


class CallbackGroup(_DSPyHandlers):
    """Several readers behind one callback in DSPy's list: the ledger is opened and closed once for all.

    Args:
        *callbacks: The readers, in the order in which they are told; groups are taken apart. A reader that is no DSPy
            callback itself, such as a monitor, reads through the group.

    Raises:
        ConfigurationError: An argument is not a reader or a group.
    """

    def __init__(self, *callbacks: Reader | CallbackGroup) -> None:
        readers: list[Reader] = []
        for callback in callbacks:
            if not isinstance(callback, Reader | CallbackGroup):
                raise ConfigurationError(
                    "CallbackGroup",
                    f"{type(callback).__name__} is not a RecordCallback",
                    "List other callbacks beside the group in dspy.configure(callbacks=[...])",
                )
            for reader in callback.readers if isinstance(callback, _DSPyHandlers) else (callback,):
                if all(reader.identity != present.identity for present in readers):
                    readers.append(reader)
        self._readers = tuple(readers)
        self._plan = Plan.of(readers)

    @property
    def readers(self) -> tuple[Reader, ...]:
        """The callbacks in the group."""
        return self._readers

    @property
    def plan(self) -> Plan:
        """What they need gathered, taken together."""
        return self._plan

    def happened(self, event: RegistryEvent) -> None:
        """Tell every reader of a change in the registry, without what is private in its fields."""
        clean = None
        with _GUARD_EVENT:
            clean = redact_event(event, self.plan.redactors)
        if clean is None:
            return
        event = clean
        for reader in self.readers:
            with safety.guard(f"{type(reader).__name__}.happened"):
                reader.happened(event)

    def scored(self, score: Score) -> None:
        """Tell every reader of a score, without what is private in its fields."""
        clean = None
        with _GUARD_EVENT:
            clean = redact_score(score, self.plan.redactors)
        if clean is None:
            return
        score = clean
        for reader in self.readers:
            with safety.guard(f"{type(reader).__name__}.scored"):
                reader.scored(score)
