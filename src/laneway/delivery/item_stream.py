"""A worker's stream of items that stages make of rows."""

from __future__ import annotations

from collections import Counter
from time import perf_counter
from typing import TYPE_CHECKING

from laneway.activity import LANE, ROW
from laneway.delivery.passes import Delivery
from laneway.delivery.row_errors import SKIPPED
from laneway.delivery.stream import TaggedStream

if TYPE_CHECKING:
    from laneway.core.progress import LanePosition
    from laneway.delivery.lane_items import LaneItems
    from laneway.delivery.passes import Taken
    from laneway.delivery.stream import CutReading
    from laneway.metering import Meter
    from laneway.stages.runs import Items


class ItemStream(TaggedStream["LaneItems"]):
    """Delivers batches of items, or single items.

    A turn takes items of its lane, and brings the position after them. How many rows that are depends on the data.
    """

    def __init__(self, cut: CutReading[LaneItems], meter: Meter, *, turn_items: int | None, min_items: int) -> None:
        """Start where a cut is.

        Args:
            cut: The cut.
            meter: Measures the stream.
            turn_items: Items of a turn; None: lanes count items, and their ranges say how many come next.
            min_items: Items of a batch; with fewer, at the end of lanes, it is dropped.
        """
        super().__init__(cut, meter)
        self._turn_items = turn_items
        self._min_items = min_items

    def _read(self, num_delivered: int) -> Taken | None:
        found = self._cursor.next_batch()
        if found is None:
            return self._read(num_delivered) if self._goes_on() else None
        meter = self._meter
        began, waited_before = perf_counter(), meter.wait_s + meter.convert_s
        parts: list[Items] = []
        positions: list[tuple[int, LanePosition]] = []
        tokens: Counter[str] = Counter()
        for lane, start, stop in found.ranges:
            before = self._cursor.position_of(lane)
            items, position, of_lane = self._items.take(lane, before, self._turn_items or stop - start)
            parts += items
            tokens.update(of_lane)
            positions.append((lane, position))
            meter.rows += position.rows - before.rows
        is_dropped = sum(map(len, parts)) < self._min_items
        meter.cells[LANE] = meter.cells[ROW] = 0
        batch = SKIPPED if is_dropped else self._items.batch(parts)
        # The functions and stages are called by generators, which also read.
        meter.transform_s += perf_counter() - began - (meter.wait_s + meter.convert_s - waited_before)
        delivery = Delivery(
            found.turn,
            positions,
            before=num_delivered,
            tokens=None if is_dropped else {**tokens},
            tokens_before=self._cursor.tokens,
        )
        return self._taken(delivery, batch)
