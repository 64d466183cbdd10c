"""Dashboards, rules and alerts as code: conventions and options in, Grafana JSON and rule files out."""
