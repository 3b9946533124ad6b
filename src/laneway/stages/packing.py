"""Packing: documents of tokens are put into packs of one length, as pure functions of the lengths of the documents.

A *piece* is a part of a document in one pack: the whole document, unless it was too long or `chunk` cut it. A separator
follows the last token of a document, and belongs to its last piece; a piece that fills a pack alone has none.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from laneway.stages.tokens import DocumentTooLongError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from laneway.stages.tokens import TokenLists

Overflow = Literal["split", "truncate", "drop", "error"]
"""What becomes of a document that is longer than a pack: cut into several pieces, shortened, left out, or an error."""


class _Segments(NamedTuple):
    """What packs consist of, in order: their pieces, each pack's followed by its padding."""

    width: NDArray[np.int64]
    """Places of each piece, and of each padding, which may have none; shape (num_pieces + num_packs,)."""
    number: NDArray[np.int64]
    """1, 2, 3, ... for the pieces of a pack, and 0 for its padding, of the same shape."""


@dataclass(frozen=True, eq=False)
class Packs:
    """Which tokens are in which pack. Pieces are in the order of the packs, and of their places in them."""

    length: int
    """Tokens of a pack, with separators and padding."""
    document: NDArray[np.int64]
    """Document of each piece, shape (num_pieces,)."""
    start: NDArray[np.int64]
    """First token of each piece, counted in its document, shape (num_pieces,)."""
    tokens: NDArray[np.int64]
    """Tokens of each piece, shape (num_pieces,)."""
    separator: NDArray[np.bool_]
    """Whether a separator follows the piece in its pack, shape (num_pieces,)."""
    first_pieces: NDArray[np.int64]
    """Index of each pack's first piece, shape (num_packs + 1,)."""

    def __len__(self) -> int:
        """Return the number of packs."""
        return len(self.first_pieces) - 1

    @cached_property
    def _widths(self) -> NDArray[np.int64]:
        """Places that each piece takes in its pack, shape (num_pieces,)."""
        return self.tokens + self.separator

    @cached_property
    def _places(self) -> NDArray[np.int64]:
        """Place of the first token of each piece, counted from the first pack, shape (num_pieces,)."""
        before = np.concatenate([[0], np.cumsum(self._widths)]).astype(np.int64)
        pack = np.repeat(np.arange(len(self), dtype=np.int64), np.diff(self.first_pieces))
        return before[:-1] + pack * self.length - before[self.first_pieces[pack]]

    @cached_property
    def num_padding(self) -> int:
        """Places of all packs that hold neither a token nor a separator."""
        return len(self) * self.length - int(self._widths.sum())

    @cached_property
    def _segments(self) -> _Segments:
        num_packs, num_pieces = len(self), len(self.document)
        counts = np.diff(self.first_pieces)
        pack = np.repeat(np.arange(num_packs, dtype=np.int64), counts)
        index = np.arange(num_pieces, dtype=np.int64)
        width = np.full(num_pieces + num_packs, self.length, np.int64)
        number = np.zeros(num_pieces + num_packs, np.int64)
        width[index + pack] = self._widths
        number[index + pack] = index - self.first_pieces[pack] + 1
        paddings = self.first_pieces[1:] + np.arange(num_packs, dtype=np.int64)
        width[paddings] -= np.bincount(pack, self._widths, num_packs).astype(np.int64)
        return _Segments(width, number)

    def _segments_of(self, first: int, stop: int) -> _Segments:
        of_packs = slice(self.first_pieces[first] + first, self.first_pieces[stop] + stop)
        width, number = self._segments
        return _Segments(width[of_packs], number[of_packs])

    def input_ids(
        self, documents: TokenLists, first: int, stop: int, separator: int = 0, pad_value: int = 0
    ) -> NDArray[np.int64]:
        """Return the tokens of packs [first, stop).

        Args:
            documents: The documents that were packed.
            first: First pack.
            stop: One past the last pack.
            separator: The token that follows each document, if the packs were made with a separator.
            pad_value: The token of padding.

        Returns:
            int64 array of shape (stop - first, length).
        """
        pieces = slice(self.first_pieces[first], self.first_pieces[stop])
        ids = np.full((stop - first) * self.length, pad_value, np.int64)
        places, sources = self._places[pieces] - first * self.length, documents.starts[self.document[pieces]]
        sources += self.start[pieces]
        values, tokens = documents.values, self.tokens[pieces]
        # Slices of documents are copied faster than tokens are gathered one by one.
        for place, source, count in zip(places.tolist(), sources.tolist(), tokens.tolist(), strict=True):
            ids[place : place + count] = values[source : source + count]
        ids[(places + tokens)[self.separator[pieces]]] = separator
        return ids.reshape(-1, self.length)

    def document_ids(self, first: int, stop: int) -> NDArray[np.int64]:
        """Return which piece of its pack each token of packs [first, stop) is in: 1, 2, 3, ..., or 0 for padding.

        Returns:
            int64 array of shape (stop - first, length).
        """
        width, number = self._segments_of(first, stop)
        return np.repeat(number, width).reshape(-1, self.length)

    def position_ids(self, first: int, stop: int) -> NDArray[np.int64]:
        """Return the place of each token of packs [first, stop) in its piece, or in the padding: 0, 1, 2, ...

        Returns:
            int64 array of shape (stop - first, length).
        """
        width = self._segments_of(first, stop).width
        width = width[width > 0]
        # Steps of 1, except where another piece begins: the sum so far is the place.
        places = np.ones((stop - first) * self.length, np.int64)
        places[:1] = 0
        places[np.cumsum(width[:-1])] = 1 - width[:-1]
        return np.cumsum(places, out=places).reshape(-1, self.length)


class _Pieces(NamedTuple):
    document: NDArray[np.int64]
    start: NDArray[np.int64]
    tokens: NDArray[np.int64]
    separator: NDArray[np.bool_]


def _pieces_of(lengths: NDArray[np.int64], length: int, overflow: Overflow, *, separator: bool) -> _Pieces:
    """Return the pieces of documents, in their order, none of which is longer than a pack or empty."""
    document = np.arange(len(lengths), dtype=np.int64)
    is_long = lengths > length
    if overflow == "error" and is_long.any():
        index = int(np.argmax(is_long))
        message = (
            f"document {index} has {lengths[index]:,} tokens, but a pack has {length:,}: use longer packs, or set "
            "overflow to 'split', 'truncate' or 'drop'"
        )
        raise DocumentTooLongError(message, document=index)
    if overflow == "drop":
        document = document[~is_long]
    counts = (lengths[document] > 0).astype(np.int64) if overflow == "truncate" else -(-lengths[document] // length)
    first = np.cumsum(counts) - counts
    document = np.repeat(document, counts)
    start = (np.arange(len(document), dtype=np.int64) - np.repeat(first, counts)) * length
    tokens = np.minimum(lengths[document] - start, length)
    return _Pieces(document, start, tokens, (tokens < length) & separator)


class _Fitted(NamedTuple):
    order: NDArray[np.int64]
    """Pieces, the longest first."""
    packs: list[int]
    """The pack of each of them."""
    opened: list[int]
    """The first piece of each pack."""


def _fit(widths: NDArray[np.int64], length: int) -> _Fitted:
    """Put pieces into packs, the longest first, each into the fullest pack that it fits into.

    Args:
        widths: Places that each piece takes.
        length: Places of a pack.
    """
    # Stable: of pieces of one length, the first comes first.
    order = np.argsort(-widths, kind="stable")
    rooms: list[int] = []
    """The different numbers of places that are left in a pack, ascending."""
    packs_with: dict[int, list[int]] = {}
    """Room -> the packs that have it."""
    found: list[int] = []
    opened: list[int] = []
    for piece, width in zip(order.tolist(), widths[order].tolist(), strict=True):
        at = bisect_left(rooms, width)
        if at == len(rooms):
            pack, room = len(opened), length
            opened.append(piece)
        else:
            room = rooms[at]
            pack = packs_with[room].pop()
            if not packs_with[room]:
                del rooms[at]
        found.append(pack)
        room -= width
        if room:
            packs = packs_with.setdefault(room, [])
            if not packs:
                insort(rooms, room)
            packs.append(pack)
    return _Fitted(order, found, opened)


def num_packs(lengths: NDArray[np.int64], length: int, *, separator: bool, overflow: Overflow) -> int:
    """Return how many packs `best_fit` makes of documents; see there."""
    pieces = _pieces_of(lengths, length, overflow, separator=separator)
    return len(_fit(pieces.tokens + pieces.separator, length).opened)


def best_fit(
    lengths: NDArray[np.int64], length: int, *, separator: bool = False, overflow: Overflow = "split"
) -> Packs:
    """Pack documents so that little padding is needed, and no document is cut that fits into a pack.

    Best-fit decreasing (Johnson, "Near-optimal bin packing algorithms", MIT 1973): the longest piece first, each into
    the fullest pack that it fits into. Packs are in the order of their longest pieces among the documents, and the
    pieces of a pack in that of their documents, so that neither depends on how long documents are.

    Args:
        lengths: Tokens of each document, int64 of shape (num_documents,). Empty documents are left out.
        length: Tokens of a pack, >= 1.
        separator: Whether a separator follows each document.
        overflow: What becomes of a document that is longer than a pack.

    Raises:
        DocumentTooLongError: A document is longer than a pack, and `overflow` is "error".
    """
    document, start, tokens, separators = _pieces_of(lengths, length, overflow, separator=separator)
    order, found, opened = _fit(tokens + separators, length)
    rank = np.empty(len(opened), np.int64)
    rank[np.argsort(np.array(opened, np.int64))] = np.arange(len(opened))
    pack_of = np.empty(len(order), np.int64)
    pack_of[order] = rank[np.array(found, np.int64)]
    by_pack = np.argsort(pack_of, kind="stable")
    first_pieces = np.searchsorted(pack_of[by_pack], np.arange(len(opened) + 1), side="left").astype(np.int64)
    return Packs(length, document[by_pack], start[by_pack], tokens[by_pack], separators[by_pack], first_pieces)


class Places(NamedTuple):
    """Places in documents that are laid end to end."""

    document: NDArray[np.int64]
    """The document of each place; after the last one, the number of documents."""
    offset: NDArray[np.int64]
    """Tokens of it that come before; if all of them do, its separator comes next."""


class _Line(NamedTuple):
    """Documents that are laid end to end and cut into chunks."""

    widths: NDArray[np.int64]
    """Places of each document, with its separator, shape (num_documents,)."""
    ends: NDArray[np.int64]
    """Where each document ends, shape (num_documents,)."""
    cuts: NDArray[np.int64]
    """Where each chunk begins, and where the last one ends, shape (num_chunks + 1,)."""


def _lay(lengths: NDArray[np.int64], length: int, skip: int, *, separator: bool) -> _Line:
    widths = lengths + ((lengths > 0) & separator)
    ends = np.cumsum(widths)
    num_chunks = max(int(widths.sum()) - skip, 0) // length
    return _Line(widths, ends, skip + np.arange(num_chunks + 1, dtype=np.int64) * length)


def chunk_places(lengths: NDArray[np.int64], length: int, *, separator: bool = False, skip: int = 0) -> Places:
    """Return where each chunk begins, and where the next one would, if documents are laid end to end and cut.

    Args:
        lengths: Tokens of each document, int64 of shape (num_documents,). Empty documents have no separator.
        length: Tokens of a chunk, >= 1.
        separator: Whether a separator follows each document.
        skip: Tokens of the first documents, with separators, that are in earlier chunks.
    """
    widths, ends, cuts = _lay(lengths, length, skip, separator=separator)
    document = np.searchsorted(ends, cuts, side="right")
    return Places(document, cuts - np.append(ends - widths, ends[-1:] if len(ends) else 0)[document])


def chunk(lengths: NDArray[np.int64], length: int, *, separator: bool = False, skip: int = 0) -> Packs:
    """Lay documents end to end and cut them into chunks; what doesn't fill a chunk is left out.

    A separator that is the first token of a chunk is in a piece without other tokens.

    Args:
        lengths: See `chunk_places`.
        length: See `chunk_places`.
        separator: See `chunk_places`.
        skip: See `chunk_places`.
    """
    widths, ends, cuts = _lay(lengths, length, skip, separator=separator)
    bounds = np.union1d(cuts, ends[(ends > skip) & (ends < cuts[-1])])
    starts, stops = bounds[:-1], bounds[1:]
    document = np.searchsorted(ends, starts, side="right")
    has_separator = (stops == ends[document]) & separator
    first_pieces = np.searchsorted(bounds, cuts, side="left").astype(np.int64)
    start = starts - (ends - widths)[document]
    return Packs(length, document, start, stops - starts - has_separator, has_separator, first_pieces)


def chunk_tokens(
    documents: TokenLists, length: int, *, separator: int | None = None, skip: int = 0
) -> NDArray[np.int_]:
    """Return the tokens of the chunks that `chunk` makes, without a step for each document.

    Returns:
        Array of shape (num_chunks, length), of the type of the tokens; without a separator, a view of the documents.
    """
    stream = documents.stream
    widths, ends, cuts = _lay(documents.lengths, length, skip, separator=separator is not None)
    if separator is not None:
        is_token = np.ones(int(widths.sum()), bool)
        is_token[ends[widths > 0] - 1] = False
        stream = np.full(len(is_token), separator, stream.dtype)
        stream[is_token] = documents.stream
    return stream[skip : cuts[-1]].reshape(-1, length)
