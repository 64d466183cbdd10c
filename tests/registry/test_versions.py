"""Versions: names, identity, retention, exchange. Numbers in names are those of the scenario list."""

from __future__ import annotations

import enum
import math
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from dspy_observe.errors import ConfigurationError
from dspy_observe.registry import (
    CorruptRegistry,
    InvalidName,
    InvalidScore,
    NotSerialisable,
    RegistryConfig,
    Ruling,
    SignatureRegistry,
    UnknownSignature,
    UnknownVersion,
    VersionExists,
    yamltext,
)
from dspy_observe.registry.records import StoredVersion
from dspy_observe.registry.stores.base import Head
from dspy_observe.registry.versions import configuration_hash

REGISTER = """
    import os, sys
    from dspy_observe.registry import RegistryConfig, SignatureRegistry
    from dspy_observe.registry.stores import files, sql
    from dspy_observe.registry.values import scrubbed

    scrubbed({"loaded": "once, for all forks"})
    where, count = sys.argv[1:]

    def write(label):
        config = RegistryConfig(registry_path=where, max_versions_per_signature=0)
        registry = SignatureRegistry(config, clock=lambda: 1705329022.0)
        for number in range(int(count)):
            registry.register_version("qa", {"instruction": f"{label} {number}"})

    writers = []
    for label in range(4):
        writers.append(os.fork())
        if writers[-1] == 0:
            write(label)
            os._exit(0)
    sys.exit(any(os.waitpid(writer, 0)[1] for writer in writers))
"""


def test_01_hundred_versions_within_one_second_from_four_processes(
    location: str, run_python: Callable[..., str], open_registry: Callable[..., SignatureRegistry]
) -> None:
    """A hundred distinct names, a gapless sequence, no error."""
    run_python(REGISTER, location, "25")
    versions = open_registry().list_versions("qa")
    assert [one.sequence for one in versions] == list(range(1, 101))
    assert len({one.version for one in versions}) == 100
    assert {one.version[:16] for one in versions} == {"v20240115_143022"}


def test_02_same_content_twice_is_one_version(registry: SignatureRegistry, run_python: Callable[..., str]) -> None:
    """Whatever the order of keys and the process, with the first metadata kept and the second as a note."""
    first = registry.register_version("qa", {"a": 1, "b": {"c": [1, 2], "d": None}}, metadata={"run": 1})
    second = registry.register_version("qa", {"b": {"d": None, "c": [1, 2]}, "a": 1}, metadata={"run": 2})
    assert (first.created, second.created) == (True, False)
    assert (second.version, second.version_hash) == (first.version, first.version_hash)
    assert second.metadata == {"run": 1}
    assert [note.data for note in registry.notes("qa", first.version)] == [{"metadata": {"run": 2}}]
    code = """
        import os, sys
        from dspy_observe.registry import SignatureRegistry
        version = SignatureRegistry(sys.argv[1]).register_version("qa", {"b": {"c": [1, 2], "d": None}, "a": 1})
        print(version.version_hash, version.created)
    """
    assert run_python(code, _url(registry)).split() == [first.version_hash, "False"]
    assert len(registry.list_versions("qa")) == 1


def _url(registry: SignatureRegistry) -> str:
    return registry.config.registry_path


def test_02_same_content_under_another_name_is_an_alias(registry: SignatureRegistry) -> None:
    """The name works, and no second version is made."""
    first = registry.register_version("qa", {"a": 1}, version="1.0.0")
    second = registry.register_version("qa", {"a": 1}, version="2.0.0")
    assert second.version == first.version == "1.0.0"
    assert second.aliases == ("2.0.0",)
    assert registry.get_version("qa", "2.0.0").version_hash == first.version_hash


def test_name_of_other_content_is_refused(registry: SignatureRegistry, seen: Callable[..., Any]) -> None:
    """A display name never changes what it means."""
    registry.register_version("qa", {"a": 1}, version="1.0.0")
    before = seen(registry)
    with pytest.raises(VersionExists, match="already exists"):
        registry.register_version("qa", {"a": 2}, version="1.0.0")
    assert seen(registry) == before


def test_03_record_is_immutable(three: SignatureRegistry, clock: Any) -> None:
    """Deploying, scoring, rolling back and exporting change no field of what was registered."""
    fixed = ("version", "version_hash", "sequence", "created_at", "configuration", "metadata", "author")
    before = [[getattr(one, field) for field in fixed] for one in three.list_versions("qa")]
    clock.forward(3600)
    for name in ("v1", "v2", "v3"):
        three.deploy_version("qa", name)
        three.update_performance_score("qa", name, 0.5)
    three.rollback("qa")
    assert [[getattr(one, field) for field in fixed] for one in three.list_versions("qa")] == before


def test_04_hash_ignores_credentials_only(registry: SignatureRegistry) -> None:
    """Another key is the same version; any other difference is another one."""
    base = {"instruction": "Answer.", "config": {"temperature": 0.0}, "api_key": "sk-" + "a1B2" * 12}
    first = registry.register_version("qa", base)
    assert registry.register_version("qa", {**base, "api_key": "sk-" + "z9Y8" * 12}).version_hash == first.version_hash
    others = [
        {**base, "config": {"temperature": 0.1}}, {**base, "instruction": "answer."}, {**base, "config": {}},
        {**base, "config": {"temperature": 0}}, {**base, "extra": None},
    ]  # fmt: skip
    hashes = {registry.register_version("qa", other).version_hash for other in others}
    assert len(hashes | {first.version_hash}) == 1 + len(others)


def test_05_four_processes_of_fifty_lose_nothing(
    location: str, run_python: Callable[..., str], open_registry: Callable[..., SignatureRegistry]
) -> None:
    """All two hundred are kept."""
    run_python(REGISTER, location, "50")
    texts = {one.configuration["instruction"] for one in open_registry().list_versions("qa")}
    assert texts == {f"{label} {number}" for label in range(4) for number in range(50)}


def test_05_threads_share_one_registry(registry: SignatureRegistry) -> None:
    """Eight threads on one object keep everything, too."""
    threads = [
        threading.Thread(
            target=lambda label=label: [registry.register_version("qa", {"i": f"{label} {n}"}) for n in range(6)]
        )
        for label in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.sequence for one in registry.list_versions("qa")] == list(range(1, 49))


HOSTILE = [
    "../../x", "..", ".", "a/b", "a\\b", ".hidden", "CON", "nul.txt", "", "x" * 300, "a\0b", "caf\u00e9", "cafe\u0301",
    "a b", "-rf", "a.", "a\n", "*", "C:x", None, 7,
]  # fmt: skip


def test_08_hostile_names_are_refused_everywhere(registry: SignatureRegistry) -> None:
    """As signature, version, alias and environment; before anything is written."""
    for name in HOSTILE:
        with pytest.raises(InvalidName):
            registry.register_version(name, {"a": 1})
        assert registry.list_signatures() == [], ascii(name)
    registry.register_version("qa", {"a": 1}, version="v1")
    for name in HOSTILE:
        if name is not None:
            with pytest.raises(InvalidName):
                registry.register_version("qa", {"a": 2}, version=name)
        with pytest.raises(InvalidName):
            registry.set_alias("qa", name, "v1")
        with pytest.raises(InvalidName):
            registry.deploy_version("qa", "v1", environment=name)
        with pytest.raises(InvalidName):
            registry.get_deployed_version(name)
    assert [(one.version, one.aliases) for one in registry.list_versions("qa")] == [("v1", ())]
    assert registry.deployment_log("qa") == ()


def test_08_names_that_differ_in_case_only_are_refused(registry: SignatureRegistry) -> None:
    """They would be one file where case does not count."""
    registry.register_version("QA", {"a": 1})
    with pytest.raises(InvalidName, match="case"):
        registry.register_version("qa", {"a": 1})
    assert registry.list_signatures() == ["QA"]


class Colour(enum.Enum):
    """Something that JSON does not have."""

    RED = "red"


class Level(enum.IntEnum):
    """A number that is more than a number."""

    HIGH = 1


def _cycle() -> dict[str, Any]:
    loop: dict[str, Any] = {}
    loop["self"] = loop
    return loop


UNSTORABLE: tuple[Any, ...] = (
    datetime(2024, 1, 1, tzinfo=UTC),
    Colour.RED,
    Level.HIGH,
    math.nan,
    math.inf,
    "\ud800",
    {"\ud800": 1},
    {1: 2},
    (1, 2),
    {1, 2},
    b"x",
    2**63,
    object(),
    np.float32(0.5),
    np.int64(1),
    _cycle(),
)


def test_09_what_would_not_come_back_is_refused(registry: SignatureRegistry, seen: Callable[..., Any]) -> None:
    """With the place in the message, and before anything is written; in metadata and in configurations."""
    registry.register_version("qa", {"a": 1})
    before = seen(registry)
    for value in UNSTORABLE:
        with pytest.raises(NotSerialisable, match=r"metadata\.deep\[0\]"):
            registry.register_version("qa", {"a": 2}, metadata={"deep": [value]})
        with pytest.raises(NotSerialisable, match=r"configuration\.deep\[0\]"):
            registry.register_version("qa", {"deep": [value]})
    with pytest.raises(NotSerialisable, match="configuration"):
        registry.register_version("new", [1])  # type: ignore[arg-type]
    assert seen(registry) == before
    assert registry.list_signatures() == ["qa"]


def test_09_everything_else_comes_back_exactly(
    registry: SignatureRegistry, open_registry: Callable[..., SignatureRegistry]
) -> None:
    """Line separators, emoji, shared objects, words that YAML mistakes, -0.0 and long texts."""
    shared = [1, 2]
    metadata = {
        "next line": "a\u0085b\u2028c\ufeff", "emoji": "\U0001f600", "shared": [shared, shared], "no": "no",
        "1.10": "1.10", "0123": "0123", "1:30": "1:30", "2024-01-15": "2024-01-15", "1_000": "1_000", "~": "~",
        "": "", "zero": -0.0, "tiny": 5e-324, "big": 2**63 - 1, "least": -(2**63), "bool": [True, False, None],
        "lines": "one\n  two\n\nthree\n", "space": "  \n ", "tabs": "\t\n\t", "quote": "\"'\\", "empty": [{}, []],
        "nul": "\x00\x1b", "float": np.float64(0.1),
    }  # fmt: skip
    registry.register_version("qa", {"a": 1}, metadata=metadata)
    assert shared == [1, 2]
    assert type(metadata["float"]) is np.float64
    back = open_registry().list_versions("qa")[0].metadata
    assert back == metadata
    assert repr(back["zero"]) == "-0.0"
    assert [type(item) for item in back["bool"]] == [bool, bool, type(None)]


@pytest.mark.parametrize("key", ["k" * 1_100, "\u2028" * 300, "Why? " * 2_000])
def test_09_keys_of_any_length_come_back_and_go_through_an_export(
    registry: SignatureRegistry, open_registry: Callable[..., SignatureRegistry], tmp_path: Any, key: str
) -> None:
    """In configuration, metadata and a decision's inputs, which hold the labels of alerts."""
    registry.register_version("qa", {key: {key: "v"}}, metadata={key: [1]}, version="v1")
    registry.deploy_version("qa", "v1")
    ruling = Ruling("rollback", "worse", {"labels": {key: "x"}})
    assert registry.decide("qa", lambda _: ruling, trigger="alert").outcome == "rejected"
    registry.register_version("qa", {"other": 1}, version="v2")
    registry.deploy_version("qa", "v2")
    assert registry.decide("qa", lambda _: ruling, trigger="alert").applied
    registry.export_registry(tmp_path / "export.yml")
    elsewhere = SignatureRegistry(tmp_path / "elsewhere")
    elsewhere.import_registry(tmp_path / "export.yml")
    for one in (open_registry(), elsewhere):
        version = one.get_version("qa", "v1")
        assert (version.configuration, version.metadata) == ({key: {key: "v"}}, {key: [1]})
        assert [made.inputs["labels"] for made in one.decisions("qa")] == [{key: "x"}] * 2


def test_09_what_is_returned_belongs_to_the_caller(registry: SignatureRegistry) -> None:
    """Changing it changes neither the registry nor the next answer."""
    mine = {"a": {"b": [1]}}
    version = registry.register_version("qa", mine, version="v1")
    mine["a"]["b"].append(2)
    version.configuration["a"]["b"].append(3)
    registry.get_version("qa", "v1").configuration["a"]["b"].append(4)
    registry.list_versions("qa")[0].metadata["x"] = 1
    assert registry.get_version("qa", "v1").configuration == {"a": {"b": [1]}}
    assert registry.get_version("qa", "v1").metadata == {}


def test_10_arguments_win_over_environment_over_registry(
    open_registry: Callable[..., SignatureRegistry], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registry keeps what it was made with, and gives way to whoever opens it."""
    made = open_registry(max_versions_per_signature=4, backup_on_deploy=False)
    made.register_version("qa", {"a": 1})
    assert open_registry().config.max_versions_per_signature == 4
    assert open_registry().config.backup_on_deploy is False
    monkeypatch.setenv("DSPY_OBSERVE_REGISTRY_MAX_VERSIONS_PER_SIGNATURE", "7")
    assert open_registry().config.max_versions_per_signature == 7
    assert open_registry(max_versions_per_signature=99).config.max_versions_per_signature == 99
    assert open_registry(max_versions_per_signature=10).config.max_versions_per_signature == 10


def test_both_variables_of_the_place_mean_one_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument wins over both; where they differ nobody guesses, and neither text is shown."""
    monkeypatch.setenv("DSPY_OBSERVE_REGISTRY", "short")
    assert RegistryConfig().registry_path == "short"
    monkeypatch.setenv("DSPY_OBSERVE_REGISTRY_PATH", "long")
    assert RegistryConfig(registry_path="given").registry_path == "given"
    with pytest.raises(ConfigurationError, match="name two registries") as caught:
        RegistryConfig()
    assert "short" not in str(caught.value)
    monkeypatch.setenv("DSPY_OBSERVE_REGISTRY", "long")
    assert RegistryConfig().registry_path == "long"


def test_a_variable_out_of_range_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever set it never wrote the option."""
    monkeypatch.setenv("DSPY_OBSERVE_REGISTRY_MAX_VERSIONS_PER_SIGNATURE", "-1")
    with pytest.raises(ConfigurationError, match="from DSPY_OBSERVE_REGISTRY_MAX_VERSIONS_PER_SIGNATURE"):
        RegistryConfig()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_versions_per_signature", -1), ("max_versions_per_signature", True), ("auto_version", 1),
        ("version_format", "%Y/%m"), ("registry_path", " "), ("protected_environments", ["production"]), ("typo", 1),
    ],
)  # fmt: skip
def test_options_are_checked_when_they_are_set(option: str, value: Any) -> None:
    """As an argument and as an assignment."""
    with pytest.raises(ConfigurationError, match=option):
        RegistryConfig(**{option: value})
    with pytest.raises(ConfigurationError, match=option):
        setattr(RegistryConfig(), option, value)


def test_without_auto_version_a_name_is_needed(open_registry: Callable[..., SignatureRegistry]) -> None:
    """And is enough."""
    registry = open_registry(auto_version=False)
    with pytest.raises(InvalidName, match="auto_version"):
        registry.register_version("qa", {"a": 1})
    assert registry.register_version("qa", {"a": 1}, version="2.1.0").version == "2.1.0"


def test_unknown_names_have_their_own_errors(three: SignatureRegistry) -> None:
    """A signature and a version are told apart, by every method that takes them."""
    for call in (
        three.list_versions, three.get_deployed_version, three.get_performance_history, three.rollback,
        three.deployment_log, three.pointer,
    ):  # fmt: skip
        with pytest.raises(UnknownSignature, match="nobody"):
            call("nobody")
    for call in (three.get_version, three.deploy_version):
        with pytest.raises(UnknownVersion, match="v9"):
            call("qa", "v9")
    with pytest.raises(UnknownVersion):
        three.update_performance_score("qa", "v9", 0.5)
    with pytest.raises(UnknownVersion):
        three.compare_versions("qa", "v1", "v9")
    with pytest.raises(UnknownVersion):
        three.quarantine("qa", "v9", reason="bad")


def test_version_is_found_by_name_alias_and_hash(three: SignatureRegistry) -> None:
    """A hash may be shortened to twelve digits, and not further."""
    version = three.get_version("qa", "v2")
    three.set_alias("qa", "champion", "v2")
    for reference in ("v2", "champion", version.version_hash, version.version_hash[:12]):
        assert three.get_version("qa", reference).version == "v2"
    with pytest.raises(UnknownVersion):
        three.get_version("qa", version.version_hash[:11])
    three.set_alias("qa", "champion", "v3")
    assert three.get_version("qa", "champion").version == "v3"
    three.remove_alias("qa", "champion")
    with pytest.raises(UnknownVersion):
        three.get_version("qa", "champion")
    with pytest.raises(VersionExists):
        three.set_alias("qa", "v1", "v2")


@pytest.mark.parametrize("digits", [12, 16, 40, 64])
def test_names_by_which_another_version_is_asked_for_are_refused(
    three: SignatureRegistry, seen: Callable[..., Any], digits: int
) -> None:
    """As version and as alias: who asks by hash gets that content. The id of a commit is a name like any other."""
    before = seen(three)
    name = three.get_version("qa", "v2").version_hash[:digits]
    with pytest.raises(InvalidName, match="put a letter in front"):
        three.register_version("qa", {"instruction": "other"}, version=name)
    with pytest.raises(InvalidName, match="it is a hash"):
        three.register_version("qa", {"instruction": "Answer as v1."}, version=name)
    with pytest.raises(InvalidName, match="it is a hash"):
        three.set_alias("qa", name, "v1")
    assert seen(three) == before
    whole = digits == 64
    for number, other in enumerate((("c0ffee" * 11)[:digits], "1" * digits)):
        if whole:
            with pytest.raises(InvalidName, match="it is a hash"):
                three.register_version("qa", {"n": number}, version=other)
        else:
            assert three.register_version("qa", {"n": number}, version=other).version == other
            assert three.get_version("qa", other).configuration == {"n": number}


def test_name_from_the_clock_may_be_digits_only(open_registry: Callable[..., SignatureRegistry]) -> None:
    """One for each version."""
    registry = open_registry(version_format="%Y%m%d%H%M%S", max_versions_per_signature=0)
    made = [registry.register_version("qa", {"n": number}).version for number in range(3)]
    assert made == ["20240115143022", "20240115143022_2", "20240115143022_3"]


def test_hash_finds_its_content_whatever_other_versions_were_once_called(three: SignatureRegistry, store: Any) -> None:
    """A store with such names opens; 64 digits are a hash, and what could mean two versions means none."""
    first, second = (three.get_version("qa", name).version_hash for name in ("v1", "v2"))
    names = {first: 11, second[:16]: 12, "a" * 40: 13}
    with store.write("qa") as txn:
        for name, number in names.items():
            other = {"taken": number}
            digits = configuration_hash(other)
            txn.set_head(Head(number + 1, ""))
            txn.add_version(StoredVersion(name, number, digits, txn.versions()[0].created_at, other, {}))
    assert [one.version for one in three.list_versions("qa")] == ["v1", "v2", "v3", *names]
    three.deploy_version("qa", first, environment="staging")
    assert three.promote("qa", source="staging").configuration == {"instruction": "Answer as v1."}
    assert three.get_deployed_version("qa").version == three.get_version("qa", first[:20]).version == "v1"
    assert three.get_version("qa", "a" * 40).configuration == {"taken": 13}
    assert three.get_version("qa", configuration_hash({"taken": 12})).version == second[:16]
    with pytest.raises(UnknownVersion):
        three.get_version("qa", second[:16])
    assert three.register_version("qa", {"taken": 13}, version="a" * 40).created is False
    three.start_rollout("qa", second, min_samples=0, min_step_s=0, steps=(0.5, 1))
    three.advance_rollout("qa")
    assert three.get_deployed_version("qa").version == "v2"


def test_registering_known_content_never_moves_an_alias(three: SignatureRegistry) -> None:
    """Under the alias of another version it is refused; under its own nothing changes."""
    three.set_alias("qa", "prod", "v2", actor="alice")
    with pytest.raises(VersionExists, match=r"alias of v2.*set_alias"):
        three.register_version("qa", {"instruction": "Answer as v1."}, version="prod", author="bob")
    assert three.get_version("qa", "prod").version == "v2"
    again = three.register_version("qa", {"instruction": "Answer as v2."}, version="prod", author="bob")
    assert (again.version, again.created, again.aliases) == ("v2", False, ("prod",))
    with three.view("qa") as view:
        assert view.mark("alias", "prod").actor == "alice"
    three.set_alias("qa", "prod", "v1")
    assert three.get_version("qa", "prod").version == "v1"


def test_20_retention_keeps_what_is_needed(
    registry: SignatureRegistry, fill: Callable[..., None], open_registry: Callable[..., SignatureRegistry]
) -> None:
    """The deployed version, what a rollback would take, and the arm of an experiment survive; a dry run lists."""
    fill(registry, "v1", "v2", "v3", "v4", "v5")
    registry.deploy_version("qa", "v2")
    registry.deploy_version("qa", "v1")
    registry.set_alias("qa", "experiment-spring", "v3")
    assert registry.remove_versions("qa", keep=2, dry_run=True) == ("v4", "v5")
    assert len(registry.list_versions("qa")) == 5
    limited = open_registry(max_versions_per_signature=2)
    limited.register_version("qa", {"instruction": "new"}, version="v6")
    assert [one.version for one in limited.list_versions("qa")] == ["v1", "v2", "v3", "v6"]
    assert limited.get_deployed_version("qa").version == "v1"
    assert limited.rollback("qa").version == "v2"


def test_20_default_keeps_ten(open_registry: Callable[..., SignatureRegistry]) -> None:
    """And their sequence goes on where it was."""
    registry = open_registry()
    for number in range(13):
        registry.register_version("qa", {"n": number})
    versions = registry.list_versions("qa")
    assert [one.sequence for one in versions] == list(range(4, 14))
    assert len({one.version for one in versions}) == 10


def test_20_name_of_a_removed_version_is_not_given_again(
    open_registry: Callable[..., SignatureRegistry], clock: Any
) -> None:
    """Within one second, and when the clock goes back, a name in the log keeps its meaning."""
    registry = open_registry(max_versions_per_signature=1)
    names = [registry.register_version("qa", {"n": number}).version for number in range(5)]
    clock.forward(-2)
    names.append(registry.register_version("qa", {"n": 99}).version)
    assert len(set(names)) == 6


def test_21_import_unites_and_changes_nothing_here(
    three: SignatureRegistry, tmp_path: Any, seen: Callable[..., Any], clock: Any
) -> None:
    """An older export over newer state: union by content, pointers kept, differences told, a second time nothing."""
    three.deploy_version("qa", "v1")
    three.update_performance_score("qa", "v1", 0.7, dataset="dev", n=50)
    export = tmp_path / "export.yml"
    three.export_registry(export)
    clock.forward(60)
    three.register_version("qa", {"instruction": "newer"}, version="v4")
    three.deploy_version("qa", "v4")
    before = seen(three)
    report = three.import_registry(export, dry_run=True)
    assert (report.added, report.present, report.scores) == ((), 3, 0)
    assert len(report.conflicts) == 1
    assert "production runs v4 here and v1" in report.conflicts[0]
    assert three.import_registry(export).conflicts == report.conflicts
    assert seen(three) == before


def test_21_import_into_an_empty_registry_restores_everything(
    three: SignatureRegistry, tmp_path: Any, seen: Callable[..., Any]
) -> None:
    """Versions, pointers, log, scores and marks, in whatever store; then it does nothing."""
    three.set_alias("qa", "champion", "v2")
    for name in ("v1", "v2", "v3"):
        three.deploy_version("qa", name)
        three.update_performance_score("qa", name, 0.5, dataset="dev", n=10, score_id=f"score-{name}")
    three.rollback("qa", reason="worse")
    export = tmp_path / "export.yml"
    three.export_registry(export)
    other = SignatureRegistry(tmp_path / "elsewhere")
    assert other.import_registry(export, dry_run=True).added == ("qa/v1", "qa/v2", "qa/v3")
    assert other.list_signatures() == []
    other.import_registry(export)
    assert seen(other) == seen(three)
    assert other.get_version("qa", "v3").quarantined == "worse"
    assert other.get_version("qa", "champion").version == "v2"
    again = other.import_registry(export)
    assert (again.added, again.scores, again.conflicts) == ((), 0, ())
    assert other.rollback("qa").version == "v1"


def test_21_same_name_for_other_content_keeps_both(
    registry: SignatureRegistry, tmp_path: Any, open_registry: Callable[..., SignatureRegistry]
) -> None:
    """The imported one gets a name of its own, and the report says so."""
    other = SignatureRegistry(tmp_path / "elsewhere")
    other.register_version("qa", {"a": 1}, version="v1")
    other.export_registry(tmp_path / "export.yml")
    registry.register_version("qa", {"a": 2}, version="v1")
    report = registry.import_registry(tmp_path / "export.yml")
    (added,) = report.added
    assert added.startswith("qa/v1_")
    assert "other content" in report.conflicts[0]
    assert registry.get_version("qa", "v1").configuration == {"a": 2}
    assert registry.get_version("qa", added[3:]).configuration == {"a": 1}
    assert registry.import_registry(tmp_path / "export.yml").added == ()


def test_21_name_that_an_import_makes_is_free(
    registry: SignatureRegistry, tmp_path: Any, open_registry: Callable[..., SignatureRegistry]
) -> None:
    """Also where the name that it would take first belongs to a version, here or in the file, or is an alias."""
    other = SignatureRegistry(tmp_path / "elsewhere")
    long = "x" * 100
    made = other.register_version("qa", {"c": "B"}, version="v1").version_hash
    other.register_version("qa", {"c": "D"}, version=f"v1_{made[:10]}")
    longest = other.register_version("qa", {"c": "E"}, version=long).version_hash
    other.export_registry(tmp_path / "export.yml")
    registry.register_version("qa", {"c": "A"}, version="v1")
    registry.register_version("qa", {"c": "C"}, version=f"v1_{made[:8]}")
    registry.register_version("qa", {"c": "F"}, version=long)
    registry.set_alias("qa", f"v1_{made[:9]}", "v1")
    report = registry.import_registry(tmp_path / "export.yml")
    found = {one.version: one.configuration["c"] for one in open_registry().list_versions("qa")}
    assert list(found.values()) == ["A", "C", "F", "B", "D", "E"]
    assert report.added[0] == f"qa/v1_{made[:10]}"
    assert found[f"{'x' * 91}_{longest[:8]}"] == "E"
    assert open_registry().import_registry(tmp_path / "export.yml").added == ()


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ('signature: "qa"', 'signature: "../../pwn"', "pwn"),
        ("  qa:", '  "../../pwn":', "signature name"),
        ('version: "v1"', 'version: "../v1"', "version name"),
        ("instruction:", "instructions:", "hash"),
        ("format: 1", "format: 2", "format"),
        ("sequence: 1", "sequence: 1.0", "whole number"),
    ],
)
def test_08_21_hostile_imports_are_refused_whole(
    three: SignatureRegistry, tmp_path: Any, seen: Callable[..., Any], before: str, after: str, told: str
) -> None:
    """A name that leaves the root, content that is not its hash, another format: nothing is taken."""
    export = tmp_path / "export.yml"
    three.export_registry(export)
    text = export.read_text(encoding="utf-8")
    assert before in text
    export.write_text(text.replace(before, after), encoding="utf-8")
    known = seen(three)
    with pytest.raises(CorruptRegistry, match=told):
        three.import_registry(export)
    assert seen(three) == known
    assert {path.name for path in tmp_path.parent.iterdir() if "pwn" in path.name} == set()


@pytest.fixture
def lived(tmp_path: Any, fill: Callable[..., None]) -> dict[str, Any]:
    """An export of a signature of which everything is known that an export holds."""
    three = SignatureRegistry(tmp_path / "home")
    fill(three, "v1", "v2", "v3")
    for name in ("v1", "v2", "v3"):
        three.deploy_version("qa", name)
    three.update_performance_score("qa", "v1", 0.5, n=10, stdev=0.1, score_id="s1")
    digits = three.get_version("qa", "v1").version_hash
    three.approve("qa", "v1", environment="production", version_hash=digits, evidence=["s1"], by="bob")
    three.set_mode("qa", "approve")
    three.register_version("qa", {"instruction": "Answer as v1."}, metadata={"a": "note"}, version="champion")
    for outcome in ("rollback", "held"):
        three.decide("qa", lambda _, outcome=outcome: Ruling(outcome, "why"), trigger="manual")
    three.export_registry(tmp_path / "export.yml")
    return dict(yamltext.load((tmp_path / "export.yml").read_bytes(), "export"))


def mark_of(rows: dict[str, Any], kind: str) -> dict[str, Any]:
    """The first mark of a kind."""
    return next(mark for mark in rows["marks"] if mark["kind"] == kind)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda rows: mark_of(rows, "approval")["data"].clear(), "evidence"),
        (lambda rows: mark_of(rows, "approval")["data"].update(evidence=[]), "evidence"),
        (lambda rows: mark_of(rows, "approval")["data"].update(evidence="s1"), "evidence"),
        (lambda rows: mark_of(rows, "approval").update(actor=None), "actor"),
        (lambda rows: mark_of(rows, "approval").update(key="production"), "key has to be"),
        (lambda rows: mark_of(rows, "control")["data"].update(mode=5), "mode"),
        (lambda rows: mark_of(rows, "control")["data"].update(mode="Auto"), "dry-run"),
        (lambda rows: mark_of(rows, "control").update(key="../../etc"), "has to be a name"),
        (lambda rows: mark_of(rows, "alias").update(key="../../x"), "has to be a name"),
        (lambda rows: mark_of(rows, "alias").update(version_hash=""), "hexadecimal"),
        (lambda rows: mark_of(rows, "quarantine").update(key="v3"), "quarantined"),
        (lambda rows: mark_of(rows, "quarantine").update(version="../v3"), "has to be a name"),
        (lambda rows: rows["pointers"][0].update(environment="../../etc"), "environment has to be a name"),
        (lambda rows: rows["pointers"][0].update(generation=-5), "generation has to be from 1"),
        (lambda rows: rows["pointers"][0].update(generation=0), "generation has to be from 1"),
        (lambda rows: rows["pointers"][0].update(generation=2**63 - 1), "generation has to be from 1"),
        (lambda rows: rows["deployments"][0].update(generation=0), "generation has to be from 1"),
        (lambda rows: rows["deployments"][0].update(environment="a/b"), "environment has to be a name"),
        (lambda rows: rows["deployments"][0].update(version_hash="e"), "hexadecimal"),
        (lambda rows: rows["decisions"][0].update(environment="a/b"), "environment has to be a name"),
        (lambda rows: rows["remarks"][0].update(environment="a/b"), "environment has to be a name"),
        (lambda rows: rows["remarks"][0].update(generation=-1), "generation has to be from 0"),
        (lambda rows: rows["scores"][0].update(n=0), "examples"),
        (lambda rows: rows["scores"][0].update(stdev=-1.0), "deviation"),
        (lambda rows: rows["scores"][0].update(version_hash=""), "hexadecimal"),
        (lambda rows: rows.update(next_sequence=2**63 - 1), "next_sequence has to be from 1"),
        (lambda rows: rows.update(next_sequence=-1, versions=[], pointers=[]), "next_sequence has to be from 1"),
    ],
)
def test_08_21_import_takes_nothing_that_would_fail_later(
    lived: dict[str, Any], tmp_path: Any, spoil: Callable[[dict[str, Any]], None], told: str
) -> None:
    """Names, counts and what marks say are checked, and the line is named; as it was exported, it is taken."""
    target = SignatureRegistry(f"sqlite:///{tmp_path / 'target.db'}")
    good = yamltext.dump(lived)
    spoil(lived["signatures"]["qa"])
    (tmp_path / "export.yml").write_text(yamltext.dump(lived), encoding="utf-8")
    with pytest.raises(CorruptRegistry, match=told) as caught:
        target.import_registry(tmp_path / "export.yml")
    assert caught.value.line is not None
    assert target.list_signatures() == []
    (tmp_path / "export.yml").write_text(good, encoding="utf-8")
    assert target.import_registry(tmp_path / "export.yml").conflicts == ()
    assert target.control("qa").mode == "approve"
    assert target.deploy_version("qa", "champion").version == "v1"
    target.close()


def test_21_import_takes_over_no_rollout(lived: dict[str, Any], tmp_path: Any) -> None:
    """No export holds one; whatever else a file calls a mark is told and left."""
    for mark in lived["signatures"]["qa"]["marks"]:
        if mark["kind"] == "note":
            mark.update(kind="rollout", key="production", data={"nonsense": 1})
    (tmp_path / "export.yml").write_text(yamltext.dump(lived), encoding="utf-8")
    target = SignatureRegistry(tmp_path / "target")
    assert target.import_registry(tmp_path / "export.yml").conflicts == (
        "qa: the rollout of production was not taken over",
    )
    assert target.rollout("qa") is None


def test_21_import_of_several_signatures_is_all_or_nothing(
    registry: SignatureRegistry, tmp_path: Any, seen: Callable[..., Any]
) -> None:
    """A name that differs only in case from one that is here, or in the file, keeps all of them out."""
    other = SignatureRegistry(tmp_path / "elsewhere")
    for name in ("A1", "M2", "ZZ"):
        other.register_version(name, {"a": 1}, version="v1")
    other.export_registry(tmp_path / "export.yml")
    registry.register_version("zz", {"a": 2}, version="v1")
    before = seen(registry, "zz")
    for dry_run in (True, False):
        with pytest.raises(InvalidName, match="case"):
            registry.import_registry(tmp_path / "export.yml", dry_run=dry_run)
    assert (registry.list_signatures(), seen(registry, "zz")) == (["zz"], before)
    text = (tmp_path / "export.yml").read_text(encoding="utf-8")
    (tmp_path / "export.yml").write_text(text.replace("M2", "a1").replace("ZZ", "B2"), encoding="utf-8")
    with pytest.raises(CorruptRegistry, match="case"):
        registry.import_registry(tmp_path / "export.yml")
    assert registry.list_signatures() == ["zz"]
    (tmp_path / "export.yml").write_text(text.replace("ZZ", "B2"), encoding="utf-8")
    assert registry.import_registry(tmp_path / "export.yml").added == ("A1/v1", "M2/v1", "B2/v1")
    assert registry.list_signatures() == ["A1", "B2", "M2", "zz"]


def test_22_scores_are_added_never_replaced(registry: SignatureRegistry, clock: Any) -> None:
    """Two data sets stand beside each other, and are not compared with each other."""
    registry.register_version("qa", {"a": 1}, version="v1")
    registry.register_version("qa", {"a": 2}, version="v2")
    assert registry.get_version("qa", "v1").performance_score is None
    registry.update_performance_score("qa", "v1", 0.80, dataset="A", n=50)
    registry.update_performance_score("qa", "v1", 0.90, dataset="B", n=500)
    registry.update_performance_score("qa", "v2", 0.85, dataset="C", n=50)
    assert [(one.dataset, one.value, one.n) for one in registry.scores("qa", "v1")] == [("A", 0.8, 50), ("B", 0.9, 500)]
    assert registry.get_version("qa", "v1").performance_score == 0.9
    apart = registry.compare_versions("qa", "v2", "v1")
    assert apart.performance_difference is None
    assert "different data sets" in apart.warnings[0]
    registry.update_performance_score("qa", "v2", 0.95, dataset="A", n=50)
    together = registry.compare_versions("qa", "v2", "v1")
    assert together.performance_difference == pytest.approx(0.15)
    assert (together.dataset, together.version_1.n, together.version_2.performance_score) == ("A", 50, 0.8)


def test_22_trend_and_extremes_are_of_one_data_set(registry: SignatureRegistry) -> None:
    """Two versions are enough for a trend; other data sets do not spoil it."""
    for number, score in enumerate((0.5, 0.6)):
        registry.register_version("qa", {"n": number}, version=f"v{number}")
        registry.update_performance_score("qa", f"v{number}", score, dataset="dev")
    registry.update_performance_score("qa", "v0", 0.99, dataset="easy")
    history = registry.get_performance_history("qa", dataset="dev")
    assert [(one.version, one.score) for one in history.versions] == [("v0", 0.5), ("v1", 0.6)]
    assert history.trends.improvement_trend == pytest.approx(20.0)
    trends = history.trends
    assert (trends.best_score, trends.worst_score, trends.latest_score) == (0.6, 0.5, 0.6)
    assert len(registry.get_performance_history("qa").versions) == 3
    assert registry.get_performance_history("qa").trends.dataset == "easy"
    assert registry.get_performance_history("qa").trends.improvement_trend is None


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, None, "0.9", True])
def test_33_bad_scores_are_refused(three: SignatureRegistry, seen: Callable[..., Any], score: Any) -> None:
    """And never booked."""
    before = seen(three)
    with pytest.raises(InvalidScore):
        three.update_performance_score("qa", "v1", score)
    with pytest.raises(InvalidScore):
        three.update_performance_score("qa", "v1", 1.7, bounds=(0.0, 1.0))
    for bad in ({"n": 0}, {"n": True}, {"n": 2.0}, {"n": 2**53 + 1}, {"n": 2**70}, {"stdev": -1.0}):
        with pytest.raises(InvalidScore):
            three.update_performance_score("qa", "v1", 0.7, **bad)
    assert seen(three) == before


def test_33_score_of_any_number_of_examples_can_be_imported(three: SignatureRegistry, tmp_path: Any) -> None:
    """What is taken here is taken from an export, too."""
    three.update_performance_score("qa", "v1", 0.7, n=2**53)
    three.export_registry(tmp_path / "export.yml")
    other = SignatureRegistry(tmp_path / "elsewhere")
    other.import_registry(tmp_path / "export.yml")
    assert [score.n for score in other.scores("qa")] == [2**53]


def test_37_a_score_id_counts_once(three: SignatureRegistry) -> None:
    """However often it is sent."""
    three.update_performance_score("qa", "v1", 0.7, score_id="run-1")
    assert three.update_performance_score("qa", "v1", 0.2, score_id="run-1").performance_score == 0.7
    assert len(three.scores("qa")) == 1


def test_47_configuration_diff_is_by_path(registry: SignatureRegistry) -> None:
    """Nested keys, kinds of change, and nothing for equal content."""
    registry.register_version("qa", {"a": 1, "b": {"c": "x", "gone": 1}, "t": 1}, version="old")
    registry.register_version("qa", {"a": 1, "b": {"c": "y"}, "new": [1], "t": 1.0}, version="new")
    comparison = registry.compare_versions("qa", "new", "old")
    assert comparison.configuration_changes == (
        "Changed b.c: x \u2192 y", "Removed b.gone: 1", "Added new: [1]", "Changed t: 1 \u2192 1.0",
    )  # fmt: skip
    assert registry.compare_versions("qa", "new", "new").configuration_changes == ()


def test_credentials_never_reach_the_store(
    registry: SignatureRegistry, tmp_path: Any, open_registry: Callable[..., SignatureRegistry]
) -> None:
    """Neither in configurations, nor metadata, nor reasons, nor names and keys; searched for in all that is kept."""
    canary = "sk-" + "CaNaRy42" * 6
    registry.register_version(
        "qa", {"headers": {"Authorization": f"Bearer {canary}"}, "i": f"use key={canary}"}, version="v1",
        metadata={"api_key": canary, "note": f"ran with {canary}", "team": "ml", "approved_by": "alice@example.com"},
    )  # fmt: skip
    registry.register_version("qa", {"i": 2}, version="v2", program_id=f"id {canary}", author=f"bob {canary}")
    registry.deploy_version("qa", "v1", reason=f"because {canary}", actor=f"alice@example.com {canary}")
    registry.update_performance_score(
        "qa", "v1", 0.5, dataset=f"dev {canary}", source=f"ci {canary}", score_id=f"run {canary}"
    )
    registry.deploy_version("qa", "v2", reason=f"because {canary}")
    registry.rollback("qa", reason=f"because {canary}")
    registry.export_registry(tmp_path / "export.yml")
    kept = (tmp_path / "export.yml").read_text(encoding="utf-8")
    kept += "".join(path.read_text("utf-8", "replace") for path in tmp_path.rglob("*") if path.is_file())
    assert "CaNaRy" not in kept
    assert registry.get_version("qa", "v1").metadata["approved_by"] == "alice@example.com"
    assert registry.get_version("qa", "v2").author == "bob <API_KEY>"
    history = registry.get_performance_history("qa", dataset=f"dev {canary}")
    assert [point.dataset for point in history.versions] == ["dev <API_KEY>"]


def test_score_ids_that_differ_in_a_credential_only_stay_apart(registry: SignatureRegistry) -> None:
    """And the same one still counts once."""
    registry.register_version("qa", {"i": 1}, version="v1")
    for last in "112":
        registry.update_performance_score("qa", "v1", 0.5, score_id=f"run sk-{'CaNaRy42' * 6}{last}")
    ids = [one.score_id for one in registry.scores("qa")]
    assert len(ids) == len(set(ids)) == 2
    assert all(one.startswith("run <API_KEY>#") for one in ids)


def test_the_actor_named_by_the_environment_is_kept_without_credentials(
    registry: SignatureRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that is given."""
    monkeypatch.setenv("DSPY_OBSERVE_ACTOR", "ci sk-" + "CaNaRy42" * 6)
    assert registry.register_version("qa", {"i": 1}, version="v1").author == "ci <API_KEY>"
