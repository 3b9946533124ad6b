"""Rows that a table doesn't have: counted by block without reading, and left out of any rows of a file."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from laneway.catalog.table_facts import DeletedRows
from laneway.core.files import FileTable
from laneway.reading.deletes import NotDeleted
from laneway.reading.steps import Run

FILES = st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=3)


@given(FILES, st.data())
def test_counts_and_masks_are_those_of_the_rows_that_are_left(files: list[list[int]], data: st.DataObject) -> None:
    blocks = [(rows, rows) for rows in files]
    table = FileTable.build([f"f{i}" for i in range(len(files))], [1] * len(files), ["d"] * len(files), blocks, "s")
    deleted = {
        index: data.draw(st.lists(st.integers(0, sum(rows) - 1), unique=True))
        for index, rows in enumerate(files)
        if sum(rows)
    }
    step = NotDeleted(
        DeletedRows.of({i: np.array(rows, np.int64) for i, rows in deleted.items()}, len(files)), table.paths
    )
    assert step.deleted.num_rows == sum(map(len, deleted.values()))
    for index, rows in enumerate(files):
        num_rows = sum(rows)
        start = data.draw(st.integers(0, num_rows))
        stop = data.draw(st.integers(start, num_rows))
        mask = step.select(
            pa.table({}), Run(f"f{index}", 0, start, np.array([0, stop - start])), np.ones(stop - start, bool)
        )
        assert mask.tolist() == [row not in deleted.get(index, []) for row in range(start, stop)]
    if step.deleted.num_rows:
        bounds = np.cumsum([0, *(size for rows in files for size in rows)])
        is_left = [row not in deleted.get(index, []) for index, rows in enumerate(files) for row in range(sum(rows))]
        assert step.counts(table).tolist() == [sum(is_left[a:b]) for a, b in itertools.pairwise(bounds)]


def test_ranges_that_overlap_or_touch_are_one() -> None:
    deleted = DeletedRows.of({1: np.array([[5, 9], [0, 2], [2, 3], [6, 7], [9, 9]])}, 2)
    assert deleted.ranges.tolist() == [[0, 3], [5, 9]]
    assert deleted.starts.tolist() == [0, 0, 2]
