"""Where inside a program do time, errors and calls come from?"""

from __future__ import annotations

from dspy_observe.mixin.boards.common import RUNS, heatmap, quantile, rate, ratio, ts
from dspy_observe.mixin.grafana import Panel, Row, Target, steps
from dspy_observe.mixin.options import DashboardOptions
from dspy_observe.mixin.promql import FAILED

__all__ = ["rows"]

_MODULE, _TOOL = "dspy_module_duration_seconds", "dspy_tool_duration_seconds"
_PARSE = "dspy_adapter_failures_total"


def rows(o: DashboardOptions) -> list[Row]:
    """Modules, adapters, tools."""
    return [_modules(), _adapters(o), _tools(o)]


def _modules() -> Row:
    counted = f"{_MODULE}_count"
    return Row("Modules", [
        ts(
            "Calls by module", "Which modules are called, and how often?", "reqps",
            Target(rate(counted, by="module"), "{{module}}"),
        ),
        ts(
            "Failed calls by module", "In which module do errors begin or pass through?", "percentunit",
            Target(ratio((counted, FAILED), (counted,), by="module"), "{{module}}"), minimum=0,
        ),
        ts(
            "p95 by module", "Which module is slow, with what it calls; a point is a trace.", "s",
            Target(quantile(0.95, _MODULE, by="module"), "{{module}}", exemplar=True),
        ),
        heatmap("Spread of module latency", "Do the chosen modules have fast and slow calls?", "s", _MODULE),
        Panel(
            "bargauge", "Time in each module", "How many seconds a second are spent in a module and what it calls?",
            "s", [Target(f"sort_desc({rate(_MODULE + '_sum', by='module')})", "{{module}}", instant=True)], minimum=0,
        ),
        ts(
            "LM calls a run", "How often does a run ask its model, by version?", "short",
            Target(
                f"""{rate('dspy_lm_duration_seconds_count', by='program, version')}
                / ({rate(RUNS, by='program, version')} > 0)""", "{{program}} {{version}}",
            ),
        ),
    ])  # fmt: skip


def _adapters(o: DashboardOptions) -> Row:
    asked = rate("dspy_requests_total", by="program, version")
    parse = rate(_PARSE, 'stage="parse"', by="program, version")
    return Row("Adapters", [
        ts(
            "Replies that cannot be parsed", "What part of the replies misses the output fields, by version?",
            "percentunit",
            Target(f"({parse} or 0 * {asked}) / ({asked} > 0)", "{{program}} {{version}}"),
            thresholds=steps(o.parse_limit / 2, o.parse_limit), minimum=0, width=12,
        ),
        ts(
            "Failures by adapter", "Which adapter fails, in formatting the prompt or in parsing the reply?", "reqps",
            Target(rate(_PARSE, by="adapter, stage"), "{{adapter}} {{stage}}"), width=12,
        ),
    ])  # fmt: skip


def _tools(o: DashboardOptions) -> Row:
    counted = f"{_TOOL}_count"
    return Row("Tools", [
        ts(
            "Calls by tool", "Which tools are used, and how often?", "reqps",
            Target(rate(counted, by="tool"), "{{tool}}")
        ),
        ts(
            "Failed calls by tool", "Which tool fails?", "percentunit",
            Target(ratio((counted, FAILED), (counted,), by="tool"), "{{tool}}"),
            thresholds=steps(o.tool_error_ratio / 2, o.tool_error_ratio), minimum=0,
        ),
        ts(
            "p95 by tool", "Which tool is slow; a point is a trace.", "s",
            Target(quantile(0.95, _TOOL, by="tool"), "{{tool}}", exemplar=True),
        ),
        heatmap("Spread of tool latency", "Do tools have fast and slow calls?", "s", _TOOL, width=12),
        ts(
            "Tool calls a run", "Does an agent go round in circles, by version?", "short",
            Target(
                f"{rate(counted, by='program, version')} / ({rate(RUNS, by='program, version')} > 0)",
                "{{program}} {{version}}",
            ),
            width=12,
        ),
    ])  # fmt: skip
