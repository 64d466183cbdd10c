"""What is shown when the users have gone: one trace, the metrics page, log lines, and the bill."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from opentelemetry.semconv.attributes import error_attributes
from rich.text import Text
from rich.tree import Tree

from dspy_observe import conventions as names
from dspy_observe.demo.board import count, dollars, milliseconds

__all__ = ["Tokens", "choose_trace", "log_tokens", "metric_lines", "metric_tokens", "quote_content", "span_tokens",
           "trace_tree"]  # fmt: skip

_NANOSECONDS: Final = 1_000_000_000
_TOKEN_LINE: Final = re.compile(r'^dspy_tokens_total\{.*kind="(\w+)".*\} (\S+)$', re.MULTILINE)
_SIGNED: Final = re.compile(r"\[\[ ## asked_by ## \]\]\n(\S[^\n]*)")
_SHOWN: Final = (
    "dspy_requests_total", "dspy_tokens_total", "dspy_cost_usd_total", "dspy_cache_requests_total",
    "dspy_program_duration_seconds_count", "dspy_tool_duration_seconds_count", "dspy_adapter_failures_total",
    "dspy_score_sum", "dspy_score_count", "dspy_redactions_total", "dspy_observe_internal_errors_total",
)  # fmt: skip
"""Metrics of which the closing screen quotes lines."""


class Tokens(NamedTuple):
    """Tokens of a whole run."""

    prompt: int
    completion: int


def metric_tokens(page: str) -> Tokens:
    """What a scraped metrics page says."""
    totals: dict[str, float] = defaultdict(float)
    for kind, value in _TOKEN_LINE.findall(page):
        totals[kind] += float(value)
    return Tokens(int(totals["prompt"]), int(totals["completion"]))


def span_tokens(spans: Iterable[ReadableSpan]) -> Tokens:
    """What the spans say."""
    held = [span.attributes or {} for span in spans]
    return Tokens(
        *(sum(int(_number(each, name)) for each in held)
          for name in (gen_ai.GEN_AI_USAGE_INPUT_TOKENS, gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS))
    )  # fmt: skip


def log_tokens(lines: Iterable[str]) -> Tokens:
    """What the log lines say."""
    rows = [row for row in map(json.loads, lines) if row["event"] == names.LOG_LM_CALL]
    return Tokens(sum(row["prompt_tokens"] or 0 for row in rows), sum(row["completion_tokens"] or 0 for row in rows))


def metric_lines(page: str) -> list[str]:
    """A few lines of a metrics page: for each metric worth a look the series with the largest value, and failures."""
    chosen = []
    for name in _SHOWN:
        lines = [line for line in page.splitlines() if line.startswith((f"{name}{{", f"{name} "))]
        failed = [line for line in lines if name == "dspy_requests_total" and 'status="ok"' not in line]
        well = [line for line in lines if line not in failed]
        chosen += [max(some, key=lambda line: float(line.rpartition(" ")[2])) for some in (well, failed) if some]
    return chosen


def choose_trace(spans: Iterable[ReadableSpan]) -> list[ReadableSpan]:
    """The spans of the run that has most to show: a failure on the way, tools, and many kinds of calls.

    Returns:
        Its spans; none if there are none at all.
    """
    traces: dict[int, list[ReadableSpan]] = defaultdict(list)
    for span in spans:
        if span.context is not None:
            traces[span.context.trace_id].append(span)
    return max(traces.values(), key=_interest, default=[])


def trace_tree(spans: Sequence[ReadableSpan]) -> Tree:
    """A trace as a tree, with durations, tokens, cost and errors.

    Args:
        spans: All spans of one trace, at least one.
    """
    children: dict[int | None, list[ReadableSpan]] = defaultdict(list)
    for span in sorted(spans, key=lambda span: span.start_time or 0):
        children[span.parent.span_id if span.parent is not None else None].append(span)
    (root, *_) = children[None]
    tree = Tree(_label(root), guide_style="dim")
    waiting = [(root, tree)]
    while waiting:
        parent, branch = waiting.pop()
        for event in parent.events:
            if event.name == names.EVENT_ADAPTER_FAILURE:
                where = event.attributes or {}
                text = f"reply unreadable for {where.get('dspy.adapter')}, asked again as JSON"
                branch.add(Text(text, style="yellow"))
        below = children[parent.context.span_id] if parent.context is not None else []
        waiting += [(span, branch.add(_label(span))) for span in below]
    return tree


def quote_content(spans: Iterable[ReadableSpan]) -> str | None:
    """How a user's signature stands in the captured prompts; None if no prompt was signed."""
    for span in spans:
        for message in json.loads(str((span.attributes or {}).get(gen_ai.GEN_AI_INPUT_MESSAGES, "[]")) or "[]"):
            for part in message["parts"] if message["role"] == "user" else ():
                signed = _SIGNED.search(part["content"])
                if signed is not None:
                    return signed.group(1)
    return None


def _interest(spans: Sequence[ReadableSpan]) -> tuple[int, int]:
    failures = any(event.name == names.EVENT_ADAPTER_FAILURE for span in spans for event in span.events)
    agent = any((span.attributes or {}).get(gen_ai.GEN_AI_OPERATION_NAME) == "invoke_agent" for span in spans)
    return failures + 2 * agent, len({span.name for span in spans})


def _label(span: ReadableSpan) -> Text:
    attributes = span.attributes or {}
    label = Text(span.name, style="bold" if span.parent is None else "")
    if names.ATTR_VERSION in attributes and span.parent is None:
        label.append(f" {attributes[names.ATTR_VERSION]!s}")
    if span.name == names.EVENT_EVALUATION_RESULT:
        value = _number(attributes, gen_ai.GEN_AI_EVALUATION_SCORE_VALUE)
        return label.append(f"  {attributes.get(gen_ai.GEN_AI_EVALUATION_NAME)} {value:.1f}", style="green")
    label.append(f"  {milliseconds(((span.end_time or 0) - (span.start_time or 0)) / _NANOSECONDS)}", style="cyan")
    if attributes.get(names.ATTR_CACHE_HIT):
        label.append("  cache hit", style="green")
    elif gen_ai.GEN_AI_USAGE_INPUT_TOKENS in attributes:
        tokens = [_number(attributes, name) for name in
                  (gen_ai.GEN_AI_USAGE_INPUT_TOKENS, gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS)]  # fmt: skip
        label.append(f"  {count(tokens[0])} → {count(tokens[1])} tokens")
        if names.ATTR_COST_USD in attributes:
            label.append(f"  {dollars(_number(attributes, names.ATTR_COST_USD))}")
    if error_attributes.ERROR_TYPE in attributes:
        label.append(f"  {attributes[error_attributes.ERROR_TYPE]!s}", style="red")
    return label


def _number(attributes: Mapping[str, Any], name: str) -> float:
    value = attributes.get(name, 0)
    return float(value) if isinstance(value, int | float) else 0.0
