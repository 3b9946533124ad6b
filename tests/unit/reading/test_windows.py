"""Segments of windows: their rows, the requests that they take, and the errors that they raise."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest

from laneway.convert.batches import BatchConverter
from laneway.core.lanes import Segment
from laneway.errors import ColumnConversionError, DataFileError, NullInColumnError
from laneway.manifest import scan_source
from laneway.metering import Meter
from laneway.reading.projection import select_columns
from laneway.reading.reader import RowReader
from laneway.reading.windows import WindowReader
from tests.corpora import KINDS, SUFFIX_OF, Kind, write_blocks, write_corpus
from tests.unit.reading.plans import ids_of, plan_of, reading_threads, segments_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from laneway.convert.open_rows import OpenRows
    from laneway.core.plan import Plan

    Open = Callable[..., tuple[Plan, WindowReader]]


@pytest.fixture
def open_windows() -> Iterator[Open]:
    """Opens readers, and ends them."""
    opened: list[WindowReader] = []

    def open_source(source: Path, columns: list[str] | None = None, **options: Any) -> tuple[Plan, WindowReader]:
        manifest, storage = scan_source(source)
        plan, rows = plan_of(manifest, **options), RowReader(manifest, storage, select_columns(manifest, columns))
        opened.append(WindowReader(plan, rows, BatchConverter(rows.schema, "numpy").vectorized, Meter()))
        return plan, opened[-1]

    yield open_source
    for windows in opened:
        windows.end()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """The file, start and stop of each read."""
    found: list[tuple[int, int, int]] = []
    read = RowReader.read

    def watch(self: RowReader, file_index: int, start: int, stop: int) -> pa.Table:
        found.append((file_index, start, stop))
        return read(self, file_index, start, stop)

    monkeypatch.setattr(RowReader, "read", watch)
    return found


def ids(parts: list[OpenRows]) -> list[int]:
    return [int(i) for part in parts for i in part.numbers["id"][part.start : part.stop]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_segment_has_the_rows_of_the_plan(tmp_path: Path, open_windows: Open, kind: Kind, *, shuffle: bool) -> None:
    num_rows = write_corpus(tmp_path, kind)
    plan, windows = open_windows(tmp_path, shuffle=shuffle)
    segments = segments_of(plan)
    assert len(segments) > 3
    pending = [windows.begin(segment) for segment in segments]
    found = [ids(windows.finish(window)) for window in pending]
    assert found == [ids_of(plan, [segment]) for segment in segments]
    assert sorted(i for rows in found for i in rows) == list(range(num_rows))


@pytest.mark.parametrize("shuffle", [False, True])
def test_part_of_a_window_is_a_segment_too(tmp_path: Path, open_windows: Open, *, shuffle: bool) -> None:
    write_corpus(tmp_path)
    plan, windows = open_windows(tmp_path, shuffle=shuffle)
    largest = max(segments_of(plan), key=lambda segment: segment.stop)
    for start, stop in [(0, 2), (1, largest.stop), (2, 3)]:
        segment = Segment(largest.window, start, stop)
        assert ids(windows.finish(windows.begin(segment))) == ids_of(plan, [segment])


def test_memory_mapped_rows_in_file_order_take_no_thread(tmp_path: Path, open_windows: Open) -> None:
    write_corpus(tmp_path, "arrow-file")
    before = set(reading_threads())
    plan, windows = open_windows(tmp_path, shuffle=False, shard_bytes=300)
    pending = windows.begin(segments_of(plan)[0])
    for read in pending.reads:
        read.cancel()  # too late
    assert ids(windows.finish(pending)) == ids_of(plan, [segments_of(plan)[0]])
    # Rows of two record batches would be copied into one.
    assert [each.segment for each in windows.split(segments_of(plan))] == segments_of(plan)
    assert windows.read_ahead(2) == (2, 0, 2)
    assert set(reading_threads()) <= before
    open_windows(tmp_path, shuffle=True)
    assert set(reading_threads()) - before


def _write_with_a_bad_value(directory: Path, column: str) -> None:
    """Write two files of one window each; the number or the pair of row 3 is null, all others are not."""
    for part, first in enumerate((0, 6)):
        numbers = range(first, first + 6)
        values: dict[str, Any] = {
            "id": pa.array(numbers),
            "number": pa.array([None if i == 3 and column == "number" else i for i in numbers], pa.int32()),
            "pair": pa.array(
                [None if i == 3 and column == "pair" else [i, -i] for i in numbers], pa.list_(pa.int8(), 2)
            ),
        }
        table = pa.table(values)
        write_blocks(directory / f"{part}.parquet", "parquet", [table.slice(0, 4), table.slice(4)], table.schema)


@pytest.mark.parametrize("column", ["number", "pair"])
def test_a_window_with_a_value_that_cannot_be_converted_is_read_again_and_its_other_rows_are_delivered(
    tmp_path: Path, open_windows: Open, reads: list[Any], column: str
) -> None:
    _write_with_a_bad_value(tmp_path, column)
    plan, windows = open_windows(tmp_path, shuffle=True, window_bytes=20)
    converter = BatchConverter(scan_source(tmp_path)[0].schema, "numpy")
    num_read_twice = 0
    for segment in segments_of(plan):
        expected = ids_of(plan, [segment])
        reads.clear()
        (rows,) = windows.finish(windows.begin(segment))
        if 3 not in expected:
            assert rows.rest is None
            assert ids([rows]) == expected
            assert len(reads) == len(plan.window_files(segment.window))
            continue
        num_read_twice += 1
        assert len(reads) == 2 * len(plan.window_files(segment.window))
        assert rows.numbers == {}
        for i, number in enumerate(expected):
            if number == 3:
                with pytest.raises(NullInColumnError, match=f"column '{column}'"):
                    converter.to_batch(rows.slice(i, i + 1))
            else:
                batch: Any = converter.to_batch(rows.slice(i, i + 1))
                assert (batch["id"][0], batch["pair"][0].tolist()) == (number, [number, -number])
    assert num_read_twice == 1
    assert len(segments_of(plan)) > 1


@pytest.mark.parametrize("column", ["number", "pair"])
def test_in_file_order_only_the_column_with_the_value_stays_arrow(
    tmp_path: Path, open_windows: Open, reads: list[Any], column: str
) -> None:
    _write_with_a_bad_value(tmp_path, column)
    plan, windows = open_windows(tmp_path, shuffle=False)
    (rows,) = windows.finish(windows.begin(segments_of(plan)[0]))
    assert rows.numbers.keys() == {"id", "number", "pair"} - {column}
    assert rows.rest is not None
    assert rows.rest.column(column).null_count == 1
    assert len(reads) == 1


@pytest.mark.parametrize("is_remote", [True, False])
def test_neighbouring_pieces_of_a_file_are_one_request_to_a_remote_storage(
    tmp_path: Path, open_windows: Open, reads: list[Any], monkeypatch: pytest.MonkeyPatch, *, is_remote: bool
) -> None:
    write_corpus(tmp_path, files=((3, 2, 4), (5, 1, 2, 2)))
    monkeypatch.setattr(RowReader, "is_remote", property(lambda _: is_remote))
    plan, windows = open_windows(tmp_path, shuffle=True, window_bytes=10_000)
    (segment,) = segments_of(plan)
    assert ids(windows.finish(windows.begin(segment))) == ids_of(plan, [segment])
    assert len(plan.window_files(segment.window)) == 7
    assert sorted(reads) == ([(0, 0, 9), (1, 0, 10)] if is_remote else sorted(plan.window_files(segment.window)))


def test_a_piece_that_cannot_be_read_is_the_error_of_its_window_and_of_no_other(
    tmp_path: Path, open_windows: Open
) -> None:
    write_corpus(tmp_path, files=((4,),) * 6)
    plan, windows = open_windows(tmp_path, shuffle=True)
    (tmp_path / "part-003.parquet").write_bytes(b"x")
    pending = [windows.begin(segment) for segment in segments_of(plan)]
    failed = 0
    for window in pending:
        expected = ids_of(plan, [window.segment])
        if 12 in expected:
            failed += 1
            with pytest.raises(DataFileError, match=r"part-003\.parquet"):
                windows.finish(window)
        else:
            assert ids(windows.finish(window)) == expected
    assert failed == 1


@pytest.mark.parametrize("how", ["cancel", "end"])
def test_reads_that_have_not_started_can_be_cancelled(
    tmp_path: Path, open_windows: Open, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    write_corpus(tmp_path, files=((2,),) * 40)
    plan, windows = open_windows(tmp_path, shuffle=True)
    release, started = threading.Event(), list[int]()
    read_rows = RowReader.read

    def wait(self: RowReader, file_index: int, start: int, stop: int) -> pa.Table:
        started.append(file_index)
        assert release.wait(60)
        return read_rows(self, file_index, start, stop)

    monkeypatch.setattr(RowReader, "read", wait)
    pending = [windows.begin(segment) for segment in segments_of(plan)]
    if how == "end":
        windows.end()
    else:
        for window in pending:
            window.cancel()
    release.set()
    reads = [read for window in pending for read in window.reads]
    num_cancelled = 0
    for read in reads:
        try:
            read.result()
        except CancelledError:
            num_cancelled += 1
    assert len(started) == len(reads) - num_cancelled < len(reads)
    # No more than the threads have in hand: at most four reads.
    assert len(started) <= 4


def test_without_shuffle_segments_are_read_ahead_by_bytes(
    tmp_path: Path, open_windows: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path)
    shuffled, in_file_order = (open_windows(tmp_path, shuffle=shuffle, window_bytes=64)[1] for shuffle in (True, False))
    assert [shuffled.read_ahead(n) for n in (0, 1, 3)] == [(0, 0, 0), (1, 0, 1), (3, 0, 3)]
    assert [in_file_order.read_ahead(n) for n in (0, 1, 3)] == [(0, 0, 0), (1, 1, 128), (3, 3, 384)]
    # A request is slow.
    monkeypatch.setattr(RowReader, "is_remote", property(lambda _: True))
    assert [shuffled.read_ahead(n) for n in (0, 3)] == [(0, 0, 0), (3, 0, 3)]
    assert [in_file_order.read_ahead(n) for n in (0, 1, 3)] == [(0, 0, 0), (1, 64, 128), (3, 192, 384)]


def test_without_shuffle_a_large_shard_is_read_block_by_block(tmp_path: Path, open_windows: Open) -> None:
    write_corpus(tmp_path, files=((3, 2, 4, 1),))
    sizes = [6000, 3000, 50_000, 1000]
    plan, windows = open_windows(tmp_path, shuffle=False, shard_bytes=10_000, block_memory_bytes=sizes, order_version=1)
    (segment,) = segments_of(plan)
    split = [(part.segment.start, part.segment.stop, part.num_bytes) for part in windows.split([segment])]
    assert split == [(0, 5, 9000), (5, 9, 50_000), (9, 10, 1000)]
    rest = Segment(segment.window, 4, 6)
    split = [(part.segment.start, part.segment.stop, part.num_bytes) for part in windows.split([rest])]
    assert split == [(4, 5, 3000), (5, 6, 50_000)]


_BLOCK_ROWS = 8


def _write_wide_files(directory: Path, kind: Kind) -> None:
    """Write two files of six blocks: int64 in `id` and nine other columns, lists of numbers and a string."""
    for part in range(2):
        ids = np.arange(part * 6 * _BLOCK_ROWS, (part + 1) * 6 * _BLOCK_ROWS)
        pairs: Any = pa.FixedSizeListArray.from_arrays(pa.array(np.repeat(ids, 2)), 2)
        columns: dict[str, Any] = {
            "id": ids,
            **{f"x{i}": ids for i in range(9)},
            "pair": pairs,
            "text": ids.astype(str),
        }
        table = pa.table(columns)
        blocks = [table.slice(start, _BLOCK_ROWS) for start in range(0, len(table), _BLOCK_ROWS)]
        write_blocks(directory / f"{part}{SUFFIX_OF[kind]}", kind, blocks, table.schema)


@pytest.mark.parametrize(
    ("kind", "columns", "blocks_at_once"),
    [
        ("parquet", ["id"], 6),
        ("parquet", ["x0", "id", "x3"], 4),
        ("parquet", ["pair", "id"], 3),
        ("parquet", ["id", "text"], 1),
        ("arrow-file", ["id"], 1),
    ],
)
def test_without_shuffle_neighbouring_shards_of_a_file_are_read_together_if_few_columns_are_read(
    tmp_path: Path, open_windows: Open, reads: list[Any], kind: Kind, columns: list[str], blocks_at_once: int
) -> None:
    _write_wide_files(tmp_path, kind)
    shard_bytes = 4 * 3 * 65 * _BLOCK_ROWS // 8  # four blocks of three columns of 64 bits, and those of their nulls
    plan, windows = open_windows(tmp_path, columns, shuffle=False, shard_bytes=shard_bytes)
    segments = segments_of(plan)
    assert len(segments) == 12
    found = [each for each, _ in windows.split(segments)]
    assert [ids(windows.finish(windows.begin(each))) for each in found] == [
        [*range(first + start * _BLOCK_ROWS, first + min(start + blocks_at_once, 6) * _BLOCK_ROWS)]
        for first in (0, 6 * _BLOCK_ROWS)
        for start in range(0, 6, blocks_at_once)
    ]
    assert len(reads) == len(found)
    # From the middle of a block on, and without one in between.
    rest = [Segment(segments[0].window, 5, _BLOCK_ROWS), segments[1], segments[3]]
    found = [each for each, _ in windows.split(rest)]
    assert [i for each in found for i in ids(windows.finish(windows.begin(each)))] == [*range(5, 16), *range(24, 32)]
    assert len(found) == (3 if blocks_at_once == 1 else 2)


def test_with_shuffle_a_large_shard_is_decoded_block_by_block(
    tmp_path: Path, open_windows: Open, reads: list[Any]
) -> None:
    write_corpus(tmp_path, files=((3, 2, 4, 1),))
    sizes = [6000, 3000, 50_000, 1000]
    plan, windows = open_windows(
        tmp_path,
        shuffle=True,
        num_lanes=2,
        shard_bytes=10_000,
        window_bytes=20_000,
        block_memory_bytes=sizes,
        order_version=1,
    )
    segments = segments_of(plan, 0), segments_of(plan, 1)
    for (segment,), expected in zip(segments, ([(0, 0, 5)], [(0, 5, 9), (0, 9, 10)]), strict=True):
        reads.clear()
        assert ids(windows.finish(windows.begin(segment))) == ids_of(plan, [segment])
        assert sorted(reads) == expected


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_column_that_cannot_be_combined_is_named_with_its_file(
    tmp_path: Path, open_windows: Open, monkeypatch: pytest.MonkeyPatch, *, shuffle: bool
) -> None:
    def overflow(_: object) -> pa.Array[Any]:
        message = "offset overflow"
        raise pa.ArrowInvalid(message)

    table = pa.table({"id": [1], "text": ["a"]})
    write_blocks(tmp_path / "a.arrow", "arrow-file", [table, table], table.schema)
    plan, windows = open_windows(tmp_path, shuffle=shuffle, shard_bytes=10_000, window_bytes=10_000)
    (segment,) = segments_of(plan)
    monkeypatch.setattr(pa, "concat_arrays", overflow)
    name = "text" if shuffle else "id"  # numbers are shuffled without Arrow
    with pytest.raises(ColumnConversionError, match="offset overflow") as caught:
        windows.finish(windows.begin(segment))
    assert f"column {name!r} of type " in str(caught.value)
    assert "a.arrow" in str(caught.value)
