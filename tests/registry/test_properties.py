"""What holds after any sequence of operations."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dspy_observe.registry import (
    CorruptRegistry,
    NothingToRollBackTo,
    Quarantined,
    RegistryConfig,
    Ruling,
    SignatureRegistry,
    UnknownVersion,
    yamltext,
)
from dspy_observe.registry.values import plain

ENVIRONMENTS = st.sampled_from(["production", "staging"])
NUMBERS = st.integers(0, 5)
AWKWARD = st.sampled_from(list(" \n\t\r:-#\"'|>{}[]&*!%@`~\x85\u2028\ufeff\x00\xa0\u00e9\U0001f600"))
TEXTS = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), AWKWARD), max_size=25)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=15,
)


@settings(max_examples=300)
@given(VALUES)
def test_yaml_comes_back_exactly(value: Any) -> None:
    """Every value, with its types, whatever its texts hold."""
    assert repr(yamltext.load(yamltext.dump(value), "file")) == repr(value)


LONG_KEYS = st.tuples(st.one_of(AWKWARD, st.just("k"), TEXTS.filter(bool)), st.integers(150, 3_000)).map(
    lambda drawn: (drawn[0] * drawn[1])[: drawn[1]]
)


@given(st.lists(st.dictionaries(LONG_KEYS, VALUES | st.dictionaries(LONG_KEYS, VALUES, max_size=2), max_size=3)))
def test_yaml_with_keys_of_any_length_comes_back_exactly(value: Any) -> None:
    """Also keys beyond the 1,024 characters that YAML allows before a colon, escapes counted, at every depth."""
    assert repr(yamltext.load(yamltext.dump(value), "file")) == repr(value)
    assert repr(yamltext.load(yamltext.dump({"k" * 1_100: value}), "file")) == repr({"k" * 1_100: value})


@pytest.mark.parametrize("length", [*range(990, 1_030), 128_000])
def test_yaml_with_a_key_about_the_limit_comes_back_exactly(length: int) -> None:
    """On either side of where a key is written in its long form."""
    for key in ("k" * length, "-" * length):
        for value in (1, "text", "two\nlines", {"a": 1}, [1], {}, [[{key: 1}]]):
            assert yamltext.load(yamltext.dump([{key: value, "z": 0}]), "file") == [{key: value, "z": 0}]


@settings(max_examples=300)
@given(st.binary(max_size=200) | TEXTS.map(lambda text: text.encode("utf-8", "replace")))
def test_reading_any_bytes_gives_a_value_or_the_error(content: bytes) -> None:
    """Nothing else escapes."""
    with contextlib.suppress(CorruptRegistry):
        assert plain(yamltext.load(content, "file"), "value") is not ...


class Life(RuleBasedStateMachine):
    """A signature's life; after every step the log, replayed, is the state."""

    where: str

    @initialize()
    def open(self) -> None:
        """Start with an empty registry."""
        self.registry = SignatureRegistry(RegistryConfig(registry_path=self.place(), max_versions_per_signature=4))
        self.bad: set[str] = set()
        self.registered: dict[str, str] = {}

    def place(self) -> str:
        """Where it lives."""
        raise NotImplementedError

    @rule(number=NUMBERS)
    def register(self, number: int) -> None:
        """The same content is the same version, as long as it is there."""
        version = self.registry.register_version("qa", {"number": number}, version=f"v{number}")
        assert version.version == f"v{number}"
        self.registered[version.version] = version.version_hash

    @rule(number=NUMBERS, environment=ENVIRONMENTS)
    def deploy(self, number: int, environment: str) -> None:
        """What is there and not quarantined can be deployed; what runs already stays, quarantined or not."""
        there = {one.version for one in self._versions()}
        runs = {one.version for one in self._versions() if environment in one.deployed_in}
        try:
            self.registry.deploy_version("qa", f"v{number}", environment=environment)
        except Quarantined:
            assert f"v{number}" in self.bad
        except (UnknownVersion, LookupError):
            assert f"v{number}" not in there
        else:
            assert f"v{number}" not in self.bad or f"v{number}" in runs

    @rule(environment=ENVIRONMENTS, decided=st.booleans())
    def roll_back(self, environment: str, decided: bool) -> None:
        """It leaves what runs for something good that ran before."""
        if not self._versions():
            return
        before = self.registry.pointer("qa", environment=environment)
        ran = {one.version for one in self.registry.deployment_log("qa", environment=environment)}
        ruling, moved = Ruling("rollback", "worse"), True
        if decided:
            moved = bool(self.registry.decide("qa", lambda _: ruling, environment=environment, trigger="monitor"))
        else:
            try:
                self.registry.rollback("qa", environment=environment)
            except NothingToRollBackTo:
                moved = False
        if not moved:
            assert self.registry.pointer("qa", environment=environment) == before
            assert before is None or not self._versions_among(ran - self.bad - {before.version})
            return
        after = self.registry.pointer("qa", environment=environment)
        assert before is not None
        assert after is not None
        assert after.version in ran - self.bad - {before.version}
        self.bad.add(before.version)

    @rule(keep=st.integers(1, 3))
    def clean(self, keep: int) -> None:
        """Never what runs, nor what a rollback would take."""
        if self._versions():
            before = self._targets()
            self.registry.remove_versions("qa", keep=keep)
            assert self._targets() == before

    @rule(number=NUMBERS)
    def quarantine(self, number: int) -> None:
        """Any version that is there."""
        if f"v{number}" in {one.version for one in self._versions()}:
            self.registry.quarantine("qa", f"v{number}", reason="bad")
            self.bad.add(f"v{number}")

    @invariant()
    def log_replayed_is_the_state(self) -> None:
        """Pointers, generations and flags follow from the log alone, also for another reader."""
        if not hasattr(self, "registry") or not self._versions():
            return
        with SignatureRegistry(self.registry.config) as other:
            replayed: dict[str, tuple[str, int]] = {}
            for entry in other.deployment_log("qa"):
                before = replayed.get(entry.environment)
                assert entry.previous == (None if before is None else before[0])
                assert entry.generation == (1 if before is None else before[1] + 1)
                assert entry.version_hash == self.registered[entry.version]
                replayed[entry.environment] = (entry.version, entry.generation)
            assert replayed == {one.environment: (one.version, one.generation) for one in other.pointers("qa")}
            versions = other.list_versions("qa")
            assert [one.sequence for one in versions] == sorted({one.sequence for one in versions})
            for version in versions:
                running = {one for one, (name, _) in replayed.items() if name == version.version}
                assert set(version.deployed_in) == running
                assert (version.quarantined is not None) == (version.version in self.bad)
            assert {name for name, _ in replayed.values()} <= {one.version for one in versions}

    def _targets(self) -> list[str | None]:
        return [self.registry.rollback_target("qa", environment=one) for one in ("production", "staging")]

    def _versions(self) -> list[Any]:
        return self.registry.list_versions("qa") if self.registry.list_signatures() else []

    def _versions_among(self, names: set[str]) -> set[str]:
        return names & {one.version for one in self._versions()}

    def teardown(self) -> None:
        """Leave nothing open."""
        if hasattr(self, "registry"):
            self.registry.close()


@pytest.mark.parametrize("kind", ["files", "sqlite", "postgresql"])
def test_log_replayed_equals_the_state(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """On every store, after any sequence of operations."""
    from hypothesis.stateful import run_state_machine_as_test

    class Here(Life):
        def place(self) -> str:
            if kind == "postgresql":
                return str(request.getfixturevalue("postgres").new_registry())
            folder = tempfile.mkdtemp(dir=tmp_path)
            return folder if kind == "files" else f"sqlite:///{folder}/registry.db"

    count = {"files": 25, "sqlite": 10, "postgresql": 5}[kind]
    run_state_machine_as_test(Here, settings=settings(max_examples=count, stateful_step_count=25, deadline=None))
