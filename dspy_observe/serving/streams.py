"""Streaming a program whose version changes: every stream is bound to one instance, from first chunk to last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import dspy

from dspy_observe.errors import ConfigurationError

__all__ = ["streamify_each"]

Listeners = Sequence[Any] | Callable[[Any], Sequence[Any]]


def streamify_each(
    program_for: Callable[..., tuple[Any, dict[str, Any]]], stream_listeners: Listeners | None, options: dict[str, Any]
) -> Callable[..., Any]:
    """What ``dspy.streamify`` gives, wrapped anew around the instance of each call.

    DSPy binds listeners to the predictors of one instance when it wraps; after a swap they would hear nothing.

    Args:
        program_for: Takes a call's arguments; gives the instance and the inputs for it.
        stream_listeners: Patterns that each stream gets copies of; or a function that makes them for an instance.
        options: The other arguments of ``dspy.streamify``.

    Raises:
        ConfigurationError: A listener is bound to a predictor.
    """
    if stream_listeners is not None and not callable(stream_listeners):
        for listener in stream_listeners:
            if listener.predict is not None:
                raise ConfigurationError(
                    "stream_listeners", "a listener is bound to a predictor of one instance",
                    "Leave predict out, and give predict_name where the field's name is not unique",
                )  # fmt: skip

    def stream(*args: Any, **inputs: Any) -> Any:
        program, inputs = program_for(*args, **inputs)
        listeners = _listeners(stream_listeners, program)
        return dspy.streamify(program, stream_listeners=listeners, **options)(*args, **inputs)

    return stream


def _listeners(patterns: Listeners | None, program: Any) -> list[Any] | None:
    if patterns is None:
        return None
    if callable(patterns):
        return list(patterns(program))
    predictors = dict(program.named_predictors())
    made = []
    for one in patterns:
        if one.predict_name is not None and one.predict_name not in predictors:
            raise ConfigurationError(
                "stream_listeners", f"the program has no predictor {one.predict_name!r}",
                f"Use one of {', '.join(predictors)}",
            )  # fmt: skip
        predict = predictors.get(one.predict_name)
        made.append(type(one)(one.signature_field_name, predict, one.predict_name, one.allow_reuse))
    return made
