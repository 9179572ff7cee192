# SPDX-License-Identifier: Apache-2.0
"""Kinds of others, as far as the chart makes them: closed, so that a field that they do not have is found.

After the definitions of prometheus-operator (monitoring.coreos.com/v1), Gateway API 1.4 (gateway.networking.k8s.io/v1)
and cert-manager 1.19 (cert-manager.io/v1).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

Text = Annotated[str, Field(min_length=1)]
Label = Annotated[str, Field(max_length=63, pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$")]
PromDuration = Annotated[str, Field(pattern=r"^([0-9]+(ms|s|m|h|d|w|y))+$")]
GoDuration = Annotated[str, Field(pattern=r"^([0-9]+(ms|s|m|h))+$")]


class Shape(BaseModel):
    """A closed object."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", strict=True)


class Metadata(Shape):
    name: Annotated[str, Field(max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
    namespace: Text
    labels: dict[str, Label]
    annotations: dict[str, str] = {}


class Foreign(Shape):
    """What every object has."""

    api_version: str
    kind: str
    metadata: Metadata


class Expression(Shape):
    key: Text
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: list[Label] = []


class Selector(Shape):
    match_labels: dict[str, Label] = {}
    match_expressions: list[Expression] = []


class NamespaceSelector(Shape):
    any: bool = False
    match_names: list[Text] = []


class Relabeling(Shape):
    source_labels: list[Text]
    target_label: Annotated[str, Field(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$")] | None = None
    regex: Text | None = None
    action: Literal["replace", "keep", "drop"] = "replace"

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.target_label is None) == (self.action == "replace"):
            raise ValueError("replace has a target label, and nothing else has")
        return self


class Endpoint(Shape):
    port: Text
    interval: PromDuration
    honor_labels: bool = False
    relabelings: list[Relabeling] = []


class PodMonitorSpec(Shape):
    selector: Selector
    namespace_selector: NamespaceSelector = NamespaceSelector()
    pod_metrics_endpoints: Annotated[list[Endpoint], Field(min_length=1)]


class PodMonitor(Foreign):
    spec: PodMonitorSpec


class ServiceMonitorSpec(Shape):
    selector: Selector
    endpoints: Annotated[list[Endpoint], Field(min_length=1)]


class ServiceMonitor(Foreign):
    spec: ServiceMonitorSpec


class Rule(Shape):
    record: str = ""
    alert: str = ""
    expr: Text
    for_: PromDuration | None = Field(default=None, alias="for")
    keep_firing_for: PromDuration | None = Field(default=None, alias="keep_firing_for")
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if bool(self.record) == bool(self.alert):
            raise ValueError("a rule either records or alerts")
        return self


class RuleGroup(Shape):
    name: Text
    interval: PromDuration | None = None
    rules: Annotated[list[Rule], Field(min_length=1)]


class PrometheusRuleSpec(Shape):
    groups: Annotated[list[RuleGroup], Field(min_length=1)]


class PrometheusRule(Foreign):
    spec: PrometheusRuleSpec


class ParentRef(Shape):
    name: Text
    namespace: Text | None = None
    section_name: Text | None = None


class PathMatch(Shape):
    type: Literal["Exact", "PathPrefix", "RegularExpression"]
    value: Annotated[str, Field(pattern="^/")]


class Match(Shape):
    path: PathMatch


class Timeouts(Shape):
    request: GoDuration
    backend_request: GoDuration


class BackendRef(Shape):
    name: Text
    port: Annotated[int, Field(ge=1, le=65_535)]


class RouteRule(Shape):
    matches: list[Match]
    timeouts: Timeouts
    backend_refs: list[BackendRef]


class HTTPRouteSpec(Shape):
    parent_refs: Annotated[list[ParentRef], Field(min_length=1)]
    hostnames: list[Text] = []
    rules: list[RouteRule]


class HTTPRoute(Foreign):
    spec: HTTPRouteSpec


class Reference(Shape):
    group: str
    kind: Text
    name: Text
    section_name: Text | None = None


class BackendValidation(Shape):
    hostname: Text
    ca_certificate_refs: Annotated[list[Reference], Field(min_length=1)]


class BackendTLSPolicySpec(Shape):
    target_refs: Annotated[list[Reference], Field(min_length=1)]
    validation: BackendValidation


class BackendTLSPolicy(Foreign):
    spec: BackendTLSPolicySpec


class CaIssuer(Shape):
    secret_name: Text


class IssuerSpec(Shape):
    self_signed: dict[str, Any] | None = None
    ca: CaIssuer | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.self_signed is None) == (self.ca is None):
            raise ValueError("an Issuer signs in exactly one way")
        return self


class Issuer(Foreign):
    spec: IssuerSpec


class PrivateKey(Shape):
    algorithm: Literal["RSA", "ECDSA", "Ed25519"]
    size: int
    rotation_policy: Literal["Never", "Always"] | None = None


class IssuerRef(Shape):
    name: Text
    kind: Text
    group: Text


class CertificateSpec(Shape):
    is_ca: bool = Field(default=False, alias="isCA")
    common_name: str = ""
    secret_name: Text
    duration: GoDuration
    renew_before: GoDuration | None = None
    private_key: PrivateKey
    usages: list[Literal["server auth"]] = []
    dns_names: list[Text] = []
    issuer_ref: IssuerRef

    @model_validator(mode="after")
    def _somebodys(self) -> Self:
        if not (self.dns_names or self.common_name):
            raise ValueError("a certificate needs dnsNames or a commonName")
        return self


class Certificate(Foreign):
    spec: CertificateSpec


FOREIGN: dict[str, dict[str, type[Foreign]]] = {
    "monitoring.coreos.com/v1": {
        "PodMonitor": PodMonitor,
        "ServiceMonitor": ServiceMonitor,
        "PrometheusRule": PrometheusRule,
    },
    "gateway.networking.k8s.io/v1": {"HTTPRoute": HTTPRoute, "BackendTLSPolicy": BackendTLSPolicy},
    "cert-manager.io/v1": {"Issuer": Issuer, "Certificate": Certificate},
}
"""Every kind that is not Kubernetes' own nor Kinema's, by API version and kind."""
