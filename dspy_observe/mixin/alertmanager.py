"""``alertmanager/alertmanager.yml``: rollback alerts to the receiver at once, everything to people in their own time.

Accepted by Alertmanager 0.25 and later. Inhibition keeps rollbacks back while the provider is to blame. A frozen
program needs no inhibition, which would hide its regression from people too: the receiver itself holds the rollback.
"""

from __future__ import annotations

from typing import Any, Final

from dspy_observe.conventions import WATCHDOG_ALERT
from dspy_observe.mixin.options import DashboardOptions, duration
from dspy_observe.mixin.prometheus import dump

__all__ = ["configuration"]

_MISLED: Final = "score|evidence|evaluation|latency|cost"
"""Signals that change when calls wait, are tried again or fall back. Errors and unreadable replies are counted without
refusals, and a version whose replies cannot be read asks twice as often: its 429s must not protect it."""


def configuration(o: DashboardOptions) -> str:
    """The file, from the options' addresses and intervals."""
    made = {
        "route": _routes(o),
        "inhibit_rules": _inhibitions(),
        "receivers": [
            {
                "name": "rollback",
                "webhook_configs": [
                    {
                        "url": f"http://{o.receiver_target}/api/v1/alerts",
                        "send_resolved": True,
                        "max_alerts": 0,
                        "http_config": {
                            "authorization": {"type": "Bearer", "credentials_file": o.receiver_token_file},
                            "follow_redirects": False,
                        },
                    }
                ],
            },
            _people(o, "people-now"),
            _people(o, "people"),
        ],
    }
    return dump(
        made,
        "Routes, receivers and inhibitions. Made by `dspy-observe dashboards generate`.",
        "People's receivers are yours to fill in (email_configs, slack_configs, pagerduty_configs), or name a "
        "webhook in",
        "the option people_webhook_url. Start Alertmanager with --cluster.listen-address= unless it has peers.",
    )


def _people(o: DashboardOptions, name: str) -> dict[str, Any]:
    if not o.people_webhook_url:
        return {"name": name}
    return {"name": name, "webhook_configs": [{"url": o.people_webhook_url, "send_resolved": True}]}


def _routes(o: DashboardOptions) -> dict[str, Any]:
    return {
        "receiver": "people",
        "group_by": ["alertname", "program", "environment"],
        "group_wait": duration(o.people_group_wait_s),
        "group_interval": duration(o.people_group_interval_s),
        "repeat_interval": duration(o.people_repeat_interval_s),
        "routes": [
            {
                "receiver": "rollback",
                "matchers": [f'alertname="{WATCHDOG_ALERT}"'],
                "group_by": ["alertname"],
                "group_wait": "0s",
                "group_interval": duration(o.group_interval_s),
                "repeat_interval": duration(o.watchdog_repeat_s),
            },
            {
                "receiver": "rollback",
                "matchers": ['dspy_action="rollback"'],
                "group_by": ["alertname", "program", "version", "environment"],
                "group_wait": "0s",
                "group_interval": duration(o.group_interval_s),
                "repeat_interval": duration(o.repeat_interval_s),
                "continue": True,  # people hear of it, too
            },
            {"receiver": "people-now", "matchers": ['severity="critical"'], "group_wait": "0s"},
        ],
    }


def _inhibitions() -> list[dict[str, Any]]:
    same = ["program", "environment"]
    return [
        {
            "source_matchers": ['alertname="DSPyProviderOutage"'],
            "target_matchers": ['dspy_action="rollback"'],
            "equal": same,
        },
        {
            "source_matchers": ['alertname="DSPyRateLimited"'],
            "target_matchers": ['dspy_action="rollback"', f'dspy_signal=~"{_MISLED}"'],
            "equal": same,
        },
        {
            "source_matchers": ['alertname="DSPyErrorBudgetBurnFast"'],
            "target_matchers": ['alertname=~"DSPyErrorBudgetBurn(Slow|Day|Days)"'],
            "equal": same,
        },
    ]
