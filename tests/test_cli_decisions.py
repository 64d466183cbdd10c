"""``dspy-observe decisions``: one look tells why each rollback did or did not happen, and people have the last word."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from dspy_observe.cli import app
from dspy_observe.registry import SignatureRegistry
from dspy_observe.rollback.deciding import Answer, settle
from dspy_observe.rollback.policy import Limits, Request


@pytest.fixture(params=["files", "sqlite"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A registry in which ``clf`` and ``qa`` run v2 and could go back to v1."""
    location = str(tmp_path / "registry") if request.param == "files" else f"sqlite:///{tmp_path / 'registry.db'}"
    with SignatureRegistry(location) as registry:
        for name in ("clf", "qa"):
            for version in ("v1", "v2"):
                registry.register_version(name, {"instruction": version}, version=version)
                registry.deploy_version(name, version)
    return location


def call(place: str | None, *arguments: str) -> Result:
    """Run a verb in this process."""
    return CliRunner().invoke(app, ["decisions", *arguments, *([] if place is None else ["--registry", place])])


def answer(place: str, *arguments: str) -> Any:
    """The JSON that a verb prints, when it is done."""
    done = call(place, *arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def words(done: Result) -> str:
    """What was printed, without the frames and line breaks of tables."""
    return " ".join("".join(" " if "\u2500" <= char <= "\u257f" else char for char in done.output).split())


def ask(place: str, name: str, version: str | None = "v2", **fields: Any) -> Answer:
    """An alert about a program, as the receiver hands it on."""
    began = fields.pop("started_at", None) or datetime.now(UTC)
    limits = fields.pop("limits", Limits())
    request = Request(
        trigger="alert", program=name, version=version, started_at=began, fingerprint=fields.pop("fingerprint", "f1"),
        reason="DSPyErrors: a third of its runs fail", inputs={"labels": {"severity": "page"}}, **fields,
    )  # fmt: skip
    with SignatureRegistry(place) as registry:
        return settle(registry, request, limits, starts_at=began.isoformat(), actor="alertmanager")


def running(place: str, name: str = "clf") -> str | None:
    """What production runs."""
    with SignatureRegistry(place) as registry:
        pointer = registry.pointer(name)
        return None if pointer is None else pointer.version


def held(place: str) -> str:
    """The id of a decision that waits for approval."""
    answer(place, "mode", "clf", "approve", "--reason", "launch week")
    made = ask(place, "clf")
    assert made.outcome == "held"
    assert made.decision is not None
    return made.decision.decision_id


@pytest.mark.parametrize("verb", ["list", "show", "approve", "freeze", "unfreeze", "mode"])
def test_each_verb_explains_itself_with_an_example(verb: str) -> None:
    """And the example is of this verb."""
    done = call(None, verb, "--help")
    assert done.exit_code == 0
    assert f"Example: dspy-observe decisions {verb}" in " ".join(done.output.split())


def test_one_look_tells_why_each_rollback_did_or_did_not_happen(place: str) -> None:
    """Every outcome stands in a line with its program, versions and the reason in words, the oldest first."""
    assert call(place, "list").stdout == "No decisions yet.\n"
    ask(place, "clf", started_at=datetime.now(UTC) - timedelta(days=1))
    ask(place, "clf", fingerprint="f2")
    answer(place, "freeze", "qa", "--reason", "incident 7")
    ask(place, "qa")
    shown = call(place, "list")
    assert shown.exit_code == 0
    told = words(shown)
    for title in ("time", "id", "program", "environment", "outcome", "version", "to", "by", "reason"):
        assert title in told
    assert "a third of its runs fail; rolled back from v2 to v1" in told
    assert "qa is frozen in production: incident 7" in told
    assert "before v2 was deployed" in told
    assert told.index("stale") < told.index("rollback v2 v1 alert") < told.index("held")
    rows = answer(place, "list")
    assert [(row["program"], row["outcome"]) for row in rows] == [
        ("clf", "stale"), ("clf", "rollback"), ("qa", "held"),
    ]  # fmt: skip


def test_the_list_is_narrowed(place: str) -> None:
    """By program, environment, outcome and number; the last ones stay."""
    for number in range(3):
        ask(place, "clf", "v1", fingerprint=f"stale{number}")
    ask(place, "qa")

    def listed(*arguments: str) -> list[tuple[str, str]]:
        return [(row["program"], row["outcome"]) for row in answer(place, "list", *arguments)]

    assert listed("--program", "qa") == [("qa", "rollback")]
    assert listed("--outcome", "stale", "--limit", "2") == [("clf", "stale")] * 2
    assert listed("--limit", "1") == [("qa", "rollback")]
    assert listed("--environment", "staging") == []
    assert answer(place, "list", "--outcome", "stale", "--limit", "1")[0]["fingerprint"] == "stale2"


def test_an_alert_that_is_sent_again_and_again_stands_in_one_line(place: str) -> None:
    """With how often it was answered so; on request each has its own."""
    began = datetime.now(UTC)
    answer(place, "freeze", "clf", "--reason", "incident 7")
    for _ in range(4):
        ask(place, "clf", started_at=began)
    assert words(call(place, "list")).count("incident 7") == 1
    assert "held x4" in words(call(place, "list"))
    assert words(call(place, "list", "--all")).count("incident 7") == 4
    assert len(answer(place, "list")) == 4


def test_everything_that_was_known_is_shown(place: str) -> None:
    """By the id or its first digits: labels, limits and how things stood."""
    made = ask(place, "clf").decision
    assert made is not None
    shown = answer(place, "show", made.decision_id[:8])
    assert shown == {"program": "clf", **made.to_dict()}
    inputs = shown["inputs"]
    assert (inputs["deployed"], inputs["rollback_target"], inputs["mode"]) == ("v2", "v1", "auto")
    assert inputs["limits"]["cooldown_s"] == 600
    told = words(call(place, "show", made.decision_id))
    assert '"severity": "page"' in told
    assert "rolled back from v2 to v1" in told


def test_a_person_lets_a_held_rollback_happen(place: str) -> None:
    """The pointer moves, and a new decision names who approved which."""
    waiting = held(place)
    assert running(place) == "v2"
    made = answer(place, "approve", waiting[:10], "--actor", "ada", "--reason", "seen the traces")
    assert (made["outcome"], made["version"], made["target"]) == ("rollback", "v2", "v1")
    assert (made["inputs"]["approves"], made["inputs"]["approved_by"]) == (waiting, "ada")
    assert "approved by ada" in made["reason"]
    assert running(place) == "v1"
    told = words(call(place, "list"))
    assert "waiting for approval" in told
    assert "seen the traces; rolled back from v2 to v1, approved by ada" in told


def test_an_approval_passes_a_freeze(place: str) -> None:
    """A person's word counts for more than the brake on what happens by itself."""
    waiting = held(place)
    answer(place, "freeze", "clf")
    assert call(place, "approve", waiting).stdout == "production runs clf v1 again\n"
    assert running(place) == "v1"


def test_what_is_no_longer_deployed_is_not_rolled_back_by_a_late_approval(place: str) -> None:
    """Somebody deployed another version meanwhile: it stays, and the reason is said."""
    waiting = held(place)
    with SignatureRegistry(place) as registry:
        registry.register_version("clf", {"instruction": "v3"}, version="v3")
        registry.deploy_version("clf", "v3")
    late = call(place, "approve", waiting)
    assert late.exit_code == 1
    assert "it is about v2, but production runs v3" in words(late)
    assert json.loads(call(place, "approve", waiting, "--json").stdout)["error"] == "stale"
    assert running(place) == "v3"


def test_what_was_approved_cannot_be_approved_again(place: str) -> None:
    """The second of two people is told so, and nothing moves."""
    waiting = held(place)
    answer(place, "approve", waiting)
    again = call(place, "approve", waiting)
    assert again.exit_code == 1
    assert "this alert was answered by the rollback" in words(again)
    assert running(place) == "v1"


@pytest.mark.parametrize("outcome", ["rollback", "stale"])
def test_only_what_was_held_can_be_approved(place: str, outcome: str) -> None:
    """Anything else is refused with what became of it."""
    made = ask(place, "clf", "v2" if outcome == "rollback" else "v1").decision
    assert made is not None
    refused = call(place, "approve", made.decision_id)
    assert refused.exit_code == 1
    assert f"was {outcome}" in words(refused)
    assert "only what was held can be approved" in words(refused)


def test_a_freeze_holds_until_it_is_lifted(place: str) -> None:
    """It says who and why; lifting it lets the next alert through."""
    made = answer(place, "freeze", "clf", "--reason", "incident 7", "--actor", "ada")
    assert (made["frozen"], made["frozen_reason"], made["frozen_by"]) == (True, "incident 7", "ada")
    assert ask(place, "clf").outcome == "held"
    assert running(place) == "v2"
    assert "frozen reason incident 7" in words(call(place, "mode", "clf"))
    assert call(place, "unfreeze", "clf", "--reason", "mended").stdout == (
        "clf is not frozen in production; its mode is auto\n"
    )
    assert ask(place, "clf").outcome == "rollback"


def test_a_freeze_concerns_its_environment_only(place: str) -> None:
    """Production goes on while staging is frozen."""
    answer(place, "freeze", "clf", "--environment", "staging")
    assert not answer(place, "mode", "clf")["frozen"]
    assert ask(place, "clf").outcome == "rollback"


@pytest.mark.parametrize(
    ("mode", "outcome", "reason"),
    [
        ("off", "held", "automatic rollback is off"),
        ("dry-run", "held", "would roll back from v2 to v1"),
        ("approve", "held", "waiting for approval"),
        ("auto", "rollback", "rolled back from v2 to v1"),
    ],
)
def test_the_mode_says_how_far_it_may_go(place: str, mode: str, outcome: str, reason: str) -> None:
    """For whoever asks, from the next alert on."""
    assert call(place, "mode", "clf", mode).stdout == f"the mode of clf in production is {mode}\n"
    assert answer(place, "mode", "clf")["mode"] == mode
    made = ask(place, "clf")
    assert made.outcome == outcome
    assert reason in made.reason
    assert running(place) == ("v1" if outcome == "rollback" else "v2")


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("list", "--program", "nobody"), 1, "no signature"),
        (("list", "--outcome", "sideways"), 2, "is not known"),
        (("show", "0123456789"), 1, "no decision with an id"),
        (("show", "0"), 1, "too short"),
        (("approve", "0123456789"), 1, "no decision with an id"),
        (("freeze", "nobody"), 1, "no signature"),
        (("unfreeze", "nobody"), 1, "no signature"),
        (("mode", "nobody"), 1, "no signature"),
        (("mode", "clf", "sometimes"), 2, "is not known"),
    ],
)
def test_what_is_refused_says_why(place: str, arguments: tuple[str, ...], code: int, word: str) -> None:
    """With exit code 1, or 2 for wrong usage."""
    done = call(place, *arguments)
    assert done.exit_code == code, done.output
    assert word in words(done)


def test_a_mistyped_registry_is_not_made(tmp_path: Path) -> None:
    """It is refused, and nothing is written there."""
    done = call(str(tmp_path / "typo"), "list")
    assert done.exit_code == 1
    assert "there is no registry" in words(done)
    assert not (tmp_path / "typo").exists()
