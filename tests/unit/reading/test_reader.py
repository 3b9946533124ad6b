"""Rows of a data file, by index."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laneway.errors import DataFileError, SchemaMismatchError
from laneway.formats import parquet
from laneway.manifest import Manifest, scan_source
from laneway.reading.projection import select_columns
from laneway.reading.reader import RowReader
from tests.corpora import FORMAT_OF, KINDS, SUFFIX_OF, Kind, rows, schema_of, write_blocks, write_corpus
from tests.memory import counted_memory
from tests.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = {"parquet": "row group", "arrow": "record batch"}


def _reader(source: Any, columns: list[str] | None = None) -> RowReader:
    manifest, storage = scan_source(source)
    return RowReader(manifest, storage, select_columns(manifest, columns))


@pytest.mark.parametrize("kind", KINDS)
def test_every_range_of_rows_of_every_file_is_read_exactly(tmp_path: Path, kind: Kind) -> None:
    write_corpus(tmp_path, kind)
    manifest, storage = scan_source(tmp_path)
    reader = RowReader(manifest, storage, select_columns(manifest))
    before = 0
    for file_index, num_rows in enumerate(manifest.files.rows.tolist()):
        for start in range(num_rows + 1):
            for stop in range(start, num_rows + 1):
                table = reader.read(file_index, start, stop)
                table.validate(full=True)
                assert table.equals(rows(before + start, before + stop))
        before += num_rows


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_blocks_that_hold_the_rows_are_decoded(
    tmp_path: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path, kind, ((5, 1, 7, 3),))
    reader = _reader(tmp_path)
    blocks = type(reader._files.borrow(0))
    read: list[tuple[int, int]] = []
    original: Any = blocks.read

    def watch(self: Any, first: int, stop: int, columns: Any) -> pa.Table:
        read.append((first, stop))
        table: pa.Table = original(self, first, stop, columns)
        return table

    monkeypatch.setattr(blocks, "read", watch)
    for start, stop in ((0, 5), (4, 5), (5, 6), (4, 6), (6, 7), (12, 14), (0, 16), (3, 3)):
        reader.read(0, start, stop)
    assert read == [(0, 1), (0, 1), (1, 2), (0, 2), (2, 3), (2, 4), (0, 4)]


@pytest.mark.parametrize("kind", KINDS)
def test_columns_come_in_the_selected_order_with_those_from_directory_names(tmp_path: Path, kind: Kind) -> None:
    write_corpus(tmp_path, kind, ((3,), (2, 2)), names=("lang=de/n=__HIVE_DEFAULT_PARTITION__/a", "lang=en/n=7/a"))
    everything = _reader(tmp_path)
    assert everything.schema.names == ["id", "text", "x", "lang", "n"]
    assert everything.read(1, 1, 3).to_pylist() == [{**row, "lang": "en", "n": 7} for row in rows(4, 6).to_pylist()]
    some = _reader(tmp_path, ["n", "x", "lang"])
    assert some.read(0, 1, 3).to_pydict() == {"n": [None, None], "x": [0.5, 1.0], "lang": ["de", "de"]}
    assert some.read(0, 1, 3).schema.equals(some.schema)
    assert some.read(0, 1, 1).schema.equals(some.schema)
    assert _reader(tmp_path, ["lang"]).read(1, 0, 4).to_pydict() == {"lang": ["en"] * 4}
    assert _reader(tmp_path, []).read(1, 1, 4).num_rows == 3


def test_an_unknown_column_is_named_with_similar_names(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    with pytest.raises(
        SchemaMismatchError, match=r"no column 'txt': did you mean 'text'\? the columns are id, text, x"
    ):
        _reader(tmp_path, ["id", "txt"])
    with pytest.raises(SchemaMismatchError, match="no column 'qqq': the columns are"):
        _reader(tmp_path, ["qqq"])
    with pytest.raises(SchemaMismatchError, match="'id' is selected twice"):
        _reader(tmp_path, ["id", "id"])


def test_tables_of_all_files_have_one_schema(tmp_path: Path) -> None:
    write_corpus(tmp_path, files=((3,),))
    fields = [pa.field(field.name, field.type, nullable=False) for field in rows(0, 0).schema]
    strict = rows(3, 6).cast(pa.schema(fields, {"by": "me"}))
    write_blocks(tmp_path / "part-001.parquet", "parquet", [strict], strict.schema)
    reader = _reader(tmp_path)
    for file_index in (0, 1):
        assert reader.read(file_index, 0, 3).schema.equals(reader.schema, check_metadata=True)


def test_rows_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    for start, stop in ((0, 14), (-1, 3), (5, 4)):
        with pytest.raises(IndexError, match=r"of part-000\.parquet: it has 13 rows"):
            _reader(tmp_path).read(0, start, stop)


def test_few_files_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_corpus(tmp_path, files=((2,),) * 40)
    reader = _reader(tmp_path)
    opened: list[str] = []
    original = parquet.ParquetFormat.open

    def watch(self: Any, storage: Any, planned: Any, schema: Any) -> Any:
        opened.append(planned.path)
        return original(self, storage, planned, schema)

    monkeypatch.setattr(parquet.ParquetFormat, "open", watch)
    for file_index in [*range(40), *range(39, 24, -1), 39]:
        assert reader.read(file_index, 0, 1).column("id")[0].as_py() == 2 * file_index
    assert len(opened) == 40
    assert len(reader._files) == 16
    reader.close()
    assert len(reader._files) == 0
    assert reader.read(39, 0, 2).num_rows == 2


def _send_rows(reader: RowReader, results: Any) -> None:
    results.put(reader.read(0, 3, 9).to_pydict())


@pytest.mark.parametrize("kind", KINDS)
def test_a_reader_works_in_forked_children_and_as_a_copy(tmp_path: Path, kind: Kind) -> None:
    write_corpus(tmp_path, kind)
    reader = _reader(tmp_path)
    expected = reader.read(0, 3, 9).to_pydict()
    fork = multiprocessing.get_context("fork")
    results = fork.SimpleQueue()
    child = fork.Process(target=_send_rows, args=(reader, results))
    child.start()
    assert results.get() == expected
    child.join()
    copy = pickle.loads(pickle.dumps(reader))
    assert not copy._files
    assert copy.read(0, 3, 9).to_pydict() == expected
    assert reader.read(0, 3, 9).to_pydict() == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_file_and_a_changed_file_are_named(tmp_path: Path, kind: Kind) -> None:
    write_corpus(tmp_path, kind)
    path = min(tmp_path.iterdir())
    reader = _reader(tmp_path)
    write_blocks(path, kind, [rows(0, 500)], rows(0, 0).schema)
    with pytest.raises(DataFileError, match=f"{path.name} changed since it was planned"):
        reader.read(0, 0, 1)
    path.unlink()
    with pytest.raises(DataFileError, match=f"{path.name} does not exist"):
        reader.read(0, 0, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_that_cannot_be_decoded_is_named(tmp_path: Path, kind: Kind) -> None:
    ids = [pa.table({"id": np.arange(50_000) * 7919 % 50_021 + i}) for i in range(3)]
    path = tmp_path / ("a.parquet" if kind == "parquet" else "a.arrow")
    write_blocks(path, kind, ids, ids[0].schema)
    os.utime(path, (10**9, 10**9))
    manifest, storage = scan_source(path)
    data = bytearray(path.read_bytes())
    # Parquet: the pages of the second row group; Arrow: the second batch's message header, by its place.
    second = 450_000 if kind == "parquet" else int(manifest.layout[2, 1]) + 8
    data[second : second + (300_000 if kind == "parquet" else 40)] = b"\xff" * (300_000 if kind == "parquet" else 40)
    assert len(data) == path.stat().st_size
    path.write_bytes(data)
    # A damaged disk leaves the modification time unchanged.
    os.utime(path, (10**9, 10**9))
    reader = RowReader(manifest, storage, select_columns(manifest))
    assert reader.read(0, 0, 5).num_rows == 5
    block = BLOCK[FORMAT_OF[kind]]
    column = ", column 'id'" if kind == "parquet" else "(, column 'id')?"
    with pytest.raises(DataFileError, match=rf"{path.name} can't be decoded \({block} 1{column}\):"):
        reader.read(0, 60_000, 60_001)
    with pytest.raises(DataFileError, match=rf"{path.name} can't be decoded \({block} 1 to 2{column}\):"):
        reader.read(0, 60_000, 130_000)


def test_some_rows_of_blocks_are_those_of_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    num_rows = 300
    numbers = pa.array([*range(num_rows)])
    table = pa.table(
        {
            "id": numbers,
            "text": pa.array([None if row % 7 == 0 else "x" * (row % 40) for row in range(num_rows)]),
            "name": pa.array([str(row % 5) for row in range(num_rows)]).dictionary_encode(),
            "lists": pa.array([[row] * (row % 4) for row in range(num_rows)]),
            "fixed": pa.FixedSizeListArray.from_arrays(pa.array([*range(2 * num_rows)], pa.int32()), 2),
            "struct": pa.array([{"a": row, "b": [str(row)]} for row in range(num_rows)]),
        }
    )
    folder = tmp_path / "key=7"
    folder.mkdir()
    pq.write_table(table, folder / "a.parquet", row_group_size=64)
    manifest, storage = scan_source(tmp_path)
    names = ["key", "struct.b", "text", "fixed", "id", "lists", "struct", "name"]
    generator = np.random.default_rng(0)
    for columns in (names, ["key"], ["name", "id"], ["struct.b"], names[:-1]):
        reader = RowReader(manifest, storage, select_columns(manifest, columns))
        assert reader.skips_rows
        for piece_bytes in (1, 500, 1 << 20):
            monkeypatch.setattr(parquet, "_PIECE_BYTES", piece_bytes)
            for start, stop in ((0, num_rows), (64, 128), (128, num_rows)):
                for share in (0.0, 0.02, 0.5, 1.0):
                    mask = generator.random(stop - start) < share
                    found = reader.read(0, start, stop, mask)
                    assert found.schema == reader.schema
                    assert found.num_rows == np.count_nonzero(mask)
                    assert found.to_pylist() == reader.read(0, start, stop).filter(pa.array(mask)).to_pylist()


@pytest.mark.parametrize("bad", ["a", "c", "e"])
def test_the_column_that_cannot_be_decoded_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str) -> None:
    table = pa.table({name: [1, 2] for name in "abcde"})
    write_blocks(tmp_path / "a.parquet", "parquet", [table], table.schema)
    reader = _reader(tmp_path)
    original: Any = parquet.ParquetBlocks.read
    failing = set(bad)

    def fail(self: Any, first: int, stop: int, columns: list[str]) -> pa.Table:
        if failing.intersection(columns):
            message = "too long"
            raise pa.ArrowInvalid(message)
        table: pa.Table = original(self, first, stop, columns)
        return table

    monkeypatch.setattr(parquet.ParquetBlocks, "read", fail)
    with pytest.raises(DataFileError, match=rf"\(row group 0, column '{bad}'\): .*too long"):
        reader.read(0, 0, 2)
    failing.update("abcde")
    with pytest.raises(DataFileError, match=r"\(row group 0\): .*too long"):
        reader.read(0, 0, 2)


def test_row_groups_that_cannot_be_decoded_together_are_decoded_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path, files=((3, 2, 4),))
    reader = _reader(tmp_path)
    original: Any = parquet.ParquetBlocks.read

    def fail(self: Any, first: int, stop: int, columns: list[str]) -> pa.Table:
        if stop - first > 1:
            message = "Nested data conversions not implemented for chunked array outputs"
            raise pa.ArrowNotImplementedError(message)
        table: pa.Table = original(self, first, stop, columns)
        return table

    monkeypatch.setattr(parquet.ParquetBlocks, "read", fail)
    assert reader.read(0, 1, 8).equals(rows(1, 8))


class _Matrix(pa.ExtensionType):
    def __init__(self) -> None:
        super().__init__(pa.list_(pa.float32()), "tests.matrix")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, _storage: pa.DataType, _: bytes) -> _Matrix:
        return cls()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_scanned_with_it", [True, False])
def test_an_extension_type_may_be_registered_in_one_process_only(
    tmp_path: Path, kind: Kind, *, is_scanned_with_it: bool
) -> None:
    values: Any = pa.array([[1.0], [2.0, 3.0]], pa.list_(pa.float32()))
    table = pa.table({"m": pa.ExtensionArray.from_storage(_Matrix(), values)})
    path = tmp_path / ("a.parquet" if kind == "parquet" else "a.arrow")
    pa.register_extension_type(_Matrix())  # type: ignore[arg-type]
    try:
        write_blocks(path, kind, [table], table.schema)
        if is_scanned_with_it:
            manifest, storage = scan_source(path)
        else:
            pa.unregister_extension_type("tests.matrix")
            manifest, storage = scan_source(path)
            pa.register_extension_type(_Matrix())  # type: ignore[arg-type]
        with_it = RowReader(manifest, storage, select_columns(manifest)).read(0, 0, 2)
    finally:
        pa.unregister_extension_type("tests.matrix")
    without_it = RowReader(manifest, storage, select_columns(manifest)).read(0, 1, 2)
    assert with_it.schema.equals(without_it.schema)
    assert with_it.to_pylist() == [{"m": [1.0]}, {"m": [2.0, 3.0]}]
    assert without_it.to_pylist() == [{"m": [2.0, 3.0]}]


def test_uuids_without_an_arrow_schema_are_bytes(tmp_path: Path) -> None:
    uuids: Any = pa.array([b"0123456789abcdef", None], pa.uuid())
    pq.write_table(pa.table({"x": uuids}), tmp_path / "a.parquet", store_schema=False)
    reader = _reader(tmp_path)
    assert reader.schema.field("x").type.equals(pa.binary(16))
    assert reader.read(0, 0, 2).to_pydict() == {"x": [b"0123456789abcdef", None]}
    pq.write_table(pa.table({"x": uuids}), tmp_path / "a.parquet")
    assert _reader(tmp_path).read(0, 0, 1).to_pydict() == {"x": [UUID(bytes=b"0123456789abcdef")]}


def test_open_files_hold_no_memory(tmp_path: Path) -> None:
    table = pa.table({"x": np.random.default_rng(0).random(100_000)})
    for name in "abcd":
        pq.write_table(table, tmp_path / f"{name}.parquet", use_dictionary=False)
    reader = _reader(tmp_path)
    with counted_memory() as pool:
        for file_index in range(4):
            assert reader.read(file_index, 0, 100_000).num_rows == 100_000
        assert len(reader._files) == 4
        # Arrow's threads may still hold the last buffer for a moment.
        wait_until(lambda: pool.bytes_allocated() < 0.1 * table.nbytes, lambda: f"{pool.bytes_allocated():,} bytes")


@pytest.mark.parametrize(
    ("columns", "schema", "bits"),
    [
        (["id", "x"], None, 65 + 33),
        (["x"], {"x": pa.float64()}, 33 + 65),  # in memory twice while it is cast
        (["x", "new"], {"x": pa.float32(), "new": pa.int8()}, 33 + 9),
        (["id", "text"], None, None),
    ],
)
def test_the_width_of_a_row_is_known_if_all_columns_are_numbers(
    tmp_path: Path, columns: list[str], schema: Any, bits: int | None
) -> None:
    write_corpus(tmp_path, files=((3,),))
    manifest, storage = scan_source(tmp_path)
    delivered = select_columns(manifest, columns, None if schema is None else schema_of(**schema))
    assert RowReader(manifest, storage, delivered).row_bits(0) == bits


def test_the_width_of_a_row_does_not_matter_where_all_columns_are_read(tmp_path: Path) -> None:
    write_corpus(tmp_path, "arrow-file", files=((3,),))
    assert _reader(tmp_path, ["id"]).row_bits(0) is None


def test_a_manifest_with_a_wrong_row_count_is_an_error(tmp_path: Path) -> None:
    write_blocks(tmp_path / "a.arrow", "arrow-stream", [rows(0, 8)], rows(0, 0).schema)
    manifest, storage = scan_source(tmp_path)
    manifest.files.block_rows[0] = 9
    with pytest.raises(DataFileError, match=r"a\.arrow changed .*: record batch 0 had 9 rows and now has 8"):
        RowReader(manifest, storage, select_columns(manifest)).read(0, 0, 9)


def test_a_loaded_manifest_reads_without_a_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_corpus(tmp_path / "d", "arrow-stream")
    Manifest.scan(tmp_path / "d").save(tmp_path / "m.json")
    (tmp_path / "d").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    manifest = Manifest.load("m.json", root="moved")
    reader = RowReader(manifest, manifest.storage(), select_columns(manifest))
    assert reader.read(0, 2, 7).equals(rows(2, 7))


def test_page_checksums_are_verified_if_a_file_has_them(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"id": np.arange(50_000), "x": np.arange(50_000)})
    pq.write_table(
        table, path, write_page_checksum=True, compression="none", use_dictionary=False, row_group_size=25_000
    )
    manifest, storage = scan_source(path)
    data = bytearray(path.read_bytes())
    data[300_000] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataFileError, match=r"a\.parquet can't be decoded \(row group 0, column 'x'\): .*CRC"):
        RowReader(manifest, storage, select_columns(manifest)).read(0, 0, 25_000)
    assert RowReader(manifest, storage, select_columns(manifest)).read(0, 25_000, 50_000).equals(table.slice(25_000))


@pytest.mark.parametrize("values", [["en", "en"], ["en", "de"], ["en", None]])
def test_a_column_that_is_also_a_key_must_have_the_value_of_the_directory(tmp_path: Path, values: list[Any]) -> None:
    (tmp_path / "lang=en").mkdir()
    pq.write_table(pa.table({"x": [1, 2], "lang": values}), tmp_path / "lang=en" / "a.parquet")
    reader = _reader(tmp_path)
    if values[1] == "en":
        assert reader.read(0, 0, 2)["lang"].to_pylist() == values
        return
    with pytest.raises(DataFileError, match=f"lies in a directory lang=en, but has rows with 'lang' = {values[1]!r}"):
        reader.read(0, 0, 2)
    assert _reader(tmp_path, ["x"]).read(0, 0, 2)["x"].to_pylist() == [1, 2]


@pytest.fixture(params=KINDS)
def differing(request: pytest.FixtureRequest, tmp_path: Path) -> RowReader:
    """Two files of rows of the corpus, and one with other columns."""
    kind: Kind = request.param
    write_corpus(tmp_path, kind, ((3,), (2, 2)), names=("lang=de/a", "lang=en/a"))
    other = pa.table(
        {"y": [True] * 4, "text": pa.array(["a", "b", None, "c"]).dictionary_encode(), "id": [7.0, 8, 9, 0.5]}
    )
    path = tmp_path / "lang=7" / f"a{SUFFIX_OF[kind]}"
    path.parent.mkdir()
    write_blocks(path, kind, [other.slice(0, 2), other.slice(2)], other.schema)
    manifest, storage = scan_source(tmp_path)
    schema = {
        "lang": pa.dictionary(pa.int8(), pa.string()),
        "text": pa.large_string(),
        "id": pa.int16(),
        "y": pa.bool_(),
    }
    return RowReader(manifest, storage, select_columns(manifest, None, schema_of(**schema)))


def test_columns_of_other_types_are_cast_and_missing_ones_are_null(differing: RowReader) -> None:
    text = ["row 4 ", "row 5 é"]
    assert differing.read(2, 1, 3).schema.equals(differing.schema)
    assert differing.read(2, 1, 3).to_pydict() == {"lang": ["en"] * 2, "text": text, "id": [4, 5], "y": [None] * 2}
    found = differing.read(0, 0, 3)
    assert found.schema.equals(differing.schema)
    assert found.to_pydict() == {"lang": ["7"] * 3, "text": ["a", "b", None], "id": [7, 8, 9], "y": [True] * 3}
    copy = pickle.loads(pickle.dumps(differing))
    assert copy.read(0, 0, 3).equals(found)


@pytest.mark.parametrize(("start", "stop"), [(0, 4), (1, 4), (2, 4), (3, 4)])
def test_a_value_that_does_not_fit_is_an_error_with_its_file_block_and_column(
    differing: RowReader, start: int, stop: int
) -> None:
    message = (
        r"lang=7/a\.\w+ has a value that doesn't fit the type in schema= \((row group|record batch) 1, column 'id': "
        r"double as int16; give it another type there, or leave it out\): Float value 0.5.* was truncated"
    )
    with pytest.raises(DataFileError, match=message):
        differing.read(0, start, stop)


def test_a_key_that_does_not_fit_is_an_error_with_its_file(tmp_path: Path) -> None:
    write_corpus(tmp_path, files=((2,), (2,), (2,)), names=("k=1/a", "k=__HIVE_DEFAULT_PARTITION__/a", "k=x/a"))
    manifest, storage = scan_source(tmp_path)
    reader = RowReader(manifest, storage, select_columns(manifest, None, schema_of(k=pa.int8())))
    assert reader.read(0, 0, 2).to_pydict() == {"k": [1, 1]}
    assert reader.read(1, 0, 2).to_pydict() == {"k": [None, None]}
    with pytest.raises(
        DataFileError, match=r"k=x/a\.parquet lies in a directory k=x, which .* type int8 in schema=: Failed"
    ):
        reader.read(2, 0, 2)


def test_a_column_that_is_a_key_of_the_directories_of_other_files_is_read_and_checked(tmp_path: Path) -> None:
    for name, table in (("k=1/a", {"x": [1]}), ("k=2/b", {"x": [2], "k": ["2"]}), ("k=3/c", {"x": [3], "k": ["4"]})):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet")
    (tmp_path / "k=x").mkdir()
    pq.write_table(pa.table({"x": [4]}), tmp_path / "k=x" / "d.parquet")
    reader = _reader(tmp_path, ["k", "x"])
    assert [reader.read(index, 0, 1).to_pylist() for index in (0, 1)] == [[{"k": "1", "x": 1}], [{"k": "2", "x": 2}]]
    with pytest.raises(DataFileError, match=r"c\.parquet lies in a directory k=3, but has rows with 'k' = '4'"):
        reader.read(2, 0, 1)
    assert reader.read(3, 0, 1).to_pylist() == [{"k": "x", "x": 4}]


def test_columns_are_not_cast_when_the_files_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_corpus(tmp_path, "arrow-file")
    manifest, storage = scan_source(tmp_path)
    monkeypatch.setattr("laneway.reading.reader.cast_column", None)
    for schema in (None, manifest.schema):
        reader = RowReader(manifest, storage, select_columns(manifest, None, schema))
        assert reader.read(0, 0, 5).equals(rows(0, 5))
