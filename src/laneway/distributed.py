"""The rank of this process, and communication between ranks: the only module with collectives.

Ranks agree before they raise: a call that fails on one rank fails on all ranks with the same error, and no rank is left
waiting for another.
"""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import torch.distributed as dist

from laneway import errors
from laneway.arguments import plain_int
from laneway.catalog.manifest import Manifest, scan_source
from laneway.catalog.offers import Offer
from laneway.errors import CollectiveError, LanewayError
from laneway.process_groups import as_group, cpu_group, is_initialised, new_gloo_group
from laneway.reading.selecting import plan_filter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pyarrow.compute as pc

    from laneway.catalog.caching import CacheDir
    from laneway.catalog.manifest import Source
    from laneway.core.selection import Selection
    from laneway.process_groups import ProcessGroup
    from laneway.storage.filesystem import FileSystem
    from laneway.storage.retries import RetryPolicy

Value = TypeVar("Value")


def data_parallel_rank(rank: int | None = None, world_size: int | None = None) -> tuple[int, int]:
    """Return rank and world size of this process.

    Args:
        rank: Rank passed by the user, together with `world_size`. None: the rank from torch.distributed if it is
            initialised, else from the environment variables RANK and WORLD_SIZE, else 0 of 1.
        world_size: Number of ranks.

    Raises:
        ValueError: One is given without the other, or the rank is not in [0, world_size).
        TypeError: One is not an int.
    """
    origin = "rank and world_size"
    if rank is None and world_size is None:
        if is_initialised():
            rank, world_size = dist.get_rank(), dist.get_world_size()
        else:
            origin = "the environment variables RANK and WORLD_SIZE"
            rank, world_size = _int_from_environment("RANK"), _int_from_environment("WORLD_SIZE")
            if rank is None and world_size is None:
                return 0, 1
    if rank is None or world_size is None:
        message = f"{origin} must be given together: rank is {rank}, world_size is {world_size}; give both or neither"
        raise ValueError(message)
    if (plain_rank := plain_int(rank)) is None or (plain_size := plain_int(world_size)) is None:
        message = f"{origin} must be ints, not {rank!r} and {world_size!r}"
        raise TypeError(message)
    if not 0 <= plain_rank < plain_size:
        message = f"{origin}: rank {rank} is not in [0, {world_size})"
        raise ValueError(message)
    return plain_rank, plain_size


def _int_from_environment(name: str) -> int | None:
    value = os.environ.get(name)
    if value is None:
        return None
    try:
        return int(value)
    except ValueError:
        message = f"the environment variable {name} is {value!r}, not an int; unset it or give rank and world_size"
        raise ValueError(message) from None


def check_rank(rank: int, world_size: int) -> None:
    """Check that rank and world size, asked for earlier, are still those of torch.distributed, if it is initialised.

    Raises:
        LanewayError: torch.distributed was initialised since, and this process is another rank.
    """
    if is_initialised() and (rank, world_size) != (dist.get_rank(), dist.get_world_size()):
        message = (
            f"the dataset was created as rank {rank} of {world_size}, but torch.distributed was initialised since, and "
            f"this process is rank {dist.get_rank()} of {dist.get_world_size()}: create the dataset after "
            "init_process_group(), or pass rank= and world_size="
        )
        raise LanewayError(message)


def rank_in_group(process_group: ProcessGroup) -> tuple[int, int]:
    """Return rank and world size of this process in a process group or one-dimensional DeviceMesh.

    Raises:
        ValueError: torch.distributed is not initialised, the DeviceMesh has several dimensions, or this process is not
            in the group.
    """
    if not is_initialised():
        message = "process_group is given, but torch.distributed is not initialised: call init_process_group() first"
        raise ValueError(message)
    group = as_group(process_group)
    rank = dist.get_rank(group)
    if rank < 0:
        message = "this process is not a member of process_group: give a group that contains it"
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
    filter: pc.Expression | Sequence[Any] | None = None,  # noqa: A002 - the name that users know
    process_group: ProcessGroup | None = None,
) -> Manifest:
    """Scan a dataset on rank 0 and return its manifest on all ranks: the storage serves one scan for any world size.

    All ranks must call it. An error on rank 0 is raised on all ranks. Pass the manifest to `StatefulShardedDataset`,
    together with the filesystem or the storage options. Without torch.distributed, the process scans on its own.

    A large manifest is not sent to ranks that can open the file of it, which is that of the cache, or a temporary one
    that is deleted before this returns: they map it into memory, and a host holds it once.

    Args:
        source: A directory, glob, file, URL or sequence of them, as for `Manifest.scan`. This argument and the others
            up to `filter` are only used on rank 0.
        format: "parquet" or "arrow"; None: detected.
        filesystem: An fsspec or pyarrow filesystem; `source` is a path on it.
        storage_options: Arguments for the filesystem that the URL names.
        retries: Policy for retries when the storage fails; None: `RetryPolicy()`.
        progress: Whether rank 0 shows a progress bar; None: only if the scan takes longer than 2 s.
        cache_dir: Directory or URL where rank 0 caches the manifest for the next start, as for `Manifest.scan`.
        filter: A condition of which rank 0 also counts the rows, so that datasets of the manifest with this `filter=`
            don't.
        process_group: Process group, or one-dimensional DeviceMesh, of the ranks; None: all ranks.

    Raises:
        ValueError: There are several ranks, but torch.distributed is not initialised.
        DataFileError: Raised by `Manifest.scan` on rank 0.
        SchemaMismatchError: Raised by `Manifest.scan` on rank 0.
        CollectiveError: A rank could not be reached.
    """

    def scan() -> Manifest:
        manifest, storage = scan_source(
            source,
            format=format,
            filesystem=filesystem,
            storage_options=storage_options,
            retries=retries,
            progress=progress,
            cache_dir=cache_dir,
        )
        return manifest if filter is None else plan_filter(manifest, storage, filter, cache_dir, progress=progress)

    return _ranks_for("scan_once", process_group).share(scan)


def load_once(
    path: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    filesystem: FileSystem | None = None,
    storage_options: Mapping[str, Any] | None = None,
    retries: RetryPolicy | None = None,
    process_group: ProcessGroup | None = None,
) -> Manifest:
    """Load a saved manifest on rank 0 and return it on all ranks: a new remote `root` is listed once for the job.

    All ranks must call it. An error on rank 0 is raised on all ranks. Without torch.distributed, the process loads it
    on its own.

    Args:
        path: Path or URL of the saved manifest. This argument and the others up to `retries` are only used on rank 0.
        root: Current path or URL of the dataset, as for `Manifest.load`.
        filesystem: The filesystem of the path `path` (and `root`).
        storage_options: Arguments for the filesystem of the URL `path` (and `root`).
        retries: Policy for retries when the storage fails; None: `RetryPolicy()`.
        process_group: Process group, or one-dimensional DeviceMesh, of the ranks; None: all ranks.

    Raises:
        ValueError: There are several ranks, but torch.distributed is not initialised.
        DataFileError: Raised by `Manifest.load` on rank 0.
        CollectiveError: A rank could not be reached.
    """
    load = partial(
        Manifest.load, path, root=root, filesystem=filesystem, storage_options=storage_options, retries=retries
    )
    return _ranks_for("load_once", process_group).share(load)


def _ranks_for(function: str, process_group: ProcessGroup | None) -> Ranks:
    rank, world_size = data_parallel_rank()
    if world_size > 1 and not is_initialised():
        message = (
            f"this is rank {rank} of {world_size}, but torch.distributed is not initialised, so rank 0 can't send the "
            f"manifest to the others: call init_process_group() before {function}()"
        )
        raise ValueError(message)
    return Ranks.of(process_group, rank, world_size)


@dataclass(frozen=True, slots=True)
class Ranks:
    """The data-parallel ranks of a job, with a process group to communicate over."""

    rank: int
    """Data-parallel rank of this process."""
    world_size: int
    """Number of data-parallel ranks."""
    group: dist.ProcessGroup | None
    """A process group with a CPU backend; None for a single process without torch.distributed."""

    @classmethod
    def of(cls, process_group: ProcessGroup | None, rank: int, world_size: int) -> Self:
        """Return the ranks of a group, or by default of the whole world.

        All ranks must call it: if the group has no CPU backend, a gloo group of the same ranks is created.

        Args:
            process_group: Process group or one-dimensional DeviceMesh of the data-parallel ranks.
            rank: Data-parallel rank of this process, used without torch.distributed.
            world_size: Number of data-parallel ranks, used without torch.distributed.

        Raises:
            ValueError: There are several ranks, but torch.distributed is not initialised.
        """
        if process_group is None and not is_initialised():
            if world_size > 1:
                message = (
                    f"this is rank {rank} of {world_size}, but torch.distributed is not initialised, so ranks can't "
                    "communicate: call init_process_group(), or save_state_rank() on each rank and merge_states()"
                )
                raise ValueError(message)
            return cls(rank, world_size, None)
        group = as_group(process_group)
        return cls(dist.get_rank(group), dist.get_world_size(group), cpu_group(group))

    def with_own_group(self) -> Self:
        """Return the same ranks with a new group, for a thread that communicates at the same time as another one.

        All ranks must call it.
        """
        return self if self.group is None else type(self)(self.rank, self.world_size, new_gloo_group(self.group))

    def check(self, rank: int, world_size: int) -> None:
        """Check that a dataset has the rank and world size of this process.

        Args:
            rank: Data-parallel rank of the dataset.
            world_size: Number of data-parallel ranks of the dataset.

        Raises:
            ValueError: They differ from those in the process group.
        """
        if (self.rank, self.world_size) != (rank, world_size):
            message = (
                f"the dataset was created for rank {rank} of {world_size}, but this process is rank {self.rank} of "
                f"{self.world_size} in the process group: give process_group= the group of the data-parallel ranks"
            )
            raise ValueError(message)

    def gather(self, work: Callable[[], Value], dst_rank: int | None = None) -> list[Value] | None:
        """Return the results of `work` on all ranks, in the order of ranks.

        All ranks must call it. An error on one rank is raised on all ranks.

        Args:
            work: Called on every rank.
            dst_rank: The rank that receives the results; the others get None. None: all ranks receive them.
        """

        # Pickled before the collective: a value that can't be pickled must not leave other ranks waiting.
        def pickle_result() -> bytes:
            if dst_rank is not None:
                self._check_rank("dst_rank", dst_rank)
            return pickle.dumps(work())

        value = self.agree(pickle_result, f"dst_rank={dst_rank!r}")
        if self.group is None:
            return [pickle.loads(value)]  # noqa: S301 - pickled above
        gathered: list[Any] = [None] * self.world_size
        if dst_rank is None:
            self._run_collective(lambda: dist.all_gather_object(gathered, value, group=self.group))
        else:
            mine = gathered if self.rank == dst_rank else None
            self._run_collective(lambda: dist.gather_object(value, mine, group=self.group, group_dst=dst_rank))
            if mine is None:
                return None
        return [pickle.loads(each) for each in gathered]  # noqa: S301 - pickled by ranks of the same job

    def broadcast(self, work: Callable[[], Value], src_rank: int) -> Value:
        """Call `work` on rank `src_rank` and return its result on all ranks.

        All ranks must call it. An error on that rank is raised on all ranks.
        """

        def pickle_result() -> bytes:
            self._check_rank("src_rank", src_rank)
            return pickle.dumps(work() if self.rank == src_rank else None)

        values: list[Any] = [self.agree(pickle_result, f"src_rank={src_rank!r}")]
        if self.group is not None:
            self._run_collective(lambda: dist.broadcast_object_list(values, group=self.group, group_src=src_rank))
        value: Value = pickle.loads(values[0])  # noqa: S301 - pickled by a rank of the same job
        return value

    def share(self, work: Callable[[], Manifest]) -> Manifest:
        """Call `work` on rank 0 and return its manifest on all ranks, mapped from a file by those that can open it.

        All ranks must call it. An error on rank 0 is raised on all ranks.
        """
        if self.group is None:
            return work()
        made: list[Manifest] = []
        offers: list[Offer] = []
        accepted: list[Manifest] = []

        def make() -> tuple[Offer | None, Manifest | None, tuple[Selection, ...]]:
            made.append(work())
            offers.extend(filter(None, [Offer.of(made[0])]))
            return (offers[0], None, made[0].selections) if offers else (None, made[0], ())

        def accept() -> bool:
            found = cast("Offer", offer).accept()
            accepted.extend([found.with_selections(selections)] if found else [])
            return bool(accepted)

        try:
            offer, sent, selections = self.broadcast(make, src_rank=0)
            # All ranks learn which of them could open the file, so all of them send and receive it, or none.
            if offer is not None and not all(self.gather(accept) or ()):
                sent = self.broadcast(lambda: made[0], src_rank=0)
        finally:
            for each in offers:
                each.withdraw()
        return (accepted or made or [cast("Manifest", sent)])[0]

    def agree(self, work: Callable[[], Value], call: str = "") -> Value:
        """Return the result of `work` on this rank; if it raises on any rank, raise that error on all ranks.

        All ranks must call it.

        Args:
            work: Called on every rank.
            call: The arguments that must be the same on all ranks, as shown in the error.

        Raises:
            LanewayError: The ranks passed different arguments. If `work` raised, the error has the class of the error
                on the first rank that failed.
            CollectiveError: A rank could not be reached.
        """
        if self.group is None:
            return work()
        value, failure = None, None
        try:
            value = work()
        except Exception as error:  # noqa: BLE001 - the other ranks must learn of any error
            failure = error
        reports: list[Any] = [None] * self.world_size
        report = (call, None if failure is None else (type(failure).__name__, str(failure)))
        self._run_collective(lambda: dist.all_gather_object(reports, report, group=self.group))
        failed = [rank for rank, (_, error) in enumerate(reports) if error is not None]
        if failed:
            class_name, reason = reports[failed[0]][1]
            others = f" (and on {len(failed) - 1} more)" if len(failed) > 1 else ""
            message = f"on rank {failed[0]}{others}: {reason}"
            raise _error_class(class_name)(message) from failure
        for rank, (other, _) in enumerate(reports):
            if other != reports[0][0]:
                message = (
                    f"all ranks must pass the same arguments: rank 0 passed {reports[0][0] or 'none'}, rank {rank} "
                    f"passed {other or 'none'}"
                )
                raise LanewayError(message)
        return value  # type: ignore[return-value]

    def _check_rank(self, name: str, rank: int) -> None:
        if plain_int(rank) is None or not 0 <= rank < self.world_size:
            message = f"{name} must be a data-parallel rank in [0, {self.world_size}), not {rank!r}"
            raise ValueError(message)

    def _run_collective(self, collective: Callable[[], object]) -> None:
        try:
            collective()
        except RuntimeError as error:
            message = (
                f"rank {self.rank} of {self.world_size} could not reach the other ranks: one of them died or did not "
                f"make the same call: {error}"
            )
            raise CollectiveError(message) from error


def _error_class(name: str) -> type[Exception]:
    if name in {"TypeError", "ValueError"}:
        return TypeError if name == "TypeError" else ValueError
    found = getattr(errors, name, None)
    return found if isinstance(found, type) and issubclass(found, LanewayError) else LanewayError
