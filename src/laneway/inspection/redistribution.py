"""States of the ranks of another job: for one that restores each rank from a state of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from laneway.arguments import MAX_COUNT, check_int
from laneway.core.assignment import resolve_cut
from laneway.core.cursor import Cursor
from laneway.core.lanes import MAX_LANES
from laneway.core.line import counts_packs, line_identity, num_rows_in
from laneway.core.options import LaneOptions
from laneway.core.progress import Progress
from laneway.core.schema import Role, names_of, sealed
from laneway.core.state import locate, write_state
from laneway.core.turns import WorkerPlace
from laneway.errors import CheckpointMismatchError
from laneway.inspection.collecting import check_kind, states_of_step
from laneway.mixture import Mixture

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from laneway.core.assignment import Assignment
    from laneway.core.plan import Identity
    from laneway.core.state import AnyIdentity
    from laneway.described import DescribedDataset

State = dict[str, Any]


def redistribute(
    state: Any,  # noqa: ANN401 - any form of a state
    world_size: int,
    num_workers: int = 0,
    *,
    batch_size: int | None = None,
    source: DescribedDataset | Mixture | None = None,
    key: str | None = None,
) -> list[State]:
    """Return the states of the ranks of a job of another size, for one that restores each rank from a state of its own.

    A job that restores all ranks from one state needs no such states: `load_state_dict` and `restore_state_global` of
    a `SavableLoader` take the state of the whole job on any number of ranks.

    Args:
        state: The state of the whole job, or a list of the states of all its ranks, or what they are nested in.
        world_size: Number of ranks of the new job, >= 1.
        num_workers: Workers of each of its ranks, >= 0. The states can be restored with fewer, if these can share the
            lanes.
        batch_size: Rows of a batch in the new job, a multiple of the rows of a turn; None: as before.
        source: The dataset or the `Mixture` of the state. It is needed for a mixture, which continues with the
            weights of this one, if a filter, split or slice selects the rows, and for packs of known lengths. None: the
            files named in the state.
        key: Which of several loaders; see `describe_state`.

    Returns:
        The state of each rank, for `restore_state_rank` of a `SavableLoader`, or `load_state_dict` of a dataset that
        is read without workers.

    Raises:
        StateFormatError: There is no state, or it is damaged.
        CheckpointMismatchError: It is that of some ranks only, or of another mixture, or one that stopped within a row
            of which stages make several items.
        ValueError: An argument is out of its range, or `source` is needed.

    Examples:
        >>> import pyarrow as pa, pyarrow.parquet as pq, tempfile
        >>> from laneway import StatefulShardedDataset, redistribute
        >>> folder = tempfile.mkdtemp()
        >>> pq.write_table(pa.table({"x": range(12)}), f"{folder}/part-0.parquet")
        >>> dataset = StatefulShardedDataset(folder, batch_size=2, rank=0, world_size=1)
        >>> next(iter(dataset))["x"].tolist()
        [0, 1]
        >>> states = redistribute(dataset.state_dict(), world_size=2)
        >>> for rank, state in enumerate(states):
        ...     resumed = StatefulShardedDataset(folder, batch_size=2, rank=rank, world_size=2)
        ...     resumed.load_state_dict(state)
        ...     print([batch["x"].tolist() for batch in resumed])
        [[2, 3], [4, 5], [10]]
        [[6, 7], [8, 9], [11]]
    """
    num_ranks = check_int("world_size", world_size, minimum=1, maximum=MAX_LANES)
    workers = max(1, check_int("num_workers", num_workers, minimum=0))
    saved = states_of_step(state, "this value", key)
    fields = saved[0].fields
    if len(saved) > 1 or not saved[0].is_global:
        message = (
            f"this holds {len(saved)} of the {saved[0].place.world_size} ranks that saved it, or states of workers: "
            "pass the states of all ranks, or that of the whole job, saved while all of them were in the same epoch, "
            "with the same weights"
        )
        raise CheckpointMismatchError(message)
    options = _options(fields, batch_size)
    places = [WorkerPlace(rank, num_ranks, 0, workers) for rank in range(num_ranks)]
    check_kind(source, fields, "the state")
    if isinstance(source, Mixture):
        definition = replace(source.definition, options=replace(options, lanes=source.definition.options.lanes))
        progress = definition.read_progress(saved[0], places[0], is_worker=False)
        assignments = (definition.resolve(progress, place) for place in places)
        return _states(definition.identity, assignments)
    identity = line_identity(fields, _line_of(fields, source))
    progress = Progress(fields["epoch"], order_version=fields["order_version"])
    if fields["lanes"] is not None:
        progress = locate(saved[0], identity)
    states = _states(identity, (resolve_cut(identity, progress, place, options) for place in places))
    return [_of_run(state, fields) for state in states]


def _line_of(fields: Mapping[str, Any], source: DescribedDataset | None) -> int | Identity:
    """Return the rows of an epoch that a state of a dataset belongs to, or the identity of its files.

    Raises:
        ValueError: They are not known.
    """
    if source is not None:
        identity: Identity = source.definition.identity
        return identity
    num_rows = num_rows_in(fields)
    if num_rows is None:
        unit, why = ("packs", "counted") if counts_packs(fields) else ("rows", "selected")
        message = f"the state doesn't say how many {unit} there are, as these are {why}: pass the dataset as source"
        raise ValueError(message)
    return num_rows


def _states(identity: AnyIdentity, assignments: Iterable[Assignment]) -> list[State]:
    """Return the state of each rank that has an assignment."""
    states = []
    for assignment in assignments:
        if assignment.is_complete and assignment.progress.place is None:
            own, complete = assignment.progress, True
        else:
            cursor = Cursor(assignment.of_rank())
            own, complete = cursor.progress(), cursor.is_at_end
        states.append(write_state(identity, own, assignment.place.of_rank(), complete=complete))
    return states


def _options(fields: Mapping[str, Any], batch_size: int | None) -> LaneOptions:
    """Return the lanes, turns and batches of the new job.

    Raises:
        ValueError: A batch is not a whole number of turns.
    """
    turn_rows, turns_per_batch = fields["turn_rows"], fields["lane_batch_turns"]
    if turn_rows is None:
        if batch_size is None:
            message = (
                "the state is of the start of an epoch, and doesn't say how many rows a batch has: pass batch_size="
            )
            raise ValueError(message)
        return LaneOptions(None, None, check_int("batch_size", batch_size, minimum=1, maximum=MAX_COUNT))
    rows = (
        turn_rows * turns_per_batch
        if batch_size is None
        else check_int("batch_size", batch_size, minimum=1, maximum=MAX_COUNT)
    )
    options = LaneOptions(None, turn_rows if turns_per_batch > 1 else None, rows)
    if options.turns_per_batch(options.default_turn_rows) is None:
        message = f"batch_size {rows} must be a multiple of the {turn_rows} rows of a turn"
        raise ValueError(message)
    return options


def _of_run(state: State, fields: Mapping[str, Any]) -> State:
    """Return a state of an imaginary file as one of the files and settings of a run."""
    return sealed({**state, **{name: fields[name] for name in ("files", *names_of(Role.IDENTITY))}})
