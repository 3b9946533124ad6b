"""A pass over an epoch, by a worker or by a whole rank: hands out items, and knows which of them were delivered.

A signal handler may raise between any two steps of the main thread. So an item is delivered by one store to
`Received.taken`, which an iterator makes right before it returns the item. After a call that a signal or an error ended
earlier, the next call reads the item again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from laneway.core.cursor import Received

if TYPE_CHECKING:
    from laneway.core.cursor import Cursor
    from laneway.core.progress import Progress


class Taken(NamedTuple):
    """An item that is about to be delivered: by storing `num_taken` in `received.taken`."""

    received: Received
    num_taken: int
    item: Any


class Pass:
    """A pass over an epoch."""

    def __init__(self, cursor: Cursor) -> None:
        """Start where `cursor` is."""
        self._cursor = cursor
        self.received = Received(taken=1, before=-1)
        """What was read last; at first, as if an item before the first one had been delivered."""
        self.is_over = False
        """Whether the training loop was told that there is no further item; its iterator stores it, as for items."""
        self._is_at_end = False

    @property
    def epoch(self) -> int:
        """The epoch that is delivered."""
        return self._cursor.epoch

    @property
    def cursor(self) -> Cursor:
        """The position in the epoch."""
        self.received.count(self._cursor)
        return self._cursor

    @property
    def num_delivered(self) -> int:
        """Number of items that this pass has delivered."""
        return self.received.num_delivered

    @property
    def is_complete(self) -> bool:
        """Whether this worker or rank has delivered all its rows of the epoch."""
        return self.cursor.is_at_end

    def progress(self) -> Progress:
        """Return the progress of this worker or rank."""
        return self.cursor.progress()

    def take(self) -> Taken | None:
        """Return the next item, or None at the end of the epoch. If the last item was not delivered, it comes again."""
        received = self.received
        is_touched = received.touched == received.taken
        if received.taken < len(received.rows) and not is_touched:
            return self._take_row(received)
        if self._is_at_end:
            return None
        if is_touched or not received.taken:
            self._recover()
        received.count(self._cursor)
        self.received = Received(before=received.num_delivered)
        taken = self._read(received.num_delivered)
        if taken is None:
            self._is_at_end = True
        else:
            self.received = taken.received
        return taken

    def release(self) -> None:
        """Release what reads the rows; the progress stays."""
        raise NotImplementedError

    def _take_row(self, received: Received) -> Taken:
        """Return the next of several rows."""
        return Taken(received, received.taken + 1, received.rows[received.taken])

    def _read(self, num_delivered: int) -> Taken | None:
        """Read the next batch or rows, and return the first item, or None at the end of the epoch.

        Args:
            num_delivered: Number of items that this pass has delivered.
        """
        raise NotImplementedError

    def _recover(self) -> None:
        """Make the next read start from what was delivered, after one that was interrupted anywhere."""
        raise NotImplementedError
