"""Arrow IPC: both formats, dictionaries, memory maps, and invalid files."""

from __future__ import annotations

import dataclasses
import os
import random
import struct
from typing import TYPE_CHECKING, Any, Literal

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest
from fsspec.implementations.dirfs import DirFileSystem

from laneway.errors import DataFileError
from laneway.formats import ArrowFormat, FileScan, PlannedFile
from laneway.formats.messages import END_OF_STREAM, parse_footer
from laneway.storage.filesystem import Storage
from tests.corpora import Kind, rows, write_blocks

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = ArrowFormat()
KINDS: tuple[Kind, ...] = ("arrow-file", "arrow-stream")


def _scan(path: Path) -> FileScan:
    return FORMAT.scan(Storage(path.parent), str(path), path.stat().st_size)


def _open(path: Path, storage: Storage | None = None) -> Any:
    scan = _scan(path)
    storage = storage or Storage(path.parent)
    layout, sizes = np.array(scan.layout, np.int64), np.array(scan.block_rows, np.int64)
    planned = PlannedFile(str(path), path.stat().st_size, scan.digest, sizes, layout)
    return FORMAT.open(storage, planned, scan.schema.remove_metadata())


def _write(
    path: Path, kind: Kind, batches: list[pa.RecordBatch], options: pa.ipc.IpcWriteOptions | None = None
) -> Path:
    new = pa.ipc.new_file if kind == "arrow-file" else pa.ipc.new_stream
    with new(str(path), batches[0].schema, options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return path


class NotLocal(DirFileSystem):  # type: ignore[misc]
    """A filesystem that is not recognized as local; it records the ranges that are requested."""

    cachable = False

    def __init__(self) -> None:
        super().__init__(path="/", fs=fsspec.filesystem("file"))
        self.ranges: list[tuple[int, int]] = []

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        self.ranges.append((start or 0, end or 0))
        data: bytes = super().cat_file(path, start, end, **kwargs)
        return data


def _check_every_range(path: Path, expected: list[pa.RecordBatch], columns: list[str] | None = None) -> None:
    """Compare every run of batches, read right after opening the file, locally and remotely."""
    columns = columns or expected[0].schema.names
    for storage in (Storage(path.parent), Storage(str(path.parent), NotLocal())):
        for first in range(len(expected)):
            reader = _open(path, storage)
            for stop in range(first + 1, len(expected) + 1):
                table = reader.read(first, stop, columns)
                table.validate(full=True)
                assert table.schema.names == columns
                assert table.to_pydict() == pa.Table.from_batches(expected[first:stop]).select(columns).to_pydict()


@pytest.mark.parametrize("kind", KINDS)
def test_any_run_of_record_batches_can_be_read_alone(tmp_path: Path, kind: Kind) -> None:
    path = tmp_path / "a.arrow"
    tables = [rows(0, 5), rows(5, 5), rows(5, 6), rows(6, 13)]
    write_blocks(path, kind, tables, rows(0, 0).schema)
    scan = _scan(path)
    assert scan.block_rows == [5, 0, 1, 7]
    assert scan.schema.equals(rows(0, 0).schema)
    batches = [pa.RecordBatch.from_pylist(table.to_pylist(), schema=table.schema) for table in tables]
    _check_every_range(path, batches)
    _check_every_range(path, batches, ["x", "id"])
    assert _open(path).read(0, 4, []).num_rows == 13


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_compressed_bodies_are_read(tmp_path: Path, kind: Kind, codec: Literal["lz4", "zstd"]) -> None:
    batches = [rows(i, i + 500).combine_chunks().to_batches()[0] for i in (0, 500)]
    path = _write(tmp_path / "a.arrow", kind, batches, pa.ipc.IpcWriteOptions(compression=codec))
    assert sum(_scan(path).block_bytes) < sum(batch.nbytes for batch in batches)
    _check_every_range(path, batches)


def _dictionary_batches(vocabularies: list[list[str]]) -> list[pa.RecordBatch]:
    """Return batches whose column `a` draws from the vocabulary of its batch, also inside nested columns."""
    source = random.Random(7)
    batches = []
    for number, vocabulary in enumerate(vocabularies):
        indices = pa.array([source.choice([None, *range(len(vocabulary))]) for _ in range(6)], pa.int8())
        a = pa.DictionaryArray.from_arrays(indices, pa.array(vocabulary))
        fixed = pa.DictionaryArray.from_arrays(pa.array([1, 0] * 3, pa.int32()), pa.array([1.5, 2.5]))
        nested = pa.ListArray.from_arrays(pa.array([0, 1, 1, 3, 4, 5, 6], pa.int32()), a)
        struct = pa.StructArray.from_arrays([a, fixed], ["a", "f"])
        ids = pa.array(range(number * 6, number * 6 + 6))
        batches.append(pa.record_batch({"id": ids, "a": a, "fixed": fixed, "list": nested, "struct": struct}))
    return batches


REPLACED = [["a", "b"], ["a", "b"], ["c"], ["d", "e", "f"], ["a", "b"], ["zzz"]]
GROWING = [["a"], ["a", "b"], ["a", "b"], ["a", "b", "c", "d"], ["a", "b", "c", "d", "e"]]


@pytest.mark.parametrize("deltas", [False, True])
@pytest.mark.parametrize("vocabularies", [REPLACED, GROWING, REPLACED + GROWING])
def test_any_batch_of_a_stream_is_read_with_the_dictionaries_at_its_position(
    tmp_path: Path, vocabularies: list[list[str]], *, deltas: bool
) -> None:
    batches = _dictionary_batches(vocabularies)
    options = pa.ipc.IpcWriteOptions(emit_dictionary_deltas=deltas)
    path = _write(tmp_path / "a.arrow", "arrow-stream", batches, options)
    has_deltas = any(entry[-1] for entry in _scan(path).layout)
    assert has_deltas == (deltas and vocabularies is not REPLACED)
    _check_every_range(path, batches)
    _check_every_range(path, batches, ["id"])


@pytest.mark.parametrize(
    "options",
    [pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True), pa.ipc.IpcWriteOptions(unify_dictionaries=True)],
)
def test_all_dictionaries_of_a_file_apply_to_every_batch(tmp_path: Path, options: pa.ipc.IpcWriteOptions) -> None:
    batches = _dictionary_batches(GROWING)
    if options.unify_dictionaries:
        # The writer can't unify nested dictionaries.
        table = pa.Table.from_batches(_dictionary_batches(REPLACED)).select(["id", "a", "fixed"])
        batches = table.to_batches()
        with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema, options=options) as writer:
            writer.write_table(table)
    else:
        _write(tmp_path / "a.arrow", "arrow-file", batches, options)
    _check_every_range(tmp_path / "a.arrow", batches)


def test_a_dictionary_of_dictionaries_is_read(tmp_path: Path) -> None:
    inner = pa.array(["x", "y", "x"]).dictionary_encode()
    values = pa.StructArray.from_arrays([inner, pa.array([1, 2, 3])], ["s", "n"])
    outer = pa.DictionaryArray.from_arrays(pa.array([2, 0, 1, 2]), values)
    batch = pa.record_batch({"outer": outer})
    for kind in KINDS:
        _check_every_range(_write(tmp_path / "a.arrow", kind, [batch, batch.slice(1, 2)]), [batch, batch.slice(1, 2)])


def test_reading_a_local_file_copies_nothing_and_a_modification_stays_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    write_blocks(path, "arrow-stream", [rows(0, 5000), rows(5000, 9000)], rows(0, 0).schema)
    before = path.read_bytes()
    allocated = pa.total_allocated_bytes()
    reader = _open(path)
    column = reader.read(0, 2, ["id"]).column("id")
    assert pa.total_allocated_bytes() - allocated < 1000
    reader.close()
    buffer = column.chunk(1).buffers()[1]
    owner = buffer
    while not owner.is_mutable:
        owner = owner.parent
    values = np.frombuffer(owner, np.uint8)[buffer.address - owner.address :][: buffer.size].view(np.int64)
    assert values[0] == 5000
    values[:] = -1
    assert column.chunk(1)[7].as_py() == -1
    assert column.chunk(0)[7].as_py() == 7
    assert path.read_bytes() == before
    assert _open(path).read(1, 2, ["id"]).column("id")[0].as_py() == 5000


def test_a_remote_batch_takes_one_request_for_exactly_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    write_blocks(path, "arrow-stream", [rows(i, i + 5000) for i in range(0, 50_000, 5000)], rows(0, 0).schema)
    filesystem = NotLocal()
    storage = Storage(str(path.parent), filesystem)
    FORMAT.scan(storage, str(path), path.stat().st_size)
    scanned = sum(stop - start for start, stop in filesystem.ranges)
    assert scanned < path.stat().st_size / 4
    reader = _open(path, storage)
    filesystem.ranges.clear()
    reader.read(3, 6, ["id"])
    layout = [entry for entry in _scan(path).layout if entry[0] == 3]
    assert filesystem.ranges == [(layout[3][1], layout[6][1])]


@pytest.mark.parametrize("kind", KINDS)
def test_every_truncation_inside_a_message_is_an_error(tmp_path: Path, kind: Kind) -> None:
    path = tmp_path / "a.arrow"
    write_blocks(path, kind, [rows(0, 3), rows(3, 5)], rows(0, 0).schema)
    whole = path.read_bytes()
    layout = _scan(path).layout
    borders = {sum(entry[1:4]) for entry in layout} if kind == "arrow-stream" else set()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        if length in borders:
            with pytest.warns(UserWarning, match="ends without the end marker"):
                assert len(_scan(path).block_rows) == [sum(entry[1:4]) for entry in layout].index(length)
            continue
        with pytest.raises(DataFileError, match=r"a\.arrow"):
            _scan(path)


def test_the_end_of_a_stream_is_optional_and_nothing_may_follow_it(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    write_blocks(path, "arrow-stream", [rows(0, 3)], rows(0, 0).schema)
    whole = path.read_bytes()
    assert whole.endswith(END_OF_STREAM)
    path.write_bytes(whole[: -len(END_OF_STREAM)])
    with pytest.warns(
        UserWarning, match=r"a\.arrow ends without the end marker of an Arrow stream: rows may be missing"
    ):
        assert _scan(path).block_rows == [3]
    path.write_bytes(whole + whole)
    with pytest.raises(DataFileError, match=f"has {len(whole):,} bytes after the end of its stream"):
        _scan(path)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "contains no Arrow message: it is empty"),
        (b"FEA1" + bytes(20), "Feather version 1"),
        (
            b"hello, world\n" * 9,
            "has no Arrow message at byte 0: it is damaged, not an Arrow file, or was written by",
        ),
        (
            b"ARROW1\0\0" + b"x" * 50,
            "is truncated: it begins like an Arrow file, but its 58 bytes end without a footer",
        ),
        (END_OF_STREAM, "contains no Arrow message"),
        (b"\xff\xff\xff\xff\x10\0\0\0" + b"\xff" * 16, "has an invalid message at byte 0"),
        (
            b"\xff\xff\xff\xff\xff\0\0\0" + b"\xff" * 16,
            "is truncated: the message at byte 0 ends at byte 263 of 24",
        ),
    ],
)
def test_an_invalid_file_is_named_with_the_cause(tmp_path: Path, content: bytes, cause: str) -> None:
    path = tmp_path / "bad.arrow"
    path.write_bytes(content)
    with pytest.raises(DataFileError, match=rf"bad\.arrow .*{cause}"):
        _scan(path)


def test_a_stream_from_before_arrow_0_15_is_refused(tmp_path: Path) -> None:
    options = pa.ipc.IpcWriteOptions(use_legacy_format=True)
    batch = rows(0, 3).combine_chunks().to_batches()[0]
    path = _write(tmp_path / "old.arrow", "arrow-stream", [batch], options)
    with pytest.raises(DataFileError, match=r"old\.arrow has no Arrow message .* before 0\.15"):
        _scan(path)


@pytest.mark.parametrize("kind", KINDS)
def test_the_digest_changes_with_values_that_leave_the_headers_unchanged(tmp_path: Path, kind: Kind) -> None:
    digests, sizes = set(), set()
    for first, last in ((0, 0), (1, 0), (0, 1)):
        values = np.zeros(10_000, np.int64)
        values[0], values[-1] = first, last
        path = _write(tmp_path / "a.arrow", kind, [pa.record_batch({"id": values})])
        digests.add(_scan(path).digest)
        sizes.add(path.stat().st_size)
    assert len(sizes) == 1
    assert len(digests) == 3


def test_a_file_whose_size_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    write_blocks(path, "arrow-stream", [rows(0, 3)], rows(0, 0).schema)
    scan, size = _scan(path), path.stat().st_size
    write_blocks(path, "arrow-stream", [rows(0, 300)], rows(0, 0).schema)
    layout, sizes = np.array(scan.layout, np.int64), np.array(scan.block_rows, np.int64)
    planned = PlannedFile(str(path), size, scan.digest, sizes, layout)
    now = path.stat().st_size
    with pytest.raises(
        DataFileError,
        match=rf"a\.arrow changed since it was planned: it had {size:,} bytes and now has {now:,}",
    ):
        FORMAT.open(Storage(tmp_path), planned, scan.schema)


def _replace(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert data.count(old) >= 1
    path.write_bytes(data.replace(old, new, 1))


LONG_AGO = (10**9, 10**9)


def _planned(path: Path, version: str) -> PlannedFile:
    scan = _scan(path)
    layout, sizes = np.array(scan.layout, np.int64), np.array(scan.block_rows, np.int64)
    return PlannedFile(str(path), path.stat().st_size, scan.digest, sizes, layout, version)


@pytest.mark.parametrize("kind", KINDS)
def test_a_local_file_that_was_replaced_by_one_of_the_same_size_is_refused(tmp_path: Path, kind: Kind) -> None:
    path = tmp_path / "a.arrow"
    write_blocks(path, kind, [rows(0, 9)], rows(0, 0).schema)
    os.utime(path, LONG_AGO)
    planned = _planned(path, str(10**18))
    FORMAT.open(Storage(tmp_path), planned, rows(0, 0).schema)
    write_blocks(path, kind, [rows(1, 10)], rows(0, 0).schema)
    assert path.stat().st_size == planned.size
    for _ in range(2):
        with pytest.raises(
            DataFileError, match=r"a\.arrow changed since it was planned: its message headers had the digest"
        ):
            FORMAT.open(Storage(tmp_path), planned, rows(0, 0).schema)
    # Without a version, only the contents tell; so it is on a storage that doesn't report any.
    unknown = dataclasses.replace(planned, version="")
    for storage in (Storage(tmp_path), Storage(str(tmp_path), NotLocal())):
        with pytest.raises(DataFileError, match=r"a\.arrow changed since it was planned"):
            FORMAT.open(storage, unknown, rows(0, 0).schema)


def test_a_file_that_was_copied_or_touched_is_read_and_its_contents_are_compared_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.arrow"
    write_blocks(path, "arrow-file", [rows(0, 9)], rows(0, 0).schema)
    planned = _planned(path, "1")
    calls = []
    scan = ArrowFormat.scan

    def count(*args: Any, **kwargs: Any) -> FileScan:
        calls.append(1)
        return scan(*args, **kwargs)

    monkeypatch.setattr(ArrowFormat, "scan", count)
    for number in (1, 1, 2):
        os.utime(path, (number, number))
        for _ in range(3):
            assert FORMAT.open(Storage(tmp_path), planned, rows(0, 0).schema).read(0, 1, ["id"]).num_rows == 9
    assert len(calls) == 2


def _without_front_schema(path: Path, shift: int) -> None:
    """Rewrite a file as other writers do: messages begin later, and its first bytes are no message."""
    data = path.read_bytes()
    end = len(data) - 10 - int.from_bytes(data[-10:-6], "little")
    footer = data[end:]
    blocks = [offset for offset, _, _ in parse_footer(footer[:-10]).blocks]
    for offset in blocks:
        footer = footer.replace(struct.pack("<q", offset), struct.pack("<q", offset + shift))
    schema = data[8 : min(blocks)] if shift else bytes(8) + data[16 : min(blocks)]
    path.write_bytes(data[:8] + bytes(shift) + schema + data[min(blocks) : end] + footer)


@pytest.mark.parametrize("shift", [0, 56])
@pytest.mark.parametrize("codec", [None, "zstd"])
def test_a_file_without_a_schema_message_at_its_front_is_read_by_its_footer(
    tmp_path: Path, shift: int, codec: Literal["zstd"] | None
) -> None:
    batches = _dictionary_batches(REPLACED[:2])
    options = pa.ipc.IpcWriteOptions(compression=codec)
    for columns in (["id", "list", "a"], ["id"]):
        selected = [batch.select(columns) for batch in batches]
        path = _write(tmp_path / "a.arrow", "arrow-file", selected, options)
        usual = _scan(path)
        _without_front_schema(path, shift)
        found = _scan(path)
        assert (found.block_rows, found.schema) == (usual.block_rows, usual.schema)
        assert found.digest != usual.digest
        _check_every_range(path, selected)


def test_a_message_that_the_footer_does_not_list_is_an_error(tmp_path: Path) -> None:
    for count, _ in enumerate(range(3), 1):
        path = _write(
            tmp_path / "a.arrow", "arrow-file", [pa.record_batch({"id": np.arange(50) + i}) for i in range(3)]
        )
        data = path.read_bytes()
        end = len(data) - 10 - int.from_bytes(data[-10:-6], "little")
        blocks = [offset for offset, _, _ in parse_footer(data[end:-10]).blocks]
        # The vector of record batches: their number, then padding to 8 bytes, then the blocks.
        start = data.rindex(struct.pack("<I", 3), end, data.index(struct.pack("<q", blocks[0]), end))
        path.write_bytes(data[:start] + struct.pack("<I", 3 - count) + data[start + 4 :])
        with pytest.raises(DataFileError, match=r"a\.arrow is damaged: its footer lists no message from byte"):
            _scan(path)


def test_a_footer_that_contradicts_its_messages_is_an_error(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.arrow", "arrow-file", [pa.record_batch({"id": np.arange(50)})])
    data = path.read_bytes()
    end = len(data) - 10 - int.from_bytes(data[-10:-6], "little")
    ((offset, metadata, body),) = parse_footer(data[end:-10]).blocks
    for old, new, problem in (
        (struct.pack("<q", body), struct.pack("<q", body - 64), "state different lengths"),
        (struct.pack("<qi", offset, metadata), struct.pack("<qi", offset, metadata + 8), "state different lengths"),
        (struct.pack("<q", offset), struct.pack("<q", -8), "has no Arrow message at byte -8|lists no message"),
        (b"id\0\0", b"ie\0\0", "its footer has another schema than its first message"),
    ):
        path.write_bytes(data[:end] + data[end:].replace(old, new, 1))
        with pytest.raises(DataFileError, match=rf"a\.arrow .*({problem})"):
            _scan(path)


@pytest.mark.parametrize("value", [10_500, 2**28, 2**31 - 1, -5])
@pytest.mark.parametrize("kind", KINDS)
def test_an_offset_out_of_bounds_is_an_error_only_where_it_is_read(tmp_path: Path, kind: Kind, value: int) -> None:
    path = tmp_path / "a.arrow"
    batch = pa.record_batch({"id": pa.array(range(1000)), "s": [f"text {i:05}" for i in range(1000)]})
    _write(path, kind, [batch, batch])
    old = struct.pack("<iii", 4990, 5000, 5010)
    _replace(path, old, struct.pack("<iii", 4990, value, 5010))
    reader = _open(path)
    assert reader.read(0, 2, ["id"]).num_rows == 2000
    assert reader.read(1, 2, ["s"]).num_rows == 1000
    for _ in range(2):
        with pytest.raises(pa.ArrowInvalid, match="slot 500"):
            reader.read(0, 1, ["s"])


def test_text_that_is_not_utf_8_is_read_and_can_be_taken_as_bytes(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.arrow", "arrow-file", [pa.record_batch({"s": ["some text"] * 2})])
    _replace(path, b"some text", b"some \xff\xfext")
    column = _open(path).read(0, 1, ["s"]).column("s")
    assert column.cast(pa.binary()).to_pylist() == [b"some \xff\xfext", b"some text"]


_NULL = pa.null()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "type_",
    [
        *(pa.list_(_NULL), pa.large_list(_NULL), pa.list_view(_NULL), pa.list_(_NULL, 3), pa.list_(pa.list_(_NULL))),
        *(pa.map_(pa.string(), _NULL), pa.struct([("a", pa.list_(_NULL))]), pa.list_(pa.struct([("a", _NULL)]))),
    ],
    ids=str,
)
def test_nulls_inside_of_lists_are_read(tmp_path: Path, kind: Kind, type_: Any) -> None:
    value: Any = [None] * 3
    if isinstance(type_, pa.StructType):
        value = {"a": value}
    elif isinstance(type_, pa.MapType):
        value = [(key, None) for key in "abc"]
    elif pa.types.is_nested(type_.value_type):
        value = [value] * 3 if pa.types.is_list(type_.value_type) else [{"a": None}] * 3
    batch = pa.record_batch({"x": pa.array([value, None, value], type_), "s": ["a", "b", "c"]})
    path = _write(tmp_path / "a.arrow", kind, [batch])
    assert _open(path).read(0, 1, ["x", "s"]).to_pylist() == batch.to_pylist()


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_name_that_is_not_utf_8_is_named_in_an_error(tmp_path: Path, kind: Kind) -> None:
    path = _write(tmp_path / "a.arrow", kind, [pa.record_batch({"id": [1], "caf--": [1]})])
    path.write_bytes(path.read_bytes().replace(b"caf--", b"caf\xe9\xff"))
    message = r"a\.arrow has a column, or a field of one, named b'caf\\xe9\\xff', which is not UTF-8: rename it$"
    with pytest.raises(DataFileError, match=message):
        _scan(path)


@pytest.mark.parametrize("type_", [pa.json_(), pa.opaque(pa.list_(pa.string()), "a", "b"), pa.uuid()])
def test_extension_types_are_read(tmp_path: Path, type_: Any) -> None:
    values: Any = {pa.json_(): ["{}", None], pa.uuid(): [b"0123456789abcdef", None]}.get(type_, [["a"], None])
    array = pa.ExtensionArray.from_storage(type_, pa.array(values, type_.storage_type))
    batch = pa.record_batch({"x": array})
    for kind in KINDS:
        path = _write(tmp_path / "a.arrow", kind, [batch])
        assert _open(path).read(0, 1, ["x"]).column("x").combine_chunks().equals(array)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_dictionary_is_an_error_before_deltas_are_appended_to_it(tmp_path: Path, kind: Kind) -> None:
    options = pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True)
    path = _write(
        tmp_path / "a.arrow", kind, _dictionary_batches([["aa", "bb", "cc"], ["aa", "bb", "cc", "dd"]]), options
    )
    _replace(path, struct.pack("<iiii", 0, 2, 4, 6), struct.pack("<iiii", 0, 2, 2**30, 6))
    with pytest.raises(pa.ArrowInvalid, match="slot 2"):
        _open(path).read(1, 2, ["a"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_count_that_its_body_cannot_hold_is_an_error_of_the_scan(tmp_path: Path, kind: Kind) -> None:
    path = _write(tmp_path / "a.arrow", kind, [pa.record_batch({"id": np.arange(777)})])
    _replace(path, struct.pack("<q", 777), struct.pack("<q", 777 | 1 << 29))
    with pytest.raises(
        DataFileError, match=r"a\.arrow can't be read \(message at byte [\d,]+\): its header is damaged: .*"
    ):
        _scan(path)


# The Schema table of a schema of one column, without endianness; in the second one, the field of the endianness is
# where the number of columns is, which is 1, as is the value for big-endian.
LITTLE_ENDIAN = struct.pack("<4H3I", 8, 8, 0, 4, 8, 4, 1)
BIG_ENDIAN = struct.pack("<4H3I", 8, 8, 8, 4, 8, 4, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_big_endian_values_are_converted(tmp_path: Path, kind: Kind) -> None:
    path = _write(tmp_path / "a.arrow", kind, [pa.record_batch({"x": pa.array([i << 40 | 7 for i in range(9)])})])
    expected = [i << 40 | 7 for i in range(9)]
    data = bytearray(path.read_bytes())
    body = sum(_scan(path).layout[1][1:3])
    data[body : body + 72] = np.array(expected, ">i8").tobytes()
    assert data.count(LITTLE_ENDIAN) == (2 if kind == "arrow-file" else 1)
    path.write_bytes(data.replace(LITTLE_ENDIAN, BIG_ENDIAN))
    assert _open(path).read(0, 1, ["x"]).column("x").to_pylist() == expected
