"""Files of a table that a filter leaves out: never one with a row that matches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from laneway import Bounds, Catalog, TableFiles
from laneway.reading.expressions import filter_on
from laneway.tables import pruning
from laneway.tables.pruning import files_that_may_match

TYPES: dict[str, pa.DataType] = {"x": pa.int64(), "s": pa.string(), "f": pa.float64()}
SCHEMA = pa.schema(TYPES)
CONDITIONS = {
    "range": pc.field("x") < 100,
    "equal": pc.field("x") == 77,
    "text": (pc.field("s") >= "05") & (pc.field("s") < "07"),
    "both": (pc.field("x") > 50) & (pc.field("s") < "06"),
    "either": (pc.field("x") > 170) | (pc.field("f") <= 1.5),
    "null": pc.field("x").is_null(),
    "negated": ~(pc.field("x") < 100),
    "none": pc.field("x") > 1000,
    "computed": pc.divide(pc.scalar(10), pc.field("x")) > 1,
}


class Known(Catalog):
    """A catalog of files whose rows are known."""

    root = "/"
    schema = SCHEMA

    def __init__(self, files: list[pa.Table], told: list[bool]) -> None:
        self.rows, self._told = files, told

    def files(self) -> TableFiles:
        return TableFiles(paths=[f"{index}.parquet" for index in range(len(self.rows))], sizes=[1] * len(self.rows))

    def bounds(self, name: str) -> Bounds:
        columns: list[Any] = [table[name] for table in self.rows]
        extremes: list[Any] = [pc.min_max(column).as_py() for column in columns]
        least, greatest = ([each[key] for each in extremes] for key in ("min", "max"))
        hidden = [None if told else "?" for told in self._told]
        type_ = SCHEMA.field(name).type
        return Bounds(
            pa.array([None if mark else value for value, mark in zip(least, hidden, strict=True)], type_),
            pa.array([None if mark else value for value, mark in zip(greatest, hidden, strict=True)], type_),
            np.array([mark is not None or column.null_count > 0 for column, mark in zip(columns, hidden, strict=True)]),
            np.array(
                [
                    mark is None and column.null_count == len(column)
                    for column, mark in zip(columns, hidden, strict=True)
                ]
            ),
        )


def make(num_files: int, *, in_order: bool) -> Known:
    """Return files of some rows each: constant, with nulls, null alone, or of unknown values."""
    generator = np.random.default_rng(num_files)
    files = []
    for index in range(num_files):
        base = index if in_order else int(generator.integers(0, num_files))
        width = [1, 1, 3, 9][index % 4]
        numbers: list[Any] = (base + generator.integers(0, width, 4)).tolist()
        if index % 5 == 0:
            numbers[0] = None
        if index % 11 == 0:
            numbers = [None] * 4
        texts = [None if each is None else f"{each % 1000 // 10:02}" for each in numbers]
        files.append(pa.table({"x": numbers, "s": texts, "f": [base / 2] * 4}, SCHEMA))
    return Known(files, [bool(each) for each in generator.integers(0, 9, num_files)])


@pytest.mark.parametrize("name", CONDITIONS)
@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("num_files", [1, 20, 200])
def test_no_file_with_a_row_that_matches_is_left_out(
    monkeypatch: pytest.MonkeyPatch, name: str, num_files: int, in_order: bool
) -> None:
    catalog = make(num_files, in_order=in_order)
    step = filter_on(CONDITIONS[name], SCHEMA, None)
    found = files_that_may_match(catalog, step, num_files)

    def matches(rows: pa.Table) -> bool:
        try:
            return bool(step.matches(rows).any())
        except pa.ArrowException:
            return True

    expected = np.array([matches(rows) for rows in catalog.rows])
    assert not (expected & ~found).any()
    # Groups only save time.
    monkeypatch.setattr(pruning, "_GROUP", 10**6)
    assert found.tolist() == files_that_may_match(catalog, step, num_files).tolist()


def test_what_is_left_out_is_most_of_what_does_not_match() -> None:
    catalog = make(200, in_order=True)
    for name, at_most in (("range", 150), ("equal", 60), ("none", 50)):
        kept = files_that_may_match(catalog, filter_on(CONDITIONS[name], SCHEMA, None), 200)
        assert kept.sum() <= at_most, name
