"""Whether a file format keeps the promises of `laneway.formats.Format`: what every format of laneway passes, too."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from laneway.core.files import FileTable
from laneway.dataset import StatefulShardedDataset
from laneway.errors import DataFileError
from laneway.formats import FORMATS, PlannedFile
from laneway.loader import SavableLoader
from laneway.storage.filesystem import Storage
from laneway.testing.corpora import corpus_schema, corpus_tables
from laneway.testing.promises import require
from laneway.testing.resuming import assert_resumes_exactly
from laneway.testing.topologies import assert_exact_on_any_topology

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable

    from laneway.formats import FileScan, Format

    Write = Callable[[Path, list[pa.Table]], None]

_NUM_CUTS = 12
_FIRST_OF_FILTER = 7


def check_format(format: Format, write: Write, directory: str | os.PathLike[str]) -> None:  # noqa: A002 - what it is
    """Check that a file format keeps its promises, alone and in datasets.

    Files are written, scanned and read: as a whole, by block and by column; empty, truncated, changed after the scan;
    locally and through fsspec. Datasets of them are resumed after any batch, on other numbers of ranks, with workers,
    filters and splits.

    Args:
        format: The format. It need not be registered.
        write: Writes tables to a file, if possible each as a block. They have the columns of `corpus_schema()`; lists
            without tables, and tables without rows, must give a file of these columns, or at least a valid one.
        directory: An empty directory for the files.

    Raises:
        AssertionError: The format breaks a promise; the message says which.
    """
    with FORMATS.including(format):
        kit = _Kit(format, write, Path(directory))
        kit.check_scan()
        kit.check_blocks()
        kit.check_empty_files()
        kit.check_truncated_files()
        kit.check_changed_files()
        kit.check_other_filesystems()
        kit.check_datasets()


@final
class _Kit:
    """A format with files of it."""

    def __init__(self, format_: Format, write: Write, directory: Path) -> None:
        self._format = format_
        self._write = write
        self._directory = directory
        self._tables = corpus_tables()
        self._rows = _rows(self._tables)
        self._path = self._file("whole", self._tables)
        self._storage = Storage(directory)

    def check_scan(self) -> None:
        scan = self._scan(self._path)
        names = corpus_schema().names
        require(scan.schema.names == names, f"scan finds the columns {scan.schema.names} instead of {names}")
        found = sum(scan.block_rows)
        require(found == len(self._rows), f"scan finds {found} rows instead of {len(self._rows)}")
        lengths = {len(scan.block_rows), len(scan.block_bytes), len(scan.block_memory_bytes)}
        require(len(lengths) == 1, "scan has not as many rows as sizes of blocks")
        sizes = [*scan.block_rows, *scan.block_bytes, *scan.block_memory_bytes]
        require(all(type(size) is int and size >= 0 for size in sizes), "sizes of blocks must be ints, >= 0")
        require(len({len(entry) for entry in scan.layout}) <= 1, "entries of layout must be of one length")
        require(scan.digest != "", "scan has no digest")
        again = self._scan(self._path)
        same = (again.digest, again.block_rows, again.layout) == (scan.digest, scan.block_rows, scan.layout)
        require(same, "a second scan of the same file has another digest, or other blocks")
        suffixes = self._format.suffixes
        require(bool(suffixes) and all(each.startswith(".") and each == each.lower() for each in suffixes), "suffixes")

    def check_blocks(self) -> None:
        scan = self._scan(self._path)
        bounds = np.concatenate([[0], np.cumsum(scan.block_rows)]).tolist()
        num_blocks = len(scan.block_rows)
        names = corpus_schema().names
        for first in range(num_blocks):
            for stop in {first + 1, min(first + 3, num_blocks), num_blocks}:
                expected = self._rows[bounds[first] : bounds[stop]]
                for columns in (names, names[::-1], names[1:2], []):
                    table = self._read(self._path, scan, first, stop, columns)
                    what = f"blocks {first} to {stop - 1} of columns {columns}"
                    require(table.column_names == columns, f"{what} have the columns {table.column_names}")
                    require(table.num_rows == len(expected), f"{what} have {table.num_rows} rows")
                    wanted = [{name: row[name] for name in columns} for row in expected]
                    require(not columns or table.to_pylist() == wanted, f"{what} have other rows than were written")

    def check_empty_files(self) -> None:
        for name, tables in (("none", []), ("empty", corpus_tables((0,))), ("one", corpus_tables((1,)))):
            path = self._file(name, tables)
            scan = self._scan(path)
            expected = _rows(tables)
            found = sum(scan.block_rows)
            require(found == len(expected), f"a file of {len(expected)} rows has {found}")

    def check_truncated_files(self) -> None:
        data = self._path.read_bytes()
        path = self._path.with_name(f"truncated{self._path.suffix}")
        for cut in np.linspace(0, len(data) - 1, _NUM_CUTS).astype(int).tolist():
            path.write_bytes(data[:cut])
            rows = self._rows_or_error(path)
            # Text may be cut between two rows, and then is a shorter text.
            fine = rows is None or rows == self._rows[: len(rows)]
            require(fine, f"a file that is truncated to {cut} of {len(data)} bytes has other rows, and no error")

    def check_changed_files(self) -> None:
        scan = self._scan(self._path)
        planned = self._planned(self._path, scan)
        path = self._path.with_name(f"changed{self._path.suffix}")
        changes = {"other": corpus_tables(start=1), "shorter": corpus_tables((5, 1)), "values": []}
        for table in self._tables:
            # Numbers of the same length, also as text: each even row has the number of the next one, and vice versa.
            numbers = table["x"].to_numpy() + 0.5 - table["id"].to_numpy() % 2
            changes["values"].append(table.set_column(2, "x", pa.array(numbers)))
        for name, tables in changes.items():
            data = self._file(name, tables).read_bytes()
            path.write_bytes(data)
            changed = PlannedFile(
                str(path), planned.size, scan.digest, planned.block_rows, planned.layout, "", planned.schema
            )
            try:
                found = self._read_planned(changed, scan, corpus_schema().names)
            except Exception as error:  # noqa: BLE001 - readers may raise what pyarrow raises
                fine = isinstance(error, (DataFileError, pa.ArrowException, OSError, ValueError))
                require(fine, f"a file that changed since the scan raises {type(error).__name__}: {error}")
            else:
                require(found == self._rows, "a file that changed since the scan is read, without an error")

    def check_other_filesystems(self) -> None:
        import fsspec  # noqa: PLC0415 - only for this check

        memory = fsspec.filesystem("memory")
        root = f"/laneway-check-{self._format.name}"
        memory.pipe(f"{root}/{self._path.name}", self._path.read_bytes())
        try:
            dataset = StatefulShardedDataset(f"memory:/{root}", format=self._format.name, output="python")
            require(list(dataset) == self._rows, "through fsspec, the file has other rows")
        finally:
            memory.rm(root, recursive=True)

    def check_datasets(self) -> None:
        directory = self._directory / "dataset"
        directory.mkdir()
        tables = [corpus_tables((9, 4)), corpus_tables((1,), start=13), corpus_tables((5, 5, 9), start=14)]
        for index, each in enumerate(tables):
            self._write(directory / f"part-{index}{self._format.suffixes[0]}", each)
        ids = [row["id"] for each in tables for row in _rows(each)]
        options: dict[str, Any] = {"format": self._format.name, "shard_rows": 4, "window_bytes": 400}

        def make(**arguments: Any) -> StatefulShardedDataset:  # noqa: ANN401 - arguments of the dataset
            return StatefulShardedDataset(directory, **options, **arguments)

        found = [row["id"] for row in make(output="python")]
        require(found == ids, f"a dataset delivers the rows {found} instead of {ids}")
        batches = partial(make, shuffle=True, seed=3, output="python")
        assert_resumes_exactly(lambda: SavableLoader(batches(batch_size=4)))
        assert_resumes_exactly(lambda: SavableLoader(batches(batch_size=4), num_workers=2), stops=[3])
        on_rank = partial(batches, batch_size=2, remainder="keep")
        assert_exact_on_any_topology(lambda rank, world_size: SavableLoader(on_rank(rank=rank, world_size=world_size)))
        few = [row["id"] for row in make(output="python", filter=pc.field("id") > ids[_FIRST_OF_FILTER])]
        require(few == ids[_FIRST_OF_FILTER + 1 :], f"a filter selects the rows {few}")
        train, val = make(output="python").split({"train": 0.7, "val": 0.3}, seed=1)
        split = sorted(row["id"] for part in (train, val) for row in part)
        require(split == ids, f"the parts of a split have the rows {split}")

    def _file(self, name: str, tables: list[pa.Table]) -> Path:
        path = self._directory / f"{name}{self._format.suffixes[0]}"
        self._write(path, tables)
        return path

    def _scan(self, path: Path) -> FileScan:
        return self._format.scan(self._storage, str(path), path.stat().st_size)

    def _planned(self, path: Path, scan: FileScan) -> PlannedFile:
        table = FileTable.build(
            [path.name],
            [path.stat().st_size],
            [scan.digest],
            [(scan.block_rows, scan.block_bytes)],
            "",
            memory_bytes=[scan.block_memory_bytes],
        )
        layout = np.array(scan.layout, np.int64).reshape(len(scan.layout), -1 if scan.layout else 0)
        schema = scan.schema.remove_metadata()
        return PlannedFile(str(path), path.stat().st_size, scan.digest, table.block_rows, layout, "", schema)

    def _read(self, path: Path, scan: FileScan, first: int, stop: int, columns: list[str]) -> pa.Table:
        reader = self._format.open(self._storage, self._planned(path, scan), corpus_schema())
        try:
            return reader.read(first, stop, columns)
        finally:
            reader.close()

    def _read_planned(self, planned: PlannedFile, scan: FileScan, columns: list[str]) -> list[Any]:
        reader = self._format.open(self._storage, planned, corpus_schema())
        try:
            return reader.read(0, len(scan.block_rows), columns).to_pylist() if scan.block_rows else []
        finally:
            reader.close()

    def _rows_or_error(self, path: Path) -> list[Any] | None:
        """Return the rows of a file, None if it can't be read, which is an error of the right kind."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                scan = self._scan(path)
        except DataFileError:
            return None
        try:
            # A file that is cut may have fewer columns.
            return self._read_planned(self._planned(path, scan), scan, corpus_schema().names)
        except (DataFileError, pa.ArrowException, OSError, ValueError):
            return None


def _rows(tables: Iterable[pa.Table]) -> list[Any]:
    return [row for table in tables for row in table.to_pylist()]
