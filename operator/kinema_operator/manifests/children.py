# SPDX-License-Identifier: Apache-2.0
"""The child object that carries an attempt: a Job, an Indexed Job, or a PyTorchJob."""

from __future__ import annotations

from typing import Any

from kinema_api.names import API_VERSION, JOB_KIND, Stage
from kinema_operator.manifests.attempt import AttemptPlan
from kinema_operator.manifests.pod import labels, template

Raw = dict[str, Any]


def child(plan: AttemptPlan) -> Raw:
    """The manifest of an attempt's child.

    A child never restarts anything by itself: each failure ends the attempt, so that one counter holds them all.
    """
    return _pytorch_job(plan) if plan.stage is Stage.TRAIN else _job(plan)


def _metadata(plan: AttemptPlan) -> Raw:
    owner = {
        "apiVersion": API_VERSION,
        "kind": JOB_KIND,
        "name": plan.job.name,
        "uid": plan.job.uid,
        "controller": True,
    }
    return {
        "name": plan.name,
        "namespace": plan.job.namespace,
        "labels": labels(plan),
        "ownerReferences": [owner],
    }


def _job(plan: AttemptPlan) -> Raw:
    spec: Raw = {"backoffLimit": 0, "podReplacementPolicy": "Failed", "template": template(plan)}
    if plan.stage is Stage.FEATURES:
        workers = plan.stages.features.workers
        spec = {"completionMode": "Indexed", "completions": workers, "parallelism": workers, **spec}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": _metadata(plan), "spec": spec}


def _pytorch_job(plan: AttemptPlan) -> Raw:
    """One Master and, over several nodes, Workers; static rendezvous at the Master."""
    pods = template(plan)

    def replicas(count: int) -> Raw:
        return {"replicas": count, "restartPolicy": "Never", "template": pods}

    gang = {"Master": replicas(1)}
    if plan.nodes > 1:
        gang["Worker"] = replicas(plan.nodes - 1)
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": _metadata(plan),
        "spec": {
            # An integer, or training-operator counts each pod as one process in WORLD_SIZE.
            "nprocPerNode": str(plan.devices),
            "runPolicy": {"cleanPodPolicy": "Running"},
            "pytorchReplicaSpecs": gang,
        },
    }
