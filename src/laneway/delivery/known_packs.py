"""The packs of lanes whose documents have known lengths: lanes count packs, and the rows that make them are known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from laneway.core.pack_line import KnownPacks
from laneway.core.progress import LanePosition
from laneway.errors import NotReproducibleError
from laneway.stages.offsets import digest_of, encode_offset
from laneway.stages.packs import Chunks, fitted_runs, joined_documents
from laneway.stages.runs import Run
from laneway.stages.tokens import DocumentError, DocumentTooLongError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from laneway.core.pack_line import PackLine, PackPiece
    from laneway.core.plan import Plan
    from laneway.delivery.documents import DocumentReader
    from laneway.delivery.item_stages import Stages
    from laneway.reading.lengths import Lengths
    from laneway.stages.packs import Documents, PackOptions


def known_packs_of(lengths: Lengths | None, stages: Stages | None) -> KnownPacks | None:
    """Return what is known of the packs that stages make of rows of known lengths; None: there are none."""
    if lengths is None or stages is None or stages.pack is None:
        return None
    return KnownPacks(lengths.rows, stages.pack)


def check_fit(packs: KnownPacks, stages: Stages, name_of_row: Callable[[int], str]) -> None:
    """Check that each row is a document that can be packed.

    Args:
        packs: What is known of the packs.
        stages: What makes them.
        name_of_row: Returns the name of a row, counted over all files.

    Raises:
        ValueError: `flat_map` makes several documents of a row, or a document is longer than a pack may hold.
    """
    if stages.expansion.num_flat:
        message = (
            "count_lengths() counts a document for each row, but flat_map() makes several of it: use map(), or pass "
            "lengths=False to pack()"
        )
        raise ValueError(message)
    pack = stages.pack
    if pack is None or pack.overflow != "error" or not (packs.lengths > pack.length).any():
        return
    row = int(np.argmax(packs.lengths > pack.length))
    message = (
        f"{name_of_row(row)} has {packs.lengths[row]:,} tokens, but a pack has {pack.length:,}: use longer packs, or "
        "set overflow to 'split', 'truncate' or 'drop'"
    )
    raise DocumentTooLongError(message)


@dataclass(frozen=True, eq=False)
class KnownPackReader:
    """Makes the packs of lanes: each lane consists of pieces of the line of packs, and reads the rows of those."""

    line: PackLine
    """The line of packs."""
    pieces: Mapping[int, list[PackPiece]]
    """Lane -> its packs, in order."""
    pack: PackOptions
    """How documents are packed."""
    documents: DocumentReader
    """Reads those of the rows of all pieces of a lane, end to end."""

    @classmethod
    def of(
        cls, plan: Plan, pieces: Mapping[int, list[PackPiece]], stages: Stages, documents: DocumentReader
    ) -> KnownPackReader:
        """Return what makes the packs of the lanes of a plan, which count packs."""
        line, pack = plan.line, stages.pack
        if line is None or pack is None:
            message = "lanes count rows, not packs"
            raise ValueError(message)
        return cls(line, pieces, pack, documents)

    def runs(self, lane: int, num_taken: int) -> Iterator[Run]:
        """Yield the packs of a lane after the first ones. Positions count packs.

        Args:
            lane: The lane.
            num_taken: Number of packs to leave out.

        Raises:
            NotReproducibleError: A document has another length than is known.
        """
        for source, rest, stop in self._rest(lane, num_taken):
            number = stop - rest.num_packs
            for run in self._runs_of(source, rest):
                items = run.items[: stop - number]
                yield Run(items, counter(number), LanePosition(number + len(items)))
                number += len(items)
                if number == stop:
                    break

    def first_row(self, lane: int, num_taken: int) -> int:
        """Return the row of a lane with which `runs` begins to read."""
        return next((rest.start + source.shift for source, rest, _ in self._rest(lane, num_taken)), 0)

    def _rest(self, lane: int, num_taken: int) -> Iterator[tuple[_Rows, PackPiece, int]]:
        """Yield the rows of each piece, its packs after `num_taken` of the lane, and the lane's packs up to its end."""
        row, stop = 0, 0
        for piece in self.pieces[lane]:
            number, stop = stop, stop + piece.num_packs
            if stop > num_taken:
                first = piece.first + max(num_taken - number, 0)
                rest = self.line.places.piece(first, piece.first + piece.num_packs)
                # From a row of the line to one of the lane.
                yield _Rows(lane, row - piece.start), rest, stop
            row += piece.stop - piece.start

    def _runs_of(self, source: _Rows, piece: PackPiece) -> Iterator[Run]:
        """Yield the packs of a piece, and perhaps some of those that follow it."""
        pack, start, stop = self.pack, piece.start, piece.stop
        if pack.strategy == "chunk":
            chunks, num_tokens = Chunks(pack), piece.tokens_before
            for documents in self._documents(source, start, stop):
                yield chunks.cut(documents.rest(num_tokens))
                num_tokens = 0
            yield chunks.finish(stop)
            return
        num_packs = piece.packs_before
        for first in range(start, stop, pack.group_rows):
            last = min(first + pack.group_rows, stop)
            documents = joined_documents([*self._documents(source, first, last)])
            check = digest_of(documents.tokens.lengths)
            position = LanePosition(first, encode_offset(num_packs, check) if num_packs else 0)
            try:
                yield from fitted_runs(pack, documents, position)
            except DocumentError as error:
                self.documents.name_row(error, source.lane, documents.rows)
                raise
            num_packs = 0

    def _documents(self, source: _Rows, start: int, stop: int) -> Iterator[Documents]:
        """Yield the documents of rows [start, stop) of the line, after comparing their lengths with those known."""
        pack, documents, lane, shift = self.pack, self.documents, source.lane, source.shift
        separator = pack.strategy == "chunk" and pack.separator is not None
        for found in documents.read(pack, lane, start + shift, stop + shift):
            known = self.line.lengths[start : found.stop - shift]
            is_filled = found.tokens.lengths > 0
            rows, lengths = found.rows[is_filled] - (start + shift), found.tokens.lengths[is_filled] - separator
            now = np.bincount(rows, lengths, len(known)).astype(np.int64)
            differing = np.flatnonzero((now != known) | (np.bincount(rows, minlength=len(known)) > 1))
            if len(differing):
                row = int(differing[0])
                what = "in several documents" if now[row] == known[row] else "now"
                message = (
                    f"{documents.name_of_row(lane, start + shift + row)} had {known[row]:,} tokens when lengths were "
                    f"counted, and has {now[row]:,} {what}: the functions before pack() must return the same for the "
                    "same row as then; if they have changed, give count_lengths() another version="
                )
                raise NotReproducibleError(message)
            yield found
            start = found.stop - shift


class _Rows(NamedTuple):
    """Where the rows of a piece are."""

    lane: int
    shift: int
    """Row of the lane, less the row of the line that it is."""


def counter(num_before: int) -> Callable[[int], LanePosition]:
    """Return what gives the position after each of some packs of a lane, given the number of those before."""
    return lambda index: LanePosition(num_before + index + 1)
