"""The packs of a lane: made of the documents of its rows, in sequence or group by group.

A position within a row or group is a number of tokens or of packs. What is not delivered is made again from there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Self, get_args

import numpy as np

from laneway.arguments import check_choice, check_int, plain_int
from laneway.core.progress import LanePosition
from laneway.stages.offsets import check_offset, decode_offset, digest_of, encode_offset, encode_offsets
from laneway.stages.packing import Overflow, best_fit, chunk, chunk_places, chunk_tokens
from laneway.stages.runs import PackColumns, Run, no_items
from laneway.stages.tokens import TokenLists

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from laneway.stages.packing import Packs

Strategy = Literal["best_fit", "chunk"]
"""How documents are put into packs: whole as far as they fit, or end to end and then cut."""
Mask = Literal["document_ids", "cu_seqlens"]
"""What tells the documents of a pack from each other."""

GROUP_ROWS: Final = 2048
"""Rows whose documents are packed together by default."""
TOKENS_PER_RUN: Final = 1 << 17
"""Tokens of packs that are made together: few enough that their columns stay in the cache, and memory is reused."""


@dataclass(frozen=True, slots=True)
class PackOptions:
    """How documents become packs; see the method `pack` of a dataset."""

    length: int
    column: str
    strategy: Strategy
    separator: int | None
    overflow: Overflow
    mask: Mask | None
    pad_value: int
    group_rows: int

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ValueError: One is out of its range, or has no effect.
            TypeError: One has the wrong type.
        """
        check_int("length", self.length, minimum=1)
        check_int("group_rows", self.group_rows, minimum=1)
        check_choice("strategy", self.strategy, get_args(Strategy))
        check_choice("overflow", self.overflow, get_args(Overflow))
        check_choice("mask", self.mask, get_args(Mask))
        for name, token in (("separator", self.separator), ("pad_value", self.pad_value)):
            if token is not None and plain_int(token) is None:
                message = f"{name} must be a token, an int, not {token!r}"
                raise TypeError(message)
        if not isinstance(self.column, str):
            message = f"column must be the name of a column, not {self.column!r}"
            raise TypeError(message)
        if self.strategy == "chunk" and self.overflow != "split":
            message = f'overflow={self.overflow!r} has no effect with strategy="chunk", which cuts documents anyway'
            raise ValueError(message)

    @property
    def text(self) -> str:
        """What states hold of it: all that determines which tokens are in which pack."""
        options = f"{self.length}, {self.column!r}, {self.strategy!r}, separator={self.separator}"
        if self.strategy == "best_fit":
            options += f", overflow={self.overflow!r}, group_rows={self.group_rows}"
        return f"pack({options})"


class Documents(NamedTuple):
    """The documents of consecutive rows of a lane."""

    tokens: TokenLists
    """Their tokens."""
    rows: NDArray[np.int64]
    """The row of the lane that each document comes from, ascending, shape (num_documents,)."""
    stop: int
    """The row after them."""


def joined_documents(parts: list[Documents], dtype: type[np.int64] | None = None) -> Documents:
    """Return the documents of several parts, at least one.

    Args:
        parts: The parts.
        dtype: The type that their tokens shall have, in memory of their own; None: theirs, and a single part is not
            copied.
    """
    if len(parts) == 1 and dtype is None:
        return parts[0]
    tokens = [part.tokens for part in parts]
    values = np.concatenate([each.stream for each in tokens], dtype=dtype, casting="unsafe")
    starts = np.concatenate([[0], np.cumsum(np.concatenate([each.lengths for each in tokens]))]).astype(np.int64)
    return Documents(TokenLists(values, starts), np.concatenate([part.rows for part in parts]), parts[-1].stop)


def masks_of(packs: Packs, first: int = 0, stop: int | None = None) -> dict[str, NDArray[np.int64]]:
    """Return the columns besides the tokens of packs [first, stop), each of shape (stop - first, length)."""
    stop = len(packs) if stop is None else stop
    return {"position_ids": packs.position_ids(first, stop), "document_ids": packs.document_ids(first, stop)}


def _no_documents(row: int) -> Documents:
    return Documents(TokenLists(np.zeros(0, np.int64), np.zeros(1, np.int64)), np.zeros(0, np.int64), row)


@dataclass
class Chunks:
    """Cuts the documents of a lane into chunks. What doesn't fill a chunk waits for the documents that follow."""

    options: PackOptions
    """How."""
    position: LanePosition
    """Where the lane is: rows, and an offset in tokens of the row under way."""
    _waiting: Documents = field(init=False)
    _skip: int = field(init=False)
    """Tokens of the waiting documents that are in earlier chunks."""
    _before: int = 0
    """Tokens of the first waiting document's row that come before it, and are in earlier chunks."""

    def __post_init__(self) -> None:
        """Begin at the position."""
        self._waiting = _no_documents(self.position.rows)
        self._skip = decode_offset(self.position.offset).delivered

    def cut(self, documents: Documents) -> Run:
        """Return the chunks that are full with these documents, of whole rows, which follow those before.

        Raises:
            NotReproducibleError: The row under way has another length than when some of its tokens were delivered.
        """
        is_first = not len(self._waiting.rows)
        waiting = joined_documents([self._waiting, documents], np.int64)
        tokens, rows, stop = waiting
        length, separator, mask = self.options.length, self.options.separator, self.options.mask
        has_separator, skip = separator is not None, self._skip
        widths = tokens.lengths + ((tokens.lengths > 0) & has_separator)
        of_row = _Rows.of(rows, widths, self._before)
        if is_first and skip:
            row, offset = self.position
            width = int(of_row.width[0]) if len(rows) and rows[0] == row else 0
            check_offset(offset, width, width, of=f"tokens of row {row:,} of a lane")
        places = chunk_places(tokens.lengths, length, separator=has_separator, skip=skip)
        columns = {"input_ids": chunk_tokens(tokens, length, separator=separator, skip=skip)}
        if mask is not None:
            columns |= masks_of(chunk(tokens.lengths, length, separator=has_separator, skip=skip))
        position_after = of_row.positions(rows, *places, stop)
        num_chunks = len(places.document) - 1
        self._wait(waiting, of_row, int(places.document[-1]), int(places.offset[-1]))
        self.position = position_after(num_chunks)
        return Run(PackColumns(columns, num_chunks), lambda index: position_after(index + 1), self.position)

    def _wait(self, documents: Documents, of_row: _Rows, at: int, offset: int) -> None:
        """Have documents wait from a place on."""
        tokens, rows, stop = documents
        if at == len(rows):
            self._waiting, self._skip, self._before = _no_documents(stop), 0, 0
            return
        # Of a long document, only what is left waits: its last token at least, which a separator may follow.
        drop = min(offset, int(tokens.lengths[at]) - 1)
        starts = np.concatenate([tokens.starts[at : at + 1] + drop, tokens.starts[at + 1 :]])
        self._waiting = Documents(TokenLists(tokens.values, starts), rows[at:], stop)
        self._skip, self._before = offset - drop, int(of_row.before[at]) + drop

    def finish(self) -> Run:
        """Return the last chunk, padded, if anything waits for it."""
        tokens, _, stop = self._waiting
        length, separator = self.options.length, self.options.separator
        has_separator, end = separator is not None, LanePosition(stop)
        num_separators = np.count_nonzero(tokens.lengths) if has_separator else 0
        num_tokens = int(tokens.lengths.sum() + num_separators) - self._skip
        if not num_tokens:
            return no_items(end)
        found = {"input_ids": chunk_tokens(tokens, num_tokens, separator=separator, skip=self._skip)}
        if self.options.mask is not None:
            found |= masks_of(chunk(tokens.lengths, num_tokens, separator=has_separator, skip=self._skip))
        padding = np.arange(length - num_tokens, dtype=np.int64)
        fills = {"input_ids": np.full_like(padding, self.options.pad_value), "position_ids": padding}
        columns = {
            name: np.concatenate([column, fills.get(name, np.zeros_like(padding))[None]], axis=1)
            for name, column in found.items()
        }
        return Run(PackColumns(columns, 1), lambda _: end, end)


class _Rows(NamedTuple):
    """The rows of documents that are laid end to end."""

    before: NDArray[np.int64]
    """Tokens of its row that come before each document, shape (num_documents,)."""
    width: NDArray[np.int64]
    """Tokens of the row of each document, of the same shape."""

    @classmethod
    def of(cls, rows: NDArray[np.int64], widths: NDArray[np.int64], before: int) -> Self:
        """Return them.

        Args:
            rows: The row of each document, ascending, shape (num_documents,).
            widths: Tokens of each document, with its separator, of the same shape.
            before: Tokens of the first row that come before the first document.
        """
        ends = np.cumsum(widths)
        first, last = np.searchsorted(rows, rows, side="left"), np.searchsorted(rows, rows, side="right") - 1
        starts = (ends - widths)[first] - np.where(first == 0, before, 0)
        return cls(ends - widths - starts, ends[last] - starts)

    def positions(
        self, rows: NDArray[np.int64], document: NDArray[np.int64], offset: NDArray[np.int64], stop: int
    ) -> Callable[[int], LanePosition]:
        """Return a function that returns the position of one of several places.

        Args:
            rows: The row of each document.
            document: The document of each place; the number of documents if none follows.
            offset: Tokens of it that come before each place.
            stop: The row after all of them.
        """
        row_at = np.append(rows, stop)[document]
        delivered = np.append(self.before, 0)[document] + np.where(document < len(rows), offset, 0)
        offsets = encode_offsets(delivered, np.append(self.width, 0)[document])
        return lambda index: LanePosition(int(row_at[index]), int(offsets[index]))


def fitted_runs(options: PackOptions, documents: Documents, position: LanePosition) -> Iterator[Run]:
    """Yield the packs of the documents of a group of rows, from the lane's position on.

    Args:
        options: How they are packed.
        documents: The documents of all rows of the group.
        position: Where the lane is: the first row of the group, and an offset in packs of it.

    Raises:
        NotReproducibleError: The group has documents of other lengths than when some of its packs were delivered.
        DocumentTooLongError: A document is longer than a pack, and `options.overflow` is "error".
    """
    tokens, _, stop = documents
    separator, end = options.separator, LanePosition(stop)
    packs = best_fit(tokens.lengths, options.length, separator=separator is not None, overflow=options.overflow)
    num_packs, digest = len(packs), digest_of(tokens.lengths)
    of = f"packs of rows {position.rows:,} to {stop:,} of a lane"
    first = check_offset(position.offset, num_packs, digest, of=of)
    if not num_packs:
        yield no_items(end)
    run_packs = max(TOKENS_PER_RUN // options.length, 1)
    for start in range(first, num_packs, run_packs):
        up_to = min(start + run_packs, num_packs)
        columns = {"input_ids": packs.input_ids(tokens, start, up_to, separator or 0, options.pad_value)}
        if options.mask is not None:
            columns |= masks_of(packs, start, up_to)

        def position_after(index: int, before: int = start + 1) -> LanePosition:
            return LanePosition(position.rows, encode_offset(before + index, digest))

        run_end = end if up_to == num_packs else position_after(up_to - start - 1)
        yield Run(PackColumns(columns, up_to - start), position_after, run_end)
