"""The optimizers' example: its figures are the bill, its versions are registered, its trials are one trace each."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from dspy_observe.registry import SignatureRegistry

ROOT = Path(__file__).parents[1]


class Collector:
    """An OTLP collector that keeps the spans."""

    def __init__(self) -> None:
        spans = self.spans = defaultdict[str, list[tuple[str, bool]]](list)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                if self.path.endswith("/traces"):
                    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                        for scope in resource.scope_spans:
                            for span in scope.spans:
                                spans[span.trace_id.hex()].append((span.name, not span.parent_span_id))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def collector() -> Iterator[Collector]:
    """Listening on loopback."""
    made = Collector()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_trials_costs_versions_and_traces_agree(tmp_path: Path, collector: Collector) -> None:
    """Lines add up to the bill; three versions have their scores, the best is deployed; each optimizer is one trace."""
    location = f"sqlite:///{tmp_path}/registry.db"
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "optimizer_run.py"), "--trials", "2", "--train", "9", "--dev", "6",
         "--registry", location],
        cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "DSPY_CACHEDIR": str(tmp_path / "cache"),
             "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = [
        (label.strip(), int(calls), int(tokens), float(cost))
        for label, calls, tokens, cost in re.findall(
            r"^  (.+?) +(\d+) calls +(\d+) tokens +\$([\d.]+)$", done.stdout, re.MULTILINE
        )
    ]
    trials = [row for row in figures if row[0].startswith("trial")]
    (few, mipro) = [row for row in figures if row[0] == "in all"]
    assert len(trials) == 3  # the program as it is, and two
    others = next(row for row in figures if row[0] == "demos and proposals")
    for column in (1, 2):
        assert mipro[column] == sum(row[column] for row in (*trials, others))
    total = re.search(r"All in all (\d+) calls +(\d+) tokens +\$", done.stdout)
    billed = re.search(r"The server billed (\d+) calls, (\d+) tokens", done.stdout)
    assert total is not None
    assert billed is not None
    assert total.groups() == billed.groups()
    evaluations = 3 * 6  # each version on the development set, outside of the optimizers
    assert int(total[1]) == few[1] + mipro[1] + evaluations
    with SignatureRegistry(location) as registry:
        versions = registry.list_versions("ticket-routing")
        assert [version.metadata.get("optimizer") for version in versions] == [None, "BootstrapFewShot", "MIPROv2"]
        scores = [version.performance_score or 0.0 for version in versions]
        assert scores[0] == 0.0 < max(scores)
        assert [version.is_deployed for version in versions].index(True) == scores.index(max(scores))
        on_dev = [score.version for score in registry.scores("ticket-routing") if score.dataset == "dev"]
        assert len(set(on_dev)) == len(on_dev) == 3
    names = dict(re.findall(r"^(\w+)  trace (\w{32})$", done.stdout, re.MULTILINE))
    assert set(names) == {"BootstrapFewShot", "MIPROv2"}
    spans = collector.spans[names["MIPROv2"]]
    assert [name for name, is_root in spans if is_root] == ["compile ticket-routing"]
    assert sum(name.startswith("chat ") for name, _ in spans) == mipro[1]
    assert sum(name.startswith("evaluate ") for name, _ in spans) == 3
