"""Parcels: consecutive batches of a worker, which a DataLoader passes on as one item.

What a DataLoader does for each item takes longer than building a small batch. The first parcels of a pass are small, so
that its first batch comes early. Parcel `i` of each worker has equally many batches, so the main process, which gets
the parcels of its workers in rotation, has the batches of all workers when their turns come.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple, final

from torch._utils import ExceptionWrapper
from torch.utils.data import default_collate

from laneway.delivery.item_maker import unchanged
from laneway.delivery.sending import SentItems, raise_if_unsent
from laneway.delivery.stream import TaggedBatch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from laneway.core.cursor import Positions
    from laneway.delivery.definition import Definition
    from laneway.delivery.stream import TaggedStream
    from laneway.metering import Meter

PARCEL_BYTES: Final = 1 << 19
"""Bytes of the batches of a parcel, unless a single batch is larger: few enough to stay in the caches of a core."""
MAX_BATCHES: Final = 64
"""Maximum number of batches of a parcel."""
_OWN_FUNCTIONS: Final = (None, unchanged, default_collate, list)
"""What collates without calling any function of a user."""


def max_batches(definition: Definition) -> int:
    """Return how many batches a parcel has at most.

    It is one if functions of the user are called on rows or batches: they may be slow, and batches would wait for those
    after them.
    """
    stages = definition.stages
    of_stages = stages is not None and (stages.expansion.steps or stages.of_packs or stages.of_batches)
    if definition.has_functions or of_stages or definition.collate_fn not in _OWN_FUNCTIONS:
        return 1
    return max(1, min(MAX_BATCHES, PARCEL_BYTES // max(1, definition.batch_bytes)))


def num_batches(index: int, most: int) -> int:
    """Return how many batches the parcel of this index has, if its worker does not end before.

    Args:
        index: Index of the parcel among those of its worker in a pass.
        most: The result of `max_batches`.
    """
    return min(1 << min(index, MAX_BATCHES), most)


class Tag(NamedTuple):
    """What comes with a batch; see `TaggedBatch`."""

    turn: int
    positions: Positions
    counts: tuple[int, bytes] | None


class Parcel(NamedTuple):
    """Consecutive batches of a worker."""

    worker: int
    """The worker."""
    is_last: bool
    """Whether the worker has no further ones; False: it may have some."""
    tags: list[Tag]
    """The tags of the batches, empty turns included."""
    items: Any
    """The batches, as `SentItems` or as a list; the last one may be an error instead."""


@final
class Parcels:
    """The batches of a worker, in parcels.

    Empty turns are tagged too, so that the main process, which takes batches from its workers in rotation, keeps the
    order of turns for any number of workers.
    """

    def __init__(self, stream: TaggedStream[Any], worker: int, most: int, meter: Meter) -> None:
        """Prepare to send the batches of `stream`, at most `most` in a parcel."""
        self._batches = TaggedBatches(stream)
        self._worker = worker
        self._most = most
        self._meter = meter
        self._index = 0

    def __iter__(self) -> Iterator[Parcel]:
        """Return self."""
        return self

    def __next__(self) -> Parcel:
        """Return the next parcel. An error comes after the batches before it."""
        size = num_batches(self._index, self._most)
        self._index += 1
        tags: list[Tag] = []
        items: list[Any] = []
        is_last = False
        while len(items) < size:
            try:
                turn, positions, batch, counts = next(self._batches)
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
                items.append(ExceptionWrapper(where=where))  # type: ignore[no-untyped-call]
                break
            tags.append(Tag(turn, positions, counts))
            items.append(batch)
        return Parcel(self._worker, is_last, tags, SentItems(items, self._meter))


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

    def __init__(self, parcels: Iterator[Parcel], num_workers: int, most: int, *, in_order: bool) -> None:
        """Prepare to unpack parcels.

        Args:
            parcels: The parcels; of each worker in turn, if they are in order.
            num_workers: Number of workers.
            most: The result of `max_batches`.
            in_order: Whether batches come in the order of their turns.
        """
        self._parcels = parcels
        self._num_workers = num_workers
        self._most = most
        self._num_received = 0
        # Batches in any order wait in one line.
        self._waiting: list[deque[tuple[Tag, Any]]] = [deque() for _ in range(num_workers if in_order else 1)]
        self._have_ended = [False] * len(self._waiting)
        self._next = 0
        """The worker whose turn it is."""

    def num_ready(self, num_parcels: int) -> int:
        """Return how many batches can be taken without waiting, if so many parcels have been sent and not received."""
        first, num_workers = self._num_received, self._num_workers
        sizes = (num_batches((first + i) // num_workers, self._most) for i in range(num_parcels))
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
        (turn, positions, counts), item = waiting.popleft()
        self._next = (self._next + 1) % len(self._waiting)
        raise_if_unsent(item)
        return TaggedBatch(turn, positions, item, counts)

    def _receive(self) -> None:
        """Receive the next parcel, or go on to the next worker that has not ended."""
        if self._have_ended[self._next] and not all(self._have_ended):
            self._next = (self._next + 1) % len(self._waiting)
            return
        worker, is_last, tags, items = next(self._parcels)
        raise_if_unsent(items)
        self._num_received += 1
        if len(self._waiting) > 1:
            # The DataLoader has passed over those that have ended.
            while self._next != worker:
                self._have_ended[self._next] = True
                self._next = (self._next + 1) % len(self._waiting)
            self._have_ended[worker] = is_last
        self._waiting[self._next].extend(zip(tags, items, strict=True))
