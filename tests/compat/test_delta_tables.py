"""Delta tables as sources: the rows of deltalake's own scan, resumed exactly, of the version that was opened."""

from __future__ import annotations

import datetime as dt
import shutil
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable, QueryBuilder, write_deltalake

from laneway import (
    CheckpointMismatchError,
    DataFileError,
    Manifest,
    Mixture,
    SavableLoader,
    StatefulShardedDataset,
    to_parquet,
)
from laneway.distributed import scan_once
from tests.compat.loaders import (
    FORKSERVER,
    flat,
    ids,
    resumed_after_each_batch,
    rows_while_ranks_change,
    table_loader,
)
from tests.delta_tables import add, add_version, added, field, metadata, protocol, removed

if TYPE_CHECKING:
    from pathlib import Path

START = dt.datetime(2024, 1, 1)  # noqa: DTZ001 - a column without a time zone
LANGUAGES = ["en", "a b", "c/d", None, "ü", "x=y", "50%"]


def some_rows(start: int, stop: int) -> pa.Table:
    """Return rows of several types, whose column `id` numbers them."""
    ids = range(start, stop)
    return pa.table(
        {
            "id": pa.array(ids, pa.int64()),
            "lang": pa.array([LANGUAGES[i // 3 % len(LANGUAGES)] for i in ids], pa.string()),
            "day": pa.array([dt.date(2024, 1, 1) + dt.timedelta(i // 20) for i in ids], pa.date32()),
            "x": pa.array([float("nan") if i % 11 == 0 else None if i % 7 == 0 else i / 2 for i in ids], pa.float64()),
            "price": pa.array([Decimal(i) / 4 for i in ids], pa.decimal128(10, 2)),
            "time": pa.array([START + dt.timedelta(microseconds=i * 300) for i in ids]),
            "tags": pa.array([[f"t{i}"] * (i % 3) for i in ids], pa.list_(pa.string())),
        }
    )


def grown_table(path: Path) -> list[int]:
    """Write a table of several versions, and return them."""
    write_deltalake(path, some_rows(0, 40), partition_by=["lang"])
    write_deltalake(path, some_rows(40, 60), mode="append")
    DeltaTable(path).delete("id % 5 = 1 AND id < 50")
    wider = some_rows(60, 80).append_column("new", pa.array([{"a": i} for i in range(20)]))
    write_deltalake(path, wider, mode="append", schema_mode="merge")
    DeltaTable(path).optimize.compact()
    ours = some_rows(80, 130).filter(pc.field("lang") == "en")
    write_deltalake(path, ours, mode="overwrite", schema_mode="merge", predicate="lang = 'en'")
    write_deltalake(path, some_rows(0, 7), mode="overwrite", schema_mode="overwrite")
    return list(range(DeltaTable(path).version() + 1))


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """Return a table, and its versions."""
    path = tmp_path_factory.mktemp("grown")
    return path, grown_table(path)


def schema_of(table: DeltaTable) -> pa.Schema:
    """Return the columns of a table."""
    columns: Any = table.schema()
    return pa.schema(columns)


def scanned(table: DeltaTable) -> list[dict[str, Any]]:
    """Return the rows of the library's own scan, sorted by their id."""
    found = pa.table(QueryBuilder().register("t", table).execute("select * from t order by id").read_all())
    return found.cast(schema_of(table)).to_pylist()


def read(dataset: StatefulShardedDataset) -> list[dict[str, Any]]:
    """Return the rows of a dataset, sorted by their id."""
    return sorted(dataset, key=lambda row: row["id"])


def text(rows: list[dict[str, Any]]) -> list[str]:
    """Return rows as text, in which NaN equals NaN."""
    return [repr(sorted(row.items())) for row in rows]


def test_each_version_has_the_rows_of_the_librarys_own_scan(grown: tuple[Path, list[int]]) -> None:
    path, versions = grown
    for version in versions:
        table = DeltaTable(path, version=version)
        dataset = StatefulShardedDataset(table)
        pinned = StatefulShardedDataset(f"delta://{path}@{version}")
        assert pinned.state_dict() == dataset.state_dict()
        expected = scanned(table)
        assert text(read(dataset)) == text(expected)
        assert len(dataset) == len(expected)
        assert dataset.schema.names == [each.name for each in table.schema().fields]
    assert text(read(StatefulShardedDataset(f"delta://{path}"))) == text(expected)


@pytest.mark.parametrize(
    "condition",
    [
        pc.field("lang") == "a b",
        pc.field("lang").is_null(),
        pc.field("lang") != "en",
        pc.field("day") >= dt.date(2024, 1, 3),
        pc.field("x") > 20,
        ~(pc.field("x") > 20),
        pc.field("x") != 0.5,
        pc.field("x").is_null(),
        pc.field("price") == Decimal("10.25"),
        pc.field("time") > START + dt.timedelta(microseconds=18_000),
        (pc.field("id") < 3) | (pc.field("id") > 77),
        pc.field("new").is_valid(),
    ],
    ids=str,
)
def test_a_filter_selects_the_rows_of_a_scan_with_or_without_the_statistics_of_the_log(
    grown: tuple[Path, list[int]], condition: pc.Expression
) -> None:
    table = DeltaTable(grown[0], version=3)
    expected = pa.Table.from_pylist(scanned(table), schema_of(table)).filter(condition)["id"].to_pylist()
    for dataset in (StatefulShardedDataset(table, filter=condition), StatefulShardedDataset(table).filter(condition)):
        assert sorted(row["id"] for row in dataset) == expected


def test_files_that_the_log_excludes_are_not_opened(tmp_path: Path) -> None:
    for start in (0, 100, 200):
        write_deltalake(tmp_path, some_rows(start, start + 100), mode="append")
    table = DeltaTable(tmp_path)
    kept = StatefulShardedDataset(table, filter=pc.field("id") >= 250)
    assert kept.manifest.files.num_files == 1
    for path in tmp_path.glob("*.parquet"):
        if path.name != kept.manifest.files.paths[0]:
            path.unlink()
    assert sorted(row["id"] for row in StatefulShardedDataset(table, filter=[("id", ">=", 250)])) == [*range(250, 300)]
    with pytest.raises(DataFileError, match="does not exist"):
        StatefulShardedDataset(table, filter=pc.field("id") >= 150)
    none = StatefulShardedDataset(table, filter=(pc.field("id") >= 250) & (pc.field("id") > 1000))
    assert (len(none), [*none]) == (0, [])


def test_a_manifest_without_the_files_that_a_filter_excludes_is_only_for_this_filter(tmp_path: Path) -> None:
    for start in (0, 100):
        write_deltalake(tmp_path, some_rows(start, start + 100), mode="append")
    table, condition = DeltaTable(tmp_path), pc.field("id") < 30
    manifest = scan_once(table, filter=condition)
    of_manifest = StatefulShardedDataset(manifest, filter=condition, columns=["id"])
    assert of_manifest.state_dict() == StatefulShardedDataset(table, filter=condition).state_dict()
    assert len(of_manifest) == 30
    for wrong in (None, pc.field("id") < 31):
        with pytest.raises(ValueError, match="has only the files of the table in which filter"):
            StatefulShardedDataset(manifest, filter=wrong)


def deleted_table(path: Path) -> Path:
    """Write a table with deletion vectors, whose rows that are left have the ids 0 to 59 without multiples of 4."""
    path.mkdir()
    rows = some_rows(0, 60)
    columns = [field("id", "long"), field("x", "double")]
    files = [
        add(path, f"part {start}.parquet", rows.slice(start, 20).select(["id", "x"]), [*range(0, 20, 4)])
        for start in (0, 20, 40)
    ]
    add_version(path, protocol("deletionVectors"), metadata(columns, {}), *files)
    return path


LEFT = [i for i in range(60) if i % 4]


def make(path: Path, version: str = "", **options: Any) -> SavableLoader:
    """Return a loader of a table; see `table_loader`."""
    return table_loader(f"delta://{path}{version}", **{"columns": ["id"], **options})


def test_rows_of_deletion_vectors_are_no_rows(tmp_path: Path) -> None:
    table = DeltaTable(deleted_table(tmp_path / "t"))
    dataset = StatefulShardedDataset(table)
    assert [row["id"] for row in dataset] == LEFT == [row["id"] for row in scanned(table)]
    assert len(dataset) == 45
    assert len(dataset.filter(pc.field("id") < 10)) == len([i for i in LEFT if i < 10])
    assert [row["id"] for row in dataset.skip(3).take(4)] == LEFT[3:7]
    train, val = dataset.split({"train": 0.5, "val": 0.5})
    assert sorted(row["id"] for part in (train, val) for row in part) == LEFT
    rows = list(StatefulShardedDataset(table, provenance=True))
    assert all((row["_path"], row["_row"]) == (f"part {row['id'] // 20 * 20}.parquet", row["id"] % 20) for row in rows)
    assert dataset.statistics(["id"])["id"].count == 45


def test_deleted_rows_stay_deleted_in_a_manifest_that_is_saved(tmp_path: Path) -> None:
    table = deleted_table(tmp_path / "t")
    manifest = Manifest.scan(f"delta://{table}", cache_dir=tmp_path / "cache")
    manifest.save(tmp_path / "manifest")
    loaded = Manifest.load(tmp_path / "manifest")
    for each in (loaded, Manifest.scan(f"delta://{table}", cache_dir=tmp_path / "cache")):
        assert [row["id"] for row in StatefulShardedDataset(each)] == LEFT
        assert StatefulShardedDataset(each).state_dict() == StatefulShardedDataset(manifest).state_dict()
    selected = loaded.select(pc.field("id") < 10)
    assert len(StatefulShardedDataset(selected, filter=pc.field("id") < 10)) == len([i for i in LEFT if i < 10])


def test_a_table_is_resumed_exactly_at_every_batch(tmp_path: Path) -> None:
    path = deleted_table(tmp_path / "t")
    assert sorted(flat(resumed_after_each_batch(lambda: make(path)))) == LEFT


def test_rows_come_once_while_ranks_and_workers_change(tmp_path: Path) -> None:
    path = deleted_table(tmp_path / "t")
    rows = rows_while_ranks_change(lambda rank, size: make(path, rank=rank, world_size=size, remainder="keep"))
    assert rows == LEFT


def test_workers_that_are_spawned_read_the_table(tmp_path: Path) -> None:
    path = deleted_table(tmp_path / "t")
    alone = flat(ids(make(path, lanes=2)))
    assert flat(ids(make(path, lanes=2, num_workers=2, context=FORKSERVER))) == alone


def test_a_table_that_has_moved_on_is_named_and_the_old_version_resumes(tmp_path: Path) -> None:
    path = deleted_table(tmp_path / "t")
    loader = make(path)
    batches = iter(loader)
    before = [next(batches)["id"].tolist() for _ in range(4)]
    state = loader.state_dict()
    # More rows of the same file are deleted.
    add_version(path, removed(path, "part 0.parquet"), added(path, "part 0.parquet", 20, [0, 1, 2]))
    with pytest.raises(
        CheckpointMismatchError, match=r"table: saved 'version 0 of the Delta table 0f0e0d0c', this run "
    ):
        make(path).load_state_dict(state)
    resumed = make(path, "@0")
    resumed.load_state_dict(state)
    assert sorted(flat(before) + flat(ids(resumed))) == LEFT


def test_rows_of_another_version_of_the_same_files_are_not_added_to_what_was_rewritten(tmp_path: Path) -> None:
    path = deleted_table(tmp_path / "t")
    for _ in range(2):
        rewritten = to_parquet(Manifest.scan(f"delta://{path}"), tmp_path / "dest")
        assert [row["id"] for row in StatefulShardedDataset(rewritten)] == LEFT
    add_version(path, removed(path, "part 0.parquet"), added(path, "part 0.parquet", 20, [0, 1, 2]))
    with pytest.raises(DataFileError, match=r"dest holds part-000000\.parquet, which is of another source"):
        to_parquet(Manifest.scan(f"delta://{path}"), tmp_path / "dest")


def test_renamed_columns_are_read_by_their_physical_names(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.mkdir()
    inner, others = (
        {"type": "struct", "fields": [field("new", "long", "col-2", n), field("kept", "string", "col-3", n + 1)]}
        for n in (2, 7)
    )
    columns = [
        field("id", "long", "col-1", 1),
        field("s", inner, "col-4", 4),
        field("col-1", "string", "col-5", 5),
        field("many", {"type": "array", "elementType": others, "containsNull": True}, "col-6", 6),
    ]
    values = [{"col-3": f"k{i}", "col-2": i, "col-9": -i} for i in range(30)]
    rows = pa.table(
        {
            "col-4": pa.array(values),
            "col-1": pa.array(range(30), pa.int64()),
            "id": ["dropped"] * 30,
            "col-6": pa.array([[value] * (i % 3) for i, value in enumerate(values)]),
        }
    )
    add_version(
        path,
        protocol("columnMapping", "deletionVectors"),
        metadata(columns, {"delta.columnMapping.mode": "name", "delta.columnMapping.maxColumnId": "8"}),
        add(path, "a.parquet", rows, [3]),
    )
    table = DeltaTable(path)
    dataset = StatefulShardedDataset(table)
    assert read(dataset) == scanned(table)
    assert dataset.schema.names == ["id", "s", "col-1", "many"]
    assert [row["s.new"] for row in StatefulShardedDataset(table, columns=["s.new"])] == [
        i for i in range(30) if i != 3
    ]
    assert [row["id"] for row in dataset.filter(pc.field("id") > 26)] == [27, 28, 29]


def test_a_table_without_rows_and_one_that_does_not_exist_are_errors(tmp_path: Path) -> None:
    DeltaTable.create(tmp_path / "empty", pa.schema({"id": pa.int64()}))
    with pytest.raises(DataFileError, match=r"version 0 of the Delta table .* has no data files"):
        StatefulShardedDataset(DeltaTable(tmp_path / "empty"))
    with pytest.raises(DataFileError, match="can't be opened as a Delta table"):
        StatefulShardedDataset(f"delta://{tmp_path}/missing")
    with pytest.raises(DataFileError, match="can't be opened as a Delta table"):
        StatefulShardedDataset(f"delta://{tmp_path}/empty@7")
    add_version(tmp_path / "empty", protocol("somethingNew"))
    with pytest.raises(DataFileError, match=r"can't be opened as a Delta table|needs the reader features somethingNew"):
        StatefulShardedDataset(f"delta://{tmp_path}/empty")


def test_a_vacuumed_file_is_an_error_that_names_it_and_the_version(tmp_path: Path) -> None:
    write_deltalake(tmp_path, some_rows(0, 10))
    planned = StatefulShardedDataset(DeltaTable(tmp_path))
    write_deltalake(tmp_path, some_rows(0, 10), mode="overwrite")
    DeltaTable(tmp_path).vacuum(0, dry_run=False, enforce_retention_duration=False)
    table = DeltaTable(tmp_path, version=0)
    problem = r"\.parquet does not exist, but version 0 of the Delta table .* lists it: .* by vacuum"
    with pytest.raises(DataFileError, match=problem):
        StatefulShardedDataset(table)
    with pytest.raises(DataFileError, match=problem):
        next(iter(planned))


def test_a_moved_table_is_the_same(tmp_path: Path) -> None:
    path = deleted_table(tmp_path / "t")
    state = make(path).state_dict()
    log = shutil.copytree(path, tmp_path / "elsewhere") / "_delta_log" / f"{0:020}.json"
    log.write_text(log.read_text().replace(str(path), str(tmp_path / "elsewhere")))
    shutil.rmtree(path)
    loader = make(tmp_path / "elsewhere")
    loader.load_state_dict(state)
    assert sorted(flat(ids(loader))) == LEFT


def test_a_mixture_that_has_begun_with_a_table_goes_on_with_one_that_has_grown(tmp_path: Path) -> None:
    write_deltalake(tmp_path, some_rows(0, 20).select(["id"]))
    write_deltalake(tmp_path, some_rows(20, 50).select(["id"]), mode="append")

    def mixture(*, has_grown: bool) -> SavableLoader:
        source = StatefulShardedDataset(f"delta://{tmp_path}@0")
        source = source.extend(StatefulShardedDataset(f"delta://{tmp_path}@1")) if has_grown else source
        return SavableLoader(Mixture({"t": source}, {"t": 1}, seed=1, stop=70).batch(5))

    loader = mixture(has_grown=False)
    batches = iter(loader)
    before = [next(batches)["id"].tolist() for _ in range(3)]
    state = loader.state_dict()
    resumed = mixture(has_grown=True)
    resumed.load_state_dict(state)
    rows = flat(before) + flat(ids(resumed))
    assert sorted(rows[:20]) == [*range(20)]
    assert sorted(rows[20:]) == [*range(50)]
