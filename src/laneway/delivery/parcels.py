"""Parcels: consecutive batches of a worker, which a DataLoader passes on as one item.

What a DataLoader does for each item takes longer than building a small batch. The first parcels of a pass are small, so
that its first batch comes early. Parcel `i` of each worker has equally many batches, so the main process, which gets
the parcels of its workers in rotation, has the batches of all workers when their turns come.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, final

import torch
from torch.utils.data import default_collate

from laneway.convert.open_rows import OpenRows
from laneway.delivery.item_maker import unchanged
from laneway.delivery.sending import SentItems, error_to_send, raise_if_unsent
from laneway.delivery.sent_rows import SentBatches
from laneway.delivery.stream import TaggedBatch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from laneway.core.cursor import Positions
    from laneway.core.progress import Tokens
    from laneway.delivery.definition import Definition
    from laneway.delivery.stream import TaggedStream
    from laneway.metering import Meter

PARCEL_BYTES: Final = 4 << 20
"""Bytes of the batches of a parcel, unless a single batch is larger: few beside a window."""
MAX_BATCHES: Final = 64
"""Maximum number of batches of a parcel."""
_OWN_FUNCTIONS: Final = (None, unchanged, default_collate, list)
"""What collates without calling any function of a user."""


@dataclass(frozen=True, slots=True)
class ParcelFormat:
    """How the batches of a definition are put into parcels."""

    definition: Definition
    """What is read."""
    max_batches: int
    """Maximum number of batches of a parcel."""
    keeps_open: bool
    """Whether the main process converts the rows of a batch, because that costs less than to pickle it."""

    @classmethod
    def of(cls, definition: Definition, *, pin_memory: bool) -> Self:
        """Return how batches are packed.

        If functions of the user are called on rows or batches, a parcel is one batch: they may be slow, and batches
        would wait for those after them.

        Args:
            definition: What is read.
            pin_memory: Whether a thread of the DataLoader copies batches to page-locked memory, if there is an
                accelerator: those that it can look into.
        """
        stages, collate_fn = definition.stages, definition.collate_fn
        of_stages = stages is not None and (stages.expansion.steps or stages.of_packs or stages.of_batches)
        if definition.has_functions or of_stages or collate_fn not in _OWN_FUNCTIONS:
            return cls(definition, 1, keeps_open=False)
        is_converted = stages is None and collate_fn is not default_collate and definition.columns.converter.is_cheap
        most = max(1, min(MAX_BATCHES, PARCEL_BYTES // max(1, definition.batch_bytes)))
        is_pinned = pin_memory and torch.accelerator.is_available()
        return cls(definition, most, keeps_open=is_converted and not is_pinned)

    def convert(self, rows: OpenRows) -> Any:  # noqa: ANN401 - columns or rows in any output
        """Return the batch of rows that were kept open."""
        converter = self.definition.columns.converter
        return converter.to_batch(rows) if self.definition.collate_fn is None else converter.to_rows(rows)

    def sent(self, items: list[Any], meter: Meter) -> Any:  # noqa: ANN401 - as below
        """Return what sends batches."""
        if self.keeps_open:
            return SentBatches(items, self.definition.columns.converter, self.convert, meter)
        return SentItems(items, meter)

    def received(self, item: Any) -> Any:  # noqa: ANN401 - a batch in any form
        """Return a batch that was sent."""
        return self.convert(item) if type(item) is OpenRows else item


def num_batches(index: int, most: int) -> int:
    """Return how many batches the parcel of this index has, if its worker does not end before.

    Args:
        index: Index of the parcel among those of its worker in a pass.
        most: Maximum number of batches of a parcel.
    """
    return min(1 << min(index, MAX_BATCHES), most)


class Tag(NamedTuple):
    """What comes with a batch; see `TaggedBatch`."""

    turn: int
    positions: Positions
    counts: tuple[int, bytes] | None
    tokens: Tokens | None = None


class Parcel(NamedTuple):
    """Consecutive batches of a worker."""

    worker: int
    """The worker."""
    is_last: bool
    """Whether the worker has no further ones; False: it may have some."""
    tags: list[Tag]
    """The tags of the batches, empty turns included."""
    items: Any
    """The batches: what sends them, or a list once they are received. The last one may be an error instead."""


@final
class Parcels:
    """The batches of a worker, in parcels.

    Empty turns are tagged too, so that the main process, which takes batches from its workers in rotation, keeps the
    order of turns for any number of workers.
    """

    def __init__(self, stream: TaggedStream[Any], worker: int, parcel_format: ParcelFormat, meter: Meter) -> None:
        """Prepare to send the batches of `stream`."""
        self._batches = TaggedBatches(stream)
        self._worker = worker
        self._parcel_format = parcel_format
        self._meter = meter
        self._index = 0

    def __iter__(self) -> Iterator[Parcel]:
        """Return self."""
        return self

    def __next__(self) -> Parcel:
        """Return the next parcel. An error comes after the batches before it."""
        size = num_batches(self._index, self._parcel_format.max_batches)
        self._index += 1
        tags: list[Tag] = []
        items: list[Any] = []
        is_last = False
        while len(items) < size:
            try:
                turn, positions, batch, counts, tokens = next(self._batches)
            except StopIteration:
                if not items:
                    raise
                is_last = True
                break
            except Exception:
                if not items:
                    raise
                where = f"in DataLoader worker process {self._worker}"
                tags.append(Tag(0, (), None))
                items.append(error_to_send(where))
                break
            tags.append(Tag(turn, positions, counts, tokens))
            items.append(batch)
        return Parcel(self._worker, is_last, tags, self._parcel_format.sent(items, self._meter))


@final
class TaggedBatches:
    """The batches of a stream, each with its tag, empty turns included."""

    def __init__(self, stream: TaggedStream[Any]) -> None:
        """Prepare to return the batches of `stream`."""
        self._stream = stream

    def __iter__(self) -> Iterator[TaggedBatch]:
        """Return self."""
        return self

    def __next__(self) -> TaggedBatch:
        """Return the next batch, or an empty turn."""
        cursor = self._stream.cursor
        turn = cursor.next_turn
        if cursor.skip_empty_batch():
            return TaggedBatch(turn, (), None)
        tagged = self._stream.next_tagged()
        if tagged is None:
            raise StopIteration
        return tagged


@final
class BatchesInTurn:
    """The batches of all workers of a rank, from their parcels: in the order of turns, or as they come."""

    def __init__(
        self, parcels: Iterator[Parcel], num_workers: int, parcel_format: ParcelFormat, *, in_order: bool
    ) -> None:
        """Prepare to unpack parcels.

        Args:
            parcels: The parcels; of each worker in turn, if they are in order.
            num_workers: Number of workers.
            parcel_format: How batches were put into them.
            in_order: Whether batches come in the order of their turns.
        """
        self._parcels = parcels
        self._num_workers = num_workers
        self._parcel_format = parcel_format
        self._num_received = 0
        # Batches in any order wait in one line.
        self._waiting: list[deque[tuple[Tag, Any]]] = [deque() for _ in range(num_workers if in_order else 1)]
        self._have_ended = [False] * len(self._waiting)
        self._next = 0
        """The worker whose turn it is."""

    def num_ready(self, num_parcels: int) -> int:
        """Return how many batches can be taken without waiting, if so many parcels have been sent and not received."""
        first, num_workers, most = self._num_received, self._num_workers, self._parcel_format.max_batches
        sizes = (num_batches((first + i) // num_workers, most) for i in range(num_parcels))
        return sum(map(len, self._waiting)) + sum(sizes)

    def __iter__(self) -> Iterator[TaggedBatch]:
        """Return self."""
        return self

    def __next__(self) -> TaggedBatch:
        """Return the next batch, or an empty turn.

        Raises:
            Exception: What the worker has raised in its place, or the DataLoader.
        """
        waiting = self._waiting[self._next]
        while not waiting:
            self._receive()
            waiting = self._waiting[self._next]
        (turn, positions, counts, tokens), item = waiting.popleft()
        self._next = (self._next + 1) % len(self._waiting)
        raise_if_unsent(item)
        return TaggedBatch(turn, positions, self._parcel_format.received(item), counts, tokens)

    def _receive(self) -> None:
        """Receive the next parcel, or go on to the next worker, if this one has no further batches."""
        in_turn = len(self._waiting)
        if not self._have_ended[self._next]:
            try:
                worker, is_last, tags, items = next(self._parcels)
            except StopIteration:
                self._have_ended = [True] * in_turn
            else:
                raise_if_unsent(items)
                self._num_received += 1
                worker %= in_turn
                # The DataLoader has passed over those that have ended; the last parcels of some may still wait.
                for passed in range(self._next, self._next + (worker - self._next) % in_turn):
                    self._have_ended[passed % in_turn] = True
                self._have_ended[worker] = is_last and in_turn == self._num_workers
                self._waiting[worker].extend(zip(tags, items, strict=True))
        elif any(self._waiting) or not all(self._have_ended):
            self._next = (self._next + 1) % in_turn
        else:
            # The DataLoader ends the pass, too.
            next(self._parcels)
