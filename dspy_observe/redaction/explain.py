"""What redaction would do to a text, place by place, without showing what is there."""

from __future__ import annotations

from dspy_observe.redaction.operators import operator_name
from dspy_observe.redaction.options import Redaction
from dspy_observe.redaction.redactor import Redactor

__all__ = ["explain"]


def explain(text: str, options: Redaction | None = None) -> list[tuple[str, int, int, str]]:
    """The places that redaction replaces.

    Args:
        text: Any text; what lies beyond ``scan_limit_chars`` is cut off by redaction and not listed.
        options: As for :class:`Redactor`; ``None`` takes the defaults.

    Returns:
        For each place, in order: entity, first character, one beyond the last, and the operator's name (``label``,
        ``fixed``, ``mask``, ``drop`` or ``hmac``).

    Raises:
        RedactionConfigError: The options cannot work.
        Exception: Whatever a detector raises: here the author of a detector wants to see it.
    """
    redactor = Redactor(options)
    return [
        (hit.entity, hit.start, hit.end, operator_name(redactor.operator_of(hit.entity))) for hit in redactor.find(text)
    ]
