"""Reading takes no more memory than docs/explanation/performance.md states."""

from __future__ import annotations

import gc
import multiprocessing.util
import tracemalloc
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from laneway import SavableLoader, StatefulShardedDataset
from laneway.convert.batches import BatchConverter
from laneway.core.cursor import LaneRange
from laneway.delivery import buffers, parcels
from laneway.manifest import scan_source
from laneway.metering import Meter
from laneway.reading import threads
from laneway.reading.lane_reader import LaneReader
from laneway.reading.projection import select_columns
from laneway.reading.reader import RowReader
from tests.corpora import write_blocks
from tests.memory import counted_memory
from tests.unit.reading.plans import plan_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from laneway.core.plan import Plan

_NUM_THREADS = 2
_DECODING, _DECODING_LISTS = 3, 10
"""Memory to decode a block of Parquet, in multiples of its decoded size: of flat columns, and of lists of numbers."""
_SMALL_OBJECTS_BYTES = 200_000
"""Allowance for Python objects: segments, futures, schemas."""

_rng = np.random.default_rng(0)
_lists: Any = pa.list_(pa.int32())


def _texts(num_rows: int) -> pa.Table:
    return pa.table({"id": _rng.permutation(num_rows), "text": [f"{i} " * 50 for i in range(num_rows)]})


def _repeated_texts(num_rows: int) -> pa.Table:
    return pa.table({"system": ["You are a helpful assistant. " * 20] * num_rows, "id": _rng.permutation(num_rows)})


def _numbers(num_rows: int) -> pa.Table:
    return pa.table({f"x{i}": _rng.random(num_rows) for i in range(40)})


def _tokens(num_rows: int) -> pa.Table:
    values = pa.array(_rng.integers(0, 50_000, num_rows * 64), pa.int32())
    return pa.table({"id": _rng.permutation(num_rows), "tokens": pa.FixedSizeListArray.from_arrays(values, 64)})


def _nested(num_rows: int) -> pa.Table:
    return pa.table({"turns": pa.array([[*range(i % 200)] for i in range(num_rows)], _lists), "tag": ["a"] * num_rows})


@pytest.mark.parametrize("make", [_texts, _repeated_texts, _numbers, _tokens, _nested])
@pytest.mark.parametrize("kind", ["parquet", "arrow-file"])
@pytest.mark.parametrize(
    ("shuffle", "num_ahead", "num_lanes"), [(True, 0, 1), (True, 2, 2), (False, 0, 1), (False, 1, 2)]
)
def test_memory_stays_below_its_bound(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[int], pa.Table],
    kind: Any,
    num_ahead: int,
    num_lanes: int,
    *,
    shuffle: bool,
) -> None:
    blocks = [make(1000) for _ in range(6)]
    suffix = ".parquet" if kind == "parquet" else ".arrow"
    for part in range(4):
        write_blocks(tmp_path / f"p{part}{suffix}", kind, blocks, blocks[0].schema)
    manifest, storage = scan_source(tmp_path)
    block_bytes = max(block.nbytes for block in blocks)
    plan = plan_of(
        manifest,
        shuffle=shuffle,
        num_lanes=num_lanes,
        shard_bytes=2 * int(manifest.files.block_bytes.max()),
        window_bytes=8 * int(manifest.files.block_bytes.max()),
        block_memory_bytes=[block_bytes] * 24,
    )
    reader = RowReader(manifest, storage, select_columns(manifest))
    largest_part = max(block_bytes, plan.identity.settings.shard_bytes)
    largest_window = int(plan.windows.rows.max()) * block_bytes // 1000 if shuffle else largest_part
    monkeypatch.setattr(threads, "cores_of_rank", lambda: _NUM_THREADS)
    decoding = _DECODING_LISTS if make is _nested else _DECODING
    held = num_lanes * (1 + num_ahead) * largest_window
    bound = held + _NUM_THREADS * (largest_window * shuffle + decoding * largest_part)
    del blocks
    assert _peak_of_reading(plan, reader, num_ahead) <= bound + _SMALL_OBJECTS_BYTES


def test_memory_stays_below_its_bound_if_few_columns_are_read_in_file_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = [_numbers(1000) for _ in range(48)]
    write_blocks(tmp_path / "p.parquet", "parquet", blocks, blocks[0].schema)
    manifest, storage = scan_source(tmp_path)
    # A part of five blocks, as a tenth of the columns is read.
    part_bytes = blocks[0].nbytes // 2
    plan = plan_of(manifest, shuffle=False, num_lanes=2, shard_bytes=part_bytes)
    reader = RowReader(manifest, storage, select_columns(manifest, ["x0", "x1", "x2", "x3"]))
    monkeypatch.setattr(threads, "cores_of_rank", lambda: _NUM_THREADS)
    bound = 2 * (1 + 1) * part_bytes + _NUM_THREADS * _DECODING * part_bytes
    del blocks
    assert _peak_of_reading(plan, reader, num_ahead=1) <= bound + _SMALL_OBJECTS_BYTES


def _peak_of_reading(plan: Plan, reader: RowReader, num_ahead: int) -> int:
    """Return the most memory that is taken while all lanes of a plan are read in turns, 250 rows at a time."""
    num_rows = plan.lanes.rows.tolist()
    gc.collect()
    tracemalloc.start()
    with counted_memory() as pool:
        lanes = LaneReader(plan, reader, BatchConverter(reader.schema, "numpy").vectorized, num_ahead, Meter())
        for start in range(0, num_rows[0], 250):
            for lane in range(len(num_rows)):
                assert sum(rows.num_rows for rows in lanes.read(LaneRange(lane, start, start + 250))) == 250
        lanes.end()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (pool.max_memory() or 0) + peak


def _tell_peak(peak: torch.Tensor, _: int) -> None:
    """Have a worker write the peak of Arrow's allocations to shared memory when it ends."""
    stack = ExitStack()
    pool = stack.enter_context(counted_memory())

    def tell() -> None:
        peak.fill_(pool.max_memory() or 0)
        stack.close()

    multiprocessing.util.Finalize(None, tell, exitpriority=0)


@pytest.mark.parametrize("make", [_numbers, _tokens])
def test_memory_of_a_worker_and_of_what_it_sends_stays_below_its_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[int], pa.Table]
) -> None:
    blocks = [make(1000) for _ in range(6)]
    for part in range(4):
        write_blocks(tmp_path / f"p{part}.parquet", "parquet", blocks, blocks[0].schema)
    block_bytes = max(block.nbytes for block in blocks)
    window_bytes = 4 * block_bytes
    parcel_bytes = block_bytes // 2
    monkeypatch.setattr(threads, "cores_of_rank", lambda: _NUM_THREADS)
    monkeypatch.setattr(buffers, "_known", {})
    monkeypatch.setattr(parcels, "PARCEL_BYTES", parcel_bytes)
    dataset = StatefulShardedDataset(
        tmp_path, shuffle=True, batch_size=50, shard_bytes=block_bytes, window_bytes=window_bytes
    )
    peak = torch.zeros(1, dtype=torch.int64)
    peak.share_memory_()  # type: ignore[no-untyped-call]
    loader = SavableLoader(
        dataset, num_workers=1, multiprocessing_context="fork", worker_init_fn=partial(_tell_peak, peak)
    )
    sent_bytes = 0
    for batch in loader:
        sent_bytes = max(sent_bytes, sum(map(len, buffers._known.values())))
        del batch
    # A window that is delivered, one that is read ahead, and one of whose rows a parcel is being filled.
    held = 3 * window_bytes
    assert 0 < int(peak) <= held + _NUM_THREADS * (window_bytes + _DECODING * block_bytes)
    # Buffers are rounded up by an eighth. Those of the first parcels, which are smaller, are kept too.
    assert 0 < sent_bytes <= (2 + 2 + 2) * parcel_bytes * 9 // 8
