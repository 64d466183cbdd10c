"""What Grafana reads at its start: the data source, and where the dashboards lie."""

from __future__ import annotations

from typing import Any

from dspy_observe.mixin.options import DashboardOptions, duration
from dspy_observe.mixin.prometheus import dump

__all__ = ["dashboards_yml", "datasources_yml"]


def datasources_yml(o: DashboardOptions) -> str:
    """``provisioning/datasources/prometheus.yml``; exemplars lead to the traces' data source, where there is one."""
    source: dict[str, Any] = {
        "name": "Prometheus",
        "uid": "prometheus",
        "type": "prometheus",
        "access": "proxy",
        "url": "http://prometheus:9090",
        "isDefault": True,
        "jsonData": {
            "httpMethod": "POST",
            "timeInterval": duration(o.scrape_interval_s),  # $__rate_interval is at least four of these
            "exemplarTraceIdDestinations": [{"name": "trace_id", "datasourceUid": o.trace_datasource_uid}],
        },
    }
    return dump({"apiVersion": 1, "datasources": [source]}, "Made by `dspy-observe dashboards generate`.")


def dashboards_yml() -> str:
    """``provisioning/dashboards/dspy.yml``."""
    provider = {
        "name": "dspy-observe",
        "folder": "DSPy",
        "folderUid": "dspy-observe",
        "type": "file",
        "allowUiUpdates": False,
        "options": {"path": "/var/lib/grafana/dashboards/dspy"},
    }
    return dump({"apiVersion": 1, "providers": [provider]}, "Made by `dspy-observe dashboards generate`.")
