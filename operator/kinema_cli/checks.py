# SPDX-License-Identifier: Apache-2.0
"""What makes an installation sound, one finding a check. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from kinema_api.crd import ANNOTATION_DIGEST, ANNOTATION_VERSION, job_definition, pool_definition
from kinema_api.pool import PoolSpec
from kinema_cli.view.text import Raw, duration, moment, plural

OLDEST = (1, 31)
"""The oldest Kubernetes that runs Kinema."""
_LATE = 2.0
"""So many times its duration a Lease may be old: clocks of machines differ."""


class Verdict(StrEnum):
    """What a check came to."""

    OK = "ok"
    WARN = "warn"
    """Something that a user may want to know; the installation is sound."""
    FAIL = "FAIL"
    UNKNOWN = "skip"
    """It could not be looked at."""


class Finding(NamedTuple):
    """What a check found."""

    verdict: Verdict
    check: str
    said: str
    fix: str = ""


class Right(NamedTuple):
    """Something that a user of Kinema does."""

    verb: str
    group: str
    resource: str
    purpose: str
    subresource: str = ""


RIGHTS = (
    Right("list", "kinema.dev", "videotrainingjobs", "list"),
    Right("create", "kinema.dev", "videotrainingjobs", "submit"),
    Right("patch", "kinema.dev", "videotrainingjobs", "suspend, resume, cancel, retry"),
    Right("list", "kinema.dev", "trainingpools", "pools, plan"),
    Right("list", "", "pods", "logs"),
    Right("get", "", "pods", "logs", "log"),
    Right("list", "", "events", "why"),
)


def version(found: Mapping[str, Any], host: str) -> Finding:
    """Whether Kubernetes is new enough."""
    numbers = tuple(int(re.sub(r"\D.*", "", str(found.get(part) or "0")) or 0) for part in ("major", "minor"))
    said = f"Kubernetes {found.get('gitVersion') or '.'.join(map(str, numbers))} at {host}"
    if numbers < OLDEST:
        return Finding(Verdict.FAIL, "api-server", said, "Kinema needs 1.31 or later: upgrade the cluster")
    return Finding(Verdict.OK, "api-server", said)


def own_definitions() -> dict[str, Mapping[str, str]]:
    """The annotations of the definitions that this release is built with, by name."""
    metadata = [make()["metadata"] for make in (job_definition, pool_definition)]
    return {entry["name"]: entry["annotations"] for entry in metadata}


def definition(name: str, found: Raw | None, wanted: Mapping[str, str]) -> Finding:
    """Whether a CRD is there, and this release's own."""
    check, here = f"crd/{name.partition('.')[0]}", wanted[ANNOTATION_VERSION]
    fix = "run `helm upgrade` of the chart, or `kubectl apply --server-side --force-conflicts -f crds/`"
    if found is None:
        return Finding(Verdict.FAIL, check, "is not installed", fix)
    marks = found["metadata"].get("annotations") or {}
    there = marks.get(ANNOTATION_VERSION) or "unknown"
    if marks.get(ANNOTATION_DIGEST) == wanted[ANNOTATION_DIGEST]:
        return Finding(Verdict.OK, check, f"{there}, as of this command")
    if there == here:
        return Finding(Verdict.FAIL, check, f"is of another build of {here} than this command", fix)
    return Finding(
        Verdict.FAIL, check, f"is of {there}, this command of {here}", f"{fix}; or use the command of that release"
    )


def lease(found: Raw | None, *, namespace: str, now: datetime) -> Finding:
    """Whether an operator leads, and lives."""
    check, look = "operator", f"kubectl -n {namespace} get pods, and logs deploy/kinema-operator"
    if found is None:
        return Finding(Verdict.FAIL, check, f"no Lease in {namespace}: it never ran", f"see {look}")
    spec = found.get("spec") or {}
    holder, renewed = spec.get("holderIdentity"), moment(spec.get("renewTime"))
    if not holder or renewed is None:
        return Finding(Verdict.FAIL, check, "nobody holds its Lease", f"see {look}")
    old, limit = (now - renewed).total_seconds(), float(spec.get("leaseDurationSeconds") or 15)
    if old > limit * _LATE:
        said = f"{holder} holds its Lease and renewed it {duration(old)} ago, which lasts {duration(limit)}"
        return Finding(Verdict.FAIL, check, said, f"it is stuck or gone: see {look}")
    return Finding(Verdict.OK, check, f"{holder} leads, Lease renewed {duration(old)} ago")


def training_operator(served: Sequence[str] | None) -> Finding:
    """Whether the kind that carries a training is served."""
    fix = "install Kubeflow's training-operator 1.9: training runs as PyTorchJobs"
    if not served or "pytorchjobs" not in served:
        return Finding(Verdict.FAIL, "training-operator", "the API server does not know PyTorchJobs", fix)
    return Finding(Verdict.OK, "training-operator", "PyTorchJobs are served")


def rights(denied: Iterable[Right], *, namespace: str) -> list[Finding]:
    """What the user may not do."""
    found = [
        Finding(
            Verdict.WARN,
            "rights",
            f"you may not {right.verb} {'/'.join(filter(None, (right.resource, right.subresource)))} in {namespace}"
            f" ({right.purpose})",
            "let an administrator bind the role edit (or view) to you in that namespace",
        )
        for right in denied
    ]
    return found or [Finding(Verdict.OK, "rights", f"you may do all that the command does in {namespace}")]


def pools(found: Sequence[Raw], nodes: Sequence[Raw] | None) -> list[Finding]:
    """Whether each pool has nodes that fit it."""
    if not found:
        fix = "let an administrator apply one, see examples/pools"
        return [Finding(Verdict.WARN, "pools", "there is no TrainingPool, so no job can run", fix)]
    return [_pool(pool, nodes) for pool in found]


def _pool(pool: Raw, nodes: Sequence[Raw] | None) -> Finding:
    check, spec = f"pool/{pool['metadata']['name']}", PoolSpec.stored(pool["spec"])
    if nodes is None:
        return Finding(Verdict.UNKNOWN, check, "whether nodes fit it was not checked: you may not list nodes")
    labelled = [node for node in nodes if _fits(node, spec.node_selector)]
    selector = ",".join(f"{key}={value}" for key, value in spec.node_selector.items()) or "(any)"
    if not labelled:
        fix = f"correct nodeSelector of the pool, or label nodes: kubectl get nodes -l '{selector}'"
        return Finding(Verdict.WARN, check, f"no node has its labels {selector}", fix)
    resource = spec.device_resource
    able = [node for node in labelled if resource is None or _devices(node, resource) >= spec.devices_per_node]
    if not able:
        said = f"{plural(len(labelled), 'node')} with its labels, none with {spec.devices_per_node} {resource}"
        return Finding(Verdict.WARN, check, said, "see why the device plugin does not run there, or correct the pool")
    ready = [node for node in able if _ready(node)]
    if not ready:
        return Finding(
            Verdict.WARN, check, f"none of its {plural(len(able), 'node')} is ready", "see kubectl get nodes"
        )
    return Finding(Verdict.OK, check, f"{len(ready)} of {plural(len(able), 'node')} ready")


def _fits(node: Raw, selector: Mapping[str, str]) -> bool:
    labels = node["metadata"].get("labels") or {}
    return all(labels.get(key) == value for key, value in selector.items())


def _devices(node: Raw, resource: str) -> int:
    return int(((node.get("status") or {}).get("allocatable") or {}).get(resource) or 0)


def _ready(node: Raw) -> bool:
    conditions = (node.get("status") or {}).get("conditions") or []
    ready = any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)
    return ready and not (node.get("spec") or {}).get("unschedulable")
