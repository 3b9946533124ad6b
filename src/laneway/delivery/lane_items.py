"""The items that stages make of the rows of lanes, and the batches of these items."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch.utils.data import default_collate

from laneway.core.progress import LanePosition
from laneway.delivery.documents import BegunDocuments, DocumentReader
from laneway.delivery.packed_tokens import TokenCounter
from laneway.errors import NotReproducibleError
from laneway.stages.offsets import resume_group
from laneway.stages.packs import TOKENS_PER_RUN, Chunks, fitted_runs, half_delivered, joined_documents
from laneway.stages.runs import Flow, PackColumns, Run, joined
from laneway.stages.tokens import DocumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from laneway.core.assignment import Assignment
    from laneway.core.progress import Group, Tokens
    from laneway.delivery.item_maker import ItemMaker
    from laneway.delivery.item_stages import Stages
    from laneway.stages.packs import PackOptions
    from laneway.stages.runs import Items


@dataclass(frozen=True, eq=False)
class BatchMaker:
    """Makes batches of items."""

    rows: ItemMaker
    """Calls the user's functions."""
    stages: Stages
    """What has made the items."""
    collate_fn: Callable[[list[Any]], Any] | None
    """Builds a batch from a list of items; None: as torch's default_collate does."""
    is_batched: bool
    """Whether there are batches; otherwise each item is delivered by itself."""
    is_numpy: bool
    """Whether packs consist of numpy arrays rather than tensors."""

    def batch(self, parts: list[Items]) -> Any:  # noqa: ANN401 - a user's function may return anything
        """Return the batch of some items, at least one, or the item if there are no batches."""
        packs = [part for part in parts if isinstance(part, PackColumns)]
        is_default = self.collate_fn in {None, default_collate}
        if packs and self.is_batched and is_default and not self.stages.of_packs:
            batch = self._delivered(joined(packs))
        else:
            items = [self._item(item) for part in parts for item in part]
            if not self.is_batched:
                return items[0]
            batch = self.rows.call(self.collate_fn or default_collate, items)
        of_batches = self.stages.of_batches
        return self.rows.call(of_batches, batch) if of_batches else batch

    def _item(self, item: Any) -> Any:  # noqa: ANN401 - a user's function may return anything
        if self.stages.pack is None:
            return item
        pack = self._delivered(item)
        return self.rows.call(self.stages.of_packs, pack) if self.stages.of_packs else pack

    def _delivered(self, columns: dict[str, NDArray[np.int64]]) -> dict[str, Any]:
        """Return packs as they are delivered."""
        if self.stages.pack is not None and self.stages.pack.mask == "cu_seqlens":
            # A piece begins where its positions do.
            positions = columns["position_ids"].reshape(-1)
            starts = np.flatnonzero(positions == 0)
            columns = {**columns, "cu_seqlens": np.append(starts, len(positions)).astype(np.int32)}
        if self.is_numpy:
            return columns
        return {name: torch.from_numpy(column) for name, column in columns.items()}


class PackReader(Protocol):
    """Makes the packs of lanes whose positions count packs."""

    def runs(self, lane: int, num_taken: int) -> Iterator[Run]:
        """Yield the packs of a lane after the first ones."""


class LaneItems:
    """Reads the rows of a worker's lanes, and makes items of them."""

    def __init__(
        self,
        rows: ItemMaker,
        batches: BatchMaker,
        assignment: Assignment,
        max_empty_rows: int | None = None,
        known: PackReader | None = None,
    ) -> None:
        """Prepare to read.

        Args:
            rows: Reads rows, and calls the user's functions.
            batches: Makes batches of the items.
            assignment: The lanes, where they end, and what they were left of groups of earlier cuts.
            max_empty_rows: See `Flow`.
            known: Makes the packs of the lanes, if positions count packs; None: they count rows.
        """
        self._rows = rows
        self._batches = batches
        self._assignment = assignment
        self._max_empty_rows = max_empty_rows
        self._stages = batches.stages
        self._documents = DocumentReader(rows, batches.stages.expansion)
        self._known = known
        progress = assignment.progress
        self._counter = TokenCounter(progress) if progress.tokens and batches.stages.pack is not None else None
        self._flows: dict[int, Flow] = {}
        """Lane -> its items."""

    def take(self, lane: int, position: LanePosition, num_items: int) -> tuple[list[Items], LanePosition, Tokens]:
        """Return the next items of a lane, fewer only at its end, the position after them, and the tokens of sources.

        Args:
            lane: The lane.
            position: Where it is.
            num_items: Number of items, >= 1.
        """
        flow = self._flows.get(lane)
        if flow is None or flow.position != position:
            runs, counts_tokens = self._runs(lane, position), self._counter is not None
            flow = self._flows[lane] = Flow(runs, position, self._max_empty_rows, counts_tokens=counts_tokens)
        items = flow.take(num_items)
        tokens = {} if self._counter is None else self._counter.count(lane, flow.row_tokens)
        return items, flow.position, tokens

    def batch(self, parts: list[Items]) -> Any:  # noqa: ANN401 - a user's function may return anything
        """Return the batch of some items, at least one, or the item if there are no batches."""
        return self._batches.batch(parts)

    def close(self) -> None:
        """Release windows, files and threads."""
        self._flows.clear()
        self._rows.close()

    # -- Runs ---------------------------------------------------------------------------------------------------------

    def _runs(self, lane: int, position: LanePosition) -> Iterator[Run]:
        """Yield all items of a lane from a position on."""
        pack, end = self._stages.pack, int(self._assignment.ends[lane])
        try:
            if pack is None:
                yield from self._row_runs(lane, position, end)
            elif self._known is not None:
                yield from self._known.runs(lane, position.rows)
            elif pack.strategy == "chunk":
                yield from self._chunk_runs(pack, lane, position, end)
            else:
                yield from self._fitted_runs(pack, lane, position, end)
        except NotReproducibleError as error:
            if self._known is None:
                error.add_note(f"the first of these rows is {self._rows.name_of_row(lane, position.rows)}")
            raise

    def _carried(self, lane: int) -> list[Group]:
        """Return the groups that a lane was left by earlier cuts: they are its first ones."""
        progress, num_lanes = self._assignment.progress, self._assignment.cut.num_lanes
        return [*progress.carried[lane::num_lanes]]

    def _chunk_runs(self, pack: PackOptions, lane: int, position: LanePosition, end: int) -> Iterator[Run]:
        (row, offset), carried, chunks = position, self._carried(lane), Chunks(pack)
        while row < len(carried) or offset:
            documents = joined_documents([*self._documents.read(pack, lane, row, row + 1)])
            of = f"tokens of row {row:,} of a lane"
            before = carried[row].offset if row < len(carried) else 0
            yield chunks.cut(half_delivered(documents, offset, before, of=of))
            row, offset = row + 1, 0
        for documents in self._documents.read(pack, lane, row, end):
            yield chunks.cut(documents)
        yield chunks.finish(end)

    def _fitted_runs(self, pack: PackOptions, lane: int, position: LanePosition, end: int) -> Iterator[Run]:
        carried = self._carried(lane)

        def group_at(row: int) -> tuple[int, Group | None]:
            """Return the row after the group that starts at a row, and what an earlier cut left of it."""
            number = row // pack.group_rows
            return min(row + pack.group_rows, end), carried[number] if number < len(carried) else None

        def begin(row: int) -> BegunDocuments:
            """Return the documents of the group that starts at a row."""
            stop, left = group_at(row)
            # The lane that it comes from may have ended within it.
            last = row + left.num_rows if left is not None and left.num_rows else stop
            return self._documents.begin(pack, lane, row, last)

        group = begin(position.rows)
        while position.rows < end:
            stop, left = group_at(position.rows)
            documents, group = group.all(), begin(stop)
            num_runs = 1 + len(documents.tokens.stream) // TOKENS_PER_RUN
            before = 0 if left is None else left.offset
            reads_ahead = self._documents.calls_functions and stop < end
            try:
                for run in fitted_runs(pack, documents._replace(stop=stop), position, before):
                    yield run
                    if reads_ahead:
                        group.read_rows(-(-pack.group_rows // num_runs))
            except DocumentError as error:
                self._documents.name_row(error, lane, documents.rows)
                raise
            position = LanePosition(stop)

    def _row_runs(self, lane: int, position: LanePosition, end: int) -> Iterator[Run]:
        """Yield the items of one row after another."""
        offset, carried = position.offset, self._carried(lane)
        for row, items in self._documents.expanded(lane, position.rows, end):
            num_items, of = len(items), f"items of row {row:,} of a lane"
            before = carried[row].offset if row < len(carried) else 0
            first, offset_after = resume_group(offset, before, num_items, num_items, of=of)
            offset = 0
            yield Run(items[first:], partial(_position_in_row, row, first, offset_after), LanePosition(row + 1))


def _position_in_row(row: int, first: int, offset_after: Callable[[int], int], index: int) -> LanePosition:
    """Return the position after item `index` of those from `first` on that a row makes."""
    return LanePosition(row, offset_after(first + index + 1))
