"""Reads the progress of a mixture from a state, after comparing its sources with those of this run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from laneway.core.differences import identity_differences, mismatch_message, place_differences
from laneway.core.mixture_state import decode_mixture, decode_tokens
from laneway.core.order import ORDER_VERSION
from laneway.core.progress import CutProgress, LanePosition, Progress, rows_in_step
from laneway.core.schema import decode_cut, positions_of
from laneway.errors import CheckpointMismatchError

if TYPE_CHECKING:
    from laneway.core.mixture_identity import MixtureIdentity
    from laneway.core.schema import SavedState
    from laneway.core.turns import WorkerPlace

MIXTURE_SETTINGS = ("seed", "drop_last", "stages", "epoch_batches")
"""The settings that a mixture has itself."""


def read_mixture(saved: SavedState, identity: MixtureIdentity, place: WorkerPlace, *, is_worker: bool) -> Progress:
    """Compare a state with a mixture, and return its progress.

    Other weights, and further sources, are no mismatch, nor are sources that are missing now, unless the state is of a
    single rank or worker.

    Args:
        saved: The state.
        identity: The sources and settings of the mixture that loads it.
        place: The worker or rank that loads it.
        is_worker: Whether `place` is a worker; see `laneway.core.state.read_progress`.

    Raises:
        StateFormatError: The state is damaged.
        CheckpointMismatchError: The state is of other sources, of a single dataset, or of another rank; the message
            lists all differences.
    """
    fields = saved.fields
    if not fields["mixture"]:
        message = "this checkpoint is of a single dataset, not of a mixture: load it into the dataset, or its loader"
        raise CheckpointMismatchError(message)
    progress = progress_in(saved)
    lines = mixture_differences(saved, progress, identity, needs_all=not saved.is_global)
    place_lines = place_differences(saved.place, saved.place_to_compare(place, is_worker=is_worker))
    if lines or place_lines:
        raise CheckpointMismatchError(mismatch_message(lines, place_lines, is_of_rank=fields["scope"] == "rank"))
    return progress


def progress_in(saved: SavedState) -> Progress:
    """Return the progress in a state, not compared with anything.

    In that of a whole job in step, a lane may be said to be further than its end. A mixture has no such ends.
    """
    fields = saved.fields
    progress = Progress(fields["epoch"], order_version=fields["order_version"])
    num_lanes, turn_rows, next_turn = fields["lanes"], fields["turn_rows"], fields["next_turn"]
    if num_lanes is not None:
        if saved.is_global and fields["positions"] is None:
            rows = rows_in_step(num_lanes, turn_rows, saved.sharing, next_turn, fields["part_rows"])
            positions = dict(enumerate(map(LanePosition, rows.tolist())))
        else:
            positions = positions_of(saved)
        progress = replace(
            progress,
            sharing=saved.sharing,
            cut=CutProgress(num_lanes, turn_rows, next_turn, positions),
            earlier=tuple(map(decode_cut, fields["earlier_cuts"])),
            place=None if saved.is_global else saved.place,
        )
    if not fields["mixture"]:
        return progress
    return decode_tokens(fields["tokens"], decode_mixture(fields["mixture"], progress))


def mixture_differences(
    saved: SavedState, progress: Progress, identity: MixtureIdentity, *, needs_all: bool
) -> list[str]:
    """Return a line for each difference between a state and a mixture.

    Args:
        saved: The state of a mixture.
        progress: The progress in it.
        identity: The sources and settings of the mixture.
        needs_all: Whether a source of the state that the mixture doesn't have is a difference.
    """
    fields = saved.fields
    present = {name: getattr(identity.settings, name) for name in MIXTURE_SETTINGS}
    lines = identity_differences(MIXTURE_SETTINGS, fields, present)
    if fields["order_version"] != ORDER_VERSION:
        lines.append(f"order_version: saved {fields['order_version']}, this release reads {ORDER_VERSION}")
    return [*lines, *_source_differences(progress, identity, needs_all=needs_all)]


def _source_differences(progress: Progress, identity: MixtureIdentity, *, needs_all: bool) -> list[str]:
    """Return a line for each source that is not the one with this name in the state, or is missing."""
    lines = []
    needed: dict[str, set[str]] = {}
    for source in (source for start in progress.starts for source in start.sources if source.name):
        needed.setdefault(source.name, set()).update([source.files, *(rest.files for rest in source.rests)])
    for name, files in needed.items():
        if name not in identity.sources:
            if needs_all:
                lines.append(f"source {name!r}: saved with one, this run has none of this name")
            continue
        known = {*identity.sources[name].all_files}
        unknown = sorted(files - known)
        if unknown:
            lines.append(
                f"source {name!r}: saved with the files and settings {', '.join(unknown)}, this run has "
                f"{', '.join(sorted(known))}: its files, or seed, shuffle, filter or another setting, have changed (if "
                "files were added, pass the dataset as it was with .extend())"
            )
    return lines
