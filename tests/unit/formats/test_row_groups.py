"""The numbers of a Parquet footer: contradictions, and the decoded size of row groups."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laneway.errors import DataFileError
from laneway.formats import ParquetFormat
from laneway.formats.column_chunks import ChunkSizes, find_chunks
from laneway.formats.row_groups import leaf_ranges
from laneway.manifest import Manifest
from laneway.storage.filesystem import Storage
from tests.unit.formats.damage import columns

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ROWS = 6_000
PROMPT = "You are a helpful assistant. " * 100


def _estimates(path: Path) -> list[float]:
    """Return the estimated bytes of each row group, in multiples of the decoded ones."""
    scan = ParquetFormat().scan(Storage(path.parent), str(path), path.stat().st_size)
    file = pq.ParquetFile(path)
    return [scan.block_memory_bytes[i] / file.read_row_group(i).nbytes for i in range(file.num_row_groups)]


@pytest.mark.parametrize("name", columns(60, for_parquet=True))
def test_the_decoded_size_of_every_type_is_estimated(tmp_path: Path, name: str) -> None:
    table = pa.table(columns(ROWS, for_parquet=True)).select([name])
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2_500)
    # Dictionaries are small here, so that their bytes and the levels of nested types count.
    assert all(0.9 <= ratio <= 1.6 for ratio in _estimates(tmp_path / "a.parquet"))


@pytest.mark.parametrize("texts", [[f"{i % 8}{PROMPT}" for i in range(ROWS)], [PROMPT + str(i) for i in range(ROWS)]])
@pytest.mark.parametrize(
    "options",
    [{}, {"column_encoding": {"s": "DELTA_BYTE_ARRAY"}, "use_dictionary": False}, {"write_statistics": False}],
)
def test_texts_that_take_a_thousand_times_more_memory_than_bytes_in_the_file_are_estimated(
    tmp_path: Path, texts: list[str], options: dict[str, Any]
) -> None:
    pq.write_table(
        pa.table({"id": np.arange(ROWS), "s": texts}), tmp_path / "a.parquet", row_group_size=2_500, **options
    )
    assert all(0.99 <= ratio <= 1.05 for ratio in _estimates(tmp_path / "a.parquet"))


def test_without_size_statistics_the_lengths_of_the_least_and_greatest_value_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(footer: bytes, path: Sequence[str]) -> list[ChunkSizes]:
        return [dataclasses.replace(each, decoded_bytes=None) for each in find_chunks(footer, path)]

    monkeypatch.setattr("laneway.formats.row_groups.find_chunks", without)
    labels = [["a label", "b label", "c label"][i % 3] for i in range(ROWS)]
    for texts, most in ((labels, 1.1), ([f"{i % 8}{PROMPT * 2}" for i in range(ROWS)], 2.0)):
        for encoding in ({}, {"use_dictionary": False, "column_encoding": {"s": "DELTA_BYTE_ARRAY"}}):
            options: dict[str, Any] = dict(encoding)
            pq.write_table(pa.table({"s": texts}), tmp_path / "a.parquet", **options)
            assert all(0.5 <= ratio <= most for ratio in _estimates(tmp_path / "a.parquet"))


@pytest.mark.parametrize("name", ["a", "with.dot", "ä" * 70])
def test_the_sizes_of_the_chunks_of_a_column_are_found_by_its_name(tmp_path: Path, name: str) -> None:
    texts = [f"{i % 3}" * (1 + i // 2_000) for i in range(ROWS)]
    lists = [{name: [text] * 2} for text in texts]
    table = pa.table({"x": texts, name: texts, f"{name}b": lists})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2_000)
    data = (tmp_path / "a.parquet").read_bytes()
    footer = data[-8 - int.from_bytes(data[-8:-4], "little") : -8]
    found = find_chunks(footer, [name])
    assert [each.decoded_bytes for each in found] == [2_000, 4_000, 6_000]
    assert [(each.num_values, each.value_length, each.is_repetitive) for each in found] == [
        (2_000, length, True) for length in (1.0, 2.0, 3.0)
    ]
    nested = find_chunks(footer, [f"{name}b", name, "list", "element"])
    assert [(each.num_values, each.decoded_bytes) for each in nested] == [
        (4_000, size) for size in (4_000, 8_000, 12_000)
    ]
    assert find_chunks(footer, ["no such column"]) == []
    assert all(0.9 <= ratio <= 1.3 for ratio in _estimates(tmp_path / "a.parquet"))
    for length in range(len(footer)):
        try:
            partly = find_chunks(footer[:length], [name])
        except ValueError:
            continue
        assert partly == found[: len(partly)]
    # A field that became one of another type is damage, too.
    for position in range(len(footer) - 8):
        swapped = footer[:position] + footer[position : position + 8][::-1] + footer[position + 8 :]
        with suppress(ValueError):
            find_chunks(swapped, [name])


def _set_varint(path: Path, old: int, new: int, occurrence: int) -> None:
    """Replace a small zigzag number in the footer."""
    data = bytearray(path.read_bytes())
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    places = [at for at in range(start, len(data) - 8) if data[at] == (old << 1) and data[at - 1] in {0x16, 0x26}]
    data[places[occurrence]] = (new << 1) ^ (new >> 63)
    path.write_bytes(data)


def test_row_counts_that_contradict_each_other_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    errors = set()
    for new in (-25, 24, 63):
        for occurrence in range(3):
            pq.write_table(pa.table({"x": range(25)}), path)
            _set_varint(path, 25, new, occurrence)
            try:
                ids = [row["x"] for row in _rows(path)]
            except DataFileError as error:
                errors.add(str(error).partition("damaged: ")[2] or str(error).partition("): ")[2])
            else:
                assert ids == list(range(25)), "a number that nothing depends on"
    assert "the footer claims 25 rows in all, and in its row groups -25" in errors
    assert "the footer claims 63 rows in all, and in its row groups 25" in errors
    assert "the footer claims 24 values of 'x' in 25 rows" in errors


def _rows(path: Path) -> list[dict[str, Any]]:
    from laneway import StatefulShardedDataset  # noqa: PLC0415 - only this test reads rows

    return list(StatefulShardedDataset(Manifest.scan(path.parent)))


def test_the_leaves_of_a_column_are_consecutive() -> None:
    schema = pa.table(columns(60, for_parquet=True)).schema
    ranges = leaf_ranges(schema)
    assert list(ranges) == schema.names
    assert ranges["struct"].stop - ranges["struct"].start == 2
    assert ranges["map"].stop - ranges["map"].start == 2
    assert [*ranges.values()][-1].stop == sum(len(each) for each in ranges.values())
