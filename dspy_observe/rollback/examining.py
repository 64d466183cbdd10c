"""Looks at the servers between an alert and its rollback: the receiver, Alertmanager and Prometheus.

Each function yields what it finds as it finds it. Once a server does not answer, the rest of its checks are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import httpx
import yaml

from dspy_observe.conventions import ALERT_ACTION, ALERT_ACTION_ROLLBACK, DOCTOR_ALERT, WATCHDOG_ALERT
from dspy_observe.rollback.checks import Check, Site, SiteError, broken, fine, skipped, warning
from dspy_observe.rollback.prometheus import Prometheus, PrometheusError, without_credentials
from dspy_observe.rollback.receiver import ALERTS_PATH
from dspy_observe.rollback.routes import Webhook, receivers_of, webhooks_of

__all__ = ["Learned", "examine_alertmanager", "examine_prometheus", "examine_receiver"]

_OURS: Final = "dspy"
_WATCHDOG_LATE: Final = timedelta(minutes=10)
_REFUSED: Final = (401, 403)
_OK: Final = 200
_LISTED: Final = 5
_GENERATE: Final = "`dspy-observe dashboards generate` makes them"


@dataclass(slots=True)
class Learned:
    """What one server told that matters to the others."""

    asks_for_token: bool = True
    """Whether the receiver refuses who shows none."""
    registry: str | None = None
    """Where the receiver keeps decisions; ``None`` while that is not known."""
    alertmanager: bool = False
    """Whether Alertmanager answers."""


def examine_receiver(site: Site, token: str | None, learned: Learned) -> Iterator[Check]:
    """Whether it lives, reaches its registry, and lets in whom it should."""
    part = "receiver"
    try:
        site.json("/healthz")
    except SiteError as error:
        yield broken(
            part, "answers", f"{site.place}: {error}", "Start it: dspy-observe serve --registry ... --token-file ..."
        )
        for name in ("registry", "without a token", "with the token", "watchdog"):
            yield skipped(part, name, "the receiver does not answer")
        return
    yield fine(part, "answers", site.place)
    try:
        ready = site.ask("/readyz")
        if ready.status_code == _OK:
            yield fine(part, "registry", "it reaches its registry")
        else:
            why = f"it is not ready: {_error_of(ready)}"
            yield broken(part, "registry", why, "Look at its --registry: every alert now waits with Alertmanager")
        yield _without_token(site, learned)
        if token is None:
            for name in ("with the token", "watchdog"):
                yield skipped(part, name, "no token was given: --token-file, or the variable DSPY_OBSERVE_TOKEN")
        else:
            yield from _with_token(site, token, learned)
    except SiteError as error:
        yield broken(
            part, "keeps answering", f"{site.place}: {error}", "Look at its log and at the load of its machine"
        )


def _without_token(site: Site, learned: Learned) -> Check:
    reply = site.ask(ALERTS_PATH, {})
    if reply.status_code in _REFUSED:
        return fine("receiver", "without a token", f"it is refused with {reply.status_code}")
    learned.asks_for_token = False
    mend = "Start it with --token-file instead of --insecure, and give Alertmanager the same token"
    if httpx.URL(site.url).host in ("127.0.0.1", "localhost", "::1"):
        return warning("receiver", "without a token", "everybody on this machine may post alerts", mend)
    return broken("receiver", "without a token", "everybody who reaches it may roll back", mend)


def _with_token(site: Site, token: str, learned: Learned) -> Iterator[Check]:
    part = "receiver"
    reply = site.ask(ALERTS_PATH, _harmless(), token=token)
    if reply.status_code != _OK:
        why = f"HTTP {reply.status_code}: {_error_of(reply)}"
        mend = "Give this command, Alertmanager (credentials_file) and the receiver (--token-file) the same token"
        if reply.status_code not in _REFUSED:
            mend = f"Alerts are to be posted to {ALERTS_PATH}; look at what listens at {site.place}, and at its log"
        yield broken(part, "with the token", why, mend)
        yield skipped(part, "watchdog", "the token was not accepted")
        return
    yield fine(part, "with the token", "it is let in")
    status = site.ask("/api/v1/status", token=token)
    told = status.json() if status.status_code == _OK else {}
    learned.registry = told.get("registry")
    if told.get("mode", "auto") != "auto":
        yield warning(
            part, "mode", f"the receiver's own mode is {told['mode']}", "Start it with --mode auto if it is to act"
        )
    yield _watchdog(told.get("watchdog_at"))


def _watchdog(at: float | None) -> Check:
    mend = f"The rule {WATCHDOG_ALERT} has to fire in Prometheus, and its route to lead to the receiver"
    if at is None:
        return warning("receiver", "watchdog", "none has come since the receiver started", mend)
    age = datetime.now(UTC) - datetime.fromtimestamp(at, UTC)
    words = f"last heard {max(0.0, age.total_seconds()):.0f} s ago"
    if age > _WATCHDOG_LATE:
        return warning("receiver", "watchdog", f"{words}: the path from Prometheus is interrupted", mend)
    return fine("receiver", "watchdog", words)


def _harmless() -> dict[str, Any]:
    """A delivery that asks for nothing."""
    now = datetime.now(UTC).isoformat()
    alert = {"status": "firing", "labels": {"alertname": DOCTOR_ALERT}, "annotations": {}, "startsAt": now}
    return {"version": "4", "status": "firing", "receiver": "doctor", "groupKey": "doctor", "alerts": [alert]}


def _error_of(reply: httpx.Response) -> str:
    try:
        return str(reply.json()["error"])[:200]
    except (ValueError, KeyError, TypeError):
        return "no reason given"


def examine_alertmanager(
    site: Site, labels: Mapping[str, str], receiver_url: str | None, learned: Learned
) -> Iterator[Check]:
    """Whether it answers, and where its configuration sends an alert with these labels and the watchdog."""
    part = "alertmanager"
    try:
        status = site.json("/api/v2/status")
        config = yaml.safe_load(status["config"]["original"])
        if not isinstance(config, dict):
            raise SiteError("its status holds no configuration")  # noqa: TRY301 - one place tells of all
    except (SiteError, KeyError, TypeError, yaml.YAMLError) as error:
        found = str(error) if isinstance(error, SiteError) else "no Alertmanager: its status has no configuration"
        yield broken(part, "answers", f"{site.place}: {found}", "Start Alertmanager, or mend --alertmanager-url")
        for name in ("route", "token", "watchdog route"):
            yield skipped(part, name, "Alertmanager does not answer")
        return
    learned.alertmanager = True
    yield fine(part, "answers", site.place)
    hooks = webhooks_of(config, labels)
    ours = [one for one in hooks if one.url is None or _path(one.url).endswith(ALERTS_PATH)]
    yield _route(config, labels, hooks, ours, receiver_url)
    if not ours:
        yield skipped(part, "token", "no route leads to a receiver")
    elif learned.asks_for_token and not any(one.bearer for one in ours):
        mend = "Give its webhook http_config.authorization with type Bearer and credentials_file, and reload"
        yield broken(part, "token", f"{ours[0].receiver} shows no bearer token, so the receiver refuses it", mend)
    else:
        yield fine(part, "token", "a bearer token is sent" if ours[0].bearer else "none is sent, and none is asked for")
    names = {one.receiver for one in webhooks_of(config, {"alertname": WATCHDOG_ALERT})}
    if not names & {one.receiver for one in ours}:
        mend = f'Add a route with the matcher alertname="{WATCHDOG_ALERT}" to the same receiver; {_GENERATE}'
        yield warning(part, "watchdog route", f"{WATCHDOG_ALERT} does not reach the receiver", mend)
    else:
        yield fine(part, "watchdog route", f"{WATCHDOG_ALERT} goes to {', '.join(sorted(names))}")


def _route(
    config: Mapping[str, Any],
    labels: Mapping[str, str],
    hooks: list[Webhook],
    ours: list[Webhook],
    receiver_url: str | None,
) -> Check:
    part, name = "alertmanager", "route"
    address = "http://RECEIVER:9095" if receiver_url is None else without_credentials(receiver_url)
    mend = (
        f'Add a route with the matcher {ALERT_ACTION}="{ALERT_ACTION_ROLLBACK}" to a receiver whose webhook is '
        f"{address.rstrip('/')}{ALERTS_PATH}, and reload; {_GENERATE}"
    )
    if not ours:
        where = ", ".join(receivers_of(config, labels)) or "nobody"
        posted = ", ".join(_shown(one) for one in hooks)
        found = f"alerts that ask for a rollback go to {where}, " + (
            f"who posts them to {posted}, which is no {ALERTS_PATH}" if posted else "who has no webhook"
        )
        return broken(part, name, found, mend)
    shown = [one for one in ours if one.url is not None]
    if not shown:
        return fine(
            part, name, f"they go to the webhook of {ours[0].receiver}, whose address Alertmanager keeps secret"
        )
    words = f"they are posted to {', '.join(_shown(one) for one in shown)}"
    if receiver_url is None or any(_place(str(one.url)) == _place(receiver_url) for one in shown):
        return fine(part, name, words)
    words += f", while this command knows the receiver as {without_credentials(receiver_url)}"
    return warning(
        part, name, words, "If both are the same one, behind a proxy or in a container, all is well. " + mend
    )


def _shown(hook: Webhook) -> str:
    """Its address without credentials."""
    if hook.url is None:
        return "an address that Alertmanager keeps secret"
    return without_credentials(str(hook.url))


def _path(url: str) -> str:
    try:
        return httpx.URL(url).path.rstrip("/")
    except httpx.InvalidURL:
        return ""


def _place(url: str) -> tuple[str, int | None]:
    parsed = httpx.URL(url)
    default = {"http": 80, "https": 443}.get(parsed.scheme)
    return "127.0.0.1" if parsed.host == "localhost" else parsed.host, parsed.port or default


def examine_prometheus(prometheus: Prometheus, alertmanager_url: str | None) -> Iterator[Check]:
    """Whether it answers, has the rules, scrapes what they are about, and knows Alertmanager."""
    part = "prometheus"
    try:
        prometheus.query("vector(1)")
    except PrometheusError as error:
        yield broken(part, "answers", f"{prometheus.place}: {error}", "Start Prometheus, or mend --prometheus-url")
        for name in ("rules", "targets", "alertmanagers"):
            yield skipped(part, name, "Prometheus does not answer")
        return
    yield fine(part, "answers", prometheus.place)
    for name, found in (
        ("rules", _rules(prometheus)),
        ("targets", _targets(prometheus)),
        ("alertmanagers", _alertmanagers(prometheus, alertmanager_url)),
    ):
        try:
            yield from found
        except (PrometheusError, KeyError, TypeError, AttributeError) as error:
            why = str(error) if isinstance(error, PrometheusError) else "its answer is not what Prometheus answers"
            yield broken(part, name, why, "Ask the Prometheus that evaluates the rules itself, not one beside it")


def _rules(prometheus: Prometheus) -> Iterator[Check]:
    part, name = "prometheus", "rules"
    groups = prometheus.get("/api/v1/rules", type="alert")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    acting = [rule for rule in rules if rule.get("labels", {}).get(ALERT_ACTION) == ALERT_ACTION_ROLLBACK]
    mend = f"Name rules.yml and alerts.yml under rule_files of prometheus.yml, and reload it; {_GENERATE}"
    if not acting:
        yield broken(
            part, name, f'none of {len(rules)} alerts has the label {ALERT_ACTION}="{ALERT_ACTION_ROLLBACK}"', mend
        )
        return
    failing = [rule for rule in (*acting, *rules) if rule.get("health") == "err"]
    if failing:
        found = f"{failing[0]['name']} cannot be evaluated: {failing[0].get('lastError', '')[:200]}"
        yield broken(
            part, name, found, "Mend the rule: promtool check rules FILE, dspy-observe dashboards check FOLDER"
        )
        return
    firing = sorted({rule["name"] for rule in acting if rule.get("state") == "firing"})
    words = f"{len(acting)} alerts may roll back" + (f"; now firing: {', '.join(firing[:_LISTED])}" if firing else "")
    yield fine(part, name, words)
    if not any(rule["name"] == WATCHDOG_ALERT for rule in rules):
        yield warning(part, "watchdog rule", f"{WATCHDOG_ALERT} is missing, so nobody notices a broken path", mend)


def _targets(prometheus: Prometheus) -> Iterator[Check]:
    part, name = "prometheus", "targets"
    targets = prometheus.get("/api/v1/targets", state="active")["activeTargets"]
    rows = prometheus.query('count by (job, instance) ({__name__=~"dspy_.+",job!=""})')
    exporting = {(row["metric"].get("job"), row["metric"].get("instance")) for row in rows}
    jobs = {job for job, _ in exporting} | {
        one["labels"]["job"] for one in targets if _OURS in one["labels"].get("job", "")
    }
    ours = [one for one in targets if one["labels"].get("job") in jobs]
    if not ours:
        mend = "Add the service's metrics port and the receiver to scrape_configs of prometheus.yml, and reload it"
        yield broken(part, name, f"none of {len(targets)} targets exports dspy_ metrics", mend)
        return
    down = [one for one in ours if one.get("health") == "down"]
    if down:
        first = down[0]
        found = f"{len(down)} of {len(ours)} are down; {first.get('scrapeUrl')}: {first.get('lastError', '')[:200]}"
        yield broken(part, name, found, "Start what should listen there, or mend its address in prometheus.yml")
    elif not exporting:
        mend = "Point scrape_configs to the port of configure(metrics=Metrics(port=...)), and call the program once"
        yield broken(part, name, f"{len(ours)} are up and export no dspy_ metrics", mend)
    else:
        yield fine(part, name, f"{len(ours)} are up, {len(exporting)} of them export dspy_ metrics")


def _alertmanagers(prometheus: Prometheus, url: str | None) -> Iterator[Check]:
    part, name = "prometheus", "alertmanagers"
    active = [one["url"] for one in prometheus.get("/api/v1/alertmanagers")["activeAlertmanagers"]]
    if not active:
        mend = "Name Alertmanager under alerting.alertmanagers of prometheus.yml, and reload it"
        yield broken(part, name, "Prometheus knows none, so its alerts go nowhere", mend)
    elif url is not None and _place(url) not in {_place(one) for one in active}:
        found = (
            f"it sends alerts to {', '.join(active[:_LISTED])}, while this command looks at {without_credentials(url)}"
        )
        yield warning(part, name, found, "If they are the same one or peers, all is well; else mend one of them")
    else:
        yield fine(part, name, f"alerts are sent to {', '.join(active[:_LISTED])}")
