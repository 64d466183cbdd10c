"""Is content redacted, and is the observer itself well?"""

from __future__ import annotations

from dspy_observe.conventions import MAX_OPEN_CALLS, OVERFLOW_LABEL
from dspy_observe.mixin.boards.common import R, events, rate, series, stat, ts
from dspy_observe.mixin.grafana import Panel, Row, Target, steps
from dspy_observe.mixin.options import DashboardOptions

__all__ = ["rows"]


def rows(o: DashboardOptions) -> list[Row]:
    """Privacy, the observer, and what it costs to be scraped."""
    return [_privacy(), _observer(o), _scraped(o)]


def _privacy() -> Row:
    return Row("Privacy", [
        stat(
            "Redacted values", "How many private values were removed in the time shown?", "short",
            events("dspy_redactions_total", window="$__range"), height=8,
        ),
        stat(
            "Redaction failures", "Was content dropped because a detector failed? Has to be 0.", "short",
            f"sum(increase({series('dspy_redaction_failures_total')}[$__range]))", thresholds=steps(None, 1), height=8,
        ),
        ts(
            "Redactions by kind", "What kinds of private values turn up, and how often?", "ops",
            Target(rate("dspy_redactions_total", by="entity"), "{{entity}}"), stacked=True,
        ),
        Panel(
            "bargauge", "Redactions in the time shown", "Which kinds are most frequent?", "short",
            [Target(
                f"sort_desc({events('dspy_redactions_total', by='entity', window='$__range')})", "{{entity}}",
                instant=True,
            )],
            minimum=0,
        ),
    ])  # fmt: skip


def _observer(o: DashboardOptions) -> Row:
    return Row("The observer", [
        ts(
            "Errors kept from the program", "Where does the observer itself fail?", "short",
            Target(events("dspy_observe_internal_errors_total", by="site"), "{{site}}"),
        ),
        ts(
            "Open calls", "Do calls begin that never end?", "short",
            Target(f"max by (instance) ({series('dspy_observe_open_calls')})", "{{instance}}"),
            thresholds=steps(float(o.open_calls_limit), float(MAX_OPEN_CALLS)), minimum=0,
        ),
        ts(
            "Calls given up", "Are figures missing because too many calls were open?", "short",
            Target(f"sum by (instance) (increase({series('dspy_observe_dropped_calls_total')}[{R}]))", "{{instance}}"),
        ),
    ])  # fmt: skip


def _scraped(o: DashboardOptions) -> Row:
    other = series("dspy_program_duration_seconds_count", f'version="{OVERFLOW_LABEL}"')
    return Row("Being scraped", [
        ts(
            "Samples a scrape", "Does a process export more than a scrape should take?", "short",
            Target(f"max by (job, instance) ({series('scrape_samples_scraped')})", "{{job}} {{instance}}"),
            thresholds=steps(o.samples_per_target_limit / 2, float(o.samples_per_target_limit)), minimum=0,
        ),
        ts(
            "Duration of a scrape", "How long does a scrape stall a process?", "s",
            Target(f"max by (job, instance) ({series('scrape_duration_seconds')})", "{{job}} {{instance}}"), minimum=0,
        ),
        ts(
            "Processes up", "Which processes can be scraped?", "short",
            Target(f"min by (job, instance) ({series('up')})", "{{job}} {{instance}}"), minimum=0, maximum=1,
        ),
        ts(
            "Series by metric", "Which metric has the most series?", "short",
            Target(
                'topk(10, count by (__name__) ({__name__=~"dspy_.+",job=~"$job",instance=~"$instance"}))',
                "{{__name__}}",
            ),
            width=12,
        ),
        ts(
            "Runs that cannot be told apart", "Are there more versions than the label's ceiling admits?", "reqps",
            Target(f"sum by (program) (rate({other}[{R}]))", "{{program}}"), width=12,
        ),
    ])  # fmt: skip
