# SPDX-License-Identifier: Apache-2.0
"""What each kind of accelerator asks of a training pod, as data.

NVIDIA: NCCL's and PyTorch's documented variables. Ascend: MindCluster's samples and CANN's documented variables; a
PyTorchJob gets no rank table (ascend-operator does not watch it), so HCCL starts from MASTER_ADDR and MASTER_PORT.
"""

from __future__ import annotations

from typing import Any

from kinema_api.pool import Accelerator, PodSecurity, PoolSpec

Raw = dict[str, Any]

_COLLECTIVES: dict[Accelerator, dict[str, str]] = {
    # A failed collective ends the process in place of hanging the gang.
    Accelerator.NVIDIA: {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"},
    # Without a rank table there is no host white list; large gangs need more than 120 s to meet (range 120..7200).
    Accelerator.ASCEND: {"HCCL_WHITELIST_DISABLE": "1", "HCCL_CONNECT_TIMEOUT": "600"},
    Accelerator.CPU: {},
}


def collective_env(pool: PoolSpec) -> list[Raw]:
    """Variables for the pods of a gang; the pool's own win over the profile's."""
    values = {**_COLLECTIVES[pool.accelerator], **pool.fabric.env}
    env: list[Raw] = [{"name": name, "value": value} for name, value in sorted(values.items())]
    if pool.accelerator is Accelerator.ASCEND and pool.fabric.host_network:
        # MindCluster: set it with the host's network, and only then.
        env.append({"name": "HCCL_IF_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}})
    return env


def device_env(pool: PoolSpec) -> list[Raw]:
    """Variables for any pod that holds accelerators of the pool."""
    if pool.accelerator is Accelerator.ASCEND and pool.scheduler_name == "volcano":
        # ascend-volcano-plugin writes the chosen chips into the annotation; without the plugin it never appears.
        path = f"metadata.annotations['{pool.device_resource}']"
        return [{"name": "ASCEND_VISIBLE_DEVICES", "valueFrom": {"fieldRef": {"fieldPath": path}}}]
    return []


def capabilities(pool: PoolSpec | None, *, gang: bool) -> Raw:
    """Linux capabilities of the container. RDMA pins memory, which only a privileged namespace may grant."""
    drop: Raw = {"drop": ["ALL"]}
    if pool is not None and gang and pool.pod_security is PodSecurity.PRIVILEGED and pool.fabric.resources:
        return {**drop, "add": ["IPC_LOCK"]}
    return drop
