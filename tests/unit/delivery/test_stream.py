"""Read-ahead of a stream: how many windows, in which threads, until when; and where errors are raised."""

from __future__ import annotations

import gc
import os
import threading
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laneway import DataFileError, StatefulShardedDataset
from laneway.reading.reader import RowReader
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NUM_FILES, FILE_ROWS = 6, 8


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for part in range(NUM_FILES):
        ids = range(part * FILE_ROWS, (part + 1) * FILE_ROWS)
        pq.write_table(pa.table({"id": ids}), tmp_path / f"part-{part}.parquet")
    return tmp_path


@pytest.fixture
def read_files(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the indices of the files as they are read, which laneway's own threads must do."""
    found: list[int] = []
    read = RowReader.read

    def watch(self: RowReader, file_index: int, start: int, stop: int) -> pa.Table:
        assert threading.current_thread().name.startswith("laneway-read")
        found.append(file_index)
        return read(self, file_index, start, stop)

    monkeypatch.setattr(RowReader, "read", watch)
    return found


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("laneway-read")]


def wait_for_reads(read_files: list[int], num_reads: int) -> None:
    wait_until(
        lambda: len(read_files) >= num_reads, lambda: f"{num_reads} files are read ahead (read so far: {read_files})"
    )


def threads_left(before: list[threading.Thread]) -> list[threading.Thread]:
    """Return the threads that read and were not there before, without those that end now."""
    gc.collect()
    started = [thread for thread in reading_threads() if thread not in before]
    for thread in started:
        thread.join(5)
    return [thread for thread in started if thread.is_alive()]


@pytest.mark.parametrize("num_ahead", [0, 1, 3])
def test_as_many_windows_are_read_ahead_as_were_requested(corpus: Path, read_files: list[int], num_ahead: int) -> None:
    # Files of less than a shard would be read ahead together.
    dataset = StatefulShardedDataset(corpus, batch_size=FILE_ROWS, prefetch_windows=num_ahead, shard_bytes=1)
    batches = iter(dataset)
    for part in range(NUM_FILES):
        assert next(batches)["id"][0] == part * FILE_ROWS
        expected = list(range(min(part + num_ahead + 1, NUM_FILES)))
        # No more than these are requested at all; see tests/unit/reading/test_lane_reader.py.
        wait_for_reads(read_files, len(expected))
        assert sorted(read_files) == expected
    assert list(batches) == []
    assert sorted(read_files) == list(range(NUM_FILES))


def test_a_resumed_epoch_reads_no_earlier_window(corpus: Path, read_files: list[int]) -> None:
    dataset = StatefulShardedDataset(corpus, batch_size=4, prefetch_windows=0)
    batches = iter(dataset)
    for _ in range(7):
        next(batches)
    state = dataset.state_dict()
    read_files.clear()
    dataset.load_state_dict(state)
    assert next(iter(dataset))["id"].tolist() == [28, 29, 30, 31]
    assert read_files == [3]


def test_a_window_that_cannot_be_read_fails_at_its_first_batch_and_is_read_again_once_repaired(corpus: Path) -> None:
    path = corpus / "part-2.parquet"
    dataset = StatefulShardedDataset(corpus, batch_size=4, prefetch_windows=2)
    whole = path.read_bytes()
    path.write_bytes(b"x" * len(whole))
    batches = iter(dataset)
    received = [next(batches)["id"].tolist() for _ in range(4)]
    for _ in range(2):
        with pytest.raises(DataFileError, match=r"part-2\.parquet"):
            next(batches)
    path.write_bytes(whole)
    received += [batch["id"].tolist() for batch in batches]
    assert [row for rows in received for row in rows] == list(range(NUM_FILES * FILE_ROWS))


@pytest.mark.parametrize("how", ["end", "break", "error", "forgotten"])
def test_the_thread_ends_with_the_pass(corpus: Path, how: str) -> None:
    def failing(batch: dict[str, Any]) -> dict[str, Any]:
        if how == "error" and batch["id"][0] == 12:
            message = "on purpose"
            raise RuntimeError(message)
        return batch

    def one_pass() -> int:
        """Return the number of batches that were received before the pass ended."""
        batches: Iterator[Any] = iter(StatefulShardedDataset(corpus, batch_size=4, transform=failing))
        if how == "forgotten":
            next(batches)
            return 1
        num_batches = 0
        with pytest.raises(RuntimeError, match="on purpose") if how == "error" else nullcontext():
            for batch in batches:
                num_batches += 1
                if how == "break" and batch["id"][0] == 8:
                    break
        return num_batches

    before = reading_threads()
    assert one_pass() == {"end": 12, "break": 3, "error": 3, "forgotten": 1}[how]
    assert threads_left(before) == []


def test_a_forked_child_has_no_reading_threads_and_reads_with_its_own(corpus: Path) -> None:
    dataset = StatefulShardedDataset(corpus, batch_size=4)
    batches = iter(dataset)
    next(batches)
    pid = os.fork()
    if pid == 0:
        fine = reading_threads() == []
        own = [batch["id"][0].item() for batch in StatefulShardedDataset(corpus, batch_size=4)]
        os._exit(0 if fine and own == list(range(0, 48, 4)) else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert len(list(batches)) == 11


@pytest.mark.parametrize("prefetch_windows", [-1, 1.5, "1", None, True])
def test_an_invalid_number_of_windows_is_refused(corpus: Path, prefetch_windows: Any) -> None:
    with pytest.raises(ValueError, match="prefetch_windows must be an int of at least 0"):
        StatefulShardedDataset(corpus, prefetch_windows=prefetch_windows)
