"""The items that stages make of the rows of lanes, and the batches of these items."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from torch.utils.data import default_collate

from laneway.core.cursor import LaneRange
from laneway.core.progress import LanePosition
from laneway.delivery.transforms import Expansion, Transforms
from laneway.errors import NotReproducibleError
from laneway.stages.offsets import check_offset, encode_offset
from laneway.stages.packs import TOKENS_PER_RUN, Chunks, Documents, fitted_runs, joined_documents
from laneway.stages.runs import Flow, PackColumns, Run, joined
from laneway.stages.tokens import DocumentError, from_arrow, from_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from laneway.core.cursor import Cursor
    from laneway.delivery.stream import ItemMaker
    from laneway.stages.packs import PackOptions
    from laneway.stages.runs import Items

_ROWS_PER_CONVERSION = 1024
"""Number of rows that are converted together for the user's functions."""
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

    @property
    def text(self) -> str:
        """What states hold of them: offsets within rows depend on it, and functions have no names."""
        return " ".join([*["flat_map"] * self.expansion.num_flat, *([self.pack.text] if self.pack else [])])

    def then(self, function: Callable[..., Any], *, takes_context: bool, is_flat: bool = False) -> Stages:
        """Return these stages with one more function on items; see `Expansion.then`."""
        if self.pack is None:
            expansion = self.expansion.then(function, takes_context=takes_context, is_flat=is_flat)
            return replace(self, expansion=expansion)
        if takes_context or is_flat:
            what = "flat_map() can't follow pack()" if is_flat else "a pack has no context, as it is made of many rows"
            message = f"{what}: put the function before pack(), or use map(fn)"
            raise ValueError(message)
        return replace(self, of_packs=self.of_packs.then(function))


@dataclass(frozen=True, eq=False)
class BatchMaker:
    """Makes batches of items."""

    rows: ItemMaker
    """Calls the user's functions."""
    stages: Stages
    """What has made the items."""
    is_batched: bool
    """Whether there are batches; otherwise each item is delivered by itself."""
    collate_fn: Callable[[list[Any]], Any] | None
    """Builds a batch from a list of items; None: as torch's default_collate does."""
    of_batches: Transforms
    """Called on each batch."""
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
        return self.rows.call(self.of_batches, batch) if self.of_batches else batch

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

    def __init__(self, rows: ItemMaker, batches: BatchMaker, cursor: Cursor) -> None:
        """Prepare to read.

        Args:
            rows: Reads rows, and calls the user's functions.
            batches: Makes batches of the items.
            cursor: The worker's, which knows where its lanes end.
        """
        self._rows = rows
        self._batches = batches
        self._cursor = cursor
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
            flow = self._flows[lane] = Flow(self._runs(lane, position), position)
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
        pack, end = self._stages.pack, self._cursor.end_of(lane)
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

    def _chunk_runs(self, pack: PackOptions, lane: int, position: LanePosition, end: int) -> Iterator[Run]:
        chunks = Chunks(pack, position)
        for documents in self._documents(pack, lane, position.rows, end):
            yield chunks.cut(documents)
        yield chunks.finish()

    def _fitted_runs(self, pack: PackOptions, lane: int, position: LanePosition, end: int) -> Iterator[Run]:
        while position.rows < end:
            stop = min(position.rows + pack.group_rows, end)
            documents = joined_documents([*self._documents(pack, lane, position.rows, stop)])
            try:
                yield from fitted_runs(pack, documents, position)
            except DocumentError as error:
                self._name_row(error, lane, documents.rows)
                raise
            position = LanePosition(stop)

    def _row_runs(self, lane: int, position: LanePosition, end: int) -> Iterator[Run]:
        """Yield the items of one row after another."""
        offset = position.offset
        for row, items in self._expanded(lane, position.rows, end):
            num_items, after = len(items), LanePosition(row + 1)
            first = 0
            if offset:
                of = f"items of row {row:,} of a lane"
                first, offset = check_offset(offset, num_items, num_items, of=of), 0
            yield Run(items[first:], partial(_position_in_row, row, first, num_items), after)

    def _expanded(self, lane: int, start: int, stop: int) -> Iterator[tuple[int, list[Any]]]:
        """Yield (row, its items) for rows [start, stop) of a lane."""
        for first in range(start, stop, _ROWS_PER_CONVERSION):
            wanted = LaneRange(lane, first, min(first + _ROWS_PER_CONVERSION, stop))
            yield from enumerate(self._rows.expanded(wanted, self._stages.expansion), first)

    # -- Documents ----------------------------------------------------------------------------------------------------

    def _documents(self, pack: PackOptions, lane: int, start: int, stop: int) -> Iterator[Documents]:
        """Yield the documents of rows [start, stop) of a lane, some at a time."""
        if not self._rows.transform and not self._stages.expansion.steps:
            yield from self._documents_in_files(pack.column, lane, start, stop)
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
            if num_tokens >= _PACKS_PER_RUN * pack.length:
                yield self._made_documents(pack.column, lane, found, rows, row + 1)
                found, rows, num_tokens = [], [], 0
        yield self._made_documents(pack.column, lane, found, rows, stop)

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

    def _made_documents(self, column: str, lane: int, found: list[Any], rows: list[int], stop: int) -> Documents:
        of_rows = np.array(rows, np.int64)
        try:
            return Documents(from_rows(column, found), of_rows, stop)
        except DocumentError as error:
            self._name_row(error, lane, of_rows)
            raise

    def _documents_in_files(self, column: str, lane: int, start: int, stop: int) -> Iterator[Documents]:
        """Yield the documents of a column of the files, without a step for each."""
        while start < stop:
            rows = self._rows.read_on(lane, start, stop)
            num_rows, numbers = rows.num_rows, np.arange(start, start + rows.num_rows, dtype=np.int64)
            try:
                lists = from_arrow(column, rows.column(column))
            except DocumentError as error:
                self._name_row(error, lane, numbers)
                raise
            first = 0
            while first < num_rows:
                last = int(np.searchsorted(lists.starts, lists.starts[first] + TOKENS_PER_RUN, side="right")) - 1
                last = max(last, first + 1)
                yield Documents(lists.slice(first, last), numbers[first:last], start + last)
                first = last
            start += num_rows

    def _name_row(self, error: DocumentError, lane: int, rows: NDArray[np.int64]) -> None:
        """Add the row of a document to an error, as a note."""
        if error.document is not None:
            name = self._rows.name_of_row(lane, int(rows[error.document]))
            error.add_note(f"document {error.document} is that of {name}")


def _position_in_row(row: int, first: int, num_items: int, index: int) -> LanePosition:
    """Return the position after item `index` of those from `first` on that a row makes."""
    return LanePosition(row, encode_offset(first + index + 1, num_items))
