"""``runbook.md``: a section for each alert, whose anchor is the alert's name in lower case."""

from __future__ import annotations

from dataclasses import fields
from typing import Final

from dspy_observe.mixin import runbook_operations, runbook_versions
from dspy_observe.mixin.alerts import alert_groups
from dspy_observe.mixin.options import DashboardOptions, duration
from dspy_observe.mixin.promql import Alert, one_line, rule_of
from dspy_observe.mixin.runbook_section import Section
from dspy_observe.mixin.uids import TITLES, links

__all__ = ["SECTIONS", "runbook_md"]

SECTIONS: Final[dict[str, Section]] = runbook_versions.SECTIONS | runbook_operations.SECTIONS

_HEAD: Final = """\
# Runbook

Made by `dspy-observe dashboards generate`; the numbers below are those of your options. Each alert links here.
`$PROGRAM`, `$VERSION`, `$ENVIRONMENT` and the like stand for the alert's labels. `$PREVIOUS` is no label: it stands in the
column *before* of `registry log`, in the row in which `$VERSION` was deployed, or in that of the rollback that is in question.
Commands need `--registry` or `DSPY_OBSERVE_REGISTRY`.

First look, whatever the alert:

```console
$ dspy-observe decisions list
$ dspy-observe registry status $PROGRAM -e $ENVIRONMENT
$ dspy-observe registry log $PROGRAM -e $ENVIRONMENT
```

## What fails, what tells, what helps

| failure | alert | way back |
| --- | --- | --- |
| The model's provider is down | [DSPyFallbackRateHigh](#dspyfallbackratehigh), [DSPyProviderOutage](#dspyprovideroutage) | a second model answers (FallbackLM); rollbacks wait; someone is called |
| A compiled version got worse | [DSPyEvaluationBelowBaseline](#dspyevaluationbelowbaseline), [DSPyVersionScoreRegression](#dspyversionscoreregression), [DSPyQualityRegressed](#dspyqualityregressed) | the previous version is put back; compile again; `dspy-observe gate` |
| A version fails or cannot be parsed | [DSPyVersionErrorRegression](#dspyversionerrorregression), [DSPyVersionParseRegression](#dspyversionparseregression) | the previous version is put back |
| The rate limit is hit (429) | [DSPyRateLimited](#dspyratelimited) | lower num_threads, limiter in front |
| The disk cache grows | [DSPyDiskCacheLarge](#dspydiskcachelarge) | `dspy-observe cache prune --max-size 10GB --older-than 7d` |
| One user's tokens explode | [DSPyUserTokensExploding](#dspyusertokensexploding) | cut requests off, limit max_tokens, a budget that refuses |
"""  # noqa: E501 - a table's row is one line


def runbook_md(o: DashboardOptions) -> str:
    """The whole page."""
    parts = [_HEAD]
    for group in alert_groups(o):
        alerts = [rule for rule in group.rules if isinstance(rule, Alert)]
        if alerts:
            parts.append(f"## {group.name.removeprefix('dspy-').replace('-', ' ').capitalize()}\n")
        parts += [_section(alert, o) for alert in alerts]
    return "\n".join([*parts, _thresholds(o)])


def _section(alert: Alert, o: DashboardOptions) -> str:
    section = SECTIONS.get(alert.name) or _of_a_further_window()
    rule = rule_of(alert, o, links(o))
    labels = rule["labels"]
    tags = [f"severity {labels['severity']}"]
    if alert.for_s:
        tags.append(f"after {duration(alert.for_s)}")
    if "dspy_action" in labels:
        tags.append(f"**asks for a rollback** ({labels['dspy_signal']})")
    commands = [line for line in section.diagnosis if line.startswith(("dspy-observe", "amtool", "promtool"))]
    queries = [line for line in section.diagnosis if line not in commands]
    blocks = []
    if commands:
        blocks.append("```console\n" + "\n".join(f"$ {line}" for line in commands) + "\n```\n")
    if queries:
        blocks.append("```promql\n" + "\n\n".join(queries) + "\n```\n")
    return "\n".join([
        f"### {alert.name}\n",
        f"{', '.join(tags)} · dashboard {TITLES[alert.board]}\n",
        f"**Meaning.** {section.meaning} {_shown(alert.description)}\n",
        f"**Impact.** {section.impact}\n",
        "**Diagnosis.**\n",
        *blocks,
        f"<details><summary>The alert's own query</summary>\n\n```promql\n{one_line(alert.expr)}\n```\n\n</details>\n",
        f"**Mitigation.** {section.mitigation}\n",
    ])  # fmt: skip


def _of_a_further_window() -> Section:
    """Teams may add burn windows."""
    return SECTIONS["DSPyErrorBudgetBurnDays"]


def _shown(description: str) -> str:
    """A description without its templates, which mean nothing outside an alert."""
    text = one_line(description)
    for name in ("program", "version", "environment", "model", "tool", "dataset", "trigger", "instance"):
        text = text.replace("{{ $labels." + name + " }}", f"`{name}`")
    head, sep, tail = text.partition("{{ $value")
    while sep:
        text = f"{head}N{tail.partition('}}')[2]}"
        head, sep, tail = text.partition("{{ $value")
    return text


def _thresholds(o: DashboardOptions) -> str:
    rows = [
        f"| `{each.name}` | {_cell(getattr(o, each.name))} | {each.metadata['unit']} | {each.metadata['reason']} |"
        for each in fields(o)
    ]
    return "\n".join([
        "## Options\n",
        "Every threshold, window and address of rules, alerts and dashboards. Change them in a file and generate:",
        "`dspy-observe dashboards generate --options my.toml --out DIR`.\n",
        "| option | value | unit | reason |",
        "| --- | --- | --- | --- |",
        *rows,
        "",
    ])  # fmt: skip


def _cell(value: object) -> str:
    if isinstance(value, tuple):
        shown = ", ".join(
            f"{duration(w.long_s)}/{duration(w.short_s)} x{w.factor:g}" if hasattr(w, "long_s") else str(w)
            for w in value
        )
        return f"`{shown}`"
    return f"`{value}`" if value not in ("", {}) else "none"
