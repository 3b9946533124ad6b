"""Every catalog of laneway passes the conformance kit that others use for theirs, and the kit notices what is wrong."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

import datasets
import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from pyiceberg.transforms import IdentityTransform

import laneway.tables
from laneway import Bounds, Catalog, TableFiles
from laneway.tables.hf_cached import CachedSplit
from laneway.tables.opening import catalog_of
from laneway.testing import check_catalog
from tests.delta_tables import add, add_version, field, metadata, protocol
from tests.iceberg_tables import delete_rows, local_catalog

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Made = tuple[Callable[[], Any], pa.Table]


TYPES: dict[str, pa.DataType] = {"id": pa.int64(), "x": pa.float64(), "kind": pa.string()}
SCHEMA = pa.schema(TYPES)


def some_rows(start: int, stop: int) -> pa.Table:
    ids = range(start, stop)
    columns = {"id": [*ids], "x": [None if i % 5 == 0 else i / 2 for i in ids], "kind": [f"k{i // 5}" for i in ids]}
    return pa.table(columns, SCHEMA)


def partitioned_delta(path: Path) -> Made:
    for start in (0, 10):
        write_deltalake(path, some_rows(start, start + 10), mode="append", partition_by=["kind"])
    DeltaTable(path).delete("id = 3")
    return lambda: DeltaTable(path), _without(some_rows(0, 20), 3)


def _without(rows: pa.Table, *ids: int) -> pa.Table:
    return rows.filter(~np.isin(rows["id"], ids))


def delta_with_vectors(path: Path) -> Made:
    path.mkdir()
    columns = [field("id", "long"), field("x", "double"), field("kind", "string")]
    files = [add(path, f"{start}.parquet", some_rows(start, start + 10), [1, 4]) for start in (0, 10)]
    add_version(path, protocol("deletionVectors"), metadata(columns, {}), *files)
    return lambda: f"delta://{path}", _without(some_rows(0, 20), 1, 4, 11, 14)


def iceberg(path: Path) -> Made:
    catalog = local_catalog(path)
    table = catalog.create_table("ns.t", SCHEMA)
    table.append(some_rows(0, 10))
    delete_rows(table, {task.file.file_path: [2, 3] for task in table.scan().plan_files()})
    table = catalog.load_table("ns.t")
    with table.update_spec() as spec:
        spec.add_field("kind", IdentityTransform())
    table.append(some_rows(10, 20))
    return lambda: local_catalog(path).load_table("ns.t"), _without(some_rows(0, 20), 2, 3)


def lance_dataset(path: Path) -> Made:
    lance.write_dataset(some_rows(0, 20), path / "t.lance", max_rows_per_file=8)
    lance.dataset(path / "t.lance").delete("id % 7 = 1")
    return lambda: f"lance://{path}/t.lance", _without(some_rows(0, 20), 1, 8, 15)


def hf_dataset(path: Path) -> Made:
    saved_folder(path)
    return lambda: datasets.load_from_disk(path).select(range(3, 18)), some_rows(3, 18)


def saved_folder(path: Path) -> Made:
    datasets.disable_progress_bars()
    datasets.Dataset(some_rows(0, 20)).save_to_disk(path, num_shards=2)
    return lambda: str(path), some_rows(0, 20)


def cached_split(path: Path) -> Made:
    make, rows = saved_folder(path)
    saved = catalog_of(make())
    assert saved is not None
    paths, ranges = sorted(map(str, path.glob("*.arrow"))), [np.array([[0, 10]]), np.array([[2, 5], [8, 10]])]
    text = CachedSplit(saved.schema, paths, ranges, [10, 10]).encode()
    return lambda: CachedSplit.decode(text), _without(rows, 10, 11, 15, 16, 17)


TABLES: dict[str, Callable[[Path], Made]] = {
    "DeltaCatalog": partitioned_delta,
    "DeltaCatalog with deletion vectors": delta_with_vectors,
    "IcebergCatalog": iceberg,
    "LanceCatalog": lance_dataset,
    "HfCatalog": hf_dataset,
    "SavedCatalog": saved_folder,
    "CachedSplit": cached_split,
}


@pytest.mark.parametrize("name", TABLES)
def test_every_catalog_keeps_its_promises(tmp_path: Path, name: str) -> None:
    make_table, rows = TABLES[name](tmp_path / "table")
    assert type(catalog_of(make_table())).__name__ == name.partition(" ")[0]
    check_catalog(make_table, rows)


def test_every_catalog_is_among_them() -> None:
    modules = [
        importlib.import_module(f"laneway.tables.{each.name}") for each in pkgutil.iter_modules(laneway.tables.__path__)
    ]
    found = {
        name
        for module in modules
        for name, each in vars(module).items()
        if isinstance(each, type) and issubclass(each, Catalog) and each is not Catalog
    }
    assert found == {name.partition(" ")[0] for name in TABLES}


# -- Catalogs that break a promise ------------------------------------------------------------------------------------


class Days(Catalog):
    """A table of two files with all that a catalog can say; each subclass breaks one promise."""

    schema = pa.schema([("id", pa.int64()), ("day", pa.int32())])

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def root(self) -> str:
        return str(self.folder)

    def files(self) -> TableFiles:
        paths = ["0.parquet", "1.parquet"]
        sizes = [(self.folder / path).stat().st_size for path in paths]
        return TableFiles(paths=paths, sizes=sizes, constants={"day": [0, 1]})

    def rename(self, schema: pa.Schema) -> pa.Schema:
        return pa.schema([each.with_name("id") for each in schema])

    def bounds(self, name: str) -> Bounds | None:
        least, greatest = {"id": ([0, 10], [9, 19]), "day": ([0, 1], [0, 1])}[name]
        no = np.zeros(2, bool)
        return Bounds(pa.array(least), pa.array(greatest), has_nulls=no, is_null=no)

    def deleted_rows(self, indices: Sequence[int]) -> Mapping[int, NDArray[np.int64]]:
        return {1: np.array([0, 1])} if 1 in indices else {}


class WithSecret(Days):
    storage_options: Mapping[str, Any] | None = {"auto_mkdir": "hunter2"}

    @property
    def version(self) -> str:
        return "of hunter2"


class OfAnotherVersionEachTime(Days):
    _count = 0

    @property
    def version(self) -> str:
        OfAnotherVersionEachTime._count += 1
        return str(self._count)


class Growing(Days):
    def files(self) -> TableFiles:
        found = super().files()
        return TableFiles(paths=found.paths, sizes=[each + 1 for each in found.sizes], constants=found.constants)


class ListedTwice(Days):
    def files(self) -> TableFiles:
        found = super().files()
        return TableFiles(paths=[found.paths[0]] * 2, sizes=found.sizes, constants=found.constants)


class WithFewConstants(Days):
    def files(self) -> TableFiles:
        found = super().files()
        return TableFiles(paths=found.paths, sizes=found.sizes, constants={"day": [0]})


class WithNarrowBounds(Days):
    def bounds(self, name: str) -> Bounds | None:
        found = super().bounds(name)
        return found and found._replace(greatest=pa.array([5, 15]) if name == "id" else found.greatest)


class WithBoundsOfOneFile(Days):
    def bounds(self, name: str) -> Bounds | None:
        found = super().bounds(name)
        return found and found._replace(is_null=found.is_null[:1])


class ForgettingNames(Days):
    def rename(self, schema: pa.Schema) -> pa.Schema:
        return schema


class Undeleting(Days):
    def deleted_rows(self, indices: Sequence[int]) -> Mapping[int, NDArray[np.int64]]:
        return super().deleted_rows(indices) if len(indices) > 1 else {}


class DeletingElsewhere(Days):
    def deleted_rows(self, indices: Sequence[int]) -> Mapping[int, NDArray[np.int64]]:
        return super().deleted_rows([*indices, 1])


BROKEN: dict[type[Days], str] = {
    WithSecret: "version contains root or a storage option",
    OfAnotherVersionEachTime: "a second catalog has another version",
    Growing: "has not the .* bytes that",
    ListedTwice: "lists a file twice",
    WithFewConstants: "has 1 day of 2 files",
    WithNarrowBounds: r"selects 0 rows instead of 1: bounds\('id'\) may be wrong",
    WithBoundsOfOneFile: "must have a value for each of the files",
    ForgettingNames: "the table has the row .*None.* instead of",
    Undeleting: r"deleted_rows\(\[1\]\) has other rows",
    DeletingElsewhere: "has rows of file 1, which it was not asked for",
}


def _days(folder: Path) -> pa.Table:
    for day in range(2):
        pq.write_table(pa.table({"number": range(day * 10, day * 10 + 10)}), folder / f"{day}.parquet")
    ids = [*range(10), *range(12, 20)]
    return pa.table({"id": ids, "day": [i // 10 for i in ids]})


def test_a_catalog_that_says_all_that_it_can_passes(tmp_path: Path) -> None:
    rows = _days(tmp_path)
    check_catalog(lambda: Days(tmp_path), rows)


@pytest.mark.parametrize("broken", BROKEN)
def test_a_catalog_that_breaks_a_promise_is_told_which(tmp_path: Path, broken: type[Days]) -> None:
    rows = _days(tmp_path)
    with pytest.raises(AssertionError, match=BROKEN[broken]):
        check_catalog(lambda: broken(tmp_path), rows)
