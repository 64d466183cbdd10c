"""What do the models do, how many tokens do they take, and what does it cost?"""

from __future__ import annotations

from dspy_observe.mixin.boards.common import (
    LIVE,
    RUNS,
    events,
    heatmap,
    link_to,
    quantile,
    rate,
    ratio,
    series,
    stat,
    ts,
)
from dspy_observe.mixin.grafana import Row, Target, steps
from dspy_observe.mixin.options import DashboardOptions
from dspy_observe.mixin.promql import FAILED
from dspy_observe.mixin.rules import BUDGET, COST

__all__ = ["rows"]

_ASKED, _TOKENS, _COST = "dspy_requests_total", "dspy_tokens_total", "dspy_cost_usd_total"
_CACHE, _SECONDS = "dspy_cache_requests_total", "dspy_lm_duration_seconds"
_TTFT = "dspy_lm_time_to_first_token_seconds"
_LIMITED = 'status="rate_limited"'
_MINE = '{program=~"$program"}'


def rows(o: DashboardOptions) -> list[Row]:
    """Models, tokens, money, cache."""
    return [_now(o), _models(o), _tokens(o), _money(o), _caches(o)]


def _now(o: DashboardOptions) -> Row:
    return Row("Now", [
        stat("LM calls", "How many LM calls are made a second?", "reqps", rate(_ASKED)),
        stat(
            "Failed LM calls", "What part of the LM calls fails?", "percentunit", ratio((_ASKED, FAILED), (_ASKED,)),
            thresholds=steps(o.error_limit, o.provider_failure_ratio), maximum=1,
        ),
        stat(
            "Refused (429)", "What part of the calls does the provider refuse for being too many?", "percentunit",
            ratio((_ASKED, _LIMITED), (_ASKED,)),
            thresholds=steps(o.rate_limited_ratio / 2, o.rate_limited_ratio), maximum=1,
        ),
        stat("p95 of LM calls", "How long do the slowest 5 % take at least?", "s", quantile(0.95, _SECONDS)),
        stat(
            "Spent", "What was billed in the time shown?", "currencyUSD",
            f"sum(increase({series(_COST)}[$__range]))",
        ),
        stat(
            "Saved by the cache", "What would the time shown have cost more without DSPy's cache?", "currencyUSD",
            f"sum(increase({series('dspy_cost_saved_usd_total')}[$__range]))",
        ),
    ])  # fmt: skip


def _models(o: DashboardOptions) -> Row:
    fallbacks = "dspy_fallbacks_total"
    limit = steps(o.rate_limited_ratio / 2, o.rate_limited_ratio)
    return Row("Models", [
        ts(
            "LM calls by model", "Which models are asked, and how often?", "reqps",
            Target(rate(_ASKED, by="model"), "{{model}}"), stacked=True, links=[link_to("lm", "model")],
        ),
        ts(
            "LM calls by outcome", "How do LM calls end?", "reqps", Target(rate(_ASKED, by="status"), "{{status}}"),
            stacked=True, by_status=True,
        ),
        ts(
            "Failed calls by model", "Which model fails, and is it down?", "percentunit",
            Target(ratio((_ASKED, FAILED), (_ASKED,), by="model"), "{{model}}"),
            thresholds=steps(o.error_limit, o.provider_failure_ratio), minimum=0,
        ),
        ts(
            "Refused calls (429) by model", "Which model's rate limit is hit, and beyond 1 %?", "percentunit",
            Target(ratio((_ASKED, _LIMITED), (_ASKED,), by="model"), "{{model}}"), thresholds=limit, minimum=0,
        ),
        ts(
            "Latency by model", "How fast does each model answer; a point is a trace.", "s",
            Target(quantile(0.5, _SECONDS, by="model"), "{{model}} p50", exemplar=True),
            Target(quantile(0.95, _SECONDS, by="model"), "{{model}} p95", exemplar=True),
        ),
        heatmap("Spread of LM latency", "Are there several kinds of calls, fast and slow ones?", "s", _SECONDS),
        ts(
            "Time to first token", "How long does a reader wait before anything appears?", "s",
            Target(quantile(0.5, _TTFT, by="model"), "{{model}} p50", exemplar=True),
            Target(quantile(0.95, _TTFT, by="model"), "{{model}} p95", exemplar=True),
        ),
        ts(
            "Fallbacks", "Which model stands in for which, and why?", "reqps",
            Target(rate(fallbacks, by="from_model, to_model, reason"), "{{from_model}} → {{to_model}}: {{reason}}"),
        ),
        ts(
            "Retries", "How often are calls tried again?", "reqps",
            Target(rate("dspy_retries_total", by="model"), "{{model}}"),
        ),
    ])  # fmt: skip


def _tokens(o: DashboardOptions) -> Row:
    def part(kind: str, whole: str) -> str:
        return ratio((_TOKENS, f'kind="{kind}"'), (_TOKENS, f'kind="{whole}"'), by="model")

    return Row("Tokens", [
        ts(
            "Tokens by kind", "What are tokens used for? cache_read is within prompt, reasoning within completion.",
            "short", Target(rate(_TOKENS, by="kind"), "{{kind}}"),
        ),
        ts(
            "Tokens by program", "Which program uses them?", "short",
            Target(rate(_TOKENS, 'kind=~"prompt|completion"', by="program"), "{{program}}"), stacked=True,
        ),
        ts(
            "Tokens a run", "How many tokens does a run take, by version?", "short",
            Target(
                f"""{rate(_TOKENS, 'kind=~"prompt|completion"', by="program, version")}
                / ({rate(RUNS, by="program, version")} > 0)""", "{{program}} {{version}}",
            ),
        ),
        ts(
            "Prompt read from the provider's cache", "How much of the prompts is billed at the cached price?",
            "percentunit", Target(part("cache_read", "prompt"), "{{model}}"), minimum=0, maximum=1,
        ),
        ts(
            "Reasoning in completions", "How much of what is written is never shown?", "percentunit",
            Target(part("reasoning", "completion"), "{{model}}"), minimum=0, maximum=1,
        ),
        ts(
            "Heaviest user", "How many tokens has the heaviest user of each program had within the budget's window?",
            "short", Target(f"max by (program) ({series('dspy_user_tokens_max')})", "{{program}}"),
            Target(
                events("dspy_user_budget_exceeded_total", by="program"),
                "{{program}}: over budget",
            ),
            thresholds=steps(None, float(o.user_tokens_limit)),
        ),
    ])  # fmt: skip


def _money(o: DashboardOptions) -> Row:
    return Row("Cost", [
        ts(
            "Cost by model", "What would an hour at this rate cost, by model?", "currencyUSD",
            Target(f"{rate(_COST, by='model')} * 3600", "{{model}}"), stacked=True,
        ),
        ts(
            "Cost by program", "What would an hour at this rate cost, by program?", "currencyUSD",
            Target(f"{rate(_COST, by='program')} * 3600", "{{program}}"), stacked=True, links=[link_to("quality")],
        ),
        ts(
            "Cost a run", "What does a run cost, by version?", "currencyUSD",
            Target(
                f"""{rate(_COST, by="program, version")} / ({rate(RUNS, LIVE, by="program, version")} > 0)""",
                "{{program}} {{version}}",
            ),
        ),
        ts(
            "Day's cost at this rate, and its budget", "Will a program go over its daily budget?", "currencyUSD",
            Target(f"24 * {COST}{_MINE}", "{{program}}"), Target(f"{BUDGET}{_MINE}", "{{program}} budget"),
        ),
        ts(
            "Cost against a week ago", "Is this hour dearer than the same hour last week, or the last day's mean?",
            "percentunit",
            Target(
                f"{COST}{_MINE} / (({COST}{_MINE} offset 1w or avg_over_time({COST}{_MINE}[1d])) > 0)", "{{program}}"
            ),
            thresholds=steps(None, o.cost_spike_factor), minimum=0,
        ),
        ts(
            "Calls that are not counted", "Which models report no usage, or have no known price?", "reqps",
            Target(rate("dspy_unmetered_requests_total", by="model"), "{{model}}: no usage"),
            Target(rate("dspy_unpriced_requests_total", by="model"), "{{model}}: no price"),
        ),
    ])  # fmt: skip


def _caches(o: DashboardOptions) -> Row:
    size = series("dspy_cache_dir_bytes")
    return Row("DSPy's cache", [
        ts(
            "Cache hits by program", "What part of the calls is answered from DSPy's cache?", "percentunit",
            Target(ratio((_CACHE, 'result="hit"'), (_CACHE,), by="program"), "{{program}}"), minimum=0, maximum=1,
        ),
        ts(
            "Hits and misses", "How many calls does the cache take off the models?", "reqps",
            Target(rate(_CACHE, by="result"), "{{result}}"), stacked=True,
        ),
        ts(
            "Disk cache", "How large is the cache folder, and when is it to be pruned?", "bytes",
            Target(f"max by (instance) ({size})", "{{instance}}"),
            thresholds=steps(o.cache_dir_limit_bytes * 0.8, o.cache_dir_limit_bytes), minimum=0,
        ),
    ])  # fmt: skip
