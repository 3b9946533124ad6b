"""What laneway.testing tells users of their pipelines: right ones pass, and each kind of mistake is found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torchdata.stateful_dataloader import StatefulDataLoader

from laneway import SavableLoader, StatefulShardedDataset
from laneway.formats import FORMATS, FileScan, Format, JsonLinesFormat
from laneway.formats.text_index import CHECKSUM
from laneway.storage.entries import file_size
from laneway.testing import assert_exact_on_any_topology, assert_resumes_exactly, check_format
from laneway.testing.comparing import comparable, rows_of
from tests.corpora import write_corpus
from tests.writers import WRITERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Repeating:
    """A loader of numbers that makes a mistake when it resumes."""

    def __init__(self, mistake: Callable[[int], int], *, keeps: bool = True) -> None:
        self._mistake = mistake
        self._keeps = keeps
        self._position = 0

    def __iter__(self) -> Iterator[int]:
        for number in range(self._position, 9):
            self._position = number + 1
            yield number

    def state_dict(self) -> dict[str, Any]:
        return {"position": self._position if self._keeps else np.int64(self._position)}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        self._position = self._mistake(state_dict["position"])


def test_pipelines_that_resume_exactly_pass(tmp_path: Path) -> None:
    write_corpus(tmp_path)

    def make(batch_size: int | None = 5) -> StatefulShardedDataset:
        return StatefulShardedDataset(tmp_path, shuffle=True, seed=1, batch_size=batch_size, shard_rows=4)

    assert assert_resumes_exactly(lambda: SavableLoader(make())) == 10
    assert assert_resumes_exactly(lambda: StatefulDataLoader(make(), batch_size=None), stops=range(11)) == 10
    assert assert_resumes_exactly(lambda: SavableLoader(make(None).repeat().batch(5)), max_items=13) == 13
    assert assert_resumes_exactly(lambda: Repeating(lambda position: position)) == 9


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda position: position + 1, r"resumed after 0 of 9 items, .*: item 0 from there on is \('int', '1'\)"),
        (lambda position: max(0, position - 1), r"resumed after 1 of 9 items, .*: item 0 from there on is"),
        (lambda position: 9 if position == 9 else 0, r"resumed after 1 of 9 items"),
        (lambda position: 9 if position == 7 else position, "resumed after 7 .*: 0 items follow instead of 2"),
    ],
)
def test_a_pipeline_that_loses_or_repeats_items_fails(mistake: Callable[[int], int], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_resumes_exactly(lambda: Repeating(mistake))


def test_a_state_that_no_checkpoint_can_hold_fails() -> None:
    with pytest.raises(Exception, match="weights_only"):
        assert_resumes_exactly(lambda: Repeating(lambda position: position, keeps=False))


def test_stops_must_be_among_the_items() -> None:
    with pytest.raises(ValueError, match=r"stops must be in \[0, 9\], the number of items, not \[3, 10\]"):
        assert_resumes_exactly(lambda: Repeating(int), stops=[10, 3])
    with pytest.raises(ValueError, match="the loader delivers no item"):
        assert_resumes_exactly(lambda: Repeating(int), max_items=0)


def test_each_row_comes_once_however_the_number_of_ranks_changes(tmp_path: Path) -> None:
    num_rows = write_corpus(tmp_path)

    def make(rank: int, world_size: int, remainder: Any = "keep") -> SavableLoader:
        arguments: dict[str, Any] = {"shuffle": True, "shard_rows": 4, "batch_size": 3, "output": "python"}
        dataset = StatefulShardedDataset(tmp_path, remainder=remainder, rank=rank, world_size=world_size, **arguments)
        return SavableLoader(dataset)

    assert assert_exact_on_any_topology(make) == num_rows
    with pytest.raises(AssertionError, match=r"jobs of 5 ranks, one after the other, lose \d+ and repeat 0 of 48 rows"):
        assert_exact_on_any_topology(lambda rank, world_size: make(rank, world_size, "drop"), chains=[[5]])


def test_items_are_compared_with_types_shapes_and_nan() -> None:
    assert comparable({"a": torch.tensor([1.0, float("nan")])}) == comparable({"a": torch.tensor([1.0, float("nan")])})
    different = [
        *(torch.zeros(2), torch.zeros(2, dtype=torch.float64), torch.zeros(1, 2), np.zeros(2, np.float32)),
        *(
            [0.0, 0.0],
            [0, 0],
            (0, False),
            "x",
            b"x",
            None,
            pa.table({"a": [1]}),
            pa.table({"a": pa.array([1], "int8")}),
        ),
    ]
    assert len({repr(comparable(each)) for each in different}) == len(different)


def test_rows_of_batches_of_every_output() -> None:
    expected = [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
    assert rows_of({"a": torch.tensor([1, 2]), "b": ["x", "y"]}) == expected
    assert rows_of({"a": np.array([1, 2]), "b": ["x", "y"]}) == expected
    assert rows_of(pa.table({"a": [1, 2], "b": ["x", "y"]})) == expected
    assert rows_of({"a": 1, "b": "x"}) == expected[:1]
    assert rows_of(7) == [7]


class Wrong(Format):
    """JSON Lines with one mistake."""

    name = "wrong"
    suffixes = (".wrong",)
    block_name = "block"

    def __init__(self, mistake: str) -> None:
        self._right = JsonLinesFormat()
        self._mistake = mistake
        self._scans = 0

    @property
    def inference(self) -> Any:
        return self._right.inference

    def scan(self, storage: Any, path: str, size: int, tail: bytes | None = None, version: str = "") -> FileScan:
        found = self._right.scan(storage, path, size, tail, version)
        self._scans += 1
        if self._mistake == "digest":
            found = FileScan(
                found.schema, found.block_rows, found.block_bytes, found.block_bytes, str(self._scans), found.layout
            )
        if self._mistake == "rows":
            found.block_rows[:1] = [found.block_rows[0] + 1] if found.block_rows else []
        return found

    def open(self, storage: Any, planned: Any, schema: pa.Schema) -> Any:
        if self._mistake == "checksums":
            again = self._right.scan(storage, planned.path, file_size(storage, planned.path))
            for entry, now in zip(planned.layout, again.layout, strict=False):
                entry[CHECKSUM] = now[CHECKSUM]
        reader = self._right.open(storage, planned, schema)
        return Shifted(reader) if self._mistake == "values" else reader


class Shifted:
    """A reader that reads columns in the order of the file."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self.matches, self.close = reader.matches, reader.close

    def read(self, first: int, stop: int, columns: list[str]) -> pa.Table:
        table: pa.Table = self._reader.read(first, stop, sorted(columns))
        return table


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("digest", "a second scan of the same file has another digest"),
        ("rows", "scan finds 48 rows instead of 47"),
        ("checksums", "a file that changed since the scan is read, without an error"),
        ("values", "of columns .* have the columns"),
    ],
)
def test_a_format_that_breaks_a_promise_fails(tmp_path: Path, mistake: str, message: str) -> None:
    before = list(FORMATS)
    with pytest.raises(AssertionError, match=message):
        check_format(Wrong(mistake), WRITERS["jsonl"][1], tmp_path)
    assert list(FORMATS) == before


def test_a_right_format_that_is_not_registered_passes(tmp_path: Path) -> None:
    check_format(Wrong("none"), WRITERS["jsonl"][1], tmp_path)
