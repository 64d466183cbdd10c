"""``dspy-observe doctor`` on real servers: what is healthy, and what is said when a part of the path is missing."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from typer.testing import CliRunner

from dspy_observe.cli import app
from dspy_observe.mixin.files import generate
from dspy_observe.mixin.options import DashboardOptions
from dspy_observe.registry import SignatureRegistry
from dspy_observe.rollback.routes import receivers_of, webhooks_of
from tests.servers import Alertmanager, Prometheus, fetch, free_port, needs, rollback_config, wait_until

TOKEN = "correct-horse"
PARTS = {"registry", "receiver", "alertmanager", "prometheus", "path"}


@contextmanager
def receiving(location: str, *arguments: str) -> Iterator[str]:
    """``dspy-observe serve`` in a process of its own; gives its address."""
    command = [sys.executable, "-c", "from dspy_observe.cli import main; main()", "serve", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(
        [*command, "--registry", location, "--json", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        lines: list[str] = []
        reader = threading.Thread(target=lines.extend, args=(process.stderr,), daemon=True)
        reader.start()
        try:
            first = process.stdout.readline()
            assert first, lines
            yield str(json.loads(first)["url"])
        finally:
            process.terminate()
            process.wait(30)
            reader.join(10)


def fill(location: str) -> None:
    """A registry in which qa runs v2 and could go back to v1."""
    with SignatureRegistry(location) as registry:
        for version in ("v1", "v2"):
            registry.register_version("qa", {"instruction": version}, version=version)
            registry.deploy_version("qa", version)


@dataclass
class World:
    """Everything from Prometheus to the registry, as it should be."""

    location: str
    token_file: Path
    receiver: str
    alertmanager: Alertmanager
    prometheus: Prometheus

    def examine(self, *arguments: str, **changed: str | None) -> tuple[int, dict[str, Any]]:
        """Run the doctor with everything right but what is changed; ``None`` leaves an option out."""
        options = {
            "registry": self.location, "token_file": str(self.token_file), "receiver_url": self.receiver,
            "alertmanager_url": self.alertmanager.url, "prometheus_url": self.prometheus.url, **changed,
        }  # fmt: skip
        given = [
            word for key, value in options.items() if value is not None
            for word in (f"--{key.replace('_', '-')}", value)
        ]  # fmt: skip
        done = CliRunner().invoke(app, ["doctor", *given, *arguments, "--json"])
        assert done.exit_code in (0, 1), done.output
        return done.exit_code, json.loads(done.stdout)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Rules and routes as they are generated. One for all tests, as nothing that they do breaks it."""
    folder = tmp_path_factory.mktemp("world")
    location = f"sqlite:///{folder / 'registry.db'}"
    fill(location)
    token_file = folder / "token"
    token_file.write_text(TOKEN + "\n", encoding="utf-8")
    with receiving(location, "--token-file", str(token_file)) as receiver:
        made = generate(
            DashboardOptions(
                evaluation_interval_s=1, group_interval_s=1, receiver_target=receiver.removeprefix("http://"),
                receiver_token_file=str(token_file),
            )
        )  # fmt: skip
        config = yaml.safe_load(made["alertmanager/alertmanager.yml"])
        rules = [folder / "rules.yml", folder / "alerts.yml"]
        for file in rules:
            file.write_text(made[f"prometheus/{file.name}"], encoding="utf-8")
        with (
            Alertmanager(folder / "am", config) as alertmanager,
            Prometheus(
                folder / "prom", targets=[receiver.removeprefix("http://")], rules=rules,
                alertmanagers=[alertmanager.host_port],
            ) as prometheus,
        ):  # fmt: skip
            prometheus.wait_for('{__name__=~"dspy_.+",job="dspy"}')
            wait_until(lambda: prometheus.query('ALERTS{alertname="DSPyWatchdog"}'), "watchdog")
            headers = {"Authorization": f"Bearer {TOKEN}"}
            wait_until(lambda: _watched(f"{receiver}/api/v1/status", headers), "watchdog at the receiver")
            yield World(location, token_file, receiver, alertmanager, prometheus)


def _watched(url: str, headers: dict[str, str]) -> bool:
    return httpx.get(url, headers=headers).json()["watchdog_at"] is not None


def states(report: dict[str, Any]) -> dict[tuple[str, str], str]:
    """State by part and name."""
    return {(check["part"], check["name"]): check["state"] for check in report["checks"]}


def one(report: dict[str, Any], part: str, name: str) -> dict[str, Any]:
    """A single check."""
    (found,) = [check for check in report["checks"] if (check["part"], check["name"]) == (part, name)]
    return dict(found)


def running(location: str) -> tuple[str, list[str]]:
    """What qa runs, and the outcomes of its decisions."""
    with SignatureRegistry(location) as registry:
        pointer = registry.pointer("qa")
        assert pointer is not None
        return pointer.version, [made.outcome for made in registry.decisions("qa")]


def test_a_whole_path_is_found_healthy_and_nothing_is_moved(world: World) -> None:
    """Every check is ok, the trial alert is decided through the real servers and held, and is over afterwards."""
    before = running(world.location)[1].count("held")
    code, report = world.examine()
    assert report["healthy"], report
    assert (code, set(states(report).values())) == (0, {"ok"}), report
    assert {part for part, _ in states(report)} == PARTS
    assert "dry run, asked for by the alert itself" in one(report, "path", "trial alert")["found"]
    version, outcomes = running(world.location)
    assert version == "v2"
    assert outcomes.count("held") == before + 1
    assert "rollback" not in outcomes
    left = wait_until(
        lambda: [not fetch(f"{world.alertmanager.url}/api/v2/alerts?filter=alertname%3DDSPyDoctor")], "end of the alert"
    )
    assert left == [True]


def test_it_can_be_run_again_at_once(world: World) -> None:
    """A second trial is an alert of its own, though the first one's group is still there."""
    for _ in range(2):
        code, report = world.examine()
        assert code == 0, report


def test_people_get_lines_with_what_to_do(world: World) -> None:
    """Without JSON: one line for each check, how to mend it below, a count at the end; no token is shown."""
    arguments = ["doctor", "--registry", world.location, "--receiver-url", f"http://127.0.0.1:{free_port()}"]
    done = CliRunner().invoke(app, arguments, env={"DSPY_OBSERVE_TOKEN": TOKEN})
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert any(line.startswith("ok       registry      readable: ") for line in lines)
    assert any(line.startswith("broken   receiver      answers: ") for line in lines)
    assert any(line.strip().startswith("-> Start it: dspy-observe serve") for line in lines)
    assert any(line.startswith("skipped  prometheus    all: --prometheus-url was not given") for line in lines)
    assert lines[-1].endswith("1 broken, 7 skipped")
    assert TOKEN not in done.output


def test_what_has_no_url_is_skipped(world: World) -> None:
    """The registry alone is enough to say something, and skipping breaks nothing."""
    code, report = world.examine(receiver_url=None, alertmanager_url=None, prometheus_url=None, token_file=None)
    assert code == 0
    found = states(report)
    for part in PARTS - {"registry", "path"}:
        assert found[part, "all"] == "skipped"
    assert found["path", "trial alert"] == "skipped"
    assert found["registry", "writable"] == "ok"


def test_a_receiver_that_is_down_is_said_with_what_became_of_the_alert(world: World, tmp_path: Path) -> None:
    """The doctor does not reach it, and neither does Alertmanager, whose failed deliveries are counted."""
    url = f"http://127.0.0.1:{free_port()}"
    with Alertmanager(tmp_path / "am", rollback_config(f"{url}/api/v1/alerts", token_file=world.token_file)) as lonely:
        code, report = world.examine("--wait", "2", receiver_url=url, alertmanager_url=lonely.url, prometheus_url=None)
    assert code == 1
    assert not report["healthy"]
    down = one(report, "receiver", "answers")
    assert down["state"] == "broken"
    assert "dspy-observe serve" in down["mend"]
    assert states(report)["receiver", "with the token"] == "skipped"
    assert states(report)["alertmanager", "route"] == "ok"
    lost = one(report, "path", "trial alert")
    assert lost["state"] == "broken"
    assert "no decision within 2 s; Alertmanager sends it to rollback, and " in lost["found"]
    assert "deliveries to webhooks failed so far" in lost["found"]


def test_a_wrong_token_is_told_on_both_sides(world: World, tmp_path: Path) -> None:
    """Of this command by the receiver's answer; of Alertmanager by the alert that never arrives."""
    wrong = tmp_path / "wrong"
    wrong.write_text("battery-staple", encoding="utf-8")
    config = rollback_config(f"{world.receiver}/api/v1/alerts", token_file=wrong)
    with Alertmanager(tmp_path / "am", config) as refused:
        code, report = world.examine(
            "--wait", "3", token_file=str(wrong), alertmanager_url=refused.url, prometheus_url=None
        )
    assert code == 1
    told = one(report, "receiver", "with the token")
    assert (told["state"], "401" in told["found"]) == ("broken", True)
    assert "same token" in told["mend"]
    assert states(report)["receiver", "without a token"] == "ok"
    lost = one(report, "path", "trial alert")
    assert lost["state"] == "broken"
    assert "deliveries to webhooks failed so far" in lost["found"]
    assert "battery-staple" not in json.dumps(report)


def test_the_token_is_read_as_the_receiver_reads_it(world: World, tmp_path: Path) -> None:
    """Without a byte order mark and the white space around it; a blank variable is none."""
    marked = tmp_path / "marked"
    marked.write_bytes(b"\xef\xbb\xbf" + TOKEN.encode() + b" \r\n")
    _, report = world.examine(token_file=str(marked), alertmanager_url=None, prometheus_url=None)
    assert states(report)["receiver", "with the token"] == "ok"
    arguments = ["doctor", "--registry", world.location, "--receiver-url", world.receiver, "--json"]
    for given, state in ((f" {TOKEN}\n", "ok"), ("\n", "skipped")):
        done = CliRunner().invoke(app, arguments, env={"DSPY_OBSERVE_TOKEN": given})
        assert states(json.loads(done.stdout))["receiver", "with the token"] == state


def test_an_alertmanager_that_shows_no_token_is_found(world: World, tmp_path: Path) -> None:
    """Its webhook has no authorization, so the receiver would refuse every alert."""
    with Alertmanager(tmp_path / "am", rollback_config(f"{world.receiver}/api/v1/alerts")) as bare:
        code, report = world.examine("--wait", "0.5", alertmanager_url=bare.url, prometheus_url=None)
    assert code == 1
    told = one(report, "alertmanager", "token")
    assert told["state"] == "broken"
    assert "credentials_file" in told["mend"]


@pytest.mark.parametrize("how", ["no route", "another path"])
def test_a_missing_route_is_found(world: World, tmp_path: Path, how: str) -> None:
    """Alerts go to people only, or to another path than the receiver's; both are told with the matcher that lacks."""
    astray_url = f"{world.receiver.replace('//', '//ada:secret@')}/hook?key=secret"
    config: dict[str, Any] = rollback_config(astray_url, token_file=world.token_file)
    if how == "no route":
        config = {"route": {"receiver": "people"}, "receivers": [{"name": "people"}]}
    with Alertmanager(tmp_path / "am", config) as astray:
        code, report = world.examine("--wait", "0.5", alertmanager_url=astray.url, prometheus_url=None)
    assert code == 1
    told = one(report, "alertmanager", "route")
    assert told["state"] == "broken"
    assert ("who has no webhook" if how == "no route" else "which is no /api/v1/alerts") in told["found"]
    assert "secret" not in told["found"]
    assert 'dspy_action="rollback"' in told["mend"]
    assert f"{world.receiver}/api/v1/alerts" in told["mend"]
    assert states(report)["alertmanager", "watchdog route"] == "warning"
    assert one(report, "path", "trial alert")["state"] == "broken"


def test_a_route_to_another_address_is_doubted_and_the_trial_tells(world: World, tmp_path: Path) -> None:
    """Behind a proxy or in a container the receiver has two: the route is a warning, the alert that comes a proof."""
    url = f"{world.receiver.replace('127.0.0.1', '0.0.0.0')}/api/v1/alerts"
    with Alertmanager(tmp_path / "am", rollback_config(url, token_file=world.token_file)) as elsewhere:
        code, report = world.examine(alertmanager_url=elsewhere.url)
    assert code == 0
    doubted = one(report, "alertmanager", "route")
    assert (doubted["state"], url in doubted["found"]) == ("warning", True)
    assert states(report)["path", "trial alert"] == "ok"
    known = one(report, "prometheus", "alertmanagers")
    assert (known["state"], world.alertmanager.url in known["found"]) == ("warning", True)


def test_a_silence_that_keeps_alerts_back_is_named(world: World) -> None:
    """It would keep a real rollback back, too."""
    now = datetime.now(UTC)
    silence = {
        "matchers": [{"name": "alertname", "value": "DSPyDoctor", "isRegex": False, "isEqual": True}],
        "startsAt": now.isoformat(), "endsAt": (now + timedelta(minutes=5)).isoformat(), "createdBy": "ada",
        "comment": "quiet",
    }  # fmt: skip
    made = fetch(f"{world.alertmanager.url}/api/v2/silences", silence)["silenceID"]
    wait_until(
        lambda: fetch(f"{world.alertmanager.url}/api/v2/silence/{made}")["status"]["state"] == "active", "silence"
    )
    code, report = world.examine("--wait", "2", prometheus_url=None)
    httpx.delete(f"{world.alertmanager.url}/api/v2/silence/{made}").raise_for_status()
    assert code == 1
    assert "a silence keeps it back" in one(report, "path", "trial alert")["found"]


def test_a_prometheus_without_rules_targets_and_alertmanagers_is_told_each(world: World, tmp_path: Path) -> None:
    """Rules that are not loaded, a target that is down, and nobody to send alerts to."""
    with Prometheus(tmp_path / "prom", targets=[f"127.0.0.1:{free_port()}"]) as empty:
        empty.wait_for("up == 0")
        code, report = world.examine(alertmanager_url=None, prometheus_url=empty.url)
    assert code == 1
    rules, targets = one(report, "prometheus", "rules"), one(report, "prometheus", "targets")
    assert (rules["state"], targets["state"]) == ("broken", "broken")
    assert "none of 0 alerts" in rules["found"]
    assert "rule_files" in rules["mend"]
    assert "connection refused" in targets["found"]
    assert one(report, "prometheus", "alertmanagers")["state"] == "broken"


def test_a_rule_that_cannot_be_evaluated_and_a_lacking_watchdog_are_found(world: World, tmp_path: Path) -> None:
    """The rules are there and worth nothing."""
    rules = {
        "groups": [{"name": "ours", "rules": [{
            "alert": "DSPyErrors", "expr": 'sum by (job) (up) * on () group_left () {__name__=~"up|scrape_.+"} > 0',
            "labels": {"dspy_action": "rollback"},
        }]}]
    }  # fmt: skip
    with Prometheus(tmp_path / "prom", rules=rules, also_itself=True) as failing:
        failing.wait_for("up == 1")
        wait_until(lambda: _health(failing) == "err", "rule that fails")
        code, report = world.examine(alertmanager_url=None, prometheus_url=failing.url)
    assert code == 1
    assert "DSPyErrors cannot be evaluated" in one(report, "prometheus", "rules")["found"]
    assert "none of 1 targets exports dspy_ metrics" in one(report, "prometheus", "targets")["found"] or (
        "export no dspy_ metrics" in one(report, "prometheus", "targets")["found"]
    )


def _health(server: Prometheus) -> str:
    groups = fetch(f"{server.url}/api/v1/rules")["data"]["groups"]
    return str(groups[0]["rules"][0]["health"])


def test_servers_that_do_not_answer_are_broken_and_the_rest_is_skipped(world: World) -> None:
    """Nothing listens there, or another server does."""
    code, report = world.examine(
        alertmanager_url=f"http://127.0.0.1:{free_port()}", prometheus_url=world.receiver,
    )  # fmt: skip
    assert code == 1
    found = states(report)
    for part, name in (("alertmanager", "route"), ("prometheus", "rules")):
        assert (found[part, "answers"], found[part, name]) == ("broken", "skipped")
    assert found["path", "trial alert"] == "skipped"


def test_a_receiver_without_a_token_is_a_warning(world: World, tmp_path: Path) -> None:
    """On loopback it may be meant; whoever is on the machine can roll back."""
    location = str(tmp_path / "registry")
    fill(location)
    with receiving(location, "--insecure", "--mode", "dry-run") as url:
        code, report = world.examine(registry=location, receiver_url=url, alertmanager_url=None, prometheus_url=None)
    assert code == 0
    assert states(report)["receiver", "without a token"] == "warning"
    assert states(report)["receiver", "mode"] == "warning"
    assert "none has come" in one(report, "receiver", "watchdog")["found"]


def test_a_frozen_program_is_said_and_its_path_still_tried(tmp_path: Path, world: World) -> None:
    """So are a mode that holds everything and a program with nothing to go back to; none of them breaks the path."""
    location = f"sqlite:///{tmp_path / 'registry.db'}"
    with SignatureRegistry(location) as registry:
        registry.register_version("qa", {"instruction": "only"}, version="v1")
        registry.deploy_version("qa", "v1")
        registry.freeze("qa", reason="incident 7")
        registry.set_mode("qa", "off")
    code, report = world.examine(registry=location, receiver_url=None, alertmanager_url=None, prometheus_url=None)
    assert code == 0
    assert "incident 7" in one(report, "registry", "frozen")["found"]
    assert one(report, "registry", "frozen")["mend"].endswith("dspy-observe decisions unfreeze qa -e production")
    assert states(report)["registry", "mode"] == "warning"
    assert states(report)["registry", "target"] == "warning"


def undeployed(location: str) -> None:
    """A registry with a version that nobody deployed."""
    with SignatureRegistry(location) as registry:
        registry.register_version("qa", {"instruction": "v1"}, version="v1")


@pytest.mark.parametrize(
    ("prepare", "name", "word"),
    [
        (lambda location: None, "readable", "there is no registry"),
        (undeployed, "deployed", "no program is deployed in production"),
    ],
)
def test_a_registry_that_cannot_work_is_broken(
    tmp_path: Path, world: World, prepare: Callable[[str], None], name: str, word: str
) -> None:
    """None there, and none is made; or nothing is deployed in it. The servers are examined all the same."""
    location = str(tmp_path / "registry")
    prepare(location)
    there = Path(location).exists()
    code, report = world.examine(registry=location)
    assert code == 1
    assert (one(report, "registry", name)["state"], word in one(report, "registry", name)["found"]) == ("broken", True)
    assert states(report)["prometheus", "rules"] == "ok"
    assert states(report)["alertmanager", "route"] == "ok"
    assert states(report)["path", "trial alert"] == "skipped"
    assert Path(location).exists() == there


def test_a_mistyped_mode_is_broken_with_the_command_that_mends_it(tmp_path: Path) -> None:
    """Exit code 1: no alert about this program can be judged until then."""
    location = tmp_path / "registry"
    fill(str(location))
    with SignatureRegistry(location) as registry:
        registry.set_mode("qa", "approve")
    file = location / "signatures" / "qa.yml"
    file.write_text(file.read_text(encoding="utf-8").replace('"approve"', '"aprove"'), encoding="utf-8")
    done = CliRunner().invoke(app, ["doctor", "--registry", str(location), "--json"])
    assert done.exit_code == 1, done.output
    check = one(json.loads(done.stdout), "registry", "readable")
    assert check["state"] == "broken"
    said = "qa, control of production: 'aprove' is no mode, only auto, approve, dry-run, off are"
    assert said in check["found"]
    command = check["found"].rpartition("dspy-observe ")[2].replace("MODE", "approve").split()
    assert CliRunner().invoke(app, [*command, "--registry", str(location)]).exit_code == 0
    assert CliRunner().invoke(app, ["doctor", "--registry", str(location)]).exit_code == 0


def test_looking_changes_nothing_in_the_registry(tmp_path: Path, world: World) -> None:
    """What monitors found out is kept as it is."""
    location = str(tmp_path / "registry")
    fill(location)
    with SignatureRegistry(location) as registry:
        registry.fold_evidence("qa", lambda _state, _view: {"kept": 1})
    world.examine(registry=location, receiver_url=None, alertmanager_url=None, prometheus_url=None)
    with SignatureRegistry(location) as registry:
        assert registry.evidence("qa") == {"kept": 1}
        assert not registry.decisions("qa")


def test_credentials_in_addresses_are_used_and_not_shown(world: World) -> None:
    """Neither where all is well nor where nobody answers."""

    def with_password(url: str) -> str:
        return url.replace("://", "://scraper:EXAMPLEpw99@")

    code, report = world.examine(  # the receiver knows bearer tokens only
        alertmanager_url=with_password(world.alertmanager.url), prometheus_url=with_password(world.prometheus.url)
    )
    assert code == 0, report
    closed = with_password(f"http://127.0.0.1:{free_port()}")
    _, away = world.examine(receiver_url=closed, alertmanager_url=closed, prometheus_url=closed)
    for told in (report, away):
        assert "EXAMPLEpw99" not in json.dumps(told)
        assert "127.0.0.1" in json.dumps(told)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--receiver-url", "nowhere"), "no address"),
        (("--prometheus-url", "ftp://u:EXAMPLEpw99@host"), "no address"),
        (("--alertmanager-url", "ftp://u:EXAMPLEpw99@host"), "no address"),
        (("--wait", "0"), "cannot work"),
        (("--token-file", "missing"), "cannot be read"),
    ],
)
def test_options_that_cannot_work_are_refused(tmp_path: Path, arguments: tuple[str, ...], word: str) -> None:
    """With exit code 2."""
    fill(str(tmp_path / "registry"))
    done = CliRunner().invoke(app, ["doctor", "--registry", str(tmp_path / "registry"), *arguments])
    assert done.exit_code == 2
    assert "EXAMPLEpw99" not in done.output
    assert word in " ".join(done.output.replace("│", " ").split())


ROUTES: list[dict[str, Any]] = [
    {"receiver": "a"},
    {"receiver": "a", "routes": [{"receiver": "b", "matchers": ['x="1"']}, {"receiver": "c"}]},
    {"receiver": "a", "routes": [
        {"receiver": "b", "match": {"x": "1"}, "continue": True}, {"receiver": "c", "match_re": {"x": "1|2"}},
    ]},
    {"receiver": "a", "routes": [
        {"matchers": ["x=~1.*", "y!=z"], "routes": [{"receiver": "b", "matchers": ['y!~"q+"']}]},
    ]},
    {"receiver": "a", "routes": [
        {"receiver": "b", "matchers": ['x=""'], "continue": True},
        {"receiver": "c", "continue": True, "routes": [{"receiver": "a", "matchers": ['y="q\\"q"']}]},
        {"receiver": "b", "matchers": ['y =~ "z|q"']},
    ]},
]  # fmt: skip
LABELS: list[dict[str, str]] = [{}, {"x": "1"}, {"x": "2", "y": "q"}, {"x": "12", "y": "z"}, {"x": "1", "y": 'q"q'}]


@pytest.mark.parametrize("route", ROUTES)
def test_routes_lead_where_alertmanagers_own_tool_says(route: dict[str, Any], tmp_path: Path) -> None:
    """Nesting, continue, inherited receivers, all four matchers and the older two ways of writing them."""
    needs("amtool")
    config = {"route": route, "receivers": [{"name": name} for name in "abc"]}
    file = tmp_path / "alertmanager.yml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    for labels in LABELS:
        pairs = [f"{name}={json.dumps(value)}" for name, value in labels.items()]
        done = subprocess.run(
            ["amtool", "config", "routes", "test", f"--config.file={file}", *pairs],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert receivers_of(config, labels) == list(dict.fromkeys(done.stdout.strip().split(","))), labels


def test_a_webhook_whose_address_is_secret_is_still_one() -> None:
    """Newer Alertmanagers show none, and a common token counts for all webhooks."""
    config = {
        "global": {"http_config": {"authorization": {"credentials": "<secret>"}}},
        "route": {"receiver": "r"},
        "receivers": [{"name": "r", "webhook_configs": [{"url": "<secret>"}, {"url_file": "/etc/url"}]}],
    }
    assert [(one.url, one.bearer) for one in webhooks_of(config, {})] == [(None, True)] * 2
