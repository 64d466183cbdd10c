"""Recording rules that dashboards and several alerts share: error budgets, money, tokens, cache, served versions."""

from __future__ import annotations

from dspy_observe.mixin import regressions
from dspy_observe.mixin.options import DashboardOptions, duration
from dspy_observe.mixin.promql import (
    FAILED,
    LIVE,
    MODEL,
    PROGRAM,
    VERSION,
    Group,
    Recording,
    environment,
    increase,
    selected,
)
from dspy_observe.mixin.promql import number as n

__all__ = [
    "BUDGET",
    "CACHE_HITS",
    "COST",
    "TOKENS",
    "budget_left",
    "burn",
    "burn_calls",
    "recordings",
    "slow",
]

COST = "program:dspy_cost_usd:increase1h"
TOKENS = "program:dspy_tokens:increase1h"
CACHE_HITS = "program:dspy_cache_hits:ratio_increase1h"
CACHE_CALLS = "program:dspy_cache_requests:increase1h"
BUDGET = "program:dspy_cost_budget:usd_per_day"
_RUNS = "dspy_program_duration_seconds_count"
_HOUR_S = 3600.0
_BUDGET_WINDOW_S = 30 * 86_400.0


def burn(window_s: float) -> str:
    """Name of the series that holds a program's error ratio within a window."""
    return f"program:dspy_errors:ratio_rate{duration(window_s)}"


def burn_calls(window_s: float) -> str:
    """Name of the series that holds a program's calls within a window."""
    return f"program:dspy_calls:increase{duration(window_s)}"


def slow(window_s: float) -> str:
    """Name of the series that holds the part of a program's runs beyond the latency objective."""
    return f"program:dspy_slow_runs:ratio_rate{duration(window_s)}"


def budget_left() -> str:
    """Name of the series that holds what is left of the error budget of 30 days: 1 is all, below 0 is overdrawn."""
    return "program:dspy_error_budget:left30d"


def bucket(seconds: float) -> str:
    """A matcher for a histogram bucket, however the exposition writes its bound (10, 10.0)."""
    text = repr(float(seconds))
    return f'le=~"{text.removesuffix(".0")}([.]0)?"' if text.endswith(".0") else f'le="{text}"'


def recordings(o: DashboardOptions) -> list[Group]:
    """All groups of ``rules.yml``."""
    return [regressions.baselines(o), _error_budgets(o), _budget_left(o), _latency_budgets(o), _money(o), _deployed(o)]


def _windows(o: DashboardOptions) -> list[float]:
    return sorted({each for window in o.burn_windows for each in (window.long_s, window.short_s)})


def _error_budgets(o: DashboardOptions) -> Group:
    rules = []
    for window in _windows(o):
        calls = increase(o, _RUNS, window, PROGRAM, LIVE)
        failed = increase(o, _RUNS, window, PROGRAM, LIVE, FAILED)
        rules += [
            Recording(burn_calls(window), calls),
            Recording(burn(window), f"({failed} or 0 * {burn_calls(window)}) / ({burn_calls(window)} > 0)"),
        ]
    return Group("dspy-error-budget", rules)


def _budget_left(o: DashboardOptions) -> Group:
    """Apart from the rest, because it reads 30 days of samples."""
    calls = burn_calls(_BUDGET_WINDOW_S)
    failed = increase(o, _RUNS, _BUDGET_WINDOW_S, PROGRAM, LIVE, FAILED)
    ratio = f"({failed} or 0 * {calls}) / ({calls} > 0)"
    return Group(
        "dspy-error-budget-left",
        [
            Recording(calls, increase(o, _RUNS, _BUDGET_WINDOW_S, PROGRAM, LIVE)),
            Recording(budget_left(), f"1 - {ratio} / {n(round(1 - o.success_objective, 9))}"),
        ],
        interval_s=min(8 * o.evaluation_interval_s, 120.0),
    )


def _latency_budgets(o: DashboardOptions) -> Group:
    first = o.burn_windows[0]
    rules = []
    for window in (first.long_s, first.short_s):
        inside = increase(
            o, "dspy_program_duration_seconds_bucket", window, PROGRAM, LIVE, bucket(o.latency_objective_s)
        )
        rules.append(Recording(slow(window), f"1 - {inside} / ({increase(o, _RUNS, window, PROGRAM, LIVE)} > 0)"))
    return Group("dspy-latency-budget", rules)


def _money(o: DashboardOptions) -> Group:
    """Hourly sums, whose names are stable so that they can be compared with what they were a week ago."""
    hits = increase(o, "dspy_cache_requests_total", _HOUR_S, PROGRAM, 'result="hit"')
    own = [
        f'label_replace(label_replace(vector({n(usd)}), "program", "{program}", "", ""), '
        f'"environment", "{o.default_environment}", "", "")'
        for program, usd in sorted(o.daily_budgets_usd.items())
    ]
    budget = " or ".join([*own, f"0 * {COST} + {n(o.daily_budget_usd)}"])
    return Group(
        "dspy-hourly",
        [
            Recording(COST, increase(o, "dspy_cost_usd_total", _HOUR_S, PROGRAM)),
            Recording(TOKENS, increase(o, "dspy_tokens_total", _HOUR_S, PROGRAM, 'kind=~"prompt|completion"')),
            Recording(BUDGET, budget),
            Recording(CACHE_CALLS, increase(o, "dspy_cache_requests_total", _HOUR_S, PROGRAM)),
            Recording(CACHE_HITS, f"({hits} or 0 * {CACHE_CALLS}) / ({CACHE_CALLS} > 0)"),
            Recording(
                "program_model:dspy_lm_seconds:p95_increase1h",
                "histogram_quantile(0.95, "
                + increase(o, "dspy_lm_duration_seconds_bucket", _HOUR_S, f"{MODEL}, le", 'status="ok"')
                + ")",
            ),
        ],
    )


def _deployed(o: DashboardOptions) -> Group:
    """In how many versions a program is served as the stable one."""
    serving = selected(o, "dspy_serving_version_info", 'role="stable"')
    return Group(
        "dspy-deployed",
        [
            Recording(
                "program:dspy_served_versions:count",
                environment(o, f"count by ({PROGRAM}) (max by ({VERSION}) ({serving} == 1))"),
            ),
        ],
    )
