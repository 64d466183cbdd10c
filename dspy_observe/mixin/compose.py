"""``compose.yaml``: Prometheus, Alertmanager, Grafana, the receiver and the example service, brought up together."""

from __future__ import annotations

from typing import Any, Final

from dspy_observe.mixin.options import DashboardOptions, duration
from dspy_observe.mixin.prometheus import dump

__all__ = ["compose_yaml"]

_IMAGES: Final = {
    "prometheus": "prom/prometheus:v3.5.0",
    "alertmanager": "prom/alertmanager:v0.28.1",
    "grafana": "grafana/grafana:12.1.0",
}
_DOCKERFILE: Final = """\
FROM python:3.11-slim
COPY . /src
RUN pip install --no-cache-dir -c /src/constraints.txt '/src[all]' fastapi aiolimiter pybreaker redis
WORKDIR /src/examples
"""


def compose_yaml(o: DashboardOptions) -> str:
    """The file. Ports are published on this machine only."""
    services = {
        "prometheus": _prometheus(o),
        "alertmanager": _alertmanager(),
        "grafana": _grafana(),
        "receiver": _receiver(),
        "service": _service(),
    }
    made = {
        "name": "dspy-observe",
        "services": services,
        "secrets": {"receiver-token": {"file": "./secrets/receiver-token"}},
        "volumes": {"registry": {}, "prometheus": {}, "grafana": {}},
    }
    return dump(
        made,
        "Everything together. Made by `dspy-observe dashboards generate`.",
        "",
        "mkdir -p secrets && python3 -c 'import secrets; print(secrets.token_hex(32))' > secrets/receiver-token",
        "OPENAI_API_KEY=... docker compose up --build",
        "",
        "Grafana http://127.0.0.1:3000 · Prometheus http://127.0.0.1:9090 · Alertmanager http://127.0.0.1:9093",
        "The receiver and the service are built from a checkout; DSPY_OBSERVE_SOURCE says where it is.",
    )


def _prometheus(o: DashboardOptions) -> dict[str, Any]:
    return {
        "image": _IMAGES["prometheus"],
        "command": [
            "--config.file=/etc/prometheus/prometheus.yml",
            "--storage.tsdb.path=/prometheus",
            "--enable-feature=exemplar-storage",
            f"--rules.alert.resend-delay={duration(o.resend_delay_s)}",
        ],
        "volumes": ["./prometheus:/etc/prometheus:ro", "prometheus:/prometheus"],
        "ports": ["127.0.0.1:9090:9090"],
        "restart": "unless-stopped",
    }


def _alertmanager() -> dict[str, Any]:
    return {
        "image": _IMAGES["alertmanager"],
        "command": [
            "--config.file=/etc/alertmanager/alertmanager.yml",
            "--storage.path=/alertmanager",
            "--cluster.listen-address=",
        ],
        "volumes": ["./alertmanager/alertmanager.yml:/etc/alertmanager/alertmanager.yml:ro"],
        "secrets": [{"source": "receiver-token", "target": "/etc/alertmanager/secrets/receiver-token"}],
        "ports": ["127.0.0.1:9093:9093"],
        "restart": "unless-stopped",
    }


def _grafana() -> dict[str, Any]:
    return {
        "image": _IMAGES["grafana"],
        "environment": {
            "GF_SECURITY_ADMIN_PASSWORD": "${GRAFANA_PASSWORD:-admin}",
            "GF_ANALYTICS_REPORTING_ENABLED": "false",
        },
        "volumes": [
            "./provisioning:/etc/grafana/provisioning:ro",
            "./grafana:/var/lib/grafana/dashboards/dspy:ro",
            "grafana:/var/lib/grafana",
        ],
        "ports": ["127.0.0.1:3000:3000"],
        "depends_on": ["prometheus"],
        "restart": "unless-stopped",
    }


def _built() -> dict[str, Any]:
    return {
        "build": {"context": "${DSPY_OBSERVE_SOURCE:-..}", "dockerfile_inline": _DOCKERFILE},
        "volumes": ["registry:/registry"],
        "restart": "unless-stopped",
    }


def _receiver() -> dict[str, Any]:
    return _built() | {
        "command": [
            "dspy-observe", "serve", "--registry", "/registry", "--listen", "0.0.0.0:9095",
            "--token-file", "/run/secrets/receiver-token", "--prometheus-url", "http://prometheus:9090",
        ],
        "secrets": ["receiver-token"],
        "ports": ["127.0.0.1:9095:9095"],
    }  # fmt: skip


def _service() -> dict[str, Any]:
    return _built() | {
        "command": ["python", "service/serve.py", "--host", "0.0.0.0"],  # noqa: S104 - in its container
        "environment": {
            "DSPY_OBSERVE_METRICS_PORT": "9464",
            "DSPY_OBSERVE_METRICS_HOST": "0.0.0.0",  # noqa: S104
            "DSPY_OBSERVE_REGISTRY": "/registry",
            "OPENAI_API_KEY": "${OPENAI_API_KEY:-}",
        },
        "ports": ["127.0.0.1:8000:8000"],
        "depends_on": ["receiver"],
    }
