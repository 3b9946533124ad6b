"""The rank of this process, and manifests that rank 0 shares with all ranks."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch.distributed as dist

from laneway.arguments import plain_int
from laneway.catalog.offers import Offer
from laneway.errors import LanewayError
from laneway.manifest import Manifest, scan_source
from laneway.planning_together import collect_together, count_together
from laneway.process_groups import as_group, is_initialised
from laneway.ranks import Ranks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pyarrow.compute as pc

    from laneway.catalog.caching import CacheDir
    from laneway.manifest import Source
    from laneway.process_groups import ProcessGroup
    from laneway.storage.filesystem import FileSystem, Storage
    from laneway.storage.retries import RetryPolicy


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
    categories: Sequence[str] = (),
    process_group: ProcessGroup | None = None,
) -> Manifest:
    """Scan a dataset on rank 0 and return its manifest on all ranks: the storage serves one scan for any world size.

    With `filter` and `categories`, the ranks also share what datasets of the manifest would otherwise count and collect
    on each rank: each reads a part of the files, unless rank 0 finds the result in its cache.

    All ranks must call it. An error on rank 0 is raised on all ranks. Pass the manifest to `StatefulShardedDataset`,
    together with the filesystem or the storage options. Without torch.distributed, the process scans on its own.

    A large manifest is not sent to ranks that can open the file of it, which is that of the cache, or a temporary one
    that is deleted before this returns: they map it into memory, and a host holds it once.

    Args:
        source: A directory, glob, file, URL or sequence of them, as for `Manifest.scan`. This argument and the others
            up to `cache_dir` are only used on rank 0, but `filesystem`, `storage_options` and `retries` on all ranks if
            they share work.
        format: Name of a format, such as "parquet" or "jsonl"; None: detected.
        filesystem: An fsspec or pyarrow filesystem; `source` is a path on it.
        storage_options: Arguments for the filesystem that the URL names.
        retries: Policy for retries when the storage fails; None: `RetryPolicy()`.
        progress: Whether rank 0 shows a progress bar; None: only if the scan takes longer than 2 s.
        cache_dir: Directory or URL where rank 0 caches the manifest for the next start, as for `Manifest.scan`.
        filter: A condition, the same on all ranks: datasets of the manifest with this `filter=` count nothing.
        categories: Names of columns, the same on all ranks: datasets of the manifest with `categories={name: None}`
            collect nothing.
        process_group: Process group, or one-dimensional DeviceMesh, of the ranks; None: all ranks.

    Raises:
        ValueError: There are several ranks, but torch.distributed is not initialised.
        DataFileError: Raised by `Manifest.scan` on rank 0.
        SchemaMismatchError: Raised by `Manifest.scan` on rank 0; or a column of the filter or of categories doesn't
            exist, or has a type that doesn't fit.
        CollectiveError: A rank could not be reached.
    """
    storages: list[Storage] = []

    def scan() -> Manifest:
        manifest, storage = scan_source(
            source,
            format=format,
            filesystem=filesystem,
            storage_options=storage_options,
            retries=retries,
            progress=progress,
            cache_dir=cache_dir,
            condition=filter,
        )
        storages.append(storage)
        return manifest

    shared = [name for name, given in (("filter=", filter is not None), ("categories=", categories)) if given]
    ranks, manifest = _share(f"scan_once({', '.join(shared)})", process_group, scan)
    if filter is None and not categories:
        return manifest
    # That of rank 0 has the credentials of a URL.
    storage = (
        storages[0]
        if storages
        else manifest.storage(filesystem=filesystem, storage_options=storage_options, retries=retries)
    )
    if filter is not None:
        manifest = count_together(ranks, manifest, storage, filter, cache_dir, progress=progress)
    return collect_together(ranks, manifest, storage, categories, cache_dir) if categories else manifest


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
    return _share("load_once()", process_group, load)[1]


def _share(call: str, process_group: ProcessGroup | None, work: Callable[[], Manifest]) -> tuple[Ranks, Manifest]:
    """Call `work` on rank 0 and return its manifest on all ranks, mapped from a file by those that can open it.

    Args:
        call: What the user called, which must be the same on all ranks.
        process_group: The ranks.
        work: Returns the manifest.
    """
    rank, world_size = data_parallel_rank()
    if world_size > 1 and not is_initialised():
        message = (
            f"this is rank {rank} of {world_size}, but torch.distributed is not initialised, so rank 0 can't send the "
            f"manifest to the others: call init_process_group() before {call}"
        )
        raise ValueError(message)
    ranks = Ranks.of(process_group, rank, world_size)
    if ranks.world_size == 1:
        return ranks, work()
    made: list[Manifest] = []
    offers: list[Offer] = []
    accepted: list[Manifest] = []

    def make() -> tuple[Offer | None, Manifest | None]:
        made.append(work())
        offers.extend(filter(None, [Offer.of(made[0])]))
        return (offers[0], None) if offers else (None, made[0])

    def accept() -> bool:
        found = cast("Offer", offer).accept()
        accepted.extend([Manifest.of(found)] if found else [])
        return bool(accepted)

    try:
        offer, sent = ranks.broadcast(call, make, src_rank=0)
        if offer is not None:
            # All ranks learn whether one of them could not open the file, so all of them receive it, or none.
            have_accepted = ranks.gather(f"{call}: offer", accept, dst_rank=0)
            sent = ranks.broadcast(f"{call}: sent", lambda: None if all(have_accepted or ()) else made[0], src_rank=0)
    finally:
        for each in offers:
            each.withdraw()
    return ranks, (accepted or made or [cast("Manifest", sent)])[0]
