"""Datasets of manifests without files, whose plans can be compared with what simulated jobs deliver."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from laneway import Manifest, StatefulShardedDataset
from laneway.catalog.partitions import Partitions
from laneway.catalog.schemas import FileSchemas
from laneway.core.strings import Strings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from laneway.core.files import FileTable
    from laneway.core.plan import Identity
    from laneway.plans.cut_rows import AnyRowPlace


def manifest_of(files: FileTable) -> Manifest:
    """Return a manifest of files that need not exist, as nothing reads them."""
    num_files = files.num_files
    return Manifest(
        root=tempfile.gettempdir(),
        format="parquet",
        files=files,
        schemas=FileSchemas.same(pa.schema([("id", pa.int64())]), num_files),
        partitions=Partitions((), ()),
        layout=np.zeros((0, 0), np.int64),
        layout_starts=np.zeros(num_files + 1, np.int64),
        versions=Strings.of([""] * num_files),
    )


def dataset_of(identity: Identity, **arguments: Any) -> StatefulShardedDataset:
    """Return the dataset of an identity."""
    settings = identity.settings
    return StatefulShardedDataset(
        manifest_of(identity.files),
        seed=settings.seed,
        shuffle=settings.shuffle,
        shard_bytes=settings.shard_bytes,
        shard_rows=settings.shard_rows,
        window_bytes=settings.window_bytes,
        remainder=settings.remainder,
        drop_last=settings.drop_last,
        **arguments,
    )


def numbers_of(files: FileTable, rows: Iterable[AnyRowPlace]) -> list[int]:
    """Return the numbers of rows, counted over all files."""
    first_rows = dict(zip(files.paths, files.block_row_starts[files.block_starts[:-1]].tolist(), strict=True))
    return [first_rows[row.path] + row.row for row in rows]
