# SPDX-License-Identifier: Apache-2.0
"""What each kind of accelerator asks of a training pod, as data.

NVIDIA: NCCL's and PyTorch's documented variables. Ascend: MindCluster's samples and CANN's documented variables; a
PyTorchJob gets no rank table (ascend-operator does not watch it), so HCCL starts from MASTER_ADDR and MASTER_PORT.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from kinema_api.pool import Accelerator, PoolSpec

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
    values = {**_COLLECTIVES[pool.accelerator], **_gloo(pool.fabric.env), **pool.fabric.env}
    env: list[Raw] = [{"name": name, "value": value} for name, value in sorted(values.items())]
    if pool.accelerator is Accelerator.ASCEND and pool.fabric.host_network:
        # MindCluster: set it with the host's network, and only then.
        env.append({"name": "HCCL_IF_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}})
    return env


def _gloo(env: Mapping[str, str]) -> dict[str, str]:
    """Gloo carries what is not for the accelerators; left alone, it may choose an interface that no other node reaches.

    Gloo takes a name, NCCL prefixes of names, unless one begins with "=": only such a name can be passed on.
    """
    named = env.get("NCCL_SOCKET_IFNAME") or env.get("HCCL_SOCKET_IFNAME") or ""
    exact = re.fullmatch(r"=([a-zA-Z0-9._-]+)", named)
    return {"GLOO_SOCKET_IFNAME": exact[1]} if exact else {}


def device_env(pool: PoolSpec) -> list[Raw]:
    """Variables for any pod that holds accelerators of the pool."""
    if pool.accelerator is Accelerator.ASCEND and pool.scheduler_name == "volcano":
        # ascend-volcano-plugin writes the chosen chips into the annotation; without the plugin it never appears.
        path = f"metadata.annotations['{pool.device_resource}']"
        return [{"name": "ASCEND_VISIBLE_DEVICES", "valueFrom": {"fieldRef": {"fieldPath": path}}}]
    return []
