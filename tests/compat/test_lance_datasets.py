"""Lance datasets as sources: the rows of Lance's own scan, resumed exactly, of the version that was opened."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from laneway import CheckpointMismatchError, DataFileError, Manifest, SavableLoader, StatefulShardedDataset, to_parquet
from laneway.testing import assert_resumes_exactly
from tests.compat.loaders import FORKSERVER, flat, ids, loader_raises, rows_while_ranks_change, table_loader

if TYPE_CHECKING:
    from pathlib import Path

LEFT = [i for i in range(60) if i % 4]
BLOCK_BYTES = 4 << 20


def some_rows(start: int, stop: int) -> pa.Table:
    """Return rows of several types, whose column `id` numbers them."""
    numbers = range(start, stop)
    columns: dict[str, Any] = {
        "id": pa.array(numbers, pa.int64()),
        "My text": pa.array([None if i % 7 == 0 else f"row {i}" for i in numbers]),
        "s": pa.array([{"a": i, "b": {"c": str(i)}} for i in numbers]),
        "tags": pa.array([[f"t{i}"] * (i % 3) for i in numbers]),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(start * 4, stop * 4), pa.float32()), 4),
        "x": pa.array([None if i % 5 == 0 else i / 2 for i in numbers], pa.float64()),
        "kind": pa.array([f"k{i % 3}" for i in numbers]).dictionary_encode(),
        "blob": pa.array([b"blob %d" % i for i in numbers], pa.large_binary()),
    }
    fields = [(name, column.type) for name, column in columns.items()]
    schema = pa.schema(fields)
    index = schema.get_field_index("blob")
    return pa.table(columns, schema.set(index, schema.field(index).with_metadata({"lance-encoding:blob": "true"})))


def grown_dataset(path: Path) -> list[int]:
    """Write a dataset of several versions, and return them."""
    lance.write_dataset(some_rows(0, 40), path, max_rows_per_file=15)
    lance.write_dataset(some_rows(40, 60), path, mode="append")
    lance.dataset(path).delete("id % 5 = 1 AND id < 50")
    lance.dataset(path).add_columns({"twice": "id * 2"})
    lance.dataset(path).add_columns(pa.field("empty", pa.float32()))
    lance.dataset(path).update({"twice": "-1"}, where="id > 50")
    renamed: Any = {"path": "id", "name": "number"}
    wider: Any = {"path": "twice", "data_type": pa.int32()}
    lance.dataset(path).alter_columns(renamed)
    lance.dataset(path).alter_columns(wider)
    lance.dataset(path).drop_columns(["tags"])
    lance.dataset(path).optimize.compact_files()
    merge = lance.dataset(path).merge_insert("number").when_matched_update_all()
    merge.execute(pa.table({"number": [2, 55], "x": [-2.0, -55.0]}))
    lance.write_dataset(some_rows(0, 7), path, mode="overwrite")
    return [each["version"] for each in lance.dataset(path).versions()]


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """Return a dataset, and its versions."""
    path = tmp_path_factory.mktemp("grown") / "rows.lance"
    return path, grown_dataset(path)


def scanned(dataset: lance.LanceDataset, **options: Any) -> list[dict[str, Any]]:
    """Return the rows of Lance's own scan."""
    return dataset.to_table(blob_handling="all_binary", **options).to_pylist()


def test_each_version_has_the_rows_of_a_scan_of_lance(grown: tuple[Path, list[int]]) -> None:
    path, versions = grown
    assert len(versions) > 10
    for version in versions:
        source = lance.dataset(path, version=version)
        dataset = StatefulShardedDataset(source, output="python")
        pinned = StatefulShardedDataset(f"lance://{path}@{version}", output="python")
        assert pinned.state_dict() == dataset.state_dict()
        expected = scanned(source)
        assert [*dataset] == expected
        assert len(dataset) == len(expected)
        assert dataset.schema.names == source.schema.names
    assert [*StatefulShardedDataset(f"lance://{path}", output="python")] == expected


def test_a_filter_selects_the_rows_of_a_scan(grown: tuple[Path, list[int]]) -> None:
    source = lance.dataset(grown[0], version=6)
    conditions: list[Any] = [
        pc.field("x") > 20,
        pc.field("x").is_null() & (pc.field("id") > 30),
        pc.field("twice") == -1,
        pc.field("empty").is_valid(),
        pc.field("My text").isin(["row 3", "row 58"]),
    ]
    for condition in conditions:
        expected = scanned(source, filter=condition)
        for dataset in (
            StatefulShardedDataset(source, filter=condition, output="python"),
            StatefulShardedDataset(source, output="python").filter(condition),
        ):
            assert [*dataset] == expected
    dataset = StatefulShardedDataset(source, columns=["s.b.c", "id"], output="python")
    assert [*dataset] == [{"s.b.c": row["s"]["b"]["c"], "id": row["id"]} for row in scanned(source)]


def test_each_storage_format_of_lance_is_read(tmp_path: Path) -> None:
    rows = some_rows(0, 50).drop_columns(["blob"])
    for version in ("legacy", "2.0", "2.1", "2.2"):
        source = lance.write_dataset(rows, tmp_path / version, max_rows_per_file=20, data_storage_version=version)
        source.delete("id in (0, 21, 49)")
        dataset = StatefulShardedDataset(f"lance://{tmp_path / version}", output="python")
        assert [*dataset] == scanned(lance.dataset(tmp_path / version))


def test_a_large_fragment_has_several_blocks(tmp_path: Path) -> None:
    num_rows = 6000
    vectors = np.random.default_rng(0).random(num_rows * 512, np.float32)
    rows = pa.table({"id": range(num_rows), "v": pa.FixedSizeListArray.from_arrays(pa.array(vectors), 512)})
    lance.write_dataset(rows, tmp_path)
    lance.dataset(tmp_path).delete("id % 3 = 0")
    dataset = StatefulShardedDataset(f"lance://{tmp_path}", shuffle=True, batch_size=100)
    files = dataset.manifest.files
    assert (files.num_files, len(files.block_rows)) == (1, files.sizes[0] // BLOCK_BYTES)
    # Of two thirds of the rows.
    assert files.block_memory_bytes.sum() == 4000 * (8 + 512 * 4)
    for batch in dataset:
        expected = vectors.reshape(num_rows, 512)[batch["id"].numpy()]
        assert (batch["v"].numpy() == expected).all()
    assert sorted(flat(ids(dataset))) == [i for i in range(num_rows) if i % 3]


def dataset_with_deletions(path: Path) -> Path:
    """Write a dataset of three fragments, whose rows that are left have the ids 0 to 59 without multiples of 4."""
    lance.write_dataset(pa.table({"id": range(60), "x": [i / 2 for i in range(60)]}), path, max_rows_per_file=20)
    lance.dataset(path).delete("id % 4 = 0")
    return path


def make(path: Path, version: str = "", **options: Any) -> SavableLoader:
    """Return a loader of a dataset; see `table_loader`."""
    return table_loader(f"lance://{path}{version}", **options)


def test_deleted_rows_are_no_rows(tmp_path: Path) -> None:
    path = dataset_with_deletions(tmp_path / "t")
    dataset = StatefulShardedDataset(lance.dataset(path))
    assert [row["id"] for row in dataset] == LEFT
    assert len(dataset) == 45
    assert [row["id"] for row in dataset.skip(3).take(4)] == LEFT[3:7]
    train, val = dataset.split({"train": 0.5, "val": 0.5})
    assert sorted(row["id"] for part in (train, val) for row in part) == LEFT
    for row in StatefulShardedDataset(lance.dataset(path), provenance=True):
        fragment = lance.dataset(path).get_fragment(int(row["_path"].rpartition("-")[2]))
        assert fragment is not None
        assert fragment.take([row["_row"]])["id"].to_pylist() == [row["id"]]


def test_a_dataset_is_resumed_exactly_at_every_batch(tmp_path: Path) -> None:
    path = dataset_with_deletions(tmp_path / "t")
    assert_resumes_exactly(lambda: make(path))


def test_rows_come_once_while_ranks_change(tmp_path: Path) -> None:
    path = dataset_with_deletions(tmp_path / "t")
    rows = rows_while_ranks_change(lambda rank, size: make(path, rank=rank, world_size=size, remainder="keep"))
    assert rows == LEFT


def test_workers_that_are_not_forked_read_the_dataset(tmp_path: Path) -> None:
    path = dataset_with_deletions(tmp_path / "t")
    alone = flat(ids(make(path, lanes=2)))
    assert flat(ids(make(path, lanes=2, num_workers=2, context=FORKSERVER))) == alone


def test_a_worker_that_is_forked_after_lance_was_used_is_refused(tmp_path: Path) -> None:
    path = dataset_with_deletions(tmp_path / "t")
    loader = make(path, num_workers=1, context="fork")
    with loader_raises(DataFileError, match="start workers with multiprocessing_context='forkserver' or 'spawn'"):
        list(loader)


def test_a_dataset_that_has_moved_on_is_named_and_the_old_version_resumes(tmp_path: Path) -> None:
    path = dataset_with_deletions(tmp_path / "t")
    loader = make(path)
    batches = iter(loader)
    before = [next(batches)["id"].tolist() for _ in range(4)]
    state = loader.state_dict()
    lance.dataset(path).delete("id < 10")
    lance.dataset(path).add_columns({"y": "x + 1"})
    lance.dataset(path).optimize.compact_files()
    with pytest.raises(
        CheckpointMismatchError, match="table: saved 'version 2 of the Lance dataset', this run has 'version 6"
    ):
        make(path).load_state_dict(state)
    resumed = make(path, "@2")
    resumed.load_state_dict(state)
    assert sorted(flat(before) + flat(ids(resumed))) == LEFT


def test_a_version_that_was_cleaned_up_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = dataset_with_deletions(tmp_path / "t")
    manifest = Manifest.scan(f"lance://{path}@2")
    lance.dataset(path).optimize.compact_files()
    lance.dataset(path).cleanup_old_versions(retain_versions=1)
    with pytest.raises(DataFileError, match="can't be opened as a Lance dataset"):
        StatefulShardedDataset(f"lance://{path}@2")
    with pytest.raises(DataFileError, match=r"fragment-0 can't be read by Lance: .*Not found"):
        list(StatefulShardedDataset(manifest))


def test_another_dataset_at_the_same_place_is_an_error(tmp_path: Path) -> None:
    path = dataset_with_deletions(tmp_path / "t")
    manifest = Manifest.scan(f"lance://{path}@2")
    manifest.save(tmp_path / "manifest")
    other = dataset_with_deletions(tmp_path / "other")
    with pytest.raises(DataFileError, match="changed since it was planned: its fragment had the digest"):
        list(StatefulShardedDataset(Manifest.load(tmp_path / "manifest", root=other)))


def test_a_saved_manifest_and_a_moved_dataset_are_the_same(tmp_path: Path) -> None:
    path = dataset_with_deletions(tmp_path / "t")
    manifest = Manifest.scan(f"lance://{path}", cache_dir=tmp_path / "cache")
    manifest.save(tmp_path / "manifest")
    state = make(path).state_dict()
    shutil.move(path, tmp_path / "elsewhere")
    loaded = Manifest.load(tmp_path / "manifest", root=tmp_path / "elsewhere")
    assert [row["id"] for row in StatefulShardedDataset(loaded)] == LEFT
    loader = make(tmp_path / "elsewhere")
    loader.load_state_dict(state)
    assert sorted(flat(ids(loader))) == LEFT
    rewritten = to_parquet(loaded, tmp_path / "dest")
    assert [row["id"] for row in StatefulShardedDataset(rewritten)] == LEFT


def test_what_is_no_dataset_of_lance_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="can't be opened as a Lance dataset"):
        StatefulShardedDataset(f"lance://{tmp_path}/missing")
    path = dataset_with_deletions(tmp_path / "t")
    with pytest.raises(DataFileError, match="at version 9, which may have been cleaned up") as caught:
        StatefulShardedDataset(f"lance://{path}@9")
    assert ".rs:" not in str(caught.value)
    with pytest.raises(DataFileError, match=r"pass the dataset, as one of lance\.dataset"):
        StatefulShardedDataset(path)
    fragment: Any = lance.dataset(path).get_fragments()[0]
    with pytest.raises(TypeError, match=r"source is a LanceFragment: give a dataset of lance\.dataset"):
        StatefulShardedDataset(fragment)
    with pytest.raises(ValueError, match="read by its own library, not by filesystem="):
        StatefulShardedDataset(lance.dataset(path), filesystem=pa.fs.LocalFileSystem())
    empty = lance.write_dataset(pa.table({"id": pa.array([], pa.int64())}), tmp_path / "empty")
    with pytest.raises(DataFileError, match="version 1 of the Lance dataset has no data files"):
        StatefulShardedDataset(empty)


def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = dataset_with_deletions(tmp_path / "t")
    dataset = StatefulShardedDataset(f"lance://{path}")
    damaged = path / "data" / lance.dataset(path).get_fragments()[1].data_files()[0].path
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(DataFileError, match="fragment-1 can't be read by Lance"):
        list(dataset)
