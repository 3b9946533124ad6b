"""Reading the metadata of many data files, concurrently and with few requests."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from time import perf_counter, thread_time
from typing import TYPE_CHECKING

from laneway.catalog.progress_bar import progress_bar
from laneway.cores import usable_cores
from laneway.errors import DataFileError
from laneway.storage.reading import enforceable_version, read_tails

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from laneway.catalog.sources import DataFiles
    from laneway.formats import FileScan

    _Result = FileScan | DataFileError

_THREADS = 32
_FILES_PER_TASK = 64
# Where one thread can send many requests concurrently: number of tasks, and files per task.
_BATCHES = 4
_FILES_PER_BATCH = 32
_SLOW_FILE_S = 1e-3


def read_footers(found: DataFiles, indices: Sequence[int], *, progress: bool | None) -> list[FileScan]:
    """Return the metadata of data files.

    All threads have ended when this returns, so that a later fork is safe.

    Args:
        found: The data files.
        indices: Indices of the files to read.
        progress: True shows a progress bar, False does not, None does if the reads take longer than 2 s.

    Raises:
        DataFileError: Some files are unreadable or invalid; the first of them is named.
    """
    scans: list[FileScan] = []
    errors: list[DataFileError] = []
    what = "indexing files" if found.format.scans_all else "reading footers"
    bar = progress_bar(len(indices), what, " files", progress=progress)
    with bar, closing(_results(found, indices)) as tasks:
        for results in tasks:
            bar.update(len(results))
            for result in results:
                if isinstance(result, DataFileError):
                    errors.append(result)
                else:
                    scans.append(result)
            # On remote storage each failure takes time: stop after the first.
            if errors and not found.storage.is_local:
                break
    if errors:
        tried = len(errors) + len(scans)
        more = f" ({len(errors) - 1:,} more of {tried:,} files failed)" if len(errors) > 1 else ""
        message = f"{errors[0]}{more}"
        raise DataFileError(message) from errors[0].__cause__
    return scans


def _results(found: DataFiles, indices: Sequence[int]) -> Generator[list[_Result]]:
    """Yield the scans and errors of each task, in the order of the files."""
    batched = found.storage.client.is_concurrent and found.format.tail_bytes > 0
    threads, max_files = (_BATCHES, _FILES_PER_BATCH) if batched else (_THREADS, _FILES_PER_TASK)
    if found.format.scans_all:
        # Each holds a part of a file in memory, and computes more than it waits, at least for local files.
        cores = usable_cores()
        threads, max_files = (min(_THREADS, cores if found.storage.is_local else 4 * cores), 1)
    # Several files per task: submitting a task costs as much as reading a local footer.
    length = min(max_files, 1 + len(indices) // (4 * threads))
    tasks = [indices[start : start + length] for start in range(0, len(indices), length)]
    done = 0
    if found.storage.is_local and not found.format.scans_all:
        # Threads compete for the interpreter lock: they only help if reads block.
        slow = False
        while done < len(tasks) and not slow:
            began = perf_counter() - thread_time()
            yield _scan(found, tasks[done])
            slow = perf_counter() - thread_time() - began > _SLOW_FILE_S * len(tasks[done])
            done += 1
    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(_scan, found, task) for task in tasks[done:]]
        try:
            for future in futures:
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _scan(found: DataFiles, indices: Sequence[int]) -> list[_Result]:
    storage, format_ = found.storage, found.format
    paths = [storage.join(found.paths[index]) for index in indices]
    sizes = [found.sizes[index] for index in indices]
    tails: list[bytes | None] = [None] * len(paths)
    # Require the listed version, where that costs no additional request.
    versions = [found.versions[index] for index in indices]
    if not format_.reads_by_itself:
        versions = [enforceable_version(storage, version) for version in versions]
    if format_.tail_bytes > 0:
        tails = read_tails(storage, paths, sizes, format_.tail_bytes, versions)
    results: list[_Result] = []
    for path, size, tail, version in zip(paths, sizes, tails, versions, strict=True):
        try:
            results.append(format_.scan(storage, path, size, tail, version))
        except DataFileError as error:
            results.append(error)
            # On remote storage each failure takes time and requests: stop after the first.
            if not storage.is_local:
                break
    return results
