"""All files of a dashboards folder: options in, contents by path out. Whoever calls it writes them."""

from __future__ import annotations

from dspy_observe.mixin import alertmanager, prometheus, provisioning
from dspy_observe.mixin.boards import boards
from dspy_observe.mixin.cases import test_files
from dspy_observe.mixin.compose import compose_yaml
from dspy_observe.mixin.grafana import dashboard_json
from dspy_observe.mixin.options import DashboardOptions
from dspy_observe.mixin.runbook import runbook_md

__all__ = ["generate"]


def generate(o: DashboardOptions) -> dict[str, str]:
    """Every file's content by its path inside the folder.

    Args:
        o: Thresholds, windows, selectors and addresses.
    """
    return {
        **{f"grafana/{board.uid.replace('dspy-observe', 'dspy')}.json": dashboard_json(board) for board in boards(o)},
        "prometheus/rules.yml": prometheus.rules_yml(o),
        "prometheus/alerts.yml": prometheus.alerts_yml(o),
        "prometheus/prometheus.yml": prometheus.configuration(o),
        **{f"prometheus/tests/{name}": text for name, text in test_files(o).items()},
        "alertmanager/alertmanager.yml": alertmanager.configuration(o),
        "provisioning/datasources/prometheus.yml": provisioning.datasources_yml(o),
        "provisioning/dashboards/dspy.yml": provisioning.dashboards_yml(),
        "compose.yaml": compose_yaml(o),
        "options.toml": o.to_toml(),
        "runbook.md": runbook_md(o),
    }
