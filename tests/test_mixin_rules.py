"""Rules, alerts, routes and runbook: whole, well-formed, and proved by Prometheus' and Alertmanager's own tools."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from dspy_observe.conventions import METRICS, WATCHDOG_ALERT
from dspy_observe.mixin.alerts import alert_groups, alerts, rule_groups
from dspy_observe.mixin.cases import ALWAYS_FIRING
from dspy_observe.mixin.checking import selectors
from dspy_observe.mixin.files import generate
from dspy_observe.mixin.options import DashboardOptions
from dspy_observe.mixin.promql import Alert, Recording, rule_of
from dspy_observe.mixin.runbook import SECTIONS
from dspy_observe.mixin.scenes import chosen_labels
from dspy_observe.mixin.uids import links
from tests.servers import needs

FOLDER = Path(__file__).parents[1] / "dashboards"
PRESETS = {"default": DashboardOptions(), "fast": DashboardOptions.fast()}
OWN = DashboardOptions(
    selector='cluster="eu",team=~"a|b"', default_environment="live", regression_window_s=120.0, minimum_calls=10,
    rollback_signals=("errors",), daily_budgets_usd={"qa": 5.0, "chat": 7.5},
)  # fmt: skip
FOREIGN = {
    "up", "scrape_samples_scraped", "alertmanager_notifications_failed_total",
    "prometheus_notifications_alertmanagers_discovered", "prometheus_rule_evaluation_failures_total",
}  # fmt: skip
"""Series of Prometheus and Alertmanager themselves."""


def written(folder: Path, o: DashboardOptions) -> Path:
    """The folder with all files of these options."""
    for name, text in generate(o).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def run(*command: str | Path, cwd: Path) -> str:
    """What a tool says; it has to succeed."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


def expressions(o: DashboardOptions) -> Iterator[tuple[str, str]]:
    """Name and expression of every rule."""
    for group in [*rule_groups(o), *alert_groups(o)]:
        for rule in group.rules:
            yield rule.name, rule.expr


def test_what_is_committed_is_what_is_generated() -> None:
    """File by file, and nothing of ours besides."""
    made = generate(DashboardOptions())
    assert {name: (FOLDER / name).read_text(encoding="utf-8") for name in made} == made
    there = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file()}
    assert {name for name in there - set(made) if not name.startswith(("README", "pictures/"))} == set()


@pytest.mark.parametrize("o", [*PRESETS.values(), OWN], ids=[*PRESETS, "own"])
def test_promtool_and_amtool_accept_everything(tmp_path: Path, o: DashboardOptions) -> None:
    """Rules, Prometheus' and Alertmanager's configuration, by the tools of 2.42 and 0.25."""
    needs("promtool", "amtool")
    folder = written(tmp_path, o)
    run("promtool", "check", "rules", "rules.yml", "alerts.yml", cwd=folder / "prometheus")
    run("promtool", "check", "config", "prometheus.yml", cwd=folder / "prometheus")
    run("amtool", "check-config", "alertmanager.yml", cwd=folder / "alertmanager")


TEST_FILES = sorted(path.name for path in (FOLDER / "prometheus" / "tests").glob("*.yml"))


@pytest.mark.parametrize("name", TEST_FILES)
def test_alerts_fire_and_are_silent_as_they_should(name: str) -> None:
    """``promtool test rules`` on the committed files."""
    needs("promtool")
    assert "SUCCESS" in run("promtool", "test", "rules", name, cwd=FOLDER / "prometheus" / "tests")


@pytest.mark.parametrize(
    ("o", "name"),
    [
        pytest.param(PRESETS["fast"], "canaries.yml", id="fast-canaries"),
        pytest.param(PRESETS["fast"], "rollbacks.yml", id="fast-rollbacks"),
        pytest.param(OWN, "providers.yml", id="own-providers"),
        pytest.param(OWN, "serving.yml", id="own-serving"),
    ],
)
def test_other_options_pass_their_own_tests(tmp_path: Path, o: DashboardOptions, name: str) -> None:
    """The tests are generated from the same options, so a team's own set is proved, too."""
    needs("promtool")
    run("promtool", "test", "rules", name, cwd=written(tmp_path, o) / "prometheus" / "tests")


def test_matchers_that_no_test_can_satisfy_leave_the_tests_out() -> None:
    """Rather than tests that fail for no fault of the rules."""
    assert chosen_labels(OWN) == {"cluster": "eu", "team": "a"}
    assert chosen_labels(DashboardOptions(selector='a!="b",c!~"d.*"')) == {}
    clever = DashboardOptions(selector='cluster=~"eu-[0-9]+"')
    assert chosen_labels(clever) is None
    assert [name for name in generate(clever) if "tests/" in name] == []


def test_every_alert_has_a_firing_and_a_silent_case() -> None:
    """In the committed files; only the watchdog is never silent."""
    firing: set[str] = set()
    silent: set[str] = set()
    for name in TEST_FILES:
        for test in yaml.safe_load((FOLDER / "prometheus" / "tests" / name).read_text(encoding="utf-8"))["tests"]:
            for check in test["alert_rule_test"]:
                (firing if check["exp_alerts"] else silent).add(check["alertname"])
    names = {alert.name for alert in alerts(DashboardOptions())}
    assert firing == names
    assert silent == names - ALWAYS_FIRING
    assert {WATCHDOG_ALERT} == ALWAYS_FIRING


@pytest.mark.parametrize("o", [*PRESETS.values(), OWN], ids=[*PRESETS, "own"])
def test_expressions_parse_by_the_grammar_of_prometheus_3(o: DashboardOptions) -> None:
    """And read only metrics that exist: ours, the tools', or what a rule records."""
    recorded = {
        rule.name for g in [*rule_groups(o), *alert_groups(o)] for rule in g.rules if isinstance(rule, Recording)
    }
    suffixes = ("", "_bucket", "_sum", "_count")
    known = {
        name + suffix
        for name, spec in METRICS.items()
        for suffix in suffixes
        if suffix == "" or spec.type == "histogram"
    }
    for name, expr in expressions(o):
        for metric, matchers in selectors(expr):
            assert metric in known | recorded | FOREIGN, f"{name} reads {metric}"
            if metric in known:
                spec = METRICS.get(metric) or METRICS[re.sub("_(bucket|sum|count)$", "", metric)]
                own = {*spec.labels, "le"} | ({"cluster", "team"} if o is OWN else set())
                assert set(matchers) <= own, f"{name} asks {metric} for {set(matchers) - own}"
                assert o is not OWN or {"cluster", "team"} <= set(matchers), f"{name} forgets the team's own matchers"


def test_recorded_series_have_one_name_each() -> None:
    """Level, metric, operations; and no two rules record the same, whatever the windows."""
    for o in (*PRESETS.values(), OWN, DashboardOptions(score_window_s=600.0, regression_window_s=600.0)):
        names = [
            rule.name for g in [*rule_groups(o), *alert_groups(o)] for rule in g.rules if isinstance(rule, Recording)
        ]
        assert len(set(names)) == len(names)
        assert [
            name for name in names if not re.fullmatch(r"(program|version|model|le|_)+:[a-z0-9_]+:[a-z0-9_]+", name)
        ] == []


@pytest.mark.parametrize("o", [*PRESETS.values(), OWN], ids=[*PRESETS, "own"])
def test_every_recorded_series_is_read(o: DashboardOptions) -> None:
    """By another rule, a panel, or a query of the runbook: else Prometheus works for nobody."""
    made = generate(o)
    groups = [*rule_groups(o), *alert_groups(o)]
    boards = [json.loads(text) for name, text in made.items() if name.startswith("grafana/")]
    queries = [rule.expr for group in groups for rule in group.rules]
    queries += [target["expr"] for board in boards for panel in board["panels"] for target in panel.get("targets", ())]
    queries += re.findall(r"^```promql\n(.*?)^```$", made["runbook.md"], re.MULTILINE | re.DOTALL)
    read = set(re.findall(r"\w+:\w+:\w+", "\n".join(queries)))
    names = {rule.name for group in groups for rule in group.rules if isinstance(rule, Recording)}
    assert len(names) > 30
    assert names <= read, names - read


def test_info_series_are_aggregated_before_they_are_joined() -> None:
    """Two replicas export the same version: joined as they are, the rule would fail and never fire."""
    for name, expr in expressions(DashboardOptions()):
        for found in re.finditer(r"dspy_\w+_(info|timestamp_seconds|remaining|frozen)\b", expr):
            before = expr[: found.start()]
            assert re.search(
                r"(max|min|count) (by|without) \([^)]*\) \((max_over_time\()?\s*$|(count|max)\((max_over_time\()?$",
                before,
            ), f"{name} uses {found[0]} as it is"


def test_windows_hold_enough_scrapes() -> None:
    """A result must not hang on whether a window's first edge counts, as that changed with Prometheus 3."""
    for o in PRESETS.values():
        for window in (o.regression_window_s, o.canary_window_s, o.score_window_s):
            assert window >= 4 * o.scrape_interval_s


@pytest.mark.parametrize("alert", list(alerts(DashboardOptions())), ids=lambda alert: alert.name)
def test_an_alert_says_what_it_is_and_where_to_look(alert: Alert) -> None:
    """Severity, summary, description, a dashboard that exists, and a runbook section whose anchor exists."""
    o = DashboardOptions()
    rule = rule_of(alert, o, links(o))
    assert alert.name.startswith("DSPy")
    assert rule["labels"]["severity"] in ("critical", "warning", "info", "none")
    notes = rule["annotations"]
    assert set(notes) == {"summary", "description", "runbook_url", "dashboard_url"}
    assert len(notes["summary"]) <= 160
    assert "\n" not in notes["description"]
    page, _, anchor = notes["runbook_url"].partition("#")
    text = (FOLDER / page).read_text(encoding="utf-8")
    assert anchor in {title.strip().lower() for title in re.findall(r"^### (.+)$", text, re.MULTILINE)}
    section = text.partition(f"### {alert.name}\n")[2].partition("\n### ")[0]
    for part in ("**Meaning.**", "**Impact.**", "**Diagnosis.**", "**Mitigation.**", "```promql"):
        assert part in section
    assert alert.name in SECTIONS


def test_alerts_that_roll_back_name_what_to_roll_back() -> None:
    """Critical, with program, version and environment in their results; which signals do is an option."""
    o = DashboardOptions()
    acting = {a.name for a in alerts(o) if "dspy_action" in rule_of(a, o, links(o))["labels"]}
    assert acting == {
        "DSPyVersionErrorRegression", "DSPyVersionParseRegression", "DSPyVersionScoreRegression",
        "DSPyEvaluationBelowBaseline", "DSPyQualityRegressed", "DSPyCanaryErrorRegression",
        "DSPyCanaryScoreRegression", "DSPyCanaryLatencyRegression", "DSPyCanaryCostRegression",
    }  # fmt: skip
    for name in TEST_FILES:
        for test in yaml.safe_load((FOLDER / "prometheus" / "tests" / name).read_text(encoding="utf-8"))["tests"]:
            for check in test["alert_rule_test"]:
                for expected in check["exp_alerts"] if check["alertname"] in acting else ():
                    labels = expected["exp_labels"]
                    assert {"program", "version", "environment"} <= set(labels)
                    assert labels["severity"] == "critical"
                    assert labels["dspy_action"] == "rollback"
    only = {a.name for a in alerts(OWN) if "dspy_action" in rule_of(a, OWN, links(OWN))["labels"]}
    assert only == {"DSPyVersionErrorRegression", "DSPyCanaryErrorRegression"}


ROLLBACK = ("dspy_action=rollback", "program=qa", "version=v2", "severity=critical", "environment=production")


@pytest.mark.parametrize(
    ("labels", "receivers"),
    [
        (("alertname=DSPyVersionErrorRegression", "dspy_signal=errors", *ROLLBACK), "rollback,people-now"),
        (("alertname=DSPyCanaryScoreRegression", "dspy_signal=score", *ROLLBACK), "rollback,people-now"),
        ((f"alertname={WATCHDOG_ALERT}", "severity=none"), "rollback"),
        (("alertname=DSPyProviderOutage", "severity=critical", "program=qa"), "people-now"),
        (("alertname=DSPyRateLimited", "severity=warning", "program=qa"), "people"),
        (("alertname=DSPyRollbackDone", "severity=info", "program=qa"), "people"),
        (("alertname=SomebodyElses",), "people"),
    ],
)
def test_alerts_reach_their_receivers(labels: tuple[str, ...], receivers: str) -> None:
    """By ``amtool config routes test`` on the committed file."""
    needs("amtool")
    file = FOLDER / "alertmanager" / "alertmanager.yml"
    command = (
        "amtool",
        "config",
        "routes",
        "test",
        f"--config.file={file}",
        f"--verify.receivers={receivers}",
        *labels,
    )
    assert run(*command, cwd=FOLDER).strip() == receivers


def test_what_the_provider_does_inhibits_rollbacks_of_the_same_program() -> None:
    """An outage holds all; refusals hold those whose signal they falsify, but not errors, counted without them."""
    config = yaml.safe_load((FOLDER / "alertmanager" / "alertmanager.yml").read_text(encoding="utf-8"))
    rules = {rule["source_matchers"][0]: rule for rule in config["inhibit_rules"]}
    outage, limited = rules['alertname="DSPyProviderOutage"'], rules['alertname="DSPyRateLimited"']
    assert outage["target_matchers"] == ['dspy_action="rollback"']
    held = limited["target_matchers"][1].partition('=~"')[2].rstrip('"').split("|")
    signals = {alert.signal for alert in alerts(DashboardOptions()) if alert.signal}
    assert signals - set(held) == {"errors", "parse"}
    for rule in (outage, limited):
        assert rule["equal"] == ["program", "environment"]
    people = [receiver for receiver in config["receivers"] if receiver["name"] == "rollback"]
    assert people[0]["webhook_configs"][0]["max_alerts"] == 0


DISASTERS = {
    "the provider is down": ("DSPyFallbackRateHigh", "FallbackLM"),
    "a version got worse": ("DSPyEvaluationBelowBaseline", "gate"),
    "429 above 1 %": ("DSPyRateLimited", "num_threads"),
    "disk cache above 10 GB": ("DSPyDiskCacheLarge", "cache prune --max-size 10GB --older-than 7d"),
    "one user's tokens": ("DSPyUserTokensExploding", "max_tokens"),
}


@pytest.mark.parametrize(("alert", "way_back"), DISASTERS.values(), ids=DISASTERS)
def test_every_known_disaster_has_its_alert_and_its_way_back(alert: str, way_back: str) -> None:
    """With the usual thresholds as defaults."""
    assert way_back in SECTIONS[alert].mitigation
    o = DashboardOptions()
    assert (o.score_drop, o.rate_limited_ratio, o.cache_dir_limit_bytes) == (0.05, 0.01, 10e9)
