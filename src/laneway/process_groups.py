"""Process groups and device meshes of torch.distributed: the group of the ranks, with a CPU backend."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, TypeAlias, final

import torch.distributed as dist

from laneway.errors import LanewayError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    ProcessGroup: TypeAlias = dist.ProcessGroup | DeviceMesh


def is_initialised() -> bool:
    """Return whether torch.distributed is initialised in this process."""
    return dist.is_available() and dist.is_initialized()


def as_group(process_group: ProcessGroup | None) -> dist.ProcessGroup | None:
    """Return the process group of a one-dimensional DeviceMesh, and any other value as it is.

    Raises:
        ValueError: The DeviceMesh has several dimensions.
    """
    if process_group is None or isinstance(process_group, dist.ProcessGroup):
        return process_group
    if process_group.ndim != 1:
        names = process_group.mesh_dim_names
        message = (
            f"process_group is a DeviceMesh of {process_group.ndim} dimensions {names}: "
            'give its data-parallel dimension, such as mesh["dp"]'
        )
        raise ValueError(message)
    return process_group.get_group()


def cpu_group(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    """Return a group of the same ranks with a CPU backend: the group itself if it has one."""
    world = dist.group.WORLD if group is None else group
    config = dist.get_backend_config(world)
    return world if "cpu:" in config or config == "gloo" else new_gloo_group(world)  # type: ignore[return-value]


def new_gloo_group(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    """Create a gloo group of the same ranks; all of them must call it."""
    ranks = dist.get_process_group_ranks(group)
    # With local synchronisation only the members must call it, not the whole world.
    created: dist.ProcessGroup = dist.new_group(ranks, backend="gloo", use_local_synchronization=True)
    return created


@final
class WeakGroup:
    """A process group that ends when the user destroys it.

    A reference would keep its threads running after `destroy_process_group()`, and gloo's may abort a process that
    exits meanwhile.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        """Refer to a group, which torch.distributed holds until it is destroyed."""
        self._reference = weakref.ref(group)

    def get(self) -> dist.ProcessGroup:
        """Return the group.

        Raises:
            LanewayError: It was destroyed.
        """
        group = self._reference()
        if group is None:
            message = "the process group was destroyed: create the loader after the last init_process_group()"
            raise LanewayError(message)
        return group
