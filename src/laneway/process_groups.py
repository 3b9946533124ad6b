"""Process groups and device meshes of torch.distributed: the group of the ranks, and its store."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import torch.distributed as dist

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.distributed_c10d import Store

    ProcessGroup: TypeAlias = dist.ProcessGroup | DeviceMesh


def is_initialised() -> bool:
    """Return whether torch.distributed is initialised in this process."""
    return dist.is_available() and dist.is_initialized()


def as_group(process_group: ProcessGroup | None) -> dist.ProcessGroup:
    """Return the process group of a one-dimensional DeviceMesh, a process group as it is, and the world for None.

    Raises:
        ValueError: The DeviceMesh has several dimensions.
        TypeError: It is neither.
    """
    if process_group is None:
        world: dist.ProcessGroup = dist.group.WORLD  # type: ignore[assignment]
        return world
    if isinstance(process_group, dist.ProcessGroup):
        return process_group
    # A DeviceMesh, without importing its module, which torch may be built without.
    if not hasattr(process_group, "get_group") or not hasattr(process_group, "mesh_dim_names"):
        message = f"process_group must be a process group or a DeviceMesh of torch.distributed, not {process_group!r}"
        raise TypeError(message)
    if process_group.ndim != 1:
        names = process_group.mesh_dim_names
        message = (
            f"process_group is a DeviceMesh of {process_group.ndim} dimensions {names}: "
            'give its data-parallel dimension, such as mesh["dp"]'
        )
        raise ValueError(message)
    return process_group.get_group()


def store_of(group: dist.ProcessGroup) -> Store:
    """Return the store that the members of a group met in; keys of other groups don't collide with theirs.

    torch.distributed holds it until the group is destroyed.

    Raises:
        ValueError: The group has no store, as with MPI.
    """
    # torch 2.6 has no public way to it.
    store: Store | None = dist.distributed_c10d._get_process_group_store(group)  # noqa: SLF001
    if store is None:
        message = (
            f"the process group of backend {dist.get_backend(group)!r} has no store, over which ranks communicate: "
            "call save_state_rank() on each rank and merge_states(), or use another backend"
        )
        raise ValueError(message)
    return store
