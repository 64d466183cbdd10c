"""Whatever is given for a field of an option class is taken, or refused with a typed error."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_observe import ConfigurationError
from dspy_observe.config import Cost, Logs, Metrics, Redaction, Tracing

FIELDS = [
    (kind, field.name) for kind in (Metrics, Tracing, Logs, Redaction, Cost) for field in dataclasses.fields(kind)
]
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=8)
    | st.builds(object) | st.just(int),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=lambda each: getattr(each, "__name__", each))
@given(value=anything)
def test_a_bad_value_is_a_typed_error(kind: Any, name: str, value: object) -> None:
    """No AttributeError or TypeError from within."""
    with suppress(ConfigurationError):
        kind(**{name: value})
