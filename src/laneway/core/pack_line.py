"""The line of packs of an epoch whose documents have known lengths: the rows that each is made of, before any is read.

The rows of the epoch are in one line, whatever the lanes, and packs are made along it. Then the packs are the line that
is cut into lanes: turns, positions and ends count packs, and all that holds of rows holds of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, final

import numpy as np

from laneway.core.lanes import Lanes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from laneway.core.lanes import Segment


_SMALL: Final = 20
"""Rows of a line for each group whose packs are sent to other processes rather than counted there again."""
_KNOWN: Final = "lengths"
"""Last word of what states hold of stages, before any digest, if lanes count packs."""


def stages_of_known_packs(stages: str, digest: str | None = None) -> str:
    """Return what states hold of stages whose packs are made of documents of known lengths.

    Args:
        stages: What they hold of the stages.
        digest: Digest of the lengths, without spaces; None for a mixture, whose sources have one each.
    """
    return f"{stages} {_KNOWN}" if digest is None else f"{stages} {_KNOWN}={digest}"


def have_known_packs(stages: str | None) -> bool:
    """Return whether what a state holds of stages is from `stages_of_known_packs`; None: there are no stages."""
    return (stages or "").rpartition(" ")[2].partition("=")[0] == _KNOWN


class PackPiece(NamedTuple):
    """Consecutive packs of a line, and the rows that they are made of."""

    first: int
    """The first pack, counted in the line."""
    num_packs: int
    """Number of packs."""
    start: int
    """First row of the line from which they are made."""
    stop: int
    """One past the last of these rows."""
    packs_before: int
    """Number of packs that these rows make before the first of these packs."""
    tokens_before: int
    """Tokens of the first row that are in earlier packs than those."""


class PackedDocuments(NamedTuple):
    """Which tokens of which documents some packs consist of, pack by pack, in their order."""

    pack: NDArray[np.int64]
    """The pack that each is in, counted from the first of these packs, shape (num_documents,)."""
    document: NDArray[np.int64]
    """The document, by its number, of the same shape."""
    start: NDArray[np.int64]
    """The first of its tokens that the pack has, of the same shape."""
    stop: NDArray[np.int64]
    """One past the last one, of the same shape."""


@final
@dataclass(frozen=True, eq=False)
class PackPlaces:
    """Where the packs of a line are in its rows. Rows that are packed together are a group; all end with a pack."""

    first_packs: NDArray[np.int64]
    """Number of packs before each group, and of all, shape (num_groups + 1,)."""
    rows: NDArray[np.int64]
    """Row in which each group begins, and one past the last row, shape (num_groups + 1,)."""
    tokens: NDArray[np.int64]
    """Tokens of that row that are in earlier groups, of the same shape."""

    @property
    def num_packs(self) -> int:
        """Number of packs of the line."""
        return int(self.first_packs[-1])

    def is_small(self, num_rows: int) -> bool:
        """Whether this takes little memory beside the lengths of so many rows."""
        return len(self.rows) * _SMALL <= num_rows

    def piece(self, start: int, stop: int) -> PackPiece:
        """Return packs [start, stop) of the line, at least one."""
        first = int(np.searchsorted(self.first_packs, start, side="right")) - 1
        last = int(np.searchsorted(self.first_packs, stop, side="left"))
        end = int(self.rows[last]) + (int(self.tokens[last]) > 0)
        packs_before = start - int(self.first_packs[first])
        return PackPiece(start, stop - start, int(self.rows[first]), end, packs_before, int(self.tokens[first]))

    def packs_near(self, row: int) -> tuple[int, int]:
        """Return packs [start, stop) of the line, among which are all that have tokens of a row."""
        first = max(int(np.searchsorted(self.rows, row, side="left")) - 1, 0)
        stop = min(int(np.searchsorted(self.rows, row, side="right")), len(self.rows) - 1)
        return int(self.first_packs[first]), int(self.first_packs[stop])


class Packing(Protocol):
    """How documents become packs, as a function of their lengths."""

    def places(self, lengths: NDArray[np.int64]) -> PackPlaces:
        """Return where the packs of documents are, given the tokens of each, in their order."""

    def documents(self, piece: PackPiece, lengths: NDArray[np.int64]) -> PackedDocuments:
        """Return what the packs of a piece consist of, given the tokens of each of its rows; documents are these."""

    def depends_on_order(self, num_documents: int) -> bool:
        """Return whether the same documents in another order may make another number of packs."""


@final
@dataclass(frozen=True, eq=False)
class KnownPacks:
    """The lengths of the documents of a dataset, and how they become packs."""

    lengths: NDArray[np.int32]
    """Tokens of each selected row, in the order of the files, shape (num_rows,)."""
    packing: Packing
    """How they become packs."""


@final
@dataclass(frozen=True, eq=False)
class PackLine:
    """The line of packs of one epoch."""

    rows: Lanes
    """The line of its rows, as a single lane."""
    lengths: NDArray[np.int32]
    """Tokens of each row, in the order of the line."""
    places: PackPlaces
    """Where its packs are in these rows."""
    packing: Packing
    """How its documents became packs."""

    @property
    def packs(self) -> Lanes:
        """The line of packs, as a single lane, whose one segment counts them."""
        one = np.zeros(1, np.int64)
        return Lanes(one, one, np.array([self.places.num_packs], np.int64), np.arange(2, dtype=np.int64))

    def finished_rows(self, segments: Iterable[tuple[int, int]]) -> NDArray[np.bool_]:
        """Return which rows of the line have been delivered completely, given the packs [start, stop) that were."""
        rows = self.places.rows
        is_left = self._packs_in(segments) < np.diff(self.places.first_packs)
        # A group may end within a row.
        stops = rows[1:] + (self.places.tokens[1:] > 0)
        edges = np.zeros(len(self.lengths) + 1, np.int64)
        np.add.at(edges, rows[:-1][is_left], 1)
        np.add.at(edges, stops[is_left], -1)
        found: NDArray[np.bool_] = np.cumsum(edges)[:-1] == 0
        return found

    def tokens_untouched(self, segments: Iterable[tuple[int, int]]) -> int:
        """Return the tokens that are packed into groups of which no pack was delivered, given the packs that were not.

        Args:
            segments: Packs [start, stop) that are left.
        """
        places, lengths = self.places, np.append(self.lengths, 0)
        before = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])
        # A separator is not a token of the document.
        edges = before[places.rows] + np.minimum(places.tokens, lengths[places.rows])
        is_untouched = self._packs_in(segments) == np.diff(places.first_packs)
        return int(np.diff(edges)[is_untouched].sum())

    def _packs_in(self, segments: Iterable[tuple[int, int]]) -> NDArray[np.int64]:
        """Return how many packs of each group are in some segments, shape (num_groups,)."""
        packs = np.zeros(self.places.num_packs, np.int64)
        for start, stop in segments:
            packs[start:stop] = 1
        before = np.concatenate([[0], np.cumsum(packs)])
        found: NDArray[np.int64] = np.diff(before[self.places.first_packs])
        return found

    def pieces(self, segments: Iterable[Segment]) -> list[PackPiece]:
        """Return the packs of some segments of the line of packs."""
        return [self.places.piece(each.start, each.stop) for each in segments]

    def documents(self, start: int, stop: int) -> PackedDocuments:
        """Return what packs [start, stop) of the line consist of, at least one; documents are rows of the line."""
        piece = self.places.piece(start, stop)
        found = self.packing.documents(piece, self.lengths[piece.start : piece.stop].astype(np.int64))
        return found._replace(document=found.document + piece.start)

    def lanes_of(self, pieces: Mapping[int, list[PackPiece]], num_lanes: int) -> Lanes:
        """Return the rows of which some lanes of packs are made, piece after piece; other lanes have none."""
        segments = [
            [part for piece in pieces.get(lane, []) for part in self.rows.segments(0, piece.start, piece.stop)]
            for lane in range(num_lanes)
        ]
        flat = [(each.window, each.start, each.stop) for lane in segments for each in lane]
        columns = np.array(flat, np.int64).reshape(-1, 3)
        starts = np.cumsum([0, *map(len, segments)], dtype=np.int64)
        return Lanes(columns[:, 0], columns[:, 1], columns[:, 2], starts)
