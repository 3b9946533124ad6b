"""A worker's stream: the rows or batches that it delivers in one epoch.

The way of a row: the cursor returns ranges of lanes, of which `ItemMaker` builds items.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from torch.utils.data import get_worker_info

from laneway.activity import STAGE, Stage
from laneway.core.cursor import LaneRange, Positions
from laneway.delivery.item_maker import ROWS_PER_CONVERSION, ItemMaker
from laneway.delivery.passes import Delivery, Pass, RowsDelivery, Taken
from laneway.delivery.sending import to_send

if TYPE_CHECKING:
    from collections.abc import Callable

    from laneway.core.cursor import Cursor
    from laneway.core.progress import Tokens
    from laneway.metering import Meter

# As a plain int, which is stored several times as fast.
_SEND = int(Stage.SEND)


class Closeable(Protocol):
    """What reads and builds items."""

    def close(self) -> None:
        """Release windows, files and threads."""


T = TypeVar("T", bound=Closeable)


class CutReading(NamedTuple, Generic[T]):
    """What a worker delivers of one cut of an epoch."""

    cursor: Cursor
    """The position of the worker in the cut."""
    open_items: Callable[[], T]
    """Returns what reads and builds the items."""
    follow: Callable[[], CutReading[T] | None]
    """Returns what follows in the same epoch when the cut has ended, if anything."""


class Stream(Pass, Generic[T]):
    """A pass of one worker, read by this process."""

    def __init__(self, cut: CutReading[T]) -> None:
        """Start where a cut is."""
        super().__init__(cut.cursor)
        self._cut = cut
        self._items = cut.open_items()

    def release(self) -> None:
        """Release windows, files and threads; the progress stays."""
        self._items.close()

    def _recover(self) -> None:
        # A window may be half read, or changed in place by a user's function.
        self._items.close()
        # The last call may have ended while it went on to this cut.
        self._cursor = self._cut.cursor
        self._items = self._cut.open_items()

    def _goes_on(self) -> bool:
        """Go on to the next cut at the end of one, and return whether there is one."""
        self._items.close()
        following = None if self._cursor.is_last else self._cut.follow()
        if following is None:
            return False
        following.cursor.tokens = self._cursor.tokens
        self._cut = following
        self._recover()
        return True


class TaggedBatch(NamedTuple):
    """A batch with the turn and positions that the main process needs to count it as delivered."""

    turn: int
    """The first turn of the batch."""
    positions: Positions
    """(lane, new position) for each of its lanes; empty: the turns have no rows, and there is no batch."""
    batch: Any
    """The batch, or `SKIPPED`."""
    counts: tuple[int, bytes] | None = None
    """What the worker has counted up to now, if another process made the batch: (its number, `Meter.pack()`)."""
    tokens: Tokens | None = None
    """Tokens of each source in the batch, if they are counted."""


class TaggedStream(Stream[T]):
    """Delivers batches that another process may count."""

    def __init__(self, cut: CutReading[T], meter: Meter) -> None:
        """Start where a cut is.

        Args:
            cut: The cut.
            meter: Measures the stream.
        """
        super().__init__(cut)
        self._meter = meter
        info = get_worker_info()
        self._worker = None if info is None else info.id
        """The worker that sends the batches; None: they stay in this process."""

    def next_tagged(self) -> TaggedBatch | None:
        """Return the next batch with its tag, or None at the end; for a process that sends it, it is delivered."""
        taken = self.take_any()
        if taken is None:
            return None
        delivery, num_taken, batch = taken
        delivery.taken = num_taken
        self._meter.batches += 1
        if self._worker is None:
            return TaggedBatch(delivery.turn, delivery.positions, batch, tokens=delivery.tokens)
        counts = self._worker, self._meter.pack()
        self._meter.cells[STAGE] = _SEND
        return TaggedBatch(delivery.turn, delivery.positions, batch, counts, delivery.tokens)

    def _taken(self, delivery: Delivery, batch: Any) -> Taken:  # noqa: ANN401 - a user's function may return anything
        return Taken(delivery, 1, batch if self._worker is None else to_send(batch))


class BatchStream(TaggedStream[ItemMaker]):
    """Delivers batches."""

    def __init__(self, cut: CutReading[ItemMaker], meter: Meter, *, keeps_open: bool = False) -> None:
        """Start where a cut is.

        Args:
            cut: The cut.
            meter: Measures the stream.
            keeps_open: Whether batches are delivered as `OpenBatch`, for a process that converts them.
        """
        super().__init__(cut, meter)
        self._keeps_open = keeps_open

    def _read(self, num_delivered: int) -> Taken | None:
        found = self._cursor.next_batch()
        if found is None:
            return self._read(num_delivered) if self._goes_on() else None
        batch = (self._items.open_batch if self._keeps_open else self._items.batch)(found.ranges)
        for _, start, stop in found.ranges:
            self._meter.rows += stop - start
        delivery = Delivery(found.turn, found.new_positions(), before=num_delivered)
        return self._taken(delivery, batch)


class RowStream(Stream[ItemMaker]):
    """Delivers single rows, which are converted many at a time."""

    def __init__(self, cut: CutReading[ItemMaker]) -> None:
        """Start where a cut is."""
        super().__init__(cut)
        self._converted: dict[int, tuple[int, list[Any]]] = {}
        """Lane -> position of its first converted row, and the converted rows."""

    def _recover(self) -> None:
        self._converted.clear()
        super()._recover()

    def _read(self, num_delivered: int) -> Taken | None:
        found = self._cursor.next_rows(ROWS_PER_CONVERSION)
        if found is None:
            self._converted.clear()
            return self._read(num_delivered) if self._goes_on() else None
        place = lane, start, stop = found.ranges[0]
        first, rows = self._converted.get(lane, (0, []))
        if not first <= start < first + len(rows):
            wanted = LaneRange(lane, start, min(start + ROWS_PER_CONVERSION, self._cursor.end_of(lane)))
            first, rows = start, self._items.rows([wanted])
            self._converted[lane] = (first, rows)
        rows = rows[start - first : stop - first]
        is_ready = not self._items.transform
        return self._take_row(RowsDelivery(found.turn, place, rows, before=num_delivered, is_ready=is_ready))

    def _take_row(self, delivery: Delivery) -> Taken:
        index = delivery.taken
        row = delivery.rows[index]
        if not delivery.num_ready:
            delivery.touched = index
            row = self._items.transform_row(row)
        return Taken(delivery, index + 1, row)
