"""The definition of a dataset: everything a worker needs to read its share of an epoch, as one value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
from torch.utils.data import default_collate

from laneway.core.assignment import is_fresh, resolve_cut
from laneway.core.gaps import check_turns, parse_gaps, text_of
from laneway.core.pack_line import stages_of_known_packs
from laneway.core.plan import Identity
from laneway.core.state import num_added_files, read_progress
from laneway.delivery.context import Contexts
from laneway.delivery.definition import Definition
from laneway.delivery.documents import DocumentReader
from laneway.delivery.item_maker import ItemMaker
from laneway.delivery.item_stages import Stages
from laneway.delivery.known_packs import KnownPackReader, check_fit, known_packs_of
from laneway.reading.lane_reader import LaneReader
from laneway.reading.origin import HIDDEN
from laneway.reading.selected import open_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from laneway.convert.batches import BatchConverter
    from laneway.convert.columns import Output
    from laneway.core.assignment import Assignment
    from laneway.core.gaps import EpochGap
    from laneway.core.options import LaneOptions
    from laneway.core.pack_line import PackPiece
    from laneway.core.plan import Plan
    from laneway.core.progress import Progress
    from laneway.core.schema import SavedState
    from laneway.core.turns import WorkerPlace
    from laneway.delivery.delivered_columns import DeliveredColumns
    from laneway.delivery.lane_items import PackReader
    from laneway.delivery.schedule import EpochSchedule
    from laneway.manifest import Manifest
    from laneway.metering import Meter
    from laneway.reading.lengths import Lengths
    from laneway.reading.selecting import RowSelection
    from laneway.reading.threads import Caller
    from laneway.storage.filesystem import Storage


@dataclass(frozen=True, eq=False, kw_only=True)
class DatasetDefinition(Definition):
    """The files, order and conversion of a dataset, which don't change while it is read."""

    identity: Identity
    """The files, and the settings that determine the order of their rows."""
    manifest: Manifest
    """The data files and their metadata."""
    storage: Storage
    """Storage of the data files."""
    columns: DeliveredColumns
    """The columns that are delivered."""
    prefetch_windows: int
    """Windows of each lane that are read ahead."""
    selection: RowSelection | None = None
    """The rows that belong to the dataset; None: all."""
    lengths: Lengths | None = None
    """Tokens of each row; None: unknown. If there are packs, they are counted by it."""
    former: tuple[DatasetDefinition, ...] = ()
    """Its definitions before files were added, oldest first; only mixtures finish what began with them."""

    def __post_init__(self) -> None:
        """Check that no rank may deliver fewer rows than the others, unless they may anyway.

        Raises:
            ValueError: One may.
        """
        errors = self.transform.errors
        if self.stages is None and errors is not None and errors.skips and self.place.world_size > 1:
            remainder = self.identity.settings.remainder
            if remainder != "keep":
                message = (
                    f'on_error="skip" would let the {self.place.world_size} ranks deliver different numbers of rows: '
                    'use "mask", or remainder="keep" if the training loop can end at another step on each rank'
                )
                raise ValueError(message)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the file table of the identity: the manifest has it, and may travel as a file."""
        identity = self.identity
        return {**vars(self), "identity": (identity.settings, identity.counted_packs())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the identity."""
        rows = None if state["selection"] is None else state["selection"].rows
        packs = known_packs_of(state["lengths"], state["stages"])
        settings, counted = state["identity"]
        identity = Identity(state["manifest"].files, settings, rows, packs).with_counted_packs(counted)
        vars(self).update(state, identity=identity)

    def with_selection(self, selection: RowSelection) -> Self:
        """Return the definition of the rows of a selection."""
        settings = replace(self.identity.settings, selection=selection.rows.text)
        return replace(self, identity=Identity(self.manifest.files, settings, selection.rows), selection=selection)

    def with_gaps(self, gaps: Iterable[EpochGap]) -> Self:
        """Return the definition of the same rows, without some of the order of some epochs."""
        settings = replace(self.identity.settings, without=text_of(gaps))
        return replace(self, identity=replace(self.identity, settings=settings))

    @property
    def has_lengths(self) -> bool:
        """Whether it is known how many tokens each row has, also of what it was before files were added."""
        return all(each.lengths is not None for each in (self, *self.former))

    def without_stages(self) -> Self:
        """Return the definition of the rows of which stages make items."""
        identity = replace(self.identity, settings=replace(self.identity.settings, stages=None), packs=None)
        return replace(self, stages=None, identity=identity)

    def of(self, identity: Identity) -> DatasetDefinition:
        """Return the definition with these files and settings: this one, or one before files were added."""
        return next((each for each in self.former if each.identity is identity), self)

    def with_stages(self, stages: Stages, *, counts_packs: bool = True) -> Self:
        """Return the definition of what stages make of its rows; see `Definition.with_stages`.

        Raises:
            ValueError: Other arguments don't go together with stages.
        """
        if not counts_packs and self.lengths is not None:
            return replace(self, lengths=None).with_stages(stages)
        settings, packs = self.identity.settings, known_packs_of(self.lengths, stages)
        if packs is not None and self.lengths is not None:
            check_fit(packs, stages, self.name_of_row)
            settings = replace(settings, stages=stages_of_known_packs(stages.text, self.lengths.digest))
            return replace(self, stages=stages, identity=replace(self.identity, settings=settings, packs=packs))
        if settings.remainder not in {None, "keep"}:
            message = (
                f'remainder="{settings.remainder}" evens out rows, but how many items are made of these depends on '
                'the data: use "keep"'
            )
            raise ValueError(message)
        if settings.without is not None:
            message = (
                "without() leaves out rows by their number in an epoch, and how far a step with stages gets depends on "
                "the data: take rows out with filter()"
            )
            raise ValueError(message)
        identity = replace(self.identity, settings=replace(settings, stages=stages.text))
        return replace(super().with_stages(stages), identity=identity)

    def name_of_row(self, index: int) -> str:
        """Return the file and number of a row of the dataset, counted in the order of the files."""
        files = self.identity.selected
        file_index = int(np.searchsorted(files.row_starts, index, side="right")) - 1
        rows = open_rows(self.manifest, self.storage, pa.schema([]), selection=self.selection)
        row = rows.row_in_file(file_index, index - int(files.row_starts[file_index]))
        rows.close()
        return f"row {row:,} of {files.paths[file_index]}"

    @property
    def has_functions(self) -> bool:
        """Whether functions are called on rows."""
        return bool(self.transform)

    @property
    def row_bytes(self) -> int:
        """Estimated size of a row in memory, in bytes, at least 1."""
        files = self.manifest.files
        in_files = int(files.block_memory_bytes.sum()) // max(1, int(files.block_rows.sum()))
        return max(1, self.columns.row_bytes(in_files))

    def num_items(self, place: WorkerPlace, epoch: int) -> int | None:
        """Return the number of batches, or rows if there are no batches, that a rank delivers in a whole epoch.

        None: it depends on what stages make of the rows.
        """
        if not self.identity.counts_items:
            return None
        return self.options.num_items(self.identity.num_items(epoch), place, self.identity.settings)

    def batched(self, options: LaneOptions, output: Output, *, drop_last: bool) -> Self:
        """Return the same rows in batches; see `Definition.batched`."""
        settings = replace(self.identity.settings, drop_last=drop_last)
        changed = replace(self, options=options, identity=replace(self.identity, settings=settings))
        if self.stages is not None:
            return changed
        if self.transform:
            return replace(changed, collate_fn=default_collate)
        return replace(changed, columns=self.columns.with_output(output))

    def num_received(self, assignment: Assignment) -> int:
        """Return the number of batches or rows of the epoch that the rank of an assignment has delivered."""
        num_items = self.num_items(assignment.place, assignment.progress.epoch)
        if num_items is None:
            return assignment.num_batches_taken
        return max(0, num_items - assignment.num_items_left(self.options.batch_size))

    def warnings_at_start(self, schedule: EpochSchedule, place: WorkerPlace) -> list[str]:
        """Return what to warn of when the worker at `place` starts to read the next pass of `schedule`."""
        of_options = self.options.warnings_for(self.identity.selected.num_rows, place, self.identity.settings)
        return [*of_options, *filter(None, [schedule.warning_at_start(place)])]

    def resolve(self, progress: Progress, place: WorkerPlace) -> Assignment:
        """Return the assignment of the worker at `place`; see `laneway.core.assignment.resolve_cut`.

        Raises:
            ValueError: Ranks would deliver different numbers of batches, and the user has not said that they may; rows
                that are taken out of an epoch that has not begun are no whole turns; or see `check_turns`.
        """
        if not self.identity.counts_items and place.world_size > 1 and self.identity.settings.remainder is None:
            message = (
                f"how many items are made of the rows depends on the data, so the {place.world_size} ranks would "
                "deliver different numbers of batches: call repeat() for a stream without an end, or "
                "repeat(epoch_batches=n) for epochs of n batches on each rank; if rows are packed one by one, "
                "count_lengths() or pack(lengths=) makes the numbers equal; or pass "
                'remainder="keep" if the training loop can end at another step on each rank'
            )
            raise ValueError(message)
        self.check_turns()
        self._check_gaps_ahead(progress)
        return resolve_cut(self.identity, progress, place, self.lane_options)

    def is_fresh(self, assignment: Assignment) -> bool:
        """Return whether a pass starts here, in the cut that every worker derives from the epoch number alone."""
        return is_fresh(self.identity, assignment, self.lane_options)

    def read_progress(self, saved: SavedState, place: WorkerPlace, *, is_worker: bool) -> Progress:
        """Return the progress in a state that belongs to this dataset; see `laneway.core.state.read_progress`.

        Raises:
            ValueError: Rows that are taken out of a later epoch are no whole turns.
        """
        progress = read_progress(saved, self.identity, place, is_worker=is_worker)
        self._check_gaps_ahead(progress)
        return progress

    def _check_gaps_ahead(self, progress: Progress) -> None:
        """Check the rows that are taken out of epochs that have not begun: hours may pass until they do."""
        begun = progress.epoch if progress.cut is None and not progress.earlier else progress.epoch + 1
        ahead = [gap for gap in parse_gaps(self.identity.settings.without) if gap.epoch >= begun]
        check_turns(ahead, self.options.default_turn_rows, self.identity.selected.num_rows)

    def remarks(self, saved: SavedState, progress: Progress) -> list[str]:
        """Return how many files were added since a complete state was saved, if some were."""
        num_added = num_added_files(saved, self.identity)
        if not num_added:
            return []
        return [
            f"{num_added} files were added since the checkpoint at the end of epoch {progress.epoch} was saved",
        ]

    def open_items(self, assignment: Assignment, meter: Meter) -> ItemMaker:
        """Open what reads and builds the items of an assignment, as measured by a meter."""
        takes_context = self.takes_context
        plan, seed = self.identity.plan(assignment.progress), self.identity.settings.seed
        plan = plan.of_rows(self._pieces(plan, assignment))
        columns = self.columns_to_read(self.columns)
        converter = columns.with_hidden(HIDDEN if takes_context else None)
        lanes = self.open_lanes(plan, columns, converter, frozenset(HIDDEN.names if takes_context else ()), meter)
        contexts = Contexts(self.manifest.files.paths, seed=seed, epoch=plan.epoch) if takes_context else None
        return ItemMaker(lanes, converter, self.transform, contexts, self.collate_fn, meter=meter)

    def open_packs(self, assignment: Assignment, meter: Meter) -> tuple[ItemMaker, PackReader | None]:
        """Open what `open_items` does, and what makes the packs of the lanes, if these count packs."""
        rows, plan = self.open_items(assignment, meter), self.identity.plan(assignment.progress)
        if plan.line is None or self.stages is None:
            return rows, None
        documents = DocumentReader(rows, self.stages.expansion)
        return rows, KnownPackReader.of(plan, self._pieces(plan, assignment), self.stages, documents)

    @staticmethod
    def _pieces(plan: Plan, assignment: Assignment) -> dict[int, list[PackPiece]]:
        return {lane: plan.pieces(lane, int(assignment.ends[lane])) for lane in assignment.own_lanes}

    def open_lanes(
        self,
        plan: Plan,
        columns: DeliveredColumns,
        converter: BatchConverter,
        hidden: frozenset[str],
        meter: Meter,
        *,
        source_index: int = 0,
        threads: Caller | None = None,
    ) -> LaneReader:
        """Open what reads the lanes of an epoch.

        Args:
            plan: The lanes.
            columns: The columns that are read.
            converter: Converts the rows, with the hidden columns.
            hidden: Names of the hidden columns that come too, from which contexts are made.
            meter: Measures what is read.
            source_index: In a mixture, the index of this source.
            threads: Those that read; None: threads of its own.
        """
        rows = columns.open(
            self.manifest,
            self.storage,
            converter.schema,
            epoch=plan.epoch,
            selection=self.selection,
            hidden=hidden,
            source_index=source_index,
        )
        return LaneReader(plan, rows, converter.vectorized, self.prefetch_windows, meter, threads=threads)


def packed(sources: Mapping[str, DatasetDefinition], stages: Stages) -> dict[str, DatasetDefinition]:
    """Return the sources of a mixture as what their documents of known lengths are packed to.

    Args:
        sources: Name -> source, whose lengths are known.
        stages: What is made of the rows of the mixture.

    Raises:
        ValueError: The lengths of a source are not known, or its rows can't be packed.
    """
    own = Stages(stages.expansion, stages.pack)
    for name, source in sources.items():
        if not source.has_lengths:
            message = (
                f"the packs of this mixture are counted by the lengths of documents, and those of source {name!r} are "
                "not known: call its count_lengths() before, also of the dataset that it extends"
            )
            raise ValueError(message)
    return {
        name: replace(each.with_stages(own), former=tuple(old.with_stages(own) for old in each.former))
        for name, each in sources.items()
    }
