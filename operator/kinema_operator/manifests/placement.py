# SPDX-License-Identifier: Apache-2.0
"""Where the pods of an attempt may run: the pool's word, then the user's, and nodes that are better left alone."""

from __future__ import annotations

from typing import Any

from kinema_api.names import LABEL_STAGE, Stage
from kinema_api.pool import PoolSpec
from kinema_operator.manifests.attempt import AttemptPlan

Raw = dict[str, Any]

HOSTNAME = "kubernetes.io/hostname"
_PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
AVOID_WEIGHT = 100
"""The heaviest there is; still only a wish, since a pool may have no other node."""


def placement(plan: AttemptPlan, pool: PoolSpec | None) -> Raw:
    """The fields of a pod's spec that decide where it runs."""
    added = plan.additions
    tolerations = [*(pool.tolerations if pool else ())]
    tolerations += [item for item in added.tolerations if item not in tolerations]
    fields: Raw = {
        "nodeSelector": {**added.node_selector, **(pool.node_selector if pool else {})},
        "tolerations": [toleration.wire() for toleration in tolerations],
        "affinity": _affinity(plan, pool),
        "priorityClassName": added.priority_class_name,
    }
    if pool is not None:
        fields["schedulerName"] = pool.scheduler_name
        if plan.devices:
            fields["runtimeClassName"] = pool.runtime_class_name
        if _on_host_network(plan, pool):
            fields |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    return {name: value for name, value in fields.items() if value}


def _on_host_network(plan: AttemptPlan, pool: PoolSpec) -> bool:
    return pool.fabric.host_network and plan.stage is Stage.TRAIN


def _affinity(plan: AttemptPlan, pool: PoolSpec | None) -> Raw:
    """The user's affinity with the pool's rule and the nodes to avoid added to its lists."""
    affinity: Raw = dict(plan.additions.affinity or {})
    if pool is not None and _on_host_network(plan, pool):
        # On the host's network two members on one node would fight for the rendezvous port.
        same = {"labelSelector": {"matchLabels": {LABEL_STAGE: plan.stage.value}}, "topologyKey": HOSTNAME}
        affinity["podAntiAffinity"] = _with(affinity.get("podAntiAffinity"), _REQUIRED, same)
    if plan.avoid:
        names = {"key": HOSTNAME, "operator": "NotIn", "values": sorted(plan.avoid)}
        wish = {"weight": AVOID_WEIGHT, "preference": {"matchExpressions": [names]}}
        affinity["nodeAffinity"] = _with(affinity.get("nodeAffinity"), _PREFERRED, wish)
    return affinity


def _with(kind: Raw | None, when: str, term: Raw) -> Raw:
    found = kind or {}
    return {**found, when: [*(found.get(when) or ()), term]}
