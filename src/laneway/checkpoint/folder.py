"""A folder of checkpoints on any storage: which checkpoints there are, and how one begins and ceases to exist."""

from __future__ import annotations

import logging
import os
import posixpath
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from laneway.arguments import plain_int
from laneway.checkpoint.layout import INDEX, decode_index, number_of, parse_name
from laneway.errors import CheckpointError, LanewayError
from laneway.storage.entries import file_size, get_entry
from laneway.storage.listing import list_directory
from laneway.storage.reading import read_range, read_small_file
from laneway.storage.writing import create_file, remove_file, write_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from laneway.checkpoint.layout import Checkpoint
    from laneway.storage.filesystem import Storage

NUM_CONCURRENT = 32
"""Files that are read from remote storage, or deleted, at the same time."""
_log = logging.getLogger(__name__)


class CheckpointFolder:
    """A folder of checkpoints. It remembers the indices that it has read: they never change."""

    def __init__(self, storage: Storage) -> None:
        """Use the root of `storage`, which need not exist."""
        self.storage = storage
        """Where it is."""
        self._known: dict[str, Checkpoint] = {}

    def __repr__(self) -> str:
        return self.storage.redact(self.storage.root)

    def names(self) -> list[str]:
        """Return the names of the folders of checkpoints, complete or not, newest first: one listing."""
        listed = list_directory(self.storage, self.storage.root)
        names = [posixpath.basename(each.path.rstrip("/")) for each in listed if each.kind == "directory"]
        return sorted((name for name in names if parse_name(name)), key=number_of, reverse=True)

    def path(self, name: str, file: str = "") -> str:
        """Return the path of a checkpoint, or of one of its files, as the storage understands it."""
        return self.storage.join(f"{name}/{file}" if file else name)

    def read_index(self, name: str) -> Checkpoint | None:
        """Return the checkpoint in a folder, or None if there is no index, so that there is no checkpoint.

        Raises:
            CheckpointError: The index is damaged.
            DataFileError: The index can't be read.
        """
        if name not in self._known:
            data = read_small_file(self.storage, self.path(name, INDEX))
            if data is None:
                return None
            try:
                found = decode_index(data, name)
            except CheckpointError:
                # Was the response cut, or is the file damaged?
                found = decode_index(self._read_by_size(name), name)
            if found.name != name:
                message = f"{name}/{INDEX} is that of {found.name}: the folder was renamed or copied"
                raise CheckpointError(message)
            self._known[name] = found
        return self._known[name]

    def _read_by_size(self, name: str) -> bytes:
        path = self.path(name, INDEX)
        return read_range(self.storage, path, 0, file_size(self.storage, path))

    def complete(self, names: Iterable[str] | None = None) -> Iterator[Checkpoint]:
        """Yield the complete checkpoints, newest first. Those with a damaged index are left out, and logged.

        Args:
            names: Names of the folders to look at, newest first; None: all.

        Raises:
            DataFileError: The folder can't be listed, or an index can't be read.
        """
        remaining = [*(self.names() if names is None else names)]
        num_now = 1
        while remaining:
            now, remaining = remaining[:num_now], remaining[num_now:]
            yield from filter(None, self._read_indices(now))
            # Many callers need the newest one only.
            num_now = NUM_CONCURRENT

    def _read_indices(self, names: Sequence[str]) -> list[Checkpoint | None]:
        def read(name: str) -> Checkpoint | None:
            try:
                return self.read_index(name)
            except CheckpointError as error:
                _log.warning("%s is passed over: %s", name, error)
                return None

        if self.storage.is_local or len(names) == 1:
            return [*map(read, names)]
        with ThreadPoolExecutor(NUM_CONCURRENT, "laneway-index") as pool:
            return [*pool.map(read, names)]

    def find(self, which: int | str) -> Checkpoint:
        """Return the newest complete checkpoint of a step, or with a tag.

        Args:
            which: The step or tag.

        Raises:
            CheckpointError: There is none.
            DataFileError: The folder can't be read.
            TypeError: It is neither a step nor a tag.
        """
        if plain_int(which) is None and not isinstance(which, str):  # type: ignore[arg-type]  # that is what it checks
            message = f"a checkpoint is named by its step, an int, or its tag, a string, not by {which!r}"
            raise TypeError(message)
        others = []
        for each in self.complete():
            if which in {each.step, each.tag}:
                return each
            others.append(each)
        steps = ", ".join(f"{each.step}" + (f" ({each.tag})" if each.tag else "") for each in others[9::-1])
        kind = "of step" if isinstance(which, int) else "with the tag"
        message = f"{self!r} has no checkpoint {kind} {which!r}; the newest are of steps {steps or 'none'}"
        raise CheckpointError(message)

    def problem(self, checkpoint: Checkpoint) -> str | None:
        """Return why a checkpoint can't be loaded, judged by the sizes of its files, or None: one listing."""
        listed = list_directory(self.storage, self.path(checkpoint.name))
        sizes = {posixpath.basename(each.path): each.size for each in listed}
        for name, record in checkpoint.files.items():
            if name not in sizes:
                return f"{name} is missing"
            if sizes[name] != record.size:
                return f"{name} has {sizes[name]:,} bytes instead of {record.size:,}"
        return None

    # -- Changes ------------------------------------------------------------------------------------------------------

    def create_root(self) -> None:
        """Create the folder, where a storage has folders."""
        if self.storage.is_local:
            with self.storage.translate_errors(self.storage.root, "written"):
                Path(self.storage.root).mkdir(parents=True, exist_ok=True)

    def create(self, name: str) -> None:
        """Create the folder of a checkpoint that is about to be written."""
        if self.storage.is_local:
            with self.storage.translate_errors(self.path(name), "written"):
                Path(self.path(name)).mkdir()

    def publish(self, checkpoint: Checkpoint) -> None:
        """Write the index of a checkpoint whose files are complete: from now on it exists.

        Raises:
            CheckpointError: A file is missing, or has another size.
            DataFileError: The storage refused.
        """
        name = checkpoint.name
        if (problem := self.problem(checkpoint)) is not None:
            message = f"{name} can't be completed: {problem}"
            raise CheckpointError(message)
        if self.storage.is_local:
            write_file(self.storage, self.path(name, INDEX), checkpoint.encode())
            _sync_directory(self.path(name))
            _sync_directory(self.storage.root)
        elif not create_file(self.storage, self.path(name, INDEX), checkpoint.encode()):
            message = f"{name} can't be completed: another job has written a checkpoint of the same name"
            raise CheckpointError(message)
        self._known[name] = checkpoint

    def delete(self, name: str) -> None:
        """Delete a checkpoint: its index first, so that no half of it ever exists.

        Raises:
            DataFileError: The storage refused; another call goes on.
        """
        self._known.pop(name, None)
        storage, path = self.storage, self.path(name)
        listed = [each.path for each in list_directory(storage, path)]
        index = [each for each in listed if posixpath.basename(each) == INDEX]
        with ThreadPoolExecutor(NUM_CONCURRENT, "laneway-delete") as pool:
            for paths in (index, [each for each in listed if each not in index]):
                # Not a bulk request: s3fs passes over what such a request could not delete.
                for _ in pool.map(partial(remove_file, storage), paths):
                    pass
        if storage.is_local:
            with storage.translate_errors(path, "written"):
                Path(path).rmdir()

    def abandon(self, name: str) -> None:
        """Delete what was written of a checkpoint that failed, so that a full disk does not stay full.

        On remote storage, which has just refused requests, it is left to be deleted when it is old.
        """
        if self.storage.is_local:
            try:
                self.delete(name)
            except LanewayError as error:
                _log.warning("what was written of %s could not be deleted: %s", name, error)

    def age_s(self, name: str, newer: str) -> float:
        """Return how many seconds older than the file `newer` the last file in a folder is, by the storage's clock.

        It is infinite for an empty folder, and 0 if the storage tells no times.
        """
        times = [_time_s(each.version) for each in list_directory(self.storage, self.path(name))]
        entry = get_entry(self.storage, newer)
        now = _time_s(entry.version) if entry is not None else 0.0
        return now - max(times) if times and now and all(times) else 0.0 if times else float("inf")


def _time_s(version: str) -> float:
    return int(version) / 1e9 if version.isdigit() else 0.0


def _sync_directory(path: str) -> None:
    """Make the names in a local directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
