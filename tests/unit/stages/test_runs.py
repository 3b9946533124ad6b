"""Flows: the items of a lane, taken a few at a time, with the position after each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from laneway.core.progress import LanePosition
from laneway.errors import LanewayError
from laneway.stages.runs import Flow, PackColumns, Run, joined, no_items

if TYPE_CHECKING:
    from collections.abc import Iterator


def run_of(row: int, num_items: int) -> Run:
    """Return the items of a row."""
    items = [f"{row}.{number}" for number in range(num_items)]
    return Run(items, lambda index: LanePosition(row, index + 1), LanePosition(row + 1))


def test_items_come_in_parts_of_runs_and_the_position_is_after_the_last_one() -> None:
    flow = Flow(iter([run_of(0, 2), run_of(1, 0), run_of(2, 3)]), LanePosition())
    assert flow.take(1) == [["0.0"]]
    assert flow.position == LanePosition(0, 1)
    assert flow.take(3) == [["0.1"], ["2.0", "2.1"]]
    assert flow.position == LanePosition(2, 2)
    assert flow.take(1) == [["2.2"]]
    assert flow.position == LanePosition(3)
    assert flow.take(4) == []


def test_rows_without_items_at_the_end_are_passed_over() -> None:
    flow = Flow(iter([run_of(0, 1), no_items(LanePosition(7))]), LanePosition())
    assert flow.take(5) == [["0.0"]]
    assert flow.position == LanePosition(7)


def test_a_lane_without_an_end_and_without_items_is_an_error() -> None:
    def empty() -> Iterator[Run]:
        yield run_of(0, 1)
        row = 1
        while True:
            row += 1
            yield no_items(LanePosition(row))

    flow = Flow(empty(), LanePosition(), max_empty_rows=10)
    assert flow.take(1) == [["0.0"]]
    with pytest.raises(LanewayError, match="the last 11 rows of a lane without an end have made no item"):
        flow.take(1)


def test_packs_are_sliced_without_a_copy_and_joined() -> None:
    ids = np.arange(12).reshape(4, 3)
    packs = PackColumns({"input_ids": ids}, 4)
    part = packs[1:9]
    assert len(part) == 3
    assert np.shares_memory(part.columns["input_ids"], ids)
    assert [pack["input_ids"].tolist() for pack in packs[:2]] == [[0, 1, 2], [3, 4, 5]]
    assert joined([packs[3:], packs[:1]])["input_ids"].tolist() == [[9, 10, 11], [0, 1, 2]]
    assert np.shares_memory(joined([packs])["input_ids"], ids)
