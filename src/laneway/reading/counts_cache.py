"""The cache of counts: how many rows of each block a selection has, for the next run over the same files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import pyarrow as pa

from laneway.core.selection import compact
from laneway.errors import DataFileError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from laneway.catalog.caching import CacheDir, CacheEntry
    from laneway.catalog.contents import ManifestContents
    from laneway.storage.filesystem import Storage

_VERSION: Final = "1"
"""Changes whenever a selection of the same text selects other rows."""


class Counts(NamedTuple):
    """How many rows a selection has."""

    block_rows: NDArray[np.integer]
    """Selected rows of each block, shape (num_blocks,)."""
    by_keys: int
    """Blocks of which the names of directories told enough."""
    by_statistics: int
    """Blocks of which statistics told enough."""
    by_rows: int
    """Blocks that were read."""


class CountsCache:
    """The cached counts of selections of the rows of one manifest."""

    def __init__(self, manifest: ManifestContents, storage: Storage, cache_dir: CacheDir) -> None:
        """Prepare to look for entries.

        Args:
            manifest: The files.
            storage: Where they are.
            cache_dir: Where counts are cached; see `Manifest.scan`.
        """
        self._manifest = manifest
        self._storage = storage
        self._cache_dir = cache_dir

    def read(self, text: str) -> Counts | None:
        """Return the counts of a selection, or None if they are not cached."""
        entry = self._entry(text)
        return None if entry is None else entry.load(lambda data: self._decode(data, text, entry.redacted_path))

    def write(self, text: str, counts: Counts) -> None:
        """Cache the counts of a selection."""
        entry = self._entry(text)
        if entry is None:
            return
        facts = {"text": text, "fingerprint": self._manifest.fingerprint}
        facts |= {name: str(getattr(counts, name)) for name in Counts._fields[1:]}
        batch = pa.record_batch([pa.array(counts.block_rows)], ["block_rows"]).replace_schema_metadata(facts)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_batch(batch)
        entry.write(sink.getvalue().to_pybytes())

    def _entry(self, text: str) -> CacheEntry | None:
        return self._manifest.cache_entry(self._cache_dir, self._storage, (f"version {_VERSION}", text), "selection")

    def _decode(self, data: memoryview, text: str, name: str) -> Counts:
        try:
            table = pa.ipc.open_stream(pa.py_buffer(data)).read_all()
            facts = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
            counts = Counts(
                compact(np.array(table["block_rows"].to_numpy(), np.int64)),
                *(int(facts[name]) for name in Counts._fields[1:]),
            )
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            message = f"{name} is damaged: {error}"
            raise DataFileError(message) from error
        most = self._manifest.files.block_rows
        is_of = (facts.get("text"), facts.get("fingerprint")) == (text, self._manifest.fingerprint)
        found = counts.block_rows
        if not is_of or found.shape != most.shape or (found < 0).any() or (found > most).any():
            message = f"{name} is not of these files and this selection"
            raise DataFileError(message)
        return counts
