"""What brings everything up together: mounts that exist, names that agree, nothing open to the world."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from dspy_observe.mixin.files import generate
from dspy_observe.mixin.options import DashboardOptions

FILES = generate(DashboardOptions())
COMPOSE: dict[str, Any] = yaml.safe_load(FILES["compose.yaml"])
ROOT = Path(__file__).parents[1]
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def test_the_five_services_are_there() -> None:
    """Prometheus, Alertmanager, Grafana, the receiver and the example service."""
    assert set(SERVICES) == {"prometheus", "alertmanager", "grafana", "receiver", "service"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_mounts_what_is_generated(name: str) -> None:
    """Or a volume that is declared; and what it mounts of ours cannot be written to."""
    for mount in SERVICES[name].get("volumes", ()):
        source, *rest = mount.split(":")
        if source.startswith("./"):
            path = source.removeprefix("./")
            assert any(file == path or file.startswith(f"{path}/") for file in FILES), mount
            assert rest[-1] == "ro"
        else:
            assert source in COMPOSE["volumes"], mount
    for secret in SERVICES[name].get("secrets", ()):
        source = secret if isinstance(secret, str) else secret["source"]
        assert source in COMPOSE["secrets"]


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_this_machine_only(name: str) -> None:
    """Whoever wants more writes it himself."""
    for port in SERVICES[name]["ports"]:
        assert port.startswith("127.0.0.1:")


@pytest.mark.parametrize("name", SERVICES)
def test_images_have_a_version(name: str) -> None:
    """And none is called latest."""
    image = SERVICES[name].get("image") or re.findall(r"FROM (\S+)", SERVICES[name]["build"]["dockerfile_inline"])[0]
    assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+(\.\d+)?(-slim)?", image), image


@pytest.mark.parametrize("name", [name for name, service in SERVICES.items() if "build" in service])
def test_what_an_image_of_ours_starts_is_where_it_works(name: str) -> None:
    """The script that the command names is in the folder that the image works in, as the copied sources have it."""
    image = SERVICES[name]["build"]["dockerfile_inline"]
    (works_in,) = re.findall(r"^WORKDIR (\S+)$", image, re.MULTILINE) or ["/"]
    ((source, target),) = re.findall(r"^COPY (\S+) (\S+)$", image, re.MULTILINE)
    program, *arguments = SERVICES[name]["command"]
    if program != "python":
        assert program == "dspy-observe"
        return
    assert source == "."  # the build's context, which is this repository
    script = PurePosixPath(works_in, arguments[0]).relative_to(target)
    assert (ROOT / script).is_file(), script


def test_addresses_agree() -> None:
    """Names and ports in Prometheus', Alertmanager's and Grafana's files are those of the services."""
    prometheus = yaml.safe_load(FILES["prometheus/prometheus.yml"])
    targets = [target for job in prometheus["scrape_configs"] for target in job["static_configs"][0]["targets"]]
    managers = prometheus["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"]
    routes = yaml.safe_load(FILES["alertmanager/alertmanager.yml"])
    (hook,) = [r for r in routes["receivers"] if r["name"] == "rollback"]
    url = hook["webhook_configs"][0]["url"]
    source = yaml.safe_load(FILES["provisioning/datasources/prometheus.yml"])["datasources"][0]
    for host in (*targets, *managers, url.split("/")[2], source["url"].split("/")[2]):
        name = host.partition(":")[0]
        assert name in SERVICES or host == "localhost:9090", host
    token = hook["webhook_configs"][0]["http_config"]["authorization"]["credentials_file"]
    assert token in [secret["target"] for secret in SERVICES["alertmanager"]["secrets"]]
    listen = SERVICES["receiver"]["command"]
    assert listen[listen.index("--listen") + 1].endswith(":9095")
    assert SERVICES["service"]["environment"]["DSPY_OBSERVE_METRICS_PORT"] == "9464"


def test_grafana_finds_its_dashboards() -> None:
    """Where the provisioning file says, the folder is mounted; exemplars lead to a data source of traces."""
    provider = yaml.safe_load(FILES["provisioning/dashboards/dspy.yml"])["providers"][0]
    mounts = dict(mount.split(":")[:2] for mount in SERVICES["grafana"]["volumes"])
    assert mounts["./grafana"] == provider["options"]["path"]
    assert mounts["./provisioning"] == "/etc/grafana/provisioning"
    source = yaml.safe_load(FILES["provisioning/datasources/prometheus.yml"])["datasources"][0]
    assert source["jsonData"]["exemplarTraceIdDestinations"][0]["name"] == "trace_id"


def test_prometheus_keeps_exemplars_and_environments() -> None:
    """Its flag is set; the registry's gauges keep their own environment beside the target's."""
    assert "--enable-feature=exemplar-storage" in SERVICES["prometheus"]["command"]
    jobs = {job["job_name"]: job for job in yaml.safe_load(FILES["prometheus/prometheus.yml"])["scrape_configs"]}
    assert jobs["dspy"]["honor_labels"] is True
    assert jobs["dspy"]["static_configs"][0]["labels"] == {"environment": "production"}
