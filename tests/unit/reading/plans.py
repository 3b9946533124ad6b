"""Plans of small epochs, and the rows that they promise."""

from __future__ import annotations

import threading
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from laneway.core.order import ORDER_VERSION
from laneway.core.plan import Identity, Plan, Settings
from laneway.core.progress import Progress, fresh_cut

if TYPE_CHECKING:
    from laneway.catalog.manifest import Manifest
    from laneway.core.lanes import Segment


def plan_of(
    manifest: Manifest,
    *,
    shuffle: bool,
    num_lanes: int = 1,
    window_bytes: int = 300,
    shard_bytes: int = 1,
    block_memory_bytes: list[int] | None = None,
    order_version: int = ORDER_VERSION,
) -> Plan:
    """Return the plan of epoch 0, in which by default each block is a shard."""
    settings = Settings(
        seed=5,
        shuffle=shuffle,
        shard_bytes=shard_bytes,
        shard_rows=None,
        window_bytes=window_bytes,
        remainder=None,
        drop_last=False,
    )
    files = manifest.files
    if block_memory_bytes is not None:
        files = replace(files, block_memory_bytes=np.array(block_memory_bytes))
    return Identity(files, settings).plan(Progress(epoch=0, cut=fresh_cut(num_lanes, 1), order_version=order_version))


def segments_of(plan: Plan, lane: int = 0) -> list[Segment]:
    """Return all segments of a lane."""
    return list(plan.lanes.segments(lane))


def ids_of(plan: Plan, segments: list[Segment]) -> list[int]:
    """Return the number of each row of some segments, counted over all files, as the column `id` has it."""
    lengths = plan.identity.files.rows.tolist()
    first_rows = [0, *accumulate(lengths)]
    places = [plan.locate(segment, i) for segment in segments for i in range(segment.stop - segment.start)]
    return [first_rows[file_index] + row for file_index, row in places]


def reading_threads() -> list[threading.Thread]:
    """Return the threads that read data files now."""
    return [thread for thread in threading.enumerate() if thread.name == "laneway-read"]
