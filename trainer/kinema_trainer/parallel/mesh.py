# SPDX-License-Identifier: Apache-2.0
"""The process groups and device meshes of a layout, as one process sees them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from kinema_trainer.parallel.collectives import Axis
from kinema_trainer.parallel.layout import Coordinates, ParallelLayout

WORLD, PIPELINE, REPLICATE, CUT, TENSOR = "world", "pipeline", "replicate", "cut", "tensor"


@dataclass(frozen=True, slots=True, eq=False)
class Mesh:
    """Where this process stands, and whom it exchanges what with.

    Args:
        layout: all processes.
        rank: this one.
        tensor: those that share its matrices.
        ulysses: those that share its tokens by trading heads.
        ring: those that share its tokens by passing keys and values on.
        data: the mesh over which parameters are copied and cut; None where no other process has them.
        matrices: the mesh over which tensor parallelism cuts; None without.
    """

    layout: ParallelLayout = field(default_factory=ParallelLayout.alone)
    rank: int = 0
    tensor: Axis = field(default_factory=Axis)
    ulysses: Axis = field(default_factory=Axis)
    ring: Axis = field(default_factory=Axis)
    data: DeviceMesh | None = None
    matrices: DeviceMesh | None = None

    @property
    def at(self) -> Coordinates:
        """This process's place."""
        return self.layout.coordinates(self.rank)

    @classmethod
    def make(cls, layout: ParallelLayout, *, device: str, wrap: bool = False) -> Mesh:
        """Make every group of a layout; all processes call it at the same time.

        Args:
            layout: of as many processes as there are.
            device: the type of device that computes.
            wrap: give parameters a mesh of one process where no other has them, for FSDP2's mixed precision.
        """
        rank, sizes = dist.get_rank(), layout.sizes
        world = init_device_mesh(device, (layout.world,), mesh_dim_names=(WORLD,))
        axes = world._unflatten(
            0,
            (sizes.pipeline, layout.data, sizes.ring, sizes.ulysses, sizes.tensor),
            (PIPELINE, "samples", "ring", "ulysses", "matrices"),
        )
        parameters = world._unflatten(
            0, (sizes.pipeline, layout.copies, layout.cut, sizes.tensor), (PIPELINE, REPLICATE, CUT, TENSOR)
        )
        names = tuple(
            name
            for name, size in ((REPLICATE, layout.copies), (CUT, layout.cut))
            if size > 1 or (name == CUT and wrap and layout.copies == 1)
        )
        return cls(
            layout=layout,
            rank=rank,
            tensor=_axis(parameters, TENSOR),
            ulysses=_axis(axes, "ulysses"),
            ring=_axis(axes, "ring"),
            data=parameters[names] if names else None,
            matrices=parameters[TENSOR] if sizes.tensor > 1 else None,
        )


def _axis(mesh: DeviceMesh, name: str) -> Axis:
    part = mesh[name]
    return Axis(size=part.size(), rank=part.get_local_rank(), group=part.get_group())
