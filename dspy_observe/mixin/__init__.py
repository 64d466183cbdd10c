"""Dashboards, rules and alerts as code: conventions and options in, Grafana JSON and rule files out.

``generate(DashboardOptions())`` gives every file's content by its path; ``dspy-observe dashboards generate`` writes it.
Pure: nothing here reads or writes a file. The way through: ``options`` (all numbers), ``promql`` (pieces of queries),
``rules``, ``regressions`` and ``alerts`` (what Prometheus evaluates), ``scenes``, ``cases`` and ``cases_versions`` (its
unit tests), ``grafana`` and ``boards`` (dashboards), ``runbook``, ``alertmanager``, ``prometheus``, ``provisioning``,
``compose`` (the other files), ``checking`` (what has to hold for a folder of them).
"""

from __future__ import annotations

from dspy_observe.mixin.files import generate
from dspy_observe.mixin.options import BurnWindow, DashboardOptions

__all__ = ["BurnWindow", "DashboardOptions", "generate"]
