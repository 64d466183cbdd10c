"""Instruments: one set for each registry, bounded labels, our own port, and several processes that add up.

Long: one file holds all tests of one module.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
from prometheus_client.parser import text_string_to_metric_families

from dspy_observe import ConfigurationError, safety
from dspy_observe.conventions import LATENCY_BUCKETS_S, SCORE_BUCKETS, TTFT_BUCKETS_S
from dspy_observe.metrics import Metrics, Timing, instruments, render, serve

ROOT = Path(__file__).parents[1]


@pytest.fixture
def registry() -> CollectorRegistry:
    """A registry of the test's own."""
    return CollectorRegistry()


def values(page: str, name: str) -> dict[tuple[tuple[str, str], ...], float]:
    """All samples of one name on a metrics page, by their labels without the process id."""
    found: dict[tuple[tuple[str, str], ...], float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == name:
                found[tuple(sorted(sample.labels.items()))] = sample.value
    return found


# --- one process -----------------------------------------------------------------------------------------------------


def test_one_set_of_instruments_for_each_registry(registry: CollectorRegistry) -> None:
    """Five callbacks on one registry share them; the first options win."""
    first = instruments(Metrics(collector_registry=registry, max_label_values=3))
    assert instruments(Metrics(collector_registry=registry, max_label_values=50)) is first
    assert instruments(Metrics(collector_registry=CollectorRegistry())) is not first
    assert instruments(Metrics()) is instruments(Metrics(collector_registry=REGISTRY))


def test_a_name_that_is_taken_is_a_configuration_error(registry: CollectorRegistry) -> None:
    """The application's own metric stays."""
    theirs = Counter("dspy_requests", "mine", registry=registry)
    with pytest.raises(ConfigurationError, match="registry of its own") as caught:
        instruments(Metrics(collector_registry=registry))
    assert caught.value.field == "Metrics.collector_registry"
    theirs.inc()
    assert registry.get_sample_value("dspy_requests_total") == 1


def test_histograms_have_their_buckets(registry: CollectorRegistry) -> None:
    """Durations those of the options, first chunks and scores their own."""
    own = instruments(Metrics(collector_registry=registry, latency_buckets_s=(0.5, 2)))
    own["dspy_lm_duration_seconds"].child("p", "v", "m", "ok").observe(1.0)
    own["dspy_lm_time_to_first_token_seconds"].child("p", "v", "m").observe(1.0)
    own["dspy_score"].child("p", "v", "stable", "user").observe(1.0)
    page = render(registry)[0].decode()

    def bounds(name: str) -> list[float]:
        return [float(dict(labels)["le"]) for labels in values(page, f"{name}_bucket")]

    assert bounds("dspy_lm_duration_seconds") == [0.5, 2, float("inf")]
    assert bounds("dspy_lm_time_to_first_token_seconds") == [*TTFT_BUCKETS_S, float("inf")]
    assert bounds("dspy_score") == [*SCORE_BUCKETS, float("inf")]
    assert Metrics().latency_buckets_s == LATENCY_BUCKETS_S


def test_values_beyond_the_ceiling_are_booked_as_other_and_none_is_lost(registry: CollectorRegistry) -> None:
    """Values that were admitted before stay themselves; the ceiling counts each label by itself, for all metrics."""
    own = instruments(Metrics(collector_registry=registry, max_label_values=3))
    family = own["dspy_requests_total"]
    for number in range(10):
        family.child(f"program {number}", "v1", "m", "ok").inc()
    family.child("program 0", "v1", "m", "ok").inc()
    found = values(render(registry)[0].decode(), "dspy_requests_total")
    by_program = {dict(labels)["program"]: value for labels, value in found.items()}
    assert by_program == {"program 0": 2, "program 1": 1, "program 2": 1, "other": 7}
    own["dspy_cost_usd_total"].child("program 9", "v1", "m").inc()
    costs = values(render(registry)[0].decode(), "dspy_cost_usd_total")
    assert [dict(labels)["program"] for labels in costs] == ["other"]
    # What overflows is without number and must not be remembered either.
    for number in range(1_000):
        family.child(f"late {number}", "v1", "m", "ok").inc()
    assert len(family._children) <= 4


def test_the_ceiling_holds_under_threads(registry: CollectorRegistry) -> None:
    """Eight threads bring four hundred programs at once."""
    own = instruments(Metrics(collector_registry=registry, max_label_values=10))

    def book(number: int) -> None:
        own["dspy_requests_total"].child(f"p{number}", "v", "m", "ok").inc()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(book, range(400)))
    found = values(render(registry)[0].decode(), "dspy_requests_total")
    assert len(found) == 11
    assert sum(found.values()) == 400


def test_unknown_values_have_a_name_and_take_no_place_under_the_ceiling(registry: CollectorRegistry) -> None:
    """``None`` and the empty text: an empty label would vanish from selectors."""
    own = instruments(Metrics(collector_registry=registry, max_label_values=1))
    own["dspy_requests_total"].child(None, "", None, "ok").inc()
    own["dspy_requests_total"].child("p", "v", "m", "ok").inc()
    found = values(render(registry)[0].decode(), "dspy_requests_total")
    assert {tuple(dict(labels)[name] for name in ("program", "version", "model")) for labels in found} == {
        ("unknown",) * 3,
        ("p", "v", "m"),
    }


def test_label_values_are_redacted(registry: CollectorRegistry) -> None:
    """A model or tool name may hold an address."""
    own = instruments(Metrics(collector_registry=registry))
    own["dspy_unmetered_requests_total"].child("ft:alice@example.com").inc()
    page = render(registry)[0].decode()
    assert "alice" not in page
    assert "&lt;EMAIL&gt;" in page or "<EMAIL>" in page


def test_names_of_programs_and_versions_are_the_registrys(registry: CollectorRegistry) -> None:
    """A version that looks like an address stays what alerts compare it with; a credential goes all the same."""
    key = "ghp_EXAMPLE7NotARealTokenAtAll0123456789"
    for version in ("1.2.3.4", "1.2.3.5", key):
        instruments(Metrics(collector_registry=registry))["dspy_deployed_version_info"].child("qa", "e", version).set(1)
    found = {dict(labels)["version"] for labels in values(render(registry)[0].decode(), "dspy_deployed_version_info")}
    assert found == {"1.2.3.4", "1.2.3.5", "<API_KEY>"}


@pytest.mark.parametrize("name", ["dspy_score", "dspy_deployed_version_info", "dspy_tool_duration_seconds"])
def test_a_label_value_that_cannot_be_encoded_costs_no_page(registry: CollectorRegistry, name: str) -> None:
    """A lone surrogate, as a cut text has it, becomes a question mark."""
    family = instruments(Metrics(collector_registry=registry))[name]
    family.child(*(f"{label} \ud83d" for label in family.labels))
    for accept in ("", "application/openmetrics-text"):
        assert b'version="version ?"' in render(registry, accept)[0]


def test_the_instruments_of_a_registry_go_with_it() -> None:
    """Counting our own errors does not keep them alive."""
    made = CollectorRegistry()
    gone = weakref.ref(instruments(Metrics(collector_registry=made)))
    del made
    gc.collect()
    assert gone() is None


def test_a_series_that_is_removed_is_gone_and_may_come_back(registry: CollectorRegistry) -> None:
    """Removing what is not there does nothing."""
    family = instruments(Metrics(collector_registry=registry))["dspy_deployed_version_info"]
    family.remove("p", "prod", "v0")
    family.child("p", "prod", "v1").set(1)
    family.remove("p", "prod", "v1")
    assert values(render(registry)[0].decode(), "dspy_deployed_version_info") == {}
    family.child("p", "prod", "v1").set(1)
    assert list(values(render(registry)[0].decode(), "dspy_deployed_version_info").values()) == [1]


def test_swallowed_errors_are_counted_by_site(registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those from before the registry was known."""
    monkeypatch.delenv("DSPY_OBSERVE_STRICT", raising=False)
    site = f"test.early.{os.urandom(4).hex()}"
    safety.swallowed(site, ValueError())
    instruments(Metrics(collector_registry=registry))
    safety.swallowed(site, ValueError(), count=2)
    assert registry.get_sample_value("dspy_observe_internal_errors_total", {"site": site}) == 3


# --- the port --------------------------------------------------------------------------------------------------------


def test_no_port_is_opened_unless_asked(registry: CollectorRegistry) -> None:
    """Closing what was never opened does nothing."""
    endpoint = serve(Metrics(collector_registry=registry))
    assert endpoint.url is None
    endpoint()


def test_the_port_is_scraped_on_loopback_and_closed_again(registry: CollectorRegistry) -> None:
    """A real scrape, in both formats; after closing, the port is free."""
    instruments(Metrics(collector_registry=registry))["dspy_requests_total"].child("p", "v", "m", "ok").inc()
    endpoint = serve(Metrics(port=0, collector_registry=registry))
    assert endpoint.url is not None
    assert endpoint.url.startswith("http://127.0.0.1:")
    try:
        with urllib.request.urlopen(endpoint.url, timeout=10) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain")
            assert list(values(answer.read().decode(), "dspy_requests_total").values()) == [1]
        asked = urllib.request.Request(endpoint.url, headers={"Accept": "application/openmetrics-text"})
        with urllib.request.urlopen(asked, timeout=10) as answer:
            assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
    finally:
        endpoint()
    port = int(endpoint.url.split(":")[2].split("/")[0])
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))


def test_a_taken_port_is_a_configuration_error(registry: CollectorRegistry) -> None:
    """It names the field and the port."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=str(port)) as caught:
            serve(Metrics(port=port, collector_registry=registry))
    assert caught.value.field == "Metrics.port"


def test_an_address_that_is_not_ours_is_a_configuration_error(registry: CollectorRegistry) -> None:
    """Nobody has 192.0.2.0/24 (https://www.rfc-editor.org/rfc/rfc5737)."""
    with pytest.raises(ConfigurationError, match=r"192\.0\.2\.1"):
        serve(Metrics(port=0, host="192.0.2.1", collector_registry=registry))


def test_a_host_that_cannot_be_listened_on_is_blamed_itself(registry: CollectorRegistry) -> None:
    """Another port would not help."""
    for host in ("192.0.2.1", "nope.invalid"):
        with pytest.raises(ConfigurationError) as caught:
            serve(Metrics(port=0, host=host, collector_registry=registry))
        assert caught.value.field == "Metrics.host"


# --- several processes -----------------------------------------------------------------------------------------------

WORKERS = '''
"""Two workers run programs and each holds one call open; the parent renders, one is killed, the other ends."""
import json, os, signal, sys, warnings
import dspy, dspy_observe
from dspy_observe import Metrics, RegistryEvent
from dspy_observe.metrics import render, worker_exited
from dspy_observe.testing import offline_lm

warnings.simplefilter("error", UserWarning)

class Waits(dspy.Module):
    def forward(self):
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        return dspy.Prediction(a=1)

def work(calls):
    observer = dspy_observe.configure(tracing=False, logs=False, metrics=Metrics(port=PORT))
    dspy.configure(lm=offline_lm({"answer": "42"}))
    program = observer.track(dspy.Predict("question -> answer"), name="qa", version="v1")
    for _ in range(calls):
        program(question="?")
    if calls == 3:
        for number in (1, 2):
            observer.happened(RegistryEvent("dspy.registry.deploy_complete", "qa", 1.0, "prod", f"v{number}"))
    Waits()()

def page(accept=""):
    return render(accept=accept)[0].decode()

PORT = int(sys.argv[1])
ready, go = os.pipe(), os.pipe()
pids = []
for calls in (3, 4):
    pid = os.fork()
    if pid == 0:
        os.close(go[1])  # so that a worker whose parent is gone ends
        try:
            work(calls)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os.write(ready[1], b"!")
            os._exit(1)
        os._exit(0)
    pids.append(pid)
if [os.read(ready[0], 1) for _ in pids] != [b"x", b"x"]:
    sys.exit("a worker failed")
pages = {"both": page(), "openmetrics": page("application/openmetrics-text")}
os.kill(pids[0], signal.SIGKILL)
os.waitpid(pids[0], 0)
worker_exited(pids[0])
pages["one"] = page()
os.write(go[1], b"x")
_, status = os.waitpid(pids[1], 0)
worker_exited(pids[1])
pages["none"] = page()
print(json.dumps({"pages": pages, "status": status}))
'''


def test_workers_add_up_and_gauges_of_exited_ones_go(tmp_path: Path) -> None:
    """Counters survive their worker, gauges do not; a taken port is left to the worker that has it."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "DSPY_OBSERVE_STRICT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WORKERS, str(port)],
        capture_output=True, text=True, check=False, cwd=ROOT, env=environment, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr, done.stderr
    told = json.loads(done.stdout)
    assert told["status"] == 0, done.stderr
    pages = told["pages"]
    for page in (pages["both"], pages["one"], pages["none"]):
        assert sum(values(page, "dspy_requests_total").values()) == 7
        assert sum(values(page, "dspy_tokens_total").values()) == 7 * 15
        counts = values(page, "dspy_program_duration_seconds_count")
        assert counts[(("program", "qa"), ("role", "stable"), ("status", "ok"), ("version", "v1"))] == 7

    def in_flight(page: str) -> float:
        return values(page, "dspy_in_flight_calls").get((("kind", "module"),), 0)

    assert [in_flight(pages[name]) for name in ("both", "one", "none")] == [2, 1, 0]
    assert [sum(values(pages[n], "dspy_observe_open_calls").values()) for n in ("both", "one", "none")] == [2, 1, 0]
    deployed = values(pages["both"], "dspy_deployed_version_info")
    versions = {dict(labels)["version"]: value for labels, value in deployed.items()}
    assert versions == {"v1": 0, "v2": 1}
    assert pages["openmetrics"].endswith("# EOF\n")


APP = '''
"""A web application with a program; every worker serves the metrics of all."""
import os, time, threading
from pathlib import Path
import dspy, dspy_observe
from dspy_observe.metrics import render
from dspy_observe.testing import offline_lm

MEETING = Path(os.environ["MEETING"])
dspy.configure(lm=offline_lm({"answer": "42"}))
observer = dspy_observe.configure(service="web", tracing=False, logs=False)
program = observer.track(dspy.Predict("question -> answer"), name="qa", version="v1")

def application(environ, start_response):
    if environ["PATH_INFO"] == "/metrics":
        body, content_type = render(accept=environ.get("HTTP_ACCEPT", ""))
    else:
        program(question="?")
        (MEETING / str(os.getpid())).touch()
        give_up = time.monotonic() + 30
        while len(list(MEETING.iterdir())) < 2 and time.monotonic() < give_up:  # until the other worker is here too
            time.sleep(0.01)
        body, content_type = str(os.getpid()).encode(), "text/plain"
    start_response("200 OK", [("Content-Type", content_type)])
    return [body]
'''
CONFIG = """
from dspy_observe.metrics import worker_exited

def child_exit(server, worker):
    worker_exited(worker.pid)
"""


def fetch(url: str, accept: str = "") -> str:
    """GET a page."""
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": accept}), timeout=40) as answer:
        return str(answer.read().decode())


def wait_for_port(process: subprocess.Popen[bytes], port: int) -> None:
    """Wait until somebody listens."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("the server did not listen in time")


@pytest.mark.e2e
def test_a_real_server_with_two_workers_serves_the_sum(tmp_path: Path) -> None:
    """Two requests that wait for each other are served by two processes; either one's page counts both."""
    for name in ("prom", "meeting"):
        (tmp_path / name).mkdir()
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "gunicorn.conf.py").write_text(CONFIG)
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    environment = {
        **os.environ,
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "prom"),
        "MEETING": str(tmp_path / "meeting"),
        "PYTHONPATH": str(ROOT),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "--preload", "--workers", "2", "--bind", f"127.0.0.1:{port}", "app"],
        cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    base = f"http://127.0.0.1:{port}"
    try:
        wait_for_port(process, port)
        with ThreadPoolExecutor(2) as pool:
            pids = list(pool.map(fetch, [f"{base}/ask"] * 2))
        assert len(set(pids)) == 2
        for _ in range(4):
            page = fetch(f"{base}/metrics")
            assert sum(values(page, "dspy_requests_total").values()) == 2
            assert sum(values(page, "dspy_program_duration_seconds_count").values()) == 2
        assert fetch(f"{base}/metrics", "application/openmetrics-text").endswith("# EOF\n")
        gauges = list((tmp_path / "prom").glob("gauge_livesum_*.db"))
        assert any(path.stem.endswith(pids[0]) for path in gauges)
        os.kill(int(pids[0]), signal.SIGKILL)
        deadline = time.monotonic() + 20
        while any(path.stem.endswith(pids[0]) for path in (tmp_path / "prom").glob("gauge_livesum_*.db")):
            assert time.monotonic() < deadline, "the gauges of the killed worker stayed"
            time.sleep(0.05)
        assert sum(values(fetch(f"{base}/metrics"), "dspy_requests_total").values()) == 2
    finally:
        process.send_signal(signal.SIGINT)  # gunicorn's quick way down; SIGTERM waits half a minute for its workers
        try:
            process.wait(20)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)


def test_multiprocess_pages_need_no_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the directory set, a page is read from the files of the workers, whichever registry is asked for."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    body, content_type = render(CollectorRegistry())
    assert body == b""
    assert content_type.startswith("text/plain")


@pytest.mark.parametrize("known", [True, False])
def test_every_observation_is_in_its_bucket_and_in_the_sum(known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On, below and above each bound, whether or not prometheus_client keeps its numbers where we know them."""
    registry = CollectorRegistry()
    ours = Histogram("ours", "what we book", ["a"], registry=registry, buckets=(0.1, 1.0, 10.0)).labels("x")
    theirs = Histogram("theirs", "what it books", ["a"], registry=registry, buckets=(0.1, 1.0, 10.0)).labels("x")
    timing = Timing(ours, (0.1, 1.0, 10.0))
    if not known:
        monkeypatch.setattr(timing, "_add", None)
    assert (timing._add is not None) is known
    for value in (0.0, 0.05, 0.1, 0.100001, 1.0, 5, 10.0, 10.1, 1e9):
        timing.observe(value)
        theirs.observe(value)
    booked = {
        name: [(s.name.removeprefix(name), s.labels, s.value) for s in metric.samples if "created" not in s.name]
        for metric in registry.collect()
        for name in (metric.name,)
    }
    assert booked["ours"] == booked["theirs"]
