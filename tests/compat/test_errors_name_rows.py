"""An error of a user's function, and a null that can't be collated, name the file and the row."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from torch.utils.data import DataLoader

from laneway import ColumnConversionError, SavableLoader, StatefulShardedDataset
from tests.corpora import write_blocks

if TYPE_CHECKING:
    from pathlib import Path

NUM_WORKERS = pytest.mark.parametrize("num_workers", [0, 2])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two files of 20 rows; row 13 of the second one has a bad image and a null."""
    for part in range(2):
        bad = {13} if part else set()
        table = pa.table(
            {
                "image": [b"" if i in bad else b"ok" for i in range(20)],
                "label": [None if i in bad else i for i in range(20)],
            }
        )
        write_blocks(tmp_path / f"p{part}.parquet", "parquet", [table.slice(0, 8), table.slice(8)], table.schema)
    return tmp_path


def first_byte(row: Any) -> int:
    return int(row["image"][0])


def first_bytes(batch: Any) -> list[int]:
    return [image[0] for image in batch["image"]]


def stop(row: Any) -> Any:
    return next(iter([])) if row["image"] == b"" else 0


def collate(rows: list[Any]) -> list[int]:
    return [row["image"][0] for row in rows]


def failure(loader: Any) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - any class, its text is checked
        list(loader)
    return caught.value


def text_of(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


@NUM_WORKERS
def test_a_transform_that_fails_for_a_row_names_it(source: Path, num_workers: int) -> None:
    rows = StatefulShardedDataset(source, transform=first_byte)
    for loader in (
        SavableLoader(rows, batch_size=4, num_workers=num_workers),
        SavableLoader(rows, batch_size=None, num_workers=num_workers),
        DataLoader(rows, batch_size=None, num_workers=num_workers),
    ):
        error = failure(loader)
        assert type(error) is IndexError
        assert "the transform failed for row 13 of p1.parquet" in text_of(error)


@NUM_WORKERS
def test_a_transform_that_fails_for_a_batch_names_its_first_row_and_their_number(
    source: Path, num_workers: int
) -> None:
    batches = StatefulShardedDataset(source, columns=["image"], transform=first_bytes, batch_size=5)
    error = failure(SavableLoader(batches, batch_size=None, num_workers=num_workers))
    assert type(error) is IndexError
    assert "this batch has 5 rows; the first one is row 10 of p1.parquet" in text_of(error)


@NUM_WORKERS
def test_a_collate_fn_that_fails_names_the_first_row_of_its_batch(source: Path, num_workers: int) -> None:
    rows = StatefulShardedDataset(source, columns=["image"])
    error = failure(SavableLoader(rows, batch_size=5, collate_fn=collate, num_workers=num_workers))
    assert type(error) is IndexError
    assert "this batch has 5 rows; the first one is row 10 of p1.parquet" in text_of(error)


def test_a_stop_iteration_names_its_row_too(source: Path) -> None:
    error = failure(StatefulShardedDataset(source, transform=stop))
    assert type(error) is RuntimeError
    assert error.__notes__ == ["the transform failed for row 13 of p1.parquet"]


def test_shuffled_rows_of_several_lanes_are_named_as_they_are_in_their_files(source: Path) -> None:
    error = failure(StatefulShardedDataset(source, transform=first_byte, shuffle=True, lanes=4, turn_rows=3))
    assert error.__notes__ == ["the transform failed for row 13 of p1.parquet"]


@NUM_WORKERS
def test_a_null_that_cannot_be_collated_is_named_with_the_remedy(source: Path, num_workers: int) -> None:
    rows = StatefulShardedDataset(source, columns=["label"])
    error = failure(SavableLoader(rows, batch_size=4, num_workers=num_workers))
    assert isinstance(error, ColumnConversionError)
    assert "'label' is null in row 13 of p1.parquet" in str(error)
    assert "fill_null={'label': 0}" in str(error)
    filled = StatefulShardedDataset(source, columns=["label"], fill_null=-1)
    labels = [label for batch in SavableLoader(filled, batch_size=4) for label in batch["label"].tolist()]
    assert labels == [*range(20), *range(13), -1, *range(14, 20)]
