"""The requests of a selection on a real server: the columns of its filter, where statistics tell too little, once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from torchdata.stateful_dataloader import StatefulDataLoader

from laneway import DataFileError, Manifest, StatefulShardedDataset
from laneway.core.selection import part_of_blocks
from laneway.reading.expressions import filter_of
from laneway.reading.selecting import Planner
from tests.compat.loaders import received_while_ranks_change, run_with_states
from tests.storage.beds import flat, ids

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


def test_ranks_that_count_parts_request_what_one_rank_does(s3: Bed, tmp_path: Path) -> None:
    _write(tmp_path / "d")
    manifest = Manifest.scan(s3.upload(tmp_path / "d"), storage_options=s3.options, cache_dir=False)
    step = filter_of((pc.field("score") < 0.5) & (pc.field("id") > BLOCK_ROWS), manifest, None)
    found = []
    for world_size in (1, 3):
        s3.proxy.behave()
        planners = [
            Planner(manifest, manifest.storage(storage_options=s3.options), cache_dir=False) for _ in range(world_size)
        ]
        parts = [
            planner.count_part(step, step.schema, part_of_blocks(manifest.files, rank, world_size))
            for rank, planner in enumerate(planners)
        ]
        # Without footers, which this process has cached by then.
        ranges = [each for each in _ranges(s3.proxy.requests()) if each[2] - each[1] < 60_000]
        found.append((ranges, planners[0].join(step, parts).block_rows.tolist()))
    assert found[0] == found[1]
    assert len(found[0][0]) == 2 * NUM_BLOCKS + 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_selection_on_s3_resumes_exactly_and_on_other_ranks(s3: Bed, tmp_path: Path, num_workers: int) -> None:
    url = s3.corpus(tmp_path / "corpus")
    condition, expected = (pc.field("x") > 2) & (pc.field("text") != "row 30 éé"), [*range(5, 30), *range(31, 48)]

    def create() -> Any:
        dataset = s3.dataset(url, filter=condition, cache_dir=tmp_path / "cache")
        return StatefulDataLoader(dataset, batch_size=None, num_workers=num_workers)

    uninterrupted, states = run_with_states(create())
    assert sorted(flat(uninterrupted)) == expected
    for done in (0, 5, len(uninterrupted)):
        resumed = create()
        resumed.load_state_dict(states[done])
        assert uninterrupted[:done] + ids(resumed) == uninterrupted, f"resumed after batch {done}"
    received, _ = received_while_ranks_change(
        lambda rank, size: s3.savable(url, num_workers, rank=rank, world_size=size, remainder="keep", filter=condition),
        ((2, 3), (3, 100)),
    )
    assert sorted(received) == expected
