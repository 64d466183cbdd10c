"""What the tests of dashboards and rules share: selectors of an expression, and variables filled in."""

from __future__ import annotations

import re
from typing import Any

import promql_parser

__all__ = ["inserted", "label_values", "selectors"]


def selectors(expr: str) -> list[tuple[str, dict[str, str]]]:
    """Metric and matchers of every selector in an expression, by Prometheus 3's grammar."""
    found: list[tuple[str, dict[str, str]]] = []

    def walk(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            matchers = {m.name: m.value for m in node.matchers.matchers}
            found.append((node.name or matchers.pop("__name__", "").rstrip(".+"), matchers))
            if found[-1][0].endswith("_"):  # a pattern, not a name
                found[-1] = ("", matchers)
        for name in ("expr", "lhs", "rhs", "args", "param", "vector_selector"):
            child = getattr(node, name, None)
            for each in child if isinstance(child, list) else [child]:
                if each is not None and not isinstance(each, str | float | int):
                    walk(each)

    walk(promql_parser.parse(expr))
    return found


def inserted(expr: str, rate_interval: str = "5m", shown: str = "1h") -> str:
    """A panel's query with Grafana's variables filled in, everything chosen.

    Args:
        expr: The query.
        rate_interval: What Grafana would take for ``$__rate_interval``.
        shown: The time shown, ``$__range``.
    """
    filled = expr.replace("$__rate_interval", rate_interval).replace("$__range", shown)
    for name in ("job", "instance", "program", "version", "module", "model"):
        filled = filled.replace(f"${name}", ".+")
    assert "$" not in filled.replace('|"', ""), f"a variable is left in {filled}"
    return filled


def label_values(query: str) -> str:
    """The series that a variable's query takes its values from.

    Args:
        query: ``label_values(series, label)``.
    """
    found = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
    assert found is not None, query
    return found[1]
