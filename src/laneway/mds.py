"""Samples of MDS, the format of MosaicML Streaming: shards of encoded values, which an index.json lists."""

from __future__ import annotations

import bz2
import hashlib
import json
import zlib
from typing import TYPE_CHECKING, Any, Final, NamedTuple, final

import numpy as np
import pyarrow as pa

from laneway.core.files import digest
from laneway.errors import DataFileError, SchemaMismatchError
from laneway.mds_values import column_of, type_of
from laneway.storage.entries import get_entry
from laneway.storage.filesystem import Storage
from laneway.storage.listing import find_files
from laneway.storage.reading import read_range

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from laneway.storage.entries import Entry

INDEX: Final = "index.json"
_MAX_BATCH_ROWS: Final = 4096
_UINT32: Final = np.dtype("<u4")


_pa: Any = pa  # its stubs lack what is used here


def _by_codec(codec: str) -> Callable[[bytes, int], bytes]:
    return lambda data, size: bytes(_pa.decompress(data, decompressed_size=size, codec=codec, asbytes=True))


_DECOMPRESS: Final[Mapping[str, Callable[[bytes, int], bytes]]] = {
    "br": _by_codec("brotli"),
    "bz2": lambda data, _: bz2.decompress(data),
    "gz": lambda data, _: zlib.decompress(data, wbits=31),
    "snappy": _by_codec("snappy"),
    "zstd": _by_codec("zstd"),
}
"""Algorithm -> function of compressed bytes, and of the number of bytes without compression."""


class _Shard(NamedTuple):
    """A shard, as the index has it."""

    path: str
    """Its file without compression, relative to the index."""
    num_bytes: int
    hashes: Mapping[str, str]
    zip_path: str
    """Its compressed file; "" if there is none."""
    zip_hashes: Mapping[str, str]
    algorithm: str
    """How that is compressed."""
    num_samples: int
    columns: tuple[tuple[str, str, int | None], ...]
    """Name, encoding and size of each column; None: each value has its own size."""


class MdsIndex(NamedTuple):
    """The index of a dataset that MosaicML Streaming has written."""

    storage: Storage
    """The storage at its directory."""
    content: Mapping[str, Any]
    data: bytes
    """Its bytes."""


@final
class MdsSamples:
    """The samples of a dataset that MosaicML Streaming has written, in the order of the index."""

    def __init__(
        self,
        index: MdsIndex,
        columns: Sequence[str] | None = None,
        batch_bytes: int = 1 << 20,
    ) -> None:
        """Read the first sample.

        Args:
            index: The index.
            columns: Names of the columns to keep; None: all.
            batch_bytes: Approximate size of a batch in bytes.

        Raises:
            DataFileError: There is no sample; or the index or the first shard is damaged.
            SchemaMismatchError: A column doesn't exist, or holds Python objects; or shards have other columns.
        """
        self._storage = index.storage
        self._index_path = self._storage.join(INDEX)
        try:
            self._shards = [shard for each in index.content["shards"] if (shard := _shard_of(each)).num_samples]
        except (KeyError, TypeError, ValueError) as error:
            raise self._storage.error_for(self._index_path, "can't be read", error) from error
        if not self._shards:
            message = f"{self._storage.redact(self._index_path)} lists no sample"
            raise DataFileError(message)
        self._files = {entry.path: entry for entry in find_files(self._storage, self._storage.root)}
        self._check_columns(columns)
        kept = [name for name, _, _ in self._shards[0].columns] if columns is None else [*columns]
        self.identity = digest(index.data, "\n".join(kept).encode())
        """Digest of the index, which has the hashes of all shards, and of the columns."""
        self.schema = self._schema_of(kept)
        """A column for each one of the samples."""
        samples = sum(shard.num_samples for shard in self._shards)
        total = sum(shard.num_bytes for shard in self._shards)
        self._batch_rows = min(_MAX_BATCH_ROWS, max(1, batch_bytes * samples // max(1, total)))

    def batches(self, start: int) -> Iterator[pa.RecordBatch]:
        """Yield the samples from one on, as rows of `schema`. All batches but the last one have as many of them.

        Raises:
            DataFileError: A shard is missing, truncated or damaged.
            SchemaMismatchError: A value is of another type than that of the first sample.
        """
        pending: list[pa.RecordBatch] = []
        num_pending = 0
        for shard in self._shards:
            if start >= shard.num_samples:
                start -= shard.num_samples
                continue
            samples, first = self._samples(shard), start
            start = 0
            while first < shard.num_samples:
                stop = min(shard.num_samples, first + self._batch_rows - num_pending)
                pending.append(self._batch(shard, samples, first, stop))
                num_pending, first = num_pending + stop - first, stop
                if num_pending == self._batch_rows:
                    yield _joined(pending)
                    pending, num_pending = [], 0
        if pending:
            yield _joined(pending)

    def _check_columns(self, columns: Sequence[str] | None) -> None:
        first = self._shards[0]
        other = next((each for each in self._shards if each.columns != first.columns), None)
        if other is not None:
            message = (
                f"the shards {first.path} and {other.path} of {self._storage.redact(self._index_path)} have other "
                "columns, or other encodings: convert them by themselves"
            )
            raise SchemaMismatchError(message)
        names = [name for name, _, _ in first.columns]
        missing = [name for name in columns or () if name not in names]
        if missing:
            message = f"there is no column {missing[0]!r} in {self._storage.redact(self._index_path)}: it has {names}"
            raise SchemaMismatchError(message)

    def _schema_of(self, names: Sequence[str]) -> pa.Schema:
        shard = self._shards[0]
        samples = self._samples(shard)
        fields = []
        for name in names:
            place = next(at for at, each in enumerate(shard.columns) if each[0] == name)
            encoding = shard.columns[place][1]
            (value,) = self._values(shard, samples, 0, 1)[place]
            try:
                type_ = type_of(encoding, value)
            except ValueError as error:
                raise self._value_error(shard, name, 0, error) from error
            if type_ is None:
                others = [each for each in names if each != name]
                message = (
                    f"column {name!r} of {self._storage.redact(self._index_path)} is encoded as {encoding!r}, which "
                    f"only Python can read: leave it out with columns={others}"
                )
                raise SchemaMismatchError(message)
            fields.append(pa.field(name, type_))
        return pa.schema(fields)

    def _batch(self, shard: _Shard, samples: _Samples, start: int, stop: int) -> pa.RecordBatch:
        values, arrays = self._values(shard, samples, start, stop), []
        for place, (name, encoding, _) in enumerate(shard.columns):
            if name not in self.schema.names:
                continue
            type_ = self.schema.field(name).type
            try:
                arrays.append((name, column_of(encoding, values[place], type_)))
            except ValueError as error:
                for index, value in enumerate(values[place]):
                    try:
                        column_of(encoding, [value], type_)
                    except ValueError as own:
                        raise self._value_error(shard, name, start + index, own) from own
                raise self._value_error(shard, name, start, error) from error
        found = dict(arrays)
        return pa.RecordBatch.from_arrays([found[name] for name in self.schema.names], schema=self.schema)

    def _value_error(self, shard: _Shard, name: str, index: int, error: Exception) -> DataFileError:
        path = self._storage.join(shard.path)
        return self._storage.error_for(path, f"can't be decoded (sample {index:,}, column {name!r})", error)

    def _values(self, shard: _Shard, samples: _Samples, start: int, stop: int) -> list[list[bytes]]:
        """Return the values of each column, as they are stored, for the samples [start, stop)."""
        found: list[list[bytes]] = [[] for _ in shard.columns]
        num_sizes = sum(size is None for _, _, size in shard.columns)
        for index in range(start, stop):
            begin, end = int(samples.offsets[index]), int(samples.offsets[index + 1])
            position = begin + num_sizes * _UINT32.itemsize
            sizes = iter(np.frombuffer(samples.data[begin:position], _UINT32).tolist() if position <= end else ())
            for place, (_, _, fixed) in enumerate(shard.columns):
                size = next(sizes, -1) if fixed is None else fixed
                found[place].append(samples.data[position : position + size])
                position += size
            if position != end:
                message = f"its values end at byte {position:,}, and the sample at {end:,}"
                raise self._value_error(shard, shard.columns[-1][0], index, ValueError(message))
        return found

    def _samples(self, shard: _Shard) -> _Samples:
        """Return the samples of a shard, after comparing its hashes."""
        entry = self._files.get(self._storage.join(shard.path))
        zipped = self._files.get(self._storage.join(shard.zip_path)) if shard.zip_path else None
        if entry is not None:
            data = self._read(entry, shard.hashes)
        elif zipped is not None:
            data = self._decompress(zipped, shard)
        else:
            name = shard.zip_path or shard.path
            message = f"{self._storage.redact(self._storage.join(name))} does not exist, but {INDEX} lists it"
            raise DataFileError(message)
        head = np.frombuffer(data[: len(data) // 4 * 4], _UINT32)
        offsets = head[1 : shard.num_samples + 2].astype(np.int64)
        is_whole = len(offsets) == shard.num_samples + 1 and head[0] == shard.num_samples
        if not is_whole or (np.diff(offsets) < 0).any() or offsets[-1] != len(data):
            path = self._storage.redact(self._storage.join(shard.path))
            message = f"{path} is truncated or damaged: it must have {shard.num_samples:,} samples"
            raise DataFileError(message)
        return _Samples(data, offsets)

    def _read(self, entry: Entry, hashes: Mapping[str, str]) -> bytes:
        data = bytes(read_range(self._storage, entry.path, 0, entry.size, entry.version))
        for name, expected in hashes.items():
            if name in hashlib.algorithms_available:
                found = hashlib.new(name, data, usedforsecurity=False).hexdigest()
                if found != expected:
                    message = f"{self._storage.redact(entry.path)} is damaged: its {name} is {found}, not {expected}"
                    raise DataFileError(message)
                break
        return data

    def _decompress(self, entry: Entry, shard: _Shard) -> bytes:
        data = self._read(entry, shard.zip_hashes)
        try:
            return _DECOMPRESS[_algorithm(shard.algorithm)](data, shard.num_bytes)
        except (ValueError, OSError, zlib.error) as error:
            raise self._storage.error_for(entry.path, "can't be decompressed", error) from error


class _Samples(NamedTuple):
    """A shard in memory."""

    data: bytes
    offsets: np.ndarray[tuple[int], np.dtype[np.int64]]
    """Where samples begin, and where the last one ends, shape (num_samples + 1,)."""


def find_index(
    source: str | os.PathLike[str], storage_options: Mapping[str, Any] | None, *, is_required: bool
) -> MdsIndex | None:
    """Return the index of MDS shards in a directory, or None if there is none.

    Args:
        source: The directory, or the path of its `index.json`.
        storage_options: Arguments for the filesystem of a URL.
        is_required: Whether its absence is an error.

    Raises:
        DataFileError: There is no index, or it can't be read.
    """
    storage = Storage(_directory(source), storage_options=storage_options)
    entry = get_entry(storage, storage.join(INDEX))
    if entry is not None and entry.kind == "file":
        data = bytes(read_range(storage, entry.path, 0, entry.size, entry.version))
        try:
            content = json.loads(data)
            if all(each["format"] == "mds" for each in content["shards"]):
                return MdsIndex(storage, content, data)
        except (ValueError, KeyError, TypeError):
            pass
    if is_required:
        message = f"{storage.redact(storage.join(INDEX))} is no index of MDS shards"
        raise DataFileError(message)
    return None


def _directory(source: str | os.PathLike[str]) -> str:
    text = str(source)
    if text != INDEX and not text.endswith(f"/{INDEX}"):
        return text
    return text.removesuffix(INDEX).rstrip("/") or ("/" if text.startswith("/") else ".")


def _shard_of(entry: Mapping[str, Any]) -> _Shard:
    raw, zipped, compression = entry["raw_data"], entry.get("zip_data"), entry.get("compression") or ""
    if zipped and _algorithm(compression) not in _DECOMPRESS:
        message = f"a shard is compressed with {compression!r}, which is not known"
        raise ValueError(message)
    columns = zip(entry["column_names"], entry["column_encodings"], entry["column_sizes"], strict=True)
    return _Shard(
        raw["basename"],
        int(raw["bytes"]),
        raw.get("hashes") or {},
        zipped["basename"] if zipped else "",
        (zipped.get("hashes") or {}) if zipped else {},
        compression,
        int(entry["samples"]),
        tuple(columns),
    )


def _algorithm(compression: str) -> str:
    """Return the name of a compression without its level."""
    return compression.partition(":")[0]


def _joined(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    found: pa.RecordBatch = batches[0] if len(batches) == 1 else _pa.concat_batches(batches)
    return found
