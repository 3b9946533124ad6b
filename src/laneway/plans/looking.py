"""Reads single rows of the files of a dataset, converted as it would deliver them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from laneway.core.assignment import assign_whole_job
from laneway.core.cursor import LaneRange
from laneway.core.plan import Identity
from laneway.core.progress import Progress, fresh_cut
from laneway.delivery.row_errors import SKIPPED
from laneway.metering import Meter
from laneway.plans.row_numbers import find_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from laneway.delivery.dataset_definition import DatasetDefinition


def read_rows(definition: DatasetDefinition, path: str, rows: Sequence[int], epoch: int) -> Any:  # noqa: ANN401 - an item
    """Return rows of a file as a dataset would deliver them: a batch of them, or a list.

    Args:
        definition: The dataset, without stages.
        path: The file, relative to the dataset's root.
        rows: Numbers of rows in the file.
        epoch: The epoch, for functions that take a context.

    Raises:
        ValueError: There is no such file or row.
    """
    files = definition.manifest.files
    file_index = find_file(files, path, rows)
    # In file order, all rows are one lane.
    plain = replace(definition.identity.settings, shuffle=False, selection=None, without=None, drop_last=False)
    identity = Identity(files, plain)
    in_order = replace(definition, identity=identity, selection=None, prefetch_windows=0)
    progress = Progress(epoch, cut=fresh_cut(1, 1))
    first = int(files.row_starts[file_index])
    ranges = [*_joined(first, rows)]
    maker = in_order.open_items(assign_whole_job(identity, progress), Meter())
    try:
        if definition.options.batch_size is not None:
            batch = maker.batch(ranges) if ranges else SKIPPED
            return None if batch is SKIPPED else batch
        found = [maker.transform_row(row) for row in maker.rows(ranges)] if ranges else []
        return [row for row in found if row is not SKIPPED]
    finally:
        maker.close()


def _joined(first: int, rows: Sequence[int]) -> Iterator[LaneRange]:
    """Yield ranges of the lane, in the order of the rows: rows that follow each other are read together."""
    start = stop = -1
    for row in rows:
        if row != stop:
            if start >= 0:
                yield LaneRange(0, first + start, first + stop)
            start = row
        stop = row + 1
    if start >= 0:
        yield LaneRange(0, first + start, first + stop)
