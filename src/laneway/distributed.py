"""Which rank of how many this process is, and what ranks tell each other: the only module that uses torch.distributed.

Ranks agree before they raise: a call that fails on one rank fails on all of them with the same error, and none is left
waiting for another.
"""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar

import torch.distributed as dist

from laneway import errors
from laneway.arguments import plain_int
from laneway.catalog.manifest import Manifest
from laneway.errors import CollectiveError, LanewayError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch.distributed.device_mesh import DeviceMesh

    from laneway.catalog.caching import CacheDir
    from laneway.catalog.manifest import Source
    from laneway.storage.filesystem import FileSystem
    from laneway.storage.retries import RetryPolicy

    ProcessGroup: TypeAlias = dist.ProcessGroup | DeviceMesh

Value = TypeVar("Value")


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
        if _is_initialised():
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


def rank_in_group(process_group: ProcessGroup) -> tuple[int, int]:
    """Return rank and world size of this process in a group, or in a one-dimensional DeviceMesh.

    Raises:
        ValueError: There is no such group, or this process doesn't belong to it.
    """
    if not _is_initialised():
        message = "process_group is given, but torch.distributed is not initialised: call init_process_group() before"
        raise ValueError(message)
    group = _as_group(process_group)
    rank = dist.get_rank(group)
    if rank < 0:
        message = "this process does not belong to the process_group that was given"
        raise ValueError(message)
    return rank, dist.get_world_size(group)


def scan_once(
    source: Source,
    *,
    format: str | None = None,  # noqa: A002 - the name that users know
    filesystem: FileSystem | None = None,
    storage_options: Mapping[str, Any] | None = None,
    retries: RetryPolicy | None = None,
    progress: bool | None = None,
    cache_dir: CacheDir = None,
    process_group: ProcessGroup | None = None,
) -> Manifest:
    """Return on all ranks the manifest that rank 0 scans: the storage sees one planner, whatever the world size.

    Must be called by all ranks; an error on rank 0 is raised on all of them. Give what it returns, and the filesystem
    or the storage options again, to `StatefulShardedDataset`. A process without torch.distributed scans for itself.

    Args:
        source: As for `Manifest.scan`, and so are the next ones; they count on rank 0.
        format: "parquet" or "arrow"; None finds out.
        filesystem: The filesystem that `source` is a path of.
        storage_options: Arguments for the filesystem that the URL names.
        retries: What is tried again when the storage fails.
        progress: Whether rank 0 shows a bar.
        cache_dir: Where rank 0 keeps the manifest for the next start.
        process_group: The group, or one-dimensional DeviceMesh, of the ranks; None: all of them.

    Raises:
        ValueError: There are several ranks, but torch.distributed is not initialised.
        DataFileError: As `Manifest.scan` raises it on rank 0.
        SchemaMismatchError: As `Manifest.scan` raises it on rank 0.
        CollectiveError: A rank could not be reached.
    """
    rank, world_size = data_parallel_rank()
    if world_size > 1 and not _is_initialised():
        message = (
            f"this is rank {rank} of {world_size}, but torch.distributed is not initialised, so that rank 0 can't tell "
            "the others what it finds: call init_process_group() before scan_once()"
        )
        raise ValueError(message)

    def scan() -> Manifest:
        return Manifest.scan(
            source,
            format=format,
            filesystem=filesystem,
            storage_options=storage_options,
            retries=retries,
            progress=progress,
            cache_dir=cache_dir,
        )

    return Ranks.of(process_group, rank, world_size).broadcast(scan, src_rank=0)


@dataclass(frozen=True, slots=True)
class Ranks:
    """The data-parallel ranks of a job, which can talk to each other."""

    rank: int
    """Data-parallel rank of this process."""
    world_size: int
    """Number of data-parallel ranks."""
    group: dist.ProcessGroup | None
    """A group that can send from the CPU; None where there is nobody to talk to."""

    @classmethod
    def of(cls, process_group: ProcessGroup | None, rank: int, world_size: int) -> Self:
        """Return the ranks of a group, or by default of the whole world.

        Must be called by all ranks: where the group can't send from the CPU, a gloo group is made beside it.

        Args:
            process_group: The group or one-dimensional DeviceMesh of the data-parallel ranks.
            rank: What this process takes for its data-parallel rank, where there are no process groups.
            world_size: What it takes for the number of ranks.

        Raises:
            ValueError: There are several ranks, but no process group.
        """
        if process_group is None and not _is_initialised():
            if world_size > 1:
                message = (
                    f"this is rank {rank} of {world_size}, but torch.distributed is not initialised, so ranks can't "
                    "talk: call init_process_group(), or save_state_rank() on each rank and merge_states()"
                )
                raise ValueError(message)
            return cls(rank, world_size, None)
        group = _as_group(process_group)
        return cls(dist.get_rank(group), dist.get_world_size(group), _on_cpu(group))

    def fresh(self) -> Self:
        """Return the same ranks with a group of their own, for a thread that talks while another one does.

        Must be called by all ranks.
        """
        return self if self.group is None else type(self)(self.rank, self.world_size, _gloo(self.group))

    def check(self, rank: int, world_size: int) -> None:
        """Check that this process is the rank that it takes itself for.

        Raises:
            ValueError: It is another one in the process group.
        """
        if (self.rank, self.world_size) != (rank, world_size):
            message = (
                f"the dataset is of rank {rank} of {world_size}, but this process is rank {self.rank} of "
                f"{self.world_size} in the process group: give process_group= the group of the data-parallel ranks"
            )
            raise ValueError(message)

    def gather(self, work: Callable[[], Value], dst_rank: int | None = None) -> list[Value] | None:
        """Return what `work` returned on each rank, in the order of ranks.

        Must be called by all ranks. An error on one of them is raised on all.

        Args:
            work: Called on every rank.
            dst_rank: The rank that gets the values, others get None; None: all get them.
        """
        value = self.agree(lambda: _pickled("dst_rank", dst_rank, self.world_size, work()), f"dst_rank={dst_rank!r}")
        if self.group is None:
            return [pickle.loads(value)]  # noqa: S301 - made above
        gathered: list[Any] = [None] * self.world_size
        if dst_rank is None:
            self._together(lambda: dist.all_gather_object(gathered, value, group=self.group))
        else:
            mine = gathered if self.rank == dst_rank else None
            self._together(lambda: dist.gather_object(value, mine, group=self.group, group_dst=dst_rank))
            if mine is None:
                return None
        return [pickle.loads(each) for each in gathered]  # noqa: S301 - made by ranks of the same job

    def broadcast(self, work: Callable[[], Value], src_rank: int) -> Value:
        """Return on all ranks what `work` returned on rank `src_rank`.

        Must be called by all ranks. An error on that rank is raised on all.
        """

        def sent() -> bytes:
            return _pickled("src_rank", src_rank, self.world_size, work() if self.rank == src_rank else None)

        values: list[Any] = [self.agree(sent, f"src_rank={src_rank!r}")]
        if self.group is not None:
            self._together(lambda: dist.broadcast_object_list(values, group=self.group, group_src=src_rank))
        value: Value = pickle.loads(values[0])  # noqa: S301 - made by a rank of the same job
        return value

    def agree(self, work: Callable[[], Value], call: str = "") -> Value:
        """Return what `work` returns here; if it raises on any rank, raise that error on all of them.

        Must be called by all ranks.

        Args:
            work: Called on every rank.
            call: What is to be alike on all of them.

        Raises:
            LanewayError: Of the class that was raised on the first rank that failed, or because calls differ.
            CollectiveError: A rank could not be reached.
        """
        if self.group is None:
            return work()
        value, failure = None, None
        try:
            value = work()
        except Exception as error:  # noqa: BLE001 - whatever it is, the other ranks have to hear of it
            failure = error
        reports: list[Any] = [None] * self.world_size
        report = (call, None if failure is None else (type(failure).__name__, str(failure)))
        self._together(lambda: dist.all_gather_object(reports, report, group=self.group))
        failed = [rank for rank, (_, error) in enumerate(reports) if error is not None]
        if failed:
            name, text = reports[failed[0]][1]
            others = f" (and on {len(failed) - 1} more)" if len(failed) > 1 else ""
            message = f"on rank {failed[0]}{others}: {text}"
            raise _error_named(name)(message) from failure
        for rank, (other, _) in enumerate(reports):
            if other != reports[0][0]:
                message = f"ranks must call alike: rank 0 gave {reports[0][0] or 'none'}, rank {rank} {other or 'none'}"
                raise LanewayError(message)
        return value  # type: ignore[return-value]

    def _together(self, collective: Callable[[], object]) -> None:
        try:
            collective()
        except RuntimeError as error:
            message = (
                f"rank {self.rank} of {self.world_size} could not reach the other ranks, "
                f"one of them has died or is not taking part: {error}"
            )
            raise CollectiveError(message) from error


def _pickled(name: str, rank: int | None, world_size: int, value: object) -> bytes:
    """Return a value as bytes: what can't be pickled, or sent there, is found before any rank waits for it."""
    if rank is not None and (plain_int(rank) is None or not 0 <= rank < world_size):
        message = f"{name} must be a data-parallel rank in [0, {world_size}), not {rank!r}"
        raise ValueError(message)
    return pickle.dumps(value)


def _is_initialised() -> bool:
    return dist.is_available() and dist.is_initialized()


def _as_group(process_group: ProcessGroup | None) -> dist.ProcessGroup | None:
    if process_group is None or isinstance(process_group, dist.ProcessGroup):
        return process_group
    if process_group.ndim != 1:
        names = process_group.mesh_dim_names
        message = (
            f"process_group is a DeviceMesh of {process_group.ndim} dimensions {names}: "
            'give the data-parallel one, such as mesh["dp"]'
        )
        raise ValueError(message)
    return process_group.get_group()


def _error_named(name: str) -> type[Exception]:
    if name in {"TypeError", "ValueError"}:
        return TypeError if name == "TypeError" else ValueError
    found = getattr(errors, name, None)
    return found if isinstance(found, type) and issubclass(found, LanewayError) else LanewayError


def _on_cpu(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    world = dist.group.WORLD if group is None else group
    config = dist.get_backend_config(world)
    return world if "cpu:" in config or config == "gloo" else _gloo(world)  # type: ignore[return-value]


def _gloo(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    ranks = dist.get_process_group_ranks(group)
    # With local synchronisation only the members have to call, not the whole world.
    made: dist.ProcessGroup = dist.new_group(ranks, backend="gloo", use_local_synchronization=True)
    return made
