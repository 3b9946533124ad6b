"""Rows of lanes: the order, what is read ahead and for how long, and the row that pads a lane."""

from __future__ import annotations

import gc
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laneway.convert.batches import BatchConverter
from laneway.core.cursor import LaneRange
from laneway.errors import DataFileError
from laneway.manifest import scan_source
from laneway.metering import Meter
from laneway.reading.lane_reader import LaneReader
from laneway.reading.projection import select_columns
from laneway.reading.reader import RowReader
from laneway.reading.windows import PendingWindow, WindowReader
from tests.corpora import KINDS, Kind, write_corpus
from tests.unit.reading.plans import ids_of, plan_of, reading_threads, segments_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from laneway.convert.open_rows import OpenRows
    from laneway.core.lanes import Segment
    from laneway.core.plan import Plan

    Open = Callable[..., tuple[Plan, LaneReader]]


def open_source(source: Path, *, num_ahead: int = 0, **options: Any) -> tuple[Plan, LaneReader]:
    manifest, storage = scan_source(source)
    plan, rows = plan_of(manifest, **options), RowReader(manifest, storage, select_columns(manifest))
    return plan, LaneReader(plan, rows, BatchConverter(rows.schema, "numpy").vectorized, num_ahead, Meter())


@pytest.fixture
def open_lanes() -> Iterator[Open]:
    """Opens readers, and ends them."""
    opened: list[LaneReader] = []

    def open_and_note(source: Path, **options: Any) -> tuple[Plan, LaneReader]:
        plan, lanes = open_source(source, **options)
        opened.append(lanes)
        return plan, lanes

    yield open_and_note
    for lanes in opened:
        lanes.end()


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[Segment]:
    """The segments that have been requested, in this order."""
    found: list[Segment] = []
    begin = WindowReader.begin

    def watch(self: WindowReader, segment: Segment) -> PendingWindow:
        found.append(segment)
        return begin(self, segment)

    monkeypatch.setattr(WindowReader, "begin", watch)
    return found


def ids(slices: list[OpenRows]) -> list[int]:
    return [int(i) for rows in slices for i in rows.numbers["id"][rows.start : rows.stop]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shuffle", [False, True])
def test_lanes_read_in_turns_have_the_rows_of_the_plan(
    tmp_path: Path, open_lanes: Open, kind: Kind, *, shuffle: bool
) -> None:
    write_corpus(tmp_path, kind)
    plan, lanes = open_lanes(tmp_path, shuffle=shuffle, num_lanes=3, num_ahead=2)
    found: list[list[int]] = [[], [], []]
    for start in range(0, 16, 5):
        for lane in range(3):
            found[lane] += ids(lanes.read(LaneRange(lane, start, min(start + 5, 16))))
    assert found == [ids_of(plan, segments_of(plan, lane)) for lane in range(3)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus")
    write_corpus(path)
    return path


@given(
    ranges=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 24), st.integers(0, 24)), max_size=6),
    num_ahead=st.integers(0, 3),
    shuffle=st.booleans(),
)
def test_any_range_can_be_read_at_any_time(
    corpus: Path, ranges: list[tuple[int, int, int]], num_ahead: int, *, shuffle: bool
) -> None:
    plan, lanes = open_source(corpus, shuffle=shuffle, num_lanes=2, num_ahead=num_ahead)
    for lane, *bounds in ranges:
        start, stop = sorted(bounds)
        assert ids(lanes.read(LaneRange(lane, start, stop))) == ids_of(
            plan, list(plan.lanes.segments(lane, start, stop))
        )
    lanes.end()


def test_a_range_comes_in_one_slice_per_window(tmp_path: Path, open_lanes: Open) -> None:
    write_corpus(tmp_path, files=((4,), (4,), (4,)))
    _, lanes = open_lanes(tmp_path, shuffle=False)
    assert [ids([rows]) for rows in lanes.read(LaneRange(0, 2, 10))] == [[2, 3], [4, 5, 6, 7], [8, 9]]
    first, second = lanes.read(LaneRange(0, 8, 10)), lanes.read(LaneRange(0, 9, 11))
    assert np.shares_memory(first[0].numbers["id"], second[0].numbers["id"])
    assert lanes.read(LaneRange(0, 3, 3)) == []


@pytest.mark.parametrize("num_ahead", [0, 1, 3])
@pytest.mark.parametrize("shuffle", [False, True])
def test_as_many_windows_are_read_ahead_as_were_requested(
    tmp_path: Path, open_lanes: Open, begun: list[Segment], num_ahead: int, *, shuffle: bool
) -> None:
    write_corpus(tmp_path)
    plan, lanes = open_lanes(tmp_path, shuffle=shuffle, num_ahead=num_ahead)
    segments = segments_of(plan)
    assert begun == []
    position = 0
    for i, segment in enumerate(segments):
        for _ in range(segment.stop - segment.start):
            lanes.read(LaneRange(0, position, position + 1))
            position += 1
            assert begun == segments[: i + 1 + num_ahead]


def test_a_jump_to_another_position_cancels_what_is_read_ahead(
    tmp_path: Path, open_lanes: Open, begun: list[Segment], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path, files=((4,),) * 6)
    plan, lanes = open_lanes(tmp_path, shuffle=False, num_ahead=2)
    segments = segments_of(plan)
    cancelled: list[int] = []
    cancel = PendingWindow.cancel

    def watch(self: PendingWindow) -> None:
        cancelled.append(self.segment.window)
        cancel(self)

    lanes.read(LaneRange(0, 0, 1))
    begun.clear()
    monkeypatch.setattr(PendingWindow, "cancel", watch)
    assert ids(lanes.read(LaneRange(0, 14, 15))) == [14]
    assert cancelled[:2] == [segments[1].window, segments[2].window]
    assert [segment.window for segment in begun] == [segment.window for segment in segments[3:]]
    assert begun[0].start == 2


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_window_that_cannot_be_read_is_read_again_when_its_rows_are_requested_again(
    tmp_path: Path, open_lanes: Open, *, shuffle: bool
) -> None:
    write_corpus(tmp_path, files=((4,),) * 4)
    plan, lanes = open_lanes(tmp_path, shuffle=shuffle, window_bytes=1, num_ahead=1)
    expected = ids_of(plan, segments_of(plan))
    path = tmp_path / f"part-{expected[8] // 4:03}.parquet"
    whole = path.read_bytes()
    path.write_bytes(b"x" * len(whole))
    # Read one by one: the window after these is read ahead, and its error belongs to nobody yet.
    assert [ids(lanes.read(LaneRange(0, i, i + 1))) for i in range(8)] == [[i] for i in expected[:8]]
    for _ in range(2):
        with pytest.raises(DataFileError, match=path.name):
            lanes.read(LaneRange(0, 8, 9))
    path.write_bytes(whole)
    assert ids(lanes.read(LaneRange(0, 8, 16))) == expected[8:]


def test_a_read_that_fails_cancels_what_is_read_ahead(
    tmp_path: Path, open_lanes: Open, begun: list[Segment], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path, files=((1,),) * 30)
    reads: list[int] = []
    is_failing = threading.Event()
    is_failing.set()
    go_on = threading.Event()
    read = RowReader.read

    def fail_first(self: RowReader, file_index: int, start: int, stop: int) -> Any:
        reads.append(file_index)
        if file_index == 0 and is_failing.is_set():
            message = "the storage is away"
            raise DataFileError(message)
        assert go_on.wait(60)
        return read(self, file_index, start, stop)

    monkeypatch.setattr(RowReader, "read", fail_first)
    _, lanes = open_lanes(tmp_path, shuffle=False, num_ahead=20)
    # The threads are busy with what is read ahead, so each retry would have to wait for it.
    with pytest.raises(DataFileError, match="away"):
        lanes.read(LaneRange(0, 0, 1))
    assert len(begun) == 21
    is_failing.clear()
    go_on.set()
    assert ids(lanes.read(LaneRange(0, 0, 30))) == [*range(30)]
    # Besides those of the retry: the read that failed, and one for each thread.
    assert len(reads) <= 30 + 1 + 4


def test_without_shuffle_remote_files_are_read_ahead_by_their_bytes(
    tmp_path: Path, open_lanes: Open, begun: list[Segment], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path, files=((1,) * 40,))
    monkeypatch.setattr(RowReader, "is_remote", property(lambda _: True))
    sizes = [100] * 10 + [300, 5000, 100, 100] + [1] * 26
    _, lanes = open_lanes(tmp_path, shuffle=False, num_ahead=2, window_bytes=200, block_memory_bytes=sizes)
    expected = {0: 5, 3: 8, 7: 10, 8: 11, 9: 12, 10: 13, 11: 40}
    for row in range(12):
        assert ids(lanes.read(LaneRange(0, row, row + 1))) == [row]
        assert len(begun) == expected.get(row, len(begun))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_lane_is_padded_with_its_last_row_as_it_was_read(
    tmp_path: Path, open_lanes: Open, kind: Kind, *, shuffle: bool
) -> None:
    write_corpus(tmp_path, kind)
    plan, lanes = open_lanes(tmp_path, shuffle=shuffle, num_lanes=2)
    expected = ids_of(plan, segments_of(plan, 1))
    last_rows = lanes.read(LaneRange(1, 20, 24))
    assert ids(last_rows) == expected[20:]
    # A user may change what was delivered; the padding row stays as it is in the file.
    for rows in last_rows:
        rows.numbers["id"][:] = -1
    for read_again in (False, True):
        if read_again:
            lanes.close()
        (padding,) = lanes.read(LaneRange(1, 24, 25))
        assert padding.num_rows == 1
        assert ids([padding]) == expected[-1:]
    assert ids(lanes.read(LaneRange(1, 22, 25))) == [*expected[22:], expected[-1]]


def test_an_empty_lane_is_padded_with_a_row_of_its_neighbour(tmp_path: Path, open_lanes: Open) -> None:
    write_corpus(tmp_path, files=((2,),))
    plan, lanes = open_lanes(tmp_path, shuffle=False, num_lanes=3)
    assert plan.lanes.rows.tolist() == [1, 1, 0]
    assert ids(lanes.read(LaneRange(2, 0, 1))) == [1]


def test_a_row_is_located_in_its_file(tmp_path: Path, open_lanes: Open) -> None:
    write_corpus(tmp_path, files=((4,), (1500,)))
    _, lanes = open_lanes(tmp_path, shuffle=False)
    ranges = [LaneRange(0, 2, 4), LaneRange(0, 1100, 1104)]
    assert lanes.locate(ranges, 1) == "row 3 of part-000.parquet"
    assert lanes.locate(ranges, 3) == "row 1,097 of part-001.parquet"
    with pytest.raises(IndexError, match="row 0 is outside"):
        lanes.locate(ranges, 6)


def test_a_closed_reader_reads_from_the_files_again(tmp_path: Path, open_lanes: Open, begun: list[Segment]) -> None:
    write_corpus(tmp_path, "arrow-file", files=((4,), (4,)))
    _, lanes = open_lanes(tmp_path, shuffle=False)
    for rows in lanes.read(LaneRange(0, 0, 4)):
        rows.numbers["id"][:] = -1
    lanes.close()
    assert ids(lanes.read(LaneRange(0, 1, 3))) == [1, 2]
    assert len(begun) == 2


@pytest.mark.parametrize("how", ["end", "drop"])
def test_the_threads_end_with_the_reader(tmp_path: Path, how: str) -> None:
    write_corpus(tmp_path)
    gc.collect()
    before = set(reading_threads())
    _, lanes = open_source(tmp_path, shuffle=True, num_ahead=3)
    lanes.read(LaneRange(0, 0, 1))
    started = set(reading_threads()) - before
    assert started
    if how == "end":
        lanes.end()
    else:
        del lanes
        gc.collect()
    for thread in started:
        thread.join(10)
    assert not any(thread.is_alive() for thread in started)
