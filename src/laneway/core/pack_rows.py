"""Packs of documents of known lengths: the rows of data files of which they consist, and the packs of such a row."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from laneway.core.places import FileRows, find_in_lanes, find_row, rows_of_segment

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from laneway.core.cursor import LaneRange
    from laneway.core.pack_line import PackLine
    from laneway.core.places import LaneRow
    from laneway.core.plan import Plan


class PackedRows(NamedTuple):
    """The rows of data files of which packs consist, pack by pack, in the order of their documents."""

    rows: FileRows
    """The rows."""
    start: NDArray[np.int64]
    """The first token of each that the pack has, shape (rows,)."""
    stop: NDArray[np.int64]
    """One past the last one, shape (rows,)."""
    pack: NDArray[np.int64]
    """Which of the packs it is, shape (rows,)."""


def packed_rows(plan: Plan, line: PackLine, ranges: Iterable[LaneRange]) -> PackedRows:
    """Return of which rows the packs of lanes consist, padding included; `line` is that of the plan."""
    parts, num_packs = [], 0
    for lane in ranges:
        for segment in plan.lanes.segments(*lane):
            pack, document, start, stop = line.documents(segment.start, segment.stop)
            low, high = (int(document.min()), int(document.max()) + 1) if len(document) else (0, 0)
            rows = FileRows.joined(rows_of_segment(plan, each) for each in line.rows.segments(0, low, high))
            of_documents = FileRows(*(column[document - low] for column in rows))
            parts.append(PackedRows(of_documents, start, stop, pack + num_packs))
            num_packs += segment.stop - segment.start
    none = [np.zeros(0, np.int64)]
    columns = [np.concatenate([*none, *(each[index] for each in parts)]) for index in (1, 2, 3)]
    return PackedRows(FileRows.joined(each.rows for each in parts), *columns)


def find_packs(plan: Plan, line: PackLine, ends: NDArray[np.int64], file_index: int, row: int) -> list[LaneRow]:
    """Return where the packs that have tokens of a row of a file are in the lanes of the current cut.

    Args:
        plan: The plan.
        line: Its line of packs.
        ends: Packs that each lane delivers, shape (num_lanes,).
        file_index: The file.
        row: Which of its selected rows.
    """
    found: list[LaneRow] = []
    for _, place in find_row(replace(plan, lanes=line.rows), line.rows.rows, file_index, row):
        first, stop = line.places.packs_near(place)
        documents = line.documents(first, stop) if first < stop else None
        packs = [] if documents is None else documents.pack[documents.document == place].tolist()
        for pack in packs:
            found += find_in_lanes(plan.lanes, ends, 0, first + pack)
    return found
