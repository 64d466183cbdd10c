"""Is one version better than another, and may the canary go on?"""

from __future__ import annotations

from dspy_observe.mixin.boards.common import LIVE, RUNS, events, heatmap, quantile, rate, ratio, series, stat, table, ts
from dspy_observe.mixin.grafana import BAD, GOOD, NEUTRAL, WARN, Panel, Row, Target, steps
from dspy_observe.mixin.options import DashboardOptions, duration
from dspy_observe.mixin.promql import FAILED
from dspy_observe.mixin.regressions import Names

__all__ = ["rows"]

_BY = "program, version"
_SECONDS = "dspy_program_duration_seconds"
_WHO = "{{program}} {{version}}"
_MINE = '{program=~"$program",version=~"$version"}'
_PROGRAM = '{program=~"$program"}'


def rows(o: DashboardOptions) -> list[Row]:
    """Versions side by side, their scores, the canary, and what the rules compare."""
    return [_side_by_side(), _over_time(o), _scores(), _canary(o), _judged(o)]


def _grown(metric: str, *matchers: str, by: str = _BY) -> str:
    return f"sum by ({by}) (increase({series(metric, *matchers)}[$__range]))"


def _side_by_side() -> Row:
    runs = _grown(RUNS, LIVE)
    failed = _grown(RUNS, LIVE, FAILED)
    buckets = f"sum by (le, {_BY}) (increase({series(_SECONDS + '_bucket', LIVE)}[$__range]))"
    return Row("Versions side by side", [
        table(
            "Comparison", "Which version answers best, fastest and cheapest in the time shown?",
            runs,
            f"({failed} or 0 * {runs}) / ({runs} > 0)",
            f"histogram_quantile(0.95, {buckets}) >= 0",  # a version without runs has none, rather than NaN
            f"{_grown('dspy_cost_usd_total')} / ({runs} > 0)",
            f"{_grown('dspy_score_sum', LIVE)} / ({_grown('dspy_score_count', LIVE)} > 0)",
            f"max by ({_BY}) ({series('dspy_evaluation_score')})",
            f"max by ({_BY}) ({series('dspy_quality_evidence')})",
            width=24, height=8,
            columns={
                "program": ("program", ""), "version": ("version", ""), "A": ("runs", "short"),
                "B": ("failed", "percentunit"), "C": ("p95", "s"), "D": ("cost a run", "currencyUSD"),
                "E": ("score", "percentunit"), "F": ("evaluation", "percentunit"), "G": ("evidence", "none"),
            },
        ),
    ])  # fmt: skip


def _over_time(o: DashboardOptions) -> Row:
    score = f"{rate('dspy_score_sum', LIVE, by=_BY)} / ({rate('dspy_score_count', LIVE, by=_BY)} > 0)"
    asked = rate("dspy_requests_total", by=_BY)
    parse = rate("dspy_adapter_failures_total", 'stage="parse"', by=_BY)
    return Row("Versions over time", [
        ts(
            "Failed runs by version", "Does a version fail more often than the others?", "percentunit",
            Target(ratio((RUNS, LIVE, FAILED), (RUNS, LIVE), by=_BY), _WHO),
            thresholds=steps(1 - o.success_objective, o.error_limit), minimum=0,
        ),
        ts(
            "p95 by version", "Is a version slower; a point is a trace.", "s",
            Target(quantile(0.95, _SECONDS, LIVE, by=_BY), _WHO, exemplar=True),
        ),
        ts(
            "Cost a run by version", "Is a version dearer?", "currencyUSD",
            Target(f"{rate('dspy_cost_usd_total', by=_BY)} / ({rate(RUNS, LIVE, by=_BY)} > 0)", _WHO),
        ),
        ts(
            "Score by version", "Are a version's answers better or worse?", "percentunit", Target(score, _WHO),
            minimum=0, maximum=1,
        ),
        ts(
            "Unreadable replies by version", "Does a version get replies that cannot be parsed?", "percentunit",
            Target(f"({parse} or 0 * {asked}) / ({asked} > 0)", _WHO),
            thresholds=steps(o.parse_limit / 2, o.parse_limit), minimum=0,
        ),
        ts(
            "Evidence of a regression",
            "How sure is the sequential test that a version regressed? log10; 2 is a hundred to one.", "none",
            Target(f"max by ({_BY}, rule) ({series('dspy_quality_evidence')})", f"{_WHO} {{{{rule}}}}"),
        ),
    ])  # fmt: skip


def _scores() -> Row:
    low = rate("dspy_score_bucket", LIVE, 'le="0.5"', by=_BY)
    every = rate("dspy_score_count", LIVE, by=_BY)
    return Row("Scores", [
        heatmap("Spread of scores", "Are answers good or bad, or in between?", "percentunit", "dspy_score", LIVE),
        ts(
            "Answers that score one half or less", "How many answers are bad, by version?", "percentunit",
            Target(f"{low} / ({every} > 0)", _WHO), minimum=0, maximum=1,
        ),
        ts(
            "Scores by source", "Who scores, and how much?", "short",
            Target(rate("dspy_score_count", by="source"), "{{source}}"),
            Target(rate("dspy_invalid_scores_total", by="program"), "{{program}}: refused"),
        ),
        ts(
            "Score by source", "Do users and judges agree?", "percentunit",
            Target(
                f"{rate('dspy_score_sum', by='source')} / ({rate('dspy_score_count', by='source')} > 0)", "{{source}}"
            ),
            minimum=0, maximum=1, width=12,
        ),
        ts(
            "Evaluations by data set", "How did each version do on its held-out sets?", "percentunit",
            Target(f"max by ({_BY}, dataset) ({series('dspy_evaluation_score')})", f"{_WHO} on {{{{dataset}}}}"),
            minimum=0, maximum=1, width=12,
        ),
    ])  # fmt: skip


def _canary(o: DashboardOptions) -> Row:
    names = Names(o)
    roles = 'role=~"stable|control|canary"'
    share = rate(RUNS, roles, by=_BY)
    whole = rate(RUNS, roles, by="program")
    scored = rate("dspy_score_count", roles, by="program, role")
    return Row("Canary", [
        stat(
            "Canary's runs", "Has the canary seen enough runs within the decision window to be judged?", "short",
            f"min({names.canary_calls}{_PROGRAM})", thresholds=((None, NEUTRAL), (float(o.canary_minimum_calls), GOOD)),
            no_value="no canary",
        ),
        stat(
            "Standard errors", "By how many standard errors does the canary fail more often than stable?", "none",
            f"max({names.canary_z}{_PROGRAM})", thresholds=steps(o.z_limit / 2, o.z_limit), no_value="no canary",
        ),
        Panel(
            "state-timeline", "Verdicts", "What does the sequential test say of each version, and since when?", "short",
            [Target(
                f"max by ({_BY}, verdict) ({series('dspy_quality_verdict_info')}) == 1", f"{_WHO} {{{{verdict}}}}"
            )],
            width=16, height=8, mappings={"1": ("yes", WARN)},
        ),
        ts(
            "Failed runs by role", "Does the canary fail more often than stable at the same moment?", "percentunit",
            Target(ratio((RUNS, roles, FAILED), (RUNS, roles), by="program, role"), "{{program}} {{role}}"), minimum=0,
        ),
        ts(
            "p95 by role", "Is the canary slower at the same moment?", "s",
            Target(quantile(0.95, _SECONDS, roles, by="program, role"), "{{program}} {{role}}", exemplar=True),
        ),
        ts(
            "Score by role", "Does the canary score less at the same moment?", "percentunit",
            Target(f"{rate('dspy_score_sum', roles, by='program, role')} / ({scored} > 0)", "{{program}} {{role}}"),
            minimum=0, maximum=1,
        ),
        ts(
            "Share of traffic, meant and real", "Does each version get the part of the traffic that it should?",
            "percentunit",
            Target(f"max by ({_BY}, role) ({series('dspy_traffic_share')})", f"{_WHO} {{{{role}}}} meant"),
            Target(f"{share} / on (program) group_left () ({whole} > 0)", f"{_WHO} real"),
            minimum=0, maximum=1, width=12,
        ),
        ts(
            "Shadow calls left out", "Is the shadow version too slow to keep up?", "short",
            Target(
                events("dspy_shadow_dropped_total", by="program, reason"),
                "{{program}}: {{reason}}",
            ),
            width=12,
        ),
    ])  # fmt: skip


def _judged(o: DashboardOptions) -> Row:
    names = Names(o)
    window, before = duration(o.regression_window_s), duration(o.baseline_window_s)

    def both(own: str, others: str) -> list[Target]:
        return [Target(f"{own}{_MINE}", _WHO), Target(f"{others}{_MINE}", f"others than {_WHO}")]

    return Row("What the alerts compare", [
        ts(
            "Errors against the others", f"Errors but the provider's in {window}, the others' in {before}?",
            "percentunit", *both(names.own_errors, names.others_errors),
            thresholds=((None, GOOD), (o.error_limit, BAD)), minimum=0,
        ),
        ts(
            "Scores against the others",
            f"Mean score within {duration(o.score_window_s)}, and that of all other versions within {before}?",
            "percentunit", *both(names.score, names.others_score), minimum=0, maximum=1,
        ),
        ts(
            "p95 against the others", f"p95 within {window}, and that of all other versions within {before}?", "s",
            *both(names.p95, names.others_p95),
        ),
    ])  # fmt: skip
