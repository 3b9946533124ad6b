"""Draws docs/images/plan.svg: what `laneway plan --plot` draws, of a shuffled epoch on four ranks.

Run it with `.venv/bin/python scripts/draw_plan.py`. It writes the same bytes every time.
"""
# ruff: noqa: INP001 - scripts are not a package

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from laneway import Manifest, StatefulShardedDataset
from laneway.catalog.partitions import Partitions
from laneway.catalog.schemas import FileSchemas
from laneway.core.files import FileTable
from laneway.core.strings import Strings
from laneway.pictures.plot import PlanPictures

TARGET = Path(__file__).resolve().parent.parent / "docs" / "images" / "plan.svg"
NUM_FILES, FILE_BLOCKS, BLOCK_ROWS, BLOCK_BYTES = 32, 4, 200, 8 << 20


def manifest() -> Manifest:
    """Return a manifest of files that need not exist, as nothing reads them."""
    files = FileTable.build(
        paths=[f"part-{index:02}.parquet" for index in range(NUM_FILES)],
        sizes=[FILE_BLOCKS * BLOCK_BYTES // 2] * NUM_FILES,
        digests=[""] * NUM_FILES,
        blocks=[([BLOCK_ROWS] * FILE_BLOCKS, [BLOCK_BYTES] * FILE_BLOCKS)] * NUM_FILES,
        schema_digest="",
    )
    return Manifest(
        root="corpus",
        format="parquet",
        files=files,
        schemas=FileSchemas.same(pa.schema([("text", pa.string())]), NUM_FILES),
        partitions=Partitions((), ()),
        layout=np.zeros((0, 0), np.int64),
        layout_starts=np.zeros(NUM_FILES + 1, np.int64),
        versions=Strings.of([""] * NUM_FILES),
    )


def draw() -> str:
    """Return the picture."""
    dataset = StatefulShardedDataset(manifest(), batch_size=64, shuffle=True, seed=1)
    return PlanPictures(dataset.plan(0, world_size=4, num_workers=2)).image()


if __name__ == "__main__":
    TARGET.write_text(draw(), encoding="utf-8")
