"""The definition of a mixture: everything a worker needs to read its share of it, as one value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from torch.utils.data import default_collate

from laneway.core.mixture_assignment import Mixed, following_cut, resolve_mixture
from laneway.core.mixture_identity import MixtureIdentity
from laneway.core.mixture_progress import read_mixture
from laneway.core.mixtures import MixturePlan, Source
from laneway.core.pack_line import stages_of_known_packs
from laneway.core.plan import Settings
from laneway.core.progress import Progress, rows_in_mixture
from laneway.delivery.dataset_definition import packed
from laneway.delivery.definition import Definition
from laneway.delivery.item_weights import item_weighting
from laneway.delivery.mixture_packs import MixturePackReader, SourceRows
from laneway.delivery.source_opening import SourceOpener
from laneway.reading.mixture_reader import MixtureReader

if TYPE_CHECKING:
    from collections.abc import Mapping

    from laneway.convert.columns import Output
    from laneway.core.assignment import Assignment
    from laneway.core.options import LaneOptions
    from laneway.core.plan import Plan
    from laneway.core.schema import SavedState
    from laneway.core.turns import WorkerPlace
    from laneway.core.weighting import Weighting
    from laneway.delivery.dataset_definition import DatasetDefinition
    from laneway.delivery.delivered_columns import DeliveredColumns
    from laneway.delivery.item_maker import ItemMaker
    from laneway.delivery.item_stages import Stages
    from laneway.delivery.item_weights import WeightsOf
    from laneway.delivery.lane_items import PackReader
    from laneway.delivery.schedule import EpochSchedule
    from laneway.metering import Meter


_MIN_EMPTY_ROWS = 1_024
"""Rows of a lane that make no items until a mixture without an end fails, however few rows its sources have."""


@dataclass(frozen=True, eq=False, kw_only=True)
class MixtureDefinition(Definition):
    """The sources, weights and conversion of a mixture."""

    sources: Mapping[str, DatasetDefinition]
    """Name -> source. Their options and places have no effect."""
    given: Weighting
    """The weights as a user gives them, and the end."""
    columns: DeliveredColumns
    """The columns that are delivered, which all sources have."""
    seed: int = 0
    """Seed of what workers draw."""
    drop_last: bool = False
    """Whether the last global batch is dropped if it is incomplete."""
    epoch_batches: int | None = None
    """Of a mixture without an end: batches of each rank that make an epoch; None: there are no epochs."""
    weights_of: WeightsOf = "rows"
    """What a user gives weights of."""

    def __post_init__(self) -> None:
        """Check that nothing counts rows if lanes count packs.

        Raises:
            ValueError: Something does.
        """
        if not self.packs_are_known:
            return
        stop, phases = self.given.stop, self.given.phases
        if isinstance(stop, int):
            problem, way_out = f"stop={stop}", "give epoch_batches= in its place"
        elif len(phases) > 1:
            problem, way_out = (
                f"a change of weights at row {phases[1].start:,}",
                "call set_weights() of the loader then",
            )
        else:
            return
        message = (
            f"{problem} counts rows of the mixture, but with known lengths, packs are mixed that consist of documents "
            f"of one source each: {way_out}, or pass lengths=False to pack()"
        )
        raise ValueError(message)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out derived values."""
        return {name: value for name, value in vars(self).items() if name not in {"mixed", "identity", "weighting"}}

    @property
    def packs_are_known(self) -> bool:
        """Whether each source has packs of documents of known lengths: lanes count these."""
        return all(each.identity.packs is not None for each in self.sources.values())

    @cached_property
    def weighting(self) -> Weighting:
        """The weights of what is mixed, rows or packs, and the end."""
        return item_weighting(self.given, self.weights_of, self.sources)

    def check_weighting(self) -> None:
        """Check that there are weights of what is mixed.

        Raises:
            ValueError: A source has no tokens, or their number is not known; or a weight is too small.
        """
        _ = self.weighting

    @cached_property
    def mixed(self) -> Mixed:
        """What decides the rows."""
        sources = {
            name: Source(each.identity, tuple(old.identity for old in each.former))
            for name, each in self.sources.items()
        }
        stages = None if self.packs_are_known else self.stages
        stage_rows = None if stages is None else stages.group_rows
        drop_last = self.drop_last and stages is None
        return Mixed(
            sources,
            self.weighting,
            self.lane_options,
            drop_last,
            stage_rows,
            self.epoch_batches,
            counts_tokens=stages is not None and stages.pack is not None,
        )

    @cached_property
    def identity(self) -> MixtureIdentity:
        """What the states belong to."""
        text = None if self.stages is None else self.stages.text
        settings = Settings(
            seed=self.seed,
            shuffle=False,
            shard_bytes=0,
            shard_rows=None,
            window_bytes=0,
            remainder=None,
            drop_last=self.drop_last,
            stages=stages_of_known_packs(text) if text is not None and self.packs_are_known else text,
            epoch_batches=self.epoch_batches,
        )
        return MixtureIdentity(self.mixed.sources, settings)

    def common_arguments(self) -> dict[str, str]:
        """Return arguments that must be equal on all ranks and are not in states: name -> value, as errors show it."""
        return {
            "weights_of": self.weights_of,
            "stop": f"{self.given.stop!r}",
            **{
                f"weights[{name!r}]" + f" from row {phase.start:,} on" * (phase.start > 0): f"{weight!r}"
                for phase in self.given.phases
                for name, weight in phase.weights.items()
            },
        }

    @property
    def is_endless(self) -> bool:
        """Whether there are always further rows, so that each pass goes on where the last one stopped."""
        return self.given.stop is None

    @property
    def has_epochs(self) -> bool:
        """Whether passes end, if only after a number of batches."""
        return not self.is_endless or self.epoch_batches is not None

    @property
    def max_empty_rows(self) -> int | None:
        """How many rows of a lane in a row may make no items; None: any number, as the lane has an end."""
        num_rows = sum(each.identity.selected.num_rows for each in self.sources.values())
        return max(4 * num_rows, _MIN_EMPTY_ROWS) if self.is_endless else None

    @property
    def has_functions(self) -> bool:
        """Whether functions are called on rows."""
        return bool(self.transform) or any(each.transform for each in self.sources.values())

    @property
    def row_bytes(self) -> int:
        """Estimated size of a row in memory, in bytes, at least 1: of the source with the largest rows."""
        return max(each.row_bytes for each in self.sources.values())

    def resolve(self, progress: Progress, place: WorkerPlace) -> Assignment:
        """Return the assignment of the worker at `place`; see `laneway.core.mixture_assignment.resolve_mixture`.

        Raises:
            ValueError: Ranks would deliver different numbers of batches, or see `check_turns`.
        """
        if not self.identity.counts_items and place.world_size > 1 and not self.is_endless:
            message = (
                f"how many items are made of the rows depends on the data, so the {place.world_size} ranks would "
                f"deliver different numbers of batches until stop={self.given.stop!r}: in the place of stop (or "
                "of the epochs of repeat()), give epoch_batches=, the batches of each rank that make an epoch; or "
                "neither, and count the steps; if rows are packed one by one, count_lengths() of each source or "
                "pack(lengths=) makes the numbers equal"
            )
            raise ValueError(message)
        if self.epoch_batches is not None:
            self._check_has_batches()
        self.check_turns()
        return resolve_mixture(self.mixed, progress, place)

    def plan_ahead(self, assignment: Assignment) -> None:
        """Plan the epoch that each source is in, so that workers that are forked find it."""
        plan = MixturePlan(self.mixed.sources, assignment.progress)
        counts = plan.mixings[-1].counts(assignment.cut.rows())
        for index, source in enumerate(assignment.progress.starts[-1].sources):
            if source.weight:
                first = int(counts[index, 0])
                (rows,) = plan.lanes(plan.current, source.name).ranges(0, first, first + 1)
                plan.plan(plan.current, source.name, rows.epoch)

    def _check_has_batches(self) -> None:
        """Check that what epoch_batches counts are batches, and that all ranks come to their number together.

        Raises:
            ValueError: They are not, or don't.
        """
        if self.options.batch_size is None:
            message = f"epoch_batches={self.epoch_batches} counts batches, but single rows are delivered: call batch()"
            raise ValueError(message)
        if not self.identity.counts_items and len(self.given.phases) > 1:
            message = (
                "epoch_batches= counts the batches of each rank, and with flat_map() or pack(), ranks come to a change "
                "of the weights after different numbers of batches: give the mixture one set of weights"
            )
            raise ValueError(message)

    def following(self, assignment: Assignment) -> Assignment | None:
        """Return what the worker reads after an assignment has ended, in the same epoch; None: nothing."""
        return None if assignment.is_last else self.resolve(following_cut(assignment), assignment.place)

    def is_fresh(self, assignment: Assignment) -> bool:
        """Return whether a pass starts here, in the cut that every worker derives from the epoch number alone."""
        progress = assignment.progress
        if progress.earlier or rows_in_mixture(progress):
            return False
        return progress == self.resolve(Progress(progress.epoch), assignment.place).progress

    def read_progress(self, saved: SavedState, place: WorkerPlace, *, is_worker: bool) -> Progress:
        """Return the progress in a state that belongs to this mixture; see `laneway.core.mixture_progress`."""
        return read_mixture(saved, self.identity, place, is_worker=is_worker)

    def remarks(self, saved: SavedState, progress: Progress) -> list[str]:
        """Return with which other weights, sources and files the mixture goes on, if with others."""
        if not progress.starts or not saved.is_global:
            return []
        rows = rows_in_mixture(progress)
        weights, before = self.weighting.weights_at(rows), progress.starts[-1].sources
        found = []
        if {source.name: source.weight for source in before} != dict(weights):
            old = ", ".join(f"{source.name} {source.weight:g}" for source in before)
            new = ", ".join(f"{name} {weight:g}" for name, weight in weights.items())
            found.append(f"after {rows:,} rows, the mixture continues with {new}, not with {old} as in its checkpoint")
        found += [
            f"after {rows:,} rows, source {source.name!r} of the mixture has more files from its next epoch on"
            for source in before
            if source.name in self.sources and source.files != self.mixed.sources[source.name].files
        ]
        return found

    def num_items(self, place: WorkerPlace, epoch: int) -> int | None:
        """Return the number of batches, or rows, that a rank delivers in a whole pass; None: it doesn't end."""
        stop = self.given.stop
        if stop is None or not self.identity.counts_items:
            return self.epoch_batches
        if not isinstance(stop, int):
            return self._num_items_left(self.resolve(Progress(epoch), place))
        return self.options.num_items(self.mixed.num_rows or 0, place, self.identity.settings)

    def _num_items_left(self, assignment: Assignment) -> int:
        """Return the number of batches or rows that a rank has yet to deliver in a cut and in those after it."""
        num_left = 0
        following: Assignment | None = assignment
        while following is not None:
            num_left += following.num_items_left(self.options.batch_size)
            following = self.following(following)
        return num_left

    def num_received(self, assignment: Assignment) -> int:
        """Return the number of batches or rows of the pass that the rank of an assignment has delivered."""
        if self.epoch_batches is not None:
            return self.epoch_batches - assignment.num_items_left(self.options.batch_size)
        if not self.identity.counts_items:
            return assignment.num_batches_taken
        before = assignment.progress.starts[-1].rows_before // assignment.place.world_size
        rows = int(assignment.cut.rows()[assignment.of_rank().own_lanes].sum())
        return -(-(before + rows) // (self.options.batch_size or 1))

    def num_left(self, assignment: Assignment) -> int | None:
        """Return the number of batches or rows that the rank of an assignment has yet to deliver; None: no end."""
        if self.epoch_batches is not None:
            return assignment.num_items_left(self.options.batch_size)
        if self.is_endless or not self.identity.counts_items:
            return None
        return self._num_items_left(assignment)

    def batched(self, options: LaneOptions, output: Output, *, drop_last: bool) -> Self:
        """Return the same rows in batches; see `Definition.batched`."""
        changed = replace(self, options=options, drop_last=drop_last)
        if self.stages is not None:
            return changed
        if self.has_functions:
            return replace(changed, collate_fn=default_collate)
        return replace(changed, columns=self.columns.with_output(output))

    def warnings_at_start(self, schedule: EpochSchedule, place: WorkerPlace) -> list[str]:
        """Return what to warn of when the worker at `place` starts to read the next pass of `schedule`."""
        return [*filter(None, [schedule.warning_at_start(place)])]

    def with_weighting(self, given: Weighting) -> Self:
        """Return the same mixture with other weights, as a user gives them."""
        return replace(self, given=given)

    def with_stages(self, stages: Stages, *, counts_packs: bool = True) -> Self:
        """Return the definition of what stages make of its rows; see `Definition.with_stages`.

        If the lengths of the documents of all sources are known, packs of each source are mixed, and counted.
        """
        is_known = counts_packs and all(each.has_lengths for each in self.sources.values())
        if stages.pack is None or not is_known:
            return super().with_stages(stages)
        found = replace(self, stages=stages, sources=packed(self.sources, stages))
        found.check_weighting()
        return found

    def open_items(self, assignment: Assignment, meter: Meter) -> ItemMaker:
        """Open what reads and builds the items of an assignment, as measured by a meter."""
        return self.open_packs(assignment, meter)[0]

    def open_packs(self, assignment: Assignment, meter: Meter) -> tuple[ItemMaker, PackReader | None]:
        """Open what `open_items` does, and what makes the packs of the lanes, if these count packs."""
        opener = SourceOpener(self, self.sources, assignment.progress.epoch, meter)
        plan = MixturePlan(self.mixed.sources, assignment.progress)
        if not self.packs_are_known or self.stages is None:
            lanes = MixtureReader(plan, assignment.ends, opener.common, opener.lanes, opener.threads, meter=meter)
            return opener.items(lanes), None

        def open_source(name: str, of_epoch: Plan) -> SourceRows:
            of_source = opener.lanes(name, of_epoch)
            return SourceRows(of_source, opener.items(of_source))

        packs = MixturePackReader(plan, assignment, self.stages, open_source, opener.threads)
        return opener.items(packs), packs
