"""``dspy-observe dashboards``: a team's own set is written, and a folder's faults are found and named."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

import click
import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

from dspy_observe.cli import app
from dspy_observe.mixin import checking
from dspy_observe.mixin.files import generate
from dspy_observe.mixin.options import DashboardOptions
from tests.servers import needs

runner = CliRunner()


def run(*arguments: str | Path) -> Result:
    """The command's result."""
    return runner.invoke(app, ["dashboards", *map(str, arguments)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as generate writes it."""
    place = tmp_path / "monitoring"
    assert run("generate", "--out", place).exit_code == 0
    return place


def test_all_files_are_written_and_then_left_alone(folder: Path) -> None:
    """A second run writes nothing; strangers' files stay, our old ones go."""
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == set(
        generate(DashboardOptions())
    )
    (folder / "grafana" / "dspy-old.json").write_text("{}", encoding="utf-8")
    (folder / "grafana" / "mine.json").write_text("{}", encoding="utf-8")
    answer = json.loads(run("generate", "--out", folder, "--json").stdout)
    assert answer["written"] == []
    assert answer["removed"] == ["grafana/dspy-old.json"]
    assert len(answer["files"]) >= 25
    assert (folder / "grafana" / "mine.json").exists()


def test_own_numbers_reach_rules_panels_tests_and_runbook(tmp_path: Path) -> None:
    """One file of options, every place."""
    mine = tmp_path / "my.toml"
    mine.write_text(
        'selector = "cluster=\\"eu\\""\nrate_limited_ratio = 0.03\nrunbook_url = "https://wiki.example/dspy"\n'
        "[daily_budgets_usd]\nqa = 12.5\n",
        encoding="utf-8",
    )
    assert run("generate", "--out", tmp_path / "out", "--options", mine).exit_code == 0
    out = {name: (tmp_path / "out" / name).read_text(encoding="utf-8") for name in generate(DashboardOptions())}
    alerts = yaml.safe_load(out["prometheus/alerts.yml"])
    (limited,) = [r for g in alerts["groups"] for r in g["rules"] if r.get("alert") == "DSPyRateLimited"]
    assert "> 0.03" in limited["expr"]
    assert 'cluster="eu"' in limited["expr"]
    assert limited["annotations"]["runbook_url"] == "https://wiki.example/dspy#dspyratelimited"
    assert "12.5" in out["prometheus/rules.yml"]
    assert "| `rate_limited_ratio` | `0.03` |" in out["runbook.md"]
    lm = json.loads(out["grafana/dspy-lm.json"])
    (panel,) = [one for one in lm["panels"] if one["title"] == "Refused calls (429) by model"]
    assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][-1]["value"] == 0.03
    assert run("generate", "--out", tmp_path / "again", "--options", tmp_path / "out" / "options.toml").exit_code == 0
    assert {n: (tmp_path / "again" / n).read_text(encoding="utf-8") for n in out} == out


def test_the_fast_preset_is_a_word_away(tmp_path: Path) -> None:
    """As an option, or in a file."""
    assert run("generate", "--out", tmp_path / "a", "--preset", "fast").exit_code == 0
    mine = tmp_path / "my.toml"
    mine.write_text('preset = "fast"', encoding="utf-8")
    assert run("generate", "--out", tmp_path / "b", "--options", mine).exit_code == 0
    texts = [(tmp_path / place / "prometheus" / "alerts.yml").read_text(encoding="utf-8") for place in "ab"]
    assert texts[0] == texts[1]
    assert "[15s]" in texts[0]
    assert run("generate", "--out", tmp_path / "c", "--options", mine, "--preset", "fast").exit_code == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("error_limt = 0.1", "DashboardOptions.error_limt: there is no such option"),
        ("error_limit = 7", "DashboardOptions.error_limit: 7 is out of bounds"),
        ("error_limit =", "the file is no TOML"),
        (None, "cannot read"),
    ],
)
def test_options_that_cannot_work_are_refused(tmp_path: Path, text: str | None, words: str) -> None:
    """With exit code 2, naming the field; nothing is written."""
    mine = tmp_path / "my.toml"
    if text is not None:
        mine.write_text(text, encoding="utf-8")
    result = run("generate", "--out", tmp_path / "out", "--options", mine)
    assert result.exit_code == 2
    assert words in re.sub(r"[│\s]+", " ", result.stderr)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_a_refusal(tmp_path: Path) -> None:
    """A file stands where the folder should be."""
    (tmp_path / "out").write_text("", encoding="utf-8")
    result = run("generate", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "cannot write" in result.stderr


def test_what_was_generated_passes(folder: Path) -> None:
    """By our own checks and by the tools; what was left out is said."""
    needs("promtool", "amtool")
    result = run("check", folder, "--no-tests", "--json")
    answer = json.loads(result.stdout)
    assert result.exit_code == 0
    assert answer["ok"] is True
    assert {one["result"] for one in answer["checks"]} == {"ok", "not checked"}
    assert [one["what"] for one in answer["checks"] if one["result"] == "not checked"] == ["promtool test rules"]
    assert len(answer["checks"]) >= 11


def test_unit_tests_of_alerts_are_run(folder: Path) -> None:
    """A rule that was changed by hand is caught by its test."""
    needs("promtool")
    for path in (folder / "prometheus" / "tests").glob("*.yml"):
        if path.stem != "serving":
            path.unlink()
    assert run("check", folder).exit_code == 0
    alerts = folder / "prometheus" / "alerts.yml"
    text = alerts.read_text(encoding="utf-8")
    assert "up == 0" in text
    alerts.write_text(text.replace("up == 0", "up == 2"), encoding="utf-8")
    result = run("check", folder)
    assert result.exit_code == 1
    assert "DSPyTargetDown" in result.stdout


def test_without_the_tools_it_says_what_it_could_not_check(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And passes on what it could."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(checking, "can_parse", lambda: False)
    result = run("check", folder, "--json")
    answer = json.loads(result.stdout)
    assert result.exit_code == 0
    details = [one["detail"] for one in answer["checks"] if one["result"] == "not checked"]
    assert details.count("promtool is not installed") == 3
    assert "amtool is not installed" in details
    assert "pip install promql-parser" in details


FAULTS = [
    ("grafana/dspy-lm.json", '"id": 3', '"id": 2', "two panels with the id 2"),
    ("grafana/dspy-lm.json", '"unit": "reqps"', '"unit": ""', "has no unit"),
    ("grafana/dspy-lm.json", '"x": 4', '"x": 0', "lie on top of each other"),
    ("grafana/dspy-lm.json", "dspy_requests_total", "dspy_request_total", "dspy_request_total, which does not exist"),
    ("grafana/dspy-lm.json", "$__rate_interval", "5m", "has a rate over 5m"),
    ("grafana/dspy-lm.json", 'job=~\\"$job\\",', "", "of every job and instance"),
    ("grafana/dspy-lm.json", '"name": "model"', '"name": "modell"', "has no variable $model"),
    ("grafana/dspy-lm.json", "{\n", "", "is no dashboard"),
    ("prometheus/alerts.yml", "dspy_redaction_failures_total", "dspy_redaction_fails", "which does not exist"),
    ("prometheus/alerts.yml", "severity: critical", "severity: awful", "has no severity"),
    ("prometheus/alerts.yml", "#dspytargetdown", "#targetdown", "the section 'targetdown'"),
    ("prometheus/alerts.yml", "groups:", "group:", "is no rule file"),
    ("prometheus/rules.yml", "record: program:dspy_cost_usd:increase1h", "record: program:cost", "no rule records"),
    ("runbook.md", "### DSPyWatchdogMissing", "### Watchdog", "links to the section 'dspywatchdogmissing'"),
]


@pytest.mark.parametrize(("name", "old", "new", "words"), FAULTS, ids=[fault[3] for fault in FAULTS])
def test_a_fault_is_named(folder: Path, name: str, old: str, new: str, words: str) -> None:
    """With the file that holds it, and exit code 1."""
    path = folder / name
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    result = run("check", folder, "--no-tests", "--json")
    assert result.exit_code == 1
    failed = {one["what"]: one["detail"] for one in json.loads(result.stdout)["checks"] if one["result"] == "failed"}
    assert any(words in detail for detail in failed.values()), failed


def test_a_folder_that_is_not_there_is_a_refusal(tmp_path: Path) -> None:
    """And so is one without anything in it."""
    assert run("check", tmp_path / "nowhere").exit_code == 1
    (tmp_path / "empty").mkdir()
    result = run("check", tmp_path / "empty", "--no-tests", "--json")
    assert result.exit_code == 1
    failed = {one["what"]: one["detail"] for one in json.loads(result.stdout)["checks"] if one["result"] == "failed"}
    assert set(failed) == {"prometheus/rules.yml", "prometheus/alerts.yml", "grafana/"}
    for name in ("prometheus/rules.yml", "prometheus/alerts.yml"):
        assert (
            failed[name] == f"{name} is missing: dspy-observe dashboards generate --out {tmp_path / 'empty'} writes it"
        )


@pytest.mark.parametrize("text", ["", "groups:\n", "- groups\n"])
def test_a_rule_file_without_groups_is_told_in_words(folder: Path, text: str) -> None:
    """Not as an error of the program that reads it."""
    (folder / "prometheus" / "rules.yml").write_text(text, encoding="utf-8")
    result = run("check", folder, "--no-tests", "--json")
    details = {one["what"]: one["detail"] for one in json.loads(result.stdout)["checks"]}
    assert result.exit_code == 1
    assert details["prometheus/rules.yml"] == "is no rule file: it has no groups"


def sections() -> dict[str, str]:
    """The runbook's section of each alert, and what stands above them all, under an empty name."""
    text = generate(DashboardOptions())["runbook.md"]
    found = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL))
    return {"": text.partition("\n### ")[0], **found}


def commands(text: str) -> list[str]:
    """Commands to paste, from blocks and from sentences; a verb that is only named is none."""
    blocks = re.findall(r"^\$ dspy-observe (.+)$", text, re.MULTILINE)
    return [*blocks, *re.findall(r"`dspy-observe (\w+ (?!generate)[^`\n]+)`", text)]


def parsed(command: str, labels: Mapping[str, str]) -> dict[str, object]:
    """The arguments that the command's verb gets, read by the command line itself."""
    words = [labels.get(word, word) for word in shlex.split(command)]
    group: click.Command = typer.main.get_command(app)
    while isinstance(group, click.Group):
        group = group.commands[words.pop(0)]
    return group.make_context(command, words).params


def test_the_runbook_names_the_command_where_it_asks_for_a_freeze() -> None:
    """Freezing and its end are commands to paste, not words."""
    assert "`dspy-observe decisions freeze $PROGRAM" in sections()["DSPyRollbackDidNotHelp"]
    for name in ("DSPyRollbackDidNotHelp", "DSPyRollbackBudgetSpent", "DSPyRollbackFrozen"):
        assert "`dspy-observe decisions unfreeze $PROGRAM" in sections()[name], name


def test_the_runbook_names_the_command_where_it_asks_for_a_rollback() -> None:
    """Whoever shall roll back by hand need not look for the command in another section."""
    asking = {name: text for name, text in sections().items() if "by hand" in text}
    assert len(asking) >= 8
    for name, text in asking.items():
        assert "`dspy-observe registry rollback $PROGRAM -e $ENVIRONMENT" in text, name


def test_commands_of_the_runbook_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line takes each as it stands, and acts on the environment of the alert, not on production."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("", encoding="utf-8")
    labels = {"$PROGRAM": "qa", "$VERSION": "v2", "$PREVIOUS": "v1", "$ENVIRONMENT": "staging"}
    pasted = {command for text in sections().values() for command in commands(text)}
    assert len(pasted) >= 15
    for command in pasted:
        given = parsed(command, labels)
        assert "$" not in "".join(map(str, given.values())), command
        if "$PROGRAM" in command and "environment" in given:
            assert given["environment"] == "staging", command


def test_commands_of_a_section_ask_for_labels_that_its_alert_has() -> None:
    """Except for $PREVIOUS, which the page's head explains beside the command that shows it."""
    made = generate(DashboardOptions())
    labels: dict[str, set[str]] = {}
    for name, text in made.items():
        for test in yaml.safe_load(text)["tests"] if name.startswith("prometheus/tests/") else ():
            for check in test["alert_rule_test"]:
                for expected in check["exp_alerts"]:
                    labels.setdefault(check["alertname"], set()).update(expected["exp_labels"])
    assert "`$PREVIOUS` is no label" in sections()[""]
    for alert, text in sections().items():
        for command in commands(text) if alert else ():
            wanted = {word.lower() for word in re.findall(r"\$([A-Z]+)", command)}
            assert wanted - {"previous"} <= labels[alert], f"{alert}: {command}"
            if "$PREVIOUS" in command:
                assert "$ dspy-observe registry log $PROGRAM" in text, alert
