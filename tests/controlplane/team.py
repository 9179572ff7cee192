# SPDX-License-Identifier: Apache-2.0
"""A namespace with a workspace, and what its users do and see."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import Any, TypeVar

import yaml

from kinema_cluster.control_plane import ControlPlane

from tests.controlplane.installation import ROOT
from tests.controlplane.kubelet import Kubelet, Rules
from tests.waiting import until

STAGES = ["check", "prepare", "features", "convert", "train", "export", "sample"]
DEADLINE = 60.0

Raw = dict[str, Any]
T = TypeVar("T")


@dataclass
class Team:
    """A namespace with a workspace, and the jobs in it."""

    plane: ControlPlane
    kubelet: Kubelet
    namespace: str

    @property
    def rules(self) -> Rules:
        return self.kubelet.rules(self.namespace)

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        return self.plane.kubectl("-n", self.namespace, *arguments, text=text)

    def apply(self, name: str = "wan", **spec: Any) -> Raw:
        """`kubectl apply` of a job over a tiny model, two training nodes and short waits."""
        manifest = yaml.safe_load((ROOT / "examples" / "wan-job.yaml").read_text())
        manifest["metadata"] = {"name": name}
        manifest["spec"]["policy"] = {"restarts": {"limit": 3, "backoffSeconds": 0}}
        manifest["spec"].update(spec)
        self.kubectl("apply", "-f", "-", text=json.dumps(manifest))
        return self.job(name)

    def job(self, name: str = "wan") -> Raw:
        found: Raw = self._get(f"apis/kinema.dev/v1alpha1/namespaces/{self.namespace}/videotrainingjobs/{name}")
        return found

    def status(self, name: str = "wan") -> Raw:
        return self.job(name).get("status") or {}

    def stage(self, stage: str, name: str = "wan") -> Raw:
        stages = self.status(name).get("stages") or []
        return next((entry for entry in stages if entry["name"] == stage), {})

    def children(self) -> dict[str, Raw]:
        """Every Job and PyTorchJob, by name."""
        jobs = self._get(f"apis/batch/v1/namespaces/{self.namespace}/jobs")["items"]
        gangs = self._get(f"apis/kubeflow.org/v1/namespaces/{self.namespace}/pytorchjobs")["items"]
        return {item["metadata"]["name"]: item for item in [*jobs, *gangs]}

    def pods(self) -> list[Raw]:
        found: list[Raw] = self._get(f"api/v1/namespaces/{self.namespace}/pods")["items"]
        return found

    def told(self, name: str = "wan") -> list[tuple[str, str]]:
        """Reason and message of each Event about a job."""
        events = json.loads(self.kubectl("get", "events", "-o", "json"))["items"]
        return [(entry["reason"], entry["message"]) for entry in events if entry["involvedObject"]["name"] == name]

    def reaches(self, phase: str, name: str = "wan") -> Raw:
        """The status once the job has reached a phase."""
        until(f"{name} is not {phase}: {self.status(name)}", lambda: self.status(name).get("phase") == phase)
        return self.status(name)

    def runs(self, stage: str, attempt: int = 1, name: str = "wan") -> None:
        """Wait until containers of an attempt run."""
        uid = self.job(name)["metadata"]["uid"]
        until(f"{stage} {attempt} does not run", lambda: attempt in self.kubelet.attempts(uid, stage))

    def _get(self, path: str) -> Any:
        return self.plane.api.get(f"/{path}")


def make_team(plane: ControlPlane, kubelet: Kubelet) -> Team:
    """A new namespace; its claim is bound."""
    namespace = f"team-{uuid.uuid4().hex[:6]}"
    claim = "kinema-workspace"
    capacity = {"storage": "1Gi"}
    common = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    plane.apply(
        [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": namespace},
                "spec": {
                    **common,
                    "capacity": capacity,
                    "hostPath": {"path": "/nowhere"},
                    "claimRef": {"namespace": namespace, "name": claim},
                },
            },
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": claim, "namespace": namespace},
                "spec": {**common, "volumeName": namespace, "resources": {"requests": capacity}},
            },
        ]
    )
    bound = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{claim}"
    until("the claim is not bound", lambda: plane.api.get(bound)["status"].get("phase") == "Bound")
    return Team(plane, kubelet, namespace)
