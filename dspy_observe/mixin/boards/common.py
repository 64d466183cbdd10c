"""What all dashboards share: variables, annotations, links, and selectors that obey the variables."""

from __future__ import annotations

from typing import Any, Final

from dspy_observe.conventions import METRICS
from dspy_observe.mixin.grafana import BAD, GOOD, NEUTRAL, WARN, Panel, Target
from dspy_observe.mixin.options import DashboardOptions
from dspy_observe.mixin.promql import LIVE
from dspy_observe.mixin.uids import TITLES, uid

__all__ = [
    "LIVE",
    "RUNS",
    "R",
    "events",
    "heatmap",
    "link_to",
    "links",
    "marks",
    "quantile",
    "rate",
    "ratio",
    "series",
    "stat",
    "table",
    "ts",
    "variables",
]

R: Final = "$__rate_interval"
RUNS: Final = "dspy_program_duration_seconds_count"
_FILTERED: Final = ("program", "version", "model", "module")


def series(metric: str, *matchers: str) -> str:
    """A selector of a metric, narrowed by every variable that fits its labels.

    Args:
        metric: Its name, with ``_bucket``, ``_sum`` or ``_count`` for a histogram; or one of Prometheus' own.
        *matchers: Further ones.
    """
    name = metric
    for suffix in ("_bucket", "_sum", "_count"):
        if metric not in METRICS and metric.endswith(suffix):
            name = metric.removesuffix(suffix)
    labels = METRICS[name].labels if name in METRICS else ()
    fitting = [f'{label}=~"${label}"' for label in _FILTERED if label in labels]
    inside = ",".join(['job=~"$job"', 'instance=~"$instance"', *fitting, *matchers])
    return f"{metric}{{{inside}}}"


def rate(metric: str, *matchers: str, by: str = "") -> str:
    """What a counter grows by in a second, added up."""
    return f"sum{f' by ({by})' if by else ''} (rate({series(metric, *matchers)}[{R}]))"


def events(metric: str, *matchers: str, by: str = "", window: str = R) -> str:
    """How many events a counter has seen within a window, the first one included, which increase() does not see.

    Args:
        metric: A counter of rare events.
        *matchers: Further ones.
        by: Labels to keep.
        window: ``$__rate_interval`` for a course, ``$__range`` for a number.
    """
    one = series(metric, *matchers)
    # Where the scrape failed when the window began, nothing is known: a lifetime's total must not look like news.
    born = f"{one} unless {one} offset {window} unless on (job, instance) {series('up')} offset {window} == 0"
    return f"sum{f' by ({by})' if by else ''} (({born}) or increase({one}[{window}]))"


def ratio(part: tuple[str, ...], whole: tuple[str, ...], by: str = "") -> str:
    """A part of a whole; 0 where nothing of the part was ever seen, and nothing where there is no whole.

    Args:
        part: Metric and matchers of what is counted.
        whole: Metric and matchers of what it is counted out of.
        by: Labels to keep.
    """
    whole_rate = rate(whole[0], *whole[1:], by=by)
    return f"({rate(part[0], *part[1:], by=by)} or 0 * {whole_rate}) / ({whole_rate} > 0)"


def quantile(q: float, metric: str, *matchers: str, by: str = "") -> str:
    """A quantile of a histogram."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q:g}, sum by ({labels}) (rate({series(metric + '_bucket', *matchers)}[{R}])))"


def ts(title: str, description: str, unit: str, *targets: Target | str, **more: Any) -> Panel:
    """A time series panel; a text is a query without a legend."""
    made = [Target(one) if isinstance(one, str) else one for one in targets]
    return Panel("timeseries", title, description, unit, made, **more)


def stat(title: str, description: str, unit: str, expr: str, **more: Any) -> Panel:
    """One number, with its course behind it."""
    return Panel("stat", title, description, unit, [Target(expr)], **({"width": 4, "height": 4} | more))


def table(title: str, description: str, *targets: str, **more: Any) -> Panel:
    """A table of the queries' last values."""
    unit = more.pop("unit", "short")
    return Panel("table", title, description, unit, [Target(one, instant=True) for one in targets], **more)


def heatmap(title: str, description: str, unit: str, metric: str, *matchers: str, **more: Any) -> Panel:
    """How a histogram's observations are spread over time."""
    expr = f"sum by (le) (increase({series(metric + '_bucket', *matchers)}[{R}]))"
    return Panel("heatmap", title, description, unit, [Target(expr, heatmap=True, exemplar=True)], **more)


def link_to(key: str, label: str = "program") -> tuple[str, str]:
    """From a series to a dashboard about its program, version or model, at the same time."""
    keep = "${__url_time_range}&${datasource:queryparam}"
    return TITLES[key], f"/d/{uid(key)}?{keep}&var-{label}=${{__field.labels.{label}}}"


def variables() -> list[dict[str, Any]]:
    """``$datasource $job $instance $program $version $module $model``, each narrowed by those before it."""
    up = "dspy_observe_open_calls"
    where = 'job=~"$job",instance=~"$instance"'
    runs = f"dspy_program_duration_seconds_count{{{where}}}"
    mine = f'{where},program=~"$program"'
    return [
        {
            "name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "regex": "",
            "hide": 0, "refresh": 1, "multi": False, "includeAll": False, "options": [], "skipUrlSync": False,
            "current": {},
        },
        _query("job", f"label_values({up}, job)"),
        _query("instance", f'label_values({up}{{job=~"$job"}}, instance)'),
        _query("program", f"label_values({runs}, program)"),
        _query("version", f"label_values(dspy_program_duration_seconds_count{{{mine}}}, version)"),
        _query("module", f"label_values(dspy_module_duration_seconds_count{{{mine}}}, module)"),
        _query("model", f"label_values(dspy_requests_total{{{mine}}}, model)"),
    ]  # fmt: skip


def _query(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": name,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": query, "refId": f"variable-{name}"},
        "regex": "",
        "sort": 1,
        "hide": 0,
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".+",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "options": [],
        "skipUrlSync": False,
    }


def marks() -> list[dict[str, Any]]:
    """Deployments, rollbacks, and alerts that ask for a rollback, drawn over every panel."""
    deployed = series("dspy_deployed_version_info")
    when = series("dspy_deployment_timestamp_seconds")
    return [
        _annotation(
            "Deployments",
            f"""max by (program, environment, version) ({deployed} == 1)
            * on (program, environment) group_left () max by (program, environment) ({when}) * 1000""",
            GOOD, "{{program}} {{version}}", "{{environment}}", at_value=True,
        ),
        _annotation(
            "Rollbacks",
            f"{events('dspy_rollbacks_total', by='program, environment, trigger, outcome')} > 0",
            BAD, "Rollback of {{program}}: {{outcome}}", "{{environment}}, asked for by {{trigger}}",
        ),
        _annotation(
            "Decisions",
            f"{events('dspy_decisions_total', by='program, environment, trigger, outcome')} > 0",
            NEUTRAL, "{{program}}: {{outcome}}", "{{environment}}, asked for by {{trigger}}", shown=False,
        ),
        _annotation(
            "Alerts",
            'ALERTS{alertname=~"DSPy.+",alertstate="firing",dspy_action="rollback",program=~"$program"}',
            WARN, "{{alertname}}", "{{program}} {{version}} {{environment}}",
        ),
    ]  # fmt: skip


def _annotation(
    name: str, expr: str, colour: str, title: str, text: str, *, at_value: bool = False, shown: bool = True
) -> dict[str, Any]:
    return {
        "name": name,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "enable": shown,
        "hide": False,
        "iconColor": colour,
        "expr": " ".join(expr.split()),
        "titleFormat": title,
        "textFormat": text,
        "tagKeys": "program,version,environment",
        "useValueForTime": at_value,
    }


def links(o: DashboardOptions, own: str) -> list[dict[str, Any]]:
    """To the other dashboards, with time and variables kept, and to the runbook."""
    made = [
        _link(title.removeprefix("DSPy / "), f"/d/{uid(key)}", "dashboard")
        for key, title in TITLES.items()
        if key != own
    ]
    return [*made, _link("Runbook", o.runbook_url, "doc", keep=False)]


def _link(title: str, url: str, icon: str, *, keep: bool = True) -> dict[str, Any]:
    return {
        "title": title,
        "type": "link",
        "url": url,
        "icon": icon,
        "tooltip": "",
        "tags": [],
        "asDropdown": False,
        "includeVars": keep,
        "keepTime": keep,
        "targetBlank": not keep,
    }
