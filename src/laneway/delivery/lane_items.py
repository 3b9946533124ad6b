"""The items that stages make of the rows of lanes, and the batches of these items."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from torch.utils.data import default_collate

from laneway.core.progress import LanePosition
from laneway.delivery.transforms import Expansion, Transforms
from laneway.errors import NotReproducibleError
from laneway.stages.offsets import resume_group
from laneway.stages.packs import TOKENS_PER_RUN, Chunks, Documents, fitted_runs, half_delivered, joined_documents
from laneway.stages.runs import Flow, PackColumns, Run, joined
from laneway.stages.tokens import DocumentError, from_arrow, from_rows, with_separators

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from laneway.core.assignment import Assignment
    from laneway.delivery.stream import ItemMaker
    from laneway.stages.packs import PackOptions
    from laneway.stages.runs import Items
    from laneway.stages.tokens import TokenLists

_ROWS_PER_RUN = 1024
"""Number of rows of few tokens, or of none, whose documents are packed together."""
_PACKS_PER_RUN = 4
"""Number of packs that are made together of what the user's functions return: few, so that the first comes soon."""


@final
@dataclass(frozen=True, slots=True)
class Stages:
    """What is made of the rows of a lane."""

    expansion: Expansion = field(default_factory=Expansion)
    """Called on each row, after `transform`."""
    pack: PackOptions | None = None
    """How the items that this returns are packed; None: they are delivered."""
    of_packs: Transforms = field(default_factory=Transforms)
    """Called on each pack."""
    of_batches: Transforms = field(default_factory=Transforms)
    """Called on each batch."""

    @property
    def text(self) -> str:
        """What states hold of them: offsets within rows depend on it, and functions have no names."""
        return " ".join([*["flat_map"] * self.expansion.num_flat, *([self.pack.text] if self.pack else [])])

    @property
    def group_rows(self) -> int:
        """Rows from which items are made at a time."""
        return self.pack.group_rows if self.pack is not None and self.pack.strategy == "best_fit" else 1

    def then(
        self,
        function: Callable[..., Any],
        *,
        takes_context: bool = False,
        is_flat: bool = False,
        of_batches: bool = False,
    ) -> Stages:
        """Return these stages with one more function on what they make.

        Args:
            function: Called with an item, or with a batch.
            takes_context: See `Expansion.then`.
            is_flat: See `Expansion.then`.
            of_batches: Whether it is called with a batch.

        Raises:
            ValueError: It takes a context, and there is none; or it makes several items of a pack.
        """
        if of_batches and not takes_context:
            return replace(self, of_batches=self.of_batches.then(function))
        if self.pack is None and not of_batches:
            expansion = self.expansion.then(function, takes_context=takes_context, is_flat=is_flat)
            return replace(self, expansion=expansion)
        if takes_context or is_flat:
            what = "batch" if of_batches else "pack"
            problem = "flat_map() can't follow pack()" if is_flat else f"a {what} of many rows has no context"
            message = f"{problem}: put the function before {what}(), or use map(fn)"
            raise ValueError(message)
        return replace(self, of_packs=self.of_packs.then(function))


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


class LaneItems:
    """Reads the rows of a worker's lanes, and makes items of them."""

    def __init__(
        self, rows: ItemMaker, batches: BatchMaker, assignment: Assignment, max_empty_rows: int | None = None
    ) -> None:
        """Prepare to read.

        Args:
            rows: Reads rows, and calls the user's functions.
            batches: Makes batches of the items.
            assignment: The lanes, where they end, and what they were left of groups of earlier cuts.
            max_empty_rows: See `Flow`.
        """
        self._rows = rows
        self._batches = batches
        self._assignment = assignment
        self._max_empty_rows = max_empty_rows
        self._stages = batches.stages
        self._flows: dict[int, Flow] = {}
        """Lane -> its items."""

    def take(self, lane: int, position: LanePosition, num_items: int) -> tuple[list[Items], LanePosition]:
        """Return the next items of a lane, fewer only at its end, and the position after them.

        Args:
            lane: The lane.
            position: Where it is.
            num_items: Number of items, >= 1.
        """
        flow = self._flows.get(lane)
        if flow is None or flow.position != position:
            flow = self._flows[lane] = Flow(self._runs(lane, position), position, self._max_empty_rows)
        items = flow.take(num_items)
        return items, flow.position

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
            elif pack.strategy == "chunk":
                yield from self._chunk_runs(pack, lane, position, end)
            else:
                yield from self._fitted_runs(pack, lane, position, end)
        except NotReproducibleError as error:
            error.add_note(f"the first of these rows is {self._rows.name_of_row(lane, position.rows)}")
            raise

    def _carried(self, lane: int) -> list[int]:
        """Return the offsets of the groups that a lane was left by earlier cuts: they are its first ones."""
        progress, num_lanes = self._assignment.progress, self._assignment.cut.num_lanes
        return [group.offset for group in progress.carried[lane::num_lanes]]

    def _chunk_runs(self, pack: PackOptions, lane: int, position: LanePosition, end: int) -> Iterator[Run]:
        (row, offset), carried, chunks = position, self._carried(lane), Chunks(pack)
        while row < len(carried) or offset:
            documents = joined_documents([*self._documents(pack, lane, row, row + 1)])
            of = f"tokens of row {row:,} of a lane"
            yield chunks.cut(half_delivered(documents, offset, carried[row] if row < len(carried) else 0, of=of))
            row, offset = row + 1, 0
        for documents in self._documents(pack, lane, row, end):
            yield chunks.cut(documents)
        yield chunks.finish(end)

    def _fitted_runs(self, pack: PackOptions, lane: int, position: LanePosition, end: int) -> Iterator[Run]:
        carried = self._carried(lane)
        while position.rows < end:
            stop, group = min(position.rows + pack.group_rows, end), position.rows // pack.group_rows
            documents = joined_documents([*self._documents(pack, lane, position.rows, stop)])
            try:
                yield from fitted_runs(pack, documents, position, carried[group] if group < len(carried) else 0)
            except DocumentError as error:
                self._name_row(error, lane, documents.rows)
                raise
            position = LanePosition(stop)

    def _row_runs(self, lane: int, position: LanePosition, end: int) -> Iterator[Run]:
        """Yield the items of one row after another."""
        offset, carried = position.offset, self._carried(lane)
        for row, items in self._expanded(lane, position.rows, end):
            num_items, of = len(items), f"items of row {row:,} of a lane"
            before = carried[row] if row < len(carried) else 0
            first, offset_after = resume_group(offset, before, num_items, num_items, of=of)
            offset = 0
            yield Run(items[first:], partial(_position_in_row, row, first, offset_after), LanePosition(row + 1))

    def _expanded(self, lane: int, start: int, stop: int) -> Iterator[tuple[int, list[Any]]]:
        """Yield (row, its items) for rows [start, stop) of a lane."""
        while start < stop:
            for items in self._rows.expanded(lane, start, stop, self._stages.expansion):
                yield start, items
                start += 1

    # -- Documents ----------------------------------------------------------------------------------------------------

    def _documents(self, pack: PackOptions, lane: int, start: int, stop: int) -> Iterator[Documents]:
        """Yield the documents of rows [start, stop) of a lane, some at a time."""
        if not self._rows.transform and not self._stages.expansion.steps:
            yield from self._documents_in_files(pack, lane, start, stop)
            return
        found: list[Any] = []
        rows: list[int] = []
        num_tokens, row = 0, start - 1
        for row, items in self._expanded(lane, start, stop):
            for item in items:
                document = self._document(item, pack.column, lane, row)
                found.append(document)
                rows.append(row)
                num_tokens += len(document)
            if num_tokens >= _PACKS_PER_RUN * pack.length or row - start >= _ROWS_PER_RUN:
                yield self._made_documents(pack, lane, found, rows, row + 1)
                found, rows, num_tokens, start = [], [], 0, row + 1
        yield self._made_documents(pack, lane, found, rows, stop)

    def _document(self, item: Any, column: str, lane: int, row: int) -> Sized:  # noqa: ANN401 - a user's function
        """Return the document in an item.

        Raises:
            TypeError: There is none.
        """
        document = item.get(column) if isinstance(item, dict) else None
        if document is None:
            found = f"a dict with {', '.join(map(repr, item))}" if isinstance(item, dict) else type(item).__name__
            message = (
                f"pack() needs column {column!r}, but the functions before it returned {found} for "
                f"{self._rows.name_of_row(lane, row)}: return a dict with a list of ints as {column!r}, or name "
                "another column"
            )
            raise TypeError(message)
        if not isinstance(document, Sized):
            message = (
                f"column {column!r} can't be packed: for {self._rows.name_of_row(lane, row)} it is "
                f"{type(document).__name__}, not a list of ints"
            )
            raise TypeError(message)
        return document

    def _made_documents(self, pack: PackOptions, lane: int, found: list[Any], rows: list[int], stop: int) -> Documents:
        of_rows = np.array(rows, np.int64)
        try:
            return _of_rows(pack, from_rows(pack.column, found), of_rows, stop)
        except DocumentError as error:
            self._name_row(error, lane, of_rows)
            raise

    def _documents_in_files(self, pack: PackOptions, lane: int, start: int, stop: int) -> Iterator[Documents]:
        """Yield the documents of a column of the files, without a step for each."""
        while start < stop:
            rows = self._rows.read_on(lane, start, stop)
            num_rows, numbers = rows.num_rows, np.arange(start, start + rows.num_rows, dtype=np.int64)
            try:
                lists = from_arrow(pack.column, rows.column(pack.column))
            except DocumentError as error:
                self._name_row(error, lane, numbers)
                raise
            first = 0
            while first < num_rows:
                last = int(np.searchsorted(lists.starts, lists.starts[first] + TOKENS_PER_RUN, side="right")) - 1
                last = max(last, first + 1)
                yield _of_rows(pack, lists.slice(first, last), numbers[first:last], start + last)
                first = last
            start += num_rows

    def _name_row(self, error: DocumentError, lane: int, rows: NDArray[np.int64]) -> None:
        """Add the row of a document to an error, as a note."""
        if error.document is not None:
            name = self._rows.name_of_row(lane, int(rows[error.document]))
            error.add_note(f"document {error.document} is that of {name}")


def _position_in_row(row: int, first: int, offset_after: Callable[[int], int], index: int) -> LanePosition:
    """Return the position after item `index` of those from `first` on that a row makes."""
    return LanePosition(row, offset_after(first + index + 1))


def _of_rows(pack: PackOptions, tokens: TokenLists, rows: NDArray[np.int64], stop: int) -> Documents:
    """Return the documents of whole rows; those that are cut into chunks have their separators."""
    if pack.strategy == "chunk" and pack.separator is not None:
        tokens = with_separators(tokens, pack.separator)
    return Documents.of(tokens, rows, stop)
