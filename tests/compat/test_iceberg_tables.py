"""Iceberg tables as sources: the rows of pyiceberg's own scan, resumed exactly, of the snapshot that was opened."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
import uuid
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.transforms import IdentityTransform
from pyiceberg.types import DoubleType, IntegerType, ListType, LongType, NestedField, StringType, StructType

from laneway import (
    CheckpointMismatchError,
    DataFileError,
    Manifest,
    SchemaMismatchError,
    StatefulShardedDataset,
)
from laneway.reading.reader import RowReader
from tests.compat.loaders import (
    FORKSERVER,
    flat,
    ids,
    resumed_after_each_batch,
    rows_while_ranks_change,
    table_loader,
)
from tests.iceberg_tables import delete_rows, local_catalog

if TYPE_CHECKING:
    from pathlib import Path

    from pyiceberg.table import DataScan, Table

LANGUAGES = ["en", "a b", "c/d", None, "ü", "x=y", "50%"]


TAGS = pa.list_(pa.struct([("a", pa.int64()), ("b", pa.string())]))


def some_rows(start: int, stop: int) -> pa.Table:
    """Return rows of several types, whose column `id` numbers them."""
    numbers = range(start, stop)
    times = [dt.datetime(2024, 1, 1, tzinfo=dt.UTC) + dt.timedelta(hours=i) for i in numbers]
    return pa.table(
        {
            "id": pa.array(numbers, pa.int32()),
            "lang": pa.array([LANGUAGES[i // 3 % len(LANGUAGES)] for i in numbers], pa.string()),
            "day": pa.array([dt.date(2024, 1, 1) + dt.timedelta(i // 20) for i in numbers], pa.date32()),
            "x": pa.array(
                [float("nan") if i % 11 == 0 else None if i % 7 == 0 else i / 2 for i in numbers], pa.float32()
            ),
            "price": pa.array([Decimal(i) / 4 for i in numbers], pa.decimal128(10, 2)),
            "time": pa.array(times, pa.timestamp("us", "UTC")),
            "tags": pa.array([[{"a": i, "b": f"t{i}"}] * (i % 3) for i in numbers], TAGS),
            "s": pa.array([{"q": i, "w": f"w{i}"} for i in numbers]),
            "uid": pa.array([uuid.UUID(int=i).bytes for i in numbers], pa.binary(16)),
        }
    )


def grown_table(folder: Path) -> Table:
    """Write a table of several snapshots: appends, deletes, overwrites, other columns and other partitions."""
    table = local_catalog(folder).create_table("ns.t", some_rows(0, 1).schema)
    table.append(some_rows(0, 40))
    with table.update_spec() as spec:
        spec.add_field("lang", IdentityTransform())
        spec.add_field("day", IdentityTransform(), "per_day")
    table.append(some_rows(40, 60))
    table.delete("id > 3 and id < 9")
    with table.update_schema() as schema:
        schema.update_column("id", LongType())
        schema.update_column("x", DoubleType())
        schema.rename_column("price", "cost")
        schema.rename_column("s.q", "qq")
        schema.delete_column("uid")
        schema.add_column("new", StringType())
        schema.add_column(("s", "z"), LongType())
        schema.move_first("x")
        schema.add_column("uid", IntegerType())
    with table.update_spec() as spec:
        spec.remove_field("lang")
        spec.add_field("s.w", IdentityTransform(), "w")
    later = table.scan().to_arrow()
    table.append(later.set_column(later.schema.get_field_index("id"), "id", pc.add(later["id"], 100)))
    table.delete("s.qq = 20")
    table.overwrite(table.scan(row_filter="id < 120").to_arrow(), overwrite_filter="id < 120")
    return table


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """Return a table of several snapshots."""
    return grown_table(tmp_path_factory.mktemp("grown"))


def text(rows: Any) -> list[str]:
    """Return rows as text, in which NaN equals NaN, sorted."""
    return sorted(repr(sorted(row.items())) for row in rows)


def scanned(scan: DataScan) -> list[dict[str, Any]]:
    """Return the rows of the library's own scan."""
    return scan.to_arrow().to_pylist()


def test_each_snapshot_has_the_rows_of_the_librarys_own_scan(grown: Table) -> None:
    assert len(grown.metadata.snapshots) >= 7
    for snapshot in grown.metadata.snapshots:
        scan = grown.scan(snapshot_id=snapshot.snapshot_id)
        expected = scanned(scan)
        if not expected:
            continue
        dataset = StatefulShardedDataset(scan)
        assert len(dataset) == len(expected)
        assert dataset.schema.names == [field.name for field in scan.projection().fields]
        assert text(dataset) == text(expected)
    assert text(StatefulShardedDataset(grown)) == text(expected)


@pytest.mark.parametrize(
    ("condition", "theirs"),
    [
        (pc.field("lang") == "a b", "lang = 'a b'"),
        (pc.field("lang").is_null(), "lang is null"),
        (pc.field("day") >= dt.date(2024, 1, 3), "day >= '2024-01-03'"),
        (pc.field("cost") == Decimal("10.25"), "cost = 10.25"),
        (pc.field("id") > 150, "id > 150"),
        ((pc.field("id") < 3) | (pc.field("id") > 155), "id < 3 or id > 155"),
        (pc.field("new").is_valid(), "new is not null"),
        (pc.field("uid").is_null(), "uid is null"),
        (
            pc.field("time") > dt.datetime(2024, 1, 3, 1, tzinfo=dt.UTC),
            "time > '2024-01-03T01:00:00+00:00'",
        ),
    ],
    ids=str,
)
def test_a_filter_selects_the_rows_of_a_scan_with_or_without_the_statistics_of_the_manifests(
    grown: Table, condition: pc.Expression, theirs: str
) -> None:
    expected = text(scanned(grown.scan(row_filter=theirs)))
    assert text(StatefulShardedDataset(grown, filter=condition)) == expected
    assert text(StatefulShardedDataset(grown).filter(condition)) == expected


@pytest.mark.parametrize(
    "condition", [pc.field("x") > 10, ~(pc.field("x") > 10), pc.field("x") != 5, pc.field("x").is_null()]
)
def test_filters_of_numbers_treat_nan_as_arrow_does(grown: Table, condition: pc.Expression) -> None:
    expected = text(grown.scan().to_arrow().filter(condition).to_pylist())
    assert text(StatefulShardedDataset(grown, filter=condition)) == expected
    assert text(StatefulShardedDataset(grown).filter(condition)) == expected


def test_files_that_the_manifests_exclude_are_not_opened(tmp_path: Path) -> None:
    table = local_catalog(tmp_path).create_table("ns.t", some_rows(0, 1).schema)
    for start in (0, 100, 200):
        table.append(some_rows(start, start + 100))
    condition = pc.field("id") >= 250
    kept = StatefulShardedDataset(table, filter=condition).manifest.files.paths
    assert len(kept) == 1
    for path in (tmp_path / "ns" / "t").rglob("data/*.parquet"):
        if path.name != kept[0].rpartition("/")[2]:
            path.unlink()
    assert sorted(row["id"] for row in StatefulShardedDataset(table, filter=condition)) == [*range(250, 300)]
    with pytest.raises(DataFileError, match="does not exist"):
        StatefulShardedDataset(table, filter=pc.field("id") >= 150)


LEFT = sorted(i for i in range(60) if i % 20 % 4)


def deleted_table(folder: Path, *, vectors: bool) -> Table:
    """Write a table of which rows were deleted, whose rows that are left have the ids `LEFT`."""
    catalog = local_catalog(folder)
    rows = some_rows(0, 60).select(["id"])
    table = catalog.create_table("ns.t", rows.schema)
    for start in (0, 20, 40):
        table.append(rows.slice(start, 20))
    paths = [task.file.file_path for task in table.scan().plan_files()]
    delete_rows(table, {path: [*range(0, 20, 4)] for path in paths}, vectors=vectors)
    return catalog.load_table("ns.t")


@pytest.mark.parametrize("vectors", [False, True])
def test_deleted_rows_are_no_rows(tmp_path: Path, *, vectors: bool) -> None:
    table = deleted_table(tmp_path, vectors=vectors)
    assert sorted(row["id"] for row in scanned(table.scan())) == LEFT
    dataset = StatefulShardedDataset(table)
    assert sorted(row["id"] for row in dataset) == LEFT
    assert len(dataset) == 45
    assert len(dataset.filter(pc.field("id") < 10)) == len([i for i in LEFT if i < 10])
    train, val = dataset.split({"train": 0.5, "val": 0.5}, by="id")
    assert sorted(row["id"] for part in (train, val) for row in part) == LEFT
    assert sorted(flat(resumed_after_each_batch(lambda: table_loader(table)))) == LEFT
    rows = rows_while_ranks_change(lambda rank, size: table_loader(table, rank=rank, world_size=size, remainder="keep"))
    assert rows == LEFT


def test_equality_deletes_are_refused(tmp_path: Path) -> None:
    table = deleted_table(tmp_path, vectors=False)
    delete_rows(table, {"": [1]}, equality=True)
    with pytest.raises(
        DataFileError, match=r"snapshot \d+ of the Iceberg table .* can't be planned: .*equality deletes"
    ):
        StatefulShardedDataset(table)


def test_workers_get_all_that_they_need_without_the_library(tmp_path: Path) -> None:
    table = deleted_table(tmp_path, vectors=False)
    alone = flat(ids(table_loader(table, lanes=2)))
    assert flat(ids(table_loader(table, lanes=2, num_workers=2, context=FORKSERVER))) == alone


def test_a_manifest_of_a_table_is_saved_and_cached(tmp_path: Path, grown: Table) -> None:
    manifest = Manifest.scan(grown, cache_dir=tmp_path / "cache")
    manifest.save(tmp_path / "manifest")
    expected = text(scanned(grown.scan()))
    states = []
    for each in (manifest, Manifest.load(tmp_path / "manifest"), Manifest.scan(grown, cache_dir=tmp_path / "cache")):
        states.append(StatefulShardedDataset(each).state_dict())
        assert text(StatefulShardedDataset(each)) == expected
    assert states[0] == states[1] == states[2]
    # Footers of files that two snapshots share are read once, whatever names their columns have in each.
    before = grown.scan(snapshot_id=grown.metadata.snapshots[2].snapshot_id)
    assert text(StatefulShardedDataset(Manifest.scan(before, cache_dir=tmp_path / "cache"))) == text(scanned(before))


def test_a_table_that_has_moved_on_is_named_and_the_old_snapshot_resumes(tmp_path: Path) -> None:
    table = deleted_table(tmp_path, vectors=False)
    old = table.current_snapshot()
    assert old is not None
    loader = table_loader(table)
    batches = iter(loader)
    before = [next(batches)["id"].tolist() for _ in range(4)]
    state = loader.state_dict()
    table.append(some_rows(60, 70).select(["id"]))
    assert str(tmp_path) not in repr(state)
    with pytest.raises(
        CheckpointMismatchError, match=rf"table: saved 'snapshot {old.snapshot_id} of the Iceberg table"
    ):
        table_loader(table).load_state_dict(state)
    resumed = table_loader(table.scan(snapshot_id=old.snapshot_id))
    resumed.load_state_dict(state)
    assert sorted(flat(before) + flat(ids(resumed))) == LEFT


def test_a_column_that_was_renamed_does_not_refuse_a_state(tmp_path: Path) -> None:
    table = deleted_table(tmp_path, vectors=False)
    loader = table_loader(table)
    first = next(iter(loader))["id"].tolist()
    state = loader.state_dict()
    with table.update_schema() as schema:
        schema.rename_column("id", "number")
    resumed = table_loader(table)
    resumed.load_state_dict(state)
    assert sorted(first + [row for batch in resumed for row in batch["number"].tolist()]) == LEFT


def test_what_was_counted_and_collected_is_cached_and_not_mistaken_when_two_columns_swap_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = local_catalog(tmp_path / "c").create_table("ns.t", pa.schema({"a": pa.int64(), "b": pa.int64()}))
    table.append(pa.table({"a": range(10), "b": [0] * 10}))
    cache = tmp_path / "cache"

    def found() -> tuple[int, Any, Any]:
        """Return the number of rows with a > 4, the values of a, and a as lengths."""
        selected = StatefulShardedDataset(table, filter=pc.field("a") > 4, cache_dir=cache)
        values = StatefulShardedDataset(table, categories={"a": None}, cache_dir=cache).categories["a"]
        lengths = StatefulShardedDataset(table, cache_dir=cache).count_lengths("a").definition.lengths
        return len(selected), values, None if lengths is None else lengths.rows.tolist()

    assert found() == (5, [*range(10)], [*range(10)])
    kinds = sorted(path.name.partition("-")[0] for path in cache.iterdir())
    assert kinds == ["_lengths", "_manifest", "_selection", "_vocabulary"]
    with monkeypatch.context() as patch:
        patch.setattr(RowReader, "read", None)
        assert found() == (5, [*range(10)], [*range(10)])
    with table.update_schema() as schema:
        schema.rename_column("a", "c")
        schema.rename_column("b", "a")
    assert found() == (0, [0], [0] * 10)


def test_files_that_were_added_as_they_are_have_the_columns_that_the_name_mapping_says(tmp_path: Path) -> None:
    inner = pa.array([{"q": i} for i in range(10)])
    pq.write_table(pa.table({"old": pa.array(range(10), pa.int64()), "s": inner}), tmp_path / "plain.parquet")
    table = local_catalog(tmp_path / "c").create_table(
        "ns.t", pa.schema({"old": pa.int64(), "s": pa.struct([("q", pa.int64())])})
    )
    table.add_files([str(tmp_path / "plain.parquet")])
    with table.update_schema() as schema:
        schema.rename_column("old", "id")
        schema.rename_column("s.q", "p")
    assert text(StatefulShardedDataset(table)) == text(scanned(table.scan()))
    assert StatefulShardedDataset(table).schema.names == ["id", "s"]
    with table.transaction() as change:
        change.remove_properties("schema.name-mapping.default")
    with pytest.raises(
        SchemaMismatchError, match=r"doesn't number its columns, and the table has no schema\.name-mapping"
    ):
        StatefulShardedDataset(table)


def rewrite_without(path: str, name: str, size: int) -> None:
    """Write a data file again without a column, and of the same size, as manifests know it."""
    rows = pq.ParquetFile(path).read().drop_columns([name])
    for num_bytes in range(size):
        with pq.ParquetWriter(path, rows.schema) as writer:
            writer.write_table(rows)
            writer.add_key_value_metadata({"padding": "x" * num_bytes})
        if os.stat(path).st_size >= size:  # noqa: PTH116
            break
    assert os.stat(path).st_size == size  # noqa: PTH116


def test_a_column_that_is_only_in_the_partition_is_read_from_there(tmp_path: Path) -> None:
    schema = Schema(
        NestedField(1, "id", LongType(), required=False), NestedField(2, "lang", StringType(), required=False)
    )
    spec = PartitionSpec(PartitionField(2, 1000, IdentityTransform(), "lang"))
    table = local_catalog(tmp_path / "c").create_table("ns.t", schema, partition_spec=spec)
    table.append(pa.table({"id": pa.array([10, 11], pa.int64()), "lang": ["de", None]}))
    files = [task.file for task in table.scan().plan_files()]
    assert {each.partition[0] for each in files} == {"de", None}
    # Files of a Hive table that became an Iceberg table lack the columns of their directories.
    for each in files:
        rewrite_without(each.file_path.removeprefix("file://"), "lang", each.file_size_in_bytes)
    assert text(StatefulShardedDataset(table)) == text(scanned(table.scan()))
    assert [(row["id"], row["lang"]) for row in StatefulShardedDataset(table)] == [(10, "de"), (11, None)]
    assert [row["id"] for row in StatefulShardedDataset(table, filter=pc.field("lang") == "de")] == [10]
    assert [row["id"] for row in StatefulShardedDataset(table).filter(pc.field("lang") == "de")] == [10]


def test_nested_columns_are_matched_by_their_numbers(tmp_path: Path) -> None:
    first = Schema(
        NestedField(1, "id", LongType(), required=False),
        NestedField(
            2,
            "many",
            ListType(3, StructType(NestedField(4, "a", LongType(), required=False)), element_required=False),
            required=False,
        ),
    )
    table = local_catalog(tmp_path).create_table("ns.t", first)
    table.append(pa.table({"id": pa.array([0, 1]), "many": pa.array([[{"a": 1}, {"a": 2}], []])}))
    with table.update_schema() as schema:
        schema.rename_column("many.element.a", "b")
    with table.update_schema() as schema:
        schema.add_column(("many", "a"), StringType())
    assert text(StatefulShardedDataset(table)) == text(scanned(table.scan()))
    assert text(scanned(table.scan()))[0] == "[('id', 0), ('many', [{'b': 1, 'a': None}, {'b': 2, 'a': None}])]"


def test_what_belongs_into_the_arguments_of_the_dataset_is_refused_in_a_scan(grown: Table) -> None:
    with pytest.raises(ValueError, match=r"the scan of the table has row_filter, selected_fields, limit: pass filter="):
        StatefulShardedDataset(grown.scan(row_filter="id > 3", selected_fields=("id",), limit=3))
    with pytest.raises(DataFileError, match=r"the table has no snapshot 7: it may have expired"):
        StatefulShardedDataset(grown.scan(snapshot_id=7))
    with pytest.raises(ValueError, match="a table says itself of which format"):
        StatefulShardedDataset(grown, format="parquet")


def test_a_table_without_rows_is_an_error(tmp_path: Path) -> None:
    table = local_catalog(tmp_path).create_table("ns.t", pa.schema({"id": pa.int64()}))
    with pytest.raises(DataFileError, match="has no data files"):
        StatefulShardedDataset(table)


_BY_URL = """
from laneway import DataFileError, StatefulShardedDataset
print(sorted(row["id"] for row in StatefulShardedDataset("iceberg://mine/ns.t")))
print(len(StatefulShardedDataset("iceberg://mine/ns.t@{snapshot}")), len(StatefulShardedDataset("iceberg://mine/ns.t@main")))
for wrong in ("mine/ns.missing", "mine/ns.t@7", "another/ns.t"):
    try:
        StatefulShardedDataset("iceberg://" + wrong)
    except DataFileError as error:
        print(error)
"""


def test_a_url_names_a_catalog_that_pyiceberg_knows(tmp_path: Path) -> None:
    table = deleted_table(tmp_path, vectors=False)
    environment = {**os.environ, "PYICEBERG_HOME": str(tmp_path), "PYICEBERG_CATALOG__MINE__TYPE": "sql"}
    environment["PYICEBERG_CATALOG__MINE__URI"] = f"sqlite:///{tmp_path}/catalog.db"
    # A catalog has its own name in the database.
    code = _BY_URL.format(snapshot=table.metadata.snapshots[0].snapshot_id).replace("mine", "test")
    environment = {name.replace("__MINE__", "__TEST__"): value for name, value in environment.items()}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == str(LEFT)
    assert lines[1] == "20 45"
    assert "can't be opened as an Iceberg table" in lines[2]
    assert "has no snapshot 7: it may have expired" in lines[3]
    assert "can't be opened as an Iceberg table" in lines[4]
