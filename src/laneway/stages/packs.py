"""The packs of a lane: made of the documents of its rows, in sequence or group by group.

A position within a row or group is a number of tokens or of packs. What is not delivered is made again from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Self, get_args

import numpy as np

from laneway.arguments import MAX_COUNT, check_choice, check_int, plain_int
from laneway.core.pack_line import PackedDocuments, PackPlaces
from laneway.core.progress import LanePosition
from laneway.stages.offsets import check_offset, decode_offset, digest_of, encode_offset, resume_group
from laneway.stages.packing import Overflow, best_fit, chunk, chunk_places, chunk_tokens, num_packs
from laneway.stages.runs import PackColumns, RowTokens, Run, no_items
from laneway.stages.tokens import TokenLists

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from laneway.core.pack_line import PackPiece
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
        for name in ("length", "group_rows"):
            plain = check_int(name, getattr(self, name), minimum=1, maximum=MAX_COUNT)
            object.__setattr__(self, name, plain)
        check_choice("strategy", self.strategy, get_args(Strategy))
        check_choice("overflow", self.overflow, get_args(Overflow))
        check_choice("mask", self.mask, get_args(Mask), or_none=True)
        if self.separator is not None:
            _check_token("separator", self.separator)
        _check_token("pad_value", self.pad_value)
        if not isinstance(self.column, str):
            message = f"column must be the name of a column, not {self.column!r}"
            raise TypeError(message)
        if self.strategy == "chunk" and self.overflow != "split":
            message = f'overflow={self.overflow!r} has no effect with strategy="chunk", which cuts documents anyway'
            raise ValueError(message)

    @property
    def row_bytes(self) -> int:
        """Size of a pack in bytes."""
        num_columns = 2 if self.mask == "document_ids" else 1
        return (1 + num_columns) * 8 * self.length

    def places(self, lengths: NDArray[np.int64]) -> PackPlaces:
        """Return where the packs of documents are, given the tokens of each, in their order.

        Raises:
            DocumentTooLongError: A document is longer than a pack, and `overflow` is "error".
        """
        has_separator, num_rows = self.separator is not None, len(lengths)
        if self.strategy == "chunk":
            document, offset = chunk_places(lengths, self.length, separator=has_separator)
            places = np.append(document, num_rows), np.append(offset, 0)
            # What doesn't fill a pack is in a last one.
            is_whole = int(lengths.sum() + (lengths > 0).sum() * has_separator) % self.length == 0
            rows, tokens = (np.delete(each, -2) if is_whole else each for each in places)
            return PackPlaces(np.arange(len(rows), dtype=np.int64), rows, tokens)
        rows = np.append(np.arange(0, num_rows, self.group_rows), num_rows).astype(np.int64)
        packs = [
            num_packs(lengths[start:stop], self.length, separator=has_separator, overflow=self.overflow)
            for start, stop in zip(rows[:-1].tolist(), rows[1:].tolist(), strict=True)
        ]
        return PackPlaces(np.cumsum([0, *packs], dtype=np.int64), rows, np.zeros_like(rows))

    def documents(self, piece: PackPiece, lengths: NDArray[np.int64]) -> PackedDocuments:
        """Return what the packs of a piece consist of, given the tokens of each of its rows; documents are these."""
        has_separator, num_rows = self.separator is not None, len(lengths)
        if self.strategy == "chunk":
            # One more document fills the last pack of the line.
            line = np.append(lengths, self.length)
            parts = {0: chunk(line, self.length, separator=has_separator, skip=piece.tokens_before)}
        else:
            parts = {
                first: best_fit(
                    lengths[first : first + self.group_rows],
                    self.length,
                    separator=has_separator,
                    overflow=self.overflow,
                )
                for first in range(0, num_rows, self.group_rows)
            }
        counts = np.concatenate([np.diff(each.first_pieces) for each in parts.values()])
        pack = np.repeat(np.arange(len(counts)), counts) - piece.packs_before
        document = np.concatenate([first + each.document for first, each in parts.items()])
        start, tokens = (
            np.concatenate([getattr(each, name) for each in parts.values()]) for name in ("start", "tokens")
        )
        kept = (pack >= 0) & (pack < piece.num_packs) & (document < num_rows) & (tokens > 0)
        return PackedDocuments(pack[kept], document[kept], start[kept], (start + tokens)[kept])

    def depends_on_order(self, num_documents: int) -> bool:
        """Return whether the same documents in another order may make another number of packs."""
        return self.strategy == "best_fit" and num_documents > self.group_rows

    @property
    def text(self) -> str:
        """What states hold of it: all that determines which tokens are in which pack."""
        options = f"{self.length}, {self.column!r}, {self.strategy!r}, separator={self.separator}"
        if self.strategy == "best_fit":
            options += f", overflow={self.overflow!r}, group_rows={self.group_rows}"
        return f"pack({options})"


def _check_token(name: str, token: int) -> None:
    """Check that an option is a token.

    Raises:
        TypeError: It is no int.
        ValueError: int64 can't hold it.
    """
    number = plain_int(token)
    if number is None:
        message = f"{name} must be a token, an int, not {token!r}"
        raise TypeError(message)
    if not -(2**63) <= number < 2**63:
        message = f"{name} must be a token that int64 can hold, not {token!r}"
        raise ValueError(message)


class Documents(NamedTuple):
    """The documents of consecutive rows of a lane, with their separators."""

    tokens: TokenLists
    """Their tokens."""
    rows: NDArray[np.int64]
    """The row of the lane that each document comes from, ascending, shape (num_documents,)."""
    before: NDArray[np.int64]
    """Tokens of its row that come before each document, of the same shape."""
    width: NDArray[np.int64]
    """Tokens of the row of each document, of the same shape; 0 if an earlier cut has delivered some of them."""
    stop: int
    """The row after them."""

    @classmethod
    def of(cls, tokens: TokenLists, rows: NDArray[np.int64], stop: int) -> Self:
        """Return the documents of whole rows."""
        ends = np.cumsum(tokens.lengths)
        first, last = np.searchsorted(rows, rows, side="left"), np.searchsorted(rows, rows, side="right") - 1
        starts = (ends - tokens.lengths)[first]
        return cls(tokens, rows, ends - tokens.lengths - starts, ends[last] - starts, stop)

    def rest(self, num_tokens: int) -> Documents:
        """Return what comes after the first tokens, without a copy of them."""
        tokens, rows, before, width, stop = self
        starts = tokens.starts
        first = int(np.searchsorted(starts[1:], starts[0] + num_tokens, side="right"))
        dropped = int(starts[0]) + num_tokens - int(starts[first])
        starts, before = starts[first:].copy(), before[first:].copy()
        starts[:1] += dropped
        before[:1] += dropped
        return Documents(TokenLists(tokens.values, starts), rows[first:], before, width[first:], stop)

    def position(self, document: int, offset: int) -> LanePosition:
        """Return the position of the lane within a document, or after the last one."""
        if document == len(self.rows):
            return LanePosition(self.stop)
        delivered = int(self.before[document]) + offset
        width = int(self.width[document])
        return LanePosition(int(self.rows[document]), encode_offset(delivered, width) if delivered else 0)

    def row_tokens(self, start: tuple[int, int], stop: tuple[int, int], *, has_separators: bool) -> RowTokens:
        """Return the tokens between two places.

        Args:
            start: A document, and an offset in it.
            stop: The place that follows; after the last document, their number and 0.
            has_separators: Whether each document that is not empty ends with a separator, which doesn't count.
        """
        documents = slice(start[0], stop[0] + 1)
        tokens = self.tokens.lengths[documents].copy()
        if has_separators:
            tokens -= tokens > 0
        if stop[0] < len(self.rows):
            tokens[-1] = min(tokens[-1], stop[1])
        tokens[:1] -= np.minimum(tokens[:1], start[1])
        return RowTokens(self.rows[documents], tokens)


def joined_documents(parts: Sequence[Documents], dtype: type[np.int64] | None = None) -> Documents:
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
    rows, before, width = (np.concatenate([part[index] for part in parts]) for index in (1, 2, 3))
    return Documents(TokenLists(values, starts), rows, before, width, parts[-1].stop)


def half_delivered(documents: Documents, offset: int, carried: int, *, of: str) -> Documents:
    """Return what is left of a row, after checking that it has as many tokens as before.

    Args:
        documents: The documents of the row.
        offset: The offset of the lane in it.
        carried: The offset in it at which an earlier cut ended; then `offset` counts from there; else 0.
        of: Which row it is, for an error.

    Raises:
        NotReproducibleError: It has another number of tokens.
    """
    width = int(documents.tokens.starts[-1] - documents.tokens.starts[0])
    before = check_offset(carried or offset, width, width, of=of)
    if not carried:
        return documents.rest(before)
    rest = documents.rest(before + decode_offset(offset).delivered)
    return rest._replace(before=rest.before - before, width=np.zeros_like(rest.width))


def masks_of(packs: Packs, first: int = 0, stop: int | None = None) -> dict[str, NDArray[np.int64]]:
    """Return the columns besides the tokens of packs [first, stop), each of shape (stop - first, length)."""
    stop = len(packs) if stop is None else stop
    return {"position_ids": packs.position_ids(first, stop), "document_ids": packs.document_ids(first, stop)}


@dataclass
class Chunks:
    """Cuts the documents of a lane into chunks. What doesn't fill a chunk waits for the documents that follow."""

    options: PackOptions
    """How."""
    _waiting: Documents | None = None

    def cut(self, documents: Documents) -> Run:
        """Return the chunks that are full with these documents, which follow those before."""
        parts = [documents] if self._waiting is None else [self._waiting, documents]
        joined = joined_documents(parts, np.int64)
        length, lengths = self.options.length, joined.tokens.lengths
        columns = {"input_ids": chunk_tokens(joined.tokens, length)}
        if self.options.mask is not None:
            columns |= masks_of(chunk(lengths, length))
        document, offset = chunk_places(lengths, length)
        num_chunks = len(document) - 1
        self._waiting = joined.rest(num_chunks * length)

        def position_after(index: int) -> LanePosition:
            return joined.position(int(document[index + 1]), int(offset[index + 1]))

        def row_tokens(start: int, stop: int) -> RowTokens:
            first, last = ((int(document[index]), int(offset[index])) for index in (start, stop))
            return joined.row_tokens(first, last, has_separators=self.options.separator is not None)

        return Run(PackColumns(columns, num_chunks), position_after, position_after(num_chunks - 1), row_tokens)

    def finish(self, stop: int) -> Run:
        """Return the last chunk, padded, if anything waits for it.

        Args:
            stop: The row at which the lane ends.
        """
        end = LanePosition(stop)
        waiting, has_separators = self._waiting, self.options.separator is not None
        if waiting is None or not len(waiting.tokens.stream):
            return no_items(end)
        tokens, num_tokens = waiting.tokens, len(waiting.tokens.stream)
        found = {"input_ids": chunk_tokens(tokens, num_tokens)}
        if self.options.mask is not None:
            found |= masks_of(chunk(tokens.lengths, num_tokens))
        padding = np.arange(self.options.length - num_tokens, dtype=np.int64)
        fills = {"input_ids": np.full_like(padding, self.options.pad_value), "position_ids": padding}
        columns = {
            name: np.concatenate([column, fills.get(name, np.zeros_like(padding))[None]], axis=1)
            for name, column in found.items()
        }
        all_of_them = waiting.row_tokens((0, 0), (len(waiting.rows), 0), has_separators=has_separators)
        return Run(PackColumns(columns, 1), lambda _: end, end, lambda *_: all_of_them)


def fitted_runs(options: PackOptions, documents: Documents, position: LanePosition, carried: int = 0) -> Iterator[Run]:
    """Yield the packs of the documents of a group of rows, from the lane's position on.

    Args:
        options: How they are packed.
        documents: The documents of all rows of the group.
        position: Where the lane is: the first row of the group, and an offset in packs of it.
        carried: The offset in packs at which an earlier cut ended; then `position` counts from there; else 0.

    Raises:
        NotReproducibleError: The group has documents of other lengths than when some of its packs were delivered.
        DocumentTooLongError: A document is longer than a pack, and `options.overflow` is "error".
    """
    tokens, stop = documents.tokens, documents.stop
    separator, end = options.separator, LanePosition(stop)
    packs = best_fit(tokens.lengths, options.length, separator=separator is not None, overflow=options.overflow)
    num_packs = len(packs)
    of = f"packs of rows {position.rows:,} to {stop:,} of a lane"
    first, offset_after = resume_group(position.offset, carried, num_packs, digest_of(tokens.lengths), of=of)
    if first == num_packs:
        yield no_items(end)
    run_packs = max(TOKENS_PER_RUN // options.length, 1)
    for start in range(first, num_packs, run_packs):
        up_to = min(start + run_packs, num_packs)
        columns = {"input_ids": packs.input_ids(tokens, start, up_to, separator or 0, options.pad_value)}
        if options.mask is not None:
            columns |= masks_of(packs, start, up_to)

        def position_after(index: int, before: int = start + 1) -> LanePosition:
            return LanePosition(position.rows, offset_after(before + index))

        def row_tokens(first: int, last: int, before: int = start) -> RowTokens:
            pieces = slice(packs.first_pieces[before + first], packs.first_pieces[before + last])
            return RowTokens(documents.rows[packs.document[pieces]], packs.tokens[pieces])

        run_end = end if up_to == num_packs else position_after(up_to - start - 1)
        yield Run(PackColumns(columns, up_to - start), position_after, run_end, row_tokens)
