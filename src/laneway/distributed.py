"""Which rank of how many this process is: the only module that asks torch.distributed."""

from __future__ import annotations

import os

import torch.distributed as dist

from laneway.shards import plain_int


def data_parallel_rank(rank: int | None = None, world_size: int | None = None) -> tuple[int, int]:
    """Return rank and world size of this process.

    Args:
        rank: Given by the user, together with `world_size`; None: torch.distributed's where it is initialised,
            else the variables RANK and WORLD_SIZE of the environment, else 0 of 1.
        world_size: Number of ranks.

    Raises:
        ValueError: One is given without the other, or the rank is not in [0, world_size).
    """
    origin = "rank and world_size"
    if rank is None and world_size is None:
        if dist.is_available() and dist.is_initialized():
            rank, world_size = dist.get_rank(), dist.get_world_size()
        else:
            origin = "the environment's RANK and WORLD_SIZE"
            rank, world_size = _environment("RANK"), _environment("WORLD_SIZE")
            if rank is None and world_size is None:
                return 0, 1
    if rank is None or world_size is None:
        message = f"{origin} belong together: rank is {rank}, world_size is {world_size}; give both or neither"
        raise ValueError(message)
    if (plain_rank := plain_int(rank)) is None or (plain_size := plain_int(world_size)) is None:
        message = f"{origin} must be ints, not {rank!r} and {world_size!r}"
        raise TypeError(message)
    if not 0 <= plain_rank < plain_size:
        message = f"{origin}: rank {rank} is not in [0, {world_size})"
        raise ValueError(message)
    return plain_rank, plain_size


def _environment(name: str) -> int | None:
    value = os.environ.get(name)
    if value is None:
        return None
    try:
        return int(value)
    except ValueError:
        message = f"the environment's {name} is {value!r}, which is no int; unset it or give rank and world_size"
        raise ValueError(message) from None
