# SPDX-License-Identifier: Apache-2.0
"""Everything that the chart can be told."""

from __future__ import annotations

from importlib.metadata import version as version_of
from typing import Annotated, Any, Literal

from pydantic import Field

from kinema_api.base import Model, ModelName, Name
from kinema_api.pool import PoolSpec
from kinema_chart.cluster import Duration, Image, Namespace, Object, Peer, Port, Strings
from kinema_chart.workloads import Operator, Server

_VERSION = version_of("kinema-api")
RUNBOOKS = "https://kinema.dev/docs/runbooks"
"""As the rules of files/rules have it, where templates/rules.yaml puts another one in its place."""
Create = Literal["auto", "always", "never"]
"""auto: when the cluster knows the kind."""


class Family(Model):
    """Images of a family of models."""

    cpu: str = Field(default="", pattern=r"^\S*$")
    """For pools without accelerators."""
    nvidia: str = Field(default="", pattern=r"^\S*$")
    """For NVIDIA's."""
    ascend: str = Field(default="", pattern=r"^\S*$")
    """For Ascend's."""


_FAMILIES = {
    "wan2.1": Family(
        cpu=f"kinema/wan2.1:{_VERSION}",
        nvidia=f"kinema/wan2.1:{_VERSION}",
    )
}


class Images(Model):
    """Where images come from."""

    registry: str = Field(default="", pattern=r"^\S*$")
    """Put before every image below, for instance registry.example.com (where `make images
    PUSH=registry.example.com/kinema` pushed them)."""
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """Always, IfNotPresent or Never; for the pods of jobs too."""
    pull_secrets: list[Annotated[str, Field(min_length=1, max_length=253)]] = Field(default_factory=list)
    """Pull secrets of the operator and the server. Jobs name their own: spec.defaults.imagePullSecrets."""
    control_plane: Image = f"kinema/control-plane:{_VERSION}"
    """The operator and the server; a digest is as good as a tag."""
    stage: Image = f"kinema/stage:{_VERSION}"
    """The stages check and prepare, which need no accelerator."""
    families: dict[ModelName, Family] = Field(default_factory=lambda: dict(_FAMILIES))
    """All other stages: one image a family of models and accelerator. Jobs wait where it is empty, as for Ascend, whose
    image is built where its base can be pulled: docker build -f images/wan2.1-ascend/Dockerfile ."""


class Crds(Model):
    """The CustomResourceDefinitions."""

    install: bool = True
    """Install and upgrade them with the chart. The operator does not work before they are its own."""
    keep: bool = True
    """Leave them, and with them every job, behind on `helm uninstall`."""


class Rbac(Model):
    """Rights of people."""

    aggregate: bool = True
    """Let the built-in roles view, edit and admin speak about jobs as well."""
    server_proxy: bool = True
    """Let every user of the cluster reach the server through the API server's proxy, as the command line does. The
    server asks for a token of theirs anyway."""


class ApiServer(Model):
    """Where the API server is. No NetworkPolicy can select it: it is not a pod."""

    ports: list[Port] = Field(default_factory=lambda: [443, 6443])
    """Its ports: the Service's and its own, for plugins look at either."""
    cidrs: list[str] = Field(default_factory=list)
    """Its addresses, for instance [10.0.0.1/32]; any when empty. Its proxy reaches the server from there."""


class StageNetwork(Model):
    """Pods of jobs, in each of watchNamespaces: what is not listed is closed to them."""

    enabled: bool = False
    """Shut them off but for one another, the server, names, and `egress`. Pods on the host's network are not reached
    by any NetworkPolicy."""
    egress: list[Object] = Field(default_factory=list)
    """More rules: object storage and model hubs, for instance [{ports: [{port: 443}]}]."""


class NetworkPolicy(Model):
    """Who may talk to whom. Off, since not every network plugin heeds it and each is a little different."""

    enabled: bool = False
    """Shut the operator and the server off from all that they do not need."""
    dns_ports: list[Port] = Field(default_factory=lambda: [53])
    """Ports on which names are looked up; OpenShift's pods listen on 5353."""
    api_server: ApiServer = Field(default_factory=ApiServer)
    """Where the API server is."""
    metrics_from: list[Peer] = Field(default_factory=list)
    """Who may scrape metrics, for instance [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name:
    monitoring}}}]; anybody when empty."""
    clients: list[Peer] = Field(default_factory=list)
    """Who may ask the server, beside pods of jobs; anybody when empty, for it asks for a token anyway. Pods on the
    host's network, which some pools have, come from their node's address: name it by an ipBlock."""
    stages: StageNetwork = Field(default_factory=StageNetwork)
    """Pods of jobs."""


class Monitor(Model):
    """How Prometheus' operator finds the metrics."""

    create: Create = "auto"
    """auto: when the cluster knows the kind; always; never."""
    kind: Literal["PodMonitor", "ServiceMonitor"] = "PodMonitor"
    """For the operator and the server. Pods of jobs have no Service, and always get a PodMonitor."""
    stages: bool = True
    """Scrape the pods of jobs too."""
    interval: Duration = "30s"
    """How often."""
    labels: Strings = Field(default_factory=dict)
    """Labels that Prometheus selects by, for instance {release: kube-prometheus-stack}."""


class Rules(Model):
    """Recording rules and alerts."""

    create: Create = "auto"
    """auto: when the cluster knows PrometheusRule; always; never."""
    labels: Strings = Field(default_factory=dict)
    """Labels that Prometheus selects by."""
    runbook_url: str = Field(default=RUNBOOKS, pattern=r"^https?://\S*[^/\s]$")
    """Where alerts say that their runbooks are: a folder with docs/runbooks, KinemaJobStalled.md and the others."""


class Dashboards(Model):
    """Dashboards, as ConfigMaps for Grafana's sidecar."""

    enabled: bool = True
    """Make the ConfigMaps."""
    namespace: str = ""
    """Where; the release's namespace when empty."""
    label: str = "grafana_dashboard"
    """The label that the sidecar looks for."""
    label_value: str = "1"
    """And its value."""
    annotations: Strings = Field(default_factory=lambda: {"grafana_folder": "Kinema"})
    """grafana_folder is the sidecar's usual folderAnnotation."""


class Monitoring(Model):
    """What Prometheus and Grafana are given."""

    monitor: Monitor = Field(default_factory=Monitor)
    """How Prometheus finds the metrics."""
    rules: Rules = Field(default_factory=Rules)
    """Recording rules and alerts."""
    dashboards: Dashboards = Field(default_factory=Dashboards)
    """Grafana's dashboards."""


class Values(Model):
    """Values of the kinema chart."""

    global_: dict[str, Any] = Field(default_factory=dict, alias="global")
    """Helm's own; the chart reads nothing of it."""
    common_labels: Strings = Field(default_factory=dict)
    """Added to every object."""
    images: Images = Field(default_factory=Images)
    """Where images come from."""
    watch_namespaces: list[Namespace] = Field(default_factory=list, json_schema_extra={"uniqueItems": True})
    """Namespaces in which jobs are run; all when empty. With a list, operator and server hold no right on jobs outside
    it."""
    pools: dict[Name, PoolSpec] = Field(default_factory=dict)
    """TrainingPools, by name: what TrainingPool.spec holds (`kubectl explain tpool.spec`, examples/pools). A pool that
    leaves this list, or whose release is uninstalled, stays until `kubectl delete tpool NAME`. For instance {cpu:
    {accelerator: cpu, devicesPerNode: 1, perDevice: {cpu: 500m, memory: 3Gi}}}."""
    operator: Operator = Field(default_factory=Operator)
    """The control loop."""
    server: Server = Field(default_factory=Server)
    """REST and progress over HTTPS. Stateless."""
    crds: Crds = Field(default_factory=Crds)
    """The CustomResourceDefinitions."""
    rbac: Rbac = Field(default_factory=Rbac)
    """Rights of people."""
    network_policy: NetworkPolicy = Field(default_factory=NetworkPolicy)
    """Who may talk to whom."""
    monitoring: Monitoring = Field(default_factory=Monitoring)
    """What Prometheus and Grafana are given."""
    extra_objects: list[Object] = Field(default_factory=list)
    """More objects to install with the release; their text may be a template."""
