# SPDX-License-Identifier: Apache-2.0
"""`TrainingPool`: a kind of node, described once by the administrator."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from kinema_api.base import (
    LabelKey,
    LabelMap,
    Model,
    Name,
    ObjectName,
    Quantity,
    QuantityMap,
    ShortText,
    StringMap,
    Word,
    rules,
)


class Accelerator(Word):
    """What a pool computes on."""

    NVIDIA = "nvidia"
    ASCEND = "ascend"
    CPU = "cpu"


class PodSecurity(Word):
    """The Pod Security standard that pods of the pool keep."""

    RESTRICTED = "restricted"
    BASELINE = "baseline"
    PRIVILEGED = "privileged"


class TolerationOperator(Word):
    """How a toleration compares."""

    EXISTS = "Exists"
    EQUAL = "Equal"


class Toleration(Model):
    """A taint that pods of the pool tolerate."""

    key: Annotated[str, Field(max_length=317)] | None = None
    """The taint's key; all taints when left out."""
    operator: TolerationOperator = TolerationOperator.EXISTS
    """Exists or Equal."""
    value: Annotated[str, Field(max_length=63)] | None = None
    """The taint's value (Equal only)."""
    effect: Annotated[str, Field(max_length=32)] | None = None
    """NoSchedule, PreferNoSchedule or NoExecute; all when left out."""


class Fabric(Model):
    """How nodes of the pool talk to each other."""

    host_network: bool = False
    """Use the node's network; needs podSecurity privileged, and one training pod a node."""
    resources: QuantityMap = Field(default_factory=dict)
    """Device-plugin resources of a multi-node training pod, as the cluster names them, for instance
    {rdma/hca_shared_devices_a: "1"}. RDMA pins memory: the nodes' container runtime needs an unlimited memlock."""
    env: StringMap = Field(default_factory=dict)
    """Variables of training pods, for instance {NCCL_IB_HCA: "=mlx5_0,mlx5_1", NCCL_SOCKET_IFNAME: eth0} or
    {HCCL_CONNECT_TIMEOUT: "600"}. They win over the profile's."""


class HostPath(Model):
    """A folder of the node that pods of the pool see, such as the Ascend driver. Needs podSecurity privileged."""

    name: Name
    """Name of the volume."""
    path: Annotated[str, Field(max_length=1024, pattern=r"^/")]
    """The folder on the node, and in the pod."""
    read_only: bool = True
    """Whether the pod may only read it."""


class Prices(Model):
    """What the pool costs, for people who choose one."""

    device_hour: float = Field(ge=0, le=1e6)
    """Price of one accelerator for an hour."""
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$", max_length=3)] = "USD"
    """ISO 4217 code."""


class PoolSpec(Model):
    """A kind of node."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.accelerator != 'cpu' || !has(self.resourceName)",
                "a cpu pool has no resourceName: devicesPerNode counts processes",
            ),
            (
                "!(has(self.fabric) && has(self.fabric.hostNetwork) && self.fabric.hostNetwork)"
                " || (has(self.podSecurity) && self.podSecurity == 'privileged')",
                "fabric.hostNetwork needs podSecurity: privileged",
            ),
            (
                "!has(self.hostPaths) || size(self.hostPaths) == 0"
                " || (has(self.podSecurity) && self.podSecurity == 'privileged')",
                "hostPaths need podSecurity: privileged",
            ),
        )
    )

    accelerator: Accelerator
    """nvidia, ascend or cpu."""
    devices_per_node: int = Field(ge=1, le=64)
    """Accelerators of one node; processes for a cpu pool."""
    nodes: int = Field(default=100, ge=1, le=100_000)
    """Nodes of the pool: a job that asks for more is refused at once."""
    device_memory: Quantity | None = None
    """Memory of one accelerator (of one process, on a cpu pool), for instance 80Gi: a training job that cannot fit is
    refused before anything is booked. Nobody is refused for memory when left out."""
    resource_name: LabelKey | None = None
    """The device plugin's resource: nvidia.com/gpu, huawei.com/Ascend910 (default) or huawei.com/npu."""
    node_selector: LabelMap = Field(default_factory=dict)
    """Labels that nodes of the pool carry."""
    tolerations: list[Toleration] = Field(default_factory=list, max_length=16)
    """Taints of the pool's nodes."""
    labels: LabelMap = Field(default_factory=dict)
    """Labels put on pods, for instance {ring-controller.atlas: ascend-910b}."""
    annotations: LabelMap = Field(default_factory=dict)
    """Annotations put on pods, for instance {huawei.com/schedule_policy: chip8-node8}."""
    scheduler_name: ObjectName | None = None
    """The scheduler of the pool's pods, for instance volcano."""
    runtime_class_name: ObjectName | None = None
    """The RuntimeClass of the pool's pods, for instance nvidia."""
    per_device: QuantityMap = Field(default_factory=dict)
    """CPU and memory that a pod asks for with each accelerator, for instance {cpu: "12", memory: 120Gi}."""
    shared_memory: Quantity | None = None
    """Size of /dev/shm of a training pod, for instance 64Gi; it counts against the pod's memory."""
    fabric: Fabric = Field(default_factory=Fabric)
    """How nodes talk to each other."""
    host_paths: list[HostPath] = Field(default_factory=list, max_length=16)
    """Folders of the node that pods see."""
    pod_security: PodSecurity = PodSecurity.RESTRICTED
    """The Pod Security standard that pods of this pool keep: restricted, baseline or privileged."""
    prices: Prices | None = None
    """What the pool costs."""
    description: ShortText = ""
    """For people who choose a pool."""

    @property
    def device_resource(self) -> str | None:
        """The extended resource that counts accelerators; None on a cpu pool."""
        default = {Accelerator.NVIDIA: "nvidia.com/gpu", Accelerator.ASCEND: "huawei.com/Ascend910"}
        return self.resource_name or default.get(self.accelerator)
