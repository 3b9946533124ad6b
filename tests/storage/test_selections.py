"""The requests of a selection on a real server: the columns of its filter, where statistics tell too little, once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from laneway import DataFileError, StatefulShardedDataset

if TYPE_CHECKING:
    from pathlib import Path

    from tests.storage.beds import Bed
    from tests.storage.fault_proxy import Request

BLOCK_ROWS, NUM_BLOCKS = 2_000, 4


def _write(folder: Path) -> None:
    """Write files with a sorted column, an unsorted one, and a large one between the two that is never needed."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index in range(2):
        start = index * BLOCK_ROWS * NUM_BLOCKS
        num_rows = BLOCK_ROWS * NUM_BLOCKS
        payload = pa.py_buffer(generator.bytes(num_rows * 1_000))
        table = pa.table(
            {
                "id": np.arange(start, start + num_rows),
                "payload": pa.FixedSizeBinaryArray.from_buffers(pa.binary(1_000), num_rows, [None, payload]),
                "score": generator.random(num_rows),
            }
        )
        pq.write_table(table, folder / f"{index}.parquet", row_group_size=BLOCK_ROWS, compression="none")


def _ranges(requests: list[Request]) -> list[tuple[str, int, int]]:
    """Return the file, first byte and one past the last byte of each request of a range, without those of footers."""
    found = []
    for request in requests:
        if request.range and "parquet" in request.path:
            start, stop = map(int, request.range.removeprefix("bytes=").split("-"))
            found.append((request.path[-len("0.parquet") :], start, stop + 1))
    return sorted(found)


def _chunk(folder: Path, index: int, group: int, column: int) -> tuple[str, int, int]:
    chunk = pq.read_metadata(folder / f"{index}.parquet").row_group(group).column(column)
    start = chunk.data_page_offset if chunk.dictionary_page_offset is None else chunk.dictionary_page_offset
    return f"{index}.parquet", start, start + chunk.total_compressed_size


def test_planning_reads_the_columns_of_undecided_row_groups_only_and_a_second_start_nothing(
    s3: Bed, tmp_path: Path
) -> None:
    _write(tmp_path / "d")
    url = s3.upload(tmp_path / "d")
    options: dict[str, Any] = {"storage_options": s3.options, "cache_dir": tmp_path / "cache", "columns": ["id"]}
    StatefulShardedDataset(url, **options)
    s3.proxy.behave()
    # Statistics exclude the second file and the last two row groups of the first one.
    condition = (pc.field("id") < 2 * BLOCK_ROWS) & (pc.field("score") < 0.5)
    dataset = StatefulShardedDataset(url, filter=condition, **options)
    ranges = _ranges(s3.proxy.requests())
    footers = [each for each in ranges if each[2] - each[1] > 60_000]
    assert {name for name, *_ in footers} == {"0.parquet", "1.parquet"}
    chunks = [_chunk(tmp_path / "d", 0, group, column) for group in range(2) for column in (0, 2)]
    others = [each for each in ranges if each not in footers]
    # Neighbours are requested together: the last column of a row group, and the first one of the next.
    assert {(start, stop) for _, start, stop in others} == {
        chunks[0][1:],
        (chunks[1][1], chunks[2][2]),
        chunks[3][1:],
    }
    assert len(footers) == 2
    selection = dataset.selection
    assert selection is not None
    assert selection.steps[0][2:] == (0, 2 * NUM_BLOCKS - 2, 2)
    s3.proxy.behave()
    again = StatefulShardedDataset(url, filter=condition, **options)
    assert [request for request in s3.proxy.requests() if "parquet" in request.path] == []
    assert repr(again.selection) == repr(selection)
    # Row groups without selected rows are not requested when they are read.
    rows = [row["id"] for row in again]
    scores = [pq.read_table(tmp_path / "d" / f"{index}.parquet")["score"].to_numpy() for index in range(2)]
    assert rows == np.flatnonzero(scores[0][: 2 * BLOCK_ROWS] < 0.5).tolist()
    read = [each for each in _ranges(s3.proxy.requests()) if each[2] - each[1] <= 60_000]
    assert {name for name, *_ in read} == {"0.parquet"}
    assert max(stop for *_, stop in read) <= chunks[3][2]


def test_an_object_that_is_replaced_after_planning_is_an_error(s3: Bed, tmp_path: Path) -> None:
    url = s3.corpus(tmp_path / "d", files=((5, 6), (7,)))
    dataset = s3.dataset(url, cache_dir=False, filter=pc.field("text") > "row 3")
    data = (tmp_path / "d" / "part-000.parquet").read_bytes()
    s3.put(f"{url}/part-000.parquet", data[:100] + bytes([data[100] ^ 255]) + data[101:])
    with pytest.raises(DataFileError, match=r"part-000\.parquet changed since it was planned"):
        list(dataset)
    with pytest.raises(DataFileError, match=r"part-000\.parquet changed since it was planned"):
        dataset.filter(pc.field("text") > "row 4")
