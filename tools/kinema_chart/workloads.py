# SPDX-License-Identifier: Apache-2.0
"""The operator and the server: what their Deployments and addresses can be told."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kinema_api.base import Model
from kinema_chart.cluster import (
    Duration,
    Hostname,
    Object,
    ParentRef,
    Resources,
    SecretName,
    Strings,
    Toleration,
)
from kinema_operator.settings import Tuning as OperatorTuning
from kinema_server.settings import Tuning as ServerTuning


class Workload(Model):
    """What the Deployments of operator and server have in common."""

    replicas: Annotated[int, Field(ge=0)] = 1
    """How many pods."""
    disruption_budget: bool = True
    """With more than one replica: drains take one at a time."""
    resources: Resources = Resources(
        requests={"cpu": "50m", "memory": "128Mi"},
        limits={"memory": "512Mi"},
    )
    """What a pod asks for and may take."""
    node_selector: Strings = Field(default_factory=dict)
    """Labels of the nodes that pods may run on."""
    tolerations: list[Toleration] = Field(default_factory=list)
    """Taints of nodes that pods may run on."""
    affinity: Object = Field(default_factory=dict)
    """When empty, replicas keep to different nodes where they can."""
    topology_spread_constraints: list[Object] = Field(default_factory=list)
    """How replicas are spread; each has to bring its labelSelector."""
    priority_class_name: str = ""
    """PriorityClass of the pods."""
    pod_labels: Strings = Field(default_factory=dict)
    """Added to the pods."""
    pod_annotations: Strings = Field(default_factory=dict)
    """Added to the pods."""


class Operator(Workload):
    """The control loop."""

    replicas: Annotated[int, Field(ge=0)] = 2
    """One leads, the others stand by and take over within settings.election.leaseSeconds."""
    settings: OperatorTuning = Field(default_factory=OperatorTuning)
    """The operator's own settings."""


class IssuerRef(Model):
    """Who signs."""

    name: str = ""
    """When empty, the chart makes an authority of its own, signed by nobody else."""
    kind: str = "Issuer"
    """Issuer or ClusterIssuer, or a kind of an external issuer."""
    group: str = "cert-manager.io"
    """Group of that kind."""


class CertManager(Model):
    """The server's certificate, made and renewed by cert-manager."""

    enabled: bool = False
    """Let cert-manager make the certificate. Its issuer must fill in ca.crt, by which pods know the server."""
    issuer_ref: IssuerRef = Field(default_factory=IssuerRef)
    """The issuer that signs the certificate."""
    duration: Duration = "2160h"
    """How long a certificate is good."""
    renew_before: Duration = "720h"
    """How long before its end it is renewed."""
    extra_names: list[Hostname] = Field(default_factory=list)
    """DNS names beside those of the Service, for instance that of the Ingress."""


class Tls(Model):
    """The server's certificate. When nothing is said, the operator makes it and renews it."""

    existing_secret: SecretName = ""
    """A Secret of your own with tls.crt, tls.key and ca.crt, good for kinema-server.NAMESPACE.svc."""
    cert_manager: CertManager = Field(default_factory=CertManager)
    """Let cert-manager make it."""


class Service(Model):
    """The server's Service."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    """ClusterIP, NodePort or LoadBalancer."""
    annotations: Strings = Field(default_factory=dict)
    """Added to the Service."""


class Ingress(Model):
    """An Ingress before the server."""

    enabled: bool = False
    """Make it. The server speaks HTTPS alone: tell your controller by an annotation of its own."""
    class_name: str = ""
    """IngressClass; the cluster's default when empty."""
    annotations: Strings = Field(default_factory=dict)
    """For instance {nginx.ingress.kubernetes.io/backend-protocol: HTTPS}."""
    hosts: list[Hostname] = Field(default_factory=list)
    """Names it answers to; to all when empty."""
    tls_secret: SecretName = ""
    """The Secret with the certificate for those names."""


class HttpRoute(Model):
    """A route of a Gateway before the server."""

    enabled: bool = False
    """Make it."""
    annotations: Strings = Field(default_factory=dict)
    """Added to the route."""
    parent_refs: list[ParentRef] = Field(default_factory=list)
    """The Gateways it hangs on; at least one."""
    hostnames: list[Hostname] = Field(default_factory=list)
    """Names it answers to; to the Gateway's when empty."""
    ca_config_map: SecretName = ""
    """A ConfigMap with the server's ca.crt: makes the BackendTLSPolicy by which the Gateway speaks HTTPS to it."""


class Server(Workload):
    """REST and progress over HTTPS. Stateless; any number of replicas."""

    settings: ServerTuning = Field(default_factory=ServerTuning)
    """The server's own settings."""
    readers: bool = True
    """Let it start the pods that read workspaces, with their job's account and volumes. Without that right on pods
    there is no history and there are no samples."""
    tls: Tls = Field(default_factory=Tls)
    """Its certificate."""
    service: Service = Field(default_factory=Service)
    """Its Service."""
    ingress: Ingress = Field(default_factory=Ingress)
    """An Ingress before it."""
    http_route: HttpRoute = Field(default_factory=HttpRoute)
    """A Gateway's route before it."""
