"""The dashboards by key: titles, stable uids, and the addresses under which alerts open them."""

from __future__ import annotations

from typing import Final

from dspy_observe.mixin.options import DashboardOptions

__all__ = ["TITLES", "links", "uid"]

TITLES: Final = {
    "overview": "DSPy / Overview",
    "lm": "DSPy / LM, tokens and cost",
    "modules": "DSPy / Modules, adapters and tools",
    "quality": "DSPy / Quality and canary",
    "registry": "DSPy / Registry and rollbacks",
    "self": "DSPy / Privacy and self",
}
"""In the order of their links."""


def uid(key: str) -> str:
    """The uid of a dashboard, which never changes, so that links and stars hold."""
    return f"dspy-observe-{key}"


def links(o: DashboardOptions) -> dict[str, str]:
    """For each dashboard, an address with Prometheus' templates in it: the alert's own program and version."""
    filled = "".join(
        f"{{{{ with $labels.{label} }}}}&var-{label}={{{{ . | urlquery }}}}{{{{ end }}}}"
        for label in ("program", "version", "model")
    )
    return {key: f"{o.grafana_url.rstrip('/')}/d/{uid(key)}?from=now-3h&to=now{filled}" for key in TITLES}
