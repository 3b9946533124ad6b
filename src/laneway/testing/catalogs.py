"""Whether a catalog keeps the promises of `laneway.Catalog`: what every catalog of laneway passes, too."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from laneway.dataset import StatefulShardedDataset
from laneway.formats import FORMATS
from laneway.loader import SavableLoader
from laneway.storage.entries import get_entry
from laneway.storage.filesystem import Storage
from laneway.tables.opening import catalog_of
from laneway.testing.promises import require
from laneway.testing.resuming import assert_resumes_exactly
from laneway.testing.topologies import assert_exact_on_any_topology

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from laneway.tables.base import Catalog

_BATCH_ROWS = 4
_FILTERED = (
    *(pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean, pa.types.is_temporal),
    *(pa.types.is_string, pa.types.is_large_string),
)
"""Types of columns by whose values datasets are filtered."""


def check_catalog(make_table: Callable[[], Any], rows: pa.Table) -> None:
    """Check that a catalog keeps its promises, alone and in datasets.

    Its answers are compared with each other, with the files, and with the rows; also those of a second catalog, because
    each start of a job makes its own. Datasets of it are filtered by the value of each column, and resumed after any
    batch, on other numbers of ranks, with workers.

    Args:
        make_table: Returns a new `Catalog`, or a table of a library that has one, of the same version each time.
        rows: The rows that the table has, in any order, as another reader gives them: ten or more.

    Raises:
        AssertionError: The catalog breaks a promise; the message says which.
    """
    kit = _Kit(make_table, rows)
    kit.check_answers()
    kit.check_files()
    kit.check_deleted_rows()
    kit.check_second_catalog()
    kit.check_rows()
    kit.check_filters()
    kit.check_resuming()


@final
class _Kit:
    """A catalog, and the rows of its table."""

    def __init__(self, make_table: Callable[[], Any], rows: pa.Table) -> None:
        self._make_table = make_table
        self._catalog = self._open()
        self._files = self._catalog.files()
        self._num_files = len(self._files.paths)
        self._rows = rows

    def _open(self) -> Catalog:
        found = catalog_of(self._make_table())
        require(found is not None, "make_table must return a Catalog, or a table that has one")
        return found  # type: ignore[return-value]  # checked

    def check_answers(self) -> None:
        catalog = self._catalog
        require(catalog.format in FORMATS, f"format is {catalog.format!r}, and there are {', '.join(FORMATS)}")
        names = catalog.schema.names
        require(bool(names) and len({*names}) == len(names), f"the names of schema must differ, not {names}")
        version = catalog.version
        if version is not None:
            require(isinstance(version, str) and version != "", f"version must be a str or None, not {version!r}")
            private = [catalog.root, *(catalog.storage_options or {}).values()]
            contained = any(isinstance(each, str) and len(each) > 1 and each in version for each in private)
            require(not contained, "version contains root or a storage option, and states contain version")
        for name in names:
            bounds = catalog.bounds(name)
            lengths = {len(values) for values in bounds or ()}
            require(lengths <= {self._num_files}, f"bounds({name!r}) must have a value for each of the files")

    def check_files(self) -> None:
        files = self._files
        require(self._num_files > 0, "files() lists no files")
        require(len({*files.paths}) == self._num_files, "files() lists a file twice")
        given = {"sizes": files.sizes, **files.constants}
        if files.versions is not None:
            given["versions"] = files.versions
        for name, values in given.items():
            require(len(values) == self._num_files, f"files() has {len(values)} {name} of {self._num_files} files")
        unknown = sorted({*files.constants} - {*self._catalog.schema.names})
        require(not unknown, f"files() has constants of {unknown}, which are not in schema")
        if FORMATS[self._catalog.format].reads_by_itself:
            return
        storage = Storage(self._catalog.root, None, self._catalog.storage_options, None)
        for path, size in zip(files.paths, files.sizes, strict=True):
            whole = storage.path_of(path) if "://" in path else path if path.startswith("/") else storage.join(path)
            entry = get_entry(storage, whole)
            require(entry is not None, f"{path} does not exist")
            require(entry is None or entry.size == size, f"{path} has not the {size:,} bytes that files() says")

    def check_deleted_rows(self) -> None:
        everything = self._deleted(range(self._num_files))
        for index in range(self._num_files):
            expected = {index: everything[index]} if index in everything else {}
            found = self._deleted([index])
            require(found == expected, f"deleted_rows([{index}]) has other rows than deleted_rows of all files")

    def _deleted(self, indices: Sequence[int]) -> dict[int, Any]:
        found = {}
        for index, rows in self._catalog.deleted_rows(indices).items():
            require(index in indices, f"deleted_rows has rows of file {index}, which it was not asked for")
            is_fine = rows.dtype == np.int64 and (rows.ndim == 1 or rows.shape[1:] == (2,))
            require(is_fine, f"deleted rows are int64 of shape (n,) or (n, 2), not {rows.dtype} of {rows.shape}")
            found[index] = rows.tolist()
        return found

    def check_second_catalog(self) -> None:
        other = self._open()
        for what in ("format", "root", "version", "schema"):
            require(getattr(other, what) == getattr(self._catalog, what), f"a second catalog has another {what}")
        first, second = self._files, other.files()
        for what in ("paths", "sizes", "constants", "versions"):
            same = _listed(getattr(first, what)) == _listed(getattr(second, what))
            require(same, f"a second catalog has other {what}: states would not fit it")

    def check_rows(self) -> None:
        dataset = self._dataset()
        names = self._catalog.schema.names
        found = [*dataset]
        for row in found[:1]:
            require([*row] == names, f"rows have the columns {[*row]}, and schema has {names}")
        expected = self._rows.select(names).to_pylist()
        require(len(found) == len(expected), f"the table has {len(found)} rows instead of {len(expected)}")
        for ours, theirs in zip(_sorted(found), _sorted(expected), strict=True):
            require(ours == theirs, f"the table has the row {ours} instead of {theirs}")

    def check_filters(self) -> None:
        for field in self._catalog.schema:
            if not any(has_type(field.type) for has_type in _FILTERED):
                continue
            column = self._rows[field.name].combine_chunks().cast(field.type)
            values = column.unique().drop_null()
            for value in {0: None, len(values) // 2: None, len(values) - 1: None} if len(values) else ():
                self._check_filter(field.name, column, values[value])
            self._check_filter(field.name, column, None)

    def _check_filter(self, name: str, column: Any, value: Any) -> None:  # noqa: ANN401 - of any type of Arrow
        """Check that a filter by the value of a column, which leaves out files, leaves out no row of this value."""
        if value is None:
            condition, selected = pc.field(name).is_null(), column.is_null()
        else:
            condition, selected = pc.field(name) == value, pc.equal(column, value)
        expected = pc.sum(selected).as_py() or 0
        found = len(self._dataset(filter=condition))
        what = f"a filter by {name} = {value}"
        require(found == expected, f"{what} selects {found} rows instead of {expected}: bounds({name!r}) may be wrong")

    def check_resuming(self) -> None:
        batches = partial(self._dataset, shuffle=True, seed=3, window_bytes=400, shard_rows=4)
        assert_resumes_exactly(lambda: SavableLoader(batches(batch_size=_BATCH_ROWS)))
        if not FORMATS[self._catalog.format].reads_by_itself:
            assert_resumes_exactly(lambda: SavableLoader(batches(batch_size=_BATCH_ROWS), num_workers=2), stops=[2])
        on_rank = partial(batches, batch_size=2, remainder="keep")
        assert_exact_on_any_topology(
            lambda rank, world_size: SavableLoader(on_rank(rank=rank, world_size=world_size)), chains=[(1, 3, 2)]
        )

    def _dataset(self, **arguments: Any) -> StatefulShardedDataset:  # noqa: ANN401 - arguments of the dataset
        return StatefulShardedDataset(self._make_table(), output="python", **arguments)


def _listed(values: Any) -> Any:  # noqa: ANN401 - what files() has
    if values is None:
        return None
    return {name: [*each] for name, each in values.items()} if hasattr(values, "items") else [*values]


def _sorted(rows: Sequence[dict[str, Any]]) -> list[str]:
    return sorted(map(repr, rows))
