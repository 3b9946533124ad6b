"""Mixture: the rows of several datasets by weight, resumed exactly where a checkpoint left off."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, get_args

from laneway.arguments import check_choice, check_count, check_seed
from laneway.copies import ChangeableDataset
from laneway.core.differences import shorten
from laneway.core.lanes import MAX_LANES
from laneway.core.options import LaneOptions
from laneway.core.turns import WorkerPlace
from laneway.core.weighting import shares_of
from laneway.delivery.dataset_definition import packed
from laneway.delivery.item_weights import WeightsOf
from laneway.delivery.mixture_definition import MixtureDefinition
from laneway.delivery.schedule import EpochSchedule
from laneway.delivery.transforms import Transforms
from laneway.distributed import data_parallel_rank
from laneway.errors import SchemaMismatchError
from laneway.mixture_weights import check_weighting
from laneway.plans.planners import MixturePlanner
from laneway.staged import StageableDataset

if TYPE_CHECKING:
    import pyarrow as pa

    from laneway.core.weighting import Stop
    from laneway.delivery.dataset_definition import DatasetDefinition
    from laneway.delivery.delivered_columns import DeliveredColumns
    from laneway.delivery.row_errors import RowErrors
    from laneway.mixture_weights import Weights


class Mixture(StageableDataset):
    """The rows of several datasets, mixed by weight, as an iterable dataset that can stop anywhere and resume there.

    Which source a row comes from follows from the weights alone, and is never drawn: after any number of rows, each
    lane has its share of each source, within two rows. A source that has delivered all its rows begins its next epoch,
    so each of its rows comes exactly once in each of its epochs, whatever the weights, ranks and workers, and whenever
    they change.

    Without `stop`, a mixture never ends: each pass continues where the last one stopped. With it, each pass is another
    epoch, as for a StatefulShardedDataset.

    A worker holds a window of each source for each lane that it reads, so sources of a mixture of many should have a
    small `window_bytes`.

    Args:
        sources: Name -> dataset, a StatefulShardedDataset without batches. Each keeps its files, filters, functions and
            shuffle. After their own functions, all must deliver the same columns; those without functions, of the same
            types. Their `lanes`, `turn_rows`, `rank` and `world_size` have no effect.
        weights: Name -> weight of each source, a number >= 0, in any unit: 7 to 3 is 0.7 to 0.3. Or a schedule: a
            sequence of (rows, weights), of which the first starts at row 0, and each later one after so many rows of
            the whole job, at the next global batch.
        seed: Any int in [0, 2**63), by which DataLoader workers seed their random numbers. Which row comes when doesn't
            depend on it, but on the seeds of the sources.
        stop: When a pass ends: after a number of rows of the whole job; "first_exhausted": once a source has delivered
            all its rows; "all_exhausted": once all of them have; None: never. All ranks deliver equally many batches;
            with several ranks, "first_exhausted" may leave out, and "all_exhausted" repeat, a few rows of each lane.
        epoch_batches: Number of batches of each rank after which a pass ends, and an epoch; the next pass is the next
            epoch, and continues there. Not with `stop`. None: passes end as `stop` says.
        weights_of: What the weights are shares of: "rows"; or "tokens", for which `count_lengths` of each source was
            called before: the more tokens its rows have, the fewer of them are read. Over whole epochs of the sources,
            tokens have the shares that are asked for; in between, as far as the rows of a source are equally long.
        lanes: Number of independent streams; see StatefulShardedDataset.
        turn_rows: Rows taken from a lane before it is the next lane's turn; see StatefulShardedDataset.
        rank: Data-parallel rank, in [0, world_size). None: that of the sources, which must agree.
        world_size: Number of data-parallel ranks.

    Raises:
        ValueError: An argument is out of its range, sources and weights have other names, or a source with a weight has
            no rows.
        TypeError: An argument has the wrong type.
        SchemaMismatchError: Sources deliver different columns; the message names source and column.

    Examples:
        >>> import pyarrow as pa, pyarrow.parquet as pq, tempfile
        >>> from laneway import StatefulShardedDataset
        >>> folder = tempfile.mkdtemp()
        >>> for name, start in (("web", 0), ("code", 100)):
        ...     pq.write_table(pa.table({"x": range(start, start + 50)}), f"{folder}/{name}.parquet")
        >>> sources = {name: StatefulShardedDataset(f"{folder}/{name}.parquet") for name in ("web", "code")}
        >>> mixture = Mixture(sources, weights={"web": 3, "code": 1}).batch(8)
        >>> batches = iter(mixture)
        >>> next(batches)["x"]
        tensor([  0,   1,   2, 100,   3,   4,   5, 101])
        >>> state = mixture.state_dict()
        >>> resumed = Mixture(sources, weights={"web": 3, "code": 1}).batch(8)
        >>> resumed.load_state_dict(state)
        >>> next(iter(resumed))["x"].equal(next(batches)["x"])
        True
    """

    def __init__(
        self,
        sources: Mapping[str, ChangeableDataset],
        weights: Weights | Sequence[tuple[int, Weights]],
        *,
        seed: int = 0,
        stop: int | Stop | None = None,
        epoch_batches: int | None = None,
        weights_of: WeightsOf = "rows",
        lanes: int | None = None,
        turn_rows: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        check_choice("weights_of", weights_of, get_args(WeightsOf))
        definitions = _definitions_of(sources)
        if epoch_batches is not None and stop is not None:
            message = f"epoch_batches={epoch_batches} ends each pass, and so would stop={stop!r}: give one of them"
            raise ValueError(message)
        self._arguments: dict[str, Any] = {
            "seed": seed,
            "stop": stop,
            "epoch_batches": epoch_batches,
            "weights_of": weights_of,
            "lanes": lanes,
            "turn_rows": turn_rows,
        }
        self._sources = dict(sources)
        self._asks_rank = rank is None and world_size is None and all(each._asks_rank for each in sources.values())  # noqa: SLF001 - of the same base
        place = _common_place(definitions) if rank is None and world_size is None else None
        place = place or WorkerPlace(*data_parallel_rank(rank, world_size))
        self._given_output = _common_output(sources)
        self.definition: MixtureDefinition = MixtureDefinition(
            options=LaneOptions(
                check_count("lanes", lanes, MAX_LANES), check_count("turn_rows", turn_rows), batch_size=None
            ),
            place=place,
            transform=Transforms(errors=_common_errors(definitions)),
            sources=definitions,
            given=check_weighting(weights, definitions, stop),
            weights_of=weights_of,
            columns=_common_columns(definitions),
            seed=check_seed(seed),
            epoch_batches=check_count("epoch_batches", epoch_batches),
        )
        """The sources, weights and conversion."""
        self.definition.check_weighting()
        self.schedule = EpochSchedule(is_endless=self.definition.is_endless, has_epochs=self.definition.has_epochs)
        """The epoch of the next pass, and the progress of the last one."""

    @property
    def weights(self) -> dict[str, float]:
        """Name -> weight of each source, with which the mixture begins."""
        return dict(self.definition.given.weights_at(0))

    @property
    def schema(self) -> pa.Schema:
        """Names and Arrow types of the columns that sources deliver, before a function of the mixture is called.

        A source with functions of its own may have other columns before these. If all have some, they are those of the
        first source, before its functions.
        """
        return self.definition.columns.schema

    def add(self, sources: Mapping[str, ChangeableDataset], weights: Weights | Sequence[tuple[int, Weights]]) -> Self:
        """Return a copy with further sources, at its start: load the state of the run so far to continue it.

        Args:
            sources: Name -> dataset of the new sources, in addition to those of this mixture.
            weights: Weights of all sources from now on.

        Raises:
            ValueError: A source of this name is there already; or as for a new mixture.
            TypeError: As for a new mixture.
        """
        if not isinstance(sources, Mapping):
            message = f'sources must be a mapping from names to datasets, as {{"web": dataset}}, not {shorten(sources)}'
            raise TypeError(message)
        twice = [name for name in sources if name in self._sources]
        if twice:
            message = f"there is a source {twice[0]!r} already: give the new one another name"
            raise ValueError(message)
        other = Mixture({**self._sources, **sources}, weights, **self._arguments)
        before, now = self.definition, other.definition
        columns = now.columns.with_output(before.columns.output)
        stages = before.stages if before.packs_are_known else None
        definitions = now.sources if stages is None else packed(now.sources, stages)
        added = self._changed(replace(before, sources=definitions, given=now.given, columns=columns))
        added._sources = other._sources  # noqa: SLF001 - a copy of this object
        return added

    def _with_lengths(self, column: str) -> Self:
        """Return a copy whose sources know how many tokens each row has, by a column."""
        counted = copy.copy(self)
        counted._sources = {name: source._with_lengths(column) for name, source in self._sources.items()}  # noqa: SLF001 - of the same base
        sources = {name: source.definition for name, source in counted._sources.items()}  # noqa: SLF001 - a copy of this object
        counted.definition = replace(self.definition, sources=sources)
        return counted

    def _planner(self) -> MixturePlanner:
        return MixturePlanner(self.definition)

    def __repr__(self) -> str:
        definition = self.definition
        weighting, place = definition.weighting, definition.place
        shares = shares_of(weighting.phases[0].weights)
        shown = [
            f"  {name}: {shares[name]:.4g} of the rows, from {source.manifest!r},\n"
            for name, source in [*definition.sources.items()][:_NUM_SHOWN]
        ]
        if len(definition.sources) > _NUM_SHOWN:
            shown.append(f"  ... ({len(definition.sources):,} sources)\n")
        unit = definition.unit
        end = "without end" if weighting.stop is None else f"until {weighting.stop}"
        end = end if definition.epoch_batches is None else f"{end}, in epochs of {definition.epoch_batches:,} batches"
        changes = f", {len(weighting.phases) - 1} change(s) of weights" if len(weighting.phases) > 1 else ""
        return (
            f"{type(self).__name__}(\n"
            f"{''.join(shown)}"
            f"  {unit} as {definition.columns.output}: {', '.join(self.schema.names[:_NUM_SHOWN])},\n"
            f"  {end}{changes},\n"
            f"  rank {place.rank} of {place.world_size}, epoch {self.epoch}\n)"
        )


_NUM_SHOWN = 8
_ONLY = "rows"
"""The name of the source of a mixture of one."""


def repeated(dataset: ChangeableDataset, epochs: int | None, epoch_batches: int | None = None) -> Mixture:
    """Return the rows of a number of epochs of a dataset as one pass; None: without end. Its stages follow them."""
    options, stages = dataset.definition.options, dataset.definition.stages
    if stages is not None:
        dataset = dataset._changed(dataset.definition.without_stages())  # noqa: SLF001 - of the same base
    found = Mixture(
        {_ONLY: dataset},
        {_ONLY: 1},
        seed=dataset.definition.identity.settings.seed,
        stop=None if epochs is None else "all_exhausted",
        epoch_batches=epoch_batches,
        lanes=options.lanes,
        turn_rows=options.turn_rows,
    )
    definition = found.definition
    definition = replace(definition, given=replace(definition.given, num_epochs=epochs or 1))
    found.definition = definition if stages is None else definition.with_stages(stages)
    return found


def _definitions_of(sources: Mapping[str, ChangeableDataset]) -> dict[str, DatasetDefinition]:
    """Check the sources, and return their definitions.

    Raises:
        ValueError: There are none, or one delivers batches, or hides errors.
        TypeError: Something is no dataset, or a name no string.
    """
    if not isinstance(sources, Mapping) or not sources:
        message = f'sources must be a mapping from names to datasets, as {{"web": dataset}}, not {shorten(sources)}'
        raise TypeError(message)
    for name, source in sources.items():
        if not isinstance(name, str) or not name:
            message = f"the name of a source must be a string that is not empty, not {name!r}"
            raise TypeError(message)
        if not isinstance(source, ChangeableDataset):
            message = f"source {name!r} must be a StatefulShardedDataset, not {source!r}"
            raise TypeError(message)
        definition = source.definition
        if definition.options.batch_size is not None:
            message = (
                f"source {name!r} yields batches of {definition.options.batch_size:,} rows: create it without "
                "batch_size, and call batch() of the mixture"
            )
            raise ValueError(message)
        if definition.identity.settings.without is not None:
            message = (
                f"source {name!r} leaves out rows by their number in an epoch, but the epochs of a source are not "
                "those of the mixture: take rows out with filter(), not with without()"
            )
            raise ValueError(message)
        if definition.stages is not None:
            message = f"source {name!r} has stages: call flat_map() and pack() of the mixture, or after repeat()"
            raise ValueError(message)
    return {name: source.definition for name, source in sources.items()}


def _common_place(sources: Mapping[str, DatasetDefinition]) -> WorkerPlace:
    first, place = next((name, source.place) for name, source in sources.items())
    for name, source in sources.items():
        if source.place != place:
            message = (
                f"source {first!r} is of rank {place.rank} of {place.world_size}, and source {name!r} of rank "
                f"{source.place.rank} of {source.place.world_size}: give the mixture a rank and a world_size"
            )
            raise ValueError(message)
    return place


def _common_output(sources: Mapping[str, ChangeableDataset]) -> Any:  # noqa: ANN401 - an Output or None
    outputs = {name: source._given_output for name, source in sources.items()}  # noqa: SLF001 - of the same base
    first = next(iter(outputs))
    for name, output in outputs.items():
        if output != outputs[first]:
            message = (
                f"source {first!r} has output={outputs[first]!r}, and source {name!r} output={output!r}: give all "
                "sources of a mixture the same output"
            )
            raise ValueError(message)
    return outputs[first]


def _common_errors(sources: Mapping[str, DatasetDefinition]) -> RowErrors | None:
    """Return what handles rows for which functions of the sources fail.

    Raises:
        ValueError: Sources handle them in different ways.
    """
    first, errors = next((name, source.transform.errors) for name, source in sources.items())
    for name, source in sources.items():
        other = source.transform.errors
        ways = ["raise" if each is None else "skip" if each.skips else "mask" for each in (errors, other)]
        if ways[0] != ways[1]:
            message = (
                f"source {first!r} has on_error={ways[0]!r}, and source {name!r} on_error={ways[1]!r}: give all "
                "sources of a mixture the same"
            )
            raise ValueError(message)
        if errors is not None and other is not None and not errors.delivers_as(other):
            message = (
                f"sources {first!r} and {name!r} have different fillers: give all sources of a mixture the same filler="
            )
            raise ValueError(message)
    return errors


def _common_columns(sources: Mapping[str, DatasetDefinition]) -> DeliveredColumns:
    """Return the columns that sources without functions of their own deliver, or without these, the first source.

    What functions make of the columns of their source is known when its first row comes.

    Raises:
        SchemaMismatchError: Sources without functions deliver different columns.
    """
    declared = {name: source.columns for name, source in sources.items() if not source.transform.steps}
    if not declared:
        return next(iter(sources.values())).columns
    first, columns = next(iter(declared.items()))
    for name, others in declared.items():
        problem = columns.difference(others, first, name)
        if problem is not None:
            way_out = "give the sources the same columns=, schema=, fill_null= and categories=, or a map of their own"
            message = f"{problem}: {way_out}"
            raise SchemaMismatchError(message)
    return columns
