"""What is left when a writer dies, a file is damaged, or the disk is full. Numbers are those of the scenario list."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dspy_observe.registry import (
    CorruptRegistry,
    CorruptVersion,
    RegistryConfig,
    RegistryManager,
    SignatureRegistry,
    StoreUnavailable,
)
from dspy_observe.registry.records import StoredVersion
from dspy_observe.registry.stores.base import Head
from dspy_observe.registry.stores.files import FileStore

Open = Callable[..., SignatureRegistry]
NOBODY = 65534

WRITE = """
    import itertools, os, sys
    import psycopg, sqlalchemy.dialects.postgresql, sqlalchemy.dialects.sqlite
    from dspy_observe.registry import RegistryConfig, SignatureRegistry
    from dspy_observe.registry.stores import files, sql
    from dspy_observe.registry.values import scrubbed

    scrubbed({"loaded": "once, for all forks"})

    def write(place, turn):
        registry = SignatureRegistry(RegistryConfig(registry_path=place, max_versions_per_signature=6))
        registry.subscribe("*", lambda event: None)
        text = "x" * 20000
        registry.register_version("qa", {"text": text}, version="v0")
        registry.deploy_version("qa", "v0")
        print("ready", os.getpid(), flush=True)
        for number in itertools.count(1):
            version = registry.register_version("qa", {"text": f"{turn} {number} {text}"})
            registry.update_performance_score("qa", version.version, 0.5)
            registry.deploy_version("qa", version.version)
            print("done", version.version_hash, flush=True)

    for line in sys.stdin:
        place, turn = line.split()
        child = os.fork()
        if child == 0:
            write(place, turn)
        os.waitpid(child, 0)
        print("\\ndead", flush=True)
"""


@pytest.mark.slow
def test_06_kill_at_forty_random_points(tmp_path: Path, postgres: Any) -> None:
    """The next process finds the pointer where it was or where it was going, and everything that was acknowledged."""
    places = [str(tmp_path / "registry"), f"sqlite:///{tmp_path / 'registry.db'}", postgres.new_registry()]
    rounds = [(place, turn) for place, turns in zip(places, (20, 10, 10), strict=True) for turn in range(turns)]
    pick = random.Random(20240115)
    command = [sys.executable, "-c", textwrap.dedent(WRITE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as forks:
        try:
            for place, turn in rounds:
                _kill_once(forks, place, turn, pick.uniform(0.0, 0.06))
        finally:
            forks.kill()
    folder = Path(places[0])
    assert not list(folder.rglob("*.tmp"))
    assert not [path for path in (folder / "outbox").rglob("*") if path.is_file() and path.suffix != ".ready"]


def _kill_once(forks: subprocess.Popen[str], place: str, turn: int, after_s: float) -> None:
    """Let a writer write for a moment, kill it, and look at what it left."""
    assert forks.stdin is not None
    assert forks.stdout is not None
    forks.stdin.write(f"{place} {turn}\n")
    forks.stdin.flush()
    word, pid = forks.stdout.readline().split()
    assert word == "ready"
    time.sleep(after_s)  # the point at which it dies is what is random here
    os.kill(int(pid), signal.SIGKILL)
    acknowledged = []
    for line in forks.stdout:
        if line == "dead\n":
            break
        if line.startswith("done ") and len(line) == len("done \n") + 64:
            acknowledged.append(line.split()[1])
    with SignatureRegistry(place) as registry:
        versions = {one.version_hash: one for one in registry.list_versions("qa")}
        pointer = registry.pointer("qa")
        assert pointer is not None
        assert pointer.version_hash in versions
        log = registry.deployment_log("qa")
        assert [entry.generation for entry in log] == list(range(1, len(log) + 1))
        assert log[-1].version_hash == pointer.version_hash
        assert set(acknowledged) <= {entry.version_hash for entry in log}
        registry.register_version("qa", {"after": f"{turn}"})
        registry.redeliver()


DIE = """
    import os, sys
    from dspy_observe.registry import SignatureRegistry
    registry = SignatureRegistry(sys.argv[1])
    registry.subscribe("deploy_complete", lambda event: os._exit(7))
    registry.deploy_version("qa", "v1")
"""


def test_31_event_of_a_dead_process_is_delivered_once_more(
    three: SignatureRegistry, location: str, start_python: Callable[..., Any], open_registry: Open
) -> None:
    """Committed and not told: whoever subscribes next is told, and nobody after that; the pointer moved once."""
    process = start_python(DIE, location)
    process.communicate(timeout=60)
    assert process.returncode == 7
    assert three.pointer("qa").generation == 1
    events: list[Any] = []
    other = open_registry()
    other.subscribe("*", events.append)
    (event,) = events
    assert (event.name, event.version) == ("dspy.registry.deploy_complete", "v1")
    assert event.data["redelivered"] is True
    assert event.data["delivery_id"]
    again: list[Any] = []
    open_registry().subscribe("*", again.append)
    assert again == []
    assert other.redeliver() == 0
    assert other.pointer("qa").generation == 1


def test_31_events_of_a_living_process_are_left_to_it(
    three: SignatureRegistry, open_registry: Open, clock: Any
) -> None:
    """Until it has had five minutes; then another one tells them, with the same id."""
    told: list[Any] = []
    late: list[Any] = []

    def listen(event: Any) -> None:
        told.append(event)
        open_registry().subscribe("*", late.append)
        assert late == []
        clock.forward(301)
        open_registry().subscribe("*", late.append)

    three.subscribe("deploy_complete", listen)
    three.deploy_version("qa", "v1")
    assert [event.data["delivery_id"] for event in told] == [told[0].data["delivery_id"]]
    assert {event.data["delivery_id"] for event in late} == {told[0].data["delivery_id"]}


def test_31_event_of_an_undone_commit_is_never_told(
    tmp_path: Path, start_python: Callable[..., Any], open_registry: Open
) -> None:
    """A writer that dies between the outbox and the commit has done nothing."""
    place = str(tmp_path / "registry")
    registry = open_registry(where=place)
    registry.register_version("qa", {"a": 1}, version="v1")
    code = """
        import os, sys
        from dspy_observe.registry import SignatureRegistry
        from dspy_observe.registry.stores import disk
        kept = disk.replace
        def replace(path, content):
            if path.suffix == ".yml":
                os._exit(7)
            return kept(path, content)
        disk.replace = replace
        registry = SignatureRegistry(sys.argv[1])
        registry.subscribe("*", lambda event: None)
        registry.deploy_version("qa", "v1")
    """
    process = start_python(code, place)
    process.communicate(timeout=60)
    assert process.returncode == 7
    assert list(Path(place, "outbox").rglob("*.json"))
    events: list[Any] = []
    registry.subscribe("*", events.append)
    assert events == []
    assert registry.pointer("qa") is None
    assert not [path for path in Path(place, "outbox").rglob("*") if path.is_file()]


def test_leftovers_of_dead_writers_are_swept(tmp_path: Path) -> None:
    """Half-written files go at the next write, and programs that nothing refers to at the next clean-up."""
    registry = SignatureRegistry(tmp_path / "registry")
    registry.register_version("qa", {"a": 1})
    spare = tmp_path / "registry" / "signatures" / ".qa.yml.abcd.tmp"
    spare.write_text("half", encoding="utf-8")
    blob = tmp_path / "registry" / "programs" / ("0" * 64 + ".json")
    blob.parent.mkdir(exist_ok=True)
    blob.write_text("{}", encoding="utf-8")
    other = SignatureRegistry(tmp_path / "registry")
    assert other.list_signatures() == ["qa"]
    other.register_version("qa", {"a": 2})
    assert not spare.exists()
    assert other.collect_programs() == 1
    assert not blob.exists()


def yml(registry: Path) -> Path:
    """The file of the signature."""
    return registry / "signatures" / "qa.yml"


@pytest.fixture
def folder(tmp_path: Path, fill: Callable[..., None]) -> Path:
    """A file registry with v1 deployed and v2."""
    registry = SignatureRegistry(tmp_path / "registry")
    fill(registry, "v1", "v2")
    registry.deploy_version("qa", "v1")
    registry.update_performance_score("qa", "v1", 0.5)
    return tmp_path / "registry"


def test_07_damaged_content_is_refused_and_nothing_else(folder: Path) -> None:
    """A changed letter in one version: it is named, cannot be deployed, and the rest goes on."""
    text = yml(folder).read_text(encoding="utf-8")
    yml(folder).write_text(text.replace("Answer as v2.", "Answer as V2."), encoding="utf-8")
    registry = SignatureRegistry(folder)
    digits = registry.list_versions("qa")[1].version_hash
    with pytest.raises(CorruptVersion) as caught:
        registry.deploy_version("qa", "v2")
    assert caught.value.version_hash == digits
    with pytest.raises(CorruptVersion):
        registry.get_version("qa", "v2")
    assert registry.get_deployed_version("qa").version == "v1"
    assert registry.get_version("qa", "v1").configuration == {"instruction": "Answer as v1."}


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ('version: "v2"', "version: 1.10", "version has to be a text"),
        ('version: "v2"', 'version: "v1"', "stands here twice"),
        ("  author: ", '  version: "x"\n  author: ', "twice"),
        ("generation: 1", "generation: soon", "whole number"),
        ("generation: 1", "generation: 0", "generation has to be from 1"),
        ('environment: "production"', 'environment: "../x"', "environment has to be a name"),
        ("next_sequence: 3", "next_sequence: 0", "next_sequence has to be from 1"),
        ('"v1"\n  version_hash', '"v7"\n  version_hash', "is not here"),
        ("configuration:", "configuration: !!python/object/apply:os.system [x]\n  c:", "tag"),
        ("metadata: {}", "metadata: &a {}", "anchors"),
        ("metadata: {}", "metadata: {x: *a}", "alias"),
        ("metadata: {}", "metadata: {x: {y: 12345678901234567890}}", "64 bits"),
        ("format: 1", "format: 9", "format"),
        ("format: 1", "format: 1\nnew_thing: 2", "new_thing"),
        ('signature: "qa"', 'signature: "other"', "named after"),
        ('at: "2', "at: 2", "ISO 8601"),
        ("versions:\n", "versions:\n- 7\n", "mapping"),
        ("sequence: 2", "sequence: 7", "sequence"),
        ("metadata: {}", "metadata: {" + "x: {" * 70 + "}" * 71, "nested"),
        ("format: 1", "format: 1\n---\nformat: 1", "second document"),
        ("format: 1", "format: [1", "expected"),
    ],
)
def test_11_12_hand_made_mistakes_name_file_and_line(folder: Path, before: str, after: str, told: str) -> None:
    """Every one is an error at its line, never another value; and a correct file works again at once."""
    good = yml(folder).read_text(encoding="utf-8")
    assert before in good
    registry = SignatureRegistry(folder)
    registry.list_versions("qa")
    bad = good.replace(before, after, 1)
    yml(folder).write_text(bad, encoding="utf-8")
    with pytest.raises(CorruptRegistry, match=told) as caught:
        registry.list_versions("qa")
    assert caught.value.file == str(yml(folder))
    assert caught.value.line is not None
    assert abs(caught.value.line - 1 - good[: good.index(before)].count("\n")) <= 2
    with pytest.raises(CorruptRegistry):
        registry.register_version("qa", {"a": 1})
    assert yml(folder).read_text(encoding="utf-8") == bad
    yml(folder).write_text(good, encoding="utf-8")
    assert len(registry.list_versions("qa")) == 2


def test_11_sensible_edits_by_hand_are_taken(folder: Path) -> None:
    """Comments, plain texts and another order are YAML as well."""
    text = yml(folder).read_text(encoding="utf-8")
    text = text.replace('environment: "production"', "environment: production  # by hand")
    yml(folder).write_text(text.replace('"deploy"', "'deploy'").replace("program_id: null", "program_id:"), "utf-8")
    assert SignatureRegistry(folder).get_deployed_version("qa").version == "v1"


def test_12_alias_bomb_takes_no_memory(folder: Path, run_python: Callable[..., str]) -> None:
    """Refused at its first anchor, in a process that has little memory to lose."""
    bomb = "a: &a [" + ", ".join(["x"] * 9) + "]\n"
    bomb += "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(20))
    yml(folder).write_text(bomb, encoding="utf-8")
    code = """
        import sys, tracemalloc
        from dspy_observe.registry import CorruptRegistry, SignatureRegistry
        registry = SignatureRegistry(sys.argv[1])
        tracemalloc.start()  # the kernel's own peak would be that of the process that forked this one
        try:
            registry.list_versions("qa")
        except CorruptRegistry as error:
            print(error.line, tracemalloc.get_traced_memory()[1] < 50_000_000)
    """
    assert run_python(code, str(folder)).split() == ["1", "True"]


@pytest.mark.parametrize("how", ["away", "copy", "hidden"])
def test_no_program_is_deleted_while_versions_stand_where_nobody_looks(
    tmp_path: Path, fill: Callable[..., None], how: str
) -> None:
    """Signatures that are away, or in a file with an odd name, may use them; mended, what is unused goes."""
    store, place = FileStore(tmp_path), tmp_path / "signatures"
    registry = SignatureRegistry(tmp_path)
    fill(registry, "v1", "v2", signature="other")
    with store.write("qa") as txn:
        txn.set_head(Head(2, ""))
        txn.put_program("a" * 64, "{}")
        txn.put_program("b" * 64, "{}")
        txn.add_version(StoredVersion("v1", 1, "c" * 64, registry.now(), {}, {}, program_hash="a" * 64))
    odd = {"away": tmp_path / "moved", "copy": place / "qa (copy).yml", "hidden": place / ".qa.yml"}[how]
    normal = place if how == "away" else place / "qa.yml"
    normal.rename(odd)
    before = sorted(tmp_path.rglob("*.*"))
    for clean in (registry.collect_programs, lambda: RegistryManager(registry).cleanup_old_versions(keep=1)):
        with pytest.raises(CorruptRegistry, match="bring it back" if how == "away" else "rename it"):
            clean()
    assert sorted(tmp_path.rglob("*.*")) == before
    odd.rename(normal)
    assert len(registry.list_versions("other")) == 2
    assert RegistryManager(registry).cleanup_old_versions(keep=1).collected_programs == 1
    assert [path.stem for path in (tmp_path / "programs").iterdir()] == ["a" * 64]


def test_clean_up_reads_everything_before_it_cuts_anything(tmp_path: Path, fill: Callable[..., None]) -> None:
    """One damaged signature refuses the clean-up of all."""
    registry = SignatureRegistry(tmp_path)
    for name in ("aa", "bb", "cc"):
        fill(registry, "v1", "v2", "v3", signature=name)
    damaged = tmp_path / "signatures" / "bb.yml"
    content = damaged.read_bytes()
    damaged.write_bytes(b"")
    with pytest.raises(CorruptRegistry, match="bb"):
        RegistryManager(registry).cleanup_old_versions(keep=1)
    assert [len(registry.list_versions(name)) for name in ("aa", "cc")] == [3, 3]
    damaged.write_bytes(content)
    assert RegistryManager(registry).cleanup_old_versions(keep=1).cleaned_signatures == 3


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"- a\n- b\n", b"\x00" * 100, b"'"])
def test_damaged_files_are_no_unknown_signatures(folder: Path, content: bytes) -> None:
    """An empty or binary file is an error, not a signature without versions."""
    yml(folder).write_bytes(content)
    registry = SignatureRegistry(folder)
    with pytest.raises(CorruptRegistry, match=r"qa\.yml"):
        registry.get_deployed_version("qa")
    with pytest.raises(CorruptRegistry):
        registry.register_version("qa", {"a": 1})
    assert yml(folder).read_bytes() == content


def test_damaged_scores_name_their_line_and_a_torn_tail_is_cut(folder: Path) -> None:
    """What was never acknowledged is dropped; what was, and is damaged, is an error."""
    path = folder / "scores" / "qa.jsonl"
    good = path.read_text(encoding="utf-8")
    path.write_text(good + '{"commit": "x", "value"', encoding="utf-8")
    registry = SignatureRegistry(folder)
    assert len(registry.scores("qa")) == 1
    registry.update_performance_score("qa", "v1", 0.7)
    assert [one.value for one in registry.scores("qa")] == [0.5, 0.7]
    assert path.read_text(encoding="utf-8").count("\n") == 2
    path.write_text(good + good.replace("0.5", "NaN"), encoding="utf-8")
    with pytest.raises(CorruptRegistry) as caught:
        SignatureRegistry(folder).scores("qa")
    assert (caught.value.file, caught.value.line) == (str(path), 2)


def test_damaged_configuration_file(folder: Path) -> None:
    """Named at once, when the registry is opened."""
    (folder / "registry.yml").write_text("format: 1\nconfig: 7\n", encoding="utf-8")
    with pytest.raises(CorruptRegistry, match=r"registry\.yml"):
        SignatureRegistry(folder)


def test_10_copied_registry_writes_to_the_copy(folder: Path, tmp_path: Path) -> None:
    """The path is nowhere in the files."""
    shutil.copytree(folder, tmp_path / "copy")
    before = yml(folder).read_bytes()
    copy = SignatureRegistry(tmp_path / "copy")
    copy.register_version("qa", {"a": 1}, version="new")
    assert yml(folder).read_bytes() == before
    assert str(folder) not in (tmp_path / "copy" / "registry.yml").read_text(encoding="utf-8")


def test_relative_path_is_resolved_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that changes its folder does not change its registry."""
    monkeypatch.chdir(tmp_path)
    registry = SignatureRegistry("registry")
    monkeypatch.chdir("/")
    registry.register_version("qa", {"a": 1})
    assert yml(tmp_path / "registry").exists()


def in_child(work: Callable[[], None], *, user: int | None = None) -> str:
    """Do something in a forked process, as another user if need be; gives the name of what was raised, or ``ok``."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of other tests may still be there
        child = os.fork()
    if child == 0:
        try:
            if user is not None:
                os.setgid(user)
                os.setuid(user)
            work()
            name = "ok"
        except BaseException as error:  # noqa: BLE001 - its name is the result
            name = type(error).__name__
        os.write(writer, name.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        name = pipe.read()
    os.waitpid(child, 0)
    return name


@pytest.mark.parametrize("kind", ["files", "sqlite"])
def test_13_full_disk_is_its_own_error_and_changes_nothing(
    tmp_path: Path, kind: str, fill: Callable[..., None], seen: Callable[..., Any]
) -> None:
    """No more bytes than a few: registering, scoring and deploying are refused, and all is as it was."""
    place = str(tmp_path / "registry") if kind == "files" else f"sqlite:///{tmp_path / 'registry.db'}"
    with SignatureRegistry(place) as registry:
        fill(registry, "v1", "v2")
        registry.deploy_version("qa", "v1")
        registry.update_performance_score("qa", "v1", 0.5)
        before = seen(registry)
    limit = 600 if kind == "files" else 1024

    def limited(work: Callable[[SignatureRegistry], Any]) -> Callable[[], None]:
        def run() -> None:
            registry = SignatureRegistry(place)
            registry.subscribe("*", lambda event: None)
            registry.list_versions("qa")
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            work(registry)

        return run

    works = (
        lambda r: r.register_version("qa", {"text": "y" * 5000}), lambda r: r.deploy_version("qa", "v2"),
        lambda r: r.update_performance_score("qa", "v1", 0.6, dataset="d" * 200, score_id="s" * 200),
    )  # fmt: skip
    for work in works:
        assert in_child(limited(work)) == "StoreUnavailable"
        with SignatureRegistry(place) as registry:
            assert seen(registry) == before
    with SignatureRegistry(place) as registry:
        registry.deploy_version("qa", "v2")
        assert registry.get_deployed_version("qa").version == "v2"
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("kind", ["files", "sqlite"])
def test_13_read_only_folder_can_be_read_and_not_written(
    kind: str, fill: Callable[..., None], seen: Callable[..., Any]
) -> None:
    """Readers and listeners work; writers get their own error; all is as it was."""
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="dspy-observe-read-only-"))
    try:
        place = str(folder / "registry") if kind == "files" else f"sqlite:///{folder / 'registry.db'}"
        with SignatureRegistry(place) as registry:
            fill(registry, "v1")
            before = seen(registry)
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        user = NOBODY if os.geteuid() == 0 else None

        def read() -> None:
            registry = SignatureRegistry(place)
            assert [one.version for one in registry.list_versions("qa")] == ["v1"]

        def write() -> None:
            SignatureRegistry(place).deploy_version("qa", "v1")

        if kind == "files":
            assert in_child(read, user=user) == "ok"
        assert in_child(write, user=user) == "StoreUnavailable"
        assert in_child(lambda: _new(folder), user=user) == "StoreUnavailable"
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        with SignatureRegistry(place) as registry:
            assert seen(registry) == before
    finally:
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        shutil.rmtree(folder)


def _new(folder: Path) -> None:
    SignatureRegistry(folder / "new").register_version("qa", {"a": 1})


def test_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """At once."""
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(StoreUnavailable, match="no folder"):
        SignatureRegistry(tmp_path / "file")


def test_folder_that_goes_away_and_comes_back(tmp_path: Path, fill: Callable[..., None]) -> None:
    """As with a database: an error of its own while its volume is away, and nothing is made in its place."""
    place, away = tmp_path / "registry", tmp_path / "away"
    registry = SignatureRegistry(place)
    fill(registry, "v1")
    registry.deploy_version("qa", "v1")
    with SignatureRegistry(place) as reader:
        assert reader.get_deployed_version("qa").version == "v1"
        place.rename(away)
        for one in (registry, reader):
            for call in (one.get_deployed_version, one.pointer, one.rollback, one.list_versions):
                with pytest.raises(StoreUnavailable, match="volume"):
                    call("qa")
            with pytest.raises(StoreUnavailable, match="volume"):
                one.list_signatures()
        assert not place.exists()
        away.rename(place)
        assert reader.get_deployed_version("qa").version == "v1"
    registry.deploy_version("qa", "v1")
    registry.close()


def test_folder_that_another_process_made_is_missed_too(tmp_path: Path, fill: Callable[..., None]) -> None:
    """Whoever has listed its signatures once takes it for away, not for empty."""
    reader = SignatureRegistry(tmp_path / "registry")
    assert reader.list_signatures() == []
    fill(SignatureRegistry(tmp_path / "registry"), "v1")
    assert reader.list_signatures() == ["qa"]
    (tmp_path / "registry").rename(tmp_path / "away")
    with pytest.raises(StoreUnavailable, match="volume"):
        reader.list_signatures()


def test_sqlite_file_that_goes_away_and_comes_back(tmp_path: Path, fill: Callable[..., None]) -> None:
    """Nothing is registered into a file that was deleted, and no new one is made; another one is opened anew."""
    place, away = tmp_path / "registry.db", tmp_path / "away.db"
    registry = SignatureRegistry(f"sqlite:///{place}")
    fill(registry, "v1")
    registry.close()
    shutil.copy(place, tmp_path / "copy.db")
    registry.deploy_version("qa", "v1")
    place.rename(away)
    for _ in range(2):
        for call in (
            registry.list_signatures,
            lambda: fill(registry, "v2"),
            lambda: registry.deploy_version("qa", "v1"),
        ):
            with pytest.raises(StoreUnavailable, match="gone"):
                call()
    assert not place.exists()
    away.rename(place)
    assert registry.get_deployed_version("qa").version == "v1"
    registry.close()  # so that no write-ahead log is left to the other file
    (tmp_path / "copy.db").replace(place)
    with pytest.raises(StoreUnavailable, match="another one"):
        registry.get_deployed_version("qa")
    assert registry.get_deployed_version("qa") is None
    fill(registry, "v2")
    with SignatureRegistry(f"sqlite:///{place}") as other:
        assert [one.version for one in other.list_versions("qa")] == ["v1", "v2"]
    registry.close()


def test_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    """As a damaged registry, not as an empty one."""
    (tmp_path / "file.db").write_text("this is no database, and long enough to be read as one" * 30, encoding="utf-8")
    with pytest.raises(CorruptRegistry, match="not a database"):
        SignatureRegistry(f"sqlite:///{tmp_path / 'file.db'}")


def test_44_database_that_goes_away_and_comes_back(postgres: Any, fill: Callable[..., None]) -> None:
    """While it is away there is an error of its own; afterwards the same object works again."""
    registry = SignatureRegistry(RegistryConfig(registry_path=postgres.new_registry()))
    fill(registry, "v1")
    registry.deploy_version("qa", "v1")
    postgres.stop()
    try:
        for call in (registry.get_deployed_version, registry.pointer, registry.rollback):
            with pytest.raises(StoreUnavailable):
                call("qa")
    finally:
        postgres.start()
    assert registry.get_deployed_version("qa").version == "v1"
    registry.close()
