"""Catalogs of a user's own: files, constants, names, statistics and deleted rows as the catalog says, or an error."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laneway import Bounds, Catalog, DataFileError, Manifest, SchemaMismatchError, StatefulShardedDataset, TableFiles
from laneway.catalog.decoding import decode
from laneway.catalog.encoding import encode
from laneway.reading.expressions import filter_on
from laneway.tables.pruning import files_that_may_match

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray


class Parts(Catalog):
    """A table of files of ten rows, with an option for each thing that a catalog can say."""

    def __init__(self, folder: Path, schema: pa.Schema, **given: Any) -> None:
        self._folder, self._schema, self._given = folder, schema, given

    @property
    def root(self) -> str:
        return str(self._folder)

    @property
    def version(self) -> str | None:
        found: str | None = self._given.get("version")
        return found

    @property
    def schema(self) -> pa.Schema:
        return self._schema

    def files(self) -> TableFiles:
        paths = self._given.get("paths", sorted(path.name for path in self._folder.glob("*.parquet")))
        sizes = [(self._folder / path).stat().st_size for path in paths]
        return TableFiles(paths=paths, sizes=sizes, constants=self._given.get("constants", {}))

    def rename(self, schema: pa.Schema) -> pa.Schema:
        names = self._given.get("names", {})
        return pa.schema([field.with_name(names.get(field.name, field.name)) for field in schema])

    def deleted_rows(self, indices: Sequence[int]) -> Mapping[int, NDArray[np.int64]]:
        deleted: dict[int, Any] = self._given.get("deleted", {})
        return {index: np.array(rows) for index, rows in deleted.items() if index in indices}


SCHEMA = pa.schema([("id", pa.int64())])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        ids = pa.array(range(number * 10, number * 10 + 10), pa.int32())
        pq.write_table(pa.table({"id": ids}), tmp_path / f"{number}.parquet", row_group_size=4)
    return tmp_path


def ids(source: Any, **options: Any) -> list[int]:
    return [row["id"] for row in StatefulShardedDataset(source, **options)]


def test_files_come_in_the_order_of_their_paths_and_only_those_that_are_listed(folder: Path) -> None:
    assert ids(Parts(folder, SCHEMA, paths=["2.parquet", "0.parquet"])) == [*range(10), *range(20, 30)]
    whole = [str(folder / "1.parquet"), (folder / "0.parquet").as_uri()]
    listed = Parts(folder, SCHEMA, paths=["0.parquet"])
    assert ids(listed) == [*range(10)]
    given = TableFiles(paths=whole, sizes=[(folder / f"{i}.parquet").stat().st_size for i in (1, 0)])
    listed.files = lambda: given  # type: ignore[method-assign]
    manifest = Manifest.scan(listed)
    assert [*manifest.files.paths] == ["0.parquet", "1.parquet"]
    assert manifest.root == str(folder)


def test_constants_are_columns_of_their_types_where_a_file_lacks_them(folder: Path) -> None:
    types: dict[str, Any] = {"id": pa.int64(), "day": pa.date32(), "share": pa.float64(), "many": pa.uint64()}
    schema = pa.schema(types)
    constants: dict[str, list[Any]] = {
        "id": [7, 7, 7],
        "day": [1, None, 3],
        "share": [0.1, 1e300, None],
        "many": [2**64 - 1, 0, None],
    }
    found = list(StatefulShardedDataset(Parts(folder, schema, constants=constants)))
    assert [row["id"] for row in found] == [*range(30)]
    expected = pa.table({name: pa.array(constants[name], types[name]) for name in schema.names[1:]})
    assert [{name: row[name] for name in expected.column_names} for row in found[::10]] == expected.to_pylist()
    with pytest.raises(SchemaMismatchError, match="'name' is constant in the files of the table of Parts, and of type"):
        StatefulShardedDataset(
            Parts(folder, pa.schema([*SCHEMA, ("name", pa.binary())]), constants={"name": [b"\xff", b"", None]})
        )


def test_what_was_collected_is_cached_for_the_same_constants_only(folder: Path, tmp_path: Path) -> None:
    schema, cache = pa.schema([*SCHEMA, ("share", pa.int64())]), tmp_path / "cache"
    for constants in ([1, 2, None], [3, 4, 4]) * 2:
        catalog = Parts(folder, schema, version="1", constants={"share": constants})
        dataset = StatefulShardedDataset(catalog, categories={"share": None}, cache_dir=cache)
        assert dataset.categories["share"] == sorted({each for each in constants if each is not None})
    assert len([*cache.glob("_vocabulary-*")]) == 2


def test_columns_have_the_names_of_the_table_and_statistics_still_count(folder: Path) -> None:
    catalog = Parts(folder, pa.schema([("number", pa.int64())]), names={"id": "number"})
    assert [row["number"] for row in StatefulShardedDataset(catalog, filter=pc.field("number") > 27)] == [28, 29]
    kept = StatefulShardedDataset(Parts(folder, SCHEMA), filter=pc.field("id") > 27)
    assert kept.schema == SCHEMA
    assert [row["id"] for row in kept] == [28, 29]


def test_what_a_catalog_says_wrongly_is_an_error(folder: Path) -> None:
    with pytest.raises(DataFileError, match=r"0\.parquet is listed twice \(1 such files\)"):
        ids(Parts(folder, SCHEMA, paths=["0.parquet", "1.parquet", "0.parquet"]))
    with pytest.raises(DataFileError, match=r"says that row 10 of 1\.parquet is deleted, which has 10 rows"):
        ids(Parts(folder, SCHEMA, deleted={1: [3, 10]}))
    with pytest.raises(DataFileError, match="the table of Parts has no data files"):
        ids(Parts(folder, SCHEMA, paths=[]))
    with pytest.raises(SchemaMismatchError, match="can't be cast"):
        ids(Parts(folder, pa.schema([("id", pa.list_(pa.int64()))])))


def test_what_a_manifest_says_of_a_table_is_kept_and_checked(folder: Path) -> None:
    catalog = Parts(folder, SCHEMA, deleted={0: [0, 1, 5], 2: [9]}, version="one", names={"id": "id"})
    manifest = Manifest.scan(catalog)
    found = decode(memoryview(encode(manifest)), "m")
    assert found.table is not None
    assert manifest.table is not None
    assert (found.table.version, found.table.schema, found.table.filter) == ("one", SCHEMA, None)
    assert found.table.deleted.digest == manifest.table.deleted.digest
    assert [each.equals(SCHEMA) for each in found.schemas.stored] == [False]
    expected = [i for i in range(30) if i not in {0, 1, 5, 29}]
    assert ids(Manifest.of(found)) == expected == ids(catalog)
    for ranges in (
        [[0, 2], [2, 6], [9, 10]],
        [[0, 2], [5, 5], [9, 10]],
        [[0, 2], [5, 6], [9, 11]],
        [[-1, 2], [5, 6], [9, 10]],
    ):
        object.__setattr__(manifest.table.deleted, "ranges", np.array(ranges))
        with pytest.raises(DataFileError, match="deleted rows"):
            decode(memoryview(encode(manifest)), "m")


VALUES = st.lists(st.one_of(st.none(), st.integers(-3, 3)), min_size=1, max_size=4)
CONDITIONS = st.sampled_from(
    [
        pc.field("x") > 1,
        pc.field("x") == 0,
        pc.field("x") != 0,
        ~(pc.field("x") < 0),
        pc.field("x").is_null(),
        pc.field("x").is_valid(),
        (pc.field("x") < -1) | (pc.field("x") > 1),
        pc.field("x").isin([2, 3]),
        (pc.field("x") >= 0) & ~pc.field("x").is_null(),
    ]
)


@given(st.lists(VALUES, min_size=1, max_size=6), CONDITIONS, st.data())
def test_no_file_with_a_matching_row_is_left_out(
    files: list[list[int | None]], condition: pc.Expression, data: st.DataObject
) -> None:
    type_: Any = data.draw(st.sampled_from([pa.int64(), pa.float64()]))
    schema = pa.schema([("x", type_)])

    class Known(Parts):
        def bounds(self, name: str) -> Bounds | None:
            assert name == "x"
            present = [[value for value in values if value is not None] for values in files]
            slack = [data.draw(st.integers(0, 1)) for _ in files]
            return Bounds(
                pa.array(
                    [min(each) - by if each else None for each, by in zip(present, slack, strict=True)], pa.int64()
                ),
                pa.array(
                    [max(each) + by if each else None for each, by in zip(present, slack, strict=True)], pa.int64()
                ),
                np.array([None in values for values in files]),
                np.array([not each for each in present]),
            )

    kept = files_that_may_match(Known(None, schema), filter_on(condition, schema, None), len(files))  # type: ignore[arg-type]
    bounds = np.cumsum([0, *map(len, files)])
    table = pa.table({"x": pa.array([value for values in files for value in values], type_)})
    for is_kept, (start, stop) in zip(kept.tolist(), pairwise(bounds.tolist()), strict=True):
        assert is_kept or table.slice(start, stop - start).filter(condition).num_rows == 0
