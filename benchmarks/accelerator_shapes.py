"""The shapes of the Parquet workloads of MLPerf Storage v3, scaled to a small machine: few large rows, many columns.

- flux: rows of 2,164,832 bytes, in five columns of fixed-size lists of float32
- dlrm: rows of 761 bytes, in 200 columns of numbers, of which 40 are read

Rows, columns and types are those of its configurations for a B200 accelerator, and so are the rows of a batch per
second of computation for flux: an eighth of a batch takes an eighth of the time. For dlrm a batch takes 200 times as
long, since no machine of two cores could feed one such accelerator. Files and row groups are smaller. Values are
random, and Parquet is not compressed, as there; Arrow files (IPC file format) have the same rows.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    # Scripts import from their own directory, mypy from the root.
    from benchmarks.corpora import FileFormat

ShapeName = Literal["flux", "dlrm"]

NUM_FILES = 4
FLUX_FLOATS = {"t5_encodings": 524_328, "clip_encodings": 409, "mean": 8_232, "logvar": 8_232, "timestamp": 7}
DLRM_READ = {"float32": 27, "float64": 5, "float16": 4, "int8": 4}
"""Columns of each type that are read."""
DLRM_OTHERS = {"float64": 41, "float32": 33, "float16": 55, "int8": 31}
"""Columns of each type that are not."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A workload."""

    name: ShapeName
    """Its name."""
    file_rows: int
    """Rows of a data file."""
    block_rows: int
    """Rows of a row group, or of a record batch."""
    batch_rows: int
    """Rows of the batch that an accelerator takes at each step."""
    step_s: float
    """Seconds that it computes at each step."""
    columns: tuple[str, ...]
    """The columns that are read."""

    @property
    def rows_per_s(self) -> float:
        """Rows per second that an accelerator takes if it never waits."""
        return self.batch_rows / self.step_s


def _dlrm_types() -> dict[str, str]:
    """Return the type of each column, in a random order."""
    kinds = [(kind, True) for kind, count in DLRM_READ.items() for _ in range(count)]
    kinds += [(kind, False) for kind, count in DLRM_OTHERS.items() for _ in range(count)]
    order = np.random.default_rng(0).permutation(len(kinds)).tolist()
    return {f"feature_{place:03}" + ("_read" if kinds[i][1] else ""): kinds[i][0] for place, i in enumerate(order)}


_DLRM_TYPES = _dlrm_types()

SHAPES = {
    "flux": Shape("flux", 192, 8, 6, 1.35 / 8, tuple(FLUX_FLOATS)),
    "dlrm": Shape("dlrm", 98_304, 6_144, 16_384, 0.000375 * 200, tuple(n for n in _DLRM_TYPES if n.endswith("_read"))),
}
SHORT_FILE_ROWS = {"flux": 48, "dlrm": 49_152}


def make_files(shape: Shape, directory: Path, *, is_short: bool) -> dict[FileFormat, Path]:
    """Return the folder of the files of each format, and generate them if they don't exist.

    Args:
        shape: The workload.
        directory: Directory of all of them, created if it is missing.
        is_short: Whether to generate a part of the rows, for a quick run.
    """
    file_rows = SHORT_FILE_ROWS[shape.name] if is_short else shape.file_rows
    folder = directory / f"{shape.name}-{file_rows}"
    if not folder.exists():
        directory.mkdir(parents=True, exist_ok=True)
        # Renamed when complete, so an interrupted run leaves no partial files.
        unfinished = Path(tempfile.mkdtemp(prefix=f".{shape.name}-", dir=directory))
        try:
            for index in range(NUM_FILES):
                _write(shape, unfinished, index, file_rows)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return {"parquet": folder / "parquet", "arrow": folder / "arrow"}


def _write(shape: Shape, folder: Path, index: int, file_rows: int) -> None:
    blocks = _BLOCKS[shape.name](np.random.default_rng([7, index]), file_rows, shape.block_rows)
    first = next(blocks)
    (folder / "parquet").mkdir(exist_ok=True)
    (folder / "arrow").mkdir(exist_ok=True)
    parquet, arrow = folder / "parquet" / f"part-{index}.parquet", folder / "arrow" / f"part-{index}.arrow"
    with (
        pq.ParquetWriter(parquet, first.schema, compression="none", use_dictionary=False) as to_parquet,
        pa.ipc.new_file(str(arrow), first.schema) as to_arrow,
    ):
        for block in (first, *blocks):
            to_parquet.write_batch(block)
            to_arrow.write_batch(block)


def _flux(generator: np.random.Generator, num_rows: int, block_rows: int) -> Iterator[pa.RecordBatch]:
    for _ in range(0, num_rows, block_rows):
        columns = {
            name: pa.FixedSizeListArray.from_arrays(
                pa.array(generator.standard_normal(block_rows * size, np.float32)), size
            )
            for name, size in FLUX_FLOATS.items()
        }
        yield pa.RecordBatch.from_pydict(columns)


def _dlrm(generator: np.random.Generator, num_rows: int, block_rows: int) -> Iterator[pa.RecordBatch]:
    for _ in range(0, num_rows, block_rows):
        columns: dict[str, Any] = {}
        for name, kind in _DLRM_TYPES.items():
            values = generator.integers(-100, 100, block_rows) if kind == "int8" else generator.random(block_rows)
            columns[name] = pa.array(values.astype(kind))
        yield pa.RecordBatch.from_pydict(columns)


_BLOCKS: dict[ShapeName, Callable[[np.random.Generator, int, int], Iterator[pa.RecordBatch]]] = {
    "flux": _flux,
    "dlrm": _dlrm,
}
