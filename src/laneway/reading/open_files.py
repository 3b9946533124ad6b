"""Data files that stay open between reads."""

from __future__ import annotations

import os
import threading
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any, final

from laneway.errors import DataFileError
from laneway.formats import FORMATS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from laneway.catalog.contents import ManifestContents
    from laneway.formats import BlockReader
    from laneway.storage.filesystem import Storage

MAX_OPEN_FILES = 16
"""Files that stay open while no thread reads them."""


@final
class OpenFiles:
    """The open files of a process, which borrows one for each read; it may be pickled, and shared by threads.

    A few files stay open for the process that opened them, and a thread that reads has an open file of its own.
    """

    def __init__(
        self,
        manifest: ManifestContents,
        storage: Storage,
        schemas: Sequence[pa.Schema] | Mapping[int, pa.Schema],
        *,
        is_closed: bool,
    ) -> None:
        """Open no file yet.

        Args:
            manifest: The files.
            storage: Where they are; its root is the dataset's.
            schemas: The columns to decode of the files of each schema; see `schemas_to_read`.
            is_closed: Whether a field that is in none of the columns is an error, where types are inferred.
        """
        self._manifest = manifest
        self._storage = storage
        self._schemas = schemas
        self._is_closed = is_closed
        self._forget()

    def _forget(self) -> None:
        self._idle: deque[tuple[int, BlockReader]] = deque()
        """Index and reader of each open file that no thread is using, the most recently used last."""
        self._opening: dict[int, threading.Lock] = {}
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        """Omit the open files."""
        left_out = {"_idle", "_opening", "_lock", "_pid"}
        return {name: value for name, value in self.__dict__.items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start without open files."""
        self.__dict__.update(state)
        self._forget()

    def __len__(self) -> int:
        """Return the number of open files that no thread is using."""
        return len(self._idle)

    def schema_of(self, file_index: int) -> pa.Schema:
        """Return the columns to decode of a file."""
        return self._schemas[int(self._manifest.readable.indices[file_index])]

    def borrow(self, file_index: int) -> BlockReader:
        """Return an open file that no other thread is using, until it is given back, or closed by the caller."""
        if self._pid != os.getpid():
            # Files that a parent process opened share offsets and connections with it: drop them without closing.
            self._forget()
        with self._lock:
            for index, (idle, reader) in enumerate(self._idle):
                if idle == file_index:
                    del self._idle[index]
                    return reader
            opening = self._opening.setdefault(file_index, threading.Lock())
        planned = self._manifest.planned(self._storage, file_index)
        if self._is_closed:
            planned = replace(planned, is_closed=True)
        # One at a time: the second open uses the metadata that the first one read.
        with opening:
            schemas = self._manifest.schemas
            schema = schemas.stored_in(file_index) if schemas.stored else self.schema_of(file_index)
            try:
                return FORMATS[self._manifest.format].open(self._storage, planned, schema)
            except DataFileError as error:
                table = self._manifest.table
                raise (error if table is None else table.explain(error)) from error.__cause__

    def give_back(self, file_index: int, reader: BlockReader) -> None:
        """Keep a file that was borrowed for the next read."""
        with self._lock:
            self._idle.append((file_index, reader))
            if len(self._idle) > MAX_OPEN_FILES:
                self._idle.popleft()[1].close()

    def close(self) -> None:
        """Close the files that no thread is using."""
        with self._lock:
            while self._idle:
                self._idle.popleft()[1].close()
