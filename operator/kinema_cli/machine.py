# SPDX-License-Identifier: Apache-2.0
"""What this machine computes on: locally the machine is the pool."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass

from kinema_api.pool import Accelerator, PoolSpec
from kinema_cli.errors import CommandError

_TOOLS = {
    Accelerator.NVIDIA: (["nvidia-smi", "--list-gpus"], r"^GPU \d+:"),
    Accelerator.ASCEND: (["npu-smi", "info", "-l"], r"^\s*NPU ID\s*:"),
}


@dataclass(frozen=True, slots=True)
class Machine:
    """Its accelerator, and how many of them there are; None on a CPU, where devices count processes."""

    accelerator: Accelerator
    count: int | None


def detect(wanted: Accelerator | None) -> Machine:
    """The machine's accelerator.

    Raises:
        CommandError: the wanted one is not here.
    """
    if wanted is not Accelerator.CPU:
        for accelerator in (wanted,) if wanted else (Accelerator.NVIDIA, Accelerator.ASCEND):
            if count := _count(accelerator):
                return Machine(accelerator, count)
        if wanted is not None:
            tool = _TOOLS[wanted][0][0]
            raise CommandError(f"--accelerator {wanted}: {tool} shows none on this machine; use --accelerator cpu")
    return Machine(Accelerator.CPU, None)


def pool(machine: Machine, *, devices: int) -> PoolSpec:
    """The pool that the machine is.

    Raises:
        CommandError: it has fewer devices.
    """
    if machine.count is not None and devices > machine.count:
        raise CommandError(
            f"training asks for {devices} devices of a node, this machine has {machine.count}: add --devices"
            f" {machine.count}; a step then adds up more passes and takes as many clips as before"
        )
    return PoolSpec(accelerator=machine.accelerator, devices_per_node=devices, nodes=1)


def _count(accelerator: Accelerator) -> int:
    command, line = _TOOLS[accelerator]
    if shutil.which(command[0]) is None:
        return 0
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return len(re.findall(line, done.stdout, re.MULTILINE)) if done.returncode == 0 else 0
