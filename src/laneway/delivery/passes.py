"""A pass over an epoch, by a worker or by a whole rank: returns items, and knows which of them were delivered.

A signal handler may raise between any two steps of the main thread. So an item is delivered by one store to
`Delivery.taken`, which an iterator makes right before it returns the item. After a call that a signal or an error ended
earlier, the next call reads the item again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from laneway.core.cursor import LaneRange
from laneway.core.progress import added_tokens
from laneway.delivery.row_errors import SKIPPED
from laneway.errors import LanewayError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from laneway.core.cursor import Cursor, Positions
    from laneway.core.progress import Progress, Tokens

_MAX_SKIPPED = 100_000
"""Items that are skipped in a row until a pass without end is ended by an error."""


class Delivery:
    """The delivery of a batch that was read. The batch itself is in `Taken`.

    Storing `taken` delivers an item. It is a single store, so that an iterator can make it right before it returns the
    item: a signal handler that raises can come before it, but not in between.
    """

    __slots__ = ("before", "num_ready", "positions", "rows", "taken", "tokens", "tokens_before", "touched", "turn")

    def __init__(
        self,
        turn: int = 0,
        positions: Positions = (),
        *,
        taken: int = 0,
        before: int = 0,
        tokens: Tokens | None = None,
        tokens_before: Tokens | None = None,
    ) -> None:
        """Describe a batch, or nothing if it has no positions; see the attributes."""
        self.turn = turn
        """The first turn of the batch."""
        self.positions = positions
        """(lane, new position) for each of its lanes."""
        self.taken = taken
        """Number of items that were delivered: 0 or 1, or more of several rows."""
        self.before = before
        """Number of items that the pass delivered before these."""
        self.tokens = tokens
        """Tokens of each of its sources, if they are counted."""
        self.tokens_before = tokens_before or {}
        """Those that were delivered before, of all sources."""
        self.rows: Sequence[Any] = ()
        """The items, if they are single rows."""
        self.num_ready = 0
        """Number of `rows` if they can be delivered as they are, which must be cheap; else 0."""
        self.touched = -1
        """Index of the last of the rows that a user's function was called on, which may have changed it."""

    @property
    def num_delivered(self) -> int:
        """Number of items that the pass has delivered up to now."""
        return self.before + self.taken

    def count(self, cursor: Cursor) -> None:
        """Move a cursor past what was delivered; doing it again changes nothing."""
        if self.taken and self.positions:
            cursor.deliver_batch(self.turn, self.positions)
            if self.tokens:
                cursor.tokens = added_tokens(self.tokens_before, self.tokens)


class RowsDelivery(Delivery):
    """The delivery, one by one, of consecutive rows of a lane that were read."""

    __slots__ = ("_place",)

    def __init__(self, turn: int, place: LaneRange, rows: Sequence[Any], *, before: int = 0, is_ready: bool) -> None:
        """Describe rows.

        Args:
            turn: The turn of the first row.
            place: Where the rows are in their lane.
            rows: The rows.
            before: Number of items that the pass delivered before these.
            is_ready: Whether the rows can be delivered as they are.
        """
        super().__init__(turn, before=before)
        self.rows, self.num_ready = rows, len(rows) if is_ready else 0
        self._place = place

    def count(self, cursor: Cursor) -> None:
        """Move a cursor past the rows that were delivered; doing it again changes nothing."""
        lane, start, _ = self._place
        cursor.deliver_rows(self.turn, LaneRange(lane, start, start + self.taken))


class Taken(NamedTuple):
    """An item that is about to be delivered: by storing `num_taken` in `delivery.taken`."""

    delivery: Delivery
    num_taken: int
    item: Any


class Pass:
    """A pass over an epoch."""

    def __init__(self, cursor: Cursor) -> None:
        """Start where `cursor` is."""
        self._cursor = cursor
        self.delivery = Delivery(taken=1, before=-1)
        """What was read last; at first, as if an item before the first one had been delivered."""
        self.is_over = False
        """Whether the training loop was told that there is no further item; set by the iterator, as for items."""
        self._is_at_end = False

    @property
    def epoch(self) -> int:
        """The epoch that is delivered."""
        return self._cursor.epoch

    @property
    def cursor(self) -> Cursor:
        """The position in the epoch."""
        self.delivery.count(self._cursor)
        return self._cursor

    @property
    def num_delivered(self) -> int:
        """Number of items that this pass has delivered."""
        return self.delivery.num_delivered

    @property
    def is_complete(self) -> bool:
        """Whether this worker or rank has delivered all its rows of the epoch."""
        cursor = self.cursor
        return cursor.is_at_end and cursor.is_last

    @property
    def is_endless(self) -> bool:
        """Whether it never ends."""
        return self._cursor.is_endless

    def progress(self) -> Progress:
        """Return the progress of this worker or rank."""
        return self.cursor.progress()

    def take(self) -> Taken | None:
        """Return the next item, or None at the end of the epoch. If the last item was not delivered, it comes again."""
        num_skipped = 0
        while (taken := self.take_any()) is not None and taken.item is SKIPPED:
            # Nobody receives it.
            taken.delivery.taken = taken.num_taken
            num_skipped += 1
            if num_skipped >= _MAX_SKIPPED and self.is_endless:
                message = (
                    f"the last {num_skipped:,} items in a row were skipped, and this mixture has no end: does the "
                    "transform fail for every row?"
                )
                raise LanewayError(message)
        return taken

    def take_any(self) -> Taken | None:
        """Return the next item as `take` does, or `SKIPPED` in its place if nothing is delivered for it."""
        delivery = self.delivery
        is_touched = delivery.touched == delivery.taken
        if delivery.taken < len(delivery.rows) and not is_touched:
            return self._take_row(delivery)
        if self._is_at_end:
            return None
        if is_touched or not delivery.taken:
            self._recover()
        delivery.count(self._cursor)
        self.delivery = Delivery(before=delivery.num_delivered)
        taken = self._read(delivery.num_delivered)
        if taken is None:
            self._is_at_end = True
        else:
            self.delivery = taken.delivery
        return taken

    def release(self) -> None:
        """Release what reads the rows; the progress stays."""
        raise NotImplementedError

    def _take_row(self, delivery: Delivery) -> Taken:
        """Return the next of several rows."""
        return Taken(delivery, delivery.taken + 1, delivery.rows[delivery.taken])

    def _read(self, num_delivered: int) -> Taken | None:
        """Read the next batch or rows, and return the first item, or None at the end of the epoch.

        Args:
            num_delivered: Number of items that this pass has delivered.
        """
        raise NotImplementedError

    def _recover(self) -> None:
        """Make the next read start from what was delivered, after one that was interrupted anywhere."""
        raise NotImplementedError
