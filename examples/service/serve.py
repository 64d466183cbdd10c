"""A DSPy program as an HTTP service: metrics, traces, feedback, and the version that is deployed now.

    python examples/service/serve.py

What it shows
    FastAPI around ``LiveProgram``: rollbacks without a restart, answers kept by version, a rate limit, a circuit
    breaker, server-sent events, feedback by reference, readiness, two worker processes with one page of metrics.
What it needs
    ``pip install "dspy-observe[all]" fastapi aiolimiter pybreaker redis``. Without ``OPENAI_API_KEY`` a stand-in for
    the model answers on 127.0.0.1.
Options
    ``--host``, ``--port``, ``--workers``; the rest are the environment variables of ``settings.py``.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1]


def main() -> int:
    """Serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(description="Serve the program over HTTP.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with ExitStack() as stack:
        # Before anything imports prometheus_client, here and in the workers, which inherit it. The folder has to be
        # new: what it holds of an earlier run would be added to the counters.
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="service-metrics-"))
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        sys.path.insert(0, str(EXAMPLES))
        import uvicorn

        if not os.environ.get("OPENAI_API_KEY") and not os.environ.get("SERVICE_MODEL_URL"):
            from dspy_observe.demo.model import StandIn
            from dspy_observe.openai_server import OpenAIServer

            model = stack.enter_context(OpenAIServer(StandIn(pace=0.2)))
            os.environ["SERVICE_MODEL_URL"] = model.base_url
            print(f"no OPENAI_API_KEY: a stand-in for the model answers at {model.base_url}", flush=True)
        uvicorn.run(
            "service.app:app", app_dir=str(EXAMPLES), host=options.host, port=options.port, workers=options.workers,
            access_log=False, timeout_graceful_shutdown=30,
        )  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
