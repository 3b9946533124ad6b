"""Arguments and results of a dataset: sources, columns, outputs, nulls, and the errors of invalid arguments."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

from laneway import (
    ColumnConversionError,
    DataFileError,
    Manifest,
    Mixture,
    SchemaMismatchError,
    StatefulShardedDataset,
)
from tests.compat.loaders import flat, ids, loader_raises
from tests.corpora import KINDS, Kind, write_corpus

if TYPE_CHECKING:
    from pathlib import Path


def write(path: Path, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def test_every_way_to_name_a_source_reads_the_same_rows(tmp_path: Path) -> None:
    num_rows = write_corpus(tmp_path)
    files = sorted(tmp_path.iterdir())
    sources: list[Any] = [
        tmp_path,
        str(tmp_path),
        f"{tmp_path}/",
        f"{tmp_path}/*.parquet",
        files[::-1],
        [str(file) for file in files],
        f"file://{tmp_path}",
        Manifest.scan(tmp_path),
        os.path.relpath(tmp_path),
    ]
    for source in sources:
        assert flat(ids(StatefulShardedDataset(source, batch_size=5))) == list(range(num_rows)), source
    single = StatefulShardedDataset(files[0], batch_size=5)
    assert flat(ids(single)) == list(range(13))


@pytest.mark.parametrize("kind", KINDS)
def test_an_fsspec_or_pyarrow_filesystem_can_be_given(tmp_path: Path, kind: Kind) -> None:
    num_rows = write_corpus(tmp_path, kind)
    local = pyarrow.fs.LocalFileSystem()
    for source, filesystem in ((tmp_path, local), ("/", pyarrow.fs.SubTreeFileSystem(str(tmp_path), local))):
        dataset = StatefulShardedDataset(source, batch_size=5, filesystem=filesystem)
        assert flat(ids(DataLoader(dataset, batch_size=None, num_workers=1))) == list(range(num_rows))


def test_keys_of_hive_directories_are_typed_columns(tmp_path: Path) -> None:
    write(tmp_path / "lang=de" / "year=2024" / "a.parquet", x=[1, 2])
    write(tmp_path / "lang=en" / "year=2023" / "a.parquet", x=[3])
    dataset = StatefulShardedDataset(tmp_path, batch_size=3)
    assert dataset.schema == pa.schema(dict[str, pa.DataType](x=pa.int64(), lang=pa.string(), year=pa.int64()))
    (batch,) = dataset
    assert batch["lang"] == ["de", "de", "en"]
    assert batch["year"].tolist() == [2024, 2024, 2023]
    assert list(StatefulShardedDataset(tmp_path, columns=["year"])) == [{"year": y} for y in (2024, 2024, 2023)]


def test_the_requested_columns_come_in_order_in_every_output(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    arguments: dict[str, Any] = {"columns": ["x", "id"], "batch_size": 2}
    assert next(iter(StatefulShardedDataset(tmp_path, output="python", **arguments))) == {"x": [0.0, 0.5], "id": [0, 1]}
    batch = next(iter(StatefulShardedDataset(tmp_path, **arguments)))
    assert list(batch) == ["x", "id"]
    assert batch["x"].dtype == torch.float32
    batch = next(iter(StatefulShardedDataset(tmp_path, output="numpy", **arguments)))
    assert isinstance(batch["id"], np.ndarray)
    batch = next(iter(StatefulShardedDataset(tmp_path, output="arrow", **arguments)))
    assert batch.schema.names == ["x", "id"]
    assert isinstance(batch, pa.RecordBatch)
    row = next(iter(StatefulShardedDataset(tmp_path, columns=["x", "id"], output="torch")))
    assert row == {"x": torch.tensor(0.0), "id": torch.tensor(0)}


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("shuffle", [False, True])
def test_the_error_of_a_null_names_column_file_row_and_fill_null(
    tmp_path: Path, num_workers: int, shuffle: bool
) -> None:
    write(tmp_path / "a.parquet", x=[1, 2, 3])
    write(tmp_path / "b.parquet", x=[4, 5, None, 7])
    dataset = StatefulShardedDataset(tmp_path, batch_size=7, shuffle=shuffle)
    loader = DataLoader(dataset, batch_size=None, num_workers=num_workers)
    problem = r"column 'x' of type int64 has a null in row 2 of b\.parquet.*fill_null=\{'x':"
    with loader_raises(ColumnConversionError, problem):
        list(loader)
    filled = StatefulShardedDataset(tmp_path, batch_size=7, fill_null={"x": -1})
    assert next(iter(filled))["x"].tolist() == [1, 2, 3, 4, 5, -1, 7]
    assert [row["x"] for row in StatefulShardedDataset(tmp_path)] == [1, 2, 3, 4, 5, None, 7]


@pytest.mark.parametrize("kind", KINDS)
def test_changing_a_batch_in_place_changes_neither_the_file_nor_another_batch(tmp_path: Path, kind: Kind) -> None:
    write_corpus(tmp_path, kind)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    dataset = StatefulShardedDataset(tmp_path, batch_size=4, columns=["id"], lanes=7, remainder="pad")
    expected = ids(dataset)
    dataset.set_epoch(0)
    found = []
    for batch in dataset:
        found.append(batch["id"].tolist())
        batch["id"].fill_(-1)
    assert found == expected
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_position_inside_a_row_group_resumes_there(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", id=list(range(1000)))
    dataset = StatefulShardedDataset(tmp_path, batch_size=7)
    batches = iter(dataset)
    for _ in range(50):
        next(batches)
    resumed = StatefulShardedDataset(tmp_path, batch_size=7)
    resumed.load_state_dict(dataset.state_dict())
    assert next(iter(resumed))["id"].tolist() == list(range(350, 357))


def test_the_last_batch_of_a_lane_can_be_dropped(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    assert [len(batch) for batch in ids(StatefulShardedDataset(tmp_path, batch_size=10))] == [10, 10, 10, 10, 8]
    assert [len(batch) for batch in ids(StatefulShardedDataset(tmp_path, batch_size=10, drop_last=True))] == [10] * 4


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"batch_size": 0}, "batch_size must be an int of at least 1, or None, not 0"),
        ({"batch_size": "4"}, "batch_size must be an int"),
        ({"batch_size": True}, "batch_size must be an int"),
        ({"lanes": -1}, "lanes must be an int of at least 1, or None, not -1"),
        ({"turn_rows": 3, "batch_size": 4}, "batch_size 4 must be a multiple of turn_rows 3"),
        ({"shard_rows": 0}, "shard_rows must be"),
        ({"shard_bytes": "8 parsecs"}, "'8 parsecs' is not a valid size"),
        ({"window_bytes": 0}, "at least 1 byte"),
        ({"seed": -1}, r"seed must be an int in \[0, 2\*\*63\), not -1"),
        ({"seed": 0.5}, "seed must be an int"),
        ({"remainder": "cut"}, "remainder must be one of 'pad', 'drop', 'keep' or None, not 'cut'"),
        ({"output": "jax"}, "output must be one of 'python', 'numpy', 'torch', 'arrow' or None, not 'jax'"),
        ({"drop_last": True}, "drop_last=True needs a batch_size"),
        ({"rank": 1}, "give both or neither"),
        ({"columns": ["nothing"]}, "there is no column 'nothing'"),
        ({"columns": ["idd"]}, "did you mean 'id'"),
        ({"columns": []}, "at least one column"),
        ({"columns": "id"}, "sequence of names"),
        ({"columns": ()}, "at least one column"),
        ({"columns": [1]}, "as strings"),
        ({"columns": {"id"}}, "sequence of names"),
        ({"window_bytes": None}, "window_bytes: None is not a valid size"),
        ({"window_bytes": 1.5}, "window_bytes: 1.5 is not a valid size"),
        ({"shard_bytes": 2**70}, r"shard_bytes: a size must be .* less than 2\*\*62"),
        ({"shard_rows": 2**70}, "shard_rows must be an int of at most"),
        ({"lanes": 2**24}, "lanes must be an int of at most 1,048,576"),
        ({"shuffle": "no"}, "shuffle must be True or False, not 'no'"),
        ({"drop_last": "False", "batch_size": 2}, "drop_last must be True or False"),
        ({"rank": "0", "world_size": 1}, "must be ints, not '0' and 1"),
        ({"format": "xml"}, "xml"),
        ({"transform": 3}, "transform must be callable, not 3"),
        ({"format": ["parquet"]}, r"format is \['parquet'\]: give one of 'parquet'"),
        ({"on_error": None}, "on_error must be one of 'raise', 'mask', 'skip', not None"),
        (
            {"remainder": pc.field("id") == 1},
            r"remainder must be one of .*, not <pyarrow.compute.Expression \(id == 1\)>",
        ),
        ({"categories": ""}, "categories must be a dict"),
        ({"cache_dir": 3}, "cache_dir must be a directory or a URL, True, False or None, not 3"),
        ({"cache_dir": b"cache"}, "cache_dir must be a directory or a URL"),
        ({"storage_options": {1: 2}}, "storage_options must have names of arguments, which are strings, not 1"),
    ],
)
def test_invalid_arguments_are_refused_with_the_valid_ones(
    tmp_path: Path, arguments: dict[str, Any], problem: str
) -> None:
    write_corpus(tmp_path)
    with pytest.raises((ValueError, TypeError), match=problem):
        StatefulShardedDataset(tmp_path, **arguments)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (None, "not None"),
        (3, "not 3"),
        ("", "'.' for the working directory"),
        ([], "is empty"),
        ("x" * 5000, "too long"),
    ],
)
def test_an_invalid_source_is_refused(source: Any, problem: str) -> None:
    with pytest.raises((TypeError, ValueError, DataFileError), match=problem):
        StatefulShardedDataset(source)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda dataset: dataset.extend(None), "grown must be a StatefulShardedDataset with more files, not None"),
        (lambda dataset: dataset.statistics(progress="yes"), "progress must be True, False or None, not 'yes'"),
        (lambda dataset: dataset.pack(2**70), "length must be an int of at most"),
        (lambda dataset: dataset.pack(4, group_rows=2**70), "group_rows must be an int of at most"),
        (lambda dataset: dataset.pack(4, strategy=None), "strategy must be one of 'best_fit', 'chunk', not None"),
        (lambda dataset: dataset.repeat().add(None, {"rows": 1}), "sources must be a mapping .* not None"),
        (
            lambda dataset: Mixture({"a": dataset}, {"a": 1}, weights_of=cast("Any", None)),
            "weights_of must be one of .* not None",
        ),
    ],
)
def test_invalid_arguments_of_methods_are_refused(tmp_path: Path, change: Any, problem: str) -> None:
    write_corpus(tmp_path)
    with pytest.raises((ValueError, TypeError), match=problem):
        change(StatefulShardedDataset(tmp_path))


@pytest.mark.parametrize("epoch", [-1, 2.5, "3", True, 2**40, None])
def test_an_invalid_epoch_is_refused(tmp_path: Path, epoch: Any) -> None:
    write_corpus(tmp_path)
    dataset = StatefulShardedDataset(tmp_path)
    with pytest.raises(ValueError, match="epoch must be an int in"):
        dataset.set_epoch(epoch)
    assert dataset.epoch == 0


def test_numpy_integers_are_integers(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    numbers: dict[str, Any] = {"batch_size": np.int64(5), "seed": np.int32(3)}
    dataset = StatefulShardedDataset(tmp_path, shuffle=True, **numbers)
    assert ids(dataset) == ids(StatefulShardedDataset(tmp_path, batch_size=5, seed=3, shuffle=True))
    fresh = StatefulShardedDataset(tmp_path, batch_size=5, seed=3, shuffle=True)
    fresh.load_state_dict(dataset.state_dict())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def overwrite(path: Path) -> None:
    path.write_text("this is not a data file")


def remove(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere")


def other_schema(path: Path) -> None:
    pq.write_table(pa.table({"id": ["text"], "text": ["text"], "x": pa.array([1], pa.float32())}), path)


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (truncate, DataFileError),
        (overwrite, DataFileError),
        (remove, DataFileError),
        (other_schema, SchemaMismatchError),
    ],
)
def test_one_bad_file_is_one_error_that_names_it(tmp_path: Path, damage: Any, error: type[Exception]) -> None:
    write_corpus(tmp_path)
    damage(tmp_path / "part-003.parquet")
    with pytest.raises(error, match=r"part-003\.parquet"):
        StatefulShardedDataset(tmp_path)


def test_an_empty_or_missing_directory_is_an_error_that_names_it(tmp_path: Path) -> None:
    for source in (tmp_path, tmp_path / "missing", tmp_path / "*.parquet"):
        with pytest.raises(DataFileError, match=str(tmp_path)):
            StatefulShardedDataset(source)
