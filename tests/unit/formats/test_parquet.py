"""Parquet: footers, row groups, columns, and invalid files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from laneway.errors import DataFileError
from laneway.formats import FileScan, ParquetFormat, PlannedFile, parquet
from laneway.storage.entries import file_size
from laneway.storage.filesystem import Storage
from tests.corpora import rows, write_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FORMAT = ParquetFormat()


class CountingMemory(MemoryFileSystem):  # type: ignore[misc]
    """Records the ranges that are requested."""

    cachable = False
    store: dict[str, Any] = {}  # noqa: RUF012 - fsspec keeps its files there
    pseudo_dirs = [""]  # noqa: RUF012 - as store

    def __init__(self) -> None:
        super().__init__()
        self.ranges: list[tuple[int, int]] = []

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        self.ranges.append((start or 0, end or 0))
        data: bytes = super().cat_file(path, start, end, **kwargs)
        return data


@pytest.fixture
def counting() -> Iterator[CountingMemory]:
    filesystem = CountingMemory()
    yield filesystem
    filesystem.store.clear()


def _scan(path: Path) -> FileScan:
    return FORMAT.scan(Storage(path.parent), str(path), path.stat().st_size)


def _planned(path: str, size: int, scan: FileScan) -> PlannedFile:
    layout = np.array(scan.layout, np.int64)
    return PlannedFile(path, size, scan.digest, np.array(scan.block_rows, np.int64), layout)


def _open(path: Path, scan: FileScan | None = None, size: int | None = None) -> Any:
    scan = scan or _scan(path)
    return FORMAT.open(Storage(path.parent), _planned(str(path), size or path.stat().st_size, scan), scan.schema)


def test_a_scan_returns_schema_and_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_blocks(path, "parquet", [rows(0, 5), rows(5, 6), rows(6, 13)], rows(0, 0).schema)
    scan = _scan(path)
    assert scan.schema.equals(rows(0, 0).schema)
    assert scan.block_rows == [5, 1, 7]
    assert scan.block_bytes == [pq.read_metadata(path).row_group(i).total_byte_size for i in range(3)]
    assert scan.layout == []


def test_the_digest_changes_with_values_that_leave_the_footer_unchanged(tmp_path: Path) -> None:
    digests = set()
    for values in ([1, 2, 3], [3, 2, 1]):
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table({"id": values}), path, write_statistics=False)
        digests.add((_scan(path).digest, path.stat().st_size))
    assert len({size for _, size in digests}) == 1
    assert len(digests) == 2


def test_the_footer_takes_one_request_unless_it_is_long(counting: CountingMemory) -> None:
    storage = Storage("/d", counting)
    for columns, requests in ((3, 1), (3000, 2)):
        with counting.open("/d/a.parquet", "wb") as file:
            pq.write_table(pa.table({f"c{i}": np.arange(5000) for i in range(columns)}), file)
        size = file_size(storage, "/d/a.parquet")
        counting.ranges.clear()
        scan = FORMAT.scan(storage, "/d/a.parquet", size)
        assert len(scan.schema) == columns
        assert len(counting.ranges) == requests
        assert counting.ranges[0] == (size - 65536, size)


def test_a_remote_file_is_read_without_read_ahead(counting: CountingMemory) -> None:
    storage = Storage("/d", counting)
    table = pa.table({"id": np.arange(100_000), "x": np.random.default_rng(1).random(100_000)})
    with counting.open("/d/a.parquet", "wb") as file:
        pq.write_table(table, file, row_group_size=10_000, compression="none", use_dictionary=False)
    size = file_size(storage, "/d/a.parquet")
    scan = FORMAT.scan(storage, "/d/a.parquet", size)
    reader = FORMAT.open(storage, _planned("/d/a.parquet", size, scan), scan.schema)
    counting.ranges.clear()
    assert reader.read(3, 5, ["x"]).equals(table.slice(30_000, 20_000).select(["x"]))
    # One request: reading over the gap between the two column chunks is cheaper than another request.
    assert len(counting.ranges) == 1
    assert 160_000 <= sum(stop - start for start, stop in counting.ranges) < 250_000


def test_only_the_requested_columns_are_read_and_in_that_order(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"a": [{"b": 1, "c": 2}], "a.b": [3], "id": [4]})
    pq.write_table(table, path)
    for columns in (["id", "a"], ["a.b"], ["a.b", "a", "id"]):
        assert _open(path).read(0, 1, columns).equals(table.select(columns))


def test_a_table_without_columns_has_the_right_number_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(rows(0, 10), path, row_group_size=4)
    assert _open(path).read(1, 3, []).num_rows == 6


def test_dictionaries_and_extension_types_keep_their_type(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table(
        {
            "d": pa.array(["a", "b", "a"]).dictionary_encode(),
            "u": pa.array([bytes(16)] * 3, pa.uuid()),
            "t": pa.array([1, 2, 3], pa.timestamp("us", "Europe/Berlin")),
        }
    )
    pq.write_table(table, path)
    scan = _scan(path)
    assert scan.schema.types == table.schema.types
    assert _open(path).read(0, 1, table.column_names).schema.types == table.schema.types


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "is not a Parquet file, or it is truncated: it is empty"),
        (b"PAR1", "is not a Parquet file, or it is truncated: its 4 bytes end with b'PAR1'"),
        (b"hello, world\n" * 9, r"its 117 bytes end with b'rld\\n' instead of b'PAR1'"),
        (b"PAR1" + b"\xff\xff\x00\x00PAR1", "is damaged: its footer claims to have 65,543 of the 12 bytes"),
        (b"PAR1" + b"garbage!" + b"\x08\x00\x00\x00PAR1", "has a damaged footer"),
        (b"PARE" + b"garbage!" + b"\x08\x00\x00\x00PARE", "has an encrypted footer"),
    ],
)
def test_an_invalid_file_is_named_with_the_cause(tmp_path: Path, content: bytes, cause: str) -> None:
    path = tmp_path / "bad.parquet"
    path.write_bytes(content)
    with pytest.raises(DataFileError, match=rf"bad\.parquet .*{cause}"):
        _scan(path)


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(rows(0, 10), path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 11):
        path.write_bytes(whole[:length])
        with pytest.raises(DataFileError, match=r"a\.parquet"):
            _scan(path)


def test_a_file_that_changed_since_the_scan_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(rows(0, 10), path)
    scan, size = _scan(path), path.stat().st_size
    pq.write_table(rows(0, 11), path)
    with pytest.raises(DataFileError, match=rf"a\.parquet changed since it was planned: it had {size:,} bytes"):
        _open(path, scan, size)
    pq.write_table(rows(0, 10), path, row_group_size=5)
    with pytest.raises(DataFileError, match="it had 10 rows in 1 row group and now has 10 in 2"):
        _open(path, scan)
    pq.write_table(rows(1, 11), path)
    with pytest.raises(DataFileError, match=f"its footer had the digest {scan.digest}"):
        _open(path, scan)


def test_a_local_footer_is_parsed_once_and_compared_at_each_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(rows(0, 10), path)
    scan = _scan(path)
    _open(path, scan).close()
    with monkeypatch.context() as patch:
        patch.setattr(parquet, "_open_footer", None)
        assert _open(path, scan).read(0, 1, ["id"]).num_rows == 10
    pq.write_table(rows(1, 11), path)
    with pytest.raises(DataFileError, match=f"its footer had the digest {scan.digest}"):
        _open(path, scan)


def test_suffixes_and_magic_are_those_of_parquet() -> None:
    assert FORMAT.recognises(b"PAR1\x15\x04")
    assert not FORMAT.recognises(b"ARROW1\0\0")


@pytest.mark.parametrize("store_schema", [False, True])
@pytest.mark.parametrize("column", [[1, 2], [{"caf--": 1}, {"caf--": 2}]], ids=["column", "field"])
def test_a_name_that_is_not_utf_8_is_named_in_an_error(
    tmp_path: Path, column: list[Any], *, store_schema: bool
) -> None:
    path = tmp_path / "a.parquet"
    name = "caf--" if column[0] == 1 else "s"
    pq.write_table(pa.table({"id": [1, 2], name: column}), path, store_schema=store_schema)
    path.write_bytes(path.read_bytes().replace(b"caf--", b"caf\xe9\xff"))
    message = r"a\.parquet has a column, or a field of one, named b'caf\\xe9\\xff', which is not UTF-8: rename it$"
    with pytest.raises(DataFileError, match=message):
        _scan(path)
